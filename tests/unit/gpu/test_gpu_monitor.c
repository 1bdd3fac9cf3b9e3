/* Sensors: what a source tells, what it lacks, and a source that hangs. */
#include "tests/unit/gpu/gpu_help.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/gpu/monitor.h"
#include "common/base/clock.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_host)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
