/* Bounds from the relaxed chain, the budget, and the choice of a solver. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "coordinator/plan/inst.h"

#define CLOCK_EVERY 4096u

bool budget_spend(struct budget *b, uint64_t n)
{
    uint64_t before = b->states / CLOCK_EVERY;
    b->states += n;
    if (b->stop)
        return false;
    if (b->cancel && atomic_load_explicit(b->cancel, memory_order_relaxed))
        b->stop = ST_ECANCELED;
    else if (b->deadline_ns && b->states / CLOCK_EVERY != before && clock_ns(b->clock) >= b->deadline_ns)
        b->stop = ST_EDEADLINE;
    return b->stop == ST_OK;
}

int budget_chunk(struct budget *b)
{
    size_t bytes = (b->n_chunks + 1) * b->chunk_bytes;
    if (bytes > b->memory_limit)
        return ST_ELIMIT;
    double **v = realloc(b->chunk, (b->n_chunks + 1) * sizeof *v);
    if (!v)
        return ST_ENOMEM;
    b->chunk = v;
    v[b->n_chunks] =
        b->chunk_bytes < BUDGET_CHUNK ? malloc(b->chunk_bytes) : aligned_alloc(BUDGET_CHUNK, b->chunk_bytes);
    if (!v[b->n_chunks])
        return ST_ENOMEM;
    if (b->chunk_bytes == BUDGET_CHUNK)
        madvise(v[b->n_chunks], BUDGET_CHUNK, MADV_HUGEPAGE); /* a hint: rows are written all over them */
    b->n_chunks++;
    b->table_bytes = bytes > b->table_bytes ? bytes : b->table_bytes;
    return ST_OK;
}

void budget_fini(struct budget *b)
{
    for (size_t i = 0; i < b->n_chunks; i++)
        free(b->chunk[i]);
    free(b->chunk);
    b->chunk = NULL;
    b->n_chunks = 0;
}

double inst_cut_bytes(const struct inst *in, size_t l)
{
    return l == 0 ? in->m->layers[in->layer[0]].input_bytes : in->m->layers[in->layer[l - 1]].output_bytes;
}

/* *best = least value of join(hop, other[d]) over d ≠ e, for every e at once, in D² steps. */
static double least_hop(const struct prob *p, size_t e, size_t m, double bytes, const double *other,
                        bool into)
{
    double best = INFINITY;
    for (size_t d = 0; d < p->in->D; d++) {
        double x = other[d * (p->in->L + 1) + m];
        if (d == e || x >= best)
            continue;
        double v = prob_join(p->kind, into ? prob_hop(p, d, e, bytes) : prob_hop(p, e, d, bytes), x);
        best = v < best ? v : best;
    }
    return best;
}

double relax_before(const struct prob *p, double *before)
{
    size_t D = p->in->D, L = p->in->L, W = L + 1;
    double least = INFINITY;
    for (size_t i = 0; i < D * W; i++)
        before[i] = INFINITY;
    for (size_t l = 0; l < L; l++) {
        double bytes = inst_cut_bytes(p->in, l);
        for (size_t e = 0; e < D; e++) {
            if (!inst_last(p->in, e, l))
                continue;
            double at = l == 0 ? prob_hop(p, D, e, bytes) : least_hop(p, e, l, bytes, before, true);
            if (at == INFINITY)
                continue;
            for (size_t m = l + 1, last = inst_last(p->in, e, l); m <= last; m++) {
                double v = prob_join(p->kind, at, prob_stage(p, e, l, m));
                if (v < before[e * W + m])
                    before[e * W + m] = v;
            }
        }
    }
    for (size_t e = 0; e < D; e++) {
        double v = prob_join(p->kind, before[e * W + L], prob_hop(p, e, D, inst_cut_bytes(p->in, L)));
        least = v < least ? v : least;
    }
    return least;
}

double relax_run(const struct prob *p, double *before, double *after)
{
    size_t D = p->in->D, L = p->in->L, W = L + 1;
    double best = INFINITY,
           *start = malloc((D * W + 1) * sizeof *start); /* least cost of a stage from l on */
    if (!start) {                                        /* no bound, but still true */
        for (size_t i = 0; i < D * W; i++)
            before[i] = after[i] = 0;
        return 0;
    }
    relax_before(p, before);
    for (size_t i = 0; i < D * W; i++)
        start[i] = after[i] = INFINITY;
    for (size_t m = L; m >= 1; m--) {
        double bytes = inst_cut_bytes(p->in, m);
        for (size_t e = 0; e < D; e++) {
            double a = m == L ? prob_hop(p, e, D, bytes) : least_hop(p, e, m, bytes, start, false);
            after[e * W + m] = a;
            for (size_t l = 0; a < INFINITY && l < m; l++) {
                if (inst_last(p->in, e, l) < m)
                    continue;
                double v = prob_join(p->kind, prob_stage(p, e, l, m), a);
                if (v < start[e * W + l])
                    start[e * W + l] = v;
            }
        }
    }
    for (size_t e = 0; e < D; e++) {
        double v = prob_join(p->kind, prob_hop(p, D, e, inst_cut_bytes(p->in, 0)), start[e * W]);
        best = v < best ? v : best;
    }
    free(start);
    return best;
}

/* Can all devices together hold L layers when none may pass v? Runs are as long as any start allows. */
static bool covers(const struct prob *p, double v)
{
    size_t sum = 0, L = p->in->L;
    for (size_t d = 0; d < p->in->D && sum < L; d++) {
        size_t most = 0;
        for (size_t a = 0; a + most < L; a++)
            for (size_t b = a + most + 1, last = inst_last(p->in, d, a); b <= last; b++)
                if (prob_stage(p, d, a, b) <= v)
                    most = b - a;
        sum += most;
    }
    return sum >= L;
}

double cover_bound(const struct prob *p)
{
    double lo = 0, hi = 0;
    if (p->kind != PROB_BOTTLENECK && p->kind != PROB_RATIO)
        return 0;
    for (size_t d = 0; d < p->in->D; d++)
        for (size_t l = 0; l < p->in->L; l++)
            for (size_t m = l + 1; m <= inst_last(p->in, d, l); m++) {
                double x = inst_run(p->in, d, l, m);
                hi = x < INFINITY && x > hi ? x : hi;
            }
    if (p->kind == PROB_RATIO)
        hi = 1;
    if (!covers(p, hi))
        return INFINITY; /* the devices together are too small */
    for (int i = 0; i < 40 && lo < hi; i++) {
        double mid = lo + (hi - lo) / 2;
        if (covers(p, mid))
            hi = mid;
        else
            lo = mid;
    }
    return lo;
}

int exact_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    return p->kind == PROB_BOTTLENECK || p->kind == PROB_RATIO ? reach_solve(p, b, s)
                                                               : bitmask_solve(p, b, s);
}

int prob_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    s->value = INFINITY;
    s->bound = 0;
    s->proven = false;
    s->solver = "none";
    if (p->in->D == 0) {
        s->bound = INFINITY;
        s->proven = true;
        return ST_OK;
    }
    if (!p->in->chain)
        return dag_solve(p, b, s);
    int rc = exact_solve(p, b, s);
    if (rc == ST_ELIMIT && p->in->lean && (rc = site_solve(p, b, s)) == ST_ELIMIT)
        rc = large_solve(p, b, s);
    if (rc == ST_ELIMIT || rc == ST_EDEADLINE)
        rc = search_solve(p, b, s);
    return rc;
}
