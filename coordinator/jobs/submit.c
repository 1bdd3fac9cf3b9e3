/*
 * From a request to a durable reservation: rights, inspection of the file on every node, plan, one
 * transaction. A submission that fails on the way leaves nothing behind but its audit row.
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

struct found { /* one version of the model, and who has it */
    uint8_t header[32];
    char *model_json;
    unsigned nfiles;
    struct job_layer *layers;
    size_t nlayers;
    char **nodes;
    size_t nnodes;
};
struct submission {
    struct jobs *js;
    struct job *j; /* not yet in the list */
    bool dry_run;
    jobs_submit_fn fn;
    void *arg;
    unsigned waiting;
    struct found *found;
    size_t nfound;
    struct err last; /* what the last node without the file said */
};

static void found_free(struct found *f)
{
    free(f->model_json);
    job_layers_free(f->layers, f->nlayers);
    for (size_t i = 0; i < f->nnodes; i++)
        free(f->nodes[i]);
    free(f->nodes);
}

/* Answers and ends; `j` NULL on failure. */
static void finish(struct submission *s, const struct job *j, const struct err *e)
{
    s->fn(s->arg, j, e);
    if (!j || s->dry_run)
        job_free(s->j);
    for (size_t i = 0; i < s->nfound; i++)
        found_free(&s->found[i]);
    free(s->found);
    free(s);
}

static void audit_denied(struct jobs *js, const char *principal, const struct decision *d,
                         const char *permission, const struct err *e)
{
    struct store_txn *t = store_txn_new();
    if (!t)
        return;
    struct audit_event ev = event_make(EV_SECURITY_ACCESS_DENIED, EVENT_DENIED, jobs_now(js));
    struct event_meta m = {0};
    event_meta_str(&m, "reason", access_reason_name(d->reason));
    event_meta_str(&m, "permission", permission);
    event_meta_str(&m, "rule", access_rule_text(d));
    ev.principal = principal;
    ev.operation = "job.submit";
    ev.error = e->text;
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
    int rc = store_submit(js->cfg.store, t, NULL, NULL);
    if (rc < 0)
        LOG_E(js->cfg.log, "jobs", "denial not recorded principal=%s error=%s", principal, status_name(rc));
}

static int check_rights(struct jobs *js, const char *principal, const struct policy *p, struct err *e)
{
    static const enum permission need[] = {PERM_MEMORY_ALLOCATE, PERM_MEMORY_COPY_TO_DEVICE};
    for (unsigned i = 0; i < 2; i++) {
        const struct access_request rq = {.permission = need[i], .now_us = jobs_now(js)};
        struct decision d = access_check(p, &rq);
        if (d.allowed)
            continue;
        int rc = access_explain(&d, p, &rq, e);
        audit_denied(js, principal, &d, permission_name(need[i]), e);
        return rc;
    }
    return ST_OK;
}

/* ---- what the nodes have ---- */

static int copy_layers(struct found *f, const struct jobs_model *m)
{
    f->layers = calloc(m->nlayers + 1, sizeof *f->layers);
    if (!f->layers)
        return ST_ENOMEM;
    for (size_t i = 0; i < m->nlayers; i++) {
        struct job_layer *l = &f->layers[i];
        f->nlayers++;
        l->id = strdup(m->layers[i].id);
        l->bytes = m->layers[i].bytes;
        l->npieces = m->layers[i].npieces;
        l->pieces = malloc((l->npieces + 1) * sizeof *l->pieces);
        if (!l->id || !l->pieces)
            return ST_ENOMEM;
        if (l->npieces)
            memcpy(l->pieces, m->layers[i].pieces, l->npieces * sizeof *l->pieces);
    }
    return ST_OK;
}

