/*
 * The kernels of exec.h on the host: the reference that the other backends are held against. Work above a
 * threshold is split over threads, by words or by rows.
 */
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "agent/gpu/cpu_priv.h"

#define WORK_OF_ONE (1u << 20) /* below this a second thread costs more than it does */
#define BLOCK 32

struct share {
    const struct gpu_task *t;
    uint64_t first, end; /* words, or rows */
    uint64_t sum;
};

static uint8_t *at(const struct gpu_part *p)
{
    return ((struct cpu_mem *)p->mem)->data + p->off;
}

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 31, man = h & 0x3ffu, u;
    float f;
    if (exp == 0) { /* zero and what half calls subnormal */
        f = (float)man * 0x1p-24f;
        return sign ? -f : f;
    }
    u = sign | (exp == 31 ? 0x7f800000u : (exp + 112) << 23) | man << 13;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return half_to_float(h);
}

/* Eight sums side by side, so that the compiler may use vectors without reordering anything. */
static float dot_f32(const uint8_t *w, const float *x, uint32_t cols)
{
    float s[8] = {0}, v[8], tail = 0;
    uint32_t i = 0;
    for (; i + 8 <= cols; i += 8) {
        memcpy(v, w + 4ull * i, sizeof v);
        for (int k = 0; k < 8; k++)
            s[k] += v[k] * x[i + (uint32_t)k];
    }
    for (; i < cols; i++) {
        memcpy(v, w + 4ull * i, 4);
        tail += v[0] * x[i];
    }
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])) + tail;
}

static float dot_f16(const uint8_t *w, const float *x, uint32_t cols)
{
    float s[4] = {0};
    for (uint32_t i = 0; i < cols; i++)
        s[i & 3] += half_at(w + 2ull * i) * x[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

static float dot_q8(const uint8_t *w, const float *x, uint32_t cols)
{
    float sum = 0;
    for (uint32_t b = 0; b < cols / BLOCK; b++, w += 34, x += BLOCK) {
        float s[4] = {0};
        for (int i = 0; i < BLOCK; i++)
            s[i & 3] += (float)(int8_t)w[2 + i] * x[i];
        sum += half_at(w) * ((s[0] + s[1]) + (s[2] + s[3]));
    }
    return sum;
}

static float dot_q4(const uint8_t *w, const float *x, uint32_t cols)
{
    float sum = 0;
    for (uint32_t b = 0; b < cols / BLOCK; b++, w += 18, x += BLOCK) {
        float s[2] = {0};
        for (int i = 0; i < BLOCK / 2; i++) {
            s[0] += (float)((int)(w[2 + i] & 15) - 8) * x[i];
            s[1] += (float)((int)(w[2 + i] >> 4) - 8) * x[i + BLOCK / 2];
        }
        sum += half_at(w) * (s[0] + s[1]);
    }
    return sum;
}

static void rows(const struct share *s)
{
    static float (*const dot[])(const uint8_t *, const float *, uint32_t) = {
        [GPU_F32] = dot_f32, [GPU_F16] = dot_f16, [GPU_Q8_0] = dot_q8, [GPU_Q4_0] = dot_q4};
    const struct gpu_task *t = s->t;
    float *y = (float *)(void *)at(&t->part[0]);
    const uint8_t *w = at(&t->part[1]);
    const float *x = (const float *)(const void *)at(&t->part[2]);
    uint64_t row = gpu_row_bytes(t->type, t->cols);
    for (uint64_t r = s->first; r < s->end; r++)
        for (uint64_t k = 0; k < t->n; k++)
            y[k * t->rows + r] = dot[t->type](w + r * row, x + k * t->cols, t->cols);
}

static void fma_words(const struct share *s)
{
    const struct gpu_task *t = s->t;
    float *x = (float *)(void *)at(&t->part[0]);
    for (uint64_t i = s->first; i < s->end; i += 64) { /* a tile that stays in registers or nearby */
        uint64_t n = s->end - i < 64 ? s->end - i : 64;
        for (uint32_t r = 0; r < t->rounds; r++)
            for (uint64_t k = 0; k < n; k++)
                x[i + k] = x[i + k] * t->m + t->a;
    }
}

static void *share_run(void *arg)
{
    struct share *s = arg;
    const struct gpu_task *t = s->t;
    uint8_t *p = at(&t->part[0]);
    uint64_t len = t->part[0].len;
    switch (t->kernel) {
    case GPU_K_FILL:
        for (uint64_t i = s->first; i < s->end; i++)
            memcpy(p + 4 * i, &t->word, 4);
        break;
    case GPU_K_COPY:
        memcpy(p + 4 * s->first, at(&t->part[1]) + 4 * s->first, 4 * (s->end - s->first));
        break;
    case GPU_K_CHECKSUM:
        s->sum = gpu_checksum_words(p + 4 * s->first, (4 * s->end < len ? 4 * s->end : len) - 4 * s->first,
                                    s->first);
        break;
    case GPU_K_FMA:
        fma_words(s);
        break;
    case GPU_K_MATMUL:
        rows(s);
        break;
    }
    return NULL;
}

int cpu_exec(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e)
{
    const struct cpu_dev *d = dev;
    struct share s[CPU_MAX_THREADS];
    pthread_t id[CPU_MAX_THREADS];
    bool started[CPU_MAX_THREADS] = {false};
    uint64_t units = t->kernel == GPU_K_MATMUL ? t->rows : (t->part[0].len + 3) / 4;
    uint64_t work = t->kernel == GPU_K_MATMUL ? units * t->cols * t->n
                    : t->kernel == GPU_K_FMA  ? units * (t->rounds + 1ull)
                                              : units;
    uint64_t n = work / WORK_OF_ONE + 1;
    (void)e;
    n = n < d->threads ? n : d->threads;
    n = n < units ? n : units;
    for (uint64_t i = 0; i < n; i++)
        s[i] = (struct share){.t = t, .first = units * i / n, .end = units * (i + 1) / n};
    for (uint64_t i = 1; i < n; i++)
        started[i] = pthread_create(&id[i], NULL, share_run, &s[i]) == 0;
    share_run(&s[0]);
    uint64_t sum = s[0].sum;
    for (uint64_t i = 1; i < n; i++) {
        if (started[i])
            pthread_join(id[i], NULL);
        else
            share_run(&s[i]); /* no thread to be had: slower, not wrong */
        sum = gpu_checksum_add(sum, s[i].sum);
    }
    if (t->kernel == GPU_K_CHECKSUM)
        *value = sum;
    return ST_OK;
}
