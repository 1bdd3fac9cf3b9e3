/*
 * QUIC v1 endpoints, connections and streams over libevent and ngtcp2, always mutually authenticated.
 *
 * Everything here belongs to one loop thread. A turn of the endpoint runs: bounded ingress, upcalls, egress,
 * timers, reap. Upcalls run only from the endpoint's turn, never from inside a call made by the application,
 * so any function may be called from any upcall, quic_conn_close() included. A connection or stream pointer
 * stays valid until its on_closed upcall returns.
 *
 * This is the only room that includes ngtcp2.
 */
#ifndef STRATA_QUIC_QUIC_H
#define STRATA_QUIC_QUIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/tls/tls.h"

struct event_base;
struct quic_ep;
struct quic_conn;
struct quic_stream;

/* ---- datagram I/O, injected: the UDP socket (quic_udp_*) in daemons, an in-memory link in tests ---- */

struct quic_addr {
    struct sockaddr_storage ss;
    socklen_t len;
};
int quic_addr_parse(const char *host_port, struct quic_addr *out,
                    struct err *e) ST_CHECK; /* numeric or resolvable */
void quic_addr_str(const struct quic_addr *a, char out[64]);

struct quic_link_ops {
    /* Sends len bytes as datagrams of gso bytes (the last may be shorter). 0; ST_EAGAIN = blocked, the
     * endpoint keeps the bytes and waits for quic_ep_writable(); other errors count as loss. */
    int (*send)(void *arg, const struct quic_addr *local, const struct quic_addr *remote, uint8_t ecn,
                const uint8_t *data, size_t len, size_t gso);
    /* One-shot wake-up at an absolute monotonic time; UINT64_MAX cancels. Past times fire at once, never
     * inline. */
    void (*set_timer)(void *arg, uint64_t at_ns);
    /* Asks for one quic_ep_turn() soon, never inline. */
    void (*kick)(void *arg);
};

/* ---- endpoint ---- */

enum quic_close_kind {
    QUIC_CLOSE_LOCAL,     /* we closed it */
    QUIC_CLOSE_PEER,      /* the peer closed it: code and reason are the peer's */
    QUIC_CLOSE_IDLE,      /* idle timeout */
    QUIC_CLOSE_HANDSHAKE, /* handshake failed or timed out */
    QUIC_CLOSE_TRUST,     /* identity refused */
    QUIC_CLOSE_RESET,     /* stateless reset: the peer restarted */
    QUIC_CLOSE_ERROR,     /* transport error or out of memory */
};
struct quic_close {
    enum quic_close_kind kind;
    int status;    /* ST_ETRUST, ST_EUNREACH, ST_EDEADLINE, ST_ECLOSED, ST_EPROTO … */
    uint64_t code; /* application or transport code */
    /* Stable, for programs and the audit trail: that of tls_peer_identity() when a certificate was refused,
     * here or at the peer (its close carries "CODE: sentence"), else WRONG_PEER, TLS_FAILED, NO_ANSWER,
     * REFUSED, FULL, FULL_FOR_ADDRESS, DRAINING, IDLE_TIMEOUT, PEER_RESTARTED, WRONG_VERSION, PROTOCOL,
     * NO_MEMORY; "" for an ordinary close. What a peer says of itself is believed. */
    char reason_code[40];
    char reason[200]; /* a sentence for people */
};

struct quic_conn_ops {
    /* Handshake confirmed and identity checked: the connection counts as up. For an accepted connection this
     * is the first the application hears of it; set ops/arg on it with quic_conn_set(). */
    void (*on_up)(struct quic_conn *c, void *arg);
    /* The peer opened a stream (bidirectional). Call quic_stream_set() here or it is reset. */
    void (*on_stream)(struct quic_conn *c, struct quic_stream *s, void *arg);
    /* The peer allows more streams: quic_stream_open() that said ST_EAGAIN may be tried again. May be NULL.
     */
    void (*on_credit)(struct quic_conn *c, void *arg);
    void (*on_datagram)(struct quic_conn *c, const uint8_t *p, size_t n, uint64_t rx_ns,
                        void *arg); /* may be NULL */
    /* The last upcall. Comes after on_closed of every stream. A dialled connection that never came up gets it
     * too; an accepted one that never came up gets it, through accept_ops, only when we refused its
     * certificate or identity (QUIC_CLOSE_TRUST), so that the refusal can be recorded. */
    void (*on_closed)(struct quic_conn *c, const struct quic_close *why, void *arg);
};

