#include "common/base/permission.h"

static const char *const names[PERM_COUNT] = {
    [PERM_DEVICE_LIST] = "device:list",
    [PERM_DEVICE_INFO] = "device:info",
    [PERM_DEVICE_ALLOCATE] = "device:allocate",
    [PERM_MEMORY_ALLOCATE] = "memory:allocate",
    [PERM_MEMORY_DEALLOCATE] = "memory:deallocate",
    [PERM_MEMORY_COPY_TO_DEVICE] = "memory:copy_to_device",
    [PERM_MEMORY_COPY_FROM_DEVICE] = "memory:copy_from_device",
    [PERM_MEMORY_COPY_DEVICE_TO_DEVICE] = "memory:copy_device_to_device",
    [PERM_COMPUTE_EXECUTE] = "compute:execute",
    [PERM_COMPUTE_SYNCHRONIZE] = "compute:synchronize",
    [PERM_MONITOR_MEMORY] = "monitor:memory",
    [PERM_MONITOR_TEMPERATURE] = "monitor:temperature",
    [PERM_MONITOR_POWER] = "monitor:power",
    [PERM_MONITOR_CLOCK] = "monitor:clock",
    [PERM_ADMIN] = "admin:full_access",
};

const char *permission_name(enum permission p)
{
    return (unsigned)p < PERM_COUNT ? names[p] : "?";
}
