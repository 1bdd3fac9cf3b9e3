/*
 * A new plan for a job of which some layers must go elsewhere: those of a device or node that is gone, and
 * those on a node that is drained. Every other layer is pinned to where it is, so no byte moves that need
 * not.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/jobs/jobs_priv.h"

/* Whether the layer's device is gone for good, as far as leases can tell. */
static bool gone(const struct job *j, const struct job_layer *l)
{
    struct topo_node *n = NULL;
    char name[64];
    if (topo_device(j->jobs->cfg.topo, l->device, &n))
        return n->state == TOPO_LOST;
    const char *slash = strchr(l->device, '/');
    if (!slash || (size_t)(slash - l->device) >= sizeof name)
        return true;
    memcpy(name, l->device, (size_t)(slash - l->device));
    name[slash - l->device] = 0;
    n = topo_node(j->jobs->cfg.topo, name);
    /* One that is expected back after a restart of ours has not yet said what it has. */
    return !n || n->state != TOPO_SUSPECT;
}

static bool on_drained(const struct job *j, const struct job_layer *l)
{
    struct topo_node *n = NULL;
    return topo_device(j->jobs->cfg.topo, l->device, &n) && n->draining;
}

static bool must_move(const struct submission *s, const struct job_layer *l)
{
    return s->kind == SUB_HEAL ? l->state != LAYER_VERIFIED && (gone(s->j, l) || on_drained(s->j, l))
                               : on_drained(s->j, l);
}

int replan_request(struct submission *s, const struct model *m, const struct cluster *c, struct request *r,
                   struct err *e)
{
    const struct job *j = s->j;
    r->pins = calloc(j->nlayers + 1, sizeof *r->pins);
    if (!r->pins)
        return err_set(e, ST_ENOMEM, "no memory for the request");
    for (size_t i = 0; i < j->nlayers; i++) {
        if (must_move(s, &j->layers[i]))
            continue;
        uint32_t device = cluster_find_device(c, j->layers[i].device), at = 0;
        while (at < m->nlayers && strcmp(m->layers[at].id, j->layers[i].id))
            at++;
        if (device == UINT32_MAX || at == m->nlayers)
            return err_reason(e, ST_EUNREACH, "NODE_AWAY", "%s, which holds layer %s, is away just now",
                              j->layers[i].device, j->layers[i].id);
        r->pins[r->npins++] = (struct request_pin){at, device};
    }
    return ST_OK;
}

/* ---- healing ---- */

void heal_run(struct job *j)
{
    bool need = false;
    if (j->sub || j->moving || j->loads || j->releases || j->shifts || j->tried == j->jobs->room + 1)
        return;
    for (size_t i = 0; i < j->nlayers; i++) {
        const struct job_layer *l = &j->layers[i];
        struct topo_node *n = layer_node(j, l);
        if (l->state != LAYER_VERIFIED && (gone(j, l) || on_drained(j, l)))
            need = true;
        else if (!node_reachable(n))
            return; /* it comes back, or its lease runs out: then there is more to say */
    }
    j->tried = j->jobs->room + 1;
    struct submission *s = need ? submission_of(j, SUB_HEAL) : NULL;
    if (s)
        submission_inspect(s);
}

struct healing {
    struct submission *s;
    char **old; /* devices, to go back to */
};

/* Back to where its layers were. */
static void go_back(struct healing *h)
{
    struct job *j = h->s->j;
    for (size_t i = 0; h->old && i < j->nlayers && h->old[i]; i++) {
        char *now = j->layers[i].device;
        j->layers[i].device = h->old[i];
        h->old[i] = now;
    }
}

static void healing_free(struct healing *h)
{
    for (size_t i = 0; h->old && i < h->s->j->nlayers; i++)
        free(h->old[i]);
    free(h->old);
    free(h);
}

