/*
 * plan_replan: the fewest bytes moved within a slack of the best plan. Bytes are a sum over stages, so the
 * solvers for sums find them; stages and hops are capped at what the goal allows. A limit on latency is no
 * cap of single stages: there a price for seconds is bisected, which gives plans and a lower bound, and what
 * is left between them is closed by branch and bound where that ends in time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/plan/moves.h"
#include "coordinator/plan/run.h"

#define TOLERANCE 1e-12
#define PRICES 14
#define BRANCH_WORK 400000u
#define BRANCH_DEVICES 64u

struct replan {
    struct run *r;
    struct holding h;
    struct prob p; /* PROB_MOVE with the caps */
    double cap_latency;
    double *moved;  /* d, l */
    uint32_t *best; /* L */
    double best_bytes, least;
    bool fewest;
    double grain; /* all weights are multiples of it; 0 = none known */
};

static double bytes_of(const struct replan *q, const uint32_t *on)
{
    const struct inst *in = q->r->in;
    double sum = 0;
    for (size_t i = 0; i < in->L; i++)
        if (!holding_has(&q->h, on[i], i))
            sum += in->m->layers[in->layer[i]].weight_bytes;
    return sum;
}

static bool within(const struct replan *q, const struct figs *f)
{
    return f->latency <= q->cap_latency && f->bottleneck <= q->p.cap_bottleneck && f->ratio <= q->p.cap_ratio;
}

static void offer(struct replan *q, const uint32_t *on, const struct figs *f)
{
    double bytes = bytes_of(q, on);
    if (!within(q, f) || bytes >= q->best_bytes)
        return;
    q->best_bytes = bytes;
    memcpy(q->best, on, q->r->in->L * sizeof *on);
}

static double whole_divisor(double a, double b)
{
    while (b > 0) {
        double t = fmod(a, b);
        a = b;
        b = t;
    }
    return a;
}

static int prepare(struct replan *q)
{
    const struct inst *in = q->r->in;
    size_t W = in->L + 1;
    q->moved = calloc(in->D * W, sizeof *q->moved);
    q->best = calloc(in->L, sizeof *q->best);
    if (!q->moved || !q->best)
        return ST_ENOMEM;
    for (size_t i = 0; i < in->L; i++) {
        double w = in->m->layers[in->layer[i]].weight_bytes;
        if (w != floor(w) || w > 9e15)
            q->grain = -1;
        else if (q->grain >= 0)
            q->grain = whole_divisor(q->grain, w);
        for (size_t d = 0; d < in->D; d++)
            q->moved[d * W + i + 1] = q->moved[d * W + i] + (holding_has(&q->h, d, i) ? 0 : w);
    }
    q->p.moved = q->moved;
    return ST_OK;
}

/* The next value that bytes can have from v on. */
static double round_up(const struct replan *q, double v)
{
    v *= 1 - TOLERANCE;
    return q->grain > 0 ? ceil(v / q->grain - 1e-9) * q->grain : v;
}

/* The least bytes + price · latency. Its plan is offered. */
static int ask(struct replan *q, double price, struct solution *s, struct figs *f)
{
    struct run *r = q->r;
    q->p.per_second = price;
    *s = (struct solution){.limit = INFINITY, .on = r->spare};
    int rc = prob_solve(&q->p, &r->b, s);
    if (rc < 0 || s->value == INFINITY)
        return rc;
    if ((rc = run_look(r, r->spare, f)) == ST_OK)
        offer(q, r->spare, f);
    return rc;
}

struct branch {
    struct replan *q;
    size_t D, L, W;
    double *bytes, *seconds, *both; /* of what follows a stage on d that ends at m, relaxed: d, m */
    double price;
    struct prob slow; /* latency under the same caps */
    uint64_t work;
    bool cut;
    uint32_t *on;
};

