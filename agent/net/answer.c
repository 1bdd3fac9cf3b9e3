/* The other end of a probe: answers datagrams, sends and receives streams, and remembers what it saw. */
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/net/net_priv.h"
#include "agent/net/probe.h"

#define SEND_AHEAD (512u << 10) /* bytes of a stream that are not acknowledged, at most */

const uint8_t stream_zeros[STREAM_CHUNK];

static struct seen *find(struct net *n, uint64_t id)
{
    for (unsigned i = 0; i < SEEN_MAX; i++)
        if (n->seen[i].begun_ns && n->seen[i].id == id)
            return &n->seen[i];
    return NULL;
}

/* ---- who may ---- */

static int verify(struct net *n, struct rpc_call *call, const ProtobufCBinaryData *raw, struct ticket *t,
                  struct err *e)
{
    const struct tls_identity *who = rpc_peer(call);
    if (who->kind != TLS_NODE)
        return err_reason(e, ST_EDENIED, "NOT_A_NODE", "%s is no node: only agents measure links",
                          who->principal);
    if (!n->have_pub)
        return err_reason(e, ST_EUNREACH, "NO_TICKET_KEY",
                          "node %s has not yet been given the coordinator's ticket key; try again",
                          n->cfg.node);
    int64_t now = clock_wall_us(n->cfg.clock);
    int rc = ticket_verify(n->pub, raw->data, raw->len, now, n->cfg.node, who->spki_sha256, t, e);
    if (rc < 0 && n->have_before && !strcmp(e->reason, "TICKET_FORGED"))
        rc = ticket_verify(n->before, raw->data, raw->len, now, n->cfg.node, who->spki_sha256, t, e);
    if (rc < 0)
        return rc;
    return t->purpose == TICKET_BENCH
               ? ST_OK
               : err_reason(e, ST_EDENIED, "TICKET_WRONG_PURPOSE", "the ticket is not for measuring links");
}

/* The ticket names the one probe it is for, so that it buys no second one under another id. */
static int check_resource(const struct ticket *t, uint64_t id, struct err *e)
{
    char want[40];
    snprintf(want, sizeof want, "net/%016" PRIx64, id);
    return strcmp(t->resource, want) ? err_reason(e, ST_EDENIED, "TICKET_WRONG_RESOURCE",
                                                  "the ticket is for '%s', not for '%s'", t->resource, want)
                                     : ST_OK;
}

static void refuse(struct net *n, struct rpc_call *call, const struct err *e)
{
    unsigned held;
    if (log_limited(&n->refused, clock_ns(n->cfg.clock), 10, &held))
        LOG_W(n->cfg.log, "net", "probe refused peer=%s reason=%s why=\"%s\" suppressed=%u",
              rpc_peer(call)->principal, e->reason[0] ? e->reason : status_name(e->code), e->text, held);
    rpc_fail(call, e);
}

static void on_begin(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct net *n = arg;
    const Strata__V1__ProbeBegin *rq = (const Strata__V1__ProbeBegin *)msg;
    struct ticket t;
    struct err e = {0};
    int rc = verify(n, call, &rq->ticket, &t, &e);
    if (rc == ST_OK)
        rc = check_resource(&t, rq->id, &e);
    if (rc == ST_OK && find(n, rq->id))
        rc = err_reason(&e, ST_ECONFLICT, "PROBE_REPEATED", "the ticket of this probe was used already");
    struct seen *old = NULL; /* the oldest whose prober is gone */
    for (unsigned i = 0; i < SEEN_MAX; i++) {
        struct seen *s = &n->seen[i];
        if (!s->session && !s->streaming && (!old || s->begun_ns < old->begun_ns))
            old = s;
    }
    if (rc == ST_OK && !old)
        rc = err_reason(&e, ST_ERESOURCE, "BUSY", "node %s answers %u probes already; try again", n->cfg.node,
                        SEEN_MAX);
    if (rc < 0) {
        refuse(n, call, &e);
        return;
    }
    *old = (struct seen){.id = rq->id,
                         .begun_ns = clock_ns(n->cfg.clock),
                         .limit_bytes = t.limit_bytes,
                         .session = rpc_call_session(call)};
    Strata__V1__ProbeBegun r = STRATA__V1__PROBE_BEGUN__INIT;
    rpc_reply(call, &r.base);
}

/* ---- datagrams ---- */

static void on_datagram(struct rpc_session *s, const uint8_t *p, size_t len, uint64_t rx_ns, void *arg)
{
    struct net *n = arg;
    struct probe q;
    uint8_t out[PROBE_MAX_BYTES];
    if (probe_decode(p, len, &q) < 0 || q.kind != PROBE_PING)
        return;
    struct seen *k = find(n, q.session);
    if (!k || k->session != s)
        return;
    q.kind = PROBE_PONG;
    q.order = k->pings++;
    uint64_t now = clock_ns(n->cfg.clock);
    q.held_ns = now > rx_ns ? now - rx_ns : 0;
    probe_encode(&q, out, len);
    int rc = quic_conn_send_datagram(rpc_session_conn(s), out, len);
    (void)rc; /* not sent is lost, as on the wire */
}

