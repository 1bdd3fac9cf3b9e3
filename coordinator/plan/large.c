/*
 * Largest values over chains on more devices than the exact programs take. Can all stages stay within v?
 * No, when the layers can be given weights such that the heaviest runs of all devices together weigh less
 * than the chain; the weights follow what the runs leave uncovered (they are the dual of choosing one run a
 * device). Yes, when a plan is found: stage after stage takes the device that is worth least elsewhere under
 * those weights, and where none is free the devices of earlier stages are passed on (augmenting paths).
 * Between the two v is bisected. Work is counted, so results are the same everywhere unless a time limit is
 * set.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

#define WORK_MAX 2e9
#define CLOSE 2e-4 /* a gap not worth more work */
#define QUESTIONS 40
#define PASSES 6u /* how far devices are passed on */

struct span {
    uint32_t from, to;
};
struct large {
    const struct prob *p;
    struct budget *b;
    size_t D, L;
    uint32_t *end;     /* D × L: the last end within v, 0 = none */
    struct span *span; /* D × L: runs that no longer one contains, the first n_span[d] of each device */
    uint32_t *n_span;
    double v;               /* that end is for */
    double *weight, *saved; /* L */
    double *sum;            /* L + 1 */
    double *worth;          /* D: weight of the heaviest run */
    int32_t *cover;         /* L + 1 */
    uint32_t *stage, *from; /* D: stage of a device, INST_NOBODY = free; L + 1: starts */
    uint32_t *owner;        /* L: device of a stage */
    uint32_t *seen, mark;   /* D */
    uint32_t *on, *trial;   /* L */
    double best, bound, work;
};

static bool simple(const struct large *q, size_t d)
{
    return !q->p->in->c->devices[q->p->in->dev[d]].has_segment;
}

/* prob_stage of a run that the device can hold, without what need not be asked of it. */
static inline double value(const struct large *q, size_t d, size_t l, size_t m, bool smooth)
{
    const struct inst *in = q->p->in;
    if (!smooth || !in->lean || q->p->cap_ratio < INFINITY || q->p->cap_bottleneck < INFINITY)
        return prob_stage(q->p, d, l, m);
    if (q->p->kind == PROB_RATIO)
        return inst_bytes(in, l, m) / in->cap[d];
    return in->open[d] + (in->own[d * (q->L + 1) + m] - in->own[d * (q->L + 1) + l]);
}

static void reach(struct large *q, double v)
{
    const struct inst *in = q->p->in;
    if (v == q->v)
        return;
    q->v = v;
    for (size_t d = 0; d < q->D; d++) {
        uint32_t *end = &q->end[d * q->L];
        size_t m = 0, good = 0;
        bool smooth = simple(q, d);
        uint32_t far = 0;
        q->n_span[d] = 0;
        for (size_t l = 0; l < q->L; l++) {
            size_t last = inst_last(in, d, l);
            if (!smooth || m < l)
                m = l;
            good = smooth && good > l ? good : 0;
            for (; m < last; m++) {
                double x = m + 1 < q->L && in->glued[m + 1] ? 0 : value(q, d, l, m + 1, smooth);
                if (x <= v && !(m + 1 < q->L && in->glued[m + 1]))
                    good = m + 1;
                else if (smooth && x > v)
                    break;
            }
            end[l] = last ? (uint32_t)good : 0;
            if (end[l] && value(q, d, l, end[l], smooth) > v)
                end[l] = 0;
            if (end[l] > far) {
                far = end[l];
                q->span[d * q->L + q->n_span[d]++] = (struct span){(uint32_t)l, far};
            }
        }
    }
    q->work += 2 * (double)q->D * (double)q->L;
}

