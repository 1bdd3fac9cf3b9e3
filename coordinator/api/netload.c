/* The map of links: from and to state.db, what transfers teach it, and what the planner gets of it. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "coordinator/api/net.h"

/* Above it the planner is given what was measured and the default for the rest, not each predicted pair. */
#define PLAN_NODES_MAX 256u

int net_init(struct coord *c)
{
    c->net = calloc(1, sizeof *c->net);
    return c->net ? netmap_new(&c->net->map, c->rng) : ST_ENOMEM;
}

/* ---- state.db ---- */

static enum net_source source_of(const char *name)
{
    for (int s = NET_MEASURED; s <= NET_PREDICTED; s++)
        if (!strcmp(net_source_name((enum net_source)s), name))
            return (enum net_source)s;
    return NET_UNKNOWN;
}

void net_fill_link(Strata__V1__NetLink *m, const char *from, const char *to, const struct net_link *l,
                   const struct net_path *p)
{
    strata__v1__net_link__init(m);
    m->from = (char *)from;
    m->to = (char *)to;
    if (l) {
        m->reached = l->reached;
        m->reason = (char *)l->reason;
        m->tried_us = l->tried_us;
        m->sent = l->sent;
        m->received = l->received;
        m->late = l->late;
        m->duplicates = l->duplicates;
        m->reordered = l->reordered;
        m->rtt_min_s = l->rtt_min_s;
        m->rtt_mean_s = l->rtt_mean_s;
        m->rtt_p50_s = l->rtt_p50_s;
        m->rtt_p99_s = l->rtt_p99_s;
        m->jitter_s = l->jitter_s;
        m->stddev_s = l->stddev_s;
        m->loss = l->loss;
        m->mtu = l->mtu;
        m->rate_source = (char *)net_source_name(l->rate_source);
        m->rate_us = l->rate_us;
        m->bytes_per_s = l->bytes_per_s;
        m->wire_bytes_per_s = l->wire_bytes_per_s;
        m->spread = l->spread;
        m->retransmits = l->retransmits;
        m->rate_reason = (char *)l->rate_reason;
        m->disputed = l->disputed;
    }
    if (p) {
        m->path_rtt_source = (char *)net_source_name(p->rtt_source);
        m->path_rate_source = (char *)net_source_name(p->rate_source);
        m->path_rtt_s = p->rtt_s;
        m->path_bytes_per_s = p->bytes_per_s;
        m->confidence = p->confidence;
        m->unreachable = p->unreachable;
    }
}

static int take_link(void *arg, const struct store_net *s)
{
    struct coord *c = arg;
    struct net_link *l;
    Strata__V1__NetLink *m = strata__v1__net_link__unpack(NULL, s->doc_len, s->doc);
    int rc = m ? netmap_link(c->net->map, s->from, s->to, &l) : ST_EPROTO;
    if (rc == ST_EPROTO || rc == ST_EINVAL) {
        LOG_W(&c->log, "net", "stored figures unreadable from=%.63s to=%.63s: measured anew", s->from, s->to);
        rc = ST_OK;
    } else if (rc == ST_OK) {
        l->reached = m->reached;
        str_copy(l->reason, sizeof l->reason, m->reason);
        l->tried_us = m->tried_us;
        l->sent = m->sent;
        l->received = m->received;
        l->late = m->late;
        l->duplicates = m->duplicates;
        l->reordered = m->reordered;
        l->rtt_min_s = m->rtt_min_s;
        l->rtt_mean_s = m->rtt_mean_s;
        l->rtt_p50_s = m->rtt_p50_s;
        l->rtt_p99_s = m->rtt_p99_s;
        l->jitter_s = m->jitter_s;
        l->stddev_s = m->stddev_s;
        l->loss = m->loss;
        l->mtu = m->mtu;
        l->rate_source = source_of(m->rate_source);
        l->rate_us = m->rate_us;
        l->bytes_per_s = m->bytes_per_s;
        l->wire_bytes_per_s = m->wire_bytes_per_s;
        l->spread = m->spread;
        l->retransmits = m->retransmits;
        str_copy(l->rate_reason, sizeof l->rate_reason, m->rate_reason);
        l->disputed = m->disputed;
    }
    if (m)
        strata__v1__net_link__free_unpacked(m, NULL);
    return rc;
}