void net_peer_up(struct net *n, struct rpc_session *s)
{
    rpc_session_on_datagram(s, on_datagram, n);
}

void net_peer_gone(struct net *n, struct rpc_session *s)
{
    for (unsigned i = 0; i < SEEN_MAX; i++)
        if (n->seen[i].session == s)
            n->seen[i].session = NULL;
}

/* ---- figures of a stream ---- */

/* Bytes a packet costs on the wire beyond its UDP payload: Ethernet, IP and UDP headers. */
static double headers(struct rpc_session *s)
{
    return quic_conn_remote(rpc_session_conn(s))->ss.ss_family == AF_INET ? 14 + 20 + 8 : 14 + 40 + 8;
}

void stream_received(struct stream_end *x, struct rpc_session *s)
{
    struct rate_figures f;
    struct quic_conn_info now;
    rate_figures(&x->meter, &f);
    quic_conn_info(rpc_session_conn(s), &now);
    strata__v1__net_rate__init(&x->figures);
    x->figures.bytes = f.bytes;
    x->figures.ns = f.ns;
    x->figures.bytes_per_s = f.bytes_per_s;
    x->figures.spread = f.spread;
    double wire = (double)(now.bytes_recv - x->before.bytes_recv) +
                  headers(s) * (double)(now.pkt_recv - x->before.pkt_recv);
    if (f.bytes)
        x->figures.wire_bytes_per_s = f.bytes_per_s * wire / (double)f.bytes;
    x->over = true;
}

void stream_sent(struct stream_end *x, struct rpc_session *s, uint64_t bytes, uint64_t ns)
{
    struct quic_conn_info now;
    quic_conn_info(rpc_session_conn(s), &now);
    strata__v1__net_rate__init(&x->figures);
    x->figures.bytes = bytes;
    x->figures.ns = ns;
    x->figures.bytes_per_s = ns ? (double)bytes * 1e9 / (double)ns : 0;
    x->figures.retransmits = now.pkt_lost - x->before.pkt_lost;
    x->over = true;
}

/* ---- streams ---- */

struct serving { /* a pull */
    struct net *n;
    uint64_t id;
    struct rpc_call *call; /* NULL = over */
    struct rpc_session *session;
    uint64_t start_ns, until_ns, limit, written, acked, unacked;
};

static struct seen *allowed(struct net *n, struct rpc_call *call, const Strata__V1__ProbeStream *rq,
                            struct err *e)
{
    struct seen *k = find(n, rq->id);
    int rc = ST_OK;
    if (!k || k->session != rpc_call_session(call))
        rc = err_reason(e, ST_EDENIED, "NO_PROBE", "no probe of this id was begun on this connection");
    else if (k->streaming)
        rc = err_reason(e, ST_ECONFLICT, "PROBE_STREAMS", "this probe's stream is running already");
    else if (rq->bytes > k->limit_bytes || rq->ns > STREAM_MAX_NS)
        rc =
            err_reason(e, ST_EDENIED, "TICKET_LIMIT", "the ticket allows %" PRIu64 " bytes and a test %llu s",
                       k->limit_bytes, STREAM_MAX_NS / NS_PER_S);
    else if (n->cfg.busy(n->cfg.arg))
        rc = err_reason(e, ST_ECONFLICT, "LINK_BUSY",
                        "node %s moves layers or clients' bytes now: no bandwidth is tested meanwhile",
                        n->cfg.node);
    return rc == ST_OK ? k : NULL;
}

static void pull_more(struct serving *v);

static void pull_free(struct serving *v)
{
    if (v->call || v->unacked)
        return;
    struct seen *k = find(v->n, v->id);
    if (k) {
        k->streaming = false;
        if (k->session == v->session)
            stream_sent(&k->out, v->session, v->acked, clock_ns(v->n->cfg.clock) - v->start_ns);
    }
    free(v);
}

/* Every chunk has STREAM_CHUNK bytes, so their acknowledgements need not say which. */
static void pull_acked(void *arg)
{
    struct serving *v = arg;
    v->unacked -= STREAM_CHUNK;
    v->acked += STREAM_CHUNK;
    if (v->call)
        pull_more(v);
    else
        pull_free(v);
}

static void pull_more(struct serving *v)
{
    while (v->call && v->unacked < SEND_AHEAD) {
        if (v->written + STREAM_CHUNK > v->limit || clock_ns(v->n->cfg.clock) >= v->until_ns ||
            v->n->cfg.busy(v->n->cfg.arg)) {
            struct rpc_call *call = v->call;
            v->call = NULL;
            rpc_bulk_end(call);
            pull_free(v);
            return;
        }
        int rc = rpc_bulk_write(v->call, stream_zeros, STREAM_CHUNK, pull_acked, v);
        if (rc < 0)
            return; /* full: on_writable, or an acknowledgement, comes here again */
        v->written += STREAM_CHUNK;
        v->unacked += STREAM_CHUNK;
    }
}

