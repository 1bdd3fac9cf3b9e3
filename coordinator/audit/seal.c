/*
 * Sealing. The copy is made by SQLite from one file into the other; rows go in order, so pages are full, and
 * the indexes are built afterwards. Nothing is promised until the file is synced under its name: a half copy
 * lies under another and is removed by the next attempt.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

#define CHUNK 20000
#define NAMES_MAX 1000000000 /* 120 MB as bits */

int file_sha256(const char *path, uint8_t out[CHAIN_HASH], uint64_t *bytes, struct err *e)
{
    static const size_t cap = 1u << 18;
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = ST_OK;
    if (fd < 0)
        return err_errno(e, errno, "%s: cannot be read", path);
    uint8_t *p = malloc(cap);
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    unsigned len = 0;
    ssize_t n = -1;
    *bytes = 0;
    if (!p || !md || EVP_DigestInit_ex(md, EVP_sha256(), NULL) != 1)
        rc = err_set(e, ST_ENOMEM, "%s: no memory to hash it", path);
    while (rc == ST_OK && (n = read(fd, p, cap)) > 0) {
        *bytes += (uint64_t)n;
        if (EVP_DigestUpdate(md, p, (size_t)n) != 1)
            rc = err_set(e, ST_EINTERNAL, "%s: cannot be hashed", path);
    }
    if (rc == ST_OK && n < 0)
        rc = err_errno(e, errno, "%s: cannot be read", path);
    if (rc == ST_OK && EVP_DigestFinal_ex(md, out, &len) != 1)
        rc = err_set(e, ST_EINTERNAL, "%s: cannot be hashed", path);
    EVP_MD_CTX_free(md);
    free(p);
    close(fd);
    return rc;
}

/* The names of the segment's rows keep their numbers. */
static const char *const tables =
    "CREATE TABLE s.event_type(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;"
    "INSERT INTO s.event_type SELECT id,name FROM main.event_type;"
    "CREATE TABLE s.name(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;"
    "CREATE TABLE s.seal(first INTEGER PRIMARY KEY, last INTEGER NOT NULL, ts_min INTEGER NOT NULL,"
    " ts_max INTEGER NOT NULL, prev BLOB NOT NULL, hash BLOB NOT NULL) STRICT;"
    "CREATE TABLE s.checkpoint(size INTEGER PRIMARY KEY, head BLOB NOT NULL, ts_us INTEGER NOT NULL,"
    " key_id TEXT NOT NULL, sig BLOB NOT NULL) STRICT;"
    "CREATE TABLE s.state(one INTEGER PRIMARY KEY CHECK(one=1), size INTEGER NOT NULL, head BLOB NOT NULL,"
    " drained INTEGER NOT NULL) STRICT;"
    "CREATE TABLE s.segment(n INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL,"
    " ts_min INTEGER NOT NULL, ts_max INTEGER NOT NULL, opened_us INTEGER NOT NULL, prev BLOB NOT NULL,"
    " head BLOB NOT NULL, file TEXT NOT NULL, sha256 BLOB NOT NULL, retired INTEGER NOT NULL,"
    " slot INTEGER NOT NULL) STRICT;"
    "CREATE TABLE s.slot(n INTEGER PRIMARY KEY) STRICT;"
    "CREATE TABLE s.rate_1m(minute INTEGER NOT NULL, event INTEGER NOT NULL, severity INTEGER NOT NULL,"
    " result INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(minute,event,severity,result)) STRICT, "
    "WITHOUT ROWID;"
    "CREATE TABLE s.rate_1h(hour INTEGER NOT NULL, event INTEGER NOT NULL, severity INTEGER NOT NULL,"
    " result INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(hour,event,severity,result)) STRICT, "
    "WITHOUT ROWID;";

/* One statement for segment n, with %1 its number as part of a name, %2 and %3 its first and last row, %n the
 * number, and %t its table in audit.db. */
