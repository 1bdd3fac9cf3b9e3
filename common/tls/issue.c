/* Leaves: keys, signing requests and the certificates made of them. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/tls/ca_priv.h"

#define MAX_CSR (16u << 10)

/* No comma, or a name could smuggle another into the extension's text form. */
static bool san_ok(const char *s)
{
    return !s || (*s && strlen(s) < 200 && !strpbrk(s, ", \n\r"));
}

static int identity_for(const struct tls_ca *ca, const struct tls_issue *w, struct tls_identity *who,
                        struct err *e)
{
    static const char *const kind[] = {"coordinator", "node/", "user/"};
    char id[256];
    if (w->kind == TLS_ANONYMOUS)
        return err_set(e, ST_EINVAL, "nobody can be certified as anonymous");
    snprintf(id, sizeof id, "spiffe://%s/%s%s", ca->trust_domain, kind[w->kind], w->name ? w->name : "");
    int rc = tls_identity_parse(id, who, e);
    if (rc < 0)
        return rc;
    if (!san_ok(w->dns_san) || !san_ok(w->ip_san))
        return err_set(e, ST_EINVAL, "'%s' cannot stand in a certificate",
                       w->dns_san ? w->dns_san : w->ip_san);
    return ST_OK;
}

/* NULL with *e. The life ends with the CA's: a certificate that outlives its issuer is refused anyway. */
static X509 *make_leaf(const struct tls_ca *ca, const struct tls_issue *w, const struct tls_identity *who,
                       EVP_PKEY *key, struct err *e)
{
    char san[800];
    int64_t end = tls_ca_not_after_us(ca);
    if (end > w->not_after_us)
        end = w->not_after_us;
    snprintf(san, sizeof san, "URI:%s%s%s%s%s", who->spiffe, w->dns_san ? ",DNS:" : "",
             w->dns_san ? w->dns_san : "", w->ip_san ? ",IP:" : "", w->ip_san ? w->ip_san : "");
    X509 *x = X509_new();
    if (x && key && X509_set_version(x, X509_VERSION_3) && ca_set_serial(x) &&
        ca_set_times(x, w->not_before_us, end) && ca_set_cn(X509_get_subject_name(x), who->principal) &&
        X509_set_issuer_name(x, X509_get_subject_name(ca->cert)) && X509_set_pubkey(x, key) &&
        ca_add_ext(x, ca->cert, NID_basic_constraints, "critical,CA:FALSE") &&
        ca_add_ext(x, ca->cert, NID_key_usage, "critical,digitalSignature") &&
        ca_add_ext(x, ca->cert, NID_ext_key_usage, "serverAuth,clientAuth") &&
        ca_add_ext(x, ca->cert, NID_authority_key_identifier, "keyid") &&
        ca_add_ext(x, ca->cert, NID_subject_alt_name, san) && ca_sign(x, ca->key))
        return x;
    X509_free(x);
    (void)ca_openssl_failed(e, "the certificate");
    return NULL;
}

/* What must be shown together with a leaf of this CA: its own certificate when that is no self-signed anchor,
 * and while a rotation goes on the one that ties it to the CA before. */
static size_t issuers(const struct tls_ca *ca, X509 *out[2])
{
    size_t n = 0;
    if (!(X509_get_extension_flags(ca->cert) & EXFLAG_SS))
        out[n++] = ca->cert;
    if (ca->cross)
        out[n++] = ca->cross;
    return n;
}

int tls_ca_issue(struct tls_ca *ca, const struct tls_issue *w, const char *cert_path, const char *key_path,
                 struct err *e)
{
    struct tls_identity who;
    int rc = identity_for(ca, w, &who, e);
    if (rc < 0)
        return rc;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *v[3] = {make_leaf(ca, w, &who, key, e)};
    if (!v[0])
        rc = e ? e->code : ST_EINTERNAL;
    /* The key goes first: a certificate without its key is of no use. */
    if (rc == ST_OK && (rc = ca_write_key(key, NULL, key_path, e)) == ST_OK)
        rc = ca_write_certs(v, 1 + issuers(ca, v + 1), cert_path, e);
    X509_free(v[0]);
    EVP_PKEY_free(key);
    return rc;
}

/* A name in the request is allowed only if it is the one that is granted. */
static int check_names(X509_REQ *req, const struct tls_identity *who, struct err *e)
{
    STACK_OF(X509_EXTENSION) *exts = X509_REQ_get_extensions(req);
    GENERAL_NAMES *names = exts ? X509V3_get_d2i(exts, NID_subject_alt_name, NULL, NULL) : NULL;
    int rc = ST_OK;
    for (int i = 0; names && rc == ST_OK && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
        if (g->type != GEN_URI)
            continue;
        const char *s = (const char *)ASN1_STRING_get0_data(g->d.uniformResourceIdentifier);
        size_t n = (size_t)ASN1_STRING_length(g->d.uniformResourceIdentifier);
        if (n != strlen(who->spiffe) || memcmp(s, who->spiffe, n))
            rc =
                err_reason(e, ST_EDENIED, "BAD_NAME",
                           "the signing request asks for another name than %s, which is all that it may have",
                           who->spiffe);
    }
    GENERAL_NAMES_free(names);
    sk_X509_EXTENSION_pop_free(exts, X509_EXTENSION_free);
    return rc;
}

