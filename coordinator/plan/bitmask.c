/*
 * Exact for chains: F[S][e][l] = least cost of running layers [l, L) when the stage that starts at l is on e
 * and exactly the devices of S are used from there on. Built from the end, so that ties fall to the device
 * and cut that come first. Only rows with e in S are stored. A state is dropped when even the relaxed cost of
 * what goes before it would pass the best whole plan so far; that never drops an optimum.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

#define SEED_FROM 10u /* devices from which a first upper bound pays for itself */
#define SEED_WIDTH 4u

struct mask {
    const struct prob *p;
    size_t D, L, W; /* W = L + 1 */
    size_t *off;    /* 2^D: rows before those of a set */
    double *f;      /* rows × W */
    unsigned char *live;
    double *stage; /* e, m, l: cost of [l, m) on e, so that the inner loop runs over l */
    size_t *lo;    /* e, m: first l with a finite cost */
    double *hop;   /* e, d, m */
    double *before, *after;
    double *arrive; /* W */
    double best;    /* or the limit, as long as nothing is found */
    bool found;
    unsigned best_set;
    size_t best_dev;
};

static void mask_fini(struct mask *k)
{
    free(k->off);
    free(k->f);
    free(k->live);
    free(k->stage);
    free(k->lo);
    free(k->hop);
    free(k->before);
    free(k->after);
    free(k->arrive);
}

static size_t row_of(const struct mask *k, unsigned set, size_t d)
{
    return k->off[set] + (size_t)__builtin_popcount(set & ((1u << d) - 1u));
}

static int mask_init(struct mask *k, const struct prob *p, struct budget *b)
{
    size_t D = k->D = p->in->D, L = k->L = p->in->L, W = k->W = L + 1;
    k->p = p;
    k->best = INFINITY;
    if (D == 0 || D > INST_EXACT_DEVICES)
        return ST_ELIMIT;
    size_t sets = (size_t)1 << D, rows = D << (D - 1);
    double bytes = (double)rows * (double)W * 8 + (double)D * (double)W * (double)(W + D + 4) * 8;
    if (bytes > (double)b->memory_limit)
        return ST_ELIMIT;
    b->table_bytes = (size_t)bytes > b->table_bytes ? (size_t)bytes : b->table_bytes;
    k->off = malloc(sets * sizeof *k->off);
    k->f = malloc(rows * W * sizeof *k->f);
    k->live = calloc(rows, 1);
    k->stage = malloc(D * W * W * sizeof *k->stage);
    k->lo = malloc(D * W * sizeof *k->lo);
    k->hop = malloc((D + 1) * (D + 1) * W * sizeof *k->hop);
    k->before = malloc(D * W * sizeof *k->before);
    k->after = malloc(D * W * sizeof *k->after);
    k->arrive = malloc(W * sizeof *k->arrive);
    if (!k->off || !k->f || !k->live || !k->stage || !k->lo || !k->hop || !k->before || !k->after ||
        !k->arrive)
        return ST_ENOMEM;
    size_t at = 0;
    for (size_t s = 0; s < sets; s++) {
        k->off[s] = at;
        at += (size_t)__builtin_popcount((unsigned)s);
    }
    for (size_t e = 0; e < D; e++)
        for (size_t m = 1; m <= L; m++) {
            k->lo[e * W + m] = m;
            for (size_t l = m; l-- > 0;) {
                double v = prob_stage(p, e, l, m);
                k->stage[(e * W + m) * W + l] = v;
                if (v < INFINITY)
                    k->lo[e * W + m] = l;
            }
        }
    for (size_t e = 0; e <= D; e++)
        for (size_t d = 0; d <= D; d++)
            for (size_t m = 0; m <= L; m++)
                k->hop[(e * (D + 1) + d) * W + m] = prob_hop(p, e, d, inst_cut_bytes(p->in, m));
    relax_run(p, k->before, k->after);
    return ST_OK;
}

static bool may_end(const struct mask *k, unsigned set)
{
    const struct inst *in = k->p->in;
    size_t nodes = 0;
    if ((size_t)__builtin_popcount(set) > in->max_stages)
        return false;
    for (size_t d = 0; d < k->D && nodes < in->min_nodes; d++) {
        bool first = set >> d & 1u;
        for (size_t e = 0; first && e < d; e++)
            first = !(set >> e & 1u) || in->node[e] != in->node[d];
        nodes += first;
    }
    return nodes >= in->min_nodes;
}

