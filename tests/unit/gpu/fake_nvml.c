/* A stand-in for libnvidia-ml.so.1: one device, readings and faults as fake_nvml says. */
#include "tests/unit/gpu/fake_nvml.h"

#include <string.h>
#include <unistd.h>

struct fake_nvml fake_nvml;

int nvmlInit_v2(void)
{
    fake_nvml.opened++;
    return fake_nvml.no_driver ? 9 : 0;
}
int nvmlShutdown(void)
{
    fake_nvml.opened--;
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **d)
{
    if (strcmp(uuid, "GPU-11111111-1111-1111-1111-111111111111") != 0)
        return 6;
    *d = &fake_nvml;
    return 0;
}
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *v)
{
    (void)d, (void)sensor;
    fake_nvml.asked++;
    while (fake_nvml.hang)
        usleep(1000);
    *v = 67;
    return fake_nvml.lost ? 15 : 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *v)
{
    (void)d;
    *v = 350500;
    return 0;
}
int nvmlDeviceGetClockInfo(void *d, int type, unsigned *v)
{
    (void)d;
    *v = type == 1 ? 1980 : 1;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *d, unsigned *v)
{
    (void)d, (void)v;
    return 3; /* not supported, as on a partitioned device */
}
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m)
{
    (void)d;
    m[0] = 1000, m[1] = 400, m[2] = 600;
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *d, unsigned *m)
{
    unsigned long long v[4] = {1000, 50, 400, 550};
    (void)d;
    if (m[0] != 0x02000028)
        return 25;
    memcpy(m + 2, v, sizeof v);
    return 0;
}
int nvmlDeviceGetTemperatureThreshold(void *d, int which, unsigned *v)
{
    (void)d;
    *v = which == 1 ? 89 : 95;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *v)
{
    (void)d;
    *v = 0x40 | 0x4;
    return 0;
}
