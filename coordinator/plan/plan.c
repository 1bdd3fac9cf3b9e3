/* plan_solve: goals in terms of the single objectives, and their order of preference among equals. */
#include "coordinator/plan/plan.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"
#include "coordinator/plan/replicate.h"
#include "coordinator/plan/report.h"
#include "coordinator/plan/run.h"

#define DEFAULT_WORK 2000000u
#define DEFAULT_MEMORY ((size_t)1 << 30)
#define CLOSE 2e-4 /* of ρ: below it plans are few enough to step from one to the next */
#define DESCENTS 400
#define ROUNDING 1e-12 /* relative; values closer than this are the same */

static const char *const goal_names[] = {"latency", "throughput", "memory", "balanced"};
static const char *const code_names[] = {"CHOSEN",     "NOT_ALLOWED", "NO_MEMORY", "UNREACHABLE",
                                         "CONSTRAINT", "NOT_BETTER",  "NOT_FOUND"};
static const char *const shortfall_names[] = {"total_memory", "largest_layer", "packing", "connectivity",
                                              "constraint"};

const char *plan_goal_name(enum plan_goal g)
{
    return (unsigned)g < 4 ? goal_names[g] : "?";
}
const char *plan_code_name(enum plan_code c)
{
    return (unsigned)c < PLAN_CODE_COUNT ? code_names[c] : "?";
}
const char *plan_shortfall_name(enum plan_shortfall_kind k)
{
    return (unsigned)k < PLAN_SHORT_COUNT ? shortfall_names[k] : "?";
}
int plan_goal_parse(const char *word, enum plan_goal *out)
{
    for (unsigned i = 0; i < 4; i++)
        if (!strcmp(word, goal_names[i])) {
            *out = (enum plan_goal)i;
            return ST_OK;
        }
    return ST_EINVAL;
}

int run_look(const struct run *r, const uint32_t *on, struct figs *f)
{
    struct eval ev;
    int rc = eval_run(r->in, on, &ev);
    if (rc < 0)
        return rc == ST_EINFEASIBLE ? ST_EINTERNAL : rc; /* a solver's answer must hold */
    *f = (struct figs){ev.latency, ev.bottleneck, ev.ratio};
    eval_fini(&ev);
    return ST_OK;
}

static double pick(const struct figs *f, enum prob_kind k)
{
    return k == PROB_LATENCY ? f->latency : k == PROB_BOTTLENECK ? f->bottleneck : f->ratio;
}

/* The optimum of one objective and, among its plans, the one of least latency. Into r->on, objective, bound.
 */
static int single(struct run *r, enum prob_kind kind)
{
    struct prob p = {.in = r->in, .kind = kind, .cap_bottleneck = INFINITY, .cap_ratio = INFINITY};
    struct solution s = {.limit = INFINITY, .on = r->on};
    struct figs f;
    int rc = prob_solve(&p, &r->b, &s);
    r->solver = s.solver;
    r->proven = s.proven;
    r->found = s.value < INFINITY;
    r->bound = s.bound;
    if (rc < 0 || !r->found)
        return rc;
    if ((rc = run_look(r, r->on, &f)) < 0)
        return rc;
    r->objective = pick(&f, kind);
    if (kind == PROB_LATENCY || r->b.stop || r->in->lean) /* of many devices the first plan will do */
        return ST_OK;
    p.kind = PROB_LATENCY;
    p.cap_bottleneck = kind == PROB_BOTTLENECK ? r->objective : INFINITY;
    p.cap_ratio = kind == PROB_RATIO ? r->objective : INFINITY;
    s.on = r->spare;
    s.limit = f.latency;
    if ((rc = prob_solve(&p, &r->b, &s)) < 0)
        return rc;
    if (s.value < INFINITY) {
        if ((rc = run_look(r, r->spare, &f)) < 0)
            return rc;
        if (pick(&f, kind) <= r->objective) { /* below it only when the first search was cut short */
            memcpy(r->on, r->spare, r->in->L * sizeof *r->on);
            r->objective = pick(&f, kind);
        }
    }
    return ST_OK;
}

/* An optimum of zero is left out: nothing can be a multiple of it. */
static double part(double v, double optimum)
{
    return optimum > 0 ? v / optimum : 1;
}
double run_rho(const struct figs *f, const struct figs *o)
{
    double x = part(f->latency, o->latency), y = part(f->bottleneck, o->bottleneck),
           z = part(f->ratio, o->ratio);
    x = x > y ? x : y;
    return x > z ? x : z;
}

