/* Chains of certificates at the clock's time, and the one stable reason for each way to fail. */
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "common/base/str.h"
#include "common/tls/tls_priv.h"

/* At depth 0 it is the peer's own certificate, above that one of its issuers'. */
static const char *reason_of(int verify, int depth)
{
    switch (verify) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return depth ? "ISSUER_EXPIRED" : "EXPIRED";
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return depth ? "ISSUER_NOT_YET_VALID" : "NOT_YET_VALID";
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return "SELF_SIGNED";
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
        return "UNKNOWN_CA";
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_UNABLE_TO_DECRYPT_CERT_SIGNATURE:
    case X509_V_ERR_SIGNATURE_ALGORITHM_MISMATCH:
    case X509_V_ERR_SIGNATURE_ALGORITHM_INCONSISTENCY:
        return "BAD_SIGNATURE";
    case X509_V_ERR_INVALID_PURPOSE:
        return "BAD_PURPOSE";
    case X509_V_ERR_INVALID_CA:
    case X509_V_ERR_INVALID_NON_CA:
    case X509_V_ERR_PATH_LENGTH_EXCEEDED:
    case X509_V_ERR_KEYUSAGE_NO_CERTSIGN:
    case X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA:
    case X509_V_ERR_PATHLEN_WITHOUT_KU_KEY_CERT_SIGN:
    case X509_V_ERR_KU_KEY_CERT_SIGN_INVALID_FOR_NON_CA:
        return "NOT_A_CA";
    case X509_V_ERR_CERT_CHAIN_TOO_LONG:
        return "CHAIN_TOO_LONG";
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
    case X509_V_ERR_EC_KEY_EXPLICIT_PARAMS:
        return "WEAK_KEY";
    case X509_V_ERR_CA_MD_TOO_WEAK:
        return "WEAK_SIGNATURE";
    case X509_V_ERR_PERMITTED_VIOLATION:
    case X509_V_ERR_EXCLUDED_VIOLATION:
    case X509_V_ERR_SUBTREE_MINMAX:
    case X509_V_ERR_UNSUPPORTED_CONSTRAINT_TYPE:
    case X509_V_ERR_UNSUPPORTED_CONSTRAINT_SYNTAX:
    case X509_V_ERR_UNSUPPORTED_NAME_SYNTAX:
        return "NAME_NOT_PERMITTED";
    case X509_V_ERR_UNHANDLED_CRITICAL_EXTENSION:
        return "UNKNOWN_EXTENSION";
    case X509_V_ERR_CERT_REVOKED:
        return "REVOKED";
    case X509_V_ERR_CRL_HAS_EXPIRED:
    case X509_V_ERR_CRL_NOT_YET_VALID:
        return "CRL_EXPIRED";
    case X509_V_ERR_CRL_SIGNATURE_FAILURE:
    case X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE:
    case X509_V_ERR_CRL_PATH_VALIDATION_ERROR:
    case X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER:
    case X509_V_ERR_ERROR_IN_CRL_LAST_UPDATE_FIELD:
    case X509_V_ERR_ERROR_IN_CRL_NEXT_UPDATE_FIELD:
        return "CRL_INVALID";
    case X509_V_ERR_INVALID_EXTENSION:
    case X509_V_ERR_UNSUPPORTED_EXTENSION_FEATURE:
    case X509_V_ERR_ERROR_IN_CERT_NOT_BEFORE_FIELD:
    case X509_V_ERR_ERROR_IN_CERT_NOT_AFTER_FIELD:
    case X509_V_ERR_UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY:
        return "MALFORMED";
    default:
        return "BAD_CERTIFICATE";
    }
}

/* A certificate in a sentence: its SPIFFE id if it has one, else its common name, and its serial. */
static void name_of(X509 *cert, char out[160])
{
    struct tls_identity id;
    char cn[64] = "";
    if (!cert) {
        str_copy(out, 160, "the peer");
        return;
    }
    if (tls_identity_of(cert, &id, NULL) == ST_OK) {
        snprintf(out, 160, "%s (serial %s)", id.principal, id.serial);
    } else {
        X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, cn, sizeof cn);
        for (char *p = cn; *p; p++)
            if (*p < 0x20 || *p > 0x7e)
                *p = '?';
        if (tls_identity_facts(cert, &id, NULL) < 0)
            id.serial[0] = 0;
        snprintf(out, 160, "\"%s\" (serial %s)", cn, id.serial);
    }
    ERR_clear_error();
}

