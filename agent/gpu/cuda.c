/*
 * CUDA Driver API backend. Never run on hardware: what is proved is proved against a stand-in for the driver.
 *
 * The library is opened at run time. The primary context is made when a device is opened, not when it is
 * listed, so that looking and monitoring cost nothing on the device. A stream a lane; calls are complete on
 * return. The driver's own waits have no bound, so completion is polled, spinning first and then yielding the
 * core. A sticky error makes the context useless for good: the device counts as lost, and a new worker
 * process gets a new context.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent/gpu/cuda_priv.h"
#include "common/base/clock.h"
#include "common/base/str.h"

#define SPIN_NS (30 * NS_PER_US)
#define NAP_NS (50 * NS_PER_US)
#define POOL_BYTES (32ull << 20) /* smaller buffers come from the driver's pool */
#define POOL_KEEP (64ull << 20)  /* what the pool keeps of freed memory */

static const struct gpu_native map[] = {
    {CU_E_INVALID_VALUE, GPU_F_INVALID, "invalid value"},
    {CU_E_OUT_OF_MEMORY, GPU_F_NOMEM_DEVICE, "out of memory"},
    {CU_E_NOT_INITIALIZED, GPU_F_NO_DRIVER, "not initialised"},
    {CU_E_DEINITIALIZED, GPU_F_LOST, "the driver shuts down"},
    {CU_E_STUB_LIBRARY, GPU_F_NO_DRIVER, "the toolkit's stub is loaded instead of the driver's library"},
    {CU_E_DEVICE_UNAVAILABLE, GPU_F_LOST, "device busy or unavailable"},
    {CU_E_NO_DEVICE, GPU_F_NO_DRIVER, "no device"},
    {CU_E_INVALID_IMAGE, GPU_F_UNSUPPORTED, "invalid kernel image"},
    {CU_E_INVALID_CONTEXT, GPU_F_LOST, "invalid context"},
    {CU_E_NO_BINARY_FOR_GPU, GPU_F_UNSUPPORTED, "no kernel image for this device"},
    {CU_E_ECC_UNCORRECTABLE, GPU_F_LOST, "uncorrectable memory error"},
    {CU_E_INVALID_PTX, GPU_F_UNSUPPORTED, "invalid PTX"},
    {CU_E_UNSUPPORTED_PTX, GPU_F_UNSUPPORTED, "the driver is too old for the kernels' PTX"},
    {CU_E_NOT_FOUND, GPU_F_UNSUPPORTED, "not found"},
    {CU_E_NOT_READY, GPU_F_OTHER, "not ready"},
    {CU_E_ILLEGAL_ADDRESS, GPU_F_LOST, "a kernel used an illegal address"},
    {CU_E_LAUNCH_OUT_OF_RESOURCES, GPU_F_NOMEM_DEVICE, "a launch ran out of resources"},
    {CU_E_LAUNCH_TIMEOUT, GPU_F_LOST, "a kernel ran too long and was stopped"},
    {CU_E_CONTEXT_IS_DESTROYED, GPU_F_LOST, "the context is destroyed"},
    {CU_E_ASSERT, GPU_F_LOST, "a kernel's assertion failed"},
    {CU_E_ALREADY_REGISTERED, GPU_F_UNSUPPORTED, "the memory is registered already"},
    {CU_E_HARDWARE_STACK, GPU_F_LOST, "a kernel's stack is corrupt"},
    {CU_E_ILLEGAL_INSTRUCTION, GPU_F_LOST, "a kernel ran an illegal instruction"},
    {CU_E_MISALIGNED_ADDRESS, GPU_F_LOST, "a kernel used a misaligned address"},
    {CU_E_INVALID_ADDRESS_SPACE, GPU_F_LOST, "a kernel used a wrong address space"},
    {CU_E_INVALID_PC, GPU_F_LOST, "a kernel jumped astray"},
    {CU_E_LAUNCH_FAILED, GPU_F_LOST, "a kernel failed"},
    {CU_E_NOT_PERMITTED, GPU_F_UNSUPPORTED, "not permitted"},
    {CU_E_NOT_SUPPORTED, GPU_F_UNSUPPORTED, "not supported"},
    {CU_E_SYSTEM_NOT_READY, GPU_F_NO_DRIVER, "the system is not ready (is the fabric manager running?)"},
    {CU_E_DRIVER_MISMATCH, GPU_F_NO_DRIVER, "library and kernel module are of different versions"},
    {CU_E_COMPAT_NOT_SUPPORTED, GPU_F_NO_DRIVER, "the compatibility library does not serve this device"},
    {CU_E_UNKNOWN, GPU_F_LOST, "unknown error"},
};

