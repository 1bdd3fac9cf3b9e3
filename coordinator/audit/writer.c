/*
 * The audit thread. It looks at the ring and the outbox by itself, at the latest every flush_ns and more
 * often when much comes, so that no producer ever makes a system call for it. A batch is gathered where the
 * records lie; they are released when it is on disk, so a batch that failed is simply gathered again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

#define RETRY_NS (250 * NS_PER_MS)
#define STEP_MAX_NS (50 * NS_PER_MS)
#define STEP_MIN_NS (500 * NS_PER_US)
#define RETIRE_NS (60 * NS_PER_S)
#define STEP_BACK_US 1000000

/* ---- our own rows ---- */

/* Goes with the next batch; when too many wait the newest is not added, for none of them carries the chain.
 */
static void own_row(struct audit *a, const struct audit_event *e)
{
    if (a->own_n == OWN_MAX)
        return;
    struct buf *b = &a->own[a->own_n];
    b->len = 0;
    if (event_encode(e, b) == ST_OK)
        a->own_n++;
}

static void checkpoint_row(struct audit *a, int64_t now_us)
{
    char hex[2 * CHAIN_HASH + 1];
    hex_encode(hex, a->w.head, CHAIN_HASH);
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_CHECKPOINT, EVENT_SUCCESS, now_us);
    event_meta_i64(&m, "size", a->w.size);
    event_meta_str(&m, "head", hex);
    e.meta = event_meta_text(&m);
    own_row(a, &e);
    event_meta_fini(&m);
}

static void sealed_row(struct audit *a, const struct seal_result *r)
{
    char hex[2 * CHAIN_HASH + 1];
    hex_encode(hex, r->sha256, CHAIN_HASH);
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_SEALED, EVENT_SUCCESS, clock_wall_us(a->cfg.clock));
    event_meta_i64(&m, "segment", r->n);
    event_meta_i64(&m, "first", r->first);
    event_meta_i64(&m, "last", r->last);
    event_meta_str(&m, "file", r->file);
    event_meta_str(&m, "sha256", hex);
    event_meta_i64(&m, "rows", r->last - r->first + 1);
    event_meta_u64(&m, "bytes", r->bytes);
    event_meta_u64(&m, "us", r->us);
    e.meta = event_meta_text(&m);
    own_row(a, &e);
    event_meta_fini(&m);
}

static void retired_row(struct audit *a, const struct segment *s)
{
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_RETIRED, EVENT_SUCCESS, clock_wall_us(a->cfg.clock));
    event_meta_i64(&m, "segment", s->n);
    event_meta_i64(&m, "first", s->first);
    event_meta_i64(&m, "last", s->last);
    event_meta_str(&m, "file", s->file);
    e.meta = event_meta_text(&m);
    own_row(a, &e);
    event_meta_fini(&m);
}

/* Wall time that ran backwards is told of: rows are ordered by id, but their times then overlap. */
static void watch_clock(struct audit *a)
{
    uint64_t mono = clock_ns(a->cfg.clock);
    int64_t wall = clock_wall_us(a->cfg.clock);
    int64_t expected = a->last_wall_us + (int64_t)((mono - a->last_mono_ns) / NS_PER_US);
    a->last_mono_ns = mono;
    a->last_wall_us = wall;
    if (wall >= expected - STEP_BACK_US)
        return;
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_CLOCK_STEPPED, EVENT_SUCCESS, wall);
    event_meta_i64(&m, "back_us", expected - wall);
    e.meta = event_meta_text(&m);
    own_row(a, &e);
    event_meta_fini(&m);
    LOG_W(a->cfg.log, "audit", "the clock stepped back us=%lld", (long long)(expected - wall));
}

/* What was shed since the last batch, as an event of this one. */
static bool loss_row(struct audit *a, uint64_t dropped, int64_t now_us)
{
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_LOSS, EVENT_FAILURE, now_us);
    event_meta_u64(&m, "dropped", dropped - a->reported_drops);
    event_meta_i64(&m, "since_us", a->drops_since_us);
    e.operation = "shed";
    e.error = "debug events were dropped because the audit ring was full";
    e.meta = event_meta_text(&m);
    a->loss.len = 0;
    int rc = event_encode(&e, &a->loss);
    event_meta_fini(&m);
    return rc == ST_OK;
}