struct balance {
    struct run *r;
    uint32_t *best;
    double lo, hi;
    bool proven;
};

/* The least latency within caps of ρ (strict: below ρ). Tightens lo or hi. */
static int probe(struct balance *q, double at, bool strict)
{
    struct run *r = q->r;
    if (strict)
        at *= 1 - ROUNDING;
    double b = r->optima.bottleneck > 0 ? at * r->optima.bottleneck : INFINITY;
    double u = r->optima.ratio > 0 ? at * r->optima.ratio : INFINITY;
    struct prob p = {.in = r->in, .kind = PROB_LATENCY, .cap_bottleneck = b, .cap_ratio = u};
    struct solution s = {.limit = r->optima.latency > 0 ? at * r->optima.latency : INFINITY, .on = r->spare};
    struct figs f;
    int rc = prob_solve(&p, &r->b, &s);
    if (rc < 0)
        return rc;
    q->proven = q->proven && s.proven;
    double low = r->optima.latency > 0 ? s.bound / r->optima.latency : s.bound < INFINITY ? 1 : INFINITY;
    low = low < at ? low : at;
    q->lo = low > q->lo ? low : q->lo;
    if (s.value == INFINITY)
        return ST_OK;
    if ((rc = run_look(r, r->spare, &f)) < 0)
        return rc;
    double got = run_rho(&f, &r->optima);
    if (got < q->hi) {
        q->hi = got;
        memcpy(q->best, r->spare, r->in->L * sizeof *q->best);
    }
    return ST_OK;
}

static bool balance_open(const struct balance *q)
{
    return q->lo < q->hi * (1 - 2 * ROUNDING) && !q->r->b.stop;
}

/* Halves; every third time, and once little is left, asks outright for anything below what was found. */
static int balance_search(struct balance *q)
{
    int rc = ST_OK;
    for (int i = 0; rc == ST_OK && i < DESCENTS && balance_open(q); i++) {
        bool last = q->hi - q->lo <= CLOSE * q->hi || i % 4 == 3;
        if (!q->proven && last) /* once a search was cut short there is nothing left to prove */
            break;
        rc = last ? probe(q, q->hi, true) : probe(q, (q->lo + q->hi) / 2, false);
    }
    return rc;
}

static int balanced(struct run *r)
{
    static const enum prob_kind kinds[3] = {PROB_LATENCY, PROB_BOTTLENECK, PROB_RATIO};
    size_t L = r->in->L;
    uint32_t *plans = calloc(3 * L, sizeof *plans);
    struct figs f[3] = {{0}};
    struct balance q = {r, calloc(L, sizeof(uint32_t)), 1, INFINITY, true};
    int rc = plans && q.best ? ST_OK : ST_ENOMEM;
    for (int i = 0; i < 3 && rc == ST_OK; i++) {
        rc = single(r, kinds[i]);
        q.proven = q.proven && r->proven;
        if (rc < 0 || !r->found)
            goto done;
        memcpy(plans + (size_t)i * L, r->on, L * sizeof *plans);
        rc = run_look(r, r->on, &f[i]);
    }
    r->optima = f[0];
    for (int i = 0; i < 3; i++) { /* unproven optima may be beaten by another goal's plan */
        r->optima.latency = fmin(r->optima.latency, f[i].latency);
        r->optima.bottleneck = fmin(r->optima.bottleneck, f[i].bottleneck);
        r->optima.ratio = fmin(r->optima.ratio, f[i].ratio);
    }
    for (int i = 0; i < 3 && rc == ST_OK; i++)
        if (run_rho(&f[i], &r->optima) < q.hi) {
            q.hi = run_rho(&f[i], &r->optima);
            memcpy(q.best, plans + (size_t)i * L, L * sizeof *q.best);
        }
    if (rc == ST_OK)
        rc = balance_search(&q);
    if (rc < 0)
        goto done;
    memcpy(r->on, q.best, L * sizeof *r->on);
    if ((rc = run_look(r, r->on, &f[0])) < 0)
        goto done;
    r->optima.latency = fmin(r->optima.latency, f[0].latency);
    r->optima.bottleneck = fmin(r->optima.bottleneck, f[0].bottleneck);
    r->optima.ratio = fmin(r->optima.ratio, f[0].ratio);
    r->objective = run_rho(&f[0], &r->optima);
    r->bound = q.proven ? fmin(q.lo, r->objective) : 1;
    r->proven = q.proven && q.lo >= q.hi * (1 - 2 * ROUNDING);
done:
    free(plans);
    free(q.best);
    return rc;
}