static int note_found(struct submission *s, const char *node, const struct jobs_model *m)
{
    struct found *f = NULL;
    for (size_t i = 0; i < s->nfound; i++)
        if (!memcmp(s->found[i].header, m->header_sha256, 32))
            f = &s->found[i];
    if (!f) {
        struct found *v = realloc(s->found, (s->nfound + 1) * sizeof *v);
        if (!v)
            return ST_ENOMEM;
        s->found = v;
        f = &v[s->nfound++];
        *f = (struct found){.nfiles = m->nfiles};
        memcpy(f->header, m->header_sha256, 32);
        f->model_json = strdup(m->model_json);
        if (!f->model_json || copy_layers(f, m) < 0)
            return ST_ENOMEM;
    }
    char **nodes = realloc(f->nodes, (f->nnodes + 1) * sizeof(*nodes));
    if (!nodes)
        return ST_ENOMEM;
    f->nodes = nodes;
    if (!(nodes[f->nnodes] = strdup(node)))
        return ST_ENOMEM;
    f->nnodes++;
    return ST_OK;
}

/* ---- plan and reserve ---- */

static const struct plan_placement *placement_of(const struct plan *p, const char *layer)
{
    for (size_t i = 0; i < p->n_placements; i++)
        if (!strcmp(p->placements[i].layer, layer))
            return &p->placements[i];
    return NULL;
}

static int take_plan(struct job *j, const struct plan *p, struct err *e)
{
    struct buf b = {0};
    int rc = plan_to_json(p, &b);
    if (rc == ST_OK && !(j->plan_json = strdup(buf_cstr(&b))))
        rc = ST_ENOMEM;
    buf_fini(&b);
    for (size_t i = 0; i < j->nlayers && rc == ST_OK; i++) {
        const struct plan_placement *pl = placement_of(p, j->layers[i].id);
        if (!pl)
            return err_set(e, ST_EINTERNAL, "the plan leaves out layer %s", j->layers[i].id);
        if (!(j->layers[i].device = strdup(pl->device)))
            rc = ST_ENOMEM;
    }
    return rc < 0 ? err_set(e, rc, "no memory for the plan") : ST_OK;
}

static void reserved(void *arg, int rc, const struct err *e)
{
    struct submission *s = arg;
    struct jobs *js = s->js;
    if (rc < 0) {
        job_account_resident(js);
        finish(s, NULL, e);
        return;
    }
    struct job *j = s->j;
    j->next = js->head;
    js->head = j;
    j->state = JOB_RESERVED;
    job_account_resident(js);
    LOG_I(js->cfg.log, "jobs", "job=%s principal=%s model=%s reserved layers=%zu", j->id, j->principal,
          j->name, j->nlayers);
    finish(s, j, NULL);
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
        finish(s, NULL, &e);
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
    int rc = store_submit(s->js->cfg.store, t, reserved, s);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take the job now (%s): try again", status_name(rc));
        reserved(s, rc, &e);
    }
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
    if (rc < 0) {
        struct audit_event ev = event_make(EV_PLAN_REJECTED, EVENT_FAILURE, jobs_now(s->js));
        struct event_meta m = {0};
        event_meta_str(&m, "reason", own.text);
        ev.principal = s->j->principal;
        ev.operation = "job.submit";
        ev.meta = event_meta_text(&m);
        if (audit_emit(s->js->cfg.audit, &ev) < 0)
            LOG_W(s->js->cfg.log, "jobs", "plan rejection not audited: the ring is full");
        event_meta_fini(&m);
        finish(s, NULL, &own);
    } else if (s->dry_run) {
        finish(s, s->j, NULL);
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

static int make_request(const struct job_spec *sp, const struct policy *pol, struct request **out)
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
    if (pol && pol->has_quota)
        r->max_total_bytes = (double)pol->quota_bytes;
    *out = r;
    return ST_OK;
}

static uint64_t used_bytes(struct jobs *js, const char *principal)
{
    uint64_t n = 0;
    for (struct job *j = js->head; j; j = j->next)
        if (!job_ended(j->state) && !strcmp(j->principal, principal))
            n += job_total_bytes(j);
    return n;
}

