/*
 * Exact for sums over chains: F[S][e][l] = least cost of running layers [l, L) when the stage that starts at
 * l is on e and exactly the devices of S are used from there on. Built from the end. A value is dropped when
 * even the relaxed cost of what goes before it would pass the best whole plan so far, or when the devices
 * left over could not hold the layers before it; neither ever drops an optimum. Rows that are dropped whole
 * take no memory, and mostly that is nearly all of them.
 *
 * Where a device's runs are sums of layer times within a window that only moves forward, the best cut of
 * every start is a sliding-window minimum; other tables (measured segments that may go anywhere) are walked.
 */
#include <stdlib.h>
#include <string.h>
#if defined __x86_64__
#include <immintrin.h>
#endif

#include "coordinator/plan/inst.h"

#define SEED_FROM 9u /* devices from which a first upper bound pays for itself */
#define SEED_WIDTH 4u
#define SLACK 1e-11     /* relative; other orders of additions must not cut off an optimum */
#define SMOOTH_MAX 64.0 /* a device slower than this many optima loses digits in differences of prefix sums  \
                         */
#define CHUNK_ROWS 512u

struct mask {
    const struct prob *p;
    struct budget *b;
    size_t D, L, W; /* W = L + 1 */
    size_t *off;    /* 2^D: rows before those of a set */
    uint32_t *row;  /* place of a row in the chunks plus one; 0 = dropped */
    double **chunk;
    size_t n_rows, n_chunks;
    double *stage;         /* e, m, l: cost of [l, m) on e; only for devices that are not smooth */
    uint32_t *lo;          /* e, m: first l with a cost within the limit */
    bool *smooth;          /* D */
    double *prefix;        /* e, l */
    uint32_t *last;        /* e, l: the last end from l; 0 = none */
    double *hop;           /* e, d, m */
    double *into;          /* e, l: relaxed cost of [0, l) and of the hop to e */
    double *before, *need; /* need[l]: bytes that [0, l) takes at least */
    double *arrive;        /* W */
    double *key;           /* W */
    uint32_t *deque;       /* W */
    double best;           /* or the limit, as long as nothing is found */
    bool found;
    unsigned best_set;
    size_t best_dev;
};

static void mask_fini(struct mask *k)
{
    for (size_t i = 0; i < k->n_chunks; i++)
        free(k->chunk[i]);
    free(k->chunk);
    free(k->off);
    free(k->row);
    free(k->stage);
    free(k->lo);
    free(k->smooth);
    free(k->prefix);
    free(k->last);
    free(k->hop);
    free(k->into);
    free(k->before);
    free(k->need);
    free(k->arrive);
    free(k->key);
    free(k->deque);
}

static size_t slot_of(const struct mask *k, unsigned set, size_t d)
{
    return k->off[set] + (size_t)__builtin_popcount(set & ((1u << d) - 1u));
}
static double *row_at(const struct mask *k, uint32_t place)
{
    return &k->chunk[(place - 1) / CHUNK_ROWS][(place - 1) % CHUNK_ROWS * k->W];
}
static const double *row_of(const struct mask *k, unsigned set, size_t d)
{
    uint32_t place = k->row[slot_of(k, set, d)];
    return place ? row_at(k, place) : NULL;
}

/* The next free row, which stays free until k->n_rows counts it. */
static int row_next(struct mask *k, double **out)
{
    if (k->n_rows == k->n_chunks * CHUNK_ROWS) {
        size_t bytes = (k->n_chunks + 1) * CHUNK_ROWS * k->W * sizeof(double);
        if (bytes > k->b->memory_limit)
            return ST_ELIMIT;
        double **v = realloc(k->chunk, (k->n_chunks + 1) * sizeof *v);
        if (!v)
            return ST_ENOMEM;
        k->chunk = v;
        if (!(v[k->n_chunks] = malloc(CHUNK_ROWS * k->W * sizeof(double))))
            return ST_ENOMEM;
        k->n_chunks++;
        k->b->table_bytes = bytes > k->b->table_bytes ? bytes : k->b->table_bytes;
    }
    *out = row_at(k, (uint32_t)k->n_rows + 1);
    return ST_OK;
}

/* Is every run of e a difference of prefix sums, within a window that only moves forward? */
static bool is_smooth(struct mask *k, size_t e, double least)
{
    const struct inst *in = k->p->in;
    uint32_t *last = &k->last[e * k->W], high = 0;
    double *prefix = &k->prefix[e * k->W];
    bool ok = k->p->kind == PROB_LATENCY && !in->c->devices[in->dev[e]].has_segment;
    prefix[0] = 0;
    for (size_t l = 0; l < k->L; l++) {
        prefix[l + 1] = prefix[l] + in->t[e * k->L + l];
        last[l] = 0;
        for (size_t m = l + 1; m <= inst_last(in, e, l); m++)
            if (prob_stage(k->p, e, l, m) < INFINITY)
                last[l] = (uint32_t)m;
        for (size_t m = l + 1; ok && m <= last[l]; m++)
            ok = prob_stage(k->p, e, l, m) < INFINITY || (m < k->L && in->glued[m]);
        if (!last[l])
            continue;
        ok = ok && last[l] >= high;
        high = last[l];
    }
    return ok && prefix[k->L] <= SMOOTH_MAX * least;
}

