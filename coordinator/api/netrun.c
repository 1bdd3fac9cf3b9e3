/*
 * Measurements: rounds of pairs, a node in one pair at a time. Of each pair one agent probes the other, round
 * trips and both directions' rates; then the other is asked what it saw, and probes back. Where the two do
 * not tell the same, the link is in dispute and none of its figures used.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/ticket/ticket.h"
#include "coordinator/api/net.h"
#include "coordinator/api/netcheck.h"
#include "coordinator/topology/tourney.h"

#define ALL_PAIRS_MAX 64u /* nodes; above it only SAMPLE_ROUNDS of the rounds are played */
#define SAMPLE_ROUNDS 16u
#define RUNS_MAX 8u
#define LOOK_NS (5 * NS_PER_S)
#define TICKET_LIFE_US (300ll * 1000000)
#define REPLY_NS (30 * NS_PER_S) /* beyond what a probe takes by its own figures */

struct net_ask { /* what to measure */
    uint32_t count, size;
    uint64_t interval_ns, timeout_ns, stream_ns, stream_bytes;
};

enum pair_stage { PAIR_FORTH, PAIR_SEEN, PAIR_BACK };

struct pair {
    struct net_run *run;
    const char *a, *b;
    enum pair_stage stage;
    uint64_t id;
    struct rpc_call *call;
    ProtobufCMessage *got; /* of the call under way */
    Strata__V1__ProbeReply *ab, *ba;
    Strata__V1__SeenReply *seen;
    char why_ab[40], why_ba[40]; /* why there is no ab, ba */
};

struct net_run {
    struct coord *c;
    struct rpc_call *call; /* NULL = nobody waits */
    char principal[POLICY_PRINCIPAL_MAX];
    struct net_ask ask;
    char **node;
    uint32_t n;
    uint32_t *round, rounds, at; /* which rounds of the tournament; the next to play */
    struct pair *pair;           /* of the round being played */
    uint32_t npair, inflight;
    uint32_t pairs, sampled, done, failed, writing;
    bool cancelled, stale_only, over_told;
    uint64_t start_ns;
    struct net_run *next;
};

static void run_next(struct net_run *r);

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
static bool take_latency(struct net_link *l, const Strata__V1__ProbeReply *r, const char *why, bool streamed,
                         int64_t now_us)
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
    if (streamed) /* without data to send no larger packets are tried */
        l->mtu = r->mtu;
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
        run_next(r);
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

static void progress(struct net_run *r, const struct net_link *l)
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

