/*
 * Bounded lock-free queue of encoded events: any thread pushes, one thread reads. A cell's turn says whose it
 * is, so neither side ever waits for the other. The reader looks at cells where they lie and releases them
 * only when their events are on disk: what could not be written is simply still there.
 */
#ifndef STRATA_AUDIT_RING_H
#define STRATA_AUDIT_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define RING_INLINE 364u /* bytes of an event that need no allocation: nearly all of them */

struct ring_cell {
    atomic_size_t turn; /* its position while free, position + 1 when filled */
    uint8_t *far;       /* an event too large for the cell; NULL otherwise */
    uint32_t len;
    uint8_t near[RING_INLINE];
};
struct ring {
    struct ring_cell *cells;
    size_t mask;
    _Alignas(64) atomic_size_t tail; /* next to push */
    _Alignas(64) atomic_size_t head; /* next to release */
};

int ring_init(struct ring *r, unsigned rows) ST_CHECK; /* rounded up to a power of two */
void ring_fini(struct ring *r);
/* Copies n bytes. ST_EAGAIN: full; ST_ENOMEM. Any thread. */
int ring_push(struct ring *r, const uint8_t *p, size_t n) ST_CHECK;
/* The i-th unreleased event, NULL when there are fewer (or its producer has not finished yet). Reader. */
const uint8_t *ring_peek(struct ring *r, size_t i, size_t *n);
void ring_release(struct ring *r, size_t k); /* the first k; reader */
size_t ring_used(const struct ring *r);      /* any thread */

#endif
