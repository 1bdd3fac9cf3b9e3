/*
 * The part of the device interface that is the same for all backends: which backends there are, the table of
 * buffers with generations, bounds, accounting. Drivers do not enforce limits reliably (some grant far more
 * than the heap), so our own account is the truth.
 */
#include "agent/gpu/gpu.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu_priv.h"
#include "common/base/clock.h"
#include "common/base/str.h"

static const struct gpu_ops *const gpu_backends[] = {&gpu_cpu, &gpu_cuda, &gpu_vulkan};
#define BACKENDS (sizeof gpu_backends / sizeof gpu_backends[0])

#define GEN_MASK 0xffffffu /* handles stay below 2^56 */
#define MEASURE_BYTES (32ull << 20)
#define MEASURE_NS (90 * NS_PER_MS)

struct gpu_set {
    struct gpu_info info[GPU_MAX_DEVICES];
    const struct gpu_ops *ops[GPU_MAX_DEVICES];
    size_t index[GPU_MAX_DEVICES]; /* within the backend */
    void *dev_ctx[GPU_MAX_DEVICES];
    void *ctx[BACKENDS];
    bool probed[BACKENDS];
    size_t n;
};

const char *gpu_support_name(enum gpu_support s)
{
    switch (s) {
    case GPU_REFERENCE:
        return "reference";
    case GPU_SUPPORTED:
        return "supported";
    case GPU_SOFTWARE:
        return "software";
    }
    return "?";
}

int gpu_fault(enum gpu_fault f)
{
    switch (f) {
    case GPU_F_NOMEM_DEVICE:
        return ST_ERESOURCE;
    case GPU_F_NOMEM_HOST:
        return ST_ENOMEM;
    case GPU_F_LOST:
        return ST_EIO;
    case GPU_F_HUNG:
        return ST_EDEADLINE;
    case GPU_F_NO_DRIVER:
        return ST_ENOENT;
    case GPU_F_UNSUPPORTED:
        return ST_ENOTSUP;
    case GPU_F_INVALID:
    case GPU_F_OTHER:
        break;
    }
    return ST_EINTERNAL;
}

bool gpu_fatal(int rc)
{
    return rc == ST_EIO || rc == ST_EDEADLINE;
}

int gpu_native_error(const struct gpu_native *map, size_t n, int code, const char *id, const char *what,
                     struct err *e)
{
    for (size_t i = 0; i < n; i++)
        if (map[i].code == code)
            return err_set(e, gpu_fault(map[i].fault), "%s: %s failed: %s (%d)", id, what, map[i].word, code);
    return err_set(e, gpu_fault(GPU_F_OTHER), "%s: %s failed with the driver's code %d", id, what, code);
}

/* Is `name` one of the comma-separated words of `list`? */
static bool listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    if (!list || !*list)
        return true;
    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strncmp(p, name, n) == 0 && (p[n] == 0 || p[n] == ','))
            return true;
    return false;
}

static int list_check(const char *list, struct err *e)
{
    for (const char *p = list && *list ? list : NULL; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        bool known = false;
        size_t n = strcspn(p, ",");
        for (size_t b = 0; b < BACKENDS; b++)
            known |= strlen(gpu_backends[b]->name) == n && memcmp(gpu_backends[b]->name, p, n) == 0;
        if (!known)
            return err_set(e, ST_EINVAL, "there is no backend \"%.*s\"; name \"cpu\", \"cuda\" or \"vulkan\"",
                           (int)n, p);
    }
    return ST_OK;
}

/* Is this the same card as one that an earlier backend of the table offers? Each is offered once, through the
 * backend that stands first. */
static bool twin(const struct gpu_set *s, const struct gpu_info *g)
{
    static const uint8_t none[16] = {0};
    for (size_t i = 0; i < s->n; i++)
        if (memcmp(s->info[i].uuid, g->uuid, sizeof g->uuid) == 0 && memcmp(g->uuid, none, sizeof none) != 0)
            return true;
    return false;
}