static void pull_writable(struct rpc_call *call, void *arg)
{
    (void)call;
    pull_more(arg);
}

static void pull_cancelled(struct rpc_call *call, void *arg)
{
    struct serving *v = arg;
    (void)call;
    v->call = NULL;
    pull_free(v);
}

static void on_pull(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct net *n = arg;
    const Strata__V1__ProbeStream *rq = (const Strata__V1__ProbeStream *)msg;
    struct err e = {0};
    struct seen *k = allowed(n, call, rq, &e);
    struct serving *v = k ? calloc(1, sizeof *v) : NULL;
    if (k && !v)
        err_set(&e, ST_ENOMEM, "no memory for a stream");
    if (!v) {
        refuse(n, call, &e);
        return;
    }
    Strata__V1__ProbeBegun head = STRATA__V1__PROBE_BEGUN__INIT;
    if (rpc_send(call, &head.base) < 0) {
        free(v);
        err_set(&e, ST_ECLOSED, "the stream's head cannot be sent");
        rpc_fail(call, &e);
        return;
    }
    k->streaming = true;
    k->out.over = false;
    quic_conn_info(rpc_session_conn(k->session), &k->out.before);
    *v = (struct serving){.n = n,
                          .id = k->id,
                          .call = call,
                          .session = k->session,
                          .start_ns = clock_ns(n->cfg.clock),
                          .limit = rq->bytes};
    v->until_ns = v->start_ns + rq->ns;
    rpc_on_cancel(call, pull_cancelled, v);
    rpc_on_writable(call, pull_writable, v);
    pull_more(v);
}

struct taking { /* a push */
    struct net *n;
    uint64_t id, limit;
};

static size_t push_bytes(struct rpc_call *call, const uint8_t *p, size_t len, void *arg)
{
    struct taking *k = arg;
    struct seen *s = find(k->n, k->id);
    (void)call;
    (void)p;
    if (len > k->limit) /* more than its ticket allows is not read: the flow control stops it */
        return 0;
    k->limit -= len;
    if (s)
        rate_add(&s->in.meter, clock_ns(k->n->cfg.clock), len);
    return len;
}

static void push_over(struct taking *k)
{
    struct seen *s = find(k->n, k->id);
    if (s)
        s->streaming = false;
    free(k);
}

static void push_end(struct rpc_call *call, int rc, const struct err *e, const uint8_t *digest, void *arg)
{
    struct taking *k = arg;
    struct seen *s = find(k->n, k->id);
    (void)digest;
    if (rc < 0) {
        rpc_fail(call, e);
    } else if (!s) {
        rpc_finish(call, 9, "PROBE_FORGOTTEN", "this probe was given up meanwhile");
    } else {
        stream_received(&s->in, rpc_call_session(call));
        rpc_reply(call, &s->in.figures.base);
    }
    push_over(k);
}

static const struct rpc_upload_ops push_ops = {push_bytes, push_end};

static void push_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    push_over(arg);
}

static void on_push(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct net *n = arg;
    const Strata__V1__ProbeStream *rq = (const Strata__V1__ProbeStream *)msg;
    struct err e = {0};
    struct seen *k = allowed(n, call, rq, &e);
    struct taking *t = k ? calloc(1, sizeof *t) : NULL;
    if (k && !t)
        err_set(&e, ST_ENOMEM, "no memory for a stream");
    if (!t) {
        refuse(n, call, &e);
        return;
    }
    t->n = n;
    t->id = k->id;
    t->limit = rq->bytes;
    k->streaming = true;
    k->in.over = false;
    rate_init(&k->in.meter, RATE_BIN_NS);
    quic_conn_info(rpc_session_conn(k->session), &k->in.before);
    rpc_on_cancel(call, push_cancelled, t);
    rpc_upload_start(call, &push_ops, t);
}

void answer_seen(struct rpc_call *call, struct net *n, uint64_t id)
{
    Strata__V1__SeenReply r = STRATA__V1__SEEN_REPLY__INIT;
    struct seen *k = find(n, id);
    r.known = k != NULL;
    if (k) {
        r.pings = k->pings;
        r.received = k->in.over ? &k->in.figures : NULL;
        r.sent = k->out.over ? &k->out.figures : NULL;
    }
    rpc_reply(call, &r.base);
}

int answer_table(struct rpc_table **out, struct net *n, struct err *e)
{
    static const struct rpc_method methods[] = {
        {"strata.v1.NetPeer", "Begin", RPC_UNARY, on_begin},
        {"strata.v1.NetPeer", "Pull", RPC_BULK, on_pull},
        {"strata.v1.NetPeer", "Push", RPC_UPLOAD, on_push},
    };
    const ProtobufCServiceDescriptor *const services[] = {&strata__v1__net_peer__descriptor};
    return rpc_table_new(out, services, 1, methods, sizeof methods / sizeof *methods, n, e);
}
