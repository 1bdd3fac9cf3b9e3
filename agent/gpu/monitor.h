/*
 * Sensors of the devices of a set: one thread samples them all once a second and keeps the last readings; who
 * asks is answered from memory. A source is opened once, a device that sleeps is left asleep, and a source
 * that hangs stops only the thread: what was read before grows old, and says so.
 *
 * Fields are absent unless the source told them. Threads: any, after monitor_new().
 */
#ifndef STRATA_GPU_MONITOR_H
#define STRATA_GPU_MONITOR_H

#include "agent/gpu/gpu.h"

struct clock;
struct monitor;

struct monitor_cfg {
    const char *root;          /* what /sys and /proc stand under; NULL = "" (tests give a fixture) */
    const char *nvml;          /* library of NVIDIA's sensors; NULL = libnvidia-ml.so.1, "" = do not look */
    uint64_t interval_ns;      /* 0 = 1 s */
    const struct clock *clock; /* NULL = the system's */
};

/* ST_ENOMEM, ST_EIO. The set must outlive it. */
int monitor_new(struct monitor **out, const struct gpu_set *set, const struct monitor_cfg *cfg,
                struct err *e) ST_CHECK;
/* Waits for the thread, at most one second; when a source hangs, thread and object are left to the end of the
 * process. NULL is fine. */
void monitor_free(struct monitor *m);
/* Until the first round is complete, or the time is up (false). */
bool monitor_wait(struct monitor *m, uint64_t timeout_ns);
/* What is known of device i of the set; all absent when there is no such device. Never blocks on a source. */
void monitor_read(struct monitor *m, size_t i, struct gpu_readings *out);

#endif
