/* Making, finding, freeing jobs; the room's start and end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

int64_t jobs_now(const struct jobs *js)
{
    return clock_wall_us(js->cfg.clock);
}

static int dup_list(char ***dst, size_t *n, char *const *src, size_t count)
{
    *dst = calloc(count ? count : 1, sizeof(**dst));
    if (!*dst)
        return ST_ENOMEM;
    for (*n = 0; *n < count; ++*n)
        if (!((*dst)[*n] = strdup(src[*n])))
            return ST_ENOMEM;
    return ST_OK;
}

static void free_list(char **v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(v[i]);
    free(v);
}

int job_spec_copy(struct job_spec *dst, const struct job_spec *src)
{
    *dst = *src;
    dst->path = strdup(src->path);
    dst->allow = dst->deny = NULL;
    dst->nallow = dst->ndeny = 0;
    if (!dst->path || dup_list(&dst->allow, &dst->nallow, src->allow, src->nallow) < 0 ||
        dup_list(&dst->deny, &dst->ndeny, src->deny, src->ndeny) < 0) {
        job_spec_fini(dst);
        return ST_ENOMEM;
    }
    return ST_OK;
}

void job_spec_fini(struct job_spec *s)
{
    free(s->path);
    free_list(s->allow, s->nallow);
    free_list(s->deny, s->ndeny);
    *s = (struct job_spec){0};
}

/* Ids sort by time, so that "newest first" and the order of ids agree; the random half keeps them
 * unguessable. */
struct job *job_new(struct jobs *js)
{
    struct job *j = calloc(1, sizeof *j);
    if (!j)
        return NULL;
    uint64_t r = rng_u64(js->cfg.rng);
    j->jobs = js;
    j->created_us = j->updated_us = jobs_now(js);
    snprintf(j->id, sizeof j->id, "job-%08llx%06llx", (unsigned long long)(j->created_us / 1000000),
             (unsigned long long)(r & 0xffffff));
    return j;
}

void job_layers_free(struct job_layer *l, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(l[i].id);
        free(l[i].device);
        free(l[i].pieces);
    }
    free(l);
}

void job_free(struct job *j)
{
    if (!j)
        return;
    job_spec_fini(&j->spec);
    job_layers_free(j->layers, j->nlayers);
    free_list(j->sources, j->nsources);
    shifts_free(j);
    free(j->plan_json);
    free(j);
}

uint64_t job_total_bytes(const struct job *j)
{
    uint64_t n = 0;
    for (size_t i = 0; i < j->nlayers; i++)
        n += j->layers[i].bytes;
    return n;
}

uint64_t job_held_bytes(const struct job *j)
{
    uint64_t n = 0;
    for (size_t i = 0; i < j->nlayers; i++)
        n += j->layers[i].device[0] ? j->layers[i].mem : 0;
    return n;
}

uint64_t job_loaded_bytes(const struct job *j)
{
    uint64_t n = 0;
    for (size_t i = 0; i < j->nlayers; i++)
        n += j->layers[i].state == LAYER_VERIFIED  ? j->layers[i].bytes
             : j->layers[i].state == LAYER_LOADING ? j->layers[i].loaded
                                                   : 0;
    return n;
}

void job_changed(struct job *j)
{
    if (j->jobs->cfg.changed)
        j->jobs->cfg.changed(j->jobs->cfg.changed_ctx, j);
}

struct job *jobs_find(struct jobs *js, const char *id)
{
    for (struct job *j = js->head; j; j = j->next)
        if (!strcmp(j->id, id))
            return j;
    return NULL;
}

struct job *jobs_first(struct jobs *js)
{
    return js->head;
}

int jobs_new(struct jobs **out, const struct jobs_cfg *cfg)
{
    struct jobs *js = calloc(1, sizeof *js);
    if (!js)
        return ST_ENOMEM;
    js->cfg = *cfg;
    int rc = asked_init(js);
    if (rc == ST_OK && !cfg->quota)
        rc = quota_new(&js->own_quota, rng_system());
    if (rc == ST_OK && !cfg->plan)
        rc = planner_new(&js->planner, cfg->port);
    js->quota = cfg->quota ? cfg->quota : js->own_quota;
    if (rc < 0) {
        quota_free(js->own_quota);
        asked_fini(js);
        free(js);
        return rc;
    }
    *out = js;
    return ST_OK;
}

void jobs_stop(struct jobs *js)
{
    if (js)
        js->stopping = true;
}

#define TRY_NS (5 * NS_PER_S)

void jobs_room_changed(struct jobs *js)
{
    js->room++;
}

