/* Device sessions of libstrata: a blocking face over one connection to an agent, on the client's event loop.
 */
#include "common/client/include/strata/devices.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/client/client_priv.h"
#include "common/ticket/ticket.h"
#include "strata/v1/devices.pb-c.h"
#include "strata/v1/sessions.pb-c.h"

#define CONNECT_NS (10 * NS_PER_S)
#define PIECE (64u << 10)

struct strata_devices {
    struct strata_client *c;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_session *rpc, *old; /* old: until the one that follows it is up */
    unsigned generation;           /* of the certificate that rpc was made with */
    bool up, closed;
    struct quic_close why;
    char session[64], node[80], address[300];
    uint8_t ticket[TICKET_MAX];
    size_t ticket_len;
    int64_t expires_us;
    uint64_t linger_ns;
    /* the call in progress */
    struct rpc_call *call;
    bool done, upload_ended;
    struct rpc_status st;
    ProtobufCMessage *reply;
    const struct strata_transfer *t; /* NULL: no transfer */
    int transfer_rc;                 /* of the application's read or write */
    uint64_t moved, total;
    uint8_t piece[PIECE];
    size_t piece_len;
    uint8_t digest[32];
    bool has_digest;
};

/* ---- the connection ---- */

static void on_up(struct rpc_session *s, void *arg)
{
    struct strata_devices *d = arg;
    (void)s;
    d->up = true;
    event_base_loopbreak(d->c->base);
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct strata_devices *d = arg;
    if (s == d->old)
        d->old = NULL;
    if (s != d->rpc)
        return;
    d->up = false;
    d->closed = true;
    d->rpc = NULL;
    d->why = *why;
    event_base_loopbreak(d->c->base);
}

static const struct rpc_session_ops session_ops = {on_up, on_closed};

static int dial(struct strata_devices *d, struct err *e)
{
    struct strata_client *c = d->c;
    struct quic_addr to;
    const struct rpc_cfg cfg = {.base = c->base, .clock = clock_system(), .log = &c->log};
    int rc = quic_addr_parse(d->address, &to, e);
    if (rc < 0)
        return err_prefix(e, "the address of node %s", d->node);
    d->closed = d->up = false;
    d->generation = c->generation;
    quic_ep_set_tls(d->ep, c->tls);
    rc = rpc_dial(&d->rpc, &cfg, d->ep, &to, TLS_NODE, d->node, &session_ops, d, e);
    if (rc < 0)
        return rc;
    rc = client_wait_up(c, &d->up, &d->closed, &d->rpc, CONNECT_NS, e);
    if (rc != ST_EUNREACH)
        return rc;
    if (d->closed && d->why.kind == QUIC_CLOSE_TRUST)
        return err_reason(e, ST_ETRUST, "TRUST",
                          "node %s at %s and this identity do not trust each other: %s", d->node, d->address,
                          d->why.reason);
    return err_reason(e, ST_EUNREACH, "UNREACHABLE", "cannot reach node %s at %s: %s", d->node, d->address,
                      d->closed ? d->why.reason : "no answer; does a firewall drop UDP?");
}

