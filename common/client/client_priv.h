/* Shared by the files of libstrata alone. */
#ifndef STRATA_CLIENT_PRIV_H
#define STRATA_CLIENT_PRIV_H

#include "common/client/include/strata/client.h"
#include "common/rpc/rpc.h"

struct event;
struct settings {
    char *coordinator, *trust_domain;
};

struct strata_client {
    struct event_base *base;
    struct event *wake, *timer;
    int wake_fd;
    struct tls_ctx *tls;
    struct quic_addr to;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_session *session;
    struct settings *settings;
    struct log log;
    bool up, closed, interrupted, timed_out;
    struct quic_close why;
    /* the call in progress */
    struct rpc_call *call;
    bool done, stopped;
    struct rpc_status st;
    ProtobufCMessage *reply;
    int (*on_message)(const ProtobufCMessage *, void *);
    void *arg;
};

/* Runs the loop until a dialled session is up. The flags are those that its callbacks set; *s is the session,
 * NULL once it is closed. ST_ECANCELED: interrupted. ST_EUNREACH, for which the caller has the words:
 * *closed, or no answer in timeout_ns. */
int client_wait_up(struct strata_client *c, const bool *up, const bool *closed, struct rpc_session *const *s,
                   uint64_t timeout_ns, struct err *e) ST_CHECK;
void client_export_error(struct strata_error *out, const struct err *e);
ProtobufCMessage *client_duplicate(const ProtobufCMessage *m); /* NULL: no memory */

#endif
