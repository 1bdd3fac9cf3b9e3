/*
 * plan calibrate: each placed layer's bytes run through a kernel on their device, one layer after the other
 * so that none disturbs another, beside what the plan's inputs say it takes; hops beside the latest
 * measurement of their links. What is off corrects the devices' rates, if an admin asks for it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/calibration.h"
#include "coordinator/api/net.h"
#include "coordinator/plan/inputs.h"
#include "strata/v1/layers.pb-c.h"
#include "strata/v1/plans.pb-c.h"

#define TIME_NS (120 * NS_PER_S) /* for one layer */
#define ROUNDS_MAX 100u
#define ENOUGH_S 1e-4 /* less measured time than this on a device corrects nothing */

struct timed { /* a layer */
    char *id, *device;
    double flops, read_bytes, out_bytes;
    double predicted_s, measured_s;   /* 0 = not known */
    double memory_part, compute_part; /* seconds of the prediction without overheads, by either rate */
    double overhead_s, factor;
};
struct calibrate {
    struct offload_job job; /* first */
    struct coord *c;
    struct rpc_call *call, *ask; /* the caller's, NULL once it is gone; the agent's that runs */
    char id[40];
    unsigned rounds;
    bool correct;
    struct timed *v;
    size_t n, at;
    struct plan_inputs in;
    struct buf text;
    char node_name[64]; /* of the layer that runs */
    Strata__V1__DeviceTiming *device;
    size_t ndevices;
    int rc;
    struct err e;
};

static void calibrate_free(struct calibrate *k)
{
    k->c->calibrating = false;
    for (size_t i = 0; i < k->n; i++) {
        free(k->v[i].id);
        free(k->v[i].device);
    }
    free(k->v);
    free(k->device);
    plan_inputs_fini(&k->in);
    buf_fini(&k->text);
    free(k);
}

static void give_up(struct calibrate *k, const struct err *e)
{
    if (k->call)
        rpc_fail(k->call, e);
    calibrate_free(k);
}

/* ---- off the loop: what was planned ---- */

static void predict(struct calibrate *k, struct timed *t)
{
    uint32_t l = model_find(k->in.m, t->id), d = cluster_find_device(k->in.c, t->device);
    if (l == MODEL_NONE)
        return;
    const struct model_layer *m = &k->in.m->layers[l];
    t->flops = m->flops;
    t->read_bytes = m->read_bytes;
    t->out_bytes = m->output_bytes;
    if (d == UINT32_MAX)
        return;
    const struct cluster_device *cd = &k->in.c->devices[d];
    t->factor = cd->speed_factor;
    t->overhead_s = cd->layer_overhead_s;
    t->memory_part = m->read_bytes / cd->memory_bytes_per_s;
    t->compute_part = m->flops / cd->compute_flops_per_s;
    t->predicted_s = cd->speed_factor * (cd->layer_overhead_s + fmax(t->memory_part, t->compute_part));
}

static void read_inputs(struct offload_job *j)
{
    struct calibrate *k = (struct calibrate *)j;
    uint64_t total = 0;
    int64_t made;
    k->rc = store_plan_inputs(k->c->store, k->id, 0, PLAN_INPUTS_MAX, &k->text, &total, &made, &k->e);
    if (k->rc == ST_OK && (!total || total > PLAN_INPUTS_MAX))
        k->rc = err_reason(&k->e, ST_ENOENT, "NO_PLAN", "what the plan of job %s was made from is not kept",
                           k->id);
    if (k->rc == ST_OK)
        k->rc = plan_inputs_from_json(buf_cstr(&k->text), k->text.len, &k->in, &k->e);
    for (size_t i = 0; i < k->n && k->rc == ST_OK; i++)
        predict(k, &k->v[i]);
}

/* ---- what came out ---- */

/* What the agent's rates would be multiplied with for the layers to take as long as they did: each rate by
 * those layers that it bounds. */
