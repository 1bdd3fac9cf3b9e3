/*
 * Exact for largest values over chains (bottleneck, memory ratio): for a value v, R[S][e] is the set of
 * positions m such that exactly the devices of S can run [0, m), the last stage on e, with no stage and no
 * hop above v. A set of positions is a few words, so one question costs little more than a walk over the
 * subsets. The values that a plan can have are those of single stages and hops: the smallest possible one is
 * found by bisection over them, and every answer "possible" gives a plan whose own value is the next upper
 * limit.
 */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

#define GALLOPS 8
#define INLINE static inline __attribute__((always_inline)) /* for a fixed number of words */

struct reach {
    const struct prob *p;
    struct budget *b;
    size_t D, L, W, words;
    uint64_t *r;        /* set, e: positions; position m is bit m − 1 everywhere */
    uint16_t *alive;    /* set: the e whose row is not empty; only those are valid */
    uint32_t *span;     /* set: the longest runs of its devices together */
    uint64_t *ends;     /* e, l: ends of runs within the value */
    uint64_t *starts;   /* e: starts above 0 that have an end */
    uint64_t *cross;    /* e, d: cuts whose hop is within the value */
    uint64_t *keep;     /* e: ends from which the relaxed rest is within the value */
    uint32_t *furthest; /* e, l: the last of those ends */
    size_t *longest;    /* e: length of its longest run */
    bool *forward;      /* e: later starts never end earlier */
    double *hop;        /* e, d, m */
    double *before, *after;
    unsigned set; /* of the last possible answer */
    size_t dev;
};

static void reach_fini(struct reach *k)
{
    free(k->r);
    free(k->alive);
    free(k->span);
    free(k->ends);
    free(k->starts);
    free(k->cross);
    free(k->keep);
    free(k->furthest);
    free(k->longest);
    free(k->forward);
    free(k->hop);
    free(k->before);
    free(k->after);
}

static bool bit(const uint64_t *v, size_t i)
{
    return v[i / 64] >> (i % 64) & 1u;
}
static void put(uint64_t *v, size_t i)
{
    v[i / 64] |= (uint64_t)1 << (i % 64);
}
/* The first bit from i on, or words·64. */
INLINE size_t next_bit(const uint64_t *v, size_t words, size_t i)
{
    for (size_t w = i / 64; w < words; w++) {
        uint64_t x = w == i / 64 ? v[w] & ~(uint64_t)0 << (i % 64) : v[w];
        if (x)
            return w * 64 + (size_t)__builtin_ctzll(x);
    }
    return words * 64;
}
/* The last bit at or before i, or SIZE_MAX. */
INLINE size_t prev_bit(const uint64_t *v, size_t i)
{
    for (size_t w = i / 64 + 1; w-- > 0;) {
        uint64_t x = w == i / 64 && i % 64 < 63 ? v[w] & (((uint64_t)1 << (i % 64 + 1)) - 1) : v[w];
        if (x)
            return w * 64 + 63 - (size_t)__builtin_clzll(x);
    }
    return SIZE_MAX;
}

static uint64_t *row_of(const struct reach *k, unsigned set, size_t d)
{
    return &k->r[(set * k->D + d) * k->words];
}

static int reach_init(struct reach *k, const struct prob *p, struct budget *b)
{
    size_t D = k->D = p->in->D, L = k->L = p->in->L, W = k->W = L + 1, n = k->words = (L + 63) / 64;
    k->p = p;
    k->b = b;
    if (D == 0 || D > INST_EXACT_DEVICES)
        return ST_ELIMIT;
    size_t sets = (size_t)1 << D, rows = D << D;
    double bytes = ((double)rows + (double)D * (double)W + (double)((D + 1) * (D + 1))) * (double)n * 8 +
                   (double)sets * 6 + (double)((D + 1) * (D + 1)) * (double)W * 8 +
                   (double)D * (double)W * 20;
    if (bytes > (double)b->memory_limit)
        return ST_ELIMIT;
    b->table_bytes = (size_t)bytes > b->table_bytes ? (size_t)bytes : b->table_bytes;
    k->alive = malloc(sets * sizeof *k->alive);
    k->span = calloc(sets, sizeof *k->span);
    k->r = malloc(rows * n * sizeof *k->r);
    k->ends = malloc(D * W * n * sizeof *k->ends);
    k->starts = malloc(D * n * sizeof *k->starts);
    k->cross = malloc((D + 1) * (D + 1) * n * sizeof *k->cross);
    k->keep = malloc(D * n * sizeof *k->keep);
    k->furthest = malloc(D * W * sizeof *k->furthest);
    k->longest = calloc(D, sizeof *k->longest);
    k->forward = calloc(D, sizeof *k->forward);
    k->hop = malloc((D + 1) * (D + 1) * W * sizeof *k->hop);
    k->before = malloc(D * W * sizeof *k->before);
    k->after = malloc(D * W * sizeof *k->after);
    if (!k->alive || !k->span || !k->r || !k->ends || !k->starts || !k->cross || !k->keep || !k->furthest ||
        !k->longest || !k->forward || !k->hop || !k->before || !k->after)
        return ST_ENOMEM;
    for (size_t e = 0; e <= D; e++)
        for (size_t d = 0; d <= D; d++)
            for (size_t m = 0; m <= L; m++)
                k->hop[(e * (D + 1) + d) * W + m] = prob_hop(p, e, d, inst_cut_bytes(p->in, m));
    return ST_OK;
}

