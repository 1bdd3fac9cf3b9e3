/* Encoding, signing and verifying of tickets. */
#include "common/ticket/ticket.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/fs.h"
#include "common/base/str.h"

#define SIG_LEN 64
#define FIXED_LEN (3 + 1 + 1 + TICKET_SERIAL_LEN + 32 + 3 * 8)

enum { VERSION_PLAIN = 1, VERSION_GRANT = 2 };

static const uint8_t magic[3] = {'S', 'T', 'K'};
static const char prefix[] = "strata ticket v1"; /* signed with its NUL */

struct ticket_key {
    EVP_PKEY *pkey;
    uint8_t pub[TICKET_PUB_LEN];
};

int ticket_key_create(const char *path, struct err *e)
{
    if (fs_exists(path))
        return err_set(e, ST_EEXIST, "%s is there already: keep it, or move it away to make a new ticket key",
                       path);
    EVP_PKEY *k = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    BIO *b = BIO_new(BIO_s_secmem());
    char *pem = NULL;
    int rc = ST_OK;
    if (!k || !b || PEM_write_bio_PKCS8PrivateKey(b, k, NULL, NULL, 0, NULL, NULL) != 1) {
        ERR_clear_error();
        rc = err_set(e, ST_EINTERNAL, "cannot make the ticket key %s: OpenSSL refused", path);
    } else {
        long n = BIO_get_mem_data(b, &pem);
        rc = fs_write_atomic(path, pem, (size_t)n, 0600, e);
        OPENSSL_cleanse(pem, (size_t)n);
    }
    BIO_free(b);
    EVP_PKEY_free(k);
    return rc;
}

int ticket_key_load(struct ticket_key **out, const char *path, struct err *e)
{
    struct stat st;
    if (stat(path, &st))
        return err_set(e, ST_ENOENT, "cannot open the ticket key %s: strata init makes one", path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(e, ST_EDENIED, "the ticket key %s can be read by others (mode %03o): chmod 600 it",
                       path, (unsigned)st.st_mode & 0777);
    struct ticket_key *k = calloc(1, sizeof *k);
    if (!k)
        return err_set(e, ST_ENOMEM, "no memory for the ticket key");
    BIO *b = BIO_new_file(path, "r");
    k->pkey = b ? PEM_read_bio_PrivateKey(b, NULL, NULL, (void *)"") : NULL;
    BIO_free(b);
    size_t n = sizeof k->pub;
    if (!k->pkey || !EVP_PKEY_is_a(k->pkey, "ED25519") ||
        EVP_PKEY_get_raw_public_key(k->pkey, k->pub, &n) != 1 || n != sizeof k->pub) {
        ERR_clear_error();
        ticket_key_free(k);
        return err_set(e, ST_ETRUST, "%s is no Ed25519 private key in PEM: move it away and run strata init",
                       path);
    }
    *out = k;
    return ST_OK;
}

void ticket_key_free(struct ticket_key *k)
{
    if (!k)
        return;
    EVP_PKEY_free(k->pkey);
    free(k);
}

void ticket_key_public(const struct ticket_key *k, uint8_t out[TICKET_PUB_LEN])
{
    memcpy(out, k->pub, TICKET_PUB_LEN);
}

void ticket_serial(const struct rng *rng, uint8_t out[TICKET_SERIAL_LEN])
{
    rng->fill(rng->arg, out, TICKET_SERIAL_LEN);
}

static bool printable(const char *s)
{
    for (; *s; s++)
        if (*s <= ' ' || *s > '~')
            return false;
    return true;
}

static const char *fault_of_grant(const struct ticket_grant *g)
{
    static const uint8_t zero[TICKET_SESSION_LEN];
    if (g->permissions & ~(PERM_ALL14 | PERM_BIT(PERM_ADMIN)))
        return "it grants permissions that do not exist";
    if (!g->permissions)
        return "it grants nothing";
    if (!memcmp(g->session, zero, sizeof zero))
        return "it names no session";
    if (!*g->principal || !printable(g->principal))
        return "its principal is missing or not printable ASCII";
    if (g->n_devices == 0 || g->n_devices > TICKET_DEVICES_MAX)
        return "it names no device, or too many";
    for (unsigned i = 0; i < g->n_devices; i++)
        if (!*g->devices[i] || !printable(g->devices[i]) || strchr(g->devices[i], '/'))
            return "one of its devices is no pattern over this node's devices";
    return NULL;
}

/* The one rule book for both sides; NULL = fine. */
static const char *fault_of(const struct ticket *t)
{
    if (t->purpose < TICKET_DEVICE || t->purpose > TICKET_BENCH)
        return "its purpose is unknown";
    if (!str_ident_ok(t->node, TICKET_NODE_MAX))
        return "its node name is not valid";
    if (!*t->resource)
        return "it names no resource";
    if (!printable(t->resource))
        return "its resource has characters other than printable ASCII";
    if (t->issued_us < 0 || t->expires_us <= t->issued_us)
        return "it ends before it begins";
    if (t->expires_us - t->issued_us > TICKET_MAX_LIFE_US)
        return "it lives longer than a day";
    return t->purpose == TICKET_DEVICE ? fault_of_grant(&t->grant) : NULL;
}

static uint8_t *put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 3; i >= 0; i--)
        *p++ = (uint8_t)(v >> (8 * i));
    return p;
}

