/*
 * The agent's end of a worker process: the process that holds one principal's device memory on this node. The
 * agent loads no GPU driver; it fills slots of a staging ring in shared memory and asks the worker to move
 * them.
 *
 * Loop thread only. Every operation completes exactly once, later, through its callback; when the worker
 * dies, with ST_EUNREACH, before on_exit. A callback may call anything here.
 */
#ifndef STRATA_WORKER_WORKER_H
#define STRATA_WORKER_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"

struct event_base;
struct worker;

#define WORKER_MAX_DEVICES 32

struct worker_device {
    char id[32], backend[16], name[128], vendor[64], uuid[40], driver_version[64], support_level[16];
    bool software;
    uint64_t memory_bytes, available_bytes;
    uint32_t compute_units;
};

struct worker_ops {
    /* The worker found its devices; valid until it exits. */
    void (*on_ready)(struct worker *w, const struct worker_device *d, size_t n, void *arg);
    /* A slot is free after worker_slot_get() found none. May be NULL. */
    void (*on_slot)(struct worker *w, void *arg);
    /* The process is gone (last upcall; worker_free is still the caller's to call). `why` says how. */
    void (*on_exit)(struct worker *w, const char *why, void *arg);
};
struct worker_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct log *log;
    const char *program;       /* path of strata-worker */
    const char *backends;      /* "cpu,vulkan": the ones to offer */
    uint64_t cpu_memory_bytes; /* limit of the cpu device; 0 = all */
    bool software;             /* offer software devices of GPU APIs */
    unsigned slots;            /* of the staging ring; 0 = 8 */
    size_t slot_bytes;         /* 0 = 4 MiB */
    uint64_t op_timeout_ns;    /* 0 = 60 s; an operation beyond it kills the worker, for its device hangs */
    const struct worker_ops *ops;
    void *arg;
};

int worker_spawn(struct worker **out, const struct worker_cfg *cfg, struct err *e) ST_CHECK;
/* Kills the process if it lives, waits for it, frees. Operations in flight complete first (ST_ECLOSED). Not
 * from a callback of the same worker: use worker_kill there. NULL is fine. */
void worker_free(struct worker *w);
void worker_kill(struct worker *w); /* on_exit follows */
int worker_pid(const struct worker *w);
size_t worker_slot_bytes(const struct worker *w);

/* ---- staging ring ---- */

/* A free slot, or NULL: on_slot tells when there is one. *slot names it. It stays the caller's until given to
 * worker_write/worker_read (returned when that completes) or worker_slot_put. */
uint8_t *worker_slot_get(struct worker *w, unsigned *slot);
uint8_t *worker_slot_ptr(struct worker *w, unsigned slot);
void worker_slot_put(struct worker *w, unsigned slot);

/* ---- operations ---- */

struct worker_result {
    int rc;
    struct err e;
    uint64_t handle;                 /* alloc */
    uint8_t sha256[32];              /* digest */
    double bytes_per_s, flops_per_s; /* measure */
    const uint64_t *available;
    size_t navailable; /* stat: by device index */
};
typedef void (*worker_fn)(struct worker *w, const struct worker_result *r, void *arg);

/* Negative when the operation could not be started: the callback then does not run. ST_EUNREACH: the worker
 * is gone; ST_EINVAL: a device index or length out of range. */
int worker_alloc(struct worker *w, unsigned device, uint64_t bytes, worker_fn fn, void *arg) ST_CHECK;
int worker_release(struct worker *w, uint64_t handle, worker_fn fn, void *arg) ST_CHECK;
/* Moves slot[0..n) to handle at offset. The slot goes back to the ring when it completes. */
int worker_write(struct worker *w, uint64_t handle, uint64_t offset, unsigned slot, size_t n, worker_fn fn,
                 void *arg) ST_CHECK;
/* Fills slot[0..n) from handle at offset; the slot stays with the caller. */
int worker_read(struct worker *w, uint64_t handle, uint64_t offset, unsigned slot, size_t n, worker_fn fn,
                void *arg) ST_CHECK;
/* SHA-256 of the buffer's first n bytes, read back from the device. */
int worker_digest(struct worker *w, uint64_t handle, uint64_t n, worker_fn fn, void *arg) ST_CHECK;
int worker_stat(struct worker *w, worker_fn fn, void *arg) ST_CHECK;
int worker_measure(struct worker *w, unsigned device, worker_fn fn, void *arg) ST_CHECK;

#endif