/* arrive[m] = least cost of everything after a stage on e that ends at m, using just the devices of set. */
static bool arrivals(struct mask *k, unsigned set, size_t e)
{
    bool any = false;
    double *a = k->arrive;
    for (size_t m = 0; m <= k->L; m++)
        a[m] = INFINITY;
    if (set == 0)
        a[k->L] = k->hop[(e * (k->D + 1) + k->D) * k->W + k->L];
    for (unsigned s = set; s; s &= s - 1) {
        size_t d = (size_t)__builtin_ctz(s), row = row_of(k, set, d);
        if (!k->live[row])
            continue;
        const double *f = &k->f[row * k->W], *h = &k->hop[(e * (k->D + 1) + d) * k->W];
        for (size_t m = 1; m < k->L; m++) {
            double v = prob_join(k->p->kind, h[m], f[m]);
            a[m] = v < a[m] ? v : a[m];
        }
    }
    bool sum = k->p->kind == PROB_LATENCY || k->p->kind == PROB_EXCESS;
    double limit = sum ? k->best * (1 + 1e-12) : k->best;
    for (size_t m = 1; m <= k->L; m++) {
        if (a[m] < INFINITY && !(prob_join(k->p->kind, k->before[e * k->W + m], a[m]) <= limit))
            a[m] = INFINITY;
        any = any || a[m] < INFINITY;
    }
    return any;
}

static void extend(struct mask *k, unsigned set, size_t e)
{
    if (!arrivals(k, set, e))
        return;
    unsigned with = set | 1u << e;
    size_t row = row_of(k, with, e);
    double *f = &k->f[row * k->W];
    bool sum = k->p->kind == PROB_LATENCY || k->p->kind == PROB_EXCESS;
    for (size_t l = 0; l <= k->L; l++)
        f[l] = INFINITY;
    k->live[row] = 1;
    for (size_t m = 1; m <= k->L; m++) {
        double a = k->arrive[m];
        if (a == INFINITY)
            continue;
        const double *v = &k->stage[(e * k->W + m) * k->W];
        if (sum)
            for (size_t l = k->lo[e * k->W + m]; l < m; l++) {
                double x = v[l] + a;
                f[l] = x < f[l] ? x : f[l];
            }
        else
            for (size_t l = k->lo[e * k->W + m]; l < m; l++) {
                double x = v[l] > a ? v[l] : a;
                f[l] = x < f[l] ? x : f[l];
            }
    }
    double total = prob_join(k->p->kind, k->hop[(k->D * (k->D + 1) + e) * k->W], f[0]);
    if (total == INFINITY || total > k->best || !may_end(k, with))
        return;
    if (!k->found || total < k->best || __builtin_popcount(with) < __builtin_popcount(k->best_set) ||
        (with == k->best_set && e < k->best_dev)) {
        k->found = true;
        k->best = total;
        k->best_set = with;
        k->best_dev = e;
    }
}

/* Walks the optimum forwards; the same additions in the same order, so equality is exact. */
static bool trace(const struct mask *k, uint32_t *on)
{
    unsigned set = k->best_set;
    size_t e = k->best_dev, l = 0;
    while (l < k->L) {
        double want = k->f[row_of(k, set, e) * k->W + l];
        unsigned rest = set & ~(1u << e);
        size_t m = l + 1, d = 0;
        bool found = false;
        for (; m <= k->L && !found; m++) {
            double v = k->stage[(e * k->W + m) * k->W + l];
            if (m == k->L && rest == 0)
                found = prob_join(k->p->kind, v, k->hop[(e * (k->D + 1) + k->D) * k->W + m]) == want;
            for (d = 0; m < k->L && d < k->D && !found; d++) {
                if (!(rest >> d & 1u) || !k->live[row_of(k, rest, d)])
                    continue;
                double a = prob_join(k->p->kind, k->hop[(e * (k->D + 1) + d) * k->W + m],
                                     k->f[row_of(k, rest, d) * k->W + m]);
                found = prob_join(k->p->kind, v, a) == want;
            }
        }
        if (!found)
            return false;
        for (m--; l < m; l++)
            on[l] = (uint32_t)e;
        set = rest;
        e = d - 1;
    }
    return true;
}

int bitmask_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    struct mask k = {0};
    int rc = p->in->coupled ? ST_ELIMIT : mask_init(&k, p, b);
    k.best = s->limit;
    if (rc == ST_OK && k.best == INFINITY && k.D >= SEED_FROM) {
        uint32_t *on = malloc(k.L * sizeof *on);
        rc = on ? search_quick(p, b, SEED_WIDTH, on, &k.best) : ST_ENOMEM;
        k.best *= 1 + 1e-12; /* another order of additions; the plan itself must not be cut off */
        free(on);
    }
    for (unsigned set = 0; rc == ST_OK && set < 1u << k.D; set++) {
        if ((size_t)__builtin_popcount(set) >= p->in->max_stages)
            continue;
        bool any = set == 0;
        for (size_t r = 0; r < (size_t)__builtin_popcount(set); r++)
            any = any || k.live[k.off[set] + r];
        if (!any)
            continue;
        if (!budget_spend(b, k.D))
            rc = b->stop;
        for (size_t e = 0; e < k.D; e++)
            if (!(set >> e & 1u))
                extend(&k, set, e);
    }
    if (rc == ST_OK) {
        s->value = k.found ? k.best : INFINITY;
        s->bound = k.best;
        s->proven = true;
        s->solver = "bitmask";
        if (k.found && !trace(&k, s->on))
            rc = ST_EINTERNAL;
    }
    mask_fini(&k);
    return rc;
}
