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

const struct plan_placement *plan_placement_of(const struct plan *p, const char *layer)
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
            const struct plan_placement *pl = plan_placement_of(p, st->layers[i]);
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

int job_take_plan_json(struct job *j, const struct plan *p, struct err *e)
{
    struct buf b = {0};
    char *text = NULL;
    int rc = plan_to_json(p, &b);
    if (rc == ST_OK && !(text = strdup(buf_cstr(&b))))
        rc = ST_ENOMEM;
    buf_fini(&b);
    if (rc < 0)
        return err_set(e, rc, "no memory for the plan");
    free(j->plan_json);
    j->plan_json = text;
    return ST_OK;
}

int job_take_plan(struct job *j, const struct plan *p, struct err *e)
{
    int rc = job_take_plan_json(j, p, e);
    for (size_t i = 0; i < j->nlayers && rc == ST_OK; i++) {
        const struct plan_placement *pl = plan_placement_of(p, j->layers[i].id);
        if (!pl)
            return err_set(e, ST_EINTERNAL, "the plan leaves out layer %s", j->layers[i].id);
        char *device = strdup(pl->device);
        if (!device)
            return err_set(e, ST_ENOMEM, "no memory for the plan");
        free(j->layers[i].device);
        j->layers[i].device = device;
    }
    return rc < 0 ? rc : job_take_memory(j, p, e);
}

void job_list(struct job *j)
{
    struct jobs *js = j->jobs;
    j->next = js->head;
    js->head = j;
    job_account_resident(js);
}

