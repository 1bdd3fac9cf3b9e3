/*
 * One interface, several backends: find devices, hold memory on them, copy in and out, measure. Linked into
 * the worker process alone. A struct gpu belongs to one thread at a time; different devices may be used by
 * different threads. Calls block until the copy is done, never longer than GPU_WAIT_NS: after that the device
 * counts as lost.
 */
#ifndef STRATA_GPU_GPU_H
#define STRATA_GPU_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#define GPU_MAX_DEVICES 32
#define GPU_WAIT_NS (20ull * 1000000000ull)

struct gpu_info {
    char id[32];      /* "cpu:0", "vulkan:1" */
    char backend[16]; /* "cpu", "vulkan" */
    char name[128], vendor[64];
    char uuid[40]; /* hex; "" when the backend offers none */
    char driver_version[64], support_level[16];
    bool software; /* computes on the CPU, whatever API it speaks */
    uint64_t memory_bytes, available_bytes;
    uint32_t compute_units;
};
struct gpu_rates {
    double bytes_per_s; /* device memory, read + write counted once each; > 0 */
    double flops_per_s; /* single precision fused multiply-add; 0 = could not be measured */
};
struct gpu_limits {
    uint64_t memory_bytes; /* of each device of this backend at most; 0 = all it has */
    bool software;         /* offer software devices of GPU APIs too */
};

struct gpu;     /* an opened device */
struct gpu_buf; /* a piece of its memory, zeroed or not is undefined */

struct gpu_ops {
    const char *name;
    /* Fills at most cap; a missing library or driver is zero devices and ST_OK, with *e saying what is
     * missing. */
    int (*probe)(struct gpu_info *v, size_t cap, size_t *n, const struct gpu_limits *lim, struct err *e);
    int (*open)(struct gpu **out, unsigned index, const struct gpu_limits *lim, struct err *e);
    void (*close)(struct gpu *g); /* frees what is still allocated */
    int (*alloc)(struct gpu *g, uint64_t bytes, struct gpu_buf **out, struct err *e);
    void (*free)(struct gpu *g, struct gpu_buf *b);
    /* [off, off + n) must lie inside the buffer: ST_EINVAL. ST_EDEADLINE or ST_EIO mean that the device is
     * lost. */
    int (*copy_in)(struct gpu *g, struct gpu_buf *b, uint64_t off, const void *src, size_t n, struct err *e);
    int (*copy_out)(struct gpu *g, struct gpu_buf *b, uint64_t off, void *dst, size_t n, struct err *e);
    int (*synchronize)(struct gpu *g, struct err *e);
    uint64_t (*available)(struct gpu *g);
    int (*measure)(struct gpu *g, struct gpu_rates *out, struct err *e); /* about a tenth of a second */
};

extern const struct gpu_ops gpu_cpu, gpu_vulkan;
/* All backends, in the order in which their devices are offered; NULL ends it. */
extern const struct gpu_ops *const gpu_backends[];

/* The size of a buffer, and whether [off, off + n) lies inside it. */
uint64_t gpu_buf_bytes(const struct gpu_buf *b);
bool gpu_range_ok(uint64_t size, uint64_t off, uint64_t n);

#endif