static void start_plan(struct submission *s)
{
    struct jobs *js = s->js;
    struct found *f = &s->found[0];
    struct err e;
    for (size_t i = 1; i < s->nfound; i++)
        if (s->found[i].nnodes > f->nnodes)
            f = &s->found[i];
    const struct policy *pol = js->cfg.policy(js->cfg.policy_ctx, s->j->principal);
    struct cluster *c = NULL;
    struct model *m = NULL;
    struct request *r = NULL;
    int rc = jobs_snapshot(js, pol, &c, &e);
    if (rc == ST_OK &&
        (rc = model_read_json(f->model_json, strlen(f->model_json), s->j->spec.path, &m, &e)) == ST_OK)
        rc = make_request(&s->j->spec, pol, &r) < 0 ? err_set(&e, ST_ENOMEM, "no memory for the request")
                                                    : ST_OK;
    if (rc < 0) {
        cluster_free(c);
        model_free(m);
        finish(s, NULL, &e);
        return;
    }
    if (pol && pol->has_quota) {
        uint64_t used = used_bytes(js, s->j->principal);
        r->max_total_bytes = used < pol->quota_bytes ? (double)(pol->quota_bytes - used) : 0;
    }
    struct job *j = s->j;
    str_copy(j->name, sizeof j->name, m->name);
    memcpy(j->header_sha256, f->header, 32);
    j->nfiles = f->nfiles;
    j->layers = f->layers;
    j->nlayers = f->nlayers;
    j->sources = f->nodes;
    j->nsources = f->nnodes;
    f->layers = NULL;
    f->nodes = NULL;
    f->nlayers = f->nnodes = 0;
    rc = planner_submit(js->planner, c, m, r, j->spec.goal, planned, s);
    if (rc < 0) {
        err_set(&e, rc, "no memory for the planner");
        finish(s, NULL, &e);
    }
}

static void inspected(void *arg, const char *node, int rc, const struct err *e, const struct jobs_model *m)
{
    struct submission *s = arg;
    if (rc == ST_OK && note_found(s, node, m) < 0)
        err_set(&s->last, ST_ENOMEM, "no memory for the model description");
    else if (rc < 0)
        s->last = *e;
    if (--s->waiting)
        return;
    if (s->nfound && s->last.code != ST_ENOMEM) {
        start_plan(s);
        return;
    }
    struct err out = s->last;
    if (out.code == ST_ENOENT)
        err_set(&out, ST_ENOENT, "no connected agent has the model %s: put it under one of their models.dirs",
                s->j->spec.path);
    finish(s, NULL, &out);
}

void jobs_submit(struct jobs *js, const struct job_spec *spec, const char *principal, bool dry_run,
                 jobs_submit_fn fn, void *arg)
{
    struct err e;
    struct submission *s = calloc(1, sizeof *s);
    struct job *j = s ? job_new(js) : NULL;
    if (!j || job_spec_copy(&j->spec, spec) < 0) {
        free(j);
        free(s);
        err_set(&e, ST_ENOMEM, "no memory for the job");
        fn(arg, NULL, &e);
        return;
    }
    *s = (struct submission){.js = js, .j = j, .dry_run = dry_run, .fn = fn, .arg = arg};
    str_copy(j->principal, sizeof j->principal, principal);
    if (check_rights(js, principal, js->cfg.policy(js->cfg.policy_ctx, principal), &e) < 0) {
        finish(s, NULL, &e);
        return;
    }
    s->waiting = 1; /* held until every node was asked */
    for (size_t i = 0; i < topo_count(js->cfg.topo); i++) {
        struct topo_node *n = topo_at(js->cfg.topo, i);
        if (n->state == TOPO_CONNECTED && n->user &&
            js->cfg.agents->inspect(js->cfg.agents_ctx, n, &j->spec, inspected, s) == ST_OK)
            s->waiting++;
    }
    if (s->waiting == 1) {
        err_reason(&e, ST_EUNREACH, "NO_AGENT", "no agent is connected: start one, or see strata node list");
        finish(s, NULL, &e);
        return;
    }
    s->waiting--;
}
