/* Opening, migrating and errors of our SQLite files. */
#include "coordinator/store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *file_of(sqlite3 *db)
{
    const char *f = db ? sqlite3_db_filename(db, "main") : NULL;
    return f && *f ? f : "database";
}

static int fail_at(const char *path, int sqlite_rc, const char *msg, const char *doing, struct err *e)
{
    switch (sqlite_rc & 0xff) {
    case SQLITE_FULL:
        return err_reason(
            e, ST_ERESOURCE, "DISK_FULL",
            "%s: %s failed: the disk or the file's size limit is full; free space there, nothing that was "
            "acknowledged is lost",
            path, doing);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return err_reason(e, ST_ECORRUPT, "DAMAGED",
                          "%s: %s failed: %s; restore it from a backup, or move it aside to start anew", path,
                          doing, msg);
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return err_set(e, ST_EDENIED,
                       "%s: %s failed: %s; the directory must exist and be writable by this user", path,
                       doing, msg);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(e, ST_ECONFLICT, "%s: %s failed: another process holds its lock; end that one first",
                       path, doing);
    case SQLITE_NOMEM:
        return err_set(e, ST_ENOMEM, "%s: %s failed: out of memory", path, doing);
    case SQLITE_CONSTRAINT:
        if (sqlite_rc == SQLITE_CONSTRAINT_PRIMARYKEY || sqlite_rc == SQLITE_CONSTRAINT_UNIQUE)
            return err_set(e, ST_EEXIST, "%s: %s failed: it is already there", path, doing);
        return err_set(e, ST_EINVAL, "%s: %s failed: %s", path, doing, msg);
    case SQLITE_IOERR:
        return err_set(e, ST_EIO, "%s: %s failed: %s; look at the disk and the kernel log", path, doing, msg);
    default:
        return err_set(e, ST_EINTERNAL, "%s: %s failed: %s (SQLite code %d)", path, doing, msg, sqlite_rc);
    }
}

int db_fail(sqlite3 *db, int sqlite_rc, const char *doing, struct err *e)
{
    return fail_at(file_of(db), sqlite_rc, db ? sqlite3_errmsg(db) : sqlite3_errstr(sqlite_rc), doing, e);
}

int db_exec(sqlite3 *db, const char *sql, struct err *e)
{
    int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        return ST_OK;
    char doing[80];
    snprintf(doing, sizeof doing, "\"%.60s\"", sql);
    return db_fail(db, sqlite3_extended_errcode(db), doing, e);
}

int db_prepare(sqlite3 *db, const char *sql, sqlite3_stmt **out, struct err *e)
{
    int rc = sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);
    return rc == SQLITE_OK ? ST_OK : db_fail(db, rc, "preparing a statement", e);
}

int db_int(sqlite3 *db, const char *sql, int64_t fallback, int64_t *out, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(db, sql, &st, e);
    if (rc < 0)
        return rc;
    int step = sqlite3_step(st);
    *out = step == SQLITE_ROW && sqlite3_column_type(st, 0) != SQLITE_NULL ? sqlite3_column_int64(st, 0)
                                                                           : fallback;
    rc = step == SQLITE_ROW || step == SQLITE_DONE ? ST_OK : db_fail(db, step, "reading", e);
    sqlite3_finalize(st);
    return rc;
}

const char *db_text(sqlite3_stmt *st, int col)
{
    const char *s = (const char *)sqlite3_column_text(st, col);
    return s ? s : "";
}

/* Ours, an empty new file, or a stranger's? And not newer than we are? */
static int check_schema(sqlite3 *db, const struct db_kind *kind, int64_t *version, struct err *e)
{
    int64_t app = 0, tables = 0;
    int rc = db_int(db, "PRAGMA application_id", 0, &app, e);
    if (rc == ST_OK)
        rc = db_int(db, "SELECT count(*) FROM sqlite_schema", 0, &tables, e);
    if (rc == ST_OK)
        rc = db_int(db, "PRAGMA user_version", 0, version, e);
    if (rc < 0)
        return rc;
    if ((app != kind->app_id && (tables > 0 || app != 0)) || *version < 0)
        return err_reason(e, ST_ECORRUPT, "NOT_OURS",
                          "%s: this is an SQLite file of another program, not strata's %s; move it aside or "
                          "name another path",
                          file_of(db), kind->what);
    if (*version > kind->n_steps)
        return err_reason(
            e, ST_ENOTSUP, "NEWER_SCHEMA",
            "%s: schema %lld was written by a newer strata (this one knows up to %d); start that version, or "
            "restore the copy of %s taken before the upgrade",
            file_of(db), (long long)*version, kind->n_steps, kind->what);
    return ST_OK;
}

