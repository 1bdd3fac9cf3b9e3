/*
 * Readings of AMD and Intel devices, from what amdgpu, i915 and xe show under /sys/class/drm. Never run on
 * hardware: the paths are the kernel documentation's, and the tests' are a fixture. Cards are joined by PCI
 * vendor, in the order of their number. A suspended card is left asleep.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/monitor_priv.h"
#include "agent/gpu/sysfile.h"
#include "common/base/str.h"

#define CARDS 32
#define HWMONS 16

enum temp { TEMPS = 3 };

struct drm {
    char driver[16];
    struct sysfile runtime, used, total, busy, clock_mhz, clock_hz, power, energy, slowdown, temp[TEMPS];
    uint64_t energy_uj, energy_at_ns;
};

static bool vendor_fits(const char *vendor, const char *pci)
{
    return (strcmp(vendor, "AMD") == 0 && strcmp(pci, "0x1002") == 0) ||
           (strcmp(vendor, "Intel") == 0 && strcmp(pci, "0x8086") == 0);
}

static bool word_at(const char *root, const char *path, int card, char *out, size_t cap)
{
    char full[128];
    struct sysfile f;
    snprintf(full, sizeof full, "/sys/class/drm/card%d/device/%s", card, path);
    if (sysfile_open(&f, root, "%s", full) < 0)
        return false;
    int rc = sysfile_word(&f, out, cap);
    sysfile_close(&f);
    return rc == ST_OK;
}

/* The driver's name, from the DRIVER= line of the device's uevent. */
static bool driver_of(const char *root, int card, char out[16])
{
    char full[128], text[1024];
    struct sysfile f;
    snprintf(full, sizeof full, "/sys/class/drm/card%d/device/uevent", card);
    if (sysfile_open(&f, root, "%s", full) < 0)
        return false;
    int rc = sysfile_text(&f, text, sizeof text);
    sysfile_close(&f);
    const char *p = rc == ST_OK ? strstr(text, "DRIVER=") : NULL;
    if (!p || (p != text && p[-1] != '\n'))
        return false;
    size_t n = strcspn(p + 7, "\n");
    if (n >= 16)
        return false;
    memcpy(out, p + 7, n);
    out[n] = 0;
    return true;
}

static void dev_open(struct sysfile *f, const char *root, int card, const char *path)
{
    (void)!sysfile_open(f, root, "/sys/class/drm/card%d/device/%s", card, path); /* not there = absent */
}

static void hwmon_open(struct drm *d, const char *root, int card)
{
    bool amd = strcmp(d->driver, "amdgpu") == 0;
    for (int h = 0; h < HWMONS; h++) {
        char path[64];
        struct sysfile name;
        snprintf(path, sizeof path, "hwmon/hwmon%d/name", h);
        dev_open(&name, root, card, path);
        if (name.fd < 0)
            continue;
        sysfile_close(&name);
        for (int i = 0; i < TEMPS; i++) {
            snprintf(path, sizeof path, "hwmon/hwmon%d/temp%d_input", h, i + 1);
            dev_open(&d->temp[i], root, card, path);
        }
        snprintf(path, sizeof path, "hwmon/hwmon%d/power1_average", h);
        dev_open(&d->power, root, card, path);
        if (d->power.fd < 0) {
            snprintf(path, sizeof path, "hwmon/hwmon%d/power1_input", h);
            dev_open(&d->power, root, card, path);
        }
        snprintf(path, sizeof path, "hwmon/hwmon%d/energy1_input", h);
        dev_open(&d->energy, root, card, path);
        snprintf(path, sizeof path, "hwmon/hwmon%d/temp%d_crit", h, amd ? 2 : 1);
        dev_open(&d->slowdown, root, card, path);
        snprintf(path, sizeof path, "hwmon/hwmon%d/freq1_input", h);
        dev_open(&d->clock_hz, root, card, path);
        return;
    }
}

