#include "agent/layers/peers.h"

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/resolve.h"
#include "common/base/status.h"
#include "common/base/str.h"

#define MAX_PEERS 256
#define IDLE_CLOSE_S 30

struct peer {
    struct peers *owner;
    char node[64], address[300];
    struct resolve *resolve;
    struct rpc_session *session;
    bool up, closing;
    unsigned generation; /* of our certificate when it was dialled */
    struct fetch *fetches;
    struct event *idle;
    struct peer *next;
};

struct peers {
    struct peers_cfg cfg;
    struct peer *head;
    unsigned n, generation;
};

struct fetch {
    struct peer *peer; /* NULL once it has left the peer's list */
    struct fetch *next;
    struct fetch_ask ask;
    ProtobufCMessage *req; /* a copy, until the call is made */
    uint64_t timeout_ns;
    struct rpc_call *call;
    const struct fetch_ops *ops; /* NULL = cancelled, waits for its call's last upcall */
    void *arg;
    uint64_t want, got;
    uint64_t first_ns;  /* when bytes first came */
    bool head, held_up; /* the taker paused: its pace, not the link's */
};

#define TELLING_BYTES (1u << 20)
#define TELLING_NS (20 * NS_PER_MS)

static void peer_free(struct peer *p)
{
    struct peers *o = p->owner;
    for (struct peer **at = &o->head; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            o->n--;
            break;
        }
    resolve_cancel(p->resolve);
    event_free(p->idle);
    free(p);
}

static void unlink_fetch(struct fetch *f)
{
    struct peer *p = f->peer;
    if (!p)
        return;
    for (struct fetch **at = &p->fetches; *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    f->peer = NULL;
    if (!p->fetches && !p->closing) {
        struct timeval tv = {.tv_sec = IDLE_CLOSE_S};
        (void)event_add(p->idle, &tv);
    }
}

static void drop_request(struct fetch *f)
{
    if (f->req)
        protobuf_c_message_free_unpacked(f->req, NULL);
    f->req = NULL;
}

static void fetch_end(struct fetch *f, int rc, const struct err *e, const uint8_t *digest)
{
    unlink_fetch(f);
    const struct fetch_ops *ops = f->ops;
    void *arg = f->arg;
    drop_request(f);
    free(f);
    if (ops)
        ops->on_done(rc, e, digest, arg);
}

/* ---- the call ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)call;
    struct fetch *f = arg;
    f->head = true;
    if (((const Strata__V1__FetchHead *)msg)->bytes != f->want)
        rpc_cancel(f->call);
}

static size_t on_bulk(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    struct fetch *f = arg;
    if (!f->ops)
        return n;               /* cancelled: swallow what is still on its way */
    if (n > f->want - f->got) { /* more than was asked for: nothing of it can be right */
        rpc_cancel(call);
        return 0;
    }
    if (!f->first_ns)
        f->first_ns = clock_ns(f->peer->owner->cfg.clock);
    size_t took = f->ops->on_bytes(p, n, f->arg);
    f->held_up |= took < n;
    f->got += took;
    return took;
}

static void tell_transfer(const struct fetch *f)
{
    const struct peers_cfg *c = &f->peer->owner->cfg;
    struct quic_conn_info info;
    uint64_t took = clock_ns(c->clock) - f->first_ns;
    if (!c->on_transfer || f->held_up || f->got < TELLING_BYTES || took < TELLING_NS)
        return;
    quic_conn_info(rpc_session_conn(f->peer->session), &info);
    c->on_transfer(f->peer->node, f->got, took, info.min_rtt_ns, c->arg);
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    (void)call;
    struct fetch *f = arg;
    struct err e = {0};
    int rc = ST_OK;
    f->call = NULL;
    const char *node = f->peer ? f->peer->node : "the peer";
    if (st->code != 0)
        rc = err_reason(&e, status_from_rpc(st->code), st->reason, "%s does not send the bytes: %.400s", node,
                        st->text);
    else if (!digest || f->got != f->want)
        rc = err_reason(&e, ST_EPROTO, "SHORT_TRANSFER", "%s sent %llu of %llu bytes", node,
                        (unsigned long long)f->got, (unsigned long long)f->want);
    if (rc == ST_OK && f->peer && f->peer->session)
        tell_transfer(f);
    fetch_end(f, rc, &e, digest);
}

