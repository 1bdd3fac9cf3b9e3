/*
 * Sums over chains on many devices. Lower bounds: walks that may come back to a device, with a price on each
 * use that is moved until none is wanted twice (a Lagrangian: any prices give a bound). Plans: the walks with
 * what they use twice replaced, then stretches of the plan solved anew, one after another, over the devices
 * that are cheapest at those prices. Devices that no better plan can use are left out, and when few are left
 * the exact program ends it. Work is counted, so results are the same everywhere unless a time limit is set.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/walks.h"

#define ROUNDS 240
#define WARM 220u /* devices of the first rounds */
#define WARM_ROUNDS 12
#define WORK_MAX 3e9
#define CLOSE 1e-4 /* a gap not worth more work */
#define BEAM 24u
#define NEAR_WORDS 4u
#define NEAR 120u  /* devices that stretches are solved over */
#define STRETCH 6u /* stages of the longest stretch */
#define BANS 6     /* uses taken from a walk until it is a plan */

struct tour { /* a plan as stages in order; device of the instance and its start */
    size_t n;
    uint32_t *dev, *start; /* start has n + 1 entries */
};
struct lag {
    const struct prob *p;
    struct budget *b;
    size_t D, L;
    struct walks *all; /* the live devices */
    struct walks_stage *walk;
    struct tour best, trial, spare;
    double cost, bound; /* of best; proven */
    double *use, *turn; /* D: uses wanted less one; the direction in which prices go */
    double *price;      /* D */
    double *least;      /* D: of a plan with that device, prices taken off */
    double work;
    uint32_t *list; /* D */
};

static bool spend(struct lag *q, const struct walks *w, size_t layers)
{
    q->work += (double)layers * (double)(w->n * 8 + w->n_link);
    return q->work < WORK_MAX && budget_spend(q->b, 4096);
}

static int tour_new(struct tour *t, size_t L)
{
    t->dev = malloc(L * sizeof *t->dev);
    t->start = malloc((L + 1) * sizeof *t->start);
    return t->dev && t->start ? ST_OK : ST_ENOMEM;
}
static void tour_copy(struct tour *to, const struct tour *t)
{
    to->n = t->n;
    memcpy(to->dev, t->dev, t->n * sizeof *t->dev);
    memcpy(to->start, t->start, (t->n + 1) * sizeof *t->start);
}
static void tour_free(struct tour *t)
{
    free(t->dev);
    free(t->start);
}

static double tour_cost(const struct lag *q, const struct tour *t)
{
    double sum = 0;
    size_t last = q->D;
    for (size_t s = 0; s < t->n; s++) {
        sum += prob_hop(q->p, last, t->dev[s], inst_cut_bytes(q->p->in, t->start[s])) +
               prob_stage(q->p, t->dev[s], t->start[s], t->start[s + 1]);
        last = t->dev[s];
    }
    return sum + prob_hop(q->p, last, q->D, inst_cut_bytes(q->p->in, q->L));
}

/* Puts a traced walk (last stage first) in the place of stages [a, b) of t. False: too many stages. */
static bool splice(const struct lag *q, struct tour *t, size_t a, size_t b, const struct walks *w,
                   const struct walks_stage *v, size_t n)
{
    if (t->n - (b - a) + n > q->L)
        return false;
    uint32_t end = t->start[t->n];
    memmove(&t->dev[a + n], &t->dev[b], (t->n - b) * sizeof *t->dev);
    memmove(&t->start[a + n], &t->start[b], (t->n - b) * sizeof *t->start);
    for (size_t i = 0; i < n; i++) {
        t->dev[a + i] = w->dev[v[n - 1 - i].i];
        t->start[a + i] = v[n - 1 - i].start;
    }
    t->n = t->n - (b - a) + n;
    t->start[t->n] = end;
    return true;
}

static double part_cost(const struct lag *q, const struct tour *t, size_t a, size_t b)
{
    double sum = 0;
    for (size_t s = a; s <= b; s++) {
        size_t last = s ? t->dev[s - 1] : q->D, e = s < t->n ? t->dev[s] : q->D;
        sum += prob_hop(q->p, last, e, inst_cut_bytes(q->p->in, t->start[s]));
        if (s < b)
            sum += prob_stage(q->p, e, t->start[s], t->start[s + 1]);
    }
    return sum;
}

