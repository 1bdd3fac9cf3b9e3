/*
 * Kernels: built-in ones by name, and one's own where the node's operator allows it. The code of one's own is
 * looked at here (agent/kernel), goes through a staging slot to the principal's worker, and runs there until
 * it ends or its time is over. A kernel that hangs or faults leaves its device lost to that worker, so the
 * worker is ended: it is the owner's alone, and whatever ran wild goes with it.
 */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "agent/kernel/kernel.h"
#include "agent/session/session_priv.h"
#include "common/base/str.h"

#define PTX_THREADS 128u /* of a group, when the call does not say */

struct running {
    struct work w;
    char device[32], kernel[GPU_ENTRY_NAME];
    struct buffer *buffer[GPU_OWN_SPANS];
    unsigned n;
    /* one's own */
    struct gpu_program *program;
    uint8_t *code; /* until it is in a slot */
    size_t len;
    char digest[65];
};

static void running_free(struct running *r)
{
    if (r) {
        free(r->program);
        free(r->code);
    }
    free(r);
}

static void over(struct running *r)
{
    for (unsigned i = 0; i < r->n; i++)
        r->buffer[i]->busy--;
    work_end(&r->w);
    running_free(r);
}

static void tell(const struct running *r, const char *error)
{
    struct event_meta m = {0};
    event_meta_str(&m, "kernel", r->kernel);
    if (r->digest[0])
        event_meta_str(&m, "digest", r->digest);
    event_meta_u64(&m, "us", work_us(&r->w));
    session_audit(r->w.s, EV_COMPUTE_EXECUTE, error ? EVENT_FAILURE : EVENT_SUCCESS, r->device, &m, error);
}

static void executed(void *arg, int rc, const struct err *e, uint64_t value)
{
    struct running *r = arg;
    tell(r, rc < 0 ? e->text : NULL);
    if (rc < 0) {
        work_fail(&r->w, rc, e);
    } else if (r->w.call) {
        Strata__V1__ExecuteReply m = STRATA__V1__EXECUTE_REPLY__INIT;
        m.value = value;
        trail_reply(r->w.s->owner, r->w.call, &m.base);
        r->w.call = NULL;
    }
    over(r);
}

/* Handles to buffers; each must be this session's, on that device, and the span inside it. */
static int spans_of(struct session *s, const Strata__V1__ExecuteRequest *rq, unsigned spans, unsigned scalars,
                    struct gpu_span *out, struct running *r, struct err *e)
{
    if (rq->n_spans > spans || rq->n_scalars > scalars)
        return err_reason(e, ST_EINVAL, "TOO_MANY_ARGUMENTS",
                          "a kernel takes at most %u spans and %u scalars", spans, scalars);
    if (!rq->n_spans)
        return err_reason(e, ST_EINVAL, "NO_SPANS", "a kernel works on at least one span of a buffer");
    for (size_t i = 0; i < rq->n_spans; i++) {
        const Strata__V1__Span *p = rq->spans[i];
        struct buffer *b;
        int rc = buffer_find(s, &p->handle, "compute:execute", &b, e);
        if (rc < 0 || (rc = buffer_range(b, p->offset, p->bytes, e)) < 0)
            return rc;
        if (strcmp(b->device, rq->device) != 0)
            return err_reason(e, ST_EINVAL, "OTHER_DEVICE", "span %zu lies on device %s, not on %s", i,
                              b->device, rq->device);
        out[i] = (struct gpu_span){b->memory, p->offset, p->bytes};
        r->buffer[r->n++] = b;
    }
    return ST_OK;
}

static void stop_nothing(struct work *w)
{
    (void)w; /* the worker's answer ends it */
}

static void begun(struct running *r, const char *device)
{
    r->w.stop = stop_nothing;
    str_copy(r->device, sizeof r->device, device);
    for (unsigned i = 0; i < r->n; i++)
        r->buffer[i]->busy++;
}

/* ---- built in ---- */

