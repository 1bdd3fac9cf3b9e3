/*
 * Worker processes by principal: one is started when a principal first loads something and ended when it
 * holds nothing more. All device memory lives in them, so that one tenant cannot reach another's. Loop thread
 * only; completions never run inline.
 */
#ifndef STRATA_LAYERS_POOL_H
#define STRATA_LAYERS_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/worker/worker.h"
#include "common/base/err.h"
#include "common/base/log.h"

struct event_base;
struct pool;
struct tenant;

struct pool_ops {
    void (*on_slot)(struct tenant *t, void *arg); /* a slot is free after tenant_slot() said there is none */
    /* The worker is gone and with it all its buffers; its operations have completed with an error before. The
     * tenant stays valid while it is in use, but takes nothing more. */
    void (*on_died)(struct tenant *t, const char *why, void *arg);
};
