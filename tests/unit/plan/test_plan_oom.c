/* Memory may run out at any allocation of the planner: it says so and leaks nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/oom.h"
#include "tests/unit/plan/oracle.h"

struct act {
    struct problem p;
    struct plan_opts o;
    struct plan *from; /* replan from it */
};

static int solve(void *arg, struct err *e)
{
    const struct act *a = arg;
    struct plan *plan = NULL;
    struct plan_case why;
    struct plan_replan_opts ro = {.o = a->o, .slack = 0.05};
    int rc = a->from ? plan_replan(a->p.c, a->p.m, NULL, a->from, &ro, &plan, &why, e)
                     : plan_solve(a->p.c, a->p.m, NULL, &a->o, &plan, e);
    struct buf b = {0};
    struct plan_check_report rep = {0};
    if (rc == ST_OK)
        rc = plan_check(a->p.c, a->p.m, NULL, plan, &rep, e);
    if (rc == ST_OK)
        rc = plan_to_json(plan, &b);
    plan_check_fini(&rep);
    buf_fini(&b);
    plan_free(plan);
    return rc;
}

static void each(const char *what, struct act *a, unsigned least)
{
    assert_true(oom_each(what, solve, a, ST_OK) > least);
}

/* A problem that has a plan. */
static void make(struct act *a, unsigned devices, unsigned layers, unsigned flags)
{
    for (uint64_t seed = 90000;; seed++) {
        struct plan *plan = NULL;
        struct err e = {0};
        problem_random(&a->p, seed, devices, layers, flags);
        if (a->p.c->ndevices == devices && plan_solve(a->p.c, a->p.m, NULL, &a->o, &plan, &e) == ST_OK) {
            plan_free(plan);
            return;
        }
        plan_free(plan);
        problem_fini(&a->p);
    }
}

static void exact(void **s)
{
    (void)s;
    for (int g = PLAN_LATENCY; g <= PLAN_BALANCED; g++) {
        struct act a = {.o = {.goal = (enum plan_goal)g}};
        make(&a, 4, 6, 0);
        each(plan_goal_name((enum plan_goal)g), &a, 50);
        problem_fini(&a.p);
    }
}

static void graphs(void **s)
{
    struct act a = {.o = {.goal = PLAN_LATENCY}};
    (void)s;
    make(&a, 3, 5, GEN_DAG);
    each("a graph", &a, 50);
    problem_fini(&a.p);
}

static void shared(void **s)
{
    struct act a = {.o = {.goal = PLAN_THROUGHPUT, .replicas = true}};
    (void)s;
    make(&a, 4, 5, 0);
    each("replicas", &a, 50);
    problem_fini(&a.p);
}

static void many(void **s)
{
    (void)s;
    for (int g = PLAN_LATENCY; g <= PLAN_MEMORY; g++) {
        struct act a = {.o = {.goal = (enum plan_goal)g}};
        make(&a, 18, 3, 0);
        each("twenty devices", &a, 50);
        problem_fini(&a.p);
    }
}

static void changed(void **s)
{
    struct act a = {.o = {.goal = PLAN_LATENCY}};
    struct err e = {0};
    (void)s;
    make(&a, 4, 6, 0);
    assert_int_equal(plan_solve(a.p.c, a.p.m, NULL, &a.o, &a.from, &e), ST_OK);
    each("a plan changed", &a, 50);
    plan_free(a.from);
    problem_fini(&a.p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact), cmocka_unit_test(graphs),  cmocka_unit_test(shared),
        cmocka_unit_test(many),  cmocka_unit_test(changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
