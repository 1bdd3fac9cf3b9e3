/*
 * A cluster as the planner sees it: devices with measured rates, and links between nodes. Read from
 * strata.cluster.v1 or built by the coordinator (cluster_new, cluster_add_*, cluster_seal). Immutable once
 * sealed and then readable from any thread.
 */
#ifndef STRATA_MODEL_CLUSTER_H
#define STRATA_MODEL_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/err.h"

#define CLUSTER_MAX_DEVICES 65536u
#define CLUSTER_NO_NODE UINT32_MAX

struct cluster_rate {
    double bytes_per_s; /* > 0 */
    double rtt_s;       /* ≥ 0 */
};

struct cluster_device {
    char *id;      /* unique, such as "dione/cuda:0" */
    uint32_t node; /* index into cluster.nodes */
    double memory_bytes, headroom_bytes;
    double compute_flops_per_s, memory_bytes_per_s; /* > 0 */
    double layer_overhead_s, stage_overhead_s;
    double speed_factor; /* > 0; 1 = as measured */
    double *segment_s;   /* segment_s[k-1] = seconds of k block layers in one stage */
    size_t nsegment;
    bool has_segment;       /* a table was given, even an empty one */
    char **resident_layers; /* names as given; they may name layers that no longer exist */
    size_t nresident;
};

struct cluster_link {
    uint32_t from, to; /* nodes; one direction */
    struct cluster_rate rate;
};

struct cluster {
    struct cluster_device *devices; /* in file order, ≥ 1 */
    size_t ndevices;
    char **nodes; /* every node named anywhere, in order of first mention (devices, links, client) */
    size_t nnodes;
    struct cluster_link *links; /* both directions filled in, sorted by (from, to) */
    size_t nlinks;
    bool has_default_link, has_same_node_link;
    struct cluster_rate default_link, same_node_link;
    uint32_t client_node;                  /* CLUSTER_NO_NODE = input and output are free */
    struct map *device_index, *node_index; /* private */
    size_t device_cap, node_cap, link_cap; /* private */
};

/* strata.cluster.v1 from memory or a file; `name` stands for the file in errors. ST_EINVAL on any defect. */
int cluster_read_json(const char *text, size_t n, const char *name, struct cluster **out,
                      struct err *e) ST_CHECK;
int cluster_open(const char *path, struct cluster **out, struct err *e) ST_CHECK;
int cluster_write_json(const struct cluster *c, struct buf *out) ST_CHECK;

void cluster_free(struct cluster *c); /* NULL is fine */

uint32_t cluster_find_device(const struct cluster *c, const char *id); /* or UINT32_MAX */
uint32_t cluster_find_node(const struct cluster *c, const char *node); /* or CLUSTER_NO_NODE */

/*
 * What bytes from one node to another go over. 1 = *out filled; 0 = free (one node, no same-node link);
 * ST_EUNREACH = the two cannot exchange anything. A listed link from a node to itself goes before
 * same_node_link.
 */
int cluster_path(const struct cluster *c, uint32_t from, uint32_t to, struct cluster_rate *out);

/*
 * Building one without JSON. Strings are copied, arrays in *d (segment_s, resident_layers) too; d->id and
 * d->node are ignored for the arguments. ST_EEXIST on a duplicate, ST_EINVAL on a number out of range,
 * ST_ELIMIT.
 */
int cluster_new(struct cluster **out) ST_CHECK;
int cluster_add_device(struct cluster *c, const char *id, const char *node,
                       const struct cluster_device *d) ST_CHECK;
int cluster_add_link(struct cluster *c, const char *from, const char *to,
                     const struct cluster_rate *r) ST_CHECK;
int cluster_set_client(struct cluster *c, const char *node) ST_CHECK;
/* Fills in missing directions and sorts the links; nothing may be added after it. ST_EINVAL without a device.
 */
int cluster_seal(struct cluster *c) ST_CHECK;

#endif
