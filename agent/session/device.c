/* What is asked of a whole device: its memory as the worker sees it, waiting for it, sensors, kernels. */
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

struct asking {
    struct work w;
    char device[32];
};

static void stop_nothing(struct work *w)
{
    (void)w; /* the worker's answer ends it */
}

static int begin(struct asking **out, struct session *s, struct rpc_call *call, const char *device, int type,
                 struct err *e)
{
    struct asking *a = calloc(1, sizeof *a);
    int rc = a ? session_worker(s, e) : err_set(e, ST_ENOMEM, "no memory for the call");
    if (rc == ST_OK)
        rc = work_begin(s, &a->w, call, type, false, e);
    if (rc < 0) {
        free(a);
        return rc;
    }
    a->w.stop = stop_nothing;
    str_copy(a->device, sizeof a->device, device);
    *out = a;
    return ST_OK;
}

/* reply NULL: *e says why not. */
static void end(struct asking *a, const ProtobufCMessage *reply, const struct err *e)
{
    if (a->w.call) {
        session_audit(a->w.s, a->w.type, reply ? EVENT_SUCCESS : EVENT_FAILURE, a->device, NULL,
                      reply ? NULL : e->text);
        if (reply)
            rpc_reply(a->w.call, reply);
        else
            rpc_fail(a->w.call, e);
        a->w.call = NULL;
    }
    work_end(&a->w);
    free(a);
}

static void usage_known(void *arg, int rc, const struct err *e, const struct worker_usage *u)
{
    struct asking *a = arg;
    struct session *s = a->w.s;
    const struct pool_device *d = session_device(s->owner, a->device);
    Strata__V1__MemoryReading r = STRATA__V1__MEMORY_READING__INIT;
    struct err mine = *e;
    if (rc == ST_OK && (!u || !d))
        rc = err_set(&mine, ST_ENOENT, "the worker has no device %s", a->device);
    if (rc < 0) {
        mine.code = rc;
        end(a, NULL, &mine);
        return;
    }
    r.total_bytes = d->memory_bytes;
    r.available_bytes = u->available_bytes;
    for (const struct buffer *b = s->buffers; b; b = b->next)
        if (b->allocated && strcmp(b->device, a->device) == 0)
            r.session_bytes += b->bytes;
    end(a, &r.base, NULL);
}

static void synchronized_(void *arg, int rc, const struct err *e)
{
    Strata__V1__Empty r = STRATA__V1__EMPTY__INIT;
    struct err mine = *e;
    mine.code = rc;
    end(arg, rc < 0 ? NULL : &r.base, &mine);
}

static void device_synchronize(struct session *s, struct rpc_call *call, const char *device)
{
    struct asking *a;
    struct err e;
    if (begin(&a, s, call, device, EV_COMPUTE_SYNCHRONIZE, &e) < 0)
        rpc_fail(call, &e);
    else if (tenant_sync(s->tenant, device, synchronized_, a, &e) < 0)
        end(a, NULL, &e);
}

/* ---- sensors ---- */

static void reading_known(void *arg, int rc, const struct err *e, const struct gpu_readings *r)
{
    struct asking *a = arg;
    enum gpu_field f = a->w.type == EV_MONITOR_TEMPERATURE ? GPU_TEMPERATURE
                       : a->w.type == EV_MONITOR_POWER     ? GPU_POWER
                                                           : GPU_CLOCK;
    Strata__V1__SensorReading m = STRATA__V1__SENSOR_READING__INIT;
    struct err mine = *e;
    if (rc < 0 || !r) {
        mine.code = rc < 0 ? rc : ST_EINTERNAL;
        end(a, NULL, &mine);
        return;
    }
    m.valid = r->field[f].valid; /* absent is absent: no value is made up */
    m.value = m.valid ? r->field[f].value : 0;
    m.age_ns = m.valid ? r->field[f].age_ns : 0;
    m.source = (char *)r->source;
    end(a, &m.base, NULL);
}

static void device_monitor(struct session *s, struct rpc_call *call, const char *device, int type)
{
    struct asking *a;
    struct err e;
    if (begin(&a, s, call, device, type, &e) < 0)
        rpc_fail(call, &e);
    else if ((type == EV_MONITOR_MEMORY ? tenant_usage(s->tenant, device, usage_known, a, &e)
                                        : tenant_monitor(s->tenant, device, reading_known, a, &e)) < 0)
        end(a, NULL, &e);
}

/* ---- kernels ---- */

struct running {
    struct work w;
    char device[32], kernel[GPU_KERNEL_NAME];
    struct buffer *buffer[GPU_MAX_SPANS];
    unsigned n;
};

static void executed(void *arg, int rc, const struct err *e, uint64_t value)
{
    struct running *r = arg;
    struct event_meta m = {0};
    for (unsigned i = 0; i < r->n; i++)
        r->buffer[i]->busy--;
    event_meta_str(&m, "kernel", r->kernel);
    event_meta_u64(&m, "us", work_us(&r->w));
    session_audit(r->w.s, EV_COMPUTE_EXECUTE, rc < 0 ? EVENT_FAILURE : EVENT_SUCCESS, r->device, &m,
                  rc < 0 ? e->text : NULL);
    if (rc < 0) {
        work_fail(&r->w, rc, e);
    } else if (r->w.call) {
        Strata__V1__ExecuteReply m2 = STRATA__V1__EXECUTE_REPLY__INIT;
        m2.value = value;
        rpc_reply(r->w.call, &m2.base);
        r->w.call = NULL;
    }
    work_end(&r->w);
    free(r);
}

