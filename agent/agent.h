/* The agent as a whole: sockets, workers, layers and the coordinator's connection on one loop. */
#ifndef STRATA_AGENT_AGENT_H
#define STRATA_AGENT_AGENT_H

#include "agent/config.h"
#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"

struct agent;
struct event_base;

struct agent_env {
    struct event_base *base;
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    const struct agent_config *config;
    const char *worker_path;                          /* the configuration's or the one beside the program */
    void (*on_registered)(void *arg);                 /* each time; may be NULL */
    void (*on_fatal)(void *arg, const struct err *e); /* it cannot go on: free it (not from inside) */
    void *arg;
};

/* Opens sockets and starts the worker that looks for devices; dials the coordinator when it has answered. All
 * of env is borrowed and outlives the agent. */
int agent_new(struct agent **out, const struct agent_env *env, struct err *e) ST_CHECK;
/* Says goodbye to the coordinator and the peers and ends all workers. Not from an upcall. NULL is fine. */
void agent_free(struct agent *a);
const char *agent_peer_address(const struct agent *a); /* host:port other agents reach it at */

struct layers;
struct sessions;
struct layers *agent_layers(const struct agent *a); /* what it holds */
struct sessions *agent_sessions(const struct agent *a);

#endif
