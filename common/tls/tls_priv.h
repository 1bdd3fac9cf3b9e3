/* Shared by the files of the tls room and its white-box tests. */
#ifndef STRATA_TLS_PRIV_H
#define STRATA_TLS_PRIV_H

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdatomic.h>

#include "common/tls/tls.h"

enum tls_role { TLS_MUTUAL, TLS_ENROLL_SERVER, TLS_ENROLL_CLIENT };

struct tls_ctx {
    atomic_uint refs;
    enum tls_role role;
    SSL_CTX *server, *client;
    struct tls_identity self;
    const struct clock *clock;
    struct tls_rules *rules;
    STACK_OF(X509_CRL) * crls; /* of an external CA; NULL = none */
    uint8_t pin[32];           /* TLS_ENROLL_CLIENT: of the CA's key */
    /* The latest refused chain: a failed handshake is asked about at once, and by then OpenSSL has dropped
     * the certificate that it was about. */
    struct {
        const SSL *ssl;
        struct err e;
    } refused;
};

/* The certificate's one SPIFFE id, key hash, serial and validity. ST_ETRUST with NO_IDENTITY. */
int tls_identity_of(X509 *cert, struct tls_identity *out, struct err *e) ST_CHECK;
/* Key hash, serial and validity alone. */
int tls_identity_facts(X509 *cert, struct tls_identity *out, struct err *e) ST_CHECK;
/* Takes OpenSSL's oldest queued error as a few words, and clears the queue. */
const char *tls_why(char *buf, size_t n);
/* One certificate from a PEM file; NULL with *e. */
X509 *tls_read_cert(const char *path, struct err *e);
/* All of them, at most 64; NULL with *e. */
STACK_OF(X509) * tls_read_certs(const char *path, struct err *e);
EVP_PKEY *tls_read_key(const char *path, struct err *e);
/* SHA-256 of the SubjectPublicKeyInfo. */
int tls_spki_sha256(const X509 *cert, uint8_t out[32]) ST_CHECK;
/* RSA of 2048 bits, P-256, P-384, P-521, Ed25519 or better. */
bool tls_key_strong(EVP_PKEY *key);

/* verify.c: what SSL_CTX_set_cert_verify_callback() gets; arg is the tls_ctx. */
int tls_verify_chain(X509_STORE_CTX *sc, void *arg);
int tls_verify_pinned(X509_STORE_CTX *sc, void *arg);
/* Fills *e for what X509_verify_cert() said of the chain in sc. Returns ST_ETRUST. */
int tls_verify_error(X509_STORE_CTX *sc, struct err *e);
void tls_verify_time(X509_STORE_CTX *sc, const struct clock *clock);

#endif
