/*
 * Jobs that wait for their place: those that would fit on empty devices and within their owner's whole quota,
 * but not now. Whenever something becomes free they are looked at one after the other, highest priority
 * first, then oldest first; one that does not fit does not hold up those behind it. A job of higher priority
 * may put preemptible ones of lower priority back into the queue: its owner's own, or anybody's when its
 * owner is an admin.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

/* ---- into the queue ---- */

static const char *reason_code(const struct submission *s)
{
    const struct policy *pol = s->js->cfg.policy(s->js->cfg.policy_ctx, s->j->principal);
    uint64_t used = quota_charged(s->js->quota, s->j->principal, ""), ask = job_total_bytes(s->j);
    if (!strcmp(s->why.reason, "QUOTA_EXCEEDED"))
        return "QUOTA";
    if (pol && pol->has_quota && (used >= pol->quota_bytes || ask > pol->quota_bytes - used))
        return "QUOTA";
    return !strcmp(s->why.reason, "NO_DEVICE") ? "NO_DEVICE" : "NO_ROOM";
}

void job_unplace(struct job *j)
{
    for (size_t i = 0; i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        l->device[0] = 0;
        l->state = LAYER_PLANNED;
        l->loaded = 0;
        l->attempts = 0;
        l->release_first = false;
        l->source[0] = 0;
    }
}

static void stored(void *arg, int rc, const struct err *e)
{
    struct submission *s = arg;
    struct job *j = s->j;
    if (rc < 0) {
        submission_end(s, NULL, e);
        return;
    }
    LOG_I(j->jobs->cfg.log, "jobs", "job=%s principal=%s model=%s queued reason=%s %s", j->id, j->principal,
          j->name, j->reason_code, j->reason);
    j->state = JOB_QUEUED;
    job_list(j);
    submission_end(s, j, NULL);
    job_changed(j);
    queue_run(j->jobs);
}

