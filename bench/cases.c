/* Every case of strata-bench and what is promised for it. */
#include "bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"

#define TLS "TLS 1.3 over TCP"
#define TCP "TCP, no TLS"
#define RULES "a scan of rules"

#define MEMCPY "memcpy, one core"
#define HOST "the same on cpu:0"

/* Transfers are named as nvbandwidth names them. "software" is a device that the CPU emulates: its figures
 * say how much of memcpy our path leaves, and nothing about any card. */
#define COPIES(dev, peer, size, aim, direct, staged, device)                                                 \
    {"gpu", dev ".host_to_device.pinned." size, "GB/s", peer, aim, direct},                                  \
        {"gpu", dev ".host_to_device.pageable." size, "GB/s", peer, aim, staged},                            \
        {"gpu", dev ".device_to_host.pinned." size, "GB/s", peer, aim, direct},                              \
        {"gpu", dev ".device_to_host.pageable." size, "GB/s", peer, aim, staged},                            \
    {                                                                                                        \
        "gpu", dev ".device_local_copy." size, "GB/s", peer, aim, device                                     \
    }
#define DEVICE(dev, peer, aim, direct, staged, device)                                                       \
    COPIES(dev, peer, "1MB", AIM_NONE, 0, 0, 0), COPIES(dev, peer, "10MB", AIM_NONE, 0, 0, 0),               \
        COPIES(dev, peer, "100MB", aim, direct, staged, device),                                             \
        COPIES(dev, peer, "500MB", aim, direct, staged, device),                                             \
        {"gpu", dev ".host_to_device_bidirectional", "GB/s", peer, AIM_NONE, 0},                             \
        {"gpu", dev ".allocate_1MB.p50", "us", "mmap and touch", AIM_NONE, 0},                               \
        {"gpu", dev ".synchronize.p50", "us", "none", AIM_NONE, 0},                                          \
        {"gpu", dev ".kernel_round_trip.p50", "us", "none", AIM_NONE, 0},                                    \
        {"gpu", dev ".completion_into_loop.p50", "us", "none", AIM_OURS_MAX, 50},                            \
        {"gpu", dev ".monitor_read.p50", "us", "none", AIM_OURS_MAX, 0.1},                                   \
        {"gpu", dev ".monitor_10Hz_effect", "GB/s", "without", AIM_RATIO_MIN, 0.99},                         \
        {"gpu", dev ".memory_copy_rate", "GB/s", HOST, AIM_NONE, 0},                                         \
        {"gpu", dev ".fma_f32_rate", "Gflop/s", HOST, AIM_NONE, 0},                                          \
        {"gpu", dev ".checksum_rate", "GB/s", HOST, AIM_NONE, 0},                                            \
        {"gpu", dev ".matvec_f32", "GB/s", HOST, AIM_NONE, 0},                                               \
        {"gpu", dev ".matvec_f16", "GB/s", HOST, AIM_NONE, 0},                                               \
        {"gpu", dev ".matvec_q8_0", "GB/s", HOST, AIM_NONE, 0},                                              \
    {                                                                                                        \
        "gpu", dev ".matvec_q4_0", "GB/s", HOST, AIM_NONE, 0                                                 \
    }
#define LEAN "SQLite, 2 indexes"

/* CPU milliseconds of one core; the slowest of problems with little, some and much memory. */
#define PLAN_GAPS(goal)                                                                                      \
    {"plan", goal ".1000.gap-1s", "%", "-", AIM_OURS_MAX, 1},                                                \
        {"plan", goal ".1000.gap-1s.seconds", "s", "-", AIM_NONE, 0},                                        \
        {"plan", goal ".1000.memory", "MB", "-", AIM_OURS_MAX, 256},                                         \
        {"plan", goal ".1000.gap-100ms", "%", "-", AIM_OURS_MAX, 3},                                         \
        {"plan", goal ".1000.gap-100ms.seconds", "s", "-", AIM_NONE, 0},                                     \
        {"plan", goal ".5000.gap-5s", "%", "-", AIM_OURS_MAX, 2},                                            \
        {"plan", goal ".5000.gap-5s.seconds", "s", "-", AIM_NONE, 0},                                        \
    {                                                                                                        \
        "plan", goal ".5000.memory", "MB", "-", AIM_OURS_MAX, 256                                            \
    }
