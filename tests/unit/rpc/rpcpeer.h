/*
 * What RPC tests share: both ends on real loopback sockets with real certificates, a service whose answers
 * depend on the id asked for, and a caller that records what it is told.
 *
 * Jobs.Get: id "fail" NOT_FOUND, "hold" never answers, "huge" too large an answer, "close" closes the
 * connection, anything else is echoed. Jobs.Watch: N answers of 64 KiB, where id is the number N.
 * LayerSource.Fetch: `bytes` bytes of the pattern; path "deny", "corrupt", "break" go wrong as they say.
 */
#ifndef STRATA_TESTS_RPCPEER_H
#define STRATA_TESTS_RPCPEER_H

#include <sys/types.h>

#include "common/rpc/rpc.h"
#include "strata/v1/jobs.pb-c.h"
#include "strata/v1/layers.pb-c.h"
#include "strata/v1/plans.pb-c.h"
#include "tests/support/quicpeer.h"

struct event;

struct served { /* what the callee saw */
    unsigned calls, cancels, again, acked;
    struct rpc_call *held;
    char request_id[80], principal[80], name[96];
    uint64_t deadline_ns;
    /* the stream or transfer in progress */
    unsigned sent, total;
    uint8_t *bytes;
    uint64_t at, size;
    bool corrupt;
};

struct world {
    struct event_base *base;
    struct event *deadline;
    bool late;
    struct pki pki;
    struct log log;
    struct tls_ctx *tls_s, *tls_c;
    struct quic_udp *us, *uc;
    struct quic_ep *es, *ec;
    struct rpc_table *table_s, *table_c;
    struct rpc_session *s, *c; /* server's and client's end; NULL once closed */
    struct served by_s, by_c;
    struct quic_close why;
    unsigned max_inbound;
    /* Not NULL: the server is no RPC peer and answers every stream with these bytes and FIN. */
    const uint8_t *raw;
    size_t nraw;
};

void world_start(struct world *w, bool bulk); /* both up; set max_inbound, raw before */
void world_stop(struct world *w);

#define UNTIL(w, cond)                                                                                       \
    do {                                                                                                     \
        while (!(cond) && !(w)->late)                                                                        \
            event_base_loop((w)->base, EVLOOP_ONCE);                                                         \
        assert_true(cond);                                                                                   \
    } while (0)

uint8_t rpc_pattern(uint64_t i);

/* The caller's record. */
struct asked {
    struct rpc_call *call; /* NULL once done */
    bool done, cancel_on_message, bad;
    unsigned messages;
    char id[80];
    struct rpc_status st;
    uint64_t got;
    bool has_digest;
    uint8_t digest[32];
    size_t take_at_most; /* on_bulk pauses after so many at a time; 0 = takes all */
    unsigned pauses;
};
extern const struct rpc_call_ops asked_ops;
/* Jobs.<method> with that id. */
void ask(struct asked *a, struct rpc_session *s, const char *method, const char *id, uint64_t timeout_ns);
void fetch(struct asked *a, struct rpc_session *s, const char *path, uint64_t bytes, uint64_t timeout_ns);

/* The same server as a process of its own, with its port; it can be stopped and killed. */
pid_t server_fork(struct pki *p, uint16_t *port);
void server_kill(pid_t pid);

#endif