int tls_verify_error(X509_STORE_CTX *sc, struct err *e)
{
    int v = X509_STORE_CTX_get_error(sc), depth = X509_STORE_CTX_get_error_depth(sc);
    X509 *at = X509_STORE_CTX_get_current_cert(sc);
    char who[160];
    X509 *leaf = X509_STORE_CTX_get0_cert(sc);
    name_of(at ? at : leaf, who);
    /* A certificate whose extensions cannot be read is nobody's child; that it is broken says more. */
    if (leaf && (X509_get_extension_flags(leaf) & EXFLAG_INVALID))
        return err_reason(e, ST_ETRUST, "MALFORMED",
                          "the certificate of %s is refused: an extension of it cannot be read", who);
    return err_reason(e, ST_ETRUST, reason_of(v, depth), "the certificate of %s is refused: %s", who,
                      X509_verify_cert_error_string(v));
}

void tls_verify_time(X509_STORE_CTX *sc, const struct clock *clock)
{
    X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(sc), (time_t)(clock_wall_us(clock) / 1000000));
}

bool tls_key_strong(EVP_PKEY *key)
{
    char group[64] = "";
    if (!key)
        return false;
    if (EVP_PKEY_is_a(key, "ED25519") || EVP_PKEY_is_a(key, "ED448"))
        return true;
    if (EVP_PKEY_is_a(key, "RSA") || EVP_PKEY_is_a(key, "RSA-PSS"))
        return EVP_PKEY_get_bits(key) >= 2048;
    return EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, group, sizeof group, NULL) == 1 &&
           (!strcmp(group, "prime256v1") || !strcmp(group, "secp384r1") || !strcmp(group, "secp521r1"));
}

static SSL *ssl_of(X509_STORE_CTX *sc)
{
    return X509_STORE_CTX_get_ex_data(sc, SSL_get_ex_data_X509_STORE_CTX_idx());
}

static int remember(struct tls_ctx *t, X509_STORE_CTX *sc, const struct err *e)
{
    t->refused.ssl = ssl_of(sc);
    t->refused.e = *e;
    ERR_clear_error();
    return 0;
}

int tls_verify_chain(X509_STORE_CTX *sc, void *arg)
{
    struct tls_ctx *t = arg;
    struct err e = {0};
    struct tls_identity id;
    X509 *leaf = X509_STORE_CTX_get0_cert(sc);
    tls_verify_time(sc, t->clock);
    if (X509_verify_cert(sc) != 1) {
        (void)tls_verify_error(sc, &e);
        if (X509_STORE_CTX_get_error(sc) == X509_V_OK) /* it failed before it looked at any */
            X509_STORE_CTX_set_error(sc, X509_V_ERR_UNSPECIFIED);
        return remember(t, sc, &e);
    }
    /* What the chain cannot tell is checked here too, so that the peer hears of it as an alert. */
    X509_STORE_CTX_set_error(sc, X509_V_ERR_APPLICATION_VERIFICATION);
    if (!tls_key_strong(X509_get0_pubkey(leaf))) {
        char who[160];
        name_of(leaf, who);
        (void)err_reason(&e, ST_ETRUST, "WEAK_KEY",
                         "the key of %s is too weak: use P-256, Ed25519 or RSA of 2048 bits", who);
        return remember(t, sc, &e);
    }
    if (tls_identity_of(leaf, &id, &e) < 0)
        return remember(t, sc, &e);
    if (strcmp(id.trust_domain, t->self.trust_domain)) {
        (void)err_reason(&e, ST_ETRUST, "FOREIGN_TRUST_DOMAIN", "%s is of another trust domain than %s",
                         id.spiffe, t->self.trust_domain);
        return remember(t, sc, &e);
    }
    if (t->rules && tls_rules_check(t->rules, &id, &e) < 0)
        return remember(t, sc, &e);
    X509_STORE_CTX_set_error(sc, X509_V_OK);
    return 1;
}

static X509 *find_pinned(STACK_OF(X509) * shown, const uint8_t pin[32])
{
    uint8_t sha[32];
    for (int i = 0; shown && i < sk_X509_num(shown); i++) {
        X509 *x = sk_X509_value(shown, i);
        if (tls_spki_sha256(x, sha) == ST_OK && !memcmp(sha, pin, 32))
            return x;
    }
    return NULL;
}

