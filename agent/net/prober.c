/*
 * One probe of one peer, for the coordinator: resolve, dial, begin with the ticket, pings at their interval,
 * then, if asked for, a stream there and one back. Whatever fails ends it with a reason; the call's deadline
 * is over all of it. Nothing is answered that was not measured.
 */
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/resolve.h"
#include "agent/net/net_priv.h"
#include "agent/net/probe.h"
#include "common/base/str.h"

#define DEFAULT_TIMEOUT_NS NS_PER_S
#define STREAM_ROUND_TRIPS 40u
#define STREAM_LONGER_NS (4 * NS_PER_S)
#define STREAM_GRACE_NS                                                                                      \
    (15 * NS_PER_S) /* a stream's call beyond its own time: what is queued has to drain                      \
                     */

enum stage { DIAL, BEGIN, PING, PUSH, PULL };

struct prober {
    struct net *n;
    struct rpc_call *asked; /* of the coordinator; NULL = answered or nobody waits */
    enum stage stage;
    uint64_t id;
    char node[64], address[300];
    uint8_t ticket[TICKET_MAX];
    size_t ticket_len;
    uint32_t size;
    uint64_t interval_ns, timeout_ns, stream_ns, stream_bytes, next_ns;
    struct resolve *resolve;
    struct rpc_session *session;
    struct rpc_call *call; /* to the peer */
    struct event *timer;
    struct probe_series *series;
    struct stream_end in, out;
    uint64_t start_ns, written;
    bool have_peer, have_stats;
    Strata__V1__NetRate peer; /* what the peer says of our push */
    struct probe_stats stats;
    uint32_t mtu;
    char stream_reason[40], stream_text[300];
    struct prober *next;
};

static void unlink_prober(struct prober *p)
{
    for (struct prober **at = &p->n->probers; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            p->n->nprobers--;
            break;
        }
}

/* Only when no session is left: its last upcall comes here. */
static void prober_free(struct prober *p)
{
    unlink_prober(p);
    resolve_cancel(p->resolve);
    if (p->timer)
        event_free(p->timer);
    probe_series_free(p->series);
    free(p);
}

/* Nothing more to do: the connection closes, and what is left goes with it. */
static void leave(struct prober *p)
{
    if (p->timer)
        event_del(p->timer);
    if (p->session)
        rpc_session_close(p->session, 0, "measured");
    else
        prober_free(p);
}

static void give_up(struct prober *p, const struct err *e)
{
    struct rpc_call *call = p->asked;
    p->asked = NULL;
    if (call)
        rpc_fail(call, e);
    leave(p);
}

/* ---- the answer ---- */

static void fill_latency(Strata__V1__NetLatency *l, const struct probe_stats *s)
{
    strata__v1__net_latency__init(l);
    l->sent = s->sent;
    l->received = s->received;
    l->late = s->late;
    l->duplicates = s->duplicates;
    l->reordered = s->reordered;
    l->invalid = s->invalid;
    l->peer_received = s->peer_received;
    l->min_ns = s->min_ns;
    l->mean_ns = s->mean_ns;
    l->p50_ns = s->p50_ns;
    l->p99_ns = s->p99_ns;
    l->max_ns = s->max_ns;
    l->jitter_ns = s->jitter_ns;
    l->stddev_ns = s->stddev_ns;
}

static void answer(struct prober *p)
{
    Strata__V1__ProbeReply r = STRATA__V1__PROBE_REPLY__INIT;
    Strata__V1__NetLatency lat;
    struct rpc_call *call = p->asked;
    struct quic_conn_info info;
    quic_conn_info(rpc_session_conn(p->session), &info);
    fill_latency(&lat, &p->stats);
    r.latency = &lat;
    r.mtu = (uint32_t)info.path_mtu;
    r.forth = p->out.over ? &p->out.figures : NULL;
    r.forth_peer = p->have_peer ? &p->peer : NULL;
    r.back = p->in.over ? &p->in.figures : NULL;
    r.stream_reason = p->stream_reason;
    r.stream_text = p->stream_text;
    p->asked = NULL;
    if (call)
        rpc_reply(call, &r.base);
    leave(p);
}

static void no_stream(struct prober *p, const char *reason, const char *text)
{
    str_copy(p->stream_reason, sizeof p->stream_reason, reason);
    str_copy(p->stream_text, sizeof p->stream_text, text);
    answer(p);
}

