/*
 * Many devices in few nodes, layers all alike: the site program. Within a node the best way to hold k layers
 * is a knapsack over its devices; between nodes the bitmask runs over nodes, each with its knapsack as a
 * table of segments. That visits every node once, which loses nothing when coming back never pays: checked
 * below for every pair of neighbours.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

struct site {
    const struct prob *p;
    size_t D, L, J;
    uint32_t *node;   /* J: of the cluster */
    uint32_t *first;  /* J + 1: into list */
    uint32_t *list;   /* devices by site */
    double *cost;     /* j, k: least seconds to hold k layers there, hops inside included */
    uint16_t *choice; /* device in list order, k: layers it takes when the devices up to it hold k */
    struct inst agg;
};

bool inst_alike(const struct inst *in)
{
    const struct model_layer *a = &in->m->layers[in->layer[0]];
    for (size_t i = 0; i < in->L; i++) {
        const struct model_layer *b = &in->m->layers[in->layer[i]];
        if (a->type != b->type || a->weight_bytes != b->weight_bytes || a->kv_bytes != b->kv_bytes ||
            a->activation_bytes != b->activation_bytes || a->flops != b->flops ||
            a->read_bytes != b->read_bytes || a->output_bytes != b->output_bytes || in->glued[i] ||
            in->pin[i] != INST_NOBODY)
            return false;
    }
    return true;
}

static double between(const struct site *q, size_t i, size_t j)
{
    const struct inst *in = q->p->in;
    struct inst_hop h =
        in->hop[(i < q->J ? q->node[i] : in->N) * (in->N + 1) + (j < q->J ? q->node[j] : in->N)];
    return h.ok ? h.half_rtt + inst_cut_bytes(in, in->L) / h.rate : INFINITY;
}

/* From k to j and on to m is never better than to have done j's work on the first visit. */
static bool once_is_enough(const struct site *q)
{
    for (size_t j = 0; j < q->J; j++) {
        double inside = between(q, j, j);
        for (size_t k = 0; k < q->J; k++)
            for (size_t m = 0; m <= q->J; m++)
                if (k != j && m != j) {
                    double direct = between(q, k, m); /* k = m: the two stays of k are joined inside it */
                    if (!(inside + direct <= between(q, k, j) + between(q, j, m)))
                        return false;
                }
    }
    return true;
}

static int collect(struct site *q)
{
    const struct inst *in = q->p->in;
    uint32_t *at = malloc((in->N + 1) * sizeof *at);
    q->node = malloc((INST_EXACT_DEVICES + 1) * sizeof *q->node);
    q->first = calloc(INST_EXACT_DEVICES + 2, sizeof *q->first);
    q->list = malloc(q->D * sizeof *q->list);
    int rc = at && q->node && q->first && q->list ? ST_OK : ST_ENOMEM;
    for (size_t n = 0; rc == ST_OK && n < in->N; n++)
        at[n] = INST_NOBODY;
    for (size_t d = 0; rc == ST_OK && d < q->D; d++)
        if (at[in->node[d]] == INST_NOBODY) {
            if (q->J == INST_EXACT_DEVICES)
                rc = ST_ELIMIT;
            else {
                q->node[q->J] = in->node[d];
                at[in->node[d]] = (uint32_t)q->J++;
            }
        }
    size_t n = 0;
    for (size_t j = 0; rc == ST_OK && j < q->J; j++) {
        q->first[j] = (uint32_t)n;
        for (size_t d = 0; d < q->D; d++)
            if (at[in->node[d]] == j)
                q->list[n++] = (uint32_t)d;
    }
    if (rc == ST_OK)
        q->first[q->J] = (uint32_t)n;
    free(at);
    return rc;
}

static int knapsacks(struct site *q)
{
    const struct inst *in = q->p->in;
    size_t L = q->L, W = L + 1;
    double *next = malloc(W * sizeof *next), *run = malloc(W * sizeof *run);
    q->cost = malloc(q->J * W * sizeof *q->cost);
    q->choice = calloc(q->D * W, sizeof *q->choice);
    int rc = next && run && q->cost && q->choice ? ST_OK : ST_ENOMEM;
    for (size_t j = 0; rc == ST_OK && j < q->J; j++) {
        double *f = &q->cost[j * W], inside = between(q, j, j);
        for (size_t k = 0; k <= L; k++)
            f[k] = k ? INFINITY : 0;
        for (size_t i = q->first[j]; i < q->first[j + 1]; i++) {
            size_t d = q->list[i], most = inst_last(in, d, 0), top = 0;
            for (size_t k = 1; k <= most; k++)
                run[k] = inst_run(in, d, 0, k) + inside;
            memcpy(next, f, W * sizeof *f);
            while (top < L && f[top + 1] < INFINITY)
                top++;
            for (size_t k = 0; k <= top; k++)
                for (size_t x = 1; x <= most && k + x <= L; x++)
                    if (f[k] + run[x] < next[k + x]) {
                        next[k + x] = f[k] + run[x];
                        q->choice[i * W + k + x] = (uint16_t)x;
                    }
            memcpy(f, next, W * sizeof *f);
        }
        for (size_t k = 1; k <= L; k++)
            f[k] -= inside; /* one hop fewer than stages */
    }
    free(next);
    free(run);
    return rc;
}

