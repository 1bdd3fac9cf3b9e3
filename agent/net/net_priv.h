/* Shared by the files of this room alone. */
#ifndef STRATA_NET_NET_PRIV_H
#define STRATA_NET_NET_PRIV_H

#include "agent/net/net.h"
#include "agent/net/rate.h"
#include "strata/v1/net.pb-c.h"

#define SEEN_MAX 64u
#define PROBES_MAX 16u                /* that this node runs at once */
#define STREAM_MAX_NS (60 * NS_PER_S) /* of one bandwidth test */
#define STREAM_MAX_BYTES (64ull << 30)
#define STREAM_CHUNK (64u << 10)
#define RATE_BIN_NS (2 * NS_PER_MS)

struct stream_end { /* one direction of a bandwidth test, as this end saw it */
    struct rate_meter meter;
    struct quic_conn_info before;
    Strata__V1__NetRate figures; /* when it is over */
    bool over;
};

/* A probe that another node runs against this one. */
struct seen {
    uint64_t id, begun_ns, limit_bytes;
    struct rpc_session *session; /* NULL = gone */
    uint32_t pings;
    bool streaming;
    struct stream_end in, out;
};

struct prober;

struct net {
    struct net_cfg cfg;
    uint8_t pub[TICKET_PUB_LEN], before[TICKET_PUB_LEN]; /* before: the key that pub replaced */
    bool have_pub, have_before, closing;
    struct seen seen[SEEN_MAX];
    struct prober *probers;
    unsigned nprobers;
    struct log_limit refused;
};

/* answer.c */
int answer_table(struct rpc_table **out, struct net *n, struct err *e) ST_CHECK;
void answer_seen(struct rpc_call *call, struct net *n, uint64_t id);
/* The receiver's figures of a stream: `header` bytes a packet beyond what QUIC counts. */
void stream_received(struct stream_end *x, struct rpc_session *s);
void stream_sent(struct stream_end *x, struct rpc_session *s, uint64_t bytes, uint64_t ns);
extern const uint8_t stream_zeros[STREAM_CHUNK];

/* prober.c */
void prober_start(struct rpc_call *call, struct net *n, const Strata__V1__ProbeRequest *rq);
void probers_close(struct net *n);

/* doctor.c */
void doctor_answer(struct rpc_call *call, struct net *n);

#endif