static int exec_for(sqlite3 *db, const struct segment *s, const char *pattern, struct err *e)
{
    struct buf b = {0};
    int rc = ST_OK;
    for (const char *p = pattern; *p && rc >= 0; p++) {
        if (*p != '%') {
            rc = buf_append(&b, p, 1);
            continue;
        }
        p++;
        rc = *p == '1'   ? buf_printf(&b, "%06lld", (long long)s->n)
             : *p == 't' ? buf_printf(&b, "%06lld", (long long)s->slot)
             : *p == '2' ? buf_printf(&b, "%lld", (long long)s->first)
             : *p == '3' ? buf_printf(&b, "%lld", (long long)s->last)
                         : buf_printf(&b, "%lld", (long long)s->n);
    }
    rc = rc < 0 ? err_set(e, ST_ENOMEM, "sealing: out of memory") : db_exec(db, buf_cstr(&b), e);
    buf_fini(&b);
    return rc;
}

/* The same columns in the same order and the same indexes: SQLite then moves whole records, also those of the
 * indexes, which are in order already. */
static int copy_rows(sqlite3 *db, const struct segment *s, struct err *e)
{
    int rc = segment_table(db, "s", s->n, e);
    return rc < 0 ? rc : exec_for(db, s, "INSERT INTO s.audit_%1 SELECT * FROM main.audit_%t", e);
}

struct rate {
    int64_t key[4]; /* minute, event, severity, result */
    int64_t n;
};
#define RATES 64u

/* What one look at all rows finds out. */
struct tally {
    sqlite3 *db;
    sqlite3_stmt *put_rate, *put_name;
    struct rate rates[RATES];
    size_t n_rates;
    uint8_t *used; /* a bit for each number of a name */
    int64_t max_name;
};

static int put_rates(struct tally *t, struct err *e)
{
    for (size_t i = 0; i < t->n_rates; i++) {
        for (int k = 0; k < 4; k++)
            sqlite3_bind_int64(t->put_rate, 1 + k, t->rates[i].key[k]);
        sqlite3_bind_int64(t->put_rate, 5, t->rates[i].n);
        if (sqlite3_step(t->put_rate) != SQLITE_DONE)
            return db_fail(t->db, sqlite3_extended_errcode(t->db), "counting the rows", e);
        sqlite3_reset(t->put_rate);
    }
    t->n_rates = 0;
    return ST_OK;
}

/* Counted in the order of the rows, where neighbours share their minute; a GROUP BY would sort all of them.
 */
static int tally_rate(struct tally *t, sqlite3_stmt *row, struct err *e)
{
    struct rate x = {.n = 1};
    size_t i = t->n_rates;
    for (int k = 0; k < 4; k++)
        x.key[k] = sqlite3_column_int64(row, k);
    while (i > 0 && memcmp(t->rates[i - 1].key, x.key, sizeof x.key) != 0)
        i--;
    if (i > 0) {
        t->rates[i - 1].n++;
        return ST_OK;
    }
    int rc = t->n_rates == RATES ? put_rates(t, e) : ST_OK;
    if (rc == ST_OK)
        t->rates[t->n_rates++] = x;
    return rc;
}

/* A number that is no name's is left to the verifier, who finds that the row refers to none. */
static void tally_names(struct tally *t, sqlite3_stmt *row)
{
    for (int k = 4; k < 10; k++) {
        int64_t id = sqlite3_column_int64(row, k);
        if (id > 0 && id <= t->max_name)
            t->used[id / 8] |= (uint8_t)(1u << (id % 8));
    }
}

static int put_names(struct tally *t, struct err *e)
{
    for (int64_t id = 1; id <= t->max_name; id++) {
        if (!(t->used[id / 8] & 1u << (id % 8)))
            continue;
        sqlite3_bind_int64(t->put_name, 1, id);
        if (sqlite3_step(t->put_name) != SQLITE_DONE)
            return db_fail(t->db, sqlite3_extended_errcode(t->db), "copying the names", e);
        sqlite3_reset(t->put_name);
    }
    return ST_OK;
}

