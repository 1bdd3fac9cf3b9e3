/*
 * The jobs room whole, with fakes around it: agents that keep what they were given, a virtual clock, a
 * planner that answers when its time has come, and a real state.db in memory. One seed is one run, bit for
 * bit: the only other thread is the store's, and the simulation waits for it after every step.
 *
 * A witness outside the room knows what was acknowledged. sim_check() says what is broken, if anything.
 */
#ifndef TESTS_JOBS_SIM_H
#define TESTS_JOBS_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/jobs/jobs.h"

#define SIM_NODES 4
#define SIM_MODELS 3
#define SIM_LAYERS 8
#define SIM_PRINCIPALS 3
#define SIM_HELD 512

/* What is made wrong on purpose, to see it caught. */
enum sim_fault {
    FAULT_NONE,
    FAULT_RELEASE_KEEPS, /* an agent says released and keeps the bytes */
    FAULT_LOAD_LIES,     /* an agent says loaded and has nothing */
    FAULT_LOAD_HANGS,    /* a load never ends */
    FAULT_QUOTA_BLIND,   /* the room is told of a larger quota than there is */
    FAULT_MEMORY_BLIND,  /* the room is told of more device memory than there is */
    FAULT_JOB_VANISHES,  /* a job's row is deleted from state.db before a restart */
    FAULT_COUNT
};

struct sim_held { /* one layer's memory on an agent */
    bool used, loading, doomed;
    char job[40], layer[32], device[64]; /* device: local id */
    uint64_t bytes;
    uint8_t sha[32];
};
struct sim_node {
    char name[16];
    bool up, drained, has_model[SIM_MODELS];
    uint64_t capacity[2]; /* per device */
    unsigned ndevices, session;
    struct sim_held held[SIM_HELD];
};
struct sim_call;
struct sim_plan;
struct sim_job { /* of the witness */
    char id[40], request[32];
    unsigned principal, model;
    bool cancel_acked;
    struct sim_job *next;
};

struct sim {
    uint64_t rng, now_ns;
    struct clock clock;
    struct rng random;
    struct log log;
    struct topo *topo;
    struct store *store;
    struct port *port;
    struct jobs *jobs;
    struct quota *quota; /* made again with the room */
    struct policy policy[SIM_PRINCIPALS];
    struct sim_node node[SIM_NODES];
    struct sim_call *calls;
    struct sim_job *acked;
    unsigned serial;
    enum sim_fault fault;
    unsigned fail_percent; /* of loads */
    uint64_t refused_full; /* loads that a device had no room for */
    unsigned submits, refusals, restarts, loads;
    const char *fail_device; /* every load to this device (cluster-wide id) fails; NULL = none */
    char dir[64], state[96];
    char broken[400]; /* the first broken invariant; "" = none */
    uint64_t topo_epoch;
};

void sim_open(struct sim *s, uint64_t seed);
void sim_close(struct sim *s);
uint64_t sim_rand(struct sim *s, uint64_t below);

void sim_node_up(struct sim *s, unsigned i);
/* keeps: only the connection is lost; else the agent and all that it held are gone. */
void sim_node_down(struct sim *s, unsigned i, bool keeps);
void sim_restart(struct sim *s); /* the coordinator ends and comes back with what state.db has */

/* Lets all that is on its way to disk get there. */
void sim_settle(struct sim *s);
/* The next thing due happens; false = nothing is under way. Leases are aged and the room ticks as time goes.
 */
bool sim_step(struct sim *s);
void sim_run_for(struct sim *s, uint64_t ns);

struct sim_spec {
    unsigned principal, model;
    const char *request; /* NULL = none */
    enum plan_goal goal;
    uint32_t min_nodes;
    int32_t priority;
    bool preemptible;
};
struct sim_answer {
    bool done;
    struct err e; /* code ST_OK: id */
    char id[40];
};
void sim_submit(struct sim *s, const struct sim_spec *sp, bool dry_run, struct sim_answer *a);
void sim_move(struct sim *s, const char *id, const char *first, const char *last, const char *to,
              struct sim_answer *a);
void sim_cancel(struct sim *s, const char *id, struct sim_answer *a);
struct job *sim_job(struct sim *s, const char *id);
uint64_t sim_model_bytes(unsigned model);

/* Invariants that hold at every moment, and those that hold once all is quiet and every node is there. */
void sim_check(struct sim *s);
void sim_check_quiet(struct sim *s);
void sim_broken(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* sim_agents.c */
extern const struct jobs_agents sim_agents;
int sim_plan(void *ctx, struct cluster *c, struct model *m, struct request *r, enum plan_goal goal,
             jobs_planned_fn fn, void *arg);
uint64_t sim_next_due(const struct sim *s); /* UINT64_MAX = nothing is under way */
void sim_run_due(struct sim *s);            /* the earliest call */
void sim_calls_end(struct sim *s,
                   unsigned node); /* its connection is lost; SIM_NODES = all, the planner's too */
uint64_t sim_held_bytes(const struct sim_node *n, const char *device);
void sim_forget_held(struct sim_node *n, const char *job, const char *layer, const char *device);

#endif
