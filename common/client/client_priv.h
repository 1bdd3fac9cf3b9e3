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
    struct event *wake, *timer, *look;
    char *dir;
    int wake_fd;
    struct tls_ctx *tls;
    struct quic_addr to;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_session *session, *next; /* next: is to take over, once it is up */
    /* renewal (renew.c) */
    int64_t renew_us;
    unsigned generation; /* of the certificate; connections to agents follow it */
    bool renewing;
    char notice[500];
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
/* The upcall of a session that ended; of one that was drained it does nothing. */
void client_session_closed(struct rpc_session *s, const struct quic_close *why, void *arg);
/* The identity's files as a context. */
int client_load_tls(struct strata_client *c, struct tls_ctx **out, struct err *e) ST_CHECK;
/* Looks every second whether the certificate is to be renewed, while the loop runs. */
int client_renewal_init(struct strata_client *c) ST_CHECK;
/* Before the first call: renews if it is due. A failure is kept for strata_client_notice(). */
void client_renew_if_due(struct strata_client *c);
void client_export_error(struct strata_error *out, const struct err *e);
ProtobufCMessage *client_duplicate(const ProtobufCMessage *m); /* NULL: no memory */

#endif
