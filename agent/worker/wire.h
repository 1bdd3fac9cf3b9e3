/*
 * What agent and worker say to each other over their SOCK_SEQPACKET pair: one struct a packet, always of
 * exactly that size, host byte order (both run on one machine, from one build). A packet of any other size,
 * with another magic or of an unknown kind ends the conversation: the worker exits, the agent kills the
 * worker.
 */
#ifndef STRATA_WORKER_WIRE_H
#define STRATA_WORKER_WIRE_H

#include <stdint.h>

#include "agent/worker/worker.h"

#define WIRE_REQ_MAGIC 0x53575131u
#define WIRE_REP_MAGIC 0x53575031u

enum wire_op {
    WIRE_ALLOC = 1,
    WIRE_FREE,
    WIRE_WRITE,
    WIRE_READ,
    WIRE_DIGEST,
    WIRE_STAT,
    WIRE_MEASURE,
    WIRE_COPY,
    WIRE_EXEC,
    WIRE_SYNC,
    WIRE_MONITOR,
    WIRE_RUN
};

/* A handle on the wire is the device's index in the top byte over the device's own handle. */
#define WIRE_HANDLE_BITS 56
#define WIRE_DEVICE_OF(h) ((uint32_t)((h) >> WIRE_HANDLE_BITS))
#define WIRE_HANDLE(device, h) ((uint64_t)(device) << WIRE_HANDLE_BITS | (h))
#define WIRE_LOCAL(h) ((h) & ((1ull << WIRE_HANDLE_BITS) - 1))

struct wire_req {
    uint32_t magic, op;
    uint64_t id;                     /* echoed */
    uint64_t handle;                 /* FREE WRITE READ DIGEST COPY (the destination's) */
    uint64_t offset;                 /* WRITE READ DIGEST COPY */
    uint64_t len;                    /* ALLOC WRITE READ DIGEST COPY; RUN: of the code */
    uint64_t src_handle, src_offset; /* COPY */
    uint32_t device;                 /* ALLOC MEASURE EXEC SYNC MONITOR RUN */
    uint32_t slot;                   /* WRITE READ; RUN: it holds the code */
    union {                          /* the handles of spans are as above */
        struct gpu_exec exec;        /* EXEC */
        struct gpu_program program;  /* RUN */
    } u;
};

enum wire_kind { WIRE_DEVICE = 1, WIRE_READY, WIRE_DONE };

struct wire_rep {
    uint32_t magic, kind;
    int32_t status;
    uint32_t count; /* DEVICE: its index; READY and STAT: how many devices */
    uint64_t id, handle;
    double memory, flops;
    uint64_t value; /* EXEC */
    uint8_t sha256[32];
    char why[256];
    union {
        struct worker_device device;
        struct worker_usage usage[WORKER_MAX_DEVICES];
        struct gpu_readings readings;
    } u;
};

#endif
