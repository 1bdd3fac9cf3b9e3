/*
 * Exact for sums over chains: F[S][e][l] = least cost of running layers [l, L) when the stage that starts at
 * l is on e and exactly the devices of S are used from there on. Built from the end. A value is dropped when
 * it cannot be part of a plan as good as the best so far: by the relaxed cost of what goes before it, or by
 * the least that the devices left over take for the layers before it, each filled no further than its longest
 * run (fill_bound). Neither ever drops an optimum. Rows that are dropped whole take no memory, and mostly
 * that is nearly all of them.
 *
 * Where a device's runs are sums of layer times within a window that only moves forward, the best cut of
 * every start is a sliding-window minimum; other tables (measured segments that may go anywhere) are walked.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"
#include "coordinator/plan/minplus.h"

#define SEED_FROM 9u /* devices from which a first upper bound pays for itself */
#define SEED_WIDTH 4u
#define SLACK 1e-11 /* relative; other orders of additions must not cut off an optimum */
#define RUNGS 17u   /* levels of the ladder: 2^17 is above any number of layers */
#define SMOOTH_MAX                                                                                           \
    64.0 /* a device slower than this many optima loses digits in differences of prefix sums                 \
          */

/* What of F[set][e] is not dropped: starts [lo, hi), at a place of the arena. */
struct row {
    uint32_t at; /* plus one; 0 = dropped whole */
    uint16_t lo, hi;
};
struct mask {
    const struct prob *p;
    struct budget *b;
    size_t D, L, W;       /* W = L + 1 */
    struct row *row;      /* set, e */
    size_t filled, chunk; /* doubles of the arena that are taken, and in a chunk of it */
    double *temp;         /* W */
    uint32_t *begin;      /* e, m: the first start from which m can be reached */
    double *stage;        /* e, m, l: cost of [l, m) on e; only for devices that are not smooth */
    uint32_t *lo;         /* e, m: first l with a cost within the limit */
    bool *smooth;         /* D */
    double *prefix;       /* e, l */
    uint32_t *last;       /* e, l: the last end from l; 0 = none */
    double *hop;          /* e, d, m */
    double *into;         /* e, l: relaxed cost of [0, l) and of the hop to e */
    double *before;
    double *arrive; /* W */
    const struct minplus *v;
    double *ladder; /* levels of stride each */
    size_t stride;
    uint32_t *pick;   /* e, l: the two entries of the ladder that cover l's window */
    unsigned *levels; /* e */
    size_t dirty_lo[RUNGS + 1], dirty_hi[RUNGS + 1]; /* entries of each level that are not INFINITY */
    /* fill_bound: a unit of work is what the fastest device does in a second */
    double *work;                /* l: work of [0, l) */
    double *rate, *most;         /* e: least seconds a unit; most work in one run */
    uint32_t *by_rate, *by_most; /* devices, the cheapest and the largest first */
    double hop_least, open_least, first_least;
    double *fill; /* W */
    double best;  /* or the limit, as long as nothing is found */
    bool found;
    unsigned best_set;
    size_t best_dev;
};

static void mask_fini(struct mask *k)
{
    free(k->row);
    free(k->temp);
    free(k->begin);
    free(k->stage);
    free(k->lo);
    free(k->smooth);
    free(k->prefix);
    free(k->last);
    free(k->hop);
    free(k->into);
    free(k->before);
    free(k->ladder);
    free(k->pick);
    free(k->levels);
    free(k->arrive);
    free(k->work);
    free(k->rate);
    free(k->most);
    free(k->by_rate);
    free(k->by_most);
    free(k->fill);
}

/* A row, to be indexed by start, within [lo, hi) only. */
static double *row_of(const struct mask *k, const struct row *r)
{
    size_t at = r->at - 1;
    return &k->b->chunk[at / k->chunk][at % k->chunk] - r->lo;
}

/* Keeps f[lo, hi). */
static int row_keep(struct mask *k, struct row *r, const double *f, size_t lo, size_t hi)
{
    size_t n = hi - lo;
    if (k->filled % k->chunk + n > k->chunk)
        k->filled += k->chunk - k->filled % k->chunk;
    if (k->filled + n > UINT32_MAX)
        return ST_ELIMIT;
    if (k->filled / k->chunk == k->b->n_chunks) {
        int rc = budget_chunk(k->b);
        if (rc < 0)
            return rc;
    }
    *r = (struct row){(uint32_t)k->filled + 1, (uint16_t)lo, (uint16_t)hi};
    memcpy(row_of(k, r) + lo, f + lo, n * sizeof *f);
    k->filled += n;
    return ST_OK;
}

