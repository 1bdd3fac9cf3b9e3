/* Handles and what they stand for, the byte limit, and leases of devices. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

/* ---- finding ---- */

int buffer_find(struct session *s, const ProtobufCBinaryData *handle, const char *operation,
                struct buffer **out, struct err *e)
{
    struct buffer *b =
        handle->len == HANDLE_LEN ? map_get(s->owner->handles, handle->data, HANDLE_LEN) : NULL;
    if (b && b->s == s && b->allocated && !b->releasing) {
        *out = b;
        return ST_OK;
    }
    if (b && b->s != s) {
        struct err why;
        err_reason(&why, ST_EDENIED, "FOREIGN_HANDLE", "the handle belongs to session %s", b->s->name);
        session_refused(s, operation, b->device, &why, NULL);
    }
    /* The same words for a foreign one: whether somebody has it is nobody else's business. */
    return err_reason(e, ST_ENOENT, "NO_HANDLE",
                      "session %s has no such handle: freed before, or never its own", s->name);
}

int buffer_range(const struct buffer *b, uint64_t offset, uint64_t bytes, struct err *e)
{
    if (bytes == 0)
        return err_reason(e, ST_EINVAL, "NO_BYTES", "nothing to do for 0 bytes");
    if (offset > b->bytes || bytes > b->bytes - offset)
        return err_reason(e, ST_EINVAL, "OUT_OF_BOUNDS",
                          "%" PRIu64 " bytes from %" PRIu64 " on reach past the buffer's %" PRIu64, bytes,
                          offset, b->bytes);
    return ST_OK;
}

/* ---- room ---- */

static bool in_use_by_others(const struct session *s, const char *device)
{
    for (const struct session *o = s->owner->head; o; o = o->next) {
        if (o == s)
            continue;
        for (const struct buffer *b = o->buffers; b; b = b->next)
            if (strcmp(b->device, device) == 0)
                return true;
        for (const struct lease *l = o->leases; l; l = l->next)
            if (strcmp(l->device, device) == 0)
                return true;
    }
    return s->owner->cfg.layer_bytes(device, s->owner->cfg.arg) != 0;
}

static bool leased_by_other(const struct session *s, const char *device)
{
    for (const struct session *o = s->owner->head; o; o = o->next)
        for (const struct lease *l = o->leases; o != s && l; l = l->next)
            if (l->exclusive && strcmp(l->device, device) == 0)
                return true;
    return false;
}

int device_room(struct session *s, const char *device, uint64_t bytes, struct err *e)
{
    struct sessions *ss = s->owner;
    const struct pool_device *d = session_device(ss, device);
    uint64_t limit = s->ticket.limit_bytes, left = s->used < limit ? limit - s->used : 0;
    char ask[16], used[16], all[16];
    fmt_bytes(ask, bytes);
    if (bytes == 0)
        return err_reason(e, ST_EINVAL, "NO_BYTES", "an allocation has at least one byte");
    if (bytes > left) {
        struct event_meta m = {0};
        fmt_bytes(used, s->used);
        fmt_bytes(all, limit);
        err_reason(e, ST_ERESOURCE, "QUOTA_EXCEEDED",
                   "%s refused: session %s holds %s of its %s; free memory or open a session with more", ask,
                   s->name, used, all);
        event_meta_u64(&m, "bytes", bytes);
        event_meta_u64(&m, "used", s->used);
        event_meta_u64(&m, "quota", limit);
        if (log_limited(&s->refusals, clock_ns(ss->cfg.clock), 20, &(unsigned){0}))
            session_audit(s, EV_SECURITY_QUOTA_EXCEEDED, EVENT_DENIED, device, &m, e->text);
        else
            event_meta_fini(&m);
        return ST_ERESOURCE;
    }
    if (leased_by_other(s, device))
        return err_reason(e, ST_ECONFLICT, "DEVICE_LEASED",
                          "device %s is leased exclusively by another session", device);
    uint64_t taken = ss->cfg.layer_bytes(device, ss->cfg.arg) + sessions_device_bytes(ss, device);
    uint64_t room = d && taken < d->memory_bytes ? d->memory_bytes - taken : 0;
    if (bytes > room) {
        fmt_bytes(all, room);
        return err_reason(e, ST_ERESOURCE, "DEVICE_FULL", "%s refused: device %s has %s free", ask, device,
                          all);
    }
    return ST_OK;
}

/* ---- freeing ---- */

