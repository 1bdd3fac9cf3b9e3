/*
 * Chains on more devices than the exact programs take. Latency: the chain relaxed so that devices may be used
 * again, with a price on each use that is moved until no device is wanted twice (a Lagrangian: every price
 * gives a lower bound); a beam guided by the priced cost to go makes plans; devices that no better plan can
 * use are left out, and when few are left the exact program ends it. Largest values: how far each device
 * reaches within a value, taken greedily, against the bound that all of them together must reach the end.
 * Work is counted, never timed, so that results are the same everywhere unless a time limit is set.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

#define ROUNDS 80
#define BEAM 16u
#define WORK_MAX 600000000.0 /* innermost steps */
#define CLOSE 1e-4           /* a gap not worth more work */

struct node {
    double cost, score; /* real; with prices and the cost to go */
    uint32_t parent, e, l;
};
struct large {
    const struct prob *p;
    struct budget *b;
    size_t D, L, W, N;
    uint32_t *live; /* devices that still matter, ascending */
    size_t n_live;
    uint32_t *home; /* nodes that hold one of them */
    size_t n_home;
    bool *is_home;          /* N */
    double *price;          /* D */
    double *before, *after; /* D × W, priced */
    uint32_t *pred;         /* D × W: start of the stage that ends there */
    double *one, *two;      /* N: least values at the position at hand */
    uint32_t *who;          /* N: device of the least */
    double *reach;          /* N: least value and hop from another node */
    double *link, *self, base,
        hop_bytes;     /* seconds of hops of that size: listed links, inside a node, others */
    struct node *beam; /* W × BEAM */
    uint32_t *n_beam;  /* W */
    uint32_t *visits;  /* D */
    double best, bound, work;
    uint32_t *on;
};

static void large_fini(struct large *q)
{
    free(q->live);
    free(q->home);
    free(q->price);
    free(q->before);
    free(q->after);
    free(q->pred);
    free(q->one);
    free(q->two);
    free(q->who);
    free(q->reach);
    free(q->link);
    free(q->self);
    free(q->is_home);
    free(q->beam);
    free(q->n_beam);
    free(q->visits);
}

static int large_init(struct large *q, const struct prob *p, struct budget *b, uint32_t *on)
{
    size_t D = p->in->D, W = p->in->L + 1, N = p->in->N;
    *q = (struct large){.p = p, .b = b, .D = D, .L = p->in->L, .W = W, .N = N, .best = INFINITY, .on = on};
    q->hop_bytes = -1;
    q->live = malloc(D * sizeof *q->live);
    q->home = malloc((N + 1) * sizeof *q->home);
    q->price = calloc(D, sizeof *q->price);
    q->before = malloc(D * W * sizeof *q->before);
    q->after = malloc(D * W * sizeof *q->after);
    q->pred = malloc(D * W * sizeof *q->pred);
    q->one = malloc((N + 1) * sizeof *q->one);
    q->two = malloc((N + 1) * sizeof *q->two);
    q->who = malloc((N + 1) * sizeof *q->who);
    q->reach = malloc((N + 1) * sizeof *q->reach);
    q->beam = malloc(W * BEAM * sizeof *q->beam);
    q->n_beam = malloc(W * sizeof *q->n_beam);
    q->visits = malloc(D * sizeof *q->visits);
    q->link = malloc((p->in->c->nlinks + 1) * sizeof *q->link);
    q->self = malloc((N + 1) * sizeof *q->self);
    q->is_home = calloc(N + 1, sizeof *q->is_home);
    if (!q->live || !q->home || !q->price || !q->before || !q->after || !q->pred || !q->one || !q->two ||
        !q->who || !q->reach || !q->beam || !q->n_beam || !q->visits || !q->link || !q->self || !q->is_home)
        return ST_ENOMEM;
    q->n_live = D;
    for (size_t d = 0; d < D; d++)
        q->live[d] = (uint32_t)d;
    size_t bytes = D * W * 28 + W * BEAM * sizeof *q->beam + p->in->c->nlinks * sizeof *q->link;
    b->table_bytes = bytes > b->table_bytes ? bytes : b->table_bytes;
    return ST_OK;
}

static double seconds(const struct prob *p, struct inst_hop h, double bytes)
{
    double s = bytes / h.rate;
    return !h.ok || s > p->cap_bottleneck ? INFINITY : h.half_rtt + s;
}

