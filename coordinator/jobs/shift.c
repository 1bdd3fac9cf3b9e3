/*
 * Layers that move while they serve: copy, verify, switch, free. The switch is one transaction with its audit
 * event; until it is on disk the old copy is the job's layer, and a failure before that leaves everything as
 * it was. What has switched stays switched.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

static struct topo_node *node_of(const struct job *j, const char *device)
{
    char name[64];
    const char *slash = strchr(device, '/');
    if (!slash || (size_t)(slash - device) >= sizeof name)
        return NULL;
    memcpy(name, device, (size_t)(slash - device));
    name[slash - device] = 0;
    return topo_node(j->jobs->cfg.topo, name);
}

struct job_shift *shift_new(struct job *j, struct job_layer *l, const char *to)
{
    struct job_shift *h = calloc(1, sizeof *h);
    if (!h || !(h->copy.device = strdup(to))) {
        free(h);
        return NULL;
    }
    h->j = j;
    h->l = l;
    h->copy.id = l->id;
    h->copy.pieces = l->pieces;
    h->copy.npieces = l->npieces;
    h->copy.bytes = l->bytes;
    h->copy.mem = l->mem;
    h->copy.has_sha = l->has_sha;
    memcpy(h->copy.sha256, l->sha256, 32);
    struct job_shift **at = &j->shifts;
    while (*at)
        at = &(*at)->next;
    *at = h;
    return h;
}

static void shift_end(struct job_shift *h)
{
    for (struct job_shift **at = &h->j->shifts; *at; at = &(*at)->next)
        if (*at == h) {
            *at = h->next;
            break;
        }
    free(h->copy.device);
    free(h);
}

void shifts_free(struct job *j)
{
    while (j->shifts)
        shift_end(j->shifts);
}

/* ---- free ---- */

/* One copy must go: the old one after a switch, or the new one of a move that was given up. */
static void on_freed(void *arg, int rc, const struct err *e)
{
    struct job_shift *h = arg;
    struct job *j = h->j;
    struct topo_node *n = node_of(j, h->old);
    h->asked = false;
    j->releases--;
    if (rc < 0 && rc != ST_ENOENT && node_reachable(n) && j->state != JOB_RELEASING) {
        LOG_W(j->jobs->cfg.log, "jobs", "copy not freed job=%s layer=%s device=%s error=%s; asked again",
              j->id, h->l->id, h->old, e->text);
        j->stalled = true; /* the next tick asks again */
        return;
    }
    shift_end(h); /* an agent that is away drops it when it is back */
    job_recount(j);
    job_pump(j);
}

static void ask_free(struct job_shift *h)
{
    struct job *j = h->j;
    struct topo_node *n = node_of(j, h->old);
    if (h->asked)
        return;
    if (!node_reachable(n)) {
        shift_end(h);
        job_recount(j);
        return;
    }
    if (j->jobs->cfg.agents->release(j->jobs->cfg.agents_ctx, n, j->id, h->l->id, h->old, on_freed, h) < 0) {
        j->stalled = true;
        return;
    }
    h->asked = true;
    j->releases++;
}

static void drop(struct job_shift *h)
{
    if (h->state == SHIFT_COPY && h->copy.call) {
        h->j->jobs->cfg.agents->cancel(h->j->jobs->cfg.agents_ctx, h->copy.call);
        return; /* its end comes here again */
    }
    if (h->state == SHIFT_COPY && h->copy.state == LAYER_PLANNED) {
        shift_end(h);
        return;
    }
    h->state = SHIFT_FREE;
    str_copy(h->old, sizeof h->old, h->copy.device);
}

void shifts_abort(struct job *j)
{
    bool any = j->shifts;
    for (struct job_shift *h = j->shifts, *next; h; h = next) {
        next = h->next;
        if (h->state == SHIFT_COPY)
            drop(h);
    }
    if (any)
        job_recount(j);
}

/* ---- switch ---- */

