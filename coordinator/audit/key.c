/* The key that signs checkpoints, and what checks them. */
#include <errno.h>
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
#include "coordinator/audit/audit_priv.h"

struct audit_key {
    EVP_PKEY *pkey;
    uint8_t pub[AUDIT_PUBLIC];
    char id[17];
};

static void key_id(const uint8_t pub[AUDIT_PUBLIC], char out[17])
{
    uint8_t h[CHAIN_HASH] = {0};
    unsigned n = 0;
    if (EVP_Digest(pub, AUDIT_PUBLIC, h, &n, EVP_sha256(), NULL) != 1)
        memset(h, 0, sizeof h);
    hex_encode(out, h, 8);
}

static int create(const char *path, struct err *e)
{
    EVP_PKEY *k = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    BIO *b = BIO_new(BIO_s_secmem());
    char *pem = NULL;
    int rc = ST_OK;
    if (!k || !b || PEM_write_bio_PKCS8PrivateKey(b, k, NULL, NULL, 0, NULL, NULL) != 1) {
        ERR_clear_error();
        rc = err_set(e, ST_EINTERNAL, "cannot make the audit key %s: OpenSSL refused", path);
    } else {
        long n = BIO_get_mem_data(b, &pem);
        rc = fs_write_atomic(path, pem, (size_t)n, 0600, e);
        OPENSSL_cleanse(pem, (size_t)n);
    }
    BIO_free(b);
    EVP_PKEY_free(k);
    return rc;
}

/* Written anew at each start when it is missing: losing it loses nothing. */
static int write_public(const struct audit_key *k, const char *path, struct err *e)
{
    char pub[1024], hex[2 * AUDIT_PUBLIC + 2];
    size_t n = strlen(path);
    if (n > 4 && !strcmp(path + n - 4, ".key"))
        n -= 4;
    if (n + 5 > sizeof pub)
        return err_set(e, ST_ELIMIT, "%s: the path of the audit key is too long", path);
    snprintf(pub, sizeof pub, "%.*s.pub", (int)n, path);
    hex_encode(hex, k->pub, AUDIT_PUBLIC);
    hex[2 * AUDIT_PUBLIC] = '\n';
    return fs_exists(pub) ? ST_OK : fs_write_atomic(pub, hex, 2 * AUDIT_PUBLIC + 1, 0644, e);
}

int audit_key_open(struct audit_key **out, const char *path, struct err *e)
{
    struct stat st;
    int rc = fs_exists(path) ? ST_OK : create(path, e);
    if (rc < 0)
        return rc;
    if (stat(path, &st))
        return err_errno(e, errno, "the audit key %s cannot be read", path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(e, ST_EDENIED, "the audit key %s can be read by others (mode %03o): chmod 600 it",
                       path, (unsigned)st.st_mode & 0777);
    struct audit_key *k = calloc(1, sizeof *k);
    if (!k)
        return err_set(e, ST_ENOMEM, "no memory for the audit key");
    BIO *b = BIO_new_file(path, "r");
    k->pkey = b ? PEM_read_bio_PrivateKey(b, NULL, NULL, (void *)"") : NULL;
    BIO_free(b);
    size_t n = sizeof k->pub;
    if (!k->pkey || !EVP_PKEY_is_a(k->pkey, "ED25519") ||
        EVP_PKEY_get_raw_public_key(k->pkey, k->pub, &n) != 1 || n != sizeof k->pub) {
        ERR_clear_error();
        audit_key_free(k);
        return err_set(
            e, ST_ETRUST,
            "%s is no Ed25519 private key in PEM: restore it, or move it away and a new one is made", path);
    }
    key_id(k->pub, k->id);
    rc = write_public(k, path, e);
    if (rc < 0) {
        audit_key_free(k);
        return rc;
    }
    *out = k;
    return ST_OK;
}

void audit_key_free(struct audit_key *k)
{
    if (!k)
        return;
    EVP_PKEY_free(k->pkey);
    free(k);
}

void audit_key_public(const struct audit_key *k, uint8_t out[AUDIT_PUBLIC])
{
    memcpy(out, k->pub, AUDIT_PUBLIC);
}

static int sign(void *arg, const uint8_t *msg, size_t n, uint8_t sig[256], size_t *sig_len)
{
    struct audit_key *k = arg;
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    *sig_len = 64;
    int ok = md && EVP_DigestSignInit(md, NULL, NULL, NULL, k->pkey) == 1 &&
             EVP_DigestSign(md, sig, sig_len, msg, n) == 1;
    EVP_MD_CTX_free(md);
    ERR_clear_error();
    return ok ? ST_OK : ST_EINTERNAL;
}

struct audit_signer audit_key_signer(struct audit_key *k)
{
    return (struct audit_signer){sign, k, k->id};
}

int audit_public_read(const char *path, uint8_t out[AUDIT_PUBLIC], struct err *e)
{
    struct buf b = {0};
    size_t n = 0;
    int rc = fs_read(path, 256, &b, e);
    if (rc == ST_OK) {
        char *s = (char *)(uintptr_t)buf_cstr(&b);
        s[strcspn(s, " \r\n")] = 0;
        if (hex_decode(out, AUDIT_PUBLIC, s, &n) < 0 || n != AUDIT_PUBLIC)
            rc =
                err_set(e, ST_EINVAL, "%s: is no public audit key: 64 hexadecimal digits are expected", path);
    }
    buf_fini(&b);
    return rc;
}

static bool check(void *arg, const char *id, const uint8_t *msg, size_t n, const uint8_t *sig, size_t sig_len)
{
    const uint8_t *pub = arg;
    char want[17];
    key_id(pub, want);
    if (strcmp(id, want) != 0 || sig_len != 64)
        return false;
    EVP_PKEY *k = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, pub, AUDIT_PUBLIC);
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    bool ok = k && md && EVP_DigestVerifyInit(md, NULL, NULL, NULL, k) == 1 &&
              EVP_DigestVerify(md, sig, sig_len, msg, n) == 1;
    EVP_MD_CTX_free(md);
    EVP_PKEY_free(k);
    ERR_clear_error();
    return ok;
}

struct audit_checker audit_checker_public(const uint8_t pub[AUDIT_PUBLIC])
{
    return (struct audit_checker){check, (void *)(uintptr_t)pub};
}

bool audit_head_ok(const uint8_t pub[AUDIT_PUBLIC], const struct audit_head *h)
{
    char text[160];
    return chain_checkpoint_text(text, sizeof text, h->size, h->head, h->ts_us) == ST_OK &&
           check((void *)(uintptr_t)pub, h->key_id, (const uint8_t *)text, strlen(text), h->sig, h->sig_len);
}
