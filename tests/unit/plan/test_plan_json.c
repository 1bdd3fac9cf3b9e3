#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "coordinator/plan/inputs.h"
#include "tests/unit/plan/oracle.h"

static const char worked_cluster[] =
    "{\"schema\":\"strata.cluster.v1\",\"devices\":["
    "{\"id\":\"n/"
    "cpu:0\",\"node\":\"n\",\"memory_bytes\":40,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9},"
    "{\"id\":\"n/"
    "cpu:1\",\"node\":\"n\",\"memory_bytes\":40,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9}]}";
static const char worked_model[] =
    "{\"schema\":\"strata.model.v1\",\"name\":\"w\",\"layers\":["
    "{\"id\":\"a\",\"type\":\"mlp\",\"weight_bytes\":10,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0},"
    "{\"id\":\"b\",\"type\":\"mlp\",\"weight_bytes\":20,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0}]}";
/* The example of the planner file format, complete. */
static const char worked_plan[] =
    "{\"schema\": \"strata.plan.v1\", \"goal\": \"throughput\", \"feasible\": true, \"optimal\": true, "
    "\"solver\": "
    "\"bitmask\", \"objective\": 1.0, \"lower_bound\": 1.0, \"gap\": 0.0,"
    "\"latency_s\": 2.0, \"bottleneck_s\": 1.0, \"max_memory_ratio\": 0.5,"
    "\"stages\": [{\"device\": \"n/cpu:0\", \"layers\": [\"a\"], \"compute_s\": 1.0, \"transfer_in_s\": 0.0, "
    "\"memory_bytes\": 10},"
    "{\"device\": \"n/cpu:1\", \"layers\": [\"b\"], \"compute_s\": 1.0, \"transfer_in_s\": 0.0, "
    "\"memory_bytes\": 20}],"
    "\"placements\": [{\"layer\": \"a\", \"device\": \"n/cpu:0\", \"latency_s\": 1.0, \"memory_bytes\": 10, "
    "\"transfer_s\": 0.0},"
    "{\"layer\": \"b\", \"device\": \"n/cpu:1\", \"latency_s\": 1.0, \"memory_bytes\": 20, \"transfer_s\": "
    "0.0}],"
    "\"devices\": [{\"id\": \"n/cpu:0\", \"memory_ratio\": 0.25, \"busy_ratio\": 1.0, \"code\": \"CHOSEN\", "
    "\"reason\": "
    "\"stage 1 of 2, 1 layers, 10 B\"},"
    "{\"id\": \"n/cpu:1\", \"memory_ratio\": 0.5, \"busy_ratio\": 1.0, \"code\": \"CHOSEN\", \"reason\": "
    "\"stage 2 of 2, 1 "
    "layers, 20 B\"}],"
    "\"bottleneck\": {\"kind\": \"device\", \"device\": \"n/cpu:0\"}, \"bottleneck_device\": \"n/cpu:0\","
    "\"moves\": [], \"moved_bytes\": 0, \"warnings\": []}";

static void worked(struct problem *p)
{
    struct err e = {0};
    memset(p, 0, sizeof *p);
    assert_int_equal(cluster_read_json(worked_cluster, sizeof worked_cluster - 1, "c", &p->c, &e), ST_OK);
    assert_int_equal(model_read_json(worked_model, sizeof worked_model - 1, "m", &p->m, &e), ST_OK);
}

static void solve_text(const struct problem *p, enum plan_goal g, struct buf *out)
{
    struct plan_opts o = {.goal = g};
    struct plan *plan = NULL;
    struct err e = {0};
    int rc = plan_solve(p->c, p->m, p->has_request ? &p->r : NULL, &o, &plan, &e);
    assert_true(rc == ST_OK || rc == ST_EINFEASIBLE);
    assert_int_equal(plan_to_json(plan, out), ST_OK);
    plan_free(plan);
}

