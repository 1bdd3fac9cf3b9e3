/* Our transport: calls through the rpc room, bulk on a connection and socket of its own, as the daemons do
 * it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/rpc/echo.pb-c.h"
#include "bench/rpc/peer.h"
#include "common/base/str.h"
#include "common/quic/quic.h"
#include "common/rpc/rpc.h"

#define CHUNK (256u << 10)

static const struct log silent = {.fd = -1};

/* ---- endpoints of both sides ---- */

struct side {
    struct event_base *base;
    struct quic_udp *udp[PORTS];
    struct quic_ep *ep[PORTS];
    struct rpc_table *table;
    struct rpc_cfg rpc;
    struct quic_addr to[PORTS];
    uint8_t *data; /* CHUNK bytes to send */
};

static int open_ep(struct side *s, int port, struct tls_ctx *tls, const struct quic_conn_ops *accept,
                   struct err *e)
{
    struct quic_ep_cfg cfg = {.clock = clock_system(),
                              .rng = rng_system(),
                              .log = &silent,
                              .tls = tls,
                              .accept = accept != NULL,
                              .accept_ops = accept,
                              .accept_arg = s};
    if (port == PORT_CALLS)
        quic_limits_control(&cfg.limits);
    else
        quic_limits_bulk(&cfg.limits);
    if (port == PORT_SMALL)
        cfg.limits.max_packet = 1452; /* Ethernet, less IPv6 and UDP */
    rng_system()->fill(rng_system()->arg, cfg.reset_secret, sizeof cfg.reset_secret);
    return quic_udp_new(&s->udp[port], &s->ep[port], s->base, port == PORT_CALLS ? 0 : 1, "127.0.0.1:0", &cfg,
                        e);
}

static void side_free(struct side *s)
{
    if (!s)
        return;
    for (int i = 0; i < PORTS; i++)
        quic_udp_free(s->udp[i], 0, "done");
    rpc_table_free(s->table);
    free(s->data);
    free(s);
}

static int side_new(struct side **out, struct event_base *base, struct tls_ctx *tls,
                    const struct quic_conn_ops *const accept[PORTS], struct err *e)
{
    struct side *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_ENOMEM, "no memory");
    s->base = base;
    s->rpc =
        (struct rpc_cfg){.base = base, .clock = clock_system(), .log = &silent, .max_inbound_calls = 256};
    s->data = calloc(1, CHUNK);
    int rc = s->data ? ST_OK : err_set(e, ST_ENOMEM, "no memory");
    for (int i = 0; i < PORTS && rc == ST_OK; i++)
        rc = open_ep(s, i, tls, accept[i], e);
    if (rc < 0) {
        side_free(s);
        return rc;
    }
    *out = s;
    return ST_OK;
}

/* ---- server: calls ---- */

static void ping(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    (void)arg;
    rpc_reply(call, req);
}

static void served_down(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    (void)s, (void)why, (void)arg;
}

static void accepted(struct quic_conn *c, void *arg)
{
    static const struct rpc_session_ops ops = {.on_closed = served_down};
    struct side *s = arg;
    struct rpc_session *session;
    if (rpc_accept(&session, &s->rpc, c, &ops, s) < 0)
        quic_conn_close(c, 1, "no memory");
}

static void early_down(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    (void)c, (void)why, (void)arg;
}

/* ---- server: bulk ---- */

struct source {
    struct side *side;
    bool hashed;
    struct digest digest;
    uint8_t trailer[DIGEST_LEN];
    uint64_t left;
    size_t asked;
    uint8_t ask[8];
};

static void sent(void *arg)
{
    (void)arg;
}

static void pour(struct quic_stream *st, void *arg)
{
    struct source *src = arg;
    while (src->left) {
        size_t n = src->left < CHUNK ? (size_t)src->left : CHUNK;
        if (quic_stream_write_ref(st, src->side->data, n, n == src->left && !src->hashed, sent, NULL) < 0)
            return; /* ST_EAGAIN: on_writable comes back here */
        digest_add(&src->digest, src->side->data, n);
        src->left -= n;
    }
    if (!src->hashed)
        return;
    if (src->digest.md) {
        digest_end(&src->digest, src->trailer);
        digest_fini(&src->digest);
    }
    (void)!quic_stream_write(st, src->trailer, DIGEST_LEN, true); /* ST_EAGAIN as above */
}

