/*
 * The host itself as a device: anonymous mappings with huge pages. The reference that other backends are held
 * against. Limits are our own accounting, since the kernel would overcommit.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent/gpu/gpu_priv.h"
#include "common/base/clock.h"
#include "common/base/str.h"

struct gpu {
    uint64_t limit, used;
    struct gpu_buf *bufs;
};
struct cpu_buf {
    struct gpu_buf b;
    uint8_t *p;
    size_t mapped;
};

static uint64_t total_memory(const struct gpu_limits *lim)
{
    uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return lim->memory_bytes && lim->memory_bytes < total ? lim->memory_bytes : total;
}

/* MemAvailable: what the kernel thinks can be had without swapping. */
static uint64_t host_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

static void cpu_name(char *out, size_t cap)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    str_copy(out, cap, "host CPU");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!str_starts(line, "model name") || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        str_copy(out, cap, colon[1] == ' ' ? colon + 2 : colon + 1);
        break;
    }
    if (f)
        fclose(f);
}

static int probe(struct gpu_info *v, size_t cap, size_t *n, const struct gpu_limits *lim, struct err *e)
{
    (void)e;
    *n = 0;
    if (!cap)
        return ST_OK;
    struct utsname u;
    memset(v, 0, sizeof *v);
    str_copy(v->id, sizeof v->id, "cpu:0");
    str_copy(v->backend, sizeof v->backend, "cpu");
    cpu_name(v->name, sizeof v->name);
    str_copy(v->vendor, sizeof v->vendor, "host");
    str_copy(v->support_level, sizeof v->support_level, "full");
    if (!uname(&u))
        snprintf(v->driver_version, sizeof v->driver_version, "%.12s %.40s", u.sysname, u.release);
    v->memory_bytes = total_memory(lim);
    uint64_t avail = host_available();
    v->available_bytes = avail < v->memory_bytes ? avail : v->memory_bytes;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    v->compute_units = cores > 0 ? (uint32_t)cores : 1;
    *n = 1;
    return ST_OK;
}

static int cpu_open(struct gpu **out, unsigned index, const struct gpu_limits *lim, struct err *e)
{
    struct gpu *g = index == 0 ? calloc(1, sizeof *g) : NULL;
    if (!g)
        return err_set(e, index ? ST_ENOENT : ST_ENOMEM, "cannot open cpu:%u", index);
    g->limit = total_memory(lim);
    *out = g;
    return ST_OK;
}

static void cpu_free(struct gpu *g, struct gpu_buf *b)
{
    struct cpu_buf *c = (struct cpu_buf *)b;
    gpu_buf_unlink(b);
    munmap(c->p, c->mapped);
    g->used -= b->bytes;
    free(c);
}

static void cpu_close(struct gpu *g)
{
    while (g->bufs)
        cpu_free(g, g->bufs);
    free(g);
}

static uint64_t available(struct gpu *g)
{
    uint64_t host = host_available(), mine = g->limit - g->used;
    return host < mine ? host : mine;
}

static int cpu_alloc(struct gpu *g, uint64_t bytes, struct gpu_buf **out, struct err *e)
{
    if (!bytes || bytes > available(g))
        return err_reason(e, bytes ? ST_ERESOURCE : ST_EINVAL, "DEVICE_MEMORY",
                          "cpu:0 has %llu bytes free, %llu were asked for", (unsigned long long)available(g),
                          (unsigned long long)bytes);
    struct cpu_buf *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ST_ENOMEM, "no memory");
    c->mapped = (size_t)bytes;
    c->p = mmap(NULL, c->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c->p == MAP_FAILED) {
        int err = errno;
        free(c);
        err_errno(e, err, "cannot map %llu bytes on cpu:0", (unsigned long long)bytes);
        return e ? e->code = ST_ERESOURCE : ST_ERESOURCE;
    }
    madvise(c->p, c->mapped, MADV_HUGEPAGE);
    c->b.bytes = bytes;
    g->used += bytes;
    gpu_buf_link(&g->bufs, &c->b);
    *out = &c->b;
    return ST_OK;
}

static int copy_in(struct gpu *g, struct gpu_buf *b, uint64_t off, const void *src, size_t n, struct err *e)
{
    (void)g;
    if (!gpu_range_ok(b->bytes, off, n))
        return err_set(e, ST_EINVAL, "a copy of %zu bytes at %llu leaves its buffer", n,
                       (unsigned long long)off);
    memcpy(((struct cpu_buf *)b)->p + off, src, n);
    return ST_OK;
}

static int copy_out(struct gpu *g, struct gpu_buf *b, uint64_t off, void *dst, size_t n, struct err *e)
{
    (void)g;
    if (!gpu_range_ok(b->bytes, off, n))
        return err_set(e, ST_EINVAL, "a copy of %zu bytes at %llu leaves its buffer", n,
                       (unsigned long long)off);
    memcpy(dst, ((struct cpu_buf *)b)->p + off, n);
    return ST_OK;
}

static int synchronize(struct gpu *g, struct err *e)
{
    (void)g;
    (void)e;
    return ST_OK;
}

#define LANES 64
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

/* Independent accumulators, so that the units are full and not waiting for each other. One core; every core
 * counts. */
static double fma_rate(void)
{
    const struct clock *clk = clock_system();
    uint64_t from = clock_ns(clk), now;
    lanes a, x;
    for (int i = 0; i < LANES; i++) {
        a[i] = 0.5f;
        x[i] = 0.999f + (float)i * 1e-6f;
    }
    double flops = 0;
    do {
        for (int k = 0; k < 4096; k++)
            a = a * x + x;
        flops += 4096.0 * LANES * 2;
        __asm__ volatile("" : "+m"(a));
        now = clock_ns(clk);
    } while (now - from < 40 * NS_PER_MS);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return flops / ((double)(now - from) / 1e9) * (double)(cores > 0 ? cores : 1);
}

static int measure(struct gpu *g, struct gpu_rates *out, struct err *e)
{
    enum { SIZE = 32 << 20 };
    struct gpu_buf *a, *b;
    int rc = cpu_alloc(g, SIZE, &a, e);
    if (rc < 0)
        return rc;
    if ((rc = cpu_alloc(g, SIZE, &b, e)) < 0) {
        cpu_free(g, a);
        return rc;
    }
    uint8_t *pa = ((struct cpu_buf *)a)->p, *pb = ((struct cpu_buf *)b)->p;
    memset(pa, 1, SIZE);
    memset(pb, 2, SIZE);
    const struct clock *clk = clock_system();
    uint64_t from = clock_ns(clk), now;
    double bytes = 0;
    do {
        memcpy(pb, pa, SIZE);
        __asm__ volatile("" ::"r"(pb) : "memory");
        bytes += 2.0 * SIZE;
        now = clock_ns(clk);
    } while (now - from < 40 * NS_PER_MS);
    cpu_free(g, a);
    cpu_free(g, b);
    out->bytes_per_s = bytes / ((double)(now - from) / 1e9);
    out->flops_per_s = fma_rate();
    return ST_OK;
}

const struct gpu_ops gpu_cpu = {
    .name = "cpu",
    .probe = probe,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .copy_in = copy_in,
    .copy_out = copy_out,
    .synchronize = synchronize,
    .available = available,
    .measure = measure,
};
