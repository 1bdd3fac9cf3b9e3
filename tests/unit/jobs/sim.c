/* The world around the jobs room, its witness and its invariants. */
#include "tests/unit/jobs/sim.h"

#include <ftw.h>
#include <poll.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "coordinator/plan/inputs.h"

#define LEASE_SUSPECT (3 * NS_PER_S)
#define LEASE_LOST (5 * NS_PER_S)
#define TICK (500 * NS_PER_MS)

void sim_broken(struct sim *s, const char *fmt, ...)
{
    va_list ap;
    if (s->broken[0])
        return;
    va_start(ap, fmt);
    vsnprintf(s->broken, sizeof s->broken, fmt, ap);
    va_end(ap);
}

uint64_t sim_rand(struct sim *s, uint64_t below)
{
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 7;
    s->rng ^= s->rng << 17;
    return below ? (s->rng * 0x2545f4914f6cdd1dull >> 11) % below : 0;
}

static uint64_t mono(void *arg)
{
    return ((struct sim *)arg)->now_ns;
}

static int64_t wall(void *arg)
{
    return 1800000000000000ll + (int64_t)(((struct sim *)arg)->now_ns / 1000);
}

static void fill(void *arg, void *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)out)[i] = (uint8_t)sim_rand(arg, 256);
}

uint64_t sim_model_bytes(unsigned model)
{
    static const uint64_t bytes[SIM_MODELS] = {8000, 40000, 120000};
    return bytes[model];
}

static const struct policy *policy_of(void *ctx, const char *principal)
{
    struct sim *s = ctx;
    static struct policy wide; /* only with a fault that is meant to be caught */
    for (unsigned i = 0; i < SIM_PRINCIPALS; i++)
        if (!strcmp(s->policy[i].principal, principal)) {
            if (s->fault != FAULT_QUOTA_BLIND)
                return &s->policy[i];
            wide = s->policy[i];
            wide.quota_bytes *= 4;
            return &wide;
        }
    return NULL;
}

static int links(void *ctx, struct cluster *c)
{
    (void)ctx;
    c->has_default_link = true;
    c->default_link = (struct cluster_rate){1e8, 1e-4};
    return ST_OK;
}

static void open_room(struct sim *s)
{
    struct err e = {0};
    const struct jobs_cfg cfg = {.clock = &s->clock,
                                 .rng = &s->random,
                                 .log = &s->log,
                                 .store = s->store,
                                 .port = s->port,
                                 .plan = sim_plan,
                                 .plan_ctx = s,
                                 .agents = &sim_agents,
                                 .agents_ctx = s,
                                 .policy = policy_of,
                                 .policy_ctx = s,
                                 .links = links};
    struct jobs_cfg c = cfg;
    if (topo_new(&s->topo, LEASE_SUSPECT, LEASE_LOST, s->topo_epoch += 1000) < 0)
        abort();
    for (unsigned i = 0; i < SIM_NODES; i++)
        if (topo_expect(s->topo, s->node[i].name, s->now_ns, 1, 1) < 0)
            abort();
    c.topo = s->topo;
    if (store_open(&s->store, &(struct store_config){.path = s->state}, &e) < 0)
        goto fail;
    c.store = s->store;
    if (quota_new(&s->quota, rng_system()) < 0)
        abort();
    c.quota = s->quota;
    if (jobs_new(&s->jobs, &c) < 0 || jobs_load(s->jobs, &e) < 0 || store_start(s->store, s->port, &e) < 0)
        goto fail;
    return;
fail:
    fprintf(stderr, "sim: %s\n", e.text);
    abort();
}