static void asked(struct quic_stream *st, void *arg)
{
    struct source *src = arg;
    const uint8_t *p;
    bool fin;
    for (size_t n; (n = quic_stream_peek(st, &p, &fin)) > 0; quic_stream_consume(st, n)) {
        size_t take = sizeof src->ask - src->asked;
        take = n < take ? n : take;
        memcpy(src->ask + src->asked, p, take);
        src->asked += take;
    }
    if (src->asked == sizeof src->ask && !src->left) {
        memcpy(&src->left, src->ask, sizeof src->left);
        src->asked++; /* once */
        if (src->hashed && !digest_start(&src->digest, src->left))
            quic_stream_reset(st, 1);
        else
            pour(st, src);
    }
}

static void source_down(struct quic_stream *st, void *arg)
{
    struct source *src = arg;
    (void)st;
    digest_fini(&src->digest);
    free(src);
}

static void pour_to(struct quic_stream *st, struct side *s, bool hashed)
{
    static const struct quic_stream_ops ops = {
        .on_readable = asked, .on_writable = pour, .on_closed = source_down};
    struct source *src = calloc(1, sizeof *src);
    if (!src)
        return;
    src->side = s;
    src->hashed = hashed;
    quic_stream_set(st, &ops, src);
}

static void bulk_stream(struct quic_conn *c, struct quic_stream *st, void *arg)
{
    (void)c;
    pour_to(st, arg, false);
}

static void digest_stream(struct quic_conn *c, struct quic_stream *st, void *arg)
{
    (void)c;
    pour_to(st, arg, true);
}

static void bulk_accepted(struct quic_conn *c, void *arg)
{
    (void)c, (void)arg;
}

static int serve(struct event_base *base, const struct bench_pki *pki, uint16_t ports[PORTS], struct err *e)
{
    static const struct quic_conn_ops calls = {.on_up = accepted, .on_closed = early_down};
    static const struct quic_conn_ops bulk = {
        .on_up = bulk_accepted, .on_stream = bulk_stream, .on_closed = early_down};
    static const struct quic_conn_ops digest = {
        .on_up = bulk_accepted, .on_stream = digest_stream, .on_closed = early_down};
    static const struct quic_conn_ops *const accept[PORTS] = {&calls, &bulk, &digest, &bulk};
    static const ProtobufCServiceDescriptor *const services[] = {&strata__bench__echo__descriptor};
    static const struct rpc_method methods[] = {{"strata.bench.Echo", "Ping", RPC_UNARY, ping}};
    struct side *s = NULL;
    int rc = side_new(&s, base, pki->server, accept, e);
    if (rc == ST_OK)
        rc = rpc_table_new(&s->table, services, 1, methods, 1, s, e);
    if (rc < 0) {
        side_free(s);
        return rc;
    }
    s->rpc.table = s->table;
    for (int i = 0; i < PORTS; i++)
        ports[i] = quic_udp_port(s->udp[i]);
    return ST_OK; /* s lives as long as the process */
}

/* ---- client ---- */

struct our_link {
    struct link l;
    struct rpc_session *session; /* calls */
    struct quic_conn *conn;      /* bulk */
    bool hashed, bad;
    struct digest digest;
};

static int client_new(void **out, struct event_base *base, const struct bench_pki *pki,
                      const uint16_t ports[PORTS], struct err *e)
{
    static const struct quic_conn_ops *const none[PORTS] = {NULL};
    struct side *s = NULL;
    int rc = side_new(&s, base, pki->client, none, e);
    for (int i = 0; i < PORTS && rc == ST_OK; i++) {
        char text[32];
        snprintf(text, sizeof text, "127.0.0.1:%u", ports[i]);
        rc = quic_addr_parse(text, &s->to[i], e);
    }
    if (rc < 0) {
        side_free(s);
        return rc;
    }
    *out = s;
    return ST_OK;
}

