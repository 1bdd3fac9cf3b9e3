/*
 * The first half of a submission: rights, and inspection of the file on every node. admit.c plans what was
 * found and reserves it. A submission that fails on the way leaves nothing behind but its audit row.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

static void found_free(struct found *f)
{
    free(f->model_json);
    job_layers_free(f->layers, f->nlayers);
    for (size_t i = 0; i < f->nnodes; i++)
        free(f->nodes[i]);
    free(f->nodes);
}

void submission_end(struct submission *s, const struct job *j, const struct err *e)
{
    s->fn(s->arg, j, e);
    asked_end(s->js, s->asked, j, e);
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
    int rc = jobs_store(js, t, NULL, NULL);
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
        l->bytes = l->mem = m->layers[i].bytes;
        l->device = strdup("");
        l->npieces = m->layers[i].npieces;
        l->pieces = malloc((l->npieces + 1) * sizeof *l->pieces);
        if (!l->id || !l->device || !l->pieces)
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
        submission_plan(s);
        return;
    }
    struct err out = s->last;
    if (out.code == ST_ENOENT)
        err_set(&out, ST_ENOENT, "no connected agent has the model %s: put it under one of their models.dirs",
                s->j->spec.path);
    submission_end(s, NULL, &out);
}

void jobs_submit(struct jobs *js, const struct job_spec *spec, const char *principal, const char *request_id,
                 bool dry_run, jobs_submit_fn fn, void *arg)
{
    struct err e;
    struct asked *asked;
    int rc = asked_begin(js, principal, dry_run ? NULL : request_id, spec, fn, arg, &asked, &e);
    if (rc < 0)
        fn(arg, NULL, &e);
    if (rc)
        return;
    struct submission *s = calloc(1, sizeof *s);
    struct job *j = s ? job_new(js) : NULL;
    if (!j || job_spec_copy(&j->spec, spec) < 0) {
        free(j);
        free(s);
        err_set(&e, ST_ENOMEM, "no memory for the job");
        fn(arg, NULL, &e);
        asked_end(js, asked, NULL, &e);
        return;
    }
    *s = (struct submission){.js = js, .j = j, .dry_run = dry_run, .asked = asked, .fn = fn, .arg = arg};
    str_copy(j->principal, sizeof j->principal, principal);
    if (check_rights(js, principal, js->cfg.policy(js->cfg.policy_ctx, principal), &e) < 0) {
        submission_end(s, NULL, &e);
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
        submission_end(s, NULL, &e);
        return;
    }
    s->waiting--;
}
