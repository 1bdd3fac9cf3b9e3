/*
 * Latency probes as they travel in QUIC datagrams, and what a series of them says. The prober sends pings
 * with a sequence number and keeps when it sent each; the other side answers each at once and says how long
 * it held it. Nothing the peer says of time is believed beyond what the prober's own monotonic clock allows,
 * so a wall clock that jumps changes nothing. Pure: times come in as arguments. One thread.
 */
#ifndef STRATA_NET_PROBE_H
#define STRATA_NET_PROBE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#define PROBE_MIN_BYTES 40u
#define PROBE_MAX_BYTES 1100u
#define PROBE_MAX_COUNT 100000u

enum probe_kind { PROBE_PING = 1, PROBE_PONG = 2 };

struct probe {
    enum probe_kind kind;
    uint64_t session;
    uint32_t seq;
    uint32_t order;   /* pong: how many pings of this session had come before this one */
    uint64_t held_ns; /* pong: from the ping's arrival to the answer */
};

/* Writes `size` bytes, PROBE_MIN_BYTES to PROBE_MAX_BYTES, the rest zeros. */
void probe_encode(const struct probe *p, uint8_t *out, size_t size);
/* ST_EPROTO for anything that probe_encode() would not have written, padding aside. */
int probe_decode(const uint8_t *p, size_t n, struct probe *out) ST_CHECK;

/* Zeros where nothing came back: received tells. */
struct probe_stats {
    uint32_t sent, received; /* answered in time, each once */
    uint32_t late;           /* answered after the time-out: lost, but on its way */
    uint32_t duplicates;     /* answers beyond the first */
    uint32_t reordered;      /* answers that came after that of a later ping */
    uint32_t invalid;        /* answers to what was never asked, or with an impossible holding time */
    uint32_t peer_received;  /* the most pings that the peer's answers claim */
    double loss;             /* of sent, 0 … 1 */
    uint64_t min_ns, mean_ns, p50_ns, p99_ns, max_ns;
    uint64_t jitter_ns; /* RFC 3550, 6.4.1, over the answers in the order they came */
    uint64_t stddev_ns;
};

struct probe_series;
/* `timeout_ns` after its sending an answer counts as lost. ST_EINVAL, ST_ENOMEM. */
int probe_series_new(struct probe_series **out, uint64_t session, uint32_t count,
                     uint64_t timeout_ns) ST_CHECK;
void probe_series_free(struct probe_series *s); /* NULL is fine */
/* The next ping's sequence number, which was sent now; ST_ELIMIT when all were. */
int probe_series_sent(struct probe_series *s, uint64_t now_ns, uint32_t *seq) ST_CHECK;
/* Takes back the last one: it could not be sent. */
void probe_series_unsent(struct probe_series *s);
void probe_series_got(struct probe_series *s, const struct probe *p, uint64_t rx_ns);
/* Nothing more can change the figures: all were answered, or the last one's time is over. */
int probe_series_over(const struct probe_series *s, uint64_t now_ns);
void probe_series_stats(const struct probe_series *s, struct probe_stats *out);

#endif
