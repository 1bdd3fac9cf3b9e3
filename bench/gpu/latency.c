/* What small things cost: allocation, synchronisation, a kernel's round trip, sensors, and the way into a
 * loop. */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent/gpu/monitor.h"
#include "agent/worker/worker.h"
#include "bench/gpu/gpu_bench.h"
#include "common/base/clock.h"

#define ROUNDS 100

static int allocation(struct gb *b)
{
    double ours[ROUNDS], peer[ROUNDS];
    char name[96];
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t h;
        double t = gb_now();
        int rc = gpu_alloc(b->g, 1 << 20, &h, b->e);
        ours[i] = (gb_now() - t) * 1e6;
        if (rc < 0 || (rc = gpu_free(b->g, h, b->e)) < 0)
            return rc;
        t = gb_now();
        void *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return err_set(b->e, ST_ENOMEM, "no memory");
        memset(p, 1, 1 << 20);
        peer[i] = (gb_now() - t) * 1e6;
        munmap(p, 1 << 20);
    }
    bench_put_series(b->run, "gpu", gb_name(name, b, "allocate_1MB.p50"), ours, ROUNDS,
                     bench_median(peer, ROUNDS));
    return ST_OK;
}

static int round_trips(struct gb *b)
{
    double sync[ROUNDS], kernel[ROUNDS];
    char name[96];
    uint64_t h;
    int rc = gpu_alloc(b->g, 4096, &h, b->e);
    struct gpu_exec x = {.kernel = "fill", .spans = 1, .scalars = 1, .span = {{h, 0, 4}}};
    for (int i = 0; rc == ST_OK && i < ROUNDS + 5; i++) {
        int k = i < 5 ? 0 : i - 5;
        double t = gb_now();
        rc = gpu_sync(b->g, b->e);
        sync[k] = (gb_now() - t) * 1e6;
        t = gb_now();
        if (rc == ST_OK)
            rc = gpu_exec(b->g, &x, NULL, b->e);
        kernel[k] = (gb_now() - t) * 1e6;
    }
    if (rc < 0)
        return rc;
    bench_put_series(b->run, "gpu", gb_name(name, b, "synchronize.p50"), sync, ROUNDS, 0);
    bench_put_series(b->run, "gpu", gb_name(name, b, "kernel_round_trip.p50"), kernel, ROUNDS, 0);
    return gpu_free(b->g, h, b->e);
}

/* ---- through a worker process, as an agent does it ---- */

struct loop {
    struct event_base *base;
    struct worker *w;
    struct gb *b;
    uint32_t device;
    uint64_t handle;
    double at, us[3 * ROUNDS];
    int n, status;
    bool over;
    char why[300];
};

static void again(struct loop *l);

static void on_filled(void *arg, const struct worker_result *r)
{
    struct loop *l = arg;
    l->us[l->n++] = (gb_now() - l->at) * 1e6;
    l->status = r->status;
    snprintf(l->why, sizeof l->why, "%s", r->why);
    l->over = r->status < 0 || l->n == 3 * ROUNDS;
    if (!l->over)
        again(l);
}

static void again(struct loop *l)
{
    struct gpu_exec x = {.kernel = "fill", .spans = 1, .scalars = 1, .span = {{l->handle, 0, 4}}};
    l->at = gb_now();
    if ((l->status = worker_exec(l->w, &x, on_filled, l)) < 0)
        l->over = true;
}

static void on_alloc(void *arg, const struct worker_result *r)
{
    struct loop *l = arg;
    l->handle = r->handle;
    l->over = (l->status = r->status) < 0;
    if (!l->over)
        again(l);
}

static void on_ready(struct worker *w, const struct worker_device *d, size_t n, void *arg)
{
    struct loop *l = arg;
    (void)d, (void)n;
    l->status = worker_device_find(w, gpu_set_info(l->b->set, l->b->index)->id, &l->device);
    l->over = l->status < 0 || (l->status = worker_alloc(w, l->device, 4096, on_alloc, l)) < 0;
}

