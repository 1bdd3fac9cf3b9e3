/*
 * Identity, certificates and the TLS 1.3 settings of every connection.
 *
 * An identity is the SPIFFE id in the certificate's URI SAN: spiffe://<trust-domain>/user/<name>,
 * /node/<name> or /coordinator. Mutual TLS 1.3 only, ALPN "strata/1"; tickets, 0-RTT, certificate compression
 * and renegotiation are off. Loop thread unless said otherwise.
 */
#ifndef STRATA_TLS_TLS_H
#define STRATA_TLS_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"

struct ssl_st;
struct ssl_ctx_st;

#define TLS_ALPN "strata/1"

enum tls_kind { TLS_COORDINATOR, TLS_NODE, TLS_USER };

struct tls_identity {
    enum tls_kind kind;
    char trust_domain[128];
    char name[64];      /* "alice", "dione"; "" for the coordinator */
    char spiffe[256];   /* the whole id */
    char principal[80]; /* short form: "user/alice", "node/dione", "coordinator" */
    uint8_t spki_sha256[32];
    char serial[48]; /* hex */
    int64_t not_before_us, not_after_us;
};

/* Parses and validates a SPIFFE id into kind, trust_domain, name, spiffe and principal (the rest is zeroed).
 */
int tls_identity_parse(const char *spiffe, struct tls_identity *out, struct err *e) ST_CHECK;

/* ---- connections ---- */

struct tls_ctx; /* reference counted: live connections keep the generation they were made with */

struct tls_cfg {
    const char *ca_file, *cert_file, *key_file; /* PEM; the key file must not be readable by others */
    const char *trust_domain;                   /* peers of another trust domain are refused */
};

/* Loads and checks the files (key matches certificate, certificate valid now and issued by the CA).
 * ST_ETRUST, ST_ENOENT, ST_EDENIED with a sentence that names the file and the remedy. */
int tls_ctx_new(struct tls_ctx **out, const struct tls_cfg *cfg, const struct clock *clock,
                struct err *e) ST_CHECK;
struct tls_ctx *tls_ctx_ref(struct tls_ctx *t);
void tls_ctx_unref(struct tls_ctx *t); /* NULL is fine */
const struct tls_identity *tls_ctx_self(const struct tls_ctx *t);

/* The SSL_CTX to make connections from; borrowed. Not yet configured for QUIC: the quic room does that per
 * SSL. */
struct ssl_ctx_st *tls_ctx_server(struct tls_ctx *t);
struct ssl_ctx_st *tls_ctx_client(struct tls_ctx *t);

/* Who is at the other end of a finished handshake: chain verified, exactly one SPIFFE URI SAN, trust domain
 * equal, now inside the validity. ST_ETRUST with a reason code (NO_CERTIFICATE, UNKNOWN_CA, EXPIRED,
 * NOT_YET_VALID, NO_IDENTITY, FOREIGN_TRUST_DOMAIN, BAD_PURPOSE). */
int tls_peer_identity(struct tls_ctx *t, struct ssl_st *ssl, struct tls_identity *out,
                      struct err *e) ST_CHECK;

/* ---- making certificates (strata init; enrolment) ---- */

struct tls_ca; /* CA certificate and private key in memory */

/* A new ECDSA P-256 CA into dir/ca.crt (0644) and dir/ca.key (0600). ST_EEXIST if one is there. */
int tls_ca_create(const char *dir, const char *trust_domain, unsigned days, const struct clock *clock,
                  struct err *e) ST_CHECK;
int tls_ca_load(struct tls_ca **out, const char *dir, struct err *e) ST_CHECK;
void tls_ca_free(struct tls_ca *ca);
const char *tls_ca_trust_domain(const struct tls_ca *ca);

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

#endif