int gpu_set_new(struct gpu_set **out, const struct gpu_cfg *cfg, struct err *e)
{
    int rc = list_check(cfg->backends, e);
    if (rc < 0)
        return rc;
    struct gpu_set *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_ENOMEM, "no memory for the list of devices");
    for (size_t b = 0; b < BACKENDS; b++) {
        const struct gpu_ops *ops = gpu_backends[b];
        size_t n = 0;
        if (!listed(cfg->backends, ops->name) || s->n == GPU_MAX_DEVICES)
            continue;
        if ((rc = ops->probe(&s->ctx[b], cfg, s->info + s->n, GPU_MAX_DEVICES - s->n, &n, e)) < 0) {
            gpu_set_free(s);
            return rc;
        }
        s->probed[b] = true;
        size_t from = s->n;
        for (size_t i = 0; i < n; i++) {
            struct gpu_info *g = &s->info[s->n];
            if (g != &s->info[from + i])
                *g = s->info[from + i];
            if (!cfg->keep_twins && twin(s, g))
                continue;
            s->ops[s->n] = ops;
            s->index[s->n] = i;
            s->dev_ctx[s->n] = s->ctx[b];
            str_copy(g->backend, sizeof g->backend, ops->name);
            snprintf(g->id, sizeof g->id, "%s:%zu", ops->name, i);
            s->n++;
        }
    }
    *out = s;
    return ST_OK;
}

void gpu_set_free(struct gpu_set *s)
{
    if (!s)
        return;
    for (size_t b = 0; b < BACKENDS; b++)
        if (s->probed[b])
            gpu_backends[b]->fini(s->ctx[b]);
    free(s);
}

size_t gpu_set_count(const struct gpu_set *s)
{
    return s->n;
}

const struct gpu_info *gpu_set_info(const struct gpu_set *s, size_t i)
{
    return i < s->n ? &s->info[i] : NULL;
}

int gpu_open(struct gpu **out, const struct gpu_set *s, size_t i, struct err *e)
{
    if (i >= s->n)
        return err_set(e, ST_ENOENT, "there is no device %zu here, only %zu devices", i, s->n);
    struct gpu *g = calloc(1, sizeof *g);
    if (!g)
        return err_set(e, ST_ENOMEM, "%s: no memory to open the device", s->info[i].id);
    g->ops = s->ops[i];
    g->info = s->info[i];
    atomic_init(&g->limit, g->info.limit_bytes);
    int rc = g->ops->open(&g->dev, s->dev_ctx[i], s->index[i], &g->info, e);
    if (rc < 0) {
        free(g);
        return rc;
    }
    *out = g;
    return ST_OK;
}

void gpu_close(struct gpu *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; i < g->n; i++)
        if (g->v[i].mem)
            g->ops->free(g->dev, g->v[i].mem, g->hung);
    for (size_t i = 0; i < GPU_MAX_PINS; i++)
        if (g->pins[i].p)
            g->ops->unpin(g->dev, g->pins[i].pin, g->hung);
    g->ops->close(g->dev, g->hung);
    free(g->v);
    free(g);
}

void *gpu_backend_device(struct gpu *g)
{
    return g->dev;
}

void gpu_limit(struct gpu *g, uint64_t bytes)
{
    atomic_store(&g->limit, bytes);
}

static int lost_check(const struct gpu *g, struct err *e)
{
    if (!atomic_load(&g->lost))
        return ST_OK;
    return err_set(e, ST_EIO, "%s: the device is lost; only a new worker process can use it again",
                   g->info.id);
}

int gpu_answer(struct gpu *g, int rc)
{
    if (gpu_fatal(rc)) {
        g->hung |= rc == ST_EDEADLINE;
        atomic_store(&g->lost, true);
    }
    return rc;
}

static struct gpu_buffer *find(const struct gpu *g, uint64_t handle)
{
    uint64_t place = handle & 0xffffffffu;
    if (place == 0 || place > g->n)
        return NULL;
    struct gpu_buffer *b = &g->v[place - 1];
    return b->mem && handle >> 32 == b->gen ? b : NULL;
}

static int find_or(const struct gpu *g, uint64_t handle, struct gpu_buffer **b, struct err *e)
{
    *b = find(g, handle);
    if (!*b)
        return err_set(e, ST_ENOENT, "%s: buffer %" PRIx64 " is not there: freed before, or never allocated",
                       g->info.id, handle);
    return ST_OK;
}

