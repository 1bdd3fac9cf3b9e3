/*
 * Device sessions: what the coordinator has granted on agents' devices. A session's memory limit is a claim
 * in the quota ledger from before it is granted until its memory is known to be free: the agent said so, or
 * the last ticket of it has ended by every clock. Rows of state.db are written before anything is told to
 * anyone.
 *
 * open → (active) → ending → ended. `ending`: revoked durably, told to the agent as soon as it is connected.
 * `ended`: its escrow is back; the record stays until its tickets have run out, so that an agent that
 * restarted is told again to refuse them. Loop thread.
 */
#ifndef STRATA_API_SESSION_H
#define STRATA_API_SESSION_H

#include "common/base/heap.h"
#include "common/ticket/ticket.h"
#include "coordinator/access/quota.h"
#include "coordinator/store/store.h"

struct coord;
struct coord_session;

#define DSESSION_OPEN_METHOD "Sessions.Open" /* in state.db's requests */

enum dsession_state { DSESSION_OPEN, DSESSION_ENDING, DSESSION_ENDED };

struct dsession {
    char id[40], principal[POLICY_PRINCIPAL_MAX], node[TICKET_NODE_MAX + 1], reason[40];
    unsigned n_devices;
    char devices[TICKET_DEVICES_MAX][TICKET_DEVICE_MAX + 1]; /* local ids */
    uint32_t permissions;                                    /* PERM_BIT set, never PERM_ADMIN */
    uint64_t limit_bytes, used_bytes, generation;
    int64_t opened_us, expires_us; /* expires: of the latest ticket */
    enum dsession_state state;
    unsigned writing;    /* changes of it on their way to disk */
    char request_id[80]; /* it was opened under; "" = none */
    uint8_t wish[32];    /* SHA-256 of that request */
    bool active;         /* the agent said that it holds it */
    bool asked;          /* the agent was asked to end it, no answer yet */
    bool freed;          /* freed while writing: to be ended when that is through */
    struct heap_node expiry;
    struct dsession *next;
};
struct dsessions {
    struct map *by_id;
    struct dsession *head;
    struct dsession *opening; /* claimed, on their way to disk */
    struct heap expiries;     /* when a record can go: its tickets have ended by every clock */
    unsigned ending;          /* how many wait for their agent */
};

int dsessions_init(struct coord *c) ST_CHECK;
void dsessions_fini(struct coord *c);
/* Before store_start: rows and their claims, then dsessions_recheck once policies are loaded. */
int dsessions_load(struct coord *c, struct err *e) ST_CHECK;

struct dsession *dsession_find(struct coord *c, const char *id);
/* Makes room, takes the claim; not yet in the list. ST_ERESOURCE with *why when the quota refuses. */
int dsession_claim(struct coord *c, const struct dsession *s, const struct policy *p, bool held,
                   struct quota_refusal *why) ST_CHECK;
/* Claimed and not in the list: until dsession_opened() the claim counts on its devices all the same. */
void dsession_opening(struct coord *c, struct dsession *s);
void dsession_opened(struct coord *c, struct dsession *s);
/* Its claim is gone, or changed: what sessions may take of the node's devices is counted anew. */
void dsessions_account(struct coord *c, const char *node);
int dsession_add(struct coord *c, struct dsession *s) ST_CHECK; /* takes s, also on failure */
void dsession_put(struct store_txn *t, const struct dsession *s);
/* An event about a session, in a transaction. */
void dsession_event(struct coord *c, struct store_txn *t, const struct dsession *s, int type, int result,
                    const char *by, const char *meta, const char *error);

/* Why this policy (NULL: none) does not carry the session any more; false: it does. */
bool dsession_lost(const struct dsession *s, const struct policy *p, int64_t now_us, char reason[40]);
/* Revokes: durable, audited, then told to the agent. Again is fine. by: who did it. */
void dsession_end(struct coord *c, struct dsession *s, const char *reason, const char *by);
/* The agent has freed it all, or can hold nothing any more. */
void dsession_freed(struct coord *c, struct dsession *s, const char *reason);
/* After a policy changed (principal NULL: all): ends what it no longer carries. */
void dsessions_recheck(struct coord *c, const char *principal, const char *by);
/* Tells the node what it has to end. */
void dsessions_push(struct coord *c, const char *node);
/* Expiry, and what an agent did not answer; O(1) when there is nothing to do. */
void dsessions_tick(struct coord *c);

#endif
