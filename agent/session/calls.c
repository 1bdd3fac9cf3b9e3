/* The services of devices.proto: checks, then the rest of the room. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

static struct sessions *room(void *arg)
{
    return arg;
}

struct session *call_allowed(struct sessions *ss, struct rpc_call *call, enum permission p,
                             const char *device)
{
    struct session *s = NULL;
    struct err e = {0};
    if (session_of(call, &s, &e) == ST_OK && session_may(s, p, device, &e) == ST_OK)
        return s;
    trail_fail(ss, call, &e);
    return NULL;
}

/* The same by handle: the device is the buffer's. */
static struct session *allowed_on(struct sessions *ss, struct rpc_call *call, enum permission p,
                                  const ProtobufCBinaryData *handle, struct buffer **b)
{
    struct session *s = NULL;
    struct err e = {0};
    if (session_of(call, &s, &e) == ST_OK && session_may(s, p, NULL, &e) == ST_OK &&
        buffer_find(s, handle, permission_name(p), b, &e) == ST_OK &&
        session_may(s, p, (*b)->device, &e) == ST_OK)
        return s;
    trail_fail(ss, call, &e);
    return NULL;
}

/* ---- Devices: the session ---- */

static void reply_session(struct rpc_call *call, struct session *s)
{
    Strata__V1__DeviceSession r = STRATA__V1__DEVICE_SESSION__INIT;
    const struct ticket_grant *g = &s->ticket.grant;
    char *perm[PERM_COUNT], *dev[TICKET_DEVICES_MAX];
    size_t nb = s->nbuffers + 1, nl = s->nleases + 1;
    Strata__V1__Buffer *bv = calloc(nb, sizeof *bv), **bp = calloc(nb, sizeof(*bp));
    Strata__V1__Lease *lv = calloc(nl, sizeof *lv), **lp = calloc(nl, sizeof(*lp));
    if (!bv || !bp || !lv || !lp) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
    } else {
        for (unsigned p = 0; p < PERM_COUNT; p++)
            if (g->permissions & PERM_BIT(p))
                perm[r.n_permissions++] = (char *)permission_name((enum permission)p);
        for (unsigned i = 0; i < g->n_devices; i++)
            dev[r.n_devices++] = (char *)g->devices[i];
        for (const struct buffer *b = s->buffers; b; b = b->next) {
            if (!b->allocated || b->releasing)
                continue;
            Strata__V1__Buffer *m = &bv[r.n_buffers];
            strata__v1__buffer__init(m);
            m->handle = (ProtobufCBinaryData){HANDLE_LEN, (uint8_t *)b->handle};
            m->device = (char *)b->device;
            m->bytes = b->bytes;
            bp[r.n_buffers++] = m;
        }
        for (const struct lease *l = s->leases; l; l = l->next) {
            Strata__V1__Lease *m = &lv[r.n_leases];
            strata__v1__lease__init(m);
            m->device = (char *)l->device;
            m->exclusive = l->exclusive;
            lp[r.n_leases++] = m;
        }
        r.session = s->name;
        r.node = (char *)s->owner->cfg.node;
        r.principal = (char *)g->principal;
        r.permissions = perm;
        r.devices = dev;
        r.limit_bytes = s->ticket.limit_bytes;
        r.used_bytes = s->used;
        r.expires_us = s->ticket.expires_us;
        r.buffers = bp;
        r.leases = lp;
        r.linger_ns = s->linger_ns;
        trail_reply(s->owner, call, &r.base);
    }
    free(bv);
    free(bp);
    free(lv);
    free(lp);
}

static void on_open(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__OpenDevicesRequest *rq = (const Strata__V1__OpenDevicesRequest *)msg;
    struct session *s;
    struct err e;
    if (session_attach(room(arg), call, rq->ticket.data, rq->ticket.len, rq->linger_ns, &s, &e) < 0)
        trail_fail(arg, call, &e);
    else
        reply_session(call, s);
}

