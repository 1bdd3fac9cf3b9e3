/* Builds GGUF and safetensors bytes by hand for the tests of common/model. Aborts when memory runs out. */
#ifndef STRATA_TESTS_MODEL_MAKE_H
#define STRATA_TESTS_MODEL_MAKE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/model/gguf.h"

static inline void mk_bytes(struct buf *b, const void *p, size_t n)
{
    if (buf_append(b, p, n) < 0)
        abort();
}

static inline void mk_uint(struct buf *b, unsigned bytes, uint64_t v)
{
    for (unsigned i = 0; i < bytes; i++) {
        uint8_t x = (uint8_t)(v >> (8 * i));
        mk_bytes(b, &x, 1);
    }
}

static inline void mk_string(struct buf *b, const char *s)
{
    mk_uint(b, 8, strlen(s));
    mk_bytes(b, s, strlen(s));
}

static inline void mk_head(struct buf *b, uint32_t version, uint64_t tensors, uint64_t kvs)
{
    mk_bytes(b, "GGUF", 4);
    mk_uint(b, 4, version);
    mk_uint(b, 8, tensors);
    mk_uint(b, 8, kvs);
}

static inline void mk_kv_u32(struct buf *b, const char *key, uint32_t v)
{
    mk_string(b, key);
    mk_uint(b, 4, GGUF_U32);
    mk_uint(b, 4, v);
}

static inline void mk_kv_string(struct buf *b, const char *key, const char *v)
{
    mk_string(b, key);
    mk_uint(b, 4, GGUF_STRING);
    mk_string(b, v);
}

static inline void mk_kv_u16(struct buf *b, const char *key, uint16_t v)
{
    mk_string(b, key);
    mk_uint(b, 4, GGUF_U16);
    mk_uint(b, 2, v);
}

/* rows = 0 makes a vector */
static inline void mk_tensor(struct buf *b, const char *name, uint64_t cols, uint64_t rows, uint32_t type,
                             uint64_t offset)
{
    mk_string(b, name);
    mk_uint(b, 4, rows ? 2 : 1);
    mk_uint(b, 8, cols);
    if (rows)
        mk_uint(b, 8, rows);
    mk_uint(b, 4, type);
    mk_uint(b, 8, offset);
}

static inline void mk_pad(struct buf *b, size_t to)
{
    while (b->len % to)
        mk_uint(b, 1, 0);
}

static inline void mk_file(const char *path, const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f))
        abort();
}

static inline int mk_pread(void *arg, void *p, size_t n, uint64_t off)
{
    memcpy(p, (const uint8_t *)arg + off, n);
    return ST_OK;
}

#endif
