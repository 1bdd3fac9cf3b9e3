/*
 * libstrata: the C client of a strata coordinator. One struct strata_client is one mutual TLS 1.3 connection
 * over QUIC, used by one thread at a time; strata_client_interrupt() alone may be called from elsewhere, a
 * signal handler included. Calls block until the answer, the deadline or an interrupt; a connection lost
 * between calls is made anew by the next one.
 *
 * The directory given to strata_client_open() holds client.yaml (coordinator, trust_domain), ca.crt,
 * client.crt and client.key.
 */
#ifndef STRATA_CLIENT_H
#define STRATA_CLIENT_H

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct strata_client;

struct strata_error {
    int code;        /* 0, or negative: see strata_error_exit */
    char reason[40]; /* stable, in capitals; may be empty */
    char text[600];  /* a sentence: what, on what, why, what to do */
};
/* The exit code for a command that ends with this error: 0 ok, 3 not found, 4 denied, 5 trust, 6 unreachable,
 * … */
int strata_error_exit(const struct strata_error *e);

/* Connects. timeout_ns 0 = 10 s. Negative on failure with *e filled. */
int strata_client_open(struct strata_client **out, const char *dir, uint64_t timeout_ns,
                       struct strata_error *e);
void strata_client_close(struct strata_client *c); /* NULL is fine */

/* One request, one answer. *resp is the caller's: protobuf_c_message_free_unpacked(). request_id NULL = none.
 */
int strata_client_call(struct strata_client *c, const ProtobufCServiceDescriptor *svc, const char *method,
                       const ProtobufCMessage *req, uint64_t timeout_ns, const char *request_id,
                       ProtobufCMessage **resp, struct strata_error *e);

/* One request, many answers: on_message for each (borrowed) until it returns non-zero, which ends the stream
 * and is not an error. timeout_ns UINT64_MAX = none. */
int strata_client_stream(struct strata_client *c, const ProtobufCServiceDescriptor *svc, const char *method,
                         const ProtobufCMessage *req, uint64_t timeout_ns,
                         int (*on_message)(const ProtobufCMessage *msg, void *arg), void *arg,
                         struct strata_error *e);

/* Makes the call in progress, and every later one, end with reason INTERRUPTED. Async-signal-safe. */
void strata_client_interrupt(struct strata_client *c);

/* The identity's certificate is renewed by itself at two thirds of its life, by strata_client_open() or in
 * the middle of a call, into the identity's directory; a new connection takes over without a call failing.
 * This does it now. expires_us may be NULL. */
int strata_client_renew(struct strata_client *c, int64_t *expires_us, struct strata_error *e);
/* What a person should know: that the certificate ends soon and could not be renewed, and why. "" = nothing.
 */
const char *strata_client_notice(const struct strata_client *c);

/* Facts of the connection, for status lines. */
const char *strata_client_coordinator(const struct strata_client *c); /* "host:port" */
const char *strata_client_principal(const struct strata_client *c);   /* "user/admin" */
const char *strata_client_identity(const struct strata_client *c);    /* the whole SPIFFE id */

#ifdef __cplusplus
}
#endif

#endif
