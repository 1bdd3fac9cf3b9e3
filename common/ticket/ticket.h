/*
 * Tickets: what the coordinator signs so that an agent can decide alone. A ticket names its purpose, the
 * holder (the SHA-256 of the key in the client's certificate), the one node that may honour it, a resource, a
 * byte limit that the coordinator holds in escrow, and when it ends. Signed with Ed25519; a ticket is
 * worthless to anyone who does not hold the certificate's key. Whether a ticket was revoked is for the agent
 * to look up by serial.
 *
 * A ticket for devices also says what its holder may do there (struct ticket_grant): the agent has no policy
 * to ask. Renewing one means another ticket, with a serial of its own, for the same session.
 *
 * Wire form, at most TICKET_MAX bytes, numbers big endian: "STK" and a version byte; purpose; serial (16);
 * holder (32); byte limit, issued, expires (8 each); node length and node; resource length and resource; in
 * version 2, which is that of TICKET_DEVICE and of nothing else, permissions (4), policy generation (8),
 * session (16), principal length and principal, number of device patterns, and each with its length;
 * signature (64) over everything before it and a fixed prefix, so that a signature made for something else
 * never passes here.
 *
 * Verifying needs no state: any thread, if each has its own error. Keys may be shared between threads.
 */
#ifndef STRATA_TICKET_TICKET_H
#define STRATA_TICKET_TICKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/permission.h"

#define TICKET_NODE_MAX 63
#define TICKET_RESOURCE_MAX 127
#define TICKET_SERIAL_LEN 16
#define TICKET_PUB_LEN 32
#define TICKET_SESSION_LEN 16
#define TICKET_PRINCIPAL_MAX 255
#define TICKET_DEVICES_MAX 16u
#define TICKET_DEVICE_MAX 63
#define TICKET_PLAIN_MAX (4 + 1 + 16 + 32 + 3 * 8 + 1 + TICKET_NODE_MAX + 1 + TICKET_RESOURCE_MAX + 64)
#define TICKET_GRANT_MAX                                                                                     \
    (4 + 8 + TICKET_SESSION_LEN + 1 + TICKET_PRINCIPAL_MAX + 1 + TICKET_DEVICES_MAX * (1 + TICKET_DEVICE_MAX))
#define TICKET_MAX (TICKET_PLAIN_MAX + TICKET_GRANT_MAX)
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

/* What the holder of a device ticket may do. */
struct ticket_grant {
    uint32_t permissions; /* PERM_BIT set, after denials; PERM_ADMIN stands for all of them */
    uint64_t generation;  /* of the policy it was made from; for the audit row */
    uint8_t session[TICKET_SESSION_LEN];
    char principal[TICKET_PRINCIPAL_MAX + 1]; /* SPIFFE id or short form, printable ASCII */
    unsigned n_devices;                       /* at least 1; all devices = "*" */
    char devices[TICKET_DEVICES_MAX]
                [TICKET_DEVICE_MAX + 1]; /* globs over the node's own ids: "cuda:0", "*" */
};

struct ticket {
    enum ticket_purpose purpose;
    uint8_t serial[TICKET_SERIAL_LEN];
    uint8_t holder[32];                     /* SHA-256 of the holder's SubjectPublicKeyInfo */
    char node[TICKET_NODE_MAX + 1];         /* name of the node that honours it */
    char resource[TICKET_RESOURCE_MAX + 1]; /* printable ASCII, such as "gpu/dione/0" or "job/j-17/layer/3" */
    uint64_t limit_bytes;
    int64_t issued_us, expires_us;
    struct ticket_grant grant; /* TICKET_DEVICE alone; nothing in other tickets */
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

/* Does a device ticket grant p (admin grants all)? And does it hold for this device of its node, "cuda:0"? */
bool ticket_grants(const struct ticket *t, enum permission p);
bool ticket_device_ok(const struct ticket *t, const char *device);

#endif
