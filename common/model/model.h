/*
 * A model as the planner and the loader see it: an ordered list of layers with their costs, and, when it came
 * from real files, where each layer's bytes lie. A layer's bytes are its pieces in order, nothing between.
 *
 * All quantities are doubles: whole numbers of bytes are exact below 2^53, and planner files may hold
 * fractions. A struct model is immutable once built and may then be read from any thread.
 */
#ifndef STRATA_MODEL_MODEL_H
#define STRATA_MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"

#define MODEL_MAX_LAYERS 65536u             /* after `count` is expanded */
#define MODEL_MAX_JSON_BYTES (64u << 20)    /* a model, cluster or request file */
#define MODEL_MAX_HEADER_BYTES (256u << 20) /* metadata and tensor table of one GGUF or safetensors file */
#define MODEL_MAX_FILES 4096u
#define MODEL_NONE UINT32_MAX

enum layer_type {
    LAYER_EMBEDDING,
    LAYER_ATTENTION,
    LAYER_MLP,
    LAYER_NORMALIZATION,
    LAYER_OUTPUT,
    LAYER_BLOCK, /* a whole decoder block */
};

struct model_file {
    char *path; /* as opened */
    uint64_t size;
};

struct model_piece {
    char *tensor;    /* its name in the file */
    uint32_t file;   /* index into model.files */
    uint64_t offset; /* from the start of the file */
    uint64_t length;
};

struct model_layer {
    char *id; /* unique; no alias */
    enum layer_type type;
    double weight_bytes;
    double flops;            /* of one step */
    double read_bytes;       /* read by one step */
    double activation_bytes; /* scratch; the largest counts on a device */
    double kv_bytes;
    double input_bytes, output_bytes;
    uint32_t *deps; /* indices of layers; each once, any order */
    size_t ndeps;
    struct model_piece *pieces; /* empty when the model came from JSON */
    size_t npieces;
};

struct model {
    char *name;
    char *arch; /* such as "llama"; "" when not known */
    struct model_file *files;
    size_t nfiles;
    struct model_layer *layers; /* in file order, ≥ 1 */
    size_t nlayers;
    uint32_t *order;   /* a topological order of all layers: the smallest index that is ready comes first */
    bool chain;        /* layer 0 has no dependency and every other depends on just its predecessor */
    char *metadata;    /* JSON object as text, at least "{}" */
    char digest[65];   /* hex SHA-256 over the headers and sizes of the files; "" when it came from JSON */
    struct map *index; /* private: id or alias → layer */
};

struct model_options {
    uint64_t context;         /* KV slots per sequence; 0 = 4096 or the model's own limit if that is lower */
    uint64_t sequences;       /* 0 = 1 */
    uint64_t tokens;          /* tokens of each sequence in one step: 1 = decode, more = prefill; 0 = 1 */
    double kv_element_bytes;  /* 0 = 2 (F16) */
    double act_element_bytes; /* between layers; 0 = 2 (F16) */
    bool split;               /* blocks as an attention and an mlp layer */
};

/*
 * Reads a model description from a file: GGUF (one file or the first of a split set), safetensors (one file,
 * an index of shards, or a directory that holds either), or strata.model.v1 JSON. The format is told by
 * content. opt may be NULL. On success *out is the caller's (model_free). Blocks on the disk. ST_ENOENT,
 * ST_ECORRUPT, ST_ELIMIT, ST_ENOTSUP, ST_ENOMEM, ST_EIO, with *e naming file, place and remedy.
 */
int model_open(const char *path, const struct model_options *opt, struct model **out, struct err *e) ST_CHECK;

/* strata.model.v1 from memory; `name` stands for the file in errors. ST_EINVAL on any defect. */
int model_read_json(const char *text, size_t n, const char *name, struct model **out, struct err *e) ST_CHECK;

/* Appends strata.model.v1 (pieces and files are not part of it). */
int model_write_json(const struct model *m, struct buf *out) ST_CHECK;

void model_free(struct model *m); /* NULL is fine */

/* The layer an id or the name of a counted group stands for (the group's last), or MODEL_NONE. */
uint32_t model_find(const struct model *m, const char *id);

/* Bytes of all pieces of a layer; 0 for a layer without pieces. */
uint64_t model_layer_bytes(const struct model_layer *l);

/* "block", "mlp", … never NULL. */
const char *layer_type_name(enum layer_type t);
int layer_type_parse(const char *word, enum layer_type *out);

#endif