/* Narrows [*lo, *hi) to what is finite; false when nothing is. */
static bool narrow(const double *f, size_t *lo, size_t *hi)
{
    while (*lo < *hi && f[*lo] == INFINITY)
        ++*lo;
    while (*hi > *lo && f[*hi - 1] == INFINITY)
        --*hi;
    return *lo < *hi;
}

/* The last end of a run from each start; whether they make a window without gaps that only moves forward. */
static bool fill_last(struct mask *k, size_t e)
{
    const struct inst *in = k->p->in;
    uint32_t *last = &k->last[e * k->W], high = 0;
    bool ok = true;
    for (size_t m = 0; m <= k->L; m++)
        k->begin[e * k->W + m] = (uint32_t)k->W;
    for (size_t l = 0; l < k->L; l++) {
        size_t gaps = 0;
        last[l] = 0;
        for (size_t m = l + 1; m <= inst_last(in, e, l); m++) {
            if (prob_stage(k->p, e, l, m) < INFINITY) {
                last[l] = (uint32_t)m;
                ok = ok && gaps == 0;
            } else {
                gaps += m == k->L || !in->glued[m]; /* no cut there for anyone */
            }
        }
        ok = ok && (!last[l] || last[l] >= high);
        for (size_t m = high + 1; m <= last[l]; m++)
            k->begin[e * k->W + m] = (uint32_t)l;
        high = last[l] > high ? last[l] : high;
    }
    return ok;
}

/* Is every run of e a difference of prefix sums? Then which rungs of the ladder cover its windows. */
static bool is_smooth(struct mask *k, size_t e, double least)
{
    const struct inst *in = k->p->in;
    double *prefix = &k->prefix[e * k->W];
    bool ok = fill_last(k, e) && k->p->kind == PROB_LATENCY && !in->table &&
              !in->c->devices[in->dev[e]].has_segment;
    prefix[0] = 0;
    for (size_t l = 0; l < k->L; l++) {
        uint32_t last = k->last[e * k->W + l], *pick = &k->pick[(e * k->W + l) * 2];
        prefix[l + 1] = prefix[l] + in->t[e * k->L + l];
        pick[0] = pick[1] = (uint32_t)k->W; /* INFINITY */
        if (!last)
            continue;
        unsigned rung = 31u - (unsigned)__builtin_clz(last - (uint32_t)l);
        pick[0] = rung * (uint32_t)k->stride + (uint32_t)l + 1;
        pick[1] = rung * (uint32_t)k->stride + last + 1 - (1u << rung);
        k->levels[e] = rung > k->levels[e] ? rung : k->levels[e];
    }
    return ok && prefix[k->L] <= SMOOTH_MAX * least;
}

static int fill_stage(struct mask *k)
{
    size_t L = k->L, W = k->W;
    double limit = k->best * (1 + SLACK);
    for (size_t e = 0; e < k->D; e++) {
        if (k->smooth[e])
            continue;
        if (!k->stage && !(k->stage = malloc(k->D * W * W * sizeof *k->stage)))
            return ST_ENOMEM;
        for (size_t m = 1; m <= L; m++) {
            k->lo[e * W + m] = (uint32_t)m;
            for (size_t l = m; l-- > 0;) {
                double v = prob_stage(k->p, e, l, m);
                k->stage[(e * W + m) * W + l] = v;
                if (v <= limit && v < INFINITY)
                    k->lo[e * W + m] = (uint32_t)l;
            }
        }
    }
    return ST_OK;
}