#define PLAN_REPLAN(goal)                                                                                    \
    {"plan", goal ".8.replan", "ms", "-", AIM_OURS_MAX, 10},                                                 \
        {"plan", goal ".8.replan-slowest", "ms", "-", AIM_NONE, 0},                                          \
        {"plan", goal ".8.replan-moved", "GB", "a fresh plan", AIM_RATIO_MAX, 0.7},                          \
    {                                                                                                        \
        "plan", goal ".8.replan-proven-fewest", "%", "-", AIM_OURS_MIN, 100                                  \
    }
/* Values of plans: milliseconds, or thousandths of the memory of the fullest device. */
#define PLAN_RIVAL(goal, unit, kind, peer)                                                                   \
    {                                                                                                        \
        "plan", goal "." kind ", " peer, unit, peer, AIM_RATIO_MAX, 1                                        \
    }
#define PLAN_RIVALS(goal, unit, kind)                                                                        \
    PLAN_RIVAL(goal, unit, kind, "memory-proportional"), PLAN_RIVAL(goal, unit, kind, "even split"),         \
        PLAN_RIVAL(goal, unit, kind, "greedy by FLOPs"), PLAN_RIVAL(goal, unit, kind, "llama.cpp's fill"),   \
        PLAN_RIVAL(goal, unit, kind, "exo's split")
#define PLAN_KIND(kind)                                                                                      \
    PLAN_RIVALS("latency", "ms", kind), PLAN_RIVALS("throughput", "ms", kind),                               \
        PLAN_RIVALS("memory", "1/1000", kind)

