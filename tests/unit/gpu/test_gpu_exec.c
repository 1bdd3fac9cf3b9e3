/* Kernels and copies on every backend with a device here, against references in float64 and the definition.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu.h"
#include "tests/unit/gpu/gpu_help.h"

/* The definition in gpu.h, word by word, in 64-bit arithmetic cut down at the end. */
static uint64_t by_definition(const uint8_t *p, uint64_t len)
{
    uint64_t low = 0, high = 0;
    for (uint64_t k = 0; k <= (len + 3) / 4; k++) {
        bool last = k == (len + 3) / 4; /* the length's part */
        uint32_t w = 0;
        for (uint64_t b = 0; b < 4 && 4 * k + b < len; b++)
            w |= (uint32_t)p[4 * k + b] << 8 * b;
        uint32_t x = last ? (uint32_t)len : w + (uint32_t)(k * 0x9e3779b1ull + (k >> 32) * 0x85ebca77ull);
        uint32_t y = last ? (uint32_t)(len >> 32 ^ len)
                          : w ^ (uint32_t)(k * 0xc2b2ae3dull + (k >> 32) * 0x27d4eb2full + 0x165667b1ull);
        x ^= x >> 16, x *= 0x85ebca6b, x ^= x >> 13, x *= 0xc2b2ae35, x ^= x >> 16;
        y ^= y >> 16, y *= 0x7feb352d, y ^= y >> 15, y *= 0x846ca68b, y ^= y >> 16;
        low += x;
        high += y;
    }
    return (high & 0xffffffffu) << 32 | (low & 0xffffffffu);
}

static uint64_t upload(struct gpu *g, const void *p, uint64_t n)
{
    uint64_t h = 0;
    struct err e = {0};
    if (gpu_alloc(g, n, &h, &e) < 0 || gpu_copy_in(g, h, 0, p, n, &e) < 0)
        fail_msg("%s", e.text);
    return h;
}

static int checksum(struct gpu *g, uint64_t h, uint64_t off, uint64_t len, uint64_t *sum)
{
    struct gpu_exec x = {.kernel = "checksum", .spans = 1, .span = {{h, off, len}}};
    return gpu_exec(g, &x, sum, NULL);
}

static void test_checksum(void **state)
{
    static const uint64_t lens[] = {1, 2, 3, 4, 5, 127, 4096, 65537, 3 * MIB + 2};
    struct gpu *g = dev(state);
    uint8_t *p = filled(3 * MIB + 64, 9);
    uint64_t h = upload(g, p, 3 * MIB + 64), sum, again;
    skip_without_kernels(g, h);
    for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++)
        for (uint64_t off = 0; off <= 12; off += 4) {
            assert_int_equal(checksum(g, h, off, lens[i], &sum), ST_OK);
            assert_true(sum == gpu_checksum(p + off, lens[i]));
            assert_true(sum == by_definition(p + off, lens[i]));
        }
    assert_int_equal(checksum(g, h, 0, 0, &sum), ST_OK);
    assert_true(sum == by_definition(p, 0));
    /* One bit, two words that change places, zeros at the end: each is seen, on the device. */
    assert_int_equal(checksum(g, h, 0, 3 * MIB, &sum), ST_OK);
    for (int bit = 0; bit < 8; bit++) {
        uint8_t b = p[MIB + 7] ^ (uint8_t)(1 << bit);
        assert_int_equal(gpu_copy_in(g, h, MIB + 7, &b, 1, NULL), ST_OK);
        assert_int_equal(checksum(g, h, 0, 3 * MIB, &again), ST_OK);
        assert_true((uint32_t)sum != (uint32_t)again && sum >> 32 != again >> 32); /* each half sees it */
    }
    assert_int_equal(gpu_copy_in(g, h, MIB + 7, p + MIB + 7, 1, NULL), ST_OK);
    assert_int_equal(gpu_copy_in(g, h, 400, p + 2 * MIB, 4, NULL), ST_OK);
    assert_int_equal(gpu_copy_in(g, h, 2 * MIB, p + 400, 4, NULL), ST_OK);
    assert_int_equal(checksum(g, h, 0, 3 * MIB, &again), ST_OK);
    assert_true(sum != again);
    const uint8_t zero[16] = {0};
    assert_true(gpu_checksum(zero, 4) != gpu_checksum(zero, 8) &&
                gpu_checksum(zero, 1) != gpu_checksum(zero, 2));
    free(p);
}

