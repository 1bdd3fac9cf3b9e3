/* The network's history, read over a connection of its own while the writer goes on. */
#include <string.h>

#include "coordinator/store/store_priv.h"

static int64_t span_for(int64_t since_us, int64_t now_us)
{
    int64_t back = now_us - since_us;
    /* A day by the asker's clock is a day. */
    if (back <= STORE_NET_DAY_US + STORE_NET_HOUR_US / 60)
        return 0;
    return back <= 30 * STORE_NET_DAY_US ? STORE_NET_HOUR_US : STORE_NET_DAY_US;
}

static uint64_t u64(sqlite3_stmt *st, int col)
{
    return (uint64_t)sqlite3_column_int64(st, col);
}

static struct store_net_sample row(sqlite3_stmt *st)
{
    return (struct store_net_sample){.from = db_text(st, 0),
                                     .to = db_text(st, 1),
                                     .span_us = sqlite3_column_int64(st, 2),
                                     .time_us = sqlite3_column_int64(st, 3),
                                     .samples = (uint32_t)u64(st, 4),
                                     .failures = (uint32_t)u64(st, 5),
                                     .rates = (uint32_t)u64(st, 6),
                                     .rtt_min_ns = u64(st, 7),
                                     .rtt_sum_ns = u64(st, 8),
                                     .rtt_max_ns = u64(st, 9),
                                     .loss_sum_ppm = u64(st, 10),
                                     .rate_min = u64(st, 11),
                                     .rate_sum = u64(st, 12),
                                     .rate_max = u64(st, 13)};
}

int store_net_history(struct store *s, const char *from, const char *to, int64_t since_us, int64_t now_us,
                      unsigned max, int (*fn)(void *arg, const struct store_net_sample *r), void *arg,
                      struct err *e)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    int step = SQLITE_DONE;
    int rc = db_open_ro(&db, s->path, &store_db_kind, e);
    if (rc == ST_OK)
        rc = db_prepare(db,
                        "SELECT src,dst,span_us,time_us,samples,failures,rates,rtt_min,rtt_sum,rtt_max,"
                        "loss_sum,rate_min,rate_sum,rate_max FROM net_history WHERE span_us=?1 AND "
                        "time_us>=?2 AND (?3='' OR src=?3) AND (?4='' OR dst=?4) "
                        "ORDER BY time_us DESC,src,dst LIMIT ?5",
                        &st, e);
    if (rc == ST_OK) {
        int64_t span = span_for(since_us, now_us);
        sqlite3_bind_int64(st, 1, span);
        sqlite3_bind_int64(st, 2, span ? since_us - since_us % span : since_us);
        sqlite3_bind_text(st, 3, from, -1, SQLITE_STATIC);
        sqlite3_bind_text(st, 4, to, -1, SQLITE_STATIC);
        sqlite3_bind_int64(st, 5, max);
        while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
            struct store_net_sample r = row(st);
            rc = fn(arg, &r);
        }
        if (rc == ST_OK && step != SQLITE_DONE)
            rc = db_fail(db, step, "reading the network's history", e);
    }
    sqlite3_finalize(st);
    db_close(db);
    return rc;
}