void queue_store(struct submission *s)
{
    struct job *j = s->j;
    struct store_txn *t = store_txn_new();
    struct buf rec = {0};
    struct err e;
    job_unplace(j);
    str_copy(j->reason_code, sizeof j->reason_code, reason_code(s));
    if (!t || job_record_write(j, &rec) < 0) {
        store_txn_free(t);
        buf_fini(&rec);
        err_set(&e, ST_ENOMEM, "no memory to record the job");
        submission_end(s, NULL, &e);
        return;
    }
    store_txn_job_insert(t, &(struct store_job){.id = j->id,
                                                .principal = j->principal,
                                                .name = j->name,
                                                .reason = j->reason,
                                                .plan_id = j->id,
                                                .state = JOB_QUEUED,
                                                .bytes = job_total_bytes(j),
                                                .spec = rec.data,
                                                .spec_len = rec.len,
                                                .created_us = j->created_us,
                                                .updated_us = j->updated_us});
    buf_fini(&rec);
    struct event_meta m = {0};
    event_meta_str(&m, "model", j->name);
    event_meta_u64(&m, "layers", j->nlayers);
    event_meta_u64(&m, "bytes", job_total_bytes(j));
    event_meta_str(&m, "goal", plan_goal_name(j->spec.goal));
    job_event(t, j, EV_JOB_SUBMITTED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    event_meta_str(&m, "reason", j->reason_code);
    job_event(t, j, EV_JOB_QUEUED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    asked_record(s->asked, j->id, t, j->created_us);
    int rc = jobs_store(s->js, t, stored, s);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take the job now (%s): try again", status_name(rc));
        stored(s, rc, &e);
    }
}

/* ---- out of it ---- */

static bool before(const struct job *a, const struct job *b)
{
    if (a->spec.priority != b->spec.priority)
        return a->spec.priority > b->spec.priority;
    return a->created_us != b->created_us ? a->created_us < b->created_us : strcmp(a->id, b->id) < 0;
}

/* One at a time, so that the first in line gets what is free. */
void queue_run(struct jobs *js)
{
    bool there = false;
    for (size_t i = 0; i < topo_count(js->cfg.topo); i++)
        there |= topo_at(js->cfg.topo, i)->state == TOPO_CONNECTED && topo_at(js->cfg.topo, i)->user;
    while (there && !js->admitting && !js->stopping) {
        struct job *best = NULL;
        struct err e;
        for (struct job *j = js->head; j; j = j->next)
            if (j->state == JOB_QUEUED && !j->moving && !j->sub && j->tried != js->room + 1 &&
                (!best || before(j, best)))
                best = j;
        if (!best)
            return;
        best->tried = js->room + 1;
        if (submission_rights(js, best->principal, &e) < 0) {
            job_move(best, JOB_FAILED, e.reason[0] ? e.reason : "DENIED", NULL, "%s", e.text);
            continue;
        }
        struct submission *s = submission_of(best, SUB_QUEUED);
        if (!s)
            return;
        js->admitting = true;
        submission_inspect(s);
    }
}

static void next(struct submission *s)
{
    struct jobs *js = s->js;
    struct job *j = s->j;
    js->admitting = false;
    submission_end(s, j, NULL);
    job_pump(j);
    queue_run(js);
}

/* No place this time: whoever looks is told what is short now. */
void queue_ended(struct submission *s, const struct err *e)
{
    struct job *j = s->j;
    if (j->state == JOB_QUEUED && !j->moving) {
        s->why = *e;
        str_copy(j->reason_code, sizeof j->reason_code,
                 e->code == ST_EINFEASIBLE || e->code == ST_ERESOURCE ? reason_code(s)
                 : e->reason[0]                                       ? e->reason
                                                                      : status_name(e->code));
        str_copy(j->reason, sizeof j->reason, e->text);
        job_changed(j);
    }
    next(s);
}

static void admitted(void *arg, int rc, const struct err *e)
{
    struct submission *s = arg;
    struct job *j = s->j;
    j->moving = false;
    if (rc < 0) {
        LOG_E(j->jobs->cfg.log, "jobs", "admission refused job=%s error=%s", j->id, e->text);
        quota_release(j->jobs->quota, j->id);
        job_unplace(j);
    } else {
        quota_commit(j->jobs->quota, j->id);
        j->state = JOB_RESERVED;
        j->reason_code[0] = 0;
        str_copy(j->reason, sizeof j->reason, "planned and reserved");
        j->updated_us = jobs_now(j->jobs);
        LOG_I(j->jobs->cfg.log, "jobs", "job=%s from=queued to=reserved", j->id);
    }
    job_account_resident(j->jobs);
    job_changed(j);
    next(s);
}

void queue_admit(struct submission *s, const struct plan *p)
{
    struct job *j = s->j;
    struct jobs *js = s->js;
    struct err e = {0};
    struct event_meta m = {0};
    if (j->state != JOB_QUEUED || j->moving || j->cancels) {
        next(s); /* cancelled meanwhile */
        return;
    }
    struct quota_refusal why = {0};
    int rc = job_take_plan(j, p, &e), fits = rc == ST_OK ? job_still_fits(j, &why) : ST_OK;
    if (fits < 0) {
        job_unplace(j);
        if (job_plan_again(fits, &why) && ++s->tries < 64) {
            submission_plan(s);
            return;
        }
        rc = fits == ST_ERESOURCE ? job_quota_why(j, &why, &e)
             : fits == ST_EAGAIN
                 ? err_reason(&e, ST_ECONFLICT, "BUSY", "other jobs took the memory of %u plans in a row",
                              s->tries)
                 : err_set(&e, fits, "no room to count the job's memory: %s", status_name(fits));
    }
    struct store_txn *t = rc == ST_OK ? store_txn_new() : NULL;
    if (!t) {
        quota_release(js->quota, j->id);
        job_unplace(j);
        if (rc == ST_OK)
            err_set(&e, ST_ENOMEM, "no memory to admit the job");
        queue_ended(s, &e);
        return;
    }
    store_txn_job_state(t, j->id, JOB_QUEUED, JOB_RESERVED, "planned and reserved", j->id, jobs_now(js));
    for (size_t i = 0; i < j->nlayers; i++)
        job_store_layer(t, j, &j->layers[i]);
    job_txn_plan(t, j, p);
    event_meta_u64(&m, "bytes", job_total_bytes(j));
    job_event(t, j, EV_JOB_RESERVED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    j->moving = true;
    job_account_resident(js); /* its bytes count from here on */
    rc = jobs_store(js, t, admitted, s);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take it now (%s)", status_name(rc));
        admitted(s, rc, &e);
    }
}

/* ---- making room ---- */

static bool is_admin(struct jobs *js, const char *principal)
{
    const struct access_request rq = {.permission = PERM_ADMIN, .now_us = jobs_now(js)};
    return access_check(js->cfg.policy(js->cfg.policy_ctx, principal), &rq).allowed;
}

bool queue_wants_preempt(struct submission *s)
{
    bool admin = is_admin(s->js, s->j->principal), any = false;
    for (struct job *j = s->js->head; j; j = j->next) {
        j->victim = j->state == JOB_READY && !j->moving && !j->sub && !j->cancels && j->spec.preemptible &&
                    j->spec.priority < s->j->spec.priority &&
                    (admin || !strcmp(j->principal, s->j->principal));
        any |= j->victim;
    }
    return any;
}

static uint64_t victim_bytes(const struct job *j, const char *device)
{
    uint64_t n = 0;
    for (size_t i = 0; i < j->nlayers; i++)
        n += strcmp(j->layers[i].device, device) ? 0 : j->layers[i].mem;
    return n;
}

static struct job *worst_on(struct jobs *js, const char *device)
{
    struct job *worst = NULL;
    for (struct job *j = js->head; j; j = j->next)
        if (j->victim && victim_bytes(j, device) && (!worst || before(worst, j)))
            worst = j;
    return worst;
}

static void preempt(struct job *j, const struct job *by)
{
    job_move(j, JOB_PREEMPTED, "PREEMPTED", NULL, "job %s has priority %d, this one %d", by->id,
             by->spec.priority, j->spec.priority);
}

/* What the plan needs beyond what is free comes from those of lowest priority, newest first. */
void queue_preempt(struct submission *s, const struct plan *p)
{
    struct jobs *js = s->js;
    struct job *j = s->j;
    for (size_t k = 0; k < p->n_stages && j->state == JOB_QUEUED; k++) {
        struct topo_device *d = topo_device(js->cfg.topo, p->stages[k].device, NULL);
        struct job *v;
        uint64_t room = d ? topo_free_bytes(d) : 0, need = (uint64_t)p->stages[k].memory_bytes + 1;
        for (struct job *o = js->head; o && d; o = o->next) /* those on their way out already */
            room += o->state == JOB_READY && o->moving ? victim_bytes(o, d->id) : 0;
        while (d && room < need && (v = worst_on(js, d->id))) {
            v->victim = false;
            room += victim_bytes(v, d->id);
            preempt(v, j);
        }
    }
    for (struct job *o = js->head; o; o = o->next)
        o->victim = false;
    queue_ended(s, &s->why);
}
