/* The conformance suite: every backend with a device here passes the same tests. The CPU must be among them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu.h"
#include "agent/gpu/gpu_priv.h"

#include "tests/unit/gpu/gpu_help.h"

static void test_info(void **state)
{
    struct fix *f = *state;
    dev(state);
    const struct gpu_info *i = gpu_set_info(f->set, 0);
    assert_int_equal(strncmp(i->id, f->backend, strlen(f->backend)), 0);
    assert_string_equal(i->id + strlen(f->backend), ":0");
    assert_true(i->name[0] && i->vendor[0] && i->driver[0]);
    assert_true(i->total_bytes > 0 && i->limit_bytes > 0 && i->limit_bytes <= i->total_bytes);
    assert_true(i->available_bytes <= i->limit_bytes && i->max_buffer_bytes > 0);
    assert_true(i->software == (i->support == GPU_SOFTWARE));
    if (strstr(i->name, "llvmpipe"))
        assert_true(i->software);
    uint8_t zero[16] = {0};
    assert_memory_not_equal(i->uuid, zero, 16);
    assert_null(gpu_set_info(f->set, gpu_set_count(f->set)));
    struct gpu *none = NULL;
    assert_int_equal(gpu_open(&none, f->set, gpu_set_count(f->set), NULL), ST_ENOENT);
}

/* Odd sizes at odd offsets, pieces that cross the staging ring's pieces, neighbours untouched. */
static void test_copy(void **state)
{
    static const struct {
        uint64_t size, off, len;
    } c[] = {{1, 0, 1},
             {7, 3, 2},
             {4097, 1, 4095},
             {2 * MIB, 0, 2 * MIB},
             {2 * MIB + 1, 0, 2 * MIB + 1},
             {9 * MIB + 13, 5, 9 * MIB + 1},
             {20 * MIB + 3, 2 * MIB - 1, 17 * MIB + 2},
             {64, 64, 0}};
    struct gpu *g = dev(state);
    struct err e = {0};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        uint64_t h = 0, size = 0;
        assert_int_equal(gpu_alloc(g, c[i].size, &h, &e), ST_OK);
        assert_true(h != 0 && h < 1ull << 56);
        assert_int_equal(gpu_size(g, h, &size), ST_OK);
        assert_int_equal(size, c[i].size);
        uint8_t *in = filled(c[i].len, (unsigned)i), *out = malloc(c[i].size);
        memset(out, 0xee, c[i].size);
        assert_int_equal(gpu_copy_out(g, h, 0, out, c[i].size, &e), ST_OK);
        for (uint64_t k = 0; k < c[i].size; k++)
            if (out[k])
                fail_msg("fresh memory is not zero at %llu", (unsigned long long)k);
        assert_int_equal(gpu_copy_in(g, h, c[i].off, in, c[i].len, &e), ST_OK);
        assert_int_equal(gpu_sync(g, &e), ST_OK);
        assert_int_equal(gpu_copy_out(g, h, 0, out, c[i].size, &e), ST_OK);
        assert_int_equal(memcmp(out + c[i].off, in, c[i].len), 0);
        for (uint64_t k = 0; k < c[i].size; k++)
            if ((k < c[i].off || k >= c[i].off + c[i].len) && out[k])
                fail_msg("a byte outside the copy changed at %llu", (unsigned long long)k);
        assert_int_equal(gpu_free(g, h, &e), ST_OK);
        free(in);
        free(out);
    }
}