int run_solve(struct run *r, enum plan_goal goal)
{
    if (r->in->D == 0) {
        r->proven = true;
        r->solver = "none";
        return ST_OK;
    }
    if (goal == PLAN_BALANCED)
        return balanced(r);
    return single(r, goal == PLAN_LATENCY      ? PROB_LATENCY
                     : goal == PLAN_THROUGHPUT ? PROB_BOTTLENECK
                                               : PROB_RATIO);
}

static int infeasible(struct run *r, struct plan *p, struct err *e)
{
    if (!r->proven) {
        p->feasible = PLAN_UNKNOWN;
        return err_set(e, ST_EDEADLINE,
                       "no plan was found and none was ruled out before the %s limit; raise the limit or "
                       "offer fewer devices",
                       r->b.stop == ST_EDEADLINE ? "time" : "work");
    }
    p->feasible = PLAN_NO;
    int rc = shortfall_find(r->in, &r->b, &p->shortfall);
    if (rc < 0)
        return err_set(e, rc, "the reason why no plan exists could not be found: %s", status_name(rc));
    p->has_shortfall = true;
    return err_reason(e, ST_EINFEASIBLE, "INFEASIBLE", "no plan exists: %s at %s; %s",
                      plan_shortfall_name(p->shortfall.kind), p->shortfall.where, p->shortfall.hint);
}

int run_finish(struct run *r, const struct plan_opts *o, struct plan *p, struct err *e)
{
    int rc = report_common(r->in, r->in->c, r->in->m, p);
    p->goal = o->goal;
    p->solver = plan_text("%s", r->solver);
    if (r->b.stop == ST_EDEADLINE)
        p->stopped = plan_text("time");
    else if (!r->found && !r->proven)
        p->stopped = plan_text("work");
    if (rc < 0 || !p->solver)
        return err_set(e, ST_ENOMEM, "out of memory");
    if (!r->found)
        return infeasible(r, p, e);
    p->feasible = PLAN_YES;
    p->optimal = r->proven;
    p->objective = r->objective;
    p->lower_bound = r->proven || r->bound > r->objective ? r->objective : r->bound;
    p->gap = p->objective > 0 ? 1 - p->lower_bound / p->objective : 0;
    if (o->goal == PLAN_BALANCED) {
        p->has_optima = true;
        p->optima.latency_s = r->optima.latency;
        p->optima.bottleneck_s = r->optima.bottleneck;
        p->optima.max_memory_ratio = r->optima.ratio;
    }
    rc = report_fill(r->in, r->on, p);
    return rc < 0 ? err_set(e, rc, "the plan could not be written out: %s", status_name(rc)) : ST_OK;
}

int run_open(struct run *r, const struct cluster *c, const struct model *m, const struct request *rq,
             const struct plan_opts *o, struct err *e)
{
    *r = (struct run){.solver = "none"};
    if (o->replicas && o->goal != PLAN_THROUGHPUT)
        return err_set(e, ST_EINVAL,
                       "replicas share the work of a stage: they are for the throughput goal, not %s",
                       plan_goal_name(o->goal));
    if (!(o->time_limit_s >= 0) || o->time_limit_s > 1e9 || (unsigned)o->goal > PLAN_BALANCED)
        return err_set(e, ST_EINVAL, "the goal or the time limit is out of range");
    r->b.memory_limit = o->memory_limit ? o->memory_limit : DEFAULT_MEMORY;
    r->b.work_left = o->work_limit ? o->work_limit : DEFAULT_WORK;
    r->b.cancel = o->cancel;
    r->b.clock = o->clock;
    r->begun_ns = o->clock ? clock_ns(o->clock) : 0;
    if (o->clock && o->time_limit_s > 0)
        r->b.deadline_ns = r->begun_ns + (uint64_t)(o->time_limit_s * 1e9);
    struct inst *in;
    int rc = inst_new(&in, c, m, rq, RULE_ALL, NULL, 0, r->b.memory_limit);
    if (rc == ST_ELIMIT)
        return err_set(e, rc, "%zu devices and %zu layers need more than the planner's %zu bytes of tables",
                       c->ndevices, m->nlayers, r->b.memory_limit);
    if (rc < 0)
        return err_set(e, rc, "out of memory");
    r->in = in;
    r->owned = in;
    r->on = calloc(in->L, sizeof *r->on);
    r->spare = calloc(in->L, sizeof *r->spare);
    return r->on && r->spare ? ST_OK : err_set(e, ST_ENOMEM, "out of memory");
}

