/*
 * Device sessions: what a client does with the devices of this node under a ticket of the coordinator.
 *
 * A session begins with the first connection that presents its ticket and ends once: closed, left by its last
 * connection for longer than it may linger, expired, revoked, its worker dead, or the agent stopping. However
 * it ends, its calls are answered with the reason, what it held is freed, and only then is it reported as
 * ended, so that the coordinator never gives its escrow to anybody while the memory is still taken. Until a
 * ticket of it could no longer be valid, an ended session is remembered and cannot be begun again.
 *
 * All memory of a principal lives in its worker (agent/pool), which sessions share with the principal's
 * layers. A buffer's handle is 16 random bytes, found only by calls of its own session. The byte limit of the
 * ticket is enforced here alone: `used` counts a buffer from before it is allocated until its memory is free
 * again.
 *
 * Every operation, refusal, beginning and end is a row of the node's audit spool. Those of the must class are
 * on disk before the caller has the answer, and before an end is reported; when the spool has no room, what
 * would need a row is refused.
 *
 * Loop thread only; nothing completes inside the call that asked.
 */
#ifndef STRATA_SESSION_SESSION_H
#define STRATA_SESSION_SESSION_H

#include "agent/layers/peers.h"
#include "agent/pool/pool.h"
#include "agent/spool/spool.h"
#include "common/event/event.h"
#include "common/rpc/rpc.h"
#include "common/ticket/ticket.h"

#define SESSION_NAME_MAX (2 + 2 * TICKET_SESSION_LEN) /* "s-" and hex digits */

struct sessions;

struct sessions_own { /* kernels of one's own */
    bool allow;
    uint32_t max_bytes;   /* of the code; at most KERNEL_MAX_BYTES */
    uint64_t deadline_ns; /* of one call */
};

struct sessions_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    struct pool *pool;
    struct peers *peers;
    struct spool *spool; /* of audit rows; its completions run on this loop */
    const char *node;
    const struct pool_device *(*devices)(size_t *n, void *arg); /* of this node, as they were found */
    struct sessions_own own;
    uint64_t (*layer_bytes)(const char *device, void *arg); /* taken by layers of jobs */
    /* Something to report: a beginning or an end when urgent, else used bytes. Never inline; many changes may
     * be told once. */
    void (*on_change)(bool urgent, void *arg);
    void *arg;
};

int sessions_new(struct sessions **out, const struct sessions_cfg *cfg, struct err *e) ST_CHECK;
/* Ends every session with AGENT_STOPPED. Their memory goes with the workers. */
void sessions_close(struct sessions *ss);
/* After endpoints and pool are freed and the spool is closed and its port drained; NULL is fine. */
void sessions_free(struct sessions *ss);

/* The services of devices.proto, to be served on the listener beside others. */
int sessions_table(struct rpc_table **out, struct sessions *ss, struct err *e) ST_CHECK;

/* A connection of the listener is gone: called from on_closed of its rpc session, whose user pointer is ours.
 */
void sessions_gone(struct sessions *ss, struct rpc_session *rpc);

/* What tickets are verified with. None is honoured before sessions_trust(): until the coordinator has said
 * what was revoked while this agent was not there, an old ticket proves nothing. */
void sessions_set_key(struct sessions *ss, const uint8_t pub[TICKET_PUB_LEN]);
void sessions_trust(struct sessions *ss);

/* Refuses every ticket of the session until expires_us and ends it if it lives. fn (may be NULL) once its
 * memory is free, at the latest when its worker had to be killed; also for one that is not here. The name may
 * be any string; one that is no session's name is answered as not here. */
typedef void (*sessions_ended_fn)(void *arg, const char *session, const char *reason);
void sessions_revoke(struct sessions *ss, const char *session, const char *reason, int64_t expires_us,
                     sessions_ended_fn fn, void *arg);

struct session_info {
    const char *session, *principal;
    uint64_t limit_bytes, used_bytes;
    int64_t expires_us;
};
/* Sessions that hold something or could, those that are ending included. fn must not change them. */
void sessions_each(const struct sessions *ss, void (*fn)(const struct session_info *i, void *arg), void *arg);
/* Ended ones whose end was not acknowledged; `seq` is what sessions_ended_ack() takes. */
void sessions_ended_each(const struct sessions *ss,
                         void (*fn)(const char *session, const char *reason, uint64_t seq, void *arg),
                         void *arg);
void sessions_ended_ack(struct sessions *ss, uint64_t up_to_seq);

uint64_t sessions_device_bytes(const struct sessions *ss, const char *device);
bool sessions_leased(const struct sessions *ss, const char *device); /* exclusively */
size_t sessions_count(const struct sessions *ss);

#endif
