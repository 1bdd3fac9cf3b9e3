/* CUDA: the kernels of exec.h, from PTX that is part of the program. Never run on hardware. */
#include <string.h>

#include "agent/gpu/cuda_priv.h"
#include "common/base/clock.h"

#define THREADS 128u
#define BLOCKS_MAX 65535u
#define LAUNCH_WORK (1ull << 33) /* multiply-adds of one launch: milliseconds, far from any watchdog */

static const char ptx[] =
#include "agent/gpu/cuda_kernels.ptx.inc"
    ;

static const char *const names[CUDA_KERNELS] = {[CUDA_CHECKSUM] = "strata_checksum",
                                                [CUDA_AXPB] = "strata_axpb",
                                                [CUDA_FMA_RATE] = "strata_fma_rate",
                                                [CUDA_MATMUL] = "strata_matmul"};

static int module_need(struct cuda_dev *d, struct err *e)
{
    if (d->sums)
        return ST_OK;
    int r = d->module ? CU_OK : d->api->module_load(&d->module, ptx, 0, NULL, NULL);
    if (r != CU_OK)
        d->module = NULL;
    for (int i = 0; r == CU_OK && i < CUDA_KERNELS; i++)
        r = d->api->function(&d->kernel[i], d->module, names[i]);
    if (r == CU_OK && (r = d->api->alloc(&d->sums, CUDA_SUM_BLOCKS * 8)) != CU_OK)
        d->sums = 0;
    return r == CU_OK ? ST_OK : cuda_error(r, d->id, "loading the kernels", e);
}

static int launch(struct cuda_dev *d, enum cuda_kernel k, uint64_t blocks, uint32_t blocks_y, void **args,
                  struct err *e)
{
    unsigned x = blocks < BLOCKS_MAX ? (unsigned)blocks : BLOCKS_MAX;
    int r = d->api->launch(d->kernel[k], x ? x : 1, blocks_y, 1, THREADS, 1, 1, 0, d->lane[CUDA_WORK], args,
                           NULL);
    return r == CU_OK ? ST_OK : cuda_error(r, d->id, "starting a kernel", e);
}

static cu_ptr at(const struct gpu_part *p)
{
    return ((struct cuda_mem *)p->mem)->p + p->off;
}

static int checksum(struct cuda_dev *d, const struct gpu_part *p, uint64_t *value, struct err *e)
{
    cu_ptr w = at(p), sums = d->sums;
    unsigned long long words = (p->len + 3) / 4;
    uint32_t mask = p->len % 4 ? (1u << 8 * (p->len % 4)) - 1 : UINT32_MAX, part[CUDA_SUM_BLOCKS][2];
    uint64_t blocks = (words + THREADS * 16 - 1) / (THREADS * 16);
    blocks = blocks < CUDA_SUM_BLOCKS ? blocks : CUDA_SUM_BLOCKS;
    void *args[] = {&w, &words, &mask, &sums};
    int rc = launch(d, CUDA_CHECKSUM, blocks, 1, args, e);
    if (rc < 0 || (rc = cuda_settle(d, CUDA_WORK, e)) < 0)
        return rc;
    int r = d->api->d2h(d->staging, d->sums, blocks * 8, d->lane[CUDA_WORK]);
    if (r != CU_OK)
        return cuda_error(r, d->id, "reading a checksum", e);
    if ((rc = cuda_settle(d, CUDA_WORK, e)) < 0)
        return rc;
    memcpy(part, d->staging, blocks * 8);
    *value = 0;
    for (uint64_t i = 0; i < blocks; i++)
        *value = gpu_checksum_add(*value, (uint64_t)part[i][1] << 32 | part[i][0]);
    return ST_OK;
}

static int axpb(struct cuda_dev *d, const struct gpu_task *t, struct err *e)
{
    uint64_t most = LAUNCH_WORK / (t->rounds + 1ull) + 1, n = t->part[0].len / 4;
    int rc = ST_OK;
    for (uint64_t first = 0; rc == ST_OK && first < n; first += most) {
        cu_ptr x = at(&t->part[0]) + 4 * first;
        unsigned long long words = n - first < most ? n - first : most;
        uint32_t rounds = t->rounds;
        float m = t->m, a = t->a;
        void *args[] = {&x, &words, &rounds, &m, &a};
        rc = launch(d, CUDA_AXPB, (words + THREADS - 1) / THREADS, 1, args, e);
    }
    return rc;
}

