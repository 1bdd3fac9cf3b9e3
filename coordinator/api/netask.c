/* What to measure and when: at somebody's wish, or because figures are old or in doubt. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/netrun.h"
#include "coordinator/topology/tourney.h"

#define SAMPLE_ROUNDS 16u
#define RUNS_MAX 8u
#define LOOK_NS (5 * NS_PER_S) /* between two looks for stale links */

/* ---- beginning ---- */

static int run_rounds(struct net_run *r)
{
    uint32_t all = tourney_rounds(r->n);
    r->rounds = r->n > ALL_PAIRS_MAX ? SAMPLE_ROUNDS : all;
    r->round = calloc(r->rounds + 1, sizeof *r->round);
    if (!r->round)
        return ST_ENOMEM;
    tourney_sample(all, r->rounds, r->c->rng, r->round);
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
        net_run_free(r);
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
        net_run_free(r);
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
    net_run_progress(r, NULL);
    if (rc == 1)
        net_run_next(r);
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
            if (net_run_wants(r, r->node[t[i - 1].a], r->node[t[i - 1].b]))
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
        net_run_free(r);
        return;
    }
    str_copy(r->principal, sizeof r->principal, "coordinator");
    if (run_begin(r, &e) == 1)
        net_run_next(r);
}
