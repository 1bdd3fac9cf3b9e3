/* Agents and planner that answer on the virtual clock. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/inputs.h"
#include "tests/unit/jobs/sim.h"

enum call_kind { CALL_INSPECT, CALL_LOAD, CALL_VERIFY, CALL_RELEASE, CALL_PLAN };

struct sim_call {
    enum call_kind kind;
    uint64_t due_ns;
    unsigned serial, node, session;
    unsigned model;
    int held; /* of a load: where its bytes lie on the agent; -1 = no room */
    bool cancelled, fails;
    char job[40], layer[32], device[64];
    uint8_t sha[32];
    uint64_t bytes;
    union {
        jobs_inspect_fn inspect;
        jobs_load_fn load;
        jobs_verify_fn verify;
        jobs_call_fn release;
        jobs_planned_fn plan;
    } fn;
    void *arg;
    int rc;
    struct err e;
    struct plan *planned;
    struct sim_call *next;
};

static struct sim_call *call_new(struct sim *s, enum call_kind k, unsigned node, uint64_t least_us,
                                 uint64_t spread_us, void *arg)
{
    struct sim_call *c = calloc(1, sizeof *c);
    if (!c)
        abort();
    c->kind = k;
    c->node = node;
    c->session = node < SIM_NODES ? s->node[node].session : 0;
    c->due_ns = s->now_ns + (least_us + sim_rand(s, spread_us)) * NS_PER_US;
    c->serial = s->serial++;
    c->held = -1;
    c->arg = arg;
    c->next = s->calls;
    s->calls = c;
    return c;
}

static unsigned node_index(const struct sim *s, const struct topo_node *n)
{
    for (unsigned i = 0; i < SIM_NODES; i++)
        if (!strcmp(s->node[i].name, n->name))
            return i;
    abort();
}

uint64_t sim_held_bytes(const struct sim_node *n, const char *device)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < SIM_HELD; i++)
        if (n->held[i].used && !strcmp(n->held[i].device, device))
            sum += n->held[i].bytes;
    return sum;
}

void sim_forget_held(struct sim_node *n, const char *job, const char *layer, const char *device)
{
    for (unsigned i = 0; i < SIM_HELD; i++) {
        struct sim_held *h = &n->held[i];
        if (h->used && !strcmp(h->job, job) && (!layer || !*layer || !strcmp(h->layer, layer)) &&
            (!device || !*device || !strcmp(h->device, device)))
            h->used = false;
    }
}

/* ---- what the room asks of agents ---- */

static int do_inspect(void *ctx, struct topo_node *n, const struct job_spec *sp, jobs_inspect_fn fn,
                      void *arg)
{
    struct sim *s = ctx;
    struct sim_call *c = call_new(s, CALL_INSPECT, node_index(s, n), 200, 3000, arg);
    c->model = (unsigned)(sp->path[strlen(sp->path) - 1] - '0');
    c->fn.inspect = fn;
    return ST_OK;
}

static uint64_t capacity_of(const struct sim_node *n, const char *device)
{
    return n->capacity[device[strlen(device) - 1] - '0'];
}

static int do_load(void *ctx, struct topo_node *n, const struct job *j, const struct job_layer *l,
                   struct topo_node *peer, jobs_load_fn fn, void *arg, void **call)
{
    struct sim *s = ctx;
    unsigned i = node_index(s, n);
    struct sim_node *node = &s->node[i];
    struct sim_call *c = call_new(s, CALL_LOAD, i, 500, 20000, arg);
    s->loads++;
    c->fails = s->fail_device && !strcmp(s->fail_device, l->device);
    (void)peer;
    c->fn.load = fn;
    c->bytes = l->bytes;
    str_copy(c->job, sizeof c->job, j->id);
    str_copy(c->layer, sizeof c->layer, l->id);
    str_copy(c->device, sizeof c->device, strchr(l->device, '/') + 1);
    /* The digest of a layer's bytes, as the file has them. */
    memset(c->sha, (int)(j->spec.path[strlen(j->spec.path) - 1] * 31 + atoi(l->id + 1)), 32);
    for (unsigned k = 0; k < SIM_HELD; k++)
        if (node->held[k].used && !strcmp(node->held[k].job, j->id) && !strcmp(node->held[k].layer, l->id) &&
            !strcmp(node->held[k].device, c->device))
            sim_broken(s, "%s is asked to load %s of %s, which it holds", n->name, l->id, j->id);
    if (sim_held_bytes(node, c->device) + l->bytes > capacity_of(node, c->device))
        s->refused_full++;
    else
        for (unsigned k = 0; k < SIM_HELD && c->held < 0; k++)
            if (!node->held[k].used)
                c->held = (int)k;
    if (c->held >= 0) {
        struct sim_held *h = &node->held[c->held];
        *h = (struct sim_held){.used = true, .loading = true, .bytes = l->bytes};
        memcpy(h->job, c->job, sizeof h->job);
        memcpy(h->layer, c->layer, sizeof h->layer);
        memcpy(h->device, c->device, sizeof h->device);
        memcpy(h->sha, c->sha, 32);
    }
    if (s->fault == FAULT_LOAD_HANGS && sim_rand(s, 4) == 0)
        c->due_ns = UINT64_MAX - 1;
    *call = c;
    return ST_OK;
}

