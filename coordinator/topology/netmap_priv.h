/* Shared by netmap.c and netview.c alone. */
#ifndef STRATA_TOPOLOGY_NETMAP_PRIV_H
#define STRATA_TOPOLOGY_NETMAP_PRIV_H

#include "coordinator/topology/netmap.h"

struct map;

struct netmap {
    const struct rng *rng;
    struct net_link **v;
    size_t n, cap;
    struct map *index;  /* "from\nto" → struct net_link, owned by v */
    struct map *places; /* node → struct coord_place, owned */
};

#endif
