/*
 * Measuring the links to other agents: round trips by QUIC datagrams, rates by bulk streams, each on a
 * connection of its own over the listener that layers are fetched through, with the same certificates. The
 * coordinator asks for a probe and gives the ticket for it; the peer answers none without. What this end saw
 * of a probe is kept for a while, so that the coordinator can compare both ends. Loop thread only.
 */
#ifndef STRATA_NET_NET_H
#define STRATA_NET_NET_H

#include "agent/layers/files.h"
#include "common/rpc/rpc.h"
#include "common/ticket/ticket.h"

struct net;

struct net_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct log *log;
    struct files *files; /* names are resolved there */
    struct quic_ep *ep;  /* with bulk limits */
    const struct quic_udp *udp;
    const char *node; /* this node's name */
    const char *listen, *advertised, *coordinator;
    /* Do jobs or sessions use the network now? Then no bandwidth is tested. */
    bool (*busy)(void *arg);
    void *arg;
};

int net_new(struct net **out, const struct net_cfg *cfg, struct err *e) ST_CHECK;
/* Ends every probe; the connections end with the endpoint. */
void net_close(struct net *n);
void net_free(struct net *n); /* after the endpoint and the file threads; NULL is fine */
/* What tickets are verified with; until it is known every probe is refused. */
void net_set_key(struct net *n, const uint8_t pub[TICKET_PUB_LEN]);

/* Service NetAgent, for the coordinator's connection, and NetPeer, for those of other agents. */
int net_agent_table(struct rpc_table **out, struct net *n, struct err *e) ST_CHECK;
int net_peer_table(struct rpc_table **out, struct net *n, struct err *e) ST_CHECK;
/* A peer connected, and is gone. */
void net_peer_up(struct net *n, struct rpc_session *s);
void net_peer_gone(struct net *n, struct rpc_session *s);

#endif