static void do_cancel(void *ctx, void *call)
{
    struct sim *s = ctx;
    struct sim_call *c = call;
    c->cancelled = true;
    c->due_ns = s->now_ns;
}

static int do_verify(void *ctx, struct topo_node *n, const struct job *j, const struct job_layer *l,
                     jobs_verify_fn fn, void *arg)
{
    struct sim *s = ctx;
    struct sim_call *c = call_new(s, CALL_VERIFY, node_index(s, n), 500, 5000, arg);
    c->fn.verify = fn;
    str_copy(c->job, sizeof c->job, j->id);
    str_copy(c->layer, sizeof c->layer, l->id);
    str_copy(c->device, sizeof c->device, strchr(l->device, '/') + 1);
    return ST_OK;
}

static int do_release(void *ctx, struct topo_node *n, const char *job, const char *layer, const char *device,
                      jobs_call_fn fn, void *arg)
{
    struct sim *s = ctx;
    struct sim_call *c = call_new(s, CALL_RELEASE, node_index(s, n), 200, 3000, arg);
    c->fn.release = fn;
    str_copy(c->job, sizeof c->job, job);
    str_copy(c->layer, sizeof c->layer, layer ? layer : "");
    str_copy(c->device, sizeof c->device, device ? strchr(device, '/') + 1 : "");
    return ST_OK;
}

const struct jobs_agents sim_agents = {
    .inspect = do_inspect, .load = do_load, .cancel = do_cancel, .verify = do_verify, .release = do_release};

int sim_plan(void *ctx, struct cluster *cl, struct model *m, struct request *r, enum plan_goal goal,
             jobs_planned_fn fn, void *arg)
{
    struct sim *s = ctx;
    struct sim_call *c = call_new(s, CALL_PLAN, SIM_NODES, 100, 10000, arg);
    const struct plan_opts o = {.goal = goal};
    c->fn.plan = fn;
    c->rc = plan_solve_kept(cl, m, r, &o, &c->planned, &c->e);
    cluster_free(cl);
    model_free(m);
    request_fini(r);
    free(r);
    return ST_OK;
}

/* ---- answers ---- */

static void answer_inspect(struct sim *s, struct sim_call *c, int rc, const struct err *e)
{
    const struct sim_node *n = &s->node[c->node];
    struct err why = {0};
    char json[2048];
    struct job_layer l[SIM_LAYERS];
    char ids[SIM_LAYERS][8];
    if (rc == ST_OK && (c->model >= SIM_MODELS || !n->has_model[c->model]))
        rc = err_set(&why, ST_ENOENT, "node %s: no such file", n->name);
    else if (rc < 0)
        why = *e;
    if (rc < 0) {
        c->fn.inspect(c->arg, n->name, rc, &why, NULL);
        return;
    }
    uint64_t each = sim_model_bytes(c->model) / SIM_LAYERS;
    int at = snprintf(json, sizeof json, "{\"schema\":\"strata.model.v1\",\"name\":\"m%u\",\"layers\":[",
                      c->model);
    for (unsigned i = 0; i < SIM_LAYERS; i++) {
        snprintf(ids[i], sizeof ids[i], "l%u", i);
        l[i] = (struct job_layer){.id = ids[i], .bytes = each, .npieces = 0};
        at += snprintf(json + at, sizeof json - (size_t)at,
                       "%s{\"id\":\"l%u\",\"type\":\"block\",\"weight_bytes\":%llu,\"kv_bytes\":64,"
                       "\"activation_bytes\":32,"
                       "\"flops\":1e6,\"input_bytes\":100,\"output_bytes\":100}",
                       i ? "," : "", i, (unsigned long long)each);
    }
    snprintf(json + at, sizeof json - (size_t)at, "]}");
    struct jobs_model m = {.model_json = json, .nfiles = 1, .layers = l, .nlayers = SIM_LAYERS};
    memset(m.header_sha256, (int)c->model + 1, 32);
    c->fn.inspect(c->arg, n->name, ST_OK, &why, &m);
}

