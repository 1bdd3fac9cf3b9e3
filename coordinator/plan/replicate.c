/*
 * Replicated stages for throughput. Without hops the least value is found exactly for up to ten devices: for
 * a value v, C[S] is the set of positions from which the devices of S can run the rest with no stage slower
 * than v, and v is bisected. Hops depend on the shares of both ends, so plans are then looked for stage by
 * stage with that table as a guide; a plan at the value without hops is the optimum, and so is the best one
 * when nothing is left to look at. More devices: those that stand idle join the slowest stage, one after
 * another, and the bound is what all devices together can cover within v.
 */
#include "coordinator/plan/replicate.h"

#include <stdlib.h>
#include <string.h>

#define EXACT 10u
#define NODES 3000000u /* of the search with hops */
#define ROUNDING 1e-11

struct repl {
    const struct inst *in;
    struct budget *b;
    size_t D, L, W, words;
    double *fixed, *kv; /* run [a, b): weights and scratch; caches */
    uint64_t *ends;     /* set, l: ends of runs within v */
    uint64_t *done;     /* set: positions from which it can do the rest */
    double *sum, *need; /* set */
    struct replicated *best, trial;
    struct replica *seat; /* depth, D */
    size_t *seated;       /* depth */
    uint64_t work;
    double limit;
};

static bool bit(const uint64_t *v, size_t i)
{
    return v[i / 64] >> (i % 64) & 1u;
}
static void put(uint64_t *v, size_t i)
{
    v[i / 64] |= (uint64_t)1 << (i % 64);
}

static double weights(const struct inst *in, size_t a, size_t b, double *kv)
{
    double sum = 0, scratch = 0;
    *kv = 0;
    for (size_t i = a; i < b; i++) {
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        sum += l->weight_bytes;
        *kv += l->kv_bytes;
        scratch = l->activation_bytes > scratch ? l->activation_bytes : scratch;
    }
    return sum + scratch;
}

/* One over seconds; 0 = the device cannot run it. */
static double rate(const struct inst *in, size_t d, size_t a, size_t b)
{
    double s = in->cap[d] > 0 ? inst_run(in, d, a, b) : INFINITY;
    return s < INFINITY ? 1 / (s > 1e-300 ? s : 1e-300) : 0;
}

/* Shares, times and bytes of the n devices in v for the run [a, b). */
static bool share_out(const struct inst *in, struct replica *v, size_t n, size_t a, size_t b, double *time)
{
    double sum = 0, kv, fixed = weights(in, a, b, &kv);
    for (size_t i = 0; i < n; i++)
        sum += rate(in, v[i].dev, a, b);
    for (size_t i = 0; i < n; i++) {
        double r = rate(in, v[i].dev, a, b);
        if (r == 0)
            return false;
        v[i].compute = inst_run(in, v[i].dev, a, b);
        v[i].share = n == 1 ? 1 : r / sum;
        v[i].bytes = fixed + v[i].share * kv;
        if (v[i].bytes > in->cap[v[i].dev])
            return false;
    }
    *time = n == 1 ? v[0].compute : 1 / sum;
    return n > 0;
}

bool replicate_hop(const struct inst *in, const struct replica *from, const struct replica *to, size_t l,
                   double *seconds, double *wire)
{
    const struct inst_hop h = inst_hop(in, from ? from->dev : in->D, to ? to->dev : in->D);
    *wire = inst_cut_bytes(in, l) * (from ? from->share : 1) * (to ? to->share : 1) / h.rate;
    *seconds = h.half_rtt + *wire;
    return h.ok;
}

bool replicate_stage(const struct replicated *r, size_t s, struct replicated_stage *out)
{
    out->n = 0;
    for (size_t d = 0; d < r->in->D; d++)
        if (r->stage[d] == s)
            out->v[out->n++].dev = (uint32_t)d;
    return share_out(r->in, out->v, out->n, r->start[s], r->start[s + 1], &out->time);
}

/* The largest wire time between two groups (n = 0: the client); INFINITY without a link. */
static double wires(const struct inst *in, const struct replica *x, size_t nx, const struct replica *y,
                    size_t ny, size_t l)
{
    double most = 0, s, w;
    for (size_t i = 0; i < (nx ? nx : 1); i++)
        for (size_t k = 0; k < (ny ? ny : 1); k++) {
            if (!replicate_hop(in, nx ? &x[i] : NULL, ny ? &y[k] : NULL, l, &s, &w))
                return INFINITY;
            most = w > most ? w : most;
        }
    return most;
}

