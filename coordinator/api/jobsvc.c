/* Service Jobs. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "coordinator/api/api.h"
#include "strata/v1/jobs.pb-c.h"

#define WATCH_MIN_NS (50 * NS_PER_MS) /* between two progress messages of one watch */

struct coord_watch {
    struct coord *c;
    struct rpc_call *call;
    char job[40];
    enum job_state state;
    uint64_t sent_ns;
    struct coord_watch *next;
};

/* ---- a job as a message: everything borrowed but the arrays ---- */

struct job_msg {
    Strata__V1__Job m;
    Strata__V1__JobLayer *v, **pv;
};

static int job_msg_fill(struct job_msg *o, const struct job *j, bool layers)
{
    *o = (struct job_msg){.m = STRATA__V1__JOB__INIT};
    o->m.id = (char *)j->id;
    o->m.principal = (char *)j->principal;
    o->m.model = (char *)j->name;
    o->m.model_path = j->spec.path;
    o->m.goal = (char *)plan_goal_name(j->spec.goal);
    o->m.state = (char *)job_state_name(j->state);
    o->m.reason_code = (char *)j->reason_code;
    o->m.reason = (char *)j->reason;
    o->m.total_bytes = job_total_bytes(j);
    o->m.loaded_bytes = job_loaded_bytes(j);
    o->m.created_us = j->created_us;
    o->m.updated_us = j->updated_us;
    o->m.priority = j->spec.priority;
    o->m.preemptible = j->spec.preemptible;
    if (!layers)
        return ST_OK;
    if (j->plan_json)
        o->m.plan_json = j->plan_json;
    o->v = calloc(j->nlayers + 1, sizeof *o->v);
    o->pv = calloc(j->nlayers + 1, sizeof(*o->pv));
    if (!o->v || !o->pv)
        return ST_ENOMEM;
    for (size_t i = 0; i < j->nlayers; i++) {
        const struct job_layer *l = &j->layers[i];
        Strata__V1__JobLayer *p = o->pv[i] = &o->v[i];
        strata__v1__job_layer__init(p);
        p->id = l->id;
        p->device = l->device;
        p->state = (char *)layer_state_name(l->state);
        p->bytes = l->bytes;
        p->source = (char *)l->source;
        p->loaded_bytes = l->state == LAYER_VERIFIED ? l->bytes : l->loaded;
        if (l->has_sha)
            p->sha256 = (ProtobufCBinaryData){32, (uint8_t *)l->sha256};
        for (const struct job_shift *h = j->shifts; h; h = h->next)
            if (h->l == l && h->state == SHIFT_COPY) {
                p->moving_to = h->copy.device;
                p->moved_bytes = h->copy.loaded;
            }
    }
    o->m.layers = o->pv;
    o->m.n_layers = j->nlayers;
    return ST_OK;
}

static void job_msg_fini(struct job_msg *o)
{
    free(o->v);
    free(o->pv);
}

static void reply_job(struct rpc_call *call, const struct job *j)
{
    struct job_msg m;
    if (job_msg_fill(&m, j, true) == ST_OK)
        rpc_reply(call, &m.m.base);
    else
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
    job_msg_fini(&m);
}

/* ---- rights: one's own jobs always, others' with admin:full_access ---- */

struct job *api_own_job(struct rpc_call *call, struct coord *c, const char *id)
{
    struct job *j = jobs_find(c->jobs, id);
    const char *who = rpc_peer(call)->principal;
    if (j && (!strcmp(j->principal, who) || api_is_admin(c, who)))
        return j;
    if (j && !api_allow(call, c, PERM_ADMIN))
        return NULL;
    rpc_finish(call, 5, "NO_JOB", "there is no job '%s': strata job list shows yours", id);
    return NULL;
}

/* ---- answers that come later: the caller may be gone by then ---- */

struct later {
    struct coord *c;
    struct rpc_call *call; /* NULL once it was cancelled */
    char job[40];
};