static void pair_over(struct pair *p)
{
    struct net_run *r = p->run;
    struct coord *c = r->c;
    struct net_link *ab, *ba;
    int64_t now = clock_wall_us(c->clock);
    if (!c->net->stopping && netmap_link(c->net->map, p->a, p->b, &ab) == ST_OK &&
        netmap_link(c->net->map, p->b, p->a, &ba) == ST_OK) {
        const struct net_story story = {p->ab, p->seen, p->ba};
        const char *bad = net_contradiction(&story);
        bool rate_ab = false, rate_ba = false;
        bool streamed = p->ab && p->ab->back;
        bool tried = take_latency(ab, p->ab && p->ab->latency ? p->ab : NULL,
                                  p->ab ? "NO_FIGURES" : p->why_ab, streamed, now);
        tried &= take_latency(ba, p->ba && p->ba->latency ? p->ba : NULL, p->ba ? "NO_FIGURES" : p->why_ba,
                              false, now);
        if (p->ab && r->ask.stream_ns && !bad) {
            const Strata__V1__NetRate *in = p->seen ? p->seen->received : NULL;
            rate_ab = take_rate(ab, in, p->ab->forth, p->ab->stream_reason, now);
            rate_ba = take_rate(ba, p->ab->back, p->seen ? p->seen->sent : NULL, p->ab->stream_reason, now);
        }
        if (bad) {
            dispute(c, ab, bad);
            dispute(c, ba, bad);
        }
        r->failed += !tried || !ab->reached || !ba->reached || bad;
        if (tried)
            store_pair(r, ab, rate_ab, ba, rate_ba);
        record_event(c, ab);
        record_event(c, ba);
        r->done++;
        progress(r, ab);
        progress(r, ba);
    }
    if (p->ab)
        strata__v1__probe_reply__free_unpacked(p->ab, NULL);
    if (p->ba)
        strata__v1__probe_reply__free_unpacked(p->ba, NULL);
    if (p->seen)
        strata__v1__seen_reply__free_unpacked(p->seen, NULL);
    p->ab = p->ba = NULL;
    p->seen = NULL;
    if (--r->inflight == 0)
        run_next(r);
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

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct pair *p = arg;
    (void)call;
    (void)digest;
    p->call = NULL;
    char *why = p->stage == PAIR_BACK ? p->why_ba : p->why_ab;
    if (st->code && p->got) {
        protobuf_c_message_free_unpacked(p->got, NULL);
        p->got = NULL;
    }
    if (st->code && p->stage != PAIR_SEEN) {
        str_copy(why, sizeof p->why_ab,
                 st->reason[0]    ? st->reason
                 : st->code == 12 ? "AGENT_TOO_OLD"
                                  : "FAILED");
        LOG_I(&p->run->c->log, "net", "probe from=%s to=%s failed reason=%s why=\"%s\"",
              p->stage == PAIR_BACK ? p->b : p->a, p->stage == PAIR_BACK ? p->a : p->b, why, st->text);
    }
    if (p->stage == PAIR_FORTH)
        p->ab = (Strata__V1__ProbeReply *)p->got;
    else if (p->stage == PAIR_SEEN)
        p->seen = (Strata__V1__SeenReply *)p->got;
    else
        p->ba = (Strata__V1__ProbeReply *)p->got;
    p->got = NULL;
    if (p->stage == PAIR_BACK) {
        pair_over(p);
        return;
    }
    p->stage = p->stage == PAIR_FORTH && p->ab ? PAIR_SEEN : PAIR_BACK;
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
    q.count = k->count;
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

static void pair_step(struct pair *p)
{
    if (p->run->c->net->stopping) {
        pair_over(p);
        return;
    }
    if (p->stage == PAIR_FORTH) {
        if (ask_probe(p, p->a, p->b, true, p->why_ab) == ST_OK)
            return;
        p->stage = PAIR_BACK;
    }
    if (p->stage == PAIR_SEEN) {
        if (ask_seen(p) == ST_OK)
            return;
        p->stage = PAIR_BACK;
    }
    if (ask_probe(p, p->b, p->a, false, p->why_ba) < 0)
        pair_over(p);
}

/* ---- rounds ---- */

static void run_free(struct net_run *r)
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

static bool wanted(const struct net_run *r, const char *a, const char *b)
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
    run_free(r);
    if (c->net->runs && !c->net->stopping)
        run_next(c->net->runs);
}

/* Plays the next round that has pairs to measure; the last one's figures must be on disk before all is over.
 */
static void run_next(struct net_run *r)
{
    struct coord *c = r->c;
    if (c->net->stopping)
        return; /* net_fini frees it */
    while (!r->cancelled && r->at < r->rounds) {
        struct tourney_pair *t = calloc(r->n / 2 + 1, sizeof *t);
        uint32_t k = t ? tourney_round(r->n, r->round[r->at], t) : 0;
        r->at++;
        r->npair = 0;
        for (uint32_t i = 0; i < k; i++)
            if (wanted(r, r->node[t[i].a], r->node[t[i].b]))
                r->pair[r->npair++] = (struct pair){.run = r, .a = r->node[t[i].a], .b = r->node[t[i].b]};
        free(t);
        if (!r->npair)
            continue;
        /* One more until all have begun, so that one that fails at once does not end the round. */
        r->inflight = r->npair + 1;
        for (uint32_t i = 0; i < r->npair; i++)
            pair_step(&r->pair[i]);
        if (--r->inflight)
            return;
    }
    if (!r->writing)
        run_over(r);
}

/* ---- beginning ---- */