/* What single devices and hops can do within v. */
static void prepare(struct reach *k, double v)
{
    size_t D = k->D, L = k->L, W = k->W, n = k->words;
    const struct inst *in = k->p->in;
    memset(k->ends, 0, D * W * n * sizeof *k->ends);
    memset(k->starts, 0, D * n * sizeof *k->starts);
    memset(k->cross, 0, (D + 1) * (D + 1) * n * sizeof *k->cross);
    memset(k->keep, 0, D * n * sizeof *k->keep);
    for (size_t e = 0; e < D; e++) {
        size_t high = 0;
        k->longest[e] = 0;
        k->forward[e] = true;
        for (size_t l = 0; l < L; l++) {
            uint64_t *ends = &k->ends[(e * W + l) * n];
            size_t end = 0, holes = 0, gaps = 0;
            for (size_t m = l + 1, last = inst_last(in, e, l); m <= last; m++) {
                if (m == L || !in->glued[m]) {
                    if (prob_stage(k->p, e, l, m) <= v) {
                        put(ends, m - 1);
                        end = m;
                        holes += gaps;
                        gaps = 0;
                    } else {
                        gaps++;
                    }
                }
            }
            k->furthest[e * W + l] = (uint32_t)end;
            if (!end)
                continue;
            if (l > 0)
                put(&k->starts[e * n], l - 1);
            k->longest[e] = end - l > k->longest[e] ? end - l : k->longest[e];
            k->forward[e] = k->forward[e] && holes == 0 && end >= high;
            high = end;
        }
        for (size_t m = 1; m <= L; m++)
            if (k->after[e * W + m] <= v)
                put(&k->keep[e * n], m - 1);
    }
    for (size_t i = 0; i < (D + 1) * (D + 1); i++)
        for (size_t m = 1; m <= L; m++)
            if (k->hop[i * W + m] <= v)
                put(&k->cross[i * n], m - 1);
    for (unsigned set = 1; set < 1u << D; set++)
        k->span[set] = k->span[set & (set - 1)] + (uint32_t)k->longest[__builtin_ctz(set)];
    memset(k->alive, 0, ((size_t)1 << D) * sizeof *k->alive);
}

/* from = where a stage on e may start when exactly the devices of set, at least one, ran what goes before. */
INLINE bool arrivals(const struct reach *k, unsigned set, size_t e, uint64_t *from, size_t n)
{
    size_t D = k->D;
    uint64_t any = 0;
    memset(from, 0, n * sizeof *from);
    for (unsigned s = k->alive[set]; s; s &= s - 1) {
        size_t d = (size_t)__builtin_ctz(s);
        const uint64_t *r = row_of(k, set, d), *x = &k->cross[(d * (D + 1) + e) * n];
        for (size_t w = 0; w < n; w++)
            from[w] |= r[w] & x[w];
    }
    for (size_t w = 0; w < n; w++)
        any |= from[w] &= k->starts[e * n + w];
    return any;
}