/* ---- gathering ---- */

static int outbox_row(void *arg, uint64_t seq, const uint8_t *p, size_t len)
{
    struct audit *a = arg;
    a->arena_at[a->n] = a->arena.len;
    int rc = buf_append(&a->arena, p, len);
    if (rc < 0)
        return rc;
    a->items[a->n++] = (struct batch_item){NULL, len, seq};
    a->read_seq = seq;
    return ST_OK;
}

/* The outbox first: its rows are the ones somebody was promised. */
static int gather(struct audit *a, struct err *e)
{
    int rc = ST_OK;
    a->n = a->ring_n = a->own_taken = 0;
    a->arena.len = 0;
    a->read_seq = a->w.drained;
    if (a->outbox && atomic_exchange(&a->outbox_dirty, false)) {
        unsigned n;
        rc = store_outbox_read(a->outbox, a->read_seq, (unsigned)a->cap, outbox_row, a, &n, e);
        if (rc < 0 || n == a->cap)
            atomic_store(&a->outbox_dirty, true);
        for (size_t i = 0; i < a->n; i++)
            a->items[i].p = (a->arena.data ? a->arena.data : (const uint8_t *)"") + a->arena_at[i];
    }
    size_t len;
    for (const uint8_t *p; a->n < a->cap && (p = ring_peek(&a->ring, a->ring_n, &len)); a->ring_n++)
        a->items[a->n++] = (struct batch_item){p, len, 0};
    return rc;
}

/* ---- writing ---- */

static void publish(struct audit *a, int rc, const struct err *e, unsigned wrote)
{
    pthread_mutex_lock(&a->lock);
    bool was = a->stats.failing;
    a->stats.failing = rc < 0;
    if (a->w.db) {
        a->stats.rows = (uint64_t)a->w.size;
        a->stats.outbox_seq = a->w.drained;
        a->stats.segments = a->w.live;
        a->stats.wal_pages = (uint64_t)a->w.wal_pages;
        a->stats.signed_head = a->w.signed_head;
        memcpy(a->stats.head, a->w.head, CHAIN_HASH);
    }
    a->stats.batches += wrote;
    bool watched = a->watches != NULL;
    pthread_mutex_unlock(&a->lock);
    if (wrote && watched)
        audit_notify(a);
    if (a->store && (rc < 0 || was))
        store_audit_health(a->store, rc, rc < 0 ? e->text : NULL);
    if (rc < 0 && !was)
        LOG_E(a->cfg.log, "audit", "write failed status=%s text=\"%s\"", status_name(rc), e->text);
    if (rc == ST_OK && was)
        LOG_W(a->cfg.log, "audit", "writing again rows=%lld", (long long)a->w.size);
}

/* Releases what the batch held; `own` of our rows were in it. */
static void release(struct audit *a, size_t ring_n, size_t own)
{
    ring_release(&a->ring, ring_n);
    for (size_t i = own; i < a->own_n; i++) { /* those made while it was written move up */
        struct buf t = a->own[i - own];
        a->own[i - own] = a->own[i];
        a->own[i] = t;
    }
    a->own_n -= own;
    a->n = a->ring_n = a->own_taken = 0;
}

/* The sealed segment left the file, or could not: then the keeper comes with it again. */
static void let_go(struct audit *a, int rc)
{
    a->has_sealed = false;
    if (rc == ST_OK)
        sealed_row(a, &a->sealed);
    keeper_dropped(a->keeper);
}

static bool checkpoint_due(struct audit *a)
{
    int64_t rows = a->w.size + (int64_t)a->n - a->checkpoint_size;
    return rows >= a->cfg.checkpoint_rows ||
           clock_ns(a->cfg.clock) - a->last_checkpoint_ns >= a->cfg.checkpoint_ns;
}

