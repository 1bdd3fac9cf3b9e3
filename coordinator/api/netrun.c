/*
 * Measurements: rounds of pairs, a node in one pair at a time. First each pair's round trips, both ways; when
 * all of the round have theirs, the rates, so that no stream stands in a probe's way. Then the other end is
 * asked what it saw. Where the two do not tell the same, again and again, the link is in dispute and none of
 * its figures used.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/ticket/ticket.h"
#include "coordinator/api/net.h"
#include "coordinator/api/netcheck.h"
#include "coordinator/api/netrun.h"
#include "coordinator/topology/tourney.h"

#define TICKET_LIFE_US (300ll * 1000000)
#define STREAM_PROBES 5u         /* before a stream: that the peer answers is known already */
#define REPLY_NS (30 * NS_PER_S) /* beyond what a probe takes by its own figures */

/* Of a pair whose ends disagree: a host that was busy agrees the next time, a liar does not. */
#define TRIES 3u

enum pair_stage { PAIR_FORTH, PAIR_SEEN, PAIR_BACK, PAIR_RESTS, PAIR_STREAM, PAIR_STREAM_SEEN, PAIR_OVER };

struct pair {
    struct net_run *run;
    const char *a, *b;
    enum pair_stage stage;
    uint64_t id;
    struct rpc_call *call;
    ProtobufCMessage *got; /* of the call under way */
    Strata__V1__ProbeReply *ab, *ba, *stream;
    Strata__V1__SeenReply *seen, *stream_seen;
    char why_ab[40], why_ba[40], why_stream[40]; /* why there is no ab, ba, stream */
    const char *bad;                             /* how the ends disagree */
    unsigned tries, stream_tries;
};

/* ---- records ---- */

/* What says nothing of the link: the question did not get as far as that. */
static bool not_tried(const char *why)
{
    static const char *const reason[] = {"NODE_DOWN",     "PEER_DOWN", "NOT_ASKED",       "BUSY",
                                         "AGENT_TOO_OLD", "FAILED",    "CONNECTION_LOST", "DEADLINE"};
    for (unsigned i = 0; i < sizeof reason / sizeof *reason; i++)
        if (!strcmp(reason[i], why))
            return true;
    return false;
}

/* Returns whether the link was tried; if not, older figures stay, with the reason beside them. */
static bool take_latency(struct net_link *l, const Strata__V1__ProbeReply *r, const char *why, int64_t now_us)
{
    if (!r && not_tried(why)) {
        str_copy(l->reason, sizeof l->reason, why);
        l->stale = true;
        return false;
    }
    l->tried_us = now_us;
    l->stale = false;
    l->disputed = false;
    l->reached = r != NULL;
    str_copy(l->reason, sizeof l->reason, r ? "" : why);
    if (!r)
        return true;
    const Strata__V1__NetLatency *m = r->latency;
    l->sent = m->sent;
    l->received = m->received;
    l->late = m->late;
    l->duplicates = m->duplicates;
    l->reordered = m->reordered;
    l->rtt_min_s = (double)m->min_ns / 1e9;
    l->rtt_mean_s = (double)m->mean_ns / 1e9;
    l->rtt_p50_s = (double)m->p50_ns / 1e9;
    l->rtt_p99_s = (double)m->p99_ns / 1e9;
    l->jitter_s = (double)m->jitter_ns / 1e9;
    l->stddev_s = (double)m->stddev_ns / 1e9;
    l->loss = m->sent ? (double)(m->sent - m->received) / m->sent : 0;
    return true;
}

/* The receiver's figures: it alone knows when bytes came. Returns whether there is a rate. */
static bool take_rate(struct net_link *l, const Strata__V1__NetRate *got, const Strata__V1__NetRate *sent,
                      const char *why, int64_t now_us)
{
    str_copy(l->rate_reason, sizeof l->rate_reason, why);
    if (!got || !(got->bytes_per_s > 0)) {
        if (got && !*why)
            str_copy(l->rate_reason, sizeof l->rate_reason, "TOO_SHORT");
        return false;
    }
    l->rate_source = NET_MEASURED;
    l->rate_us = now_us;
    l->bytes_per_s = got->bytes_per_s;
    l->wire_bytes_per_s = got->wire_bytes_per_s;
    l->spread = got->spread;
    l->retransmits = sent ? sent->retransmits : 0;
    l->test_bytes = got->bytes;
    return true;
}

