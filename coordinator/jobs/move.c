/*
 * Transitions. A move is asked for, written with its audit event in one transaction, and becomes the job's
 * state when the disk has it; until then `moving` keeps a second one from being asked for, and the pump runs
 * again when it is through.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

int event_of_state(enum job_state s)
{
    static const int ev[JOB_STATE_COUNT] = {
        [JOB_PENDING] = EV_JOB_SUBMITTED,   [JOB_QUEUED] = EV_JOB_QUEUED,
        [JOB_RESERVED] = EV_JOB_RESERVED,   [JOB_LOADING] = EV_JOB_LOADING,
        [JOB_READY] = EV_JOB_READY,         [JOB_MIGRATING] = EV_JOB_MIGRATING,
        [JOB_PAUSED] = EV_JOB_PAUSED,       [JOB_DEGRADED] = EV_JOB_DEGRADED,
        [JOB_PREEMPTED] = EV_JOB_PREEMPTED, [JOB_RELEASING] = EV_JOB_RELEASING,
        [JOB_RELEASED] = EV_JOB_RELEASED,   [JOB_FAILED] = EV_JOB_FAILED,
        [JOB_CANCELLED] = EV_JOB_CANCELLED,
    };
    return ev[s];
}

void job_event(struct store_txn *t, const struct job *j, int type, int result, const char *device,
               const char *meta, const char *error)
{
    struct audit_event ev = event_make(type, result, jobs_now(j->jobs));
    char node[64] = "";
    const char *slash = device ? strchr(device, '/') : NULL;
    if (slash)
        snprintf(node, sizeof node, "%.*s", (int)(slash - device), device);
    ev.principal = j->principal;
    ev.job = j->id;
    ev.device = device;
    ev.node = node;
    ev.operation = event_info(type)->name;
    ev.error = error;
    ev.meta = meta;
    store_txn_event(t, &ev);
}

void job_store_layer(struct store_txn *t, const struct job *j, const struct job_layer *l)
{
    char hex[65] = "";
    if (l->has_sha)
        hex_encode(hex, l->sha256, 32);
    const struct store_layer r = {.job = j->id,
                                  .layer = l->id,
                                  .device = l->device,
                                  .checksum = hex,
                                  .state = l->state,
                                  .bytes = l->bytes,
                                  .updated_us = jobs_now(j->jobs)};
    store_txn_layer_put(t, &r);
}

struct move {
    struct job *j;
    enum job_state to;
    char code[40], reason[400];
};

static void moved(void *arg, int rc, const struct err *e)
{
    struct move *m = arg;
    struct job *j = m->j;
    j->moving = false;
    if (rc < 0) {
        j->stalled = true;
        LOG_E(j->jobs->cfg.log, "jobs", "move refused job=%s to=%s error=%s", j->id, job_state_name(m->to),
              e->text);
    } else {
        LOG_I(j->jobs->cfg.log, "jobs", "job=%s from=%s to=%s reason=%s %s", j->id, job_state_name(j->state),
              job_state_name(m->to), m->code, m->reason);
        j->state = m->to;
        j->updated_us = jobs_now(j->jobs);
        str_copy(j->reason_code, sizeof j->reason_code, m->code);
        str_copy(j->reason, sizeof j->reason, m->reason);
        if (j->state == JOB_QUEUED)
            job_unplace(j);
        if (j->state == JOB_DEGRADED)
            j->tried = 0; /* another place may be looked for at once */
        if (job_ended(j->state) || j->state == JOB_QUEUED) {
            quota_release(j->jobs->quota, j->id);
            job_account_resident(j->jobs);
        }
        job_changed(j);
    }
    free(m);
    if (rc == ST_OK)
        job_pump(j);
    else
        job_cancel_waiting(j);
}

void job_move(struct job *j, enum job_state to, const char *code, struct store_txn *t, const char *fmt, ...)
{
    if (j->moving || j->jobs->stopping || !job_may_follow(j->state, to)) {
        store_txn_free(t);
        return;
    }
    struct move *m = calloc(1, sizeof *m);
    if (!t)
        t = store_txn_new();
    if (!m || !t) {
        LOG_E(j->jobs->cfg.log, "jobs", "no memory to move job=%s", j->id);
        free(m);
        store_txn_free(t);
        return;
    }
    m->j = j;
    m->to = to;
    str_copy(m->code, sizeof m->code, code);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(m->reason, sizeof m->reason, fmt, ap);
    va_end(ap);
    store_txn_job_state(t, j->id, j->state, to, m->reason, NULL, jobs_now(j->jobs));
    struct event_meta meta = {0};
    event_meta_str(&meta, "reason", *code ? code : m->reason);
    bool bad = to == JOB_DEGRADED || to == JOB_FAILED;
    job_event(t, j, event_of_state(to), bad ? EVENT_FAILURE : EVENT_SUCCESS, NULL, event_meta_text(&meta),
              bad ? m->reason : NULL);
    event_meta_fini(&meta);
    j->moving = true;
    int rc = jobs_store(j->jobs, t, moved, m);
    if (rc < 0) {
        struct err e;
        err_set(&e, rc, "state.db does not take it: %s", status_name(rc));
        moved(m, rc, &e);
    }
}