static void test_fill_copy(void **state)
{
    struct gpu *g = dev(state);
    uint8_t *p = filled(MIB, 3), *out = malloc(MIB);
    uint64_t a = upload(g, p, MIB), b = upload(g, p, MIB);
    skip_without_kernels(g, a);
    struct gpu_exec fill = {
        .kernel = "fill", .spans = 1, .scalars = 1, .span = {{a, 8, 1000}}, .scalar = {0xdeadbeef}};
    assert_int_equal(gpu_exec(g, &fill, NULL, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(g, a, 0, out, MIB, NULL), ST_OK);
    const uint8_t word[4] = {0xef, 0xbe, 0xad, 0xde};
    for (int i = 0; i < 250; i++)
        assert_memory_equal(out + 8 + 4 * i, word, 4);
    assert_memory_equal(out, p, 8);
    assert_memory_equal(out + 1008, p + 1008, MIB - 1008);
    struct gpu_exec copy = {.kernel = "copy", .spans = 2, .span = {{b, 4, 1024}, {a, 4, 1024}}};
    assert_int_equal(gpu_exec(g, &copy, NULL, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(g, b, 0, out, MIB, NULL), ST_OK);
    assert_memory_equal(out + 8, word, 4);
    assert_memory_equal(out + 1028, p + 1028, MIB - 1028);
    /* The same through gpu_copy, at odd places; and back and forth within one buffer. */
    assert_int_equal(gpu_copy(g, b, 3, g, a, 77, 12345, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(g, b, 3, out, 12345, NULL), ST_OK);
    uint8_t *want = malloc(MIB);
    assert_int_equal(gpu_copy_out(g, a, 77, want, 12345, NULL), ST_OK);
    assert_memory_equal(out, want, 12345);
    assert_int_equal(gpu_copy(g, a, 0, g, a, MIB / 2, MIB / 2, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(g, a, 0, out, MIB / 2, NULL), ST_OK);
    assert_memory_equal(out, p + MIB / 2, MIB / 2);
    assert_int_equal(gpu_copy(g, a, 0, g, a, 99, 100, NULL), ST_EINVAL); /* they overlap by one byte */
    assert_int_equal(gpu_copy(g, a, MIB - 5, g, b, 0, 6, NULL), ST_EINVAL);
    assert_int_equal(gpu_copy(g, a, 0, g, b, UINT64_MAX, 6, NULL), ST_EINVAL);
    assert_int_equal(gpu_copy(g, a, 0, g, b + 1, 0, 6, NULL), ST_ENOENT);
    free(p);
    free(out);
    free(want);
}

static void test_fma(void **state)
{
    struct gpu *g = dev(state);
    enum { N = 5000, R = 10 };
    float *x = malloc(N * 4), *y = malloc(N * 4);
    for (int i = 0; i < N; i++)
        x[i] = (float)i * 0.25f - 300;
    uint64_t h = upload(g, x, N * 4);
    skip_without_kernels(g, h);
    struct gpu_exec f = {.kernel = "fma",
                         .spans = 1,
                         .scalars = 3,
                         .span = {{h, 16, N * 4 - 32}},
                         .scalar = {gpu_scalar_f32(0.75f), gpu_scalar_f32(-2), R}};
    assert_int_equal(gpu_exec(g, &f, NULL, NULL), ST_OK);
    assert_int_equal(gpu_copy_out(g, h, 0, y, N * 4, NULL), ST_OK);
    for (int i = 0; i < N; i++) {
        double want = x[i];
        for (int r = 0; i >= 4 && i < N - 4 && r < R; r++)
            want = want * 0.75 - 2;
        if (fabs(y[i] - want) > 1e-6 * R * (fabs(x[i]) + 8))
            fail_msg("x[%d] is %g, not %g", i, (double)y[i], want);
    }
    free(x);
    free(y);
}

/* ---- products ---- */

static uint16_t half_of(float f) /* for the small normal numbers used here */
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if (!(u & 0x7fffffffu))
        return 0;
    return (uint16_t)((u >> 16 & 0x8000) | (((u >> 23 & 255) - 112) << 10) | (u >> 13 & 0x3ff));
}

static double half_value(uint16_t h)
{
    double v = h & 0x7c00 ? ldexp((h & 0x3ff) | 0x400, (h >> 10 & 31) - 25) : ldexp(h & 0x3ff, -24);
    return h & 0x8000 ? -v : v;
}

static uint64_t seed = 1;
static uint32_t rnd(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed >> 33);
}
static float small(void)
{
    return (float)((int)(rnd() % 2001) - 1000) / 512.0f;
}

/* Random weights in the layout, and what each is worth. */
static uint8_t *weights(enum gpu_dtype type, uint32_t rows, uint32_t cols, double *value, uint64_t *bytes)
{
    static const uint32_t block[] = {4, 2, 34, 18};
    *bytes = type <= GPU_F16 ? (uint64_t)rows * cols * block[type] : (uint64_t)rows * cols / 32 * block[type];
    uint8_t *w = malloc(*bytes), *p = w;
    for (uint64_t i = 0; i < (uint64_t)rows * cols;) {
        float f = small();
        uint16_t h = half_of(f / 64);
        if (type == GPU_F32) {
            memcpy(p, &f, 4);
            value[i++] = f;
            p += 4;
        } else if (type == GPU_F16) {
            memcpy(p, &h, 2);
            value[i++] = half_value(h);
            p += 2;
        } else {
            memcpy(p, &h, 2);
            for (int k = 0; k < 32; k++) {
                if (type == GPU_Q8_0) {
                    p[2 + k] = (uint8_t)rnd();
                    value[i + (unsigned)k] = half_value(h) * (int8_t)p[2 + k];
                } else if (k < 16) {
                    p[2 + k] = (uint8_t)rnd();
                    value[i + (unsigned)k] = half_value(h) * ((p[2 + k] & 15) - 8);
                    value[i + (unsigned)k + 16] = half_value(h) * ((p[2 + k] >> 4) - 8);
                }
            }
            i += 32;
            p += block[type];
        }
    }
    return w;
}

static void product(struct gpu *g, enum gpu_dtype type, uint32_t rows, uint32_t cols, uint32_t n)
{
    double *value = malloc(sizeof(double) * rows * cols);
    uint64_t bytes;
    uint8_t *w = weights(type, rows, cols, value, &bytes);
    float *x = malloc(4ull * cols * n), *y = malloc(4ull * rows * n);
    for (uint64_t i = 0; i < (uint64_t)cols * n; i++)
        x[i] = small();
    memset(y, 0xff, 4ull * rows * n);
    uint64_t hw = upload(g, w, bytes), hx = upload(g, x, 4ull * cols * n), hy = upload(g, y, 4ull * rows * n);
    struct gpu_exec m = {.kernel = "matmul",
                         .spans = 3,
                         .scalars = 4,
                         .span = {{hy, 0, 4ull * rows * n}, {hw, 0, bytes}, {hx, 0, 4ull * cols * n}},
                         .scalar = {rows, cols, type, n}};
    struct err e = {0};
    if (n == 1) {
        memcpy(m.kernel, "matvec", 7);
        m.scalars = 3;
    }
    if (gpu_exec(g, &m, NULL, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(gpu_copy_out(g, hy, 0, y, 4ull * rows * n, NULL), ST_OK);
    for (uint64_t k = 0; k < n; k++)
        for (uint64_t r = 0; r < rows; r++) {
            double want = 0, size = 0;
            for (uint64_t c = 0; c < cols; c++) {
                want += value[r * cols + c] * x[k * cols + c];
                size += fabs(value[r * cols + c] * x[k * cols + c]);
            }
            if (!(fabs(y[k * rows + r] - want) <= size * 1e-6 + 1e-30))
                fail_msg("type %d, %ux%u·%u: y[%u][%u] is %g, not %g", (int)type, rows, cols, n, (unsigned)k,
                         (unsigned)r, (double)y[k * rows + r], want);
        }
    const uint64_t h[] = {hw, hx, hy};
    for (int i = 0; i < 3; i++)
        assert_int_equal(gpu_free(g, h[i], NULL), ST_OK);
    free(value);
    free(w);
    free(x);
    free(y);
}

static void test_products(void **state)
{
    struct gpu *g = dev(state);
    uint64_t h;
    assert_int_equal(gpu_alloc(g, 4, &h, NULL), ST_OK);
    skip_without_kernels(g, h);
    for (int t = GPU_F32; t <= GPU_Q4_0; t++) {
        product(g, (enum gpu_dtype)t, 1, 32, 1);
        product(g, (enum gpu_dtype)t, 97, 416, 1);
        product(g, (enum gpu_dtype)t, 33, 4096, 5);
        product(g, (enum gpu_dtype)t, 300, 64, 9);
    }
    product(g, GPU_F32, 3, 1, 2);
    product(g, GPU_F16, 7, 33, 3); /* rows that end within a word */
}

static void test_refused(void **state)
{
    struct gpu *g = dev(state);
    uint64_t h, w, big = 1ull << 40;
    struct err e = {0};
    assert_int_equal(gpu_alloc(g, 4096, &h, NULL), ST_OK);
    assert_int_equal(gpu_alloc(g, 4096, &w, NULL), ST_OK);
    uint64_t one = gpu_scalar_f32(1), inf = gpu_scalar_f32(INFINITY);
    const struct {
        int status;
        struct gpu_exec x;
    } bad[] = {
        {ST_ENOENT, {.kernel = "nosuch", .spans = 1, .span = {{h, 0, 4}}}},
        {ST_ENOENT,
         {.kernel = {'f', 'i', 'l', 'l', 'f', 'i', 'l', 'l', 'f', 'i', 'l', 'l', 'f', 'i', 'l', 'l'}}},
        {ST_ENOENT, {.kernel = "checksum", .spans = 1, .span = {{h + 77, 0, 4}}}},
        {ST_EINVAL, {.kernel = "checksum", .spans = 2, .span = {{h, 0, 4}, {h, 0, 4}}}},
        {ST_EINVAL, {.kernel = "checksum", .spans = 1, .scalars = 1, .span = {{h, 0, 4}}}},
        {ST_EINVAL, {.kernel = "checksum", .spans = 1, .span = {{h, 0, 4097}}}},
        {ST_EINVAL, {.kernel = "checksum", .spans = 1, .span = {{h, UINT64_MAX, 2}}}},
        {ST_EINVAL, {.kernel = "checksum", .spans = 1, .span = {{h, 2, 4}}}},
        {ST_EINVAL, {.kernel = "fill", .spans = 1, .scalars = 1, .span = {{h, 0, 6}}}},
        {ST_EINVAL, {.kernel = "fill", .spans = 1, .scalars = 1, .span = {{h, 0, 4}}, .scalar = {big}}},
        {ST_EINVAL, {.kernel = "copy", .spans = 2, .span = {{h, 0, 8}, {w, 0, 4}}}},
        {ST_EINVAL, {.kernel = "copy", .spans = 2, .span = {{h, 0, 8}, {h, 4, 8}}}},
        {ST_EINVAL,
         {.kernel = "fma", .spans = 1, .scalars = 3, .span = {{h, 0, 8}}, .scalar = {inf, one, 1}}},
        {ST_ELIMIT,
         {.kernel = "fma", .spans = 1, .scalars = 3, .span = {{h, 0, 4096}}, .scalar = {one, one, 1u << 31}}},
        {ST_EINVAL,
         {.kernel = "matvec",
          .spans = 3,
          .scalars = 3,
          .span = {{h, 0, 4}, {w, 0, 128}, {w, 128, 128}},
          .scalar = {1, 32, 4}}},
        {ST_EINVAL,
         {.kernel = "matvec",
          .spans = 3,
          .scalars = 3,
          .span = {{h, 0, 4}, {w, 0, 132}, {w, 256, 128}},
          .scalar = {1, 32, 0}}},
        {ST_EINVAL,
         {.kernel = "matvec",
          .spans = 3,
          .scalars = 3,
          .span = {{h, 0, 4}, {w, 0, 17}, {w, 256, 64}},
          .scalar = {1, 16, GPU_Q8_0}}},
        {ST_EINVAL,
         {.kernel = "matvec",
          .spans = 3,
          .scalars = 3,
          .span = {{w, 0, 4}, {w, 0, 128}, {h, 0, 128}},
          .scalar = {1, 32, 0}}},
        {ST_EINVAL,
         {.kernel = "matvec",
          .spans = 3,
          .scalars = 3,
          .span = {{h, 0, 4}, {w, 0, 4}, {h, 8, 4}},
          .scalar = {0, 1, 0}}},
        {ST_ELIMIT,
         {.kernel = "matmul",
          .spans = 3,
          .scalars = 4,
          .span = {{h, 0, 4}, {w, 0, 4}, {h, 8, 4}},
          .scalar = {1u << 30, 1u << 30, 0, 1}}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int rc = gpu_exec(g, &bad[i].x, NULL, &e);
        if (rc != bad[i].status)
            fail_msg("case %zu: %d (%s), not %d", i, rc, e.text, bad[i].status);
        assert_true(e.text[0]);
        e.text[0] = 0;
    }
}

/* From every device to every other. */
static void test_between(void **state)
{
    struct gpu_set *s = NULL;
    struct gpu_cfg cfg = {.cpu_memory_bytes = 64 * MIB, .cuda_library = FAKE_CUDA};
    (void)state;
    assert_int_equal(gpu_set_new(&s, &cfg, NULL), ST_OK);
    size_t n = gpu_set_count(s);
    struct gpu *g[GPU_MAX_DEVICES];
    uint8_t *p = filled(9 * MIB + 5, 4), *out = malloc(9 * MIB + 5);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(gpu_open(&g[i], s, i, NULL), ST_OK);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n; k++) {
            uint64_t a = upload(g[i], p, 9 * MIB + 5), b;
            assert_int_equal(gpu_alloc(g[k], 9 * MIB + 5, &b, NULL), ST_OK);
            assert_int_equal(gpu_copy(g[k], b, 1, g[i], a, 2, 9 * MIB + 1, NULL), ST_OK);
            assert_int_equal(gpu_copy_out(g[k], b, 0, out, 9 * MIB + 5, NULL), ST_OK);
            assert_memory_equal(out + 1, p + 2, 9 * MIB + 1);
            assert_int_equal(out[0], 0);
            assert_int_equal(gpu_copy(g[k], b, 5, g[i], a, 0, 9 * MIB + 1, NULL), ST_EINVAL);
            assert_int_equal(gpu_free(g[i], a, NULL), ST_OK);
            assert_int_equal(gpu_free(g[k], b, NULL), ST_OK);
        }
    for (size_t i = 0; i < n; i++)
        gpu_close(g[i]);
    gpu_set_free(s);
    free(p);
    free(out);
}

static struct fix cpu = {.backend = "cpu"}, vulkan = {.backend = "vulkan"}, cuda = {.backend = "cuda"},
                  fake = {.backend = "cuda", .library = FAKE_CUDA},
                  cut = {.backend = "vulkan", .extent = 1 << 20};

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_checksum, cpu),
        T(test_checksum, vulkan),
        T(test_fill_copy, cpu),
        T(test_fill_copy, vulkan),
        T(test_fma, cpu),
        T(test_fma, vulkan),
        T(test_products, cpu),
        T(test_products, vulkan),
        T(test_refused, cpu),
        T(test_refused, vulkan),
        cmocka_unit_test(test_between),
        T(test_fill_copy, cut),
        T(test_checksum, cut),
        T(test_fma, cut),
        T(test_checksum, fake),
        T(test_fill_copy, fake),
        T(test_fma, fake),
        T(test_products, fake),
        T(test_refused, fake),
        T(test_checksum, cuda),
        T(test_fill_copy, cuda),
        T(test_fma, cuda),
        T(test_products, cuda),
        T(test_refused, cuda),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
