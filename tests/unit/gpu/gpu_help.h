/* What the tests of every backend share: one device of a backend, opened for each test. Skipped where it is
 * not there.
 */
#ifndef STRATA_TESTS_GPU_HELP_H
#define STRATA_TESTS_GPU_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu.h"

#define MIB (1ull << 20)

struct fix {
    const char *backend, *library;
    uint64_t extent, wait_ns; /* as in struct gpu_cfg */
    struct gpu_set *set;
    struct gpu *g;
};

static inline int open_dev(struct fix *f)
{
    struct err e = {0};
    struct gpu_cfg cfg = {.backends = f->backend,
                          .cuda_library = f->library,
                          .cpu_memory_bytes = 512 * MIB,
                          .extent_bytes = f->extent,
                          .wait_ns = f->wait_ns};
    if (gpu_set_new(&f->set, &cfg, &e) < 0) {
        print_error("%s\n", e.text);
        return -1;
    }
    if (gpu_set_count(f->set) == 0) {
        f->g = NULL;
        return 0;
    }
    if (gpu_open(&f->g, f->set, 0, &e) < 0) {
        print_error("%s\n", e.text);
        return -1;
    }
    return 0;
}

static inline int fix_setup(void **state)
{
    struct fix *f = *state;
    return open_dev(f);
}

static inline int fix_teardown(void **state)
{
    struct fix *f = *state;
    gpu_close(f->g);
    gpu_set_free(f->set);
    f->g = NULL;
    f->set = NULL;
    return 0;
}

static inline struct gpu *dev(void **state)
{
    struct fix *f = *state;
    if (!f->g && strcmp(f->backend, "cpu") != 0)
        skip();
    assert_non_null(f->g);
    return f->g;
}

static inline uint8_t pattern(uint64_t i, unsigned seed)
{
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
    return (uint8_t)(x >> 56 ^ x >> 29);
}

static inline uint8_t *filled(uint64_t n, unsigned seed)
{
    uint8_t *p = malloc(n ? n : 1);
    assert_non_null(p);
    for (uint64_t i = 0; i < n; i++)
        p[i] = pattern(i, seed);
    return p;
}

/* A build without glslc has no kernels for Vulkan. h: any buffer of at least 4 bytes. */
static inline void skip_without_kernels(struct gpu *g, uint64_t h)
{
    struct gpu_exec x = {.kernel = "checksum", .spans = 1, .span = {{h, 0, 4}}};
    if (gpu_exec(g, &x, NULL, NULL) == ST_ENOTSUP)
        skip();
}

#define T(fn, fx)                                                                                            \
    {                                                                                                        \
#fn " (" #fx ")", fn, fix_setup, fix_teardown, &fx                                                   \
    }

#endif
