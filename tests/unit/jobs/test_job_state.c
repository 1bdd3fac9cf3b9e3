/* The job state machine against the table of the contract, written down here a second time, edge by edge. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/jobs/state.h"

static const char *const edges[] = {
    "pending queued",
    "queued reserved",
    "reserved loading",
    "loading ready",
    "ready migrating",
    "migrating ready",
    "ready paused",
    "paused ready",
    "ready degraded",
    "migrating degraded",
    "loading degraded",
    "paused degraded",
    "degraded loading",
    "ready preempted",
    "preempted queued",
    "releasing released",
    "releasing failed",
    "releasing cancelled",
    /* without a queue in between, when there is room at once */
    "pending reserved",
    /* nothing is held yet, or nothing can be */
    "pending failed",
    "queued failed",
    "reserved failed",
    "loading failed",
    "degraded failed",
};

static bool listed(enum job_state a, enum job_state b)
{
    /* from any that has not ended: → releasing */
    if (b == JOB_RELEASING)
        return !job_ended(a) && a != JOB_RELEASING;
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        size_t n = strlen(job_state_name(a));
        if (!strncmp(edges[i], job_state_name(a), n) && edges[i][n] == ' ' &&
            !strcmp(edges[i] + n + 1, job_state_name(b)))
            return true;
    }
    return false;
}

static void test_every_pair(void **st)
{
    (void)st;
    for (int a = 0; a < JOB_STATE_COUNT; a++)
        for (int b = 0; b < JOB_STATE_COUNT; b++)
            if (job_may_follow((enum job_state)a, (enum job_state)b) !=
                listed((enum job_state)a, (enum job_state)b))
                fail_msg("%s -> %s", job_state_name((enum job_state)a), job_state_name((enum job_state)b));
}

static void test_ends_and_names(void **st)
{
    (void)st;
    for (int a = 0; a < JOB_STATE_COUNT; a++) {
        bool leads_on = false;
        for (int b = 0; b < JOB_STATE_COUNT; b++) {
            leads_on |= job_may_follow((enum job_state)a, (enum job_state)b);
            if (a != b)
                assert_string_not_equal(job_state_name((enum job_state)a), job_state_name((enum job_state)b));
        }
        assert_int_equal(leads_on, !job_ended((enum job_state)a));
    }
    assert_string_equal(job_state_name((enum job_state)99), "unknown");
    assert_false(job_may_follow((enum job_state)99, JOB_READY));
    assert_string_equal(layer_state_name(LAYER_VERIFIED), "verified");
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(test_every_pair), cmocka_unit_test(test_ends_and_names)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