/* A free place in the table, grown when there is none. Index, or a status. */
static int64_t place_take(struct gpu *g)
{
    if (g->free_head) {
        uint32_t i = g->free_head - 1;
        g->free_head = g->v[i].next_free;
        return i;
    }
    if (g->n == g->cap) {
        uint32_t cap = g->cap ? 2 * g->cap : 64;
        struct gpu_buffer *v = g->n < GPU_MAX_BUFFERS ? realloc(g->v, cap * sizeof *v) : NULL;
        if (!v)
            return g->n < GPU_MAX_BUFFERS ? ST_ENOMEM : ST_ERESOURCE;
        g->v = v;
        g->cap = cap;
    }
    g->v[g->n] = (struct gpu_buffer){.gen = 1};
    return g->n++;
}

static void place_give(struct gpu *g, uint32_t i)
{
    g->v[i].mem = NULL;
    g->v[i].next_free = g->free_head;
    g->free_head = i + 1;
}

int gpu_alloc(struct gpu *g, uint64_t bytes, uint64_t *handle, struct err *e)
{
    int rc = lost_check(g, e);
    if (rc < 0)
        return rc;
    if (bytes == 0)
        return err_set(e, ST_EINVAL, "%s: an allocation of 0 bytes was asked for", g->info.id);
    uint64_t limit = atomic_load(&g->limit), used = atomic_load(&g->allocated);
    if (used > limit || bytes > limit - used) {
        char want[16], left[16];
        fmt_bytes(want, bytes);
        fmt_bytes(left, used > limit ? 0 : limit - used);
        return err_set(e, ST_ERESOURCE, "%s: %s asked for, %s left; free memory or use another device",
                       g->info.id, want, left);
    }
    if (bytes > g->info.max_buffer_bytes)
        return err_set(e, ST_ELIMIT,
                       "%s: one buffer holds at most %" PRIu64 " bytes, %" PRIu64 " asked for; use several",
                       g->info.id, g->info.max_buffer_bytes, bytes);
    int64_t i = place_take(g);
    if (i < 0)
        return err_set(e, (int)i, "%s: no place for one more buffer (limit %d)", g->info.id, GPU_MAX_BUFFERS);
    struct gpu_buffer *b = &g->v[i];
    void *mem = NULL;
    if ((rc = gpu_answer(g, g->ops->alloc(g->dev, bytes, &mem, &b->committed, e))) < 0) {
        place_give(g, (uint32_t)i);
        return rc;
    }
    b->mem = mem;
    b->bytes = bytes;
    atomic_fetch_add(&g->allocated, b->committed);
    atomic_fetch_add(&g->buffers, 1);
    *handle = (uint64_t)b->gen << 32 | (uint64_t)(i + 1);
    return ST_OK;
}

int gpu_free(struct gpu *g, uint64_t handle, struct err *e)
{
    struct gpu_buffer *b;
    int rc = find_or(g, handle, &b, e);
    if (rc < 0)
        return rc;
    g->ops->free(g->dev, b->mem, g->hung);
    atomic_fetch_sub(&g->allocated, b->committed);
    atomic_fetch_sub(&g->buffers, 1);
    b->gen = (b->gen + 1) & GEN_MASK;
    if (b->gen)
        place_give(g, (uint32_t)(b - g->v));
    else
        b->mem = NULL; /* its generations are used up: the place is retired, so that no handle ever returns */
    return ST_OK;
}

int gpu_size(const struct gpu *g, uint64_t handle, uint64_t *bytes)
{
    const struct gpu_buffer *b = find(g, handle);
    if (!b)
        return ST_ENOENT;
    *bytes = b->bytes;
    return ST_OK;
}

int gpu_range(struct gpu *g, uint64_t handle, uint64_t off, uint64_t len, struct gpu_buffer **b,
              struct err *e)
{
    int rc = lost_check(g, e);
    if (rc < 0 || (rc = find_or(g, handle, b, e)) < 0)
        return rc;
    if (off > (*b)->bytes || len > (*b)->bytes - off)
        return err_set(e, ST_EINVAL, "%s: %" PRIu64 " bytes at %" PRIu64 " reach past the buffer's %" PRIu64,
                       g->info.id, len, off, (*b)->bytes);
    return ST_OK;
}

/* The pin around a range of the host's memory. */
static void *pin_of(const struct gpu *g, const void *p, uint64_t len)
{
    uintptr_t a = (uintptr_t)p;
    for (size_t i = 0; i < GPU_MAX_PINS; i++) {
        uintptr_t b = (uintptr_t)g->pins[i].p;
        if (b && a >= b && a - b <= g->pins[i].len && len <= g->pins[i].len - (a - b))
            return g->pins[i].pin;
    }
    return NULL;
}