int cuda_error(int r, const char *id, const char *what, struct err *e)
{
    return gpu_native_error(map, sizeof map / sizeof map[0], r, id, what, e);
}

/* ---- finding devices ---- */

static bool api_load(struct cuda_api *a, const char *library)
{
    a->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!a->library)
        return false;
#define X(symbol, field, required, args)                                                                     \
    *(void **)&a->field = dlsym(a->library, #symbol);                                                        \
    if (!a->field && (required))                                                                             \
        return false; /* older than what we need */
    CUDA_FUNCTIONS(X)
#undef X
    return true;
}

static int attribute(const struct cuda_api *a, cu_device dev, int which)
{
    int v = 0;
    return a->attribute(&v, which, dev) == CU_OK ? v : 0;
}

static bool describe(const struct cuda_api *a, cu_device dev, int version, struct gpu_info *g)
{
    cu_uuid uuid;
    size_t total;
    *g = (struct gpu_info){.support = GPU_SUPPORTED};
    if (a->name(g->name, sizeof g->name, dev) != CU_OK || a->total(&total, dev) != CU_OK || total == 0)
        return false;
    g->name[sizeof g->name - 1] = 0;
    str_copy(g->vendor, sizeof g->vendor, "NVIDIA");
    snprintf(g->driver, sizeof g->driver, "CUDA %d.%d, compute capability %d.%d", version / 1000,
             version % 1000 / 10, attribute(a, dev, CU_ATTR_MAJOR), attribute(a, dev, CU_ATTR_MINOR));
    g->total_bytes = total;
    g->limit_bytes = total / 100 * 95; /* context and kernels need some */
    g->available_bytes = g->limit_bytes;
    g->max_buffer_bytes = g->limit_bytes;
    g->compute_units = (uint32_t)attribute(a, dev, CU_ATTR_PROCESSORS);
    if (a->uuid(&uuid, dev) == CU_OK)
        memcpy(g->uuid, uuid.bytes, sizeof g->uuid);
    return true;
}

static void cuda_fini(void *ctx)
{
    struct cuda_ctx *c = ctx;
    if (c->api.library)
        dlclose(c->api.library);
    free(c);
}

static int cuda_probe(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n,
                      struct err *e)
{
    struct cuda_ctx *c = calloc(1, sizeof *c);
    int count = 0, version = 0;
    if (!c)
        return err_set(e, ST_ENOMEM, "cuda: no memory to look for devices");
    *ctx = c;
    *n = 0;
    c->wait_ns = cfg->wait_ns ? cfg->wait_ns : 10 * NS_PER_S;
    if (!api_load(&c->api, cfg->cuda_library ? cfg->cuda_library : "libcuda.so.1") ||
        c->api.init(0) != CU_OK || c->api.count(&count) != CU_OK || c->api.driver_version(&version) != CU_OK)
        return ST_OK; /* no driver, none that answers: no devices. The doctor says which. */
    for (int i = 0; i < count && *n < cap && *n < GPU_MAX_DEVICES; i++) {
        cu_device dev;
        if (c->api.device(&dev, i) == CU_OK && describe(&c->api, dev, version, &v[*n]))
            c->device[(*n)++] = dev;
    }
    return ST_OK;
}

/* ---- waiting ---- */

int cuda_enter(struct cuda_dev *d, struct err *e)
{
    int r = d->api->set_current(d->context);
    return r == CU_OK ? ST_OK : cuda_error(r, d->id, "entering the context", e);
}

