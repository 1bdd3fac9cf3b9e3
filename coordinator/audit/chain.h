/*
 * The hash chain. A batch's hash is SHA-256 over
 *   "strata-audit-1" | previous hash | first id | last id | earliest time | latest time | rows…
 * and a row is id | time | event number | severity | result | eight times (u32 length | bytes), the strings
 * in the order principal, device, node, session, job, operation, error, meta; integers are 64-bit
 * little-endian. An absent string has length 0. The bytes are hashed as they stand in the file: nothing is
 * normalised before.
 */
#ifndef STRATA_AUDIT_CHAIN_H
#define STRATA_AUDIT_CHAIN_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

#define CHAIN_HASH 32u
#define CHAIN_STRINGS 8u

struct chain_row {
    int64_t id, ts_us, event, severity, result;
    struct {
        const char *p;
        size_t n;
    } s[CHAIN_STRINGS];
};

struct chain {
    void *md; /* EVP_MD_CTX */
    struct buf row;
};

int chain_init(struct chain *c) ST_CHECK;
void chain_fini(struct chain *c);
int chain_begin(struct chain *c, const uint8_t prev[CHAIN_HASH], int64_t first, int64_t last, int64_t ts_min,
                int64_t ts_max) ST_CHECK;
int chain_add(struct chain *c, const struct chain_row *r) ST_CHECK;
int chain_end(struct chain *c, uint8_t hash[CHAIN_HASH]) ST_CHECK;

/* What a checkpoint's signature is over. */
int chain_checkpoint_text(char *out, size_t cap, int64_t size, const uint8_t head[CHAIN_HASH],
                          int64_t ts_us) ST_CHECK;

#endif
