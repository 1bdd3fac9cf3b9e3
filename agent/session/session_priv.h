/* Shared by the files of the session room alone. */
#ifndef STRATA_SESSION_PRIV_H
#define STRATA_SESSION_PRIV_H

#include "agent/session/session.h"
#include "common/base/map.h"
#include "strata/v1/devices.pb-c.h"

#define HANDLE_LEN 16
#define OFFER_LEN 16
#define MAX_SESSIONS 256u
#define MAX_PER_PRINCIPAL 32u
#define MAX_LINKS 8u      /* connections of one session */
#define MAX_BUFFERS 1024u /* handles of one session */
#define MAX_WORKS 32u     /* calls of one session under way */
#define MAX_COPIES 8u     /* of them with buffered bytes: each up to a few COPY_CHUNK */
#define MAX_LEASES 64u
#define MAX_OFFERS 64u
#define MAX_LINGER_NS (600 * NS_PER_S)
#define COPY_CHUNK (1u << 20)
#define OFFER_NS (60 * NS_PER_S)
#define REVOKE_NS (800 * NS_PER_MS) /* a worker that has not let go by then is killed */
#define GONE_MAX 65536u             /* ended sessions that are remembered */

/* A piece of device memory with a handle. In the session's list from before it is allocated until it is free.
 */
struct buffer {
    struct session *s;
    struct buffer *next, **prev;
    uint8_t handle[HANDLE_LEN];
    char device[32];
    uint64_t memory; /* the worker's name for it */
    uint64_t bytes;
    unsigned busy; /* works that use it */
    bool allocated, releasing;
};

struct lease {
    struct lease *next;
    char device[32];
    bool exclusive;
};

/* A call of a session under way. Embedded first in what does it; ends with work_end(). */
struct work {
    struct session *s;
    struct work *next, **prev;
    struct rpc_call *call; /* NULL: answered, or nobody waits any more */
    int type;              /* enum event_type of its audit row */
    uint64_t began_ns;
    bool copy;
    /* The call is gone (the session ends, the caller gave up): stop, and work_end() when nothing is in
     * flight. */
    void (*stop)(struct work *w);
    void (*on_slot)(struct work *w); /* while it waits for a staging slot of the worker, else NULL */
};

struct session_link { /* one connection */
    struct rpc_session *rpc;
    struct session *s; /* NULL once the session has ended */
    struct session_link *next;
    struct sessions *owner;
    char why[40]; /* the reason of its end */
};

struct offer {
    struct offer *next;
    uint8_t token[OFFER_LEN];
    struct session *s;
    struct buffer *b;
    uint64_t offset, bytes, due_ns;
    char to[TICKET_NODE_MAX + 1];
};

struct waiter {
    struct waiter *next;
    sessions_ended_fn fn;
    void *arg;
};

struct session {
    struct sessions *owner;
    struct session *next, **prev;
    char name[SESSION_NAME_MAX + 1];
    struct ticket ticket; /* the newest */
    bool ending, freeing;
    char reason[40];
    struct tenant *tenant; /* NULL = needs no worker yet */
    struct session_link *links;
    unsigned nlinks;
    struct buffer *buffers;
    unsigned nbuffers, releasing;
    struct lease *leases;
    unsigned nleases;
    struct work *works;
    unsigned nworks, ncopies;
    struct offer *offers;
    unsigned noffers;
    uint64_t used, told_used;
    uint64_t linger_ns, idle_since_ns;
    struct event *timer; /* expiry, end of lingering, the kill when the worker does not let go */
    struct event *later; /* goes on with the end, outside whatever held it up */
    uint64_t kill_ns;
    struct waiter *waiters;
    struct log_limit refusals;
    unsigned held_back; /* refusals without a row, since the last one with */
};

struct gone { /* a session that ended, or was revoked before it began */
    char name[SESSION_NAME_MAX + 1];
    char reason[40];
    int64_t expires_us;
    uint64_t seq; /* 0 = not to be reported */
    struct gone *next, **prev;
};

struct sessions {
    struct sessions_cfg cfg;
    struct pool_user user;
    struct session *head;
    unsigned n;
    struct map *handles; /* handle → buffer */
    struct map *gone;    /* name → struct gone */
    struct gone *gone_head;
    size_t ngone;
    uint64_t ended_seq;
    struct event *change;
    uint8_t pub[TICKET_PUB_LEN];
    bool have_pub, trusted, closing, change_urgent;
    bool have_before;
    uint8_t before[TICKET_PUB_LEN]; /* the key that pub replaced */
    int64_t floor_us; /* tickets issued before are refused: more ended sessions than could be remembered */
    struct log_limit refused, lost;
    bool owing, unrecorded; /* trail.c: of rows since the last answer */
};

/* ---- session.c ---- */

int session_attach(struct sessions *ss, struct rpc_call *call, const uint8_t *ticket, size_t n,
                   uint64_t linger_ns, struct session **out, struct err *e) ST_CHECK;
int session_renew(struct session *s, struct rpc_call *call, const uint8_t *ticket, size_t n,
                  struct err *e) ST_CHECK;
