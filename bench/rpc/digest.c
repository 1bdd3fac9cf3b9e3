/* The SHA-256 behind a bulk transfer, as the rpc room has it, for all transports alike. */
#include <openssl/evp.h>
#include <string.h>

#include "bench/rpc/peer.h"

bool digest_start(struct digest *d, uint64_t bytes)
{
    if (!d->md && !(d->md = EVP_MD_CTX_new()))
        return false;
    d->left = bytes;
    d->nsent = 0;
    return EVP_DigestInit_ex(d->md, EVP_sha256(), NULL) == 1;
}

void digest_add(struct digest *d, const void *p, size_t n)
{
    if (d->md)
        (void)EVP_DigestUpdate(d->md, p, n);
}

void digest_end(struct digest *d, uint8_t out[DIGEST_LEN])
{
    (void)EVP_DigestFinal_ex(d->md, out, NULL);
}

size_t digest_take(struct digest *d, const uint8_t *p, size_t n, bool *bad)
{
    uint8_t is[DIGEST_LEN];
    if (!d->md)
        return n;
    size_t body = n < d->left ? n : (size_t)d->left, rest = n - body;
    digest_add(d, p, body);
    d->left -= body;
    if (rest > sizeof d->sent - d->nsent) {
        *bad = true;
        return body;
    }
    memcpy(d->sent + d->nsent, p + body, rest);
    d->nsent += rest;
    if (d->nsent == sizeof d->sent) {
        digest_end(d, is);
        *bad = memcmp(is, d->sent, sizeof is) != 0;
    }
    return body;
}

void digest_fini(struct digest *d)
{
    EVP_MD_CTX_free(d->md);
    d->md = NULL;
}
