/* Where jobs go: waiting, making room, moving, healing, draining; with fake agents, case by case. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/jobs/cases.h"

static bool all_on(const struct job *j, const char *node)
{
    for (size_t i = 0; i < j->nlayers; i++)
        if (strncmp(j->layers[i].device, node, strlen(node)))
            return false;
    return true;
}

static bool any_on(const struct job *j, const char *node)
{
    for (size_t i = 0; i < j->nlayers; i++)
        if (!strncmp(j->layers[i].device, node, strlen(node)))
            return true;
    return false;
}

/* ---- waiting ---- */

static void test_queue_and_admission(void **st)
{
    struct sim *s = *st;
    struct sim_spec big = {.model = 2}; /* 120,000 of 400,000 */
    struct job *j[5];
    for (unsigned i = 0; i < 3; i++) {
        j[i] = submit(s, &big);
        assert_true(until_state(s, j[i], JOB_READY));
    }
    j[3] = submit(s, &big);
    assert_int_equal(j[3]->state, JOB_QUEUED);
    assert_string_equal(j[3]->reason_code, "NO_ROOM");
    assert_non_null(strstr(j[3]->reason, "short of"));
    assert_string_equal(j[3]->layers[0].device, "");
    /* One that is later but more urgent goes first; both survive a restart. */
    struct sim_spec urgent = {.model = 2, .priority = 5};
    j[4] = submit(s, &urgent);
    assert_int_equal(j[4]->state, JOB_QUEUED);
    char id3[40], id4[40], id0[40];
    strcpy(id3, j[3]->id);
    strcpy(id4, j[4]->id);
    strcpy(id0, j[0]->id);
    sim_restart(s);
    for (unsigned i = 0; i < SIM_NODES; i++)
        sim_node_up(s, i);
    sim_run_for(s, 3 * NS_PER_S);
    j[3] = sim_job(s, id3);
    j[4] = sim_job(s, id4);
    assert_int_equal(j[3]->state, JOB_QUEUED);
    assert_int_equal(j[4]->state, JOB_QUEUED);
    assert_int_equal(j[4]->spec.priority, 5);
    struct sim_answer a;
    sim_cancel(s, id0, &a);
    wait_for(s, &a);
    assert_true(until_state(s, j[4], JOB_READY));
    assert_int_equal(j[3]->state, JOB_QUEUED);
    /* Cancelled while it waits. */
    sim_cancel(s, id3, &a);
    wait_for(s, &a);
    assert_true(until_state(s, j[3], JOB_CANCELLED));
    sim_check_quiet(s);
}

static void test_never_fits_is_refused(void **st)
{
    struct sim *s = *st;
    struct sim_answer a;
    struct sim_spec sp = {.model = 2};
    for (unsigned i = 0; i < SIM_NODES; i++) {
        sim_node_down(s, i, false);
        s->node[i].capacity[0] = 20000;
        sim_node_up(s, i);
    }
    sim_submit(s, &sp, false, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_EINFEASIBLE);
    assert_non_null(strstr(a.e.text, "short of"));
    /* Nor does one that is larger than its owner's whole quota. */
    s->policy[1].quota_bytes = 30000;
    struct sim_spec poor = {.model = 1, .principal = 1};
    sim_submit(s, &poor, false, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_EINFEASIBLE);
}

static void test_queued_for_quota(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.model = 1, .principal = 1};
    struct sim_answer a;
    s->policy[1].quota_bytes = 60000;
    struct job *first = submit(s, &sp), *second = submit(s, &sp);
    assert_true(until_state(s, first, JOB_READY));
    assert_int_equal(second->state, JOB_QUEUED);
    assert_string_equal(second->reason_code, "QUOTA");
    sim_cancel(s, first->id, &a);
    wait_for(s, &a);
    assert_true(until_state(s, second, JOB_READY));
}

static void limit_devices(struct sim *s, uint64_t bytes)
{
    for (unsigned i = 0; i < SIM_PRINCIPALS; i++) {
        s->policy[i].has_device_quota = true;
        s->policy[i].device_quota_bytes = bytes;
    }
}

