/*
 * What is known of the network between nodes: the latest figures of every direction, places (coordinates) of
 * the nodes, and what follows from them: the path between any two with its source and confidence, sites, the
 * bottleneck, estimates. A figure that nobody measured is zero and never shown as if it were one. Pure: no
 * I/O, wall times come in. One thread.
 */
#ifndef STRATA_TOPOLOGY_NETMAP_H
#define STRATA_TOPOLOGY_NETMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "coordinator/topology/coords.h"

struct netmap;

enum net_source {
    NET_UNKNOWN,
    NET_MEASURED,  /* by a test made for it */
    NET_PASSIVE,   /* learned from a transfer, which may have been slower than the link */
    NET_PREDICTED, /* from coordinates and from what its sites have */
};
const char *net_source_name(enum net_source s); /* "unknown" "measured" "passive" "predicted" */

struct net_link { /* one direction */
    char from[64], to[64];
    /* Latency, from the prober `from`. */
    bool reached;     /* the last try came through */
    char reason[40];  /* why not; "" */
    int64_t tried_us; /* wall time of the last try; 0 = never */
    uint32_t sent, received, late, duplicates, reordered;
    double rtt_min_s, rtt_mean_s, rtt_p50_s, rtt_p99_s, jitter_s, stddev_s, loss;
    uint32_t mtu; /* UDP payload the path took */
    /* Rate of bytes that go from `from` to `to`. */
    enum net_source rate_source;
    int64_t rate_us;         /* wall time; 0 = never */
    double bytes_per_s;      /* what an application gets; 0 = not known */
    double wire_bytes_per_s; /* with all headers, Ethernet's included; 0 = not known */
    double spread;           /* half width of its 95 % interval, as a share */
    uint64_t retransmits, test_bytes;
    char rate_reason[40]; /* why there is no rate; "" */
    bool stale;           /* to be measured again: something changed since */
    bool disputed;        /* the two ends do not agree: no figure of this is used */
};

int netmap_new(struct netmap **out, const struct rng *rng) ST_CHECK;
void netmap_free(struct netmap *m);
/* The record of a direction, made when it is not there; valid until netmap_forget. Changing figures in it is
 * how they are put. ST_ENOMEM, ST_EINVAL (a bad name, or a node to itself). */
int netmap_link(struct netmap *m, const char *from, const char *to, struct net_link **out) ST_CHECK;
struct net_link *netmap_find(const struct netmap *m, const char *from, const char *to); /* NULL = unknown */
void netmap_forget(struct netmap *m, const char *node);
size_t netmap_count(const struct netmap *m);
/* In the order they were made; stops at a non-zero, which is returned. */
int netmap_each(const struct netmap *m, int (*fn)(struct net_link *l, void *arg), void *arg);
/* Moves the nodes' places towards what the links' round trips say, each link `passes` times; a few dozen
 * bring a new map near its best, one or two follow what changed. Without it nothing is predicted. */
void netmap_relax(struct netmap *m, unsigned passes);

/* ---- what follows ---- */

struct net_path {
    enum net_source rtt_source, rate_source;
    double rtt_s, bytes_per_s; /* 0 = not known */
    double rtt_error;          /* of a predicted one, relative */
    double spread;             /* of the rate, relative */
    double confidence;         /* 0 … 1: by source, spread and age */
    bool unreachable;          /* tried last and not reached, or disputed */
};
/* A view of some nodes at one time: what is asked for many pairs is worked out once. */
struct net_view;
int net_view_new(struct net_view **out, const struct netmap *m, const char *const *nodes, size_t n,
                 int64_t now_us) ST_CHECK; /* names are borrowed */
void net_view_free(struct net_view *v);
void net_view_path(const struct net_view *v, size_t from, size_t to, struct net_path *out);
const struct net_link *net_view_link(const struct net_view *v, size_t from, size_t to); /* NULL = unknown */
uint32_t net_view_sites(const struct net_view *v);
uint32_t net_view_site(const struct net_view *v, size_t node);

#define NET_NOBODY SIZE_MAX
struct net_report { /* indices into the view's nodes, NET_NOBODY = there is none */
    size_t pairs, measured, unreachable, disputed; /* directions */
    double rtt_mean_s, rate_mean;                  /* over measured directions; 0 = none */
    size_t far_from, far_to;                       /* the diameter: largest median round trip */
    double diameter_s;
    size_t slow_from, slow_to; /* the bottleneck link */
    double slow_rate, typical_rate, slow_ratio;
    size_t slow_node; /* all of whose links are slow: at most half of what the others have */
    double slow_node_rate;
    size_t uneven_from, uneven_to; /* the most asymmetric pair: from → to is the slower */
    double uneven_ratio;           /* ≥ 1 */
};
int net_view_report(const struct net_view *v, struct net_report *out) ST_CHECK;

struct net_estimate {
    double seconds, low_s, high_s;
};
/* A transfer of so many bytes over a connection that is up: the request's round trip, slow start, the rest at
 * the rate. ST_ENOENT when the path has no round trip or no rate. */
int net_estimate(const struct net_path *p, double bytes, struct net_estimate *out) ST_CHECK;

#endif
