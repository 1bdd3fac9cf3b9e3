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
#define BEAM 12u
#define WORK_MAX 1500000000.0 /* innermost steps */
#define CLOSE 1e-4            /* a gap not worth more work */

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
    double *price;          /* D */
    double *before, *after; /* D × W, priced */
    uint32_t *pred;         /* D × W: start of the stage that ends there */
    double *one, *two;      /* N: least values at the position at hand */
    uint32_t *who;          /* N: device of the least */
    double *reach;          /* N: least value and hop from another node */
    double *hop, hop_bytes; /* to, from: by node, for hops of that size; NULL = too many nodes */
    double hop_least;       /* then: of any hop */
    struct node *beam;      /* W × BEAM */
    uint32_t *n_beam;       /* W */
    uint32_t *visits;       /* D */
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
    free(q->hop);
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
    if (p->in->hop)
        q->hop = malloc((N + 1) * (N + 1) * sizeof *q->hop);
    if (!q->live || !q->home || !q->price || !q->before || !q->after || !q->pred || !q->one || !q->two ||
        !q->who || !q->reach || !q->beam || !q->n_beam || !q->visits || (p->in->hop && !q->hop))
        return ST_ENOMEM;
    q->n_live = D;
    for (size_t d = 0; d < D; d++)
        q->live[d] = (uint32_t)d;
    size_t bytes = D * W * 20 + (p->in->hop ? (N + 1) * (N + 1) * 32 : 0);
    b->table_bytes = bytes > b->table_bytes ? bytes : b->table_bytes;
    return ST_OK;
}

static double seconds(const struct prob *p, struct inst_hop h, double bytes)
{
    double s = bytes / h.rate;
    return !h.ok || s > p->cap_bottleneck ? INFINITY : h.half_rtt + s;
}

/* Hop costs for hops of that size, from column to row. */
static void set_hop(struct large *q, double bytes)
{
    const struct inst *in = q->p->in;
    if (bytes == q->hop_bytes)
        return;
    q->hop_bytes = bytes;
    if (q->hop) {
        for (size_t t = 0; t <= q->N; t++)
            for (size_t n = 0; n <= q->N; n++)
                q->hop[t * (q->N + 1) + n] = seconds(q->p, in->hop[n * (q->N + 1) + t], bytes);
        q->work += (double)q->N * (double)q->N;
        return;
    }
    const struct cluster *c = in->c;
    q->hop_least =
        c->has_default_link ? c->default_link.rtt_s / 2 + bytes / c->default_link.bytes_per_s : INFINITY;
    q->hop_least =
        fmin(q->hop_least,
             c->has_same_node_link ? c->same_node_link.rtt_s / 2 + bytes / c->same_node_link.bytes_per_s : 0);
    for (size_t i = 0; i < c->nlinks; i++)
        q->hop_least = fmin(q->hop_least, c->links[i].rate.rtt_s / 2 + bytes / c->links[i].rate.bytes_per_s);
    if (!(in->rules & RULE_LINKS))
        q->hop_least = 0;
}

static double hop_of(const struct large *q, size_t from, size_t to, double bytes)
{
    const struct inst *in = q->p->in;
    if (q->hop && bytes == q->hop_bytes)
        return q->hop[(to < q->D ? in->node[to] : q->N) * (q->N + 1) + (from < q->D ? in->node[from] : q->N)];
    return prob_hop(q->p, from, to, bytes);
}

static void find_homes(struct large *q)
{
    q->n_home = 0;
    for (size_t n = 0; n < q->N; n++)
        q->who[n] = INST_NOBODY;
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t n = q->p->in->node[q->live[i]];
        if (q->who[n] == INST_NOBODY)
            q->home[q->n_home++] = n;
        q->who[n] = 0;
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
    double least = INFINITY;
    for (size_t i = 0; !q->hop && i < q->n_home; i++)
        least = fmin(least, q->one[q->home[i]]);
    for (size_t i = 0; i < q->n_home; i++) {
        size_t t = q->home[i];
        double v = least + q->hop_least;
        const double *h = q->hop ? &q->hop[into ? t * (q->N + 1) : t] : NULL;
        size_t step = into ? 1 : q->N + 1;
        if (h) {
            v = INFINITY;
            for (size_t k = 0; k < q->n_home; k++) {
                size_t n = q->home[k];
                double x = q->one[n] + h[n * step];
                v = n != t && x < v ? x : v;
            }
        }
        q->reach[t] = v;
    }
    q->work += (double)q->n_live + (q->hop ? (double)q->n_home * (double)q->n_home : 0);
}

