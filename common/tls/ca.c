/* The cluster's own certificate authority: ECDSA P-256, one level, leaves with a SPIFFE id. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/tls_priv.h"

struct tls_ca {
    X509 *cert;
    EVP_PKEY *key;
    char trust_domain[128];
};

static int openssl_failed(struct err *e, const char *what)
{
    char why[128];
    return err_set(e, ST_EINTERNAL, "cannot make %s: %s", what, tls_why(why, sizeof why));
}

static bool set_serial(X509 *x)
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

static bool add_ext(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX c;
    X509V3_set_ctx(&c, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &c, nid, value);
    bool ok = ext && X509_add_ext(x, ext, -1);
    X509_EXTENSION_free(ext);
    return ok;
}

static bool set_times(X509 *x, int64_t from_us, int64_t to_us)
{
    return ASN1_TIME_set(X509_getm_notBefore(x), (time_t)(from_us / 1000000)) &&
           ASN1_TIME_set(X509_getm_notAfter(x), (time_t)(to_us / 1000000));
}

static bool set_cn(X509_NAME *n, const char *cn)
{
    return X509_NAME_add_entry_by_txt(n, "O", MBSTRING_ASC, (const unsigned char *)"strata", -1, -1, 0) &&
           X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1, -1, 0);
}

/* Certificate and key as PEM files. The key goes first: a certificate without its key is of no use. */
static int write_pair(X509 *x, EVP_PKEY *key, const char *cert_path, const char *key_path, struct err *e)
{
    BIO *kb = BIO_new(BIO_s_secmem()), *cb = BIO_new(BIO_s_mem());
    char *kp = NULL, *cp = NULL;
    int rc = ST_OK;
    if (!kb || !cb || !PEM_write_bio_PKCS8PrivateKey(kb, key, NULL, NULL, 0, NULL, NULL) ||
        !PEM_write_bio_X509(cb, x)) {
        rc = openssl_failed(e, "the PEM files");
    } else {
        long kn = BIO_get_mem_data(kb, &kp), cn = BIO_get_mem_data(cb, &cp);
        if ((rc = fs_write_atomic(key_path, kp, (size_t)kn, 0600, e)) == ST_OK)
            rc = fs_write_atomic(cert_path, cp, (size_t)cn, 0644, e);
        if (kp)
            OPENSSL_cleanse(kp, (size_t)kn);
    }
    BIO_free(kb);
    BIO_free(cb);
    return rc;
}

