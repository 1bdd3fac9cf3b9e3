/*
 * Operations go to a worker in the order they were asked for. They wait in a queue of the tenant while the
 * worker is starting or has as many in flight as it takes; what was queued or in flight when the worker ends
 * completes with an error all the same.
 */
#include "agent/pool/pool.h"

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"

enum op_kind {
    OP_ALLOC,
    OP_WRITE,
    OP_READ,
    OP_DIGEST,
    OP_RELEASE,
    OP_USAGE,
    OP_COPY,
    OP_SYNC,
    OP_EXEC,
    OP_RUN,
    OP_MONITOR
};

struct op {
    struct tenant *t;
    struct op *next, **prev; /* in t->queue, or t->flight once submitted */
    enum op_kind kind;
    char device[32];
    uint64_t buffer, off, n;
    uint64_t from, from_off; /* COPY */
    struct worker_slot slot;
    union {
        struct gpu_exec exec;
        struct gpu_program program;
    } u;
    union {
        tenant_alloc_fn alloc;
        tenant_done_fn done;
        tenant_digest_fn digest;
        tenant_usage_fn usage;
        tenant_exec_fn exec;
        tenant_monitor_fn monitor;
    } fn;
    void *arg;
};

enum tenant_state { TENANT_STARTING, TENANT_READY, TENANT_DEAD, TENANT_CLOSING };

struct tenant {
    struct pool *pool;
    struct tenant *next;
    char principal[300];
    struct worker *w;
    enum tenant_state state;
    unsigned uses;
    struct op *queue, **queue_tail, *flight;
    struct event *later; /* flushes outside the call that asked */
    char why[300];       /* once dead */
};

struct probe {
    struct pool *pool;
    struct worker *w;
    pool_probe_fn fn; /* NULL = answered */
    void *arg;
    struct pool_device device[WORKER_MAX_DEVICES];
    size_t n, at; /* being measured */
};

struct pool {
    struct pool_cfg cfg;
    struct pool_user *users;
    struct tenant *head;
    struct probe *probe;
    bool freeing;
};

static void op_unlink(struct op *o)
{
    *o->prev = o->next;
    if (o->next)
        o->next->prev = o->prev;
    else if (o->t->queue_tail == &o->next)
        o->t->queue_tail = o->prev;
}

static const struct worker_usage *usage_of(const struct op *o, const struct worker_result *r)
{
    uint32_t i;
    return r->status == ST_OK && worker_device_find(o->t->w, o->device, &i) == ST_OK && i < r->devices
               ? &r->usage[i]
               : NULL;
}

static void op_end(struct op *o, int rc, const char *why, const struct worker_result *r)
{
    struct err e = {0};
    if (rc < 0)
        err_set(&e, rc, "worker of %s: %s", o->t->principal, why);
    op_unlink(o);
    switch (o->kind) {
    case OP_ALLOC:
        o->fn.alloc(o->arg, rc, &e, r ? r->handle : 0);
        break;
    case OP_DIGEST:
        o->fn.digest(o->arg, rc, &e, r ? r->sha256 : NULL);
        break;
    case OP_WRITE:
    case OP_READ:
    case OP_RELEASE:
    case OP_COPY:
    case OP_SYNC:
    case OP_RUN:
        o->fn.done(o->arg, rc, &e);
        break;
    case OP_EXEC:
        o->fn.exec(o->arg, rc, &e, r ? r->value : 0);
        break;
    case OP_MONITOR:
        o->fn.monitor(o->arg, rc, &e, r && rc == ST_OK ? r->readings : NULL);
        break;
    case OP_USAGE:
        o->fn.usage(o->arg, rc, &e, r ? usage_of(o, r) : NULL);
        break;
    }
    free(o);
}

static void flush(struct tenant *t, bool inside);

static void on_op(void *arg, const struct worker_result *r)
{
    struct op *o = arg;
    struct tenant *t = o->t;
    t->uses++; /* the upcall may give back the last use */
    op_end(o, r->status, r->why, r);
    flush(t, false);
    tenant_unuse(t);
}

