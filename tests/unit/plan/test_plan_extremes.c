/* Problems at and beyond every edge: an answer that checks or a clear error, within bounded time and memory.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "tests/unit/plan/oracle.h"

static int read_cluster(const char *text, struct cluster **c, struct err *e)
{
    return cluster_read_json(text, strlen(text), "cluster", c, e);
}
static struct cluster *cluster_of(const char *text)
{
    struct cluster *c = NULL;
    struct err e = {0};
    if (read_cluster(text, &c, &e) < 0)
        fail_msg("%s", e.text);
    return c;
}
static struct model *chain(unsigned layers, double weight)
{
    char text[400];
    struct model *m = NULL;
    struct err e = {0};
    int n = snprintf(text, sizeof text,
                     "{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":[{\"id\":\"b\",\"type\":"
                     "\"block\",\"count\":%u,\"weight_bytes\":%.17g,\"flops\":1e9,\"input_bytes\":100,"
                     "\"output_bytes\":100}]}",
                     layers, weight);
    if (model_read_json(text, (size_t)n, "model", &m, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}

#define DEV(id, node, mem, flops, rate)                                                                      \
    "{\"id\":\"" id "\",\"node\":\"" node "\",\"memory_bytes\":" mem ",\"compute_flops_per_s\":" flops       \
    ",\"memory_bytes_per_s\":" rate "}"
#define CLUSTER(devices, more) "{\"schema\":\"strata.cluster.v1\",\"devices\":[" devices "]" more "}"

/* Every goal, with a checked plan where there is one. Returns the status of the last. */
static int all_goals(const struct cluster *c, const struct model *m, struct err *e)
{
    int rc = ST_OK;
    for (int g = PLAN_LATENCY; g <= PLAN_BALANCED; g++) {
        struct plan_opts o = {.goal = (enum plan_goal)g, .clock = clock_system(), .time_limit_s = 5};
        struct plan *p = NULL;
        *e = (struct err){0};
        rc = plan_solve(c, m, NULL, &o, &p, e);
        if (rc == ST_OK) {
            struct plan_check_report rep;
            assert_true(isfinite(p->objective) && isfinite(p->lower_bound) && p->lower_bound <= p->objective);
            if (plan_check(c, m, NULL, p, &rep, e) < 0)
                fail_msg("%s: %s", plan_goal_name((enum plan_goal)g), e->text);
            plan_check_fini(&rep);
        } else {
            assert_true(*e->text);
        }
        plan_free(p);
    }
    return rc;
}

static void test_nothing(void **s)
{
    struct cluster *c = NULL;
    struct model *m = NULL;
    struct err e = {0};
    static const char none[] = "{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":[]}";
    (void)s;
    assert_int_equal(read_cluster(CLUSTER("", ""), &c, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "devices"));
    e = (struct err){0};
    assert_int_equal(model_read_json(none, sizeof none - 1, "model", &m, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "layers"));
}

static void test_too_large(void **s)
{
    struct cluster *c =
        cluster_of(CLUSTER(DEV("a/cpu:0", "a", "100", "1", "1") "," DEV("b/cpu:0", "b", "90", "1", "1"), ""));
    struct model *m = chain(1, 200);
    struct err e = {0};
    (void)s;
    assert_int_equal(all_goals(c, m, &e), ST_EINFEASIBLE);
    assert_non_null(strstr(e.text, "largest_layer"));
    model_free(m);
    m = chain(2, 60); /* each fits, but nothing joins the two nodes */
    assert_int_equal(all_goals(c, m, &e), ST_EINFEASIBLE);
    model_free(m);
    cluster_free(c);
}

