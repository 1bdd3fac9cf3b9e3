/*
 * Kernels: what every backend's must be told about their arguments is checked here, once. A backend sees a
 * task whose parts lie inside live buffers, have the right lengths and alignment, and overlap only where that
 * is harmless.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu_priv.h"

#define BOUNCE_BYTES (4ull << 20)

static const struct {
    const char *name;
    enum gpu_kernel kernel;
    uint32_t spans, scalars, written; /* written: spans 0 … written-1 */
} kernels[] = {
    {"fill", GPU_K_FILL, 1, 1, 1}, {"copy", GPU_K_COPY, 2, 0, 1},     {"checksum", GPU_K_CHECKSUM, 1, 0, 0},
    {"fma", GPU_K_FMA, 1, 3, 1},   {"matvec", GPU_K_MATMUL, 3, 3, 1}, {"matmul", GPU_K_MATMUL, 3, 4, 1},
};
#define KERNELS (sizeof kernels / sizeof kernels[0])

/* ---- the checksum ---- */

static inline uint32_t mix1(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ x >> 16;
}

static inline uint32_t mix2(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

uint64_t gpu_checksum_words(const void *data, uint64_t len, uint64_t first)
{
    const uint8_t *p = data;
    uint32_t low = 0, high = 0;
    for (uint64_t at = 0; at < len;) {
        uint64_t i = first + at / 4,
                 turn = (1ull << 32) - (uint32_t)i; /* words to the next step of i >> 32 */
        uint64_t n = (len - at) / 4 < turn ? (len - at) / 4 : turn;
        uint32_t a = (uint32_t)i * 0x9e3779b1u + (uint32_t)(i >> 32) * 0x85ebca77u;
        uint32_t b = (uint32_t)i * 0xc2b2ae3du + (uint32_t)(i >> 32) * 0x27d4eb2fu + 0x165667b1u;
        for (uint64_t k = 0; k < n; k++) {
            uint32_t w;
            memcpy(&w, p + at + 4 * k, 4);
            low += mix1(w + a + (uint32_t)k * 0x9e3779b1u);
            high += mix2(w ^ (b + (uint32_t)k * 0xc2b2ae3du));
        }
        at += 4 * n;
        if (n == 0 && len - at < 4) {
            uint32_t w = 0;
            memcpy(&w, p + at, len - at);
            low += mix1(w + a);
            high += mix2(w ^ b);
            at = len;
        }
    }
    return (uint64_t)high << 32 | low;
}

uint64_t gpu_checksum_add(uint64_t a, uint64_t b)
{
    uint32_t low = (uint32_t)a + (uint32_t)b, high = (uint32_t)(a >> 32) + (uint32_t)(b >> 32);
    return (uint64_t)high << 32 | low;
}

uint64_t gpu_checksum_len(uint64_t len)
{
    return (uint64_t)mix2((uint32_t)(len >> 32) ^ (uint32_t)len) << 32 | mix1((uint32_t)len);
}

uint64_t gpu_checksum(const void *data, uint64_t len)
{
    return gpu_checksum_add(gpu_checksum_len(len), gpu_checksum_words(data, len, 0));
}

/* ---- kernels ---- */

uint64_t gpu_row_bytes(enum gpu_dtype type, uint64_t cols)
{
    switch (type) {
    case GPU_F32:
        return cols * 4;
    case GPU_F16:
        return cols * 2;
    case GPU_Q8_0:
        return cols / 32 * 34;
    case GPU_Q4_0:
        return cols / 32 * 18;
    }
    return 0;
}

static float f32_of(uint64_t scalar)
{
    uint32_t u = (uint32_t)scalar;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static int matmul_args(const struct gpu *g, const struct gpu_exec *x, struct gpu_task *t, struct err *e)
{
    uint64_t rows = x->scalar[0], cols = x->scalar[1], type = x->scalar[2],
             n = x->scalars > 3 ? x->scalar[3] : 1;
    if (type > GPU_Q4_0)
        return err_set(e, ST_EINVAL, "%s: %s: there is no weight type %" PRIu64, g->info.id, x->kernel, type);
    if (!rows || !cols || !n || rows > INT32_MAX || cols > INT32_MAX || n > UINT16_MAX)
        return err_set(e, ST_EINVAL,
                       "%s: %s: %" PRIu64 " rows, %" PRIu64 " columns and %" PRIu64
                       " vectors are not a product",
                       g->info.id, x->kernel, rows, cols, n);
    if ((type == GPU_Q8_0 || type == GPU_Q4_0) && cols % 32)
        return err_set(e, ST_EINVAL, "%s: %s: %" PRIu64 " columns are no multiple of the block of 32",
                       g->info.id, x->kernel, cols);
    if (rows * cols > GPU_MAX_WORK / n)
        return err_set(e, ST_ELIMIT, "%s: %s: more than %llu multiply-adds in one call; use several",
                       g->info.id, x->kernel, GPU_MAX_WORK);
    t->rows = (uint32_t)rows;
    t->cols = (uint32_t)cols;
    t->n = (uint32_t)n;
    t->type = (enum gpu_dtype)type;
    const uint64_t want[3] = {rows * n * 4, rows * gpu_row_bytes(t->type, cols), cols * n * 4};
    for (int i = 0; i < 3; i++)
        if (x->span[i].len != want[i])
            return err_set(e, ST_EINVAL, "%s: %s: argument %d has %" PRIu64 " bytes, %" PRIu64 " needed",
                           g->info.id, x->kernel, i, x->span[i].len, want[i]);
    return ST_OK;
}

static int scalars_check(const struct gpu *g, const struct gpu_exec *x, struct gpu_task *t, struct err *e)
{
    switch (t->kernel) {
    case GPU_K_FILL:
        if (x->scalar[0] > UINT32_MAX)
            return err_set(e, ST_EINVAL, "%s: fill: the word has more than 32 bits", g->info.id);
        t->word = (uint32_t)x->scalar[0];
        return ST_OK;
    case GPU_K_COPY:
        if (x->span[0].len != x->span[1].len)
            return err_set(e, ST_EINVAL, "%s: copy: %" PRIu64 " bytes do not fit %" PRIu64, g->info.id,
                           x->span[1].len, x->span[0].len);
        return ST_OK;
    case GPU_K_FMA:
        t->m = f32_of(x->scalar[0]);
        t->a = f32_of(x->scalar[1]);
        if (x->scalar[0] > UINT32_MAX || x->scalar[1] > UINT32_MAX || !isfinite(t->m) || !isfinite(t->a))
            return err_set(e, ST_EINVAL, "%s: fma: m and a must be finite f32 numbers", g->info.id);
        if (x->scalar[2] > UINT32_MAX || x->scalar[2] * (x->span[0].len / 4 + 1) > GPU_MAX_WORK)
            return err_set(e, ST_ELIMIT, "%s: fma: more than %llu multiply-adds in one call; use several",
                           g->info.id, GPU_MAX_WORK);
        t->rounds = (uint32_t)x->scalar[2];
        return ST_OK;
    case GPU_K_MATMUL:
        return matmul_args(g, x, t, e);
    case GPU_K_CHECKSUM:
        break;
    }
    return ST_OK;
}

static bool overlap(const struct gpu_part *a, const struct gpu_part *b)
{
    return a->mem == b->mem && a->off < b->off + b->len && b->off < a->off + a->len;
}

static int spans_check(struct gpu *g, const struct gpu_exec *x, uint32_t written, struct gpu_task *t,
                       struct err *e)
{
    for (uint32_t i = 0; i < x->spans; i++) {
        const struct gpu_span *s = &x->span[i];
        bool free_len = t->kernel == GPU_K_CHECKSUM || (t->kernel == GPU_K_MATMUL && i == 1);
        struct gpu_buffer *b;
        int rc = gpu_range(g, s->handle, s->offset, s->len, &b, e);
        if (rc < 0)
            return err_prefix(e, "%s: argument %u", x->kernel, i), rc;
        if (s->offset % 4 || (!free_len && s->len % 4))
            return err_set(e, ST_EINVAL, "%s: %s: argument %u does not lie on 32-bit words", g->info.id,
                           x->kernel, i);
        t->part[i] = (struct gpu_part){b->mem, s->offset, s->len};
    }
    for (uint32_t i = 0; i < written; i++)
        for (uint32_t k = 0; k < x->spans; k++)
            if (k != i && overlap(&t->part[i], &t->part[k]))
                return err_set(e, ST_EINVAL, "%s: %s: arguments %u and %u overlap", g->info.id, x->kernel, i,
                               k);
    return ST_OK;
}

int gpu_exec(struct gpu *g, const struct gpu_exec *x, uint64_t *value, struct err *e)
{
    struct gpu_task t = {0};
    uint64_t sum = 0;
    size_t k = 0;
    int rc;
    if (memchr(x->kernel, 0, sizeof x->kernel))
        while (k < KERNELS && strcmp(kernels[k].name, x->kernel) != 0)
            k++;
    else
        k = KERNELS;
    if (k == KERNELS)
        return err_set(e, ST_ENOENT, "%s: there is no kernel \"%.*s\"", g->info.id, (int)sizeof x->kernel - 1,
                       x->kernel);
    if (x->spans != kernels[k].spans || x->scalars != kernels[k].scalars)
        return err_set(e, ST_EINVAL, "%s: %s takes %u buffers and %u numbers, not %u and %u", g->info.id,
                       x->kernel, kernels[k].spans, kernels[k].scalars, x->spans, x->scalars);
    t.kernel = kernels[k].kernel;
    if ((rc = spans_check(g, x, kernels[k].written, &t, e)) < 0 || (rc = scalars_check(g, x, &t, e)) < 0)
        return rc;
    if (t.part[0].len) {
        if (!g->ops->exec)
            return err_set(e, ST_ENOTSUP, "%s: this build has no kernels for the device", g->info.id);
        if ((rc = gpu_answer(g, g->ops->exec(g->dev, &t, &sum, e))) < 0)
            return rc;
    }
    if (t.kernel == GPU_K_CHECKSUM)
        sum = gpu_checksum_add(sum, gpu_checksum_len(t.part[0].len));
    if (value)
        *value = sum;
    return ST_OK;
}

/* ---- copies within and between devices ---- */

/* For devices that do not reach each other. */
static int bounce(struct gpu *dst, const struct gpu_part *d, struct gpu *src, const struct gpu_part *s,
                  struct err *e)
{
    uint64_t chunk = s->len < BOUNCE_BYTES ? s->len : BOUNCE_BYTES;
    uint8_t *p = malloc(chunk);
    int rc = p ? ST_OK : err_set(e, ST_ENOMEM, "%s: no memory to copy through", dst->info.id);
    for (uint64_t at = 0; rc == ST_OK && at < s->len; at += chunk) {
        uint64_t n = s->len - at < chunk ? s->len - at : chunk;
        rc = gpu_answer(src, src->ops->copy_out(src->dev, s->mem, s->off + at, p, n, NULL, e));
        if (rc == ST_OK)
            rc = gpu_answer(dst, dst->ops->copy_in(dst->dev, d->mem, d->off + at, p, n, NULL, e));
    }
    free(p);
    return rc;
}

int gpu_copy(struct gpu *dst, uint64_t dst_handle, uint64_t dst_off, struct gpu *src, uint64_t src_handle,
             uint64_t src_off, uint64_t len, struct err *e)
{
    struct gpu_buffer *db, *sb;
    int rc = gpu_range(dst, dst_handle, dst_off, len, &db, e);
    if (rc < 0 || (rc = gpu_range(src, src_handle, src_off, len, &sb, e)) < 0 || len == 0)
        return rc;
    struct gpu_part d = {db->mem, dst_off, len}, s = {sb->mem, src_off, len};
    if (dst == src && overlap(&d, &s))
        return err_set(e, ST_EINVAL, "%s: the two ranges of the copy overlap", dst->info.id);
    if (dst == src)
        return gpu_answer(dst, dst->ops->copy(dst->dev, d.mem, d.off, s.mem, s.off, len, e));
    rc = ST_ENOTSUP;
    if (dst->ops == src->ops && dst->ops->copy_peer)
        rc = dst->ops->copy_peer(dst->dev, d.mem, d.off, src->dev, s.mem, s.off, len, e);
    if (rc == ST_ENOTSUP)
        return bounce(dst, &d, src, &s, e);
    return gpu_answer(dst, rc); /* which of the two failed the driver does not tell: the caller's is marked */
}