static int aggregate(struct site *q)
{
    const struct inst *in = q->p->in;
    struct inst *a = &q->agg;
    size_t J = q->J, L = q->L, W = L + 1;
    *a = *in;
    a->D = a->N = J;
    a->lean = false;
    a->table = true;
    a->own = NULL;
    a->dev = calloc(J, sizeof *a->dev);
    a->node = calloc(J, sizeof *a->node);
    a->cap = calloc(J, sizeof *a->cap);
    a->open = calloc(J, sizeof *a->open);
    a->t = calloc(J * L, sizeof *a->t);
    a->hop = calloc((J + 1) * (J + 1), sizeof *a->hop);
    a->run = malloc(J * L * W * sizeof *a->run);
    a->last = calloc(J * L, sizeof *a->last);
    if (!a->dev || !a->node || !a->cap || !a->open || !a->t || !a->hop || !a->run || !a->last)
        return ST_ENOMEM;
    for (size_t i = 0; i <= J; i++)
        for (size_t j = 0; j <= J; j++)
            a->hop[i * (J + 1) + j] =
                in->hop[(i < J ? q->node[i] : in->N) * (in->N + 1) + (j < J ? q->node[j] : in->N)];
    for (size_t j = 0; j < J; j++) {
        const double *f = &q->cost[j * W];
        double share = INFINITY;
        size_t most = 0;
        for (size_t k = 1; k <= L; k++)
            if (f[k] < INFINITY) {
                share = fmin(share, f[k] / (double)k);
                most = k;
            }
        a->dev[j] = in->dev[q->list[q->first[j]]];
        a->node[j] = (uint32_t)j;
        a->cap[j] = INFINITY;
        for (size_t l = 0; l < L; l++) {
            a->t[j * L + l] = share;
            a->last[j * L + l] = most ? (uint32_t)(l + most < L ? l + most : L) : 0;
            for (size_t b = 0; b <= L; b++)
                a->run[(j * L + l) * W + b] = b > l ? f[b - l] : INFINITY;
        }
    }
    return ST_OK;
}

/* Layers from l on, `k` of them in site j, handed to its devices. */
static void spread(const struct site *q, size_t j, size_t l, size_t k, uint32_t *on)
{
    for (size_t i = q->first[j + 1]; i-- > q->first[j] && k > 0;) {
        size_t x = q->choice[i * (q->L + 1) + k];
        for (size_t n = 0; n < x; n++)
            on[l++] = q->list[i];
        k -= x;
    }
}

static void site_fini(struct site *q)
{
    free(q->node);
    free(q->first);
    free(q->list);
    free(q->cost);
    free(q->choice);
    free(q->agg.dev);
    free(q->agg.node);
    free(q->agg.cap);
    free(q->agg.open);
    free(q->agg.t);
    free(q->agg.hop);
    free(q->agg.run);
    free(q->agg.last);
}

int site_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    const struct inst *in = p->in;
    struct site q = {.p = p, .D = in->D, .L = in->L};
    if (p->kind != PROB_LATENCY || p->cap_bottleneck < INFINITY || p->cap_ratio < INFINITY || !in->hop ||
        in->coupled || in->max_stages < in->D || in->min_nodes > 1 || !inst_alike(in))
        return ST_ELIMIT;
    int rc = collect(&q);
    if (rc == ST_OK && !once_is_enough(&q))
        rc = ST_ELIMIT;
    if (rc == ST_OK)
        rc = knapsacks(&q);
    if (rc == ST_OK)
        rc = aggregate(&q);
    uint32_t *on = malloc(q.L * sizeof *on);
    if (rc == ST_OK && !on)
        rc = ST_ENOMEM;
    if (rc == ST_OK) {
        struct prob sub = *p;
        struct solution t = {.limit = s->limit, .on = on};
        sub.in = &q.agg;
        rc = bitmask_solve(&sub, b, &t);
        if (rc == ST_OK) {
            s->value = t.value;
            s->bound = t.bound;
            s->proven = true;
            s->solver = "sites";
            for (size_t l = 0, m = 0; t.value < INFINITY && l < q.L; l = m) {
                while (m < q.L && on[m] == on[l])
                    m++;
                spread(&q, on[l], l, m - l, s->on);
            }
        }
    }
    free(on);
    site_fini(&q);
    return rc;
}