/* Seconds of all hops of that size. */
static void set_hop(struct large *q, double bytes)
{
    const struct inst *in = q->p->in;
    const struct cluster *c = in->c;
    bool linked = in->rules & RULE_LINKS;
    if (bytes == q->hop_bytes)
        return;
    q->hop_bytes = bytes;
    q->base = linked ? INFINITY : 0;
    if (linked && c->has_default_link)
        q->base = seconds(
            q->p, (struct inst_hop){c->default_link.rtt_s / 2, c->default_link.bytes_per_s, true}, bytes);
    for (size_t i = 0; i < c->nlinks; i++)
        q->link[i] =
            linked
                ? seconds(q->p,
                          (struct inst_hop){c->links[i].rate.rtt_s / 2, c->links[i].rate.bytes_per_s, true},
                          bytes)
                : 0;
    for (uint32_t n = 0; n < q->N; n++)
        q->self[n] = seconds(q->p, inst_path(in, n, n), bytes);
    q->work += (double)(q->N + c->nlinks);
}

static void find_homes(struct large *q)
{
    q->n_home = 0;
    memset(q->is_home, 0, (q->N + 1) * sizeof *q->is_home);
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t n = q->p->in->node[q->live[i]];
        if (!q->is_home[n])
            q->home[q->n_home++] = n;
        q->is_home[n] = true;
    }
}

/* Least value[d] by node at position m, the two least, and from them the least over a hop to each node. With
 * into the hop goes from there to the node, else from the node to there. */
static void gather(struct large *q, const double *value, size_t m, bool into)
{
    const struct inst *in = q->p->in;
    for (size_t i = 0; i < q->n_home; i++) {
        q->one[q->home[i]] = q->two[q->home[i]] = INFINITY;
        q->who[q->home[i]] = INST_NOBODY;
    }
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t d = q->live[i], n = in->node[d];
        double v = value[d * q->W + m];
        if (v < q->one[n]) {
            q->two[n] = q->one[n];
            q->one[n] = v;
            q->who[n] = d;
        } else if (v < q->two[n]) {
            q->two[n] = v;
        }
    }
    /* A listed link that is slower than the others is taken as one of them: a bound may be too low. */
    size_t best = q->N;
    double second = INFINITY;
    q->one[q->N] = INFINITY;
    for (size_t i = 0; i < q->n_home; i++) {
        size_t n = q->home[i];
        if (q->one[n] < q->one[best]) {
            second = q->one[best];
            best = n;
        } else if (q->one[n] < second) {
            second = q->one[n];
        }
    }
    for (size_t i = 0; i < q->n_home; i++)
        q->reach[q->home[i]] = (q->home[i] == best ? second : q->one[best]) + q->base;
    const struct cluster *c = in->c;
    for (size_t i = 0; i < c->nlinks; i++) {
        uint32_t from = into ? c->links[i].from : c->links[i].to,
                 to = into ? c->links[i].to : c->links[i].from;
        double v = q->is_home[from] && q->is_home[to] && from != to ? q->one[from] + q->link[i] : INFINITY;
        if (v < q->reach[to])
            q->reach[to] = v;
    }
    q->work += (double)(q->n_live + c->nlinks);
}

/* After gather: the least way into (or out of) device e. */
static double least_at(const struct large *q, size_t e)
{
    size_t n = q->p->in->node[e];
    double same = q->who[n] == e ? q->two[n] : q->one[n];
    same += q->self[n];
    return same < q->reach[n] ? same : q->reach[n];
}

