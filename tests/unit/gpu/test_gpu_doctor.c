/* The doctor on machines made of files: what is missing is named, with what to do. */
#include "tests/unit/gpu/gpu_help.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/gpu/doctor.h"

static char root[64], said[8192];

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void driver(const char *slot, const char *name)
{
    char full[512];
    snprintf(full, sizeof full, "%s/sys/bus/pci/devices/%s/driver", root, slot);
    assert_int_equal(symlink(name, full), 0);
}

static int setup(void **state)
{
    (void)state;
    strcpy(root, "/tmp/strata-doctor-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
    char cmd[128];
    (void)state;
    snprintf(cmd, sizeof cmd, "rm -rf %s", root);
    return system(cmd);
}

static void hear(void *arg, enum doctor_level l, const char *subject, const char *finding, const char *advice)
{
    size_t n = strlen(said);
    (void)arg;
    assert_true(*subject && *finding);
    assert_true(l != DOCTOR_PROBLEM || *advice); /* a problem always comes with what to do */
    snprintf(said + n, sizeof said - n, "%s|%s|%s|%s\n", doctor_level_name(l), subject, finding, advice);
}

static int examine(const char *cuda)
{
    struct doctor_cfg cfg = {.root = root, .cuda = cuda, .nvml = "/no/nvml.so", .vulkan = "/no/vulkan.so"};
    said[0] = 0;
    return doctor_run(&cfg, hear, NULL);
}

static void test_no_card(void **state)
{
    (void)state;
    put("/sys/bus/pci/devices/0000:00:01.0/class", "0x020000\n"); /* a network card */
    put("/sys/bus/pci/devices/0000:00:01.0/vendor", "0x8086\n");
    assert_int_equal(examine("/no/cuda.so"), 0);
    assert_non_null(strstr(said, "no GPU is on the PCI bus"));
}

static void test_nvidia(void **state)
{
    (void)state;
    put("/sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n");
    put("/sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n");
    assert_true(examine("/no/cuda.so") >= 4);
    assert_non_null(
        strstr(said, "problem|0000:17:00.0|a card of NVIDIA has no kernel driver|install NVIDIA's driver"));
    assert_non_null(strstr(said, "problem|/dev/nvidia0|the device nodes are not there"));
    assert_non_null(strstr(said, "problem|/no/cuda.so|does not load"));
    driver("0000:17:00.0", "../../drivers/nouveau");
    examine("/no/cuda.so");
    assert_non_null(strstr(said, "held by the driver nouveau"));
}

static void test_all_well(void **state)
{
    (void)state;
    put("/sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n");
    put("/sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n");
    driver("0000:17:00.0", "../../drivers/nvidia");
    put("/dev/nvidia0", "");
    examine(FAKE_CUDA);
    assert_non_null(strstr(said, "ok|0000:17:00.0|a card of NVIDIA with the driver nvidia"));
    assert_non_null(strstr(said, "ok|/dev/nvidia0|may be used"));
    assert_null(strstr(said, "cuInit"));
}

static void test_rights(void **state)
{
    char node[128];
    (void)state;
    if (geteuid() == 0)
        skip(); /* root may everything */
    put("/dev/dri/renderD128", "");
    snprintf(node, sizeof node, "%s/dev/dri/renderD128", root);
    assert_int_equal(chmod(node, 0), 0);
    assert_int_equal(examine("/no/cuda.so"), 1);
    assert_non_null(strstr(said, "problem|/dev/dri/renderD128|"));
    assert_non_null(strstr(said, "group render"));
}

#define D(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {D(test_no_card), D(test_nvidia), D(test_all_well), D(test_rights)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