struct quic_limits {
    uint64_t stream_window, conn_window;         /* receive credit, bytes */
    uint64_t max_stream_window, max_conn_window; /* auto-tuning ceilings; 0 = fixed */
    uint64_t max_streams; /* opened by the peer and not yet read and answered to their ends */
    size_t send_queue;    /* per stream: quic_stream_write says ST_EAGAIN above it */
    unsigned max_conns, max_conns_per_addr;
    unsigned max_handshakes; /* at once: beyond it Retry, beyond 4 times it silence; one address has 1 time */
    uint64_t idle_ns, handshake_ns, keepalive_ns; /* keepalive 0 = off (the dialler keeps alive) */
    size_t max_datagram_frame;                    /* 0 = datagrams off */
    size_t max_packet;                            /* UDP payload we send at most; 0 = what the path takes */
};
/* 256 KiB / 1 MiB windows, 128 streams, keepalive 5 s, idle 15 s, handshake 5 s. */
void quic_limits_control(struct quic_limits *l);
/* 1 MiB windows tuned up to 4 MiB, for bulk transfers on a socket of their own. */
void quic_limits_bulk(struct quic_limits *l);

struct quic_ep_cfg {
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    struct tls_ctx *tls; /* a reference is taken */
    struct quic_limits limits;
    uint8_t reset_secret[32]; /* persisted by the daemon, so that a restart is noticed at once */
    bool accept;              /* false: only dials */
    const struct quic_conn_ops *accept_ops; /* for accepted connections, until quic_conn_set() */
    void *accept_arg;
    const struct quic_link_ops *link;
    void *link_arg;
    struct quic_addr local; /* of the link */
};

int quic_ep_new(struct quic_ep **out, const struct quic_ep_cfg *cfg, struct err *e) ST_CHECK;
/* Closes every connection with `code`, sends what that needs, upcalls on_closed for each, then frees. Not
 * from an upcall. */
void quic_ep_free(struct quic_ep *ep, uint64_t code, const char *reason);
/* New connections use the new certificates; live ones keep theirs. */
void quic_ep_set_tls(struct quic_ep *ep, struct tls_ctx *tls);
/* Closes every live connection whose peer's certificate has expired or been revoked meanwhile, or no longer
 * satisfies its pins. Returns how many. */
unsigned quic_ep_close_bad(struct quic_ep *ep);
/* Stop accepting; live connections go on. */
void quic_ep_drain(struct quic_ep *ep);
size_t quic_ep_conns(const struct quic_ep *ep);

/* The link's side (the UDP room calls these; tests with an in-memory link do). */
void quic_ep_input(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                   uint8_t ecn, const uint8_t *pkt, size_t n);
void quic_ep_writable(struct quic_ep *ep);
void quic_ep_turn(struct quic_ep *ep); /* after a batch of input, on a timer, on a kick */

struct quic_ep_stats {
    uint64_t rx_datagrams, rx_bytes, tx_datagrams, tx_bytes, tx_lost_local;
    /* refused: first packets that got a refusal or, beyond what can be refused politely, silence. timed_out:
     * accepted connections that were begun and left. broken: those whose first packets made no sense. */
    uint64_t accepted, refused, handshakes_failed, handshakes_timed_out, handshakes_broken, retries,
        resets_sent, resets_received;
};
void quic_ep_stats(const struct quic_ep *ep, struct quic_ep_stats *out);

/* UDP socket with GSO, GRO, ECN, PKTINFO and path MTU probing, wired to `base`. Makes the endpoint too:
 * cfg.link, link_arg and local are filled in by it. priority is a libevent priority. ST_EEXIST = port in use,
 * named in e. */
struct quic_udp;
int quic_udp_new(struct quic_udp **out, struct quic_ep **ep, struct event_base *base, int priority,
                 const char *bind_host_port, struct quic_ep_cfg *cfg, struct err *e) ST_CHECK;
void quic_udp_free(struct quic_udp *u, uint64_t code, const char *reason); /* frees the endpoint first */
uint16_t quic_udp_port(const struct quic_udp *u);
struct quic_udp_info {
    bool gso, gro;           /* what the kernel takes and gives */
    uint64_t rcvbuf, sndbuf; /* as granted */
    uint64_t wanted;         /* what was asked for, of each */
};
void quic_udp_info(const struct quic_udp *u, struct quic_udp_info *out);

