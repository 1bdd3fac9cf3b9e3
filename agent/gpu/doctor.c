#include "agent/gpu/doctor.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/gpu/sysfile.h"
#include "common/base/str.h"

struct doc {
    struct doctor_cfg cfg;
    doctor_fn fn;
    void *arg;
    int problems, cards, nvidia, others; /* cards on the bus, by who makes them */
};

const char *doctor_level_name(enum doctor_level l)
{
    return l == DOCTOR_OK ? "ok" : l == DOCTOR_NOTE ? "note" : "problem";
}

static void tell(struct doc *d, enum doctor_level l, const char *subject, const char *advice, const char *fmt,
                 ...) __attribute__((format(printf, 5, 6)));

static void tell(struct doc *d, enum doctor_level l, const char *subject, const char *advice, const char *fmt,
                 ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    d->problems += l == DOCTOR_PROBLEM;
    d->fn(d->arg, l, subject, text, advice);
}

static bool path_of(const struct doc *d, char out[PATH_MAX], const char *path)
{
    return (size_t)snprintf(out, PATH_MAX, "%s%s", d->cfg.root, path) < PATH_MAX;
}

static bool word_of(const struct doc *d, const char *dir, const char *name, char *out, size_t cap)
{
    struct sysfile f;
    if (sysfile_open(&f, d->cfg.root, "%s/%s", dir, name) < 0)
        return false;
    int rc = sysfile_word(&f, out, cap);
    sysfile_close(&f);
    return rc == ST_OK;
}

static const char *maker(const char *pci)
{
    static const struct {
        const char *id, *name;
    } v[] = {{"0x10de", "NVIDIA"},   {"0x1002", "AMD"},         {"0x8086", "Intel"},    {"0x13b5", "ARM"},
             {"0x5143", "Qualcomm"}, {"0x1010", "Imagination"}, {"0x14e4", "Broadcom"}, {"0x106b", "Apple"}};
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++)
        if (strcmp(v[i].id, pci) == 0)
            return v[i].name;
    return NULL;
}

static const char *driver_advice(const char *vendor)
{
    return strcmp(vendor, "NVIDIA") == 0
               ? "install NVIDIA's driver (Debian: nvidia-driver) and load the module nvidia"
           : strcmp(vendor, "AMD") == 0
               ? "load the module amdgpu (Debian: firmware-amd-graphics has what it needs)"
           : strcmp(vendor, "Intel") == 0 ? "load the module i915 or xe (Debian: firmware-misc-nonfree)"
                                          : "load the kernel driver of the card";
}

/* ---- the bus ---- */

static void card_check(struct doc *d, const char *slot)
{
    char dir[300], cls[32], pci[32], path[PATH_MAX], link[PATH_MAX];
    snprintf(dir, sizeof dir, "/sys/bus/pci/devices/%s", slot);
    if (!word_of(d, dir, "class", cls, sizeof cls) || !word_of(d, dir, "vendor", pci, sizeof pci) ||
        !(str_starts(cls, "0x03") || str_starts(cls, "0x12")))
        return;
    const char *vendor = maker(pci);
    if (!vendor)
        return; /* a server's management display, a virtual one */
    d->cards++;
    if (strcmp(vendor, "NVIDIA") == 0)
        d->nvidia++;
    else
        d->others++;
    strcat(dir, "/driver");
    ssize_t n = path_of(d, path, dir) ? readlink(path, link, sizeof link - 1) : -1;
    if (n <= 0) {
        tell(d, DOCTOR_PROBLEM, slot, driver_advice(vendor), "a card of %s has no kernel driver", vendor);
        return;
    }
    link[n] = 0;
    const char *name = strrchr(link, '/') ? strrchr(link, '/') + 1 : link;
    if (strcmp(name, "nouveau") == 0 || str_starts(name, "vfio"))
        tell(d, DOCTOR_PROBLEM, slot,
             name[0] == 'v'
                 ? "the card is given to a virtual machine; bind it to its own driver to use it here"
                 : driver_advice(vendor),
             "a card of %s is held by the driver %s", vendor, name);
    else
        tell(d, DOCTOR_OK, slot, "", "a card of %s with the driver %s", vendor, name);
}

static void bus_check(struct doc *d)
{
    char path[PATH_MAX];
    DIR *dir = path_of(d, path, "/sys/bus/pci/devices") ? opendir(path) : NULL;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.' && strlen(e->d_name) < 32)
            card_check(d, e->d_name);
    if (dir)
        closedir(dir);
    if (!d->cards)
        tell(d, DOCTOR_NOTE, "pci", "",
             "no GPU is on the PCI bus (one of a system on a chip does not show there)");
}

/* ---- device nodes ---- */

/* How many nodes begin with `prefix`; each is checked. */
static int nodes_check(struct doc *d, const char *where, const char *prefix, const char *advice)
{
    char path[PATH_MAX], node[600];
    int n = 0;
    DIR *dir = path_of(d, path, where) ? opendir(path) : NULL;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (!str_starts(e->d_name, prefix) || strlen(e->d_name) > 64)
            continue;
        n++;
        snprintf(node, sizeof node, "%s/%s", where, e->d_name);
        if (path_of(d, path, node) && access(path, R_OK | W_OK) == 0)
            tell(d, DOCTOR_OK, node, "", "may be used by uid %u", (unsigned)geteuid());
        else
            tell(d, DOCTOR_PROBLEM, node, advice, "uid %u may not read and write it", (unsigned)geteuid());
    }
    if (dir)
        closedir(dir);
    return n;
}