static void test_worked_example(void **s)
{
    struct problem p;
    struct buf b = {0};
    (void)s;
    worked(&p);
    solve_text(&p, PLAN_THROUGHPUT, &b);
    json_t *got = json_loads(buf_cstr(&b), 0, NULL), *want = json_loads(worked_plan, 0, NULL);
    assert_non_null(got);
    assert_non_null(want);
    if (!json_equal(got, want))
        fail_msg("got %s", buf_cstr(&b));
    json_decref(got);
    json_decref(want);
    buf_fini(&b);
    problem_fini(&p);
}

/* Written, read and written again is the same text; so is solving twice. */
/* What is kept beside a plan gives it again, byte for byte; requests with every rule among them. */
static void test_kept_inputs(void **s)
{
    (void)s;
    unsigned kept = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct problem p;
        struct plan_inputs in;
        struct plan *plan = NULL;
        struct err e = {0};
        struct buf text = {0}, again = {0};
        size_t line;
        const struct plan_opts o = {.goal = (enum plan_goal)(seed % 4)};
        problem_random(&p, seed, 5, 7, GEN_REQUEST | (seed % 3 ? 0 : GEN_DAG));
        int rc = plan_solve_kept(p.c, p.m, p.has_request ? &p.r : NULL, &o, &plan, &e);
        assert_true(rc == ST_OK || rc == ST_EINFEASIBLE);
        if (rc == ST_OK) {
            kept++;
            assert_non_null(plan->inputs);
            assert_int_equal(plan_to_json(plan, &text), ST_OK);
            assert_int_equal(plan_inputs_from_json(plan->inputs, strlen(plan->inputs), &in, &e), ST_OK);
            if (plan_inputs_again(&in, buf_cstr(&text), text.len, &line, &e) != ST_OK)
                fail_msg("seed %llu: %s", (unsigned long long)seed, e.text);
            assert_int_equal(plan_inputs_to_json(in.c, in.m, &in.r, in.goal, &again), ST_OK);
            assert_string_equal(buf_cstr(&again), plan->inputs);
            in.c->devices[0].memory_bytes *= 1.5; /* other inputs, another plan */
            text.data[text.len / 2] ^= 1;
            assert_int_equal(plan_inputs_again(&in, buf_cstr(&text), text.len, &line, &e), ST_ECONFLICT);
            plan_inputs_fini(&in);
        }
        plan_free(plan);
        problem_fini(&p);
        buf_fini(&text);
        buf_fini(&again);
    }
    assert_true(kept > 100);
}

static void test_inputs_refused(void **s)
{
    static const struct {
        const char *text, *says;
    } t[] = {
        {"", "inputs"},
        {"{}", "schema"},
        {"{\"schema\":\"strata.plan-inputs.v1\"}", "goal"},
        {"{\"schema\":\"strata.plan-inputs.v1\",\"goal\":\"fast\"}", "goal"},
        {"{\"schema\":\"strata.plan-inputs.v1\",\"goal\":\"memory\"}", "cluster"},
        {"{\"schema\":\"strata.plan-inputs.v1\",\"goal\":\"memory\",\"cluster\":{},\"x\":1}", "x"},
    };
    (void)s;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct plan_inputs in;
        struct err e = {0};
        assert_true(plan_inputs_from_json(t[i].text, strlen(t[i].text), &in, &e) < 0);
        assert_non_null(strstr(e.text, t[i].says));
        assert_null(in.c);
    }
}