/* Stages [a, b) of t anew over w's devices, none of the others' and none twice. Better than `limit`? */
static bool stretch(struct lag *q, struct walks *w, struct tour *t, size_t a, size_t b, double limit,
                    const uint32_t *at)
{
    const uint32_t from = t->start[a], to = t->start[b];
    const size_t before = a ? t->dev[a - 1] : q->D, after = b < t->n ? t->dev[b] : q->D;
    bool done = false;
    for (size_t s = 0; s < t->n; s++)
        if ((s < a || s >= b) && at[t->dev[s]] != INST_NOBODY)
            w->off[at[t->dev[s]]] = true;
    for (int k = 0; k < BANS; k++) {
        uint32_t end;
        if (!spend(q, w, to - from))
            break;
        double v = walks_forwards(w, from, to, before, after, &end);
        if (!(v < limit))
            break;
        size_t n = walks_trace(w, from, to, end, q->walk), x = n, y = 0;
        for (size_t i = 0; i < n && x == n; i++)
            for (y = i + 1; y < n; y++)
                if (q->walk[i].i == q->walk[y].i) {
                    x = i;
                    break;
                }
        if (x == n) {
            tour_copy(&q->spare, t);
            done = splice(q, t, a, b, w, q->walk, n);
            if (done && !(part_cost(q, t, a, a + n) < limit)) { /* a link that is slower than the default */
                tour_copy(t, &q->spare);
                done = false;
            }
            break;
        }
        /* either only until its first use or only from its second on: whichever is cheaper */
        uint32_t i = q->walk[x].i, late = q->walk[x].start, early = q->walk[y].start, was = w->lo[i];
        w->lo[i] = early + 1;
        double v1 = walks_forwards(w, from, to, before, after, &end);
        w->lo[i] = was;
        was = w->hi[i];
        w->hi[i] = late;
        double v2 = walks_forwards(w, from, to, before, after, &end);
        if (v1 < v2) {
            w->hi[i] = was;
            w->lo[i] = early + 1;
        }
        if (!spend(q, w, 2 * (to - from)))
            break;
    }
    memset(w->off, 0, w->n * sizeof *w->off);
    for (size_t i = 0; i < w->n; i++) {
        w->lo[i] = 0;
        w->hi[i] = (uint32_t)q->L;
    }
    return done;
}

static void accept(struct lag *q)
{
    double v = tour_cost(q, &q->trial);
    if (v < q->cost) {
        q->cost = v;
        tour_copy(&q->best, &q->trial);
    }
}

/* Makes q->trial, which may use devices twice, a plan. */
static bool mend(struct lag *q, struct walks *w, const uint32_t *at)
{
    struct tour *t = &q->trial;
    for (size_t round = 0; round < 2 * q->L; round++) {
        size_t x = t->n;
        memset(q->list, 0, q->D * sizeof *q->list);
        for (size_t s = 0; s < t->n && x == t->n; s++)
            if (q->list[t->dev[s]]++)
                x = s;
        if (x == t->n)
            return true;
        size_t a = x, b = x + 1;
        double limit = INFINITY;
        if (!stretch(q, w, t, a, b, limit, at) && !(a > 0 && stretch(q, w, t, a - 1, b, limit, at)) &&
            !(b < t->n && stretch(q, w, t, a, b + 1, limit, at)))
            return false;
        if (q->b->stop)
            return false;
    }
    return false;
}

/* Stretches of up to `most` stages of the trial, of growing length, until none gives anything. Only those
 * that meet stages [lo, hi). */
static void improve(struct lag *q, struct walks *w, const uint32_t *at, size_t most, size_t lo, size_t hi)
{
    struct tour *t = &q->trial;
    for (size_t len = 2; len <= most; len++)
        for (size_t a = lo >= len ? lo - len + 1 : 0; a < hi && a < t->n; a++) {
            size_t b = a + len < t->n ? a + len : t->n, n = t->n;
            double was = part_cost(q, t, a, b);
            if (stretch(q, w, t, a, b, was * (1 - 1e-9), at)) {
                hi = hi < n ? hi + t->n - n : t->n; /* wraps as it should */
                a = a >= len ? a - len : 0;
            }
            if (q->b->stop || q->work >= WORK_MAX) {
                accept(q);
                return;
            }
        }
    accept(q);
}