static int wait_event(struct cuda_dev *d, cu_event ev, struct err *e)
{
    const struct clock *clk = clock_system();
    uint64_t start = clock_ns(clk), took = 0;
    int r;
    while ((r = d->api->event_query(ev)) == CU_E_NOT_READY && took < d->wait_ns) {
        took = clock_ns(clk) - start;
        if (took > SPIN_NS)
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    if (r == CU_E_NOT_READY)
        return err_set(e, ST_EDEADLINE, "%s: waiting for the device failed: no answer in %llu ms", d->id,
                       (unsigned long long)(d->wait_ns / NS_PER_MS));
    return r == CU_OK ? ST_OK : cuda_error(r, d->id, "waiting for the device", e);
}

int cuda_settle(struct cuda_dev *d, enum cuda_lane lane, struct err *e)
{
    int r = d->api->event_record(d->done[lane], d->lane[lane]);
    return r == CU_OK ? wait_event(d, d->done[lane], e)
                      : cuda_error(r, d->id, "marking the end of the work", e);
}

/* The end of a call that went as `rc` says: nothing of it is under way. */
static int end(struct cuda_dev *d, enum cuda_lane lane, int rc, struct err *e)
{
    if (gpu_fatal(rc))
        return rc;
    int last = cuda_settle(d, lane, rc == ST_OK ? e : NULL);
    return rc == ST_OK || gpu_fatal(last) ? last : rc;
}

/* ---- the device ---- */

static void cuda_close(void *dev, bool hung)
{
    struct cuda_dev *d = dev;
    if (!hung && d->context && d->api->set_current(d->context) == CU_OK) {
        if (d->sums)
            d->api->free(d->sums);
        if (d->module)
            d->api->module_free(d->module);
        for (int i = 0; i < CUDA_PIECES; i++)
            if (d->piece[i])
                d->api->event_free(d->piece[i]);
        for (int i = 0; i < CUDA_LANES; i++) {
            if (d->done[i])
                d->api->event_free(d->done[i]);
            if (d->lane[i])
                d->api->stream_free(d->lane[i]);
        }
        if (d->staging)
            d->api->host_free(d->staging);
        d->api->set_current(NULL);
    }
    if (!hung && d->context)
        d->api->primary_release(d->device);
    free(d);
}

static int parts_make(struct cuda_dev *d, struct err *e)
{
    const struct cuda_api *a = d->api;
    void *staging = NULL;
    int r = CU_OK;
    for (int i = 0; r == CU_OK && i < CUDA_LANES; i++) {
        r = a->stream_new(&d->lane[i], CU_STREAM_NON_BLOCKING);
        if (r == CU_OK)
            r = a->event_new(&d->done[i], CU_EVENT_DISABLE_TIMING);
    }
    for (int i = 0; r == CU_OK && i < CUDA_PIECES; i++)
        r = a->event_new(&d->piece[i], CU_EVENT_DISABLE_TIMING);
    if (r == CU_OK)
        r = a->host_alloc(&staging, CUDA_PIECES * CUDA_PIECE_BYTES, 0);
    d->staging = r == CU_OK ? staging : NULL;
    return r == CU_OK ? ST_OK : cuda_error(r, d->id, "preparing the device", e);
}

static void pools_prepare(struct cuda_dev *d)
{
    const struct cuda_api *a = d->api;
    unsigned long long keep = POOL_KEEP;
    cu_pool pool;
    d->pools = a->alloc_async && a->free_async && a->default_pool && a->pool_attribute &&
               attribute(a, d->device, CU_ATTR_MEMORY_POOLS) && a->default_pool(&pool, d->device) == CU_OK &&
               a->pool_attribute(pool, CU_POOL_RELEASE_THRESHOLD, &keep) == CU_OK;
}

static int cuda_open(void **dev, void *ctx, size_t index, const struct gpu_info *info, struct err *e)
{
    struct cuda_ctx *c = ctx;
    struct cuda_dev *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(e, ST_ENOMEM, "%s: no memory to open the device", info->id);
    d->api = &c->api;
    d->device = c->device[index];
    d->wait_ns = c->wait_ns;
    memcpy(d->id, info->id, sizeof d->id);
    (void)c->api.primary_flags(d->device,
                               CU_SCHED_BLOCKING); /* refused when another library was first: no harm */
    int r = c->api.primary_retain(&d->context, d->device);
    if (r != CU_OK) {
        free(d);
        return cuda_error(r, info->id, "making a context", e);
    }
    int rc = cuda_enter(d, e);
    if (rc < 0 || (rc = parts_make(d, e)) < 0) {
        cuda_close(d, false);
        return rc;
    }
    pools_prepare(d);
    *dev = d;
    return ST_OK;
}

/* ---- memory ---- */

static void mem_release(struct cuda_dev *d, struct cuda_mem *m)
{
    if (m->pooled)
        d->api->free_async(m->p, d->lane[CUDA_WORK]);
    else
        d->api->free(m->p);
    free(m);
}

static int cuda_alloc(void *dev, uint64_t bytes, void **mem, uint64_t *committed, struct err *e)
{
    struct cuda_dev *d = dev;
    int rc = cuda_enter(d, e), r;
    struct cuda_mem *m = rc == ST_OK ? calloc(1, sizeof *m) : NULL;
    if (!m)
        return rc < 0 ? rc : err_set(e, ST_ENOMEM, "%s: no host memory for one more buffer", d->id);
    m->bytes = (bytes + 3) & ~3ull;
    m->pooled = d->pools && bytes < POOL_BYTES;
    r = m->pooled ? d->api->alloc_async(&m->p, m->bytes, d->lane[CUDA_WORK]) : d->api->alloc(&m->p, m->bytes);
    if (r != CU_OK) {
        free(m);
        return cuda_error(r, d->id, "allocating memory", e);
    }
    r = d->api->fill(m->p, 0, m->bytes / 4, d->lane[CUDA_WORK]); /* it may hold another process's bytes */
    rc = r == CU_OK ? ST_OK : cuda_error(r, d->id, "clearing memory", e);
    rc = end(d, CUDA_WORK, rc, e);
    if (rc == ST_EDEADLINE) {
        free(m); /* the device may still write to it: it is never given back */
        return rc;
    }
    if (rc < 0) {
        mem_release(d, m);
        return rc;
    }
    *mem = m;
    *committed = bytes;
    return ST_OK;
}

static void cuda_free(void *dev, void *mem, bool hung)
{
    if (!hung && cuda_enter(dev, NULL) == ST_OK)
        mem_release(dev, mem);
    else
        free(mem);
}

static int cuda_pin(void *dev, void *p, uint64_t len, void **pin, struct err *e)
{
    struct cuda_dev *d = dev;
    uint64_t mask = 4095;
    uint8_t *base = (uint8_t *)((uintptr_t)p & ~(uintptr_t)mask);
    int rc = cuda_enter(d, e);
    if (rc < 0)
        return rc;
    int r = d->api->host_register(base, (len + (uint64_t)((uint8_t *)p - base) + mask) & ~mask, 0);
    if (r != CU_OK) {
        rc = cuda_error(r, d->id, "pinning memory of the host", e);
        return gpu_fatal(rc)
                   ? rc
                   : err_set(e, ST_ENOTSUP, "%s: the driver does not pin this memory (%d)", d->id, r);
    }
    *pin = base;
    return ST_OK;
}

static void cuda_unpin(void *dev, void *pin, bool hung)
{
    struct cuda_dev *d = dev;
    if (!hung && cuda_enter(d, NULL) == ST_OK)
        d->api->host_unregister(pin);
}

/* ---- copies ---- */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int cuda_copy_in(void *dev, void *mem, uint64_t off, const void *src, uint64_t len, void *pin,
                        struct err *e)
{
    struct cuda_dev *d = dev;
    const struct cuda_mem *m = mem;
    cu_stream s = d->lane[CUDA_H2D];
    int rc = cuda_enter(d, e), r = CU_OK;
    if (rc == ST_OK && pin)
        r = d->api->h2d(m->p + off, src, len, s);
    for (uint64_t at = 0, k = 0, n; !pin && rc == ST_OK && r == CU_OK && at < len; at += n, k++) {
        size_t i = k % CUDA_PIECES;
        n = min_u64(CUDA_PIECE_BYTES, len - at);
        if (k >= CUDA_PIECES && (rc = wait_event(d, d->piece[i], e)) < 0)
            break;
        memcpy(d->staging + i * CUDA_PIECE_BYTES, (const uint8_t *)src + at, n);
        r = d->api->h2d(m->p + off + at, d->staging + i * CUDA_PIECE_BYTES, n, s);
        if (r == CU_OK)
            r = d->api->event_record(d->piece[i], s);
    }
    if (rc == ST_OK && r != CU_OK)
        rc = cuda_error(r, d->id, "copying to the device", e);
    return end(d, CUDA_H2D, rc, e);
}

static int cuda_copy_out(void *dev, void *mem, uint64_t off, void *dst, uint64_t len, void *pin,
                         struct err *e)
{
    struct cuda_dev *d = dev;
    const struct cuda_mem *m = mem;
    cu_stream s = d->lane[CUDA_D2H];
    uint64_t sent = 0;
    int rc = cuda_enter(d, e), r = CU_OK;
    if (rc == ST_OK && pin)
        r = d->api->d2h(dst, m->p + off, len, s);
    for (uint64_t got = 0; !pin && rc == ST_OK && r == CU_OK && got * CUDA_PIECE_BYTES < len; got++) {
        for (; r == CU_OK && sent < got + CUDA_PIECES && sent * CUDA_PIECE_BYTES < len; sent++) {
            uint64_t at = sent * CUDA_PIECE_BYTES;
            size_t i = sent % CUDA_PIECES;
            r = d->api->d2h(d->staging + i * CUDA_PIECE_BYTES, m->p + off + at,
                            min_u64(CUDA_PIECE_BYTES, len - at), s);
            if (r == CU_OK)
                r = d->api->event_record(d->piece[i], s);
        }
        if (r != CU_OK || (rc = wait_event(d, d->piece[got % CUDA_PIECES], e)) < 0)
            break;
        memcpy((uint8_t *)dst + got * CUDA_PIECE_BYTES, d->staging + got % CUDA_PIECES * CUDA_PIECE_BYTES,
               min_u64(CUDA_PIECE_BYTES, len - got * CUDA_PIECE_BYTES));
    }
    if (rc == ST_OK && r != CU_OK)
        rc = cuda_error(r, d->id, "copying from the device", e);
    return end(d, CUDA_D2H, rc, e);
}

static int cuda_copy(void *dev, void *dst, uint64_t dst_off, void *src, uint64_t src_off, uint64_t len,
                     struct err *e)
{
    struct cuda_dev *d = dev;
    const struct cuda_mem *to = dst, *from = src;
    int rc = cuda_enter(d, e);
    if (rc < 0)
        return rc;
    int r = d->api->d2d(to->p + dst_off, from->p + src_off, len, d->lane[CUDA_WORK]);
    rc = r == CU_OK ? ST_OK : cuda_error(r, d->id, "copying within the device", e);
    return end(d, CUDA_WORK, rc, e);
}

/* The driver goes from card to card where it can, and through the host where it cannot. */
static int cuda_copy_peer(void *dst_dev, void *dst, uint64_t dst_off, void *src_dev, void *src,
                          uint64_t src_off, uint64_t len, struct err *e)
{
    struct cuda_dev *d = dst_dev, *s = src_dev;
    const struct cuda_mem *to = dst, *from = src;
    if (!d->api->peer)
        return ST_ENOTSUP;
    int rc = cuda_enter(d, e);
    if (rc < 0)
        return rc;
    int r = d->api->peer(to->p + dst_off, d->context, from->p + src_off, s->context, len, d->lane[CUDA_WORK]);
    rc = r == CU_OK ? ST_OK : cuda_error(r, d->id, "copying from another device", e);
    return end(d, CUDA_WORK, rc, e);
}

static int cuda_sync(void *dev, struct err *e)
{
    struct cuda_dev *d = dev;
    int rc = cuda_enter(d, e);
    for (int i = 0; rc == ST_OK && i < CUDA_LANES; i++)
        rc = cuda_settle(d, (enum cuda_lane)i, e);
    return rc;
}

static int cuda_measure_copy(void *dev, void *a, void *b, uint64_t bytes, uint64_t budget_ns, double *rate,
                             struct err *e)
{
    struct cuda_dev *d = dev;
    const struct clock *clk = clock_system();
    uint64_t start = 0, now, n = 0;
    int rc = cuda_copy(dev, a, 0, b, 0, bytes, e); /* the warm-up */
    start = now = clock_ns(clk);
    while (rc == ST_OK && now - start < budget_ns) {
        int r = CU_OK;
        for (int i = 0; r == CU_OK && i < 8; i++, n++) /* enough in a row that submitting does not weigh in */
            r = d->api->d2d(((struct cuda_mem *)a)->p, ((struct cuda_mem *)b)->p, bytes, d->lane[CUDA_WORK]);
        rc = r == CU_OK ? ST_OK : cuda_error(r, d->id, "copying within the device", e);
        rc = end(d, CUDA_WORK, rc, e);
        now = clock_ns(clk);
    }
    if (rc == ST_OK)
        *rate = now > start ? (double)n * (double)bytes * 1e9 / (double)(now - start) : 0;
    return rc;
}

const struct gpu_ops gpu_cuda = {
    .name = "cuda",
    .probe = cuda_probe,
    .fini = cuda_fini,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .copy_in = cuda_copy_in,
    .copy_out = cuda_copy_out,
    .sync = cuda_sync,
    .copy = cuda_copy,
    .copy_peer = cuda_copy_peer,
    .pin = cuda_pin,
    .unpin = cuda_unpin,
    .exec = cuda_exec,
    .run = cuda_run,
    .measure_copy = cuda_measure_copy,
    .measure_fma = cuda_measure_fma,
};
