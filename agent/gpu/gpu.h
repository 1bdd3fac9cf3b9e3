/*
 * Devices and their memory behind one interface. Backends are const tables in an explicit array
 * (gpu_backends); everything that must hold for all of them (handles, bounds, accounting, the error map) is
 * done once, in gpu.c. Drivers are loaded at run time: a backend without its driver is a backend with no
 * devices, not an error.
 *
 * Threads: a set is read-only once made and may be shared; a struct gpu belongs to one thread at a time,
 * except gpu_usage(). Calls are synchronous and bounded in time. Only worker processes link this library.
 */
#ifndef STRATA_GPU_H
#define STRATA_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/gpu/exec.h"
#include "common/base/err.h"

#define GPU_MAX_DEVICES 16
#define GPU_MAX_BUFFERS 4096 /* on one device */
#define GPU_MAX_PINS 64

enum gpu_support {
    GPU_REFERENCE, /* always there, complete, not fast */
    GPU_SUPPORTED, /* a real device behind a driver we know */
    GPU_SOFTWARE,  /* a driver that emulates a device on the CPU */
};

struct gpu_info {
    char id[24]; /* "cpu:0", "vulkan:0" */
    char backend[16], name[128], vendor[32], driver[96];
    enum gpu_support support;
    bool software;
    uint64_t total_bytes, available_bytes; /* available: as seen when the set was made */
    uint64_t limit_bytes;                  /* what our accounting grants */
    uint64_t max_buffer_bytes;
    uint32_t compute_units; /* 0 = unknown */
    uint8_t uuid[16];
};

struct gpu_usage {
    uint64_t allocated_bytes, available_bytes;
    uint32_t buffers;
    bool lost;
};

struct gpu_rates {
    double memory_bytes_per_s, compute_flops_per_s; /* 0 = not measured on this backend */
};

struct gpu_cfg {
    const char *backends;     /* comma list; NULL or "" = all */
    const char *cuda_library; /* NULL = libcuda.so.1 */
    bool keep_twins; /* offer a card through every backend that sees it, not through the first only */
    uint64_t cpu_memory_bytes; /* limit of cpu:0; 0 = half of the machine's memory */
    uint64_t extent_bytes; /* cuts buffers of Vulkan devices into pieces of this; 0 = the driver's largest */
    uint64_t wait_ns;      /* longest wait for a device before it counts as lost; 0 = 10 s */
};

struct gpu_set;
struct gpu;

const char *gpu_support_name(enum gpu_support s);

/* ST_EINVAL for a backend that does not exist, ST_ENOMEM. Finding no device is no error. */
int gpu_set_new(struct gpu_set **out, const struct gpu_cfg *cfg, struct err *e) ST_CHECK;
void gpu_set_free(struct gpu_set *s); /* NULL is fine; its devices must be closed */
size_t gpu_set_count(const struct gpu_set *s);
const struct gpu_info *gpu_set_info(const struct gpu_set *s, size_t i);

/* ST_ENOENT, ST_ENOMEM, ST_ERESOURCE, ST_EIO. */
int gpu_open(struct gpu **out, const struct gpu_set *s, size_t i, struct err *e) ST_CHECK;
/* Frees what is still allocated. A device that hangs is left to the end of the process. */
void gpu_close(struct gpu *g);
/* Lowers or raises what the accounting grants; what is allocated stays. */
void gpu_limit(struct gpu *g, uint64_t bytes);

/* A handle is below 2^56, never 0, and names the buffer and its generation: after gpu_free() it is ST_ENOENT
 * for good. A lost device answers everything but gpu_free() and gpu_close() with ST_EIO. */

/* Zero-filled. ST_ERESOURCE (accounting or device), ST_ELIMIT (larger than max_buffer_bytes), ST_EINVAL (0).
 */
int gpu_alloc(struct gpu *g, uint64_t bytes, uint64_t *handle, struct err *e) ST_CHECK;
int gpu_free(struct gpu *g, uint64_t handle, struct err *e) ST_CHECK;
int gpu_size(const struct gpu *g, uint64_t handle, uint64_t *bytes) ST_CHECK;
/* ST_EINVAL out of bounds (offset + len is checked against overflow), ST_EIO lost, ST_EDEADLINE it hung: lost
 * from now on. The copy is complete on return. */
int gpu_copy_in(struct gpu *g, uint64_t handle, uint64_t off, const void *src, uint64_t len,
                struct err *e) ST_CHECK;
int gpu_copy_out(struct gpu *g, uint64_t handle, uint64_t off, void *dst, uint64_t len,
                 struct err *e) ST_CHECK;
int gpu_sync(struct gpu *g, struct err *e) ST_CHECK;
/* Lets the device reach host memory directly: copies that lie wholly inside go without a staging copy. The
 * memory stays mapped until gpu_unpin() or gpu_close(). ST_ENOTSUP where device or driver cannot (copies work
 * all the same), ST_ECONFLICT when the range overlaps a pinned one, ST_ELIMIT, ST_EINVAL. */
int gpu_pin(struct gpu *g, void *p, uint64_t len, struct err *e) ST_CHECK;
int gpu_unpin(struct gpu *g, void *p, struct err *e) ST_CHECK; /* ST_ENOENT */
/* From device memory to device memory, of one device or of two. The caller holds both devices. Ranges of one
 * buffer that overlap are ST_EINVAL; else as above. */
int gpu_copy(struct gpu *dst, uint64_t dst_handle, uint64_t dst_off, struct gpu *src, uint64_t src_handle,
             uint64_t src_off, uint64_t len, struct err *e) ST_CHECK;
/* Runs a kernel of exec.h to its end. *value (may be NULL) is its result where it has one. ST_ENOENT: no such
 * kernel or buffer; ST_EINVAL: arguments; ST_ELIMIT: more than GPU_MAX_WORK; ST_ENOTSUP: not on this device.
 */
int gpu_exec(struct gpu *g, const struct gpu_exec *x, uint64_t *value, struct err *e) ST_CHECK;
/* Runs a kernel of one's own. ST_EINVAL: arguments, or a module that the driver refuses; ST_ENOTSUP: not on
 * this device; ST_EDEADLINE: it did not end in time, ST_EIO: it faulted; the device is lost after either. */
int gpu_run(struct gpu *g, const struct gpu_program *p, const void *code, size_t len, struct err *e) ST_CHECK;
/*
 * The checksum kernel's definition, and its reference. The bytes are little-endian 32-bit words w[i], the
 * last one padded with zeros. With m1 and m2 two bijections of 32-bit words (gpu_checksum in exec.c), low  =
 * m1(len) + sum of m1(w[i] + i × 0x9e3779b1 + (i >> 32) × 0x85ebca77) high = m2(len >> 32 ^ len) + sum of
 * m2(w[i] ^ (i × 0xc2b2ae3d + (i >> 32) × 0x27d4eb2f + 0x165667b1)) and the value is high << 32 | low. One
 * changed word always changes it; words that change places do but for one chance in 2^64 or so. It finds
 * faults, not forgeries.
 */
uint64_t gpu_checksum(const void *data, uint64_t len);
void gpu_usage(const struct gpu *g, struct gpu_usage *out); /* any thread */
/* At most about 100 ms each for memory and compute; needs 2 × 32 MiB. */
int gpu_measure(struct gpu *g, struct gpu_rates *out, struct err *e) ST_CHECK;

#endif