/* ---- calls ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct strata_devices *d = arg;
    (void)call;
    if (!d->reply)
        d->reply = client_duplicate(msg);
}

static size_t on_bulk(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    struct strata_devices *d = arg;
    if (n > d->total - d->moved) {
        rpc_cancel(call);
        return 0;
    }
    if (d->transfer_rc == 0 && d->t->write(d->t->arg, p, n) < 0) {
        d->transfer_rc = -1;
        rpc_cancel(call);
        return 0;
    }
    d->moved += n;
    if (d->t->progress)
        d->t->progress(d->t->arg, d->moved, d->total);
    return n;
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct strata_devices *d = arg;
    (void)call;
    d->done = true;
    d->call = NULL;
    d->st = *st;
    if ((d->has_digest = digest != NULL))
        memcpy(d->digest, digest, 32);
    event_base_loopbreak(d->c->base);
}

/* Sends until the connection has enough, or all is sent. */
static void pump(struct strata_devices *d)
{
    while (d->call && d->moved < d->total) {
        if (!d->piece_len) {
            uint64_t left = d->total - d->moved;
            ssize_t n = d->t->read(d->t->arg, d->piece, left < PIECE ? (size_t)left : PIECE);
            if (n <= 0) {
                d->transfer_rc = -1;
                rpc_cancel(d->call);
                return;
            }
            d->piece_len = (size_t)n;
        }
        int rc = rpc_upload_write(d->call, d->piece, d->piece_len);
        if (rc == ST_EAGAIN)
            return;
        if (rc < 0) {
            rpc_cancel(d->call);
            return;
        }
        d->moved += d->piece_len;
        d->piece_len = 0;
        if (d->t->progress)
            d->t->progress(d->t->arg, d->moved, d->total);
    }
    if (d->call && !d->upload_ended) {
        d->upload_ended = true;
        rpc_upload_end(d->call);
    }
}

static void on_writable(struct rpc_call *call, void *arg)
{
    (void)call;
    pump(arg);
}

static const struct rpc_call_ops call_ops = {
    .on_message = on_message, .on_bulk = on_bulk, .on_done = on_done, .on_writable = on_writable};

/* The connection must be there. */
static int run(struct strata_devices *d, const ProtobufCServiceDescriptor *svc, const char *method,
               unsigned flags, const ProtobufCMessage *req, uint64_t timeout_ns, struct err *e)
{
    struct strata_client *c = d->c;
    const struct rpc_call_opts o = {.timeout_ns = timeout_ns};
    d->done = d->upload_ended = d->has_digest = false;
    d->moved = 0;
    d->piece_len = 0;
    d->transfer_rc = 0;
    d->reply = NULL;
    int rc = rpc_call(&d->call, d->rpc, svc, method, flags, req, &o, &call_ops, d, e);
    if (rc < 0)
        return rc;
    if (flags & RPC_UPLOAD)
        pump(d);
    while (!d->done) {
        if (event_base_dispatch(c->base) < 0)
            return err_set(e, ST_EINTERNAL, "the event loop failed");
        if (c->interrupted && d->call)
            rpc_cancel(d->call);
    }
    if (d->st.code == 0)
        return ST_OK;
    if (d->reply)
        protobuf_c_message_free_unpacked(d->reply, NULL);
    d->reply = NULL;
    if (c->interrupted)
        return err_reason(e, ST_ECANCELED, "INTERRUPTED", "interrupted");
    if (d->transfer_rc < 0)
        return err_reason(e, ST_ECANCELED, "GIVEN_UP", "the transfer was given up on this side");
    return err_reason(e, status_from_rpc(d->st.code), d->st.reason, "%s", d->st.text);
}

static int connect_and_open(struct strata_devices *d, struct err *e)
{
    Strata__V1__OpenDevicesRequest q = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    int rc = dial(d, e);
    if (rc < 0)
        return rc;
    q.ticket = (ProtobufCBinaryData){d->ticket_len, d->ticket};
    q.linger_ns = d->linger_ns;
    rc = run(d, &strata__v1__devices__descriptor, "Open", RPC_UNARY, &q.base, CONNECT_NS, e);
    if (rc < 0) {
        if (d->rpc)
            rpc_session_close(d->rpc, 0, "refused");
        return rc;
    }
    protobuf_c_message_free_unpacked(d->reply, NULL);
    d->reply = NULL;
    return ST_OK;
}

/* The client's certificate was renewed: the session is taken to a connection made with the new one before the
 * old connection ends, and stays where it is if that fails. */
static void follow(struct strata_devices *d)
{
    struct err e = {0};
    d->old = d->rpc;
    d->rpc = NULL;
    if (connect_and_open(d, &e) < 0) {
        d->rpc = d->old;
        d->up = d->rpc != NULL;
        d->old = NULL;
    } else if (d->old) {
        rpc_session_drain(d->old, "moved to a new connection");
    }
}

