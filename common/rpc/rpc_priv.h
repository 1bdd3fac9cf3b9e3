/* Shared by the files of the rpc room alone. */
#ifndef STRATA_RPC_PRIV_H
#define STRATA_RPC_PRIV_H

#include <openssl/evp.h>
#include <sys/queue.h>

#include "common/base/heap.h"
#include "common/rpc/frame.h"
#include "common/rpc/rpc.h"

struct event;

struct rpc_entry { /* a method that can be served */
    const struct rpc_method *m;
    const ProtobufCMessageDescriptor *in, *out;
    char name[96]; /* "Jobs.Submit" */
};
struct rpc_table {
    struct rpc_entry *v; /* sorted by service, method */
    struct rpc_method *methods;
    size_t n;
    void *arg;
    struct rpc_table *more;
};
/* *arg is that of the table it is in. */
const struct rpc_entry *rpc_table_find(const struct rpc_table *t, const char *service, const char *method,
                                       void **arg);

struct rpc_session {
    struct rpc_cfg cfg;
    struct quic_conn *conn;
    const struct rpc_session_ops *ops;
    void *arg, *user;
    rpc_datagram_fn datagram_fn;
    void *datagram_arg;
    struct heap deadlines;
    struct event *timer;
    struct rpc_call *calls;         /* doubly linked */
    unsigned inbound;               /* not answered yet */
    TAILQ_HEAD(, rpc_call) waiting; /* outbound calls for which the peer's stream limit has no room yet */
    unsigned nwaiting;
    size_t waiting_bytes;
    bool up, closed, draining;
    char drained[80]; /* the reason to give */
};

struct rpc_call {
    struct heap_node deadline; /* first: the heap hands it back */
    struct rpc_session *s;
    struct quic_stream *stream; /* NULL: still waiting for one */
    struct rpc_call *next, **link;
    TAILQ_ENTRY(rpc_call) wait;
    bool waits;
    struct buf ask; /* header and request, until there is a stream */
    bool inbound;
    bool ended;    /* answered or told: the application has let go of it */
    bool got_head; /* inbound: the request arrived; outbound bulk: the head message arrived, bytes follow */
    bool got_header;
    bool paused;   /* raw bytes: the application took less than it was given */
    bool reset;    /* we reset the stream: what was peeked is gone, nothing may be read or consumed */
    bool deaf;     /* inbound: the request was refused, what still comes is thrown away */
    bool begun;    /* inbound: a MESSAGE went out; after that a bulk call can only end by digest or reset */
    bool canceled; /* outbound: on_done with code 1 is due at the next timer */
    bool resumed;  /* bulk, upload: reading goes on at the next timer */
    bool upload_over; /* upload: all its bytes were read, or written */
    struct buf tail;  /* a STATUS that the full send queue did not take yet */
    struct frame_dec dec;
    unsigned flags;
    /* inbound */
    const struct rpc_entry *entry;
    void *entry_arg;
    char request_id[80];
    void (*cancel_fn)(struct rpc_call *, void *);
    void *cancel_arg;
    void (*writable_fn)(struct rpc_call *, void *);
    void *writable_arg;
    const struct rpc_upload_ops *upload; /* NULL = not started */
    void *upload_arg;
    /* outbound */
    const ProtobufCMessageDescriptor *reply;
    const struct rpc_call_ops *ops;
    void *arg;
    /* bulk */
    EVP_MD_CTX *md;
    uint8_t digest[32];
    uint64_t deadline_ns;
};

#define RPC_RESET_BASE 0x100u
/* How long the stream of an ended call may live on, waiting for the peer. */
#define RPC_LINGER_NS (10 * NS_PER_S)
/* Of one session: what may wait for the peer's stream limit. */
#define RPC_MAX_WAITING 1024u
#define RPC_MAX_WAITING_BYTES (4u << 20)

/* session.c */
struct rpc_call *rpc_call_alloc(struct rpc_session *s, bool inbound);
void rpc_call_ended(struct rpc_call *c); /* it counts no more among those the peer has running */
void rpc_call_free(struct rpc_call *c);
int rpc_deadline_set(struct rpc_call *c, uint64_t at_ns) ST_CHECK;
/* Runs rpc_out_expired() from the timer soon, never inline; deadline_ns stays. */
int rpc_soon(struct rpc_call *c) ST_CHECK;
/* `code` is a google.rpc.Code. Bytes borrowed from the stream are gone after this. */
void rpc_call_reset(struct rpc_call *c, unsigned code);
void rpc_status_set(struct rpc_status *st, unsigned code, const char *reason, const char *text);

/* serve.c and call.c */
void rpc_serve_start(struct rpc_session *s, struct quic_stream *st);
void rpc_serve_expired(struct rpc_call *c);
void rpc_out_expired(struct rpc_call *c);
/* Gives streams to the calls that wait for one, oldest first. */
void rpc_out_begin_waiting(struct rpc_session *s);
void rpc_unwait(struct rpc_call *c);
void rpc_out_lost(struct rpc_call *c); /* ends it with code 14 if nothing has yet */

/* raw.c: reads the raw bytes that are there, all but the trailer, and gives them to `take`, which says how
 * many it took. 1: all came and c->digest is right; ST_OK: nothing more now, or paused; ST_EPROTO: ended
 * before the trailer; ST_ECORRUPT: another digest; ST_EINTERNAL; ST_ECLOSED: the stream was reset meanwhile.
 */
int rpc_raw_take(struct rpc_call *c, size_t (*take)(struct rpc_call *c, const uint8_t *p, size_t n)) ST_CHECK;
const char *rpc_raw_reason(int rc); /* "DIGEST_MISMATCH" … */
const char *rpc_raw_text(int rc);
bool rpc_digest_ready(struct rpc_call *c); /* c->md is there */
void rpc_upload_read(struct rpc_call *c);  /* what has arrived of an inbound upload */

/* message.c: packs a frame behind what is in *b; unpacks with a cap on what the decoder may allocate, NULL on
 * malformed or too large. */
int rpc_pack(struct buf *b, enum frame_kind kind, const ProtobufCMessage *msg) ST_CHECK;
ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n);
void rpc_msg_free(ProtobufCMessage *m);
/* For a message that is gone before the arena, which lies on the stack: small ones cost no allocation. */
struct rpc_arena {
    size_t used;
    _Alignas(16) uint8_t room[1024];
};
ProtobufCMessage *rpc_unpack_in(struct rpc_arena *arena, const ProtobufCMessageDescriptor *d,
                                const uint8_t *p, size_t n);
void rpc_msg_free_in(struct rpc_arena *arena, ProtobufCMessage *m);

#endif
