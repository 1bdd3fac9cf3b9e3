/*
 * Readings of the host, for cpu:0 and for software devices, which are the host too: load and memory from
 * /proc, clock from cpufreq, temperature from the processor's hwmon or thermal zone, power from the package's
 * energy counter where it may be read (root, as a rule).
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/gpu/monitor_priv.h"
#include "agent/gpu/sysfile.h"
#include "common/base/clock.h"
#include "common/base/str.h"

struct host {
    struct sysfile stat, meminfo, clock, temp, energy;
    uint64_t busy, total;             /* of the last round */
    uint64_t energy_uj, energy_at_ns; /* 0 = none yet */
};

/* The temperature input of the processor's own sensor, whatever number it has today. */
static void temp_open(struct host *h, const char *root)
{
    static const char *const chips[] = {"coretemp", "k10temp", "zenpower", "cpu_thermal"};
    char name[64], type[64];
    for (int i = 0; i < 32; i++) {
        struct sysfile f = SYSFILE_NONE;
        if (sysfile_open(&f, root, "/sys/class/hwmon/hwmon%d/name", i) < 0)
            continue;
        int rc = sysfile_word(&f, name, sizeof name);
        sysfile_close(&f);
        for (size_t k = 0; rc == ST_OK && k < sizeof chips / sizeof chips[0]; k++)
            if (strcmp(name, chips[k]) == 0 &&
                sysfile_open(&h->temp, root, "/sys/class/hwmon/hwmon%d/temp1_input", i) == ST_OK)
                return;
    }
    for (int i = 0; i < 32; i++) {
        struct sysfile f = SYSFILE_NONE;
        if (sysfile_open(&f, root, "/sys/class/thermal/thermal_zone%d/type", i) < 0)
            continue;
        int rc = sysfile_word(&f, type, sizeof type);
        sysfile_close(&f);
        if (rc == ST_OK && (strcmp(type, "x86_pkg_temp") == 0 || str_starts(type, "cpu")) &&
            sysfile_open(&h->temp, root, "/sys/class/thermal/thermal_zone%d/temp", i) == ST_OK)
            return;
    }
}

static int host_open(void **ctx, const struct gpu_info *g, const struct monitor_cfg *cfg)
{
    if (strcmp(g->backend, "cpu") != 0 && !g->software)
        return ST_ENOENT;
    struct host *h = malloc(sizeof *h);
    if (!h)
        return ST_ENOMEM;
    *h = (struct host){SYSFILE_NONE, SYSFILE_NONE, SYSFILE_NONE, SYSFILE_NONE, SYSFILE_NONE, 0, 0, 0, 0};
    (void)!sysfile_open(&h->stat, cfg->root, "/proc/stat"); /* what is not there is absent, each for itself */
    (void)!sysfile_open(&h->meminfo, cfg->root, "/proc/meminfo");
    (void)!sysfile_open(&h->clock, cfg->root, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq");
    (void)!sysfile_open(&h->energy, cfg->root, "/sys/class/powercap/intel-rapl:0/energy_uj");
    temp_open(h, cfg->root);
    *ctx = h;
    return ST_OK;
}

static const char *host_name(void *ctx)
{
    (void)ctx;
    return "host";
}

static void load_read(struct host *h, struct sample *s)
{
    char text[4096];
    uint64_t v[8] = {0}, total = 0, busy;
    if (sysfile_text(&h->stat, text, sizeof text) < 0 ||
        sscanf(text,
               "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
               " %" SCNu64,
               &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]) < 5)
        return;
    for (int i = 0; i < 8; i++)
        total += v[i];
    busy = total - v[3] - v[4]; /* less idle and waiting for disks */
    if (h->total && total > h->total && busy >= h->busy)
        sample_put(s, GPU_UTILIZATION, (double)(busy - h->busy) / (double)(total - h->total));
    h->total = total;
    h->busy = busy;
}

static bool meminfo_bytes(const char *text, const char *key, double *bytes)
{
    const char *p = strstr(text, key);
    unsigned long long kib;
    if (!p || sscanf(p + strlen(key), ": %llu kB", &kib) != 1)
        return false;
    *bytes = (double)kib * 1024;
    return true;
}

static void host_read(void *ctx, uint64_t now_ns, struct sample *s)
{
    struct host *h = ctx;
    char text[4096];
    double total, available;
    uint64_t v;
    load_read(h, s);
    if (sysfile_text(&h->meminfo, text, sizeof text) == ST_OK && meminfo_bytes(text, "MemTotal", &total) &&
        meminfo_bytes(text, "MemAvailable", &available)) {
        sample_put(s, GPU_MEMORY_TOTAL, total);
        sample_put(s, GPU_MEMORY_USED, total > available ? total - available : 0);
    }
    if (sysfile_u64(&h->clock, &v) == ST_OK)
        sample_put(s, GPU_CLOCK, (double)v * 1e3);
    if (sysfile_u64(&h->temp, &v) == ST_OK)
        sample_put(s, GPU_TEMPERATURE, (double)v / 1e3);
    if (sysfile_u64(&h->energy, &v) == ST_OK) {
        if (h->energy_at_ns && v >= h->energy_uj && now_ns > h->energy_at_ns)
            sample_put(s, GPU_POWER, (double)(v - h->energy_uj) * 1e3 / (double)(now_ns - h->energy_at_ns));
        h->energy_uj = v;
        h->energy_at_ns = now_ns;
    }
}

static void host_close(void *ctx)
{
    struct host *h = ctx;
    sysfile_close(&h->stat);
    sysfile_close(&h->meminfo);
    sysfile_close(&h->clock);
    sysfile_close(&h->temp);
    sysfile_close(&h->energy);
    free(h);
}

const struct monitor_source monitor_host = {host_open, host_name, host_read, host_close};
