/* Kernels of one's own on a device: what works, what is refused, what never ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu.h"
#include "tests/unit/gpu/gpu_help.h"

/* What is left on a device that hangs is left on purpose. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libfake_cuda\n";
}

#define MS 1000000ull
#define N 1000u

static const char ptx[] = ".version 6.4\n.target sm_60\n.address_size 64\n"
                          ".visible .entry user_scale(.param .u64 y, .param .u64 x, .param .u32 n, "
                          ".param .f32 m, .param .f32 add) { ret; }\n"
                          ".visible .entry user_forever(.param .u64 y) { ret; }\n"
                          ".visible .entry user_fault(.param .u64 y) { ret; }\n";
#ifdef TEST_KERNELS
static const uint32_t scale[] = {
#include "kernels/scale.spv.inc"
};
#endif

struct code {
    const char *entry;
    const void *p;
    size_t n;
};

/* The same kernel in the language of the device. */
static struct code scale_of(const char *backend)
{
    if (strcmp(backend, "cuda") == 0)
        return (struct code){"user_scale", ptx, sizeof ptx - 1};
#ifdef TEST_KERNELS
    return (struct code){"main", scale, sizeof scale};
#else
    return (struct code){"main", "", 0};
#endif
}

static struct gpu_program call_of(uint64_t y, uint64_t x)
{
    return (struct gpu_program){.spans = 2,
                                .scalars = 3,
                                .groups = {(N + 63) / 64, 1, 1},
                                .threads = {64, 1, 1},
                                .deadline_ns = 5000 * MS,
                                .span = {{y, 256, N * 4}, {x, 0, N * 4}},
                                .scalar = {N, gpu_scalar_f32(3), gpu_scalar_f32(0.5f)}};
}

static void test_scale(void **state)
{
    struct gpu *g = dev(state);
    const char *backend = ((struct fix *)*state)->backend;
    struct code k = scale_of(backend);
    uint64_t x, y;
    float in[N], out[N + 64];
    struct err e = {0};
    assert_int_equal(gpu_alloc(g, sizeof in, &x, NULL), ST_OK);
    assert_int_equal(gpu_alloc(g, 256 + sizeof in, &y, NULL), ST_OK);
    for (unsigned i = 0; i < N; i++)
        in[i] = (float)i;
    assert_int_equal(gpu_copy_in(g, x, 0, in, sizeof in, NULL), ST_OK);
    struct gpu_program p = call_of(y, x);
    strcpy(p.entry, k.entry);
    if (!k.n)
        skip();
    for (int round = 0; round < 3; round++) {
        int rc = gpu_run(g, &p, k.p, k.n, &e);
        if (rc == ST_ENOTSUP && strcmp(backend, "cpu") == 0)
            return;
        if (rc < 0)
            fail_msg("%s", e.text);
        assert_int_equal(gpu_copy_out(g, y, 0, out, sizeof out, NULL), ST_OK);
        for (unsigned i = 0; i < N; i++)
            assert_true(out[64 + i] == 3 * in[i] + 0.5f);
        for (unsigned i = 0; i < 64; i++)
            assert_true(out[i] == 0); /* nothing before the span */
    }
    /* What no backend gets to see. */
    struct gpu_program bad = p;
    bad.groups[1] = 0;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    bad = p, bad.threads[0] = 1025;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    bad = p, bad.spans = 9;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    bad = p, bad.span[1].len = N * 4 + 4;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    bad = p, bad.span[1].handle ^= 1ull << 40;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_ENOENT);
    bad = p, bad.span[0].offset = 2;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    bad = p, memset(bad.entry, 'x', sizeof bad.entry);
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    bad = p, bad.deadline_ns = 0;
    assert_int_equal(gpu_run(g, &bad, k.p, k.n, NULL), ST_EINVAL);
    assert_int_equal(gpu_run(g, &p, k.p, k.n, NULL), ST_OK); /* and the device is as good as before */
}

static struct gpu_program simple(struct gpu *g, const char *entry)
{
    struct gpu_program p = {.spans = 1, .groups = {1, 1, 1}, .threads = {1, 1, 1}, .deadline_ns = 50 * MS};
    uint64_t y;
    assert_int_equal(gpu_alloc(g, 4096, &y, NULL), ST_OK);
    strcpy(p.entry, entry);
    p.span[0] = (struct gpu_span){y, 0, 4096};
    return p;
}

/* That of Vulkan is in the tests of sessions: a thread of its driver runs on until the process ends. */
static void test_forever(void **state)
{
    struct gpu *g = dev(state);
    struct gpu_program p = simple(g, "user_forever");
    struct err e = {0};
    assert_int_equal(gpu_run(g, &p, ptx, sizeof ptx - 1, &e), ST_EDEADLINE);
    assert_non_null(strstr(e.text, "50 ms"));
    assert_int_equal(gpu_run(g, &p, ptx, sizeof ptx - 1, &e), ST_EIO); /* lost from then on */
}

static void test_faults(void **state)
{
    struct gpu *g = dev(state);
    struct gpu_program p = simple(g, "user_missing");
    struct err e = {0};
    assert_int_equal(gpu_run(g, &p, "no PTX at all", 13, &e), ST_EINVAL);
    assert_int_equal(gpu_run(g, &p, ptx, sizeof ptx - 1, &e), ST_ENOENT);
    strcpy(p.entry, "user_fault");
    assert_int_equal(gpu_run(g, &p, ptx, sizeof ptx - 1, &e), ST_EIO);
    assert_int_equal(gpu_copy_in(g, p.span[0].handle, 0, "12345678", 8, NULL), ST_EIO);
}

static struct fix cpu = {.backend = "cpu"}, vulkan = {.backend = "vulkan"}, cuda = {.backend = "cuda"},
                  fake = {.backend = "cuda", .library = FAKE_CUDA};

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_scale, cpu),  T(test_scale, vulkan), T(test_scale, fake),
                                       T(test_scale, cuda), T(test_forever, fake), T(test_faults, fake)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
