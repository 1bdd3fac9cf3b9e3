/* Replicated stages: against every possible plan of small chains, the checker, and bad requests. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/plan/oracle.h"

#define MOST 4u

struct group {
    size_t n;
    uint32_t dev[MOST];
    double share[MOST];
};
struct brute {
    const struct problem *p;
    double best;
};

static double seconds(const struct problem *p, uint32_t d, size_t a, size_t b)
{
    const struct cluster_device *c = &p->c->devices[d];
    double s = c->speed_factor * c->stage_overhead_s;
    size_t blocks = 0;
    for (size_t i = a; i < b; i++) {
        const struct model_layer *l = &p->m->layers[i];
        if (c->has_segment && l->type == LAYER_BLOCK)
            blocks++;
        else
            s += c->speed_factor * (c->layer_overhead_s + fmax(l->flops / c->compute_flops_per_s,
                                                               l->read_bytes / c->memory_bytes_per_s));
    }
    if (blocks > c->nsegment && c->has_segment)
        return INFINITY;
    return blocks ? s + c->speed_factor * c->segment_s[blocks - 1] : s;
}

/* The slowest wire between two groups, NULL = the client; INFINITY without a link. */
static double wire(const struct problem *p, const struct group *x, const struct group *y, double bytes)
{
    double most = 0;
    for (size_t i = 0; i < (x ? x->n : 1); i++)
        for (size_t k = 0; k < (y ? y->n : 1); k++) {
            struct cluster_rate r;
            uint32_t from = x ? p->c->devices[x->dev[i]].node : p->c->client_node,
                     to = y ? p->c->devices[y->dev[k]].node : p->c->client_node;
            if (from == CLUSTER_NO_NODE || to == CLUSTER_NO_NODE)
                continue;
            int rc = cluster_path(p->c, from, to, &r);
            if (rc < 0)
                return INFINITY;
            if (rc > 0)
                most = fmax(most, bytes * (x ? x->share[i] : 1) * (y ? y->share[k] : 1) / r.bytes_per_s);
        }
    return most;
}

static void descend(struct brute *q, const struct group *before, unsigned rest, size_t l, double so_far)
{
    const struct problem *p = q->p;
    for (unsigned set = rest; set; set = (set - 1) & rest)
        for (size_t m = l + 1; m <= p->m->nlayers; m++) {
            struct group g = {0};
            double sum = 0, weights = 0, cache = 0, scratch = 0, most = so_far;
            bool fits = true;
            for (size_t i = l; i < m; i++) {
                weights += p->m->layers[i].weight_bytes;
                cache += p->m->layers[i].kv_bytes;
                scratch = fmax(scratch, p->m->layers[i].activation_bytes);
            }
            for (uint32_t d = 0; d < p->c->ndevices; d++)
                if (set >> d & 1u) {
                    g.dev[g.n] = d;
                    sum += g.share[g.n++] = 1 / seconds(p, d, l, m);
                }
            for (size_t i = 0; i < g.n; i++) {
                const struct cluster_device *c = &p->c->devices[g.dev[i]];
                fits = fits && g.share[i] > 0;
                g.share[i] /= sum;
                fits = fits && weights + scratch + g.share[i] * cache <= c->memory_bytes - c->headroom_bytes;
            }
            if (!fits)
                continue;
            most = fmax(most, fmax(1 / sum,
                                   wire(p, before, &g,
                                        l ? p->m->layers[l - 1].output_bytes : p->m->layers[0].input_bytes)));
            if (m == p->m->nlayers)
                q->best = fmin(q->best, fmax(most, wire(p, &g, NULL, p->m->layers[m - 1].output_bytes)));
            else if (most < q->best)
                descend(q, &g, rest & ~set, m, most);
        }
}

