/* What the coordinator may call on this agent: the Layers service, translated to and from the layers room. */
#ifndef STRATA_AGENT_HANDLERS_H
#define STRATA_AGENT_HANDLERS_H

#include "agent/layers/layers.h"
#include "common/rpc/rpc.h"

struct identity;

struct handlers {
    struct layers *layers;
    struct files *files;
    const struct clock *clock;
    const char *const *roots;
    size_t nroots;
    struct identity *identity;
};

/* h is borrowed and must outlive every session that serves the table. */
int handlers_table(struct rpc_table **out, struct handlers *h, struct err *e) ST_CHECK;

#endif