static void answer_load(struct sim *s, struct sim_call *c, int rc, const struct err *e)
{
    struct sim_node *n = &s->node[c->node];
    struct sim_held *h = c->held >= 0 ? &n->held[c->held] : NULL;
    struct err why = {0};
    bool mine = h && h->used && h->loading && !strcmp(h->job, c->job) && !strcmp(h->layer, c->layer);
    if (rc < 0)
        why = *e;
    else if (c->cancelled)
        rc = err_set(&why, ST_ECANCELED, "cancelled");
    else if (c->held < 0)
        rc = err_reason(&why, ST_ERESOURCE, "DEVICE_FULL", "no room");
    else if (!mine)
        rc = err_set(&why, ST_ECANCELED, "released while it was loading");
    else if (c->fails || sim_rand(s, 100) < s->fail_percent)
        rc = err_set(&why, ST_EIO, "the disk does not answer");
    if (mine) {
        h->loading = false;
        if (rc < 0 || s->fault == FAULT_LOAD_LIES)
            h->used = false;
    }
    c->fn.load(c->arg, &(struct jobs_load_event){.loaded = rc < 0 ? 0 : c->bytes,
                                                 .done = true,
                                                 .rc = rc,
                                                 .e = &why,
                                                 .sha256 = c->sha,
                                                 .device_sha256 = c->sha});
}

static void answer_verify(struct sim *s, struct sim_call *c, int rc, const struct err *e)
{
    struct sim_node *n = &s->node[c->node];
    struct err why = {0};
    uint8_t sha[32] = {0};
    bool found = false;
    for (unsigned i = 0; i < SIM_HELD && rc == ST_OK; i++)
        if (n->held[i].used && !n->held[i].loading && !strcmp(n->held[i].job, c->job) &&
            !strcmp(n->held[i].layer, c->layer)) {
            memcpy(sha, n->held[i].sha, 32);
            found = true;
            if (sim_rand(s, 20) == 0)
                sha[0] ^= 1; /* a bit has turned */
        }
    if (rc < 0)
        why = *e;
    else if (!found)
        rc = err_reason(&why, ST_ENOENT, "NOT_RESIDENT", "not here");
    c->fn.verify(c->arg, rc, &why, sha);
}

static void answer_release(struct sim *s, struct sim_call *c, int rc, const struct err *e)
{
    struct err why = {0};
    if (rc < 0)
        why = *e;
    else if (s->fault != FAULT_RELEASE_KEEPS)
        sim_forget_held(&s->node[c->node], c->job, c->layer, c->device);
    c->fn.release(c->arg, rc, &why);
}

static void answer(struct sim *s, struct sim_call *c, int rc, const struct err *e)
{
    for (struct sim_call **at = &s->calls; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    switch (c->kind) {
    case CALL_INSPECT:
        answer_inspect(s, c, rc, e);
        break;
    case CALL_LOAD:
        answer_load(s, c, rc, e);
        break;
    case CALL_VERIFY:
        answer_verify(s, c, rc, e);
        break;
    case CALL_RELEASE:
        answer_release(s, c, rc, e);
        break;
    case CALL_PLAN:
        if (rc < 0) {
            plan_free(c->planned);
            c->planned = NULL;
        }
        c->fn.plan(c->arg, rc < 0 ? rc : c->rc, rc < 0 ? e : &c->e, c->planned);
        break;
    }
    free(c);
}

static struct sim_call *first_due(const struct sim *s)
{
    struct sim_call *best = NULL;
    for (struct sim_call *c = s->calls; c; c = c->next)
        if (!best || c->due_ns < best->due_ns || (c->due_ns == best->due_ns && c->serial < best->serial))
            best = c;
    return best;
}

uint64_t sim_next_due(const struct sim *s)
{
    struct sim_call *c = first_due(s);
    return c && c->due_ns < UINT64_MAX - 1 ? c->due_ns : UINT64_MAX;
}

void sim_run_due(struct sim *s)
{
    answer(s, first_due(s), ST_OK, NULL);
}

void sim_calls_end(struct sim *s, unsigned node)
{
    struct err e;
    for (;;) {
        struct sim_call *c = NULL; /* the oldest: the order must not hang on the list's */
        for (struct sim_call *k = s->calls; k; k = k->next)
            if ((node == SIM_NODES || k->node == node) && (!c || k->serial < c->serial))
                c = k;
        if (!c)
            return;
        int rc = c->kind == CALL_PLAN ? err_set(&e, ST_ECANCELED, "stopped")
                                      : err_set(&e, ST_EUNREACH, "the connection was lost");
        answer(s, c, rc, &e);
    }
}
