/*
 * The ledger of device memory: who holds how much, on which node and device. A claim is what one job or one
 * session may hold at most; it is reserved before anything is granted, committed when the grant is durable,
 * and released when the memory is known to be free. Escrow of a ticket is a claim like any other, so a limit
 * holds over the whole cluster even while a node cannot be reached.
 *
 * Three limits bind a principal: over the cluster, on any one node, on any one device. A reservation that
 * does not fit under all of them changes nothing. What a claim really holds (quota_used) is counted apart;
 * should an agent report more than the claim's limit, the larger figure counts.
 *
 * Nothing here is stored: after a crash the ledger is made again from what is (quota_hold), and agents'
 * reports bring it up to date. Pure; one thread.
 */
#ifndef STRATA_ACCESS_QUOTA_H
#define STRATA_ACCESS_QUOTA_H

#include "common/base/clock.h"
#include "coordinator/access/access.h"

struct quota;

struct quota_part {
    const char *where; /* a node ("dione") or a device ("dione/cuda:0") */
    uint64_t bytes;
};
struct quota_claim {
    const char *key; /* unique: a job's or a session's id */
    const char *principal;
    uint64_t bytes; /* over the cluster */
    /* How much of it may lie on each node and device. A session that may use either of two devices has its
     * whole limit on both: it could put all of it on either. */
    const struct quota_part *parts;
    size_t nparts;
};
struct quota_refusal {
    char where[128]; /* "" = the cluster */
    uint64_t asked, used, limit;
};

int quota_new(struct quota **out, const struct rng *rng) ST_CHECK;
void quota_free(struct quota *q); /* NULL is fine */

/* Takes the bytes if they fit under the limits of p (NULL or without quota: always). A claim of the same key
 * is replaced, and what it held does not count against the new one. ST_ERESOURCE with *why; ST_ELIMIT for a
 * sum beyond 8 EiB; ST_ENOMEM. On failure nothing has changed. */
int quota_reserve(struct quota *q, const struct quota_claim *c, const struct policy *p,
                  struct quota_refusal *why) ST_CHECK;
/* The grant is on disk. Absent is fine. */
void quota_commit(struct quota *q, const char *key);
/* What is known to be held, whatever the limits say: at start, and when an agent reports what nobody
 * expected. Committed at once. ST_ENOMEM, ST_ELIMIT. */
int quota_hold(struct quota *q, const struct quota_claim *c) ST_CHECK;
/* What the claim has really allocated now. Absent is fine. */
void quota_used(struct quota *q, const char *key, uint64_t bytes);
/* The memory is free, or was never taken. Absent is fine. */
void quota_release(struct quota *q, const char *key);
bool quota_has(const struct quota *q, const char *key);

struct quota_usage {
    uint64_t reserved;  /* claims not yet durable */
    uint64_t committed; /* claims that are */
    uint64_t allocated; /* as agents say; part of the two above, and for the cluster and nodes alone */
};
/* where "": over the cluster. */
struct quota_usage quota_usage(const struct quota *q, const char *principal, const char *where);
/* What counts against a limit: reserved and committed. */
uint64_t quota_charged(const struct quota *q, const char *principal, const char *where);
/* Would this many bytes more fit, on this device (NULL: none named)? */
bool quota_fits(const struct quota *q, const struct policy *p, const char *device, uint64_t bytes,
                struct quota_refusal *why);
/* Every principal's use in every place, in no order; the callback must not change the ledger. */
int quota_each(const struct quota *q,
               int (*fn)(const char *principal, const char *where, const struct quota_usage *u, void *arg),
               void *arg);

#endif
