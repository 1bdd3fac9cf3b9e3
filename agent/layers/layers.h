/*
 * The layers that are resident on this node's devices: load from a file or from another agent, verify,
 * release. Bytes go from their source through a staging slot into device memory; a load counts only when the
 * SHA-256 the device's bytes give equals that of the bytes as they were read. Whatever fails on the way frees
 * the device memory it had. Each principal's layers live in a worker process of its own, started with the
 * first load and ended when it holds nothing. Loop thread only; completions never run inline.
 */
#ifndef STRATA_LAYERS_LAYERS_H
#define STRATA_LAYERS_LAYERS_H

#include "agent/layers/files.h"
#include "agent/layers/peers.h"
#include "agent/pool/pool.h"

struct layers;
struct load;

struct layers_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    struct files *files;
    struct pool *pool;
    struct peers *peers; /* NULL: nothing is fetched from peers */
    const char *const *roots;
    size_t nroots;                                       /* model files lie below one of them */
    uint64_t (*capacity)(const char *device, void *arg); /* of a device in bytes; 0 = there is none */
    void (*on_lost)(void *arg); /* resident layers went with their worker; never inline */
    void *arg;
};

struct layers_piece {
    uint32_t file;
    uint64_t offset, length;
};

struct layers_load {
    const char *job, *layer, *device, *principal;
    uint64_t bytes;
    const char *path;
    const struct layers_piece *pieces;
    size_t npieces;
    uint8_t header_sha256[32];
    uint32_t file_count;
    const char *peer_node, *peer_address; /* peer_node "" = from this node's disk */
    const uint8_t *ticket;
    size_t ticket_len;
    uint64_t timeout_ns; /* of a fetch from a peer */
};

struct layers_load_ops {
    void (*on_progress)(void *arg, uint64_t loaded); /* may be NULL */
    /* Last upcall, exactly once; the digests when rc is ST_OK. */
    void (*on_done)(void *arg, int rc, const struct err *e, const uint8_t *sha256,
                    const uint8_t *device_sha256);
};

int layers_new(struct layers **out, const struct layers_cfg *cfg, struct err *e) ST_CHECK;
/* Nothing may be in flight: after layers_close, and after pool, files and peers have been closed. */
void layers_free(struct layers *ls);
/* Ends every load; device memory goes with the workers. */
void layers_close(struct layers *ls);

/* The request is copied. A layer that is already resident on that device is freed and loaded anew; one that
 * is loading is ST_ECONFLICT. The same layer may be on several devices: one that moves is, for a while. */
int layers_load(struct load **out, struct layers *ls, const struct layers_load *req,
                const struct layers_load_ops *ops, void *arg, struct err *e) ST_CHECK;
/* No upcall follows; what was allocated is freed. */
void layers_load_cancel(struct load *l);

/* Reads a resident layer back from its device; device "" = any that has it. A difference is not an error
 * here: the caller compares. */
typedef void (*layers_verify_fn)(void *arg, int rc, const struct err *e, const uint8_t *sha256,
                                 const uint8_t *device_sha256);
int layers_verify(struct layers *ls, const char *job, const char *layer, const char *device,
                  layers_verify_fn fn, void *arg, struct err *e) ST_CHECK;

/* Runs products over a resident layer's bytes on its device, as much work as the layer does in a step. */
struct layers_time_ask {
    double flops, read_bytes; /* of the layer's step */
    unsigned rounds;          /* 1 … 100, besides one to warm up; fewer once two seconds have passed */
};
struct layers_timing {
    double best_s, mean_s; /* of a round, without the way to the worker and back */
    double call_s;         /* which is this long */
    uint64_t bytes;        /* read in a round: whole rows, so perhaps a little less than was asked for */
    double flops;
    unsigned rounds;
};
typedef void (*layers_time_fn)(void *arg, int rc, const struct err *e, const struct layers_timing *t);
int layers_time(struct layers *ls, const char *job, const char *layer, const char *device,
                const struct layers_time_ask *ask, layers_time_fn fn, void *arg, struct err *e) ST_CHECK;

/* Loads begun so far, counted from 1. */
uint64_t layers_serial(const struct layers *ls);

/* layer "" = all of the job, device "" = on all devices; only what was begun up to `serial` (UINT64_MAX =
 * all), so that an answer that was on its way does not undo what was asked meanwhile. Loads are cancelled.
 * Answers when the memory is free; ST_ENOENT when there was nothing. fn may be NULL. */
typedef void (*layers_release_fn)(void *arg, int rc, const struct err *e, unsigned layers, uint64_t bytes);
int layers_release(struct layers *ls, const char *job, const char *layer, const char *device, uint64_t serial,
                   layers_release_fn fn, void *arg, struct err *e) ST_CHECK;

struct layers_info {
    const char *job, *layer, *device;
    uint64_t bytes;
    const uint8_t *sha256;
};
/* Resident and verified ones; fn must not change them. */
void layers_each(const struct layers *ls, void (*fn)(const struct layers_info *i, void *arg), void *arg);
uint64_t layers_device_bytes(const struct layers *ls,
                             const char *device); /* allocated there, loading included */

#endif
