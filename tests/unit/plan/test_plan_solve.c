#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/plan/oracle.h"

static bool close_to(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fmax(fabs(a), fabs(b));
}

static double truth_of(const struct truth *t, enum plan_goal g)
{
    return g == PLAN_LATENCY      ? t->latency
           : g == PLAN_THROUGHPUT ? t->bottleneck
           : g == PLAN_MEMORY     ? t->ratio
                                  : t->balanced;
}

/* Solves one random problem for one goal and compares with the truth and with the independent check. */
static bool agree(const struct problem *p, const struct truth *t, enum plan_goal g, uint64_t seed,
                  size_t memory)
{
    struct plan_opts o = {.goal = g, .memory_limit = memory};
    struct plan *plan = NULL;
    struct err e = {0};
    int rc = plan_solve(p->c, p->m, p->has_request ? &p->r : NULL, &o, &plan, &e);
    bool ok = rc == (t->feasible ? ST_OK : ST_EINFEASIBLE);
    if (ok && rc == ST_OK) {
        struct plan_check_report rep;
        ok = plan->optimal && close_to(plan->objective, truth_of(t, g)) && plan->gap == 0;
        int bad = plan_check(p->c, p->m, p->has_request ? &p->r : NULL, plan, &rep, &e);
        ok = ok && bad == ST_OK;
        if (bad)
            print_message("check: %s\n", e.text);
        plan_check_fini(&rep);
    } else if (ok) {
        ok = plan->has_shortfall && plan->shortfall.where && plan->shortfall.hint;
    }
    if (!ok)
        print_message("seed %llu goal %s: rc %s, feasible %d, got %.17g, truth %.17g: %s\n",
                      (unsigned long long)seed, plan_goal_name(g), status_name(rc), t->feasible,
                      plan ? plan->objective : -1, truth_of(t, g), e.text);
    plan_free(plan);
    return ok;
}

static void compare(uint64_t from, uint64_t to, unsigned devices, unsigned layers, unsigned flags,
                    size_t memory)
{
    size_t feasible = 0, wrong = 0;
    for (uint64_t seed = from; seed < to; seed++) {
        struct problem p;
        struct truth t;
        problem_random(&p, seed, devices, layers, flags);
        oracle_run(&p, &t);
        feasible += t.feasible;
        for (int g = PLAN_LATENCY; g <= PLAN_BALANCED; g++)
            wrong += !agree(&p, &t, (enum plan_goal)g, seed, memory);
        problem_fini(&p);
    }
    assert_int_equal(wrong, 0);
    if (to - from < 100)
        return;
    assert_true(feasible > (to - from) / 10); /* the comparison means something in both directions */
    assert_true(feasible < to - from);
}

static void test_chains(void **s)
{
    (void)s;
    compare(0, 1200, 5, 7, 0, 0);
}
static void test_tight_chains(void **s)
{
    (void)s;
    compare(5000, 6000, 5, 7, GEN_TIGHT, 0);
}
static void test_requests(void **s)
{
    (void)s;
    compare(10000, 11200, 5, 7, GEN_REQUEST, 0);
}
/* Too little memory for the bitmask's tables: branch and bound must prove the same optima. */
static void test_search(void **s)
{
    (void)s;
    compare(40000, 40400, 5, 7, GEN_REQUEST | GEN_TIGHT, 4500);
    for (uint64_t seed = 40000, n = 0; n < 1; seed++) { /* and that is what the limit brings about */
        struct problem p;
        problem_random(&p, seed, 5, 7, GEN_TIGHT);
        if (p.c->ndevices == 5 && p.m->nlayers == 7) {
            struct plan_opts o = {.goal = PLAN_LATENCY, .memory_limit = 4500};
            struct plan *plan = NULL;
            struct err e = {0};
            if (plan_solve(p.c, p.m, NULL, &o, &plan, &e) == ST_OK) {
                assert_string_equal(plan->solver, "search");
                n++;
            }
            plan_free(plan);
        }
        problem_fini(&p);
    }
}
static void test_dags(void **s)
{
    (void)s;
    compare(20000, 20400, 3, 6, GEN_DAG, 0);
    compare(21000, 21400, 3, 6, GEN_DAG | GEN_REQUEST | GEN_TIGHT, 0);
}

/* Eight devices: a sample, and under STRATA_SOAK ten thousand. */
static void test_eight(void **s)
{
    static const struct {
        unsigned devices, layers, flags;
    } kinds[] = {{8, 5, 0},
                 {8, 6, GEN_TIGHT},
                 {7, 6, GEN_REQUEST},
                 {8, 5, GEN_REQUEST | GEN_TIGHT},
                 {6, 5, GEN_DAG},
                 {8, 4, GEN_DAG | GEN_TIGHT},
                 {5, 5, GEN_DAG | GEN_REQUEST},
                 {8, 4, GEN_DAG | GEN_REQUEST | GEN_TIGHT}};
    uint64_t each = getenv("STRATA_SOAK") ? 1250 : 12;
    (void)s;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        compare(100000 * (i + 1), 100000 * (i + 1) + each, kinds[i].devices, kinds[i].layers, kinds[i].flags,
                0);
}