static void test_round_trip(void **s)
{
    (void)s;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct problem p;
        struct buf a = {0}, b = {0}, c = {0};
        struct plan *plan = NULL;
        struct err e = {0};
        enum plan_goal g = (enum plan_goal)(seed % 4);
        problem_random(&p, seed, 5, 6, seed % 3 ? GEN_REQUEST : GEN_DAG);
        solve_text(&p, g, &a);
        solve_text(&p, g, &b);
        assert_string_equal(buf_cstr(&a), buf_cstr(&b));
        if (plan_from_json(buf_cstr(&a), a.len, &plan, &e) < 0)
            fail_msg("%s\n%s", e.text, buf_cstr(&a));
        assert_int_equal(plan_to_json(plan, &c), ST_OK);
        assert_string_equal(buf_cstr(&a), buf_cstr(&c));
        plan_free(plan);
        buf_fini(&a);
        buf_fini(&b);
        buf_fini(&c);
        problem_fini(&p);
    }
}

static bool caught(const struct problem *p, const json_t *plan)
{
    struct plan_check_report rep;
    struct plan *q = NULL;
    struct err e = {0};
    char *text = json_dumps(plan, 0);
    int rc = plan_from_json(text, strlen(text), &q, &e);
    if (rc == ST_OK) {
        rc = plan_check(p->c, p->m, NULL, q, &rep, &e);
        assert_true(rc == ST_OK || rep.n > 0);
        plan_check_fini(&rep);
    }
    if (rc < 0)
        assert_true(e.text[0]);
    plan_free(q);
    free(text);
    return rc < 0;
}

/* Changes every number of the tree in turn and expects the check to name each. */
static size_t mutate(const struct problem *p, json_t *root, json_t *at)
{
    size_t n = 0, i;
    const char *key;
    json_t *v;
    if (json_is_object(at))
        json_object_foreach(at, key, v)
        {
            if (!json_is_number(v)) {
                n += mutate(p, root, v);
                continue;
            }
            double was = json_number_value(v);
            for (int k = 0; k < 2; k++) {
                double to = k ? was * 1.001 + 0.001 : was * 0.999;
                json_object_set_new(at, key, json_real(to));
                if (to != was && !caught(p, root)) {
                    if (at != json_object_get(root, "optima")) /* those only a solver can refute */
                        fail_msg("%s from %.17g to %.17g was not caught", key, was, to);
                }
                n++;
            }
            json_object_set_new(at, key, json_real(was));
        }
    json_array_foreach(at, i, v)
    {
        n += mutate(p, root, v);
    }
    return n;
}

static const char hops_cluster[] =
    "{\"schema\":\"strata.cluster.v1\",\"client_node\":\"z\",\"default_link\":{\"bytes_per_s\":7,\"rtt_s\":0."
    "5},"
    "\"devices\":["
    "{\"id\":\"x/"
    "cpu:0\",\"node\":\"x\",\"memory_bytes\":25,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9},"
    "{\"id\":\"y/cpu:0\",\"node\":\"y\",\"memory_bytes\":30,\"headroom_bytes\":2,\"compute_flops_per_s\":2,"
    "\"memory_bytes_per_s\":1e9,\"stage_overhead_s\":0.1,\"segment_s\":[1,1.5]}]}";
static const char hops_model[] = "{\"schema\":\"strata.model.v1\",\"name\":\"w\",\"layers\":["
                                 "{\"id\":\"a\",\"type\":\"embedding\",\"weight_bytes\":10,\"flops\":3,"
                                 "\"input_bytes\":4,\"output_bytes\":5},"
                                 "{\"id\":\"b\",\"type\":\"block\",\"count\":2,\"weight_bytes\":11,\"kv_"
                                 "bytes\":1,\"activation_bytes\":2,\"flops\":4,"
                                 "\"input_bytes\":5,\"output_bytes\":6}]}";

