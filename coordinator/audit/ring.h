/*
 * Bounded lock-free queue of records: any thread pushes, one thread pops. A cell's sequence says whose turn
 * it is, so neither side ever waits for the other.
 */
#ifndef STRATA_AUDIT_RING_H
#define STRATA_AUDIT_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct rec {      /* one encoded event */
    uint64_t seq; /* of the outbox; 0 = from the ring or our own */
    bool own;     /* written by the audit room itself */
    size_t len;
    uint8_t data[];
};

struct ring_cell {
    atomic_size_t turn;
    struct rec *rec;
};
struct ring {
    struct ring_cell *cells;
    size_t mask;
    _Alignas(64) atomic_size_t tail; /* next to push */
    _Alignas(64) atomic_size_t head; /* next to pop */
};

int ring_init(struct ring *r, unsigned rows) ST_CHECK; /* rounded up to a power of two */
void ring_fini(struct ring *r);                        /* frees what is in it */
bool ring_push(struct ring *r, struct rec *rec);       /* false: full */
struct rec *ring_pop(struct ring *r);                  /* NULL: empty */
bool ring_empty(struct ring *r);
size_t ring_used(const struct ring *r);

#endif
