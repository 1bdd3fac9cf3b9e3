/*
 * What a cluster knows of certificates beyond their chain: which are revoked and which keys a peer must have.
 * Shared by every TLS context that refers to it; a change counts from the next handshake on, and for live
 * connections when they are looked at again. Reference counted; loop thread.
 */
#ifndef STRATA_TLS_RULES_H
#define STRATA_TLS_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"

enum tls_kind { TLS_COORDINATOR, TLS_NODE, TLS_USER, TLS_ANONYMOUS };

struct tls_identity {
    enum tls_kind kind;
    char trust_domain[128];
    char name[64];      /* "alice", "dione"; "" for the coordinator */
    char spiffe[256];   /* the whole id */
    char principal[80]; /* short form: "user/alice", "node/dione", "coordinator" */
    uint8_t spki_sha256[32], cert_sha256[32], issuer_sha256[32]; /* issuer: of its name */
    char serial[48];                                             /* hex */
    int64_t not_before_us, not_after_us;
};

struct tls_rules;
int tls_rules_new(struct tls_rules **out, const struct rng *rng) ST_CHECK;
struct tls_rules *tls_rules_ref(struct tls_rules *r);
void tls_rules_unref(struct tls_rules *r); /* NULL is fine */
/* Forgets everything, before a whole new set is put in. */
void tls_rules_clear(struct tls_rules *r);

enum tls_revoked { TLS_REVOKED_SERIAL, TLS_REVOKED_IDENTITY, TLS_REVOKED_KEY };
const char *tls_revoked_name(enum tls_revoked kind); /* "serial" "identity" "key" */
/* The value in its one spelling: serial and key in lower-case hex without colons, identity as principal. A
 * key is the SHA-256 of its SubjectPublicKeyInfo. ST_EINVAL with a sentence. */
int tls_revoked_parse(enum tls_revoked kind, const char *text, char out[80], struct err *e) ST_CHECK;
int tls_rules_revoke(struct tls_rules *r, enum tls_revoked kind, const char *value) ST_CHECK;
void tls_rules_restore(struct tls_rules *r, enum tls_revoked kind, const char *value);

/* "sha256:<64 hex digits>", "sha256/<base64>" or the digits alone. */
int tls_pin_parse(const char *text, uint8_t out[32], struct err *e) ST_CHECK;
/* Peers whose principal matches `subject` ("node/dione", "coordinator"; a star matches any run) must have a
 * key or a certificate with one of the pins that were set for any matching subject. */
int tls_rules_pin(struct tls_rules *r, const char *subject, const uint8_t sha256[32]) ST_CHECK;
void tls_rules_unpin(struct tls_rules *r, const char *subject, const uint8_t sha256[32]);
/* Members of a pool are matched by "pool/<name>" too; NULL takes it off. */
void tls_rules_pools(struct tls_rules *r, const char *(*pool_of)(void *arg, const char *principal),
                     void *arg);

/* ST_ETRUST with REVOKED or PIN_MISMATCH. */
int tls_rules_check(const struct tls_rules *r, const struct tls_identity *id, struct err *e) ST_CHECK;

#endif
