/*
 * strata-bench gpu: the first device of each kind there is (software, Vulkan, CUDA). What is not here is
 * listed with the reason. A software device is never reported as a GPU.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/gpu/gpu_bench.h"
#include "common/base/str.h"

double gb_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

const char *gb_name(char out[96], const struct gb *b, const char *what)
{
    snprintf(out, 96, "%s.%s", b->prefix, what);
    return out;
}

void gb_skip(const struct gb *b, const char *what, const char *why)
{
    char name[96];
    bench_skip(b->run, "gpu", gb_name(name, b, what), why);
}

/* Seconds of one call, the best of three: enough for a rate that is only reported. */
static int best(struct gpu *g, const struct gpu_exec *x, double *s, struct err *e)
{
    *s = 1e9;
    for (int i = 0; i < 4; i++) { /* the first is the warm-up */
        double t = gb_now();
        int rc = gpu_exec(g, x, NULL, e);
        t = gb_now() - t;
        if (rc < 0)
            return rc;
        if (i && t < *s)
            *s = t;
    }
    return ST_OK;
}

/* GB/s that a kernel over `bytes` of its second-largest reading takes in, on one device. */
static int kernel_rate(struct gpu *g, int kind, uint32_t rows, uint32_t cols, double *gbps, struct err *e)
{
    static const double per32[] = {128, 64, 34, 18};
    uint64_t bytes = kind < 0 ? (uint64_t)rows * cols : (uint64_t)((double)rows * cols / 32 * per32[kind]);
    uint64_t w = 0, x = 0, y = 0;
    double s = 0;
    int rc = gpu_alloc(g, bytes, &w, e);
    if (rc == ST_OK)
        rc = gpu_alloc(g, 4ull * cols, &x, e);
    if (rc == ST_OK)
        rc = gpu_alloc(g, 4ull * rows, &y, e);
    struct gpu_exec k = {.kernel = "checksum", .spans = 1, .span = {{w, 0, bytes}}};
    if (kind >= 0)
        k = (struct gpu_exec){.kernel = "matvec",
                              .spans = 3,
                              .scalars = 3,
                              .span = {{y, 0, 4ull * rows}, {w, 0, bytes}, {x, 0, 4ull * cols}},
                              .scalar = {rows, cols, (uint64_t)kind}};
    if (rc == ST_OK)
        rc = best(g, &k, &s, e);
    *gbps = rc == ST_OK && s > 0 ? (double)bytes / s / 1e9 : 0;
    const uint64_t h[] = {w, x, y};
    for (int i = 0; i < 3; i++)
        if (h[i])
            (void)!gpu_free(g, h[i], NULL);
    return rc;
}

int gb_rates(struct gb *b)
{
    static const struct {
        const char *name;
        int kind;
    } k[] = {{"checksum_rate", -1},
             {"matvec_f32", GPU_F32},
             {"matvec_f16", GPU_F16},
             {"matvec_q8_0", GPU_Q8_0},
             {"matvec_q4_0", GPU_Q4_0}};
    struct gpu_rates mine, host;
    char name[96];
    int rc = gpu_measure(b->g, &mine, b->e);
    if (rc < 0 || (rc = gpu_measure(b->cpu, &host, b->e)) < 0)
        return rc;
    bench_put(b->run, "gpu", gb_name(name, b, "memory_copy_rate"), mine.memory_bytes_per_s / 1e9,
              host.memory_bytes_per_s / 1e9);
    if (mine.compute_flops_per_s > 0)
        bench_put(b->run, "gpu", gb_name(name, b, "fma_f32_rate"), mine.compute_flops_per_s / 1e9,
                  host.compute_flops_per_s / 1e9);
    else
        gb_skip(b, "fma_f32_rate", "this build has no kernels for the device");
    for (size_t i = 0; i < sizeof k / sizeof k[0]; i++) {
        double ours, peer;
        rc = kernel_rate(b->g, k[i].kind, 4096, 4096, &ours, b->e);
        if (rc == ST_ENOTSUP) {
            gb_skip(b, k[i].name, b->e->text);
            continue;
        }
        if (rc < 0 || (rc = kernel_rate(b->cpu, k[i].kind, 4096, 4096, &peer, b->e)) < 0)
            return rc;
        bench_put(b->run, "gpu", gb_name(name, b, k[i].name), ours, peer);
    }
    return ST_OK;
}

static void skip_all(struct bench_run *run, const char *prefix, const char *why)
{
    size_t n = strlen(prefix);
    for (size_t i = 0; i < bench_cases_n; i++)
        if (!strcmp(bench_cases[i].area, "gpu") && !strncmp(bench_cases[i].name, prefix, n) &&
            bench_cases[i].name[n] == '.' && !run->results[i].ran && !run->results[i].why[0])
            bench_skip(run, "gpu", bench_cases[i].name, why);
}

static bool fits(const struct gpu_info *g, const char *prefix)
{
    return strcmp(prefix, "software") == 0 ? g->software : !g->software && strcmp(g->backend, prefix) == 0;
}

int bench_gpu(struct bench_run *run, struct err *e)
{
    static const char *const prefixes[] = {"software", "vulkan", "cuda"};
    static const char *const absent[] = {"there is no software Vulkan device here",
                                         "there is no Vulkan GPU here", "there is no CUDA GPU here"};
    struct gpu_cfg cfg = {.backends = NULL};
    struct gpu_set *set;
    int rc = gpu_set_new(&set, &cfg, e);
    if (rc < 0)
        return rc;
    struct gb b = {.run = run, .set = set, .e = e};
    rc = gpu_open(&b.cpu, set, 0, e);
    for (size_t p = 0; rc == ST_OK && p < 3; p++) {
        size_t i = 0;
        while (i < gpu_set_count(set) && !fits(gpu_set_info(set, i), prefixes[p]))
            i++;
        if (i == gpu_set_count(set)) {
            skip_all(run, prefixes[p], absent[p]);
            continue;
        }
        const struct gpu_info *g = gpu_set_info(set, i);
        fprintf(stderr, "strata-bench: %s is %s, %s, driver %s\n", prefixes[p], g->id, g->name, g->driver);
        b.prefix = prefixes[p];
        b.index = i;
        if ((rc = gpu_open(&b.g, set, i, e)) < 0)
            break;
        if ((rc = gb_copies(&b)) == ST_OK && (rc = gb_latency(&b)) == ST_OK)
            rc = gb_rates(&b);
        gpu_close(b.g);
        if (rc < 0) { /* one device that fails leaves the others their turn, and says so */
            skip_all(run, prefixes[p], e->text);
            fprintf(stderr, "strata-bench: %s\n", e->text);
            rc = ST_OK;
        }
    }
    gpu_close(b.cpu);
    gpu_set_free(set);
    return rc;
}
