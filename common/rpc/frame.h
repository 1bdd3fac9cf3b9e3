/*
 * The frame codec of a call: kind byte, QUIC varint length, payload. Incremental and bounded: a frame longer
 * than its kind allows is refused when its length is read, before a byte of it is buffered. Pure; one thread.
 */
#ifndef STRATA_RPC_FRAME_H
#define STRATA_RPC_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

enum frame_kind { FRAME_HEADER = 1, FRAME_MESSAGE = 2, FRAME_STATUS = 3 };

struct frame {
    enum frame_kind kind;
    const uint8_t *p; /* borrowed from the input or from the decoder's buffer, until the next call */
    size_t n;
};

struct frame_dec {
    struct buf part; /* a frame that arrived in pieces */
    size_t held;     /* bytes in part that belong to the frame last returned */
};

void frame_dec_fini(struct frame_dec *d);

/*
 * Takes bytes from p[0..n), says in *used how many. 1 = *out is a frame; 0 = more bytes needed (all were
 * taken); ST_EPROTO = unknown kind; ST_ELIMIT = longer than its kind allows; ST_ENOMEM. After an error the
 * decoder must not be used again.
 */
int frame_next(struct frame_dec *d, const uint8_t *p, size_t n, size_t *used, struct frame *out) ST_CHECK;

/* Appends kind and length; the caller appends n bytes of payload after it. */
int frame_head(struct buf *out, enum frame_kind kind, size_t n) ST_CHECK;

#endif