int net_load(struct coord *c, struct err *e)
{
    int rc = store_load_net(c->store, take_link, c, e);
    if (rc == ST_OK)
        netmap_relax(c->net->map, 32);
    return rc;
}

static uint64_t whole(double v)
{
    return v > 0 ? (uint64_t)(v + 0.5) : 0;
}

void net_store_link(struct store_txn *t, const struct net_link *l, bool rate_is_new)
{
    Strata__V1__NetLink m;
    net_fill_link(&m, l->from, l->to, l, NULL);
    size_t n = strata__v1__net_link__get_packed_size(&m);
    uint8_t *p = malloc(n ? n : 1);
    if (!p) {
        store_txn_fail(t, ST_ENOMEM);
        return;
    }
    strata__v1__net_link__pack(&m, p);
    store_txn_net_put(
        t,
        &(struct store_net){.from = l->from, .to = l->to, .doc = p, .doc_len = n, .updated_us = l->tried_us});
    free(p);
    bool good = l->reached && !l->disputed;
    store_txn_net_sample(
        t, &(struct store_net_sample){.from = l->from,
                                      .to = l->to,
                                      .time_us = l->tried_us > l->rate_us ? l->tried_us : l->rate_us,
                                      .failures = !good,
                                      .rates = good && rate_is_new,
                                      .rtt_sum_ns = good ? whole(l->rtt_p50_s * 1e9) : 0,
                                      .loss_sum_ppm = good ? whole(l->loss * 1e6) : 1000000,
                                      .rate_sum = good && rate_is_new ? whole(l->bytes_per_s) : 0});
}

/* ---- what changes it besides measurements ---- */

static int mark(struct net_link *l, void *arg)
{
    const char *node = arg;
    l->stale |= !strcmp(l->from, node) || !strcmp(l->to, node);
    return 0;
}

void net_node_up(struct coord *c, const struct topo_node *n)
{
    netmap_each(c->net->map, mark, (void *)n->name);
}

void net_passive(struct coord *c, const char *to, const Strata__V1__NetPassive *p)
{
    struct net_link *l;
    double rate = p->ns ? (double)p->bytes * 1e9 / (double)p->ns : 0;
    if (!(rate > 0 && rate < 1e12) || !topo_node(c->topo, p->from) ||
        netmap_link(c->net->map, p->from, to, &l) < 0 || l->disputed)
        return;
    /* A transfer is at least this fast, a test at best: more than the test says is news, and so is anything
     * when nothing is known. Far less puts the test's figure in doubt. */
    if (l->rate_source == NET_MEASURED && rate <= 1.3 * l->bytes_per_s) {
        l->stale |= rate < 0.5 * l->bytes_per_s;
        return;
    }
    l->rate_source = NET_PASSIVE;
    l->rate_us = clock_wall_us(c->clock);
    l->bytes_per_s = rate;
    l->wire_bytes_per_s = 0;
    l->spread = 0.3;
    l->rate_reason[0] = 0;
    struct store_txn *t = store_txn_new();
    if (t)
        net_store_link(t, l, true);
    if (!t || store_submit(c->store, t, NULL, NULL) < 0)
        LOG_W(&c->log, "net", "a transfer's rate was not stored from=%s to=%s", l->from, l->to);
}

/* ---- the planner ---- */

static const struct config_link *declared(const struct coord *c, const char *from, const char *to,
                                          bool *mirror)
{
    const struct config_link *back = NULL;
    for (unsigned i = 0; i < c->cfg.nlinks; i++) {
        const struct config_link *l = &c->cfg.links[i];
        if (!strcmp(l->from, from) && !strcmp(l->to, to)) {
            *mirror = false;
            return l;
        }
        if (!strcmp(l->from, to) && !strcmp(l->to, from))
            back = l;
    }
    *mirror = true;
    return back;
}