static void test_brute_force(void **s)
{
    size_t feasible = 0, shared = 0, from = 70000, to = from + (getenv("STRATA_SOAK") ? 5000 : 400);
    (void)s;
    for (uint64_t seed = from; seed < to; seed++) {
        struct problem p;
        struct plan_opts o = {.goal = PLAN_THROUGHPUT, .replicas = true};
        struct plan *plan = NULL;
        struct plan_check_report rep;
        struct err e = {0};
        problem_random(&p, seed, MOST, 5, seed % 2 ? GEN_TIGHT : 0);
        struct brute q = {&p, INFINITY};
        descend(&q, NULL, (1u << p.c->ndevices) - 1, 0, 0);
        int rc = plan_solve(p.c, p.m, NULL, &o, &plan, &e);
        if (rc != (q.best < INFINITY ? ST_OK : ST_EINFEASIBLE))
            fail_msg("seed %llu: %s, the truth is %g: %s", (unsigned long long)seed, status_name(rc), q.best,
                     e.text);
        if (rc == ST_OK) {
            if (!plan->optimal || fabs(plan->objective - q.best) > 1e-9 * q.best)
                fail_msg("seed %llu: %.17g, the truth is %.17g, optimal %d", (unsigned long long)seed,
                         plan->objective, q.best, plan->optimal);
            if (plan_check(p.c, p.m, NULL, plan, &rep, &e) < 0)
                fail_msg("seed %llu: %s", (unsigned long long)seed, e.text);
            plan_check_fini(&rep);
            feasible++;
            for (size_t i = 0; i < plan->n_stages; i++)
                shared += plan->stages[i].n_replicas > 1;
        }
        plan_free(plan);
        problem_fini(&p);
    }
    assert_true(feasible > (to - from) / 4);
    assert_true(shared > feasible / 4); /* sharing is really used */
}

static struct plan *some_plan(struct problem *p)
{
    for (uint64_t seed = 71000;; seed++) {
        struct plan_opts o = {.goal = PLAN_THROUGHPUT, .replicas = true};
        struct plan *plan = NULL;
        struct err e = {0};
        problem_random(p, seed, MOST, 5, 0);
        if (plan_solve(p->c, p->m, NULL, &o, &plan, &e) == ST_OK)
            for (size_t i = 0; i < plan->n_stages; i++)
                if (plan->stages[i].n_replicas > 1)
                    return plan;
        plan_free(plan);
        problem_fini(p);
    }
}

static int check(const struct problem *p, const struct plan *plan)
{
    struct plan_check_report rep;
    struct err e = {0};
    int rc = plan_check(p->c, p->m, NULL, plan, &rep, &e);
    plan_check_fini(&rep);
    return rc;
}

/* Through JSON and back the plan is the same bytes, and every figure that is bent is caught. */
static void test_check(void **s)
{
    struct problem p;
    struct plan *plan = some_plan(&p), *again = NULL;
    struct buf a = {0}, b = {0};
    struct err e = {0};
    size_t k = 0;
    (void)s;
    assert_int_equal(plan_to_json(plan, &a), ST_OK);
    if (plan_from_json(buf_cstr(&a), a.len, &again, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(plan_to_json(again, &b), ST_OK);
    assert_string_equal(buf_cstr(&a), buf_cstr(&b));
    assert_int_equal(check(&p, again), ST_OK);
    while (again->stages[k].n_replicas < 2)
        k++;
    struct plan_stage *st = &again->stages[k];
    double *const figures[] = {&st->replicas[0].share,
                               &st->replicas[1].compute_s,
                               &st->compute_s,
                               &st->memory_bytes,
                               &again->latency_s,
                               &again->bottleneck_s,
                               &again->objective,
                               &again->max_memory_ratio,
                               &again->devices[0].busy_ratio,
                               &again->placements[0].memory_bytes};
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        double was = *figures[i];
        *figures[i] = was * 1.001 + 1e-6;
        assert_int_equal(check(&p, again), ST_ECONFLICT);
        *figures[i] = was;
    }
    assert_int_equal(check(&p, again), ST_OK);
    char *device = st->replicas[1].device;
    st->replicas[1].device = st->replicas[0].device;
    assert_int_equal(check(&p, again), ST_ECONFLICT);
    st->replicas[1].device = device;
    buf_fini(&a);
    buf_fini(&b);
    plan_free(plan);
    plan_free(again);
    problem_fini(&p);
}

static void test_refused(void **s)
{
    struct problem p;
    struct plan *plan = some_plan(&p), *out = NULL;
    struct plan_opts o = {.goal = PLAN_THROUGHPUT, .replicas = true};
    struct plan_replan_opts ro = {.o = {.goal = PLAN_THROUGHPUT}};
    struct plan_case why;
    struct request r;
    struct err e = {0};
    (void)s;
    request_init(&r);
    r.max_stages = 1;
    assert_int_equal(plan_solve(p.c, p.m, &r, &o, &out, &e), ST_ENOTSUP);
    assert_null(out);
    assert_int_equal(plan_replan(p.c, p.m, NULL, plan, &ro, &out, &why, &e), ST_ENOTSUP);
    o.goal = PLAN_MEMORY;
    assert_int_equal(plan_solve(p.c, p.m, NULL, &o, &out, &e), ST_EINVAL);
    request_fini(&r);
    plan_free(plan);
    problem_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
