/* Schema, opening, and the writer thread with its group commit. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "coordinator/store/store_priv.h"

#define TRIM_BATCH 4096u

static const char *const schema_steps[] = {
    /* 0 → 1 */
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE policy(principal TEXT PRIMARY KEY, roles INTEGER NOT NULL, extra INTEGER NOT NULL,"
    " denied INTEGER NOT NULL, devices TEXT NOT NULL, quota_bytes INTEGER, created_us INTEGER NOT NULL,"
    " expires_us INTEGER NOT NULL, generation INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE node(id TEXT PRIMARY KEY, address TEXT NOT NULL, spki TEXT NOT NULL, state INTEGER NOT "
    "NULL,"
    " incarnation INTEGER NOT NULL, enrolled_us INTEGER NOT NULL, seen_us INTEGER NOT NULL,"
    " spool_seq INTEGER NOT NULL DEFAULT 0, info BLOB NOT NULL) STRICT;"
    "CREATE TABLE device(id TEXT PRIMARY KEY, node TEXT NOT NULL, state INTEGER NOT NULL,"
    " total_bytes INTEGER NOT NULL, info BLOB NOT NULL, updated_us INTEGER NOT NULL) STRICT;"
    "CREATE INDEX device_node ON device(node);"
    "CREATE TABLE job(id TEXT PRIMARY KEY, principal TEXT NOT NULL, name TEXT NOT NULL, reason TEXT NOT NULL,"
    " plan_id TEXT NOT NULL, state INTEGER NOT NULL, bytes INTEGER NOT NULL, spec BLOB NOT NULL,"
    " created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL) STRICT;"
    "CREATE TABLE job_layer(job TEXT NOT NULL, layer TEXT NOT NULL, device TEXT NOT NULL, checksum TEXT NOT "
    "NULL,"
    " state INTEGER NOT NULL, bytes INTEGER NOT NULL, updated_us INTEGER NOT NULL,"
    " PRIMARY KEY(job, layer, device)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE plan(id TEXT PRIMARY KEY, job TEXT NOT NULL, goal TEXT NOT NULL, doc BLOB NOT NULL,"
    " created_us INTEGER NOT NULL) STRICT;"
    "CREATE TABLE request(principal TEXT NOT NULL, request_id TEXT NOT NULL, method TEXT NOT NULL,"
    " response BLOB NOT NULL, created_us INTEGER NOT NULL, PRIMARY KEY(principal, request_id)) STRICT;"
    "CREATE INDEX request_created ON request(created_us);"
    /* AUTOINCREMENT: a sequence is never given out twice, also when the rows before it are gone. */
    "CREATE TABLE outbox(seq INTEGER PRIMARY KEY AUTOINCREMENT, event BLOB NOT NULL) STRICT;",
    /* 1 → 2: device sessions with their escrow, and quotas on any one node and device */
    "ALTER TABLE policy ADD COLUMN node_quota_bytes INTEGER;"
    "ALTER TABLE policy ADD COLUMN device_quota_bytes INTEGER;"
    "CREATE TABLE session(id TEXT PRIMARY KEY, principal TEXT NOT NULL, node TEXT NOT NULL, devices TEXT NOT "
    "NULL,"
    " reason TEXT NOT NULL, permissions INTEGER NOT NULL, limit_bytes INTEGER NOT NULL, state INTEGER NOT "
    "NULL,"
    " opened_us INTEGER NOT NULL, expires_us INTEGER NOT NULL, generation INTEGER NOT NULL) STRICT, WITHOUT "
    "ROWID;",
    /* 2 → 3: tokens, certificates, revocations, pins */
    ("CREATE TABLE trust(kind TEXT NOT NULL, id TEXT NOT NULL, doc BLOB NOT NULL, updated_us INTEGER NOT "
     "NULL,"
     " PRIMARY KEY(kind, id)) STRICT, WITHOUT ROWID;"),
    /* 3 → 4: the network, measured */
    ("CREATE TABLE net_link(src TEXT NOT NULL, dst TEXT NOT NULL, doc BLOB NOT NULL, updated_us INTEGER NOT "
     "NULL,"
     " PRIMARY KEY(src, dst)) STRICT, WITHOUT ROWID;"
     "CREATE TABLE net_history(src TEXT NOT NULL, dst TEXT NOT NULL, span_us INTEGER NOT NULL,"
     " time_us INTEGER NOT NULL, samples INTEGER NOT NULL, failures INTEGER NOT NULL, rates INTEGER NOT NULL,"
     " rtt_min INTEGER, rtt_sum INTEGER NOT NULL, rtt_max INTEGER NOT NULL, loss_sum INTEGER NOT NULL,"
     " rate_min INTEGER, rate_sum INTEGER NOT NULL, rate_max INTEGER NOT NULL,"
     " PRIMARY KEY(src, dst, span_us, time_us)) STRICT, WITHOUT ROWID;"),
    /* 4 → 5: what a plan was made from */
    "ALTER TABLE plan ADD COLUMN inputs BLOB NOT NULL DEFAULT x'';",
    /* 5 → 6: how a device's rates differ from what its agent finds at its start */
    ("CREATE TABLE calibration(device TEXT PRIMARY KEY, memory_ppm INTEGER NOT NULL, compute_ppm INTEGER NOT "
     "NULL, updated_us INTEGER NOT NULL) STRICT, WITHOUT ROWID;"),
};