static int tally_open(struct tally *t, struct err *e)
{
    int rc = db_int(t->db, "SELECT max(id) FROM main.name", 0, &t->max_name, e);
    if (rc == ST_OK && t->max_name > NAMES_MAX)
        rc = err_reason(e, ST_ECORRUPT, "DAMAGED",
                        "audit.db: a name has the number %lld, which none can have", (long long)t->max_name);
    t->used = rc == ST_OK ? calloc((size_t)t->max_name / 8 + 1, 1) : NULL;
    if (rc == ST_OK && !t->used)
        rc = err_set(e, ST_ENOMEM, "sealing: out of memory");
    if (rc == ST_OK)
        rc = db_prepare(
            t->db, "INSERT INTO s.rate_1m VALUES(?1,?2,?3,?4,?5) ON CONFLICT DO UPDATE SET n=n+excluded.n",
            &t->put_rate, e);
    return rc < 0 ? rc
                  : db_prepare(t->db, "INSERT INTO s.name SELECT id,text FROM main.name WHERE id=?1",
                               &t->put_name, e);
}

/* Rates and names, in one look at the rows. */
static int copy_tally(sqlite3 *db, const struct segment *s, bool (*stop)(void *arg), void *arg, struct err *e)
{
    struct tally t = {.db = db};
    char sql[160];
    int64_t rows = 0;
    sqlite3_stmt *get = NULL;
    snprintf(sql, sizeof sql,
             "SELECT ts_us/60000000,event,severity,result,principal,device,node,session,job,operation FROM "
             "s.audit_%06lld NOT INDEXED",
             (long long)s->n);
    int step = SQLITE_DONE, rc = tally_open(&t, e);
    if (rc == ST_OK)
        rc = db_prepare(db, sql, &get, e);
    while (rc == ST_OK && (step = sqlite3_step(get)) == SQLITE_ROW) {
        tally_names(&t, get);
        rc = tally_rate(&t, get, e);
        if (rc == ST_OK && ++rows % CHUNK == 0 && stop && stop(arg))
            rc = err_set(e, ST_ECLOSED, "sealing was stopped");
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(db, step, "counting the rows", e);
    if (rc == ST_OK)
        rc = put_rates(&t, e);
    if (rc == ST_OK)
        rc = put_names(&t, e);
    sqlite3_finalize(get);
    sqlite3_finalize(t.put_rate);
    sqlite3_finalize(t.put_name);
    free(t.used);
    return rc;
}

static int copy_rest(sqlite3 *db, const struct segment *s, struct err *e)
{
    static const char *const sql[] = {
        "INSERT INTO s.seal SELECT first,last,ts_min,ts_max,prev,hash FROM main.seal WHERE first BETWEEN %2 "
        "AND %3 ORDER BY first",
        "CREATE INDEX s.seal_time ON seal(ts_max, first)",
        "INSERT INTO s.checkpoint SELECT size,head,ts_us,key_id,sig FROM main.checkpoint WHERE size BETWEEN "
        "%2 AND %3 ORDER BY size",
        "INSERT INTO s.state SELECT 1,last,head,0 FROM main.segment WHERE n=%n",
        "INSERT INTO s.slot VALUES(%n)",
        ("INSERT INTO s.segment SELECT n,first,last,ts_min,ts_max,opened_us,prev,head,'',zeroblob(32),0,n "
         "FROM main.segment WHERE n=%n"),
        "INSERT INTO s.rate_1h SELECT minute/60,event,severity,result,sum(n) FROM s.rate_1m GROUP BY 1,2,3,4",
        "CREATE INDEX s.audit_%1_event ON audit_%1(event)",
        "CREATE INDEX s.audit_%1_device ON audit_%1(device) WHERE device<>0"};
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i < sizeof sql / sizeof *sql; i++)
        rc = exec_for(db, s, sql[i], e);
    return rc;
}

static bool fits_uri(const char *path)
{
    return strlen(path) < 2000 && !strpbrk(path, "?#%'");
}