/* Takes one device after another from the best plan and mends what is left, so as to leave its valley. */
static void shake(struct lag *q, struct walks *w, const uint32_t *at)
{
    for (size_t s = 0, idle = 0; idle < q->best.n && !q->b->stop && q->work < WORK_MAX; s++, idle++) {
        s = s < q->best.n ? s : 0;
        tour_copy(&q->trial, &q->best);
        struct tour *t = &q->trial;
        size_t a = s > 2 ? s - 2 : 0, b = s + 3 < t->n ? s + 3 : t->n;
        uint32_t i = at[t->dev[s]];
        double was = q->cost, price;
        if (i == INST_NOBODY)
            continue;
        price = w->price[i];
        w->price[i] = INFINITY;
        bool other = stretch(q, w, t, a, b, INFINITY, at);
        w->price[i] = price;
        if (other)
            improve(q, w, at, 5, a > 3 ? a - 3 : 0, b + 3);
        if (q->cost < was)
            idle = 0;
    }
}

struct node {
    double cost, score; /* real; with prices and the priced cost to go */
    uint32_t parent, i, l;
    uint64_t used[NEAR_WORDS];
};

static void keep(struct node *at, uint32_t *count, const struct node *v)
{
    uint32_t n = *count;
    if (n == BEAM && v->score >= at[n - 1].score)
        return;
    if (n < BEAM)
        *count = ++n;
    size_t i = n - 1;
    for (; i > 0 && at[i - 1].score > v->score; i--)
        at[i] = at[i - 1];
    at[i] = *v;
}

static void spread(struct lag *q, struct walks *w, const struct node *v, uint32_t index, size_t l,
                   const double *hop, struct node *beams, uint32_t *count)
{
    size_t k = w->n;
    double paid = v ? v->score - v->cost - w->out[l * k + v->i] : 0;
    for (size_t i = 0; i < k; i++) {
        size_t last = w->last[i * q->L + l];
        if (!last || (v && v->used[i / 64] >> (i % 64) & 1u))
            continue;
        double cost =
            v ? v->cost + hop[v->i * k + i] : prob_hop(q->p, q->D, w->dev[i], inst_cut_bytes(q->p->in, 0));
        double priced = paid + w->price[i];
        for (size_t m = l + 1; cost < q->cost && m <= last; m++) {
            double c = cost + walks_stage(w, i, l, m), score = c + priced + w->out[m * k + i];
            if ((m < q->L && q->p->in->glued[m]) || !(score < INFINITY) || c >= q->cost ||
                (count[m] == BEAM && score >= beams[m * BEAM + BEAM - 1].score))
                continue;
            struct node x = {c, score, index, (uint32_t)i, (uint32_t)l, {0}};
            if (v)
                memcpy(x.used, v->used, sizeof x.used);
            x.used[i / 64] |= (uint64_t)1 << (i % 64);
            keep(&beams[m * BEAM], &count[m], &x);
        }
    }
}

/* Plans built from the front, the most promising first by the priced cost to go, into the trial. */
static int beam(struct lag *q, struct walks *w, bool *found)
{
    size_t k = w->n, L = q->L;
    struct node *beams = malloc((L + 1) * BEAM * sizeof *beams);
    uint32_t *count = calloc(L + 1, sizeof *count);
    double *hop = malloc(k * k * sizeof *hop), least = INFINITY, bytes = -1;
    *found = false;
    if (!beams || !count || !hop || k > NEAR_WORDS * 64) {
        free(beams);
        free(count);
        free(hop);
        return k > NEAR_WORDS * 64 ? ST_OK : ST_ENOMEM;
    }
    for (size_t i = 0; i < k; i++)
        w->price[i] = q->price[w->dev[i]];
    walks_backwards(w);
    spread(q, w, NULL, INST_NOBODY, 0, hop, beams, count);
    for (size_t l = 1; l < L && spend(q, w, 4); l++) {
        double now = inst_cut_bytes(q->p->in, l);
        for (size_t i = 0; now != bytes && i < k * k; i++)
            hop[i] = i / k == i % k ? INFINITY : prob_hop(q->p, w->dev[i / k], w->dev[i % k], now);
        bytes = now;
        for (uint32_t i = 0; i < count[l]; i++)
            spread(q, w, &beams[l * BEAM + i], (uint32_t)(l * BEAM + i), l, hop, beams, count);
    }
    const struct node *end = NULL;
    for (uint32_t i = 0; i < count[L]; i++) {
        const struct node *v = &beams[L * BEAM + i];
        double c = v->cost + prob_hop(q->p, w->dev[v->i], q->D, inst_cut_bytes(q->p->in, L));
        if (c < least) {
            least = c;
            end = v;
        }
    }
    if (end) {
        size_t n = 0;
        for (const struct node *v = end; v; v = v->parent == INST_NOBODY ? NULL : &beams[v->parent])
            q->walk[n++] = (struct walks_stage){v->i, v->l};
        q->trial.n = 0;
        q->trial.start[0] = (uint32_t)L;
        *found = splice(q, &q->trial, 0, 0, w, q->walk, n);
    }
    memset(w->price, 0, k * sizeof *w->price);
    free(beams);
    free(count);
    free(hop);
    return ST_OK;
}