static void on_caller_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct later *)arg)->call = NULL;
}

static struct later *later_new(struct rpc_call *call, struct coord *c, const char *job)
{
    struct later *l = calloc(1, sizeof *l);
    if (!l) {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
        return NULL;
    }
    l->c = c;
    l->call = call;
    str_copy(l->job, sizeof l->job, job);
    rpc_on_cancel(call, on_caller_gone, l);
    return l;
}

static void on_submitted(void *arg, const struct job *j, const struct err *e)
{
    struct later *l = arg;
    if (l->call && j)
        reply_job(l->call, j);
    else if (l->call)
        rpc_fail(l->call, e);
    free(l);
}

void api_jobs_submit(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__SubmitRequest *q = (const Strata__V1__SubmitRequest *)req;
    struct job_spec s = {.path = q->model_path,
                         .context = q->context,
                         .sequences = q->sequences,
                         .tokens = q->tokens,
                         .split = q->split,
                         .allow = q->allow,
                         .nallow = q->n_allow,
                         .deny = q->deny,
                         .ndeny = q->n_deny,
                         .min_nodes = q->min_nodes,
                         .max_stages = q->max_stages,
                         .priority = q->priority,
                         .preemptible = q->preemptible};
    if (!*q->model_path || strlen(q->model_path) > 4000) {
        rpc_finish(call, 3, "MODEL_PATH", "a job needs the path of a model as the agents see it");
        return;
    }
    if (plan_goal_parse(*q->goal ? q->goal : "latency", &s.goal) < 0) {
        rpc_finish(call, 3, "GOAL", "'%.40s' is no goal: latency, throughput, memory or balanced", q->goal);
        return;
    }
    if (q->priority < JOB_PRIORITY_MIN || q->priority > JOB_PRIORITY_MAX) {
        rpc_finish(call, 3, "PRIORITY", "a priority lies between %d and %d, not at %d", JOB_PRIORITY_MIN,
                   JOB_PRIORITY_MAX, q->priority);
        return;
    }
    struct later *l = later_new(call, c, "");
    if (l)
        jobs_submit(c->jobs, &s, rpc_peer(call)->principal, rpc_request_id(call), q->dry_run, on_submitted,
                    l);
}

void api_jobs_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__ListJobsRequest *q = (const Strata__V1__ListJobsRequest *)req;
    const char *who = rpc_peer(call)->principal;
    bool admin = api_is_admin(c, who), past = !*q->page_token;
    size_t page = q->page_size && q->page_size < 500 ? q->page_size : 500, n = 0;
    struct job_msg *v = calloc(page, sizeof *v);
    Strata__V1__Job **pv = calloc(page, sizeof(*pv));
    Strata__V1__ListJobsReply rep = STRATA__V1__LIST_JOBS_REPLY__INIT;
    for (struct job *j = v && pv ? jobs_first(c->jobs) : NULL; j; j = j->next) {
        if (!past) {
            past = !strcmp(j->id, q->page_token);
            continue;
        }
        if ((!admin && strcmp(j->principal, who)) || (!q->all && job_ended(j->state)))
            continue;
        if (n == page) {
            rep.next_page_token = pv[n - 1]->id;
            break;
        }
        if (job_msg_fill(&v[n], j, false) < 0)
            break;
        pv[n] = &v[n].m;
        n++;
    }
    rep.jobs = pv;
    rep.n_jobs = n;
    if (v && pv)
        rpc_reply(call, &rep.base);
    else
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
    free(v);
    free(pv);
}

void api_jobs_get(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct job *j = api_own_job(call, arg, ((const Strata__V1__GetJobRequest *)req)->id);
    if (j)
        reply_job(call, j);
}

static void on_changed_job(void *arg, int rc, const struct err *e)
{
    struct later *l = arg;
    struct job *j = jobs_find(l->c->jobs, l->job);
    if (l->call && rc == ST_OK && j)
        reply_job(l->call, j);
    else if (l->call)
        rpc_fail(l->call, e);
    free(l);
}