int tls_ca_sign(struct tls_ca *ca, const struct tls_issue *w, const void *csr, size_t csr_len,
                struct buf *pem, struct tls_identity *out, struct err *e)
{
    struct tls_identity who;
    const unsigned char *p = csr;
    int rc = identity_for(ca, w, &who, e);
    if (rc < 0)
        return rc;
    X509_REQ *req = csr_len && csr_len <= MAX_CSR ? d2i_X509_REQ(NULL, &p, (long)csr_len) : NULL;
    EVP_PKEY *key = req ? X509_REQ_get0_pubkey(req) : NULL;
    X509 *x = NULL, *more[2];
    if (!req || !key || p != (const unsigned char *)csr + csr_len)
        rc = err_reason(e, ST_EINVAL, "BAD_REQUEST", "the signing request cannot be read");
    else if (!tls_key_strong(key))
        rc = err_reason(e, ST_EDENIED, "WEAK_KEY",
                        "the key in the signing request is too weak: use P-256, Ed25519 or RSA of 2048 bits");
    else if (X509_REQ_verify(req, key) != 1)
        rc = err_reason(e, ST_EDENIED, "BAD_REQUEST", "the signing request is not signed with its own key");
    else if ((rc = check_names(req, &who, e)) == ST_OK && !(x = make_leaf(ca, w, &who, key, e)))
        rc = ST_EINTERNAL;
    if (rc == ST_OK && (rc = ca_append_cert(x, pem, e)) == ST_OK) {
        size_t n = issuers(ca, more);
        for (size_t i = 0; i < n && rc == ST_OK; i++)
            rc = ca_append_cert(more[i], pem, e);
        if (rc == ST_OK && out)
            rc = tls_identity_of(x, out, e);
    }
    X509_free(x);
    X509_REQ_free(req);
    ERR_clear_error();
    return rc;
}

int tls_key_make(const char *key_path, bool fresh, struct err *e)
{
    if (!fresh && fs_exists(key_path))
        return ST_OK;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    int rc = key ? ca_write_key(key, NULL, key_path, e) : ca_openssl_failed(e, "a key");
    EVP_PKEY_free(key);
    return rc;
}

static bool name_request(X509_REQ *req, const char *spiffe)
{
    char san[300];
    snprintf(san, sizeof san, "URI:%s", spiffe);
    X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, san);
    STACK_OF(X509_EXTENSION) *exts = sk_X509_EXTENSION_new_null();
    bool ok = ext && exts && sk_X509_EXTENSION_push(exts, ext) && X509_REQ_add_extensions(req, exts);
    sk_X509_EXTENSION_free(exts);
    X509_EXTENSION_free(ext);
    return ok;
}

int tls_csr_make(const char *key_path, const char *spiffe, struct buf *der, struct err *e)
{
    EVP_PKEY *key = tls_read_key(key_path, e);
    if (!key)
        return e ? e->code : ST_ETRUST;
    X509_REQ *req = X509_REQ_new();
    unsigned char *p = NULL;
    int n = -1, rc = ST_OK;
    if (req && san_ok(spiffe) && X509_REQ_set_version(req, X509_REQ_VERSION_1) &&
        X509_REQ_set_pubkey(req, key) && (!spiffe || name_request(req, spiffe)) &&
        X509_REQ_sign(req, key, EVP_PKEY_is_a(key, "ED25519") ? NULL : EVP_sha256()))
        n = i2d_X509_REQ(req, &p);
    if (n <= 0)
        rc = ca_openssl_failed(e, "the signing request");
    else if (buf_append(der, p, (size_t)n) < 0)
        rc = err_set(e, ST_ENOMEM, "no memory");
    OPENSSL_free(p);
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    return rc;
}

int tls_cert_read(const void *pem, size_t n, struct tls_identity *out, struct err *e)
{
    BIO *b = n <= 1u << 20 ? BIO_new_mem_buf(pem, (int)n) : NULL;
    X509 *x = b ? PEM_read_bio_X509(b, NULL, NULL, NULL) : NULL;
    int rc = x ? tls_identity_of(x, out, e) : err_reason(e, ST_ETRUST, "MALFORMED", "no PEM certificate");
    X509_free(x);
    BIO_free(b);
    ERR_clear_error();
    return rc;
}

bool tls_bundle_has(const void *pem, size_t n, const uint8_t spki[32])
{
    BIO *b = n <= 1u << 20 ? BIO_new_mem_buf(pem, (int)n) : NULL;
    uint8_t sha[32];
    bool found = false;
    for (X509 *x; b && !found && (x = PEM_read_bio_X509(b, NULL, NULL, NULL)); X509_free(x))
        found = tls_spki_sha256(x, sha) == ST_OK && !memcmp(sha, spki, 32) && X509_check_ca(x) > 0;
    BIO_free(b);
    ERR_clear_error();
    return found;
}
