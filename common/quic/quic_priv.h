/*
 * Inside the quic room: what its files share. Nobody else includes this, white-box tests apart.
 *
 * A connection's facts are recorded by the ngtcp2 callbacks (callbacks.c) and told to the application from
 * quic_conn_upcalls() only; packets are written from quic_conn_egress() only; connections are freed from
 * quic_conn_bury() only. quic_ep_turn() calls the three in that order.
 */
#ifndef STRATA_QUIC_PRIV_H
#define STRATA_QUIC_PRIV_H

#include <netinet/in.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_ossl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "common/base/heap.h"
#include "common/base/map.h"
#include "common/quic/quic.h"

#define QUIC_OWNER(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

enum {
    QUIC_SCID_LEN = 16,
    QUIC_TX_BUF = 65536,
    QUIC_TX_MAX = 65000,   /* one GSO send: under 64 KiB with headers, and under 64 segments of 1200 bytes */
    QUIC_BURSTS = 2,       /* GSO sends of one connection in one turn */
    QUIC_CLOSE_MAX = 1200, /* size of a packet with CONNECTION_CLOSE */
    QUIC_STUBS_MAX = 4096, /* closed connections remembered, so that late packets get the close again */
    QUIC_IDS_MAX = 20,     /* ids in use at once; ngtcp2 stays far below */
    QUIC_DGRAM_QUEUE = 64, /* DATAGRAM frames held each way */
    QUIC_WRITE_MAX = 16 << 20,
    QUIC_WINDOW_MAX = 8 << 20, /* ngtcp2 gives up a stream with more than 8000 lost frames queued */
    QUIC_COPY_CHUNK = 2048,
    QUIC_EARLY_CREDIT = 16 << 10,
    QUIC_LIVE_FACTOR =
        4, /* streams of a peer in memory: so many times its limit, unacknowledged ends included */
    QUIC_RX_SMALL = 896, /* first segment of a call: from the allocator's quick lists */
    QUIC_RX_SEG = 32 << 10,
    QUIC_RX_JOIN = 64,
    QUIC_RX_POOL = 16, /* free segments kept by an endpoint: what one turn reads */
};

/* ---- streams ---- */

struct quic_chunk { /* bytes to send, in place until acknowledged */
    struct quic_chunk *next;
    const uint8_t *p;
    size_t len, cap; /* cap > 0: the bytes are in own[] */
    uint64_t off;    /* stream offset of p[0] */
    void (*done)(void *arg);
    void *arg;
    uint8_t own[];
};

struct quic_seg { /* bytes received, oldest first */
    struct quic_seg *next;
    size_t head, len; /* in room; head starts at QUIC_RX_JOIN, so that a short rest fits in front */
    size_t cap;
    uint8_t room[]; /* QUIC_RX_JOIN + cap */
};

enum { QUIC_EV_OPEN = 1, QUIC_EV_READABLE = 2, QUIC_EV_WRITABLE = 4, QUIC_EV_RESET = 8, QUIC_EV_CLOSED = 16 };

struct quic_stream {
    struct quic_conn *conn;
    int64_t id;
    const struct quic_stream_ops *ops;
    void *arg;
    TAILQ_ENTRY(quic_stream) all, tx, ev;
    bool in_tx, in_ev;
    unsigned events; /* QUIC_EV_* waiting for the next turn */

    /* acked <= sent <= queued, all stream offsets; cur holds the byte at `sent` */
    struct quic_chunk *head, *tail, *cur;
    uint64_t acked, sent, queued;
    bool fin_queued, fin_sent;
    bool tx_shut;    /* nothing may be sent any more */
    bool tx_blocked; /* out of the peer's stream credit */
    bool want_write; /* a write was refused: on_writable is owed */

    struct quic_seg *rx, *rx_tail;
    size_t rx_len;
    bool rx_fin;
    bool rx_told; /* on_readable ran and nobody has peeked since */

    bool local;       /* we opened it */
    bool credited;    /* the peer may open another one in its place */
    bool gone;        /* ngtcp2 has closed it: its id must not be used any more */
    bool reset_local; /* quic_stream_reset() was called: only on_closed is left */
    bool reset_told;
    uint64_t reset_code;
};
TAILQ_HEAD(quic_stream_list, quic_stream);

/* ---- connections ---- */

enum quic_state { QUIC_ST_HANDSHAKE, QUIC_ST_UP, QUIC_ST_CLOSING, QUIC_ST_CLOSED };

enum quic_farewell {                   /* what the peer hears when a connection ends */
                     QUIC_BYE_APP,     /* CONNECTION_CLOSE with an application code */
                     QUIC_BYE_LIBERR,  /* CONNECTION_CLOSE with the transport code of an ngtcp2 error */
                     QUIC_BYE_ALERT,   /* CONNECTION_CLOSE with a TLS alert */
                     QUIC_BYE_SILENT,  /* nothing, but late packets are swallowed */
                     QUIC_BYE_NOTHING, /* forget it at once */
};