static int matmul(struct cuda_dev *d, const struct gpu_task *t, struct err *e)
{
    unsigned long long row = gpu_row_bytes(t->type, t->cols);
    uint64_t most = LAUNCH_WORK / ((uint64_t)t->rows * t->cols) + 1; /* vectors a launch */
    int rc = ST_OK;
    for (uint64_t k = 0; rc == ST_OK && k < t->n; k += most) {
        cu_ptr y = at(&t->part[0]) + 4 * k * t->rows, w = at(&t->part[1]),
               x = at(&t->part[2]) + 4 * k * t->cols;
        uint32_t rows = t->rows, cols = t->cols, type = (uint32_t)t->type;
        uint64_t n = t->n - k < most ? t->n - k : most;
        void *args[] = {&y, &w, &x, &row, &rows, &cols, &type};
        rc = launch(d, CUDA_MATMUL, rows, (uint32_t)n, args, e);
    }
    return rc;
}

int cuda_exec(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e)
{
    struct cuda_dev *d = dev;
    int rc = cuda_enter(d, e), r = CU_OK;
    if (rc == ST_OK && t->kernel != GPU_K_FILL && t->kernel != GPU_K_COPY)
        rc = module_need(d, e);
    if (rc < 0)
        return rc;
    switch (t->kernel) {
    case GPU_K_FILL:
        r = d->api->fill(at(&t->part[0]), t->word, t->part[0].len / 4, d->lane[CUDA_WORK]);
        break;
    case GPU_K_COPY:
        r = d->api->d2d(at(&t->part[0]), at(&t->part[1]), t->part[0].len, d->lane[CUDA_WORK]);
        break;
    case GPU_K_CHECKSUM:
        return checksum(d, &t->part[0], value, e);
    case GPU_K_FMA:
        rc = axpb(d, t, e);
        break;
    case GPU_K_MATMUL:
        rc = matmul(d, t, e);
        break;
    }
    if (r != CU_OK)
        rc = cuda_error(r, d->id, "starting work", e);
    if (gpu_fatal(rc))
        return rc;
    int last = cuda_settle(d, CUDA_WORK, rc == ST_OK ? e : NULL);
    return rc == ST_OK || gpu_fatal(last) ? last : rc;
}

int cuda_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e)
{
    struct cuda_dev *d = dev;
    const struct clock *clk = clock_system();
    unsigned blocks = 4096;
    uint32_t rounds = 64;
    float m = 0.999f, a = 0.001f;
    cu_ptr out = 0;
    double flop = 0;
    uint64_t took = 0, begin = clock_ns(clk);
    int rc = cuda_enter(d, e);
    if (rc == ST_OK)
        rc = module_need(d, e);
    if (rc < 0)
        return rc;
    int r = d->api->alloc(&out, (size_t)blocks * THREADS * 4);
    if (r != CU_OK)
        return cuda_error(r, d->id, "allocating memory", e);
    void *args[] = {&out, &rounds, &m, &a};
    for (bool warm = false; rc == ST_OK && (!warm || clock_ns(clk) - begin < budget_ns); warm = true) {
        uint64_t start = clock_ns(clk);
        rc = launch(d, CUDA_FMA_RATE, blocks, 1, args, e);
        if (rc == ST_OK)
            rc = cuda_settle(d, CUDA_WORK, e);
        uint64_t ns = clock_ns(clk) - start;
        if (warm && ns < 4 * NS_PER_MS && rounds < 1u << 20) { /* too short to count */
            rounds *= 2;
            flop = 0, took = 0;
        } else if (warm) {
            flop += 16.0 * rounds * blocks * THREADS;
            took += ns;
        }
    }
    if (rc == ST_OK)
        *rate = took ? flop * 1e9 / (double)took : 0;
    if (rc != ST_EDEADLINE)
        d->api->free(out);
    return rc;
}
