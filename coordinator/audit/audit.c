/*
 * The audit thread. It sleeps until there is something, gathers for at most flush_ns or flush_rows, writes
 * one batch from the outbox and the ring, and tells the store whether it can. Records that could not be
 * written stay in `batch` and are tried again.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/audit/audit_priv.h"

#define RETRY_NS (250 * NS_PER_MS)

enum sleep { AWAKE, IDLE, GATHERING };

struct flush {
    struct port_item item; /* first */
    struct flush *next;
    struct port *port; /* NULL: somebody waits on `woken` */
    void (*done)(void *arg, int rc, const struct err *e);
    void *arg;
    bool finished;
    struct err err;
};

struct audit {
    struct audit_config cfg;
    struct store *store;
    struct store_outbox *outbox;
    struct ring ring;
    pthread_t thread;

    atomic_int sleep;         /* enum sleep: whom a producer must wake */
    atomic_bool outbox_dirty; /* the store committed events since the last read */
    atomic_uint_fast64_t dropped;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, woken;
    bool wake_up, closing;
    struct flush *flushes, **flush_tail;
    struct audit_stats stats;

    /* the audit thread's own */
    struct batch_writer w;
    struct rec **batch;
    size_t batch_n, batch_cap;
    uint64_t read_seq; /* outbox rows up to it are in the batch or the file */
    uint64_t reported_drops, last_checkpoint_ns;
    int64_t checkpoint_size, drops_since_us;
    struct rec *own; /* our next audit.checkpoint row */
};

/* ---- producers ---- */

static struct rec *rec_new(const struct audit_event *e, int *rc)
{
    struct buf b = {0};
    struct rec *r = NULL;
    *rc = event_encode(e, &b);
    if (*rc == ST_OK) {
        r = malloc(sizeof *r + b.len);
        *rc = r ? ST_OK : ST_ENOMEM;
    }
    if (r) {
        r->seq = 0;
        r->own = false;
        r->len = b.len;
        memcpy(r->data, b.data, b.len);
    }
    buf_fini(&b);
    return r;
}

/* Looks again under the lock: a thread that left its sleep meanwhile must not be pulled out of the next one,
 * or a batch is written before its time. */
static void wake_thread(struct audit *a)
{
    pthread_mutex_lock(&a->lock);
    int sleep = atomic_load(&a->sleep);
    if (sleep == IDLE || (sleep == GATHERING && ring_used(&a->ring) >= a->cfg.flush_rows)) {
        a->wake_up = true;
        pthread_cond_signal(&a->wake);
    }
    pthread_mutex_unlock(&a->lock);
}

int audit_emit(struct audit *a, const struct audit_event *e)
{
    enum event_class cls = event_class(e);
    int rc;
    if (cls == EVENT_MUST)
        return ST_EINVAL;
    struct rec *r = rec_new(e, &rc);
    if (rc < 0)
        return rc;
    if (!ring_push(&a->ring, r)) {
        free(r);
        if (cls == EVENT_KEEP)
            return ST_EAGAIN;
        atomic_fetch_add(&a->dropped, 1);
        return ST_OK;
    }
    int sleep = atomic_load(&a->sleep);
    if (sleep == IDLE || (sleep == GATHERING && ring_used(&a->ring) >= a->cfg.flush_rows))
        wake_thread(a);
    return ST_OK;
}

double audit_pressure(const struct audit *a)
{
    return (double)ring_used(&a->ring) / (double)(a->ring.mask + 1);
}

static void outbox_committed(void *arg)
{
    struct audit *a = arg;
    atomic_store(&a->outbox_dirty, true);
    if (atomic_load(&a->sleep) == IDLE)
        wake_thread(a);
}

/* ---- gathering ---- */

static int batch_add(struct audit *a, struct rec *r)
{
    a->batch[a->batch_n++] = r;
    return ST_OK;
}

static int outbox_row(void *arg, uint64_t seq, const uint8_t *p, size_t len)
{
    struct audit *a = arg;
    struct rec *r = malloc(sizeof *r + len);
    if (!r)
        return ST_ENOMEM;
    r->seq = seq;
    r->own = false;
    r->len = len;
    if (len)
        memcpy(r->data, p, len);
    a->read_seq = seq;
    return batch_add(a, r);
}

/* The outbox first: its rows are the ones somebody was promised. */
static int gather(struct audit *a, struct err *e)
{
    int rc = ST_OK;
    if (a->outbox && a->batch_n < a->batch_cap && atomic_exchange(&a->outbox_dirty, false)) {
        unsigned n, room = (unsigned)(a->batch_cap - a->batch_n);
        rc = store_outbox_read(a->outbox, a->read_seq, room, outbox_row, a, &n, e);
        if (rc < 0 || n == room)
            atomic_store(&a->outbox_dirty, true);
    }
    for (struct rec *r; a->batch_n < a->batch_cap && (r = ring_pop(&a->ring));)
        batch_add(a, r);
    return rc;
}

