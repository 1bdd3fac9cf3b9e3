/* What tests of single cases share: four equal nodes of 100,000 bytes that all have every model. */
#ifndef TESTS_JOBS_CASES_H
#define TESTS_JOBS_CASES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/jobs/sim.h"

static inline int setup(void **st)
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

static inline int teardown(void **st)
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

static inline void wait_for(struct sim *s, const struct sim_answer *a)
{
    sim_settle(s);
    for (unsigned i = 0; i < 10000 && !a->done; i++)
        sim_step(s);
    assert_true(a->done);
}

static inline struct job *submit(struct sim *s, const struct sim_spec *sp)
{
    struct sim_answer a;
    sim_submit(s, sp, false, &a);
    wait_for(s, &a);
    if (a.e.code != ST_OK)
        fail_msg("refused: %s", a.e.text);
    return sim_job(s, a.id);
}

static inline bool until_state(struct sim *s, const struct job *j, enum job_state want)
{
    for (unsigned i = 0; i < 20000 && j->state != want && !s->broken[0]; i++)
        sim_step(s);
    if (j->state != want)
        print_error("%s is %s, not %s: %s %s\n", j->id, job_state_name(j->state), job_state_name(want),
                    j->reason_code, j->reason);
    return j->state == want;
}

#endif
