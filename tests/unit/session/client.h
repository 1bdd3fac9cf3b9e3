/*
 * Users with certificates of their own, connections to the agents of a world, and calls over them. Whatever
 * must not go wrong fails the test in here.
 */
#ifndef TESTS_SESSION_CLIENT_H
#define TESTS_SESSION_CLIENT_H

#include "agent/session/session.h"
#include "strata/v1/devices.pb-c.h"
#include "tests/unit/agent/world.h"

struct user {
    struct world *w;
    char name[16], principal[32];
    struct tls_ctx *tls;
    struct quic_udp *udp;
    struct quic_ep *ep;
};

struct link {
    struct world *w;
    struct rpc_session *rpc; /* NULL once it is gone */
    bool up;
};

struct reply {
    struct world *w;
    struct rpc_call *call;
    bool done;
    unsigned code;
    char reason[40], text[600];
    ProtobufCMessage *msg;
    /* bulk */
    uint8_t *data;
    size_t got, cap;
    bool stall; /* takes nothing until unstalled */
    /* upload */
    const uint8_t *src;
    size_t at, n, hold; /* sends only so far until hold is raised */
    bool ended;
};

void user_open(struct user *u, struct world *w, const char *name);
void user_close(struct user *u);
/* A ticket for everything on the node: for one minute, `limit` bytes, a session of its own. */
struct ticket user_ticket(const struct user *u, unsigned node, uint64_t limit);
size_t ticket_bytes(struct world *w, const struct ticket *t, uint8_t out[TICKET_MAX]);
void ticket_session(const struct ticket *t, char out[SESSION_NAME_MAX + 1]);

struct link *link_open(struct user *u, unsigned node);                        /* up on return */
void link_close(struct link *l);                                              /* and freed */
void link_attach(struct link *l, const struct ticket *t, uint64_t linger_ns); /* must succeed */
/* A connection with the ticket presented. */
struct link *link_session(struct user *u, unsigned node, const struct ticket *t);

/* Starts; the reply must not move until done. "Devices.Open" names service and method. */
void ask(struct link *l, const char *name, unsigned flags, const ProtobufCMessage *rq, struct reply *r);
void ask_service(struct link *l, const ProtobufCServiceDescriptor *svc, const char *method, unsigned flags,
                 const ProtobufCMessage *rq, struct reply *r);
void wait_reply(struct reply *r);
void reply_free(struct reply *r);
/* Starts, waits, and compares: code and reason ("" = any). The message is freed unless out is given. */
void expect_ask(struct link *l, const char *name, const ProtobufCMessage *rq, unsigned code,
                const char *reason, struct reply *out);
void expect(const struct reply *r, unsigned code, const char *reason);

/* The usual ones; all must succeed unless a reason is given. */
ProtobufCBinaryData mem_alloc(struct link *l, uint64_t bytes, uint8_t handle[16]);
ProtobufCBinaryData mem_alloc_on(struct link *l, const char *device, uint64_t bytes, uint8_t handle[16]);
void mem_put_start(struct link *l, ProtobufCBinaryData h, uint64_t off, const uint8_t *p, size_t n,
                   struct reply *r);
void mem_put(struct link *l, ProtobufCBinaryData h, uint64_t off, const uint8_t *p, size_t n);
void mem_get_start(struct link *l, ProtobufCBinaryData h, uint64_t off, size_t n, struct reply *r);
/* Compares what comes with p. */
void mem_check(struct link *l, ProtobufCBinaryData h, uint64_t off, const uint8_t *p, size_t n);
void upload_more(struct reply *r);
uint8_t *pattern(size_t n, unsigned seed);

#endif