static int submit(struct op *o)
{
    struct worker *w = o->t->w;
    uint32_t device;
    int rc;
    switch (o->kind) {
    case OP_ALLOC:
        rc = worker_device_find(w, o->device, &device);
        return rc < 0 ? rc : worker_alloc(w, device, o->n, on_op, o);
    case OP_WRITE:
        return worker_write(w, o->buffer, o->off, &o->slot, (uint32_t)o->n, on_op, o);
    case OP_READ:
        return worker_read(w, o->buffer, o->off, (uint32_t)o->n, &o->slot, on_op, o);
    case OP_DIGEST:
        return worker_digest(w, o->buffer, o->off, o->n, on_op, o);
    case OP_RELEASE:
        return worker_free(w, o->buffer, on_op, o);
    case OP_USAGE:
        rc = worker_device_find(w, o->device, &device);
        return rc < 0 ? rc : worker_stat(w, on_op, o);
    case OP_COPY:
        return worker_copy(w, o->buffer, o->off, o->from, o->from_off, o->n, on_op, o);
    case OP_SYNC:
        rc = worker_device_find(w, o->device, &device);
        return rc < 0 ? rc : worker_sync(w, device, on_op, o);
    case OP_EXEC:
        return worker_exec(w, &o->u.exec, on_op, o);
    case OP_RUN:
        return worker_run(w, &o->u.program, &o->slot, (uint32_t)o->n, on_op, o);
    case OP_MONITOR:
        rc = worker_device_find(w, o->device, &device);
        return rc < 0 ? rc : worker_monitor(w, device, on_op, o);
    }
    return ST_EINTERNAL;
}

static void op_refused(struct op *o, int rc)
{
    char why[160];
    if (o->kind == OP_WRITE || o->kind == OP_RUN)
        worker_slot_put(o->t->w, &o->slot);
    if (rc == ST_ENOENT)
        snprintf(why, sizeof why, "there is no device %s", o->device);
    else
        snprintf(why, sizeof why, "it does not take the operation (%s)", status_name(rc));
    op_end(o, rc, why, NULL);
}

/* Submits what the worker takes. A refusal completes the operation, so within a call that asked for one
 * (`inside`) it is left to the loop. */
static void flush(struct tenant *t, bool inside)
{
    while (t->queue && t->state == TENANT_READY) {
        struct op *o = t->queue;
        int rc = submit(o);
        if (rc == ST_EAGAIN && t->flight)
            return; /* a completion comes here again */
        if (rc < 0 && inside) {
            event_active(t->later, 0, 0);
            return;
        }
        if (rc < 0) {
            op_refused(o, rc);
            continue;
        }
        op_unlink(o);
        o->next = t->flight;
        o->prev = &t->flight;
        if (o->next)
            o->next->prev = &o->next;
        t->flight = o;
    }
}

static void on_later(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct tenant *t = arg;
    t->uses++;
    flush(t, false);
    tenant_unuse(t);
}

/* ---- workers ---- */

static void tenant_free(struct tenant *t)
{
    if (t->later)
        event_free(t->later);
    free(t);
}

static void tenant_unlink(struct tenant *t)
{
    for (struct tenant **at = &t->pool->head; *at; at = &(*at)->next)
        if (*at == t) {
            *at = t->next;
            return;
        }
}

static void fail_queue(struct tenant *t)
{
    while (t->queue)
        op_end(t->queue, ST_ECLOSED, t->why, NULL);
}

static void on_ready(struct worker *w, const struct worker_device *devices, size_t n, void *arg)
{
    (void)w;
    (void)devices;
    (void)n;
    struct tenant *t = arg;
    if (t->state != TENANT_STARTING)
        return;
    t->uses++;
    t->state = TENANT_READY;
    flush(t, false);
    tenant_unuse(t);
}

static void on_slot(struct worker *w, void *arg)
{
    (void)w;
    struct tenant *t = arg;
    if (t->state != TENANT_READY)
        return;
    t->uses++;
    /* Who was first this time is last the next: nobody's copies starve another's. */
    struct pool *p = t->pool;
    for (struct pool_user *u = p->users, *next; u; u = next) {
        next = u->next;
        u->on_slot(t, u->arg);
    }
    struct pool_user *first = p->users;
    if (first && first->next) {
        pool_leave(p, first);
        pool_join(p, first);
    }
    tenant_unuse(t);
}

