/*
 * One thread a device: it opens the device at the first operation, runs operations in order and answers on
 * the control socket. Only that thread touches the device, but for a copy between two devices, which the
 * source's thread does while it holds both.
 */
#ifndef STRATA_WORKER_EXECUTOR_H
#define STRATA_WORKER_EXECUTOR_H

#include "agent/gpu/gpu.h"
#include "agent/worker/wire.h"

struct executor;

struct executor_cfg {
    const struct gpu_set *set;
    uint32_t device;
    int control; /* borrowed; packets are written whole, so threads may share it */
    uint8_t *ring;
    uint32_t slots, slot_bytes;
    struct executor *const *peers; /* by device index, all made before the first request; for copies */
};

/* Lives to the end of the process. */
int executor_new(struct executor **out, const struct executor_cfg *cfg, struct err *e) ST_CHECK;
/* Any thread. ST_EAGAIN: WORKER_MAX_PENDING requests wait already. */
int executor_post(struct executor *x, const struct wire_req *r) ST_CHECK;
void executor_usage(struct executor *x,
                    struct worker_usage *out); /* any thread, beside a running operation */

/* Sends one answer; the process ends when the agent is gone. Any thread. */
void executor_reply(int control, struct wire_rep *rep);

#endif
