/*
 * Serving layers' bytes to other agents (LayerSource.Fetch). Nobody gets a byte without a ticket that the
 * coordinator signed for the caller's own key, for this node and for that many bytes, and that has not ended.
 * Loop thread only.
 */
#ifndef STRATA_LAYERS_SERVE_H
#define STRATA_LAYERS_SERVE_H

#include "agent/layers/files.h"
#include "common/rpc/rpc.h"
#include "common/ticket/ticket.h"

struct serve;

struct serve_cfg {
    struct files *files;
    const struct clock *clock;
    const struct log *log;
    const char *node; /* this node's name */
    const char *const *roots;
    size_t nroots;
    unsigned max_fetches; /* at once, of all peers; each holds two buffers of SERVE_CHUNK */
};

#define SERVE_CHUNK (256u << 10)

int serve_new(struct serve **out, const struct serve_cfg *cfg, struct err *e) ST_CHECK;
void serve_free(struct serve *s); /* after the endpoint and the file threads */
/* What tickets are verified with; until it is known every fetch is refused. */
void serve_set_key(struct serve *s, const uint8_t pub[TICKET_PUB_LEN]);
unsigned serve_active(const struct serve *s); /* fetches being served */
/* The table for connections of peers. */
int serve_table(struct rpc_table **out, struct serve *s, struct err *e) ST_CHECK;

#endif
