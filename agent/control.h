/*
 * The agent's tie to the coordinator: dials it, registers (Hello), sends heartbeats, and comes back after
 * every loss with full-jitter backoff. Over the same connection the coordinator calls the agent's services.
 * Loop thread only; upcalls come from the loop, never from inside a function of this header.
 */
#ifndef STRATA_AGENT_CONTROL_H
#define STRATA_AGENT_CONTROL_H

#include "agent/layers/files.h"
#include "common/rpc/rpc.h"
#include "strata/v1/nodes.pb-c.h"

struct control;

struct control_ops {
    /* Put devices and residents into the request; what they point to stays valid until the next loop turn. */
    void (*fill_hello)(Strata__V1__HelloRequest *req, void *arg);
    void (*fill_heartbeat)(Strata__V1__HeartbeatRequest *req, void *arg);
    void (*on_registered)(const Strata__V1__HelloReply *reply, void *arg);
    void (*on_heartbeat)(const Strata__V1__HeartbeatReply *reply, void *arg);
    void (*on_lost)(const char *why, void *arg); /* was registered, is no longer; dialling goes on */
    void (*on_moved)(bool ok, void *arg);        /* how control_move() ended; may be NULL */
};

struct control_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    struct quic_ep *ep;
    struct files *files;           /* names are resolved there */
    const struct rpc_table *table; /* what the coordinator may call */
    const char *address;           /* host:port; borrowed */
};

/* Starts dialling at once. */
int control_new(struct control **out, const struct control_cfg *cfg, const struct control_ops *ops, void *arg,
                struct err *e) ST_CHECK;
/* Dials anew, hands the registration over to the new connection and closes the old one when the calls on it
 * are over: nothing is dropped. ST_EAGAIN when not registered or already moving. */
int control_move(struct control *c, struct err *e) ST_CHECK;
/* Something the coordinator has to know changed: registers anew, on this connection or the next. */
void control_hello_again(struct control *c);
/* Says goodbye and dials no more. The connection's end still needs the loop; control_free() after that, or
 * after the endpoint is gone. */
void control_close(struct control *c);
void control_free(struct control *c); /* NULL is fine; after the endpoint and the file threads are freed */
struct rpc_session *control_session(const struct control *c); /* NULL = not registered */
uint64_t control_epoch(const struct control *c);              /* 0 = not registered */

/* How long to wait before the nth dial after a loss: uniform in [0, min(15 s, 0.1 s × 2^n)]. */
uint64_t control_backoff_ns(const struct rng *rng, unsigned n);

#endif