static struct cluster *cluster_of(const char *text)
{
    struct cluster *c = NULL;
    struct err e = {0};
    if (cluster_read_json(text, strlen(text), "cluster", &c, &e) < 0)
        fail_msg("%s", e.text);
    return c;
}
static struct model *model_of(const char *text)
{
    struct model *m = NULL;
    struct err e = {0};
    if (model_read_json(text, strlen(text), "model", &m, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}
static struct plan *solve(const struct cluster *c, const struct model *m, enum plan_goal g)
{
    struct plan_opts o = {.goal = g};
    struct plan *p = NULL;
    struct err e = {0};
    if (plan_solve(c, m, NULL, &o, &p, &e) < 0)
        fail_msg("%s", e.text);
    return p;
}

/* Five nodes that an equal split serves badly: 40 layers of 1 GB, bandwidth bound. */
static void test_exo957(void **s)
{
    static const double ram[] = {36, 96, 64, 96, 36}, bw[] = {264.4, 344, 308.7, 351.2, 177.6};
    struct buf b = {0};
    (void)s;
    buf_printf(&b, "{\"schema\":\"strata.cluster.v1\",\"default_link\":{\"bytes_per_s\":1e30,\"rtt_s\":0},"
                   "\"devices\":[");
    for (int i = 0; i < 5; i++)
        buf_printf(
            &b,
            "%s{\"id\":\"n%d/cuda:0\",\"node\":\"n%d\",\"memory_bytes\":%.0f,\"compute_flops_per_s\":1e30,"
            "\"memory_bytes_per_s\":%.17g}",
            i ? "," : "", i, i, ram[i] * 1e9, bw[i] * 1e9);
    buf_printf(&b, "]}");
    struct cluster *c = cluster_of(buf_cstr(&b));
    struct model *m = model_of(
        "{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":[{\"id\":\"b\",\"type\":\"block\","
        "\"count\":40,\"weight_bytes\":1e9,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0}]}");
    struct plan *p = solve(c, m, PLAN_THROUGHPUT);
    size_t split[5] = {0};
    assert_true(p->optimal);
    assert_true(p->bottleneck_s * 1e3 <= 29.0715 && p->bottleneck_s * 1e3 > 29.06);
    for (size_t i = 0; i < p->n_stages; i++)
        split[p->stages[i].device[1] - '0'] = p->stages[i].n_layers;
    for (int i = 0; i < 5; i++)
        assert_true((double)split[i] / bw[i] * 1e3 <= 29.0715);
    plan_free(p);
    p = solve(c, m, PLAN_LATENCY);
    assert_int_equal(p->n_stages, 1);
    assert_string_equal(p->stages[0].device, "n3/cuda:0");
    assert_true(fabs(p->latency_s * 1e3 - 113.9) < 0.05);
    plan_free(p);
    cluster_free(c);
    model_free(m);
    buf_fini(&b);
}

/* One more device never makes any goal worse. */
static void test_monotonic(void **s)
{
    (void)s;
    for (uint64_t seed = 30000; seed < 30200; seed++) {
        struct problem p;
        problem_random(&p, seed, 6, 7, GEN_TIGHT);
        size_t n = p.c->ndevices;
        for (int g = PLAN_LATENCY; g <= PLAN_MEMORY && n > 1; g++) {
            double last = INFINITY;
            for (p.c->ndevices = 1; p.c->ndevices <= n; p.c->ndevices++) {
                struct plan_opts o = {.goal = (enum plan_goal)g};
                struct plan *plan = NULL;
                struct err e = {0};
                int rc = plan_solve(p.c, p.m, NULL, &o, &plan, &e);
                assert_true(rc == ST_OK || rc == ST_EINFEASIBLE);
                double v = rc == ST_OK ? plan->objective : INFINITY;
                assert_true(v <= last * (1 + 1e-12));
                last = v;
                plan_free(plan);
            }
        }
        p.c->ndevices = n;
        problem_fini(&p);
    }
}

/* A quicker link, or one where there was none, never makes any goal worse. */
static void test_links_monotonic(void **s)
{
    (void)s;
    size_t better = 0;
    for (uint64_t seed = 31000; seed < 31200; seed++) {
        struct problem p;
        uint64_t dice = seed;
        problem_random(&p, seed, 6, 7, seed % 2 ? GEN_TIGHT : 0);
        for (int g = PLAN_LATENCY; g <= PLAN_MEMORY && p.c->nlinks; g++) {
            double last = INFINITY;
            for (int step = 0; step < 4; step++) {
                struct plan_opts o = {.goal = (enum plan_goal)g};
                struct plan *plan = NULL;
                struct err e = {0};
                int rc = plan_solve(p.c, p.m, NULL, &o, &plan, &e);
                assert_true(rc == ST_OK || rc == ST_EINFEASIBLE);
                double v = rc == ST_OK ? plan->objective : INFINITY;
                assert_true(v <= last * (1 + 1e-12));
                better += step && v < last;
                last = v;
                plan_free(plan);
                struct cluster_rate *r = &p.c->links[test_rand(&dice) % p.c->nlinks].rate;
                r->bytes_per_s *= 4;
                r->rtt_s /= 3;
                if (step == 2 && !p.c->has_default_link) {
                    p.c->has_default_link = true;
                    p.c->default_link = (struct cluster_rate){2, 5};
                }
            }
        }
        problem_fini(&p);
    }
    assert_true(better > 50);
}

/* The same bytes on every run. */
static void test_repeats(void **s)
{
    (void)s;
    for (uint64_t seed = 32000; seed < 32060; seed++) {
        struct problem p;
        problem_random(&p, seed, 6, 7, (seed % 2 ? GEN_TIGHT : 0) | (seed % 3 ? 0 : GEN_DAG) | GEN_REQUEST);
        for (int g = PLAN_LATENCY; g <= PLAN_BALANCED; g++) {
            char *first = NULL;
            for (int k = 0; k < 2; k++) {
                struct plan_opts o = {.goal = (enum plan_goal)g};
                struct plan *plan = NULL;
                struct err e = {0};
                struct buf b = {0};
                int rc = plan_solve(p.c, p.m, p.has_request ? &p.r : NULL, &o, &plan, &e);
                assert_true(rc == ST_OK || rc == ST_EINFEASIBLE);
                assert_int_equal(plan_to_json(plan, &b), ST_OK);
                if (!first)
                    first = strdup(buf_cstr(&b));
                else
                    assert_string_equal(first, buf_cstr(&b));
                buf_fini(&b);
                plan_free(plan);
            }
            free(first);
        }
        problem_fini(&p);
    }
}

static struct cluster *big_cluster(unsigned n, double layers_each)
{
    struct buf b = {0};
    uint64_t s = 7;
    buf_printf(&b, "{\"schema\":\"strata.cluster.v1\",\"default_link\":{\"bytes_per_s\":1e9,\"rtt_s\":0.002},"
                   "\"devices\":[");
    for (unsigned i = 0; i < n; i++)
        buf_printf(
            &b,
            "%s{\"id\":\"n%u/cuda:0\",\"node\":\"n%u\",\"memory_bytes\":%.0f,\"compute_flops_per_s\":1e12,"
            "\"memory_bytes_per_s\":%.0f}",
            i ? "," : "", i, i, layers_each * 1e9, 1e11 * (1 + (double)(test_rand(&s) % 100) / 50));
    buf_printf(&b, "]}");
    struct cluster *c = cluster_of(buf_cstr(&b));
    buf_fini(&b);
    return c;
}

/* Beyond the exact size: a plan that checks, a bound that is one, and no claim without proof. */
static void test_large(void **s)
{
    struct model *m = model_of(
        "{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":[{\"id\":\"b\",\"type\":\"block\","
        "\"count\":40,\"weight_bytes\":1e9,\"flops\":1e9,\"input_bytes\":16384,\"output_bytes\":16384}]}");
    struct cluster *c = big_cluster(40, 6);
    (void)s;
    for (int g = PLAN_LATENCY; g <= PLAN_BALANCED; g++) {
        struct plan_opts o = {.goal = (enum plan_goal)g, .work_limit = 2000};
        struct plan *p = NULL;
        struct plan_check_report rep;
        struct err e = {0};
        assert_int_equal(plan_solve(c, m, NULL, &o, &p, &e), ST_OK);
        if (plan_check(c, m, NULL, p, &rep, &e) < 0)
            fail_msg("%s", e.text);
        assert_true(p->lower_bound <= p->objective);
        assert_true(p->optimal ? p->gap == 0 : p->gap >= 0);
        print_message("40 devices, %s: objective %g, bound %g, gap %.2f %%\n", plan_goal_name(p->goal),
                      p->objective, p->lower_bound, 100 * p->gap);
        plan_check_fini(&rep);
        plan_free(p);
    }
    cluster_free(c);
    model_free(m);
}

static void test_cancel_and_limits(void **s)
{
    struct model *m = model_of(
        "{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":[{\"id\":\"b\",\"type\":\"block\","
        "\"count\":20,\"weight_bytes\":1e9,\"flops\":1e9,\"input_bytes\":1,\"output_bytes\":1}]}");
    struct cluster *c = big_cluster(12, 6);
    atomic_bool cancel = true;
    struct plan_opts o = {.goal = PLAN_LATENCY, .cancel = &cancel};
    struct plan *p = NULL;
    struct err e = {0};
    (void)s;
    assert_int_equal(plan_solve(c, m, NULL, &o, &p, &e), ST_ECANCELED);
    assert_null(p);
    o = (struct plan_opts){.goal = PLAN_LATENCY, .replicas = true};
    assert_int_equal(plan_solve(c, m, NULL, &o, &p, &e), ST_EINVAL);
    o = (struct plan_opts){.goal = PLAN_LATENCY, .memory_limit = 1000};
    assert_int_equal(plan_solve(c, m, NULL, &o, &p, &e), ST_ELIMIT);
    cluster_free(c);
    model_free(m);
}

static void shortfall(const char *cluster, const char *request, enum plan_shortfall_kind kind, double bytes)
{
    struct cluster *c = cluster_of(cluster);
    struct model *m = model_of("{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":["
                               "{\"id\":\"a\",\"type\":\"mlp\",\"weight_bytes\":60,\"flops\":1,\"input_"
                               "bytes\":0,\"output_bytes\":0},"
                               "{\"id\":\"b\",\"type\":\"mlp\",\"weight_bytes\":60,\"flops\":1,\"input_"
                               "bytes\":0,\"output_bytes\":0}]}");
    struct request r;
    struct plan_opts o = {.goal = PLAN_LATENCY};
    struct plan *p = NULL;
    struct err e = {0};
    assert_int_equal(request_read_json(request, strlen(request), "request", m, c, &r, &e), ST_OK);
    assert_int_equal(plan_solve(c, m, &r, &o, &p, &e), ST_EINFEASIBLE);
    assert_int_equal(p->feasible, PLAN_NO);
    assert_string_equal(plan_shortfall_name(p->shortfall.kind), plan_shortfall_name(kind));
    assert_true(p->shortfall.bytes == bytes);
    plan_free(p);
    request_fini(&r);
    cluster_free(c);
    model_free(m);
}

#define DEV(id, node, mem)                                                                                   \
    "{\"id\":\"" id "\",\"node\":\"" node "\",\"memory_bytes\":" #mem                                        \
    ",\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1}"
#define TWO(m1, m2, more)                                                                                    \
    "{\"schema\":\"strata.cluster.v1\",\"devices\":[" DEV("x/cpu:0", "x", m1) "," DEV("y/cpu:0", "y",        \
                                                                                      m2) "]" more "}"
#define LINKED ",\"default_link\":{\"bytes_per_s\":1,\"rtt_s\":0}"
#define REQ(body) "{\"schema\":\"strata.request.v1\"" body "}"

static void test_shortfalls(void **s)
{
    (void)s;
    shortfall(TWO(50, 40, LINKED), REQ(""), PLAN_SHORT_LARGEST_LAYER, 30); /* 50 → 60 and 40 → 60 */
    shortfall(TWO(60, 50, LINKED), REQ(""), PLAN_SHORT_TOTAL_MEMORY, 10);
    shortfall(TWO(110, 50, LINKED), REQ(""), PLAN_SHORT_PACKING, 10);
    shortfall(TWO(60, 60, ""), REQ(""), PLAN_SHORT_PACKING, 60); /* no link: one device must take all */
    shortfall(TWO(200, 60, LINKED), REQ(",\"deny\":[\"*\"]"), PLAN_SHORT_CONSTRAINT, 0);
    shortfall(TWO(200, 60, LINKED), REQ(",\"max_total_bytes\":100"), PLAN_SHORT_CONSTRAINT, 20);
    shortfall(TWO(200, 60, ""), REQ(",\"min_nodes\":2"), PLAN_SHORT_CONSTRAINT, 0);
    shortfall(TWO(200, 200, ",\"client_node\":\"z\""), REQ(""), PLAN_SHORT_CONNECTIVITY, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chains),          cmocka_unit_test(test_tight_chains),
        cmocka_unit_test(test_requests),        cmocka_unit_test(test_dags),
        cmocka_unit_test(test_search),          cmocka_unit_test(test_eight),
        cmocka_unit_test(test_exo957),          cmocka_unit_test(test_monotonic),
        cmocka_unit_test(test_links_monotonic), cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_large),           cmocka_unit_test(test_cancel_and_limits),
        cmocka_unit_test(test_shortfalls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