static void switched(void *arg, int rc, const struct err *e)
{
    struct job_shift *h = arg;
    struct job *j = h->j;
    struct job_layer *l = h->l;
    if (rc < 0) {
        LOG_E(j->jobs->cfg.log, "jobs", "switch refused job=%s layer=%s error=%s", j->id, l->id, e->text);
        j->move_failed++;
        h->state = SHIFT_FREE;
        str_copy(h->old, sizeof h->old, h->copy.device);
    } else {
        str_copy(h->old, sizeof h->old, l->device);
        char *was = l->device;
        l->device = h->copy.device;
        h->copy.device = was;
        l->state = h->lost ? LAYER_LOST : LAYER_VERIFIED;
        l->loaded = l->bytes;
        str_copy(l->source, sizeof l->source, h->peer[0] ? h->peer : "file");
        h->state = SHIFT_FREE;
        j->moved++;
        j->want_degrade |= h->lost;
        LOG_I(j->jobs->cfg.log, "jobs", "moved job=%s layer=%s from=%s to=%s", j->id, l->id, h->old,
              l->device);
    }
    job_recount(j);
    job_changed(j);
    job_pump(j);
}

static void start_switch(struct job_shift *h)
{
    struct job *j = h->j;
    struct store_txn *t = store_txn_new();
    struct err e;
    h->state = SHIFT_SWITCH;
    if (t) {
        struct event_meta m = {0};
        store_txn_layer_delete(t, j->id, h->l->id, h->l->device);
        job_store_layer(t, j, &h->copy);
        event_meta_str(&m, "layer", h->l->id);
        event_meta_str(&m, "from", h->l->device);
        event_meta_str(&m, "to", h->copy.device);
        event_meta_u64(&m, "bytes", h->l->bytes);
        event_meta_u64(&m, "us", (clock_ns(j->jobs->cfg.clock) - h->started_ns) / NS_PER_US);
        job_event(t, j, EV_LAYER_MIGRATED, EVENT_SUCCESS, h->copy.device, event_meta_text(&m), NULL);
        event_meta_fini(&m);
    }
    int rc = t ? jobs_store(j->jobs, t, switched, h) : ST_ENOMEM;
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take it: %s", status_name(rc));
        switched(h, rc, &e);
    }
}

/* ---- copy ---- */

static void copy_failed(struct job_shift *h, const struct err *e)
{
    struct job *j = h->j;
    job_layer_state(h->j->jobs, &h->copy, LAYER_LOST);
    if (e->code == ST_ECANCELED) {
        h->state = SHIFT_FREE; /* asked for by us; whatever arrived goes */
        str_copy(h->old, sizeof h->old, h->copy.device);
        return;
    }
    j->move_failed++;
    snprintf(j->reason, sizeof j->reason, "layer %s was not moved to %s: %.240s", h->l->id, h->copy.device,
             e->text);
    LOG_W(j->jobs->cfg.log, "jobs", "not moved job=%s layer=%s to=%s error=%s", j->id, h->l->id,
          h->copy.device, e->text);
    struct store_txn *t = store_txn_new();
    if (t) {
        struct event_meta m = {0};
        event_meta_str(&m, "layer", h->l->id);
        event_meta_str(&m, "reason", e->reason[0] ? e->reason : status_name(e->code));
        job_event(t, j, EV_LAYER_FAILED, EVENT_FAILURE, h->copy.device, event_meta_text(&m), e->text);
        event_meta_fini(&m);
        if (jobs_store(j->jobs, t, NULL, NULL) < 0)
            LOG_E(j->jobs->cfg.log, "jobs", "failed move not recorded job=%s", j->id);
    }
    h->state = SHIFT_FREE;
    str_copy(h->old, sizeof h->old, h->copy.device);
}

static void on_copy(void *arg, const struct jobs_load_event *ev)
{
    struct job_shift *h = arg;
    struct job *j = h->j;
    struct err e;
    h->copy.loaded = ev->loaded;
    if (!ev->done) {
        job_changed(j);
        return;
    }
    j->loads--;
    h->copy.call = NULL;
    int rc = ev->rc;
    if (rc == ST_OK)
        rc = layer_digests(&h->copy, ev, &e);
    else
        e = *ev->e;
    if (rc < 0) {
        copy_failed(h, &e);
    } else {
        job_layer_state(h->j->jobs, &h->copy, LAYER_VERIFIED);
        if (j->state == JOB_MIGRATING && !j->moving && h->l->state == LAYER_VERIFIED && !j->jobs->stopping)
            start_switch(h);
        else
            drop(h); /* it was given up meanwhile */
    }
    job_changed(j);
    job_pump(j);
}