static int fill_stage(struct mask *k, double least)
{
    size_t L = k->L, W = k->W;
    double limit = k->best * (1 + SLACK);
    for (size_t e = 0; e < k->D; e++) {
        k->smooth[e] = is_smooth(k, e, least);
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
    for (size_t l = 0; l < L; l++) {
        const struct model_layer *m = &p->in->m->layers[p->in->layer[l]];
        k->need[l + 1] = k->need[l] + m->weight_bytes + m->kv_bytes;
    }
}

static int mask_init(struct mask *k, const struct prob *p, struct budget *b, double limit)
{
    size_t D = k->D = p->in->D, L = k->L = p->in->L, W = k->W = L + 1;
    k->p = p;
    k->b = b;
    k->best = limit;
    if (D == 0 || D > INST_EXACT_DEVICES)
        return ST_ELIMIT;
    size_t sets = (size_t)1 << D, rows = D << (D - 1);
    double bytes = (double)rows * 4 + (double)sets * 8 + (double)D * (double)W * (double)(W + D + 9) * 8;
    if (bytes > (double)b->memory_limit)
        return ST_ELIMIT;
    b->table_bytes = (size_t)bytes > b->table_bytes ? (size_t)bytes : b->table_bytes;
    k->off = malloc(sets * sizeof *k->off);
    k->row = calloc(rows, sizeof *k->row);
    k->lo = malloc(D * W * sizeof *k->lo);
    k->smooth = calloc(D, sizeof *k->smooth);
    k->prefix = malloc(D * W * sizeof *k->prefix);
    k->last = calloc(D * W, sizeof *k->last);
    k->hop = malloc((D + 1) * (D + 1) * W * sizeof *k->hop);
    k->into = malloc(D * W * sizeof *k->into);
    k->before = malloc(D * W * sizeof *k->before);
    k->need = calloc(W, sizeof *k->need);
    k->arrive = malloc(W * sizeof *k->arrive);
    k->key = malloc(W * sizeof *k->key);
    k->deque = malloc(W * sizeof *k->deque);
    if (!k->off || !k->row || !k->lo || !k->smooth || !k->prefix || !k->last || !k->hop || !k->into ||
        !k->before || !k->need || !k->arrive || !k->key || !k->deque)
        return ST_ENOMEM;
    size_t at = 0;
    for (size_t s = 0; s < sets; s++) {
        k->off[s] = at;
        at += (size_t)__builtin_popcount((unsigned)s);
    }
    double least = relax_before(p, k->before);
    fill_tables(k);
    if (least == INFINITY) /* not even with devices used over and over */
        k->best = -1;
    else if (k->best == INFINITY && D >= SEED_FROM) {
        uint32_t *on = malloc(L * sizeof *on);
        int rc = on ? search_quick(p, b, SEED_WIDTH, on, &k->best) : ST_ENOMEM;
        free(on);
        if (rc < 0)
            return rc;
        k->best *= 1 + SLACK; /* the plan itself must not be cut off */
    }
    return fill_stage(k, least);
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

static void least_of_sums(double *restrict a, const double *restrict h, const double *restrict f, size_t n)
{
    for (size_t m = 1; m < n; m++) {
        double v = h[m] + f[m];
        a[m] = v < a[m] ? v : a[m];
    }
}
#if defined __x86_64__
/* The same operations, four at a time: the same result bit by bit. */
__attribute__((target("avx2"))) static void least_of_sums_wide(double *restrict a, const double *restrict h,
                                                               const double *restrict f, size_t n)
{
    size_t m = 1;
    for (; m + 4 <= n; m += 4) {
        __m256d v = _mm256_add_pd(_mm256_loadu_pd(&h[m]), _mm256_loadu_pd(&f[m]));
        _mm256_storeu_pd(&a[m], _mm256_min_pd(v, _mm256_loadu_pd(&a[m])));
    }
    for (; m < n; m++) {
        double v = h[m] + f[m];
        a[m] = v < a[m] ? v : a[m];
    }
}
#endif

/* arrive[m] = least cost of everything after a stage on e that ends at m, using just the devices of set. */
static bool arrivals(struct mask *k, unsigned set, size_t e, bool wide)
{
    bool any = false;
    double *a = k->arrive;
    const double *before = &k->before[e * k->W];
    for (size_t m = 0; m <= k->L; m++)
        a[m] = INFINITY;
    if (set == 0)
        a[k->L] = k->hop[(e * (k->D + 1) + k->D) * k->W + k->L];
    for (unsigned s = set; s; s &= s - 1) {
        size_t d = (size_t)__builtin_ctz(s);
        const double *f = row_of(k, set, d), *h = &k->hop[(e * (k->D + 1) + d) * k->W];
        if (!f)
            continue;
#if defined __x86_64__
        if (wide) {
            least_of_sums_wide(a, h, f, k->L);
            continue;
        }
#endif
        least_of_sums(a, h, f, k->L);
    }
    (void)wide;
    double limit = k->best * (1 + SLACK);
    for (size_t m = 1; m <= k->L; m++) {
        bool keep = before[m] + a[m] <= limit && a[m] < INFINITY;
        a[m] = keep ? a[m] : INFINITY;
        any |= keep;
    }
    return any;
}

/* f[l] = least arrive[m] + run(l, m) over the window of l. */
static void slide(struct mask *k, size_t e, double *f)
{
    const double *prefix = &k->prefix[e * k->W];
    const uint32_t *last = &k->last[e * k->W];
    double open = k->p->in->open[e], *key = k->key;
    size_t head = 0, tail = 0, L = k->L;
    for (size_t m = 1; m <= L; m++)
        key[m] = k->arrive[m] + prefix[m];
    f[L] = INFINITY;
    for (size_t l = L; l-- > 0;) {
        if (key[l + 1] < INFINITY) {
            while (tail > head && key[k->deque[tail - 1]] >= key[l + 1])
                tail--;
            k->deque[tail++] = (uint32_t)l + 1;
        }
        if (!last[l]) {
            f[l] = INFINITY;
            continue;
        }
        while (head < tail && k->deque[head] > last[l])
            head++;
        f[l] = head < tail ? open + (key[k->deque[head]] - prefix[l]) : INFINITY;
    }
}

static void walk(struct mask *k, size_t e, double *f)
{
    for (size_t l = 0; l <= k->L; l++)
        f[l] = INFINITY;
    for (size_t m = 1; m <= k->L; m++) {
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

static int extend(struct mask *k, unsigned set, size_t e, size_t first, bool wide)
{
    double *f;
    if (!arrivals(k, set, e, wide))
        return ST_OK;
    int rc = row_next(k, &f);
    if (rc < 0)
        return rc;
    if (k->smooth[e])
        slide(k, e, f);
    else
        walk(k, e, f);
    unsigned with = set | 1u << e;
    const double *into = &k->into[e * k->W];
    double limit = k->best * (1 + SLACK);
    bool any = false;
    for (size_t l = 1; l < k->L; l++) {
        bool keep = l <= first && into[l] + f[l] <= limit && f[l] < INFINITY;
        f[l] = keep ? f[l] : INFINITY;
        any |= keep;
    }
    double total = into[0] + f[0];
    bool ends = total < INFINITY && total <= k->best && may_end(k, with);
    if (any || ends)
        k->row[slot_of(k, with, e)] = (uint32_t)++k->n_rows;
    if (ends &&
        (!k->found || total < k->best || __builtin_popcount(with) < __builtin_popcount(k->best_set))) {
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
                const double *f = row_of(k, rest, d);
                double x = f ? v + (k->hop[(e * (D + 1) + d) * W + m] + f[m]) : INFINITY;
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

/* The furthest start for which the devices outside `set` and e can hold all that goes before. */
static size_t first_max(const struct mask *k, unsigned set, size_t e)
{
    const struct inst *in = k->p->in;
    double room = 0;
    if (!(in->rules & RULE_MEMORY))
        return k->L;
    for (size_t d = 0; d < k->D; d++)
        room += !(set >> d & 1u) && d != e ? in->cap[d] * (1 + SLACK) : 0;
    size_t l = k->L;
    while (l > 0 && k->need[l] > room)
        l--;
    return l;
}

int bitmask_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    struct mask k = {0};
    bool wide = false;
#if defined __x86_64__
    wide = __builtin_cpu_supports("avx2");
#endif
    int rc = p->in->coupled ? ST_ELIMIT : mask_init(&k, p, b, s->limit);
    for (unsigned set = 0; rc == ST_OK && k.best >= 0 && set < 1u << k.D; set++) {
        if ((size_t)__builtin_popcount(set) >= p->in->max_stages)
            continue;
        bool any = set == 0;
        for (size_t r = 0; r < (size_t)__builtin_popcount(set); r++)
            any = any || k.row[k.off[set] + r];
        if (!any)
            continue;
        if (!budget_spend(b, k.D))
            rc = b->stop;
        for (size_t e = 0; rc == ST_OK && e < k.D; e++)
            if (!(set >> e & 1u))
                rc = extend(&k, set, e, first_max(&k, set, e), wide);
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
