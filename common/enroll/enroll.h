/*
 * Joining a cluster: the token that an operator hands over, and the one call that turns it into a
 * certificate. The token names the CA by the hash of its key, so the joiner knows whom it talks to before it
 * sends anything; its secret is sent only after that.
 */
#ifndef STRATA_ENROLL_ENROLL_H
#define STRATA_ENROLL_ENROLL_H

#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"

#define ENROLL_ID_LEN 8
#define ENROLL_SECRET_LEN 20
#define ENROLL_TOKEN_TEXT 96 /* with the NUL; "strata-" and 88 characters */

enum enroll_kind { ENROLL_NODE = 1, ENROLL_USER = 2 };

struct enroll_token {
    enum enroll_kind kind;
    uint8_t id[ENROLL_ID_LEN];
    uint8_t secret[ENROLL_SECRET_LEN];
    uint8_t ca_spki[32];
};

void enroll_token_encode(const struct enroll_token *t, char out[ENROLL_TOKEN_TEXT]);
/* Blanks around it are fine. ST_EINVAL with BAD_TOKEN when it is not whole: a checksum tells a typing error
 * from a refusal. Any thread. */
int enroll_token_decode(const char *text, struct enroll_token *out, struct err *e) ST_CHECK;
/* Reads the token from its file, which others must not be able to read. */
int enroll_token_file(const char *path, struct enroll_token *out, struct err *e) ST_CHECK;

struct enroll_result {
    char identity[256], trust_domain[128], pool[64];
    char coordinator[300]; /* host:port of the control socket */
    struct buf certificate, ca;
    int64_t expires_us;
    double rtt_s, skew_s; /* our clock minus the coordinator's */
};

/*
 * Dials address (host:port), checks the pin, sends the request for the key at key_path and takes the answer
 * apart: it must have the pinned CA in it; that the certificate fits the key shows when it is loaded. name:
 * of the node, NULL = the token's or, if that has none, hostname (NULL = none). Blocks at most timeout_ns.
 * ST_ETRUST with PIN_MISMATCH before anything is sent; ST_EDENIED with the coordinator's reason
 * (TOKEN_UNKNOWN, TOKEN_USED, TOKEN_EXPIRED, TOKEN_REVOKED, BAD_NAME, …).
 */
int enroll_join(const char *address, const struct enroll_token *t, const char *name, const char *hostname,
                const char *key_path, uint64_t timeout_ns, struct enroll_result *out, struct err *e) ST_CHECK;
void enroll_result_fini(struct enroll_result *r);

#endif