static void checkpointed(struct audit *a, int64_t now_us)
{
    checkpoint_row(a, now_us);
    a->checkpoint_size = a->w.size;
    a->last_checkpoint_ns = clock_ns(a->cfg.clock);
}

static bool rotate_due(struct audit *a, int64_t now_us)
{
    int64_t rows = a->w.size - a->w.seg.first + 1;
    return rows >= a->cfg.segment_rows || (rows > 0 && now_us - a->w.seg.opened_us >= a->cfg.segment_us);
}

/* After a failure that SQLite may not recover from on this connection. The batch that failed may be in the
 * file after all, if the failure came after the disk had it: then it is taken as written. */
static int reopen(struct audit *a, struct err *e)
{
    int64_t size = a->w.size, tried = a->w.tried_size;
    uint8_t head[CHAIN_HASH];
    memcpy(head, a->w.tried_head, CHAIN_HASH);
    size_t ring_n = a->ring_n, own = a->own_taken;
    if (access(a->cfg.path, F_OK) < 0) /* opening would begin a new chain */
        return err_errno(e, errno, "%s: cannot be opened again after a failure", a->cfg.path);
    batch_close(&a->w);
    int rc = batch_open(&a->w, a->cfg.path, a->cfg.max_pages, clock_wall_us(a->cfg.clock), e);
    if (rc < 0) {
        a->w.size = size;
        a->w.tried_size = tried;
        memcpy(a->w.tried_head, head, CHAIN_HASH);
        return rc;
    }
    a->reopen = false;
    if (tried && a->w.size == tried && memcmp(a->w.head, head, CHAIN_HASH) == 0)
        release(a, ring_n, own);
    else if (a->w.size != size)
        LOG_E(a->cfg.log, "audit", "audit.db holds rows=%lld expected=%lld: another program wrote to it",
              (long long)a->w.size, (long long)size);
    return ST_OK;
}

static void replaced_row(struct audit *a)
{
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_FILE_REPLACED, EVENT_FAILURE, clock_wall_us(a->cfg.clock));
    event_meta_i64(&m, "since_us", a->moved_us);
    e.error = "audit.db was not at its path while the store ran; nothing was written meanwhile";
    e.meta = event_meta_text(&m);
    own_row(a, &e);
    event_meta_fini(&m);
    LOG_W(a->cfg.log, "audit", "audit.db is back at its path");
    a->moved_us = 0;
    a->own_urgent = a->own_n > 0;
}

/* Is the file where it was opened, or has it come back? */
static int in_place(struct audit *a, struct err *e)
{
    if (!a->w.db)
        return ST_OK; /* reopening is under way, and says what is wrong */
    int rc = place_check(&a->w, a->cfg.path, e);
    if (rc < 0 && !a->moved_us)
        a->moved_us = clock_wall_us(a->cfg.clock);
    if (rc == ST_OK && a->moved_us)
        replaced_row(a);
    return rc;
}

static int write_failed(struct audit *a, int rc, const struct err *e)
{
    /* A full or locked file mends itself; anything else may have left the connection in a bad way. */
    a->reopen = rc != ST_ERESOURCE && rc != ST_ECONFLICT && rc != ST_ENOMEM;
    atomic_store(&a->outbox_dirty, true);
    publish(a, rc, e, 0);
    return rc;
}