struct quic_dgram {
    STAILQ_ENTRY(quic_dgram) e;
    uint64_t rx_ns;
    size_t n;
    uint8_t p[];
};
STAILQ_HEAD(quic_dgram_list, quic_dgram);

struct quic_conn {
    struct quic_ep *ep;
    uint64_t id;
    enum quic_state state;
    bool server;
    TAILQ_ENTRY(quic_conn) all, dirty_e;
    bool dirty;
    struct heap_node timer;

    ngtcp2_conn *nc;
    SSL *ssl;
    ngtcp2_crypto_ossl_ctx *octx;
    ngtcp2_crypto_conn_ref ref;
    struct tls_ctx *tls;

    ngtcp2_cid cids[QUIC_IDS_MAX];                     /* ours, and the client's first DCID */
    ngtcp2_stateless_reset_token tokens[QUIC_IDS_MAX]; /* the peer's */
    unsigned ncids, ntokens;

    const struct quic_conn_ops *ops;
    void *arg;
    struct quic_addr local, remote;
    struct tls_identity peer;
    enum tls_kind expect_kind;
    char expect_name[64];
    bool expect_any;

    /* facts from the callbacks */
    bool secure;     /* the handshake is finished for us; the identity is still to be checked */
    bool told_up;    /* the application knows the connection */
    bool got_reset;  /* stateless reset */
    bool credit;     /* the peer allows more streams */
    bool counted_hs; /* counts among the endpoint's unfinished handshakes */
    struct quic_stream_list streams, tx, ev;
    unsigned nremote;    /* streams that the peer opened */
    uint64_t tx_backlog; /* bytes queued and not yet sent, all streams */
    struct quic_chunk *done_head, **done_tail;
    struct quic_dgram_list drx, dtx;
    unsigned ndrx, ndtx;

    struct quic_close why;
    enum quic_farewell bye;
    int bye_arg; /* ngtcp2 error or TLS alert */
};
TAILQ_HEAD(quic_conn_list, quic_conn);

/* ---- endpoint ---- */

struct quic_stub {
    TAILQ_ENTRY(quic_stub) all;
    struct heap_node timer;
    struct quic_addr local, remote;
    ngtcp2_cid *cids;
    size_t ncids;
    unsigned seen, answer_at; /* answers the 1st, 2nd, 4th, 8th … late packet */
    size_t n;                 /* 0 = swallow silently */
    uint8_t pkt[];
};
TAILQ_HEAD(quic_stub_list, quic_stub);

struct quic_ep {
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    struct tls_ctx *tls;
    struct quic_limits lim;
    uint8_t reset_secret[32], token_secret[32];
    bool accept;
    const struct quic_conn_ops *accept_ops;
    void *accept_arg;
    const struct quic_link_ops *link;
    void *link_arg;
    struct quic_addr local;

    struct map *cids, *stub_cids, *per_addr;
    struct map *reset_tokens; /* of peers, to the connection that a reset with it would end */
    struct quic_conn_list conns, dirty, closed;
    struct quic_stub_list stubs;
    size_t nconns, naccepted, nstubs;
    unsigned handshakes;
    uint64_t id_base, id_next;
    struct heap timers, stub_timers;
    uint64_t now_ns;
    bool batch; /* now_ns is fresh: packets of one batch share it */
    bool in_turn;
    bool kicked;
    struct quic_ep_stats stats;
    struct log_limit log_limit;

    struct { /* bytes the link would not take */
        bool on;
        struct quic_addr local, remote;
        uint8_t ecn;
        size_t len, gso;
        uint8_t *data; /* QUIC_TX_BUF */
    } held;
    uint8_t *tx;           /* QUIC_TX_BUF */
    struct quic_seg *segs; /* free */
    unsigned nsegs;
};

/* addr.c */
void quic_addr_key(const struct quic_addr *a, uint8_t key[16]); /* IP only; IPv4 as mapped */
void quic_addr_map6(struct quic_addr *a);                       /* IPv4 → ::ffff:… */
void quic_addr_set(struct quic_addr *out, const struct sockaddr *sa, socklen_t len);

/* ep.c */
uint64_t quic_ep_now(struct quic_ep *ep); /* one sample for a batch or a turn */
void quic_ep_wake(struct quic_ep *ep);
void quic_ep_dirty(struct quic_conn *c);
int quic_ep_cid_add(struct quic_ep *ep, const ngtcp2_cid *cid, struct quic_conn *c) ST_CHECK;
void quic_ep_cid_del(struct quic_ep *ep, const ngtcp2_cid *cid);
int quic_ep_token_add(struct quic_ep *ep, const uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN],
                      struct quic_conn *c) ST_CHECK;