/* Connects if it is not, and presents the ticket. */
static int ensure(struct strata_devices *d, struct err *e)
{
    int rc = event_base_loop(d->c->base, EVLOOP_NONBLOCK) < 0
                 ? err_set(e, ST_EINTERNAL, "the event loop failed")
                 : ST_OK;
    if (rc == ST_OK && d->c->interrupted)
        rc = err_reason(e, ST_ECANCELED, "INTERRUPTED", "interrupted");
    if (rc == ST_OK && d->rpc && d->generation != d->c->generation)
        follow(d);
    return rc < 0 || d->rpc ? rc : connect_and_open(d, e);
}

static int call(struct strata_devices *d, const ProtobufCServiceDescriptor *svc, const char *method,
                unsigned flags, const ProtobufCMessage *req, uint64_t timeout_ns, struct err *e)
{
    int rc = ensure(d, e);
    return rc < 0 ? rc : run(d, svc, method, flags, req, timeout_ns, e);
}

/* ---- beginning and end ---- */

static int take_grant(struct strata_devices *d, const Strata__V1__SessionGrant *g, struct err *e)
{
    if (g->ticket.len > sizeof d->ticket || !str_copy(d->session, sizeof d->session, g->session) ||
        !str_copy(d->node, sizeof d->node, g->node) ||
        !str_copy(d->address, sizeof d->address, g->peer_address))
        return err_set(e, ST_EPROTO, "the coordinator granted a session with impossible names");
    memcpy(d->ticket, g->ticket.data, g->ticket.len);
    d->ticket_len = g->ticket.len;
    d->expires_us = g->expires_us;
    return ST_OK;
}

static int devices_new(struct strata_devices **out, struct strata_client *c, struct err *e)
{
    struct strata_devices *d = calloc(1, sizeof *d);
    struct quic_ep_cfg cfg = {.clock = clock_system(), .rng = rng_system(), .log = &c->log, .tls = c->tls};
    if (!d)
        return err_set(e, ST_ENOMEM, "no memory");
    d->c = c;
    quic_limits_bulk(&cfg.limits);
    cfg.limits.keepalive_ns = 5 * NS_PER_S;
    rng_system()->fill(NULL, cfg.reset_secret, sizeof cfg.reset_secret);
    const char *any = c->to.ss.ss_family == AF_INET6 ? "[::]:0" : "0.0.0.0:0";
    int rc = quic_udp_new(&d->udp, &d->ep, c->base, 0, any, &cfg, e);
    if (rc < 0) {
        free(d);
        return rc;
    }
    *out = d;
    return ST_OK;
}

void strata_devices_leave(struct strata_devices *d)
{
    if (!d)
        return;
    quic_udp_free(d->udp, 0, "bye");
    free(d);
}

static int finish(int rc, const struct err *e, struct strata_error *se)
{
    if (rc < 0)
        client_export_error(se, e);
    return rc;
}

int strata_devices_open(struct strata_devices **out, struct strata_client *c, const char *node,
                        const struct strata_devices_opts *o, struct strata_error *se)
{
    struct err e = {0};
    struct strata_devices *d = NULL;
    ProtobufCMessage *m;
    Strata__V1__OpenSessionRequest q = STRATA__V1__OPEN_SESSION_REQUEST__INIT;
    q.node = (char *)node;
    q.devices = (char **)o->devices;
    q.n_devices = o->ndevices;
    q.limit_bytes = o->limit_bytes;
    q.ttl_ns = o->ttl_ns;
    int rc =
        strata_client_call(c, &strata__v1__sessions__descriptor, "Open", &q.base, CONNECT_NS, NULL, &m, se);
    if (rc < 0)
        return rc;
    rc = devices_new(&d, c, &e);
    if (rc == ST_OK) {
        d->linger_ns = o->linger_ns;
        rc = take_grant(d, (const Strata__V1__SessionGrant *)m, &e);
    }
    protobuf_c_message_free_unpacked(m, NULL);
    if (rc == ST_OK)
        rc = ensure(d, &e);
    if (rc < 0)
        strata_devices_leave(d);
    else
        *out = d;
    return finish(rc, &e, se);
}