/* The relaxed chain with prices, forwards. Returns its least cost; *end is its last device. */
static double forwards(struct large *q, size_t *end)
{
    const struct prob *p = q->p;
    size_t L = q->L, W = q->W;
    double least = INFINITY;
    for (size_t i = 0; i < q->n_live; i++)
        for (size_t m = 0; m <= L; m++)
            q->before[q->live[i] * W + m] = INFINITY;
    for (size_t l = 0; l < L; l++) {
        double bytes = inst_cut_bytes(p->in, l);
        if (l) {
            set_hop(q, bytes);
            gather(q, q->before, l, true);
        }
        for (size_t i = 0; i < q->n_live; i++) {
            size_t e = q->live[i], last = inst_last(p->in, e, l);
            double at = !last ? INFINITY : l ? least_at(q, e) : prob_hop(p, q->D, e, bytes);
            if (at == INFINITY)
                continue;
            at += q->price[e];
            double *f = &q->before[e * W];
            q->work += (double)(last - l);
            for (size_t m = l + 1; m <= last; m++) {
                double v = at + prob_stage(p, e, l, m);
                if (v < f[m]) {
                    f[m] = v;
                    q->pred[e * W + m] = (uint32_t)l;
                }
            }
        }
    }
    for (size_t i = 0; i < q->n_live; i++) {
        size_t e = q->live[i];
        double v = q->before[e * W + L] + prob_hop(p, e, q->D, inst_cut_bytes(p->in, L));
        if (v < least) {
            least = v;
            *end = e;
        }
    }
    return least;
}

/* after[e][m]: the least priced cost of all that follows a stage on e that ends at m. before is not needed
 * any more for positions... it is kept: start costs go through a row of their own. */
static int backwards(struct large *q)
{
    const struct prob *p = q->p;
    size_t L = q->L, W = q->W;
    double *start = malloc(q->D * W * sizeof *start);
    if (!start)
        return ST_ENOMEM;
    for (size_t i = 0; i < q->D * W; i++)
        start[i] = q->after[i] = INFINITY;
    for (size_t m = L; m >= 1; m--) {
        double bytes = inst_cut_bytes(p->in, m);
        if (m < L) {
            set_hop(q, bytes);
            gather(q, start, m, false);
        }
        for (size_t i = 0; i < q->n_live; i++) {
            size_t e = q->live[i];
            double a = m == L ? prob_hop(p, e, q->D, bytes) : least_at(q, e);
            q->after[e * W + m] = a;
            for (size_t l = m; a < INFINITY && l-- > 0 && inst_last(p->in, e, l) >= m;) {
                double v = prob_stage(p, e, l, m) + a + q->price[e];
                start[e * W + l] = v < start[e * W + l] ? v : start[e * W + l];
                q->work++;
            }
        }
    }
    free(start);
    return ST_OK;
}

static bool used(const struct large *q, const struct node *v, uint32_t e)
{
    while (v->e != e && v->parent != INST_NOBODY)
        v = &q->beam[v->parent];
    return v->e == e;
}

static void keep(struct large *q, size_t m, struct node v)
{
    struct node *at = &q->beam[m * BEAM];
    uint32_t n = q->n_beam[m];
    if (n == BEAM && v.score >= at[n - 1].score)
        return;
    if (n < BEAM)
        q->n_beam[m] = ++n;
    size_t i = n - 1;
    for (; i > 0 && at[i - 1].score > v.score; i--)
        at[i] = at[i - 1];
    at[i] = v;
}

static void spread(struct large *q, const struct node *v, const struct node *from, size_t l)
{
    const struct prob *p = q->p;
    double bytes = inst_cut_bytes(p->in, l);
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t e = q->live[i];
        size_t last = inst_last(p->in, e, l);
        if (!last || (from && used(q, from, e)))
            continue;
        double at = (from ? from->cost : 0) + prob_hop(p, from ? from->e : q->D, e, bytes);
        double priced = (from ? from->score : 0) + q->price[e];
        if (at + priced >= q->best && at >= q->best)
            continue;
        for (size_t m = l + 1; m <= last; m++) {
            double cost = at + prob_stage(p, e, l, m), go = q->after[e * q->W + m];
            q->work++;
            double score = cost + priced + go;
            if (score < INFINITY && cost < q->best &&
                (q->n_beam[m] < BEAM || score < q->beam[m * BEAM + BEAM - 1].score))
                keep(q, m,
                     (struct node){cost, score, (uint32_t)(v ? v - q->beam : INST_NOBODY), e, (uint32_t)l});
        }
    }
}

