/*
 * Two endpoints on a simulated network, as the QUIC tests want them: server at 10.0.0.1, client at 10.0.0.2,
 * each with an application that echoes.
 */
#ifndef STRATA_TESTS_QUIC_SIMNET_H
#define STRATA_TESTS_QUIC_SIMNET_H

#include "tests/support/quicpeer.h"
#include "tests/support/simlink.h"

enum { SRV = 1, CLI = 2 };
#define MS NS_PER_MS
#define SEC NS_PER_S

struct side {
    struct quic_ep_cfg cfg;
    struct sim_port *port;
    struct quic_ep *ep;
    struct peer app;
};

struct net {
    struct sim *sim;
    struct side s, c;
};

extern struct pki simnet_pki;
extern struct tls_ctx *simnet_coord, *simnet_node;
extern const struct sim_cfg calm; /* seed 1, 1 ms, no losses */

int simnet_setup(void **state); /* of the test group */
int simnet_teardown(void **state);
void side_start(struct net *n, struct side *d, unsigned host);
void side_stop(struct side *d);
void net_prepare(struct net *n, const struct sim_cfg *cfg); /* then change what the case wants … */
void net_start(struct net *n);
void net_stop(struct net *n);
int dial_as(struct net *n, enum tls_kind kind, const char *name);
void up(struct net *n);  /* dials and waits for both ends */
bool both_up(void *arg); /* conditions for sim_run(); arg is the net … */
bool client_closed(void *arg);
bool server_closed(void *arg);
bool xfer_closed(void *arg); /* … or the transfer */

#endif
