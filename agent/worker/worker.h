/*
 * The agent's side of a worker process (strata-worker). All device memory lives in workers, one a principal,
 * so that the agent loads no GPU driver and a fault or hang of one tenant kills nobody else's memory. Agent
 * and worker share a control socket and a staging ring of equal slots; bytes go through slots only.
 *
 * Threads: the loop thread of cfg.base only. Completion: a submit that returned ST_OK calls its `done`
 * exactly once, from the loop and never inline; one that failed calls nothing. When the process ends,
 * whatever the reason, all pending operations complete with ST_ECLOSED (ST_EDEADLINE for the one that ran out
 * of time), then on_exit runs, once. All callbacks may call any function here, worker_close included.
 */
#ifndef STRATA_WORKER_H
#define STRATA_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/gpu/exec.h"
#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"

#define WORKER_MAX_DEVICES 16
#define WORKER_MAX_SLOTS 64
#define WORKER_MAX_PENDING 256 /* operations in flight; one more is ST_EAGAIN until one completes */
#define WORKER_MAX_SLOT_BYTES (64u << 20)

struct event_base;
struct worker;

struct worker_device {
    char id[24];      /* "cpu:0", "vulkan:0" */
    char backend[16]; /* "cpu", "vulkan" */
    char name[128], vendor[32], driver[96];
    char support[16];          /* "reference", "supported" or "software" */
    uint64_t total_bytes;      /* of device memory */
    uint64_t available_bytes;  /* when the worker started; worker_stat() is current */
    uint64_t max_buffer_bytes; /* of one allocation */
    uint32_t compute_units;    /* 0 = the driver does not tell */
    bool software;             /* an emulated device: memory is the host's */
    uint8_t uuid[16];          /* the same for one physical device in every process */
};

struct worker_usage {
    uint64_t allocated_bytes, available_bytes; /* by the worker's own account */
    uint32_t buffers;
    bool lost; /* the device failed; only a new worker can use it again */
};

/* What an operation came to. Borrowed for the call; which fields count is said at each function. */
struct worker_result {
    int status;      /* ST_OK, or why not */
    const char *why; /* a sentence when status is not ST_OK, else "" */
    uint64_t handle;
    uint8_t sha256[32];
    const struct worker_usage *usage; /* one for each device, in the order of the list */
    size_t devices;
    double memory_bytes_per_s, compute_flops_per_s; /* 0 = not measured on this backend */
    uint64_t value;                                 /* of a kernel */
    const struct gpu_readings *readings;
};
typedef void (*worker_done_fn)(void *arg, const struct worker_result *r);

struct worker_ops {
    /* The devices are known and operations may be submitted. The list lives as long as the worker. */
    void (*on_ready)(struct worker *w, const struct worker_device *devices, size_t n, void *arg);
    /* A slot is free again after worker_slot_get() said there was none. May be NULL. */
    void (*on_slot)(struct worker *w, void *arg);
    /* The process is gone: `signal` is 0 for a normal exit, `why` a sentence. Nothing can be submitted any
     * more; the owner calls worker_close(), here or later. After worker_close() it is the last call. */
    void (*on_exit)(struct worker *w, int exit_status, int signal, const char *why, void *arg);
};

struct worker_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct log *log;     /* NULL = silent */
    const char *program;       /* path of strata-worker */
    const char *label;         /* for log lines, such as the principal; NULL = "-" */
    const char *backends;      /* comma list such as "cpu,vulkan"; NULL = all */
    uint64_t cpu_memory_bytes; /* limit of cpu:0; 0 = half of the machine's memory */
    uint32_t slots;            /* 1 … WORKER_MAX_SLOTS; 0 = 8 */
    uint32_t slot_bytes;       /* a multiple of 4096, ≤ WORKER_MAX_SLOT_BYTES; 0 = 4 MiB */
    uint64_t op_timeout_ns;    /* for each operation; 0 = 30 s. A worker that misses it is killed. */
    uint64_t start_timeout_ns; /* until on_ready; 0 = 30 s */
    const struct worker_ops *ops;
    void *arg;
};

/* A piece of the staging ring. */
struct worker_slot {
    uint32_t index;
    uint32_t bytes; /* capacity */
    uint8_t *data;  /* the worker can write here too: never trust what was read back before checking it */
};

/* Starts the process; on_ready or on_exit follows. ST_EINVAL, ST_ENOENT (no such program), ST_ENOMEM, ST_EIO.
 */
int worker_spawn(struct worker **out, const struct worker_cfg *cfg, struct err *e) ST_CHECK;
/* Ends the process (SIGKILL). Callbacks still come as described above. */
void worker_kill(struct worker *w);
/* Gives the object up; NULL is fine. Kills the process if it lives: pending operations complete, on_exit runs
 * and then w is gone. When on_exit has run before, w is gone as soon as no callback of it is on the stack. */