/* out = ends of runs from any of those starts. */
INLINE void extend(const struct reach *k, size_t e, const uint64_t *from, uint64_t *out, size_t n)
{
    size_t i = next_bit(from, n, 0);
    memset(out, 0, n * sizeof *out);
    while (i < n * 64) {
        const uint64_t *ends = &k->ends[(e * k->W + i + 1) * n];
        for (size_t w = 0; w < n; w++)
            out[w] |= ends[w];
        size_t far = k->furthest[e * k->W + i + 1] - 1, last = prev_bit(from, far);
        /* all that starts between here and the end of this run ends no later than its last start does */
        i = k->forward[e] && last != SIZE_MAX && last > i ? last : next_bit(from, n, i + 1);
    }
}

static bool may_end(const struct inst *in, unsigned set)
{
    size_t nodes = 0;
    for (size_t d = 0; d < in->D && nodes < in->min_nodes; d++) {
        bool first = set >> d & 1u;
        for (size_t e = 0; first && e < d; e++)
            first = !(set >> e & 1u) || in->node[e] != in->node[d];
        nodes += first;
    }
    return nodes >= in->min_nodes;
}

/* Drops the ends that the devices outside `with` cannot complete. False when none is left. */
INLINE bool thin(const struct reach *k, unsigned with, size_t e, uint64_t *out, size_t n)
{
    size_t rest = k->span[((1u << k->D) - 1) & ~with], least = rest < k->L ? k->L - rest - 1 : 0;
    uint64_t any = 0;
    for (size_t w = 0; w < n; w++) {
        out[w] &= k->keep[e * n + w];
        if (w < least / 64)
            out[w] = 0;
        else if (w == least / 64)
            out[w] &= ~(uint64_t)0 << (least % 64);
        any |= out[w];
    }
    return any;
}

/* One stage on e after the devices of set: its row. False when it is empty. */
INLINE bool step(const struct reach *k, unsigned set, size_t e, double v, uint64_t *from, uint64_t *out,
                 size_t n)
{
    if (set == 0) {
        if (k->hop[(k->D * (k->D + 1) + e) * k->W] > v)
            return false;
        memcpy(out, &k->ends[e * k->W * n], n * sizeof *out);
    } else {
        if (!arrivals(k, set, e, from, n))
            return false;
        extend(k, e, from, out, n);
    }
    return thin(k, set | 1u << e, e, out, n);
}

/* 1 = a plan within the value exists (k->set, k->dev), 0 = none does, or a negative status. */
static int possible(struct reach *k, double v, uint64_t *from)
{
    size_t D = k->D, L = k->L, n = k->words;
    prepare(k, v);
    for (unsigned set = 0; set < 1u << D; set++) {
        if ((set && !k->alive[set]) || (size_t)__builtin_popcount(set) >= k->p->in->max_stages)
            continue;
        if (!budget_spend(k->b, D))
            return k->b->stop;
        for (unsigned rest = ((1u << D) - 1) & ~set; rest; rest &= rest - 1) {
            size_t e = (size_t)__builtin_ctz(rest);
            unsigned with = set | 1u << e;
            uint64_t *out = row_of(k, with, e), two[2];
            if (!(n == 2   ? step(k, set, e, v, two, out, 2)
                  : n == 1 ? step(k, set, e, v, two, out, 1)
                           : step(k, set, e, v, from, out, n)))
                continue;
            k->alive[with] |= (uint16_t)(1u << e);
            if (bit(out, L - 1) && bit(&k->cross[(e * (D + 1) + D) * n], L - 1) && may_end(k->p->in, with)) {
                k->set = with;
                k->dev = e;
                return 1;
            }
        }
    }
    return 0;
}

/* The plan behind the last possible answer, and its value. */
static double trace(const struct reach *k, uint32_t *on, uint64_t *from)
{
    unsigned set = k->set;
    size_t e = k->dev, m = k->L, D = k->D, n = k->words;
    double v = k->hop[(e * (D + 1) + D) * k->W + m];
    for (;;) {
        unsigned rest = set & ~(1u << e);
        size_t l = 0, d = 0;
        if (rest) {
            if (!arrivals(k, rest, e, from, n))
                return INFINITY;
            l = next_bit(from, n, 0) + 1;
            while (l < m && !bit(&k->ends[(e * k->W + l) * n], m - 1))
                l = next_bit(from, n, l) + 1;
        }
        if (l >= m)
            return INFINITY;
        v = prob_join(k->p->kind, v, prob_stage(k->p, e, l, m));
        for (size_t i = l; i < m; i++)
            on[i] = (uint32_t)e;
        if (l == 0)
            return prob_join(k->p->kind, v, k->hop[(D * (D + 1) + e) * k->W]);
        while (!(k->alive[rest] >> d & 1u) || !bit(row_of(k, rest, d), l - 1) ||
               !bit(&k->cross[(d * (D + 1) + e) * n], l - 1))
            d++;
        v = prob_join(k->p->kind, v, k->hop[(d * (D + 1) + e) * k->W + l]);
        set = rest;
        e = d;
        m = l;
    }
}

