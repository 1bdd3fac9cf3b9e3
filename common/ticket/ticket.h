/*
 * Tickets: what the coordinator signs so that an agent can decide alone. A ticket names its purpose, the
 * holder (the SHA-256 of the key in the client's certificate), the one node that may honour it, a resource, a
 * byte limit that the coordinator holds in escrow, and when it ends. Signed with Ed25519; a ticket is
 * worthless to anyone who does not hold the certificate's key. Whether a ticket was revoked is for the agent
 * to look up by serial.
 *
 * Wire form, at most TICKET_MAX bytes: "STK" and a version byte; purpose; serial (16); holder (32); byte
 * limit, issued, expires (8 each, big endian); node length and node; resource length and resource; signature
 * (64) over everything before it and a fixed prefix, so that a signature made for something else never passes
 * here.
 *
 * Verifying needs no state: any thread, if each has its own error. Keys may be shared between threads.
 */
#ifndef STRATA_TICKET_TICKET_H
#define STRATA_TICKET_TICKET_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"

#define TICKET_NODE_MAX 63
#define TICKET_RESOURCE_MAX 127
#define TICKET_SERIAL_LEN 16
#define TICKET_PUB_LEN 32
#define TICKET_MAX (4 + 1 + 16 + 32 + 3 * 8 + 1 + TICKET_NODE_MAX + 1 + TICKET_RESOURCE_MAX + 64)
/* Longer lives are refused on both sides: a leaked ticket must not outlive the patience of an operator. */
#define TICKET_MAX_LIFE_US (24ll * 3600 * 1000000)
/* An agent's clock may run this far behind the coordinator's. */
#define TICKET_SKEW_US (5ll * 1000000)

enum ticket_purpose {
    TICKET_DEVICE = 1, /* a client's session with a device: memory, compute */
    TICKET_LOAD = 2,   /* an agent loads layers of a job */
    TICKET_FETCH = 3,  /* an agent pulls layers from a peer agent */
    TICKET_BENCH = 4,  /* link measurement */
};

struct ticket {
    enum ticket_purpose purpose;
    uint8_t serial[TICKET_SERIAL_LEN];
    uint8_t holder[32];                     /* SHA-256 of the holder's SubjectPublicKeyInfo */
    char node[TICKET_NODE_MAX + 1];         /* name of the node that honours it */
    char resource[TICKET_RESOURCE_MAX + 1]; /* printable ASCII, such as "gpu/dione/0" or "job/j-17/layer/3" */
    uint64_t limit_bytes;
    int64_t issued_us, expires_us;
};

struct ticket_key; /* Ed25519 private key of the coordinator */

/* Makes a key into path (PEM, 0600). ST_EEXIST if something is there. */
int ticket_key_create(const char *path, struct err *e) ST_CHECK;
/* ST_ENOENT; ST_EDENIED when others can read it; ST_ETRUST when it is no Ed25519 key. */
int ticket_key_load(struct ticket_key **out, const char *path, struct err *e) ST_CHECK;
void ticket_key_free(struct ticket_key *k); /* NULL is fine */
/* What the agents are given to verify with. */
void ticket_key_public(const struct ticket_key *k, uint8_t out[TICKET_PUB_LEN]);

/* Signs t into out and sets *n. t->serial is the caller's, see ticket_serial(). ST_EINVAL for a ticket that
 * no verifier would take: no node, odd characters, an end before its beginning, a life over
 * TICKET_MAX_LIFE_US. */
int ticket_sign(const struct ticket_key *k, const struct ticket *t, uint8_t out[TICKET_MAX], size_t *n,
                struct err *e) ST_CHECK;
void ticket_serial(const struct rng *rng, uint8_t out[TICKET_SERIAL_LEN]);

/* Takes the ticket apart without believing it. ST_ECORRUPT with TICKET_FORGED. */
int ticket_decode(const uint8_t *p, size_t n, struct ticket *out, struct err *e) ST_CHECK;
/* ST_ETRUST with TICKET_FORGED (malformed or badly signed), TICKET_WRONG_NODE, TICKET_WRONG_HOLDER,
 * TICKET_NOT_YET_VALID or TICKET_EXPIRED, looked at in this order. *out is written only on success. */
int ticket_verify(const uint8_t pub[TICKET_PUB_LEN], const uint8_t *p, size_t n, int64_t now_us,
                  const char *node, const uint8_t spki_sha256[32], struct ticket *out,
                  struct err *e) ST_CHECK;

#endif