static void test_two_buffers(void **state)
{
    struct gpu *g = dev(state);
    uint64_t a, b;
    uint8_t *pa = filled(3 * MIB, 1), *pb = filled(3 * MIB, 2), *out = malloc(3 * MIB);
    assert_int_equal(gpu_alloc(g, 3 * MIB, &a, NULL), ST_OK);
    assert_int_equal(gpu_alloc(g, 3 * MIB, &b, NULL), ST_OK);
    assert_int_equal(gpu_copy_in(g, a, 0, pa, 3 * MIB, NULL), ST_OK);
    assert_int_equal(gpu_copy_in(g, b, 0, pb, 3 * MIB, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(g, a, 0, out, 3 * MIB, NULL), ST_OK);
    assert_int_equal(memcmp(out, pa, 3 * MIB), 0);
    assert_int_equal(gpu_copy_out(g, b, 0, out, 3 * MIB, NULL), ST_OK);
    assert_int_equal(memcmp(out, pb, 3 * MIB), 0);
    free(pa);
    free(pb);
    free(out);
}

static void test_bounds(void **state)
{
    struct gpu *g = dev(state);
    uint8_t buf[64] = {0};
    uint64_t h;
    assert_int_equal(gpu_alloc(g, 64, &h, NULL), ST_OK);
    static const struct {
        uint64_t off, len;
    } bad[] = {
        {0, 65}, {1, 64}, {64, 1}, {65, 0}, {UINT64_MAX, 2}, {2, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct err e = {0};
        assert_int_equal(gpu_copy_in(g, h, bad[i].off, buf, bad[i].len, &e), ST_EINVAL);
        assert_non_null(strstr(e.text, "reach past"));
        assert_int_equal(gpu_copy_out(g, h, bad[i].off, buf, bad[i].len, &e), ST_EINVAL);
    }
    assert_int_equal(gpu_alloc(g, 0, &h, NULL), ST_EINVAL);
}

static void test_accounting(void **state)
{
    struct fix *f = *state;
    struct gpu *g = dev(state);
    struct gpu_usage u;
    struct err e = {0};
    uint64_t a, b, c;
    gpu_usage(g, &u);
    assert_int_equal(u.allocated_bytes, 0);
    assert_int_equal(u.available_bytes, gpu_set_info(f->set, 0)->limit_bytes);
    gpu_limit(g, 8 * MIB);
    assert_int_equal(gpu_alloc(g, 8 * MIB + 1, &a, &e), ST_ERESOURCE);
    assert_non_null(strstr(e.text, "left"));
    assert_int_equal(gpu_alloc(g, UINT64_MAX, &a, &e), ST_ERESOURCE);
    assert_int_equal(gpu_alloc(g, 5 * MIB, &a, &e), ST_OK);
    assert_int_equal(gpu_alloc(g, 3 * MIB, &b, &e), ST_OK);
    assert_int_equal(gpu_alloc(g, 1, &c, &e), ST_ERESOURCE);
    assert_int_equal(gpu_alloc(g, UINT64_MAX - MIB, &c, &e), ST_ERESOURCE); /* used + asked overflows */
    gpu_usage(g, &u);
    assert_int_equal(u.allocated_bytes, 8 * MIB);
    assert_int_equal(u.available_bytes, 0);
    assert_int_equal(u.buffers, 2);
    assert_int_equal(gpu_free(g, a, &e), ST_OK);
    assert_int_equal(gpu_alloc(g, 5 * MIB, &a, &e), ST_OK);
    gpu_limit(g, 1 * MIB); /* below what is in use: nothing more, nothing lost */
    assert_int_equal(gpu_alloc(g, 1, &c, &e), ST_ERESOURCE);
    assert_int_equal(gpu_free(g, a, &e), ST_OK);
    assert_int_equal(gpu_free(g, b, &e), ST_OK);
    gpu_usage(g, &u);
    assert_int_equal(u.allocated_bytes, 0);
    assert_int_equal(u.buffers, 0);
    gpu_limit(g, UINT64_MAX);
    assert_int_equal(gpu_alloc(g, gpu_set_info(f->set, 0)->max_buffer_bytes + 1, &a, &e), ST_ELIMIT);
}

static void test_handles(void **state)
{
    struct gpu *g = dev(state);
    uint8_t x = 1;
    uint64_t a, b, size;
    assert_int_equal(gpu_alloc(g, 16, &a, NULL), ST_OK);
    assert_int_equal(gpu_free(g, a, NULL), ST_OK);
    assert_int_equal(gpu_free(g, a, NULL), ST_ENOENT);
    assert_int_equal(gpu_alloc(g, 16, &b, NULL), ST_OK);
    assert_int_equal((uint32_t)a, (uint32_t)b); /* the same place … */
    assert_true(a != b);                        /* … in another generation */
    assert_int_equal(gpu_copy_in(g, a, 0, &x, 1, NULL), ST_ENOENT);
    assert_int_equal(gpu_copy_out(g, a, 0, &x, 1, NULL), ST_ENOENT);
    assert_int_equal(gpu_size(g, a, &size), ST_ENOENT);
    const uint64_t bad[] = {0,          b + 1, b & 0xffffffff00000000ull, b ^ 1ull << 55, b ^ 1ull << 60,
                            UINT64_MAX, 4096};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(gpu_free(g, bad[i], NULL), ST_ENOENT);
        assert_int_equal(gpu_copy_in(g, bad[i], 0, &x, 1, NULL), ST_ENOENT);
    }
    assert_int_equal(gpu_copy_in(g, b, 0, &x, 1, NULL), ST_OK);
}

static void test_many(void **state)
{
    struct gpu *g = dev(state);
    uint64_t *h = calloc(GPU_MAX_BUFFERS, sizeof *h), more;
    struct err e = {0};
    struct fix *f = *state;
    size_t n = strcmp(f->backend, "cpu") == 0 ? GPU_MAX_BUFFERS : 200;
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(gpu_alloc(g, 100 + i % 7, &h[i], NULL), ST_OK);
        assert_int_equal(gpu_copy_in(g, h[i], 0, &i, sizeof i, NULL), ST_OK);
    }
    if (n == GPU_MAX_BUFFERS)
        assert_int_equal(gpu_alloc(g, 1, &more, &e), ST_ERESOURCE);
    for (size_t i = 0; i < n; i++) {
        size_t got = 0;
        assert_int_equal(gpu_copy_out(g, h[i], 0, &got, sizeof got, NULL), ST_OK);
        assert_int_equal(got, i);
    }
    for (size_t i = 0; i < n; i += 2)
        assert_int_equal(gpu_free(g, h[i], NULL), ST_OK); /* the rest goes with gpu_close() */
    free(h);
}

