/*
 * Calls over one QUIC connection. A session is symmetric: either end may call the other, whoever dialled.
 *
 * One bidirectional stream a call. Frame = kind byte, QUIC varint length, protobuf. The caller sends HEADER,
 * then MESSAGEs, FIN; the callee MESSAGEs, one STATUS, FIN. Cancel = reset of the stream. Control frames
 * (HEADER, STATUS) ≤ 64 KiB, MESSAGE ≤ 1 MiB: checked before allocation. A method marked RPC_BULK answers
 * with one MESSAGE, then raw bytes, a 32-byte SHA-256 trailer and FIN; before the MESSAGE a STATUS says why
 * not, after it only a reset can. One marked RPC_UPLOAD is asked with one MESSAGE, then raw bytes, trailer
 * and FIN, and answers like any other, perhaps before the bytes have ended. A reset carries 0x100 + the
 * google.rpc.Code. Loop thread only.
 */
#ifndef STRATA_RPC_RPC_H
#define STRATA_RPC_RPC_H

#include <protobuf-c/protobuf-c.h>

#include "common/base/err.h"
#include "common/quic/quic.h"

#define RPC_MAX_CONTROL (64u << 10)
#define RPC_MAX_MESSAGE (1u << 20)
#define RPC_DEFAULT_TIMEOUT_NS (30ull * NS_PER_S)

struct rpc_session;
struct rpc_call;

/* What a call ended with: a google.rpc.Code, a stable reason, a sentence. */
struct rpc_status {
    unsigned code;
    char reason[40];
    char text[600];
};

/* ---- serving ---- */

enum rpc_flags { RPC_UNARY = 0, RPC_SERVER_STREAM = 1, RPC_BULK = 2, RPC_UPLOAD = 4 };

/* `req` is borrowed for the call of the handler. The handler answers now or later, exactly once, with
 * rpc_finish(), after any rpc_send()s. `arg` is the dispatch table's. */
typedef void (*rpc_handler_fn)(struct rpc_call *call, const ProtobufCMessage *req, void *arg);

struct rpc_method {
    const char *service, *method; /* "strata.v1.Jobs", "Submit" */
    unsigned flags;
    rpc_handler_fn handler;
};
struct rpc_table; /* immutable after rpc_table_new; checked against the service descriptors */

/* Fails (ST_EINVAL, text names the method) when a method is not declared in its service or one of a listed
 * service has no handler, so that a table cannot drift from the .proto files. */
int rpc_table_new(struct rpc_table **out, const ProtobufCServiceDescriptor *const *services, size_t nservices,
                  const struct rpc_method *methods, size_t nmethods, void *arg, struct err *e) ST_CHECK;
void rpc_table_free(struct rpc_table *t);
/* Serves what `more` does as well, with its own arg. Before t is used; t owns it from now on. ST_EINVAL when
 * both serve one method, and then `more` stays the caller's. */
int rpc_table_join(struct rpc_table *t, struct rpc_table *more, struct err *e) ST_CHECK;

/* Facts of an inbound call. */
const struct tls_identity *rpc_peer(const struct rpc_call *call);
struct rpc_session *rpc_call_session(const struct rpc_call *call);
const char *rpc_request_id(const struct rpc_call *call); /* "" when none */
uint64_t rpc_deadline_ns(const struct rpc_call *call);
const char *rpc_call_name(const struct rpc_call *call); /* "Jobs.Submit" */

/* Called once if the call ends before rpc_finish(): cancelled, deadline passed, connection lost. `call` is
 * dead when it returns. */
