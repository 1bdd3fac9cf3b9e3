/*
 * Places in a block of memory: first fit over a sorted list of free ranges that are joined again when their
 * neighbours come back. Knows nothing of devices. One thread at a time.
 */
#ifndef STRATA_GPU_SUBALLOC_H
#define STRATA_GPU_SUBALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct sub_range {
    uint64_t off, len;
};

struct suballoc {
    struct sub_range *v; /* free, sorted, never adjacent */
    size_t n, cap;
    uint64_t bytes;
};

int suballoc_init(struct suballoc *s, uint64_t bytes) ST_CHECK; /* ST_ENOMEM */
void suballoc_fini(struct suballoc *s);
/* ST_ERESOURCE: no free range is large enough; ST_ENOMEM. align is a power of two. On success giving the
 * range back cannot fail. */
int suballoc_take(struct suballoc *s, uint64_t len, uint64_t align, uint64_t *off) ST_CHECK;
void suballoc_give(struct suballoc *s, uint64_t off, uint64_t len);
bool suballoc_empty(const struct suballoc *s); /* nothing is taken */

#endif