static double value_of(struct repl *q, const struct replicated *r)
{
    struct replicated_stage a = {.v = q->seat}, b = {.v = q->seat + q->D};
    double most = 0;
    size_t before = 0;
    for (size_t s = 0; s < r->n; s++) {
        if (!replicate_stage(r, s, &b))
            return INFINITY;
        most = fmax(most, fmax(b.time, wires(q->in, a.v, before, b.v, b.n, r->start[s])));
        struct replica *swap = a.v;
        before = b.n;
        a.v = b.v;
        b.v = swap;
    }
    return fmax(most, wires(q->in, a.v, before, NULL, 0, q->L));
}

static void copy(const struct repl *q, struct replicated *to, const struct replicated *r)
{
    to->n = r->n;
    to->value = r->value;
    memcpy(to->start, r->start, q->W * sizeof *r->start);
    memcpy(to->stage, r->stage, q->D * sizeof *r->stage);
}

/* ---- any number of devices ---- */

/* Idle devices join the stage that is slowest, as long as that helps. */
static void join_idle(struct repl *q)
{
    struct replicated *t = &q->trial;
    bool better = true;
    while (better && q->best->value < INFINITY && budget_spend(q->b, q->D)) {
        better = false;
        for (size_t s = 0; s < q->best->n && !better; s++)
            for (size_t d = 0; d < q->D && !better; d++) {
                if (q->best->stage[d] != INST_NOBODY)
                    continue;
                copy(q, t, q->best);
                t->stage[d] = (uint32_t)s;
                struct replicated_stage x = {.v = q->seat};
                if (!replicate_stage(q->best, s, &x) || x.time < q->best->value * (1 - ROUNDING))
                    break; /* another one is the slowest */
                t->value = value_of(q, t);
                better = t->value < q->best->value * (1 - ROUNDING);
                if (better)
                    copy(q, q->best, t);
            }
    }
}

static bool covers(const struct repl *q, double v, bool by_time)
{
    const struct inst *in = q->in;
    double total = 0, all = 0;
    for (size_t l = 0; l < q->L; l++)
        all += by_time ? in->t[l] : 1;
    for (size_t d = 0; d < q->D && total < all; d++) {
        double most = 0;
        for (size_t a = 0; a < q->L && in->cap[d] > 0; a++) {
            double sum = 0, kv;
            for (size_t b = a + 1, last = inst_last(in, d, a); b <= last; b++) {
                sum += by_time ? in->t[b - 1] : 1;
                double run = inst_run(in, d, a, b), part = run > v ? v / run : 1;
                if (weights(in, b - 1, b, &kv) > in->cap[d])
                    break;
                most = run < INFINITY && sum * part > most ? sum * part : most;
            }
        }
        total += most;
    }
    return total >= all * (1 - ROUNDING);
}

static double cover(const struct repl *q, double hi)
{
    double best = 0;
    for (int k = 0; k < 2 && q->D <= 512; k++) {
        double lo = best, top = hi;
        for (int i = 0; i < 24 && top < INFINITY && lo < top * (1 - 1e-4) && budget_spend(q->b, q->D); i++) {
            double mid = lo + (top - lo) / 2;
            if (covers(q, mid, k))
                top = mid;
            else
                lo = mid;
        }
        best = lo;
    }
    return best;
}

/* ---- few devices: without hops ---- */

static void fill_ends(struct repl *q, double v)
{
    const struct inst *in = q->in;
    size_t D = q->D, sets = (size_t)1 << D;
    double r[EXACT], n[EXACT], least = (1 - ROUNDING) / v;
    memset(q->ends, 0, sets * q->L * q->words * sizeof *q->ends);
    for (size_t a = 0; a < q->L; a++)
        for (size_t b = a + 1; b <= q->L; b++) {
            double all = 0, fixed = q->fixed[a * q->W + b], kv = q->kv[a * q->W + b];
            for (size_t d = 0; d < D; d++) {
                double room = in->cap[d] - fixed;
                r[d] = rate(in, d, a, b);
                n[d] = r[d] == 0 || room < 0 || (room == 0 && kv > 0) ? INFINITY
                       : kv > 0                                       ? kv * r[d] / room * (1 - ROUNDING)
                                                                      : 0;
                all += n[d] < INFINITY ? r[d] : 0;
            }
            if (all < least)
                continue;
            for (size_t s = 1; s < sets; s++) {
                size_t rest = s & (s - 1), d = (size_t)__builtin_ctzll(s);
                q->sum[s] = q->sum[rest] + r[d];
                q->need[s] = n[d] > q->need[rest] ? n[d] : q->need[rest];
                if (q->sum[s] >= least && q->sum[s] >= q->need[s])
                    put(&q->ends[(s * q->L + a) * q->words], b);
            }
        }
}

