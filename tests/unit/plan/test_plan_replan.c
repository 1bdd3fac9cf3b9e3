/* plan_replan against the truth: fewest bytes, moves that fit at every step, no move for noise. */
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

static double truth_of(const struct truth *t, enum plan_goal g)
{
    return g == PLAN_LATENCY      ? t->latency
           : g == PLAN_THROUGHPUT ? t->bottleneck
           : g == PLAN_MEMORY     ? t->ratio
                                  : t->balanced;
}

static double bytes_held(const struct model *m, const bool *has)
{
    double sum = 0, act = 0;
    for (size_t i = 0; i < m->nlayers; i++)
        if (has[i]) {
            sum += m->layers[i].weight_bytes + m->layers[i].kv_bytes;
            act = fmax(act, m->layers[i].activation_bytes);
        }
    return sum + act;
}

static uint32_t target(const struct problem *p, const struct plan *plan, uint32_t layer)
{
    for (size_t s = 0; s < plan->n_stages; s++)
        for (size_t k = 0; k < plan->stages[s].n_layers; k++)
            if (model_find(p->m, plan->stages[s].layers[k]) == layer)
                return cluster_find_device(p->c, plan->stages[s].device);
    return UINT32_MAX;
}

/* Plays the moves: each fits, each reads a copy that is there, and the end is the plan. */
static bool play(const struct problem *p, const struct plan *plan, const uint32_t *home)
{
    bool has[8][16] = {{false}}, read[16] = {false};
    double sum = 0;
    for (size_t i = 0; i < plan->n_moves; i++)
        if (plan->moves[i].from)
            read[model_find(p->m, plan->moves[i].layer)] = true;
    for (uint32_t i = 0; i < p->m->nlayers; i++)
        if (home[i] != UINT32_MAX && (home[i] == target(p, plan, i) || read[i]))
            has[home[i]][i] = true;
    for (size_t k = 0; k < plan->n_moves; k++) {
        const struct plan_move *v = &plan->moves[k];
        uint32_t l = model_find(p->m, v->layer), to = cluster_find_device(p->c, v->to);
        uint32_t from = v->from ? cluster_find_device(p->c, v->from) : UINT32_MAX;
        if (to != target(p, plan, l) || (v->from && (from == UINT32_MAX || !has[from][l])))
            return false;
        has[to][l] = true;
        sum += v->bytes;
        if (bytes_held(p->m, has[to]) > p->c->devices[to].memory_bytes - p->c->devices[to].headroom_bytes)
            return false;
        if (from != UINT32_MAX)
            has[from][l] = false;
    }
    for (uint32_t i = 0; i < p->m->nlayers; i++)
        if (!has[target(p, plan, i)][i])
            return false;
    return sum == plan->moved_bytes;
}

/* The old plan is that of the cluster without its last change: other rates of every device. */
static size_t one(uint64_t seed, unsigned flags, size_t *compared)
{
    struct problem p;
    struct truth t;
    size_t wrong = 0;
    problem_random(&p, seed, 5, 7, flags);
    oracle_run(&p, &t);
    for (int g = PLAN_LATENCY; t.feasible && g <= PLAN_BALANCED; g++) {
        struct plan *old = NULL, *plan = NULL;
        struct err e = {0};
        uint32_t home[16];
        struct plan_case why;
        struct plan_opts o = {
            .goal = (enum plan_goal)((g + 1) % 4)}; /* a plan that was good for something else */
        if (plan_solve(p.c, p.m, p.has_request ? &p.r : NULL, &o, &old, &e) < 0)
            abort();
        for (size_t s = 0; s < old->n_stages && seed % 3 == 0; s++) /* a device that no longer exists */
            if (s == seed % old->n_stages)
                memcpy(old->stages[s].device, "gone", 4);
        for (uint32_t i = 0; i < p.m->nlayers; i++)
            home[i] = target(&p, old, i);
        struct plan_replan_opts ro = {.o = {.goal = (enum plan_goal)g}, .slack = (double)(seed % 4) * 0.05};
        int rc = plan_replan(p.c, p.m, p.has_request ? &p.r : NULL, old, &ro, &plan, &why, &e);
        double limit = truth_of(&t, (enum plan_goal)g) * (1 + ro.slack);
        bool ok = rc == ST_OK && plan->objective <= limit * (1 + 1e-9);
        double least = oracle_fewest(&p, &t, (enum plan_goal)g, limit * (1 + 1e-12), home);
        if (ok) {
            struct plan_check_report rep;
            ok = play(&p, plan, home) &&
                 plan_check(p.c, p.m, p.has_request ? &p.r : NULL, plan, &rep, &e) == ST_OK;
            plan_check_fini(&rep);
            ok = ok && plan->moved_bytes >= least && (!why.fewest || plan->moved_bytes == least) &&
                 why.text[0];
            *compared += why.fewest;
        }
        if (!ok)
            print_message("seed %llu goal %s: %s, moved %g, least %g, objective %g, limit %g, %s\n",
                          (unsigned long long)seed, plan_goal_name((enum plan_goal)g), status_name(rc),
                          plan ? plan->moved_bytes : -1, least, plan ? plan->objective : -1, limit, e.text);
        wrong += !ok;
        plan_free(old);
        plan_free(plan);
    }
    problem_fini(&p);
    return wrong;
}

