/* Copies, kernels, synchronisation and sensors through a worker process, on every device there is. */
#include "tests/unit/worker/worker_help.h"

#include "agent/gpu/gpu.h"
#include "agent/worker/wire.h"

static int setup_all(void **state)
{
    setup_bare(state);
    struct fix *f = *state;
    struct worker_cfg c = config(f);
    c.backends = NULL;
    spawn(f, &c);
    until(f, &f->ready, 1);
    return 0;
}

static uint64_t alloc_on(struct fix *f, uint32_t device, uint64_t bytes)
{
    struct seen s = {0};
    assert_int_equal(worker_alloc(f->w, device, bytes, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
    return s.handle;
}

/* One slot of pattern to the start of a buffer. */
static void put(struct fix *f, uint64_t h, uint64_t at)
{
    struct worker_slot slot;
    struct seen s = {0};
    assert_true(worker_slot_get(f->w, &slot));
    fill(slot.data, at, MIB);
    assert_int_equal(worker_write(f->w, h, 0, &slot, MIB, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
}

static uint64_t checksum(struct fix *f, uint64_t h, uint64_t off, uint64_t len)
{
    struct gpu_exec x = {.kernel = "checksum", .spans = 1, .span = {{h, off, len}}};
    struct seen s = {0};
    assert_int_equal(worker_exec(f->w, &x, done, &s), ST_OK);
    until(f, &s.calls, 1);
    if (s.status == ST_ENOTSUP)
        skip(); /* built without glslc */
    assert_int_equal(s.status, ST_OK);
    return s.value;
}

static void test_copy(void **state)
{
    struct fix *f = *state;
    size_t n;
    uint8_t *want = malloc(MIB);
    fill(want, 5, MIB);
    worker_devices(f->w, &n);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < n; k++) {
            struct seen s = {0}, bad = {0};
            uint64_t a = alloc_on(f, i, MIB), b = alloc_on(f, k, MIB);
            put(f, a, 5);
            assert_int_equal(worker_copy(f->w, b, 100, a, 4, MIB - 200, done, &s), ST_OK);
            assert_int_equal(worker_copy(f->w, b, 100, a, 4, MIB, done, &bad), ST_OK);
            until(f, &s.calls, 1);
            until(f, &bad.calls, 1);
            assert_int_equal(s.status, ST_OK);
            assert_int_equal(bad.status, ST_EINVAL);
            assert_non_null(strstr(bad.why, "reach past"));
            struct worker_slot slot;
            struct seen r = {0};
            assert_true(worker_slot_get(f->w, &slot));
            assert_int_equal(worker_read(f->w, b, 0, MIB, &slot, done, &r), ST_OK);
            until(f, &r.calls, 1);
            assert_memory_equal(slot.data + 100, want + 4, MIB - 200);
            for (int z = 0; z < 100; z++)
                assert_int_equal(slot.data[z] | slot.data[MIB - 1 - z], 0);
            worker_slot_put(f->w, &slot);
        }
    free(want);
}

static void test_exec(void **state)
{
    struct fix *f = *state;
    size_t n;
    uint8_t *want = malloc(MIB);
    fill(want, 5, MIB);
    worker_devices(f->w, &n);
    for (uint32_t i = 0; i < n; i++) {
        struct seen s = {0};
        uint64_t a = alloc_on(f, i, MIB);
        put(f, a, 5);
        assert_true(checksum(f, a, 0, MIB) == gpu_checksum(want, MIB));
        assert_true(checksum(f, a, 4, 777) == gpu_checksum(want + 4, 777));
        struct gpu_exec x = {.kernel = "fill", .spans = 1, .scalars = 1, .span = {{a, 0, 16}}, .scalar = {7}};
        assert_int_equal(worker_exec(f->w, &x, done, &s), ST_OK);
        assert_int_equal(worker_sync(f->w, i, done, &s), ST_OK);
        until(f, &s.calls, 2);
        assert_int_equal(s.status, ST_OK);
        for (uint32_t z = 0; z < 16; z += 4)
            memcpy(want + z, &(uint32_t){7}, 4);
        assert_true(checksum(f, a, 0, MIB) == gpu_checksum(want, MIB));
        fill(want, 5, MIB);
        x.span[0].len = MIB + 4;
        assert_int_equal(worker_exec(f->w, &x, done, &s), ST_OK);
        until(f, &s.calls, 3);
        assert_int_equal(s.status, ST_EINVAL);
        memcpy(x.kernel, "frob", 5);
        assert_int_equal(worker_exec(f->w, &x, done, &s), ST_OK);
        until(f, &s.calls, 4);
        assert_int_equal(s.status, ST_ENOENT);
        assert_non_null(strstr(s.why, "frob"));
        x.spans = 2;
        x.span[1] = (struct gpu_span){WIRE_HANDLE(i + 1, 1), 0, 4};
        assert_int_equal(worker_exec(f->w, &x, done, &s), ST_EINVAL);
        x.spans = 9;
        assert_int_equal(worker_exec(f->w, &x, done, &s), ST_EINVAL);
    }
    free(want);
}

static void test_monitor(void **state)
{
    struct fix *f = *state;
    struct seen s = {0};
    assert_int_equal(worker_monitor(f->w, 0, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
    assert_string_equal(s.readings.source, "host");
    const struct gpu_reading *used = &s.readings.field[GPU_MEMORY_USED],
                             *all = &s.readings.field[GPU_MEMORY_TOTAL];
    assert_true(used->valid && all->valid);
    assert_true(used->value > 0 && used->value < all->value);
    assert_true(used->age_ns < 60ull * 1000000000);
    assert_int_equal(worker_monitor(f->w, 99, done, &s), ST_EINVAL);
}

#define LIVE(t) cmocka_unit_test_setup_teardown(t, setup_all, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {LIVE(test_copy), LIVE(test_exec), LIVE(test_monitor)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