static void on_exit_(struct worker *w, int status, int signal, const char *why, void *arg)
{
    (void)w;
    (void)status;
    (void)signal;
    struct tenant *t = arg;
    if (t->state == TENANT_CLOSING) {
        tenant_unlink(t);
        tenant_free(t);
        return;
    }
    LOG_E(t->pool->cfg.log, "pool", "worker gone principal=%s why=\"%s\"", t->principal, why);
    t->uses++;
    t->state = TENANT_DEAD;
    str_copy(t->why, sizeof t->why, why);
    fail_queue(t);
    for (struct pool_user *u = t->pool->users; u; u = u->next)
        u->on_died(t, t->why, u->arg);
    tenant_unuse(t);
}

static const struct worker_ops worker_ops = {.on_ready = on_ready, .on_slot = on_slot, .on_exit = on_exit_};

int pool_tenant(struct pool *p, const char *principal, struct tenant **out, struct err *e)
{
    for (struct tenant *t = p->head; t; t = t->next)
        if ((t->state == TENANT_STARTING || t->state == TENANT_READY) &&
            strcmp(t->principal, principal) == 0) {
            t->uses++;
            *out = t;
            return ST_OK;
        }
    struct tenant *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, ST_ENOMEM, "no memory for the worker of %s", principal);
    if (!str_copy(t->principal, sizeof t->principal, principal)) {
        free(t);
        return err_set(e, ST_ELIMIT, "the principal's name '%.80s…' is too long", principal);
    }
    t->pool = p;
    t->uses = 1;
    t->queue_tail = &t->queue;
    const struct worker_cfg cfg = {
        .base = p->cfg.base,
        .clock = p->cfg.clock,
        .log = p->cfg.log,
        .program = p->cfg.worker_path,
        .label = t->principal,
        .backends = p->cfg.backends,
        .cpu_memory_bytes = p->cfg.cpu_memory_bytes,
        .ops = &worker_ops,
        .arg = t,
    };
    t->later = event_new(p->cfg.base, -1, 0, on_later, t);
    int rc = t->later ? worker_spawn(&t->w, &cfg, e)
                      : err_set(e, ST_ENOMEM, "no memory for the worker of %s", principal);
    if (rc < 0) {
        tenant_free(t);
        return rc;
    }
    t->next = p->head;
    p->head = t;
    *out = t;
    return ST_OK;
}

void tenant_unuse(struct tenant *t)
{
    if (--t->uses || t->pool->freeing)
        return;
    struct worker *w = t->w;
    if (t->state == TENANT_DEAD) {
        tenant_unlink(t);
        tenant_free(t);
    } else {
        t->state = TENANT_CLOSING; /* nothing is in flight: who asked still holds a use; on_exit frees */
    }
    worker_close(w);
}

int tenant_pid(const struct tenant *t)
{
    return t->state == TENANT_DEAD ? 0 : worker_pid(t->w);
}

unsigned tenant_uses(const struct tenant *t)
{
    return t->uses;
}

void tenant_kill(struct tenant *t)
{
    if (t->state != TENANT_DEAD)
        worker_kill(t->w);
}

/* ---- operations ---- */

/* Takes a copy of what is to be done into the queue. */
static int op_queue(struct tenant *t, const struct op *what, struct err *e)
{
    if (t->state != TENANT_STARTING && t->state != TENANT_READY)
        return err_set(e, ST_ECLOSED, "the worker of %s is gone: %s", t->principal, t->why);
    struct op *o = malloc(sizeof *o);
    if (!o)
        return err_set(e, ST_ENOMEM, "no memory for an operation of %s", t->principal);
    *o = *what;
    o->t = t;
    o->next = NULL;
    o->prev = t->queue_tail;
    *t->queue_tail = o;
    t->queue_tail = &o->next;
    flush(t, true);
    return ST_OK;
}

static int on_device(struct tenant *t, struct op *o, const char *device, struct err *e)
{
    uint32_t i;
    if (!str_copy(o->device, sizeof o->device, device) ||
        (t->state == TENANT_READY && worker_device_find(t->w, device, &i) < 0))
        return err_reason(e, ST_ENOENT, "NO_DEVICE", "this node has no device %.80s", device);
    return op_queue(t, o, e);
}

int tenant_alloc(struct tenant *t, const char *device, uint64_t bytes, tenant_alloc_fn fn, void *arg,
                 struct err *e)
{
    struct op o = {.kind = OP_ALLOC, .n = bytes, .fn.alloc = fn, .arg = arg};
    return on_device(t, &o, device, e);
}

int tenant_usage(struct tenant *t, const char *device, tenant_usage_fn fn, void *arg, struct err *e)
{
    struct op o = {.kind = OP_USAGE, .fn.usage = fn, .arg = arg};
    return on_device(t, &o, device, e);
}