/* The heaviest runs. True: they weigh less than the chain, so nothing within v exists. */
static bool weigh(struct large *q)
{
    double total = 0;
    for (size_t l = 0; l < q->L; l++)
        q->sum[l + 1] = q->sum[l] + q->weight[l];
    memset(q->cover, 0, (q->L + 1) * sizeof *q->cover);
    for (size_t d = 0; d < q->D; d++) {
        const struct span *r = &q->span[d * q->L];
        double most = 0;
        size_t at = SIZE_MAX;
        for (size_t k = 0; k < q->n_span[d]; k++) {
            double w = q->sum[r[k].to] - q->sum[r[k].from];
            at = w > most ? k : at;
            most = w > most ? w : most;
        }
        q->worth[d] = most;
        total += most;
        if (at != SIZE_MAX) {
            q->cover[r[at].from]++;
            q->cover[r[at].to]--;
        }
        q->work += (double)q->n_span[d];
    }
    return total < q->sum[q->L] * (1 - 1e-9);
}

static void reweigh(struct large *q)
{
    double norm = 0, total = 0, excess = 0;
    int32_t n = 0;
    for (size_t d = 0; d < q->D; d++)
        excess += q->worth[d];
    excess -= q->sum[q->L];
    for (size_t l = 0; l < q->L; l++) {
        n += q->cover[l];
        double g = 1 - (double)n;
        norm += g < 0 && q->weight[l] <= 0 ? 0 : g * g;
    }
    double step = norm > 0 ? (excess + 0.01 * q->sum[q->L]) / norm : 0;
    n = 0;
    for (size_t l = 0; l < q->L; l++) {
        n += q->cover[l];
        q->weight[l] = fmax(0, q->weight[l] + step * (1 - (double)n));
        total += q->weight[l];
    }
    for (size_t l = 0; l < q->L; l++)
        q->weight[l] = total > 0 ? q->weight[l] / total : 1 / (double)q->L;
}

static bool fits(const struct large *q, size_t d, size_t l, size_t m)
{
    uint32_t end = q->end[d * q->L + l];
    return end >= m && (end == m || simple(q, d) || prob_stage(q->p, d, l, m) <= q->v);
}

/* Finds a device for stage s, [l, m), passing on those of earlier stages. */
static bool place(struct large *q, size_t s, size_t l, size_t m, unsigned depth)
{
    size_t pick = q->D;
    q->work += (double)q->D;
    for (size_t d = 0; d < q->D; d++)
        if (q->stage[d] == INST_NOBODY && fits(q, d, l, m) && (pick == q->D || q->worth[d] < q->worth[pick]))
            pick = d;
    for (size_t d = 0; pick == q->D && depth < PASSES && d < q->D; d++) {
        size_t t = q->stage[d];
        if (t == INST_NOBODY || t == s || q->seen[d] == q->mark || !fits(q, d, l, m))
            continue;
        q->seen[d] = q->mark;
        if (place(q, t, q->from[t], q->from[t + 1], depth + 1))
            pick = d;
    }
    if (pick == q->D)
        return false;
    q->stage[pick] = (uint32_t)s;
    q->owner[s] = (uint32_t)pick;
    return true;
}

/* A plan within v, hops aside. `even`: stages of about so many layers; 0 = what the weights say. */
static bool fill(struct large *q, size_t even)
{
    const struct inst *in = q->p->in;
    size_t n = 0;
    for (size_t d = 0; d < q->D; d++)
        q->stage[d] = INST_NOBODY;
    for (size_t l = 0; l < q->L; n++) {
        size_t pick = q->D, to = 0, last = n ? q->owner[n - 1] : q->D;
        double least = INFINITY, bytes = inst_cut_bytes(in, l);
        q->from[n] = (uint32_t)l;
        for (size_t d = 0; d < q->D; d++) {
            size_t end = q->end[d * q->L + l];
            if (q->stage[d] != INST_NOBODY || !end)
                continue;
            if (even && end > l + even && fits(q, d, l, l + even) &&
                !(l + even < q->L && in->glued[l + even]))
                end = l + even;
            double score = q->worth[d] - (q->sum[end] - q->sum[l]);
            if (score < least && prob_hop(q->p, last, d, bytes) <= q->v) {
                least = score;
                pick = d;
                to = end;
            }
        }
        q->work += (double)q->D;
        if (pick < q->D) {
            q->stage[pick] = (uint32_t)n;
            q->owner[n] = (uint32_t)pick;
        } else {
            to = l + 1;
            while (to < q->L && in->glued[to])
                to++;
            q->mark++;
            q->from[n + 1] = (uint32_t)to;
            if (!place(q, n, l, to, 0))
                return false;
            if (q->end[q->owner[n] * q->L + l] > to)
                to = q->end[q->owner[n] * q->L + l];
        }
        l = to;
        q->from[n + 1] = (uint32_t)to;
    }
    for (size_t s = 0; s < n; s++)
        for (size_t l = q->from[s]; l < q->from[s + 1]; l++)
            q->trial[l] = q->owner[s];
    return true;
}