static int builtin(struct session *s, struct rpc_call *call, const Strata__V1__ExecuteRequest *rq,
                   struct running *r, struct err *e)
{
    struct gpu_exec x = {.spans = (uint32_t)rq->n_spans, .scalars = (uint32_t)rq->n_scalars};
    int rc = spans_of(s, rq, GPU_MAX_SPANS, GPU_MAX_SCALARS, x.span, r, e);
    if (rc == ST_OK && !str_copy(x.kernel, sizeof x.kernel, rq->kernel))
        rc = err_reason(e, ST_ENOENT, "NO_KERNEL", "there is no kernel '%.40s'", rq->kernel);
    for (size_t i = 0; rc == ST_OK && i < rq->n_scalars; i++)
        x.scalar[i] = rq->scalars[i];
    if (rc == ST_OK)
        rc = work_begin(s, &r->w, call, EV_COMPUTE_EXECUTE, false, e);
    if (rc < 0)
        return rc;
    begun(r, rq->device);
    str_copy(r->kernel, sizeof r->kernel, x.kernel);
    struct err why;
    rc = tenant_exec(s->tenant, &x, executed, r, &why);
    if (rc < 0)
        executed(r, rc, &why, 0);
    return ST_OK;
}

/* ---- one's own ---- */

/* The device is lost to the worker after a hang or a fault: it ends, and with it what still runs. */
static void own_done(void *arg, int rc, const struct err *e)
{
    struct running *r = arg;
    struct tenant *t = r->w.s->tenant;
    struct err mine = *e;
    if (rc == ST_EDEADLINE)
        err_reason(
            &mine, rc, "KERNEL_TIMEOUT",
            "kernel %s did not end within %llu ms: your worker on this node is ended, and what it held is "
            "free",
            r->kernel, (unsigned long long)(r->program->deadline_ns / NS_PER_MS));
    else if (rc == ST_EIO || rc == ST_ECLOSED)
        err_reason(
            &mine, ST_EIO, "KERNEL_FAULT",
            "kernel %s faulted, or another of yours did beside it: your worker on this node is ended, and "
            "what it held is free (%s)",
            r->kernel, e->text);
    else if (rc == ST_EINVAL)
        err_reason(&mine, rc, "BAD_KERNEL", "%s", e->text);
    bool wild = rc == ST_EDEADLINE || rc == ST_EIO;
    executed(r, rc < 0 ? mine.code : rc, &mine, 0);
    if (wild)
        tenant_kill(t);
}

static void submit(struct work *w);

static void stop_waiting(struct work *w)
{
    struct running *r = (struct running *)w;
    if (r->code) /* not with the worker yet */
        over(r);
}

static void submit(struct work *w)
{
    struct running *r = (struct running *)w;
    struct worker_slot slot;
    struct err e;
    if (!tenant_slot(w->s->tenant, &slot)) {
        w->on_slot = submit;
        return;
    }
    int rc = r->len <= slot.bytes
                 ? ST_OK
                 : err_reason(&e, ST_ELIMIT, "KERNEL_TOO_LARGE", "the kernel fits no staging slot");
    if (rc == ST_OK) {
        memcpy(slot.data, r->code, r->len);
        rc = tenant_run(w->s->tenant, r->program, &slot, (uint32_t)r->len, own_done, r, &e);
    }
    if (rc < 0)
        tenant_slot_put(w->s->tenant, &slot);
    free(r->code);
    r->code = NULL;
    if (rc < 0)
        own_done(r, rc, &e);
}

static int three(uint32_t out[3], const uint32_t *v, size_t n, uint32_t first, uint32_t most,
                 const char *what, struct err *e)
{
    if (n > 3)
        return err_reason(e, ST_EINVAL, "BAD_ARGUMENTS", "%s: up to three numbers, for x, y and z", what);
    for (size_t i = 0; i < 3; i++) {
        out[i] = i < n ? v[i] : i ? 1 : first;
        if (!out[i] || out[i] > most)
            return err_reason(e, ST_EINVAL, "BAD_ARGUMENTS", "%s: %u is not among 1 to %u", what, out[i],
                              most);
    }
    return ST_OK;
}

