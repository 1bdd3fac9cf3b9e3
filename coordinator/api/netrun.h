/* Shared by netrun.c (playing rounds) and netask.c (what to measure, and when) alone. */
#ifndef STRATA_API_NETRUN_H
#define STRATA_API_NETRUN_H

#include "coordinator/api/net.h"

#define ALL_PAIRS_MAX 64u /* nodes; above it only SAMPLE_ROUNDS of the rounds are played */

struct net_ask { /* what to measure */
    uint32_t count, size;
    uint64_t interval_ns, timeout_ns, stream_ns, stream_bytes;
};

struct pair;

struct net_run {
    struct coord *c;
    struct rpc_call *call; /* NULL = nobody waits */
    char principal[POLICY_PRINCIPAL_MAX];
    struct net_ask ask;
    char **node;
    uint32_t n;
    uint32_t *round, rounds, at; /* which rounds of the tournament; the next to play */
    struct pair *pair;           /* of the round being played */
    uint32_t npair, inflight;    /* of them, those that have not come to the end of their half of the round */
    bool streaming;              /* the second half */
    uint32_t pairs, sampled, done, failed, writing;
    bool cancelled, stale_only;
    uint64_t start_ns;
    struct net_run *next;
};

/* Of a run that is the first of c->net->runs, all of whose calls are over: plays its next round. */
void net_run_next(struct net_run *r);
void net_run_free(struct net_run *r);
/* Tells who waits how far it is, with a link that was just measured (NULL = none). */
void net_run_progress(struct net_run *r, const struct net_link *l);
/* Is the pair one that this run measures? */
bool net_run_wants(const struct net_run *r, const char *a, const char *b);

#endif