void rpc_on_cancel(struct rpc_call *call, void (*fn)(struct rpc_call *call, void *arg), void *arg);
/* Queues a MESSAGE. ST_EAGAIN: queue full, wait for on_writable. ST_ECLOSED: the call has ended. */
int rpc_send(struct rpc_call *call, const ProtobufCMessage *msg) ST_CHECK;
void rpc_on_writable(struct rpc_call *call, void (*fn)(struct rpc_call *call, void *arg), void *arg);
/* Ends the call. code is a google.rpc.Code. `call` is gone after this. */
void rpc_finish(struct rpc_call *call, unsigned code, const char *reason, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void rpc_reply(struct rpc_call *call, const ProtobufCMessage *msg); /* rpc_send + OK */
void rpc_fail(struct rpc_call *call, const struct err *e);
/* Bulk methods, after the handler sent its head MESSAGE: raw bytes. `done` as quic_stream_write_ref. The
 * digest runs over all bytes and is sent by rpc_bulk_end, which also finishes the call with OK. */
int rpc_bulk_write(struct rpc_call *call, const void *p, size_t n, void (*done)(void *arg),
                   void *arg) ST_CHECK;
void rpc_bulk_end(struct rpc_call *call);

/* Upload methods. Nothing of the bytes is read before rpc_upload_start(), in the handler or later. */
struct rpc_upload_ops {
    /* Bytes in order, borrowed; return how many were taken. Fewer than n = paused until rpc_upload_resume().
     */
    size_t (*on_bytes)(struct rpc_call *call, const uint8_t *p, size_t n, void *arg);
    /* All came and their digest (32 bytes) is the caller's, or *e says what is wrong: DIGEST_MISMATCH or
     * TRUNCATED. Not after the call has ended. The handler answers, here or later. */
    void (*on_end)(struct rpc_call *call, int rc, const struct err *e, const uint8_t *digest, void *arg);
};
/* Both go on from the loop, never inline. */
void rpc_upload_start(struct rpc_call *call, const struct rpc_upload_ops *ops, void *arg);
void rpc_upload_resume(struct rpc_call *call);

/* ---- calling ---- */

struct rpc_call_ops {
    void (*on_message)(struct rpc_call *call, const ProtobufCMessage *msg, void *arg); /* borrowed */
    /* Bulk: raw bytes, borrowed; return how many were taken. Fewer than n = paused until rpc_bulk_resume().
     * Bytes go on from the loop, never from inside rpc_bulk_resume(). */
    size_t (*on_bulk)(struct rpc_call *call, const uint8_t *p, size_t n, void *arg);
    /* Last upcall, exactly once, whatever happens: deadline (code 4), cancel (1), lost connection (14). For
     * bulk, code 0 only if the digest matched; `digest` is then the 32 bytes, else NULL. `call` is dead when
     * it returns. */
    void (*on_done)(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg);
    /* Upload: there is room again after rpc_upload_write() said ST_EAGAIN. May be NULL. */
    void (*on_writable)(struct rpc_call *call, void *arg);
};
struct rpc_call_opts {
    uint64_t timeout_ns;    /* 0 = RPC_DEFAULT_TIMEOUT_NS; UINT64_MAX = a watch without end */
    const char *request_id; /* NULL = none */
};
/* `method` comes from the generated service descriptor, which gives the types. Never completes inline; the
 * deadline and rpc_cancel() end the call without waiting for the peer. Beyond the peer's limit of calls at
 * once a call waits here for its turn, its deadline running; ST_EAGAIN when 1,024 calls or 4 MiB wait
 * already. */
int rpc_call(struct rpc_call **out, struct rpc_session *s, const ProtobufCServiceDescriptor *svc,
             const char *method, unsigned flags, const ProtobufCMessage *req, const struct rpc_call_opts *o,
             const struct rpc_call_ops *ops, void *arg, struct err *e) ST_CHECK;
void rpc_cancel(struct rpc_call *call); /* on_done follows with code 1 */
void rpc_bulk_resume(struct rpc_call *call);
/* Uploads: copies the bytes. ST_EAGAIN: too much is unsent, on_writable follows. ST_ECLOSED: the call has
 * ended. rpc_upload_end() sends the digest; a call that is answered before that sends no more. */
int rpc_upload_write(struct rpc_call *call, const void *p, size_t n) ST_CHECK;
void rpc_upload_end(struct rpc_call *call);

/* ---- sessions ---- */

struct rpc_session_ops {
    void (*on_up)(struct rpc_session *s, void *arg);
    void (*on_closed)(struct rpc_session *s, const struct quic_close *why,
                      void *arg); /* last; frees it after */
};
struct rpc_cfg {
    struct event_base *base; /* for call deadlines */
    const struct clock *clock;
    const struct log *log;
    const struct rpc_table *table; /* NULL: serves nothing */
    /* Per session, unanswered. Below the endpoint's max_streams it refuses callers who would otherwise wait.
     */
    unsigned max_inbound_calls;
};
/* Dials. */
int rpc_dial(struct rpc_session **out, const struct rpc_cfg *cfg, struct quic_ep *ep,
             const struct quic_addr *remote, enum tls_kind kind, const char *name,
             const struct rpc_session_ops *ops, void *arg, struct err *e) ST_CHECK;
/* Wraps an accepted connection (from quic_conn_ops.on_up). */
int rpc_accept(struct rpc_session **out, const struct rpc_cfg *cfg, struct quic_conn *c,
               const struct rpc_session_ops *ops, void *arg) ST_CHECK;
struct quic_conn *rpc_session_conn(struct rpc_session *s);
const struct tls_identity *rpc_session_peer(const struct rpc_session *s);
void rpc_session_close(struct rpc_session *s, uint64_t code, const char *reason);
/* Closes it as soon as no call runs on it in either direction; the peer is to make no new ones. */
void rpc_session_drain(struct rpc_session *s, const char *reason);
/* Datagrams of the connection, borrowed, with the time they came in. NULL: they are dropped. */
typedef void (*rpc_datagram_fn)(struct rpc_session *s, const uint8_t *p, size_t n, uint64_t rx_ns, void *arg);
void rpc_session_on_datagram(struct rpc_session *s, rpc_datagram_fn fn, void *arg);
/* The application's own pointer. */
void rpc_session_set_user(struct rpc_session *s, void *user);
void *rpc_session_user(const struct rpc_session *s);

#endif