static void dispute(struct coord *c, struct net_link *l, const char *reason)
{
    struct event_meta m = {0};
    char principal[80];
    l->disputed = true;
    str_copy(l->reason, sizeof l->reason, reason);
    event_meta_str(&m, "to", l->to);
    event_meta_str(&m, "reason", reason);
    snprintf(principal, sizeof principal, "node/%s", l->from);
    api_event(c, EV_NET_DISPUTED, EVENT_FAILURE, principal, l->from, event_meta_text(&m),
              "the two ends of this link do not tell the same of it");
    event_meta_fini(&m);
}

static void record_event(struct coord *c, const struct net_link *l)
{
    struct event_meta m = {0};
    event_meta_str(&m, "to", l->to);
    if (l->reached) {
        event_meta_u64(&m, "rtt_us", (uint64_t)(l->rtt_p50_s * 1e6));
        event_meta_u64(&m, "bps", (uint64_t)(l->bytes_per_s * 8));
    }
    api_event(c, EV_NET_MEASURED, l->reached ? EVENT_SUCCESS : EVENT_FAILURE, NULL, l->from,
              event_meta_text(&m), l->reached ? NULL : l->reason);
    event_meta_fini(&m);
}

static void stored(void *arg, int rc, const struct err *e)
{
    struct net_run *r = arg;
    r->writing--;
    if (rc < 0) {
        r->failed++;
        LOG_E(&r->c->log, "net", "figures not stored error=\"%s\"", e->text);
    }
    if (!r->inflight)
        net_run_next(r);
}

static void store_pair(struct net_run *r, const struct net_link *ab, bool ab_rate, const struct net_link *ba,
                       bool ba_rate)
{
    struct store_txn *t = store_txn_new();
    if (t) {
        net_store_link(t, ab, ab_rate);
        net_store_link(t, ba, ba_rate);
    }
    int rc = t ? store_submit(r->c->store, t, stored, r) : ST_ENOMEM;
    if (rc == ST_OK)
        r->writing++;
    else
        LOG_E(&r->c->log, "net", "figures not stored error=%s", status_name(rc));
}

/* ---- telling who waits ---- */

void net_run_progress(struct net_run *r, const struct net_link *l)
{
    Strata__V1__NetProgress m = STRATA__V1__NET_PROGRESS__INIT;
    Strata__V1__NetLink link;
    if (!r->call)
        return;
    m.rounds = r->rounds;
    m.round = r->at ? r->at - 1 : 0;
    m.pairs = r->pairs;
    m.done = r->done;
    m.failed = r->failed;
    m.sampled = r->sampled;
    if (l) {
        net_fill_link(&link, l->from, l->to, l, NULL);
        m.link = &link;
    }
    int rc = rpc_send(r->call, &m.base);
    (void)rc; /* a reader that is slow misses steps between; the links can be asked for */
}

static void drop_probe(Strata__V1__ProbeReply **r)
{
    if (*r)
        strata__v1__probe_reply__free_unpacked(*r, NULL);
    *r = NULL;
}

static void drop_seen(Strata__V1__SeenReply **r)
{
    if (*r)
        strata__v1__seen_reply__free_unpacked(*r, NULL);
    *r = NULL;
}

static void pair_record(struct pair *p, struct net_link *ab, struct net_link *ba)
{
    struct net_run *r = p->run;
    struct coord *c = r->c;
    int64_t now = clock_wall_us(c->clock);
    bool rate_ab = false, rate_ba = false, tried;
    tried = take_latency(ab, p->ab, p->why_ab, now);
    tried &= take_latency(ba, p->ba, p->why_ba, now);
    if (p->stream && !p->bad) {
        const Strata__V1__SeenReply *k = p->stream_seen;
        rate_ab = take_rate(ab, k ? k->received : NULL, p->stream->forth, p->stream->stream_reason, now);
        rate_ba = take_rate(ba, p->stream->back, k ? k->sent : NULL, p->stream->stream_reason, now);
        if (p->stream->back)
            ab->mtu = p->stream->mtu;
    } else if (r->ask.stream_ns) {
        str_copy(ab->rate_reason, sizeof ab->rate_reason, p->bad ? p->bad : p->why_stream);
        str_copy(ba->rate_reason, sizeof ba->rate_reason, p->bad ? p->bad : p->why_stream);
    }
    if (p->bad) {
        dispute(c, ab, p->bad);
        dispute(c, ba, p->bad);
    }
    r->failed += !tried || !ab->reached || !ba->reached || p->bad;
    if (tried)
        store_pair(r, ab, rate_ab, ba, rate_ba);
    record_event(c, ab);
    record_event(c, ba);
    r->done++;
    net_run_progress(r, ab);
    net_run_progress(r, ba);
}

static void half_over(struct net_run *r);

