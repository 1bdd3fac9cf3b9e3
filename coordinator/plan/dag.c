/*
 * Models that are no chain: branch and bound over assignments of layers to devices, in topological order.
 * Every partial assignment is bounded from below by what it already costs (layers, opened stages, hops, which
 * only grow) plus the fastest device for each layer to come. Exact when it ends within the work limit.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

#define DAG_LAYERS 4096u /* deepest recursion */

struct dag {
    const struct prob *p;
    struct budget *b;
    size_t D, L;
    double *least;     /* D × L: least time of a layer on a device, segments shared out */
    double *rest_s;    /* L + 1: sum of the fastest times from i on */
    double *rest_most; /* L + 1: largest fastest time from i on */
    double *rest_bytes;
    uint32_t *on, *best_on, *group;  /* group: the layer whose device this one shares, or INST_NOBODY */
    double *own, *bytes, *act, *hop; /* scratch of bound(): D, D, D, (D+1)² */
    uint32_t *mark;                  /* D × L stamps */
    uint32_t stamp;
    unsigned char *state; /* D, of the circle check */
    double best;
    bool proof;
    uint64_t work_left, cost; /* of one node, in states */
};

static double least_s(const struct inst *in, size_t d, size_t i)
{
    const struct cluster_device *cd = &in->c->devices[in->dev[d]];
    if (!cd->has_segment || in->m->layers[in->layer[i]].type != LAYER_BLOCK)
        return in->t[d * in->L + i];
    double share = INFINITY;
    for (size_t k = 0; k < cd->nsegment; k++) {
        double s = cd->speed_factor * cd->segment_s[k] / (double)(k + 1);
        share = s < share ? s : share;
    }
    return share;
}

/* Is there a circle among the stages through u? Depth first over the hop matrix. */
static bool circle(const struct dag *g, size_t u)
{
    g->state[u] = 1;
    for (size_t v = 0; v < g->D; v++)
        if (g->hop[u * (g->D + 1) + v] >= 0 && (g->state[v] == 1 || (g->state[v] == 0 && circle(g, v))))
            return true;
    g->state[u] = 2;
    return false;
}

static void gather(struct dag *g, size_t n)
{
    const struct inst *in = g->p->in;
    memset(g->own, 0, g->D * sizeof *g->own);
    memset(g->act, 0, g->D * sizeof *g->act);
    memset(g->state, 0, g->D);
    for (size_t i = 0; i < (g->D + 1) * (g->D + 1); i++)
        g->hop[i] = -1;
    for (size_t d = 0; d < g->D; d++)
        g->bytes[d] = -1;
    if (++g->stamp == 0) {
        memset(g->mark, 0, g->D * g->L * sizeof *g->mark);
        g->stamp = 1;
    }
    for (size_t i = 0; i < n; i++) {
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        size_t d = g->on[i];
        g->bytes[d] = (g->bytes[d] < 0 ? 0 : g->bytes[d]) + l->weight_bytes + l->kv_bytes;
        g->act[d] = l->activation_bytes > g->act[d] ? l->activation_bytes : g->act[d];
        g->own[d] += g->least[d * g->L + i];
        if (l->ndeps == 0) {
            double *h = &g->hop[g->D * (g->D + 1) + d];
            *h = (*h < 0 ? 0 : *h) + l->input_bytes;
        }
        for (size_t k = 0; k < l->ndeps; k++) {
            uint32_t u = in->pos[l->deps[k]];
            uint32_t *mark = &g->mark[d * g->L + u];
            if (g->on[u] == d || *mark == g->stamp)
                continue;
            *mark = g->stamp;
            double *h = &g->hop[g->on[u] * (g->D + 1) + d];
            *h = (*h < 0 ? 0 : *h) + in->m->layers[l->deps[k]].output_bytes;
        }
    }
}