void jobs_tick(struct jobs *js)
{
    uint64_t now = clock_ns(js->cfg.clock);
    if (js->stopping)
        return;
    if (now >= js->next_try_ns) {
        js->next_try_ns = now + TRY_NS;
        js->room++;
    }
    for (struct job *j = js->head; j; j = j->next) {
        if (j->stalled) {
            j->stalled = false;
            job_pump(j);
        } else if (j->state == JOB_DEGRADED) {
            job_pump(j);
        }
    }
    drain_run(js);
    queue_run(js);
}

int jobs_store(struct jobs *js, struct store_txn *t, store_done_fn done, void *arg)
{
    if (!js->stopping)
        return store_submit(js->cfg.store, t, done, arg);
    store_txn_free(t);
    return ST_ECLOSED;
}

void jobs_free(struct jobs *js)
{
    if (!js)
        return;
    js->stopping = true;
    planner_free(js->planner);
    asked_fini(js);
    while (js->head) {
        struct job *j = js->head;
        js->head = j->next;
        job_free(j);
    }
    quota_free(js->own_quota);
    free(js);
}

/* ---- as they were ---- */

struct loading {
    struct jobs *js;
    struct err *e;
};

static int load_job(void *arg, const struct store_job *r)
{
    struct loading *ld = arg;
    struct job *j = job_new(ld->js);
    if (!j)
        return err_set(ld->e, ST_ENOMEM, "no memory for job %s", r->id);
    str_copy(j->id, sizeof j->id, r->id);
    str_copy(j->principal, sizeof j->principal, r->principal);
    str_copy(j->name, sizeof j->name, r->name);
    str_copy(j->reason, sizeof j->reason, r->reason);
    j->state = (enum job_state)r->state;
    j->created_us = r->created_us;
    j->updated_us = r->updated_us;
    int rc = r->state < 0 || r->state >= JOB_STATE_COUNT
                 ? err_set(ld->e, ST_ECORRUPT, "job %s has the unknown state %d", r->id, r->state)
                 : job_record_read(j, r->spec, r->spec_len, ld->e);
    if (rc < 0) {
        job_free(j);
        return rc;
    }
    struct job **at = &ld->js->head;
    while (*at && (*at)->created_us > j->created_us)
        at = &(*at)->next;
    j->next = *at;
    *at = j;
    return 0;
}

static int load_layer(void *arg, const struct store_layer *r)
{
    struct loading *ld = arg;
    struct job *j = jobs_find(ld->js, r->job);
    for (size_t i = 0; j && i < j->nlayers; i++) {
        struct job_layer *l = &j->layers[i];
        if (strcmp(l->id, r->layer))
            continue;
        char *device = strdup(r->device);
        if (!device)
            return err_set(ld->e, ST_ENOMEM, "no memory for job %s", r->job);
        free(l->device);
        l->device = device;
        size_t n = 0;
        l->state = r->state == LAYER_LOADING ? LAYER_LOST : (enum layer_state)r->state;
        l->has_sha = hex_decode(l->sha256, sizeof l->sha256, r->checksum, &n) == ST_OK && n == 32;
    }
    return 0;
}

static int load_plan(void *arg, const struct store_plan *p)
{
    struct loading *ld = arg;
    struct job *j = jobs_find(ld->js, p->job);
    if (!j)
        return 0;
    free(j->plan_json);
    if (!(j->plan_json = strndup(p->doc, p->doc_len)))
        return err_set(ld->e, ST_ENOMEM, "no memory for the plan of %s", j->id);
    struct plan *plan = NULL;
    int rc = plan_from_json(j->plan_json, p->doc_len, &plan, ld->e);
    if (rc == ST_OK)
        rc = job_take_memory(j, plan, ld->e);
    plan_free(plan);
    return rc;
}

int jobs_load(struct jobs *js, struct err *e)
{
    struct loading ld = {js, e};
    int rc;
    if ((rc = store_load_jobs(js->cfg.store, load_job, &ld, e)) < 0 ||
        (rc = store_load_layers(js->cfg.store, load_layer, &ld, e)) < 0 ||
        (rc = store_load_plans(js->cfg.store, load_plan, &ld, e)) < 0)
        return rc;
    for (struct job *j = js->head; j; j = j->next)
        if (!job_ended(j->state) && j->state != JOB_QUEUED && (rc = job_claim_held(j)) < 0)
            return err_set(e, rc, "no room to count the memory of job %s: %s", j->id, status_name(rc));
    for (struct job *j = js->head; j; j = j->next)
        j->stalled = true; /* what it was at when the coordinator ended goes on with the first tick */
    return asked_load(js, e);
}