static void pair_over(struct pair *p)
{
    struct net_run *r = p->run;
    struct netmap *map = r->c->net->map;
    struct net_link *ab, *ba;
    if (!r->c->net->stopping && netmap_link(map, p->a, p->b, &ab) == ST_OK &&
        netmap_link(map, p->b, p->a, &ba) == ST_OK)
        pair_record(p, ab, ba);
    drop_probe(&p->ab);
    drop_probe(&p->ba);
    drop_probe(&p->stream);
    drop_seen(&p->seen);
    drop_seen(&p->stream_seen);
    p->stage = PAIR_OVER;
    if (--r->inflight == 0)
        half_over(r);
}

/* ---- one pair ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct pair *p = arg;
    (void)call;
    size_t n = protobuf_c_message_get_packed_size(msg);
    uint8_t *b = malloc(n ? n : 1);
    if (b && !p->got) {
        protobuf_c_message_pack(msg, b);
        p->got = protobuf_c_message_unpack(msg->descriptor, NULL, n, b);
    }
    free(b);
}

static void pair_step(struct pair *p);

static void rests(struct pair *p)
{
    struct net_run *r = p->run;
    const struct net_story story = {p->ab, p->seen, p->ba};
    p->bad = net_contradiction(&story);
    if (p->bad && ++p->tries < TRIES) {
        drop_probe(&p->ab);
        drop_probe(&p->ba);
        drop_seen(&p->seen);
        p->stage = PAIR_FORTH;
        pair_step(p);
    } else if (!p->ab || !r->ask.stream_ns || p->bad) {
        pair_over(p);
    } else {
        p->stage = PAIR_RESTS;
        if (--r->inflight == 0)
            half_over(r);
    }
}

static void streamed(struct pair *p)
{
    const struct net_story story = {p->stream, p->stream_seen, NULL};
    p->bad = net_contradiction(&story);
    if (p->bad && ++p->stream_tries < TRIES) {
        drop_probe(&p->stream);
        drop_seen(&p->stream_seen);
        p->stage = PAIR_STREAM;
        pair_step(p);
    } else {
        pair_over(p);
    }
}

/* An answer without the figures it is for is none. */
static Strata__V1__ProbeReply *take_probe(struct pair *p, char why[40])
{
    Strata__V1__ProbeReply *r = (Strata__V1__ProbeReply *)p->got;
    if (r && !r->latency) {
        str_copy(why, 40, "NO_FIGURES");
        drop_probe(&r);
    }
    return r;
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct pair *p = arg;
    (void)call;
    (void)digest;
    p->call = NULL;
    bool back = p->stage == PAIR_BACK, seen = p->stage == PAIR_SEEN || p->stage == PAIR_STREAM_SEEN;
    char *why = back ? p->why_ba : p->stage == PAIR_STREAM ? p->why_stream : p->why_ab;
    if (st->code && p->got) {
        protobuf_c_message_free_unpacked(p->got, NULL);
        p->got = NULL;
    }
    if (st->code && !seen) {
        str_copy(why, sizeof p->why_ab,
                 st->reason[0]    ? st->reason
                 : st->code == 12 ? "AGENT_TOO_OLD"
                                  : "FAILED");
        LOG_I(&p->run->c->log, "net", "probe from=%s to=%s failed reason=%s why=\"%s\"", back ? p->b : p->a,
              back ? p->a : p->b, why, st->text);
    }
    switch (p->stage) {
    case PAIR_FORTH:
        p->ab = take_probe(p, why);
        p->stage = p->ab ? PAIR_SEEN : PAIR_BACK;
        break;
    case PAIR_SEEN:
        p->seen = (Strata__V1__SeenReply *)p->got;
        p->stage = PAIR_BACK;
        break;
    case PAIR_BACK:
        p->ba = take_probe(p, why);
        p->stage = PAIR_RESTS;
        break;
    case PAIR_STREAM:
        p->stream = take_probe(p, why);
        p->stage = p->stream ? PAIR_STREAM_SEEN : PAIR_OVER;
        break;
    default:
        p->stream_seen = (Strata__V1__SeenReply *)p->got;
        p->stage = PAIR_OVER;
    }
    p->got = NULL;
    pair_step(p);
}

static const struct rpc_call_ops pair_ops = {.on_message = on_message, .on_done = on_done};