static bool more(struct audit *a)
{
    return !ring_empty(&a->ring) || atomic_load(&a->outbox_dirty);
}

/* ---- writing ---- */

static void push_own(struct audit *a, const struct audit_event *e)
{
    int rc;
    struct rec *r = rec_new(e, &rc);
    if (r)
        r->own = true;
    free(a->own);
    a->own = r;
}

/* What was shed since the last batch, as an event of this one. */
static struct rec *loss_row(struct audit *a, uint64_t dropped, int64_t now_us)
{
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_LOSS, EVENT_FAILURE, now_us);
    int rc;
    event_meta_u64(&m, "dropped", dropped - a->reported_drops);
    event_meta_i64(&m, "since_us", a->drops_since_us);
    e.operation = "shed";
    e.error = "debug events were dropped because the audit ring was full";
    e.meta = event_meta_text(&m);
    struct rec *r = rec_new(&e, &rc);
    event_meta_fini(&m);
    return r;
}

static bool checkpoint_due(struct audit *a)
{
    int64_t rows = a->w.size + (int64_t)a->batch_n - a->checkpoint_size;
    return rows >= a->cfg.checkpoint_rows ||
           clock_ns(a->cfg.clock) - a->last_checkpoint_ns >= a->cfg.checkpoint_ns;
}

static void checkpoint_row(struct audit *a, int64_t now_us)
{
    char hex[2 * CHAIN_HASH + 1];
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < CHAIN_HASH; i++) {
        hex[2 * i] = digits[a->w.head[i] >> 4];
        hex[2 * i + 1] = digits[a->w.head[i] & 15];
    }
    hex[2 * CHAIN_HASH] = 0;
    struct event_meta m = {0};
    struct audit_event e = event_make(EV_AUDIT_CHECKPOINT, EVENT_SUCCESS, now_us);
    event_meta_i64(&m, "size", a->w.size);
    event_meta_str(&m, "head", hex);
    e.meta = event_meta_text(&m);
    push_own(a, &e);
    event_meta_fini(&m);
    a->checkpoint_size = a->w.size;
    a->last_checkpoint_ns = clock_ns(a->cfg.clock);
}

static void echo(struct audit *a, int64_t first)
{
    struct buf b = {0};
    for (size_t i = 0; i < a->batch_n; i++) {
        struct audit_event e;
        if (event_decode(a->batch[i]->data, a->batch[i]->len, &e) < 0)
            continue;
        e.id = first + (int64_t)i;
        if (event_json(&e, &b) < 0 || buf_append(&b, "\n", 1) < 0)
            break;
    }
    for (size_t at = 0; at < b.len;) {
        ssize_t w = write(a->cfg.echo_fd, b.data + at, b.len - at);
        if (w <= 0)
            break; /* the console is a convenience: the rows are in the file */
        at += (size_t)w;
    }
    buf_fini(&b);
}

static void publish(struct audit *a, int rc, const struct err *e, unsigned wrote)
{
    pthread_mutex_lock(&a->lock);
    bool was = a->stats.failing;
    a->stats.failing = rc < 0;
    a->stats.rows = (uint64_t)a->w.size;
    a->stats.outbox_seq = a->w.drained;
    memcpy(a->stats.head, a->w.head, CHAIN_HASH);
    a->stats.batches += wrote;
    pthread_mutex_unlock(&a->lock);
    if (a->store && (rc < 0 || was))
        store_audit_health(a->store, rc, rc < 0 ? e->text : NULL);
    if (rc < 0 && !was)
        LOG_E(a->cfg.log, "audit", "write failed status=%s text=\"%s\"", status_name(rc), e->text);
    if (rc == ST_OK && was)
        LOG_W(a->cfg.log, "audit", "writing again rows=%lld", (long long)a->w.size);
}

