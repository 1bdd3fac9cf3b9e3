/*
 * The network as the coordinator has it measured: a map of links (topology/netmap.h) kept in state.db,
 * measurements of pairs in the rounds of a tournament by asking agents, and service Net. One measurement runs
 * at a time, others wait; every step has a deadline. Loop thread only.
 */
#ifndef STRATA_API_NET_H
#define STRATA_API_NET_H

#include "coordinator/api/api.h"
#include "coordinator/topology/netmap.h"
#include "strata/v1/net.pb-c.h"

struct net_run;

struct coord_net {
    struct netmap *map;
    struct net_run *runs; /* the first is running */
    unsigned nruns;
    uint64_t look_ns; /* when to look for stale links again */
    bool stopping;
};

int net_init(struct coord *c) ST_CHECK;
int net_load(struct coord *c, struct err *e) ST_CHECK; /* before store_start */
void net_stop(struct coord *c);                        /* nothing new is begun */
void net_fini(struct coord *c);
void net_tick(struct coord *c);
/* A node registered; everything measured with it is in doubt, figures stay until there are new ones. */
void net_node_up(struct coord *c, const struct topo_node *n);
/* `to` received layers from p->from. */
void net_passive(struct coord *c, const char *to, const Strata__V1__NetPassive *p);

extern const struct rpc_method net_methods[];
extern const size_t net_methods_n;

/* ---- between the files that make this up ---- */

/* Of all nodes of the registry; the names' array is the caller's to free, after the view. */
int net_view_all(struct coord *c, struct net_view **v, const char ***names, size_t *n) ST_CHECK;
/* A link and its path as a message: strings are borrowed from them. Either may be NULL. */
void net_fill_link(Strata__V1__NetLink *m, const char *from, const char *to, const struct net_link *l,
                   const struct net_path *p);
/* Puts the latest figures of l, and a sample of them for the history, into t. */
void net_store_link(struct store_txn *t, const struct net_link *l, bool rate_is_new);
void api_net_measure(struct rpc_call *call, const ProtobufCMessage *req, void *arg);

#endif
