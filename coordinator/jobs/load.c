/*
 * The pump: what should be resident against what is. It starts loads, notices that all are verified, and
 * finishes releases. Safe to call at any time; every completion calls it again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

#define MAX_ATTEMPTS 3

struct call {
    struct job *j;
    struct job_layer *l;
    char peer[64];  /* whom it is fetched from; of a release, whom it was asked of */
    uint64_t epoch; /* of a release: the node's registration */
    uint64_t started_ns;
};

struct topo_node *layer_node(const struct job *j, const struct job_layer *l)
{
    struct topo_node *n = NULL;
    return topo_device(j->jobs->cfg.topo, l->device, &n) ? n : NULL;
}

bool node_reachable(const struct topo_node *n)
{
    return n && n->user && n->state != TOPO_LOST;
}

/* Its bytes are taken on the device, so what the agent says is available no longer has them. */
static bool on_device(enum layer_state s)
{
    return s == LAYER_VERIFIED || s == LAYER_LOADING;
}

static void count_layer(struct jobs *js, const struct job_layer *l, const char *device)
{
    struct topo_device *d = topo_device(js->cfg.topo, device, NULL);
    if (!d)
        return;
    d->reserved_bytes += l->mem;
    if (on_device(l->state))
        d->resident_bytes += l->bytes;
}

void job_layer_state(struct jobs *js, struct job_layer *l, enum layer_state s)
{
    struct topo_device *d =
        on_device(l->state) != on_device(s) ? topo_device(js->cfg.topo, l->device, NULL) : NULL;
    l->state = s;
    if (d && on_device(s))
        d->resident_bytes += l->bytes;
    else if (d)
        d->resident_bytes -= d->resident_bytes < l->bytes ? d->resident_bytes : l->bytes;
}

static void count_copy(struct jobs *js, const struct job_layer *l, const char *device)
{
    struct topo_device *d = topo_device(js->cfg.topo, device, NULL);
    if (!d)
        return;
    d->reserved_bytes += l->bytes;
    d->resident_bytes += l->bytes;
}

/* Recounted from the layers whenever a job comes, goes or changes place, so that no drift could stay;
 * job_layer_state keeps it true between. */
void job_account_resident(struct jobs *js)
{
    for (size_t i = 0; i < topo_count(js->cfg.topo); i++) {
        struct topo_node *n = topo_at(js->cfg.topo, i);
        for (size_t k = 0; k < n->ndevices; k++)
            n->devices[k].reserved_bytes = n->devices[k].resident_bytes = 0;
    }
    for (struct job *j = js->head; j; j = j->next) {
        if (job_ended(j->state))
            continue;
        for (size_t i = 0; i < j->nlayers; i++)
            count_layer(js, &j->layers[i], j->layers[i].device);
        for (const struct job_shift *h = j->shifts; h; h = h->next) {
            if (h->state != SHIFT_FREE)
                count_layer(js, &h->copy, h->copy.device);
            else if (strcmp(h->old, h->l->device)) /* still there until it is freed */
                count_copy(js, h->l, h->old);
        }
    }
    for (struct submission *s = js->holding; s; s = s->next_holding)
        for (size_t i = 0; i < s->j->nlayers; i++)
            count_layer(js, &s->j->layers[i], s->j->layers[i].device);
    uint64_t sum = 0;
    for (size_t i = 0; i < topo_count(js->cfg.topo); i++)
        for (size_t k = 0; k < topo_at(js->cfg.topo, i)->ndevices; k++)
            sum += topo_at(js->cfg.topo, i)->devices[k].reserved_bytes;
    if (sum < js->reserved)
        js->room++;
    js->reserved = sum;
}

static bool is_source(const struct job *j, const char *node)
{
    for (size_t i = 0; i < j->nsources; i++)
        if (!strcmp(j->sources[i], node))
            return true;
    return false;
}

/* Spread over the sources by layer, so that one of them does not serve all. */
static struct topo_node *pick_peer(const struct job *j, const struct job_layer *l)
{
    size_t at = (size_t)(l - j->layers) + l->attempts;
    for (size_t i = 0; i < j->nsources; i++) {
        struct topo_node *n = topo_node(j->jobs->cfg.topo, j->sources[(at + i) % j->nsources]);
        if (node_reachable(n) && n->peer_address[0])
            return n;
    }
    return NULL;
}