static void test_mutations(void **s)
{
    (void)s;
    for (int g = PLAN_LATENCY; g <= PLAN_BALANCED; g++) {
        struct problem p = {0};
        struct buf b = {0};
        struct err e = {0};
        assert_int_equal(cluster_read_json(hops_cluster, sizeof hops_cluster - 1, "c", &p.c, &e), ST_OK);
        assert_int_equal(model_read_json(hops_model, sizeof hops_model - 1, "m", &p.m, &e), ST_OK);
        solve_text(&p, (enum plan_goal)g, &b);
        json_t *root = json_loads(buf_cstr(&b), 0, NULL), *stages = json_object_get(root, "stages");
        assert_false(caught(&p, root));
        assert_true(mutate(&p, root, root) > 40);
        assert_false(caught(&p, root));

        json_t *first = json_array_get(stages, 0), *layers = json_object_get(first, "layers");
        json_object_set_new(first, "device", json_string("x/cpu:9")); /* unknown device */
        assert_true(caught(&p, root));
        json_object_set(first, "device", json_object_get(json_array_get(stages, 1), "device")); /* twice */
        assert_true(caught(&p, root));
        json_array_append_new(layers, json_string("a")); /* twice */
        assert_true(caught(&p, root));
        json_decref(root);

        root = json_loads(buf_cstr(&b), 0, NULL);
        stages = json_object_get(root, "stages");
        json_t *last = json_incref(json_array_get(stages, json_array_size(stages) - 1));
        json_array_remove(stages, json_array_size(stages) - 1); /* layers missing */
        assert_true(caught(&p, root));
        json_array_insert_new(stages, 0, last); /* wrong order */
        assert_true(caught(&p, root));
        json_decref(root);
        buf_fini(&b);
        problem_fini(&p);
    }
}

static void refused(const char *text, const char *word)
{
    struct plan *p = NULL;
    struct err e = {0};
    assert_true(plan_from_json(text, strlen(text), &p, &e) < 0);
    assert_null(p);
    if (!strstr(e.text, word))
        fail_msg("\"%s\" does not name %s", e.text, word);
}

static void test_reader_refuses(void **s)
{
    (void)s;
    refused("", "plan");
    refused("[]", "object");
    refused("{\"schema\":\"strata.plan.v2\"}", "schema");
    refused("{\"schema\":\"strata.plan.v1\",\"golf\":1}", "golf");
    refused("{\"schema\":\"strata.plan.v1\",\"goal\":\"speed\"}", "goal");
    refused("{\"schema\":\"strata.plan.v1\",\"goal\":\"latency\",\"optimal\":true,\"solver\":\"x\","
            "\"feasible\":true}",
            "objective");
    refused("{\"schema\":\"strata.plan.v1\",\"goal\":\"latency\",\"optimal\":true,\"solver\":\"x\","
            "\"feasible\":false}",
            "shortfall");
}

/* What the request forbids is caught in a plan that was made without it. */
static void test_check_request(void **s)
{
    static const char *const requests[] = {
        "{\"deny\":[\"n/cpu:0\"]}",       "{\"allow\":[\"n/cpu:1\"]}", "{\"pin\":{\"a\":\"n/cpu:1\"}}",
        "{\"together\":[[\"a\",\"b\"]]}", "{\"max_stages\":1}",        "{\"min_nodes\":2}",
        "{\"max_bytes_per_node\":29}",    "{\"max_total_bytes\":29}",
    };
    struct problem p;
    struct plan *plan = NULL;
    struct err e = {0};
    (void)s;
    worked(&p);
    assert_int_equal(plan_from_json(worked_plan, sizeof worked_plan - 1, &plan, &e), ST_OK);
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        struct plan_check_report rep;
        struct request r;
        char text[200];
        snprintf(text, sizeof text, "{\"schema\":\"strata.request.v1\",%s", requests[i] + 1);
        if (request_read_json(text, strlen(text), "r", p.m, p.c, &r, &e) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(plan_check(p.c, p.m, &r, plan, &rep, &e), ST_ECONFLICT);
        plan_check_fini(&rep);
        request_fini(&r);
    }
    plan_free(plan);
    problem_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worked_example), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_kept_inputs),    cmocka_unit_test(test_inputs_refused),
        cmocka_unit_test(test_mutations),      cmocka_unit_test(test_reader_refuses),
        cmocka_unit_test(test_check_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