static void on_renew(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__RenewDevicesRequest *rq = (const Strata__V1__RenewDevicesRequest *)msg;
    struct session *s;
    struct err e;
    (void)arg;
    if (session_of(call, &s, &e) < 0 || session_renew(s, call, rq->ticket.data, rq->ticket.len, &e) < 0)
        trail_fail(arg, call, &e);
    else
        reply_session(call, s);
}

static void on_session(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct session *s;
    struct err e;
    (void)msg;
    (void)arg;
    if (session_of(call, &s, &e) < 0)
        trail_fail(arg, call, &e);
    else
        reply_session(call, s);
}

struct closing {
    struct rpc_call *call; /* NULL: the caller left */
    uint64_t bytes;
};

static void closed(void *arg, const char *session, const char *reason)
{
    struct closing *c = arg;
    (void)reason;
    if (c->call) {
        Strata__V1__CloseDevicesReply r = STRATA__V1__CLOSE_DEVICES_REPLY__INIT;
        r.session = (char *)session;
        r.freed_bytes = c->bytes;
        rpc_reply(c->call, &r.base);
    }
    free(c);
}

static void close_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct closing *)arg)->call = NULL;
}

static void on_close(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct session *s;
    struct err e;
    (void)msg;
    (void)arg;
    if (session_of(call, &s, &e) < 0) {
        trail_fail(arg, call, &e);
        return;
    }
    struct closing *c = calloc(1, sizeof *c);
    if (!c) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
        return;
    }
    c->call = call;
    c->bytes = s->used;
    rpc_on_cancel(call, close_cancelled, c);
    if (session_end_tell(s, "CLOSED", closed, c) < 0) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
        free(c);
    }
}

/* ---- Devices: what there is ---- */

static void fill_device(struct session *s, const struct pool_device *d, char id[96], Strata__V1__Device *m)
{
    struct sessions *ss = s->owner;
    uint64_t taken = ss->cfg.layer_bytes(d->id, ss->cfg.arg) + sessions_device_bytes(ss, d->id);
    strata__v1__device__init(m);
    snprintf(id, 96, "%s", d->id);
    m->id = id;
    m->node = (char *)ss->cfg.node;
    m->backend = (char *)d->backend;
    m->name = (char *)d->name;
    m->vendor = (char *)d->vendor;
    m->uuid = (char *)d->uuid;
    m->driver_version = (char *)d->driver_version;
    m->support_level = (char *)d->support_level;
    m->software = d->software;
    m->memory_bytes = d->memory_bytes;
    m->available_bytes = taken < d->memory_bytes ? d->memory_bytes - taken : 0;
    m->compute_units = d->compute_units;
    m->compute_flops_per_s = d->flops_per_s;
    m->memory_bytes_per_s = d->bytes_per_s;
}

static void on_list(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct session *s = call_allowed(arg, call, PERM_DEVICE_LIST, NULL);
    (void)msg;
    if (!s)
        return;
    size_t n;
    const struct pool_device *d = room(arg)->cfg.devices(&n, room(arg)->cfg.arg);
    Strata__V1__ListDevicesReply r = STRATA__V1__LIST_DEVICES_REPLY__INIT;
    Strata__V1__Device *v = calloc(n + 1, sizeof *v), **p = calloc(n + 1, sizeof(*p));
    char(*ids)[96] = calloc(n + 1, sizeof *ids);
    struct event_meta m = {0};
    if (!v || !p || !ids) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
    } else {
        for (size_t i = 0; i < n; i++)
            if (ticket_device_ok(&s->ticket, d[i].id)) { /* what one may not touch one does not see */
                fill_device(s, &d[i], ids[r.n_devices], &v[r.n_devices]);
                p[r.n_devices] = &v[r.n_devices];
                r.n_devices++;
            }
        r.devices = p;
        event_meta_u64(&m, "count", r.n_devices);
        session_audit(s, EV_DEVICE_LIST, EVENT_SUCCESS, NULL, &m, NULL);
        trail_reply(arg, call, &r.base);
    }
    free(v);
    free(p);
    free(ids);
}