/* A lower bound for every way to go on from the first n layers as they are; INFINITY = there is none. */
static double bound(struct dag *g, size_t n)
{
    const struct inst *in = g->p->in;
    const struct prob *p = g->p;
    double latency = g->rest_s[n], slow = g->rest_most[n], ratio = 0, excess = 0, room = 0;
    gather(g, n);
    for (size_t d = 0; d < g->D; d++) {
        double into = 0, compute = in->open[d] + g->own[d], bytes = g->bytes[d] + g->act[d];
        room += in->cap[d] - (g->bytes[d] < 0 ? 0 : g->bytes[d]);
        if (g->bytes[d] < 0)
            continue;
        for (size_t s = 0; s <= g->D; s++) {
            double b = g->hop[s * (g->D + 1) + d];
            const struct inst_hop h = inst_hop(in, s, d);
            if (b < 0)
                continue;
            if (!h.ok)
                return INFINITY;
            into = h.half_rtt + b / h.rate > into ? h.half_rtt + b / h.rate : into;
            slow = b / h.rate > slow ? b / h.rate : slow;
        }
        if (in->rules & RULE_MEMORY && bytes > in->cap[d])
            return INFINITY;
        latency += compute + into;
        slow = compute > slow ? compute : slow;
        ratio = bytes / in->cap[d] > ratio ? bytes / in->cap[d] : ratio;
        excess += bytes > in->cap[d] ? bytes - in->cap[d] : 0;
        if (bytes > in->max_node || (g->state[d] == 0 && circle(g, d)))
            return INFINITY;
    }
    if (in->rules & RULE_MEMORY && g->rest_bytes[n] > room)
        return INFINITY;
    /* sums above may round up; the caps must not drop what meets them */
    if (slow > p->cap_bottleneck * (1 + 1e-12) || ratio > p->cap_ratio * (1 + 1e-12))
        return INFINITY;
    return p->kind == PROB_LATENCY      ? latency
           : p->kind == PROB_BOTTLENECK ? slow
           : p->kind == PROB_RATIO      ? ratio
                                        : excess;
}

static double leaf_excess(const struct inst *in, const struct eval *ev)
{
    double x = 0;
    for (size_t k = 0; k < ev->n; k++)
        if (ev->bytes[k] > in->cap[ev->dev[k]])
            x += ev->bytes[k] - in->cap[ev->dev[k]];
    return x;
}

static int leaf(struct dag *g)
{
    const struct prob *p = g->p;
    struct eval ev;
    int rc = eval_run(p->in, g->on, &ev);
    if (rc == ST_EINFEASIBLE)
        return ST_OK;
    if (rc < 0)
        return rc;
    double v = p->kind == PROB_LATENCY      ? ev.latency
               : p->kind == PROB_BOTTLENECK ? ev.bottleneck
               : p->kind == PROB_RATIO      ? ev.ratio
                                            : leaf_excess(p->in, &ev);
    if (ev.bottleneck <= p->cap_bottleneck && ev.ratio <= p->cap_ratio && v < g->best) {
        g->best = v;
        memcpy(g->best_on, g->on, g->L * sizeof *g->on);
    }
    eval_fini(&ev);
    return ST_OK;
}

struct pick {
    double bound;
    uint32_t d;
};
static int by_pick(const void *x, const void *y)
{
    const struct pick *a = x, *b = y;
    if (a->bound != b->bound)
        return a->bound < b->bound ? -1 : 1;
    return a->d < b->d ? -1 : a->d > b->d;
}

static int descend(struct dag *g, size_t i)
{
    if (i == g->L)
        return leaf(g);
    if (g->work_left < g->cost || !budget_spend(g->b, g->cost)) {
        g->proof = false;
        return ST_OK;
    }
    g->work_left -= g->cost;
    struct pick *v = malloc(g->D * sizeof *v);
    size_t n = 0;
    if (!v)
        return ST_ENOMEM;
    uint32_t pin = g->p->in->pin[i], with = g->group[i] == INST_NOBODY ? INST_NOBODY : g->on[g->group[i]];
    for (uint32_t d = 0; d < g->D; d++) {
        if ((pin != INST_NOBODY && pin != d) || (with != INST_NOBODY && with != d))
            continue;
        g->on[i] = d;
        double x = bound(g, i + 1);
        if (x < INFINITY && x < g->best)
            v[n++] = (struct pick){x, d};
    }
    qsort(v, n, sizeof *v, by_pick);
    int rc = ST_OK;
    for (size_t k = 0; k < n && rc == ST_OK && v[k].bound < g->best; k++) {
        g->on[i] = v[k].d;
        rc = descend(g, i + 1);
    }
    free(v);
    return rc;
}

