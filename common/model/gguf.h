/*
 * GGUF v2 and v3: header, metadata and tensor table, from an injected reader. Everything is checked before it
 * is believed: no count leads to an allocation that the bytes left in the file could not fill. Private to
 * this room; users call model_open.
 */
#ifndef STRATA_MODEL_GGUF_H
#define STRATA_MODEL_GGUF_H

#include "common/model/tensor.h"

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

#define GGUF_MAX_KEPT_ARRAY                                                                                  \
    8192u /* numbers of an array that are kept; longer arrays are walked and dropped */

struct gguf_kv {
    char *key;
    enum gguf_type type;
    uint64_t u; /* integers (sign-extended) and booleans */
    double f;   /* floats */
    char *s;    /* strings; cut at 64 KiB */
    enum gguf_type elem;
    uint64_t count; /* of an array */
    uint64_t *each; /* integers of a short array */
};

struct gguf {
    uint32_t version;
    uint64_t alignment, data_offset;
    struct gguf_kv *kv;
    size_t nkv;
    uint8_t digest[32]; /* SHA-256 of all bytes before the data */
};

/*
 * Reads one file and appends its tensors to *t with file index `file`. `what` names the file in errors.
 * ST_ECORRUPT, ST_ENOTSUP (version, byte order, unknown tensor type), ST_ELIMIT, ST_EIO, ST_ENOMEM.
 */
int gguf_read(const struct model_src *src, const char *what, uint32_t file, struct gguf *g,
              struct tensor_table *t, struct err *e) ST_CHECK;
void gguf_fini(struct gguf *g);

const struct gguf_kv *gguf_get(const struct gguf *g, const char *key); /* or NULL */
/* A non-negative integer of any width; false if absent or of another type. */
bool gguf_get_uint(const struct gguf *g, const char *key, uint64_t *out);
const char *gguf_get_string(const struct gguf *g, const char *key); /* or NULL */

/* Fills *h (zeroed) from the metadata of the first file. */
int gguf_hparams(const struct gguf *g, struct hparams *h) ST_CHECK;

/* Elements and bytes of a block of a ggml tensor type; false for an unknown one. */
bool ggml_type_info(uint32_t type, const char **name, uint32_t *block, uint32_t *bytes);

#endif
