/*
 * Worker processes by principal, shared by all that keeps device memory for one: its layers and its sessions.
 * One is started at a principal's first use and ended with the last one. All device memory lives in them, so
 * that one tenant cannot reach another's, and a fault ends only its owner's. Loop thread only; completions
 * never run inside the call that asked.
 */
#ifndef STRATA_POOL_POOL_H
#define STRATA_POOL_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/worker/worker.h"
#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"

struct event_base;
struct pool;
struct tenant;

struct pool_device {
    char id[32]; /* "cpu:0" */
    char backend[16], name[128], vendor[64], uuid[64], driver_version[64], support_level[16];
    bool software;
    uint64_t memory_bytes, available_bytes;
    uint32_t compute_units;
    double flops_per_s, bytes_per_s; /* measured; 0 = not measured */
};

struct pool_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct log *log;
    const char *worker_path;
    const char *backends;      /* comma list that workers open; NULL = all */
    uint64_t cpu_memory_bytes; /* 0 = the worker's own choice */
};

/* One of those who use workers. Each hears of every tenant and looks after its own part of it. */
struct pool_user {
    void (*on_slot)(struct tenant *t, void *arg); /* a slot is free after tenant_slot() said there is none */
    /* The worker is gone and with it all its buffers; its operations have completed with an error before. The
     * tenant stays valid while it is in use, but takes nothing more. */
    void (*on_died)(struct tenant *t, const char *why, void *arg);
    void *arg;
    struct pool_user *next; /* private */
};

int pool_new(struct pool **out, const struct pool_cfg *cfg, struct err *e) ST_CHECK;
void pool_join(struct pool *p, struct pool_user *u); /* borrowed until the pool is freed, or pool_leave() */
void pool_leave(struct pool *p, struct pool_user *u);
/* Ends every worker; operations in flight complete with ST_ECLOSED before it returns. No file thread may be
 * using a slot any more. NULL is fine. */
void pool_free(struct pool *p);

/* Starts a worker that looks what devices there are and ends again. fn once, later. */
typedef void (*pool_probe_fn)(void *arg, int rc, const struct err *e, const struct pool_device *v, size_t n);
int pool_probe(struct pool *p, pool_probe_fn fn, void *arg, struct err *e) ST_CHECK;

/* The principal's worker, started if there is none. Each call is one use, given back by tenant_unuse(). */
int pool_tenant(struct pool *p, const char *principal, struct tenant **out, struct err *e) ST_CHECK;
void tenant_unuse(struct tenant *t);

typedef void (*tenant_done_fn)(void *arg, int rc, const struct err *e);
typedef void (*tenant_alloc_fn)(void *arg, int rc, const struct err *e, uint64_t buffer);
typedef void (*tenant_digest_fn)(void *arg, int rc, const struct err *e, const uint8_t *sha256);
int tenant_alloc(struct tenant *t, const char *device, uint64_t bytes, tenant_alloc_fn fn, void *arg,
                 struct err *e) ST_CHECK;
/* A staging slot to fill, from any thread; false = none free, on_slot comes. The caller's until
 * tenant_write() takes it or it is put back. */
bool tenant_slot(struct tenant *t, struct worker_slot *out);
void tenant_slot_put(struct tenant *t, const struct worker_slot *s);
/* Writes the slot's first n bytes. On ST_OK the slot is the worker's and comes back by itself. */
int tenant_write(struct tenant *t, uint64_t buffer, uint64_t off, const struct worker_slot *slot, uint32_t n,
                 tenant_done_fn fn, void *arg, struct err *e) ST_CHECK;
/* Reads n bytes into the slot, which must be left alone until fn and stays the caller's to put back. */
int tenant_read(struct tenant *t, uint64_t buffer, uint64_t off, const struct worker_slot *slot, uint32_t n,
                tenant_done_fn fn, void *arg, struct err *e) ST_CHECK;
/* SHA-256 of n bytes of the buffer, read back from the device. */
int tenant_digest(struct tenant *t, uint64_t buffer, uint64_t off, uint64_t n, tenant_digest_fn fn, void *arg,
                  struct err *e) ST_CHECK;
int tenant_release(struct tenant *t, uint64_t buffer, tenant_done_fn fn, void *arg, struct err *e) ST_CHECK;
/* What the worker holds on the device; NULL unless rc is ST_OK. */
typedef void (*tenant_usage_fn)(void *arg, int rc, const struct err *e, const struct worker_usage *u);
int tenant_usage(struct tenant *t, const char *device, tenant_usage_fn fn, void *arg, struct err *e) ST_CHECK;
/* From buffer to buffer of this worker; see worker_copy(). */
int tenant_copy(struct tenant *t, uint64_t to, uint64_t to_off, uint64_t from, uint64_t from_off, uint64_t n,
                tenant_done_fn fn, void *arg, struct err *e) ST_CHECK;
/* Everything that was asked of the device before is complete. */
int tenant_sync(struct tenant *t, const char *device, tenant_done_fn fn, void *arg, struct err *e) ST_CHECK;
/* A kernel; the handles of its spans are buffers. */
typedef void (*tenant_exec_fn)(void *arg, int rc, const struct err *e, uint64_t value);
int tenant_exec(struct tenant *t, const struct gpu_exec *x, tenant_exec_fn fn, void *arg,
                struct err *e) ST_CHECK;
/* A kernel of one's own, whose code is the slot's first n bytes; the slot is taken as tenant_write() takes
 * it. */
int tenant_run(struct tenant *t, const struct gpu_program *p, const struct worker_slot *slot, uint32_t n,
               tenant_done_fn fn, void *arg, struct err *e) ST_CHECK;
typedef void (*tenant_monitor_fn)(void *arg, int rc, const struct err *e, const struct gpu_readings *r);
int tenant_monitor(struct tenant *t, const char *device, tenant_monitor_fn fn, void *arg,
                   struct err *e) ST_CHECK;
int tenant_pid(const struct tenant *t);       /* 0 once the worker is gone */
unsigned tenant_uses(const struct tenant *t); /* by all users together */
/* Ends the worker; on_died follows. For one that does not let go of what it was told to free. */
void tenant_kill(struct tenant *t);

#endif