/* A node's score above holds the cost to go; what is carried on is the prices alone. */
static void beam(struct large *q)
{
    memset(q->n_beam, 0, q->W * sizeof *q->n_beam);
    spread(q, NULL, NULL, 0);
    for (size_t l = 1; l < q->L; l++)
        for (uint32_t i = 0; i < q->n_beam[l]; i++) {
            const struct node *v = &q->beam[l * BEAM + i];
            struct node from = *v;
            from.score = v->score - v->cost - q->after[v->e * q->W + l];
            spread(q, v, &from, l);
        }
    for (uint32_t i = 0; i < q->n_beam[q->L]; i++) {
        const struct node *v = &q->beam[q->L * BEAM + i];
        double cost = v->cost + prob_hop(q->p, v->e, q->D, inst_cut_bytes(q->p->in, q->L));
        if (cost >= q->best)
            continue;
        q->best = cost;
        for (size_t m = q->L;; v = &q->beam[v->parent]) {
            for (size_t l = v->l; l < m; l++)
                q->on[l] = v->e;
            m = v->l;
            if (v->parent == INST_NOBODY)
                break;
        }
    }
}

/* How often the relaxed plan uses each device. */
static void count(struct large *q, size_t e)
{
    memset(q->visits, 0, q->D * sizeof *q->visits);
    for (size_t m = q->L; m > 0;) {
        size_t l = q->pred[e * q->W + m], next = e;
        q->visits[e]++;
        double bytes = inst_cut_bytes(q->p->in, l), least = INFINITY;
        for (size_t i = 0; l && i < q->n_live; i++) {
            size_t d = q->live[i];
            double v = q->before[d * q->W + l];
            if (d == e || !(v < least))
                continue;
            v += prob_hop(q->p, d, e, bytes);
            if (v < least) {
                least = v;
                next = d;
            }
        }
        e = next;
        m = l;
    }
}

/* Leaves out devices that no plan better than the best can use. */
static void thin(struct large *q, double prices)
{
    size_t n = 0;
    for (size_t i = 0; i < q->n_live; i++) {
        size_t e = q->live[i];
        double least = INFINITY;
        for (size_t m = 1; m <= q->L; m++)
            least = fmin(least, q->before[e * q->W + m] + q->after[e * q->W + m]);
        if (least - prices <= q->best * (1 + 1e-9))
            q->live[n++] = (uint32_t)e;
        else
            q->price[e] = 0;
    }
    q->n_live = n;
    find_homes(q);
}

/* Few devices are left: the exact program over them ends it. */
static int finish(struct large *q, bool *proven)
{
    const struct inst *in = q->p->in;
    uint32_t only[INST_EXACT_DEVICES], *on = malloc(q->L * sizeof *on);
    struct inst *sub = NULL;
    for (size_t i = 0; i < q->n_live; i++)
        only[i] = in->dev[q->live[i]];
    int rc =
        on ? inst_new(&sub, in->c, in->m, in->r, in->rules, only, q->n_live, q->b->memory_limit) : ST_ENOMEM;
    if (rc == ST_OK) {
        struct prob p = *q->p;
        struct solution s = {.limit = q->best * (1 + 1e-11), .on = on};
        p.in = sub;
        rc = exact_solve(&p, q->b, &s);
        *proven = rc == ST_OK;
        if (rc == ST_OK && s.value < q->best) {
            q->best = s.value;
            for (size_t l = 0; l < q->L; l++)
                q->on[l] = q->live[on[l]];
        }
    }
    inst_free(sub);
    free(on);
    return rc == ST_ELIMIT || rc == ST_EDEADLINE ? ST_OK : rc;
}

/* Moves the prices towards what the relaxed plan used too often. */
static void reprice(struct large *q, double value, double pace)
{
    double norm = 0;
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t e = q->live[i];
        double g = (double)q->visits[e] - 1;
        norm += g > 0 || q->price[e] > 0 ? g * g : 0;
    }
    double step = norm > 0 ? pace * (q->best - value) / norm : 0;
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t e = q->live[i];
        double g = (double)q->visits[e] - 1;
        if (g > 0 || q->price[e] > 0)
            q->price[e] = fmax(0, q->price[e] + step * g);
    }
}

