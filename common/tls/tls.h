/*
 * Identity, certificates and the TLS 1.3 settings of every connection.
 *
 * An identity is the SPIFFE id in the certificate's URI SAN: spiffe://<trust-domain>/user/<name>,
 * /node/<name> or /coordinator. Mutual TLS 1.3 only, ALPN "strata/1"; tickets, 0-RTT, certificate compression
 * and renegotiation are off. The one exception is enrolment, which has an ALPN and contexts of its own: there
 * the server proves itself by a pin and the client is anonymous until it holds a certificate.
 *
 * Every refusal of a certificate has one of these reasons (docs/operations.md has cause and remedy of each):
 * NO_CERTIFICATE UNKNOWN_CA SELF_SIGNED EXPIRED NOT_YET_VALID ISSUER_EXPIRED ISSUER_NOT_YET_VALID BAD_PURPOSE
 * BAD_SIGNATURE WEAK_KEY WEAK_SIGNATURE NOT_A_CA CHAIN_TOO_LONG NAME_NOT_PERMITTED UNKNOWN_EXTENSION
 * MALFORMED NO_IDENTITY FOREIGN_TRUST_DOMAIN REVOKED CRL_EXPIRED CRL_INVALID PIN_MISMATCH BAD_CERTIFICATE.
 *
 * Loop thread unless said otherwise.
 */
#ifndef STRATA_TLS_TLS_H
#define STRATA_TLS_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/tls/rules.h"

struct ssl_st;
struct ssl_ctx_st;

#define TLS_ALPN "strata/1"
#define TLS_ALPN_ENROLL "strata-enroll/1"
/* What a cluster uses unless its configuration says otherwise; X25519MLKEM768 may be added to the groups. */
#define TLS_DEFAULT_CIPHERS "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
#define TLS_DEFAULT_GROUPS "X25519:P-256"

/* Parses and validates a SPIFFE id into kind, trust_domain, name, spiffe and principal (the rest is zeroed).
 */
int tls_identity_parse(const char *spiffe, struct tls_identity *out, struct err *e) ST_CHECK;

/* ---- connections ---- */

struct tls_ctx; /* reference counted: live connections keep the generation they were made with */

struct tls_cfg {
    /* PEM. ca_file: every certificate in it is a trust anchor. cert_file: ours, then the intermediates that
     * lead to an anchor. The key file must not be readable by others. */
    const char *ca_file, *cert_file, *key_file;
    const char *trust_domain;     /* peers of another trust domain are refused */
    const char *ciphers, *groups; /* colon separated, from tls_settings_check's sets; NULL = the defaults */
    const char *crl_file;         /* PEM lists of an external CA's revocations; NULL = none */
    struct tls_rules *rules;      /* revocations and pins looked up at every handshake; NULL = none */
};

/* ST_ECONFIG unless every word is a TLS 1.3 suite or group that strata allows. NULL is fine for either. */
int tls_settings_check(const char *ciphers, const char *groups, struct err *e) ST_CHECK;

/* Loads and checks the files (key matches certificate, certificate valid now for what it is used for, and
 * issued by the CA). ST_ETRUST, ST_ENOENT, ST_EDENIED with a sentence that names the file and the remedy. */
int tls_ctx_new(struct tls_ctx **out, const struct tls_cfg *cfg, const struct clock *clock,
                struct err *e) ST_CHECK;
struct tls_ctx *tls_ctx_ref(struct tls_ctx *t);
void tls_ctx_unref(struct tls_ctx *t); /* NULL is fine */
const struct tls_identity *tls_ctx_self(const struct tls_ctx *t);

/* The SSL_CTX to make connections from; borrowed. Not yet configured for QUIC: the quic room does that per
 * SSL. */
struct ssl_ctx_st *tls_ctx_server(struct tls_ctx *t);
struct ssl_ctx_st *tls_ctx_client(struct tls_ctx *t);

/* Who is at the other end of a finished or failed handshake: chain verified at the clock's time, exactly one
 * SPIFFE URI SAN, trust domain equal, not revoked, pins satisfied. ST_ETRUST with one of the reasons above
 * and a sentence that names the certificate. On an enrolment server's connection: TLS_ANONYMOUS. */
int tls_peer_identity(struct tls_ctx *t, struct ssl_st *ssl, struct tls_identity *out,
                      struct err *e) ST_CHECK;
/* Whether an identity accepted earlier is still good now: EXPIRED, REVOKED or PIN_MISMATCH. For connections
 * that live longer than what they were accepted for. */
int tls_identity_still_good(const struct tls_ctx *t, const struct tls_identity *id, struct err *e) ST_CHECK;
/* The protocol name that goes into the handshake, as a length byte and characters. */
const unsigned char *tls_ctx_alpn(const struct tls_ctx *t, unsigned *len);

/* ---- enrolment ---- */

/* A server that shows the certificate of `cfg` with its whole chain and the anchors, and asks for none. */
int tls_enroll_server_new(struct tls_ctx **out, const struct tls_cfg *cfg, const struct clock *clock,
                          struct err *e) ST_CHECK;