/* ---- streams ---- */

static void push_more(struct prober *p)
{
    for (;;) {
        uint64_t now = clock_ns(p->n->cfg.clock);
        if (p->written + STREAM_CHUNK > p->stream_bytes || now >= p->start_ns + p->stream_ns ||
            p->n->cfg.busy(p->n->cfg.arg)) {
            rpc_upload_end(p->call);
            return;
        }
        int rc = rpc_upload_write(p->call, stream_zeros, STREAM_CHUNK);
        if (rc < 0)
            return; /* full: on_writable comes here again; ended: on_done has come, or will */
        p->written += STREAM_CHUNK;
    }
}

static void push_writable(struct rpc_call *call, void *arg)
{
    (void)call;
    push_more(arg);
}

static void stream_failed(struct prober *p, const struct rpc_status *st)
{
    no_stream(p, st->reason[0] ? st->reason : "STREAM_FAILED", st->text);
}

static void push_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct prober *p = arg;
    (void)call;
    const Strata__V1__NetRate *r = (const Strata__V1__NetRate *)msg;
    p->peer = *r; /* numbers alone */
    p->peer.base.n_unknown_fields = 0;
    p->peer.base.unknown_fields = NULL;
    p->have_peer = true;
}

static void pull_start(struct prober *p);

static void push_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct prober *p = arg;
    (void)call;
    (void)digest;
    p->call = NULL;
    if (!p->asked)
        return;
    if (st->code || !p->have_peer) {
        p->have_peer = false;
        stream_failed(p, st);
        return;
    }
    stream_sent(&p->out, p->session, p->written, clock_ns(p->n->cfg.clock) - p->start_ns);
    pull_start(p);
}

static const struct rpc_call_ops push_ops = {
    .on_message = push_message, .on_done = push_done, .on_writable = push_writable};

static size_t pull_bytes(struct rpc_call *call, const uint8_t *b, size_t len, void *arg)
{
    struct prober *p = arg;
    (void)call;
    (void)b;
    rate_add(&p->in.meter, clock_ns(p->n->cfg.clock), len);
    return len;
}

static void pull_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct prober *p = arg;
    (void)call;
    (void)digest;
    p->call = NULL;
    if (!p->asked)
        return;
    if (st->code) {
        stream_failed(p, st);
        return;
    }
    stream_received(&p->in, p->session);
    answer(p);
}

static const struct rpc_call_ops pull_ops = {.on_bulk = pull_bytes, .on_done = pull_done};

static void stream_start(struct prober *p, enum stage stage, struct stream_end *x, const char *method,
                         unsigned flags, const struct rpc_call_ops *ops)
{
    Strata__V1__ProbeStream q = STRATA__V1__PROBE_STREAM__INIT;
    const struct rpc_call_opts o = {.timeout_ns = p->stream_ns + STREAM_GRACE_NS};
    struct err e = {0};
    p->stage = stage;
    p->start_ns = clock_ns(p->n->cfg.clock);
    rate_init(&x->meter, RATE_BIN_NS);
    quic_conn_info(rpc_session_conn(p->session), &x->before);
    q.id = p->id;
    q.bytes = p->stream_bytes;
    q.ns = p->stream_ns;
    if (rpc_call(&p->call, p->session, &strata__v1__net_peer__descriptor, method, flags, &q.base, &o, ops, p,
                 &e) < 0)
        no_stream(p, "STREAM_FAILED", e.text);
}

static void pull_start(struct prober *p)
{
    stream_start(p, PULL, &p->in, "Pull", RPC_BULK, &pull_ops);
}

/* Slow start and what it overshoots take round trips, not milliseconds: on a long path the stream has to last
 * longer to show anything else. */
static void lengthen(struct prober *p)
{
    uint64_t need = STREAM_ROUND_TRIPS * p->stats.p50_ns;
    need = need < STREAM_LONGER_NS ? need : STREAM_LONGER_NS;
    if (p->stream_ns && p->stream_ns < need)
        p->stream_ns = need;
}

static void streams(struct prober *p)
{
    lengthen(p);
    if (!p->stream_ns) {
        answer(p);
    } else if (p->n->cfg.busy(p->n->cfg.arg)) {
        no_stream(p, "LINK_BUSY", "this node moves layers or clients' bytes now");
    } else {
        stream_start(p, PUSH, &p->out, "Push", RPC_UPLOAD, &push_ops);
        if (p->call)
            push_more(p);
    }
}