static int ticket_for(struct coord *c, struct rpc_session *holder, const struct topo_node *peer, uint64_t id,
                      uint64_t bytes, uint8_t out[TICKET_MAX], size_t *len, struct err *e)
{
    struct ticket t = {.purpose = TICKET_BENCH, .limit_bytes = bytes};
    t.issued_us = clock_wall_us(c->clock);
    t.expires_us = t.issued_us + TICKET_LIFE_US;
    ticket_serial(c->rng, t.serial);
    memcpy(t.holder, rpc_session_peer(holder)->spki_sha256, 32);
    str_copy(t.node, sizeof t.node, peer->name);
    snprintf(t.resource, sizeof t.resource, "net/%016" PRIx64, id);
    return ticket_sign(c->ticket_key, &t, out, len, e);
}

/* Asks `from` to probe `to`. */
static int ask_probe(struct pair *p, const char *from, const char *to, bool stream, char why[40])
{
    struct net_run *r = p->run;
    struct coord *c = r->c;
    const struct net_ask *k = &r->ask;
    struct topo_node *a = topo_node(c->topo, from), *b = topo_node(c->topo, to);
    struct rpc_session *s = a ? api_node_rpc(a) : NULL;
    uint8_t ticket[TICKET_MAX];
    size_t len;
    struct err e = {0};
    str_copy(why, 40, s ? "PEER_DOWN" : "NODE_DOWN");
    if (!s || !b || !api_node_rpc(b))
        return ST_EUNREACH;
    p->id = rng_u64(c->rng);
    int rc = ticket_for(c, s, b, p->id, stream ? k->stream_bytes : 0, ticket, &len, &e);
    Strata__V1__ProbeRequest q = STRATA__V1__PROBE_REQUEST__INIT;
    q.id = p->id;
    q.peer_node = b->name;
    q.peer_address = b->peer_address;
    q.ticket = (ProtobufCBinaryData){len, ticket};
    q.count = stream ? STREAM_PROBES : k->count;
    q.size = k->size;
    q.interval_ns = k->interval_ns;
    q.timeout_ns = k->timeout_ns;
    q.stream_ns = stream ? k->stream_ns : 0;
    q.stream_bytes = stream ? k->stream_bytes : 0;
    const struct rpc_call_opts o = {.timeout_ns = k->count * k->interval_ns + k->timeout_ns +
                                                  2 * k->stream_ns + REPLY_NS};
    if (rc == ST_OK)
        rc = rpc_call(&p->call, s, &strata__v1__net_agent__descriptor, "Probe", 0, &q.base, &o, &pair_ops, p,
                      &e);
    if (rc < 0)
        str_copy(why, 40, e.reason[0] ? e.reason : "NOT_ASKED");
    return rc;
}

static int ask_seen(struct pair *p)
{
    struct topo_node *b = topo_node(p->run->c->topo, p->b);
    struct rpc_session *s = b ? api_node_rpc(b) : NULL;
    Strata__V1__SeenRequest q = STRATA__V1__SEEN_REQUEST__INIT;
    const struct rpc_call_opts o = {.timeout_ns = 5 * NS_PER_S};
    struct err e;
    q.id = p->id;
    return s ? rpc_call(&p->call, s, &strata__v1__net_agent__descriptor, "Seen", 0, &q.base, &o, &pair_ops, p,
                        &e)
             : ST_EUNREACH;
}

/* Does what the stage asks for; what cannot even be asked is skipped, with its reason kept. */
static void pair_step(struct pair *p)
{
    if (p->run->c->net->stopping) {
        pair_over(p);
        return;
    }
    if (p->stage == PAIR_FORTH) {
        if (ask_probe(p, p->a, p->b, false, p->why_ab) == ST_OK)
            return;
        p->stage = PAIR_BACK;
    }
    if (p->stage == PAIR_SEEN) {
        if (ask_seen(p) == ST_OK)
            return;
        p->stage = PAIR_BACK;
    }
    if (p->stage == PAIR_BACK) {
        if (ask_probe(p, p->b, p->a, false, p->why_ba) == ST_OK)
            return;
        p->stage = PAIR_RESTS;
    }
    if (p->stage == PAIR_RESTS) {
        rests(p);
        return;
    }
    if (p->stage == PAIR_STREAM && ask_probe(p, p->a, p->b, true, p->why_stream) == ST_OK)
        return;
    if (p->stage == PAIR_STREAM_SEEN && ask_seen(p) == ST_OK)
        return;
    streamed(p);
}

/* ---- rounds ---- */

void net_run_free(struct net_run *r)
{
    for (uint32_t i = 0; i < r->n; i++)
        free(r->node[i]);
    free(r->node);
    free(r->round);
    free(r->pair);
    free(r);
}

static bool stale(struct coord *c, const char *a, const char *b)
{
    const struct net_link *l = netmap_find(c->net->map, a, b);
    int64_t age_us = l ? clock_wall_us(c->clock) - l->tried_us : INT64_MAX;
    return !l || !l->tried_us || l->stale || age_us < 0 ||
           age_us > (int64_t)(c->cfg.net_refresh_ns / NS_PER_US);
}

