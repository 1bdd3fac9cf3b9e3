/* The cluster's own certificate authority: a P-256 or Ed25519 key, one level, leaves with a SPIFFE id. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/ca_priv.h"

int ca_openssl_failed(struct err *e, const char *what)
{
    char why[128];
    return err_set(e, ST_EINTERNAL, "cannot make %s: %s", what, tls_why(why, sizeof why));
}

bool ca_set_serial(X509 *x)
{
    unsigned char r[16];
    if (RAND_bytes(r, sizeof r) != 1)
        return false;
    r[0] &= 0x7f;
    r[0] |= 0x40; /* positive, and always 16 bytes long */
    BIGNUM *bn = BN_bin2bn(r, sizeof r, NULL);
    bool ok = bn && BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(x));
    BN_free(bn);
    return ok;
}

bool ca_add_ext(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX c;
    X509V3_set_ctx(&c, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &c, nid, value);
    bool ok = ext && X509_add_ext(x, ext, -1);
    X509_EXTENSION_free(ext);
    return ok;
}

bool ca_set_times(X509 *x, int64_t from_us, int64_t to_us)
{
    return ASN1_TIME_set(X509_getm_notBefore(x), (time_t)(from_us / 1000000)) &&
           ASN1_TIME_set(X509_getm_notAfter(x), (time_t)(to_us / 1000000));
}

bool ca_set_cn(X509_NAME *n, const char *cn)
{
    return X509_NAME_add_entry_by_txt(n, "O", MBSTRING_ASC, (const unsigned char *)"strata", -1, -1, 0) &&
           X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1, -1, 0);
}

int ca_sign(X509 *x, EVP_PKEY *key)
{
    return X509_sign(x, key, EVP_PKEY_is_a(key, "ED25519") ? NULL : EVP_sha256());
}

int ca_write_key(EVP_PKEY *key, const char *passphrase, const char *path, struct err *e)
{
    BIO *b = BIO_new(BIO_s_secmem());
    char *p = NULL;
    int rc;
    if (!b || !PEM_write_bio_PKCS8PrivateKey(b, key, passphrase ? EVP_aes_256_cbc() : NULL, passphrase,
                                             passphrase ? (int)strlen(passphrase) : 0, NULL, NULL)) {
        rc = ca_openssl_failed(e, "the key's PEM file");
    } else {
        long n = BIO_get_mem_data(b, &p);
        rc = fs_write_atomic(path, p, (size_t)n, 0600, e);
        OPENSSL_cleanse(p, (size_t)n);
    }
    BIO_free(b);
    return rc;
}

int ca_append_cert(X509 *x, struct buf *pem, struct err *e)
{
    BIO *b = BIO_new(BIO_s_mem());
    char *p = NULL;
    int rc;
    if (!b || !PEM_write_bio_X509(b, x)) {
        rc = ca_openssl_failed(e, "the certificate's PEM");
    } else {
        long n = BIO_get_mem_data(b, &p);
        rc = buf_append(pem, p, (size_t)n) < 0 ? err_set(e, ST_ENOMEM, "no memory") : ST_OK;
    }
    BIO_free(b);
    return rc;
}

int ca_write_certs(X509 *const *v, size_t n, const char *path, struct err *e)
{
    struct buf pem = {0};
    int rc = ST_OK;
    for (size_t i = 0; i < n && rc == ST_OK; i++)
        rc = v[i] ? ca_append_cert(v[i], &pem, e) : ST_OK;
    if (rc == ST_OK)
        rc = fs_write_atomic(path, pem.data, pem.len, 0644, e);
    buf_fini(&pem);
    return rc;
}