/* ---- connection ---- */

/* Starts a handshake. expect_kind/expect_name say who must answer (name NULL = any of that kind). */
int quic_connect(struct quic_conn **out, struct quic_ep *ep, const struct quic_addr *remote,
                 enum tls_kind expect_kind, const char *expect_name, const struct quic_conn_ops *ops,
                 void *arg, struct err *e) ST_CHECK;
void quic_conn_set(struct quic_conn *c, const struct quic_conn_ops *ops, void *arg);
const struct tls_identity *quic_conn_peer(const struct quic_conn *c); /* valid once up */
const struct quic_addr *quic_conn_remote(const struct quic_conn *c);
uint64_t quic_conn_id(const struct quic_conn *c); /* unique in this process; for logs */
/* Sends CONNECTION_CLOSE with an application code; on_closed follows. Idempotent. */
void quic_conn_close(struct quic_conn *c, uint64_t code, const char *reason);
int quic_conn_send_datagram(struct quic_conn *c, const void *p, size_t n) ST_CHECK; /* ST_EAGAIN = dropped */

struct quic_conn_info {
    uint64_t srtt_ns, min_rtt_ns, rttvar_ns, cwnd, bytes_in_flight;
    uint64_t pkt_sent, pkt_recv, pkt_lost, bytes_sent, bytes_recv;
    size_t path_mtu;
};
void quic_conn_info(const struct quic_conn *c, struct quic_conn_info *out);

/* ---- streams (bidirectional) ---- */

struct quic_stream_ops {
    /* Bytes or FIN arrived since the last read. Not called again until quic_stream_peek() returned all there
     * was. */
    void (*on_readable)(struct quic_stream *s, void *arg);
    /* The send queue fell below three quarters of its limit after a write said ST_EAGAIN: early, so that
     * bytes which cost time to make are ready before the queue runs dry. May be NULL. */
    void (*on_writable)(struct quic_stream *s, void *arg);
    /* The peer reset its sending side, or asked us to stop sending (noticed when we send, or when both sides
     * are over; code 0 when it is not known yet). Unread bytes are dropped after it. May be NULL. */
    void (*on_reset)(struct quic_stream *s, uint64_t code, void *arg);
    void (*on_closed)(struct quic_stream *s, void *arg); /* last upcall */
};

/* ST_EAGAIN when the peer's stream limit is reached, ST_ECLOSED when the connection is going. */
int quic_stream_open(struct quic_stream **out, struct quic_conn *c, const struct quic_stream_ops *ops,
                     void *arg) ST_CHECK;
void quic_stream_set(struct quic_stream *s, const struct quic_stream_ops *ops, void *arg);
struct quic_conn *quic_stream_conn(struct quic_stream *s);
int64_t quic_stream_id(const struct quic_stream *s);

/* Contiguous bytes at the read position, borrowed until the next call on this stream; 0 bytes = none now.
 * More may lie behind them: peek again after consuming. Never fewer than 64 unless no more have arrived. *fin
 * = the bytes returned are the last. */
size_t quic_stream_peek(struct quic_stream *s, const uint8_t **p, bool *fin);
/* Gives n bytes (≤ peeked) back: flow-control credit returns to the peer only now. Nothing after a reset. */
void quic_stream_consume(struct quic_stream *s, size_t n);

/* Copies. All or nothing: ST_EAGAIN when the queue would pass its limit (an empty queue takes any size up to
 * 16 MiB), ST_ECLOSED. `fin` ends our side. n = 0 with fin is fine. */
int quic_stream_write(struct quic_stream *s, const void *p, size_t n, bool fin) ST_CHECK;
/* The same without copying: `done` runs (in a turn) when every byte is acknowledged or the stream is gone. */
int quic_stream_write_ref(struct quic_stream *s, const void *p, size_t n, bool fin, void (*done)(void *arg),
                          void *arg) ST_CHECK;
size_t quic_stream_queued(const struct quic_stream *s); /* accepted, not yet acknowledged */
/* RESET_STREAM + STOP_SENDING; on_closed follows. */
void quic_stream_reset(struct quic_stream *s, uint64_t code);

#endif
