/*
 * The second half of a submission: plan what was found on the nodes, reserve the bytes in memory, write the
 * job. Bytes count from the moment the plan is taken, not from the commit: two submissions can be planned on
 * one snapshot, and the one whose plan no longer fits is planned again.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/jobs/jobs_priv.h"

#define MAX_TRIES 64 /* each new one means that another job got through */

static const struct plan_placement *placement_of(const struct plan *p, const char *layer)
{
    for (size_t i = 0; i < p->n_placements; i++)
        if (!strcmp(p->placements[i].layer, layer))
            return &p->placements[i];
    return NULL;
}

static struct job_layer *layer_of(struct job *j, const char *id)
{
    for (size_t i = 0; i < j->nlayers; i++)
        if (!strcmp(j->layers[i].id, id))
            return &j->layers[i];
    return NULL;
}

/* A layer holds its weights and its cache; what a stage needs besides goes to its first layer. */
int job_take_memory(struct job *j, const struct plan *p, struct err *e)
{
    for (size_t k = 0; k < p->n_stages; k++) {
        const struct plan_stage *st = &p->stages[k];
        double rest = st->memory_bytes;
        struct job_layer *first = NULL;
        for (size_t i = 0; i < st->n_layers; i++) {
            const struct plan_placement *pl = placement_of(p, st->layers[i]);
            struct job_layer *l = layer_of(j, st->layers[i]);
            if (!pl || !l)
                return err_set(e, ST_EINTERNAL, "the plan does not fit the model: layer %s", st->layers[i]);
            double bytes = ceil(pl->memory_bytes);
            l->mem = bytes > (double)l->bytes ? (uint64_t)bytes : l->bytes;
            rest -= pl->memory_bytes;
            if (!first)
                first = l;
        }
        if (first && rest >= 1)
            first->mem += (uint64_t)ceil(rest);
    }
    return ST_OK;
}

static int take_plan(struct job *j, const struct plan *p, struct err *e)
{
    struct buf b = {0};
    int rc = plan_to_json(p, &b);
    free(j->plan_json);
    j->plan_json = NULL;
    if (rc == ST_OK && !(j->plan_json = strdup(buf_cstr(&b))))
        rc = ST_ENOMEM;
    buf_fini(&b);
    for (size_t i = 0; i < j->nlayers && rc == ST_OK; i++) {
        const struct plan_placement *pl = placement_of(p, j->layers[i].id);
        if (!pl)
            return err_set(e, ST_EINTERNAL, "the plan leaves out layer %s", j->layers[i].id);
        free(j->layers[i].device);
        if (!(j->layers[i].device = strdup(pl->device)))
            rc = ST_ENOMEM;
    }
    return rc < 0 ? err_set(e, rc, "no memory for the plan") : job_take_memory(j, p, e);
}

/* ---- reserved bytes: counted from here on ---- */

static void hold(struct submission *s)
{
    s->next_holding = s->js->holding;
    s->js->holding = s;
    job_account_resident(s->js);
}

static void unhold(struct submission *s)
{
    for (struct submission **at = &s->js->holding; *at; at = &(*at)->next_holding)
        if (*at == s) {
            *at = s->next_holding;
            break;
        }
}

/* Does what was planned on an earlier snapshot still fit? Then its bytes are claimed. ST_EAGAIN: not on the
 * devices; ST_ERESOURCE: not under the quota, *why says where. */
static int claim_plan(struct submission *s, struct quota_refusal *why)
{
    struct job *j = s->j;
    struct jobs *js = s->js;
    for (size_t i = 0; i < j->nlayers; i++) {
        struct topo_node *n = NULL;
        struct topo_device *d = topo_device(js->cfg.topo, j->layers[i].device, &n);
        uint64_t need = 0;
        if (!d || !job_device_usable(n, d))
            return ST_EAGAIN;
        for (size_t k = 0; k < j->nlayers; k++)
            need += strcmp(j->layers[k].device, d->id) ? 0 : j->layers[k].mem;
        if (need > topo_free_bytes(d))
            return ST_EAGAIN;
    }
    return job_claim(j, why);
}