static int attempt(struct large *q, size_t even, bool *found)
{
    struct eval ev;
    if (!fill(q, even))
        return ST_OK;
    int rc = eval_run(q->p->in, q->trial, &ev);
    if (rc < 0)
        return rc == ST_EINFEASIBLE ? ST_OK : rc;
    double got = q->p->kind == PROB_BOTTLENECK ? ev.bottleneck : ev.ratio;
    bool within =
        q->p->kind == PROB_BOTTLENECK ? ev.ratio <= q->p->cap_ratio : ev.bottleneck <= q->p->cap_bottleneck;
    eval_fini(&ev);
    if (within && got < q->best) {
        q->best = got;
        memcpy(q->on, q->trial, q->L * sizeof *q->on);
    }
    *found = within && got <= q->v * (1 + 1e-12);
    return ST_OK;
}

static bool spend(struct large *q)
{
    return q->work < WORK_MAX && budget_spend(q->b, 4096);
}

/* Is there a plan within v? 1 yes (in q->best), −1 no (proven), 0 not known. */
static int ask(struct large *q, double v, int weighings, int *rc)
{
    bool found = false;
    reach(q, v);
    for (int i = 0; i < weighings && spend(q); i++) {
        if (weigh(q))
            return -1;
        if (i < 4 || i % 12 == 0) {
            *rc = attempt(q, i < 4 ? (size_t)i : i % 24 ? 0 : 1, &found);
            if (*rc < 0 || found)
                return found;
        }
        reweigh(q);
    }
    return 0;
}

/* The largest stage of any device: a value within which everything is. */
static double ceiling(const struct large *q)
{
    double hi = 0;
    for (size_t d = 0; d < q->D; d++)
        for (size_t l = 0; l < q->L; l++)
            if (inst_last(q->p->in, d, l)) {
                double x = prob_stage(q->p, d, l, inst_last(q->p->in, d, l));
                hi = x < INFINITY && x > hi ? x : hi;
            }
    return q->p->kind == PROB_RATIO ? fmin(1, q->p->cap_ratio) : hi;
}

