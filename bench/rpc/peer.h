/*
 * The transports that the rpc area compares, behind one interface: ours, TLS 1.3 over TCP, plain TCP. The
 * server side of each runs in a process of its own. Everything runs on one event loop; `up`, `down` and
 * completions come from the loop, never from inside a call.
 */
#ifndef STRATA_BENCH_RPC_PEER_H
#define STRATA_BENCH_RPC_PEER_H

#include <event2/event.h>

#include "common/tls/tls.h"

#define PING_LEN 64
/* Ports: calls and bulk, as the daemons have them; bulk with a SHA-256 behind it that both ends compute; bulk
 * in datagrams that any network takes, where the transport has datagrams. */
enum { PORT_CALLS, PORT_BULK, PORT_DIGEST, PORT_SMALL, PORTS };

#define DIGEST_LEN 32
struct digest { /* of one transfer, at either end; zeroed = none wanted */
    struct evp_md_ctx_st *md;
    uint64_t left; /* bytes still to come before the digest itself */
    uint8_t sent[DIGEST_LEN];
    size_t nsent;
};
bool digest_start(struct digest *d, uint64_t bytes);
void digest_add(struct digest *d, const void *p, size_t n); /* the sender's bytes */
void digest_end(struct digest *d, uint8_t out[DIGEST_LEN]);
/* The receiver's bytes, digest included: how many of them are payload. Sets *bad when the digest is wrong. */
size_t digest_take(struct digest *d, const uint8_t *p, size_t n, bool *bad);
void digest_fini(struct digest *d);

struct bench_pki {
    char dir[64];
    struct tls_ctx *server, *client;
};

struct slot { /* one outstanding call */
    void (*done)(struct slot *s, bool ok);
    struct slot *next; /* the transport's while the call runs */
};

struct link { /* the client's end of a connection */
    void (*on_up)(struct link *l);
    void (*on_down)(struct link *l); /* last; l is gone when it returns */
    void (*on_bulk_end)(struct link *l, bool ok);
    void *arg;
    bool up;
    char why[160]; /* set before on_down: what ended it, as far as the transport knows */
    uint64_t bulk_got;
};

struct transport {
    const char *name;
    /* Opens the listening sockets of a server on base and says which ports they have. */
    int (*serve)(struct event_base *base, const struct bench_pki *pki, uint16_t ports[PORTS], struct err *e);
    int (*client_new)(void **out, struct event_base *base, const struct bench_pki *pki,
                      const uint16_t ports[PORTS], struct err *e);
    void (*client_free)(void *client); /* every link must be down */
    /* The callbacks of proto are taken over into the new link. */
    int (*dial)(void *client, int port, const struct link *proto, struct link **out, struct err *e);
    void (*hang_up)(struct link *l);             /* on_down follows */
    int (*call)(struct link *l, struct slot *s); /* PING_LEN bytes there and back */
    int (*bulk)(struct link *l, uint64_t bytes); /* the server sends so many */
};

extern const struct transport transport_ours, transport_tls, transport_tcp;

/* ---- the processes around it (world.c) ---- */

struct server { /* one forked server process */
    const struct transport *t;
    int pid, ctl; /* closing ctl ends it */
    uint16_t ports[PORTS];
};
int bench_pki_open(struct bench_pki *p, struct err *e) ST_CHECK;
void bench_pki_close(struct bench_pki *p);
/* Forks; call it while no loop and no thread is running in this process. */
int server_start(struct server *s, const struct transport *t, const struct bench_pki *pki,
                 struct err *e) ST_CHECK;
void server_stop(struct server *s);
double server_cpu_s(const struct server *s); /* CPU time used so far */
double server_rss_kb(const struct server *s);
/* Puts this process on the n-th CPU that it may use, if there are at least two. */
void pin_cpu(unsigned n);

#endif