static void on_exit_cb(struct worker *w, int st, int sig, const char *why, void *arg)
{
    struct loop *l = arg;
    (void)w, (void)st, (void)sig;
    if (l->over)
        return;
    l->over = true;
    l->status = ST_ECLOSED;
    snprintf(l->why, sizeof l->why, "%s", why);
}

static int into_loop(struct gb *b)
{
    static const struct worker_ops ops = {.on_ready = on_ready, .on_exit = on_exit_cb};
    char program[4096], name[96];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 32);
    char *slash = n > 0 ? memrchr(program, '/', (size_t)n) : NULL;
    struct loop *l = calloc(1, sizeof *l);
    if (!slash || !l || !(l->base = event_base_new())) {
        free(l);
        return err_set(b->e, ST_ENOMEM, "cannot set up a loop");
    }
    strcpy(slash + 1, "strata-worker");
    l->b = b;
    struct worker_cfg cfg = {
        .base = l->base, .clock = clock_system(), .program = program, .ops = &ops, .arg = l};
    int rc = worker_spawn(&l->w, &cfg, b->e);
    while (rc == ST_OK && !l->over)
        event_base_loop(l->base, EVLOOP_ONCE);
    if (rc < 0)
        gb_skip(b, "completion_into_loop.p50", b->e->text);
    else if (l->status < 0)
        gb_skip(b, "completion_into_loop.p50", l->why[0] ? l->why : status_name(l->status));
    else
        bench_put_series(b->run, "gpu", gb_name(name, b, "completion_into_loop.p50"), l->us, (size_t)l->n, 0);
    worker_destroy(l->w);
    event_base_free(l->base);
    free(l);
    return ST_OK;
}

/* ---- sensors ---- */

static int throughput(struct gb *b, uint64_t to, uint64_t from, double *gbps)
{
    double t = gb_now(), took = 0;
    uint64_t bytes = 0;
    while (took < (b->run->o.quick ? 0.1 : 0.4)) {
        int rc = gpu_copy(b->g, to, 0, b->g, from, 0, 20 * MB, b->e);
        if (rc < 0)
            return rc;
        bytes += 20 * MB;
        took = gb_now() - t;
    }
    *gbps = (double)bytes / took / 1e9;
    return ST_OK;
}

static int sensors(struct gb *b)
{
    double read[ROUNDS], with[9], without[9];
    struct monitor_cfg cfg = {.interval_ns = 100 * NS_PER_MS};
    struct monitor *m = NULL;
    struct gpu_readings r;
    char name[96];
    uint64_t x, y;
    size_t n = b->run->o.quick ? 3 : 9;
    int rc = gpu_alloc(b->g, 20 * MB, &x, b->e);
    if (rc < 0 || (rc = gpu_alloc(b->g, 20 * MB, &y, b->e)) < 0 || (rc = throughput(b, x, y, &with[0])) < 0)
        return rc;
    for (size_t i = 0; rc == ST_OK && i < n; i++) {
        rc = throughput(b, x, y, &without[i]);
        if (rc < 0 || (rc = monitor_new(&m, b->set, &cfg, b->e)) < 0)
            break;
        monitor_wait(m, NS_PER_S);
        rc = throughput(b, x, y, &with[i]);
        for (int k = 0; i + 1 == n && k < ROUNDS; k++) {
            double t = gb_now();
            for (int j = 0; j < 100; j++)
                monitor_read(m, b->index, &r);
            read[k] = (gb_now() - t) * 1e4;
        }
        monitor_free(m);
    }
    if (rc < 0)
        return rc;
    bench_put_series(b->run, "gpu", gb_name(name, b, "monitor_read.p50"), read, ROUNDS, 0);
    bench_put_series(b->run, "gpu", gb_name(name, b, "monitor_10Hz_effect"), with, n,
                     bench_median(without, n));
    if ((rc = gpu_free(b->g, x, b->e)) < 0)
        return rc;
    return gpu_free(b->g, y, b->e);
}

int gb_latency(struct gb *b)
{
    int rc = allocation(b);
    if (rc == ST_OK)
        rc = round_trips(b);
    if (rc == ST_OK)
        rc = sensors(b);
    return rc < 0 ? rc : into_loop(b);
}