static int by_size(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* By size, or (part of 8) the larger ones alone. */
static void first_weights(struct large *q, int part)
{
    const struct inst *in = q->p->in;
    double total = 0;
    for (size_t l = 0; l < q->L; l++) {
        double least = q->p->kind == PROB_RATIO ? inst_bytes(in, l, l + 1) : INFINITY;
        for (size_t d = 0; q->p->kind != PROB_RATIO && d < q->D; d++)
            least = fmin(least, in->t[d * q->L + l]);
        q->sum[l] = q->weight[l] = least;
    }
    qsort(q->sum, q->L, sizeof *q->sum, by_size);
    double from = q->sum[q->L * (size_t)part / 8];
    for (size_t l = 0; l < q->L; l++) {
        q->weight[l] = part ? q->weight[l] >= from : q->weight[l];
        total += q->weight[l];
    }
    for (size_t l = 0; l < q->L; l++) {
        q->weight[l] = total > 0 ? q->weight[l] / total : 1 / (double)q->L;
        q->saved[l] = part ? q->saved[l] : q->weight[l];
    }
    q->sum[0] = 0;
}

/* Layers that device d can hold within v when all are alike. */
static size_t holds(const struct large *q, size_t d, double v)
{
    size_t lo = 0, hi = inst_last(q->p->in, d, 0);
    while (lo < hi) {
        size_t mid = (lo + hi + 1) / 2;
        if (value(q, d, 0, mid, true) <= v)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}
static bool enough(const struct large *q, double v)
{
    size_t sum = 0;
    for (size_t d = 0; d < q->D && sum < q->L; d++)
        sum += holds(q, d, v);
    return sum >= q->L;
}

/* Layers all alike: only how many each device holds matters. Leaves the rest to others when hops are slower.
 */
static int by_count(struct large *q, double top)
{
    double lo = 0, hi = top;
    for (size_t d = 0; d < q->D; d++)
        if (!simple(q, d))
            return ST_OK;
    if (!inst_alike(q->p->in) || !enough(q, hi))
        return ST_OK;
    for (int i = 0; i < 100 && lo < hi * (1 - 1e-11); i++) {
        double mid = i < 20 && lo == 0 ? hi / 8 : lo + (hi - lo) / 2;
        if (enough(q, mid))
            hi = mid;
        else
            lo = mid;
    }
    q->bound = lo;
    for (size_t d = 0, l = 0; d < q->D; d++)
        for (size_t k = holds(q, d, hi); k > 0 && l < q->L; k--)
            q->trial[l++] = (uint32_t)d;
    struct eval ev;
    int rc = eval_run(q->p->in, q->trial, &ev);
    if (rc < 0)
        return rc == ST_EINFEASIBLE ? ST_OK : rc;
    double got = q->p->kind == PROB_BOTTLENECK ? ev.bottleneck : ev.ratio;
    if (q->p->kind == PROB_BOTTLENECK ? ev.ratio <= q->p->cap_ratio : ev.bottleneck <= q->p->cap_bottleneck) {
        q->best = got;
        memcpy(q->on, q->trial, q->L * sizeof *q->on);
    }
    eval_fini(&ev);
    return ST_OK;
}

static int by_value(struct large *q)
{
    double lo, hi, top = ceiling(q);
    int rc;
    for (size_t d = 0; d < q->D; d++) /* segment tables may be slowest anywhere */
        for (size_t l = 0; q->p->kind == PROB_BOTTLENECK && !simple(q, d) && l < q->L; l++)
            for (size_t m = l + 1; m <= inst_last(q->p->in, d, l); m++) {
                double x = prob_stage(q->p, d, l, m);
                top = x < INFINITY && x > top ? x : top;
            }
    rc = by_count(q, top);
    if (rc < 0 || q->best <= q->bound * (1 + 1e-9))
        return rc;
    lo = q->bound;
    first_weights(q, 0);
    reach(q, top);
    if (weigh(q)) {
        q->bound = INFINITY; /* all devices together are too small */
        return ST_OK;
    }
    bool found;
    for (size_t even = 0; rc == ST_OK && q->best == INFINITY && even < 2; even++)
        rc = attempt(q, even, &found); /* whatever happens, a plan */
    hi = top;
    for (int i = 0; rc == ST_OK && i < 60 && hi - lo > 2e-2 * hi && spend(q); i++) {
        double mid = i < 20 && lo == 0 ? hi / 4 : lo + (hi - lo) / 2;
        reach(q, mid);
        if (weigh(q))
            lo = mid;
        else
            hi = mid;
    }
    q->bound = lo;
    for (int part = 1; part < 8 && q->bound > 0 && spend(q);
         part++) { /* few devices may be able to hold the larger layers */
        first_weights(q, part);
        reach(q, q->bound * 1.01);
        while (weigh(q) && spend(q)) {
            q->bound = q->v;
            for (size_t l = 0; l < q->L; l++)
                q->saved[l] = q->weight[l];
            reach(q, q->v * 1.01);
        }
    }
    memcpy(q->weight, q->saved, q->L * sizeof *q->weight);
    static const int weighings[] = {10, 40, 220};
    double up = 0.02;
    for (size_t w = 0; w < sizeof weighings / sizeof *weighings && rc == ST_OK; w++) {
        double tried = q->bound; /* no plan was found up to there */
        for (int i = 0; i < QUESTIONS && rc == ST_OK && q->best > tried * (1 + CLOSE) && spend(q); i++) {
            double at = q->best < INFINITY ? tried + (q->best - tried) / 2 : fmin(top, tried * (1 + up));
            at = at > 0 ? at : top * 1e-6;
            int yes = ask(q, at, weighings[w], &rc);
            if (yes < 0)
                q->bound = at;
            if (yes <= 0)
                tried = at;
            up *= q->best < INFINITY ? 1 : 3;
            if (q->best == INFINITY && at >= top)
                break;
        }
        double below = q->best * (1 - 2e-9);
        if (q->best <= q->bound * (1 + 2 * CLOSE) && below > q->bound && ask(q, below, weighings[w], &rc) < 0)
            q->bound = q->best;
    }
    /* above what was ruled out no plan was found: rule out more */
    for (int i = 0;
         i < 12 && rc == ST_OK && q->best < INFINITY && q->best > q->bound * (1 + CLOSE) && spend(q); i++) {
        double at = q->bound + (q->best - q->bound) * (i % 2 ? 0.75 : 0.35);
        if (ask(q, at, weighings[2], &rc) < 0)
            q->bound = at;
    }
    return rc;
}

static void large_fini(struct large *q)
{
    free(q->end);
    free(q->weight);
    free(q->saved);
    free(q->sum);
    free(q->worth);
    free(q->span);
    free(q->n_span);
    free(q->cover);
    free(q->stage);
    free(q->from);
    free(q->owner);
    free(q->seen);
    free(q->trial);
}

static int large_init(struct large *q, const struct prob *p, struct budget *b, uint32_t *on)
{
    size_t D = p->in->D, L = p->in->L, bytes = D * L * (sizeof *q->end + sizeof *q->span);
    *q = (struct large){.p = p, .b = b, .D = D, .L = L, .v = NAN, .best = INFINITY, .on = on};
    b->table_bytes = bytes > b->table_bytes ? bytes : b->table_bytes;
    q->end = malloc(D * L * sizeof *q->end);
    q->weight = malloc(L * sizeof *q->weight);
    q->saved = malloc(L * sizeof *q->saved);
    q->sum = calloc(L + 1, sizeof *q->sum);
    q->worth = malloc(D * sizeof *q->worth);
    q->span = malloc(D * L * sizeof *q->span);
    q->n_span = malloc(D * sizeof *q->n_span);
    q->cover = malloc((L + 1) * sizeof *q->cover);
    q->stage = malloc(D * sizeof *q->stage);
    q->from = malloc((L + 2) * sizeof *q->from);
    q->owner = malloc((L + 1) * sizeof *q->owner);
    q->seen = calloc(D, sizeof *q->seen);
    q->trial = malloc(L * sizeof *q->trial);
    return q->end && q->weight && q->saved && q->sum && q->worth && q->span && q->n_span && q->cover &&
                   q->stage && q->from && q->owner && q->seen && q->trial
               ? ST_OK
               : ST_ENOMEM;
}

int large_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    const struct inst *in = p->in;
    if (in->coupled || in->max_stages < in->D || in->min_nodes > 1 || p->kind == PROB_EXCESS)
        return ST_ELIMIT;
    s->solver = "large";
    int rc;
    if (prob_is_sum(p->kind)) {
        rc = lagrange_solve(p, b, s);
    } else {
        struct large q;
        rc = large_init(&q, p, b, s->on);
        if (rc == ST_OK)
            rc = by_value(&q);
        s->value = q.best;
        s->proven = q.bound == INFINITY || (q.best < INFINITY && q.best <= q.bound * (1 + 1e-9));
        s->bound = s->proven || q.bound > q.best ? q.best : q.bound;
        large_fini(&q);
    }
    if (rc == ST_OK && b->stop == ST_ECANCELED)
        rc = ST_ECANCELED;
    /* nothing found and nothing ruled out: the slow search may do better */
    return rc == ST_OK && s->value == INFINITY && !s->proven && b->stop == ST_OK ? ST_ELIMIT : rc;
}