static uint8_t *put_u64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--)
        *p++ = (uint8_t)(v >> (8 * i));
    return p;
}

static uint64_t get_u64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

static uint8_t *put_str(uint8_t *p, const char *s)
{
    size_t n = strlen(s);
    *p++ = (uint8_t)n;
    memcpy(p, s, n);
    return p + n;
}

static uint8_t *put_grant(uint8_t *p, const struct ticket_grant *g)
{
    p = put_u32(p, g->permissions);
    p = put_u64(p, g->generation);
    memcpy(p, g->session, sizeof g->session);
    p = put_str(p + sizeof g->session, g->principal);
    *p++ = (uint8_t)g->n_devices;
    for (unsigned i = 0; i < g->n_devices; i++)
        p = put_str(p, g->devices[i]);
    return p;
}

/* Everything but the signature. */
static size_t encode(const struct ticket *t, uint8_t *out)
{
    uint8_t *p = out;
    memcpy(p, magic, sizeof magic);
    p += sizeof magic;
    *p++ = t->purpose == TICKET_DEVICE ? VERSION_GRANT : VERSION_PLAIN;
    *p++ = (uint8_t)t->purpose;
    memcpy(p, t->serial, sizeof t->serial);
    p += sizeof t->serial;
    memcpy(p, t->holder, sizeof t->holder);
    p += sizeof t->holder;
    p = put_u64(p, t->limit_bytes);
    p = put_u64(p, (uint64_t)t->issued_us);
    p = put_u64(p, (uint64_t)t->expires_us);
    p = put_str(p, t->node);
    p = put_str(p, t->resource);
    if (t->purpose == TICKET_DEVICE)
        p = put_grant(p, &t->grant);
    return (size_t)(p - out);
}

/* prefix ‖ body into msg, which both sides sign. */
static size_t message(uint8_t msg[sizeof prefix + TICKET_MAX], const uint8_t *body, size_t n)
{
    memcpy(msg, prefix, sizeof prefix);
    memcpy(msg + sizeof prefix, body, n);
    return sizeof prefix + n;
}

int ticket_sign(const struct ticket_key *k, const struct ticket *t, uint8_t out[TICKET_MAX], size_t *n,
                struct err *e)
{
    const char *fault = fault_of(t);
    if (fault)
        return err_set(e, ST_EINVAL, "cannot sign the ticket for '%s' on '%s': %s", t->resource, t->node,
                       fault);
    uint8_t msg[sizeof prefix + TICKET_MAX];
    size_t body = encode(t, out), sig = SIG_LEN, m = message(msg, out, body);
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    bool ok = md && EVP_DigestSignInit(md, NULL, NULL, NULL, k->pkey) == 1 &&
              EVP_DigestSign(md, out + body, &sig, msg, m) == 1 && sig == SIG_LEN;
    EVP_MD_CTX_free(md);
    if (!ok) {
        ERR_clear_error();
        return err_set(e, ST_EINTERNAL, "cannot sign the ticket for '%s': OpenSSL refused", t->resource);
    }
    *n = body + SIG_LEN;
    return ST_OK;
}

/* A length byte and that many characters at *at, none of them NUL. */
static bool take_str(const uint8_t *p, size_t end, size_t *at, char *out, size_t max)
{
    if (*at >= end)
        return false;
    size_t n = p[(*at)++];
    if (n > max || n > end - *at || memchr(p + *at, 0, n))
        return false;
    memcpy(out, p + *at, n);
    out[n] = 0;
    *at += n;
    return true;
}

static bool take_grant(const uint8_t *p, size_t end, size_t *at, struct ticket_grant *g)
{
    if (end - *at < 4 + 8 + TICKET_SESSION_LEN)
        return false;
    p += *at;
    g->permissions = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    g->generation = get_u64(p + 4);
    memcpy(g->session, p + 12, TICKET_SESSION_LEN);
    p -= *at;
    *at += 12 + TICKET_SESSION_LEN;
    if (!take_str(p, end, at, g->principal, TICKET_PRINCIPAL_MAX) || *at >= end)
        return false;
    g->n_devices = p[(*at)++];
    if (g->n_devices > TICKET_DEVICES_MAX)
        return false;
    for (unsigned i = 0; i < g->n_devices; i++)
        if (!take_str(p, end, at, g->devices[i], TICKET_DEVICE_MAX))
            return false;
    return true;
}