void job_txn_plan(struct store_txn *t, const struct job *j, const struct plan *p)
{
    struct event_meta m = {0};
    store_txn_plan_put(t, &(struct store_plan){.id = j->id,
                                               .job = j->id,
                                               .goal = plan_goal_name(j->spec.goal),
                                               .doc = j->plan_json,
                                               .doc_len = strlen(j->plan_json),
                                               .inputs = p->inputs,
                                               .inputs_len = p->inputs ? strlen(p->inputs) : 0,
                                               .created_us = jobs_now(j->jobs)});
    event_meta_str(&m, "goal", plan_goal_name(j->spec.goal));
    event_meta_str(&m, "solver", p->solver);
    event_meta_f64(&m, "objective", p->objective);
    event_meta_f64(&m, "bound", p->lower_bound);
    event_meta_f64(&m, "gap", p->gap);
    job_event(t, j, EV_PLAN_CREATED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
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

bool job_plan_again(int fits, const struct quota_refusal *why)
{
    return fits == ST_EAGAIN || (fits == ST_ERESOURCE && !*why->where);
}

int job_still_fits(const struct job *j, struct quota_refusal *why)
{
    struct jobs *js = j->jobs;
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
    j->state = JOB_RESERVED;
    quota_commit(js->quota, j->id);
    job_list(j);
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
    struct event_meta m = {0};
    event_meta_str(&m, "model", j->name);
    event_meta_u64(&m, "layers", j->nlayers);
    event_meta_u64(&m, "bytes", job_total_bytes(j));
    event_meta_str(&m, "goal", plan_goal_name(j->spec.goal));
    job_event(t, j, EV_JOB_SUBMITTED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    job_txn_plan(t, j, p);
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

static void refuse(struct submission *s, const struct err *e)
{
    struct jobs *js = s->js;
    const struct job *j = s->j;
    const struct policy *pol = js->cfg.policy(js->cfg.policy_ctx, j->principal);
    struct store_txn *t = NULL;
    audit_rejected(js, j, e);
    if (pol && pol->has_quota && job_total_bytes(j) > pol->quota_bytes && (t = store_txn_new())) {
        struct event_meta m = {0};
        event_meta_u64(&m, "bytes", job_total_bytes(j));
        event_meta_u64(&m, "used", quota_charged(js->quota, j->principal, ""));
        event_meta_u64(&m, "quota", pol->quota_bytes);
        job_event(t, j, EV_SECURITY_QUOTA_EXCEEDED, EVENT_DENIED, NULL, event_meta_text(&m), e->text);
        event_meta_fini(&m);
        if (jobs_store(js, t, NULL, NULL) < 0)
            LOG_E(js->cfg.log, "jobs", "denial not recorded principal=%s", j->principal);
    }
    submission_end(s, NULL, e);
}

/* It does not fit. Would it ever; does anybody have to make room? */
static void no_room(struct submission *s, const struct err *e)
{
    if (s->stage == PLAN_NOW)
        s->why = *e;
    if (s->kind == SUB_NEW && s->stage == PLAN_NOW)
        s->stage = PLAN_WHOLE;
    else if (s->kind == SUB_QUEUED && s->stage == PLAN_NOW && queue_wants_preempt(s))
        s->stage = PLAN_PREEMPT;
    else if (s->kind == SUB_QUEUED) {
        queue_ended(s, &s->why);
        return;
    } else {
        refuse(s, e);
        return;
    }
    submission_plan(s);
}

static int not_taken(const struct submission *s, int fits, const struct quota_refusal *why, struct err *e)
{
    if (fits == ST_ERESOURCE)
        return job_quota_refused(s->j, why, e);
    if (fits == ST_EAGAIN)
        return err_reason(e, ST_ECONFLICT, "BUSY",
                          "other jobs took the memory of %u plans in a row: submit it again", s->tries);
    return err_set(e, fits, "no room to count the job's memory: %s", status_name(fits));
}

static void new_planned(struct submission *s, const struct plan *p)
{
    struct err e = {0};
    struct job *j = s->j;
    int rc = job_take_plan(j, p, &e);
    bool whole = s->stage == PLAN_WHOLE;
    if (rc == ST_OK && whole) {
        j->state = JOB_QUEUED;
        str_copy(j->reason, sizeof j->reason, s->why.text);
    }
    if (rc == ST_OK && !whole && !s->dry_run) {
        struct quota_refusal why = {0};
        int fits = job_still_fits(j, &why);
        bool waits = fits == ST_ERESOURCE && why.asked <= why.limit;
        if (job_plan_again(fits, &why) && ++s->tries < MAX_TRIES) {
            submission_plan(s);
            return;
        }
        if (waits) { /* its owner holds too much there just now */
            job_quota_why(j, &why, &e);
            no_room(s, &e);
            return;
        }
        rc = fits < 0 ? not_taken(s, fits, &why, &e) : ST_OK;
    }
    if (rc < 0)
        refuse(s, &e);
    else if (s->dry_run)
        submission_end(s, j, NULL);
    else if (whole)
        queue_store(s);
    else
        reserve(s, p);
}

static void planned(void *arg, int rc, const struct err *e, struct plan *p)
{
    struct submission *s = arg;
    struct err own = *e;
    if (rc == ST_EINFEASIBLE && p && p->has_shortfall)
        err_reason(&own, rc, "INFEASIBLE", "no plan fits: %s, short of %llu bytes at %s. %s",
                   plan_shortfall_name(p->shortfall.kind), (unsigned long long)p->shortfall.bytes,
                   p->shortfall.where ? p->shortfall.where : "the cluster",
                   p->shortfall.hint ? p->shortfall.hint : "");
    if (s->kind == SUB_HEAL || s->kind == SUB_MOVE)
        replan_planned(s, rc, &own, p);
    else if (rc == ST_EINFEASIBLE)
        no_room(s, &own);
    else if (s->kind == SUB_QUEUED && rc < 0)
        queue_ended(s, &own);
    else if (s->kind == SUB_QUEUED && s->stage == PLAN_PREEMPT)
        queue_preempt(s, p);
    else if (s->kind == SUB_QUEUED)
        queue_admit(s, p);
    else if (rc < 0)
        refuse(s, &own);
    else
        new_planned(s, p);
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

static struct found *same_model(struct submission *s)
{
    for (size_t i = 0; i < s->nfound; i++)
        if (!memcmp(s->found[i].header, s->j->header_sha256, 32))
            return &s->found[i];
    return NULL;
}

/* A new job takes the version that most nodes have; one that exists only its own. */
static int take_found(struct submission *s, struct err *e)
{
    struct job *j = s->j;
    struct found *f = s->kind == SUB_NEW ? &s->found[0] : same_model(s);
    if (!f)
        return err_reason(
            e, ST_ECONFLICT, "MODEL_CHANGED",
            "the model %s is no longer what was submitted, on every node that has it: put the old file "
            "back, or cancel the job",
            j->spec.path);
    for (size_t i = 0; s->kind == SUB_NEW && i < s->nfound; i++)
        if (s->found[i].nnodes > f->nnodes)
            f = &s->found[i];
    for (size_t i = 0; i < j->nsources; i++)
        free(j->sources[i]);
    free(j->sources);
    j->sources = f->nodes;
    j->nsources = f->nnodes;
    f->nodes = NULL;
    f->nnodes = 0;
    s->model = f;
    if (s->kind != SUB_NEW)
        return ST_OK;
    memcpy(j->header_sha256, f->header, 32);
    j->nfiles = f->nfiles;
    j->layers = f->layers;
    j->nlayers = f->nlayers;
    f->layers = NULL;
    f->nlayers = 0;
    return ST_OK;
}

/* What its owner may still hold; with `whole`, all that he ever may. */
static double quota_left(const struct submission *s, const struct policy *pol)
{
    uint64_t used = s->stage == PLAN_WHOLE ? 0 : quota_charged(s->js->quota, s->j->principal, "");
    for (const struct job *j = s->js->head; j && s->stage == PLAN_PREEMPT; j = j->next)
        if (j->victim && !strcmp(j->principal, s->j->principal)) {
            uint64_t held = job_held_bytes(j);
            used -= held < used ? held : used;
        }
    return used < pol->quota_bytes ? (double)(pol->quota_bytes - used) : 0;
}

static int make_problem(struct submission *s, struct cluster **c, struct model **m, struct request **r,
                        struct err *e)
{
    struct job *j = s->j;
    const struct policy *pol = s->js->cfg.policy(s->js->cfg.policy_ctx, j->principal);
    bool replan = s->kind == SUB_HEAL || s->kind == SUB_MOVE;
    const struct snapshot_opts o = {.policy = pol,
                                    .whole = s->stage == PLAN_WHOLE,
                                    .victims = s->stage == PLAN_PREEMPT,
                                    .stay = s->kind == SUB_HEAL,
                                    .own = replan ? j : NULL};
    int rc = snapshot_build(s->js, &o, c, e);
    if (rc < 0)
        return rc;
    if ((rc = model_read_json(s->model->model_json, strlen(s->model->model_json), j->spec.path, m, e)) < 0)
        return rc;
    if (make_request(&j->spec, r) < 0)
        return err_set(e, ST_ENOMEM, "no memory for the request");
    if (replan) /* its bytes are its own already */
        return replan_request(s, *m, *c, *r, e);
    if (pol && pol->has_quota)
        (*r)->max_total_bytes = quota_left(s, pol);
    return ST_OK;
}

void submission_plan(struct submission *s)
{
    struct jobs *js = s->js;
    struct job *j = s->j;
    struct err e = {0};
    struct cluster *c = NULL;
    struct model *m = NULL;
    struct request *r = NULL;
    int rc = js->stopping ? err_set(&e, ST_ECLOSED, "the coordinator stops") : ST_OK;
    if (rc == ST_OK && !s->model)
        rc = take_found(s, &e);
    if (rc == ST_OK)
        rc = make_problem(s, &c, &m, &r, &e);
    if (rc == ST_OK) {
        str_copy(j->name, sizeof j->name, m->name);
        rc = jobs_plan(js, c, m, r, j->spec.goal, planned, s);
        if (rc == ST_OK)
            return;
        err_set(&e, rc, "no memory for the planner");
    } else {
        cluster_free(c);
        model_free(m);
        if (r)
            request_fini(r);
        free(r);
    }
    planned(s, rc, &e, NULL);
}