int run_fail(int rc, struct err *e)
{
    return err_set(e, rc,
                   rc == ST_ECANCELED ? "planning was cancelled"
                   : rc == ST_ELIMIT  ? "the model's graph has more layers than the planner takes"
                   : rc == ST_ENOMEM  ? "out of memory"
                                      : "planning failed");
}

void run_close(struct run *r, const struct plan_opts *o, struct plan *p)
{
    if (p && o->stats) {
        p->has_stats = true;
        p->stats.seconds = o->clock ? (double)(clock_ns(o->clock) - r->begun_ns) / 1e9 : 0;
        p->stats.states = r->b.states;
        p->stats.table_bytes = r->b.table_bytes;
    }
    free(r->on);
    free(r->spare);
    budget_fini(&r->b);
    inst_free(r->owned);
}

/* The plan without replicas is where the search for one with them starts. */
static int with_replicas(struct run *r, const struct plan_opts *o, struct plan *p, struct err *e)
{
    const struct inst *in = r->in;
    struct replicated best = {0};
    struct inst *free_runs = NULL;
    uint32_t *on = NULL;
    int rc = inst_new(&free_runs, in->c, in->m, in->r, RULE_ALL & ~(unsigned)RULE_MEMORY, NULL, 0,
                      r->b.memory_limit);
    if (rc == ST_OK && r->found && !(on = malloc(in->L * sizeof *on)))
        rc = ST_ENOMEM;
    for (size_t l = 0; rc == ST_OK && on && l < in->L; l++) /* its devices are those of `in` and others */
        for (uint32_t d = 0; d < free_runs->D; d++)
            if (free_runs->dev[d] == in->dev[r->on[l]])
                on[l] = d;
    if (rc == ST_OK)
        rc = replicate_solve(free_runs, &r->b, on, &best);
    free(on);
    if (rc == ST_ENOTSUP)
        err_set(e, rc,
                "replicas are planned for chains of layers, and not together with max_stages, min_nodes, "
                "max_bytes_per_node or max_total_bytes");
    else if (rc < 0)
        run_fail(rc, e);
    else if (best.value < INFINITY && (rc = report_common(in, in->c, in->m, p)) == ST_OK) {
        p->goal = o->goal;
        p->solver = plan_text("replicas");
        p->stopped = r->b.stop == ST_EDEADLINE ? plan_text("time") : NULL;
        p->feasible = PLAN_YES;
        p->optimal = best.proven;
        p->objective = best.value;
        p->lower_bound = best.proven || best.bound > best.value ? best.value : best.bound;
        p->gap = p->objective > 0 ? 1 - p->lower_bound / p->objective : 0;
        rc = p->solver ? report_replicas(&best, p) : ST_ENOMEM;
        if (rc < 0)
            err_set(e, rc, "the plan could not be written out: %s", status_name(rc));
    } else if (rc == ST_OK) {
        r->proven = r->proven && best.proven;
        rc = run_finish(r, o, p, e);
    }
    replicate_fini(&best);
    inst_free(free_runs);
    return rc;
}

int plan_solve(const struct cluster *c, const struct model *m, const struct request *rq,
               const struct plan_opts *o, struct plan **out, struct err *e)
{
    struct run r;
    struct plan *p = NULL;
    *out = NULL;
    int rc = run_open(&r, c, m, rq, o, e);
    if (rc == ST_OK && !(p = calloc(1, sizeof *p)))
        rc = err_set(e, ST_ENOMEM, "out of memory");
    if (rc == ST_OK)
        rc = (rc = run_solve(&r, o->goal)) < 0 ? run_fail(rc, e)
             : o->replicas && r.in->D          ? with_replicas(&r, o, p, e)
                                               : run_finish(&r, o, p, e);
    run_close(&r, o, p);
    if (rc == ST_OK || rc == ST_EINFEASIBLE || rc == ST_EDEADLINE)
        *out = p;
    else
        plan_free(p);
    return rc;
}