static void on_info(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const char *device = ((const Strata__V1__DeviceInfoRequest *)msg)->device;
    struct session *s = call_allowed(arg, call, PERM_DEVICE_INFO, device);
    Strata__V1__Device r;
    char id[96];
    if (!s)
        return;
    fill_device(s, session_device(room(arg), device), id, &r);
    session_audit(s, EV_DEVICE_INFO, EVENT_SUCCESS, device, NULL, NULL);
    trail_reply(arg, call, &r.base);
}

static void reply_lease(struct sessions *ss, struct rpc_call *call, int rc, const struct err *e,
                        const char *device, bool exclusive)
{
    Strata__V1__Lease r = STRATA__V1__LEASE__INIT;
    r.device = (char *)device;
    r.exclusive = exclusive;
    if (rc < 0)
        trail_fail(ss, call, e);
    else
        trail_reply(ss, call, &r.base);
}

static void on_lease(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__LeaseRequest *rq = (const Strata__V1__LeaseRequest *)msg;
    struct session *s = call_allowed(arg, call, PERM_DEVICE_ALLOCATE, rq->device);
    struct err e;
    (void)arg;
    if (s)
        reply_lease(arg, call, lease_take(s, rq->device, rq->exclusive, &e), &e, rq->device, rq->exclusive);
}

static void on_release(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const char *device = ((const Strata__V1__ReleaseLeaseRequest *)msg)->device;
    struct session *s = call_allowed(arg, call, PERM_DEVICE_ALLOCATE, device);
    struct err e;
    bool exclusive = false;
    (void)arg;
    if (!s)
        return;
    int rc = lease_drop(s, device, &exclusive, &e);
    reply_lease(arg, call, rc, &e, device, exclusive);
}

/* ---- Memory ---- */

static void on_allocate(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__AllocateRequest *rq = (const Strata__V1__AllocateRequest *)msg;
    struct session *s = call_allowed(arg, call, PERM_MEMORY_ALLOCATE, rq->device);
    (void)arg;
    if (s)
        buffer_allocate(s, call, rq->device, rq->bytes);
}

static void on_deallocate(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct buffer *b;
    struct session *s = allowed_on(arg, call, PERM_MEMORY_DEALLOCATE,
                                   &((const Strata__V1__DeallocateRequest *)msg)->handle, &b);
    (void)arg;
    if (s)
        buffer_deallocate(s, call, b);
}

static void on_copy_to(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__CopyToRequest *rq = (const Strata__V1__CopyToRequest *)msg;
    struct buffer *b;
    struct session *s = allowed_on(arg, call, PERM_MEMORY_COPY_TO_DEVICE, &rq->handle, &b);
    (void)arg;
    if (s)
        copy_in(s, call, b, rq);
}

static void on_copy_from(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__CopyFromRequest *rq = (const Strata__V1__CopyFromRequest *)msg;
    struct buffer *b;
    struct session *s = allowed_on(arg, call, PERM_MEMORY_COPY_FROM_DEVICE, &rq->handle, &b);
    (void)arg;
    if (s)
        copy_out(s, call, b, rq->offset, rq->bytes, EV_MEMORY_COPY_FROM_DEVICE);
}

static void on_copy_between(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__CopyBetweenRequest *rq = (const Strata__V1__CopyBetweenRequest *)msg;
    struct buffer *to, *from;
    struct session *s = allowed_on(arg, call, PERM_MEMORY_COPY_DEVICE_TO_DEVICE, &rq->to, &to);
    struct err e;
    (void)arg;
    if (!s)
        return;
    if (rq->from_node[0] && rq->from.len)
        rpc_finish(call, 3, "TWO_SOURCES", "a copy is from a handle or from another node, not from both");
    else if (rq->from_node[0])
        copy_pull(s, call, to, rq);
    else if (buffer_find(s, &rq->from, "memory:copy_device_to_device", &from, &e) < 0 ||
             session_may(s, PERM_MEMORY_COPY_DEVICE_TO_DEVICE, from->device, &e) < 0)
        trail_fail(arg, call, &e);
    else
        copy_between(s, call, to, rq->to_offset, from, rq->from_offset, rq->bytes);
}

