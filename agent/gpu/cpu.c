/*
 * The reference backend: "device" memory is anonymous host memory of the worker. It is complete (the
 * conformance suite runs on it first) and what a node without a GPU offers.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent/gpu/cpu_priv.h"
#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/map.h"
#include "common/base/str.h"

#define HUGE_BYTES (2ull << 20)
/* The value of the first "model name" line, or a plain word. */
static void cpu_name(char *out, size_t cap)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    str_copy(out, cap, "host CPU");
    while (f && fgets(line, sizeof line, f)) {
        char *v = strstr(line, ": ");
        if (!v || !str_starts(line, "model name"))
            continue;
        line[strcspn(line, "\n")] = 0;
        str_copy(out, cap, v + 2);
        break;
    }
    if (f)
        fclose(f);
}

static void cpu_vendor(char *out, size_t cap, const char *name)
{
    str_copy(out, cap, strstr(name, "AMD") ? "AMD" : strstr(name, "Intel") ? "Intel" : "host");
}

/* Derived from the machine id, so that it is stable and differs between machines without revealing that id.
 */
static void cpu_uuid(uint8_t out[16])
{
    struct buf b = {0};
    const uint8_t k1[16] = "strata cpu uuid", k2[16] = "strata cpu diuu";
    if (fs_read("/etc/machine-id", 256, &b, NULL) < 0)
        b.len = 0;
    uint64_t h[2] = {siphash24(k1, b.data, b.len), siphash24(k2, b.data, b.len)};
    memcpy(out, h, 16);
    buf_fini(&b);
}

static int cpu_probe(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n,
                     struct err *e)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE), cpus = sysconf(_SC_NPROCESSORS_ONLN);
    long avail = sysconf(_SC_AVPHYS_PAGES);
    struct utsname u;
    if (cap == 0)
        return ST_OK;
    if (pages <= 0 || page <= 0 || avail < 0 || cpus <= 0 || uname(&u) < 0)
        return err_errno(e, errno, "cpu:0: cannot read the size of the machine");
    *ctx = NULL;
    *v = (struct gpu_info){.support = GPU_REFERENCE, .compute_units = (uint32_t)cpus};
    v->total_bytes = (uint64_t)pages * (uint64_t)page;
    v->limit_bytes = cfg->cpu_memory_bytes ? cfg->cpu_memory_bytes : v->total_bytes / 2;
    if (v->limit_bytes < v->total_bytes)
        v->total_bytes = v->limit_bytes; /* the rest is the machine's own, never the device's */
    v->available_bytes = (uint64_t)avail * (uint64_t)page;
    if (v->available_bytes > v->limit_bytes)
        v->available_bytes = v->limit_bytes;
    v->max_buffer_bytes = v->limit_bytes;
    cpu_name(v->name, sizeof v->name);
    cpu_vendor(v->vendor, sizeof v->vendor, v->name);
    snprintf(v->driver, sizeof v->driver, "%.31s %.60s", u.sysname, u.release);
    cpu_uuid(v->uuid);
    *n = 1;
    return ST_OK;
}

static void cpu_fini(void *ctx)
{
    (void)ctx;
}

static int cpu_open(void **dev, void *ctx, size_t index, const struct gpu_info *info, struct err *e)
{
    (void)ctx, (void)index;
    struct cpu_dev *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(e, ST_ENOMEM, "%s: no memory to open the device", info->id);
    d->threads = info->compute_units < CPU_MAX_THREADS ? info->compute_units : CPU_MAX_THREADS;
    *dev = d;
    return ST_OK;
}

static void cpu_close(void *dev, bool hung)
{
    (void)hung;
    free(dev);
}

static int cpu_alloc(void *dev, uint64_t bytes, void **mem, uint64_t *committed, struct err *e)
{
    (void)dev;
    struct cpu_mem *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ST_ENOMEM, "cpu:0: no memory for one more buffer");
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), size = (bytes + page - 1) & ~(page - 1);
    uint64_t slack = bytes >= HUGE_BYTES ? HUGE_BYTES : 0;
    m->mapped = size + slack;
    void *p = size < bytes || m->mapped > SIZE_MAX
                  ? MAP_FAILED
                  : mmap(NULL, m->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        free(m);
        return err_set(e, ST_ERESOURCE, "cpu:0: the system has no %llu bytes of memory left",
                       (unsigned long long)bytes);
    }
    m->base = p;
    m->data = slack ? (uint8_t *)(((uintptr_t)p + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1)) : p;
    if (slack)
        (void)madvise(m->data, size, MADV_HUGEPAGE);  /* advice: without it the buffer is only slower */
    (void)madvise(m->base, m->mapped, MADV_DONTDUMP); /* a tenant's data stays out of core files */
    *mem = m;
    *committed = bytes;
    return ST_OK;
}

static void cpu_free(void *dev, void *mem, bool hung)
{
    struct cpu_mem *m = mem;
    (void)dev, (void)hung;
    munmap(m->base, m->mapped);
    free(m);
}

static int cpu_copy_in(void *dev, void *mem, uint64_t off, const void *src, uint64_t len, void *pin,
                       struct err *e)
{
    (void)dev, (void)pin, (void)e;
    memcpy(((struct cpu_mem *)mem)->data + off, src, len);
    return ST_OK;
}