static void start_copy(struct job_shift *h)
{
    struct job *j = h->j;
    struct topo_node *n = node_of(j, h->copy.device), *peer = NULL;
    struct err e;
    unsigned busy = 0;
    for (const struct job_shift *o = j->shifts; o; o = o->next)
        busy += o->state == SHIFT_COPY && o->copy.call && node_of(j, o->copy.device) == n;
    if (busy >= LOADS_PER_NODE)
        return;
    int rc = ST_EUNREACH;
    if (node_reachable(n) && layer_source(j, h->l, n, &peer)) {
        h->started_ns = clock_ns(j->jobs->cfg.clock);
        str_copy(h->peer, sizeof h->peer, peer ? peer->name : "");
        rc = j->jobs->cfg.agents->load(j->jobs->cfg.agents_ctx, n, j, &h->copy, peer, on_copy, h,
                                       &h->copy.call);
    }
    if (rc < 0) {
        err_set(&e, rc, "%s, or a node that has the model file, is not reachable", h->copy.device);
        copy_failed(h, &e);
        return;
    }
    j->loads++;
    job_layer_state(h->j->jobs, &h->copy, LAYER_LOADING);
}

void shifts_pump(struct job *j)
{
    for (struct job_shift *h = j->shifts, *next; h; h = next) {
        next = h->next;
        if (h->state == SHIFT_COPY && h->copy.state == LAYER_PLANNED && j->state == JOB_MIGRATING &&
            !j->moving)
            start_copy(h);
    }
    for (struct job_shift *h = j->shifts, *next; h; h = next) {
        next = h->next;
        if (h->state == SHIFT_FREE)
            ask_free(h);
    }
}

/* ---- what happens to nodes meanwhile ---- */

static bool on_node(const char *device, const struct topo_node *n)
{
    size_t len = strlen(n->name);
    return !strncmp(device, n->name, len) && device[len] == '/';
}

void shift_node_lost(struct job *j, const struct topo_node *n)
{
    for (struct job_shift *h = j->shifts; h; h = h->next)
        if (h->state == SHIFT_SWITCH && on_node(h->copy.device, n))
            h->lost = true;
}

void shift_reconcile(struct job *j, const struct topo_node *n, struct jobs_resident *r, size_t nr)
{
    for (struct job_shift *h = j->shifts; h; h = h->next) {
        if (!on_node(h->copy.device, n) || (h->state != SHIFT_SWITCH && !h->copy.call))
            continue;
        bool there = false;
        for (size_t k = 0; k < nr; k++)
            if (!strcmp(r[k].job, j->id) && !strcmp(r[k].layer, h->l->id) &&
                !strcmp(r[k].device, h->copy.device + strlen(n->name) + 1)) {
                r[k].drop = false;
                there = true;
            }
        h->lost |= h->state == SHIFT_SWITCH && !there;
    }
}

/* ---- asked for ---- */

struct moving {
    struct job *j;
    jobs_call_fn fn;
    void *arg;
};

static void begun(void *arg, int rc, const struct err *e)
{
    struct moving *m = arg;
    struct job *j = m->j;
    j->moving = false;
    if (rc < 0) {
        shifts_abort(j);
        job_recount(j);
    } else {
        j->state = JOB_MIGRATING;
        j->updated_us = jobs_now(j->jobs);
        j->reason_code[0] = 0;
        job_changed(j);
    }
    m->fn(m->arg, rc, e);
    free(m);
    job_pump(j);
}

static int check_target(struct job *j, const char *to, uint64_t need, struct err *e)
{
    struct topo_node *n = NULL;
    struct topo_device *d = topo_device(j->jobs->cfg.topo, to, &n);
    if (!d)
        return err_reason(e, ST_ENOENT, "NO_DEVICE", "there is no device %s: see strata gpu list", to);
    if (!node_reachable(n) || n->state != TOPO_CONNECTED)
        return err_reason(e, ST_EUNREACH, "NODE_AWAY", "node %s is not connected", n->name);
    if (n->draining)
        return err_reason(e, ST_ECONFLICT, "NODE_DRAINED",
                          "node %s is being drained: strata node resume %s first", n->name, n->name);
    if (need > topo_free_bytes(d))
        return err_reason(e, ST_ERESOURCE, "NO_ROOM", "the layers need %llu bytes on %s, which has %llu free",
                          (unsigned long long)need, to, (unsigned long long)topo_free_bytes(d));
    return ST_OK;
}