/* A client without a certificate. It goes on only if the server shows a CA certificate whose public key has
 * the SHA-256 `ca_spki` (PIN_MISMATCH otherwise), and a coordinator's certificate that leads to it. */
int tls_enroll_client_new(struct tls_ctx **out, const uint8_t ca_spki[32], const struct clock *clock,
                          struct err *e) ST_CHECK;

/* ---- making certificates (strata init; enrolment) ---- */

struct tls_ca; /* CA certificate and private key in memory */

struct tls_ca_opts {
    const char *trust_domain;
    unsigned days;
    bool ed25519;           /* else ECDSA P-256 */
    const char *passphrase; /* encrypts ca.key (AES-256); NULL = it lies open, 0600 */
};
/* A new CA into dir/ca.crt (0644) and dir/ca.key (0600). ST_EEXIST if one is there. */
int tls_ca_make(const char *dir, const struct tls_ca_opts *o, const struct clock *clock,
                struct err *e) ST_CHECK;
int tls_ca_create(const char *dir, const char *trust_domain, unsigned days, const struct clock *clock,
                  struct err *e) ST_CHECK; /* ECDSA, without a passphrase */
/* The first certificate of dir/ca.crt signs; the file may hold older ones behind it. An encrypted ca.key
 * needs the passphrase in the file that STRATA_CA_PASSPHRASE_FILE names. An intermediate of the operator's
 * without a SPIFFE name of its own signs for `trust_domain` (NULL: the CA must name one). */
int tls_ca_load_for(struct tls_ca **out, const char *dir, const char *trust_domain, struct err *e) ST_CHECK;
int tls_ca_load(struct tls_ca **out, const char *dir, struct err *e) ST_CHECK;
void tls_ca_free(struct tls_ca *ca);
const char *tls_ca_trust_domain(const struct tls_ca *ca);
/* SHA-256 of the CA's SubjectPublicKeyInfo: what a join token pins. */
void tls_ca_spki(const struct tls_ca *ca, uint8_t out[32]);
const char *tls_ca_serial(const struct tls_ca *ca); /* hex */
int64_t tls_ca_not_after_us(const struct tls_ca *ca);

struct tls_issue {
    enum tls_kind kind;
    const char *name;             /* NULL for the coordinator */
    const char *dns_san, *ip_san; /* optional extra names */
    int64_t not_before_us, not_after_us;
};
/* A fresh key and a certificate for it, both PEM, written to cert_path (0644) and key_path (0600) atomically.
 */
int tls_ca_issue(struct tls_ca *ca, const struct tls_issue *what, const char *cert_path, const char *key_path,
                 struct err *e) ST_CHECK;

/* The same for a key that lies elsewhere: `csr` is the DER of its signing request. Only the key is taken from
 * it; a name in it must be the one that `what` gives (BAD_NAME), the signature must be its own (BAD_REQUEST),
 * the key strong (WEAK_KEY). Appends PEM of the certificate, and of what leads to a CA before this one, to
 * *pem. The end is cut to the CA's. who: what was signed; may be NULL. */
int tls_ca_sign(struct tls_ca *ca, const struct tls_issue *what, const void *csr, size_t csr_len,
                struct buf *pem, struct tls_identity *who, struct err *e) ST_CHECK;

/* A new P-256 key at key_path (0600), unless one is there already and `fresh` is false. */
int tls_key_make(const char *key_path, bool fresh, struct err *e) ST_CHECK;
/* Appends the DER of a signing request for the key at key_path, naming spiffe (NULL: no name). */
int tls_csr_make(const char *key_path, const char *spiffe, struct buf *der, struct err *e) ST_CHECK;
/* Facts of a certificate file, unverified: the first certificate of a PEM text. */
int tls_cert_read(const void *pem, size_t n, struct tls_identity *out, struct err *e) ST_CHECK;
/* Whether a PEM bundle has a CA certificate whose key has this SHA-256. */
bool tls_bundle_has(const void *pem, size_t n, const uint8_t spki[32]);

/* Replaces the CA in dir by a new one: the new certificate, then those that were in ca.crt, in ca.crt;
 * dir/cross.crt has the new key signed by the old one, and goes with every certificate issued from now on, so
 * that peers that know only the old CA accept them. ca.key is the new one. ST_ECONFLICT when a rotation is
 * under way (cross.crt exists); ST_EDENIED when the CA may not sign another (path length). */
int tls_ca_rotate(const char *dir, unsigned days, const struct clock *clock, struct err *e) ST_CHECK;
/* Ends it: ca.crt has the newest certificate alone and cross.crt is gone. */
int tls_ca_rotate_end(const char *dir, struct err *e) ST_CHECK;
bool tls_ca_rotating(const char *dir);
/* The passphrase in the file that STRATA_CA_PASSPHRASE_FILE names, "" when none is; wipe it after use. */
int tls_ca_passphrase(char out[256], struct err *e) ST_CHECK;

#endif
