/* Cancel and verify: what users ask of a job that exists. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

struct job_ask {
    char principal[80];
    jobs_call_fn fn;
    void *arg;
    struct job_ask *next;
};

static void answer_all(struct job_ask *a, int rc, const struct err *e)
{
    while (a) {
        struct job_ask *next = a->next;
        a->fn(a->arg, rc, e);
        free(a);
        a = next;
    }
}

struct cancelling {
    struct job *j;
    struct job_ask *asks;
};

static void cancelled(void *arg, int rc, const struct err *e)
{
    struct cancelling *c = arg;
    struct job *j = c->j;
    j->moving = false;
    if (rc == ST_OK) {
        j->state = JOB_RELEASING;
        j->updated_us = jobs_now(j->jobs);
        strcpy(j->reason_code, "CANCELLED");
        strcpy(j->reason, "cancelled");
        job_changed(j);
    } else {
        j->stalled = true; /* the pump was kept off while this was on its way */
    }
    answer_all(c->asks, rc, e);
    free(c);
    job_pump(j);
}

static void cancel_start(struct job *j)
{
    struct jobs *js = j->jobs;
    struct cancelling *c = malloc(sizeof *c);
    struct store_txn *t = c ? store_txn_new() : NULL;
    struct err e;
    if (!t) {
        free(c);
        err_set(&e, ST_ENOMEM, "no memory to cancel job %s", j->id);
        struct job_ask *asks = j->cancels;
        j->cancels = NULL;
        answer_all(asks, ST_ENOMEM, &e);
        return;
    }
    *c = (struct cancelling){j, j->cancels};
    j->cancels = NULL;
    store_txn_job_state(t, j->id, j->state, JOB_RELEASING, "cancelled", NULL, jobs_now(js));
    struct audit_event ev = event_make(EV_JOB_RELEASING, EVENT_SUCCESS, jobs_now(js));
    struct event_meta m = {0};
    event_meta_str(&m, "reason", "CANCELLED");
    ev.principal = c->asks->principal; /* who asked, who need not be the owner */
    ev.job = j->id;
    ev.operation = "job.cancel";
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
    j->moving = true;
    int rc = jobs_store(js, t, cancelled, c);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take it now (%s): try again", status_name(rc));
        cancelled(c, rc, &e);
    }
}

bool job_cancel_waiting(struct job *j)
{
    if (!j->cancels || j->moving)
        return false;
    if (job_ended(j->state) || j->state == JOB_RELEASING) {
        struct job_ask *asks = j->cancels;
        j->cancels = NULL;
        answer_all(asks, ST_OK, &(struct err){0});
        return false;
    }
    cancel_start(j);
    return true;
}

void jobs_cancel(struct jobs *js, struct job *j, const char *principal, jobs_call_fn fn, void *arg)
{
    struct err e = {0};
    if (!j->moving && (job_ended(j->state) || j->state == JOB_RELEASING)) {
        fn(arg, ST_OK, &e); /* repeated: it is already on its way out */
        return;
    }
    struct job_ask *a = js->stopping ? NULL : malloc(sizeof *a);
    if (!a) {
        int rc = js->stopping ? err_set(&e, ST_ECLOSED, "the coordinator stops: ask again when it is back")
                              : err_set(&e, ST_ENOMEM, "no memory to cancel job %s", j->id);
        fn(arg, rc, &e);
        return;
    }
    /* A move on its way to disk is let through first; the release is the next one. */
    *a = (struct job_ask){.fn = fn, .arg = arg, .next = j->cancels};
    str_copy(a->principal, sizeof a->principal, principal);
    j->cancels = a;
    (void)job_cancel_waiting(j);
}

/* ---- verify ---- */

struct verify {
    struct job *j;
    jobs_call_fn fn;
    void *arg;
    unsigned waiting;
    int rc;
    struct err e;
};
struct verify_one {
    struct verify *v;
    struct job_layer *l;
};

static void verify_end(struct verify *v)
{
    struct job *j = v->j;
    v->fn(v->arg, v->rc, &v->e);
    free(v);
    job_account_resident(j->jobs);
    job_changed(j);
    job_pump(j);
}

static void record(struct job *j, struct job_layer *l, int rc, const struct err *e)
{
    struct store_txn *t = store_txn_new();
    if (!t)
        return;
    struct event_meta m = {0};
    event_meta_str(&m, "layer", l->id);
    if (rc == ST_OK) {
        job_event(t, j, EV_LAYER_VERIFIED, EVENT_SUCCESS, l->device, event_meta_text(&m), NULL);
    } else {
        event_meta_str(&m, "reason", e->reason[0] ? e->reason : status_name(rc));
        job_store_layer(t, j, l);
        job_event(t, j, EV_LAYER_FAILED, EVENT_FAILURE, l->device, event_meta_text(&m), e->text);
    }
    event_meta_fini(&m);
    rc = jobs_store(j->jobs, t, NULL, NULL);
    if (rc < 0)
        LOG_E(j->jobs->cfg.log, "jobs", "check not recorded job=%s layer=%s error=%s", j->id, l->id,
              status_name(rc));
}

static void verified(void *arg, int rc, const struct err *e, const uint8_t *sha)
{
    struct verify_one *o = arg;
    struct verify *v = o->v;
    struct job_layer *l = o->l;
    struct err mine = {0};
    if (rc == ST_OK && memcmp(sha, l->sha256, 32))
        rc = err_reason(
            &mine, ST_ECORRUPT, "CHECKSUM_MISMATCH",
            "layer %s on %s differs from the model file: its device memory was changed; it is loaded again",
            l->id, l->device);
    else if (rc < 0)
        mine = *e;
    bool still = l->state == LAYER_VERIFIED; /* else it was lost or released while it was being read */
    if (rc == ST_ECORRUPT && still) {
        job_layer_state(v->j->jobs, l, LAYER_LOST);
        l->release_first = true;
        l->attempts = 0;
    }
    if (still || rc == ST_ECORRUPT)
        record(v->j, l, rc, &mine);
    if (rc < 0 && v->rc != ST_ECORRUPT) {
        v->rc = rc;
        v->e = mine;
    }
    free(o);
    if (!--v->waiting)
        verify_end(v);
}

void jobs_verify(struct jobs *js, struct job *j, jobs_call_fn fn, void *arg)
{
    struct err e;
    struct verify *v = calloc(1, sizeof *v);
    if (!v || j->state != JOB_READY) {
        int rc = v ? err_set(&e, ST_ECONFLICT, "job %s is %s: only a ready job can be verified", j->id,
                             job_state_name(j->state))
                   : err_set(&e, ST_ENOMEM, "no memory");
        free(v);
        fn(arg, rc, &e);
        return;
    }
    *v = (struct verify){.j = j, .fn = fn, .arg = arg, .waiting = 1};
    for (size_t i = 0; i < j->nlayers; i++) {
        struct topo_node *n = NULL;
        struct verify_one *o = malloc(sizeof *o);
        int rc = o && topo_device(js->cfg.topo, j->layers[i].device, &n) && n->user ? ST_OK : ST_EUNREACH;
        if (rc == ST_OK) {
            *o = (struct verify_one){v, &j->layers[i]};
            rc = js->cfg.agents->verify(js->cfg.agents_ctx, n, j, &j->layers[i], verified, o);
        }
        if (rc == ST_OK) {
            v->waiting++;
            continue;
        }
        free(o);
        v->rc = err_set(&v->e, rc, "layer %s cannot be checked: %s is not reachable", j->layers[i].id,
                        j->layers[i].device);
    }
    if (!--v->waiting)
        verify_end(v);
}