/* ---- pings ---- */

static void arm(struct prober *p, uint64_t now_ns, uint64_t at_ns)
{
    uint64_t us = at_ns > now_ns ? (at_ns - now_ns) / NS_PER_US : 0;
    const struct timeval tv = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    event_add(p->timer, &tv);
}

static void ping_over(struct prober *p)
{
    struct err e;
    probe_series_stats(p->series, &p->stats);
    p->have_stats = true;
    if (p->stats.received) {
        streams(p);
        return;
    }
    err_reason(&e, ST_EUNREACH, "NO_ECHO",
               "%s accepts connections at %s but none of %u probes came back within %llu ms", p->node,
               p->address, p->stats.sent, (unsigned long long)(p->timeout_ns / NS_PER_MS));
    give_up(p, &e);
}

static void ping_now(struct prober *p, uint64_t now)
{
    uint8_t out[PROBE_MAX_BYTES];
    struct probe q = {.kind = PROBE_PING, .session = p->id};
    /* A loop that was late sends what is due, but never a burst that would measure itself. */
    for (unsigned burst = 0; now >= p->next_ns && burst < 4; burst++) {
        if (probe_series_sent(p->series, now, &q.seq) < 0)
            return;
        probe_encode(&q, out, p->size);
        if (quic_conn_send_datagram(rpc_session_conn(p->session), out, p->size) < 0) {
            probe_series_unsent(p->series);
            p->next_ns = now + p->interval_ns;
            return;
        }
        p->next_ns += p->interval_ns;
        now = clock_ns(p->n->cfg.clock);
    }
    if (now > p->next_ns)
        p->next_ns = now;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct prober *p = arg;
    (void)fd;
    (void)what;
    uint64_t now = clock_ns(p->n->cfg.clock);
    if (p->stage != PING)
        return;
    ping_now(p, now);
    if (probe_series_over(p->series, now)) {
        ping_over(p);
        return;
    }
    arm(p, now, p->next_ns > now ? p->next_ns : now + NS_PER_MS);
}

static void on_datagram(struct rpc_session *s, const uint8_t *b, size_t len, uint64_t rx_ns, void *arg)
{
    struct prober *p = arg;
    struct probe q;
    (void)s;
    if (p->stage == PING && probe_decode(b, len, &q) == ST_OK)
        probe_series_got(p->series, &q, rx_ns);
}

/* ---- beginning ---- */

static void begun(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct prober *p = arg;
    struct err e = {0};
    (void)call;
    (void)digest;
    p->call = NULL;
    if (!p->asked)
        return;
    if (st->code) {
        err_reason(&e, status_from_rpc(st->code), st->reason, "%s does not answer probes: %.400s", p->node,
                   st->text);
        give_up(p, &e);
        return;
    }
    p->stage = PING;
    p->next_ns = clock_ns(p->n->cfg.clock);
    arm(p, p->next_ns, p->next_ns);
}

static const struct rpc_call_ops begin_ops = {.on_done = begun};

static void on_up(struct rpc_session *s, void *arg)
{
    struct prober *p = arg;
    struct err e = {0};
    Strata__V1__ProbeBegin q = STRATA__V1__PROBE_BEGIN__INIT;
    const struct rpc_call_opts o = {.timeout_ns = 10 * NS_PER_S};
    q.id = p->id;
    q.ticket = (ProtobufCBinaryData){p->ticket_len, p->ticket};
    p->stage = BEGIN;
    rpc_session_on_datagram(s, on_datagram, p);
    if (rpc_call(&p->call, s, &strata__v1__net_peer__descriptor, "Begin", 0, &q.base, &o, &begin_ops, p, &e) <
        0)
        give_up(p, &e);
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct prober *p = arg;
    struct err e;
    (void)s;
    p->session = NULL;
    const char *reason = why->reason_code[0] ? why->reason_code : p->stage == DIAL ? "NO_ANSWER" : "LOST";
    err_reason(&e, why->status ? why->status : ST_EUNREACH, reason,
               p->stage == DIAL ? "%s cannot be reached at %s (UDP): %.300s"
                                : "the connection to %s at %s broke during the probe: %.300s",
               p->node, p->address, why->reason);
    give_up(p, &e);
}