static int run_rounds(struct net_run *r)
{
    uint32_t all = tourney_rounds(r->n);
    r->rounds = r->n > ALL_PAIRS_MAX ? SAMPLE_ROUNDS : all;
    r->round = calloc(r->rounds + 1, sizeof *r->round);
    r->pair = calloc(r->n / 2 + 1, sizeof *r->pair);
    if (!r->round || !r->pair)
        return ST_ENOMEM;
    for (uint32_t i = 0; i < r->rounds; i++)
        r->round[i] = (uint32_t)((uint64_t)i * all / r->rounds);
    uint64_t total = (uint64_t)r->n * (r->n - 1) / 2, played = (uint64_t)r->rounds * (r->n / 2);
    r->pairs = (uint32_t)played;
    r->sampled = (uint32_t)(total > played ? total - played : 0);
    return ST_OK;
}

/* Takes r in every case, with its rounds. */
static int run_begin(struct net_run *r, struct err *e)
{
    struct coord *c = r->c;
    int rc = ST_OK;
    if (c->net->nruns >= RUNS_MAX)
        rc = err_reason(e, ST_ERESOURCE, "BUSY", "%u measurements wait already; try again", c->net->nruns);
    if (rc < 0) {
        run_free(r);
        return rc;
    }
    struct net_run **at = &c->net->runs;
    while (*at)
        at = &(*at)->next;
    *at = r;
    r->start_ns = clock_ns(c->clock);
    return ++c->net->nruns == 1 ? 1 : ST_OK; /* 1: nobody is before it */
}

static struct net_run *run_new(struct coord *c, size_t max)
{
    struct net_run *r = calloc(1, sizeof *r);
    if (r && !(r->node = calloc(max + 1, sizeof(*r->node)))) {
        free(r);
        return NULL;
    }
    if (r) {
        r->c = c;
        r->ask = (struct net_ask){.count = c->cfg.net_probes,
                                  .size = 64,
                                  .interval_ns = 10 * NS_PER_MS,
                                  .timeout_ns = NS_PER_S,
                                  .stream_ns = c->cfg.net_stream_ns,
                                  .stream_bytes = 16ull << 30};
    }
    return r;
}

static int run_add(struct net_run *r, const char *node, struct err *e)
{
    for (uint32_t i = 0; i < r->n; i++)
        if (!strcmp(r->node[i], node))
            return err_set(e, ST_EINVAL, "node %s is named twice", node);
    if (!(r->node[r->n] = strdup(node)))
        return err_set(e, ST_ENOMEM, "no memory for the nodes to measure");
    r->n++;
    return ST_OK;
}

static int take_nodes(struct net_run *r, const Strata__V1__NetMeasureRequest *q, struct err *e)
{
    struct topo *t = r->c->topo;
    int rc = ST_OK;
    for (size_t i = 0; i < q->n_nodes && rc == ST_OK; i++)
        rc = topo_node(t, q->nodes[i]) ? run_add(r, q->nodes[i], e)
                                       : err_reason(e, ST_ENOENT, "NO_NODE",
                                                    "there is no node '%.64s'; see "
                                                    "strata node list",
                                                    q->nodes[i]);
    for (size_t i = 0; i < topo_count(t) && rc == ST_OK && !q->n_nodes; i++)
        if (api_node_rpc(topo_at(t, i)))
            rc = run_add(r, topo_at(t, i)->name, e);
    if (rc == ST_OK && r->n < 2)
        rc =
            err_reason(e, ST_ENOENT, "NO_PAIR", "%u node%s: a link has two ends", r->n, r->n == 1 ? "" : "s");
    return rc;
}