static int by_latency(struct large *q, bool *proven)
{
    double pace = 1;
    int stale = 0, rc = ST_OK;
    find_homes(q);
    for (int i = 0; i < ROUNDS && q->work < WORK_MAX && budget_spend(q->b, 4096); i++) {
        size_t end = 0;
        double prices = 0, value = forwards(q, &end);
        for (size_t d = 0; d < q->D; d++)
            prices += q->price[d];
        value = (value - prices) * (1 - 1e-12);
        if (value == INFINITY) {
            q->bound = q->best;
            *proven = true;
            return ST_OK;
        }
        if (value > q->bound * (1 + 1e-5)) {
            q->bound = value;
            stale = 0;
        } else if (++stale >= 3) {
            pace /= 2;
            stale = 0;
        }
        count(q, end);
        if (i % 8 == 0 || i == ROUNDS - 1) {
            if ((rc = backwards(q)) < 0)
                return rc;
            beam(q);
            thin(q, prices);
        }
        if (q->best - q->bound <= CLOSE * q->best || pace < 1e-3)
            break;
        if (q->n_live <= INST_EXACT_DEVICES)
            return finish(q, proven);
        reprice(q, value, q->best < INFINITY ? pace : 0);
    }
    return ST_OK;
}

/* ---- largest values ---- */

static size_t reach_of(const struct prob *p, size_t e, size_t l, double v)
{
    size_t end = 0;
    for (size_t m = l + 1, last = inst_last(p->in, e, l); m <= last; m++) {
        double x = prob_stage(p, e, l, m);
        if (x <= v)
            end = m;
        else if (x < INFINITY && !p->in->c->devices[p->in->dev[e]].has_segment)
            break;
    }
    return end;
}

/* At each position takes a device whose reach is as near to `stride` layers as can be (0: as far as can be),
 * and among equals the one that could hold least elsewhere. */
static bool greedy(struct large *q, double v, const size_t *most, size_t stride, uint32_t *on)
{
    const struct prob *p = q->p;
    size_t last = q->D;
    memset(q->visits, 0, q->D * sizeof *q->visits);
    for (size_t l = 0; l < q->L;) {
        double bytes = inst_cut_bytes(p->in, l);
        size_t best = 0, pick = q->D, goal = stride ? stride : q->L;
        for (size_t e = 0; e < q->D; e++) {
            size_t could = most[e] < goal ? most[e] : goal;
            if (q->visits[e] || could < best || (could == best && pick < q->D && most[e] >= most[pick]))
                continue;
            size_t end = reach_of(p, e, l, v), take = end > l + goal ? goal : end ? end - l : 0;
            if (stride && take && (l + take > q->L || (p->in->glued[l + take < q->L ? l + take : 0])))
                take = end - l;
            if (!take || take < best || (take == best && pick < q->D && most[e] >= most[pick]))
                continue;
            if (prob_hop(p, last, e, bytes) > v ||
                (l + take == q->L && prob_hop(p, e, q->D, inst_cut_bytes(p->in, q->L)) > v))
                continue;
            best = take;
            pick = e;
        }
        q->work += (double)q->D;
        if (pick == q->D)
            return false;
        q->visits[pick] = 1;
        size_t end = reach_of(p, pick, l, v); /* what it can hold besides costs nothing */
        for (size_t stop = stride && most[pick] > stride ? l + best : end; l < stop; l++)
            on[l] = (uint32_t)pick;
        last = pick;
    }
    return true;
}

/* With a weight on each layer: can the runs of all devices together weigh as much as the chain? */
static bool carries(struct large *q, double v, const uint32_t *sum)
{
    size_t total = 0;
    for (size_t e = 0; e < q->D && total < sum[q->L]; e++) {
        uint32_t most = 0;
        for (size_t l = 0; l < q->L && sum[q->L] - sum[l] > most; l++) {
            size_t end = reach_of(q->p, e, l, v);
            most = end && sum[end] - sum[l] > most ? sum[end] - sum[l] : most;
        }
        total += most;
    }
    q->work += (double)q->D * (double)q->L;
    return total >= sum[q->L];
}

