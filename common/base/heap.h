/*
 * Intrusive binary min-heap on a u64 key (a deadline, usually). Nodes live in their owners; the heap holds
 * pointers to them. One thread at a time.
 */
#ifndef STRATA_BASE_HEAP_H
#define STRATA_BASE_HEAP_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct heap_node {
    uint64_t key;
    size_t pos; /* 0 = not in a heap */
};
struct heap {
    struct heap_node **v; /* 1-based */
    size_t n, cap;
};

void heap_fini(struct heap *h);
int heap_add(struct heap *h, struct heap_node *x) ST_CHECK;               /* x must not be in a heap */
void heap_del(struct heap *h, struct heap_node *x);                       /* fine if x is in none */
int heap_set(struct heap *h, struct heap_node *x, uint64_t key) ST_CHECK; /* adds or moves */
struct heap_node *heap_top(const struct heap *h);                         /* NULL when empty */

#endif