static void fit(const struct calibrate *k, Strata__V1__DeviceTiming *d)
{
    double memory, compute, sum[2] = {0}, took[2] = {0};
    struct topo_node *n;
    const struct topo_device *td = topo_device(k->c->topo, d->device, &n);
    calibration_of(k->c, d->device, &memory, &compute);
    d->memory_was = d->memory_bytes_per_s = td ? td->bytes_per_s : 0;
    d->compute_was = d->compute_flops_per_s = td ? td->flops_per_s : 0;
    double raw[2] = {d->memory_was / memory, d->compute_was / compute};
    for (size_t i = 0; i < k->n && td; i++) {
        const struct timed *t = &k->v[i];
        if (strcmp(t->device, d->device) || !(t->measured_s > 0) || !(t->predicted_s > 0))
            continue;
        bool bound = t->compute_part > t->memory_part;
        d->layers++;
        d->predicted_s += t->predicted_s;
        d->measured_s += t->measured_s;
        sum[bound] += bound ? t->flops / raw[1] : t->read_bytes / raw[0];
        took[bound] += t->measured_s / t->factor - t->overhead_s;
    }
    for (int i = 0; i < 2; i++)
        if (took[i] >= ENOUGH_S) {
            double f = fmin(fmax(sum[i] / took[i], CALIBRATION_MIN), CALIBRATION_MAX);
            if (i)
                d->compute_flops_per_s = raw[1] * f;
            else
                d->memory_bytes_per_s = raw[0] * f;
        }
}

static int collect(struct calibrate *k)
{
    if (!(k->device = calloc(k->n + 1, sizeof *k->device)))
        return ST_ENOMEM;
    for (size_t i = 0; i < k->n; i++) {
        size_t at = 0;
        while (at < k->ndevices && strcmp(k->device[at].device, k->v[i].device))
            at++;
        if (at < k->ndevices)
            continue;
        Strata__V1__DeviceTiming *d = &k->device[k->ndevices++];
        strata__v1__device_timing__init(d);
        d->device = k->v[i].device;
        fit(k, d);
    }
    return ST_OK;
}

static void node_of(const char *device, char out[64])
{
    size_t n = strcspn(device, "/");
    snprintf(out, 64, "%.*s", (int)n, device);
}

static bool hop(const struct calibrate *k, size_t i, Strata__V1__HopTiming *h)
{
    const struct timed *a = &k->v[i - 1], *b = &k->v[i];
    char from[64], to[64];
    struct cluster_rate r;
    node_of(a->device, from);
    node_of(b->device, to);
    if (!strcmp(from, to))
        return false;
    strata__v1__hop_timing__init(h);
    h->from = a->device;
    h->to = b->device;
    h->layer = b->id;
    h->bytes = a->out_bytes;
    uint32_t x = cluster_find_node(k->in.c, from), y = cluster_find_node(k->in.c, to);
    if (x != CLUSTER_NO_NODE && y != CLUSTER_NO_NODE && cluster_path(k->in.c, x, y, &r) == 1)
        h->predicted_s = r.rtt_s / 2 + h->bytes / r.bytes_per_s;
    const struct net_link *l = netmap_find(k->c->net->map, from, to);
    if (l && l->reached && !l->disputed && l->bytes_per_s > 0) {
        h->measured_s = l->rtt_p50_s / 2 + h->bytes / l->bytes_per_s;
        h->measured_us = l->tried_us < l->rate_us ? l->tried_us : l->rate_us;
    }
    return true;
}

/* The last message, and the end. */
static void tell(struct calibrate *k)
{
    Strata__V1__CalibrateProgress m = STRATA__V1__CALIBRATE_PROGRESS__INIT;
    Strata__V1__HopTiming *h = calloc(k->n + 1, sizeof *h), **ph = calloc(k->n + 1, sizeof(*ph));
    Strata__V1__DeviceTiming **pd = calloc(k->ndevices + 1, sizeof(*pd));
    if (!h || !ph || !pd) {
        if (k->call)
            api_no_memory(k->call);
    } else if (k->call) {
        for (size_t i = 1; i < k->n; i++)
            if (hop(k, i, &h[m.n_hops])) {
                ph[m.n_hops] = &h[m.n_hops];
                m.n_hops++;
            }
        for (size_t i = 0; i < k->ndevices; i++)
            pd[i] = &k->device[i];
        m.layers = m.done = (uint32_t)k->n;
        m.hops = ph;
        m.devices = pd;
        m.n_devices = k->ndevices;
        rpc_reply(k->call, &m.base);
    }
    free(h);
    free(ph);
    free(pd);
    calibrate_free(k);
}