int seal_open(sqlite3 **db, const char *path, struct err *e)
{
    char uri[2100];
    *db = NULL;
    if (!fits_uri(path))
        return err_set(e, ST_EINVAL, "%s: a path with one of ? # %% ' or too long cannot be sealed", path);
    snprintf(uri, sizeof uri, "file:%s?mode=ro", path);
    int rc = sqlite3_open_v2(
        uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_URI, NULL);
    if (rc != SQLITE_OK) {
        rc = db_fail(*db, rc, "opening for sealing", e);
        db_close(*db);
        *db = NULL;
        return rc;
    }
    sqlite3_extended_result_codes(*db, 1);
    sqlite3_busy_timeout(*db, 5000);
    return ST_OK;
}

static int attach(sqlite3 *db, const char *tmp, struct err *e)
{
    char sql[2400];
    if (!fits_uri(tmp))
        return err_set(e, ST_EINVAL, "%s: a path with one of ? # %% ' or too long cannot be sealed", tmp);
    snprintf(sql, sizeof sql,
             "ATTACH 'file:%s?mode=rwc' AS s; PRAGMA s.journal_mode=OFF; PRAGMA s.synchronous=OFF;"
             "PRAGMA s.locking_mode=EXCLUSIVE; PRAGMA s.cache_size=-32768; PRAGMA s.application_id=%d;"
             "PRAGMA s.user_version=%d",
             tmp, audit_db_kind.app_id, audit_db_kind.n_steps);
    return db_exec(db, sql, e);
}

/* The views a reader of audit.db knows work on the sealed file too. */
static int finish_views(const char *tmp, struct err *e)
{
    sqlite3 *db = NULL;
    int rc = sqlite3_open_v2(tmp, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        rc = db_fail(db, rc, "opening the sealed file", e);
    } else {
        rc = db_exec(db, "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF", e);
        if (rc == ST_OK)
            rc = segment_views(db, e);
    }
    db_close(db);
    return rc;
}

static int sync_path(const char *path, int flags, struct err *e)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0) {
        int rc = err_errno(e, errno, "%s: cannot be synced", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    close(fd);
    return ST_OK;
}

static int put_in_place(const char *tmp, const char *final, const char *dir, struct err *e)
{
    int rc = sync_path(tmp, O_RDWR, e);
    if (rc == ST_OK && (chmod(tmp, 0440) < 0 || rename(tmp, final) < 0))
        rc = err_errno(e, errno, "%s: cannot be given its name", final);
    return rc == ST_OK ? sync_path(dir, O_RDONLY | O_DIRECTORY, e) : rc;
}

int seal_segment(sqlite3 *db, const char *path, const struct segment *s, bool (*stop)(void *arg), void *arg,
                 struct seal_result *out, struct err *e)
{
    char dir[1024], tmp[1100], final[1024];
    uint64_t start = clock_ns(clock_system());
    *out = (struct seal_result){.n = s->n, .first = s->first, .last = s->last, .slot = s->slot};
    snprintf(out->file, sizeof out->file, "%06lld.db", (long long)s->n);
    if (segment_path(dir, path, "") < 0 || segment_path(final, path, out->file) < 0)
        return err_set(e, ST_ELIMIT, "%s: its path is too long to seal beside it", path);
    snprintf(tmp, sizeof tmp, "%s.tmp", final);
    int rc = fs_mkdirs(dir, 0750, e);
    if (rc < 0)
        return rc;
    if (unlink(tmp) < 0 && errno != ENOENT)
        return err_errno(e, errno, "%s: cannot be removed", tmp);
    rc = attach(db, tmp, e);
    if (rc == ST_OK)
        rc = db_exec(db, tables, e);
    if (rc == ST_OK)
        rc = copy_rows(db, s, e);
    if (rc == ST_OK)
        rc = copy_tally(db, s, stop, arg, e);
    if (rc == ST_OK)
        rc = copy_rest(db, s, e);
    if (rc == ST_OK)
        rc = db_exec(db, "DETACH s", e);
    if (rc == ST_OK)
        rc = finish_views(tmp, e);
    if (rc == ST_OK)
        rc = file_sha256(tmp, out->sha256, &out->bytes, e);
    if (rc == ST_OK)
        rc = put_in_place(tmp, final, dir, e);
    if (rc < 0)
        unlink(tmp);
    out->us = (clock_ns(clock_system()) - start) / NS_PER_US;
    return rc;
}
