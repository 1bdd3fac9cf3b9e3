/*
 * Hash map from byte-string keys to pointers (SipHash-2-4 with a random seed, so peers cannot choose
 * collisions), open addressing. Keys are copied, values are borrowed. One thread at a time.
 */
#ifndef STRATA_BASE_MAP_H
#define STRATA_BASE_MAP_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/status.h"

struct map;

int map_new(struct map **out, const struct rng *rng) ST_CHECK;
void map_free(struct map *m); /* NULL is fine; values are not touched */
size_t map_count(const struct map *m);
void *map_get(const struct map *m, const void *key, size_t n);
/* Replaces; the previous value (or NULL) goes to *old when old is not NULL. */
int map_put(struct map *m, const void *key, size_t n, void *value, void **old) ST_CHECK;
void *map_del(struct map *m, const void *key, size_t n); /* the value removed, or NULL */
/* Visits all; the callback must not change the map. Stops at the first non-zero, which is returned. */
int map_each(const struct map *m, int (*fn)(const void *key, size_t n, void *value, void *arg), void *arg);

uint64_t siphash24(const uint8_t key[16], const void *data, size_t n);

#endif
