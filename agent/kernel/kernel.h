/*
 * Looks at a kernel that a user brings before any driver sees it: is it whole, is it what it says, does it
 * keep to what a session offers (buffers, numbers, one compute entry point), and do the arguments of a call
 * fit it? It does not prove a kernel harmless: what it does at run time is kept in by its owner's worker
 * process and ended by the deadline. Pure; any thread; allocates nothing.
 */
#ifndef STRATA_KERNEL_KERNEL_H
#define STRATA_KERNEL_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#define KERNEL_MAX_BYTES (512u << 10) /* what a node's operator may allow at most */

struct kernel_call {
    const char *entry; /* NUL-terminated, shorter than GPU_ENTRY_NAME */
    uint32_t spans, scalars;
};

/*
 * SPIR-V 1.0 to 1.5, little-endian: a Vulkan compute module of the capability Shader, logical addressing,
 * storage buffers of set 0 below `spans`, push constants. threads gets its LocalSize. ST_EINVAL with
 * BAD_KERNEL (the module), or NO_ENTRY or BAD_ARGUMENTS (the call does not fit it).
 */
int kernel_spirv(const uint8_t *code, size_t n, const struct kernel_call *c, uint32_t threads[3],
                 struct err *e) ST_CHECK;
/* PTX, as text without NUL: has the entry, which takes one 64-bit parameter a span and then one of at most 64
 * bits a scalar. As above. */
int kernel_ptx(const uint8_t *code, size_t n, const struct kernel_call *c, struct err *e) ST_CHECK;

#endif