/* Handles to buffers; each must be this session's, on that device, and the span inside it. */
static int spans_of(struct session *s, const Strata__V1__ExecuteRequest *rq, struct gpu_exec *x,
                    struct running *r, struct err *e)
{
    if (rq->code.len || rq->n_groups)
        return err_reason(e, ST_EDENIED, "USER_KERNELS_OFF",
                          "node %s does not run kernels of one's own: use a built-in one",
                          s->owner->cfg.node);
    if (rq->n_spans > GPU_MAX_SPANS || rq->n_scalars > GPU_MAX_SCALARS)
        return err_reason(e, ST_EINVAL, "TOO_MANY_ARGUMENTS",
                          "a kernel takes at most %d spans and %d scalars", GPU_MAX_SPANS, GPU_MAX_SCALARS);
    if (!rq->n_spans)
        return err_reason(e, ST_EINVAL, "NO_SPANS", "a kernel works on at least one span of a buffer");
    if (!str_copy(x->kernel, sizeof x->kernel, rq->kernel))
        return err_reason(e, ST_ENOENT, "NO_KERNEL", "there is no kernel '%.40s'", rq->kernel);
    for (size_t i = 0; i < rq->n_spans; i++) {
        const Strata__V1__Span *p = rq->spans[i];
        struct buffer *b;
        int rc = buffer_find(s, &p->handle, "compute:execute", &b, e);
        if (rc < 0 || (rc = buffer_range(b, p->offset, p->bytes, e)) < 0)
            return rc;
        if (strcmp(b->device, rq->device) != 0)
            return err_reason(e, ST_EINVAL, "OTHER_DEVICE", "span %zu lies on device %s, not on %s", i,
                              b->device, rq->device);
        x->span[x->spans++] = (struct gpu_span){b->memory, p->offset, p->bytes};
        r->buffer[r->n++] = b;
    }
    for (size_t i = 0; i < rq->n_scalars; i++)
        x->scalar[x->scalars++] = rq->scalars[i];
    return ST_OK;
}

static void device_execute(struct session *s, struct rpc_call *call, const Strata__V1__ExecuteRequest *rq)
{
    struct gpu_exec x = {0};
    struct err e;
    struct running *r = calloc(1, sizeof *r);
    int rc = r ? spans_of(s, rq, &x, r, &e) : err_set(&e, ST_ENOMEM, "no memory for the call");
    if (rc == ST_OK)
        rc = work_begin(s, &r->w, call, EV_COMPUTE_EXECUTE, false, &e);
    if (rc < 0) {
        if (rc == ST_EDENIED)
            session_refused(s, "compute:execute", rq->device, &e, "compute:execute");
        free(r);
        rpc_fail(call, &e);
        return;
    }
    r->w.stop = stop_nothing;
    str_copy(r->device, sizeof r->device, rq->device);
    str_copy(r->kernel, sizeof r->kernel, x.kernel);
    for (unsigned i = 0; i < r->n; i++)
        r->buffer[i]->busy++;
    rc = tenant_exec(s->tenant, &x, executed, r, &e);
    if (rc < 0)
        executed(r, rc, &e, 0);
}

/* ---- the services ---- */

static void on_execute(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__ExecuteRequest *rq = (const Strata__V1__ExecuteRequest *)msg;
    struct session *s = call_allowed(call, PERM_COMPUTE_EXECUTE, rq->device);
    (void)arg;
    if (s)
        device_execute(s, call, rq);
}

static void on_synchronize(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const char *device = ((const Strata__V1__SynchronizeRequest *)msg)->device;
    struct session *s = call_allowed(call, PERM_COMPUTE_SYNCHRONIZE, device);
    (void)arg;
    if (s)
        device_synchronize(s, call, device);
}

/* ---- Monitor ---- */

static void monitor(struct rpc_call *call, const ProtobufCMessage *msg, enum permission p, int type)
{
    const char *device = ((const Strata__V1__MonitorRequest *)msg)->device;
    struct session *s = call_allowed(call, p, device);
    if (s)
        device_monitor(s, call, device, type);
}

static void on_monitor_memory(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(call, msg, PERM_MONITOR_MEMORY, EV_MONITOR_MEMORY);
}

static void on_monitor_temperature(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(call, msg, PERM_MONITOR_TEMPERATURE, EV_MONITOR_TEMPERATURE);
}

static void on_monitor_power(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(call, msg, PERM_MONITOR_POWER, EV_MONITOR_POWER);
}

static void on_monitor_clock(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(call, msg, PERM_MONITOR_CLOCK, EV_MONITOR_CLOCK);
}

static const struct rpc_method device_methods[] = {
    {"strata.v1.Compute", "Execute", RPC_UNARY, on_execute},
    {"strata.v1.Compute", "Synchronize", RPC_UNARY, on_synchronize},
    {"strata.v1.Monitor", "Memory", RPC_UNARY, on_monitor_memory},
    {"strata.v1.Monitor", "Temperature", RPC_UNARY, on_monitor_temperature},
    {"strata.v1.Monitor", "Power", RPC_UNARY, on_monitor_power},
    {"strata.v1.Monitor", "Clock", RPC_UNARY, on_monitor_clock},
};

int device_table(struct rpc_table **out, struct sessions *ss, struct err *e)
{
    static const ProtobufCServiceDescriptor *const services[] = {&strata__v1__compute__descriptor,
                                                                 &strata__v1__monitor__descriptor};
    return rpc_table_new(out, services, 2, device_methods, sizeof device_methods / sizeof *device_methods, ss,
                         e);
}