static void fill_tables(struct mask *k)
{
    const struct prob *p = k->p;
    size_t D = k->D, L = k->L, W = k->W;
    for (size_t e = 0; e <= D; e++)
        for (size_t d = 0; d <= D; d++)
            for (size_t m = 0; m <= L; m++)
                k->hop[(e * (D + 1) + d) * W + m] = prob_hop(p, e, d, inst_cut_bytes(p->in, m));
    for (size_t e = 0; e < D; e++)
        for (size_t l = 0; l < L; l++) {
            double v = l ? INFINITY : k->hop[(D * (D + 1) + e) * W];
            for (size_t d = 0; l && d < D; d++) {
                double x = k->before[d * W + l] + k->hop[(d * (D + 1) + e) * W + l];
                v = d != e && x < v ? x : v;
            }
            k->into[e * W + l] = v;
        }
}

/* Least seconds of a layer on a device in any segment. */
static double layer_least(const struct inst *in, size_t e, size_t i)
{
    const struct cluster_device *cd = &in->c->devices[in->dev[e]];
    if (in->table || !cd->has_segment || in->m->layers[in->layer[i]].type != LAYER_BLOCK)
        return in->t[e * in->L + i];
    double share = INFINITY;
    for (size_t n = 0; n < cd->nsegment; n++)
        share = fmin(share, cd->speed_factor * cd->segment_s[n] / (double)(n + 1));
    return share;
}

static void fill_prepare(struct mask *k)
{
    const struct inst *in = k->p->in;
    size_t D = k->D, L = k->L, W = k->W;
    for (size_t e = 0; e < D; e++)
        k->rate[e] = INFINITY;
    k->work[0] = 0;
    for (size_t l = 0; l < L; l++) {
        double unit = INFINITY;
        for (size_t e = 0; e < D; e++)
            unit = fmin(unit, layer_least(in, e, l));
        k->work[l + 1] = k->work[l] + (unit < INFINITY ? unit : 0);
        for (size_t e = 0; unit > 0 && unit < INFINITY && e < D; e++)
            k->rate[e] = fmin(k->rate[e], layer_least(in, e, l) / unit);
    }
    k->hop_least = k->open_least = k->first_least = INFINITY;
    for (size_t e = 0; e < D; e++) {
        k->most[e] = 0;
        k->rate[e] = k->rate[e] < INFINITY ? k->rate[e] * (1 - SLACK) : 0;
        for (size_t l = 0; l < L; l++)
            if (k->last[e * W + l])
                k->most[e] = fmax(k->most[e], (k->work[k->last[e * W + l]] - k->work[l]) * (1 + SLACK));
        k->open_least = fmin(k->open_least, in->open[e]);
        k->first_least = fmin(k->first_least, k->hop[(D * (D + 1) + e) * W]);
        for (size_t d = 0; d < D; d++)
            for (size_t m = 1; d != e && m < L; m++)
                k->hop_least = fmin(k->hop_least, k->hop[(e * (D + 1) + d) * W + m]);
        size_t i = e, j = e;
        for (; i > 0 && k->rate[k->by_rate[i - 1]] > k->rate[e]; i--)
            k->by_rate[i] = k->by_rate[i - 1];
        k->by_rate[i] = (uint32_t)e;
        for (; j > 0 && k->most[k->by_most[j - 1]] < k->most[e]; j--)
            k->by_most[j] = k->by_most[j - 1];
        k->by_most[j] = (uint32_t)e;
    }
}

/* fill[m] = at least what [0, m) costs on devices outside `set`; work flows to the cheapest of them first. */
static void fill_bound(const struct mask *k, unsigned set, double *fill)
{
    size_t D = k->D, L = k->L, i = 0, j = 0, stages = 0;
    double full = 0, spent = 0, held = 0; /* work and seconds of the devices filled up; room of the largest */
    for (size_t m = 1; m <= L; m++) {
        double w = k->work[m];
        while (i < D && ((set >> k->by_rate[i] & 1u) || full + k->most[k->by_rate[i]] < w)) {
            if (!(set >> k->by_rate[i] & 1u)) {
                full += k->most[k->by_rate[i]];
                spent += k->most[k->by_rate[i]] * k->rate[k->by_rate[i]];
            }
            i++;
        }
        while (j < D && (stages == 0 || held < w)) {
            if (!(set >> k->by_most[j] & 1u)) {
                held += k->most[k->by_most[j]];
                stages++;
            }
            j++;
        }
        if (i == D || stages == 0 || held < w) {
            fill[m] = INFINITY;
            continue;
        }
        fill[m] = spent + (w - full) * k->rate[k->by_rate[i]] + k->first_least + k->open_least +
                  (stages > 1 ? (double)(stages - 1) * (k->hop_least + k->open_least) : 0);
        fill[m] *= 1 - SLACK;
    }
}