static void descend(struct branch *b, size_t l, size_t last, uint64_t used, double bytes, double seconds)
{
    struct replan *q = b->q;
    const struct inst *in = q->r->in;
    if (b->work == 0 || !budget_spend(&q->r->b, 1)) {
        b->cut = true;
        return;
    }
    b->work--;
    for (size_t e = 0; e < b->D; e++) {
        double hop = used >> e & 1u ? INFINITY : prob_hop(&b->slow, last, e, inst_cut_bytes(in, l));
        for (size_t m = inst_last(in, e, l); hop < INFINITY && m > l; m--) {
            double run = prob_stage(&b->slow, e, l, m);
            if (run == INFINITY)
                continue;
            double y = bytes + q->moved[e * b->W + m] - q->moved[e * b->W + l], s = seconds + hop + run;
            size_t at = e * b->W + m;
            if (y + b->bytes[at] >= q->best_bytes || s + b->seconds[at] > q->cap_latency ||
                y + b->price * s + b->both[at] >= q->best_bytes + b->price * q->cap_latency)
                continue;
            for (size_t i = l; i < m; i++)
                b->on[i] = (uint32_t)e;
            struct figs f;
            if (m < b->L)
                descend(b, m, e, used | (uint64_t)1 << e, y, s);
            else if (run_look(q->r, b->on, &f) == ST_OK)
                offer(q, b->on, &f);
        }
    }
}

/* Closes what the prices left open. */
static int branch(struct replan *q, double price)
{
    const struct inst *in = q->r->in;
    size_t n = in->D * (in->L + 1);
    struct branch b = {.q = q, .D = in->D, .L = in->L, .W = in->L + 1, .price = price, .work = BRANCH_WORK};
    if (in->D > BRANCH_DEVICES || in->coupled)
        return ST_OK;
    double *v = malloc(4 * n * sizeof *v);
    b.on = calloc(in->L, sizeof *b.on);
    int rc = v && b.on ? ST_OK : ST_ENOMEM;
    if (rc == ST_OK) {
        b.bytes = v;
        b.seconds = v + n;
        b.both = v + 2 * n;
        q->p.per_second = 0;
        relax_run(&q->p, v + 3 * n, b.bytes);
        q->p.per_second = price;
        relax_run(&q->p, v + 3 * n, b.both);
        b.slow = q->p;
        b.slow.kind = PROB_LATENCY;
        relax_run(&b.slow, v + 3 * n, b.seconds);
        for (size_t i = 0; i < n; i++) { /* other orders of additions */
            b.bytes[i] *= 1 - TOLERANCE;
            b.seconds[i] *= 1 - TOLERANCE;
            b.both[i] *= 1 - TOLERANCE;
        }
        descend(&b, 0, in->D, 0, 0, 0);
        q->fewest = !b.cut && q->r->b.stop == ST_OK;
    }
    free(v);
    free(b.on);
    return rc;
}

/* Prices from nothing upwards until the latency holds, then between. */
static int by_price(struct replan *q)
{
    const struct inst *in = q->r->in;
    struct solution s;
    struct figs f;
    double total = q->moved[in->L], low = 0, high = 0, best_price = 0;
    for (size_t d = 1; d < in->D; d++)
        total = fmax(total, q->moved[d * (in->L + 1) + in->L]);
    double price = 0;
    for (int i = 0; i < PRICES && q->r->b.stop == ST_OK; i++) {
        int rc = ask(q, price, &s, &f);
        if (rc < 0 || s.value == INFINITY)
            return rc;
        double bound = s.proven ? s.value - price * q->cap_latency : 0;
        if (bound > q->least) {
            q->least = bound;
            best_price = price;
        }
        if (q->best_bytes <= round_up(q, q->least)) {
            q->fewest = true;
            return ST_OK;
        }
        if (f.latency <= q->cap_latency)
            high = price;
        else
            low = price;
        if (price == 0 && f.latency <= q->cap_latency)
            break;
        price = high > 0 ? (low + high) / 2 : price > 0 ? price * 8 : total / (q->cap_latency * 4 + 1e-300);
    }
    return branch(q, best_price);
}

