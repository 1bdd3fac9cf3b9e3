/* What a plan was made from, read over a connection of its own while the writer goes on. */
#include <string.h>

#include "coordinator/store/store_priv.h"

int store_plan_inputs(struct store *s, const char *job, uint64_t offset, size_t max, struct buf *out,
                      uint64_t *total, int64_t *created_us, struct err *e)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    int rc = db_open_ro(&db, s->path, &store_db_kind, e);
    if (rc == ST_OK)
        rc = db_prepare(db,
                        "SELECT length(inputs),iif(?2<length(inputs),substr(inputs,?2+1,?3),x''),created_us "
                        "FROM plan WHERE job=?1 "
                        "ORDER BY created_us DESC LIMIT 1",
                        &st, e);
    if (rc == ST_OK) {
        sqlite3_bind_text(st, 1, job, -1, SQLITE_STATIC);
        sqlite3_bind_int64(st, 2, (int64_t)offset);
        sqlite3_bind_int64(st, 3, (int64_t)max);
        int step = sqlite3_step(st);
        if (step == SQLITE_ROW) {
            *total = (uint64_t)sqlite3_column_int64(st, 0);
            *created_us = sqlite3_column_int64(st, 2);
            rc = buf_append(out, sqlite3_column_blob(st, 1), (size_t)sqlite3_column_bytes(st, 1));
            if (rc < 0)
                err_set(e, rc, "no memory for the inputs of a plan");
        } else {
            rc = step == SQLITE_DONE ? err_set(e, ST_ENOENT, "job %s has no plan", job)
                                     : db_fail(db, step, "reading the inputs of a plan", e);
        }
    }
    sqlite3_finalize(st);
    db_close(db);
    return rc;
}
