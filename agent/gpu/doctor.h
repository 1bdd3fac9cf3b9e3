/*
 * What keeps this machine's GPUs from being used: cards on the bus, their kernel drivers, device nodes and
 * rights to them, libraries, Vulkan manifests, and what the backends then find. Looks only; loads drivers, so
 * only programs that may do that link it.
 */
#ifndef STRATA_GPU_DOCTOR_H
#define STRATA_GPU_DOCTOR_H

#include "agent/gpu/gpu.h"

enum doctor_level { DOCTOR_OK, DOCTOR_NOTE, DOCTOR_PROBLEM };

struct doctor_cfg {
    const char *root;                 /* what /sys, /dev, /proc, /usr and /etc stand under; NULL = "" */
    const char *cuda, *nvml, *vulkan; /* libraries; NULL = the usual names */
    const struct gpu_set *set;        /* what the backends found; NULL = leave that part out */
};

/* Borrowed for the call. advice is "" when nothing is to be done. */
typedef void (*doctor_fn)(void *arg, enum doctor_level level, const char *subject, const char *finding,
                          const char *advice);

/* Returns how many problems there are. */
int doctor_run(const struct doctor_cfg *cfg, doctor_fn fn, void *arg);
const char *doctor_level_name(enum doctor_level l);

#endif