static int migrate(sqlite3 *db, const struct db_kind *kind, struct err *e)
{
    int64_t version = 0;
    int rc = check_schema(db, kind, &version, e);
    for (int64_t v = version; rc == ST_OK && v < kind->n_steps; v++) {
        char stamp[120];
        snprintf(stamp, sizeof stamp, "PRAGMA application_id=%d; PRAGMA user_version=%lld", kind->app_id,
                 (long long)v + 1);
        rc = db_exec(db, "BEGIN IMMEDIATE", e);
        if (rc < 0)
            break;
        rc = db_exec(db, kind->steps[v], e);
        if (rc == ST_OK)
            rc = db_exec(db, stamp, e);
        if (rc == ST_OK)
            rc = db_exec(db, "COMMIT", e);
        if (rc < 0) {
            sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
            err_prefix(e, "migrating %s from schema %lld", kind->what, (long long)v);
        }
    }
    return rc;
}

int db_open(sqlite3 **out, const char *path, const struct db_kind *kind, unsigned max_pages, struct err *e)
{
    /* Made here and not by SQLite, for its mode; -wal and -shm inherit it. */
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
    if (fd < 0 && errno != EEXIST)
        return err_errno(
            e, errno, "%s: cannot be created; the directory must exist and be writable by this user", path);
    if (fd >= 0) {
        if (fchmod(fd, 0640) < 0) {
            int rc = err_errno(e, errno, "%s: cannot set its mode to 0640", path);
            close(fd);
            return rc;
        }
        close(fd);
    }
    sqlite3 *db = NULL;
    int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        rc = fail_at(path, rc, db ? sqlite3_errmsg(db) : "out of memory", "opening", e);
        sqlite3_close(db);
        return rc;
    }
    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, 5000);
    int64_t version;
    char pragma[160];
    snprintf(pragma, sizeof pragma,
             "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA journal_size_limit=67108864; "
             "PRAGMA wal_autocheckpoint=%d; PRAGMA cache_size=-32768",
             kind->checkpoint_pages);
    rc = check_schema(db, kind, &version, e); /* before anything is written to it */
    if (rc == ST_OK)
        rc = db_exec(db, "PRAGMA journal_mode=WAL", e);
    if (rc == ST_OK)
        rc = db_exec(db, pragma, e);
    if (rc == ST_OK && sqlite3_db_readonly(db, "main") == 1)
        rc = err_set(e, ST_EDENIED,
                     "%s: is read-only for this user; give it write permission on the file and its directory",
                     path);
    if (rc == ST_OK)
        rc = migrate(db, kind, e);
    if (rc == ST_OK && max_pages) {
        snprintf(pragma, sizeof pragma, "PRAGMA max_page_count=%u", max_pages);
        rc = db_exec(db, pragma, e);
    }
    if (rc < 0) {
        sqlite3_close(db);
        return rc;
    }
    /* Read-only readers need -wal and -shm to be there even when we are not. */
    int on = 1;
    sqlite3_file_control(db, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
    *out = db;
    return ST_OK;
}

int db_open_ro(sqlite3 **out, const char *path, const struct db_kind *kind, struct err *e)
{
    sqlite3 *db = NULL;
    int64_t version;
    int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        rc = access(path, F_OK) < 0
                 ? err_errno(e, errno, "%s: cannot be read", path)
                 : fail_at(path, rc, db ? sqlite3_errmsg(db) : "out of memory", "opening for reading", e);
    } else {
        sqlite3_extended_result_codes(db, 1);
        sqlite3_busy_timeout(db, 5000);
        rc = check_schema(db, kind, &version, e);
        if (rc == ST_OK && version == 0)
            rc = err_reason(e, ST_ECORRUPT, "NOT_OURS", "%s: is empty, not strata's %s", path, kind->what);
    }
    if (rc < 0) {
        sqlite3_close(db);
        return rc;
    }
    *out = db;
    return ST_OK;
}

void db_close(sqlite3 *db)
{
    sqlite3_close(db);
}