int strata_devices_renew(struct strata_devices *d, uint64_t ttl_ns, struct strata_error *se)
{
    struct err e = {0};
    ProtobufCMessage *m;
    Strata__V1__RenewSessionRequest q = STRATA__V1__RENEW_SESSION_REQUEST__INIT;
    Strata__V1__RenewDevicesRequest r = STRATA__V1__RENEW_DEVICES_REQUEST__INIT;
    q.session = d->session;
    q.ttl_ns = ttl_ns;
    int rc = strata_client_call(d->c, &strata__v1__sessions__descriptor, "Renew", &q.base, CONNECT_NS, NULL,
                                &m, se);
    if (rc < 0)
        return rc;
    rc = take_grant(d, (const Strata__V1__SessionGrant *)m, &e);
    protobuf_c_message_free_unpacked(m, NULL);
    r.ticket = (ProtobufCBinaryData){d->ticket_len, d->ticket};
    if (rc == ST_OK)
        rc = call(d, &strata__v1__devices__descriptor, "Renew", RPC_UNARY, &r.base, CONNECT_NS, &e);
    if (rc == ST_OK)
        protobuf_c_message_free_unpacked(d->reply, NULL);
    return finish(rc, &e, se);
}

int strata_devices_end(struct strata_devices *d, uint64_t *freed, struct strata_error *se)
{
    struct err e = {0};
    Strata__V1__CloseDevicesRequest q = STRATA__V1__CLOSE_DEVICES_REQUEST__INIT;
    int rc =
        call(d, &strata__v1__devices__descriptor, "Close", RPC_UNARY, &q.base, RPC_DEFAULT_TIMEOUT_NS, &e);
    if (rc == ST_OK) {
        if (freed)
            *freed = ((const Strata__V1__CloseDevicesReply *)d->reply)->freed_bytes;
        protobuf_c_message_free_unpacked(d->reply, NULL);
    }
    strata_devices_leave(d);
    return finish(rc, &e, se);
}

/* ---- kept between processes ---- */

static const char saved_magic[] = "strata.session.v1";

int strata_devices_save(const struct strata_devices *d, char *out, size_t cap)
{
    char hex[2 * TICKET_MAX + 1];
    hex_encode(hex, d->ticket, d->ticket_len);
    int n = snprintf(out, cap, "%s\n%s\n%s\n%s\n%" PRIu64 " %" PRId64 "\n%s\n", saved_magic, d->session,
                     d->node, d->address, d->linger_ns, d->expires_us, hex);
    return n > 0 && (size_t)n < cap ? ST_OK : ST_ELIMIT;
}

/* The next line of at most cap - 1 bytes; false when there is none. */
static bool line(const char **p, const char *end, char *out, size_t cap)
{
    const char *nl = *p < end ? memchr(*p, '\n', (size_t)(end - *p)) : NULL;
    size_t n = nl ? (size_t)(nl - *p) : cap;
    if (n >= cap || memchr(*p, 0, n))
        return false;
    memcpy(out, *p, n);
    out[n] = 0;
    *p = nl + 1;
    return true;
}

static int restore(struct strata_devices *d, const char *saved, size_t n, struct err *e)
{
    const char *p = saved, *end = saved + n;
    char magic[32], times[64], hex[2 * TICKET_MAX + 1];
    if (n > STRATA_SAVED_MAX || !line(&p, end, magic, sizeof magic) || strcmp(magic, saved_magic) != 0 ||
        !line(&p, end, d->session, sizeof d->session) || !line(&p, end, d->node, sizeof d->node) ||
        !line(&p, end, d->address, sizeof d->address) || !line(&p, end, times, sizeof times) ||
        sscanf(times, "%" SCNu64 " %" SCNd64, &d->linger_ns, &d->expires_us) != 2 ||
        !line(&p, end, hex, sizeof hex) || hex_decode(d->ticket, sizeof d->ticket, hex, &d->ticket_len) < 0)
        return err_reason(e, ST_ECORRUPT, "NOT_SAVED", "this is no saved device session");
    return ST_OK;
}

