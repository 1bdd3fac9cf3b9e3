/* Frame codec. */
#include "common/rpc/frame.h"

#include "common/rpc/rpc.h"

void frame_dec_fini(struct frame_dec *d)
{
    buf_fini(&d->part);
}

/* Size of the head, 0 = more bytes needed, negative = refused. */
static int head(const uint8_t *p, size_t n, enum frame_kind *kind, uint64_t *len)
{
    if (!n)
        return 0;
    if (p[0] < FRAME_HEADER || p[0] > FRAME_STATUS)
        return ST_EPROTO;
    *kind = (enum frame_kind)p[0];
    size_t v = varint_decode(p + 1, n - 1, len);
    if (!v)
        return 0;
    uint64_t max = *kind == FRAME_MESSAGE ? RPC_MAX_MESSAGE : RPC_MAX_CONTROL;
    return *len > max ? ST_ELIMIT : (int)(1 + v);
}

static void give(struct frame *out, enum frame_kind kind, const uint8_t *p, uint64_t n)
{
    *out = (struct frame){kind, p, (size_t)n};
}

int frame_next(struct frame_dec *d, const uint8_t *p, size_t n, size_t *used, struct frame *out)
{
    enum frame_kind kind;
    uint64_t len = 0;
    *used = 0;
    if (d->held) {
        buf_consume(&d->part, d->held);
        d->held = 0;
    }
    if (!d->part.len) { /* the usual case: the frame lies whole in the input */
        int h = head(p, n, &kind, &len);
        if (h < 0)
            return h;
        if (h && n - (size_t)h >= len) {
            give(out, kind, p + h, len);
            *used = (size_t)h + (size_t)len;
            return 1;
        }
    }
    /* Bytes enter the buffer one head at a time, then exactly what the frame lacks. */
    while (*used < n || d->part.len) {
        int h = head(d->part.data, d->part.len, &kind, &len);
        if (h < 0)
            return h;
        size_t want = h ? (size_t)h + (size_t)len - d->part.len : 1;
        if (h && !want) {
            give(out, kind, d->part.data + h, len);
            d->held = d->part.len;
            return 1;
        }
        if (*used == n)
            return 0;
        size_t take = n - *used < want ? n - *used : want;
        int rc = buf_append(&d->part, p + *used, take);
        if (rc < 0)
            return rc;
        *used += take;
    }
    return 0;
}

int frame_head(struct buf *out, enum frame_kind kind, size_t n)
{
    uint8_t h[9];
    h[0] = (uint8_t)kind;
    size_t v = varint_encode(h + 1, n);
    return buf_append(out, h, 1 + v);
}
