/* A kernel that a user brings: the first byte is the shape of the call, the rest the module. */
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/exec.h"
#include "agent/kernel/kernel.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const entries[] = {"main", "k", "user_scale", ""};
    uint32_t threads[3] = {0};
    struct err e;
    if (!size)
        return 0;
    const struct kernel_call c = {entries[data[0] >> 6], data[0] & 7, data[0] >> 3 & 7};
    uint8_t *copy = malloc(size); /* its own block, so that a read past the end is seen */
    if (!copy)
        return 0;
    memcpy(copy, data + 1, size - 1);
    if (kernel_spirv(copy, size - 1, &c, threads, &e) == ST_OK &&
        (!threads[0] || !threads[1] || !threads[2] ||
         (uint64_t)threads[0] * threads[1] * threads[2] > GPU_OWN_THREADS))
        abort();
    (void)!kernel_ptx(copy, size - 1, &c, &e);
    free(copy);
    return 0;
}