static const struct rpc_call_ops call_ops = {
    .on_message = on_message, .on_bulk = on_bulk, .on_done = on_done};

static void fetch_start(struct fetch *f)
{
    struct err e;
    struct rpc_call_opts o = {.timeout_ns = f->timeout_ns};
    int rc = rpc_call(&f->call, f->peer->session, f->ask.service, f->ask.method, RPC_BULK, f->req, &o,
                      &call_ops, f, &e);
    if (rc < 0)
        fetch_end(f, rc, &e, NULL);
    else
        drop_request(f);
}

/* ---- the connection ---- */

static void on_up(struct rpc_session *s, void *arg)
{
    (void)s;
    struct peer *p = arg;
    p->up = true;
    for (;;) {
        /* From the front each time: a fetch that fails may take others of its owner with it. */
        struct fetch *f = p->fetches;
        while (f && f->call)
            f = f->next;
        if (!f)
            return;
        fetch_start(f);
    }
}

static void peer_gone(struct peer *p, int status, const char *why)
{
    struct err e;
    p->closing = true; /* no idle timer from here on */
    while (p->fetches) {
        struct fetch *f = p->fetches;
        int rc =
            err_set(&e, status, "the connection to agent %s at %s is gone: %s", p->node, p->address, why);
        fetch_end(f, rc, &e, NULL);
    }
    peer_free(p);
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    (void)s;
    struct peer *p = arg;
    p->session = NULL;
    peer_gone(p, why->status ? why->status : ST_EUNREACH, why->reason);
}

static const struct rpc_session_ops session_ops = {.on_up = on_up, .on_closed = on_closed};

static void on_resolved(void *arg, int rc, const struct quic_addr *addr, const struct err *why)
{
    struct peer *p = arg;
    struct err e = *why;
    p->resolve = NULL;
    if (p->closing)
        rc = err_set(&e, ST_ECLOSED, "the agent stops");
    if (rc == ST_OK) {
        const struct peers_cfg *c = &p->owner->cfg;
        const struct rpc_cfg rc_cfg = {.base = c->base, .clock = c->clock, .log = c->log};
        rc = rpc_dial(&p->session, &rc_cfg, c->ep, addr, TLS_NODE, p->node, &session_ops, p, &e);
    }
    if (rc < 0) {
        p->session = NULL;
        peer_gone(p, rc, e.text);
    }
}

static void on_idle(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct peer *p = arg;
    if (p->fetches || p->closing || !p->session)
        return;
    p->closing = true;
    rpc_session_close(p->session, 0, "idle");
}

/* A connection lives no longer than the certificates it was made with: from the last third of the peer's, or
 * once ours was renewed, fetches to come get a new one. The old one ends when it is idle. */
static bool stale(const struct peer *p)
{
    if (p->generation != p->owner->generation)
        return true;
    if (!p->up || !p->session)
        return false;
    const struct tls_identity *id = rpc_session_peer(p->session);
    int64_t life = id->not_after_us - id->not_before_us;
    return clock_wall_us(p->owner->cfg.clock) > id->not_after_us - life / 3;
}

void peers_renewed(struct peers *p)
{
    p->generation++;
}

