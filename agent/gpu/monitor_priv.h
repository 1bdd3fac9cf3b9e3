/* What a source of readings implements. All functions run on the sampler's thread. */
#ifndef STRATA_GPU_MONITOR_PRIV_H
#define STRATA_GPU_MONITOR_PRIV_H

#include "agent/gpu/monitor.h"

/* One round of one device: what was told in it. A field that is not set keeps its old value and ages. */
struct sample {
    double value[GPU_FIELDS];
    uint32_t told; /* bit per field */
    bool asleep;
};

struct monitor_source {
    /* Finds the device's sensors; ST_ENOENT when this source does not know the device. */
    int (*open)(void **ctx, const struct gpu_info *g, const struct monitor_cfg *cfg);
    /* What it names itself once open. */
    const char *(*name)(void *ctx);
    void (*read)(void *ctx, uint64_t now_ns, struct sample *s);
    void (*close)(void *ctx);
};

static inline void sample_put(struct sample *s, enum gpu_field f, double v)
{
    s->value[f] = v;
    s->told |= 1u << f;
}

extern const struct monitor_source monitor_host, monitor_drm, monitor_nvml;

#endif
