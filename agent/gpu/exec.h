/*
 * Kernels by name, and what sensors tell: plain types that the agent's side of a worker shares without
 * linking this library.
 *
 * kernel    spans                        scalars                    does
 * fill      dst                          word                       dst[i] = word, for each 32-bit word
 * copy      dst, src                     –                          dst = src
 * checksum  src                          –                          result value: see gpu_checksum()
 * fma       x (f32)                      m, a (f32), rounds         x[i] = x[i] * m + a, `rounds` times
 * matvec    y (f32), w, x (f32)          rows, cols, type           y = w x
 * matmul    y (f32), w, x (f32)          rows, cols, type, n        y[k] = w x[k] for the n vectors of x
 *
 * Spans are (handle, offset, len); offsets are multiples of 4, and so are lengths, except those of checksum
 * and of w. Spans that are written overlap no other span. A f32 scalar is its IEEE bits in the low half of
 * the word (gpu_scalar_f32). w is row-major in one of the layouts of enum gpu_dtype, as GGUF stores them; x
 * holds n rows of cols, y n rows of rows. Lengths must be exact. Sums are in f32 in an order of the device's
 * own, and fma may or may not round in between: results agree with real arithmetic within the usual bound,
 * not bit for bit.
 */
#ifndef STRATA_GPU_EXEC_H
#define STRATA_GPU_EXEC_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define GPU_MAX_SPANS 3
#define GPU_MAX_SCALARS 4
#define GPU_KERNEL_NAME 16

/* The most multiply-adds of one call: far below any driver's patience with one submission once it is split.
 */
#define GPU_MAX_WORK (1ull << 37)

enum gpu_dtype {
    GPU_F32,
    GPU_F16,
    GPU_Q8_0, /* 32 weights in 34 bytes: f16 scale, 32 × int8; cols is a multiple of 32 */
    GPU_Q4_0, /* 32 weights in 18 bytes: f16 scale, 16 bytes: weights i and i + 16 in the halves, less 8 */
};

struct gpu_span {
    uint64_t handle, offset, len;
};

struct gpu_exec {
    char kernel[GPU_KERNEL_NAME]; /* with its terminating 0 */
    uint32_t spans, scalars;
    struct gpu_span span[GPU_MAX_SPANS];
    uint64_t scalar[GPU_MAX_SCALARS];
};

/*
 * A kernel of one's own, as SPIR-V (Vulkan) or PTX (CUDA); agent/kernel has looked at the code before.
 * SPIR-V: span i is the storage buffer at set 0, binding i; scalars are 32-bit words, one after another from
 * the start of the push constants; the group's size is in the module. PTX: the entry's parameters are the
 * spans' addresses, then the scalars; the group's size is `threads`. A call is over when the kernel is, or
 * when deadline_ns have passed, after which the device is lost to this process.
 */
#define GPU_OWN_SPANS 8
#define GPU_OWN_SCALARS 16
#define GPU_ENTRY_NAME 64
#define GPU_OWN_GROUPS 65535u /* in each direction: what every device takes */
#define GPU_OWN_THREADS 1024u /* of one group */

struct gpu_program {
    char entry[GPU_ENTRY_NAME]; /* with its terminating 0 */
    uint32_t spans, scalars;
    uint32_t groups[3], threads[3];
    uint64_t deadline_ns;
    struct gpu_span span[GPU_OWN_SPANS];
    uint64_t scalar[GPU_OWN_SCALARS];
};

static inline uint64_t gpu_scalar_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* What a device's sensors tell. A field that the source lacks is not valid; nothing is ever made up. */
enum gpu_field {
    GPU_TEMPERATURE, /* °C, of the hottest point the source tells */
    GPU_POWER,       /* W */
    GPU_CLOCK,       /* Hz, of the cores */
    GPU_UTILIZATION, /* 0 … 1 */
    GPU_THROTTLE,    /* a set of GPU_THROTTLE_* */
    GPU_MEMORY_USED, /* bytes, of all processes */
    GPU_MEMORY_TOTAL,
    GPU_SLOWDOWN_TEMPERATURE, /* °C at which the device slows itself down */
    GPU_FIELDS
};
#define GPU_THROTTLE_THERMAL 1u
#define GPU_THROTTLE_POWER 2u
#define GPU_THROTTLE_OTHER 4u

struct gpu_reading {
    double value;
    uint64_t age_ns; /* since it was read from the source */
    bool valid;
};

struct gpu_readings {
    struct gpu_reading field[GPU_FIELDS];
    char source[16]; /* "nvml", "amdgpu", "i915", "xe", "devfreq", "host"; "" = there is none */
    bool asleep;     /* the device is suspended and was left alone: old readings age */
};

#endif