static void on_offer(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__OfferRequest *rq = (const Strata__V1__OfferRequest *)msg;
    struct buffer *b;
    struct session *s = allowed_on(arg, call, PERM_MEMORY_COPY_DEVICE_TO_DEVICE, &rq->handle, &b);
    Strata__V1__OfferReply r = STRATA__V1__OFFER_REPLY__INIT;
    struct offer *o;
    struct err e;
    if (!s)
        return;
    if (offer_make(s, b, rq, &o, &e) < 0) {
        trail_fail(arg, call, &e);
        return;
    }
    r.offer = (ProtobufCBinaryData){OFFER_LEN, o->token};
    r.expires_us = clock_wall_us(room(arg)->cfg.clock) + (int64_t)(OFFER_NS / 1000);
    trail_reply(arg, call, &r.base);
}

static void on_pull(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__PullRequest *rq = (const Strata__V1__PullRequest *)msg;
    const struct tls_identity *who = rpc_peer(call);
    struct offer *o = who->kind == TLS_NODE ? offer_take(room(arg), &rq->offer, who->name) : NULL;
    if (!o) {
        rpc_finish(call, 7, "NO_OFFER", "there is no such offer for %s: used before, over, or another's",
                   who->principal);
        return;
    }
    if (rq->bytes != o->bytes)
        rpc_finish(call, 3, "OTHER_LENGTH", "the offer is of another number of bytes");
    else
        copy_out(o->s, call, o->b, o->offset, o->bytes, EV_MEMORY_COPY_DEVICE_TO_DEVICE);
    free(o);
}

int sessions_table(struct rpc_table **out, struct sessions *ss, struct err *e)
{
    static const struct rpc_method methods[] = {
        {"strata.v1.Devices", "Open", RPC_UNARY, on_open},
        {"strata.v1.Devices", "Renew", RPC_UNARY, on_renew},
        {"strata.v1.Devices", "Session", RPC_UNARY, on_session},
        {"strata.v1.Devices", "Close", RPC_UNARY, on_close},
        {"strata.v1.Devices", "List", RPC_UNARY, on_list},
        {"strata.v1.Devices", "Info", RPC_UNARY, on_info},
        {"strata.v1.Devices", "Allocate", RPC_UNARY, on_lease},
        {"strata.v1.Devices", "Release", RPC_UNARY, on_release},
        {"strata.v1.Memory", "Allocate", RPC_UNARY, on_allocate},
        {"strata.v1.Memory", "Deallocate", RPC_UNARY, on_deallocate},
        {"strata.v1.Memory", "CopyToDevice", RPC_UPLOAD, on_copy_to},
        {"strata.v1.Memory", "CopyFromDevice", RPC_BULK, on_copy_from},
        {"strata.v1.Memory", "CopyDeviceToDevice", RPC_UNARY, on_copy_between},
        {"strata.v1.Memory", "Offer", RPC_UNARY, on_offer},
        {"strata.v1.MemorySource", "Pull", RPC_BULK, on_pull},
    };
    static const ProtobufCServiceDescriptor *const services[] = {
        &strata__v1__devices__descriptor,
        &strata__v1__memory__descriptor,
        &strata__v1__memory_source__descriptor,
    };
    struct rpc_table *more = NULL;
    int rc = rpc_table_new(out, services, sizeof services / sizeof *services, methods,
                           sizeof methods / sizeof *methods, ss, e);
    if (rc < 0)
        return rc;
    if ((rc = device_table(&more, ss, e)) == ST_OK && (rc = rpc_table_join(*out, more, e)) < 0)
        rpc_table_free(more);
    if (rc < 0)
        rpc_table_free(*out);
    return rc;
}
