/*
 * A coordinator made of the real network rooms but without its mind, and agents that register with it, all in
 * one process on one loop; workers are real processes. Anything that goes wrong in here fails the test.
 */
#ifndef TESTS_AGENT_WORLD_H
#define TESTS_AGENT_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/agent.h"
#include "common/event/event.h"
#include "common/rpc/rpc.h"
#include "common/ticket/ticket.h"
#include "strata/v1/layers.pb-c.h"
#include "strata/v1/sessions.pb-c.h"

#define WORLD_NODES 2

struct world_node {
    struct world *w;
    char name[16], dir[96];
    struct agent_config cfg;
    struct agent *agent;
    struct rpc_session *session; /* the coordinator's side */
    uint8_t spki[32];
    char peer_address[128];
    unsigned hellos, heartbeats, residents;
    uint64_t spooled; /* the last record taken */
    bool has_model;
    /* Sessions.Report */
    unsigned reports, held, ended;
    uint64_t held_bytes;
    char ended_reason[40]; /* of the last one */
};

struct world {
    struct event_base *base;
    char dir[64], model[96];
    struct log log;
    struct ticket_key *key;
    struct tls_ctx *tls;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_table *table;
    struct world_node node[WORLD_NODES];
    bool mute;               /* reports are refused */
    bool spool_full;         /* audit records are refused */
    unsigned lose_replies;   /* so many batches are taken and not acknowledged */
    const char *end_session; /* the next report is answered with this one to end */
    void (*on_event)(const struct audit_event *e, void *arg);
    void *event_arg;
    const char *drop_job; /* the next Hello is told to drop this job's layers */
    Strata__V1__InspectReply *model_info;
};

struct result {
    struct world *w;
    struct rpc_call *call;
    bool done, has;
    unsigned code, progress;
    char reason[40], text[600];
    uint8_t sha[32], dev[32];
    uint32_t layers;
    uint64_t bytes;
    double best_s, flops;
    unsigned rounds;
    Strata__V1__InspectReply *inspect;
};

void world_open(struct world *w);
void world_open_as(struct world *w, const char *devices); /* YAML: backends, and what concerns them */
void world_close(struct world *w);
/* Of a group of tests: *state is a world. */
int world_setup(void **state);
int world_teardown(void **state);
/* A certificate of user/NAME into the world's directory: NAME.crt, NAME.key; then settings made of it. */
struct tls_ctx *world_user(struct world *w, const char *name);

/* Turns the loop once; fails the test when `since` was too long ago. */
void world_turn(struct world *w, uint64_t since_ns);
#define WAIT(w, cond)                                                                                        \
    do {                                                                                                     \
        uint64_t since_ = clock_ns(clock_system());                                                          \
        while (!(cond))                                                                                      \
            world_turn((w), since_);                                                                         \
    } while (0)

/* Starts a call on the node's session; the result is done when its `done` says so. */
void world_call(struct world *w, unsigned node, const char *method, unsigned flags,
                const ProtobufCMessage *req, struct result *r);

/* A load of the model's layer number `i`, from the node's own disk. r->pieces borrowed from the model. */
void world_load_request(struct world *w, const char *job, unsigned i, Strata__V1__LoadRequest *rq);
struct result world_load(struct world *w, unsigned node, const Strata__V1__LoadRequest *rq);
struct result world_verify(struct world *w, unsigned node, const char *job, const char *layer);
struct result world_time(struct world *w, unsigned node, const char *job, const char *layer, double flops,
                         double read_bytes);
struct result world_release(struct world *w, unsigned node, const char *job, const char *layer);

/* SHA-256 of a layer's bytes read from the file by the test itself. */
void world_layer_sha(struct world *w, unsigned i, uint8_t out[32]);
/* The largest layer and the smallest one that is not empty. */
unsigned world_big(struct world *w);
unsigned world_small(struct world *w);

#endif