static void test_measure(void **state)
{
    struct fix *f = *state;
    struct gpu *g = dev(state);
    struct gpu_rates r = {0};
    struct gpu_usage u;
    struct err e = {0};
    assert_int_equal(gpu_measure(g, &r, &e), ST_OK);
    assert_true(r.memory_bytes_per_s > 1e7 && r.memory_bytes_per_s < 1e14);
    print_message("%s: memory %.3g B/s, compute %.3g flop/s\n", f->backend, r.memory_bytes_per_s,
                  r.compute_flops_per_s);
    if (strcmp(f->backend, "cpu") == 0 || r.compute_flops_per_s != 0) /* without glslc Vulkan has no kernel */
        /* How fast a fake driver is says nothing. */
        assert_true(r.compute_flops_per_s > 1e7 && (f->library || r.compute_flops_per_s < 1e16));
    gpu_usage(g, &u);
    assert_int_equal(u.allocated_bytes, 0);
    gpu_limit(g, 40 * MIB);
    assert_int_equal(gpu_measure(g, &r, &e), ST_ERESOURCE);
    gpu_usage(g, &u);
    assert_int_equal(u.allocated_bytes, 0);
}

static void test_loss(void **state)
{
    struct fix *f = *state;
    struct gpu *g = dev(state);
    struct gpu_usage u;
    struct err e = {0};
    uint8_t x = 7, y = 0;
    uint64_t h, h2;
    if (strcmp(f->backend, "vulkan") != 0)
        skip();
    if (!gpu_set_info(f->set, 0)->software)
        skip(); /* not on a card that others use */
    assert_int_equal(gpu_alloc(g, 16, &h, NULL), ST_OK);
    gpu_vulkan_lose(g);
    assert_int_equal(gpu_copy_in(g, h, 0, &x, 1, &e), ST_EIO);
    assert_non_null(strstr(e.text, "lost"));
    assert_int_equal(gpu_copy_out(g, h, 0, &y, 1, NULL), ST_EIO);
    assert_int_equal(gpu_alloc(g, 16, &h2, NULL), ST_EIO);
    assert_int_equal(gpu_sync(g, NULL), ST_EIO);
    gpu_usage(g, &u);
    assert_true(u.lost);
    assert_int_equal(gpu_free(g, h, NULL), ST_OK);
    fix_teardown(state); /* and a new device works */
    assert_int_equal(open_dev(f), 0);
    assert_int_equal(gpu_alloc(f->g, 16, &h, NULL), ST_OK);
    assert_int_equal(gpu_copy_in(f->g, h, 0, &x, 1, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(f->g, h, 0, &y, 1, NULL), ST_OK);
    assert_int_equal(y, 7);
}

static void test_set(void **state)
{
    struct gpu_set *s = NULL;
    struct err e = {0};
    (void)state;
    const char *bad[] = {"rocm", "cpu,", "vulkan,nosuch", "cp", ",cpu"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct gpu_cfg cfg = {.backends = bad[i]};
        assert_int_equal(gpu_set_new(&s, &cfg, &e), ST_EINVAL);
        assert_non_null(strstr(e.text, "there is no backend"));
    }
    struct gpu_cfg all = {0};
    assert_int_equal(gpu_set_new(&s, &all, &e), ST_OK);
    assert_true(gpu_set_count(s) >= 1);
    assert_string_equal(gpu_set_info(s, 0)->id, "cpu:0");
    gpu_set_free(s);
    gpu_set_free(NULL);
}

static struct fix cpu = {.backend = "cpu"}, vulkan = {.backend = "vulkan"}, cuda = {.backend = "cuda"},
                  fake = {.backend = "cuda", .library = FAKE_CUDA},
                  cut = {.backend = "vulkan", .extent = 1 << 20};

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set), T(test_info, cpu),         T(test_copy, cpu),
        T(test_two_buffers, cpu),   T(test_bounds, cpu),       T(test_accounting, cpu),
        T(test_handles, cpu),       T(test_many, cpu),         T(test_measure, cpu),
        T(test_info, vulkan),       T(test_copy, vulkan),      T(test_two_buffers, vulkan),
        T(test_bounds, vulkan),     T(test_handles, vulkan),   T(test_many, vulkan),
        T(test_accounting, vulkan), T(test_measure, vulkan),   T(test_loss, vulkan),
        T(test_info, fake),         T(test_info, cuda),        T(test_copy, fake),
        T(test_copy, cuda),         T(test_two_buffers, fake), T(test_two_buffers, cuda),
        T(test_bounds, fake),       T(test_bounds, cuda),      T(test_handles, fake),
        T(test_handles, cuda),      T(test_many, fake),        T(test_many, cuda),
        T(test_accounting, fake),   T(test_accounting, cuda),  T(test_measure, fake),
        T(test_measure, cuda),      T(test_copy, cut),         T(test_two_buffers, cut),
        T(test_accounting, cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
