/*
 * Readings of NVIDIA devices, from libnvidia-ml.so.1 opened at run time. Never run on hardware. Own
 * declarations: the structures are stable, and NVIDIA's header is not free. Devices are joined by UUID, or
 * taken by index when the backend knows none. A device that the driver suspended is not asked, because asking
 * wakes it.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/monitor_priv.h"
#include "agent/gpu/sysfile.h"
#include "common/base/clock.h"

#define NVML_OK 0
#define NVML_GPU_IS_LOST 15
#define BACKOFF_NS (30 * NS_PER_S) /* between questions to a device that fell off the bus */
#define NVML_CLOCK_SM 1
#define NVML_THRESHOLD_SLOWDOWN 1
#define REASON_POWER (0x4ull | 0x80ull)    /* software and hardware power limits */
#define REASON_THERMAL (0x20ull | 0x40ull) /* software and hardware thermal slowdown */
#define REASON_OTHER (0x8ull | 0x10ull)    /* hardware slowdown, synchronised boost */

struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_memory2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
struct nvml_utilization {
    unsigned gpu, memory;
};
struct nvml_pci {
    char legacy[16];
    unsigned domain, bus, device, ids, subsystem;
    char id[32];
};

typedef struct nvml_device_st *nvml_device;

#define NVML_FUNCTIONS(X)                                                                                    \
    X(nvmlInit_v2, init, 1, (void))                                                                          \
    X(nvmlShutdown, shutdown, 1, (void))                                                                     \
    X(nvmlDeviceGetHandleByUUID, by_uuid, 1, (const char *, nvml_device *))                                  \
    X(nvmlDeviceGetTemperature, temperature, 1, (nvml_device, int, unsigned *))                              \
    X(nvmlDeviceGetPowerUsage, power, 1, (nvml_device, unsigned *))                                          \
    X(nvmlDeviceGetClockInfo, clock, 1, (nvml_device, int, unsigned *))                                      \
    X(nvmlDeviceGetUtilizationRates, utilization, 1, (nvml_device, struct nvml_utilization *))               \
    X(nvmlDeviceGetMemoryInfo, memory, 1, (nvml_device, struct nvml_memory *))                               \
    X(nvmlDeviceGetMemoryInfo_v2, memory2, 0, (nvml_device, struct nvml_memory2 *))                          \
    X(nvmlDeviceGetTemperatureThreshold, threshold, 0, (nvml_device, int, unsigned *))                       \
    X(nvmlDeviceGetCurrentClocksThrottleReasons, throttle, 0, (nvml_device, unsigned long long *))           \
    X(nvmlDeviceGetPciInfo_v3, pci, 0, (nvml_device, struct nvml_pci *))

struct nvml {
    void *library;
#define X(symbol, field, required, args) int(*field) args;
    NVML_FUNCTIONS(X)
#undef X
    nvml_device device;
    struct sysfile runtime; /* power/runtime_status, where the PCI address is known */
    uint64_t leave_until_ns;
};

static bool library_load(struct nvml *n, const char *name)
{
    n->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!n->library)
        return false;
#define X(symbol, field, required, args)                                                                     \
    *(void **)&n->field = dlsym(n->library, #symbol);                                                        \
    if (!n->field && (required))                                                                             \
        return false;
    NVML_FUNCTIONS(X)
#undef X
    return n->init() == NVML_OK;
}

/* NVML names a device GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, from the same 16 bytes as CUDA and Vulkan. */
static void uuid_text(const uint8_t u[16], char out[48])
{
    int n = snprintf(out, 48, "GPU-");
    for (int i = 0; i < 16; i++)
        n += snprintf(out + n, 48 - (size_t)n, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                      u[i]);
}

static void runtime_open(struct nvml *n, const char *root)
{
    struct nvml_pci p = {0};
    if (n->pci && n->pci(n->device, &p) == NVML_OK)
        (void)!sysfile_open(&n->runtime, root, "/sys/bus/pci/devices/%04x:%02x:%02x.0/power/runtime_status",
                            p.domain, p.bus, p.device);
}

