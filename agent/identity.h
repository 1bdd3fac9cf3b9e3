/*
 * Who this node is and whom it trusts: its certificate and its renewal, the CA's certificates, revocations
 * and pins that the coordinator tells. A certificate is renewed at two thirds of its life, over the
 * connection that the old one made; then the agent moves to a connection made with the new one before the old
 * one ends. Files that somebody else replaces (an external CA's agent) are noticed and used the same way.
 * Loop thread.
 */
#ifndef STRATA_AGENT_IDENTITY_H
#define STRATA_AGENT_IDENTITY_H

#include "agent/config.h"
#include "agent/control.h"
#include "common/ticket/ticket.h"
#include "strata/v1/certs.pb-c.h"

struct identity;

struct identity_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    const struct agent_config *config;
    void (*on_context)(struct tls_ctx *fresh, void *arg); /* for connections to come; borrowed */
    void (*on_check)(void *arg);                          /* twice a second, and when rules changed */
    void (*on_ticket_key)(const uint8_t pub[TICKET_PUB_LEN], void *arg);
    void *arg;
};

/* Loads the files, mending what a crash in the middle of a replacement left, and what was told last time
 * (state_dir/trust.pb). */
int identity_new(struct identity **out, const struct identity_cfg *cfg, struct err *e) ST_CHECK;
void identity_free(struct identity *id); /* NULL is fine */
struct tls_ctx *identity_tls(struct identity *id);
/* The connection over which to renew; from now on it does. */
void identity_start(struct identity *id, struct control *c);
/* There is a new connection to the coordinator. */
void identity_registered(struct identity *id);
/* What the coordinator said; persisted before it counts. ca_sha256: of the bundle in use afterwards. A bundle
 * that would cut ourselves off is refused (CUT_OFF). */
int identity_update(struct identity *id, const Strata__V1__TrustUpdate *u, uint8_t ca_sha256[32],
                    struct err *e) ST_CHECK;

/* How long after its beginning a life of life_us is renewed: two thirds, less up to a twentieth of jitter. */
int64_t identity_renewal_us(const struct rng *rng, int64_t life_us);

#endif