const struct bench_case bench_cases[] = {
    {"rpc", "call-64B-rtt-p50", "us", TLS, AIM_RATIO_MAX, 1.3},
    {"rpc", "call-64B-rtt-p50-tcp", "us", TCP, AIM_NONE, 0},
    {"rpc", "calls-1-outstanding", "1/s", TLS, AIM_NONE, 0},
    {"rpc", "calls-1-outstanding-tcp", "1/s", TCP, AIM_NONE, 0},
    {"rpc", "calls-8-outstanding", "1/s", TLS, AIM_NONE, 0},
    {"rpc", "calls-8-outstanding-tcp", "1/s", TCP, AIM_NONE, 0},
    {"rpc", "calls-64-outstanding", "1/s", TLS, AIM_NONE, 0},
    {"rpc", "calls-64-outstanding-tcp", "1/s", TCP, AIM_NONE, 0},
    {"rpc", "handshakes-per-server-core", "1/s", TLS, AIM_OURS_MIN, 1200},
    {"rpc", "handshakes-per-server-core-tcp", "1/s", TCP, AIM_NONE, 0},
    {"rpc", "handshakes-wall-8-in-flight", "1/s", TLS, AIM_NONE, 0},
    {"rpc", "bulk-goodput-one-stream", "Gb/s", TLS, AIM_RATIO_MIN, 0.85},
    {"rpc", "bulk-goodput-one-stream-tcp", "Gb/s", TCP, AIM_NONE, 0},
    {"rpc", "bulk-goodput-with-digest", "Gb/s", TLS " with SHA-256", AIM_NONE, 0},
    {"rpc", "bulk-goodput-1452B-datagrams", "Gb/s", TLS, AIM_NONE, 0},
    {"rpc", "memory-per-idle-connection", "kB", TLS, AIM_OURS_MAX, 72},
    {"rpc", "memory-per-idle-connection-tcp", "kB", TCP, AIM_NONE, 0},
    {"rpc", "call-p99-under-bulk", "us", TLS, AIM_OURS_MAX, 1000},
    {"rpc", "call-p99-under-bulk-tcp", "us", TCP, AIM_NONE, 0},
    DEVICE("software", MEMCPY, AIM_RATIO_MIN, 0.9, 0.55, 0.9),
    DEVICE("vulkan", MEMCPY, AIM_NONE, 0, 0, 0),
    DEVICE("cuda", MEMCPY, AIM_NONE, 0, 0, 0),
    {"access", "decision-by-handle-100", "ns", RULES, AIM_OURS_MAX, 10},
    {"access", "decision-by-name-100", "ns", RULES, AIM_NONE, 0},
    {"access", "decision-by-handle-1k", "ns", RULES, AIM_OURS_MAX, 10},
    {"access", "decision-by-name-1k", "ns", RULES, AIM_OURS_MAX, 30},
    {"access", "decision-by-handle-100k", "ns", RULES, AIM_NONE, 0},
    {"access", "decision-by-name-100k", "ns", RULES, AIM_OURS_MAX, 200},
    {"access", "ticket-check", "us", "Ed25519 alone", AIM_NONE, 0},
    {"access", "policy-change-to-enforced", "ms", "-", AIM_OURS_MAX, 1000},
    {"audit", "ingest", "1/s", LEAN, AIM_RATIO_MIN, 0.6},
    {"audit", "ingest-after-100-segments", "1/s", "first 10 segments", AIM_RATIO_MIN, 0.85},
    {"audit", "emit-p99", "us", "mutex and memcpy", AIM_OURS_MAX, 1},
    {"audit", "durable-acks-64-waiters", "1/s", "SQLite group", AIM_RATIO_MIN, 0.85},
    {"audit", "verify", "1/s", "reading alone", AIM_OURS_MIN, 1e6},
    {"audit", "bytes-per-sealed-row", "B", LEAN, AIM_OURS_MAX, 240},
    {"audit", "query-principal-hour-p99", "us", "v_audit", AIM_OURS_MAX, 2000},
    {"audit", "dashboard-panel-slowest", "ms", "counting rows", AIM_OURS_MAX, 50},
    {"tls", "handshakes-x25519", "1/s", "-", AIM_NONE, 0},
    {"tls", "handshakes-x25519-pinned", "1/s", "X25519, no pin", AIM_RATIO_MIN, 0.95},
    {"tls", "handshakes-p256", "1/s", "X25519", AIM_NONE, 0},
    {"tls", "handshakes-x25519mlkem768", "1/s", "X25519", AIM_RATIO_MIN, 0.75},
    {"tls", "enrolments", "1/s", "-", AIM_NONE, 0},
    {"tls", "rotation-500-agents-dropped", "1", "-", AIM_OURS_MAX, 0.5},
    {"tls", "rotation-500-agents-slowest-call", "ms", "before the rotation", AIM_OURS_MAX, 100},
    {"tls", "rotation-500-agents-bulk", "Gb/s", "-", AIM_NONE, 0},
    /* Of the allowance, which is 5 % or 50 us, whichever is more. */
    {"net", "rtt-error-1ms", "of 5 % or 50 us", "-", AIM_OURS_MAX, 1},
    {"net", "rtt-error-10ms", "of 5 % or 50 us", "-", AIM_OURS_MAX, 1},
    {"net", "rtt-error-50ms", "of 5 % or 50 us", "-", AIM_OURS_MAX, 1},
    {"net", "loss-error-1000-probes", "points", "-", AIM_OURS_MAX, 1},
    {"net", "rate-error-10Mbit", "%", "-", AIM_OURS_MAX, 5},
    {"net", "rate-error-100Mbit", "%", "-", AIM_OURS_MAX, 5},
    {"net", "rate-error-1Gbit", "%", "-", AIM_OURS_MAX, 5},
    {"net", "rate-error-5Gbit", "%", "-", AIM_OURS_MAX, 5},
    {"net", "estimate-error", "%", "-", AIM_OURS_MAX, 10},
    {"net", "overhead-10Mbit", "% of the link", "-", AIM_OURS_MAX, 1},
    {"net", "all-pairs-of-16-rounds", "rounds", "-", AIM_OURS_MAX, 15},
    {"net", "coordinates-1000-nodes-median-error", "%", "-", AIM_OURS_MAX, 15},
    {"plan", "latency.10.slowest", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "throughput.10.slowest", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "memory.10.slowest", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "balanced.10.slowest", "ms", "-", AIM_OURS_MAX, 100},
    {"plan", "balanced.12.slowest", "ms", "-", AIM_OURS_MAX, 500},
    {"plan", "latency.14.slowest", "ms", "-", AIM_OURS_MAX, 100},
    {"plan", "throughput.14.slowest", "ms", "-", AIM_OURS_MAX, 100},
    {"plan", "memory.14.slowest", "ms", "-", AIM_OURS_MAX, 100},
    {"plan", "latency.16.slowest", "ms", "-", AIM_OURS_MAX, 800},
    {"plan", "throughput.16.slowest", "ms", "-", AIM_OURS_MAX, 800},
    {"plan", "memory.16.slowest", "ms", "-", AIM_OURS_MAX, 800},
    {"plan", "latency.16.memory", "MB", "-", AIM_OURS_MAX, 1000},
    {"plan", "throughput.16.memory", "MB", "-", AIM_OURS_MAX, 1000},
    {"plan", "memory.16.memory", "MB", "-", AIM_OURS_MAX, 1000},
    {"plan", "latency.sites-1000", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "throughput.sites-1000", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "memory.sites-1000", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "helix10.proved", "ms", "-", AIM_OURS_MAX, 10},
    {"plan", "helix10.rate", "1/s", "the published optimum", AIM_RATIO_MIN, 0.999999},
    {"plan", "exo957.bottleneck", "ms", "exo's split", AIM_OURS_MAX, 29.0715},
    {"plan", "exo957.latency", "ms", "-", AIM_OURS_MAX, 113.95},
    PLAN_GAPS("latency"),
    PLAN_GAPS("throughput"),
    PLAN_GAPS("memory"),
    PLAN_REPLAN("latency"),
    PLAN_REPLAN("throughput"),
    PLAN_REPLAN("memory"),
    PLAN_KIND("mesh-10"),
    PLAN_KIND("exo957"),
    PLAN_KIND("helix10"),
    PLAN_KIND("sites-1000"),
    PLAN_KIND("flat-1000"),
};
const size_t bench_cases_n = sizeof bench_cases / sizeof *bench_cases;