struct rank {
    double least;
    uint32_t dev;
};
static int by_least(const void *x, const void *y)
{
    const struct rank *a = x, *b = y;
    if (a->least != b->least)
        return a->least < b->least ? -1 : 1;
    return a->dev < b->dev ? -1 : a->dev > b->dev;
}

/* A set of devices to look for plans in: those of the best plan, of the trial, and the cheapest ones. */
static int nearby(struct lag *q, size_t most, struct walks **out, uint32_t *at)
{
    struct rank *rank = malloc(q->all->n * sizeof *rank);
    if (!rank)
        return ST_ENOMEM;
    size_t n = q->all->n;
    for (size_t i = 0; i < n; i++)
        rank[i] = (struct rank){q->least[q->all->dev[i]], q->all->dev[i]};
    for (size_t i = 0; i < n; i++) {
        for (size_t s = 0; s < q->best.n; s++)
            if (q->best.dev[s] == rank[i].dev)
                rank[i].least = -INFINITY;
        for (size_t s = 0; s < q->trial.n; s++)
            if (q->trial.dev[s] == rank[i].dev)
                rank[i].least = -INFINITY;
    }
    qsort(rank, n, sizeof *rank, by_least);
    size_t k = n < most ? n : most;
    while (k < n && rank[k].least == -INFINITY)
        k++;
    for (size_t i = 0; i < k; i++)
        q->list[i] = rank[i].dev;
    free(rank);
    int rc = walks_new(out, q->p, q->b, q->list, k);
    for (size_t d = 0; d < q->D; d++)
        at[d] = INST_NOBODY;
    for (size_t i = 0; rc == ST_OK && i < k; i++)
        at[(*out)->dev[i]] = (uint32_t)i;
    return rc;
}

/* From the last walk and the costs through each device: a plan, and a better one. */
enum effort { EFFORT_FIRST, EFFORT_USUAL, EFFORT_THOROUGH };
static int plans(struct lag *q, uint32_t end, enum effort effort)
{
    uint32_t *at = malloc(q->D * sizeof *at);
    struct walks *w = NULL;
    int rc = at ? ST_OK : ST_ENOMEM;
    q->trial.n = walks_trace(q->all, 0, q->L, end, q->walk);
    for (size_t i = 0; i < q->trial.n; i++) {
        const struct walks_stage *v = &q->walk[q->trial.n - 1 - i];
        q->trial.dev[i] = q->all->dev[v->i];
        q->trial.start[i] = v->start;
    }
    q->trial.start[q->trial.n] = (uint32_t)q->L;
    if (rc == ST_OK)
        rc = nearby(q, NEAR, &w, at);
    if (rc == ST_OK) {
        bool found = false;
        if (mend(q, w, at)) /* list is used up by now */
            improve(q, w, at, effort == EFFORT_FIRST ? 2 : 4, 0, q->L);
        rc = effort == EFFORT_FIRST && q->cost < INFINITY ? ST_OK : beam(q, w, &found);
        if (rc == ST_OK && found)
            improve(q, w, at, STRETCH, 0, q->L);
        if (rc == ST_OK && effort == EFFORT_THOROUGH && q->cost < INFINITY)
            shake(q, w, at);
    }
    walks_free(w);
    free(at);
    return rc;
}

/* Leaves out devices that no plan better than the best can use. */
static int thin(struct lag *q)
{
    size_t n = 0, was = q->all->n;
    for (size_t i = 0; i < was; i++)
        if (q->least[q->all->dev[i]] <= q->cost * (1 + 1e-9))
            q->list[n++] = q->all->dev[i];
    if (n == was || (n > INST_EXACT_DEVICES && n > was - was / 12))
        return ST_OK;
    for (size_t i = 0; i < was; i++)
        if (q->least[q->all->dev[i]] > q->cost * (1 + 1e-9))
            q->price[q->all->dev[i]] = q->turn[q->all->dev[i]] = 0;
    walks_free(q->all);
    q->all = NULL;
    if (n == 0) { /* not even the best plan's: it is the optimum, up to rounding */
        q->bound = q->cost;
        return ST_OK;
    }
    return walks_new(&q->all, q->p, q->b, q->list, n);
}

