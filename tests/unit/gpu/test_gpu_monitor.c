/* Sensors: what a source tells, what it lacks, and a source that hangs. */
#include "tests/unit/gpu/gpu_help.h"

#include <dlfcn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/gpu/monitor.h"
#include "common/base/clock.h"
#include "tests/unit/gpu/fake_nvml.h"

struct root {
    char dir[64];
};

static void put(const struct root *r, const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", r->dir, path);
    for (char *p = full + strlen(r->dir) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct root make_root(void)
{
    struct root r = {"/tmp/strata-sensors-XXXXXX"};
    assert_non_null(mkdtemp(r.dir));
    return r;
}

static void drop_root(const struct root *r)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf %s", r->dir);
    assert_int_equal(system(cmd), 0);
}

static struct gpu_set *cpu_set(void)
{
    struct gpu_set *s = NULL;
    struct gpu_cfg cfg = {.backends = "cpu"};
    assert_int_equal(gpu_set_new(&s, &cfg, NULL), ST_OK);
    return s;
}

static void round_of(struct monitor *m, struct gpu_readings *r)
{
    assert_true(monitor_wait(m, 10 * NS_PER_S));
    monitor_read(m, 0, r);
}

static void test_host(void **state)
{
    struct root r = make_root();
    struct gpu_set *s = cpu_set();
    struct monitor *m = NULL;
    struct gpu_readings v;
    (void)state;
    put(&r, "/proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n");
    put(&r, "/sys/class/hwmon/hwmon3/name", "k10temp\n");
    put(&r, "/sys/class/hwmon/hwmon3/temp1_input", "54321\n");
    put(&r, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "garbage\n");
    assert_int_equal(monitor_new(&m, s, &(struct monitor_cfg){.root = r.dir, .nvml = ""}, NULL), ST_OK);
    round_of(m, &v);
    assert_string_equal(v.source, "host");
    assert_true(v.field[GPU_TEMPERATURE].valid && (int)(v.field[GPU_TEMPERATURE].value * 10) == 543);
    assert_true(v.field[GPU_MEMORY_USED].valid && (int)v.field[GPU_MEMORY_USED].value == 600 * 1024);
    assert_false(v.field[GPU_CLOCK].valid); /* what cannot be read is absent, never a number */
    assert_false(v.field[GPU_POWER].valid);
    assert_false(v.field[GPU_THROTTLE].valid);
    monitor_read(m, 5, &v);
    assert_false(v.field[GPU_TEMPERATURE].valid);
    monitor_free(m);
    gpu_set_free(s);
    drop_root(&r);
}

/* ---- cards ---- */

/* A set with one device that claims to be of a vendor: the sources look at nothing else of it. */
static struct gpu_set *set_of(const char *vendor, uint8_t uuid)
{
    struct gpu_set *s = NULL;
    struct gpu_cfg cfg = {.backends = "cuda", .cuda_library = FAKE_CUDA};
    assert_int_equal(gpu_set_new(&s, &cfg, NULL), ST_OK);
    struct gpu_info *g = (struct gpu_info *)(uintptr_t)gpu_set_info(s, 0);
    snprintf(g->vendor, sizeof g->vendor, "%s", vendor);
    memset(g->uuid, uuid, sizeof g->uuid);
    return s;
}

static void test_amdgpu(void **state)
{
    struct root r = make_root();
    struct gpu_set *s = set_of("AMD", 1);
    struct monitor *m = NULL;
    struct gpu_readings v;
    (void)state;
    put(&r, "/sys/class/drm/card1/device/vendor", "0x1002\n");
    put(&r, "/sys/class/drm/card1/device/uevent", "DRIVER=amdgpu\nPCI_CLASS=30000\n");
    put(&r, "/sys/class/drm/card1/device/mem_info_vram_used", "5000\n");
    put(&r, "/sys/class/drm/card1/device/mem_info_vram_total", "9000\n");
    put(&r, "/sys/class/drm/card1/device/gpu_busy_percent", "37\n");
    put(&r, "/sys/class/drm/card1/device/hwmon/hwmon4/name", "amdgpu\n");
    put(&r, "/sys/class/drm/card1/device/hwmon/hwmon4/temp1_input", "51000\n");
    put(&r, "/sys/class/drm/card1/device/hwmon/hwmon4/temp2_input", "66000\n");
    put(&r, "/sys/class/drm/card1/device/hwmon/hwmon4/power1_average", "123000000\n");
    put(&r, "/sys/class/drm/card1/device/hwmon/hwmon4/freq1_input", "1500000000\n");
    struct monitor_cfg cfg = {.root = r.dir, .nvml = "", .interval_ns = 5 * NS_PER_MS};
    assert_int_equal(monitor_new(&m, s, &cfg, NULL), ST_OK);
    round_of(m, &v);
    assert_string_equal(v.source, "amdgpu");
    assert_int_equal((int)v.field[GPU_TEMPERATURE].value, 66); /* the hottest point */
    assert_int_equal((int)v.field[GPU_POWER].value, 123);
    assert_int_equal((int)(v.field[GPU_UTILIZATION].value * 100 + 0.5), 37);
    assert_int_equal((int)(v.field[GPU_CLOCK].value / 1e6), 1500);
    assert_int_equal((int)v.field[GPU_MEMORY_USED].value, 5000);
    assert_false(v.field[GPU_THROTTLE].valid);
    /* Asleep: nothing more is read, what there was grows old. */
    monitor_free(m);
    put(&r, "/sys/class/drm/card1/device/power/runtime_status", "suspended\n");
    assert_int_equal(monitor_new(&m, s, &cfg, NULL), ST_OK);
    round_of(m, &v);
    assert_true(v.asleep && !v.field[GPU_TEMPERATURE].valid);
    monitor_free(m);
    /* Two cards of one vendor: no reading rather than another card's. */
    put(&r, "/sys/class/drm/card2/device/vendor", "0x1002\n");
    put(&r, "/sys/class/drm/card2/device/uevent", "DRIVER=amdgpu\n");
    assert_int_equal(monitor_new(&m, s, &cfg, NULL), ST_OK);
    round_of(m, &v);
    assert_string_equal(v.source, "");
    monitor_free(m);
    gpu_set_free(s);
    drop_root(&r);
}

static void test_xe_power(void **state)
{
    struct root r = make_root();
    struct gpu_set *s = set_of("Intel", 1);
    struct monitor *m = NULL;
    struct gpu_readings v = {0};
    (void)state;
    put(&r, "/sys/class/drm/card0/device/vendor", "0x8086\n");
    put(&r, "/sys/class/drm/card0/device/uevent", "DRIVER=xe\n");
    put(&r, "/sys/class/drm/card0/device/hwmon/hwmon0/name", "xe\n");
    put(&r, "/sys/class/drm/card0/device/hwmon/hwmon0/energy1_input", "1000000\n");
    put(&r, "/sys/class/drm/card0/device/tile0/gt0/freq0/cur_freq", "2400\n");
    struct monitor_cfg cfg = {.root = r.dir, .nvml = "", .interval_ns = 5 * NS_PER_MS};
    assert_int_equal(monitor_new(&m, s, &cfg, NULL), ST_OK);
    round_of(m, &v);
    assert_false(v.field[GPU_TEMPERATURE].valid);
    assert_int_equal((int)(v.field[GPU_CLOCK].value / 1e6), 2400);
    for (int i = 0; i < 2000 && !v.field[GPU_POWER].valid; i++) { /* two rounds make a difference */
        usleep(1000);
        monitor_read(m, 0, &v);
    }
    assert_true(v.field[GPU_POWER].valid && v.field[GPU_POWER].value < 1e-9); /* the counter stands still */
    monitor_free(m);
    gpu_set_free(s);
    drop_root(&r);
}

static void test_nvml(void **state)
{
    struct gpu_set *s = set_of("NVIDIA", 0x11);
    struct monitor *m = NULL;
    struct gpu_readings v;
    struct monitor_cfg cfg = {.root = "/nowhere", .nvml = FAKE_NVML, .interval_ns = 5 * NS_PER_MS};
    void *lib = dlopen(FAKE_NVML, RTLD_NOW | RTLD_LOCAL);
    struct fake_nvml *f = lib ? dlsym(lib, "fake_nvml") : NULL;
    (void)state;
    assert_non_null(f);
    assert_int_equal(monitor_new(&m, s, &cfg, NULL), ST_OK);
    round_of(m, &v);
    assert_string_equal(v.source, "nvml");
    assert_int_equal((int)v.field[GPU_TEMPERATURE].value, 67);
    assert_int_equal((int)(v.field[GPU_POWER].value * 10), 3505);
    assert_int_equal((int)(v.field[GPU_CLOCK].value / 1e6), 1980);
    assert_int_equal((int)v.field[GPU_MEMORY_USED].value, 550);
    assert_int_equal((int)v.field[GPU_SLOWDOWN_TEMPERATURE].value, 89);
    assert_int_equal((int)v.field[GPU_THROTTLE].value, GPU_THROTTLE_THERMAL | GPU_THROTTLE_POWER);
    assert_false(v.field[GPU_UTILIZATION].valid); /* not supported is absent */
    /* The library hangs: readings stay at hand, and only grow old. */
    f->hang = 1;
    int asked = f->asked;
    while (f->asked == asked)
        usleep(1000);
    uint64_t age = 0;
    for (int i = 0; i < 5000 && age < 50 * NS_PER_MS; i++) {
        usleep(1000);
        monitor_read(m, 0, &v);
        assert_true(v.field[GPU_TEMPERATURE].valid);
        age = v.field[GPU_TEMPERATURE].age_ns;
    }
    assert_true(age >= 50 * NS_PER_MS);
    f->hang = 0;
    f->lost = 1; /* it fell off the bus: it is left alone for a while */
    asked = f->asked;
    for (int i = 0; i < 2000 && f->asked == asked; i++)
        usleep(1000);
    usleep(50000);
    assert_true(f->asked <= asked + 2);
    monitor_free(m);
    assert_int_equal(f->opened, 0);
    f->lost = 0;
    f->no_driver = 1;
    assert_int_equal(monitor_new(&m, s, &cfg, NULL), ST_OK);
    round_of(m, &v);
    assert_string_equal(v.source, "");
    monitor_free(m);
    gpu_set_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_host), cmocka_unit_test(test_amdgpu),
                                       cmocka_unit_test(test_xe_power), cmocka_unit_test(test_nvml)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