static void fill_rest(struct dag *g)
{
    const struct inst *in = g->p->in;
    for (size_t i = g->L; i-- > 0;) {
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        double fast = INFINITY;
        for (size_t d = 0; d < g->D; d++) {
            double s = g->least[d * g->L + i] = least_s(in, d, i);
            fast = s < fast ? s : fast;
        }
        g->rest_s[i] = g->rest_s[i + 1] + fast;
        g->rest_most[i] = fast > g->rest_most[i + 1] ? fast : g->rest_most[i + 1];
        g->rest_bytes[i] = g->rest_bytes[i + 1] + l->weight_bytes + l->kv_bytes;
        g->group[i] = INST_NOBODY;
    }
    for (size_t k = 0; in->r && (in->rules & RULE_TOGETHER) && k < in->r->ntogether; k++) {
        const struct request_group *t = &in->r->together[k];
        uint32_t first = INST_NOBODY;
        for (size_t i = 0; i < t->n; i++)
            first = in->pos[t->layers[i]] < first ? in->pos[t->layers[i]] : first;
        for (size_t i = 0; i < t->n; i++) /* a layer of two groups keeps one here; the leaf checks both */
            if (in->pos[t->layers[i]] != first)
                g->group[in->pos[t->layers[i]]] = first;
    }
}

static void dag_fini(struct dag *g)
{
    free(g->least);
    free(g->rest_s);
    free(g->rest_most);
    free(g->rest_bytes);
    free(g->on);
    free(g->group);
    free(g->own);
    free(g->bytes);
    free(g->act);
    free(g->hop);
    free(g->mark);
    free(g->state);
}

static int dag_init(struct dag *g, const struct prob *p, struct budget *b, struct solution *s)
{
    size_t D = p->in->D, L = p->in->L;
    *g = (struct dag){.p = p, .b = b, .D = D, .L = L, .best_on = s->on, .best = INFINITY, .proof = true};
    g->work_left = b->work_left / 2;
    b->work_left -= g->work_left;
    g->least = calloc(D * L, sizeof *g->least);
    g->rest_s = calloc(L + 1, sizeof *g->rest_s);
    g->rest_most = calloc(L + 1, sizeof *g->rest_most);
    g->rest_bytes = calloc(L + 1, sizeof *g->rest_bytes);
    g->on = calloc(L, sizeof *g->on);
    g->group = calloc(L, sizeof *g->group);
    g->own = calloc(D, sizeof *g->own);
    g->bytes = calloc(D, sizeof *g->bytes);
    g->act = calloc(D, sizeof *g->act);
    g->hop = calloc((D + 1) * (D + 1), sizeof *g->hop);
    g->mark = calloc(D * L, sizeof *g->mark);
    g->state = calloc(D, 1);
    if (!g->least || !g->rest_s || !g->rest_most || !g->rest_bytes || !g->on || !g->group || !g->own ||
        !g->bytes || !g->act || !g->hop || !g->mark || !g->state)
        return ST_ENOMEM;
    g->cost = 1 + D * (L + D * D) / 256;
    fill_rest(g);
    return ST_OK;
}

int dag_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    struct dag g;
    if (p->in->L > DAG_LAYERS)
        return ST_ELIMIT;
    int rc = dag_init(&g, p, b, s);
    double root = rc == ST_OK ? bound(&g, 0) : 0;
    if (rc == ST_OK && root < INFINITY)
        rc = descend(&g, 0);
    if (rc == ST_OK && b->stop == ST_ECANCELED)
        rc = ST_ECANCELED;
    b->work_left += g.work_left;
    root *= 1 - 1e-12; /* the bound is a sum in another order than the plan's */
    if (g.best <= root)
        g.proof = true;
    s->value = g.best;
    s->proven = g.proof;
    s->bound = g.proof || root > g.best ? g.best : root;
    s->solver = "search";
    dag_fini(&g);
    return rc;
}