/* Few devices are left: the exact program over them ends it. */
static int finish(struct lag *q, bool *proven)
{
    const struct inst *in = q->p->in;
    uint32_t only[INST_EXACT_DEVICES], *on = malloc(q->L * sizeof *on);
    struct inst *sub = NULL;
    for (size_t i = 0; i < q->all->n; i++)
        only[i] = in->dev[q->all->dev[i]];
    int rc = !on ? ST_ENOMEM
             : q->p->kind == PROB_MOVE
                 ? ST_ELIMIT
                 : inst_new(&sub, in->c, in->m, in->r, in->rules, only, q->all->n, q->b->memory_limit);
    if (rc == ST_OK) {
        struct prob p = *q->p;
        struct solution s = {.limit = q->cost * (1 + 1e-11), .on = on};
        p.in = sub;
        rc = exact_solve(&p, q->b, &s);
        *proven = rc == ST_OK;
        if (rc == ST_OK && s.value < q->cost) {
            q->cost = s.value;
            q->best.n = 0;
            for (size_t l = 0; l < q->L; l++)
                if (l == 0 || on[l] != on[l - 1]) {
                    q->best.dev[q->best.n] = q->all->dev[on[l]];
                    q->best.start[q->best.n++] = (uint32_t)l;
                }
            q->best.start[q->best.n] = (uint32_t)q->L;
        }
    }
    inst_free(sub);
    free(on);
    return rc == ST_ELIMIT || rc == ST_EDEADLINE ? ST_OK : rc;
}

/* Prices follow what walks use too often, with some of the way they went before. */
static void reprice(struct lag *q, double value, double pace)
{
    double norm = 0;
    for (size_t i = 0; i < q->all->n; i++) {
        uint32_t d = q->all->dev[i];
        double g = q->use[d] - 1;
        g = g < 0 && q->price[d] <= 0 ? 0 : g;
        q->turn[d] = g + 0.5 * q->turn[d];
        norm += q->turn[d] * q->turn[d];
    }
    double step = norm > 0 ? pace * (q->cost - value) / norm : 0;
    for (size_t i = 0; i < q->all->n; i++) {
        uint32_t d = q->all->dev[i];
        q->price[d] = fmax(0, q->price[d] + step * q->turn[d]);
    }
}

static void count(struct lag *q, uint32_t end)
{
    memset(q->use, 0, q->D * sizeof *q->use);
    size_t n = walks_trace(q->all, 0, q->L, end, q->walk);
    for (size_t i = 0; i < n; i++)
        q->use[q->all->dev[q->walk[i].i]]++;
}

static void through(struct lag *q, double prices)
{
    const struct walks *w = q->all;
    for (size_t i = 0; i < w->n; i++) {
        double v = INFINITY;
        for (size_t m = 1; m <= q->L; m++)
            v = fmin(v, w->at.v1[m * w->n + i] + w->out[m * w->n + i]);
        q->least[w->dev[i]] = v - prices;
    }
}

static int rounds(struct lag *q, int most, double pace, bool *proven)
{
    int stale = 0, rc = ST_OK;
    for (int i = 0; rc == ST_OK && i < most && spend(q, q->all, q->L); i++) {
        uint32_t end;
        double prices = 0;
        for (size_t k = 0; k < q->all->n; k++)
            prices += q->all->price[k] = q->price[q->all->dev[k]];
        double value = (walks_forwards(q->all, 0, q->L, q->D, q->D, &end) - prices) * (1 - 1e-12);
        if (value == INFINITY) {
            q->bound = q->cost;
            *proven = true;
            return ST_OK;
        }
        stale = value > q->bound * (1 + 2e-5) ? 0 : stale + 1;
        q->bound = value > q->bound ? value : q->bound;
        if (stale >= 4) {
            pace *= 0.6;
            stale = 0;
        }
        count(q, end);
        if ((i % 6 == 0 || i + 1 == most) && spend(q, q->all, q->L)) {
            walks_backwards(q->all);
            through(q, prices);
            if (most < ROUNDS ? i == 0 || i + 1 == most : i > 0 || q->cost == INFINITY)
                rc = plans(q, end,
                           most < ROUNDS && i == 0   ? EFFORT_FIRST
                           : i >= 42 && i % 24 == 18 ? EFFORT_THOROUGH
                                                     : EFFORT_USUAL);
            if (rc == ST_OK)
                rc = thin(q);
        }
        if (rc < 0 || !q->all || q->cost - q->bound <= CLOSE * q->cost || pace < 1e-3)
            break;
        if (q->all->n <= INST_EXACT_DEVICES && q->p->kind != PROB_MOVE)
            return finish(q, proven);
        reprice(q, value, q->cost < INFINITY ? pace : 0);
    }
    return rc;
}