int strata_devices_attach(struct strata_devices **out, struct strata_client *c, const char *saved, size_t n,
                          struct strata_error *se)
{
    struct err e = {0};
    struct strata_devices *d = NULL;
    int rc = devices_new(&d, c, &e);
    if (rc == ST_OK && (rc = restore(d, saved, n, &e)) == ST_OK)
        rc = ensure(d, &e);
    if (rc < 0)
        strata_devices_leave(d);
    else
        *out = d;
    return finish(rc, &e, se);
}

/* ---- what one does with it ---- */

int strata_devices_call(struct strata_devices *d, const ProtobufCServiceDescriptor *svc, const char *method,
                        const ProtobufCMessage *req, uint64_t timeout_ns, ProtobufCMessage **resp,
                        struct strata_error *se)
{
    struct err e = {0};
    int rc = call(d, svc, method, RPC_UNARY, req, timeout_ns, &e);
    if (rc == ST_OK && !d->reply)
        rc = err_set(&e, ST_EPROTO, "node %s answered %s.%s without a message", d->node, svc->short_name,
                     method);
    if (rc == ST_OK)
        *resp = d->reply;
    return finish(rc, &e, se);
}

int strata_devices_alloc(struct strata_devices *d, const char *device, uint64_t bytes,
                         uint8_t handle[STRATA_HANDLE_LEN], struct strata_error *se)
{
    ProtobufCMessage *m = NULL;
    Strata__V1__AllocateRequest q = STRATA__V1__ALLOCATE_REQUEST__INIT;
    struct err e;
    q.device = (char *)device;
    q.bytes = bytes;
    int rc = strata_devices_call(d, &strata__v1__memory__descriptor, "Allocate", &q.base,
                                 RPC_DEFAULT_TIMEOUT_NS, &m, se);
    if (rc < 0)
        return rc;
    const Strata__V1__Buffer *b = (const Strata__V1__Buffer *)m;
    if (b->handle.len == STRATA_HANDLE_LEN)
        memcpy(handle, b->handle.data, STRATA_HANDLE_LEN);
    else
        rc = err_set(&e, ST_EPROTO, "node %s answered with a handle of %zu bytes", d->node, b->handle.len);
    protobuf_c_message_free_unpacked(m, NULL);
    return finish(rc, &e, se);
}

int strata_devices_free(struct strata_devices *d, const uint8_t handle[STRATA_HANDLE_LEN],
                        struct strata_error *se)
{
    ProtobufCMessage *m;
    Strata__V1__DeallocateRequest q = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    q.handle = (ProtobufCBinaryData){STRATA_HANDLE_LEN, (uint8_t *)handle};
    int rc = strata_devices_call(d, &strata__v1__memory__descriptor, "Deallocate", &q.base,
                                 RPC_DEFAULT_TIMEOUT_NS, &m, se);
    if (rc == ST_OK)
        protobuf_c_message_free_unpacked(m, NULL);
    return rc;
}

int strata_devices_put(struct strata_devices *d, const uint8_t handle[STRATA_HANDLE_LEN], uint64_t offset,
                       uint64_t bytes, const struct strata_transfer *t, struct strata_error *se)
{
    struct err e = {0};
    Strata__V1__CopyToRequest q = STRATA__V1__COPY_TO_REQUEST__INIT;
    q.handle = (ProtobufCBinaryData){STRATA_HANDLE_LEN, (uint8_t *)handle};
    q.offset = offset;
    q.bytes = d->total = bytes;
    d->t = t;
    int rc = call(d, &strata__v1__memory__descriptor, "CopyToDevice", RPC_UPLOAD, &q.base,
                  t->timeout_ns ? t->timeout_ns : UINT64_MAX, &e);
    if (rc == ST_OK) {
        const Strata__V1__Copied *r = (const Strata__V1__Copied *)d->reply;
        if (!r || r->bytes != bytes || r->sha256.len != 32 || r->device_sha256.len != 32 ||
            memcmp(r->sha256.data, r->device_sha256.data, 32) != 0)
            rc = err_set(&e, ST_EPROTO, "node %s did not confirm the copy", d->node);
        else if (t->sha256)
            memcpy(t->sha256, r->sha256.data, 32);
        if (r)
            protobuf_c_message_free_unpacked(d->reply, NULL);
    }
    d->t = NULL;
    return finish(rc, &e, se);
}