/* The session of the call's connection, alive; ST_EDENIED with NO_SESSION or the reason of its end. */
int session_of(struct rpc_call *call, struct session **out, struct err *e) ST_CHECK;
/* May it, on this device (NULL = none in particular)? Refusals are audited here. */
int session_may(struct session *s, enum permission p, const char *device, struct err *e) ST_CHECK;
void session_end(struct session *s, const char *reason);
/* The same; fn when it is over, as sessions_revoke(). ST_ENOMEM: nothing was done. */
int session_end_tell(struct session *s, const char *reason, sessions_ended_fn fn, void *arg) ST_CHECK;
void session_settle(struct session *s);                        /* something that held up the end is over */
int session_worker(struct session *s, struct err *e) ST_CHECK; /* s->tenant is there */
void session_changed(struct sessions *ss, bool urgent);
const struct pool_device *session_device(const struct sessions *ss, const char *id);

/* Its end is recorded: to be reported to the coordinator. */
void session_over(struct sessions *ss, const char *name, const char *reason, int64_t expires_us);

int work_begin(struct session *s, struct work *w, struct rpc_call *call, int type, bool copy,
               struct err *e) ST_CHECK;
/* Takes it off the session; w is the caller's again. */
void work_end(struct work *w);
/* Answers the call, if it is still there, with rc and what *e says, and forgets it. */
void work_fail(struct work *w, int rc, const struct err *e);
/* The audit row of a copy of w: how many bytes, and how long it took. */
void work_tell_copy(const struct work *w, const char *device, uint64_t bytes, int result, const char *error);
uint64_t work_us(const struct work *w);

/* ---- trail.c ---- */

/* Is there room for what an operation will have to record? SPOOL_FULL. */
int trail_room(const struct sessions *ss, struct err *e) ST_CHECK;
/* An audit row about the session. device, meta, error may be NULL. */
void session_audit(struct session *s, int type, int result, const char *device, struct event_meta *meta,
                   const char *error);
void session_refused(struct session *s, const char *operation, const char *device, const struct err *e,
                     const char *permission);
void trail_ticket_refused(struct sessions *ss, struct rpc_call *call, const uint8_t *p, size_t n,
                          const struct err *e);
/* The only ways in which calls of this room end, bulk apart: at once, or when the must-class rows that were
 * emitted for it in this turn are on disk. The call may be NULL; it is not the caller's any more. */
void trail_reply(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *reply);
/* The same; the buffer is given back when its row cannot be written. */
void trail_reply_buffer(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *reply,
                        const uint8_t handle[HANDLE_LEN]);
void trail_fail(struct sessions *ss, struct rpc_call *call, const struct err *e);
/* The row of an end, then session_over() and the waiters, which it takes. */
void trail_closed(struct session *s);

/* ---- calls.c ---- */

/* The call's session, if it may do this there (device NULL = nowhere in particular); else the call is
 * answered and NULL. */
struct session *call_allowed(struct sessions *ss, struct rpc_call *call, enum permission p,
                             const char *device);

/* ---- buffer.c ---- */

/* Of this session and free to be used: ST_ENOENT NO_HANDLE; a foreign one is audited as such and answered the
 * same. */
int buffer_find(struct session *s, const ProtobufCBinaryData *handle, const char *operation,
                struct buffer **out, struct err *e) ST_CHECK;
int buffer_range(const struct buffer *b, uint64_t offset, uint64_t bytes, struct err *e) ST_CHECK;
void buffer_gone(struct buffer *b); /* its memory is free: forgets it */
/* Begins to free; session_settle() when it is done. */
void buffer_release(struct buffer *b);
void buffer_allocate(struct session *s, struct rpc_call *call, const char *device, uint64_t bytes);
void buffer_deallocate(struct session *s, struct rpc_call *call, struct buffer *b);
int device_room(struct session *s, const char *device, uint64_t bytes, struct err *e) ST_CHECK;
int lease_take(struct session *s, const char *device, bool exclusive, struct err *e) ST_CHECK;
int lease_drop(struct session *s, const char *device, bool *exclusive, struct err *e) ST_CHECK;

/* ---- copy.c: bytes in; read.c: bytes out; between.c: from buffer to buffer ---- */

void copy_in(struct session *s, struct rpc_call *call, struct buffer *b, const Strata__V1__CopyToRequest *rq);
void copy_pull(struct session *s, struct rpc_call *call, struct buffer *b,
               const Strata__V1__CopyBetweenRequest *rq);
void copy_out(struct session *s, struct rpc_call *call, struct buffer *b, uint64_t offset, uint64_t bytes,
              int type);
void copy_between(struct session *s, struct rpc_call *call, struct buffer *to, uint64_t to_offset,
                  struct buffer *from, uint64_t from_offset, uint64_t bytes);
int offer_make(struct session *s, struct buffer *b, const Strata__V1__OfferRequest *rq, struct offer **out,
               struct err *e) ST_CHECK;
struct offer *offer_take(struct sessions *ss, const ProtobufCBinaryData *token, const char *node);
void offers_drop(struct session *s, const struct buffer *b); /* b NULL = all */

/* ---- kernel.c ---- */

void on_execute(struct rpc_call *call, const ProtobufCMessage *msg, void *arg);

/* ---- device.c ---- */

int device_table(struct rpc_table **out, struct sessions *ss, struct err *e) ST_CHECK; /* Compute, Monitor */

#endif
