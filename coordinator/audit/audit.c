/* The audit room's public side: producers, flushes, watches, opening and closing. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/audit/audit_priv.h"

/* ---- producers ---- */

int audit_emit(struct audit *a, const struct audit_event *e)
{
    uint8_t p[EVENT_ENCODED_MAX];
    size_t n;
    enum event_class cls = event_class(e);
    if (cls == EVENT_MUST)
        return ST_EINVAL;
    int rc = event_encode_into(e, p, &n);
    if (rc == ST_OK)
        rc = ring_push(&a->ring, p, n);
    if (rc < 0 && cls == EVENT_SHED && rc != ST_EINVAL) {
        atomic_fetch_add_explicit(&a->dropped, 1, memory_order_relaxed);
        return ST_OK;
    }
    return rc;
}

double audit_pressure(const struct audit *a)
{
    return (double)ring_used(&a->ring) / (double)(a->ring.mask + 1);
}

static void outbox_committed(void *arg)
{
    struct audit *a = arg;
    atomic_store(&a->outbox_dirty, true);
}

/* ---- flushes ---- */

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

/* ---- watches ---- */

struct audit_watch {
    struct port_item item; /* first */
    struct audit *a;
    struct port *port;
    void (*fn)(void *arg);
    void *arg;
    struct audit_watch *next;
    bool posted, dead; /* under the lock */
};

static void watch_run(struct port_item *it)
{
    struct audit_watch *w = (struct audit_watch *)it;
    if (w->dead) { /* written on this thread alone */
        free(w);
        return;
    }
    pthread_mutex_lock(&w->a->lock);
    w->posted = false;
    pthread_mutex_unlock(&w->a->lock);
    w->fn(w->arg);
}

int audit_watch_new(struct audit_watch **out, struct audit *a, struct port *port, void (*fn)(void *arg),
                    void *arg)
{
    struct audit_watch *w = calloc(1, sizeof *w);
    if (!w)
        return ST_ENOMEM;
    *w = (struct audit_watch){.item = {.run = watch_run}, .a = a, .port = port, .fn = fn, .arg = arg};
    pthread_mutex_lock(&a->lock);
    w->next = a->watches;
    a->watches = w;
    pthread_mutex_unlock(&a->lock);
    *out = w;
    return ST_OK;
}

void audit_watch_free(struct audit_watch *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->a->lock);
    for (struct audit_watch **at = &w->a->watches; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    bool posted = w->posted;
    pthread_mutex_unlock(&w->a->lock);
    w->dead = true;
    if (!posted)
        free(w);
}

void audit_notify(struct audit *a)
{
    pthread_mutex_lock(&a->lock);
    for (struct audit_watch *w = a->watches; w; w = w->next)
        if (!w->posted) {
            w->posted = true;
            port_post(w->port, &w->item);
        }
    pthread_mutex_unlock(&a->lock);
}

/* ---- life ---- */

static void audit_destroy(struct audit *a)
{
    free(a->items);
    free(a->arena_at);
    buf_fini(&a->arena);
    buf_fini(&a->loss);
    for (size_t i = 0; i < OWN_MAX; i++)
        buf_fini(&a->own[i]);
    ring_fini(&a->ring);
    store_outbox_close(a->outbox);
    keeper_free(a->keeper);
    batch_close(&a->w);
    sink_free(a->sink);
    pthread_cond_destroy(&a->wake);
    pthread_cond_destroy(&a->woken);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

static void apply_defaults(struct audit_config *c)
{
    c->flush_ns = c->flush_ns ? c->flush_ns : 50 * NS_PER_MS;
    c->flush_rows = c->flush_rows ? c->flush_rows : 1000;
    c->ring_rows = c->ring_rows ? c->ring_rows : 32768;
    c->checkpoint_ns = c->checkpoint_ns ? c->checkpoint_ns : 10 * NS_PER_S;
    c->checkpoint_rows = c->checkpoint_rows ? c->checkpoint_rows : 100000;
    c->segment_rows = c->segment_rows ? c->segment_rows : 1000000;
    c->segment_us = c->segment_us ? c->segment_us : 24ll * 3600 * 1000000;
    c->hot_segments = c->hot_segments ? c->hot_segments : 10;
    c->clock = c->clock ? c->clock : clock_system();
}

static int open_files(struct audit *a, struct err *e)
{
    int rc = batch_open(&a->w, a->cfg.path, a->cfg.max_pages, clock_wall_us(a->cfg.clock), e);
    if (rc == ST_OK)
        rc = keeper_new(&a->keeper, a->cfg.path, a->cfg.hot_segments, a->cfg.log, e);
    if (rc == ST_OK)
        rc = sink_new(&a->sink, &a->cfg, e);
    if (rc == ST_OK && a->store)
        rc = store_outbox_advance(a->store, a->w.drained, e);
    if (rc == ST_OK && a->store)
        rc = store_outbox_open(&a->outbox, a->store, e);
    return rc;
}

static void begin_stats(struct audit *a)
{
    a->checkpoint_size = a->w.size;
    a->last_checkpoint_ns = a->last_write_ns = a->last_mono_ns = clock_ns(a->cfg.clock);
    a->drops_since_us = a->last_wall_us = clock_wall_us(a->cfg.clock);
    a->stats.rows = (uint64_t)a->w.size;
    a->stats.outbox_seq = a->w.drained;
    a->stats.segments = a->w.live;
    a->stats.signed_head = a->w.signed_head;
    memcpy(a->stats.head, a->w.head, CHAIN_HASH);
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
    a->cap = a->cfg.flush_rows > 10000 ? a->cfg.flush_rows : 10000;
    a->items = calloc(a->cap + OWN_MAX + 1, sizeof *a->items); /* and our own rows */
    a->arena_at = calloc(a->cap + 1, sizeof *a->arena_at);
    int rc = a->items && a->arena_at && ring_init(&a->ring, a->cfg.ring_rows) == ST_OK
                 ? open_files(a, e)
                 : err_set(e, ST_ENOMEM, "audit.db: out of memory");
    if (rc == ST_OK && store) {
        a->read_seq = a->w.drained;
        atomic_store(&a->outbox_dirty, true); /* what an earlier life left there */
        store_outbox_notify(store, outbox_committed, a);
        store_outbox_trim(store, a->w.drained);
    }
    if (rc == ST_OK) {
        begin_stats(a);
        int err = pthread_create(&a->thread, NULL, audit_thread, a);
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
