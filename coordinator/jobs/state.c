/* The job state machine as a table. */
#include "coordinator/jobs/state.h"

#include <stdint.h>

#define B(s) (1u << (s))
#define OUT (B(JOB_RELEASING))

static const struct {
    const char *name;
    uint32_t next;
} job[JOB_STATE_COUNT] = {
    [JOB_PENDING] = {"pending", B(JOB_QUEUED) | B(JOB_RESERVED) | B(JOB_FAILED) | OUT},
    [JOB_QUEUED] = {"queued", B(JOB_RESERVED) | B(JOB_FAILED) | OUT},
    [JOB_RESERVED] = {"reserved", B(JOB_LOADING) | B(JOB_FAILED) | OUT},
    [JOB_LOADING] = {"loading", B(JOB_READY) | B(JOB_DEGRADED) | B(JOB_FAILED) | OUT},
    [JOB_READY] = {"ready", B(JOB_MIGRATING) | B(JOB_PAUSED) | B(JOB_DEGRADED) | B(JOB_PREEMPTED) | OUT},
    [JOB_MIGRATING] = {"migrating", B(JOB_READY) | B(JOB_DEGRADED) | OUT},
    [JOB_PAUSED] = {"paused", B(JOB_READY) | B(JOB_DEGRADED) | OUT},
    [JOB_DEGRADED] = {"degraded", B(JOB_LOADING) | B(JOB_FAILED) | OUT},
    [JOB_PREEMPTED] = {"preempted", B(JOB_QUEUED) | OUT},
    [JOB_RELEASING] = {"releasing", B(JOB_RELEASED) | B(JOB_FAILED) | B(JOB_CANCELLED)},
    [JOB_RELEASED] = {"released", 0},
    [JOB_FAILED] = {"failed", 0},
    [JOB_CANCELLED] = {"cancelled", 0},
};

const char *job_state_name(enum job_state s)
{
    return (unsigned)s < JOB_STATE_COUNT ? job[s].name : "unknown";
}

const char *layer_state_name(enum layer_state s)
{
    static const char *const name[] = {"planned", "loading", "verified", "lost", "released"};
    return (unsigned)s < LAYER_STATE_COUNT ? name[s] : "unknown";
}

bool job_may_follow(enum job_state from, enum job_state to)
{
    return (unsigned)from < JOB_STATE_COUNT && (unsigned)to < JOB_STATE_COUNT && (job[from].next & B(to));
}

bool job_ended(enum job_state s)
{
    return s == JOB_RELEASED || s == JOB_FAILED || s == JOB_CANCELLED;
}