void api_jobs_cancel(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct job *j = api_own_job(call, c, ((const Strata__V1__GetJobRequest *)req)->id);
    struct later *l = j ? later_new(call, c, j->id) : NULL;
    if (l)
        jobs_cancel(c->jobs, j, rpc_peer(call)->principal, on_changed_job, l);
}

void api_jobs_verify(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct job *j = api_own_job(call, c, ((const Strata__V1__GetJobRequest *)req)->id);
    struct later *l = j ? later_new(call, c, j->id) : NULL;
    if (l)
        jobs_verify(c->jobs, j, on_changed_job, l);
}

/* Moving needs its own right, on the device it goes to; what the job's owner may hold there counts as well.
 */
void api_jobs_move(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__MoveRequest *q = (const Strata__V1__MoveRequest *)req;
    static const enum permission need[] = {PERM_MEMORY_COPY_DEVICE_TO_DEVICE, PERM_MEMORY_ALLOCATE};
    struct job *j = api_own_job(call, c, q->job);
    if (!j)
        return;
    for (unsigned i = 0; i < 2; i++) {
        const struct access_request rq = {
            .permission = need[i], .device = q->device, .now_us = clock_wall_us(c->clock)};
        struct decision d = access_set_ask(c->access, i ? j->principal : rpc_peer(call)->principal, &rq);
        if (!d.allowed) {
            api_deny(call, c, &d, &rq);
            return;
        }
    }
    struct later *l = later_new(call, c, j->id);
    if (l)
        jobs_move(c->jobs, j, q->first, q->last, q->device, rpc_peer(call)->principal, on_changed_job, l);
}

/* ---- watch ---- */

static void watch_drop(struct coord_watch *w)
{
    for (struct coord_watch **at = &w->c->watches; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    free(w);
}

static void on_watch_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    watch_drop(arg);
}

/* A full queue drops the message: the next one says everything that it would have said. */
static void watch_send(struct coord_watch *w, const struct job *j, bool force)
{
    uint64_t now = clock_ns(w->c->clock);
    if (!force && j->state == w->state && now - w->sent_ns < WATCH_MIN_NS &&
        job_loaded_bytes(j) < job_total_bytes(j))
        return;
    struct job_msg m;
    int rc = job_msg_fill(&m, j, true);
    if (rc == ST_OK)
        rc = rpc_send(w->call, &m.m.base);
    job_msg_fini(&m);
    if (rc == ST_OK) {
        w->state = j->state;
        w->sent_ns = now;
    }
    if (job_ended(j->state) && (rc == ST_OK || rc != ST_EAGAIN)) {
        rpc_finish(w->call, 0, "", "the job has ended");
        watch_drop(w);
    }
}

static void on_watch_writable(struct rpc_call *call, void *arg)
{
    struct coord_watch *w = arg;
    (void)call;
    struct job *j = jobs_find(w->c->jobs, w->job);
    if (j)
        watch_send(w, j, true);
}

void api_job_changed(void *ctx, const struct job *j)
{
    struct coord *c = ctx;
    for (struct coord_watch *w = c->watches, *next; w; w = next) {
        next = w->next;
        if (!strcmp(w->job, j->id))
            watch_send(w, j, false);
    }
}

void api_jobs_watch(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct job *j = api_own_job(call, c, ((const Strata__V1__GetJobRequest *)req)->id);
    if (!j)
        return;
    struct coord_watch *w = calloc(1, sizeof *w);
    if (!w) {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
        return;
    }
    w->c = c;
    w->call = call;
    str_copy(w->job, sizeof w->job, j->id);
    w->next = c->watches;
    c->watches = w;
    rpc_on_cancel(call, on_watch_gone, w);
    rpc_on_writable(call, on_watch_writable, w);
    watch_send(w, j, true);
}

/* ---- plans ---- */