static int mask_alloc(struct mask *k)
{
    size_t D = k->D, W = k->W, sets = (size_t)1 << D;
    k->row = calloc(sets * D, sizeof *k->row);
    k->temp = malloc(W * sizeof *k->temp);
    k->begin = malloc(D * W * sizeof *k->begin);
    k->lo = malloc(D * W * sizeof *k->lo);
    k->smooth = calloc(D, sizeof *k->smooth);
    k->prefix = malloc(D * W * sizeof *k->prefix);
    k->last = calloc(D * W, sizeof *k->last);
    k->hop = malloc((D + 1) * (D + 1) * W * sizeof *k->hop);
    k->into = malloc(D * W * sizeof *k->into);
    k->before = malloc(D * W * sizeof *k->before);
    k->ladder = malloc((RUNGS + 1) * k->stride * sizeof *k->ladder);
    k->pick = malloc(D * W * 2 * sizeof *k->pick);
    k->levels = calloc(D, sizeof *k->levels);
    k->arrive = malloc(W * sizeof *k->arrive);
    k->work = calloc(W, sizeof *k->work);
    k->rate = malloc(D * sizeof *k->rate);
    k->most = malloc(D * sizeof *k->most);
    k->by_rate = malloc(D * sizeof *k->by_rate);
    k->by_most = malloc(D * sizeof *k->by_most);
    k->fill = calloc(W, sizeof *k->fill);
    return k->row && k->temp && k->begin && k->lo && k->smooth && k->prefix && k->last && k->hop && k->into &&
                   k->before && k->ladder && k->pick && k->levels && k->arrive && k->work && k->rate &&
                   k->most && k->by_rate && k->by_most && k->fill
               ? ST_OK
               : ST_ENOMEM;
}