static int by_size(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static double size_of(const struct large *q, size_t i)
{
    const struct inst *in = q->p->in;
    double least = INFINITY;
    if (q->p->kind == PROB_RATIO)
        return inst_bytes(in, i, i + 1);
    for (size_t e = 0; e < q->D; e++)
        least = fmin(least, in->t[e * q->L + i]);
    return least;
}

/* Weights that only count the larger layers give bounds of their own: few devices may be able to hold those.
 */
static int heavy_bound(struct large *q, double hi)
{
    double *size = malloc(q->L * sizeof *size), *order = malloc(q->L * sizeof *order);
    uint32_t *sum = calloc(q->W, sizeof *sum);
    int rc = size && order && sum ? ST_OK : ST_ENOMEM;
    for (size_t i = 0; rc == ST_OK && i < q->L; i++)
        order[i] = size[i] = size_of(q, i);
    if (rc == ST_OK)
        qsort(order, q->L, sizeof *order, by_size);
    for (size_t part = 1; rc == ST_OK && part < 10; part++) {
        double from = order[q->L * part / 10], lo = q->bound, top = hi;
        for (size_t i = 0; i < q->L; i++)
            sum[i + 1] = sum[i] + (size[i] >= from);
        for (int i = 0; i < 30 && lo < top * (1 - 1e-6); i++) {
            double mid = i ? lo + (top - lo) / 2 : lo;
            if (carries(q, mid, sum))
                top = mid;
            else
                lo = mid;
            if (i == 0 && top == mid)
                break;
        }
        q->bound = lo > q->bound ? lo : q->bound;
    }
    free(size);
    free(order);
    free(sum);
    return rc;
}

static int attempt(struct large *q, double at, size_t *most, uint32_t *on, double *got)
{
    static const size_t strides[] = {0, 1, 2, 3};
    struct eval ev;
    *got = INFINITY;
    for (size_t e = 0; e < q->D; e++) {
        most[e] = 0;
        for (size_t l = 0; l + most[e] < q->L; l++) {
            size_t end = reach_of(q->p, e, l, at);
            most[e] = end > l + most[e] ? end - l : most[e];
        }
    }
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++) {
        if (!greedy(q, at, most, strides[i], on))
            continue;
        int rc = eval_run(q->p->in, on, &ev);
        if (rc < 0)
            return rc == ST_EINFEASIBLE ? ST_OK : rc;
        *got = q->p->kind == PROB_BOTTLENECK ? ev.bottleneck : ev.ratio;
        eval_fini(&ev);
        if (*got < q->best) {
            q->best = *got;
            memcpy(q->on, on, q->L * sizeof *on);
        }
        return ST_OK;
    }
    return ST_OK;
}

static int by_value(struct large *q)
{
    const struct prob *p = q->p;
    size_t *most = calloc(q->D, sizeof *most);
    uint32_t *on = malloc(q->L * sizeof *on);
    int rc = most && on ? ST_OK : ST_ENOMEM;
    q->bound = rc == ST_OK ? cover_bound(p) : 0;
    double lo = q->bound, hi = INFINITY, at = lo * (1 + 1e-12), got;
    for (int i = 0; rc == ST_OK && q->bound < INFINITY && i < 40 && budget_spend(q->b, 4096); i++) {
        rc = attempt(q, at, most, on, &got);
        if (got < INFINITY)
            hi = got < at ? got : at;
        else
            lo = at;
        if (hi <= lo * (1 + 1e-9))
            break;
        at = hi < INFINITY                           ? lo + (hi - lo) / 2
             : p->kind == PROB_RATIO && at * 1.2 > 1 ? 1
             : at > 0                                ? at * 1.2
                                                     : 1e-9;
    }
    if (rc == ST_OK && q->best < INFINITY && q->best > q->bound * (1 + 1e-9) && budget_spend(q->b, 4096))
        rc = heavy_bound(q, q->best);
    free(most);
    free(on);
    return rc;
}

int large_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    const struct inst *in = p->in;
    struct large q;
    bool proven = false;
    if (in->coupled || in->max_stages < in->D || in->min_nodes > 1 ||
        (p->kind != PROB_LATENCY && p->kind != PROB_BOTTLENECK && p->kind != PROB_RATIO))
        return ST_ELIMIT;
    int rc = large_init(&q, p, b, s->on);
    if (rc == ST_OK)
        rc = p->kind == PROB_LATENCY ? by_latency(&q, &proven) : by_value(&q);
    if (rc == ST_OK && b->stop == ST_ECANCELED)
        rc = ST_ECANCELED;
    s->value = q.best;
    s->proven = proven || q.bound == INFINITY || (q.best < INFINITY && q.best <= q.bound * (1 + 1e-9));
    s->bound = s->proven || q.bound > q.best ? q.best : q.bound;
    s->solver = "large";
    large_fini(&q);
    /* nothing found and nothing ruled out: the slow search may do better */
    return rc == ST_OK && q.best == INFINITY && !s->proven && b->stop == ST_OK ? ST_ELIMIT : rc;
}
