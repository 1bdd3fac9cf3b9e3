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
    {"tls", "rotation-500-agents-slowest-call", "ms", "-", AIM_OURS_MAX, 100},
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