static const struct rpc_session_ops session_ops = {.on_up = on_up, .on_closed = on_closed};

static void on_resolved(void *arg, int rc, const struct quic_addr *addr, const struct err *why)
{
    struct prober *p = arg;
    struct err e = *why;
    p->resolve = NULL;
    if (rc == ST_OK) {
        const struct net_cfg *c = &p->n->cfg;
        const struct rpc_cfg rc_cfg = {.base = c->base, .clock = c->clock, .log = c->log};
        rc = rpc_dial(&p->session, &rc_cfg, c->ep, addr, TLS_NODE, p->node, &session_ops, p, &e);
    }
    if (rc < 0)
        give_up(p, &e);
}

static void cancelled(struct rpc_call *call, void *arg)
{
    struct prober *p = arg;
    (void)call;
    p->asked = NULL;
    leave(p);
}

static int take(struct prober *p, const Strata__V1__ProbeRequest *q, struct err *e)
{
    p->id = q->id;
    p->size = q->size ? q->size : 64;
    p->interval_ns = q->interval_ns ? q->interval_ns : 10 * NS_PER_MS;
    p->timeout_ns = q->timeout_ns ? q->timeout_ns : DEFAULT_TIMEOUT_NS;
    p->stream_ns = q->stream_ns;
    p->stream_bytes = q->stream_bytes;
    if (p->size < PROBE_MIN_BYTES || p->size > PROBE_MAX_BYTES)
        return err_set(e, ST_EINVAL, "a probe has %u to %u bytes, not %u", PROBE_MIN_BYTES, PROBE_MAX_BYTES,
                       p->size);
    if (p->interval_ns < 100 * NS_PER_US || p->interval_ns > 10 * NS_PER_S || p->timeout_ns > 60 * NS_PER_S)
        return err_set(e, ST_EINVAL, "probes are sent every 100 us to 10 s and waited for at most 60 s");
    if (p->stream_ns > STREAM_MAX_NS || p->stream_bytes > STREAM_MAX_BYTES)
        return err_set(e, ST_EINVAL, "a bandwidth test takes at most %llu s and %llu GiB",
                       STREAM_MAX_NS / NS_PER_S, STREAM_MAX_BYTES >> 30);
    if (!str_copy(p->node, sizeof p->node, q->peer_node) ||
        !str_copy(p->address, sizeof p->address, q->peer_address) || q->ticket.len > sizeof p->ticket)
        return err_set(e, ST_EINVAL, "the peer's name, address or ticket is too long");
    if (q->ticket.len)
        memcpy(p->ticket, q->ticket.data, q->ticket.len);
    p->ticket_len = q->ticket.len;
    int rc = probe_series_new(&p->series, p->id, q->count ? q->count : 20, p->timeout_ns);
    if (rc < 0)
        return err_set(e, rc, "a probe sends 1 to %u datagrams, not %u", PROBE_MAX_COUNT, q->count);
    p->timer = evtimer_new(p->n->cfg.base, on_timer, p);
    return p->timer ? ST_OK : err_set(e, ST_ENOMEM, "no memory for a probe");
}

void prober_start(struct rpc_call *call, struct net *n, const Strata__V1__ProbeRequest *q)
{
    struct err e = {0};
    struct prober *p = NULL;
    int rc = ST_OK;
    if (n->closing || n->nprobers >= PROBES_MAX)
        rc = err_reason(&e, ST_ERESOURCE, "BUSY", "node %s runs %u probes already; try again", n->cfg.node,
                        n->nprobers);
    else if (!(p = calloc(1, sizeof *p)))
        rc = err_set(&e, ST_ENOMEM, "no memory for a probe");
    if (rc < 0) {
        rpc_fail(call, &e);
        return;
    }
    p->n = n;
    p->asked = call;
    p->next = n->probers;
    n->probers = p;
    n->nprobers++;
    rpc_on_cancel(call, cancelled, p);
    rc = take(p, q, &e);
    if (rc == ST_OK)
        rc = resolve_start(&p->resolve, n->cfg.files, p->address, on_resolved, p, &e);
    if (rc < 0)
        give_up(p, &e);
}

void probers_close(struct net *n)
{
    for (struct prober *p = n->probers, *next; p; p = next) {
        struct err e;
        next = p->next;
        err_set(&e, ST_ECLOSED, "the agent stops");
        if (p->asked)
            give_up(p, &e);
    }
}