static void corrected(void *arg, int rc, const struct err *e)
{
    struct calibrate *k = arg;
    if (k->c->stopping || rc < 0) {
        give_up(k, e);
        return;
    }
    for (size_t i = 0; i < k->ndevices; i++) {
        Strata__V1__DeviceTiming *d = &k->device[i];
        double memory, compute;
        calibration_of(k->c, d->device, &memory, &compute);
        if (d->layers && d->memory_was > 0 && d->compute_was > 0 &&
            calibration_set(k->c, d->device, memory * d->memory_bytes_per_s / d->memory_was,
                            compute * d->compute_flops_per_s / d->compute_was) == ST_OK)
            d->corrected = true;
    }
    tell(k);
}

static void note(struct calibrate *k, struct store_txn *t, const Strata__V1__DeviceTiming *d)
{
    struct event_meta m = {0};
    double memory, compute;
    int64_t now = clock_wall_us(k->c->clock);
    calibration_of(k->c, d->device, &memory, &compute);
    store_txn_calibration_put(
        t, &(struct store_calibration){.device = d->device,
                                       .memory = memory * d->memory_bytes_per_s / d->memory_was,
                                       .compute = compute * d->compute_flops_per_s / d->compute_was,
                                       .updated_us = now});
    struct audit_event ev = event_make(EV_PLAN_CALIBRATED, EVENT_SUCCESS, now);
    event_meta_u64(&m, "layers", d->layers);
    event_meta_f64(&m, "memory", d->memory_bytes_per_s / d->memory_was);
    event_meta_f64(&m, "compute", d->compute_flops_per_s / d->compute_was);
    event_meta_f64(&m, "predicted", d->predicted_s);
    event_meta_f64(&m, "measured", d->measured_s);
    ev.principal = rpc_peer(k->call)->principal;
    ev.device = d->device;
    ev.operation = "plan.calibrate";
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
}

static void conclude(struct calibrate *k)
{
    struct store_txn *t = NULL;
    size_t n = 0;
    struct err e = {0};
    int rc = collect(k);
    if (rc == ST_OK && k->correct && k->call && !(t = store_txn_new()))
        rc = ST_ENOMEM;
    for (size_t i = 0; t && i < k->ndevices; i++)
        if (k->device[i].layers && k->device[i].memory_was > 0 && k->device[i].compute_was > 0) {
            note(k, t, &k->device[i]);
            n++;
        }
    if (rc < 0) {
        err_set(&e, rc, "no memory for what was measured");
        give_up(k, &e);
    } else if (!n) {
        store_txn_free(t);
        tell(k);
    } else if ((rc = store_submit(k->c->store, t, corrected, k)) < 0) {
        err_set(&e, rc, "state.db does not take the correction now (%s): try again", status_name(rc));
        give_up(k, &e);
    }
}

/* ---- layer by layer ---- */

static void next(struct calibrate *k);

static void on_time(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct calibrate *k = arg;
    struct timed *t = &k->v[k->at];
    const Strata__V1__TimeReply *r = (const Strata__V1__TimeReply *)msg;
    (void)call;
    /* Whole rows were read, and so much computed as a layout allows: what bounds the layer sets the scale. */
    double done = t->compute_part > t->memory_part ? t->flops / r->flops : t->read_bytes / (double)r->bytes;
    if (r->bytes && r->flops > 0 && r->best_s > 0 && done < 1e6)
        t->measured_s = r->best_s * done;
}

static void send_layer(struct calibrate *k, struct timed *t)
{
    Strata__V1__CalibrateProgress m = STRATA__V1__CALIBRATE_PROGRESS__INIT;
    Strata__V1__LayerTiming l = STRATA__V1__LAYER_TIMING__INIT;
    l.layer = t->id;
    l.device = t->device;
    l.predicted_s = t->predicted_s;
    l.measured_s = t->measured_s;
    l.compute_bound = t->compute_part > t->memory_part;
    m.layers = (uint32_t)k->n;
    m.done = (uint32_t)k->at + 1;
    m.layer = &l;
    /* Nobody reads as slowly as layers are measured; a row that finds no room is not worth waiting for. */
    (void)!rpc_send(k->call, &m.base);
}