/* ---- libraries ---- */

static bool library_check(struct doc *d, const char *name, bool needed, const char *advice)
{
    void *lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (lib) {
        tell(d, DOCTOR_OK, name, "", "loads");
        return true; /* it stays: drivers do not all survive being unloaded */
    }
    tell(d, needed ? DOCTOR_PROBLEM : DOCTOR_NOTE, name, needed ? advice : "", "does not load: %s",
         dlerror());
    return false;
}

/* What cuInit says, because a library that loads may still serve no device. */
static void cuda_check(struct doc *d, const char *name)
{
    static const struct {
        int code;
        const char *finding, *advice;
    } known[] = {
        {34, "is the toolkit's stub, not the driver's library",
         "take the stubs' directory out of LD_LIBRARY_PATH"},
        {100, "finds no device", "in a container: start it with the GPUs (--gpus all)"},
        {802, "says the system is not ready", "start nvidia-fabricmanager"},
        {803, "and the kernel module are of different versions",
         "reboot, or reload the module after the upgrade"},
        {804, "is a compatibility library that does not serve this card", "use the driver's own library"},
    };
    void *lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    int (*init)(unsigned) = NULL;
    if (lib)
        *(void **)&init = dlsym(lib, "cuInit");
    int r = init ? init(0) : -1;
    if (!lib || r == 0)
        return;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].code == r) {
            tell(d, DOCTOR_PROBLEM, name, known[i].advice, "%s (cuInit: %d)", known[i].finding, r);
            return;
        }
    tell(d, DOCTOR_PROBLEM, name, "see dmesg for messages of the driver", "cannot start (cuInit: %d)", r);
}

static int manifests(const struct doc *d, const char *where)
{
    char path[PATH_MAX];
    int n = 0;
    DIR *dir = path_of(d, path, where) ? opendir(path) : NULL;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        size_t len = strlen(e->d_name);
        n += len > 5 && strcmp(e->d_name + len - 5, ".json") == 0;
    }
    if (dir)
        closedir(dir);
    return n;
}

static void vulkan_check(struct doc *d)
{
    if (!library_check(d, d->cfg.vulkan, d->others > 0, "install the Vulkan loader (Debian: libvulkan1)"))
        return;
    const char *env = getenv("VK_ICD_FILENAMES");
    int n = manifests(d, "/usr/share/vulkan/icd.d") + manifests(d, "/etc/vulkan/icd.d");
    if (env && *env)
        tell(d, DOCTOR_NOTE, "VK_ICD_FILENAMES", "", "limits Vulkan to %s", env);
    else if (n == 0)
        tell(d, d->cards ? DOCTOR_PROBLEM : DOCTOR_NOTE, "vulkan",
             d->nvidia ? "in a container: NVIDIA_DRIVER_CAPABILITIES must name graphics"
                       : "install the card's Vulkan driver (Debian: mesa-vulkan-drivers)",
             "no driver's manifest is in /usr/share/vulkan/icd.d or /etc/vulkan/icd.d");
    else
        tell(d, DOCTOR_OK, "vulkan", "", "%d drivers' manifests", n);
}

static void found_check(struct doc *d)
{
    int gpus = 0;
    size_t n = d->cfg.set ? gpu_set_count(d->cfg.set) : 0;
    for (size_t i = 0; i < n; i++) {
        const struct gpu_info *g = gpu_set_info(d->cfg.set, i);
        bool real = !g->software && strcmp(g->backend, "cpu") != 0;
        gpus += real;
        tell(d, real ? DOCTOR_OK : DOCTOR_NOTE, g->id, "", "%s, %s, driver %s%s", g->name, g->vendor,
             g->driver, g->software ? "; emulated by the CPU, not a GPU" : "");
    }
    if (d->cfg.set && d->cards > gpus)
        tell(d, DOCTOR_PROBLEM, "gpus", "see the problems above", "%d cards are on the bus, %d can be used",
             d->cards, gpus);
}

int doctor_run(const struct doctor_cfg *cfg, doctor_fn fn, void *arg)
{
    struct doc d = {.cfg = *cfg, .fn = fn, .arg = arg};
    d.cfg.root = cfg->root ? cfg->root : "";
    d.cfg.cuda = cfg->cuda ? cfg->cuda : "libcuda.so.1";
    d.cfg.nvml = cfg->nvml ? cfg->nvml : "libnvidia-ml.so.1";
    d.cfg.vulkan = cfg->vulkan ? cfg->vulkan : "libvulkan.so.1";
    bus_check(&d);
    if (nodes_check(&d, "/dev", "nvidia",
                    "add the user to the group that owns it, or set NVreg_DeviceFileMode") == 0 &&
        d.nvidia)
        tell(&d, DOCTOR_PROBLEM, "/dev/nvidia0",
             "run nvidia-modprobe, or in a container pass the devices (--gpus all)",
             "the device nodes are not there");
    if (nodes_check(&d, "/dev/dri", "renderD", "add the user to the group render, and log in again") == 0 &&
        d.others)
        tell(&d, DOCTOR_PROBLEM, "/dev/dri", "load the card's kernel driver, or in a container pass /dev/dri",
             "there is no render node");
    if (library_check(&d, d.cfg.cuda, d.nvidia > 0, "install the driver's library (Debian: libcuda1)"))
        cuda_check(&d, d.cfg.cuda);
    library_check(&d, d.cfg.nvml, d.nvidia > 0, "install the driver's sensors (Debian: libnvidia-ml1)");
    vulkan_check(&d);
    found_check(&d);
    return d.problems;
}
