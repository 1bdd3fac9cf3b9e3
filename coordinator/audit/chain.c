#include "coordinator/audit/chain.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "common/base/str.h"

#define LABEL "strata-audit-1"

int chain_init(struct chain *c)
{
    memset(c, 0, sizeof *c);
    c->md = EVP_MD_CTX_new();
    return c->md ? ST_OK : ST_ENOMEM;
}

void chain_fini(struct chain *c)
{
    EVP_MD_CTX_free(c->md);
    buf_fini(&c->row);
    c->md = NULL;
}

static void put_i64(uint8_t *p, int64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)v >> (8 * i));
}

static int update(struct chain *c, const void *p, size_t n)
{
    return EVP_DigestUpdate(c->md, p, n) == 1 ? ST_OK : ST_EINTERNAL;
}

int chain_begin(struct chain *c, const uint8_t prev[CHAIN_HASH], int64_t first, int64_t last, int64_t ts_min,
                int64_t ts_max)
{
    uint8_t head[sizeof LABEL - 1 + CHAIN_HASH + 32], *p = head;
    memcpy(p, LABEL, sizeof LABEL - 1);
    p += sizeof LABEL - 1;
    memcpy(p, prev, CHAIN_HASH);
    p += CHAIN_HASH;
    put_i64(p, first);
    put_i64(p + 8, last);
    put_i64(p + 16, ts_min);
    put_i64(p + 24, ts_max);
    if (EVP_DigestInit_ex(c->md, EVP_sha256(), NULL) != 1)
        return ST_EINTERNAL;
    return update(c, head, sizeof head);
}

int chain_add(struct chain *c, const struct chain_row *r)
{
    uint8_t head[40], len[4];
    put_i64(head, r->id);
    put_i64(head + 8, r->ts_us);
    put_i64(head + 16, r->event);
    put_i64(head + 24, r->severity);
    put_i64(head + 32, r->result);
    c->row.len = 0;
    int rc = buf_append(&c->row, head, sizeof head);
    for (unsigned i = 0; rc == ST_OK && i < CHAIN_STRINGS; i++) {
        for (int k = 0; k < 4; k++)
            len[k] = (uint8_t)(r->s[i].n >> (8 * k));
        rc = buf_append(&c->row, len, 4);
        if (rc == ST_OK)
            rc = buf_append(&c->row, r->s[i].p, r->s[i].n);
    }
    return rc == ST_OK ? update(c, c->row.data, c->row.len) : rc;
}

int chain_end(struct chain *c, uint8_t hash[CHAIN_HASH])
{
    unsigned n = 0;
    return EVP_DigestFinal_ex(c->md, hash, &n) == 1 && n == CHAIN_HASH ? ST_OK : ST_EINTERNAL;
}

int chain_checkpoint_text(char *out, size_t cap, int64_t size, const uint8_t head[CHAIN_HASH], int64_t ts_us)
{
    char hex[2 * CHAIN_HASH + 1];
    hex_encode(hex, head, CHAIN_HASH);
    int n = snprintf(out, cap, "strata-audit-checkpoint/1\n%lld\n%s\n%lld\n", (long long)size, hex,
                     (long long)ts_us);
    return n > 0 && (size_t)n < cap ? ST_OK : ST_ELIMIT;
}
