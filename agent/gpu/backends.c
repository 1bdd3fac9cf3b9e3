/* The list of backends, and what all of them share. */
#include "agent/gpu/gpu_priv.h"

const struct gpu_ops *const gpu_backends[] = {&gpu_vulkan, &gpu_cpu, NULL};

uint64_t gpu_buf_bytes(const struct gpu_buf *b)
{
    return b->bytes;
}

bool gpu_range_ok(uint64_t size, uint64_t off, uint64_t n)
{
    return n <= size && off <= size - n;
}