/* Writes what is gathered, with our own rows. On failure it waits where it is. */
static int write_batch(struct audit *a, struct err *e)
{
    if (a->n == 0 && !a->own_urgent)
        return ST_OK;
    int64_t now_us = clock_wall_us(a->cfg.clock);
    uint64_t dropped = atomic_load(&a->dropped);
    struct batch_checkpoint cp = {now_us, &a->cfg.signer};
    bool rotate = rotate_due(a, now_us);
    struct batch_extra x = {.drop = a->has_sealed ? &a->sealed : NULL,
                            .rotate = rotate ? &cp : NULL,
                            .checkpoint = rotate || checkpoint_due(a) ? &cp : NULL};
    watch_clock(a);
    int64_t first = a->w.size + 1;
    a->own_taken = a->own_n;
    for (size_t i = 0; i < a->own_taken; i++)
        a->items[a->n++] = (struct batch_item){a->own[i].data, a->own[i].len, 0};
    bool lost = dropped > a->reported_drops && loss_row(a, dropped, now_us);
    if (lost)
        a->items[a->n++] = (struct batch_item){a->loss.data, a->loss.len, 0};
    int rc = batch_write(&a->w, a->items, a->n, &x, e);
    if (x.drop)
        let_go(a, rc);
    if (rc < 0)
        return write_failed(a, rc, e);
    if (lost) {
        a->reported_drops = dropped;
        a->drops_since_us = now_us;
    }
    if (a->sink)
        sink_rows(a->sink, first, a->items, a->n);
    a->own_urgent = false;
    release(a, a->ring_n, a->own_taken);
    if (x.checkpoint)
        checkpointed(a, now_us);
    publish(a, ST_OK, NULL, 1);
    if (a->store && a->w.drained)
        store_outbox_trim(a->store, a->w.drained);
    return ST_OK;
}

/* ---- what is done between batches ---- */

/* Rows that came since the last checkpoint are signed even when nothing more comes. */
static void idle_checkpoint(struct audit *a)
{
    struct err e;
    struct batch_checkpoint cp = {clock_wall_us(a->cfg.clock), &a->cfg.signer};
    if (!a->w.db || a->w.size == a->checkpoint_size ||
        clock_ns(a->cfg.clock) - a->last_checkpoint_ns < a->cfg.checkpoint_ns)
        return;
    a->last_checkpoint_ns = clock_ns(a->cfg.clock);
    if (batch_checkpoint(&a->w, &cp, &e) < 0)
        return; /* the next batch will say what is wrong */
    a->checkpoint_size = a->w.size;
    publish(a, ST_OK, NULL, 0);
}

static void retire(struct audit *a)
{
    struct segment s;
    struct err e;
    char path[1024];
    uint64_t now = clock_ns(a->cfg.clock);
    if (!a->cfg.keep_us || !a->w.db || (a->last_retire_ns && now - a->last_retire_ns < RETIRE_NS))
        return;
    a->last_retire_ns = now;
    while (a->own_n < OWN_MAX &&
           batch_retire(&a->w, clock_wall_us(a->cfg.clock) - a->cfg.keep_us, &s, &e) == ST_OK) {
        retired_row(a, &s);
        if (segment_path(path, a->cfg.path, s.file) == ST_OK && unlink(path) < 0)
            LOG_E(a->cfg.log, "audit", "a retired segment could not be removed file=%s", path);
    }
}

static void tend(struct audit *a)
{
    struct err e;
    if (!a->w.db || a->stats.failing)
        return;
    if (keeper_checkpointed(a->keeper)) {
        int left, done;
        sqlite3_wal_checkpoint_v2(a->w.db, "main", SQLITE_CHECKPOINT_PASSIVE, &left, &done);
    }
    if (a->own_n < OWN_MAX && !a->has_sealed)
        a->has_sealed = keeper_sealed(a->keeper, &a->sealed);
    if (a->has_sealed && ring_used(&a->ring) < a->cfg.flush_rows) { /* no batch is about to take it along */
        int rc = batch_drop(&a->w, &a->sealed, &e);
        let_go(a, rc);
        if (rc < 0)
            LOG_E(a->cfg.log, "audit", "a sealed segment could not leave audit.db text=\"%s\"", e.text);
    }
    keeper_tell(a->keeper, a->w.wal_pages, a->w.live);
    retire(a);
    idle_checkpoint(a);
}

/* ---- the thread ---- */

static struct timespec deadline_in(uint64_t ns)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    uint64_t t = (uint64_t)ts.tv_nsec + ns;
    ts.tv_sec += (time_t)(t / NS_PER_S);
    ts.tv_nsec = (long)(t % NS_PER_S);
    return ts;
}

/* Sleeps at most ns; closing and a flush cut it short. Called with the lock held. */
static void sleep_locked(struct audit *a, uint64_t ns)
{
    struct timespec until = deadline_in(ns);
    while (!a->closing && !a->flushes)
        if (pthread_cond_timedwait(&a->wake, &a->lock, &until) != 0)
            break;
}

