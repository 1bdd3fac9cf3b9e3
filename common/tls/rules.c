/* Revocations in a map, pins in a list: there are few of them and each may be a pattern. */
#include "common/tls/rules.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"

struct pin {
    char subject[80];
    uint8_t sha256[32];
};

struct tls_rules {
    unsigned refs;
    const struct rng *rng;
    struct map *revoked; /* "<kind>:<value>" → itself, any non-NULL */
    struct pin *pins;
    size_t npins, cap;
    const char *(*pool_of)(void *arg, const char *principal);
    void *pool_arg;
};

int tls_rules_new(struct tls_rules **out, const struct rng *rng)
{
    struct tls_rules *r = calloc(1, sizeof *r);
    if (!r)
        return ST_ENOMEM;
    if (map_new(&r->revoked, rng) < 0) {
        free(r);
        return ST_ENOMEM;
    }
    r->refs = 1;
    r->rng = rng;
    *out = r;
    return ST_OK;
}

struct tls_rules *tls_rules_ref(struct tls_rules *r)
{
    if (r)
        r->refs++;
    return r;
}

void tls_rules_unref(struct tls_rules *r)
{
    if (!r || --r->refs)
        return;
    map_free(r->revoked);
    free(r->pins);
    free(r);
}

struct found {
    const void *key;
    size_t n;
};

static int any(const void *key, size_t n, void *value, void *arg)
{
    struct found *f = arg;
    (void)value;
    *f = (struct found){key, n};
    return 1;
}

void tls_rules_clear(struct tls_rules *r)
{
    struct found f;
    char key[120];
    while (map_each(r->revoked, any, &f) && f.n <= sizeof key) {
        memcpy(key, f.key, f.n);
        map_del(r->revoked, key, f.n);
    }
    r->npins = 0;
}

const char *tls_revoked_name(enum tls_revoked kind)
{
    static const char *const name[] = {"serial", "identity", "key"};
    return name[kind];
}

static int parse_hex(const char *text, char *out, size_t min, size_t max)
{
    size_t n = 0;
    for (; *text; text++) {
        char c = *text >= 'A' && *text <= 'F' ? (char)(*text + 32) : *text;
        if (c == ':')
            continue;
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')) || n == max)
            return ST_EINVAL;
        out[n++] = c;
    }
    out[n] = 0;
    return n >= min && n % 2 == 0 ? ST_OK : ST_EINVAL;
}

int tls_revoked_parse(enum tls_revoked kind, const char *text, char out[80], struct err *e)
{
    uint8_t sha[32];
    if (kind == TLS_REVOKED_SERIAL)
        return parse_hex(text, out, 2, 40) == ST_OK
                   ? ST_OK
                   : err_reason(e, ST_EINVAL, "BAD_VALUE",
                                "'%.100s' is no serial number: want its bytes in hex", text);
    if (kind == TLS_REVOKED_KEY) {
        int rc = tls_pin_parse(text, sha, e);
        if (rc == ST_OK)
            hex_encode(out, sha, 32);
        return rc;
    }
    const char *name = str_starts(text, "node/") || str_starts(text, "user/") ? text + 5 : NULL;
    if (name && str_ident_ok(name, 63) && str_copy(out, 80, text))
        return ST_OK;
    return err_reason(e, ST_EINVAL, "BAD_VALUE", "'%.100s' is no identity: want user/NAME or node/NAME",
                      text);
}

static size_t key_of(char out[120], enum tls_revoked kind, const char *value)
{
    int n = snprintf(out, 120, "%s:%.100s", tls_revoked_name(kind), value);
    return (size_t)n;
}

int tls_rules_revoke(struct tls_rules *r, enum tls_revoked kind, const char *value)
{
    char key[120];
    return map_put(r->revoked, key, key_of(key, kind, value), r, NULL);
}

void tls_rules_restore(struct tls_rules *r, enum tls_revoked kind, const char *value)
{
    char key[120];
    map_del(r->revoked, key, key_of(key, kind, value));
}