static int fewest_bytes(struct replan *q)
{
    const struct inst *in = q->r->in;
    struct solution s;
    struct figs f;
    if (q->best_bytes == 0) {
        q->fewest = true;
        return ST_OK;
    }
    if (!in->chain) /* no solver for bytes over graphs: the better of the fresh and the old plan */
        return ST_OK;
    if (q->cap_latency < INFINITY)
        return by_price(q);
    /* among equals the fastest: all seconds together are worth less than the grain of the bytes */
    double slowest = 0;
    for (size_t d = 0; d < in->D; d++)
        for (size_t l = 0; l < in->L; l++)
            if (inst_last(in, d, l))
                slowest = fmax(slowest, inst_run(in, d, l, inst_last(in, d, l)));
    for (size_t i = 0; i < in->D; i++)
        for (size_t j = 0; j < in->D; j++)
            for (size_t l = 1; l < in->L; l++)
                if (inst_hop(in, i, j).ok)
                    slowest = fmax(slowest, inst_hop(in, i, j).half_rtt +
                                                inst_cut_bytes(in, l) / inst_hop(in, i, j).rate);
    double price =
        q->grain > 0 && slowest > 0 ? 0.25 * q->grain / (slowest * 4 * (double)(in->D + in->L)) : 0;
    int rc = ask(q, price > 1e-290 ? price : 0, &s, &f);
    q->fewest = rc == ST_OK && s.proven;
    return rc;
}

static void set_caps(struct replan *q, enum plan_goal goal, double slack)
{
    struct run *r = q->r;
    double by = (1 + slack) * (1 + TOLERANCE);
    q->p = (struct prob){.in = r->in, .kind = PROB_MOVE, .cap_bottleneck = INFINITY, .cap_ratio = INFINITY};
    q->cap_latency = INFINITY;
    if (goal == PLAN_LATENCY)
        q->cap_latency = r->objective * by;
    else if (goal == PLAN_THROUGHPUT)
        q->p.cap_bottleneck = r->objective * by;
    else if (goal == PLAN_MEMORY)
        q->p.cap_ratio = r->objective * by;
    else {
        by *= r->objective;
        q->cap_latency = r->optima.latency > 0 ? r->optima.latency * by : INFINITY;
        q->p.cap_bottleneck = r->optima.bottleneck > 0 ? r->optima.bottleneck * by : INFINITY;
        q->p.cap_ratio = r->optima.ratio > 0 ? r->optima.ratio * by : INFINITY;
    }
}

static double value_of(const struct run *r, enum plan_goal goal, const struct figs *f)
{
    return goal == PLAN_LATENCY      ? f->latency
           : goal == PLAN_THROUGHPUT ? f->bottleneck
           : goal == PLAN_MEMORY     ? f->ratio
                                     : run_rho(f, &r->optima);
}

static void tell(const struct plan_case *w, const struct plan_replan_opts *o, double bytes,
                 const char *because, char *text, size_t n)
{
    char b[16], fresh[16], lost[16];
    fmt_bytes(b, (uint64_t)fmin(bytes, 9e18));
    fmt_bytes(fresh, (uint64_t)fmin(w->fresh_bytes, 9e18));
    fmt_bytes(lost, (uint64_t)fmin(w->lost_bytes, 9e18));
    if (w->kept)
        snprintf(text, n, "keep the plan: %s; its %s value is %.6g, the best there is %.6g (%.2f%% better)",
                 because, plan_goal_name(o->o.goal), w->before, w->best,
                 w->before > 0 ? 100 * (1 - w->best / w->before) : 0);
    else if (w->works)
        snprintf(
            text, n,
            "move %s (%s would be moved by the best plan) in about %.3g s: the %s value falls from %.6g to "
            "%.6g, the best there is %.6g",
            b, fresh, w->move_s, plan_goal_name(o->o.goal), w->before, w->after, w->best);
    else
        snprintf(
            text, n,
            "the old plan no longer works: move %s (%s of them are held nowhere; %s would be moved by the "
            "best plan) in about %.3g s, for a %s value of %.6g where the best is %.6g",
            b, lost, fresh, w->move_s, plan_goal_name(o->o.goal), w->after, w->best);
}

/* Is what is gained worth it? Leaves the old plan in q->best when it is not. */
static const char *stay(struct replan *q, const uint32_t *old, const struct plan_replan_opts *o, double after,
                        struct plan_case *w)
{
    if (!w->works)
        return NULL;
    if (q->best_bytes == 0 && !memcmp(old, q->best, q->r->in->L * sizeof *old))
        return "it is within the slack";
    if (o->since_s < o->cooldown_s)
        return "the last move was too short ago";
    if (o->expected_steps > 0 && o->o.goal != PLAN_MEMORY && o->o.goal != PLAN_BALANCED &&
        (w->before - after) * o->expected_steps <= w->move_s)
        return "moving would take longer than it saves";
    return NULL;
}