static bool meets(const struct repl *q, size_t set, size_t l, size_t rest)
{
    const uint64_t *e = &q->ends[(set * q->L + l) * q->words], *d = &q->done[rest * q->words];
    for (size_t w = 0; w < q->words; w++)
        if (e[w] & d[w])
            return true;
    return false;
}

/* Can all devices together do it within v, hops aside? */
static bool possible(struct repl *q, double v)
{
    size_t sets = (size_t)1 << q->D;
    fill_ends(q, v);
    memset(q->done, 0, sets * q->words * sizeof *q->done);
    for (size_t s = 0; s < sets; s++) {
        uint64_t *done = &q->done[s * q->words];
        put(done, q->L);
        for (size_t n = s; n; n = (n - 1) & s)
            for (size_t l = 0; l < q->L; l++)
                if (!bit(done, l) && meets(q, n, l, s & ~n))
                    put(done, l);
        if (!budget_spend(q->b, q->L))
            return true;
    }
    return bit(&q->done[(sets - 1) * q->words], 0);
}

/* A plan of the table into the trial; returns its slowest stage. */
static double trace(struct repl *q)
{
    struct replicated *t = &q->trial;
    size_t s = ((size_t)1 << q->D) - 1, l = 0;
    double most = 0;
    for (size_t d = 0; d < q->D; d++)
        t->stage[d] = INST_NOBODY;
    for (t->n = 0; l < q->L; t->n++) {
        size_t n = s, m = l + 1;
        while (n && !meets(q, n, l, s & ~n))
            n = (n - 1) & s;
        if (!n)
            return INFINITY;
        while (!bit(&q->ends[(n * q->L + l) * q->words], m) || !bit(&q->done[(s & ~n) * q->words], m))
            m++;
        t->start[t->n] = (uint32_t)l;
        t->start[t->n + 1] = (uint32_t)m;
        for (size_t d = 0; d < q->D; d++)
            if (n >> d & 1u)
                t->stage[d] = (uint32_t)t->n;
        struct replicated_stage x = {.v = q->seat};
        if (!replicate_stage(t, t->n, &x))
            return INFINITY;
        most = fmax(most, x.time);
        s &= ~n;
        l = m;
    }
    return most;
}

/* The least value without hops, within rounding; INFINITY = impossible. */
static double relaxed(struct repl *q, double lo, double hi)
{
    if (!possible(q, 1e300) || q->b->stop)
        return q->b->stop ? lo : INFINITY;
    hi = fmin(hi, trace(q));
    for (int i = 0; i < 80 && lo < hi * (1 - 10 * ROUNDING) && !q->b->stop; i++) {
        double mid = i % 5 == 4 ? hi * (1 - 5 * ROUNDING) : lo + (hi - lo) / 2, got;
        if (!possible(q, mid)) {
            lo = mid;
            continue;
        }
        if (q->b->stop)
            break;
        got = trace(q);
        q->trial.value = value_of(q, &q->trial);
        if (q->trial.value < q->best->value)
            copy(q, q->best, &q->trial);
        hi = got < hi ? got : mid;
    }
    return lo;
}

/* ---- with hops ---- */

static void descend(struct repl *q, size_t depth, size_t rest, size_t l, double so_far)
{
    struct replicated *t = &q->trial;
    const struct replica *before = depth ? q->seat + (depth + 1) * q->D : NULL;
    size_t n_before = depth ? q->seated[depth - 1] : 0;
    struct replica *v = q->seat + (depth + 2) * q->D;
    if (q->work == 0 || !budget_spend(q->b, 1)) {
        q->work = 0;
        return;
    }
    q->work--;
    for (size_t n = rest; n; n = (n - 1) & rest) {
        const uint64_t *ends = &q->ends[(n * q->L + l) * q->words], *done = &q->done[(rest & ~n) * q->words];
        for (size_t m = l + 1; m <= q->L; m++) {
            double time;
            size_t k = 0;
            if (!bit(ends, m) || !bit(done, m))
                continue;
            for (size_t d = 0; d < q->D; d++)
                if (n >> d & 1u)
                    v[k++].dev = (uint32_t)d;
            if (!share_out(q->in, v, k, l, m, &time))
                continue;
            double most = fmax(so_far, fmax(time, wires(q->in, before, n_before, v, k, l)));
            if (m == q->L)
                most = fmax(most, wires(q->in, v, k, NULL, 0, m));
            if (!(most < q->best->value && most <= q->limit))
                continue;
            t->start[depth] = (uint32_t)l;
            t->start[depth + 1] = (uint32_t)m;
            for (size_t d = 0; d < q->D; d++)
                if ((rest >> d & 1u))
                    t->stage[d] = n >> d & 1u ? (uint32_t)depth : INST_NOBODY;
            q->seated[depth] = k;
            if (m < q->L) {
                descend(q, depth + 1, rest & ~n, m, most);
                continue;
            }
            t->n = depth + 1;
            t->value = most;
            copy(q, q->best, t);
        }
    }
}