static int cpu_copy_out(void *dev, void *mem, uint64_t off, void *dst, uint64_t len, void *pin, struct err *e)
{
    (void)dev, (void)pin, (void)e;
    memcpy(dst, ((struct cpu_mem *)mem)->data + off, len);
    return ST_OK;
}

static int cpu_copy(void *dev, void *dst, uint64_t dst_off, void *src, uint64_t src_off, uint64_t len,
                    struct err *e)
{
    (void)dev, (void)e;
    memcpy(((struct cpu_mem *)dst)->data + dst_off, ((struct cpu_mem *)src)->data + src_off, len);
    return ST_OK;
}

static int cpu_sync(void *dev, struct err *e)
{
    (void)dev, (void)e;
    return ST_OK;
}

/* ---- measurements: one thread a core, each counting what it did until the time is up ---- */

struct task {
    uint64_t (*step)(struct task *t); /* work done by one step */
    uint8_t *dst, *src;
    uint64_t len, until_ns, start_ns, end_ns, work;
    float sink;
};

static uint64_t step_copy(struct task *t)
{
    memcpy(t->dst, t->src, t->len);
    return t->len;
}

#define FMA_CHAINS 12 /* independent chains: enough to cover the latency of two units */
#define FMA_ROUNDS 4096
typedef float vec __attribute__((vector_size(32)));

/* Multiply-adds that neither overflow nor become denormal; m and a are run-time values, so nothing folds. */
#define FMA_BODY                                                                                             \
    vec acc[FMA_CHAINS], m, a;                                                                               \
    for (int i = 0; i < 8; i++) {                                                                            \
        m[i] = 0.999f + t->sink * 0.0f;                                                                      \
        a[i] = 0.001f + t->sink * 0.0f;                                                                      \
    }                                                                                                        \
    for (int c = 0; c < FMA_CHAINS; c++)                                                                     \
        acc[c] = m * (float)(c + 1);                                                                         \
    for (int r = 0; r < FMA_ROUNDS; r++)                                                                     \
        for (int c = 0; c < FMA_CHAINS; c++)                                                                 \
            acc[c] = acc[c] * m + a;                                                                         \
    vec s = acc[0];                                                                                          \
    for (int c = 1; c < FMA_CHAINS; c++)                                                                     \
        s += acc[c];                                                                                         \
    t->sink = s[0] > 1e30f ? 1.0f : 0.5f;                                                                    \
    return 2ull * 8 * FMA_CHAINS * FMA_ROUNDS;

static uint64_t step_fma_plain(struct task *t)
{
    FMA_BODY
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static uint64_t step_fma_avx2(struct task *t)
{
    FMA_BODY
}
#endif

static void *task_run(void *arg)
{
    struct task *t = arg;
    const struct clock *c = clock_system();
    t->step(t); /* warm: first touch and clock ramp are not what is measured */
    t->start_ns = clock_ns(c);
    do {
        t->work += t->step(t);
        t->end_ns = clock_ns(c);
    } while (t->end_ns < t->until_ns);
    return NULL;
}

/* Sum of the threads' own rates: each divides by the time it really ran. */
static int tasks_run(struct task *t, unsigned n, uint64_t budget_ns, double *rate, struct err *e)
{
    pthread_t id[CPU_MAX_THREADS];
    unsigned started = 0;
    int rc = 0;
    uint64_t until = clock_ns(clock_system()) + budget_ns;
    for (; started < n; started++) {
        t[started].until_ns = until;
        if ((rc = pthread_create(&id[started], NULL, task_run, &t[started])) != 0)
            break;
    }
    *rate = 0;
    for (unsigned i = 0; i < started; i++) {
        pthread_join(id[i], NULL);
        uint64_t ns = t[i].end_ns - t[i].start_ns;
        *rate += ns ? (double)t[i].work * 1e9 / (double)ns : 0;
    }
    return rc ? err_errno(e, rc, "cpu:0: cannot start the threads of a measurement") : ST_OK;
}

static int cpu_measure_copy(void *dev, void *a, void *b, uint64_t bytes, uint64_t budget_ns, double *rate,
                            struct err *e)
{
    const struct cpu_dev *d = dev;
    struct task t[CPU_MAX_THREADS] = {0};
    uint64_t each = bytes / d->threads;
    memset(((struct cpu_mem *)b)->data, 0x5a, bytes); /* untouched pages would all be the one zero page */
    for (unsigned i = 0; i < d->threads; i++) {
        t[i].step = step_copy;
        t[i].dst = ((struct cpu_mem *)a)->data + i * each;
        t[i].src = ((struct cpu_mem *)b)->data + i * each;
        t[i].len = each;
    }
    return tasks_run(t, d->threads, budget_ns, rate, e);
}

static int cpu_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e)
{
    const struct cpu_dev *d = dev;
    struct task t[CPU_MAX_THREADS] = {0};
    for (unsigned i = 0; i < d->threads; i++) {
        t[i].step = step_fma_plain;
#ifdef __x86_64__
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            t[i].step = step_fma_avx2;
#endif
    }
    return tasks_run(t, d->threads, budget_ns, rate, e);
}

const struct gpu_ops gpu_cpu = {
    .name = "cpu",
    .probe = cpu_probe,
    .fini = cpu_fini,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .copy_in = cpu_copy_in,
    .copy_out = cpu_copy_out,
    .sync = cpu_sync,
    .copy = cpu_copy,
    .exec = cpu_exec,
    .measure_copy = cpu_measure_copy,
    .measure_fma = cpu_measure_fma,
};