static void on_timed(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct calibrate *k = arg;
    struct err e;
    (void)call;
    (void)digest;
    k->ask = NULL;
    if (!k->call || k->c->stopping) {
        calibrate_free(k);
        return;
    }
    if (st->code) {
        err_reason(&e, status_from_rpc(st->code), st->reason, "node %s: %s", k->node_name, st->text);
        give_up(k, &e);
        return;
    }
    send_layer(k, &k->v[k->at]);
    k->at++;
    next(k);
}

static const struct rpc_call_ops time_ops = {.on_message = on_time, .on_done = on_timed};

static bool runs(const struct timed *t)
{
    return t->flops > 0 && t->read_bytes >= 2;
}

static void next(struct calibrate *k)
{
    while (k->at < k->n && !runs(&k->v[k->at]))
        k->at++;
    if (k->at == k->n) {
        conclude(k);
        return;
    }
    struct timed *t = &k->v[k->at];
    struct topo_node *n = NULL;
    struct err e = {0};
    const struct rpc_call_opts o = {.timeout_ns = TIME_NS};
    Strata__V1__TimeRequest q = STRATA__V1__TIME_REQUEST__INIT;
    struct topo_device *d = topo_device(k->c->topo, t->device, &n);
    struct rpc_session *s = d ? api_node_rpc(n) : NULL;
    node_of(t->device, k->node_name);
    q.job = k->id;
    q.layer = t->id;
    q.device = d ? d->local_id : (char *)"";
    q.flops = t->flops;
    q.read_bytes = t->read_bytes;
    q.rounds = k->rounds;
    int rc = s ? rpc_call(&k->ask, s, &strata__v1__layers__descriptor, "Time", RPC_UNARY, &q.base, &o,
                          &time_ops, k, &e)
               : err_reason(&e, ST_EUNREACH, "NODE_AWAY", "%s, which holds layer %s, is away just now",
                            t->device, t->id);
    if (rc < 0)
        give_up(k, &e);
}

static void inputs_read(struct offload_job *j)
{
    struct calibrate *k = (struct calibrate *)j;
    if (k->rc < 0)
        give_up(k, &k->e);
    else if (!k->call || k->c->stopping)
        calibrate_free(k);
    else
        next(k);
}

static void gone(struct rpc_call *call, void *arg)
{
    struct calibrate *k = arg;
    (void)call;
    k->call = NULL;
    if (k->ask)
        rpc_cancel(k->ask); /* its end follows */
}

static int take_layers(struct calibrate *k, const struct job *j)
{
    if (!(k->v = calloc(j->nlayers + 1, sizeof *k->v)))
        return ST_ENOMEM;
    for (size_t i = 0; i < j->nlayers; i++) {
        k->n++;
        k->v[i].id = strdup(j->layers[i].id);
        k->v[i].device = strdup(j->layers[i].device);
        if (!k->v[i].id || !k->v[i].device)
            return ST_ENOMEM;
    }
    return ST_OK;
}

void api_plans_calibrate(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__CalibrateRequest *q = (const Strata__V1__CalibrateRequest *)req;
    const struct job *j = api_own_job(call, c, q->job);
    if (!j || (q->correct && !api_allow(call, c, PERM_ADMIN)))
        return;
    if (j->state != JOB_READY || q->rounds > ROUNDS_MAX || c->calibrating) {
        if (c->calibrating)
            rpc_finish(call, 9, "BUSY", "another job is being calibrated: two would disturb each other");
        else if (j->state != JOB_READY)
            rpc_finish(call, 9, "NOT_READY", "job %s is %s: only the layers of a ready one can be run", j->id,
                       job_state_name(j->state));
        else
            rpc_finish(call, 3, "TOO_MANY", "a layer is run at most %u times", ROUNDS_MAX);
        return;
    }
    struct calibrate *k = calloc(1, sizeof *k);
    if (!k) {
        api_no_memory(call);
        return;
    }
    *k = (struct calibrate){.c = c, .call = call, .rounds = q->rounds ? q->rounds : 3, .correct = q->correct};
    c->calibrating = true;
    request_init(&k->in.r);
    str_copy(k->id, sizeof k->id, j->id);
    if (take_layers(k, j) < 0) {
        api_no_memory(call);
        calibrate_free(k);
        return;
    }
    k->job.work = read_inputs;
    k->job.done = inputs_read;
    rpc_on_cancel(call, gone, k);
    offload_run(c->offload, &k->job);
}
