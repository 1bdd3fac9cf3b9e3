/*
 * Many seeds of a random life: submits, lost connections, killed agents, failing loads, cancels, checks and
 * restarts of the coordinator. SIM_SEEDS and SIM_FROM choose how many and which; a failing seed is printed.
 * Each invariant is also broken on purpose, and must then be caught by some seed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/jobs/sim.h"

#define ACTIONS 40

static struct sim_job *some_job(struct sim *s)
{
    unsigned n = 0;
    for (struct sim_job *w = s->acked; w; w = w->next)
        n++;
    n = n ? (unsigned)sim_rand(s, n) : 0;
    struct sim_job *w = s->acked;
    while (w && n--)
        w = w->next;
    return w;
}

static void nothing(void *arg, int rc, const struct err *e)
{
    (void)arg;
    (void)rc;
    (void)e;
}

static void submit(struct sim *s)
{
    char id[16];
    struct sim_spec sp = {.principal = (unsigned)sim_rand(s, SIM_PRINCIPALS),
                          .model = (unsigned)sim_rand(s, SIM_MODELS),
                          .goal = (enum plan_goal)sim_rand(s, 3),
                          .min_nodes = (uint32_t)sim_rand(s, 3)};
    if (sim_rand(s, 3) == 0) {
        /* The same id means the same wish: a repeat of it. */
        unsigned k = (unsigned)sim_rand(s, 6);
        snprintf(id, sizeof id, "r%u", k);
        sp = (struct sim_spec){.principal = k % SIM_PRINCIPALS, .model = k % SIM_MODELS, .request = id};
    }
    sim_submit(s, &sp, sim_rand(s, 10) == 0, NULL);
}

static void act(struct sim *s)
{
    struct sim_job *w = some_job(s);
    unsigned node = (unsigned)sim_rand(s, SIM_NODES);
    switch (sim_rand(s, 12)) {
    case 0:
    case 1:
        if (w)
            sim_cancel(s, w->id, NULL);
        break;
    case 2:
        sim_node_down(s, node, true);
        break;
    case 3:
        sim_node_down(s, node, false);
        break;
    case 4:
    case 5:
        sim_node_up(s, node);
        break;
    case 6:
        if (sim_rand(s, 3) == 0)
            sim_restart(s);
        break;
    case 7:
        if (w)
            jobs_verify(s->jobs, sim_job(s, w->id), nothing, NULL);
        break;
    default:
        submit(s);
        break;
    }
    sim_settle(s);
    sim_check(s);
}

/* What the seed's life broke; "" = nothing. */
static void live(uint64_t seed, enum sim_fault fault, char out[400])
{
    struct sim *s = malloc(sizeof *s);
    if (!s)
        abort();
    sim_open(s, seed);
    for (unsigned i = 0; i < SIM_NODES; i++) { /* again, now lying if the fault says so */
        s->fault = fault;
        sim_node_down(s, i, true);
        sim_node_up(s, i);
    }
    s->fail_percent = (unsigned)sim_rand(s, 30);
    for (unsigned i = 0; i < ACTIONS && !s->broken[0]; i++) {
        act(s);
        for (uint64_t n = sim_rand(s, 25); n && !s->broken[0]; n--)
            sim_step(s);
    }
    s->fail_percent = 0;
    for (unsigned i = 0; i < SIM_NODES; i++)
        sim_node_up(s, i);
    sim_settle(s);
    sim_run_for(s, 60 * NS_PER_S);
    if (!s->broken[0])
        sim_check_quiet(s);
    memcpy(out, s->broken, 400);
    sim_close(s);
    free(s);
}

static uint64_t number(const char *name, uint64_t other)
{
    const char *v = getenv(name);
    return v ? strtoull(v, NULL, 10) : other;
}

static void test_seeds(void **state)
{
    (void)state;
    uint64_t from = number("SIM_FROM", 1), n = number("SIM_SEEDS", 25);
    char broken[400];
    for (uint64_t seed = from; seed < from + n; seed++) {
        live(seed, FAULT_NONE, broken);
        if (broken[0])
            fail_msg("SIM_FROM=%llu SIM_SEEDS=1: %s", (unsigned long long)seed, broken);
    }
}

static void test_faults_are_caught(void **state)
{
    static const char *const name[FAULT_COUNT] = {"none",        "release keeps",  "load lies",
                                                  "load hangs",  "blind to quota", "blind to memory",
                                                  "job vanishes"};
    (void)state;
    for (int f = FAULT_NONE + 1; f < FAULT_COUNT; f++) {
        char broken[400] = "";
        uint64_t seed;
        for (seed = 1; seed <= 30 && !broken[0]; seed++)
            live(seed, (enum sim_fault)f, broken);
        if (!broken[0])
            fail_msg("'%s' broke nothing in 30 seeds", name[f]);
        print_message("%s: seed %llu: %s\n", name[f], (unsigned long long)seed - 1, broken);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds),
                                       cmocka_unit_test(test_faults_are_caught)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