static int by_value(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* Every value of a stage or a hop in (lo, hi), sorted, each once. */
static int candidates(const struct reach *k, double lo, double hi, double **out, size_t *n)
{
    size_t cap = 0, D = k->D;
    double *v = NULL;
    *n = 0;
    for (size_t pass = 0; pass < 2; pass++) {
        size_t at = 0;
        for (size_t e = 0; e < D; e++)
            for (size_t l = 0; l < k->L; l++)
                for (size_t m = l + 1, last = inst_last(k->p->in, e, l); m <= last; m++) {
                    double x = prob_stage(k->p, e, l, m);
                    if (x > lo && x < hi) {
                        if (pass)
                            v[at] = x;
                        at++;
                    }
                }
        for (size_t i = 0; i < (D + 1) * (D + 1) * k->W; i++)
            if (k->hop[i] > lo && k->hop[i] < hi) {
                if (pass)
                    v[at] = k->hop[i];
                at++;
            }
        if (!pass && !(v = malloc(((cap = at) + 1) * sizeof *v)))
            return ST_ENOMEM;
    }
    qsort(v, cap, sizeof *v, by_value);
    for (size_t i = 0; i < cap; i++)
        if (*n == 0 || v[i] > v[*n - 1])
            v[(*n)++] = v[i];
    *out = v;
    return ST_OK;
}

/* Bisection over the values between what is impossible (lo) and what was found (hi). */
static int descend(struct reach *k, double lo, double *hi, uint32_t *on, uint64_t *from)
{
    double *v = NULL;
    size_t n = 0, a = 0;
    int rc = candidates(k, lo, *hi, &v, &n);
    while (rc == ST_OK && a < n) {
        size_t mid = a + (n - a) / 2;
        int yes = possible(k, v[mid], from);
        if (yes < 0) {
            rc = yes;
        } else if (!yes) {
            a = mid + 1;
        } else {
            *hi = trace(k, on, from);
            if (*hi == INFINITY)
                rc = ST_EINTERNAL;
            for (n = mid; n > a && v[n - 1] >= *hi;)
                n--;
        }
    }
    free(v);
    return rc;
}

static int climb(struct reach *k, double lo, struct solution *s, uint64_t *from)
{
    static const double step[GALLOPS] = {0, 0.02, 0.06, 0.15, 0.4, 1, 4, INFINITY};
    double below = -1, hi = INFINITY;
    int yes = 0;
    for (int i = 0; i < GALLOPS && yes == 0 && below < s->limit; i++) {
        double v = step[i] < INFINITY ? lo * (1 + step[i]) : INFINITY;
        v = v < s->limit ? v : s->limit;
        if (v <= below)
            continue;
        if ((yes = possible(k, fmin(v, DBL_MAX), from)) == 0)
            below = v;
    }
    if (yes < 0)
        return yes;
    if (yes && (hi = trace(k, s->on, from)) == INFINITY)
        return ST_EINTERNAL;
    int rc = yes ? descend(k, below > lo * (1 - 1e-12) ? below : lo * (1 - 1e-12), &hi, s->on, from) : ST_OK;
    s->value = hi;
    return rc;
}

int reach_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    struct reach k = {0};
    uint64_t *from = NULL;
    int rc = p->in->coupled ? ST_ELIMIT : reach_init(&k, p, b);
    if (rc == ST_OK && !(from = malloc(k.words * sizeof *from)))
        rc = ST_ENOMEM;
    s->value = INFINITY;
    double lo = rc == ST_OK ? fmax(relax_run(p, k.before, k.after), cover_bound(p)) : 0;
    if (rc == ST_OK && lo < INFINITY)
        rc = climb(&k, lo, s, from);
    if (rc == ST_OK) {
        s->bound = s->value < INFINITY ? s->value : s->limit;
        s->proven = true;
        s->solver = "bitmask";
    }
    free(from);
    reach_fini(&k);
    return rc;
}
