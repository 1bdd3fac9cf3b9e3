/* The CPU backend's own types, shared by its memory and its kernels. */
#ifndef STRATA_GPU_CPU_PRIV_H
#define STRATA_GPU_CPU_PRIV_H

#include "agent/gpu/gpu_priv.h"

#define CPU_MAX_THREADS 64

struct cpu_mem {
    uint8_t *base, *data; /* base: the mapping; data: the aligned buffer in it */
    uint64_t mapped;
};

struct cpu_dev {
    unsigned threads;
};

int cpu_exec(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e);

#endif
