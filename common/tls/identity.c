/* SPIFFE ids and what a certificate says of its holder. */
#include <openssl/err.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/base/str.h"
#include "common/tls/tls_priv.h"

const char *tls_why(char *buf, size_t n)
{
    unsigned long code = ERR_get_error();
    const char *r = code ? ERR_reason_error_string(code) : NULL;
    snprintf(buf, n, "%s", r ? r : "no reason given");
    ERR_clear_error();
    return buf;
}

static bool domain_ok(const char *s, size_t n)
{
    if (!n || n > 127)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= '0' && s[i] <= '9') || strchr(".-_", s[i])))
            return false;
    return true;
}

int tls_identity_parse(const char *spiffe, struct tls_identity *out, struct err *e)
{
    static const char scheme[] = "spiffe://";
    const char *domain = spiffe + sizeof scheme - 1, *path;
    *out = (struct tls_identity){0};
    if (!str_starts(spiffe, scheme) || strlen(spiffe) >= sizeof out->spiffe ||
        !(path = strchr(domain, '/')) || !domain_ok(domain, (size_t)(path - domain)))
        goto bad;
    memcpy(out->trust_domain, domain, (size_t)(path - domain));
    str_copy(out->spiffe, sizeof out->spiffe, spiffe);
    if (!strcmp(path, "/coordinator")) {
        out->kind = TLS_COORDINATOR;
        str_copy(out->principal, sizeof out->principal, "coordinator");
        return ST_OK;
    }
    const char *name = NULL;
    if (str_starts(path, "/user/")) {
        out->kind = TLS_USER;
        name = path + 6;
    } else if (str_starts(path, "/node/")) {
        out->kind = TLS_NODE;
        name = path + 6;
    }
    if (!name || !str_ident_ok(name, sizeof out->name - 1))
        goto bad;
    str_copy(out->name, sizeof out->name, name);
    str_copy(out->principal, sizeof out->principal, path + 1);
    return ST_OK;
bad:
    return err_reason(
        e, ST_EINVAL, "NO_IDENTITY",
        "'%.200s' is no identity of strata: want spiffe://<trust domain>/user/<name>, /node/<name> or "
        "/coordinator",
        spiffe);
}

static int64_t asn1_us(const ASN1_TIME *t)
{
    struct tm tm;
    return ASN1_TIME_to_tm(t, &tm) == 1 ? (int64_t)timegm(&tm) * 1000000 : 0;
}

/* Copies the only URI SAN; more than one, or one with a NUL inside, is no identity. */
static int only_uri(X509 *cert, char *out, size_t cap)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    int found = 0;
    for (int i = 0; names && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
        if (g->type != GEN_URI)
            continue;
        const unsigned char *s = ASN1_STRING_get0_data(g->d.uniformResourceIdentifier);
        int n = ASN1_STRING_length(g->d.uniformResourceIdentifier);
        found++;
        if (n <= 0 || (size_t)n >= cap || memchr(s, 0, (size_t)n)) {
            found = 2;
            break;
        }
        memcpy(out, s, (size_t)n);
        out[n] = 0;
    }
    GENERAL_NAMES_free(names);
    return found == 1 ? ST_OK : ST_ETRUST;
}

int tls_spki_sha256(const X509 *cert, uint8_t out[32])
{
    unsigned char *der = NULL;
    int n = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &der);
    if (n <= 0)
        return ST_ETRUST;
    SHA256(der, (size_t)n, out);
    OPENSSL_free(der);
    return ST_OK;
}

int tls_identity_facts(X509 *cert, struct tls_identity *out, struct err *e)
{
    unsigned n = 32;
    if (tls_spki_sha256(cert, out->spki_sha256) < 0 ||
        X509_digest(cert, EVP_sha256(), out->cert_sha256, &n) != 1 ||
        X509_NAME_digest(X509_get_issuer_name(cert), EVP_sha256(), out->issuer_sha256, &n) != 1)
        return err_reason(e, ST_ETRUST, "MALFORMED", "the certificate's key cannot be read");
    const ASN1_INTEGER *sn = X509_get0_serialNumber(cert);
    int sl = ASN1_STRING_length((const ASN1_STRING *)sn);
    if (sl > 0 && sl <= 20)
        hex_encode(out->serial, ASN1_STRING_get0_data((const ASN1_STRING *)sn), (size_t)sl);
    out->not_before_us = asn1_us(X509_get0_notBefore(cert));
    out->not_after_us = asn1_us(X509_get0_notAfter(cert));
    return ST_OK;
}

int tls_identity_of(X509 *cert, struct tls_identity *out, struct err *e)
{
    char uri[256];
    *out = (struct tls_identity){0};
    if (only_uri(cert, uri, sizeof uri) < 0)
        return err_reason(e, ST_ETRUST, "NO_IDENTITY",
                          "the certificate does not carry exactly one SPIFFE id as URI name");
    if (tls_identity_parse(uri, out, e) < 0)
        return e ? e->code = ST_ETRUST : ST_ETRUST;
    return tls_identity_facts(cert, out, e);
}