/* A copy that is still there, though not trusted, goes once the new place is on disk. */
static void free_old(struct healing *h)
{
    struct job *j = h->s->j;
    for (size_t i = 0; i < j->nlayers; i++) {
        struct topo_node *n = NULL;
        if (!strcmp(h->old[i], j->layers[i].device) || !topo_device(j->jobs->cfg.topo, h->old[i], &n) ||
            !node_reachable(n))
            continue;
        struct job_shift *k = shift_new(j, &j->layers[i], h->old[i]);
        if (k) {
            k->state = SHIFT_FREE;
            str_copy(k->old, sizeof k->old, h->old[i]);
        }
    }
}

static void healed(void *arg, int rc, const struct err *e)
{
    struct healing *h = arg;
    struct submission *s = h->s;
    struct job *j = s->j;
    j->moving = false;
    if (rc < 0) {
        LOG_E(j->jobs->cfg.log, "jobs", "new places refused job=%s error=%s", j->id, e->text);
        go_back(h);
        j->stalled = true;
    } else {
        j->state = JOB_LOADING;
        str_copy(j->reason_code, sizeof j->reason_code, "HEALING");
        str_copy(j->reason, sizeof j->reason, "lost layers are loaded elsewhere");
        j->updated_us = jobs_now(j->jobs);
        LOG_I(j->jobs->cfg.log, "jobs", "job=%s from=degraded to=loading reason=HEALING", j->id);
        free_old(h);
    }
    healing_free(h);
    job_recount(j);
    submission_end(s, j, NULL);
    job_changed(j);
    job_pump(j);
}

static uint64_t reassign(struct healing *h, struct store_txn *t, size_t *n)
{
    struct job *j = h->s->j;
    uint64_t bytes = 0;
    *n = 0;
    for (size_t i = 0; i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        if (!strcmp(h->old[i], l->device))
            continue;
        store_txn_layer_delete(t, j->id, l->id, h->old[i]);
        l->state = LAYER_PLANNED;
        l->loaded = 0;
        l->attempts = 0;
        l->release_first = false;
        job_store_layer(t, j, l);
        bytes += l->bytes;
        ++*n;
    }
    return bytes;
}

static bool fits_with_own(const struct job *j)
{
    struct topo *topo = j->jobs->cfg.topo;
    for (size_t i = 0; i < topo_count(topo); i++) {
        struct topo_node *n = topo_at(topo, i);
        for (size_t k = 0; k < n->ndevices; k++)
            if (n->devices[k].reserved_bytes > n->devices[k].memory_bytes)
                return false;
    }
    return true;
}

static void take_heal(struct submission *s, const struct plan *p)
{
    struct job *j = s->j;
    struct err e = {0};
    struct healing *h = calloc(1, sizeof *h);
    struct store_txn *t = store_txn_new();
    size_t n = 0;
    bool ok = h && t && (h->old = calloc(j->nlayers + 1, sizeof(*h->old)));
    if (h)
        h->s = s;
    for (size_t i = 0; ok && i < j->nlayers; i++)
        ok = (h->old[i] = strdup(j->layers[i].device)) != NULL;
    ok = ok && job_take_plan(j, p, &e) == ST_OK;
    job_account_resident(j->jobs);
    /* Another job was quicker, or there is no memory to count it: with the next change of room. The quota
     * does not refuse what its owner has already. */
    if (!ok || !fits_with_own(j) || job_claim_held(j) < 0) {
        if (h) {
            go_back(h);
            healing_free(h);
        }
        job_recount(j);
        store_txn_free(t);
        j->tried = 0;
        submission_end(s, j, NULL);
        return;
    }
    uint64_t bytes = reassign(h, t, &n);
    store_txn_job_state(t, j->id, j->state, JOB_LOADING, "lost layers are loaded elsewhere", NULL,
                        jobs_now(j->jobs));
    job_txn_plan(t, j, p);
    struct event_meta m = {0};
    event_meta_u64(&m, "layers", n);
    event_meta_str(&m, "reason", "HEALING");
    job_event(t, j, EV_JOB_LOADING, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    LOG_I(j->jobs->cfg.log, "jobs", "job=%s heals layers=%zu bytes=%llu", j->id, n,
          (unsigned long long)bytes);
    j->moving = true;
    int rc = jobs_store(j->jobs, t, healed, h);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take it now (%s)", status_name(rc));
        healed(h, rc, &e);
    }
}