const struct db_kind store_db_kind = {
    .app_id = 0x53747261, /* "Stra" */
    .what = "state.db",
    .steps = schema_steps,
    .n_steps = sizeof schema_steps / sizeof schema_steps[0],
    .checkpoint_pages = 4000,
};

static const char *const fixed_sql[FIXED_COUNT] = {
    [FIXED_BEGIN] = "BEGIN IMMEDIATE",     [FIXED_COMMIT] = "COMMIT",
    [FIXED_SAVEPOINT] = "SAVEPOINT t",     [FIXED_RELEASE] = "RELEASE t",
    [FIXED_ROLLBACK_TO] = "ROLLBACK TO t", [FIXED_TRIM] = "DELETE FROM outbox WHERE seq<=?1",
};

static void store_destroy(struct store *s)
{
    for (int i = 0; i < FIXED_COUNT; i++)
        sqlite3_finalize(s->fixed[i]);
    for (int i = 0; i < SQL_COUNT; i++)
        sqlite3_finalize(s->stmts[i]);
    db_close(s->db);
    if (s->lock_fd >= 0)
        close(s->lock_fd); /* after the database: the next owner finds it closed */
    store_gate_leave(s->gate);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s->path);
    free(s);
}

/* SQLite would let two coordinators write in turn, and each would believe its own memory. The lock is a file
 * of its own, because closing any descriptor of the database would drop SQLite's locks on it. */
static int lock_path(struct store *s, struct err *e)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s-lock", s->path) >= (int)sizeof path)
        return err_set(e, ST_ELIMIT, "path too long: %s", s->path);
    int rc = fs_lock(path, 0640, &s->lock_fd, e);
    if (rc == ST_ECONFLICT)
        err_prefix(e, "another coordinator uses %s (stop it, or give this one its own state.dir)", s->path);
    return rc;
}

int store_open(struct store **out, const struct store_config *cfg, struct err *e)
{
    struct store *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_ENOMEM, "state.db: out of memory");
    s->cfg = *cfg;
    s->cfg.queue_max = cfg->queue_max ? cfg->queue_max : 4096;
    s->cfg.group_max = cfg->group_max ? cfg->group_max : 512;
    s->cfg.outbox_max = cfg->outbox_max ? cfg->outbox_max : 1000000;
    s->tail = &s->head;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    s->path = strdup(cfg->path);
    s->gate = store_gate_new();
    s->lock_fd = -1;
    int64_t last = 0, first = 0;
    int rc = s->path && s->gate ? lock_path(s, e) : err_set(e, ST_ENOMEM, "state.db: out of memory");
    if (rc == ST_OK)
        rc = db_open(&s->db, cfg->path, &store_db_kind, cfg->max_pages, e);
    for (int i = 0; rc == ST_OK && i < SQL_COUNT; i++)
        rc = db_prepare(s->db, store_sql((enum store_stmt)i)->text, &s->stmts[i], e);
    for (int i = 0; rc == ST_OK && i < FIXED_COUNT; i++)
        rc = db_prepare(s->db, fixed_sql[i], &s->fixed[i], e);
    if (rc == ST_OK)
        rc = db_int(s->db, "SELECT seq FROM sqlite_sequence WHERE name='outbox'", 0, &last, e);
    if (rc == ST_OK)
        rc = db_int(s->db, "SELECT min(seq) FROM outbox", last + 1, &first, e);
    if (rc < 0) {
        store_destroy(s);
        return rc;
    }
    s->last_seq = (uint64_t)last;
    s->trimmed = s->trim_want = (uint64_t)first - 1;
    *out = s;
    return ST_OK;
}

