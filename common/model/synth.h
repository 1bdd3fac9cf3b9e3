/*
 * Makes a model file: a valid GGUF v3 llama with pseudo-random weights that depend on the seed alone, for
 * trials without a download.
 */
#ifndef STRATA_MODEL_SYNTH_H
#define STRATA_MODEL_SYNTH_H

#include <stdint.h>

#include "common/base/err.h"

enum synth_type { SYNTH_F32, SYNTH_F16, SYNTH_Q8_0, SYNTH_Q4_0 };

struct synth_options {
    uint32_t layers, embedding, ff, vocab; /* 0 = chosen: from target_bytes, or a small default */
    uint32_t heads, heads_kv;              /* 0 = embedding/64 (at least 1), and as many */
    uint32_t context;                      /* 0 = 4096 */
    uint64_t target_bytes; /* 0 = none; else the file comes within a few percent, not below 256 KiB */
    enum synth_type type;  /* of the matrices; norms are F32 */
    uint64_t seed;
    const char *name; /* NULL = "synthetic" */
};

/*
 * Returns whether to go on: 0, or a negative status to stop with (the file is then removed). Called at least
 * once per 8 MiB and at the end with done == total.
 */
typedef int (*synth_progress_fn)(void *arg, uint64_t done, uint64_t total);

/*
 * Writes the file at path through a temporary file beside it, fsynced and renamed; on failure nothing is
 * left. Blocks. ST_EINVAL on sizes that make no model, ST_ERESOURCE on a full disk, ST_EIO, ST_ENOMEM.
 */
int synth_write(const char *path, const struct synth_options *o, synth_progress_fn progress, void *arg,
                struct err *e) ST_CHECK;

/* Fills in what is 0, and tells the size of the file that synth_write would make. ST_EINVAL. */
int synth_plan(struct synth_options *o, uint64_t *file_bytes, struct err *e) ST_CHECK;

/* "F32" "F16" "Q8_0" "Q4_0", case-insensitive. */
int synth_type_parse(const char *word, enum synth_type *out);

#endif