int tls_ca_create(const char *dir, const char *trust_domain, unsigned days, const struct clock *clock,
                  struct err *e)
{
    char crt[4096], keyf[4096], id[256], cn[192];
    struct tls_identity probe;
    snprintf(id, sizeof id, "spiffe://%s/coordinator", trust_domain);
    if (tls_identity_parse(id, &probe, NULL) < 0)
        return err_set(
            e, ST_EINVAL,
            "'%s' is no trust domain: use lower-case letters, digits, '.', '-' and '_', as in lab.example",
            trust_domain);
    if (fs_join(crt, sizeof crt, dir, "ca.crt") < 0 || fs_join(keyf, sizeof keyf, dir, "ca.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    if (fs_exists(crt) || fs_exists(keyf))
        return err_set(e, ST_EEXIST, "%s already has a CA: use it, or choose another directory", dir);
    int rc = fs_mkdirs(dir, 0700, e);
    if (rc < 0)
        return rc;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    int64_t now = clock_wall_us(clock);
    snprintf(cn, sizeof cn, "strata CA %s", trust_domain);
    snprintf(id, sizeof id, "URI:spiffe://%s", trust_domain);
    if (!key || !x || !X509_set_version(x, X509_VERSION_3) || !set_serial(x) ||
        !set_times(x, now - 300000000, now + (int64_t)days * 86400000000) ||
        !set_cn(X509_get_subject_name(x), cn) || !X509_set_issuer_name(x, X509_get_subject_name(x)) ||
        !X509_set_pubkey(x, key) || !add_ext(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:1") ||
        !add_ext(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") ||
        !add_ext(x, x, NID_subject_key_identifier, "hash") || !add_ext(x, x, NID_subject_alt_name, id) ||
        !X509_sign(x, key, EVP_sha256()))
        rc = openssl_failed(e, "the CA certificate");
    else
        rc = write_pair(x, key, crt, keyf, e);
    X509_free(x);
    EVP_PKEY_free(key);
    return rc;
}

/* The CA's own SPIFFE name is its trust domain alone. */
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

int tls_ca_load(struct tls_ca **out, const char *dir, struct err *e)
{
    char crt[4096], keyf[4096];
    if (fs_join(crt, sizeof crt, dir, "ca.crt") < 0 || fs_join(keyf, sizeof keyf, dir, "ca.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    struct tls_ca *ca = calloc(1, sizeof *ca);
    if (!ca)
        return err_set(e, ST_ENOMEM, "no memory");
    ca->cert = tls_read_cert(crt, e);
    ca->key = ca->cert ? tls_read_key(keyf, e) : NULL;
    int rc = ca->key ? ST_OK : e ? e->code : ST_ETRUST;
    if (rc == ST_OK && X509_check_private_key(ca->cert, ca->key) != 1)
        rc = err_set(e, ST_ETRUST, "%s does not belong to %s", keyf, crt);
    else if (rc == ST_OK && ca_trust_domain(ca) < 0)
        rc = err_set(e, ST_ETRUST,
                     "%s carries no spiffe://<trust domain> name: it was not made by strata init", crt);
    if (rc < 0) {
        tls_ca_free(ca);
        return rc;
    }
    *out = ca;
    return ST_OK;
}

void tls_ca_free(struct tls_ca *ca)
{
    if (!ca)
        return;
    X509_free(ca->cert);
    EVP_PKEY_free(ca->key);
    free(ca);
}

const char *tls_ca_trust_domain(const struct tls_ca *ca)
{
    return ca->trust_domain;
}

/* No comma, or a name could smuggle another into the extension's text form. */
static bool san_ok(const char *s)
{
    return !s || (*s && strlen(s) < 200 && !strpbrk(s, ", \n\r"));
}

int tls_ca_issue(struct tls_ca *ca, const struct tls_issue *w, const char *cert_path, const char *key_path,
                 struct err *e)
{
    static const char *const kind[] = {"coordinator", "node/", "user/"};
    char id[256], san[800];
    struct tls_identity who;
    snprintf(id, sizeof id, "spiffe://%s/%s%s", ca->trust_domain, kind[w->kind], w->name ? w->name : "");
    int rc = tls_identity_parse(id, &who, e);
    if (rc < 0)
        return rc;
    if (!san_ok(w->dns_san) || !san_ok(w->ip_san))
        return err_set(e, ST_EINVAL, "'%s' cannot stand in a certificate",
                       w->dns_san ? w->dns_san : w->ip_san);
    snprintf(san, sizeof san, "URI:%s%s%s%s%s", id, w->dns_san ? ",DNS:" : "", w->dns_san ? w->dns_san : "",
             w->ip_san ? ",IP:" : "", w->ip_san ? w->ip_san : "");
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    if (!key || !x || !X509_set_version(x, X509_VERSION_3) || !set_serial(x) ||
        !set_times(x, w->not_before_us, w->not_after_us) ||
        !set_cn(X509_get_subject_name(x), who.principal) ||
        !X509_set_issuer_name(x, X509_get_subject_name(ca->cert)) || !X509_set_pubkey(x, key) ||
        !add_ext(x, ca->cert, NID_basic_constraints, "critical,CA:FALSE") ||
        !add_ext(x, ca->cert, NID_key_usage, "critical,digitalSignature") ||
        !add_ext(x, ca->cert, NID_ext_key_usage, "serverAuth,clientAuth") ||
        !add_ext(x, ca->cert, NID_authority_key_identifier, "keyid") ||
        !add_ext(x, ca->cert, NID_subject_alt_name, san) || !X509_sign(x, ca->key, EVP_sha256()))
        rc = openssl_failed(e, "the certificate");
    else
        rc = write_pair(x, key, cert_path, key_path, e);
    X509_free(x);
    EVP_PKEY_free(key);
    return rc;
}