/* The planner does not know of it: found out when the bytes are claimed. */
static void test_device_quota(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.model = 1, .principal = 1};
    struct sim_answer a;
    for (unsigned i = 1; i < SIM_NODES; i++)
        sim_node_down(s, i, false);
    limit_devices(s, 20000);
    sim_submit(s, &sp, false, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_ERESOURCE);
    assert_string_equal(a.e.reason, "QUOTA_EXCEEDED");
    assert_int_equal(quota_charged(s->quota, s->policy[1].principal, ""), 0);
    limit_devices(s, 60000);
    struct job *first = submit(s, &sp);
    assert_true(until_state(s, first, JOB_READY));
    uint64_t held = quota_charged(s->quota, s->policy[1].principal, first->layers[0].device);
    assert_int_equal(held, quota_charged(s->quota, s->policy[1].principal, ""));
    struct job *second = submit(s, &sp);
    assert_int_equal(second->state, JOB_QUEUED);
    assert_string_equal(second->reason_code, "QUOTA");
    assert_false(quota_has(s->quota, second->id));
    sim_cancel(s, first->id, &a);
    wait_for(s, &a);
    assert_true(until_state(s, second, JOB_READY));
    assert_false(quota_has(s->quota, first->id));
    assert_int_equal(held, quota_charged(s->quota, s->policy[1].principal, ""));
}

static void test_dry_run_changes_nothing(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.model = 2};
    struct sim_answer a;
    struct store_stats before, after;
    sim_settle(s);
    store_stats(s->store, &before);
    sim_submit(s, &sp, true, &a);
    while (!a.done) { /* not sim_step: its barriers count as commits */
        s->now_ns = sim_next_due(s);
        sim_run_due(s);
    }
    assert_int_equal(a.e.code, ST_OK);
    store_stats(s->store, &after);
    assert_int_equal(before.committed, after.committed);
    assert_null(jobs_first(s->jobs));
    for (size_t i = 0; i < topo_count(s->topo); i++)
        assert_int_equal(topo_at(s->topo, i)->devices[0].reserved_bytes, 0);
}

/* ---- making room ---- */

static void test_preemption(void **st)
{
    struct sim *s = *st;
    struct sim_spec low = {.model = 2, .preemptible = true}, fixed = {.model = 2},
                    high = {.model = 2, .priority = 9};
    struct job *keep = submit(s, &fixed), *old = submit(s, &low), *young = submit(s, &low);
    assert_true(until_state(s, keep, JOB_READY));
    assert_true(until_state(s, old, JOB_READY));
    assert_true(until_state(s, young, JOB_READY));
    struct job *j = submit(s, &high);
    assert_true(until_state(s, j, JOB_READY));
    assert_int_equal(keep->state, JOB_READY);
    assert_int_equal((old->state == JOB_QUEUED) + (young->state == JOB_QUEUED), 1);
    struct job *out = old->state == JOB_QUEUED ? old : young;
    assert_string_equal(out->layers[0].device, "");
    sim_run_for(s, 20 * NS_PER_S);
    sim_check_quiet(s);
    struct sim_answer a;
    sim_cancel(s, j->id, &a);
    wait_for(s, &a);
    assert_true(until_state(s, out, JOB_READY));
    sim_check_quiet(s);
}

static void test_preemption_where_not_allowed(void **st)
{
    struct sim *s = *st;
    struct sim_spec theirs = {.model = 2, .preemptible = true, .principal = 2},
                    mine = {.model = 2, .priority = 9};
    struct job *j[3];
    s->policy[2].has_quota = false;
    for (unsigned i = 0; i < 3; i++) {
        j[i] = submit(s, &theirs);
        assert_true(until_state(s, j[i], JOB_READY));
    }
    struct job *q = submit(s, &mine);
    sim_run_for(s, 20 * NS_PER_S);
    assert_int_equal(q->state, JOB_QUEUED); /* another owner's jobs stay */
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(j[i]->state, JOB_READY);
    s->policy[0].roles = ROLE_BIT(ROLE_ADMIN);
    jobs_room_changed(s->jobs);
    assert_true(until_state(s, q, JOB_READY)); /* an admin's move them */
}

/* ---- moving ---- */

static struct job *ready_on_one(struct sim *s)
{
    struct sim_spec sp = {.model = 1};
    struct job *j = submit(s, &sp);
    assert_true(until_state(s, j, JOB_READY));
    assert_true(all_on(j, j->layers[0].device));
    return j;
}

static const char *other_than(const struct job *j)
{
    return strncmp(j->layers[0].device, "n2", 2) ? "n2/cpu:0" : "n1/cpu:0";
}