bool net_run_wants(const struct net_run *r, const char *a, const char *b)
{
    return !r->stale_only || stale(r->c, a, b) || stale(r->c, b, a);
}

static void run_over(struct net_run *r)
{
    struct coord *c = r->c;
    struct store_txn *t = store_txn_new();
    c->net->runs = r->next;
    c->net->nruns--;
    netmap_relax(c->net->map, r->n > ALL_PAIRS_MAX ? 48 : 8);
    struct event_meta m = {0};
    event_meta_u64(&m, "pairs", r->done);
    event_meta_u64(&m, "failed", r->failed);
    event_meta_u64(&m, "rounds", r->rounds);
    event_meta_u64(&m, "us", (clock_ns(c->clock) - r->start_ns) / NS_PER_US);
    if (r->cancelled)
        event_meta_str(&m, "reason", "CANCELLED");
    api_event(c, EV_NET_TOPOLOGY, r->failed || r->cancelled ? EVENT_FAILURE : EVENT_SUCCESS, r->principal,
              NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    if (t)
        store_txn_net_expire(t, clock_wall_us(c->clock));
    if (t && store_submit(c->store, t, NULL, NULL) < 0)
        LOG_W(&c->log, "net", "history not thinned: tried again after the next measurement");
    LOG_I(&c->log, "net", "measured pairs=%u failed=%u rounds=%u", r->done, r->failed, r->rounds);
    if (r->call) {
        Strata__V1__NetProgress p = STRATA__V1__NET_PROGRESS__INIT;
        p.rounds = p.round = r->rounds;
        p.pairs = r->pairs;
        p.done = r->done;
        p.failed = r->failed;
        p.sampled = r->sampled;
        p.over = true;
        rpc_reply(r->call, &p.base);
    }
    net_run_free(r);
    if (c->net->runs && !c->net->stopping)
        net_run_next(c->net->runs);
}

/* All pairs of the round have their round trips: now the rates, or the next round. */
static void half_over(struct net_run *r)
{
    if (r->streaming || r->c->net->stopping) {
        net_run_next(r);
        return;
    }
    r->streaming = true;
    /* One more until all have begun, so that one that fails at once does not end the round. */
    r->inflight = 1;
    for (uint32_t i = 0; i < r->npair; i++)
        r->inflight += r->pair[i].stage == PAIR_RESTS;
    for (uint32_t i = 0; i < r->npair; i++)
        if (r->pair[i].stage == PAIR_RESTS) {
            r->pair[i].stage = PAIR_STREAM;
            pair_step(&r->pair[i]);
        }
    if (--r->inflight == 0)
        net_run_next(r);
}

static uint32_t round_pairs(struct net_run *r)
{
    struct tourney_pair *t = calloc(r->n / 2 + 1, sizeof *t);
    if (!r->pair)
        r->pair = calloc(r->n / 2 + 1, sizeof *r->pair);
    if (!t || !r->pair)
        r->cancelled = true; /* what was measured stays; whoever waits sees how little it is */
    uint32_t k = r->cancelled ? 0 : tourney_round(r->n, r->round[r->at], t);
    r->at++;
    r->npair = 0;
    for (uint32_t i = 0; i < k; i++)
        if (net_run_wants(r, r->node[t[i].a], r->node[t[i].b]))
            r->pair[r->npair++] = (struct pair){.run = r, .a = r->node[t[i].a], .b = r->node[t[i].b]};
    free(t);
    return r->npair;
}

/* Plays the next round that has pairs to measure; the last one's figures must be on disk before all is over.
 */
void net_run_next(struct net_run *r)
{
    if (r->c->net->stopping)
        return; /* net_fini frees it */
    while (!r->cancelled && r->at < r->rounds) {
        if (!round_pairs(r))
            continue;
        r->streaming = false;
        r->inflight = r->npair + 1;
        for (uint32_t i = 0; i < r->npair; i++)
            pair_step(&r->pair[i]);
        if (--r->inflight == 0)
            half_over(r);
        return;
    }
    if (!r->writing)
        run_over(r);
}

void net_stop(struct coord *c)
{
    if (c->net)
        c->net->stopping = true;
}

void net_fini(struct coord *c)
{
    if (!c->net)
        return;
    while (c->net->runs) {
        struct net_run *r = c->net->runs;
        c->net->runs = r->next;
        net_run_free(r);
    }
    netmap_free(c->net->map);
    free(c->net);
    c->net = NULL;
}