/* Writes what is gathered. On success the batch is empty, on failure it waits. */
static int write_batch(struct audit *a, struct err *e)
{
    if (a->batch_n == 0)
        return ST_OK;
    int64_t now_us = clock_wall_us(a->cfg.clock), first = a->w.size + 1;
    uint64_t dropped = atomic_load(&a->dropped);
    size_t ours = a->batch_n;
    struct rec *own = a->own, *loss = dropped > a->reported_drops ? loss_row(a, dropped, now_us) : NULL;
    if (own)
        batch_add(a, own);
    if (loss)
        batch_add(a, loss);
    struct batch_checkpoint cp = {now_us, &a->cfg.signer};
    bool due = checkpoint_due(a);
    int rc = batch_write(&a->w, a->batch, a->batch_n, due ? &cp : NULL, e);
    if (rc < 0) {
        a->batch_n = ours; /* our own rows are made anew the next time */
        free(loss);
        publish(a, rc, e, 0);
        return rc;
    }
    if (loss) {
        a->reported_drops = dropped;
        a->drops_since_us = now_us;
    }
    if (a->cfg.echo_fd > 0)
        echo(a, first);
    for (size_t i = 0; i < a->batch_n; i++)
        free(a->batch[i]);
    a->batch_n = 0;
    a->own = NULL;
    if (due)
        checkpoint_row(a, now_us);
    publish(a, ST_OK, NULL, 1);
    if (a->store && a->w.drained)
        store_outbox_trim(a->store, a->w.drained);
    return ST_OK;
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

/* Sleeps until woken, or at most ns (0 = for ever). Called with the lock held. */
static void sleep_locked(struct audit *a, enum sleep how, uint64_t ns)
{
    struct timespec until = deadline_in(ns);
    atomic_store(&a->sleep, how);
    /* Whoever pushed before reading `sleep` left something to be seen here; whoever pushes later sees `how`.
     */
    bool stay = how == IDLE ? !more(a) : ring_used(&a->ring) < a->cfg.flush_rows;
    while (stay && !a->wake_up && !a->closing && !a->flushes)
        if (ns == 0)
            pthread_cond_wait(&a->wake, &a->lock);
        else if (pthread_cond_timedwait(&a->wake, &a->lock, &until) != 0)
            break;
    atomic_store(&a->sleep, AWAKE);
    a->wake_up = false;
}

/* After a failure: nothing is gained by waking for each new event, so only closing and a flush cut it short.
 */
static void back_off_locked(struct audit *a)
{
    struct timespec until = deadline_in(RETRY_NS);
    while (!a->closing && !a->flushes)
        if (pthread_cond_timedwait(&a->wake, &a->lock, &until) != 0)
            break;
    a->wake_up = false;
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

/* Everything that was there when it is called; new arrivals at most delay it by a batch each. */
static int write_everything(struct audit *a, struct err *e)
{
    size_t target = atomic_load(&a->ring.tail);
    if (a->outbox)
        atomic_store(&a->outbox_dirty, true);
    for (;;) {
        int rc = gather(a, e), w = write_batch(a, e);
        if (rc < 0 || w < 0)
            return w < 0 ? w : rc;
        bool ring_done = (ptrdiff_t)(atomic_load(&a->ring.head) - target) >= 0;
        if (ring_done && !atomic_load(&a->outbox_dirty))
            return ST_OK;
    }
}

static void *run(void *arg)
{
    struct audit *a = arg;
    struct err e = {.code = ST_OK};
    pthread_mutex_lock(&a->lock);
    for (;;) {
        if (!a->closing && !a->flushes && a->batch_n == 0)
            sleep_locked(a, IDLE, 0);
        if (!a->closing && !a->flushes && !a->stats.failing)
            sleep_locked(a, GATHERING, a->cfg.flush_ns);
        else if (!a->closing && !a->flushes)
            back_off_locked(a);
        struct flush *flushes = a->flushes;
        a->flushes = NULL;
        a->flush_tail = &a->flushes;
        bool closing = a->closing;
        pthread_mutex_unlock(&a->lock);

        e = (struct err){.code = ST_OK};
        int rc = flushes || closing ? write_everything(a, &e) : gather(a, &e);
        if (!flushes && !closing) {
            int w = write_batch(a, &e);
            rc = w < 0 ? w : rc;
        }
        if (rc < 0 ? !a->stats.failing : a->stats.failing)
            publish(a, rc, &e, 0);
        finish_flushes(a, flushes, &e);
        pthread_mutex_lock(&a->lock);
        if (closing && !a->flushes)
            break;
    }
    pthread_mutex_unlock(&a->lock);
    if (a->batch_n)
        LOG_E(a->cfg.log, "audit", "closing with unwritten rows=%zu text=\"%s\"", a->batch_n, e.text);
    return NULL;
}

/* ---- life ---- */

static void audit_destroy(struct audit *a)
{
    for (size_t i = 0; i < a->batch_n; i++)
        free(a->batch[i]);
    free(a->batch);
    free(a->own);
    ring_fini(&a->ring);
    store_outbox_close(a->outbox);
    batch_close(&a->w);
    pthread_cond_destroy(&a->wake);
    pthread_cond_destroy(&a->woken);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

static void apply_defaults(struct audit_config *c)
{
    c->flush_ns = c->flush_ns ? c->flush_ns : 50 * NS_PER_MS;
    c->flush_rows = c->flush_rows ? c->flush_rows : 1000;
    c->ring_rows = c->ring_rows ? c->ring_rows : 65536;
    c->checkpoint_ns = c->checkpoint_ns ? c->checkpoint_ns : 10 * NS_PER_S;
    c->checkpoint_rows = c->checkpoint_rows ? c->checkpoint_rows : 100000;
    c->clock = c->clock ? c->clock : clock_system();
}

int audit_open(struct audit **out, const struct audit_config *cfg, struct store *store, struct err *e)
{
    struct audit *a = calloc(1, sizeof *a);
    if (!a)
        return err_set(e, ST_ENOMEM, "audit.db: out of memory");
    a->cfg = *cfg;
    apply_defaults(&a->cfg);
    a->store = store;
    a->flush_tail = &a->flushes;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->wake, &attr);
    pthread_cond_init(&a->woken, NULL);
    pthread_condattr_destroy(&attr);
    a->batch_cap = a->cfg.flush_rows > 10000 ? a->cfg.flush_rows : 10000;
    a->batch = calloc(a->batch_cap + 2, sizeof *a->batch); /* and our own two rows */
    int rc = a->batch && ring_init(&a->ring, a->cfg.ring_rows) == ST_OK
                 ? batch_open(&a->w, cfg->path, cfg->max_pages, e)
                 : err_set(e, ST_ENOMEM, "audit.db: out of memory");
    if (rc == ST_OK && store)
        rc = store_outbox_advance(store, a->w.drained, e);
    if (rc == ST_OK && store)
        rc = store_outbox_open(&a->outbox, store, e);
    if (rc == ST_OK && store) {
        a->read_seq = a->w.drained;
        atomic_store(&a->outbox_dirty, true); /* what an earlier life left there */
        store_outbox_notify(store, outbox_committed, a);
        store_outbox_trim(store, a->w.drained);
    }
    if (rc == ST_OK) {
        a->checkpoint_size = a->w.size;
        a->last_checkpoint_ns = clock_ns(a->cfg.clock);
        a->drops_since_us = clock_wall_us(a->cfg.clock);
        a->stats.rows = (uint64_t)a->w.size;
        a->stats.outbox_seq = a->w.drained;
        memcpy(a->stats.head, a->w.head, CHAIN_HASH);
        int err = pthread_create(&a->thread, NULL, run, a);
        if (err)
            rc = err_errno(e, err, "audit.db: cannot start its thread");
    }
    if (rc < 0) {
        audit_destroy(a);
        return rc;
    }
    *out = a;
    return ST_OK;
}

void audit_close(struct audit *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&a->lock);
    a->closing = true;
    pthread_cond_signal(&a->wake);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    if (a->store)
        store_outbox_notify(a->store, NULL, NULL);
    audit_destroy(a);
}

static void flush_done(struct port_item *it)
{
    struct flush *f = (struct flush *)it;
    f->done(f->arg, f->err.code, &f->err);
    free(f);
}

static void flush_add(struct audit *a, struct flush *f)
{
    *a->flush_tail = f;
    a->flush_tail = &f->next;
    a->wake_up = true;
    pthread_cond_signal(&a->wake);
}

int audit_flush(struct audit *a, struct port *port, void (*done)(void *arg, int rc, const struct err *e),
                void *arg)
{
    struct flush *f = calloc(1, sizeof *f);
    if (!f)
        return ST_ENOMEM;
    f->item.run = flush_done;
    f->port = port;
    f->done = done;
    f->arg = arg;
    pthread_mutex_lock(&a->lock);
    flush_add(a, f);
    pthread_mutex_unlock(&a->lock);
    return ST_OK;
}

int audit_flush_wait(struct audit *a, struct err *e)
{
    struct flush f = {0};
    pthread_mutex_lock(&a->lock);
    flush_add(a, &f);
    while (!f.finished)
        pthread_cond_wait(&a->woken, &a->lock);
    pthread_mutex_unlock(&a->lock);
    if (e)
        *e = f.err;
    return f.err.code;
}

void audit_stats(struct audit *a, struct audit_stats *out)
{
    pthread_mutex_lock(&a->lock);
    *out = a->stats;
    pthread_mutex_unlock(&a->lock);
    out->dropped = atomic_load(&a->dropped);
    out->ring_used = ring_used(&a->ring);
}
