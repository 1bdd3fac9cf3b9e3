/*
 * The coordinator's configuration file: YAML, read once, checked whole, then immutable. An unknown key, a
 * wrong type or a value out of range is an error with the file, line and column; nothing is guessed.
 */
#ifndef STRATA_COORDINATOR_CONFIG_H
#define STRATA_COORDINATOR_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/log.h"

struct config_link {
    char *from, *to;    /* nodes */
    double bytes_per_s; /* > 0 */
    uint64_t rtt_ns;
};

struct config_audit { /* zeros: the audit room's own defaults */
    bool echo;        /* rows on the log too */
    bool syslog;
    char *lines; /* file of JSON lines; NULL = none */
    uint64_t flush_ns, checkpoint_ns, segment_ns, keep_ns;
    unsigned flush_rows, ring_rows, segment_rows, hot_segments;
};

struct config_pin {
    char *peer; /* principal, pattern or pool/NAME */
    char *sha256;
};

struct coord_config {
    char *listen;  /* host:port of the control socket */
    char *tls_dir; /* holds ca.crt, coordinator.crt, coordinator.key */
    char *trust_domain;
    char *state_dir; /* state.db, audit.db, reset.key, ticket.key */
    char *admin;     /* principal of the first admin policy: "user/admin" */
    uint64_t suspect_ns, lost_ns, heartbeat_ns;
    struct config_audit audit;
    enum log_level log_level;
    struct config_link *links; /* declared between nodes, until they are measured */
    unsigned nlinks;
    uint64_t net_refresh_ns; /* links older than this are measured again by themselves; 0 = on demand alone */
    uint64_t net_settle_ns;  /* not before a node has been connected this long */
    uint64_t net_stream_ns;  /* of each bandwidth test */
    unsigned net_probes;     /* of each latency test */
    double default_bytes_per_s; /* 0 = nodes without a link cannot exchange layers' activations */
    uint64_t default_rtt_ns;
    bool development;                         /* a CA made on the spot, loopback only */
    char *tls_ciphers, *tls_groups, *tls_crl; /* NULL: the defaults, none */
    struct config_pin *pins;
    unsigned npins;
    char *ca_dir; /* of the CA that signs; NULL: certificates come from elsewhere */
    int64_t leaf_ttl_us;
    char *enroll_listen; /* NULL: nobody can join */
    double enroll_rate;  /* enrolments a second */
};

int coord_config_read(struct coord_config *out, const char *path, struct err *e) ST_CHECK;
void coord_config_fini(struct coord_config *c);

#endif