static void card_open(struct drm *d, const char *root, int card)
{
    struct sysfile *all[] = {&d->runtime, &d->used,   &d->total,    &d->busy,    &d->clock_mhz, &d->clock_hz,
                             &d->power,   &d->energy, &d->slowdown, &d->temp[0], &d->temp[1],   &d->temp[2]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        *all[i] = SYSFILE_NONE;
    dev_open(&d->runtime, root, card, "power/runtime_status");
    dev_open(&d->used, root, card, "mem_info_vram_used");
    dev_open(&d->total, root, card, "mem_info_vram_total");
    dev_open(&d->busy, root, card, "gpu_busy_percent");
    if (strcmp(d->driver, "i915") == 0)
        (void)!sysfile_open(&d->clock_mhz, root, "/sys/class/drm/card%d/gt_cur_freq_mhz", card);
    if (strcmp(d->driver, "xe") == 0)
        dev_open(&d->clock_mhz, root, card, "tile0/gt0/freq0/cur_freq");
    hwmon_open(d, root, card);
}

/* How many cards of this vendor stand before device g in its backend: "vulkan:2" alone does not tell, so the
 * first card of the vendor is taken, and a node with several gets readings only for the first. */
static int drm_open(void **ctx, const struct gpu_info *g, const struct monitor_cfg *cfg)
{
    char pci[16], driver[16];
    int found = -1, same = 0;
    if (g->software || (strcmp(g->vendor, "AMD") != 0 && strcmp(g->vendor, "Intel") != 0) ||
        strcmp(g->backend, "cpu") == 0)
        return ST_ENOENT;
    for (int c = 0; c < CARDS; c++)
        if (word_at(cfg->root, "vendor", c, pci, sizeof pci) && vendor_fits(g->vendor, pci) && same++ == 0)
            found = c;
    /* Two cards of one vendor cannot be told apart here: readings of the wrong one would be made up. */
    if (found < 0 || same != 1 || !driver_of(cfg->root, found, driver))
        return ST_ENOENT;
    struct drm *d = calloc(1, sizeof *d);
    if (!d)
        return ST_ENOMEM;
    str_copy(d->driver, sizeof d->driver, driver);
    card_open(d, cfg->root, found);
    *ctx = d;
    return ST_OK;
}

static const char *drm_name(void *ctx)
{
    return ((struct drm *)ctx)->driver;
}

static void drm_read(void *ctx, uint64_t now_ns, struct sample *s)
{
    struct drm *d = ctx;
    char state[32];
    uint64_t v, hottest = 0;
    if (sysfile_word(&d->runtime, state, sizeof state) == ST_OK && strcmp(state, "suspended") == 0) {
        s->asleep = true;
        return;
    }
    for (int i = 0; i < TEMPS; i++)
        if (sysfile_u64(&d->temp[i], &v) == ST_OK && v > hottest)
            hottest = v;
    if (hottest)
        sample_put(s, GPU_TEMPERATURE, (double)hottest / 1e3);
    if (sysfile_u64(&d->slowdown, &v) == ST_OK)
        sample_put(s, GPU_SLOWDOWN_TEMPERATURE, (double)v / 1e3);
    if (sysfile_u64(&d->power, &v) == ST_OK) {
        sample_put(s, GPU_POWER, (double)v / 1e6);
    } else if (sysfile_u64(&d->energy, &v) == ST_OK) { /* i915 and xe count microjoules */
        if (d->energy_at_ns && v >= d->energy_uj && now_ns > d->energy_at_ns)
            sample_put(s, GPU_POWER, (double)(v - d->energy_uj) * 1e3 / (double)(now_ns - d->energy_at_ns));
        d->energy_uj = v;
        d->energy_at_ns = now_ns;
    }
    if (sysfile_u64(&d->clock_hz, &v) == ST_OK)
        sample_put(s, GPU_CLOCK, (double)v);
    else if (sysfile_u64(&d->clock_mhz, &v) == ST_OK)
        sample_put(s, GPU_CLOCK, (double)v * 1e6);
    if (sysfile_u64(&d->busy, &v) == ST_OK && v <= 100)
        sample_put(s, GPU_UTILIZATION, (double)v / 100);
    if (sysfile_u64(&d->total, &v) == ST_OK && v)
        sample_put(s, GPU_MEMORY_TOTAL, (double)v);
    if (sysfile_u64(&d->used, &v) == ST_OK)
        sample_put(s, GPU_MEMORY_USED, (double)v);
}

static void drm_close(void *ctx)
{
    struct drm *d = ctx;
    struct sysfile *all[] = {&d->runtime, &d->used,   &d->total,    &d->busy,    &d->clock_mhz, &d->clock_hz,
                             &d->power,   &d->energy, &d->slowdown, &d->temp[0], &d->temp[1],   &d->temp[2]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sysfile_close(all[i]);
    free(d);
}

const struct monitor_source monitor_drm = {drm_open, drm_name, drm_read, drm_close};