int gpu_pin(struct gpu *g, void *p, uint64_t len, struct err *e)
{
    struct gpu_pin *place = NULL;
    uintptr_t a = (uintptr_t)p;
    int rc = lost_check(g, e);
    if (rc < 0)
        return rc;
    if (!p || len == 0 || len > UINTPTR_MAX - a)
        return err_set(e, ST_EINVAL, "%s: no memory to pin", g->info.id);
    if (!g->ops->pin)
        return err_set(e, ST_ENOTSUP, "%s: the device needs no pinned memory", g->info.id);
    for (size_t i = 0; i < GPU_MAX_PINS; i++) {
        uintptr_t b = (uintptr_t)g->pins[i].p;
        if (!b)
            place = place ? place : &g->pins[i];
        else if (a < b + g->pins[i].len && b < a + len)
            return err_set(e, ST_ECONFLICT, "%s: a part of this memory is pinned already", g->info.id);
    }
    if (!place)
        return err_set(e, ST_ELIMIT, "%s: at most %d ranges of memory can be pinned", g->info.id,
                       GPU_MAX_PINS);
    if ((rc = gpu_answer(g, g->ops->pin(g->dev, p, len, &place->pin, e))) == ST_OK) {
        place->p = p;
        place->len = len;
    }
    return rc;
}

int gpu_unpin(struct gpu *g, void *p, struct err *e)
{
    for (size_t i = 0; p && i < GPU_MAX_PINS; i++)
        if (g->pins[i].p == p) {
            g->ops->unpin(g->dev, g->pins[i].pin, g->hung);
            g->pins[i] = (struct gpu_pin){0};
            return ST_OK;
        }
    return err_set(e, ST_ENOENT, "%s: this memory is not pinned", g->info.id);
}

int gpu_copy_in(struct gpu *g, uint64_t handle, uint64_t off, const void *src, uint64_t len, struct err *e)
{
    struct gpu_buffer *b;
    int rc = gpu_range(g, handle, off, len, &b, e);
    if (rc < 0 || len == 0)
        return rc;
    return gpu_answer(g, g->ops->copy_in(g->dev, b->mem, off, src, len, pin_of(g, src, len), e));
}

int gpu_copy_out(struct gpu *g, uint64_t handle, uint64_t off, void *dst, uint64_t len, struct err *e)
{
    struct gpu_buffer *b;
    int rc = gpu_range(g, handle, off, len, &b, e);
    if (rc < 0 || len == 0)
        return rc;
    return gpu_answer(g, g->ops->copy_out(g->dev, b->mem, off, dst, len, pin_of(g, dst, len), e));
}

int gpu_sync(struct gpu *g, struct err *e)
{
    int rc = lost_check(g, e);
    return rc < 0 ? rc : gpu_answer(g, g->ops->sync(g->dev, e));
}

void gpu_usage(const struct gpu *g, struct gpu_usage *out)
{
    uint64_t limit = atomic_load(&g->limit), used = atomic_load(&g->allocated);
    *out = (struct gpu_usage){.allocated_bytes = used,
                              .available_bytes = used > limit ? 0 : limit - used,
                              .buffers = atomic_load(&g->buffers),
                              .lost = atomic_load(&g->lost)};
}

int gpu_measure(struct gpu *g, struct gpu_rates *out, struct err *e)
{
    uint64_t a = 0, b = 0;
    struct gpu_rates r = {0};
    int rc = gpu_alloc(g, MEASURE_BYTES, &a, e);
    if (rc < 0)
        return rc;
    if ((rc = gpu_alloc(g, MEASURE_BYTES, &b, e)) == ST_OK) {
        void *ma = find(g, a)->mem, *mb = find(g, b)->mem;
        rc = gpu_answer(
            g, g->ops->measure_copy(g->dev, ma, mb, MEASURE_BYTES, MEASURE_NS, &r.memory_bytes_per_s, e));
        int freed = gpu_free(g, b, NULL);
        rc = rc < 0 ? rc : freed;
    }
    int freed = gpu_free(g, a, NULL);
    rc = rc < 0 ? rc : freed;
    if (rc == ST_OK && g->ops->measure_fma)
        rc = gpu_answer(g, g->ops->measure_fma(g->dev, MEASURE_NS, &r.compute_flops_per_s, e));
    if (rc == ST_OK)
        *out = r;
    return rc;
}
