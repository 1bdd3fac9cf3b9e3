/* Growable buffer with a hard limit; QUIC varints. */
#include "common/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void buf_fini(struct buf *b)
{
    free(b->data);
    b->data = NULL;
    b->len = b->cap = 0;
}

int buf_reserve(struct buf *b, size_t more)
{
    if (more > SIZE_MAX / 2 - b->len - 1)
        return ST_ELIMIT;
    size_t need = b->len + more;
    if (b->limit && need > b->limit)
        return ST_ELIMIT;
    if (need + 1 <= b->cap)
        return ST_OK;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need + 1)
        cap *= 2;
    uint8_t *p = realloc(b->data, cap);
    if (!p)
        return ST_ENOMEM;
    b->data = p;
    b->cap = cap;
    return ST_OK;
}

int buf_append(struct buf *b, const void *p, size_t n)
{
    int rc = buf_reserve(b, n);
    if (rc < 0)
        return rc;
    if (n)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    return ST_OK;
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int rc = n < 0 ? ST_EINVAL : buf_reserve(b, (size_t)n);
    if (rc == ST_OK) {
        vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return rc;
}

void buf_consume(struct buf *b, size_t n)
{
    if (n >= b->len) {
        b->len = 0;
        return;
    }
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
}

const char *buf_cstr(struct buf *b)
{
    if (!b->data)
        return "";
    b->data[b->len] = 0; /* reserve always leaves room for it */
    return (const char *)b->data;
}

size_t varint_encode(uint8_t out[8], uint64_t v)
{
    unsigned lg = v < 64 ? 0 : v < 16384 ? 1 : v < (1u << 30) ? 2 : 3;
    size_t n = (size_t)1 << lg;
    for (size_t i = n; i-- > 0; v >>= 8)
        out[i] = (uint8_t)v;
    out[0] = (uint8_t)((out[0] & 0x3f) | lg << 6);
    return n;
}

size_t varint_decode(const uint8_t *p, size_t n, uint64_t *v)
{
    if (!n)
        return 0;
    size_t len = (size_t)1 << (p[0] >> 6);
    if (n < len)
        return 0;
    uint64_t x = p[0] & 0x3f;
    for (size_t i = 1; i < len; i++)
        x = x << 8 | p[i];
    *v = x;
    return len;
}