X509 *ca_self_signed(EVP_PKEY *key, const char *trust_domain, int64_t from_us, int64_t to_us, struct err *e)
{
    char cn[192], id[256], tag[9];
    uint8_t r[4];
    X509 *x = X509_new();
    /* A name of its own for each CA: two that follow one another must not be taken for the same issuer. */
    bool ok = RAND_bytes(r, sizeof r) == 1;
    hex_encode(tag, r, sizeof r);
    snprintf(cn, sizeof cn, "strata CA %s %s", trust_domain, tag);
    snprintf(id, sizeof id, "URI:spiffe://%s", trust_domain);
    if (!ok || !x || !X509_set_version(x, X509_VERSION_3) || !ca_set_serial(x) ||
        !ca_set_times(x, from_us, to_us) || !ca_set_cn(X509_get_subject_name(x), cn) ||
        !X509_set_issuer_name(x, X509_get_subject_name(x)) || !X509_set_pubkey(x, key) ||
        !ca_add_ext(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:1") ||
        !ca_add_ext(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") ||
        !ca_add_ext(x, x, NID_subject_key_identifier, "hash") ||
        !ca_add_ext(x, x, NID_subject_alt_name, id) || !ca_sign(x, key)) {
        X509_free(x);
        (void)ca_openssl_failed(e, "the CA certificate");
        return NULL;
    }
    return x;
}

int tls_ca_make(const char *dir, const struct tls_ca_opts *o, const struct clock *clock, struct err *e)
{
    char crt[4096], keyf[4096], id[256];
    struct tls_identity probe;
    snprintf(id, sizeof id, "spiffe://%s/coordinator", o->trust_domain);
    if (tls_identity_parse(id, &probe, NULL) < 0)
        return err_set(
            e, ST_EINVAL,
            "'%s' is no trust domain: use lower-case letters, digits, '.', '-' and '_', as in lab.example",
            o->trust_domain);
    if (fs_join(crt, sizeof crt, dir, "ca.crt") < 0 || fs_join(keyf, sizeof keyf, dir, "ca.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    if (fs_exists(crt) || fs_exists(keyf))
        return err_set(e, ST_EEXIST, "%s already has a CA: use it, or choose another directory", dir);
    int rc = fs_mkdirs(dir, 0700, e);
    if (rc < 0)
        return rc;
    int64_t now = clock_wall_us(clock);
    EVP_PKEY *key = o->ed25519 ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519") : EVP_EC_gen("P-256");
    X509 *x =
        key ? ca_self_signed(key, o->trust_domain, now - 300000000, now + (int64_t)o->days * 86400000000, e)
            : NULL;
    if (!x)
        rc = key ? e ? e->code : ST_EINTERNAL : ca_openssl_failed(e, "the CA's key");
    /* The key goes first: a certificate without its key is of no use. */
    if (rc == ST_OK && (rc = ca_write_key(key, o->passphrase, keyf, e)) == ST_OK)
        rc = ca_write_certs(&x, 1, crt, e);
    X509_free(x);
    EVP_PKEY_free(key);
    return rc;
}

int tls_ca_create(const char *dir, const char *trust_domain, unsigned days, const struct clock *clock,
                  struct err *e)
{
    return tls_ca_make(dir, &(struct tls_ca_opts){.trust_domain = trust_domain, .days = days}, clock, e);
}

/* Our own CA's SPIFFE name is its trust domain alone. */
static int ca_trust_domain(struct tls_ca *ca)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(ca->cert, NID_subject_alt_name, NULL, NULL);
    int rc = ST_ETRUST;
    for (int i = 0; names && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
        if (g->type != GEN_URI)
            continue;
        int n = ASN1_STRING_length(g->d.uniformResourceIdentifier);
        const char *s = (const char *)ASN1_STRING_get0_data(g->d.uniformResourceIdentifier);
        if (n > 9 && n - 9 < (int)sizeof ca->trust_domain && !memcmp(s, "spiffe://", 9)) {
            memcpy(ca->trust_domain, s + 9, (size_t)n - 9);
            ca->trust_domain[n - 9] = 0;
            rc = ST_OK;
        }
    }
    GENERAL_NAMES_free(names);
    return rc;
}

int tls_ca_passphrase(char out[256], struct err *e)
{
    const char *file = getenv("STRATA_CA_PASSPHRASE_FILE");
    struct buf b = {0};
    struct stat st;
    out[0] = 0;
    if (!file || !*file)
        return ST_OK;
    if (stat(file, &st) == 0 && (st.st_mode & (S_IRWXG | S_IRWXO)))
        return err_set(e, ST_EDENIED, "%s can be read by others (mode %03o): chmod 600 it", file,
                       (unsigned)st.st_mode & 0777);
    int rc = fs_read(file, 255, &b, e);
    if (rc == ST_OK) {
        memcpy(out, b.data, b.len);
        out[b.len] = 0;
        out[strcspn(out, "\r\n")] = 0;
        OPENSSL_cleanse(b.data, b.len);
    }
    buf_fini(&b);
    return rc;
}

EVP_PKEY *ca_read_key(const char *path, struct err *e)
{
    char pass[256];
    struct buf b = {0};
    if (tls_ca_passphrase(pass, e) < 0)
        return NULL;
    if (!pass[0]) {
        EVP_PKEY *k = tls_read_key(path, e);
        if (!k && fs_read(path, 64u << 10, &b, NULL) == ST_OK && strstr(buf_cstr(&b), "ENCRYPTED"))
            err_reason(e, ST_ETRUST, "PASSPHRASE",
                       "%s is encrypted: name the file with its passphrase in STRATA_CA_PASSPHRASE_FILE",
                       path);
        if (b.data)
            OPENSSL_cleanse(b.data, b.len);
        buf_fini(&b);
        return k;
    }
    BIO *in = BIO_new_file(path, "r");
    EVP_PKEY *k = in ? PEM_read_bio_PrivateKey(in, NULL, NULL, pass) : NULL;
    BIO_free(in);
    OPENSSL_cleanse(pass, sizeof pass);
    if (!k)
        err_reason(e, in ? ST_ETRUST : ST_ENOENT, "PASSPHRASE", "%s cannot be read with the passphrase in %s",
                   path, getenv("STRATA_CA_PASSPHRASE_FILE"));
    ERR_clear_error();
    return k;
}

int tls_ca_load_for(struct tls_ca **out, const char *dir, const char *trust_domain, struct err *e)
{
    char crt[4096], keyf[4096], cross[4096];
    struct tls_identity id = {0};
    struct err none;
    if (fs_join(crt, sizeof crt, dir, "ca.crt") < 0 || fs_join(keyf, sizeof keyf, dir, "ca.key") < 0 ||
        fs_join(cross, sizeof cross, dir, "cross.crt") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    struct tls_ca *ca = calloc(1, sizeof *ca);
    if (!ca)
        return err_set(e, ST_ENOMEM, "no memory");
    ca->cert = tls_read_cert(crt, e);
    ca->key = ca->cert ? ca_read_key(keyf, e) : NULL;
    ca->cross = fs_exists(cross) ? tls_read_cert(cross, &none) : NULL;
    int rc = ca->key ? ST_OK : e ? e->code : ST_ETRUST;
    if (rc == ST_OK && X509_check_private_key(ca->cert, ca->key) != 1)
        rc = err_set(e, ST_ETRUST, "%s does not belong to %s", keyf, crt);
    else if (rc == ST_OK && ca_trust_domain(ca) < 0 &&
             (!trust_domain || !str_copy(ca->trust_domain, sizeof ca->trust_domain, trust_domain)))
        rc = err_set(e, ST_ETRUST,
                     "%s carries no spiffe://<trust domain> name: it was not made by strata init", crt);
    else if (rc == ST_OK && trust_domain && strcmp(trust_domain, ca->trust_domain))
        rc = err_reason(e, ST_ETRUST, "FOREIGN_TRUST_DOMAIN", "%s is of the trust domain %s, not of %s", crt,
                        ca->trust_domain, trust_domain);
    else if (rc == ST_OK)
        rc = tls_identity_facts(ca->cert, &id, e);
    if (rc < 0) {
        tls_ca_free(ca);
        ERR_clear_error();
        return rc;
    }
    str_copy(ca->serial, sizeof ca->serial, id.serial);
    *out = ca;
    return ST_OK;
}

int tls_ca_load(struct tls_ca **out, const char *dir, struct err *e)
{
    return tls_ca_load_for(out, dir, NULL, e);
}

void tls_ca_free(struct tls_ca *ca)
{
    if (!ca)
        return;
    X509_free(ca->cert);
    X509_free(ca->cross);
    EVP_PKEY_free(ca->key);
    free(ca);
}

const char *tls_ca_trust_domain(const struct tls_ca *ca)
{
    return ca->trust_domain;
}

const char *tls_ca_serial(const struct tls_ca *ca)
{
    return ca->serial;
}

void tls_ca_spki(const struct tls_ca *ca, uint8_t out[32])
{
    if (tls_spki_sha256(ca->cert, out) < 0)
        memset(out, 0, 32);
}

int64_t tls_ca_not_after_us(const struct tls_ca *ca)
{
    struct tls_identity id = {0};
    return tls_identity_facts(ca->cert, &id, NULL) == ST_OK ? id.not_after_us : 0;
}