int ticket_decode(const uint8_t *p, size_t n, struct ticket *out, struct err *e)
{
    struct ticket t = {0};
    const char *fault = "it is cut short or too long";
    if (n < FIXED_LEN + 2 + SIG_LEN || n > TICKET_MAX)
        goto bad;
    fault = "it is no ticket of a version that is known here";
    size_t at = sizeof magic, end = n - SIG_LEN;
    unsigned version = p[at++];
    t.purpose = (enum ticket_purpose)p[at++];
    if (memcmp(p, magic, sizeof magic) ||
        version != (t.purpose == TICKET_DEVICE ? VERSION_GRANT : VERSION_PLAIN))
        goto bad;
    memcpy(t.serial, p + at, sizeof t.serial);
    at += sizeof t.serial;
    memcpy(t.holder, p + at, sizeof t.holder);
    at += sizeof t.holder;
    t.limit_bytes = get_u64(p + at);
    uint64_t from = get_u64(p + at + 8), to = get_u64(p + at + 16);
    at += 24;
    fault = "its times or names are out of bounds";
    if (from > INT64_MAX || to > INT64_MAX)
        goto bad;
    t.issued_us = (int64_t)from;
    t.expires_us = (int64_t)to;
    if (!take_str(p, end, &at, t.node, TICKET_NODE_MAX) ||
        !take_str(p, end, &at, t.resource, TICKET_RESOURCE_MAX) ||
        (version == VERSION_GRANT && !take_grant(p, end, &at, &t.grant)) || at != end)
        goto bad;
    if ((fault = fault_of(&t)))
        goto bad;
    *out = t;
    return ST_OK;
bad:
    return err_reason(e, ST_ECORRUPT, "TICKET_FORGED", "the ticket is malformed: %s", fault);
}

static bool signed_by(const uint8_t pub[TICKET_PUB_LEN], const uint8_t *p, size_t n)
{
    uint8_t msg[sizeof prefix + TICKET_MAX];
    size_t m = message(msg, p, n - SIG_LEN);
    EVP_PKEY *k = EVP_PKEY_new_raw_public_key_ex(NULL, "ED25519", NULL, pub, TICKET_PUB_LEN);
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    bool ok = k && md && EVP_DigestVerifyInit(md, NULL, NULL, NULL, k) == 1 &&
              EVP_DigestVerify(md, p + n - SIG_LEN, SIG_LEN, msg, m) == 1;
    EVP_MD_CTX_free(md);
    EVP_PKEY_free(k);
    ERR_clear_error();
    return ok;
}

int ticket_verify(const uint8_t pub[TICKET_PUB_LEN], const uint8_t *p, size_t n, int64_t now_us,
                  const char *node, const uint8_t spki_sha256[32], struct ticket *out, struct err *e)
{
    struct ticket t;
    if (ticket_decode(p, n, &t, e) < 0)
        return e ? e->code = ST_ETRUST : ST_ETRUST;
    if (!signed_by(pub, p, n))
        return err_reason(
            e, ST_ETRUST, "TICKET_FORGED",
            "the ticket for '%s' was not signed by this cluster's coordinator: ask it for a new one",
            t.resource);
    if (strcmp(t.node, node))
        return err_reason(e, ST_ETRUST, "TICKET_WRONG_NODE", "the ticket is for node %s and this is %s",
                          t.node, node);
    if (CRYPTO_memcmp(t.holder, spki_sha256, sizeof t.holder))
        return err_reason(e, ST_ETRUST, "TICKET_WRONG_HOLDER",
                          "the ticket for '%s' belongs to another certificate: ask for one with your own",
                          t.resource);
    if (t.issued_us - TICKET_SKEW_US > now_us)
        return err_reason(
            e, ST_ETRUST, "TICKET_NOT_YET_VALID",
            "the ticket for '%s' begins in the future: are the clocks of %s and the coordinator right?",
            t.resource, node);
    if (now_us >= t.expires_us)
        return err_reason(e, ST_ETRUST, "TICKET_EXPIRED",
                          "the ticket for '%s' has expired: ask the coordinator for a new one", t.resource);
    *out = t;
    return ST_OK;
}

bool ticket_grants(const struct ticket *t, enum permission p)
{
    return t->purpose == TICKET_DEVICE && p < PERM_COUNT &&
           t->grant.permissions & (PERM_BIT(p) | PERM_BIT(PERM_ADMIN));
}

bool ticket_device_ok(const struct ticket *t, const char *device)
{
    if (t->purpose != TICKET_DEVICE)
        return false;
    for (unsigned i = 0; i < t->grant.n_devices; i++)
        if (str_glob(t->grant.devices[i], device))
            return true;
    return false;
}
