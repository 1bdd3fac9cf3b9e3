/*
 * SQLite as strata uses it, for this room and the audit room alone: opening, migrating and telling people
 * what is wrong. A connection belongs to one thread at a time.
 */
#ifndef STRATA_STORE_DB_H
#define STRATA_STORE_DB_H

#include <sqlite3.h>
#include <stdint.h>

#include "common/base/err.h"

struct db_kind {
    int32_t app_id;           /* SQLite application_id, so that a stranger's file is not written to */
    const char *what;         /* "state.db" in sentences */
    const char *const *steps; /* steps[i] brings schema i to i + 1 */
    int n_steps;
    int checkpoint_pages; /* WAL pages before an automatic checkpoint */
};

/* Opens for writing: creates the file 0640 if missing, WAL that outlives us, synchronous FULL, migrated to
 * n_steps. ST_ENOTSUP (reason NEWER_SCHEMA), ST_ECORRUPT (NOT_OURS or damaged), ST_EDENIED, ST_ERESOURCE
 * (DISK_FULL), ST_EIO. */
int db_open(sqlite3 **out, const char *path, const struct db_kind *kind, unsigned max_pages,
            struct err *e) ST_CHECK;
/* Opens for reading only, refusing a newer schema as well. */
int db_open_ro(sqlite3 **out, const char *path, const struct db_kind *kind, struct err *e) ST_CHECK;
void db_close(sqlite3 *db); /* NULL is fine */

/* Translates an SQLite result into a status and a sentence naming the file, what failed and the remedy. */
int db_fail(sqlite3 *db, int sqlite_rc, const char *doing, struct err *e);
int db_exec(sqlite3 *db, const char *sql, struct err *e) ST_CHECK;
int db_prepare(sqlite3 *db, const char *sql, sqlite3_stmt **out, struct err *e) ST_CHECK;
/* One integer answer of a query; `fallback` when it has no row or a NULL. */
int db_int(sqlite3 *db, const char *sql, int64_t fallback, int64_t *out, struct err *e) ST_CHECK;
/* A text column, "" for NULL. */
const char *db_text(sqlite3_stmt *st, int col);

#endif
