/* The jobs room with fake agents, case by case. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/jobs/sim.h"

static int setup(void **st)
{
    struct sim *s = malloc(sizeof *s);
    if (!s)
        return -1;
    sim_open(s, 1);
    for (unsigned i = 0; i < SIM_NODES; i++) {
        sim_node_down(s, i, false);
        s->node[i].ndevices = 1;
        s->node[i].capacity[0] = 100000;
        for (unsigned m = 0; m < SIM_MODELS; m++)
            s->node[i].has_model[m] = true;
        sim_node_up(s, i);
    }
    sim_settle(s);
    *st = s;
    return 0;
}

static int teardown(void **st)
{
    struct sim *s = *st;
    char broken[400];
    memcpy(broken, s->broken, sizeof broken);
    sim_close(s);
    free(s);
    if (broken[0])
        print_error("%s\n", broken);
    return broken[0] ? -1 : 0;
}

static void wait_for(struct sim *s, const struct sim_answer *a)
{
    sim_settle(s);
    for (unsigned i = 0; i < 10000 && !a->done; i++)
        sim_step(s);
    assert_true(a->done);
}

static struct job *submit(struct sim *s, const struct sim_spec *sp)
{
    struct sim_answer a;
    sim_submit(s, sp, false, &a);
    wait_for(s, &a);
    if (a.e.code != ST_OK)
        fail_msg("refused: %s", a.e.text);
    return sim_job(s, a.id);
}

static void test_request_id(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.request = "once"};
    struct sim_answer a, b, c;
    /* Two at once are one; so is a third, later. */
    sim_submit(s, &sp, false, &a);
    sim_submit(s, &sp, false, &b);
    wait_for(s, &a);
    wait_for(s, &b);
    assert_int_equal(a.e.code, ST_OK);
    assert_string_equal(a.id, b.id);
    sim_submit(s, &sp, false, &c);
    wait_for(s, &c);
    assert_string_equal(a.id, c.id);
    /* Another wish under the same id, while it is known and also by memory alone after a restart. */
    for (int i = 0; i < 2; i++) {
        struct sim_spec other = {.request = "once", .model = 1};
        sim_submit(s, &other, false, &b);
        wait_for(s, &b);
        assert_int_equal(b.e.code, ST_ECONFLICT);
        assert_string_equal(b.e.reason, "REQUEST_ID_REUSED");
        assert_non_null(strstr(b.e.text, a.id));
        sim_submit(s, &sp, false, &c);
        wait_for(s, &c);
        assert_string_equal(a.id, c.id);
        sim_restart(s);
    }
    /* An id is its principal's own. */
    struct sim_spec mine = {.request = "once", .principal = 1};
    sim_submit(s, &mine, false, &b);
    wait_for(s, &b);
    assert_int_equal(b.e.code, ST_OK);
    assert_string_not_equal(a.id, b.id);
    /* A day later it is forgotten. */
    s->now_ns += 25ull * 3600 * NS_PER_S;
    for (struct sim_job *w = s->acked; w; w = w->next)
        w->request[0] = 0;
    sim_run_for(s, 2 * NS_PER_S);
    sim_submit(s, &sp, false, &c);
    wait_for(s, &c);
    assert_int_equal(c.e.code, ST_OK);
    assert_string_not_equal(a.id, c.id);
}

static void test_refused_request_can_be_repeated(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.request = "later"};
    struct sim_answer a;
    for (unsigned i = 0; i < SIM_NODES; i++)
        s->node[i].has_model[0] = false;
    sim_submit(s, &sp, false, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_ENOENT);
    s->node[2].has_model[0] = true;
    sim_submit(s, &sp, false, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_OK);
}

/* Eight submissions planned on one snapshot, of which three fit. */
static void test_concurrent_submits_share_memory(void **st)
{
    struct sim *s = *st;
    struct sim_answer a[8];
    struct sim_spec sp = {.model = 2};
    unsigned ok = 0;
    for (unsigned i = 0; i < 8; i++)
        sim_submit(s, &sp, false, &a[i]);
    for (unsigned i = 0; i < 8; i++) {
        wait_for(s, &a[i]);
        ok += a[i].e.code == ST_OK;
        sim_check(s);
    }
    assert_int_equal(ok, 3);
    sim_run_for(s, 5 * NS_PER_S);
    assert_int_equal(s->refused_full, 0);
    sim_check_quiet(s);
}

static void test_concurrent_submits_share_quota(void **st)
{
    struct sim *s = *st;
    struct sim_answer a[8];
    struct sim_spec sp = {.model = 1, .principal = 1}; /* 40,000 each of 150,000 */
    unsigned ok = 0;
    for (unsigned i = 0; i < 8; i++)
        sim_submit(s, &sp, false, &a[i]);
    for (unsigned i = 0; i < 8; i++) {
        wait_for(s, &a[i]);
        ok += a[i].e.code == ST_OK;
    }
    assert_int_equal(ok, 3);
    sim_check(s);
}

static void test_cancel_does_not_wait_for_loads(void **st)
{
    struct sim *s = *st;
    struct sim_answer a;
    struct sim_spec sp = {.model = 2};
    s->fault = FAULT_LOAD_HANGS; /* loads that never end by themselves */
    struct job *j = submit(s, &sp);
    sim_run_for(s, 2 * NS_PER_S);
    assert_int_equal(j->state, JOB_LOADING);
    assert_true(j->loads > 0);
    uint64_t before = s->now_ns;
    sim_cancel(s, j->id, &a);
    wait_for(s, &a);
    assert_int_equal(a.e.code, ST_OK);
    for (unsigned i = 0; i < 1000 && j->state != JOB_CANCELLED; i++)
        sim_step(s);
    assert_int_equal(j->state, JOB_CANCELLED);
    assert_true(s->now_ns - before < NS_PER_S);
    sim_check_quiet(s);
}

/* A cancel that comes while another move is on its way to disk is not refused. */
static void test_cancel_at_any_point(void **st)
{
    struct sim *s = *st;
    struct sim_spec sp = {.model = 1};
    for (unsigned steps = 0; steps < 40; steps++) {
        struct sim_answer sub, a, b;
        sim_submit(s, &sp, false, &sub);
        wait_for(s, &sub);
        assert_int_equal(sub.e.code, ST_OK);
        struct job *j = sim_job(s, sub.id);
        for (unsigned i = 0; i < steps; i++)
            sim_step(s);
        sim_cancel(s, sub.id, &a);
        sim_cancel(s, sub.id, &b);
        wait_for(s, &a);
        wait_for(s, &b);
        assert_int_equal(a.e.code, ST_OK);
        assert_int_equal(b.e.code, ST_OK);
        for (unsigned i = 0; i < 1000 && j->state != JOB_CANCELLED; i++)
            sim_step(s);
        assert_int_equal(j->state, JOB_CANCELLED);
        sim_check_quiet(s);
        assert_string_equal(s->broken, "");
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_request_id),
        T(test_refused_request_can_be_repeated),
        T(test_concurrent_submits_share_memory),
        T(test_concurrent_submits_share_quota),
        T(test_cancel_does_not_wait_for_loads),
        T(test_cancel_at_any_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
