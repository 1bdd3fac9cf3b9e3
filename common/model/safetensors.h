/*
 * safetensors: the JSON header of one file, the index of a sharded model, and the config.json beside it.
 * Private to this room; users call model_open.
 */
#ifndef STRATA_MODEL_SAFETENSORS_H
#define STRATA_MODEL_SAFETENSORS_H

#include "common/model/tensor.h"

#define SAFETENSORS_MAX_HEADER_BYTES (32u << 20)

/*
 * Reads one file's header and appends its tensors to *t with file index `file`; digest = SHA-256 of length
 * and header. ST_ECORRUPT, ST_ENOTSUP (unknown dtype), ST_ELIMIT, ST_EIO, ST_ENOMEM.
 */
int safetensors_read(const struct model_src *src, const char *what, uint32_t file, uint8_t digest[32],
                     struct tensor_table *t, struct err *e) ST_CHECK;

/* The shards an index names, each once, sorted; plain file names only. Freed with safetensors_index_fini. */
struct safetensors_index {
    char **files;
    size_t nfiles;
    void *root; /* the parsed index, for safetensors_index_check */
};
int safetensors_index_read(const char *text, size_t n, const char *what, struct safetensors_index *ix,
                           struct err *e) ST_CHECK;
/* Every tensor the index names is in the shard it names; t's file indices are those of ix->files. */
int safetensors_index_check(const struct safetensors_index *ix, const char *what,
                            const struct tensor_table *t, struct err *e) ST_CHECK;
void safetensors_index_fini(struct safetensors_index *ix);

/* Fills *h (zeroed) from the text of a config.json; what it does not name stays 0. */
int safetensors_config(const char *text, size_t n, const char *what, struct hparams *h,
                       struct err *e) ST_CHECK;

#endif