static int peer_get(struct peers *o, const char *node, const char *address, struct peer **out, struct err *e)
{
    for (struct peer *p = o->head; p; p = p->next)
        if (!p->closing && !stale(p) && strcmp(p->node, node) == 0 && strcmp(p->address, address) == 0) {
            *out = p;
            return ST_OK;
        }
    if (o->n >= MAX_PEERS)
        return err_set(e, ST_ERESOURCE, "already connected to %u agents; try again when some are done", o->n);
    struct peer *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_ENOMEM, "no memory for the connection to agent %s", node);
    p->owner = o;
    p->generation = o->generation;
    if (!str_copy(p->node, sizeof p->node, node) || !str_copy(p->address, sizeof p->address, address)) {
        free(p);
        return err_set(e, ST_EINVAL, "the name or address of agent '%.100s' is too long", node);
    }
    p->idle = evtimer_new(o->cfg.base, on_idle, p);
    if (!p->idle) {
        free(p);
        return err_set(e, ST_ENOMEM, "no memory for the connection to agent %s", node);
    }
    p->next = o->head;
    o->head = p;
    o->n++;
    int rc = resolve_start(&p->resolve, o->cfg.files, address, on_resolved, p, e);
    if (rc < 0) {
        peer_free(p);
        return rc;
    }
    *out = p;
    return ST_OK;
}

/* ---- for the loader ---- */

static ProtobufCMessage *copy_request(const ProtobufCMessage *req)
{
    size_t n = protobuf_c_message_get_packed_size(req);
    uint8_t *p = malloc(n ? n : 1);
    if (!p)
        return NULL;
    protobuf_c_message_pack(req, p);
    ProtobufCMessage *c = protobuf_c_message_unpack(req->descriptor, NULL, n, p);
    free(p);
    return c;
}

int peers_fetch(struct fetch **out, struct peers *o, const char *node, const char *address,
                const struct fetch_ask *ask, uint64_t timeout_ns, const struct fetch_ops *ops, void *arg,
                struct err *e)
{
    struct fetch *f = calloc(1, sizeof *f);
    struct peer *p = NULL;
    if (!f || !(f->req = copy_request(ask->request))) {
        free(f);
        return err_set(e, ST_ENOMEM, "no memory to fetch from agent %s", node);
    }
    f->ask = *ask;
    int rc = peer_get(o, node, address, &p, e);
    if (rc < 0) {
        drop_request(f);
        free(f);
        return rc;
    }
    f->timeout_ns = timeout_ns;
    f->ops = ops;
    f->arg = arg;
    f->want = ask->bytes;
    f->peer = p;
    f->next = p->fetches;
    p->fetches = f;
    event_del(p->idle);
    if (p->up) {
        /* A stream is opened now or not at all, so that a failure is told by the return value. */
        struct rpc_call_opts o2 = {.timeout_ns = timeout_ns};
        rc =
            rpc_call(&f->call, p->session, ask->service, ask->method, RPC_BULK, f->req, &o2, &call_ops, f, e);
        drop_request(f);
        if (rc < 0) {
            unlink_fetch(f);
            free(f);
            return rc;
        }
    }
    *out = f;
    return ST_OK;
}

void fetch_resume(struct fetch *f)
{
    if (f->call)
        rpc_bulk_resume(f->call);
}

void fetch_cancel(struct fetch *f)
{
    f->ops = NULL;
    if (f->call) {
        rpc_bulk_resume(f->call);
        rpc_cancel(f->call); /* on_done frees it */
        return;
    }
    unlink_fetch(f);
    drop_request(f);
    free(f);
}

int peers_new(struct peers **out, const struct peers_cfg *cfg, struct err *e)
{
    struct peers *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ST_ENOMEM, "no memory for the connections to other agents");
    p->cfg = *cfg;
    *out = p;
    return ST_OK;
}

size_t peers_fetching(const struct peers *o)
{
    size_t n = 0;
    for (const struct peer *p = o->head; p; p = p->next)
        for (const struct fetch *f = p->fetches; f; f = f->next)
            n++;
    return n;
}

void peers_close(struct peers *o)
{
    for (struct peer *p = o->head; p; p = p->next) {
        if (p->session && !p->closing)
            rpc_session_close(p->session, 0, "agent stops");
        p->closing = true;
    }
}

void peers_free(struct peers *o)
{
    if (!o)
        return;
    while (o->head)
        peer_gone(o->head, ST_ECLOSED, "the agent stops");
    free(o);
}
