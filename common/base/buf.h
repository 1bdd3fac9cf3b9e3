/*
 * A growable byte buffer with a hard limit: an append that would pass the limit fails and changes nothing, so
 * no peer can make us allocate without bound. Zero-initialised is empty with no limit. One thread at a time.
 */
#ifndef STRATA_BASE_BUF_H
#define STRATA_BASE_BUF_H

#include <stdint.h>
#include <stdlib.h>

#include "common/base/status.h"

struct buf {
    uint8_t *data;
    size_t len, cap;
    size_t limit; /* 0 = none */
};

void buf_fini(struct buf *b);
int buf_reserve(struct buf *b, size_t more) ST_CHECK; /* ST_ENOMEM, ST_ELIMIT */
int buf_append(struct buf *b, const void *p, size_t n) ST_CHECK;
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Drops n bytes (≤ len) from the front. */
void buf_consume(struct buf *b, size_t n);
/* Always NUL-terminated view (not counted in len); "" on an empty buffer. */
const char *buf_cstr(struct buf *b);

/* QUIC variable-length integers (RFC 9000 §16). Encode returns 1, 2, 4 or 8; decode returns bytes used, 0 =
 * more needed. */
size_t varint_encode(uint8_t out[8], uint64_t v);
size_t varint_decode(const uint8_t *p, size_t n, uint64_t *v);

#endif