static int choose(struct replan *q, const struct plan *from, const struct plan_replan_opts *o, struct plan *p,
                  struct plan_case *w, struct err *e)
{
    struct run *r = q->r;
    const struct inst *in = r->in;
    struct figs f = {0}, old_f;
    uint32_t *old = calloc(in->L, sizeof *old);
    double move_s = 0;
    int rc = old ? holding_open(&q->h, in, from) : ST_ENOMEM;
    if (rc == ST_OK)
        rc = prepare(q);
    if (rc == ST_OK)
        rc = run_look(r, r->on, &f);
    if (rc < 0)
        goto done;
    set_caps(q, o->o.goal, o->slack);
    q->p.moved = q->moved;
    q->best_bytes = INFINITY;
    w->best = r->objective;
    w->fresh_bytes = bytes_of(q, r->on);
    w->before = INFINITY;
    w->lost_bytes = holding_lost(&q->h, in);
    offer(q, r->on, &f);
    if (holding_old(&q->h, in, from, old) && run_look(r, old, &old_f) == ST_OK) {
        w->works = true;
        w->before = value_of(r, o->o.goal, &old_f);
        offer(q, old, &old_f);
    }
    if ((rc = fewest_bytes(q)) < 0 || (rc = run_look(r, q->best, &f)) < 0)
        goto done;
    w->after = value_of(r, o->o.goal, &f);
    if ((rc = moves_seconds(&q->h, in, q->best, &move_s)) < 0)
        goto done;
    w->move_s = move_s;
    const char *because = stay(q, old, o, w->after, w);
    w->fewest = q->fewest;
    if (because) {
        memcpy(q->best, old, in->L * sizeof *old);
        w->kept = true;
        w->after = w->before;
        q->best_bytes = 0;
    }
    memcpy(r->on, q->best, in->L * sizeof *r->on);
    r->proven = r->proven && w->after <= r->objective * (1 + TOLERANCE);
    r->bound = r->bound < r->objective ? r->bound : r->objective;
    r->objective = w->after;
    r->solver = "replan";
    tell(w, o, q->best_bytes, because, w->text, sizeof w->text);
    if ((rc = run_finish(r, &o->o, p, e)) == ST_OK)
        rc = moves_write(&q->h, in, from, q->best, p);
done:
    free(old);
    return rc;
}

int plan_replan(const struct cluster *c, const struct model *m, const struct request *rq,
                const struct plan *from, const struct plan_replan_opts *o, struct plan **out,
                struct plan_case *why, struct err *e)
{
    struct run r;
    struct replan q = {.r = &r};
    struct plan *p = NULL;
    *out = NULL;
    *why = (struct plan_case){0};
    if (!(o->slack >= 0 && o->slack <= 1e6 && o->expected_steps >= 0 && o->cooldown_s >= 0 &&
          o->since_s >= 0))
        return err_set(e, ST_EINVAL, "slack, steps and times must not be negative");
    for (size_t s = 0; s < from->n_stages; s++)
        if (o->o.replicas || from->stages[s].n_replicas)
            return err_set(e, ST_ENOTSUP, "plans with replicas are made anew, not changed");
    int rc = run_open(&r, c, m, rq, &o->o, e);
    if (rc == ST_OK && !(p = calloc(1, sizeof *p)))
        rc = err_set(e, ST_ENOMEM, "out of memory");
    if (rc == ST_OK && (rc = run_solve(&r, o->o.goal)) < 0)
        run_fail(rc, e);
    else if (rc == ST_OK && !r.found)
        rc = run_finish(&r, &o->o, p, e);
    else if (rc == ST_OK && (rc = choose(&q, from, o, p, why, e)) < 0)
        run_fail(rc, e);
    holding_fini(&q.h);
    free(q.moved);
    free(q.best);
    run_close(&r, &o->o, p);
    if (rc == ST_OK || rc == ST_EINFEASIBLE || rc == ST_EDEADLINE)
        *out = p;
    else
        plan_free(p);
    return rc;
}
