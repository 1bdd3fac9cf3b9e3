/*
 * Fetching bytes from another agent: a layer's, or a part of a buffer. One connection a peer is shared by all
 * fetches from it and closed when none has been made for a while. The peer checks the ticket or the offer;
 * the digest over all bytes is checked here. Loop thread only.
 */
#ifndef STRATA_LAYERS_PEERS_H
#define STRATA_LAYERS_PEERS_H

#include "agent/layers/files.h"
#include "common/rpc/rpc.h"
#include "strata/v1/layers.pb-c.h"

struct peers;
struct fetch;

struct peers_cfg {
    struct event_base *base;
    const struct clock *clock;
    const struct log *log;
    struct quic_ep *ep; /* bulk limits */
    struct files *files;
    /* A fetch is over: what it showed of the link, when it was large enough to show anything and nothing but
     * the link held it up. rtt_ns is the connection's smallest. May be NULL. */
    void (*on_transfer)(const char *node, uint64_t bytes, uint64_t ns, uint64_t rtt_ns, void *arg);
    void *arg;
};

struct fetch_ops {
    /* Bytes in order, borrowed; return how many were taken. Fewer than n = paused until fetch_resume(). */
    size_t (*on_bytes)(const uint8_t *p, size_t n, void *arg);
    /* Last upcall, exactly once. digest (32 bytes, checked against the bytes that came) when rc is ST_OK. */
    void (*on_done)(int rc, const struct err *e, const uint8_t *digest, void *arg);
};

int peers_new(struct peers **out, const struct peers_cfg *cfg, struct err *e) ST_CHECK;
/* After the endpoint is gone, so that no session is left. */
void peers_free(struct peers *p);
/* Our certificate was replaced: fetches to come go over new connections. */
void peers_renewed(struct peers *p);
size_t peers_fetching(const struct peers *p); /* fetches under way */
/* Closes all connections: fetches end with ST_EUNREACH. */
void peers_close(struct peers *p);

struct fetch_ask {
    const ProtobufCServiceDescriptor *service; /* the method is bulk and its head a FetchHead */
    const char *method;
    const ProtobufCMessage *request; /* is copied */
    uint64_t bytes;                  /* that must come */
};
/* Never completes inline. */
int peers_fetch(struct fetch **out, struct peers *p, const char *node, const char *address,
                const struct fetch_ask *ask, uint64_t timeout_ns, const struct fetch_ops *ops, void *arg,
                struct err *e) ST_CHECK;
void fetch_resume(struct fetch *f);
void fetch_cancel(struct fetch *f); /* no upcall follows; f is gone */

#endif