static void test_fewest(void **s)
{
    size_t wrong = 0, compared = 0, of = 0;
    (void)s;
    for (uint64_t seed = 0; seed < 300; seed++, of += 4)
        wrong += one(seed, seed % 2 ? GEN_TIGHT : 0, &compared);
    for (uint64_t seed = 300; seed < 400; seed++)
        wrong += one(seed, GEN_REQUEST, &compared);
    assert_int_equal(wrong, 0);
    print_message("%zu proven to be the fewest\n", compared);
    assert_true(compared > 1000);
    size_t graphs = 0;
    for (uint64_t seed = 400; seed < 440; seed++)
        wrong += one(seed, GEN_DAG, &graphs);
    assert_int_equal(wrong, 0);
}

/* Rates that waver by less than the slack move nothing, over and over. */
static void test_noise(void **s)
{
    (void)s;
    struct problem p;
    struct truth t;
    uint64_t seed = 9, rnd = 3;
    do { /* the first of these with room for more than one stage */
        problem_random(&p, seed++, 5, 7, 0);
        oracle_run(&p, &t);
        if (t.feasible && p.c->ndevices == 5)
            break;
        problem_fini(&p);
    } while (1);
    struct plan_opts o = {.goal = PLAN_LATENCY};
    struct plan *plan = NULL;
    struct err e = {0};
    assert_int_equal(plan_solve(p.c, p.m, NULL, &o, &plan, &e), ST_OK);
    double rate[5];
    for (size_t d = 0; d < 5; d++)
        rate[d] = p.c->devices[d].compute_flops_per_s;
    for (int i = 0; i < 200; i++) {
        for (size_t d = 0; d < 5; d++) /* ±10 % of compute: the goal's value moves by less than 25 % */
            p.c->devices[d].compute_flops_per_s =
                rate[d] * (0.9 + 0.2 * (double)(test_rand(&rnd) % 1000) / 1000);
        struct plan_replan_opts ro = {.o = {.goal = PLAN_LATENCY}, .slack = 0.25};
        struct plan *next = NULL;
        struct plan_case why;
        assert_int_equal(plan_replan(p.c, p.m, NULL, plan, &ro, &next, &why, &e), ST_OK);
        assert_int_equal(next->n_moves, 0);
        assert_true(why.kept && why.works);
        plan_free(plan);
        plan = next;
    }
    /* one device becomes useless: it pays to leave it, unless that was done just now or too few steps follow
     */
    uint32_t d = cluster_find_device(p.c, plan->stages[0].device);
    p.c->devices[d].speed_factor = 1000;
    struct plan_replan_opts ro = {
        .o = {.goal = PLAN_LATENCY}, .slack = 0.05, .cooldown_s = 60, .since_s = 10};
    struct plan *next = NULL;
    struct plan_case why;
    assert_int_equal(plan_replan(p.c, p.m, NULL, plan, &ro, &next, &why, &e), ST_OK);
    assert_true(why.kept && next->n_moves == 0 && why.best < why.before);
    plan_free(next);
    ro.since_s = 60;
    assert_int_equal(plan_replan(p.c, p.m, NULL, plan, &ro, &next, &why, &e), ST_OK);
    assert_true(!why.kept && next->n_moves > 0 && why.after < why.before);
    plan_free(next);
    plan_free(plan);
    problem_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fewest),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
