/* Job and layer states, and which may follow which. Pure. */
#ifndef STRATA_JOBS_STATE_H
#define STRATA_JOBS_STATE_H

#include <stdbool.h>

/* Stored by number in state.db: append only. */
enum job_state {
    JOB_PENDING,
    JOB_QUEUED,
    JOB_RESERVED,
    JOB_LOADING,
    JOB_READY,
    JOB_MIGRATING,
    JOB_PAUSED,
    JOB_DEGRADED,
    JOB_PREEMPTED,
    JOB_RELEASING,
    JOB_RELEASED,
    JOB_FAILED,
    JOB_CANCELLED,
    JOB_STATE_COUNT
};
enum layer_state {
    LAYER_PLANNED,
    LAYER_LOADING,
    LAYER_VERIFIED,
    LAYER_LOST,
    LAYER_RELEASED,
    LAYER_STATE_COUNT
};

const char *job_state_name(enum job_state s); /* "pending" …; never NULL */
const char *layer_state_name(enum layer_state s);
bool job_may_follow(enum job_state from, enum job_state to);
bool job_ended(enum job_state s); /* released, failed or cancelled */

#endif
