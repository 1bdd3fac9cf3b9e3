/* Bounded multi-producer queue after Vyukov, with the events in the cells. */
#include "coordinator/audit/ring.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct ring_cell) == 384, "a cell is whole cache lines");

int ring_init(struct ring *r, unsigned rows)
{
    size_t n = 2;
    while (n < rows && n < (1u << 22))
        n *= 2;
    r->cells = aligned_alloc(64, n * sizeof *r->cells);
    if (!r->cells)
        return ST_ENOMEM;
    /* Touched here, for a page fault costs a producer more than all the rest. */
    memset(r->cells, 0, n * sizeof *r->cells);
    for (size_t i = 0; i < n; i++)
        atomic_init(&r->cells[i].turn, i);
    r->mask = n - 1;
    atomic_init(&r->tail, 0);
    atomic_init(&r->head, 0);
    return ST_OK;
}

void ring_fini(struct ring *r)
{
    if (!r->cells)
        return;
    ring_release(r, ring_used(r));
    free(r->cells);
    r->cells = NULL;
}

int ring_push(struct ring *r, const uint8_t *p, size_t n)
{
    size_t pos = atomic_load_explicit(&r->tail, memory_order_relaxed);
    struct ring_cell *c;
    uint8_t *far = NULL;
    if (n > RING_INLINE) {
        far = malloc(n);
        if (!far)
            return ST_ENOMEM;
    }
    for (;;) {
        c = &r->cells[pos & r->mask];
        size_t turn = atomic_load_explicit(&c->turn, memory_order_acquire);
        if (turn == pos) {
            if (atomic_compare_exchange_weak_explicit(&r->tail, &pos, pos + 1, memory_order_relaxed,
                                                      memory_order_relaxed))
                break;
        } else if ((ptrdiff_t)(turn - pos) < 0) {
            free(far);
            return ST_EAGAIN;
        } else {
            pos = atomic_load_explicit(&r->tail, memory_order_relaxed);
        }
    }
    c->len = (uint32_t)n;
    c->far = far;
    memcpy(far ? far : c->near, p, n);
    atomic_store_explicit(&c->turn, pos + 1, memory_order_release);
    return ST_OK;
}

const uint8_t *ring_peek(struct ring *r, size_t i, size_t *n)
{
    size_t pos = atomic_load_explicit(&r->head, memory_order_relaxed) + i;
    struct ring_cell *c = &r->cells[pos & r->mask];
    if (i > r->mask || atomic_load_explicit(&c->turn, memory_order_acquire) != pos + 1)
        return NULL;
    *n = c->len;
    return c->far ? c->far : c->near;
}

void ring_release(struct ring *r, size_t k)
{
    size_t pos = atomic_load_explicit(&r->head, memory_order_relaxed);
    for (size_t end = pos + k; pos != end; pos++) {
        struct ring_cell *c = &r->cells[pos & r->mask];
        free(c->far);
        c->far = NULL;
        atomic_store_explicit(&c->turn, pos + r->mask + 1, memory_order_release);
    }
    atomic_store_explicit(&r->head, pos, memory_order_release);
}

size_t ring_used(const struct ring *r)
{
    size_t head = atomic_load_explicit(&r->head, memory_order_acquire);
    size_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    return tail > head ? tail - head : 0;
}