static int take_ask(struct net_run *r, const Strata__V1__NetMeasureRequest *q, struct err *e)
{
    struct net_ask *k = &r->ask;
    if (q->count)
        k->count = q->count;
    if (q->size)
        k->size = q->size;
    if (q->interval_ns)
        k->interval_ns = q->interval_ns;
    if (q->stream_ns)
        k->stream_ns = q->stream_ns;
    if (q->stream_bytes)
        k->stream_bytes = q->stream_bytes;
    if (q->latency_only)
        k->stream_ns = 0;
    if (k->count > 100000 || k->interval_ns > 10 * NS_PER_S || k->interval_ns < 100 * NS_PER_US ||
        k->count * k->interval_ns > 600 * NS_PER_S)
        return err_set(e, ST_EINVAL,
                       "a latency test sends at most 100000 probes, every 100 us to 10 s, in at "
                       "most 10 minutes");
    if (k->size < 40 || k->size > 1100)
        return err_set(e, ST_EINVAL, "a probe has 40 to 1100 bytes, not %u", k->size);
    if (k->stream_ns > 60 * NS_PER_S || k->stream_bytes > 64ull << 30)
        return err_set(e, ST_EINVAL, "a bandwidth test takes at most 60 s and 64 GiB");
    return ST_OK;
}

static void nobody_waits(struct rpc_call *call, void *arg)
{
    struct net_run *r = arg;
    (void)call;
    r->call = NULL;
    r->cancelled = true; /* what is under way ends; no new round begins */
}

void api_net_measure(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__NetMeasureRequest *q = (const Strata__V1__NetMeasureRequest *)req;
    struct err e = {0};
    if (!api_allow(call, c, PERM_ADMIN))
        return;
    if (q->n_nodes > TOPO_MAX_NODES) {
        rpc_finish(call, 3, "TOO_MANY", "more nodes are named than there can be");
        return;
    }
    struct net_run *r = run_new(c, q->n_nodes ? q->n_nodes : topo_count(c->topo));
    if (!r) {
        api_no_memory(call);
        return;
    }
    int rc = take_nodes(r, q, &e);
    if (rc == ST_OK)
        rc = take_ask(r, q, &e);
    if (rc == ST_OK && (rc = run_rounds(r)) < 0)
        err_set(&e, rc, "no memory to measure %u nodes", r->n);
    if (rc < 0)
        run_free(r);
    else {
        str_copy(r->principal, sizeof r->principal, rpc_peer(call)->principal);
        rc = run_begin(r, &e);
    }
    if (rc < 0) {
        rpc_fail(call, &e);
        return;
    }
    r->call = call;
    rpc_on_cancel(call, nobody_waits, r);
    progress(r, NULL);
    if (rc == 1)
        run_next(r);
}

/* ---- by itself ---- */

static bool settled(const struct coord *c, const struct topo_node *n)
{
    return n->user && n->state == TOPO_CONNECTED &&
           clock_ns(c->clock) - n->connected_ns >= c->cfg.net_settle_ns;
}

static bool anything(const struct net_run *r, struct tourney_pair *t)
{
    for (uint32_t k = 0; k < r->rounds; k++)
        for (uint32_t i = tourney_round(r->n, r->round[k], t); i > 0; i--)
            if (wanted(r, r->node[t[i - 1].a], r->node[t[i - 1].b]))
                return true;
    return false;
}

void net_tick(struct coord *c)
{
    uint64_t now = clock_ns(c->clock);
    if (!c->cfg.net_refresh_ns || c->net->stopping || c->net->runs || now < c->net->look_ns)
        return;
    c->net->look_ns = now + LOOK_NS;
    struct net_run *r = run_new(c, topo_count(c->topo));
    struct err e;
    for (size_t i = 0; r && i < topo_count(c->topo); i++) {
        const struct topo_node *n = topo_at(c->topo, i);
        if (settled(c, n) && run_add(r, n->name, &e) < 0)
            break;
    }
    if (!r)
        return;
    struct tourney_pair *t = calloc(r->n / 2 + 1, sizeof *t);
    r->stale_only = true;
    bool any = t && r->n > 1 && run_rounds(r) == ST_OK && anything(r, t);
    free(t);
    if (!any) {
        run_free(r);
        return;
    }
    str_copy(r->principal, sizeof r->principal, "coordinator");
    if (run_begin(r, &e) == 1)
        run_next(r);
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
        run_free(r);
    }
    netmap_free(c->net->map);
    free(c->net);
    c->net = NULL;
}