int tenant_sync(struct tenant *t, const char *device, tenant_done_fn fn, void *arg, struct err *e)
{
    struct op o = {.kind = OP_SYNC, .fn.done = fn, .arg = arg};
    return on_device(t, &o, device, e);
}

int tenant_monitor(struct tenant *t, const char *device, tenant_monitor_fn fn, void *arg, struct err *e)
{
    struct op o = {.kind = OP_MONITOR, .fn.monitor = fn, .arg = arg};
    return on_device(t, &o, device, e);
}

int tenant_exec(struct tenant *t, const struct gpu_exec *x, tenant_exec_fn fn, void *arg, struct err *e)
{
    return op_queue(t, &(struct op){.kind = OP_EXEC, .u.exec = *x, .fn.exec = fn, .arg = arg}, e);
}

int tenant_run(struct tenant *t, const struct gpu_program *p, const struct worker_slot *slot, uint32_t n,
               tenant_done_fn fn, void *arg, struct err *e)
{
    return op_queue(
        t, &(struct op){.kind = OP_RUN, .u.program = *p, .slot = *slot, .n = n, .fn.done = fn, .arg = arg},
        e);
}

int tenant_copy(struct tenant *t, uint64_t to, uint64_t to_off, uint64_t from, uint64_t from_off, uint64_t n,
                tenant_done_fn fn, void *arg, struct err *e)
{
    return op_queue(t,
                    &(struct op){.kind = OP_COPY,
                                 .buffer = to,
                                 .off = to_off,
                                 .from = from,
                                 .from_off = from_off,
                                 .n = n,
                                 .fn.done = fn,
                                 .arg = arg},
                    e);
}

bool tenant_slot(struct tenant *t, struct worker_slot *out)
{
    return t->state == TENANT_READY && worker_slot_get(t->w, out);
}

void tenant_slot_put(struct tenant *t, const struct worker_slot *s)
{
    if (t->state == TENANT_READY)
        worker_slot_put(t->w, s);
}

int tenant_write(struct tenant *t, uint64_t buffer, uint64_t off, const struct worker_slot *slot, uint32_t n,
                 tenant_done_fn fn, void *arg, struct err *e)
{
    return op_queue(
        t,
        &(struct op){
            .kind = OP_WRITE, .buffer = buffer, .off = off, .slot = *slot, .n = n, .fn.done = fn, .arg = arg},
        e);
}

int tenant_read(struct tenant *t, uint64_t buffer, uint64_t off, const struct worker_slot *slot, uint32_t n,
                tenant_done_fn fn, void *arg, struct err *e)
{
    return op_queue(
        t,
        &(struct op){
            .kind = OP_READ, .buffer = buffer, .off = off, .slot = *slot, .n = n, .fn.done = fn, .arg = arg},
        e);
}

int tenant_digest(struct tenant *t, uint64_t buffer, uint64_t off, uint64_t n, tenant_digest_fn fn, void *arg,
                  struct err *e)
{
    return op_queue(
        t, &(struct op){.kind = OP_DIGEST, .buffer = buffer, .off = off, .n = n, .fn.digest = fn, .arg = arg},
        e);
}

int tenant_release(struct tenant *t, uint64_t buffer, tenant_done_fn fn, void *arg, struct err *e)
{
    return op_queue(t, &(struct op){.kind = OP_RELEASE, .buffer = buffer, .fn.done = fn, .arg = arg}, e);
}

/* ---- what devices there are ---- */

static void probe_end(struct probe *b, int rc, const char *why)
{
    struct err e = {0};
    pool_probe_fn fn = b->fn;
    if (!fn)
        return;
    b->fn = NULL;
    if (rc < 0)
        err_set(&e, rc, "cannot find out what devices there are: %s", why);
    fn(b->arg, rc, &e, b->device, b->n);
    worker_close(b->w); /* on_exit frees b */
}

static void probe_next(struct probe *b);

static void probe_measured(void *arg, const struct worker_result *r)
{
    struct probe *b = arg;
    if (!b->fn)
        return;
    if (r->status == ST_OK) {
        b->device[b->at].bytes_per_s = r->memory_bytes_per_s;
        b->device[b->at].flops_per_s = r->compute_flops_per_s;
    } else if (r->status == ST_ECLOSED || r->status == ST_EDEADLINE) {
        return; /* on_exit tells */
    } else {
        LOG_W(b->pool->cfg.log, "pool", "not measured device=%s why=\"%s\"", b->device[b->at].id, r->why);
    }
    b->at++;
    probe_next(b);
}