/* After gather: the least way into (or out of) device e. */
static double least_at(const struct large *q, size_t e)
{
    size_t n = q->p->in->node[e];
    double same = q->who[n] == e ? q->two[n] : q->one[n];
    same += q->hop ? q->hop[n * (q->N + 1) + n] : q->hop_least;
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
    set_hop(q, l ? bytes : q->hop_bytes);
    for (size_t i = 0; i < q->n_live; i++) {
        uint32_t e = q->live[i];
        size_t last = inst_last(p->in, e, l);
        if (!last || (from && used(q, from, e)))
            continue;
        double at = (from ? from->cost : 0) + hop_of(q, from ? from->e : q->D, e, bytes);
        double priced = (from ? from->score : 0) + q->price[e];
        if (at + priced >= q->best && at >= q->best)
            continue;
        for (size_t m = l + 1; m <= last; m++) {
            double cost = at + prob_stage(p, e, l, m), go = q->after[e * q->W + m];
            q->work++;
            if (cost + go < INFINITY && cost < q->best)
                keep(q, m,
                     (struct node){cost, cost + priced + go, (uint32_t)(v ? v - q->beam : INST_NOBODY), e,
                                   (uint32_t)l});
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
            v += q->hop ? hop_of(q, d, e, bytes) : q->hop_least;
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
        if (i < 2 || i % 5 == 0 || i == ROUNDS - 1) {
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

/* Takes the device that goes furthest, and among those the one that could hold least elsewhere. */
static bool greedy(struct large *q, double v, const size_t *most, uint32_t *on)
{
    const struct prob *p = q->p;
    size_t last = q->D;
    memset(q->visits, 0, q->D * sizeof *q->visits);
    for (size_t l = 0; l < q->L;) {
        double bytes = inst_cut_bytes(p->in, l);
        size_t best = 0, pick = q->D;
        for (size_t e = 0; e < q->D; e++) {
            if (q->visits[e] || l + most[e] < best || (l + most[e] == best && pick < q->D))
                continue;
            size_t end = reach_of(p, e, l, v);
            if (!end || end < best || (end == best && most[e] >= most[pick]))
                continue;
            if (prob_hop(p, last, e, bytes) > v ||
                (end == q->L && prob_hop(p, e, q->D, inst_cut_bytes(p->in, q->L)) > v))
                continue;
            best = end;
            pick = e;
        }
        q->work += (double)q->D;
        if (pick == q->D)
            return false;
        q->visits[pick] = 1;
        for (; l < best; l++)
            on[l] = (uint32_t)pick;
        last = pick;
    }
    return true;
}

static int by_value(struct large *q)
{
    const struct prob *p = q->p;
    size_t *most = calloc(q->D, sizeof *most);
    uint32_t *on = malloc(q->L * sizeof *on);
    int rc = most && on ? ST_OK : ST_ENOMEM;
    q->bound = rc == ST_OK ? cover_bound(p) : 0;
    double lo = q->bound, hi = INFINITY, at = lo * (1 + 1e-12);
    for (int i = 0; rc == ST_OK && q->bound < INFINITY && i < 48 && hi > lo && budget_spend(q->b, 4096);
         i++) {
        for (size_t e = 0; e < q->D; e++) {
            most[e] = 0;
            for (size_t l = 0; l + most[e] < q->L; l++) {
                size_t end = reach_of(p, e, l, at);
                most[e] = end > l + most[e] ? end - l : most[e];
            }
        }
        struct eval ev;
        if (greedy(q, at, most, on) && (rc = eval_run(p->in, on, &ev)) == ST_OK) {
            double got = p->kind == PROB_BOTTLENECK ? ev.bottleneck : ev.ratio;
            eval_fini(&ev);
            if (got < q->best) {
                q->best = got;
                memcpy(q->on, on, q->L * sizeof *on);
            }
            hi = got < at ? got : at;
        } else if (rc == ST_OK) {
            lo = at;
        }
        if (hi <= lo * (1 + 1e-9))
            break;
        at = hi < INFINITY                           ? lo + (hi - lo) / 2
             : p->kind == PROB_RATIO && at * 1.2 > 1 ? 1
             : at > 0                                ? at * 1.2
                                                     : 1e-9;
    }
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