/* ---- draining ---- */

static void drain_moving(void *arg, int rc, const struct err *e)
{
    struct job *j = arg;
    if (rc < 0)
        LOG_W(j->jobs->cfg.log, "jobs", "not moved off job=%s error=%s", j->id, e->text);
}

/* One range after the other, since a migration has one target: the next tick takes what is left. */
static void take_move(struct submission *s, const struct plan *p)
{
    struct job *j = s->j;
    for (size_t i = 0; i < j->nlayers; i++) {
        const struct plan_placement *pl = plan_placement_of(p, j->layers[i].id);
        size_t last = i;
        if (!pl || !on_drained(j, &j->layers[i]) || !strcmp(pl->device, j->layers[i].device))
            continue;
        while (last + 1 < j->nlayers && on_drained(j, &j->layers[last + 1])) {
            const struct plan_placement *q = plan_placement_of(p, j->layers[last + 1].id);
            if (!q || strcmp(q->device, pl->device))
                break;
            last++;
        }
        submission_end(s, j, NULL);
        jobs_move(j->jobs, j, j->layers[i].id, j->layers[last].id, pl->device, j->principal, drain_moving, j);
        return;
    }
    submission_end(s, j, NULL);
}

static bool drains(const struct job *j)
{
    for (size_t i = 0; i < j->nlayers; i++)
        if (on_drained(j, &j->layers[i]))
            return true;
    return false;
}

void drain_run(struct jobs *js)
{
    bool any = false;
    for (size_t i = 0; i < topo_count(js->cfg.topo); i++)
        any |= topo_at(js->cfg.topo, i)->draining;
    for (struct job *j = any ? js->head : NULL; j; j = j->next) {
        if (j->state != JOB_READY || j->moving || j->sub || j->cancels || j->tried == js->room + 1 ||
            !drains(j))
            continue;
        j->tried = js->room + 1;
        struct submission *s = submission_of(j, SUB_MOVE);
        if (s)
            submission_inspect(s);
    }
}

size_t jobs_on_node(struct jobs *js, const char *node, uint64_t *bytes)
{
    size_t n = 0, len = strlen(node);
    *bytes = 0;
    for (const struct job *j = js->head; j; j = j->next) {
        if (job_ended(j->state))
            continue;
        for (size_t i = 0; i < j->nlayers; i++)
            if (!strncmp(j->layers[i].device, node, len) && j->layers[i].device[len] == '/') {
                n++;
                *bytes += j->layers[i].bytes;
            }
        for (const struct job_shift *h = j->shifts; h; h = h->next)
            if ((!strncmp(h->copy.device, node, len) && h->copy.device[len] == '/' &&
                 h->state == SHIFT_COPY) ||
                (!strncmp(h->old, node, len) && h->old[len] == '/' && h->state == SHIFT_FREE)) {
                n++;
                *bytes += h->l->bytes;
            }
    }
    return n;
}

/* ---- the plan is there, or there is none ---- */

void replan_planned(struct submission *s, int rc, const struct err *e, const struct plan *p)
{
    struct job *j = s->j;
    enum job_state want = s->kind == SUB_HEAL ? JOB_DEGRADED : JOB_READY;
    if (j->state != want || j->moving || j->cancels) {
        submission_end(s, j, NULL);
        job_pump(j);
        return;
    }
    if (rc < 0) {
        LOG_W(j->jobs->cfg.log, "jobs", "no other place job=%s error=%s", j->id, e->text);
        if (s->kind == SUB_HEAL) {
            size_t n = strcspn(j->reason, ";"); /* what is lost stays said */
            snprintf(j->reason + n, sizeof j->reason - n,
                     "; it is loaded when the node is back, since there is no other place: %s", e->text);
        }
        submission_end(s, j, NULL);
        job_changed(j);
    } else if (s->kind == SUB_HEAL) {
        take_heal(s, p);
    } else {
        take_move(s, p);
    }
}