void worker_close(struct worker *w);
/* For shutdown, when the loop will not run again: kills, waits for the process, frees, calls nothing back.
 * Not from a callback. */
void worker_destroy(struct worker *w);

bool worker_ready(const struct worker *w); /* between on_ready and the end of the process */
int worker_pid(const struct worker *w);    /* 0 once it is gone */
size_t worker_pending(const struct worker *w);
uint32_t worker_slot_bytes(const struct worker *w);
const struct worker_device *worker_devices(const struct worker *w, size_t *n); /* none before on_ready */
int worker_device_find(const struct worker *w, const char *id, uint32_t *device) ST_CHECK; /* ST_ENOENT */

/* Submits fail with ST_EAGAIN (too many in flight), ST_ECLOSED (no process), ST_ECONFLICT (before on_ready),
 * ST_EINVAL (argument) or ST_ENOMEM. `device` is an index into the list. */

/* result.handle. ST_ERESOURCE: no room; zero-filled memory otherwise. */
int worker_alloc(struct worker *w, uint32_t device, uint64_t bytes, worker_done_fn done, void *arg) ST_CHECK;
/* A stale or foreign handle completes with ST_ENOENT. Waits for earlier operations on the device. */
int worker_free(struct worker *w, uint64_t handle, worker_done_fn done, void *arg) ST_CHECK;

/* A free slot, the caller's until worker_slot_put() or a worker_write() that took it. False: none now;
 * on_slot follows. Slots stay mapped until w is gone. */
bool worker_slot_get(struct worker *w, struct worker_slot *out);
void worker_slot_put(struct worker *w, const struct worker_slot *s);

/* Copies the first len bytes of the slot to handle+offset. On ST_OK the slot is the worker's and returns to
 * the ring by itself after `done`; on failure it stays the caller's. Out of bounds completes with ST_EINVAL.
 */
int worker_write(struct worker *w, uint64_t handle, uint64_t offset, const struct worker_slot *s,
                 uint32_t len, worker_done_fn done, void *arg) ST_CHECK;
/* Copies len bytes at handle+offset into the slot, which must be left alone until `done` and stays the
 * caller's. */
int worker_read(struct worker *w, uint64_t handle, uint64_t offset, uint32_t len, const struct worker_slot *s,
                worker_done_fn done, void *arg) ST_CHECK;
/* result.sha256 of len bytes at handle+offset, copied out of device memory by the worker. Its deadline grows
 * with len (op_timeout_ns for each started GiB). */
int worker_digest(struct worker *w, uint64_t handle, uint64_t offset, uint64_t len, worker_done_fn done,
                  void *arg) ST_CHECK;
/* Copies within device memory: one device or two of this worker. Runs in the order of the source's device; on
 * another device it is not ordered with what waits there, so let that complete first. Ranges of one buffer
 * that overlap complete with ST_EINVAL. Its deadline grows with len as a digest's does. */
int worker_copy(struct worker *w, uint64_t dst_handle, uint64_t dst_offset, uint64_t src_handle,
                uint64_t src_offset, uint64_t len, worker_done_fn done, void *arg) ST_CHECK;
/* Runs a kernel of agent/gpu/exec.h; all its buffers are on one device, else ST_EINVAL. result.value.
 * Completes with ST_ENOENT (no such kernel or buffer), ST_EINVAL (arguments, bounds), ST_ELIMIT, ST_ENOTSUP.
 */
int worker_exec(struct worker *w, const struct gpu_exec *x, worker_done_fn done, void *arg) ST_CHECK;
/* Runs a kernel of one's own, whose code is the first len bytes of the slot; the slot is taken as
 * worker_write() takes it. Completes with ST_EINVAL, ST_ENOENT, ST_ENOTSUP or, when the kernel did not end or
 * faulted, ST_EDEADLINE or ST_EIO: the device is lost to this process then. */
int worker_run(struct worker *w, const struct gpu_program *p, const struct worker_slot *s, uint32_t len,
               worker_done_fn done, void *arg) ST_CHECK;
/* Everything submitted to the device before is complete. */
int worker_sync(struct worker *w, uint32_t device, worker_done_fn done, void *arg) ST_CHECK;
/* result.readings: what the device's sensors told last, sampled once a second from the first call on.
 * Answered beside running operations, and from memory, so a sensor that hangs shows only as age. */
int worker_monitor(struct worker *w, uint32_t device, worker_done_fn done, void *arg) ST_CHECK;
/* result.usage. Answered beside running copies. */
int worker_stat(struct worker *w, worker_done_fn done, void *arg) ST_CHECK;
/* A real measurement of at most 100 ms each: memory_bytes_per_s (bytes copied within the device, counted
 * once) and compute_flops_per_s (fp32, one multiply-add = 2). Needs 2 × 32 MiB free on the device, else
 * ST_ERESOURCE. */
int worker_measure(struct worker *w, uint32_t device, worker_done_fn done, void *arg) ST_CHECK;

#endif
