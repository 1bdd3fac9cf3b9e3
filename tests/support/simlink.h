/*
 * An in-memory network for QUIC endpoints: a virtual clock, a seeded generator, and links that lose, reorder
 * and double datagrams. Nothing happens by itself: sim_run() delivers events in the order of their time.
 */
#ifndef STRATA_TESTS_SIMLINK_H
#define STRATA_TESTS_SIMLINK_H

#include "common/quic/quic.h"

struct sim;
struct sim_port; /* one address on the network */

struct sim_cfg {
    uint64_t seed;
    uint64_t delay_ns;  /* one way */
    uint64_t jitter_ns; /* added, uniform: what exceeds the spacing of packets reorders them */
    unsigned loss_ppm;  /* parts per million */
    unsigned dup_ppm;
    unsigned corrupt_ppm; /* one byte of the datagram changes */
    size_t mtu;           /* larger datagrams vanish; 0 = 1500 */
};

struct sim *sim_new(const struct sim_cfg *cfg);
void sim_free(struct sim *s); /* frees ports that are left */
void sim_set_loss(struct sim *s, unsigned loss_ppm);
const struct clock *sim_clock(struct sim *s);
const struct rng *sim_rng(struct sim *s);
uint64_t sim_now(const struct sim *s);

/* A port at 10.0.0.<host>:<port>. Fills cfg's link, link_arg, local, clock and rng. Attach the endpoint
 * afterwards. */
struct sim_port *sim_port_new(struct sim *s, unsigned host, uint16_t port, struct quic_ep_cfg *cfg);
void sim_port_attach(struct sim_port *p, struct quic_ep *ep);
void sim_port_free(struct sim_port *p); /* what is under way to it vanishes */
/* While blocked the port takes nothing (ST_EAGAIN); unblocking tells the endpoint. */
void sim_port_block(struct sim_port *p, bool blocked);
/* While cut the port neither sends nor receives, silently. */
void sim_port_cut(struct sim_port *p, bool cut);
/* Puts a datagram on the network as if `from` had sent it. */
void sim_inject(struct sim_port *from, const struct quic_addr *to, const uint8_t *p, size_t n);
void sim_addr(unsigned host, uint16_t port, struct quic_addr *out);

/* Runs until done(arg) is true or `for_ns` of virtual time have passed; true = done. done NULL = just let
 * time pass. */
bool sim_run(struct sim *s, uint64_t for_ns, bool (*done)(void *arg), void *arg);

#endif