void buffer_gone(struct buffer *b)
{
    struct session *s = b->s;
    (void)map_del(s->owner->handles, b->handle, HANDLE_LEN);
    *b->prev = b->next;
    if (b->next)
        b->next->prev = b->prev;
    s->nbuffers--;
    s->used -= b->bytes;
    free(b);
    session_changed(s->owner, false);
    session_settle(s);
}

static void released(void *arg, int rc, const struct err *e)
{
    struct buffer *b = arg;
    if (rc < 0 && rc != ST_ECLOSED) /* a worker that cannot free ends soon, and its memory with it */
        LOG_E(b->s->owner->cfg.log, "session", "not freed session=%s bytes=%" PRIu64 " why=\"%s\"",
              b->s->name, b->bytes, e->text);
    buffer_gone(b);
}

void buffer_release(struct buffer *b)
{
    struct err e;
    b->releasing = true;
    if (!b->allocated || tenant_release(b->s->tenant, b->memory, released, b, &e) < 0)
        buffer_gone(b); /* only a dead worker refuses, and its memory is free */
}

/* ---- Memory.Allocate, Memory.Deallocate ---- */

struct allocating {
    struct work w;
    struct buffer *b;
};

static void stop_nothing(struct work *w)
{
    (void)w; /* its worker operation is under way and comes back */
}

static void allocated(void *arg, int rc, const struct err *e, uint64_t memory)
{
    struct allocating *a = arg;
    struct buffer *b = a->b;
    struct session *s = a->w.s;
    struct err mine = *e;
    if (rc == ST_OK) {
        b->memory = memory;
        b->allocated = true;
    }
    if (rc == ST_OK && a->w.call) {
        Strata__V1__Buffer r = STRATA__V1__BUFFER__INIT;
        struct event_meta m = {0};
        char hex[9];
        hex_encode(hex, b->handle, 4); /* enough to tell rows apart, no use to anybody else */
        event_meta_u64(&m, "bytes", b->bytes);
        event_meta_str(&m, "handle", hex);
        event_meta_u64(&m, "used", s->used);
        event_meta_u64(&m, "quota", s->ticket.limit_bytes);
        session_audit(s, EV_MEMORY_ALLOCATE, EVENT_SUCCESS, b->device, &m, NULL);
        r.handle = (ProtobufCBinaryData){HANDLE_LEN, b->handle};
        r.device = b->device;
        r.bytes = b->bytes;
        trail_reply_buffer(s->owner, a->w.call, &r.base, b->handle);
        a->w.call = NULL;
    } else {
        if (rc < 0 && a->w.call) {
            struct event_meta m = {0};
            event_meta_u64(&m, "bytes", b->bytes);
            session_audit(s, EV_MEMORY_ALLOCATE, EVENT_FAILURE, b->device, &m, e->text);
            if (rc == ST_ERESOURCE && !mine.reason[0])
                str_copy(mine.reason, sizeof mine.reason, "DEVICE_FULL");
            work_fail(&a->w, rc, &mine);
        }
        buffer_release(b); /* nobody knows its handle */
    }
    work_end(&a->w);
    free(a);
}

void buffer_allocate(struct session *s, struct rpc_call *call, const char *device, uint64_t bytes)
{
    struct err e;
    struct allocating *a = calloc(1, sizeof *a);
    struct buffer *b = calloc(1, sizeof *b);
    int rc = a && b ? ST_OK : err_set(&e, ST_ENOMEM, "no memory for another handle");
    if (rc == ST_OK && s->nbuffers >= MAX_BUFFERS)
        rc = err_reason(&e, ST_ERESOURCE, "TOO_MANY_HANDLES", "session %s has %u handles already; free some",
                        s->name, s->nbuffers);
    if (rc < 0 || (rc = device_room(s, device, bytes, &e)) < 0 || (rc = session_worker(s, &e)) < 0)
        goto refused;
    b->s = s;
    b->bytes = bytes;
    str_copy(b->device, sizeof b->device, device);
    s->owner->cfg.rng->fill(s->owner->cfg.rng->arg, b->handle, HANDLE_LEN);
    if (map_put(s->owner->handles, b->handle, HANDLE_LEN, b, NULL) < 0) {
        err_set(&e, ST_ENOMEM, "no memory for another handle");
        goto refused;
    }
    if ((rc = work_begin(s, &a->w, call, EV_MEMORY_ALLOCATE, false, &e)) < 0) {
        (void)map_del(s->owner->handles, b->handle, HANDLE_LEN);
        goto refused;
    }
    a->w.stop = stop_nothing;
    a->b = b;
    b->next = s->buffers;
    b->prev = &s->buffers;
    if (b->next)
        b->next->prev = &b->next;
    s->buffers = b;
    s->nbuffers++;
    s->used += bytes; /* reserved from now on; buffer_gone() gives it back */
    session_changed(s->owner, false);
    rc = tenant_alloc(s->tenant, device, bytes, allocated, a, &e);
    if (rc < 0) {
        work_fail(&a->w, rc, &e);
        work_end(&a->w);
        free(a);
        buffer_gone(b);
    }
    return;
refused:
    free(a);
    free(b);
    trail_fail(s->owner, call, &e);
}

