/*
 * What GGUF and safetensors have in common: a table of tensors with places in files, and the figures of the
 * architecture. Private to this room.
 */
#ifndef STRATA_MODEL_TENSOR_H
#define STRATA_MODEL_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#define TENSOR_MAX_DIMS 8u
#define TENSOR_MAX_NAME 1024u
#define TENSOR_MAX_COUNT (1u << 20) /* of a whole model */

struct tensor {
    char *name;
    const char *dtype; /* static: "Q4_K", "BF16", … */
    uint64_t elements;
    uint64_t rows; /* elements of all dimensions but the fastest */
    uint32_t ndims;
    uint32_t file;
    uint64_t offset; /* from the start of the file */
    uint64_t length;
};

struct tensor_table {
    struct tensor *v;
    size_t n, cap;
};

/* Appends a zeroed tensor. ST_ELIMIT, ST_ENOMEM. */
int tensor_table_add(struct tensor_table *t, struct tensor **out) ST_CHECK;
void tensor_table_fini(struct tensor_table *t);
/* No name twice, no two tensors over the same bytes of one file. Sorts by (file, offset). `what` for errors.
 */
int tensor_table_check(struct tensor_table *t, const char *what, struct err *e) ST_CHECK;

/* Bytes from somewhere, injected so that tests and fuzzers need no files. */
struct model_src {
    int (*pread)(void *arg, void *p, size_t n, uint64_t off); /* all n bytes or a negative status */
    void *arg;
    uint64_t size;
};

/* Figures of an architecture; 0 = not known. */
struct hparams {
    char name[256];
    char arch[64];
    uint64_t blocks, embedding, heads, heads_kv, key_length, value_length, ff;
    uint64_t experts, experts_used, vocab, context;
    uint64_t kv_lora_rank, rope_dims;        /* multi-head latent attention */
    uint64_t ssm_state, ssm_inner, ssm_conv; /* state-space layers */
    uint64_t window;                         /* sliding attention window */
    uint64_t *heads_each, *heads_kv_each;    /* per block when they differ */
    uint64_t *window_each;                   /* 1 = the block uses the window; without it none does */
    size_t nheads_each, nheads_kv_each, nwindow_each;
};
void hparams_fini(struct hparams *h);

#endif
