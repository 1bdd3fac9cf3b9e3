/* What is asked of a whole device: its memory as the worker sees it, waiting for it, sensors. */
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
            trail_reply(a->w.s->owner, a->w.call, reply);
        else
            trail_fail(a->w.s->owner, a->w.call, e);
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
        trail_fail(s->owner, call, &e);
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
        trail_fail(s->owner, call, &e);
    else if ((type == EV_MONITOR_MEMORY ? tenant_usage(s->tenant, device, usage_known, a, &e)
                                        : tenant_monitor(s->tenant, device, reading_known, a, &e)) < 0)
        end(a, NULL, &e);
}

/* ---- the services ---- */

static void on_synchronize(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const char *device = ((const Strata__V1__SynchronizeRequest *)msg)->device;
    struct session *s = call_allowed(arg, call, PERM_COMPUTE_SYNCHRONIZE, device);
    (void)arg;
    if (s)
        device_synchronize(s, call, device);
}

/* ---- Monitor ---- */

static void monitor(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *msg,
                    enum permission p, int type)
{
    const char *device = ((const Strata__V1__MonitorRequest *)msg)->device;
    struct session *s = call_allowed(ss, call, p, device);
    if (s)
        device_monitor(s, call, device, type);
}

static void on_monitor_memory(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(arg, call, msg, PERM_MONITOR_MEMORY, EV_MONITOR_MEMORY);
}

static void on_monitor_temperature(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(arg, call, msg, PERM_MONITOR_TEMPERATURE, EV_MONITOR_TEMPERATURE);
}

static void on_monitor_power(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(arg, call, msg, PERM_MONITOR_POWER, EV_MONITOR_POWER);
}

static void on_monitor_clock(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)arg;
    monitor(arg, call, msg, PERM_MONITOR_CLOCK, EV_MONITOR_CLOCK);
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