static int mask_init(struct mask *k, const struct prob *p, struct budget *b, double limit)
{
    size_t D = k->D = p->in->D, L = k->L = p->in->L, W = k->W = L + 1;
    k->p = p;
    k->b = b;
    k->best = limit;
    k->stride = 3 * W; /* a level reads up to its own span beyond W */
    if (D == 0 || D > INST_EXACT_DEVICES || W > UINT16_MAX)
        return ST_ELIMIT;
    if (!b->n_chunks) {
        double all = (double)(D << (D - 1)) * (double)W * sizeof(double);
        b->chunk_bytes = all < (double)BUDGET_CHUNK ? (size_t)all : BUDGET_CHUNK;
    }
    k->chunk = b->chunk_bytes / sizeof(double);
    if (k->chunk < W)
        return ST_ELIMIT;
    double bytes = (double)(D << D) * sizeof *k->row + (double)D * (double)W * (double)(W + D + 9) * 8;
    if (bytes > (double)b->memory_limit)
        return ST_ELIMIT;
    b->table_bytes = (size_t)bytes > b->table_bytes ? (size_t)bytes : b->table_bytes;
    if (mask_alloc(k) < 0)
        return ST_ENOMEM;
    double least = relax_before(p, k->before);
    for (size_t i = 0; i < (RUNGS + 1) * k->stride; i++)
        k->ladder[i] = INFINITY;
    for (size_t e = 0; e < D; e++)
        k->smooth[e] = is_smooth(k, e, least);
    fill_tables(k);
    if (p->kind == PROB_LATENCY)
        fill_prepare(k);
    if (least == INFINITY) { /* not even with devices used over and over */
        k->best = -1;
    } else if (k->best == INFINITY && D >= SEED_FROM) {
        uint32_t *on = malloc(L * sizeof *on);
        int rc = on ? search_quick(p, b, SEED_WIDTH, on, &k->best) : ST_ENOMEM;
        free(on);
        if (rc < 0)
            return rc;
        k->best *= 1 + SLACK; /* the plan itself must not be cut off */
    }
    return fill_stage(k);
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

/* arrive[m] = least cost of everything after a stage on e that ends at m, using just the devices of set; for
 * m in [*lo, *hi), nothing outside. */
static bool arrivals(struct mask *k, unsigned set, size_t e, size_t *lo, size_t *hi)
{
    double *a = k->arrive;
    *lo = set ? k->W : k->L;
    *hi = set ? 0 : k->W;
    for (unsigned s = set; s; s &= s - 1) {
        const struct row *r = &k->row[set * k->D + (size_t)__builtin_ctz(s)];
        *lo = r->at && r->lo < *lo ? r->lo : *lo;
        *hi = r->at && r->hi > *hi ? r->hi : *hi;
    }
    for (size_t m = *lo; m < *hi; m++)
        a[m] = INFINITY;
    if (set == 0)
        a[k->L] = k->hop[(e * (k->D + 1) + k->D) * k->W + k->L];
    for (unsigned s = set; s; s &= s - 1) {
        size_t d = (size_t)__builtin_ctz(s);
        const struct row *r = &k->row[set * k->D + d];
        if (r->at)
            k->v->least(a + r->lo, &k->hop[(e * (k->D + 1) + d) * k->W] + r->lo, row_of(k, r) + r->lo,
                        (size_t)(r->hi - r->lo));
    }
    return *lo < *hi &&
           k->v->prune(a + *lo, &k->before[e * k->W + *lo], k->fill + *lo, k->best * (1 + SLACK),
                       *hi - *lo) &&
           narrow(a, lo, hi);
}

/* Entries of a level outside [lo, hi) become INFINITY again. */
static void wipe(struct mask *k, unsigned level, size_t lo, size_t hi)
{
    double *t = &k->ladder[level * k->stride];
    for (size_t i = k->dirty_lo[level]; i < k->dirty_hi[level]; i++)
        if (i < lo || i >= hi)
            t[i] = INFINITY;
    k->dirty_lo[level] = lo;
    k->dirty_hi[level] = hi;
}

/* f[l] = least arrive[m] + run(l, m) over the window of l: two overlapping rungs of the ladder cover it.
 * f for [from, hi), arrive in [lo, hi). */
static void slide(struct mask *k, size_t e, double *f, size_t from, size_t lo, size_t hi)
{
    const double *prefix = &k->prefix[e * k->W];
    const uint32_t *pick = &k->pick[e * k->W * 2];
    double open = k->p->in->open[e], *key = k->ladder;
    for (unsigned j = 0; j <= k->levels[e]; j++)
        wipe(k, j, from + 1, hi);
    for (size_t m = from + 1; m < lo; m++)
        key[m] = INFINITY;
    for (size_t m = lo > from ? lo : from + 1; m < hi; m++)
        key[m] = k->arrive[m] + prefix[m];
    k->v->ladder(key + from + 1, k->stride, hi - from - 1, k->levels[e]);
    for (size_t l = from; l < hi && l < k->L; l++) {
        double x = key[pick[2 * l]], y = key[pick[2 * l + 1]];
        f[l] = open + ((x < y ? x : y) - prefix[l]);
    }
}

static void walk(struct mask *k, size_t e, double *f, size_t from, size_t lo, size_t hi)
{
    for (size_t l = from; l < hi; l++)
        f[l] = INFINITY;
    for (size_t m = lo; m < hi; m++) {
        double a = k->arrive[m];
        const double *v = &k->stage[(e * k->W + m) * k->W];
        if (a == INFINITY)
            continue;
        for (size_t l = k->lo[e * k->W + m]; l < m; l++) {
            double x = v[l] + a;
            f[l] = x < f[l] ? x : f[l];
        }
    }
}

static int extend(struct mask *k, unsigned set, size_t e)
{
    double *f = k->temp;
    size_t lo, hi;
    if (!arrivals(k, set, e, &lo, &hi))
        return ST_OK;
    size_t from = k->begin[e * k->W + lo];
    for (size_t m = lo; from > 0 && m < hi; m++) /* where windows go backwards */
        from = k->begin[e * k->W + m] < from ? k->begin[e * k->W + m] : from;
    if (from >= hi)
        return ST_OK;
    if (k->smooth[e])
        slide(k, e, f, from, lo, hi);
    else
        walk(k, e, f, from, lo, hi);
    unsigned with = set | 1u << e;
    const double *into = &k->into[e * k->W];
    double total = from == 0 ? into[0] + f[0] : INFINITY;
    bool ends = total < INFINITY && total <= k->best && may_end(k, with);
    size_t start = from > 1 ? from : 1;
    hi = hi < k->L ? hi : k->L;
    if (start < hi && k->v->prune(f + start, into + start, into + start, k->best * (1 + SLACK), hi - start) &&
        narrow(f, &start, &hi)) {
        int rc = row_keep(k, &k->row[with * k->D + e], f, start, hi);
        if (rc < 0)
            return rc;
    }
    /* equals fall to the fewest devices, and then to those that come first */
    if (ends && (!k->found || total < k->best || __builtin_popcount(with) < __builtin_popcount(k->best_set) ||
                 (with == k->best_set && e < k->best_dev))) {
        k->found = true;
        k->best = total;
        k->best_set = with;
        k->best_dev = e;
    }
    return ST_OK;
}

/* Walks the optimum forwards: at each start the end and the next device of least cost. */
static bool trace(const struct mask *k, uint32_t *on)
{
    unsigned set = k->best_set;
    size_t e = k->best_dev, l = 0, D = k->D, L = k->L, W = k->W;
    while (l < L) {
        unsigned rest = set & ~(1u << e);
        size_t end = 0, next = 0;
        double least = INFINITY;
        for (size_t m = l + 1; m <= L; m++) {
            double v = prob_stage(k->p, e, l, m);
            if (m == L && rest == 0 && v + k->hop[(e * (D + 1) + D) * W + m] < least) {
                least = v + k->hop[(e * (D + 1) + D) * W + m];
                end = m;
            }
            for (unsigned s = m < L ? rest : 0; s; s &= s - 1) {
                size_t d = (size_t)__builtin_ctz(s);
                const struct row *r = &k->row[rest * D + d];
                double x = r->at && m >= r->lo && m < r->hi
                               ? v + (k->hop[(e * (D + 1) + d) * W + m] + row_of(k, r)[m])
                               : INFINITY;
                if (x < least) {
                    least = x;
                    end = m;
                    next = d;
                }
            }
        }
        if (least == INFINITY)
            return false;
        for (; l < end; l++)
            on[l] = (uint32_t)e;
        set = rest;
        e = next;
    }
    return true;
}

/* Drops what cannot go on from the rows of a set; false when nothing is left. */
static bool thin(struct mask *k, unsigned set)
{
    bool any = set == 0;
    if (k->p->kind == PROB_LATENCY && (any || k->best < INFINITY))
        fill_bound(k, set, k->fill);
    for (size_t d = 0; d < k->D; d++) {
        struct row *r = &k->row[set * k->D + d];
        if (!r->at)
            continue;
        const double *into = &k->into[d * k->W];
        double *f = row_of(k, r);
        size_t lo = r->lo, hi = r->hi;
        if (k->v->prune(f + lo, into + lo, k->fill + lo, k->best * (1 + SLACK), hi - lo) &&
            narrow(f, &lo, &hi)) {
            any = true;
            *r = (struct row){r->at + (uint32_t)(lo - r->lo), (uint16_t)lo, (uint16_t)hi};
        } else {
            r->at = 0;
        }
    }
    return any;
}

int bitmask_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    struct mask k = {.v = minplus_pick()};
    int rc = p->in->coupled ? ST_ELIMIT : mask_init(&k, p, b, s->limit);
    for (unsigned set = 0; rc == ST_OK && k.best >= 0 && set < 1u << k.D; set++) {
        bool any = set == 0;
        for (size_t d = 0; d < k.D; d++)
            any = any || k.row[set * k.D + d].at;
        if (!any || (size_t)__builtin_popcount(set) >= p->in->max_stages)
            continue;
        if (!budget_spend(b, k.D))
            rc = b->stop;
        if (!thin(&k, set))
            continue;
        for (size_t e = 0; rc == ST_OK && e < k.D; e++)
            if (!(set >> e & 1u))
                rc = extend(&k, set, e);
    }
    if (rc == ST_OK) {
        s->value = k.found ? k.best : INFINITY;
        s->bound = k.best < 0 ? INFINITY : k.best;
        s->proven = true;
        s->solver = "bitmask";
        if (k.found && !trace(&k, s->on))
            rc = ST_EINTERNAL;
    }
    mask_fini(&k);
    return rc;
}