static void test_rates(void **s)
{
    struct err e = {0};
    struct model *m = chain(6, 1000);
    (void)s;
    struct cluster *c = cluster_of(
        CLUSTER(DEV("a/cpu:0", "a", "4000", "1e60", "1e60") "," DEV("b/cpu:0", "b", "4000", "1e-59", "1e-59"),
                ",\"default_link\":{\"bytes_per_s\":1e-59,\"rtt_s\":1e50}"));
    assert_int_equal(all_goals(c, m, &e), ST_OK);
    cluster_free(c);
    c = NULL;
    /* what would not stay finite is refused by the file format, naming the key */
    assert_int_equal(read_cluster(CLUSTER(DEV("a/cpu:0", "a", "4000", "1e-300", "1"), ""), &c, &e),
                     ST_EINVAL);
    assert_non_null(strstr(e.text, "compute_flops_per_s"));
    assert_non_null(strstr(e.text, "1e-60"));
    assert_int_equal(read_cluster(CLUSTER(DEV("a/cpu:0", "a", "4000", "1", "1e300"), ""), &c, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "memory_bytes_per_s"));
    cluster_free(c);
    model_free(m);
}

/* A million layers are more than the format takes; the most that it takes are an answer or a clear refusal.
 */
static void test_many_layers(void **s)
{
    char text[300];
    struct model *m = NULL;
    struct err e = {0};
    (void)s;
    int n = snprintf(text, sizeof text,
                     "{\"schema\":\"strata.model.v1\",\"name\":\"x\",\"layers\":[{\"id\":\"b\",\"type\":"
                     "\"block\",\"count\":1000000,\"weight_bytes\":1,\"flops\":1,\"input_bytes\":1,"
                     "\"output_bytes\":1}]}");
    assert_true(model_read_json(text, (size_t)n, "model", &m, &e) < 0);
    assert_true(*e.text);
    struct cluster *c = cluster_of(CLUSTER(DEV("a/cpu:0", "a", "1e9", "1", "1"), ""));
    m = chain(MODEL_MAX_LAYERS, 1);
    int rc = all_goals(c, m, &e);
    assert_true(rc == ST_OK || rc == ST_ELIMIT);
    model_free(m);
    cluster_free(c);
}

static void test_many_devices(void **s)
{
    struct buf b = {0};
    struct cluster *c = NULL;
    struct err e = {0};
    (void)s;
    for (unsigned n = 20000; n <= 100000; n += 80000) {
        buf_printf(&b,
                   "{\"schema\":\"strata.cluster.v1\",\"default_link\":{\"bytes_per_s\":1e9,\"rtt_s\":0.001},"
                   "\"devices\":[");
        for (unsigned i = 0; i < n; i++)
            buf_printf(&b,
                       "%s{\"id\":\"n%u/cuda:0\",\"node\":\"n%u\",\"memory_bytes\":%u,"
                       "\"compute_flops_per_s\":1e12,\"memory_bytes_per_s\":%u}",
                       i ? "," : "", i, i, 2000 + i % 7 * 900, 1000000 + i % 1000 * 977);
        buf_printf(&b, "]}");
        int rc = cluster_read_json(buf_cstr(&b), b.len, "cluster", &c, &e);
        if (n > CLUSTER_MAX_DEVICES) {
            assert_true(rc < 0 && *e.text && !c);
        } else {
            struct model *m = chain(16, 1000);
            struct plan_opts o = {.goal = PLAN_THROUGHPUT, .clock = clock_system(), .time_limit_s = 5};
            struct plan *p = NULL;
            assert_int_equal(rc, ST_OK);
            for (int g = PLAN_LATENCY; g <= PLAN_MEMORY; g++) {
                o.goal = (enum plan_goal)g;
                rc = plan_solve(c, m, NULL, &o, &p, &e);
                assert_true(rc == ST_OK || rc == ST_EDEADLINE);
                plan_free(p);
                p = NULL;
            }
            model_free(m);
            cluster_free(c);
            c = NULL;
        }
        buf_fini(&b);
        b = (struct buf){0};
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing),     cmocka_unit_test(test_too_large),    cmocka_unit_test(test_rates),
        cmocka_unit_test(test_many_layers), cmocka_unit_test(test_many_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