/* Plans within the limit, hops and all. True: all were looked at. */
static bool search(struct repl *q, double limit)
{
    q->limit = limit;
    q->work = NODES;
    if (!possible(q, limit))
        return true;
    for (size_t d = 0; d < q->D; d++)
        q->trial.stage[d] = INST_NOBODY;
    descend(q, 0, ((size_t)1 << q->D) - 1, 0, 0);
    return q->work > 0 && !q->b->stop;
}

static void exact(struct repl *q)
{
    struct replicated *r = q->best;
    r->bound = relaxed(q, r->bound, r->value);
    if (r->bound == INFINITY || q->b->stop) {
        r->proven = r->bound == INFINITY;
        return;
    }
    if (r->value > r->bound * (1 + 20 * ROUNDING) && search(q, r->bound * (1 + 20 * ROUNDING)) &&
        r->value > r->bound * (1 + 20 * ROUNDING) && search(q, fmin(r->value, 1e300)))
        r->bound = r->value;
    r->proven = r->bound == INFINITY || r->value <= r->bound * (1 + 20 * ROUNDING);
}

/* ---- */

static int room(struct repl *q, const struct inst *in, struct budget *b, struct replicated *out)
{
    size_t D = in->D, L = in->L, W = L + 1, few = D <= EXACT ? (size_t)1 << D : 0;
    *q = (struct repl){.in = in, .b = b, .D = D, .L = L, .W = W, .words = (W + 63) / 64, .best = out};
    if (few && (double)few * (double)(L + 1) * (double)q->words * 8 > (double)b->memory_limit)
        return ST_ELIMIT;
    *out = (struct replicated){.in = in, .value = INFINITY};
    q->trial.in = in;
    out->start = calloc(W, sizeof *out->start);
    out->stage = malloc((D + 1) * sizeof *out->stage);
    q->trial.start = calloc(W, sizeof *out->start);
    q->trial.stage = malloc((D + 1) * sizeof *out->stage);
    q->seat = malloc((D + 3) * (few ? D + 3 : 3) * sizeof *q->seat);
    q->seated = calloc(D + 2, sizeof *q->seated);
    q->fixed = malloc(L * W * sizeof *q->fixed);
    q->kv = malloc(L * W * sizeof *q->kv);
    if (few) {
        q->ends = malloc(few * L * q->words * sizeof *q->ends);
        q->done = malloc(few * q->words * sizeof *q->done);
        q->sum = calloc(few, sizeof *q->sum);
        q->need = calloc(few, sizeof *q->need);
    }
    if (!out->start || !out->stage || !q->trial.start || !q->trial.stage || !q->seat || !q->seated ||
        !q->fixed || !q->kv || (few && (!q->ends || !q->done || !q->sum || !q->need)))
        return ST_ENOMEM;
    for (size_t a = 0; few && a < L; a++)
        for (size_t c = a + 1; c <= L; c++)
            q->fixed[a * W + c] = weights(in, a, c, &q->kv[a * W + c]);
    return ST_OK;
}

int replicate_solve(const struct inst *in, struct budget *b, const uint32_t *on, struct replicated *out)
{
    struct repl q;
    *out = (struct replicated){0};
    if (in->max_stages < in->L || in->min_nodes > 1 || in->max_node < INFINITY || in->max_total < INFINITY ||
        !in->chain)
        return ST_ENOTSUP;
    int rc = room(&q, in, b, out);
    if (rc == ST_OK) {
        for (size_t d = 0; d < q.D; d++)
            out->stage[d] = INST_NOBODY;
        for (size_t l = 0; on && l < q.L; l++)
            if (l == 0 || on[l] != on[l - 1]) {
                out->start[out->n] = (uint32_t)l;
                out->stage[on[l]] = (uint32_t)out->n++;
            }
        if (on) {
            out->start[out->n] = (uint32_t)q.L;
            out->value = value_of(&q, out);
        }
        join_idle(&q);
        out->bound = cover(&q, out->value);
        if (q.D <= EXACT)
            exact(&q);
        if (b->stop == ST_ECANCELED)
            rc = ST_ECANCELED;
    }
    free(q.trial.start);
    free(q.trial.stage);
    free(q.seat);
    free(q.seated);
    free(q.fixed);
    free(q.kv);
    free(q.ends);
    free(q.done);
    free(q.sum);
    free(q.need);
    return rc;
}

void replicate_fini(struct replicated *r)
{
    free(r->start);
    free(r->stage);
}