static int find_range(struct job *j, const char *first, const char *last, size_t *a, size_t *b, struct err *e)
{
    *a = *b = j->nlayers;
    for (size_t i = 0; i < j->nlayers; i++) {
        if (!strcmp(j->layers[i].id, first))
            *a = i;
        if (!strcmp(j->layers[i].id, *last ? last : first))
            *b = i;
    }
    if (*a == j->nlayers || *b == j->nlayers)
        return err_reason(e, ST_ENOENT, "NO_LAYER",
                          "job %s has no layer '%.80s': strata layer where %s shows them", j->id,
                          *a == j->nlayers ? first : last, j->id);
    return *b < *a ? err_reason(e, ST_EINVAL, "RANGE", "layer %s comes before %s", last, first) : ST_OK;
}

/* What is on a drained node has to go: its owner's quota for a device or node does not keep it there. */
static int check_quota(struct job *j, size_t a, size_t b, const char *to, struct err *e)
{
    struct quota_refusal why = {0};
    uint64_t bytes = 0;
    for (size_t i = a; i <= b; i++) {
        struct topo_node *n = layer_node(j, &j->layers[i]);
        if (strcmp(j->layers[i].device, to) != 0 && !(n && n->draining))
            bytes += j->layers[i].mem;
    }
    return job_may_lie(j, to, bytes, &why) ? ST_OK : job_quota_why(j, &why, e);
}

static int plan_shifts(struct job *j, const char *first, const char *last, const char *to, unsigned *n,
                       struct err *e)
{
    size_t a, b;
    uint64_t need = 0;
    int rc = find_range(j, first, last, &a, &b, e);
    if (rc < 0)
        return rc;
    for (size_t i = a; i <= b; i++)
        need += strcmp(j->layers[i].device, to) ? j->layers[i].mem : 0;
    if (need && ((rc = check_target(j, to, need, e)) < 0 || (rc = check_quota(j, a, b, to, e)) < 0))
        return rc;
    *n = 0;
    for (size_t i = a; i <= b && rc == ST_OK; i++) {
        if (!strcmp(j->layers[i].device, to))
            continue;
        if (!shift_new(j, &j->layers[i], to))
            rc = err_set(e, ST_ENOMEM, "no memory to move job %s", j->id);
        ++*n;
    }
    if (rc == ST_OK && !*n)
        rc = err_reason(e, ST_ECONFLICT, "ALREADY_THERE", "the layers are on %s already", to);
    if (rc < 0)
        shifts_abort(j);
    return rc;
}

void jobs_move(struct jobs *js, struct job *j, const char *first, const char *last, const char *to,
               const char *principal, jobs_call_fn fn, void *arg)
{
    struct err e = {0};
    unsigned n = 0;
    int rc = ST_OK;
    if (j->state == JOB_MIGRATING || (j->state == JOB_READY && j->shifts))
        rc = err_reason(&e, ST_ECONFLICT, "MOVING",
                        "layers of job %s are being moved already: wait for that to end", j->id);
    else if (j->state != JOB_READY || j->moving)
        rc = err_reason(&e, ST_ECONFLICT, "NOT_READY", "job %s is %s: only a ready job's layers are moved",
                        j->id, job_state_name(j->state));
    if (rc == ST_OK)
        rc = plan_shifts(j, first, last, to, &n, &e);
    struct moving *m = rc == ST_OK ? malloc(sizeof *m) : NULL;
    struct store_txn *t = m ? store_txn_new() : NULL;
    if (!t) {
        if (rc == ST_OK) {
            rc = err_set(&e, ST_ENOMEM, "no memory to move job %s", j->id);
            shifts_abort(j);
        }
        free(m);
        fn(arg, rc, &e);
        return;
    }
    *m = (struct moving){j, fn, arg};
    j->moved = j->move_failed = 0;
    snprintf(j->reason, sizeof j->reason, "%u layers move to %s", n, to);
    store_txn_job_state(t, j->id, JOB_READY, JOB_MIGRATING, j->reason, NULL, jobs_now(js));
    struct audit_event ev = event_make(EV_JOB_MIGRATING, EVENT_SUCCESS, jobs_now(js));
    struct event_meta meta = {0};
    event_meta_u64(&meta, "layers", n);
    event_meta_str(&meta, "reason", j->reason);
    ev.principal = principal; /* who asked, who need not be the owner */
    ev.job = j->id;
    ev.device = to;
    ev.operation = "layer.move";
    ev.meta = event_meta_text(&meta);
    store_txn_event(t, &ev);
    event_meta_fini(&meta);
    j->moving = true;
    job_recount(j); /* room on the target counts from here on */
    rc = jobs_store(js, t, begun, m);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take it now (%s): try again", status_name(rc));
        begun(m, rc, &e);
    }
}