/* A first plan and first prices from the devices that look best alone; they prove nothing about the others.
 */
static int warm_up(struct lag *q)
{
    const struct inst *in = q->p->in;
    struct rank *rank = malloc(q->D * sizeof *rank);
    bool proven = false;
    if (!rank)
        return ST_ENOMEM;
    for (size_t d = 0; d < q->D; d++) {
        double sum = in->open[d];
        size_t longest = 1;
        for (size_t l = 0; l < q->L; l++) {
            sum += in->t[d * q->L + l];
            longest = inst_last(in, d, l) > l + longest ? inst_last(in, d, l) - l : longest;
        }
        double hop = in->c->has_default_link ? in->c->default_link.rtt_s / 2 : 0;
        rank[d] = (struct rank){sum / (double)q->L + hop / (double)longest, (uint32_t)d};
    }
    qsort(rank, q->D, sizeof *rank, by_least);
    for (size_t i = 0; i < WARM; i++)
        q->list[i] = rank[i].dev;
    free(rank);
    int rc = walks_new(&q->all, q->p, q->b, q->list, WARM);
    if (rc == ST_OK)
        rc = rounds(q, WARM_ROUNDS, 1, &proven);
    walks_free(q->all);
    q->all = NULL;
    q->bound = 0;
    memset(q->turn, 0, q->D * sizeof *q->turn);
    return rc;
}

int lagrange_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    const struct inst *in = p->in;
    struct lag q = {.p = p, .b = b, .D = in->D, .L = in->L, .cost = INFINITY};
    bool proven = false;
    int rc = ST_OK;
    q.use = calloc(q.D, sizeof *q.use);
    q.turn = calloc(q.D, sizeof *q.turn);
    q.price = calloc(q.D, sizeof *q.price);
    q.least = calloc(q.D, sizeof *q.least);
    q.list = malloc((q.D + 1) * sizeof *q.list);
    q.walk = malloc((q.L + 1) * sizeof *q.walk);
    if (tour_new(&q.best, q.L) < 0 || tour_new(&q.trial, q.L) < 0 || tour_new(&q.spare, q.L) < 0 || !q.use ||
        !q.turn || !q.price || !q.least || !q.list || !q.walk)
        rc = ST_ENOMEM;
    bool warm = q.D > 2 * WARM;
    if (rc == ST_OK && warm)
        rc = warm_up(&q);
    for (size_t d = 0; rc == ST_OK && d < q.D; d++)
        q.list[d] = (uint32_t)d;
    if (rc == ST_OK)
        rc = walks_new(&q.all, p, b, q.list, q.D);
    if (rc == ST_OK)
        rc = rounds(&q, ROUNDS, warm && q.cost < INFINITY ? 0.5 : 1, &proven);
    if (rc == ST_OK && b->stop == ST_ECANCELED)
        rc = ST_ECANCELED;
    for (size_t k = 0; rc == ST_OK && q.cost < INFINITY && k < q.best.n; k++)
        for (size_t l = q.best.start[k]; l < q.best.start[k + 1]; l++)
            s->on[l] = q.best.dev[k];
    s->value = q.cost;
    s->proven = proven || (q.cost < INFINITY && q.cost <= q.bound * (1 + 1e-9));
    s->bound = s->proven || q.bound > q.cost ? q.cost : q.bound;
    walks_free(q.all);
    tour_free(&q.best);
    tour_free(&q.trial);
    tour_free(&q.spare);
    free(q.use);
    free(q.turn);
    free(q.price);
    free(q.least);
    free(q.list);
    free(q.walk);
    return rc;
}