static void reserved(void *arg, int rc, const struct err *e)
{
    struct submission *s = arg;
    struct jobs *js = s->js;
    unhold(s);
    if (rc < 0) {
        quota_release(js->quota, s->j->id);
        job_account_resident(js);
        submission_end(s, NULL, e);
        return;
    }
    struct job *j = s->j;
    j->next = js->head;
    js->head = j;
    j->state = JOB_RESERVED;
    quota_commit(js->quota, j->id);
    job_account_resident(js);
    LOG_I(js->cfg.log, "jobs", "job=%s principal=%s model=%s reserved layers=%zu", j->id, j->principal,
          j->name, j->nlayers);
    submission_end(s, j, NULL);
    job_changed(j);
    job_pump(j);
}

static void reserve(struct submission *s, const struct plan *p)
{
    struct job *j = s->j;
    struct store_txn *t = store_txn_new();
    struct buf rec = {0};
    struct err e;
    if (!t || job_record_write(j, &rec) < 0) {
        store_txn_free(t);
        buf_fini(&rec);
        err_set(&e, ST_ENOMEM, "no memory to record the job");
        quota_release(s->js->quota, j->id);
        submission_end(s, NULL, &e);
        return;
    }
    str_copy(j->reason, sizeof j->reason, "planned and reserved");
    store_txn_job_insert(t, &(struct store_job){.id = j->id,
                                                .principal = j->principal,
                                                .name = j->name,
                                                .reason = j->reason,
                                                .plan_id = j->id,
                                                .state = JOB_RESERVED,
                                                .bytes = job_total_bytes(j),
                                                .spec = rec.data,
                                                .spec_len = rec.len,
                                                .created_us = j->created_us,
                                                .updated_us = j->updated_us});
    for (size_t i = 0; i < j->nlayers; i++)
        job_store_layer(t, j, &j->layers[i]);
    store_txn_plan_put(t, &(struct store_plan){.id = j->id,
                                               .job = j->id,
                                               .goal = plan_goal_name(j->spec.goal),
                                               .doc = j->plan_json,
                                               .doc_len = strlen(j->plan_json),
                                               .created_us = j->created_us});
    struct event_meta m = {0};
    event_meta_str(&m, "model", j->name);
    event_meta_u64(&m, "layers", j->nlayers);
    event_meta_u64(&m, "bytes", job_total_bytes(j));
    event_meta_str(&m, "goal", plan_goal_name(j->spec.goal));
    job_event(t, j, EV_JOB_SUBMITTED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    event_meta_str(&m, "goal", plan_goal_name(j->spec.goal));
    event_meta_str(&m, "solver", p->solver);
    event_meta_f64(&m, "objective", p->objective);
    event_meta_f64(&m, "bound", p->lower_bound);
    event_meta_f64(&m, "gap", p->gap);
    job_event(t, j, EV_PLAN_CREATED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    event_meta_u64(&m, "bytes", job_total_bytes(j));
    job_event(t, j, EV_JOB_RESERVED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    buf_fini(&rec);
    asked_record(s->asked, j->id, t, j->created_us);
    hold(s);
    int rc = jobs_store(s->js, t, reserved, s);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take the job now (%s): try again", status_name(rc));
        reserved(s, rc, &e);
    }
}

static void audit_rejected(struct jobs *js, const struct job *j, const struct err *e)
{
    struct audit_event ev = event_make(EV_PLAN_REJECTED, EVENT_FAILURE, jobs_now(js));
    struct event_meta m = {0};
    event_meta_str(&m, "reason", e->text);
    ev.principal = j->principal;
    ev.operation = "job.submit";
    ev.meta = event_meta_text(&m);
    if (js->cfg.audit && !js->stopping && audit_emit(js->cfg.audit, &ev) < 0)
        LOG_W(js->cfg.log, "jobs", "plan rejection not audited: the ring is full");
    event_meta_fini(&m);
}

static void planned(void *arg, int rc, const struct err *e, struct plan *p)
{
    struct submission *s = arg;
    struct err own = *e;
    if (rc == ST_OK)
        rc = take_plan(s->j, p, &own);
    else if (rc == ST_EINFEASIBLE && p && p->has_shortfall)
        err_reason(&own, rc, "INFEASIBLE", "no plan fits: %s, short of %llu bytes at %s. %s",
                   plan_shortfall_name(p->shortfall.kind), (unsigned long long)p->shortfall.bytes,
                   p->shortfall.where ? p->shortfall.where : "the cluster",
                   p->shortfall.hint ? p->shortfall.hint : "");
    struct quota_refusal why;
    int fits = rc == ST_OK && !s->dry_run ? claim_plan(s, &why) : ST_OK;
    bool again = fits == ST_EAGAIN || fits == ST_ERESOURCE;
    if (fits < 0 && !again)
        rc = err_set(&own, fits, "no room to count the job's memory: %s", status_name(fits));
    else if (again && ++s->tries >= MAX_TRIES && fits == ST_ERESOURCE)
        rc = job_quota_refused(s->j, &why, &own);
    else if (again && s->tries >= MAX_TRIES)
        rc = err_reason(&own, ST_ECONFLICT, "BUSY",
                        "other jobs took the memory of %u plans in a row: submit it again", s->tries);
    if (rc < 0) {
        audit_rejected(s->js, s->j, &own);
        submission_end(s, NULL, &own);
    } else if (again) {
        submission_plan(s);
    } else if (s->dry_run) {
        submission_end(s, s->j, NULL);
    } else {
        reserve(s, p);
    }
    plan_free(p);
}

static int add_patterns(char ***dst, size_t *n, char *const *src, size_t count)
{
    *dst = calloc(count + 1, sizeof(**dst));
    if (!*dst)
        return ST_ENOMEM;
    for (*n = 0; *n < count; ++*n)
        if (!((*dst)[*n] = strdup(src[*n])))
            return ST_ENOMEM;
    return ST_OK;
}

static int make_request(const struct job_spec *sp, struct request **out)
{
    struct request *r = malloc(sizeof *r);
    if (!r)
        return ST_ENOMEM;
    request_init(r);
    if (add_patterns(&r->allow, &r->nallow, sp->allow, sp->nallow) < 0 ||
        add_patterns(&r->deny, &r->ndeny, sp->deny, sp->ndeny) < 0) {
        request_fini(r);
        free(r);
        return ST_ENOMEM;
    }
    r->min_nodes = sp->min_nodes;
    if (sp->max_stages)
        r->max_stages = sp->max_stages;
    *out = r;
    return ST_OK;
}

/* The version that most nodes have becomes the job's. */
static void take_found(struct submission *s)
{
    struct found *f = &s->found[0];
    for (size_t i = 1; i < s->nfound; i++)
        if (s->found[i].nnodes > f->nnodes)
            f = &s->found[i];
    struct job *j = s->j;
    memcpy(j->header_sha256, f->header, 32);
    j->nfiles = f->nfiles;
    j->layers = f->layers;
    j->nlayers = f->nlayers;
    j->sources = f->nodes;
    j->nsources = f->nnodes;
    f->layers = NULL;
    f->nodes = NULL;
    f->nlayers = f->nnodes = 0;
    s->model = f;
}

void submission_plan(struct submission *s)
{
    struct jobs *js = s->js;
    struct job *j = s->j;
    struct err e;
    if (!s->model)
        take_found(s);
    const struct policy *pol = js->cfg.policy(js->cfg.policy_ctx, j->principal);
    struct cluster *c = NULL;
    struct model *m = NULL;
    struct request *r = NULL;
    int rc = jobs_snapshot(js, pol, &c, &e);
    if (rc == ST_OK && (rc = model_read_json(s->model->model_json, strlen(s->model->model_json), j->spec.path,
                                             &m, &e)) == ST_OK)
        rc = make_request(&j->spec, &r) < 0 ? err_set(&e, ST_ENOMEM, "no memory for the request") : ST_OK;
    if (rc < 0) {
        cluster_free(c);
        model_free(m);
        submission_end(s, NULL, &e);
        return;
    }
    if (pol && pol->has_quota) {
        uint64_t used = quota_charged(js->quota, j->principal, "");
        r->max_total_bytes = used < pol->quota_bytes ? (double)(pol->quota_bytes - used) : 0;
    }
    str_copy(j->name, sizeof j->name, m->name);
    rc = jobs_plan(js, c, m, r, j->spec.goal, planned, s);
    if (rc < 0) {
        err_set(&e, rc, "no memory for the planner");
        submission_end(s, NULL, &e);
    }
}