int strata_devices_get(struct strata_devices *d, const uint8_t handle[STRATA_HANDLE_LEN], uint64_t offset,
                       uint64_t bytes, const struct strata_transfer *t, struct strata_error *se)
{
    struct err e = {0};
    Strata__V1__CopyFromRequest q = STRATA__V1__COPY_FROM_REQUEST__INIT;
    q.handle = (ProtobufCBinaryData){STRATA_HANDLE_LEN, (uint8_t *)handle};
    q.offset = offset;
    q.bytes = d->total = bytes;
    d->t = t;
    int rc = call(d, &strata__v1__memory__descriptor, "CopyFromDevice", RPC_BULK, &q.base,
                  t->timeout_ns ? t->timeout_ns : UINT64_MAX, &e);
    if (rc == ST_OK) {
        if (d->moved != bytes || !d->has_digest)
            rc = err_set(&e, ST_EPROTO, "node %s sent %" PRIu64 " of %" PRIu64 " bytes", d->node, d->moved,
                         bytes);
        else if (t->sha256)
            memcpy(t->sha256, d->digest, 32);
        if (d->reply)
            protobuf_c_message_free_unpacked(d->reply, NULL);
    }
    d->t = NULL;
    return finish(rc, &e, se);
}

int strata_devices_copy(struct strata_devices *from, const uint8_t from_handle[STRATA_HANDLE_LEN],
                        uint64_t from_offset, struct strata_devices *to,
                        const uint8_t to_handle[STRATA_HANDLE_LEN], uint64_t to_offset, uint64_t bytes,
                        uint64_t timeout_ns, struct strata_error *se)
{
    Strata__V1__OfferRequest o = STRATA__V1__OFFER_REQUEST__INIT;
    Strata__V1__CopyBetweenRequest q = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
    ProtobufCMessage *offer = NULL, *m;
    q.to = (ProtobufCBinaryData){STRATA_HANDLE_LEN, (uint8_t *)to_handle};
    q.to_offset = to_offset;
    q.bytes = bytes;
    if (from == to) {
        q.from = (ProtobufCBinaryData){STRATA_HANDLE_LEN, (uint8_t *)from_handle};
        q.from_offset = from_offset;
    } else {
        o.handle = (ProtobufCBinaryData){STRATA_HANDLE_LEN, (uint8_t *)from_handle};
        o.offset = from_offset;
        o.bytes = bytes;
        o.to_node = to->node;
        int rc = strata_devices_call(from, &strata__v1__memory__descriptor, "Offer", &o.base, CONNECT_NS,
                                     &offer, se);
        if (rc < 0)
            return rc;
        q.offer = ((const Strata__V1__OfferReply *)offer)->offer;
        q.from_node = from->node;
        q.from_address = from->address;
    }
    int rc = strata_devices_call(to, &strata__v1__memory__descriptor, "CopyDeviceToDevice", &q.base,
                                 timeout_ns, &m, se);
    if (rc == ST_OK)
        protobuf_c_message_free_unpacked(m, NULL);
    if (offer)
        protobuf_c_message_free_unpacked(offer, NULL);
    return rc;
}

const char *strata_devices_session(const struct strata_devices *d)
{
    return d->session;
}

const char *strata_devices_node(const struct strata_devices *d)
{
    return d->node;
}

int64_t strata_devices_expires_us(const struct strata_devices *d)
{
    return d->expires_us;
}
