/* Bounded multi-producer queue after Vyukov; sequentially consistent, for the sleeper's flag is ordered
 * against it. */
#include "coordinator/audit/ring.h"

#include <stdlib.h>

int ring_init(struct ring *r, unsigned rows)
{
    size_t n = 2;
    while (n < rows && n < (1u << 24))
        n *= 2;
    r->cells = calloc(n, sizeof *r->cells);
    if (!r->cells)
        return ST_ENOMEM;
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
    for (struct rec *rec; (rec = ring_pop(r));)
        free(rec);
    free(r->cells);
    r->cells = NULL;
}

bool ring_push(struct ring *r, struct rec *rec)
{
    size_t pos = atomic_load(&r->tail);
    for (;;) {
        struct ring_cell *c = &r->cells[pos & r->mask];
        size_t turn = atomic_load(&c->turn);
        if (turn == pos) {
            if (atomic_compare_exchange_weak(&r->tail, &pos, pos + 1)) {
                c->rec = rec;
                atomic_store(&c->turn, pos + 1);
                return true;
            }
        } else if ((ptrdiff_t)(turn - pos) < 0) {
            return false;
        } else {
            pos = atomic_load(&r->tail);
        }
    }
}

struct rec *ring_pop(struct ring *r)
{
    size_t pos = atomic_load(&r->head);
    struct ring_cell *c = &r->cells[pos & r->mask];
    if (atomic_load(&c->turn) != pos + 1)
        return NULL;
    struct rec *rec = c->rec;
    atomic_store(&r->head, pos + 1);
    atomic_store(&c->turn, pos + r->mask + 1);
    return rec;
}

bool ring_empty(struct ring *r)
{
    size_t pos = atomic_load(&r->head);
    return atomic_load(&r->cells[pos & r->mask].turn) != pos + 1;
}

size_t ring_used(const struct ring *r)
{
    size_t head = atomic_load(&r->head), tail = atomic_load(&r->tail);
    return tail > head ? tail - head : 0;
}