bool layer_source(const struct job *j, const struct job_layer *l, const struct topo_node *n,
                  struct topo_node **peer)
{
    *peer = NULL;
    return is_source(j, n->name) || (*peer = pick_peer(j, l));
}

static void layer_verified(struct job *j, struct job_layer *l, const struct call *c)
{
    struct store_txn *t = store_txn_new();
    uint64_t us = (clock_ns(j->jobs->cfg.clock) - c->started_ns) / NS_PER_US;
    job_layer_state(j->jobs, l, LAYER_VERIFIED);
    l->loaded = l->bytes;
    str_copy(l->source, sizeof l->source, c->peer[0] ? c->peer : "file");
    if (!t) {
        LOG_E(j->jobs->cfg.log, "jobs", "no memory to record layer=%s job=%s", l->id, j->id);
        job_layer_state(j->jobs, l, LAYER_LOST);
        return;
    }
    char hex[65];
    hex_encode(hex, l->sha256, 32);
    job_store_layer(t, j, l);
    struct event_meta m = {0};
    event_meta_str(&m, "layer", l->id);
    event_meta_u64(&m, "bytes", l->bytes);
    event_meta_u64(&m, "us", us);
    job_event(t, j, EV_LAYER_LOADED, EVENT_SUCCESS, l->device, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    event_meta_str(&m, "layer", l->id);
    event_meta_str(&m, "checksum", hex);
    job_event(t, j, EV_LAYER_VERIFIED, EVENT_SUCCESS, l->device, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    if (c->peer[0]) {
        event_meta_str(&m, "layer", l->id);
        event_meta_u64(&m, "bytes", l->bytes);
        event_meta_str(&m, "from", c->peer);
        job_event(t, j, EV_LAYER_FETCHED, EVENT_SUCCESS, l->device, event_meta_text(&m), NULL);
        event_meta_fini(&m);
    }
    int rc = jobs_store(j->jobs, t, NULL, NULL);
    if (rc < 0)
        LOG_E(j->jobs->cfg.log, "jobs", "layer not recorded job=%s layer=%s error=%s", j->id, l->id,
              status_name(rc));
}

static void layer_failed(struct job *j, struct job_layer *l, const struct err *e)
{
    job_layer_state(j->jobs, l, LAYER_LOST);
    l->loaded = 0;
    if (j->jobs->stopping || (e->code == ST_ECANCELED && j->state == JOB_RELEASING))
        return; /* by us */
    l->attempts++;
    LOG_W(j->jobs->cfg.log, "jobs", "load failed job=%s layer=%s device=%s attempt=%u error=%s", j->id, l->id,
          l->device, l->attempts, e->text);
    struct store_txn *t = store_txn_new();
    if (!t)
        return;
    struct event_meta m = {0};
    event_meta_str(&m, "layer", l->id);
    event_meta_str(&m, "reason", e->reason[0] ? e->reason : status_name(e->code));
    job_store_layer(t, j, l);
    job_event(t, j, EV_LAYER_FAILED, EVENT_FAILURE, l->device, event_meta_text(&m), e->text);
    event_meta_fini(&m);
    int rc = jobs_store(j->jobs, t, NULL, NULL);
    if (rc < 0)
        LOG_E(j->jobs->cfg.log, "jobs", "layer not recorded job=%s layer=%s error=%s", j->id, l->id,
              status_name(rc));
    /* An agent that went away is not the layer's fault: the pump tries again when it is back. */
    if (e->code == ST_EUNREACH || e->code == ST_ECLOSED)
        l->attempts--;
    else if (l->attempts >= MAX_ATTEMPTS && j->state == JOB_LOADING) {
        j->fail_pending = true;
        job_move(j, JOB_RELEASING, "LAYER_FAILED", NULL, "layer %s on %s failed %u times: %s", l->id,
                 l->device, l->attempts, e->text);
    }
}

/* A layer's bytes are the same whoever read them: two sources that disagree mean that a file changed. */
int layer_digests(struct job_layer *l, const struct jobs_load_event *ev, struct err *e)
{
    if (memcmp(ev->sha256, ev->device_sha256, 32))
        return err_reason(e, ST_ECORRUPT, "CHECKSUM_MISMATCH",
                          "layer %s on %s differs from the file after loading", l->id, l->device);
    if (l->has_sha && memcmp(ev->sha256, l->sha256, 32))
        return err_reason(e, ST_ECORRUPT, "MODEL_CHANGED",
                          "layer %s read for %s is not what was loaded before: the model file changed", l->id,
                          l->device);
    memcpy(l->sha256, ev->sha256, 32);
    l->has_sha = true;
    return ST_OK;
}

static void on_load(void *arg, const struct jobs_load_event *ev)
{
    struct call *c = arg;
    struct job *j = c->j;
    struct job_layer *l = c->l;
    l->loaded = ev->loaded;
    if (!ev->done) {
        job_changed(j);
        return;
    }
    struct err e;
    j->loads--;
    l->call = NULL;
    int rc = ev->rc;
    if (rc == ST_OK)
        rc = layer_digests(l, ev, &e);
    else
        e = *ev->e;
    if (rc == ST_OK)
        layer_verified(j, l, c);
    else
        layer_failed(j, l, &e);
    if (rc == ST_ECORRUPT)
        l->release_first = true;
    free(c);
    job_changed(j);
    job_pump(j);
}

static void on_layer_released(void *arg, int rc, const struct err *e)
{
    struct call *c = arg;
    struct job *j = c->j;
    struct job_layer *l = c->l;
    free(c);
    j->releases--;
    if (rc < 0 && rc != ST_ENOENT) {
        layer_failed(j, l, e);
    } else {
        l->release_first = false;
        job_layer_state(j->jobs, l, LAYER_LOST); /* gone from the device: now it can be loaded */
    }
    job_pump(j);
}

static void start_load(struct job *j, struct job_layer *l, struct topo_node *n)
{
    struct topo_node *peer = NULL;
    if (!layer_source(j, l, n, &peer))
        return; /* nobody who has the file is there: wait for one */
    struct call *c = calloc(1, sizeof *c);
    if (!c)
        return;
    *c = (struct call){.j = j, .l = l, .started_ns = clock_ns(j->jobs->cfg.clock)};
    int rc;
    bool release = l->release_first;
    if (release) {
        rc = j->jobs->cfg.agents->release(j->jobs->cfg.agents_ctx, n, j->id, l->id, l->device,
                                          on_layer_released, c);
    } else {
        if (peer)
            str_copy(c->peer, sizeof c->peer, peer->name);
        rc = j->jobs->cfg.agents->load(j->jobs->cfg.agents_ctx, n, j, l, peer, on_load, c, &l->call);
    }
    if (rc < 0) {
        free(c);
        return;
    }
    *(release ? &j->releases : &j->loads) += 1;
    job_layer_state(j->jobs, l, LAYER_LOADING);
    l->loaded = 0;
}

/* An agent that is still there is asked again: nothing else would ever free what it holds. */
static void on_released(void *arg, int rc, const struct err *e)
{
    struct call *c = arg;
    struct job *j = c->j;
    struct topo_node *n = topo_node(j->jobs->cfg.topo, c->peer);
    j->releases--;
    if (rc < 0 && rc != ST_ENOENT) {
        LOG_W(j->jobs->cfg.log, "jobs",
              "release not confirmed job=%s node=%s error=%s; asked again, or dropped when the node is back",
              j->id, c->peer, e->text);
        for (size_t k = 0; k < j->nlayers && node_reachable(n) && n->epoch == c->epoch; k++)
            if (layer_node(j, &j->layers[k]) == n) {
                job_layer_state(j->jobs, &j->layers[k], LAYER_LOST);
                j->stalled = true;
            }
    }
    free(c);
    if (!j->stalled)
        job_pump(j);
}

static bool release_node(struct job *j, struct topo_node *n)
{
    struct call *c = calloc(1, sizeof *c);
    if (!c)
        return false;
    *c = (struct call){.j = j, .epoch = n->epoch};
    str_copy(c->peer, sizeof c->peer, n->name);
    if (j->jobs->cfg.agents->release(j->jobs->cfg.agents_ctx, n, j->id, NULL, NULL, on_released, c) < 0) {
        free(c);
        return false;
    }
    j->releases++;
    for (size_t k = 0; k < j->nlayers; k++)
        if (layer_node(j, &j->layers[k]) == n)
            job_layer_state(j->jobs, &j->layers[k], LAYER_RELEASED);
    return true;
}

static void degrade(struct job *j)
{
    for (size_t i = 0; i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        bool here = node_reachable(layer_node(j, l));
        if (l->state != LAYER_LOST && !(l->state == LAYER_PLANNED && !here))
            continue;
        job_move(j, JOB_DEGRADED, here ? "LAYER_LOST" : "NODE_LOST", NULL, "layer %s is not on %s: %s", l->id,
                 l->device, here ? "it is loaded again" : "its node is lost; another place is looked for");
        return;
    }
}

/* Every node that may hold something is told; one that cannot be is told at its next hello. True when all is
 * done. */
static bool release_all(struct job *j)
{
    const struct jobs_cfg *cfg = &j->jobs->cfg;
    for (size_t i = 0; i < j->nlayers; i++)
        if (j->layers[i].call)
            cfg->agents->cancel(cfg->agents_ctx, j->layers[i].call);
    shifts_abort(j);
    if (j->loads)
        return false; /* they end soon, and come here */
    for (size_t i = 0; i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        struct topo_node *n = layer_node(j, l);
        bool held = l->state == LAYER_VERIFIED || l->state == LAYER_LOADING || l->state == LAYER_LOST;
        if (held && node_reachable(n) && !release_node(j, n)) {
            j->stalled = true;
            return false;
        }
    }
    return !j->releases && !j->shifts;
}

static void pump_release(struct job *j)
{
    if (!release_all(j))
        return;
    struct store_txn *t = store_txn_new();
    for (size_t i = 0; t && i < j->nlayers; i++) {
        job_layer_state(j->jobs, &j->layers[i], LAYER_RELEASED);
        if (j->layers[i].device[0])
            job_store_layer(t, j, &j->layers[i]);
    }
    char why[400];
    memcpy(why, j->reason, sizeof why);
    job_move(j, j->fail_pending ? JOB_FAILED : JOB_CANCELLED, j->fail_pending ? j->reason_code : "CANCELLED",
             t, "%s", why);
}

/* Its layers leave the devices, then it waits for a place again. */
static void pump_preempted(struct job *j)
{
    if (!release_all(j))
        return;
    struct store_txn *t = store_txn_new();
    for (size_t i = 0; t && i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        if (l->device[0])
            store_txn_layer_delete(t, j->id, l->id, l->device);
    }
    char why[400];
    memcpy(why, j->reason, sizeof why);
    job_move(j, JOB_QUEUED, "PREEMPTED", t, "%s", why);
}

static void pump_migration(struct job *j)
{
    bool lost = false;
    for (size_t i = 0; i < j->nlayers; i++)
        lost |= j->layers[i].state != LAYER_VERIFIED;
    if (lost)
        shifts_abort(j);
    if (j->shifts)
        return;
    if (lost) {
        degrade(j);
        return;
    }
    char why[400];
    memcpy(why, j->reason, sizeof why);
    if (j->move_failed)
        job_move(j, JOB_READY, "MOVE_FAILED", NULL, "%s", why);
    else if (j->moved)
        job_move(j, JOB_READY, "", NULL, "%u layers moved", j->moved);
    else
        job_move(j, JOB_READY, "MOVE_ABANDONED", NULL, "the move was given up; every layer is where it was");
}

static void pump_load(struct job *j)
{
    unsigned verified = 0;
    for (size_t i = 0; i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        verified += l->state == LAYER_VERIFIED;
        if (l->state != LAYER_PLANNED && l->state != LAYER_LOST)
            continue;
        struct topo_node *n = layer_node(j, l);
        if (!node_reachable(n))
            continue;
        unsigned busy = 0;
        for (size_t k = 0; k < j->nlayers; k++)
            busy += j->layers[k].state == LAYER_LOADING && layer_node(j, &j->layers[k]) == n;
        if (busy < LOADS_PER_NODE)
            start_load(j, l, n);
    }
    if (verified == j->nlayers)
        job_move(j, JOB_READY, "", NULL, "all %zu layers verified on their devices", j->nlayers);
}

/* All that the devices need is there again: nodes are connected and hold, or can load, every layer. */
static bool can_heal(const struct job *j)
{
    for (size_t i = 0; i < j->nlayers; i++)
        if (j->layers[i].state != LAYER_VERIFIED && !node_reachable(layer_node(j, &j->layers[i])))
            return false;
    return true;
}

void job_pump(struct job *j)
{
    if (j->moving || j->jobs->stopping || job_cancel_waiting(j))
        return;
    bool degrade_now = j->want_degrade;
    j->want_degrade = false;
    shifts_pump(j);
    if (j->moving)
        return;
    switch (j->state) {
    case JOB_RESERVED:
        job_move(j, JOB_LOADING, "", NULL, "%zu layers to load", j->nlayers);
        break;
    case JOB_LOADING:
        if (degrade_now)
            degrade(j);
        if (!j->moving)
            pump_load(j);
        break;
    case JOB_MIGRATING:
        pump_migration(j);
        break;
    case JOB_READY:
    case JOB_PAUSED:
        degrade(j);
        break;
    case JOB_DEGRADED:
        if (j->sub)
            break;
        if (can_heal(j))
            job_move(j, JOB_LOADING, "HEALING", NULL, "the lost layers can be loaded again");
        else
            heal_run(j);
        break;
    case JOB_PREEMPTED:
        pump_preempted(j);
        break;
    case JOB_RELEASING:
        pump_release(j);
        break;
    default:
        break;
    }
}

void jobs_node_lost(struct jobs *js, struct topo_node *n)
{
    for (struct job *j = js->head; j; j = j->next) {
        bool hit = false;
        if (job_ended(j->state))
            continue;
        for (size_t i = 0; i < j->nlayers; i++) {
            struct job_layer *l = &j->layers[i];
            size_t len = strlen(n->name);
            if (strncmp(l->device, n->name, len) || l->device[len] != '/')
                continue;
            hit = true;
            /* A load in flight ends by its own call failing. */
            if (l->state == LAYER_VERIFIED)
                job_layer_state(j->jobs, l, LAYER_LOST);
        }
        shift_node_lost(j, n);
        j->tried = 0;
        if (hit) {
            j->want_degrade = true;
            job_changed(j);
        }
        job_pump(j);
    }
    job_account_resident(js);
}

/* What the node holds of this job is exactly what it says it holds. */
static void reconcile(struct job *j, struct topo_node *n, struct jobs_resident *r, size_t nr)
{
    size_t len = strlen(n->name);
    for (size_t i = 0; i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        if (strncmp(l->device, n->name, len) || l->device[len] != '/')
            continue;
        bool there = false;
        for (size_t k = 0; k < nr; k++) {
            if (strcmp(r[k].job, j->id) || strcmp(r[k].layer, l->id) ||
                strcmp(r[k].device, l->device + len + 1))
                continue;
            /* A load whose answer is still on its way decides itself. Without a digest of ours to compare
             * with, a copy is not trusted. */
            if (l->call)
                r[k].drop = false;
            else if (l->has_sha && r[k].sha256 && !memcmp(l->sha256, r[k].sha256, 32) &&
                     r[k].bytes == l->bytes) {
                r[k].drop = false;
                there = true;
            }
        }
        if (there && l->state != LAYER_LOADING) {
            job_layer_state(j->jobs, l, LAYER_VERIFIED);
        } else if (!there && l->state == LAYER_VERIFIED) {
            job_layer_state(j->jobs, l, LAYER_LOST);
            j->want_degrade = true;
        }
    }
}

void jobs_node_up(struct jobs *js, struct topo_node *n, struct jobs_resident *r, size_t nr)
{
    for (size_t k = 0; k < nr; k++)
        r[k].drop = true;
    for (struct job *j = js->head; j; j = j->next)
        if (!job_ended(j->state) && j->state != JOB_RELEASING && j->state != JOB_PREEMPTED) {
            reconcile(j, n, r, nr);
            shift_reconcile(j, n, r, nr);
        }
    job_account_resident(js);
    js->room++;
    for (struct job *j = js->head; j; j = j->next) {
        job_pump(j);
        job_changed(j);
    }
}