static size_t find(const char *area, const char *name)
{
    for (size_t i = 0; i < bench_cases_n; i++)
        if (!strcmp(bench_cases[i].area, area) && !strcmp(bench_cases[i].name, name))
            return i;
    fprintf(stderr, "strata-bench: the case %s/%s is not in the table\n", area, name);
    abort();
}

void bench_put(struct bench_run *run, const char *area, const char *name, double ours, double peer)
{
    struct bench_result *r = &run->results[find(area, name)];
    r->ours = ours;
    r->peer = peer;
    r->ran = true;
}

bool bench_has(const char *area, const char *name)
{
    for (size_t i = 0; i < bench_cases_n; i++)
        if (!strcmp(bench_cases[i].area, area) && !strcmp(bench_cases[i].name, name))
            return true;
    return false;
}

bool bench_wants(struct bench_run *run, const char *area, const char *const names[])
{
    bool wanted = !run->o.only;
    for (size_t i = 0; names[i]; i++)
        wanted = wanted || !strcmp(names[i], run->o.only);
    for (size_t i = 0; names[i] && !wanted; i++)
        bench_skip(run, area, names[i], "left out by --only");
    return wanted;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_put_series(struct bench_run *run, const char *area, const char *name, double *v, size_t n,
                      double peer)
{
    struct bench_spread *s = &run->results[find(area, name)].spread;
    double mid = bench_median(v, n), sum = 0;
    bench_put(run, area, name, mid, peer);
    double *dev = n ? malloc(n * sizeof *dev) : NULL;
    if (!dev)
        return;
    for (size_t i = 0; i < n; i++) {
        sum += v[i];
        dev[i] = v[i] > mid ? v[i] - mid : mid - v[i];
    }
    *s = (struct bench_spread){.n = n,
                               .min = v[0],
                               .p50 = mid,
                               .mean = sum / (double)n,
                               .p90 = v[(n - 1) * 9 / 10],
                               .p99 = v[(n - 1) * 99 / 100],
                               .max = v[n - 1],
                               .mad = bench_median(dev, n)};
    free(dev);
}

void bench_skip(struct bench_run *run, const char *area, const char *name, const char *why)
{
    struct bench_result *r = &run->results[find(area, name)];
    r->ran = false;
    str_copy(r->why, sizeof r->why, why);
}

int bench_met(const struct bench_case *c, const struct bench_result *r)
{
    if (!r->ran || c->aim == AIM_NONE)
        return -1;
    switch (c->aim) {
    case AIM_RATIO_MIN:
        return r->peer > 0 && r->ours / r->peer >= c->bound;
    case AIM_RATIO_MAX:
        return r->peer > 0 && r->ours / r->peer <= c->bound;
    case AIM_OURS_MIN:
        return r->ours >= c->bound;
    default:
        return r->ours <= c->bound;
    }
}

void bench_aim_text(const struct bench_case *c, char out[48])
{
    static const char *const form[] = {[AIM_RATIO_MIN] = "ratio >=",
                                       [AIM_RATIO_MAX] = "ratio <=",
                                       [AIM_OURS_MIN] = "ours >=",
                                       [AIM_OURS_MAX] = "ours <="};
    out[0] = 0;
    if (c->aim != AIM_NONE)
        snprintf(out, 48, "%s %g", form[c->aim], c->bound);
}

double bench_median(double *v, size_t n)
{
    if (!n)
        return 0;
    qsort(v, n, sizeof *v, compare);
    return n & 1 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}
