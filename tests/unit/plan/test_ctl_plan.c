#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/fs.h"
#include "coordinator/ctl/plan/plan_cmd.h"

static const char cluster_text[] =
    "{\"schema\":\"strata.cluster.v1\",\"devices\":["
    "{\"id\":\"n/"
    "cpu:0\",\"node\":\"n\",\"memory_bytes\":40,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9},"
    "{\"id\":\"n/"
    "cpu:1\",\"node\":\"n\",\"memory_bytes\":40,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9}]}";
static const char model_text[] =
    "{\"schema\":\"strata.model.v1\",\"name\":\"w\",\"layers\":["
    "{\"id\":\"a\",\"type\":\"mlp\",\"weight_bytes\":10,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0},"
    "{\"id\":\"b\",\"type\":\"mlp\",\"weight_bytes\":20,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0}]}";

struct place {
    char dir[32];
    char cluster[64], model[64], request[64], plan[64];
};

static void put(const char *path, const char *text)
{
    struct err e = {0};
    if (fs_write_atomic(path, text, strlen(text), 0600, &e) < 0)
        fail_msg("%s", e.text);
}

static int setup(void **s)
{
    struct place *p = calloc(1, sizeof *p);
    strcpy(p->dir, "/tmp/strata-plan-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->cluster, sizeof p->cluster, "%s/c.json", p->dir);
    snprintf(p->model, sizeof p->model, "%s/m.json", p->dir);
    snprintf(p->request, sizeof p->request, "%s/r.json", p->dir);
    snprintf(p->plan, sizeof p->plan, "%s/p.json", p->dir);
    put(p->cluster, cluster_text);
    put(p->model, model_text);
    *s = p;
    return 0;
}
static int teardown(void **s)
{
    struct place *p = *s;
    unlink(p->cluster);
    unlink(p->model);
    unlink(p->request);
    unlink(p->plan);
    rmdir(p->dir);
    free(p);
    return 0;
}

typedef int (*cmd_fn)(int, char **, FILE *, FILE *);

/* Runs a command; *out and *err are the caller's. argv ends with NULL. */
static int run(cmd_fn fn, char **out, char **err, const char *const *argv)
{
    size_t on = 0, en = 0;
    char *args[16] = {NULL};
    int n = 0;
    FILE *o = open_memstream(out, &on), *e = open_memstream(err, &en);
    for (; argv[n]; n++)
        args[n] = strdup(argv[n]);
    char *given[16]; /* getopt reorders the array */
    memcpy(given, args, sizeof given);
    int code = fn(n, given, o, e);
    fclose(o);
    fclose(e);
    for (int i = 0; i < n; i++)
        free(args[i]);
    return code;
}
#define RUN(fn, ...) run(fn, &out, &err, (const char *const[]){"strata", __VA_ARGS__, NULL})

static void test_solve_check_show(void **s)
{
    struct place *p = *s;
    char *out, *err;
    assert_int_equal(
        RUN(ctl_plan_solve, "--cluster", p->cluster, "--model", p->model, "--goal", "throughput", "--json"),
        0);
    assert_string_equal(err, "");
    assert_non_null(strstr(out, "\"objective\": 1.0,"));
    put(p->plan, out);
    free(out);
    free(err);

    assert_int_equal(RUN(ctl_plan_check, "--cluster", p->cluster, "--model", p->model, p->plan), 0);
    assert_non_null(strstr(out, "every figure and rule holds"));
    free(out);
    free(err);

    assert_int_equal(RUN(ctl_plan_show, p->plan), 0);
    assert_non_null(strstr(out, "proven optimal"));
    assert_non_null(strstr(out, "n/cpu:1"));
    assert_non_null(strstr(out, "STAGE"));
    assert_non_null(strstr(out, "|01|  2 layers"));
    assert_non_null(strstr(out, "▇"));
    free(out);
    free(err);

    assert_int_equal(RUN(ctl_plan_show, "--recompute", "--cluster", p->cluster, "--model", p->model, p->plan),
                     0);
    assert_non_null(strstr(out, "the same bytes"));
    free(out);
    free(err);
}

static void test_recompute_finds(void **s)
{
    struct place *p = *s;
    char *out, *err;
    assert_int_equal(
        RUN(ctl_plan_solve, "--cluster", p->cluster, "--model", p->model, "--goal=throughput", "--json"), 0);
    char *at = strstr(out, "\"objective\": 1.0");
    assert_non_null(at);
    at[strlen("\"objective\": ")] = '2';
    put(p->plan, out);
    free(out);
    free(err);
    assert_int_equal(RUN(ctl_plan_show, "--recompute", "--cluster", p->cluster, "--model", p->model, p->plan),
                     9);
    assert_non_null(strstr(err, "line 7"));
    free(out);
    free(err);
}

static void test_check_finds(void **s)
{
    struct place *p = *s;
    char *out, *err;
    assert_int_equal(
        RUN(ctl_plan_solve, "--cluster", p->cluster, "--model", p->model, "--goal=latency", "--json"), 0);
    char *at = strstr(out, "\"latency_s\": 2.0");
    assert_non_null(at);
    at[strlen("\"latency_s\": ")] = '3';
    put(p->plan, out);
    free(out);
    free(err);
    assert_int_equal(RUN(ctl_plan_check, "--json", "--cluster", p->cluster, "--model", p->model, p->plan), 9);
    assert_non_null(strstr(out, "\"ok\": false"));
    assert_non_null(strstr(err, "latency_s is 3, should be 2"));
    free(out);
    free(err);
}

static void test_infeasible(void **s)
{
    struct place *p = *s;
    char *out, *err;
    put(p->request, "{\"schema\":\"strata.request.v1\",\"max_total_bytes\":20}");
    assert_int_equal(RUN(ctl_plan_solve, "--cluster", p->cluster, "--model", p->model, "--request",
                         p->request, "--goal", "memory", "--json"),
                     8);
    assert_non_null(strstr(out, "\"feasible\": false"));
    assert_non_null(strstr(out, "\"kind\": \"constraint\", \"bytes\": 10"));
    assert_non_null(strstr(err, "max_total_bytes"));
    free(out);
    free(err);
}

static void test_usage(void **s)
{
    struct place *p = *s;
    char *out, *err;
#define BAD(code, word, fn, ...)                                                                             \
    do {                                                                                                     \
        assert_int_equal(RUN(fn, __VA_ARGS__), code);                                                        \
        if (!strstr(err, word))                                                                              \
            fail_msg("\"%s\" does not name %s", err, word);                                                  \
        free(out);                                                                                           \
        free(err);                                                                                           \
    } while (0)
    BAD(2, "--goal", ctl_plan_solve, "--cluster", p->cluster, "--model", p->model, "--goal", "speed");
    BAD(2, "--wrong", ctl_plan_solve, "--wrong");
    BAD(2, "needs a value", ctl_plan_solve, "--cluster");
    BAD(2, "plan file", ctl_plan_show, "--json");
    BAD(2, "--cluster is missing", ctl_plan_show, "--recompute", "--model", p->model, p->plan);
    BAD(2, "is for --recompute", ctl_plan_show, "--model", p->model, p->plan);
    BAD(2, "--cluster is missing", ctl_plan_solve, "--goal", "memory");
    BAD(2, "unknown option", ctl_plan_show, "--stats", p->cluster);
    BAD(3, "nowhere", ctl_plan_show, "/nowhere/p.json");
    BAD(2, "--time-limit", ctl_plan_solve, "--time-limit", "0");
    put(p->plan, "{\"schema\":\"strata.plan.v1\",\"golf\":1}");
    BAD(2, "golf", ctl_plan_show, p->plan);
    assert_int_equal(RUN(ctl_plan_solve, "--help"), 0);
    assert_non_null(strstr(out, "usage: strata plan solve"));
    free(out);
    free(err);
}

/* A plan of two devices in the words of others, and what cannot be said. */
static void test_export_and_others(void **s)
{
    struct place *p = *s;
    char *out, *err;
    put(p->model,
        "{\"schema\":\"strata.model.v1\",\"name\":\"w\",\"layers\":["
        "{\"id\":\"b\",\"type\":\"block\",\"count\":4,\"weight_bytes\":10,\"flops\":1,\"input_bytes\":0,"
        "\"output_bytes\":0},{\"id\":\"o\",\"type\":\"output\",\"weight_bytes\":10,\"flops\":0,"
        "\"input_bytes\":0,\"output_bytes\":0}]}");
    put(p->cluster,
        "{\"schema\":\"strata.cluster.v1\",\"default_link\":{\"bytes_per_s\":1e9,\"rtt_s\":0},\"devices\":["
        "{\"id\":\"x/cuda:0\",\"node\":\"x\",\"memory_bytes\":40,\"compute_flops_per_s\":1,"
        "\"memory_bytes_per_s\":1e9},{\"id\":\"y/cuda:1\",\"node\":\"y\",\"memory_bytes\":40,"
        "\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9}]}");
    const char *solve[] = {"plan solve", "--cluster",  p->cluster, "--model", p->model,
                           "--goal",     "throughput", "--json",   NULL};
    assert_int_equal(run(ctl_plan_solve, &out, &err, solve), 0);
    put(p->plan, out);
    free(out);
    free(err);
    const char *llama[] = {"plan export", "--to", "llama.cpp", "--model", p->model, p->plan, NULL};
    assert_int_equal(run(ctl_plan_export, &out, &err, llama), 0);
    assert_non_null(strstr(out, "--rpc x:50052 -dev RPC0,CUDA1 -sm layer -ngl all -ts 2,3 -fit off"));
    free(out);
    free(err);
    const char *vllm[] = {"plan export", "--to", "vllm", "--model", p->model, p->plan, NULL};
    assert_int_equal(run(ctl_plan_export, &out, &err, vllm), 0);
    assert_non_null(strstr(out, "VLLM_PP_LAYER_PARTITION=\"2,2\" vllm serve"));
    free(out);
    free(err);
    const char *accelerate[] = {"plan export", "--to", "accelerate", "--model", p->model, p->plan, NULL};
    assert_int_equal(run(ctl_plan_export, &out, &err, accelerate), 8); /* two nodes */
    assert_non_null(strstr(err, "spans nodes"));
    free(out);
    free(err);
    const char *explain[] = {"plan explain", "--cluster", p->cluster, "--model", p->model, p->plan, NULL};
    assert_int_equal(run(ctl_plan_explain, &out, &err, explain), 0);
    assert_non_null(strstr(out, "without x/cuda:0: no plan exists"));
    free(out);
    free(err);
    const char *diff[] = {"plan diff", p->plan, p->plan, NULL};
    assert_int_equal(run(ctl_plan_diff, &out, &err, diff), 0);
    assert_non_null(strstr(out, "all layers are where they were"));
    free(out);
    free(err);
    const char *replan[] = {"plan replan", "--cluster", p->cluster, "--model",
                            p->model,      "--from",    p->plan,    NULL};
    assert_int_equal(run(ctl_plan_replan, &out, &err, replan), 0);
    assert_non_null(strstr(out, "keep the plan"));
    free(out);
    free(err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_solve_check_show, setup, teardown),
        cmocka_unit_test_setup_teardown(test_recompute_finds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_check_finds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_infeasible, setup, teardown),
        cmocka_unit_test_setup_teardown(test_usage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_export_and_others, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