static void test_move(void **st)
{
    struct sim *s = *st;
    struct job *j = ready_on_one(s);
    struct sim_answer a, b;
    char from[96], id[40];
    const char *to = other_than(j);
    strcpy(from, j->layers[0].device);
    strcpy(id, j->id);
    unsigned loads = s->loads;
    sim_move(s, j->id, "l2", "l5", to, &a);
    sim_move(s, j->id, "l3", "", to, &b); /* a second operator */
    wait_for(s, &a);
    wait_for(s, &b);
    assert_int_equal(a.e.code, ST_OK);
    assert_int_equal(b.e.code, ST_ECONFLICT);
    assert_string_equal(b.e.reason, "MOVING");
    assert_int_equal(j->state, JOB_MIGRATING);
    /* Until the switch every layer serves where it was. */
    assert_true(all_on(j, from));
    assert_true(until_state(s, j, JOB_READY));
    assert_int_equal(s->loads - loads, 4);
    for (unsigned i = 0; i < 8; i++)
        assert_string_equal(j->layers[i].device, i >= 2 && i <= 5 ? to : from);
    sim_check_quiet(s);
    sim_restart(s);
    for (unsigned i = 0; i < SIM_NODES; i++)
        sim_node_up(s, i);
    sim_run_for(s, 3 * NS_PER_S);
    j = sim_job(s, id);
    assert_int_equal(s->loads - loads, 4); /* it is known where they are: nothing is loaded again */
    assert_string_equal(j->layers[3].device, to);
    assert_int_equal(j->state, JOB_READY);
}

static void test_move_refused(void **st)
{
    struct sim *s = *st;
    struct job *j = ready_on_one(s);
    struct sim_answer a;
    const char *to = other_than(j);
    sim_move(s, j->id, "l9", "", to, &a);
    wait_for(s, &a);
    assert_string_equal(a.e.reason, "NO_LAYER");
    sim_move(s, j->id, "l5", "l2", to, &a);
    wait_for(s, &a);
    assert_string_equal(a.e.reason, "RANGE");
    sim_move(s, j->id, "l0", "", "n9/cpu:0", &a);
    wait_for(s, &a);
    assert_string_equal(a.e.reason, "NO_DEVICE");
    sim_move(s, j->id, "l0", "", j->layers[0].device, &a);
    wait_for(s, &a);
    assert_string_equal(a.e.reason, "ALREADY_THERE");
    limit_devices(s, 1);
    sim_move(s, j->id, "l0", "", to, &a);
    wait_for(s, &a);
    assert_string_equal(a.e.reason, "QUOTA_EXCEEDED");
    assert_int_equal(quota_charged(s->quota, j->principal, to), 0);
    limit_devices(s, UINT64_MAX);
    topo_device(s->topo, to, NULL)->reserved_bytes = 99000;
    sim_move(s, j->id, "l0", "", to, &a);
    wait_for(s, &a);
    assert_string_equal(a.e.reason, "NO_ROOM");
    assert_int_equal(j->state, JOB_READY);
    assert_null(j->shifts);
}

static void test_failed_move_leaves_the_old_copy(void **st)
{
    struct sim *s = *st;
    struct job *j = ready_on_one(s);
    struct sim_answer a;
    char from[96];
    strcpy(from, j->layers[0].device);
    s->fail_device = other_than(j);
    sim_move(s, j->id, "l0", "l7", s->fail_device, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_OK);
    assert_true(until_state(s, j, JOB_READY));
    assert_string_equal(j->reason_code, "MOVE_FAILED");
    assert_true(all_on(j, from));
    sim_check_quiet(s);
}

/* Whatever happens at whatever moment of a migration, nothing is lost and nothing stays behind. */
static void at_any_point(struct sim *s, unsigned what)
{
    for (unsigned steps = 0; steps < 60; steps += 3) {
        struct job *j = ready_on_one(s);
        struct sim_answer a;
        const char *to = other_than(j);
        unsigned node = (unsigned)(to[1] - '0');
        char id[40];
        strcpy(id, j->id);
        sim_move(s, j->id, "l0", "l7", to, &a);
        sim_settle(s);
        for (unsigned i = 0; i < steps; i++)
            sim_step(s);
        if (what == 0)
            sim_node_down(s, node, false);
        else if (what == 1)
            sim_node_down(s, (unsigned)(j->layers[0].device[1] - '0'), false);
        else if (what == 2)
            sim_restart(s);
        else
            sim_cancel(s, id, NULL);
        sim_run_for(s, (sim_rand(s, 2) ? 8 : 1) * NS_PER_S);
        for (unsigned i = 0; i < SIM_NODES; i++)
            sim_node_up(s, i);
        sim_run_for(s, 12 * NS_PER_S);
        sim_check_quiet(s);
        assert_string_equal(s->broken, "");
        j = sim_job(s, id);
        assert_int_equal(j->state, what == 3 ? JOB_CANCELLED : JOB_READY);
        if (what != 3) {
            sim_cancel(s, id, &a);
            wait_for(s, &a);
        }
        assert_true(until_state(s, j, JOB_CANCELLED));
    }
}