/* The pinned certificate among those shown becomes the only trust anchor of this one handshake. */
int tls_verify_pinned(X509_STORE_CTX *outer, void *arg)
{
    struct tls_ctx *t = arg;
    struct err e = {0};
    STACK_OF(X509) *shown = X509_STORE_CTX_get0_untrusted(outer);
    X509 *leaf = X509_STORE_CTX_get0_cert(outer), *ca = find_pinned(shown, t->pin);
    X509_STORE_CTX_set_error(outer, X509_V_ERR_APPLICATION_VERIFICATION);
    if (!ca) {
        (void)err_reason(&e, ST_ETRUST, "PIN_MISMATCH",
                         "the server does not belong to the CA that the token names: wrong address, a token "
                         "of another cluster, or somebody in between");
        return remember(t, outer, &e);
    }
    X509_STORE *anchor = X509_STORE_new();
    X509_STORE_CTX *sc = X509_STORE_CTX_new();
    int ok = anchor && sc && X509_STORE_add_cert(anchor, ca) && X509_STORE_CTX_init(sc, anchor, leaf, shown);
    if (ok) {
        X509_STORE_CTX_set_purpose(sc, X509_PURPOSE_SSL_SERVER);
        X509_STORE_CTX_set_flags(sc, X509_V_FLAG_PARTIAL_CHAIN);
        X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(sc), 2);
        tls_verify_time(sc, t->clock);
        ok = X509_verify_cert(sc) == 1;
        if (!ok)
            (void)tls_verify_error(sc, &e);
    }
    struct tls_identity id;
    if (ok && tls_identity_of(leaf, &id, &e) < 0)
        ok = 0;
    else if (ok && id.kind != TLS_COORDINATOR) {
        (void)err_reason(&e, ST_ETRUST, "WRONG_PEER", "%s answered where a coordinator was expected",
                         id.principal);
        ok = 0;
    }
    X509_STORE_CTX_free(sc);
    X509_STORE_free(anchor);
    if (!ok)
        return remember(t, outer, &e);
    X509_STORE_CTX_set_error(outer, X509_V_OK);
    return 1;
}

/* The operator's own lists; whoever signed them was checked when a chain was. */
static bool on_a_list(const struct tls_ctx *t, const struct tls_identity *id)
{
    uint8_t issuer[32];
    unsigned n = 32;
    BIGNUM *bn = NULL;
    X509_REVOKED *found = NULL;
    ASN1_INTEGER *serial = BN_hex2bn(&bn, id->serial) ? BN_to_ASN1_INTEGER(bn, NULL) : NULL;
    bool listed = false;
    for (int i = 0; serial && !listed && i < sk_X509_CRL_num(t->crls); i++) {
        X509_CRL *crl = sk_X509_CRL_value(t->crls, i);
        listed = X509_NAME_digest(X509_CRL_get_issuer(crl), EVP_sha256(), issuer, &n) == 1 &&
                 !memcmp(issuer, id->issuer_sha256, 32) && X509_CRL_get0_by_serial(crl, &found, serial) == 1;
    }
    ASN1_INTEGER_free(serial);
    BN_free(bn);
    return listed;
}

int tls_identity_still_good(const struct tls_ctx *t, const struct tls_identity *id, struct err *e)
{
    if (id->kind == TLS_ANONYMOUS)
        return ST_OK;
    if (clock_wall_us(t->clock) > id->not_after_us)
        return err_reason(e, ST_ETRUST, "EXPIRED", "the certificate of %s (serial %s) has expired: renew it",
                          id->principal, id->serial);
    if (t->crls && on_a_list(t, id))
        return err_reason(e, ST_ETRUST, "REVOKED",
                          "the certificate of %s (serial %s) is on the revocation list of its CA",
                          id->principal, id->serial);
    return t->rules ? tls_rules_check(t->rules, id, e) : ST_OK;
}

int tls_peer_identity(struct tls_ctx *t, struct ssl_st *ssl, struct tls_identity *out, struct err *e)
{
    *out = (struct tls_identity){0};
    if (t->role == TLS_ENROLL_SERVER) {
        out->kind = TLS_ANONYMOUS;
        str_copy(out->principal, sizeof out->principal, "anonymous");
        return ST_OK;
    }
    X509 *cert = SSL_get0_peer_certificate(ssl);
    long v = SSL_get_verify_result(ssl);
    if (v != X509_V_OK && t->refused.ssl == ssl) {
        if (e)
            *e = t->refused.e;
        return ST_ETRUST;
    }
    if (v != X509_V_OK)
        return err_reason(e, ST_ETRUST, reason_of((int)v, 0), "the peer's certificate is refused: %s",
                          X509_verify_cert_error_string(v));
    if (!cert)
        return err_reason(e, ST_ETRUST, "NO_CERTIFICATE", "the peer showed no certificate");
    int rc = tls_identity_of(cert, out, e);
    return rc < 0 ? rc : tls_identity_still_good(t, out, e);
}