void quic_ep_token_del(struct quic_ep *ep, const uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN],
                       const struct quic_conn *c);
/* Gives datagrams to the link, or holds them if it is blocked. Only when !held.on. */
void quic_ep_send(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                  uint8_t ecn, const uint8_t *p, size_t n, size_t gso);
bool quic_ep_log_ok(struct quic_ep *ep); /* peer-triggered lines */
/* What one address holds: connections, and those of them that are not up yet. */
struct quic_addr_use {
    uint32_t conns, handshakes;
};
struct quic_addr_use quic_ep_addr_use(struct quic_ep *ep, const struct quic_addr *a);
int quic_ep_addr_count(struct quic_ep *ep, const struct quic_addr *a, int conns, int handshakes) ST_CHECK;

/* stateless.c: answers that need no connection */
void quic_send_version_negotiation(struct quic_ep *ep, const struct quic_addr *local,
                                   const struct quic_addr *remote, const ngtcp2_version_cid *vc);
void quic_send_retry(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                     const ngtcp2_pkt_hd *hd, size_t in_len);
void quic_send_refusal(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                       const ngtcp2_pkt_hd *hd, uint64_t code, const char *reason);
void quic_send_reset(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                     const uint8_t *dcid, size_t dcidlen, size_t in_len);

/* stub.c: what is left of a closed connection for three probe timeouts */
void quic_stub_add(struct quic_conn *c, const uint8_t *pkt, size_t n);
void quic_stub_input(struct quic_ep *ep, struct quic_stub *s);
void quic_stub_expire(struct quic_ep *ep, uint64_t now_ns);
void quic_stub_free_all(struct quic_ep *ep);

/* conn.c */
int quic_conn_accept(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                     const ngtcp2_pkt_hd *hd, const ngtcp2_cid *odcid, struct quic_conn **out) ST_CHECK;
void quic_conn_read(struct quic_conn *c, const struct quic_addr *local, const struct quic_addr *remote,
                    uint8_t ecn, const uint8_t *pkt, size_t n);
void quic_conn_expired(struct quic_conn *c);
void quic_conn_upcalls(struct quic_conn *c);
bool quic_conn_has_upcalls(const struct quic_conn *c);
void quic_conn_bury(struct quic_conn *c); /* last upcalls, then frees */
void quic_conn_unregister(struct quic_conn *c);
int quic_conn_cid_add(struct quic_conn *c, const ngtcp2_cid *cid) ST_CHECK;
void quic_conn_cid_del(struct quic_conn *c, const ngtcp2_cid *cid);
int quic_conn_token_add(struct quic_conn *c, const ngtcp2_stateless_reset_token *t) ST_CHECK;
void quic_conn_token_del(struct quic_conn *c, const ngtcp2_stateless_reset_token *t);
uint64_t quic_conn_ts(const struct quic_conn *c); /* never runs backwards for this connection */
/* Starts the end of a connection; the first call wins. */
void quic_conn_fail(struct quic_conn *c, enum quic_close_kind kind, int status, uint64_t code,
                    enum quic_farewell bye, int bye_arg, const char *reason_code, const char *fmt, ...)
    __attribute__((format(printf, 8, 9)));
void quic_conn_liberr(struct quic_conn *c, int rv); /* an ngtcp2 error ends it */

/* callbacks.c */
extern const ngtcp2_callbacks quic_client_callbacks, quic_server_callbacks;

/* stream.c */
struct quic_stream *quic_stream_new(struct quic_conn *c, int64_t id, bool local);
void quic_stream_event(struct quic_stream *s, unsigned ev);
void quic_stream_upcalls(struct quic_stream *s);     /* may free it */
void quic_stream_last_upcall(struct quic_stream *s); /* on_closed, then frees */
int quic_stream_rx(struct quic_stream *s, const uint8_t *p, size_t n, bool fin) ST_CHECK;
void quic_stream_acked(struct quic_stream *s, uint64_t upto);
void quic_stream_sent(struct quic_stream *s, size_t n, bool fin);
size_t quic_stream_pending(const struct quic_stream *s, ngtcp2_vec *v, size_t max, bool *fin);
void quic_stream_ready(struct quic_stream *s); /* queues it for sending if it has something to send */
void quic_stream_unready(struct quic_stream *s);
void quic_stream_shut_tx(struct quic_stream *s);
void quic_stream_release_done(struct quic_conn *c); /* runs the `done`s of acknowledged chunks */

/* egress.c */
bool quic_conn_egress(struct quic_conn *c); /* true = there is more to send at once */
void quic_conn_farewell(struct quic_conn *c);

#endif