static void finish_flushes(struct audit *a, struct flush *list, const struct err *e)
{
    while (list) {
        struct flush *f = list;
        list = f->next;
        f->err = *e;
        if (f->port) {
            port_post(f->port, &f->item);
            continue;
        }
        pthread_mutex_lock(&a->lock);
        f->finished = true;
        pthread_cond_broadcast(&a->woken);
        pthread_mutex_unlock(&a->lock);
    }
}

static int one_round(struct audit *a, struct err *e)
{
    int rc = in_place(a, e);
    if (rc == ST_OK && a->reopen)
        rc = reopen(a, e);
    if (rc < 0) {
        publish(a, rc, e, 0);
        return rc;
    }
    rc = gather(a, e);
    int w = write_batch(a, e);
    if (w < 0)
        return w;
    if (rc < 0)
        publish(a, rc, e, 0);
    else if (a->stats.failing)
        publish(a, ST_OK, NULL, 0);
    return rc;
}

/* Everything that was there when it is called; new arrivals at most delay it by a batch each. */
static int write_everything(struct audit *a, struct err *e)
{
    size_t target = atomic_load(&a->ring.tail);
    if (a->outbox)
        atomic_store(&a->outbox_dirty, true);
    for (;;) {
        int rc = one_round(a, e);
        if (rc < 0)
            return rc;
        bool ring_done = (ptrdiff_t)(atomic_load(&a->ring.head) - target) >= 0;
        if (ring_done && !atomic_load(&a->outbox_dirty))
            return ST_OK;
    }
}

/* As often as flush_rows come together, at the rate of the last batch. */
static void choose_step(struct audit *a, uint64_t rows, uint64_t took_ns)
{
    uint64_t most = a->cfg.flush_ns < STEP_MAX_NS ? a->cfg.flush_ns : STEP_MAX_NS;
    uint64_t step = rows ? took_ns / rows * a->cfg.flush_rows : most;
    a->step_ns = step > most ? most : step < STEP_MIN_NS ? STEP_MIN_NS : step;
}

/* A look that nobody asked for: is there enough, or has it waited long enough? */
static int look(struct audit *a, struct err *e)
{
    uint64_t now = clock_ns(clock_system()), since = now - a->last_write_ns;
    size_t used = ring_used(&a->ring);
    if (used < a->cfg.flush_rows && since < a->cfg.flush_ns && !a->stats.failing)
        return ST_OK;
    int rc = ST_OK;
    struct err moved; /* one_round looks again, and tells */
    if (used || a->stats.failing || atomic_load(&a->outbox_dirty) ||
        (a->w.db && place_check(&a->w, a->cfg.path, &moved) < 0))
        rc = one_round(a, e);
    a->last_write_ns = clock_ns(clock_system());
    choose_step(a, used, since);
    return rc;
}

void *audit_thread(void *arg)
{
    struct audit *a = arg;
    struct err e = {.code = ST_OK};
    choose_step(a, 0, 0);
    a->last_write_ns = clock_ns(clock_system());
    pthread_mutex_lock(&a->lock);
    for (;;) {
        if (a->stats.failing)
            sleep_locked(a, RETRY_NS);
        else if (ring_used(&a->ring) < a->cfg.flush_rows)
            sleep_locked(a, a->step_ns);
        struct flush *flushes = a->flushes;
        a->flushes = NULL;
        a->flush_tail = &a->flushes;
        bool closing = a->closing;
        pthread_mutex_unlock(&a->lock);

        e = (struct err){.code = ST_OK};
        if (flushes || closing)
            (void)write_everything(a, &e);
        else
            (void)look(a, &e);
        finish_flushes(a, flushes, &e);
        tend(a);
        pthread_mutex_lock(&a->lock);
        if (closing && !a->flushes)
            break;
    }
    pthread_mutex_unlock(&a->lock);
    if (ring_used(&a->ring))
        LOG_E(a->cfg.log, "audit", "closing with unwritten rows=%zu text=\"%s\"", ring_used(&a->ring),
              e.text);
    return NULL;
}
