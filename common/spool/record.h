/*
 * Records of a node's audit spool, as they lie in its file and travel to the coordinator. Each carries its
 * sequence and SHA-256 over the hash before it, so that neither side can lose, change or reorder one unseen.
 * Pure; any thread.
 */
#ifndef STRATA_SPOOL_RECORD_H
#define STRATA_SPOOL_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/event/event.h"

#define SPOOL_HASH 32u
#define SPOOL_ID 8u
#define SPOOL_RECORD_HEAD 44u /* u32 length | u64 sequence | hash */

struct record {
    uint64_t seq;
    const uint8_t *hash, *event; /* into the bytes read */
    size_t len;
};

/* Appends a record and moves the hash on. */
int record_append(struct buf *out, uint8_t hash[SPOOL_HASH], uint64_t seq, const uint8_t *event,
                  size_t n) ST_CHECK;
/* Bytes of the record at p, 0 if there is no whole one that follows prev (NULL: not known). */
size_t record_read(const uint8_t *p, size_t n, const uint8_t prev[SPOOL_HASH], struct record *r);
/* Takes apart n bytes of records that follow one another: `hash` is that before the first, and becomes that
 * of the last. ST_ECORRUPT: something is left, or does not follow. fn's non-zero ends it and is returned. */
int records_each(const uint8_t *p, size_t n, uint8_t hash[SPOOL_HASH],
                 int (*fn)(void *arg, const struct record *r), void *arg) ST_CHECK;

#endif
