/*
 * The permissions of a policy. Coordinator and agents share them because a ticket carries a set of them: the
 * numbers are a wire format: none is ever renumbered.
 */
#ifndef STRATA_BASE_PERMISSION_H
#define STRATA_BASE_PERMISSION_H

enum permission {
    PERM_DEVICE_LIST,
    PERM_DEVICE_INFO,
    PERM_DEVICE_ALLOCATE,
    PERM_MEMORY_ALLOCATE,
    PERM_MEMORY_DEALLOCATE,
    PERM_MEMORY_COPY_TO_DEVICE,
    PERM_MEMORY_COPY_FROM_DEVICE,
    PERM_MEMORY_COPY_DEVICE_TO_DEVICE,
    PERM_COMPUTE_EXECUTE,
    PERM_COMPUTE_SYNCHRONIZE,
    PERM_MONITOR_MEMORY,
    PERM_MONITOR_TEMPERATURE,
    PERM_MONITOR_POWER,
    PERM_MONITOR_CLOCK,
    PERM_ADMIN, /* admin:full_access */
    PERM_COUNT,
};
#define PERM_BIT(p) (1u << (p))
#define PERM_ALL14 (PERM_BIT(PERM_ADMIN) - 1u)

const char *permission_name(enum permission p); /* "memory:allocate"; "?" out of range */

#endif
