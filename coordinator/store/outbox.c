/* The outbox as the audit room sees it: a reader of its own, trimming, and telling whether audit.db can be
 * written. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/str.h"
#include "coordinator/store/store_priv.h"

struct store_outbox {
    sqlite3 *db;
    sqlite3_stmt *read;
};

void store_outbox_notify(struct store *s, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&s->lock);
    s->notify = fn;
    s->notify_arg = arg;
    pthread_mutex_unlock(&s->lock);
}

int store_outbox_open(struct store_outbox **out, struct store *s, struct err *e)
{
    struct store_outbox *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(e, ST_ENOMEM, "%s: out of memory", s->path);
    int rc = db_open_ro(&o->db, s->path, &store_db_kind, e);
    if (rc == ST_OK)
        rc =
            db_prepare(o->db, "SELECT seq,event FROM outbox WHERE seq>?1 ORDER BY seq LIMIT ?2", &o->read, e);
    if (rc < 0) {
        store_outbox_close(o);
        return rc;
    }
    *out = o;
    return ST_OK;
}

void store_outbox_close(struct store_outbox *o)
{
    if (!o)
        return;
    sqlite3_finalize(o->read);
    db_close(o->db);
    free(o);
}

int store_outbox_read(struct store_outbox *o, uint64_t after, unsigned max,
                      int (*fn)(void *arg, uint64_t seq, const uint8_t *p, size_t len), void *arg,
                      unsigned *n, struct err *e)
{
    int rc = ST_OK, step;
    *n = 0;
    sqlite3_bind_int64(o->read, 1, (int64_t)after);
    sqlite3_bind_int64(o->read, 2, max);
    while ((step = sqlite3_step(o->read)) == SQLITE_ROW) {
        const void *p = sqlite3_column_blob(o->read, 1);
        rc = fn(arg, (uint64_t)sqlite3_column_int64(o->read, 0), p, (size_t)sqlite3_column_bytes(o->read, 1));
        if (rc != 0)
            break;
        ++*n;
    }
    if (rc == 0 && step != SQLITE_DONE)
        rc = db_fail(o->db, step, "reading the audit outbox", e);
    sqlite3_reset(o->read);
    return rc;
}

void store_outbox_trim(struct store *s, uint64_t seq)
{
    pthread_mutex_lock(&s->lock);
    if (seq > s->trim_want)
        s->trim_want = seq;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

int store_outbox_advance(struct store *s, uint64_t seq, struct err *e)
{
    assert(!s->started);
    if (seq <= s->last_seq)
        return ST_OK;
    char sql[256];
    snprintf(sql, sizeof sql,
             "BEGIN IMMEDIATE; DELETE FROM sqlite_sequence WHERE name='outbox';"
             "INSERT INTO sqlite_sequence(name,seq) VALUES('outbox',%llu); COMMIT",
             (unsigned long long)seq);
    int rc = db_exec(s->db, sql, e);
    if (rc < 0) {
        if (!sqlite3_get_autocommit(s->db))
            sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
        return rc;
    }
    LOG_W(s->cfg.log, "store", "outbox advanced from=%llu to=%llu reason=\"audit.db is newer than state.db\"",
          (unsigned long long)s->last_seq, (unsigned long long)seq);
    s->last_seq = seq;
    return ST_OK;
}

void store_audit_health(struct store *s, int rc, const char *why)
{
    pthread_mutex_lock(&s->lock);
    s->audit_rc = rc;
    str_copy(s->audit_why, sizeof s->audit_why, why ? why : "audit.db cannot be written");
    pthread_mutex_unlock(&s->lock);
}
