/*
 * What a backend implements. All arguments are checked before a backend sees them: sizes are positive, ranges
 * lie inside the buffer, the device is not lost. Each call is complete on return.
 */
#ifndef STRATA_GPU_PRIV_H
#define STRATA_GPU_PRIV_H

#include "agent/gpu/gpu.h"

/* What went wrong on a device, whatever the driver calls it. gpu_fault() turns it into a status. */
enum gpu_fault {
    GPU_F_NOMEM_DEVICE,
    GPU_F_NOMEM_HOST,
    GPU_F_LOST, /* the driver says the device is gone */
    GPU_F_HUNG, /* a wait passed its bound */
    GPU_F_NO_DRIVER,
    GPU_F_UNSUPPORTED,
    GPU_F_INVALID, /* our bug */
    GPU_F_OTHER,
};

/* A driver's code in the error map of its backend. */
struct gpu_native {
    int code;
    enum gpu_fault fault;
    const char *word;
};

/* "<id>: <what> failed: <native word> (<code>)" with the status of the fault. Codes that the map lacks are
 * OTHER. */
int gpu_native_error(const struct gpu_native *map, size_t n, int code, const char *id, const char *what,
                     struct err *e);
int gpu_fault(enum gpu_fault f);
bool gpu_fatal(int rc); /* the device is of no more use after this status */

struct gpu_ops {
    const char *name;
    /* Fills up to cap devices (id and backend excepted). *ctx lives until fini. No driver: *n = 0 and ST_OK.
     */
    int (*probe)(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n,
                 struct err *e);
    void (*fini)(void *ctx);
    int (*open)(void **dev, void *ctx, size_t index, const struct gpu_info *info, struct err *e);
    void (*close)(void *dev, bool hung); /* all memory is freed, unless hung */
    int (*alloc)(void *dev, uint64_t bytes, void **mem, uint64_t *committed, struct err *e);
    void (*free)(void *dev, void *mem, bool hung);
    int (*copy_in)(void *dev, void *mem, uint64_t off, const void *src, uint64_t len, struct err *e);
    int (*copy_out)(void *dev, void *mem, uint64_t off, void *dst, uint64_t len, struct err *e);
    int (*sync)(void *dev, struct err *e);
    /* Copies `bytes` from b to a for about budget_ns and tells the rate. */
    int (*measure_copy)(void *dev, void *a, void *b, uint64_t bytes, uint64_t budget_ns, double *rate,
                        struct err *e);
    int (*measure_fma)(void *dev, uint64_t budget_ns, double *rate, struct err *e); /* NULL = cannot */
};

extern const struct gpu_ops gpu_cpu, gpu_vulkan;

/* For tests: makes the driver report a lost device from the next call on, as a real loss would. */
void gpu_vulkan_lose(struct gpu *g);
void *gpu_backend_device(struct gpu *g);

#endif