/* Fills the program from the request; what it may be is decided by what the device takes. */
static int program_of(struct session *s, const Strata__V1__ExecuteRequest *rq, struct gpu_program *p,
                      struct err *e)
{
    const struct sessions_own *own = &s->owner->cfg.own;
    const struct pool_device *d = session_device(s->owner, rq->device);
    const struct kernel_call c = {p->entry, (uint32_t)rq->n_spans, (uint32_t)rq->n_scalars};
    if (rq->code.len > own->max_bytes)
        return err_reason(e, ST_ELIMIT, "KERNEL_TOO_LARGE", "the kernel has %zu bytes; node %s takes %u",
                          rq->code.len, s->owner->cfg.node, own->max_bytes);
    if (!rq->kernel[0] || !str_copy(p->entry, sizeof p->entry, rq->kernel))
        return err_reason(e, ST_EINVAL, "NO_ENTRY", "a kernel's entry point has a name of 1 to %d characters",
                          GPU_ENTRY_NAME - 1);
    p->spans = c.spans;
    p->scalars = c.scalars;
    p->deadline_ns = own->deadline_ns;
    for (size_t i = 0; i < rq->n_scalars; i++)
        p->scalar[i] = rq->scalars[i];
    int rc = three(p->groups, rq->groups, rq->n_groups, 1, GPU_OWN_GROUPS, "groups", e);
    if (rc == ST_OK)
        rc = three(p->threads, rq->threads, rq->n_threads, PTX_THREADS, GPU_OWN_THREADS, "threads", e);
    if (rc < 0)
        return rc;
    if (strcmp(d->backend, "vulkan") == 0)
        return kernel_spirv(rq->code.data, rq->code.len, &c, p->threads, e);
    if (strcmp(d->backend, "cuda") == 0)
        return kernel_ptx(rq->code.data, rq->code.len, &c, e);
    return err_reason(e, ST_ENOTSUP, "NO_USER_KERNELS", "device %s runs built-in kernels alone", rq->device);
}

static int own(struct session *s, struct rpc_call *call, const Strata__V1__ExecuteRequest *rq,
               struct running *r, struct err *e)
{
    uint8_t sha[32];
    if (!s->owner->cfg.own.allow)
        return err_reason(
            e, ST_EDENIED, "USER_KERNELS_OFF",
            "node %s does not run kernels of one's own: use a built-in one, or ask its operator",
            s->owner->cfg.node);
    r->program = calloc(1, sizeof *r->program);
    r->code = malloc(rq->code.len ? rq->code.len : 1);
    if (!r->program || !r->code)
        return err_set(e, ST_ENOMEM, "no memory for the kernel");
    int rc = spans_of(s, rq, GPU_OWN_SPANS, GPU_OWN_SCALARS, r->program->span, r, e);
    if (rc < 0 || (rc = program_of(s, rq, r->program, e)) < 0)
        return rc;
    if (EVP_Digest(rq->code.data, rq->code.len, sha, NULL, EVP_sha256(), NULL) != 1)
        return err_set(e, ST_EINTERNAL, "SHA-256 failed");
    if ((rc = work_begin(s, &r->w, call, EV_COMPUTE_EXECUTE, true, e)) < 0)
        return rc;
    begun(r, rq->device);
    r->w.stop = stop_waiting;
    hex_encode(r->digest, sha, sizeof sha);
    str_copy(r->kernel, sizeof r->kernel, r->program->entry);
    memcpy(r->code, rq->code.data, rq->code.len);
    r->len = rq->code.len;
    submit(&r->w);
    return ST_OK;
}

void on_execute(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__ExecuteRequest *rq = (const Strata__V1__ExecuteRequest *)msg;
    struct session *s = call_allowed(arg, call, PERM_COMPUTE_EXECUTE, rq->device);
    struct err e;
    (void)arg;
    if (!s)
        return;
    struct running *r = calloc(1, sizeof *r);
    int rc = !r                             ? err_set(&e, ST_ENOMEM, "no memory for the call")
             : rq->code.len || rq->n_groups ? own(s, call, rq, r, &e)
                                            : builtin(s, call, rq, r, &e);
    if (rc == ST_OK)
        return;
    running_free(r);
    if (rc == ST_EDENIED)
        session_refused(s, "compute:execute", rq->device, &e, "compute:execute");
    trail_fail(s->owner, call, &e);
}
