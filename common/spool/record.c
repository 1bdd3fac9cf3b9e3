/* One record: u32 length | u64 sequence | SHA-256("strata-spool-1" | hash before | sequence | event) | event.
 */
#include "common/spool/record.h"

#include <openssl/evp.h>
#include <string.h>

#define LABEL "strata-spool-1"

static void put_le(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static int record_hash(const uint8_t prev[SPOOL_HASH], uint64_t seq, const uint8_t *event, size_t n,
                       uint8_t out[SPOOL_HASH])
{
    uint8_t head[sizeof LABEL - 1 + SPOOL_HASH + 8];
    unsigned len = 0;
    memcpy(head, LABEL, sizeof LABEL - 1);
    memcpy(head + sizeof LABEL - 1, prev, SPOOL_HASH);
    put_le(head + sizeof LABEL - 1 + SPOOL_HASH, seq, 8);
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int ok = md && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1 &&
             EVP_DigestUpdate(md, head, sizeof head) == 1 && EVP_DigestUpdate(md, event, n) == 1 &&
             EVP_DigestFinal_ex(md, out, &len) == 1;
    EVP_MD_CTX_free(md);
    return ok && len == SPOOL_HASH ? ST_OK : ST_ENOMEM;
}

int record_append(struct buf *out, uint8_t hash[SPOOL_HASH], uint64_t seq, const uint8_t *event, size_t n)
{
    uint8_t head[SPOOL_RECORD_HEAD], next[SPOOL_HASH];
    int rc = record_hash(hash, seq, event, n, next);
    if (rc == ST_OK)
        rc = buf_reserve(out, sizeof head + n);
    if (rc < 0)
        return rc;
    put_le(head, n, 4);
    put_le(head + 4, seq, 8);
    memcpy(head + 12, next, SPOOL_HASH);
    memcpy(hash, next, SPOOL_HASH);
    rc = buf_append(out, head, sizeof head);
    return rc == ST_OK ? buf_append(out, event, n) : rc;
}

size_t record_read(const uint8_t *p, size_t n, const uint8_t prev[SPOOL_HASH], struct record *r)
{
    uint8_t want[SPOOL_HASH];
    if (n < SPOOL_RECORD_HEAD)
        return 0;
    size_t len = (size_t)get_le(p, 4);
    if (len == 0 || len > EVENT_ENCODED_MAX || n - SPOOL_RECORD_HEAD < len)
        return 0;
    *r = (struct record){.seq = get_le(p + 4, 8), .hash = p + 12, .event = p + SPOOL_RECORD_HEAD, .len = len};
    if (prev &&
        (record_hash(prev, r->seq, r->event, len, want) < 0 || memcmp(want, r->hash, SPOOL_HASH) != 0))
        return 0;
    return SPOOL_RECORD_HEAD + len;
}

int records_each(const uint8_t *p, size_t n, uint8_t hash[SPOOL_HASH],
                 int (*fn)(void *arg, const struct record *r), void *arg)
{
    uint64_t last = 0;
    while (n) {
        struct record r;
        size_t used = record_read(p, n, hash, &r);
        if (!used || r.seq == 0 || (last && r.seq != last + 1))
            return ST_ECORRUPT;
        int rc = fn(arg, &r);
        if (rc)
            return rc;
        memcpy(hash, r.hash, SPOOL_HASH);
        last = r.seq;
        p += used;
        n -= used;
    }
    return ST_OK;
}