static void probe_next(struct probe *b)
{
    for (; b->at < b->n; b->at++) {
        uint32_t i;
        if (worker_device_find(b->w, b->device[b->at].id, &i) == ST_OK &&
            worker_measure(b->w, i, probe_measured, b) == ST_OK)
            return;
    }
    probe_end(b, ST_OK, "");
}

static void probe_ready(struct worker *w, const struct worker_device *v, size_t n, void *arg)
{
    (void)w;
    struct probe *b = arg;
    for (size_t i = 0; i < n && i < WORKER_MAX_DEVICES; i++) {
        struct pool_device *d = &b->device[b->n++];
        str_copy(d->id, sizeof d->id, v[i].id);
        str_copy(d->backend, sizeof d->backend, v[i].backend);
        str_copy(d->name, sizeof d->name, v[i].name);
        str_copy(d->vendor, sizeof d->vendor, v[i].vendor);
        str_copy(d->driver_version, sizeof d->driver_version, v[i].driver);
        str_copy(d->support_level, sizeof d->support_level, v[i].support);
        hex_encode(d->uuid, v[i].uuid, sizeof v[i].uuid);
        d->software = v[i].software;
        d->memory_bytes = v[i].total_bytes;
        d->available_bytes = v[i].available_bytes;
        d->compute_units = v[i].compute_units;
    }
    probe_next(b);
}

static void probe_exit(struct worker *w, int status, int signal, const char *why, void *arg)
{
    struct probe *b = arg;
    (void)status;
    (void)signal;
    b->pool->probe = NULL;
    if (b->fn) {
        struct err e;
        err_set(&e, ST_ECLOSED, "the worker that looks for devices ended: %s", why);
        b->fn(b->arg, ST_ECLOSED, &e, NULL, 0);
        worker_close(w);
    }
    free(b);
}

static const struct worker_ops probe_ops = {.on_ready = probe_ready, .on_exit = probe_exit};

int pool_probe(struct pool *p, pool_probe_fn fn, void *arg, struct err *e)
{
    if (p->probe)
        return err_set(e, ST_ECONFLICT, "the devices are being looked for already");
    struct probe *b = calloc(1, sizeof *b);
    if (!b)
        return err_set(e, ST_ENOMEM, "no memory to look for devices");
    b->pool = p;
    b->fn = fn;
    b->arg = arg;
    const struct worker_cfg cfg = {
        .base = p->cfg.base,
        .clock = p->cfg.clock,
        .log = p->cfg.log,
        .program = p->cfg.worker_path,
        .label = "probe",
        .backends = p->cfg.backends,
        .cpu_memory_bytes = p->cfg.cpu_memory_bytes,
        .ops = &probe_ops,
        .arg = b,
    };
    int rc = worker_spawn(&b->w, &cfg, e);
    if (rc < 0) {
        free(b);
        return rc;
    }
    p->probe = b;
    return ST_OK;
}

/* ---- the whole ---- */

int pool_new(struct pool **out, const struct pool_cfg *cfg, struct err *e)
{
    struct pool *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_ENOMEM, "no memory for the workers");
    p->cfg = *cfg;
    *out = p;
    return ST_OK;
}

void pool_join(struct pool *p, struct pool_user *u)
{
    struct pool_user **at = &p->users;
    while (*at)
        at = &(*at)->next;
    u->next = NULL;
    *at = u;
}

void pool_leave(struct pool *p, struct pool_user *u)
{
    for (struct pool_user **at = &p->users; *at; at = &(*at)->next)
        if (*at == u) {
            *at = u->next;
            return;
        }
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    p->freeing = true;
    if (p->probe) {
        worker_destroy(p->probe->w);
        free(p->probe);
    }
    for (struct tenant *t = p->head; t; t = t->next) {
        t->state = TENANT_DEAD;
        str_copy(t->why, sizeof t->why, "the agent stops");
        worker_destroy(t->w);
        while (t->flight)
            op_end(t->flight, ST_ECLOSED, t->why, NULL);
        fail_queue(t);
    }
    while (p->head) {
        struct tenant *t = p->head;
        p->head = t->next;
        tenant_free(t);
    }
    free(p);
}