struct planning {
    struct coord *c;
    struct cluster *cl;
    struct net_view *view;
    bool must; /* some pair cannot talk: the default has to be spelt out for all others */
};

/* A figure that was predicted must be worth more than what the operator declared. */
static bool known(const struct net_path *p)
{
    return !p->unreachable && p->rtt_s > 0 && p->bytes_per_s > 0 && p->confidence > 0;
}

static int add_pair(struct planning *q, uint32_t i, uint32_t j)
{
    const char *from = q->cl->nodes[i], *to = q->cl->nodes[j];
    struct net_path p, back;
    bool mirror;
    net_view_path(q->view, i, j, &p);
    net_view_path(q->view, j, i, &back);
    if (p.unreachable || back.unreachable)
        return ST_OK; /* bytes are pulled over a connection the receiver makes: both ways must work */
    const struct config_link *d = declared(q->c, from, to, &mirror);
    bool measured = p.rate_source == NET_MEASURED || p.rate_source == NET_PASSIVE;
    if (known(&p) && (measured || !d))
        return cluster_add_link(q->cl, from, to, &(struct cluster_rate){p.bytes_per_s, p.rtt_s});
    if (d)
        return cluster_add_link(q->cl, from, to,
                                &(struct cluster_rate){d->bytes_per_s, (double)d->rtt_ns / 1e9});
    if (q->must && q->c->cfg.default_bytes_per_s > 0)
        return cluster_add_link(
            q->cl, from, to,
            &(struct cluster_rate){q->c->cfg.default_bytes_per_s, (double)q->c->cfg.default_rtt_ns / 1e9});
    return ST_OK;
}

static int add_all(struct coord *c, struct cluster *cl)
{
    struct planning q = {.c = c, .cl = cl};
    uint32_t n = (uint32_t)cl->nnodes;
    struct net_path p;
    int rc = net_view_new(&q.view, c->net->map, (const char *const *)cl->nodes, n, clock_wall_us(c->clock));
    for (uint32_t i = 0; rc == ST_OK && i < n && !q.must; i++)
        for (uint32_t j = 0; j < n && !q.must; j++)
            if (i != j) {
                net_view_path(q.view, i, j, &p);
                q.must = p.unreachable;
            }
    for (uint32_t i = 0; rc == ST_OK && i < n; i++)
        for (uint32_t j = 0; rc == ST_OK && j < n; j++)
            if (i != j)
                rc = add_pair(&q, i, j);
    net_view_free(q.view);
    if (rc == ST_OK && !q.must && c->cfg.default_bytes_per_s > 0) {
        cl->has_default_link = true;
        cl->default_link =
            (struct cluster_rate){c->cfg.default_bytes_per_s, (double)c->cfg.default_rtt_ns / 1e9};
    }
    return rc;
}

/* Of very many nodes: the links that were measured, and the default. */
static int add_measured(struct coord *c, struct cluster *cl)
{
    int rc = ST_OK;
    for (uint32_t i = 0; rc == ST_OK && i < cl->nnodes; i++)
        for (uint32_t j = 0; rc == ST_OK && j < cl->nnodes; j++) {
            const struct net_link *l = i == j ? NULL : netmap_find(c->net->map, cl->nodes[i], cl->nodes[j]);
            if (l && l->reached && !l->disputed && l->received && l->bytes_per_s > 0)
                rc = cluster_add_link(cl, cl->nodes[i], cl->nodes[j],
                                      &(struct cluster_rate){l->bytes_per_s, l->rtt_p50_s});
        }
    cl->has_default_link = c->cfg.default_bytes_per_s > 0;
    cl->default_link = (struct cluster_rate){c->cfg.default_bytes_per_s, (double)c->cfg.default_rtt_ns / 1e9};
    return rc;
}

int api_links(void *ctx, struct cluster *cl)
{
    struct coord *c = ctx;
    return cl->nnodes <= PLAN_NODES_MAX ? add_all(c, cl) : add_measured(c, cl);
}