static void test_target_killed_while_moving(void **st)
{
    at_any_point(*st, 0);
}
static void test_source_killed_while_moving(void **st)
{
    at_any_point(*st, 1);
}
static void test_restart_while_moving(void **st)
{
    at_any_point(*st, 2);
}
static void test_cancel_while_moving(void **st)
{
    at_any_point(*st, 3);
}

/* ---- healing ---- */

static void test_heal_moves_only_what_is_lost(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.model = 2, .min_nodes = 3};
    struct job *j = submit(s, &sp);
    char was[SIM_LAYERS][96];
    unsigned lost = 0;
    assert_true(until_state(s, j, JOB_READY));
    unsigned node = (unsigned)(j->layers[3].device[1] - '0');
    for (unsigned i = 0; i < SIM_LAYERS; i++) {
        strcpy(was[i], j->layers[i].device);
        lost += !strncmp(was[i], s->node[node].name, 2);
    }
    unsigned loads = s->loads;
    uint64_t t = s->now_ns;
    sim_node_down(s, node, false); /* for good */
    assert_true(until_state(s, j, JOB_DEGRADED));
    assert_string_equal(j->reason_code, "NODE_LOST");
    assert_true(until_state(s, j, JOB_READY));
    assert_true(s->now_ns - t < 7 * NS_PER_S); /* five of which are the lease's */
    assert_false(any_on(j, s->node[node].name));
    assert_int_equal(s->loads - loads, lost);
    for (unsigned i = 0; i < SIM_LAYERS; i++)
        if (strncmp(was[i], s->node[node].name, 2))
            assert_string_equal(j->layers[i].device, was[i]);
    sim_node_up(s, node);
    sim_run_for(s, 3 * NS_PER_S);
    sim_check_quiet(s);
}

static void test_heal_waits_where_nothing_fits(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.model = 2, .min_nodes = 4};
    struct job *j = submit(s, &sp);
    assert_true(until_state(s, j, JOB_READY));
    sim_node_down(s, 1, false);
    assert_true(until_state(s, j, JOB_DEGRADED));
    sim_run_for(s, 20 * NS_PER_S);
    assert_int_equal(j->state, JOB_DEGRADED);
    sim_node_up(s, 1);
    assert_true(until_state(s, j, JOB_READY));
    sim_check_quiet(s);
}

/* ---- draining ---- */

static void test_drain(void **st)
{
    struct sim *s = *st;
    struct job *j = ready_on_one(s);
    unsigned node = (unsigned)(j->layers[0].device[1] - '0');
    uint64_t bytes;
    limit_devices(s, 1); /* does not keep it there */
    s->node[node].drained = topo_node(s->topo, s->node[node].name)->draining = true;
    jobs_room_changed(s->jobs);
    assert_int_equal(jobs_on_node(s->jobs, s->node[node].name, &bytes), 8);
    for (unsigned i = 0; i < 2000 && jobs_on_node(s->jobs, s->node[node].name, &bytes); i++)
        sim_step(s);
    assert_int_equal(jobs_on_node(s->jobs, s->node[node].name, &bytes), 0);
    assert_true(until_state(s, j, JOB_READY));
    assert_false(any_on(j, s->node[node].name));
    assert_int_equal(quota_charged(s->quota, j->principal, s->node[node].name), 0);
    /* Nothing new comes. */
    limit_devices(s, UINT64_MAX);
    struct sim_spec sp = {.model = 0};
    struct job *k = submit(s, &sp);
    assert_true(until_state(s, k, JOB_READY));
    assert_false(any_on(k, s->node[node].name));
    sim_check_quiet(s);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_queue_and_admission),
        T(test_never_fits_is_refused),
        T(test_queued_for_quota),
        T(test_device_quota),
        T(test_dry_run_changes_nothing),
        T(test_preemption),
        T(test_preemption_where_not_allowed),
        T(test_move),
        T(test_move_refused),
        T(test_failed_move_leaves_the_old_copy),
        T(test_target_killed_while_moving),
        T(test_source_killed_while_moving),
        T(test_restart_while_moving),
        T(test_cancel_while_moving),
        T(test_heal_moves_only_what_is_lost),
        T(test_heal_waits_where_nothing_fits),
        T(test_drain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