int tls_pin_parse(const char *text, uint8_t out[32], struct err *e)
{
    char hex[65];
    uint8_t raw[48];
    size_t n;
    const char *p = str_starts(text, "sha256:") ? text + 7 : text;
    if (str_starts(text, "sha256/") && strlen(text + 7) == 44 && text[7 + 43] == '=' && text[7 + 42] != '=' &&
        EVP_DecodeBlock(raw, (const unsigned char *)text + 7, 44) == 33) {
        memcpy(out, raw, 32);
        return ST_OK;
    }
    if (parse_hex(p, hex, 64, 64) == ST_OK && hex_decode(out, 32, hex, &n) == ST_OK && n == 32)
        return ST_OK;
    return err_reason(e, ST_EINVAL, "BAD_PIN",
                      "'%.100s' is no pin: want sha256:<64 hex digits> or sha256/<base64>", text);
}

int tls_rules_pin(struct tls_rules *r, const char *subject, const uint8_t sha256[32])
{
    tls_rules_unpin(r, subject, sha256);
    if (r->npins == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 16;
        struct pin *v = realloc(r->pins, cap * sizeof *v);
        if (!v)
            return ST_ENOMEM;
        r->pins = v;
        r->cap = cap;
    }
    struct pin *p = &r->pins[r->npins];
    if (!str_copy(p->subject, sizeof p->subject, subject))
        return ST_EINVAL;
    memcpy(p->sha256, sha256, 32);
    r->npins++;
    return ST_OK;
}

void tls_rules_unpin(struct tls_rules *r, const char *subject, const uint8_t sha256[32])
{
    for (size_t i = 0; i < r->npins; i++)
        if (!strcmp(r->pins[i].subject, subject) && !memcmp(r->pins[i].sha256, sha256, 32)) {
            r->pins[i] = r->pins[--r->npins];
            return;
        }
}

void tls_rules_pools(struct tls_rules *r, const char *(*pool_of)(void *arg, const char *principal), void *arg)
{
    r->pool_of = pool_of;
    r->pool_arg = arg;
}

static bool revoked(const struct tls_rules *r, enum tls_revoked kind, const char *value)
{
    char key[120];
    return map_get(r->revoked, key, key_of(key, kind, value)) != NULL;
}

static int check_pins(const struct tls_rules *r, const struct tls_identity *id, struct err *e)
{
    const char *pool = r->pool_of ? r->pool_of(r->pool_arg, id->principal) : NULL, *by = NULL;
    char in_pool[80] = "", hex[65];
    if (pool && *pool)
        snprintf(in_pool, sizeof in_pool, "pool/%s", pool);
    for (size_t i = 0; i < r->npins; i++) {
        const struct pin *p = &r->pins[i];
        if (!str_glob(p->subject, id->principal) && !(in_pool[0] && str_glob(p->subject, in_pool)))
            continue;
        if (!memcmp(p->sha256, id->spki_sha256, 32) || !memcmp(p->sha256, id->cert_sha256, 32))
            return ST_OK;
        by = p->subject;
    }
    if (!by)
        return ST_OK;
    hex_encode(hex, id->spki_sha256, 32);
    return err_reason(
        e, ST_ETRUST, "PIN_MISMATCH",
        "%s showed the key sha256:%s, which is none of the pins set for %s: another machine, or "
        "a new key that must be pinned first",
        id->principal, hex, by);
}

int tls_rules_check(const struct tls_rules *r, const struct tls_identity *id, struct err *e)
{
    char hex[65];
    hex_encode(hex, id->spki_sha256, 32);
    const struct {
        enum tls_revoked kind;
        const char *value;
    } one[] = {
        {TLS_REVOKED_SERIAL, id->serial}, {TLS_REVOKED_IDENTITY, id->principal}, {TLS_REVOKED_KEY, hex}};
    for (size_t i = 0; i < sizeof one / sizeof *one; i++)
        if (revoked(r, one[i].kind, one[i].value))
            return err_reason(e, ST_ETRUST, "REVOKED",
                              "the certificate of %s (serial %s) is revoked by its %s: enrol it anew",
                              id->principal, id->serial, tls_revoked_name(one[i].kind));
    return check_pins(r, id, e);
}