/* ---- the writer ---- */

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

/* The drain may know of a commit before its writer has counted it. */
static uint64_t outbox_waiting(const struct store *s)
{
    return s->last_seq > s->trim_want ? s->last_seq - s->trim_want : 0;
}

static int audit_refusal(struct store *s, const struct store_txn *t, struct err *e)
{
    if (!t->events)
        return ST_OK;
    pthread_mutex_lock(&s->lock);
    uint64_t waiting = outbox_waiting(s);
    int rc = ST_OK;
    if (s->audit_rc < 0)
        rc = err_reason(
            e, ST_ERESOURCE, "AUDIT_UNAVAILABLE",
            "refused, because it could not be audited: %s; it works again by itself once that is mended",
            s->audit_why);
    else if (waiting + t->events > s->cfg.outbox_max)
        rc = err_reason(
            e, ST_ERESOURCE, "AUDIT_UNAVAILABLE",
            "refused, because %llu audit rows already wait to be written to audit.db; look at its disk",
            (unsigned long long)waiting);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static int run_fixed(struct store *s, enum store_fixed which, struct err *e)
{
    sqlite3_stmt *st = s->fixed[which];
    int step = sqlite3_step(st);
    sqlite3_reset(st);
    return step == SQLITE_DONE ? ST_OK : db_fail(s->db, sqlite3_extended_errcode(s->db), fixed_sql[which], e);
}

/* Runs t inside the open transaction, alone in a savepoint if it has more than one statement: SQLite takes
 * back a single one by itself. Returns a failure of the whole transaction, if
 * SQLite rolled all of it back; t's own failure is in t->err. */
static int apply_one(struct store *s, struct store_txn *t, struct err *e)
{
    int rc = audit_refusal(s, t, &t->err);
    if (rc < 0)
        return ST_OK;
    bool savepoint = t->n_ops > 1;
    rc = savepoint ? run_fixed(s, FIXED_SAVEPOINT, e) : ST_OK;
    if (rc < 0)
        return rc;
    rc = store_txn_apply(t, s->db, s->stmts, &t->err);
    if (rc == ST_OK)
        return savepoint ? run_fixed(s, FIXED_RELEASE, e) : ST_OK;
    if (sqlite3_get_autocommit(s->db)) {
        if (e)
            *e = t->err;
        return rc;
    }
    rc = savepoint ? run_fixed(s, FIXED_ROLLBACK_TO, e) : ST_OK;
    return rc == ST_OK && savepoint ? run_fixed(s, FIXED_RELEASE, e) : rc;
}

static int trim(struct store *s, uint64_t seq, struct err *e)
{
    sqlite3_bind_int64(s->fixed[FIXED_TRIM], 1, (int64_t)seq);
    return run_fixed(s, FIXED_TRIM, e);
}

/* One SQLite transaction of the n transactions from `list` and the trimming; on failure nothing of it is
 * there. */
static int commit_group(struct store *s, struct store_txn *list, unsigned n, uint64_t trim_to, struct err *e)
{
    int rc = run_fixed(s, FIXED_BEGIN, e);
    struct store_txn *t = list;
    for (unsigned i = 0; rc == ST_OK && i < n; i++, t = t->next) {
        t->err = (struct err){.code = ST_OK};
        rc = apply_one(s, t, e);
    }
    if (rc == ST_OK && trim_to)
        rc = trim(s, trim_to, e);
    if (rc == ST_OK)
        rc = run_fixed(s, FIXED_COMMIT, e);
    if (rc < 0 && !sqlite3_get_autocommit(s->db))
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* Commits the group; if that fails, each of its transactions alone, so that only what cannot be written
 * fails. */
static void write_group(struct store *s, struct store_txn *list, unsigned n, uint64_t trim_to)
{
    struct err e = {.code = ST_OK};
    uint64_t start = now_us();
    int rc = commit_group(s, list, n, trim_to, &e);
    if (rc < 0 && (n > 1 || (n == 1 && trim_to))) {
        struct store_txn *t = list;
        for (unsigned i = 0; i < n; i++, t = t->next)
            if (commit_group(s, t, 1, 0, &e) < 0)
                t->err = e;
        trim_to = 0;
    } else if (rc < 0) {
        if (n)
            list->err = e;
        trim_to = 0;
    }
    if (rc < 0)
        LOG_E(s->cfg.log, "store", "commit failed transactions=%u status=%s text=\"%s\"", n, status_name(rc),
              e.text);
    unsigned events = 0;
    struct store_txn *t = list;
    pthread_mutex_lock(&s->lock);
    s->stats.last_commit_us = now_us() - start;
    s->stats.groups++;
    for (unsigned i = 0; i < n; i++, t = t->next) {
        if (t->err.code == ST_OK) {
            s->stats.committed++;
            events += t->events;
        } else {
            s->stats.refused++;
        }
    }
    s->last_seq += events;
    if (trim_to)
        s->trimmed = trim_to;
    s->pending -= n;
    if (events && s->notify)
        s->notify(s->notify_arg); /* under the lock, so that nobody is called after he took his name off */
    pthread_mutex_unlock(&s->lock);
}

static void completed(struct port_item *it)
{
    struct store_txn *t = (struct store_txn *)it;
    struct store_gate *gate = t->closes;
    if (t->done)
        t->done(t->arg, t->err.code, &t->err);
    store_txn_free(t);
    if (gate)
        store_gate_answered(gate);
}

/* All completions of a group of n > 0, with one wake-up of the loop. */
static void answer_group(struct store *s, struct store_txn *list, unsigned n)
{
    struct port_item *first = &list->item, *last = first;
    struct store_txn *t = list;
    for (unsigned i = 1; i < n; i++) {
        t = t->next;
        t->item.next = last;
        last = &t->item;
    }
    t->closes = s->gate;
    store_gate_expect(s->gate);
    port_post_chain(s->port, last, first);
    store_gate_await(s->gate, s->stats.last_commit_us * 1000 / 4);
}

static bool trim_due(const struct store *s)
{
    return s->trim_want > s->trimmed && (s->closing || s->trim_want - s->trimmed >= TRIM_BATCH);
}

static void *writer(void *arg)
{
    struct store *s = arg;
    bool trim_failed = false; /* try it again with the next transaction, not in a circle */
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->head && !s->closing && (trim_failed || !trim_due(s)))
            pthread_cond_wait(&s->wake, &s->lock);
        if (!s->head && (trim_failed || !trim_due(s)))
            break; /* closing, all written */
        unsigned n = 0;
        struct store_txn *list = s->head;
        for (struct store_txn *t = list; t && n < s->cfg.group_max; t = t->next, s->head = t)
            n++;
        if (!s->head)
            s->tail = &s->head;
        uint64_t trim_to = s->trim_want > s->trimmed ? s->trim_want : 0;
        pthread_mutex_unlock(&s->lock);
        write_group(s, list, n, trim_to);
        if (n)
            answer_group(s, list, n);
        pthread_mutex_lock(&s->lock);
        trim_failed = trim_to && s->trimmed < trim_to;
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int store_start(struct store *s, struct port *port, struct err *e)
{
    assert(!s->started);
    s->port = port;
    int rc = pthread_create(&s->thread, NULL, writer, s);
    if (rc)
        return err_errno(e, rc, "state.db: cannot start its writer thread");
    s->started = true;
    return ST_OK;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    while (s->head) { /* submitted, but the writer never started */
        struct store_txn *t = s->head;
        s->head = t->next;
        store_txn_free(t);
    }
    store_destroy(s);
}

int store_submit(struct store *s, struct store_txn *t, store_done_fn done, void *arg)
{
    int rc = t->rc;
    if (rc == ST_OK) {
        t->item.run = completed;
        t->done = done;
        t->arg = arg;
        t->next = NULL;
        pthread_mutex_lock(&s->lock);
        if (s->closing) {
            rc = ST_ECLOSED;
        } else if (s->pending >= s->cfg.queue_max) {
            rc = ST_EAGAIN;
        } else {
            *s->tail = t;
            s->tail = &t->next;
            s->pending++;
            pthread_cond_signal(&s->wake);
        }
        pthread_mutex_unlock(&s->lock);
    }
    if (rc < 0)
        store_txn_free(t);
    return rc;
}

unsigned store_room(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    unsigned n = s->cfg.queue_max - s->pending;
    pthread_mutex_unlock(&s->lock);
    return n;
}

void store_stats(struct store *s, struct store_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    out->outbox_rows = outbox_waiting(s);
    pthread_mutex_unlock(&s->lock);
}