void sim_open(struct sim *s, uint64_t seed)
{
    *s = (struct sim){.rng = seed * 0x9e3779b97f4a7c15ull + 0x1234567, .now_ns = NS_PER_S};
    s->clock = (struct clock){mono, wall, s};
    s->random = (struct rng){fill, s};
    s->log = (struct log){.fd = STDERR_FILENO,
                          .level = getenv("SIM_LOG") ? LOG_LV_DEBUG : LOG_LV_ERROR,
                          .program = "sim",
                          .clock = &s->clock};
    snprintf(s->dir, sizeof s->dir, "%s/strata-sim-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(s->dir) || port_new(&s->port) < 0)
        abort();
    snprintf(s->state, sizeof s->state, "%s/state.db", s->dir);
    for (unsigned i = 0; i < SIM_PRINCIPALS; i++) {
        s->policy[i] = (struct policy){.roles = ROLE_BIT(ROLE_USER), .created_us = 1, .generation = 1};
        snprintf(s->policy[i].principal, sizeof s->policy[i].principal, "user/u%u", i);
        s->policy[i].has_quota = i > 0;
        s->policy[i].quota_bytes = i * 150000;
    }
    for (unsigned i = 0; i < SIM_NODES; i++) {
        struct sim_node *n = &s->node[i];
        snprintf(n->name, sizeof n->name, "n%u", i);
        n->ndevices = 1 + (unsigned)sim_rand(s, 2);
        n->capacity[0] = 60000 + sim_rand(s, 60000);
        n->capacity[1] = 40000 + sim_rand(s, 60000);
        for (unsigned m = 0; m < SIM_MODELS; m++)
            n->has_model[m] = i == m || sim_rand(s, 3) == 0;
    }
    open_room(s);
    for (unsigned i = 0; i < SIM_NODES; i++)
        sim_node_up(s, i);
}

static int rm(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static void close_room(struct sim *s)
{
    jobs_stop(s->jobs);
    sim_calls_end(s, SIM_NODES);
    store_close(s->store);
    port_drain(s->port);
    jobs_free(s->jobs);
    quota_free(s->quota);
    topo_free(s->topo);
}

void sim_close(struct sim *s)
{
    close_room(s);
    port_free(s->port);
    while (s->acked) {
        struct sim_job *next = s->acked->next;
        free(s->acked);
        s->acked = next;
    }
    nftw(s->dir, rm, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- time ---- */

static void barrier(void *arg, int rc, const struct err *e)
{
    (void)rc;
    (void)e;
    *(bool *)arg = true;
}

static uint64_t written(struct sim *s)
{
    struct store_stats st;
    store_stats(s->store, &st);
    return st.committed + st.refused;
}

/* A barrier goes through the store's queue until nothing but barriers does. */
void sim_settle(struct sim *s)
{
    for (;;) {
        bool through = false;
        uint64_t before = written(s);
        if (store_submit(s->store, store_txn_new(), barrier, &through) < 0)
            abort();
        while (!through) {
            struct pollfd fd = {.fd = port_fd(s->port), .events = POLLIN};
            if (poll(&fd, 1, 20000) <= 0)
                abort();
            port_drain(s->port);
        }
        if (store_room(s->store) == 4096 && written(s) - before == 1)
            return;
    }
}

static void lease(struct topo_node *n, enum topo_state was, void *arg)
{
    struct sim *s = arg;
    (void)was;
    if (n->state == TOPO_LOST) {
        n->user = NULL;
        jobs_node_lost(s->jobs, n);
    }
}

static void heartbeats(struct sim *s)
{
    for (unsigned i = 0; i < SIM_NODES; i++) {
        struct sim_node *n = &s->node[i];
        struct topo_node *t = topo_node(s->topo, n->name);
        if (!n->up || !t)
            continue;
        if (topo_heartbeat(s->topo, t, t->epoch, s->now_ns, wall(s)) <
            0) { /* it is told to say hello again */
            sim_node_down(s, i, true);
            sim_node_up(s, i);
            continue;
        }
        for (size_t k = 0; k < t->ndevices; k++) {
            uint64_t held = sim_held_bytes(n, t->devices[k].local_id), was = t->devices[k].available_bytes;
            t->devices[k].available_bytes =
                t->devices[k].memory_bytes > held ? t->devices[k].memory_bytes - held : 0;
            if (t->devices[k].available_bytes > was)
                jobs_room_changed(s->jobs);
        }
    }
    topo_tick(s->topo, s->now_ns, lease, s);
    jobs_tick(s->jobs);
}

bool sim_step(struct sim *s)
{
    uint64_t due = sim_next_due(s), tick = (s->now_ns / TICK + 1) * TICK;
    if (due <= tick) {
        s->now_ns = due > s->now_ns ? due : s->now_ns;
        sim_run_due(s);
    } else {
        s->now_ns = tick;
        heartbeats(s);
    }
    sim_settle(s);
    sim_check(s);
    return due != UINT64_MAX;
}

void sim_run_for(struct sim *s, uint64_t ns)
{
    uint64_t end = s->now_ns + ns;
    while (s->now_ns < end && !s->broken[0])
        sim_step(s);
}

/* ---- nodes ---- */

void sim_node_up(struct sim *s, unsigned i)
{
    struct sim_node *n = &s->node[i];
    struct topo_device d[2] = {0};
    struct topo_node *t;
    struct err e;
    struct jobs_resident r[SIM_HELD];
    unsigned at[SIM_HELD], nr = 0;
    if (n->up)
        return;
    n->up = true;
    n->session++;
    for (unsigned k = 0; k < n->ndevices; k++) {
        snprintf(d[k].local_id, sizeof d[k].local_id, "cpu:%u", k);
        d[k].memory_bytes = n->capacity[k] * (s->fault == FAULT_MEMORY_BLIND ? 4 : 1);
        uint64_t held = sim_held_bytes(n, d[k].local_id);
        d[k].available_bytes = d[k].memory_bytes - held;
        d[k].flops_per_s = 1e9 * (1 + i);
        d[k].bytes_per_s = 1e9;
    }
    for (unsigned k = 0; k < SIM_HELD; k++)
        if (n->held[k].used && !n->held[k].loading) {
            const struct sim_held *h = &n->held[k];
            at[nr] = k;
            r[nr++] = (struct jobs_resident){
                .job = h->job, .layer = h->layer, .device = h->device, .sha256 = h->sha, .bytes = h->bytes};
        }
    if (topo_hello(s->topo, n->name, d, n->ndevices, s->now_ns, wall(s), &t, &e) < 0)
        abort();
    t->user = n;
    t->draining = n->drained;
    str_copy(t->peer_address, sizeof t->peer_address, "127.0.0.1:1");
    jobs_node_up(s->jobs, t, r, nr);
    for (unsigned k = 0; k < nr; k++) /* the hello's answer arrives before anything that was asked after it */
        if (r[k].drop)
            n->held[at[k]].used = false;
}

void sim_node_down(struct sim *s, unsigned i, bool keeps)
{
    struct sim_node *n = &s->node[i];
    if (!n->up)
        return;
    n->up = false;
    for (unsigned k = 0; k < SIM_HELD; k++)
        if (!keeps || n->held[k].loading) /* a load ends with the call that asked for it */
            n->held[k].used = false;
    topo_disconnected(s->topo, topo_node(s->topo, n->name));
    sim_calls_end(s, i);
}

static void vanish(struct sim *s)
{
    sqlite3 *db;
    struct sim_job *w = s->acked;
    char sql[120];
    if (!w || sqlite3_open(s->state, &db) != SQLITE_OK)
        return;
    snprintf(sql, sizeof sql, "DELETE FROM job WHERE id='%s'", w->id);
    sqlite3_exec(db, sql, NULL, NULL, NULL);
    sqlite3_close(db);
}

void sim_restart(struct sim *s)
{
    for (unsigned i = 0; i < SIM_NODES; i++)
        sim_node_down(s, i, true);
    close_room(s);
    s->restarts++;
    if (s->fault == FAULT_JOB_VANISHES)
        vanish(s);
    open_room(s);
    sim_check(s);
    for (unsigned i = 0; i < SIM_NODES; i++)
        if (sim_rand(s, 8))
            sim_node_up(s, i);
    sim_settle(s);
}

/* ---- users ---- */

struct asking {
    struct sim *s;
    struct sim_spec sp;
    char request[32];
    bool dry_run;
    struct sim_answer *a;
};

static void on_submitted(void *arg, const struct job *j, const struct err *e)
{
    struct asking *k = arg;
    struct sim *s = k->s;
    if (k->a) {
        k->a->done = true;
        k->a->e = j ? (struct err){0} : *e;
        str_copy(k->a->id, sizeof k->a->id, j ? j->id : "");
    }
    s->refusals += !j;
    if (j && !k->dry_run) {
        struct sim_job *w = s->acked;
        while (w && strcmp(w->id, j->id))
            w = w->next;
        for (const struct sim_job *o = s->acked; o && k->request[0]; o = o->next)
            if (!strcmp(o->request, k->request) && o->principal == k->sp.principal && strcmp(o->id, j->id))
                sim_broken(s, "request %s made both %s and %s", k->request, o->id, j->id);
        if (!w) {
            w = calloc(1, sizeof *w);
            if (!w)
                abort();
            str_copy(w->id, sizeof w->id, j->id);
            str_copy(w->request, sizeof w->request, k->request);
            w->principal = k->sp.principal;
            w->model = k->sp.model;
            w->next = s->acked;
            s->acked = w;
        }
    }
    free(k);
}

void sim_submit(struct sim *s, const struct sim_spec *sp, bool dry_run, struct sim_answer *a)
{
    struct asking *k = calloc(1, sizeof *k);
    char path[16];
    if (!k)
        abort();
    *k = (struct asking){.s = s, .sp = *sp, .dry_run = dry_run, .a = a};
    str_copy(k->request, sizeof k->request, sp->request ? sp->request : "");
    snprintf(path, sizeof path, "/m/m%u", sp->model);
    struct job_spec js = {.path = path,
                          .goal = sp->goal,
                          .min_nodes = sp->min_nodes,
                          .priority = sp->priority,
                          .preemptible = sp->preemptible};
    s->submits++;
    if (a)
        *a = (struct sim_answer){0};
    jobs_submit(s->jobs, &js, s->policy[sp->principal].principal, sp->request, dry_run, on_submitted, k);
}

struct cancelling {
    struct sim *s;
    char id[40];
    struct sim_answer *a;
};

static void on_cancelled(void *arg, int rc, const struct err *e)
{
    struct cancelling *k = arg;
    if (k->a) {
        k->a->done = true;
        k->a->e = *e;
        k->a->e.code = rc;
    }
    for (struct sim_job *w = k->s->acked; w; w = w->next)
        if (!strcmp(w->id, k->id) && rc == ST_OK)
            w->cancel_acked = true;
    free(k);
}

void sim_cancel(struct sim *s, const char *id, struct sim_answer *a)
{
    struct job *j = jobs_find(s->jobs, id);
    struct cancelling *k = calloc(1, sizeof *k);
    if (!j || !k)
        abort();
    k->s = s;
    k->a = a;
    str_copy(k->id, sizeof k->id, id);
    if (a)
        *a = (struct sim_answer){0};
    jobs_cancel(s->jobs, j, "user/admin", on_cancelled, k);
}

static void on_moved(void *arg, int rc, const struct err *e)
{
    struct cancelling *k = arg;
    if (k->a) {
        k->a->done = true;
        k->a->e = *e;
        k->a->e.code = rc;
    }
    free(k);
}

void sim_move(struct sim *s, const char *id, const char *first, const char *last, const char *to,
              struct sim_answer *a)
{
    struct cancelling *k = calloc(1, sizeof *k);
    if (!k)
        abort();
    k->s = s;
    k->a = a;
    if (a)
        *a = (struct sim_answer){0};
    jobs_move(s->jobs, jobs_find(s->jobs, id), first, last, to, "user/admin", on_moved, k);
}

struct job *sim_job(struct sim *s, const char *id)
{
    return jobs_find(s->jobs, id);
}

/* ---- invariants ---- */

static void check_witness(struct sim *s)
{
    for (const struct sim_job *w = s->acked; w; w = w->next) {
        const struct job *j = jobs_find(s->jobs, w->id);
        if (!j)
            sim_broken(s, "acknowledged job %s is lost", w->id);
        else if (w->cancel_acked && !job_ended(j->state) && j->state != JOB_RELEASING)
            sim_broken(s, "job %s is %s after its cancel was acknowledged", w->id, job_state_name(j->state));
    }
}

/* The ledger knows of every placed byte, and of nothing else. */
static void check_ledger(struct sim *s, const char *principal, uint64_t used)
{
    const struct quota *q = s->quota;
    uint64_t counted = quota_usage(q, principal, "").committed;
    if (counted != used)
        sim_broken(s, "%s holds %llu bytes, the ledger says %llu", principal, (unsigned long long)used,
                   (unsigned long long)counted);
    for (unsigned i = 0; i < SIM_NODES; i++) {
        struct topo_node *t = topo_node(s->topo, s->node[i].name);
        for (size_t k = 0; t && k < t->ndevices; k++) {
            uint64_t sum = 0;
            for (const struct job *j = jobs_first(s->jobs); j; j = j->next)
                for (size_t l = 0; l < j->nlayers && !job_ended(j->state) && j->state != JOB_QUEUED &&
                                   !strcmp(j->principal, principal);
                     l++)
                    sum += !strcmp(j->layers[l].device, t->devices[k].id) ? j->layers[l].mem : 0;
            counted = quota_usage(q, principal, t->devices[k].id).committed;
            if (counted < sum)
                sim_broken(s, "%s holds %llu bytes on %s, the ledger says %llu", principal,
                           (unsigned long long)sum, t->devices[k].id, (unsigned long long)counted);
        }
    }
}

static void check_quota(struct sim *s)
{
    for (unsigned i = 0; i < SIM_PRINCIPALS; i++) {
        uint64_t used = 0, placed = 0;
        for (const struct job *j = jobs_first(s->jobs); j; j = j->next)
            for (size_t k = 0; k < j->nlayers && !job_ended(j->state); k++)
                if (j->layers[k].device[0] && !strcmp(j->principal, s->policy[i].principal)) {
                    used += j->layers[k].mem;
                    placed += j->state != JOB_QUEUED ? j->layers[k].mem : 0;
                }
        check_ledger(s, s->policy[i].principal, placed);
        if (s->policy[i].has_quota && used > s->policy[i].quota_bytes)
            sim_broken(s, "%s holds %llu bytes, its quota is %llu", s->policy[i].principal,
                       (unsigned long long)used, (unsigned long long)s->policy[i].quota_bytes);
    }
}

static void check_devices(struct sim *s)
{
    for (unsigned i = 0; i < SIM_NODES; i++) {
        struct topo_node *t = topo_node(s->topo, s->node[i].name);
        for (size_t k = 0; t && k < t->ndevices; k++) {
            uint64_t sum = 0, cap = s->node[i].capacity[k];
            for (const struct job *j = jobs_first(s->jobs); j; j = j->next) {
                for (size_t l = 0; l < j->nlayers && !job_ended(j->state); l++)
                    sum += !strcmp(j->layers[l].device, t->devices[k].id) ? j->layers[l].mem : 0;
                for (const struct job_shift *h = j->shifts; h; h = h->next)
                    sum +=
                        h->state == SHIFT_COPY && !strcmp(h->copy.device, t->devices[k].id) ? h->copy.mem : 0;
            }
            if (sum > cap)
                sim_broken(s, "%s: jobs own %llu bytes, it has %llu", t->devices[k].id,
                           (unsigned long long)sum, (unsigned long long)cap);
        }
    }
}

static const struct sim_held *held_for(const struct sim *s, const struct job *j, const struct job_layer *l)
{
    for (unsigned i = 0; i < SIM_NODES; i++)
        for (unsigned k = 0; k < SIM_HELD; k++) {
            const struct sim_held *h = &s->node[i].held[k];
            size_t n = strlen(s->node[i].name);
            if (h->used && !h->loading && !strcmp(h->job, j->id) && !strcmp(h->layer, l->id) &&
                !strncmp(l->device, s->node[i].name, n) && l->device[n] == '/' &&
                !strcmp(l->device + n + 1, h->device))
                return h;
        }
    return NULL;
}

/* Where the node is connected, what the job says is verified is there. */
static void check_resident(struct sim *s)
{
    for (const struct job *j = jobs_first(s->jobs); j; j = j->next)
        for (size_t k = 0; k < j->nlayers; k++) {
            struct topo_node *n = NULL;
            if (j->layers[k].state != LAYER_VERIFIED || job_ended(j->state) || j->state == JOB_RELEASING ||
                !topo_device(s->topo, j->layers[k].device, &n) || !n->user)
                continue;
            if (!held_for(s, j, &j->layers[k]))
                sim_broken(s, "layer %s of %s is verified on %s, which does not hold it", j->layers[k].id,
                           j->id, j->layers[k].device);
        }
}

void sim_check(struct sim *s)
{
    check_witness(s);
    check_quota(s);
    check_devices(s);
    check_resident(s);
}

static bool owned(const struct sim *s, unsigned node, const struct sim_held *h)
{
    const struct job *j = jobs_find(s->jobs, h->job);
    char device[96];
    snprintf(device, sizeof device, "%s/%s", s->node[node].name, h->device);
    for (size_t i = 0; j && !job_ended(j->state) && i < j->nlayers; i++)
        if (!strcmp(j->layers[i].id, h->layer) && !strcmp(j->layers[i].device, device))
            return true;
    return false;
}

/* What the coordinator takes off a device's free bytes once is what the device really holds. */
static void check_counted(struct sim *s)
{
    for (unsigned i = 0; i < SIM_NODES; i++) {
        struct topo_node *t = topo_node(s->topo, s->node[i].name);
        for (size_t k = 0; t && t->user && k < t->ndevices; k++) {
            uint64_t held = sim_held_bytes(&s->node[i], t->devices[k].local_id);
            if (t->devices[k].resident_bytes != held)
                sim_broken(s, "%s: counted as resident %llu bytes, it holds %llu", t->devices[k].id,
                           (unsigned long long)t->devices[k].resident_bytes, (unsigned long long)held);
        }
    }
}

/* Every plan in state.db is what its inputs, beside it, give again, and stands the check. */
static void check_plans(struct sim *s)
{
    sqlite3 *db;
    sqlite3_stmt *st = NULL;
    if (sqlite3_open(s->state, &db) != SQLITE_OK ||
        sqlite3_prepare_v2(db, "SELECT job,doc,inputs FROM plan", -1, &st, NULL) != SQLITE_OK)
        abort();
    while (sqlite3_step(st) == SQLITE_ROW) {
        const char *job = (const char *)sqlite3_column_text(st, 0), *doc = sqlite3_column_blob(st, 1);
        size_t n = (size_t)sqlite3_column_bytes(st, 1), line;
        struct plan_inputs in;
        struct plan *p = NULL;
        struct plan_check_report rep = {0};
        struct err e = {0};
        int rc =
            plan_inputs_from_json(sqlite3_column_blob(st, 2), (size_t)sqlite3_column_bytes(st, 2), &in, &e);
        if (rc == ST_OK)
            rc = plan_inputs_again(&in, doc, n, &line, &e);
        if (rc == ST_OK && (rc = plan_from_json(doc, n, &p, &e)) == ST_OK)
            rc = plan_check(in.c, in.m, &in.r, p, &rep, &e);
        if (rc < 0)
            sim_broken(s, "the stored plan of job %s: %s", job, e.text);
        plan_check_fini(&rep);
        plan_free(p);
        plan_inputs_fini(&in);
    }
    sqlite3_finalize(st);
    sqlite3_close(db);
}

void sim_check_quiet(struct sim *s)
{
    sim_check(s);
    for (unsigned i = 0; i < SIM_NODES; i++)
        for (unsigned k = 0; k < SIM_HELD; k++)
            if (s->node[i].held[k].used && !owned(s, i, &s->node[i].held[k]))
                sim_broken(s, "%s holds %s of %s, which nobody owns", s->node[i].name,
                           s->node[i].held[k].layer, s->node[i].held[k].job);
    bool busy = false;
    for (const struct job *j = jobs_first(s->jobs); j; j = j->next) {
        busy |= !job_ended(j->state) && j->state != JOB_QUEUED;
        if (j->shifts)
            sim_broken(s, "layers of job %s are still on their way", j->id);
    }
    for (const struct job *j = jobs_first(s->jobs); j; j = j->next)
        if (j->state == JOB_QUEUED && !busy)
            sim_broken(s, "job %s waits though all devices are empty: %s", j->id, j->reason);
    for (const struct job *j = jobs_first(s->jobs); j; j = j->next)
        if (!job_ended(j->state) && j->state != JOB_READY && j->state != JOB_QUEUED)
            sim_broken(s, "job %s stays %s: %s", j->id, job_state_name(j->state), j->reason);
    check_counted(s);
    check_plans(s);
}