static int nvml_open(void **ctx, const struct gpu_info *g, const struct monitor_cfg *cfg)
{
    char uuid[48];
    if (strcmp(g->vendor, "NVIDIA") != 0 || g->software || !cfg->nvml[0])
        return ST_ENOENT;
    struct nvml *n = calloc(1, sizeof *n);
    if (!n)
        return ST_ENOMEM;
    n->runtime = SYSFILE_NONE;
    uuid_text(g->uuid, uuid);
    bool loaded = library_load(n, cfg->nvml);
    if (loaded && n->by_uuid(uuid, &n->device) == NVML_OK) {
        runtime_open(n, cfg->root);
        *ctx = n;
        return ST_OK;
    }
    if (loaded)
        n->shutdown();
    if (n->library)
        dlclose(n->library);
    free(n);
    return ST_ENOENT;
}

static const char *nvml_name(void *ctx)
{
    (void)ctx;
    return "nvml";
}

static void memory_read(struct nvml *n, struct sample *s)
{
    struct nvml_memory2 m2 = {.version = (unsigned)sizeof m2 | 2u << 24};
    struct nvml_memory m;
    if (n->memory2 && n->memory2(n->device, &m2) == NVML_OK && m2.total) {
        sample_put(s, GPU_MEMORY_TOTAL, (double)m2.total);
        sample_put(s, GPU_MEMORY_USED, (double)m2.used);
    } else if (n->memory(n->device, &m) == NVML_OK &&
               m.total) { /* its used includes what the driver reserves */
        sample_put(s, GPU_MEMORY_TOTAL, (double)m.total);
        sample_put(s, GPU_MEMORY_USED, (double)m.used);
    }
}

static void nvml_read(void *ctx, uint64_t now_ns, struct sample *s)
{
    struct nvml *n = ctx;
    struct nvml_utilization u;
    unsigned long long why;
    char state[32];
    unsigned v;
    if (sysfile_word(&n->runtime, state, sizeof state) == ST_OK && strcmp(state, "suspended") == 0) {
        s->asleep = true;
        return;
    }
    if (now_ns < n->leave_until_ns)
        return;
    int r = n->temperature(n->device, 0, &v);
    if (r == NVML_GPU_IS_LOST) {
        n->leave_until_ns = now_ns + BACKOFF_NS;
        return;
    }
    if (r == NVML_OK)
        sample_put(s, GPU_TEMPERATURE, v);
    if (n->power(n->device, &v) == NVML_OK)
        sample_put(s, GPU_POWER, v / 1e3);
    if (n->clock(n->device, NVML_CLOCK_SM, &v) == NVML_OK)
        sample_put(s, GPU_CLOCK, v * 1e6);
    if (n->utilization(n->device, &u) == NVML_OK)
        sample_put(s, GPU_UTILIZATION, u.gpu / 100.0);
    if (n->threshold && n->threshold(n->device, NVML_THRESHOLD_SLOWDOWN, &v) == NVML_OK)
        sample_put(s, GPU_SLOWDOWN_TEMPERATURE, v);
    if (n->throttle && n->throttle(n->device, &why) == NVML_OK)
        sample_put(s, GPU_THROTTLE,
                   (why & REASON_THERMAL ? GPU_THROTTLE_THERMAL : 0) +
                       (why & REASON_POWER ? GPU_THROTTLE_POWER : 0) +
                       (why & REASON_OTHER ? GPU_THROTTLE_OTHER : 0));
    memory_read(n, s);
}

static void nvml_close(void *ctx)
{
    struct nvml *n = ctx;
    sysfile_close(&n->runtime);
    n->shutdown();
    dlclose(n->library);
    free(n);
}

const struct monitor_source monitor_nvml = {nvml_open, nvml_name, nvml_read, nvml_close};