static void client_free(void *client)
{
    side_free(client);
}

static void link_up(struct our_link *o)
{
    o->l.up = true;
    o->l.on_up(&o->l);
}

static void link_down(struct our_link *o, const struct quic_close *why)
{
    str_copy(o->l.why, sizeof o->l.why, why->reason);
    o->l.on_down(&o->l);
    digest_fini(&o->digest);
    free(o);
}

static void session_up(struct rpc_session *s, void *arg)
{
    (void)s;
    link_up(arg);
}

static void session_down(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    (void)s;
    link_down(arg, why);
}

static void conn_up(struct quic_conn *c, void *arg)
{
    (void)c;
    link_up(arg);
}

static void conn_down(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    (void)c;
    link_down(arg, why);
}

static int dial(void *client, int port, const struct link *proto, struct link **out, struct err *e)
{
    static const struct rpc_session_ops session_ops = {session_up, session_down};
    static const struct quic_conn_ops conn_ops = {.on_up = conn_up, .on_closed = conn_down};
    struct side *s = client;
    struct our_link *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(e, ST_ENOMEM, "no memory");
    o->l = *proto;
    o->hashed = port == PORT_DIGEST;
    int rc = port == PORT_CALLS
                 ? rpc_dial(&o->session, &s->rpc, s->ep[port], &s->to[port], TLS_COORDINATOR, NULL,
                            &session_ops, o, e)
                 : quic_connect(&o->conn, s->ep[port], &s->to[port], TLS_COORDINATOR, NULL, &conn_ops, o, e);
    if (rc < 0) {
        free(o);
        return rc;
    }
    *out = &o->l;
    return ST_OK;
}

static void hang_up(struct link *l)
{
    struct our_link *o = (struct our_link *)l;
    if (o->session)
        rpc_session_close(o->session, 0, "");
    else
        quic_conn_close(o->conn, 0, "");
}

static void answered(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct slot *s = arg;
    (void)call, (void)digest;
    s->done(s, st->code == 0);
}

static int call(struct link *l, struct slot *slot)
{
    static const struct rpc_call_ops ops = {.on_done = answered};
    struct our_link *o = (struct our_link *)l;
    uint8_t payload[PING_LEN] = {0};
    Strata__Bench__PingMessage m = STRATA__BENCH__PING_MESSAGE__INIT;
    m.payload.data = payload;
    m.payload.len = sizeof payload;
    struct rpc_call *c;
    return rpc_call(&c, o->session, &strata__bench__echo__descriptor, "Ping", RPC_UNARY, &m.base, NULL, &ops,
                    slot, NULL);
}

static void poured(struct quic_stream *st, void *arg)
{
    struct our_link *o = arg;
    const uint8_t *p;
    bool fin;
    for (size_t n; (n = quic_stream_peek(st, &p, &fin)) > 0;) {
        o->l.bulk_got += digest_take(&o->digest, p, n, &o->bad);
        quic_stream_consume(st, n);
    }
}

static void poured_out(struct quic_stream *st, void *arg)
{
    struct our_link *o = arg;
    (void)st;
    o->l.on_bulk_end(&o->l, !o->bad);
}

static int bulk(struct link *l, uint64_t bytes)
{
    static const struct quic_stream_ops ops = {.on_readable = poured, .on_closed = poured_out};
    struct our_link *o = (struct our_link *)l;
    struct quic_stream *st;
    l->bulk_got = 0;
    if (o->hashed && !digest_start(&o->digest, bytes))
        return ST_ENOMEM;
    int rc = quic_stream_open(&st, o->conn, &ops, o);
    if (rc == ST_OK && (rc = quic_stream_write(st, &bytes, sizeof bytes, true)) < 0)
        quic_stream_reset(st, 1);
    return rc;
}

const struct transport transport_ours = {"strata", serve, client_new, client_free, dial, hang_up, call, bulk};