struct freeing {
    struct work w;
    struct buffer *b;
};

static void deallocated(void *arg, int rc, const struct err *e)
{
    struct freeing *f = arg;
    struct buffer *b = f->b;
    if (f->w.call && rc == ST_OK) {
        Strata__V1__Buffer r = STRATA__V1__BUFFER__INIT;
        struct event_meta m = {0};
        char hex[9];
        hex_encode(hex, b->handle, 4);
        event_meta_u64(&m, "bytes", b->bytes);
        event_meta_str(&m, "handle", hex);
        session_audit(f->w.s, EV_MEMORY_DEALLOCATE, EVENT_SUCCESS, b->device, &m, NULL);
        r.handle = (ProtobufCBinaryData){HANDLE_LEN, b->handle};
        r.device = b->device;
        r.bytes = b->bytes;
        trail_reply(f->w.s->owner, f->w.call, &r.base);
        f->w.call = NULL;
    } else {
        work_fail(&f->w, rc, e);
    }
    buffer_gone(b);
    work_end(&f->w);
    free(f);
}

void buffer_deallocate(struct session *s, struct rpc_call *call, struct buffer *b)
{
    struct err e;
    struct freeing *f = NULL;
    int rc = ST_OK;
    if (b->busy)
        rc = err_reason(&e, ST_ECONFLICT, "HANDLE_BUSY",
                        "%u calls still use the handle: wait for them or cancel them", b->busy);
    else if (!(f = calloc(1, sizeof *f)))
        rc = err_set(&e, ST_ENOMEM, "no memory to free a handle");
    if (rc < 0 || (rc = work_begin(s, &f->w, call, EV_MEMORY_DEALLOCATE, false, &e)) < 0) {
        free(f);
        trail_fail(s->owner, call, &e);
        return;
    }
    offers_drop(s, b);
    f->w.stop = stop_nothing;
    f->b = b;
    b->releasing = true;
    rc = tenant_release(s->tenant, b->memory, deallocated, f, &e);
    if (rc < 0) { /* a dead worker: the session ends, and this with it */
        work_fail(&f->w, rc, &e);
        work_end(&f->w);
        free(f);
        b->releasing = false;
    }
}

/* ---- leases ---- */

int lease_take(struct session *s, const char *device, bool exclusive, struct err *e)
{
    struct lease *l = s->leases;
    while (l && strcmp(l->device, device) != 0)
        l = l->next;
    if (leased_by_other(s, device))
        return err_reason(e, ST_ECONFLICT, "DEVICE_LEASED",
                          "device %s is leased exclusively by another session", device);
    if (exclusive && in_use_by_others(s, device))
        return err_reason(e, ST_ECONFLICT, "DEVICE_IN_USE",
                          "device %s is used by others: an exclusive lease needs it to itself", device);
    if (!l) {
        if (s->nleases >= MAX_LEASES || !(l = calloc(1, sizeof *l)))
            return err_reason(e, ST_ERESOURCE, "TOO_MANY_LEASES", "session %s has %u leases already", s->name,
                              s->nleases);
        str_copy(l->device, sizeof l->device, device);
        l->next = s->leases;
        s->leases = l;
        s->nleases++;
    }
    l->exclusive = exclusive;
    struct event_meta m = {0};
    event_meta_str(&m, "lease", exclusive ? "exclusive" : "shared");
    session_audit(s, EV_DEVICE_ALLOCATE, EVENT_SUCCESS, device, &m, NULL);
    return ST_OK;
}

int lease_drop(struct session *s, const char *device, bool *exclusive, struct err *e)
{
    for (struct lease **at = &s->leases; *at; at = &(*at)->next)
        if (strcmp((*at)->device, device) == 0) {
            struct lease *l = *at;
            struct event_meta m = {0};
            *at = l->next;
            *exclusive = l->exclusive;
            s->nleases--;
            free(l);
            event_meta_str(&m, "lease", "released");
            session_audit(s, EV_DEVICE_ALLOCATE, EVENT_SUCCESS, device, &m, NULL);
            return ST_OK;
        }
    return err_reason(e, ST_ENOENT, "NO_LEASE", "session %s has no lease of device %.40s", s->name, device);
}
