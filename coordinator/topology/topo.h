/*
 * The registry of nodes and devices as the coordinator knows them now, with leases on the monotonic clock:
 * connected, suspect after `suspect_ns` without a word, lost after `lost_ns`. Pure: no I/O, plain structs in
 * and out. Every registration gets an epoch above all earlier ones; what carries an older epoch is void, so a
 * node that was replaced cannot speak for its successor. One thread.
 */
#ifndef STRATA_TOPOLOGY_TOPO_H
#define STRATA_TOPOLOGY_TOPO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#define TOPO_MAX_DEVICES 64 /* per node; a node that offers more is refused */
#define TOPO_MAX_NODES 10000

enum topo_state { TOPO_CONNECTED, TOPO_SUSPECT, TOPO_LOST };
const char *topo_state_name(enum topo_state s); /* "connected" "suspect" "lost" */

struct topo_device {
    char id[96];       /* cluster-wide: "dione/cpu:0" */
    char local_id[32]; /* "cpu:0" */
    char backend[16], name[128], vendor[64], uuid[64], driver_version[64], support_level[16];
    bool software;
    uint64_t memory_bytes, available_bytes; /* as the agent last said */
    uint64_t reserved_bytes;                /* by jobs, in total; kept by topo_reserve/topo_unreserve */
    uint64_t resident_bytes; /* part of reserved that the agent already holds, so counted in available */
    uint64_t session_bytes;  /* that device sessions may take here at most; kept by the api room */
    uint64_t
        session_used_bytes; /* part of it that is taken, as the agent said together with available_bytes */
    uint32_t compute_units;
    double flops_per_s, bytes_per_s; /* measured; 0 = not measured */
};

struct topo_node {
    char name[64];
    enum topo_state state;
    char address[64], peer_address[64], version[32];
    uint64_t epoch, last_heard_ns;
    uint64_t connected_ns; /* since when it has been connected without a break */
    int64_t first_seen_us, last_seen_us;
    double rtt_s; /* to the coordinator; 0 = not measured */
    struct topo_device *devices;
    size_t ndevices;
    void *user;    /* the coordinator's session with it; NULL when none */
    bool draining; /* nothing new is placed here, what is here moves off; the coordinator keeps it on disk */
};

struct topo;

int topo_new(struct topo **out, uint64_t suspect_ns, uint64_t lost_ns, uint64_t first_epoch) ST_CHECK;
void topo_free(struct topo *t);

/* A node says hello: made or replaced, connected, a new epoch. Devices are copied; reservations of devices
 * that are still there are kept. ST_EINVAL (a bad name or id), ST_ELIMIT, ST_ENOMEM. */
int topo_hello(struct topo *t, const char *name, const struct topo_device *devices, size_t n, uint64_t now_ns,
               int64_t wall_us, struct topo_node **out, struct err *e) ST_CHECK;
/* Known from an earlier run and not heard of yet: suspect, becomes lost if it stays silent. */
int topo_expect(struct topo *t, const char *name, uint64_t now_ns, int64_t first_seen_us,
                int64_t last_seen_us) ST_CHECK;
/* ST_ECONFLICT when the epoch is not the node's current one. Returns a suspect node to connected. */
int topo_heartbeat(struct topo *t, struct topo_node *n, uint64_t epoch, uint64_t now_ns,
                   int64_t wall_us) ST_CHECK;
/* The connection went away: suspect at once. */
void topo_disconnected(struct topo *t, struct topo_node *n);

/* Takes it out; n is gone. Its epoch's successors stay void: the next registration has a higher one. */
void topo_forget(struct topo *t, struct topo_node *n);

/* Ages the leases; `changed` is called for each node that became suspect or lost. */
void topo_tick(struct topo *t, uint64_t now_ns,
               void (*changed)(struct topo_node *n, enum topo_state was, void *arg), void *arg);

struct topo_node *topo_node(struct topo *t, const char *name);                         /* NULL = unknown */
struct topo_device *topo_device(struct topo *t, const char *id, struct topo_node **n); /* NULL = unknown */
size_t topo_count(const struct topo *t);
struct topo_node *topo_at(const struct topo *t, size_t i); /* by name, ascending */

/* What is free for another job or session: available, less what jobs have reserved and sessions may take and
 * neither has yet; and never more than its memory less all that is reserved or may be taken. Not negative. */
uint64_t topo_free_bytes(const struct topo_device *d);

#endif
