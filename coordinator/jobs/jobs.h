/*
 * Jobs: a model's layers placed on devices, loaded, verified and held until released. Every move is one
 * state.db transaction with its audit event, and takes effect for others only once that is on disk.
 *
 * A job is driven by one idea: compare what should be resident with what is, and ask agents for the
 * difference (jobs_pump). So a first load, a reload after a node came back and a restart of the coordinator
 * are one path. Loop thread only. How agents are reached is injected (struct jobs_agents), so that the room
 * is tested whole without a network.
 */
#ifndef STRATA_JOBS_JOBS_H
#define STRATA_JOBS_JOBS_H

#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/port.h"
#include "coordinator/access/quota.h"
#include "coordinator/audit/audit.h"
#include "coordinator/jobs/state.h"
#include "coordinator/plan/plan.h"
#include "coordinator/store/store.h"
#include "coordinator/topology/topo.h"

struct cluster;
struct jobs;

struct job_spec {
    char *path; /* of the model, as agents see it */
    enum plan_goal goal;
    uint64_t context;
    uint32_t sequences, tokens; /* 0 = 1 */
    bool split;
    char **allow, **deny;
    size_t nallow, ndeny;
    uint32_t min_nodes, max_stages;
    int32_t priority; /* JOB_PRIORITY_MIN … MAX; a higher one is admitted first */
    bool preemptible; /* may be put back into the queue by a job of higher priority */
};
#define JOB_PRIORITY_MIN (-1000)
#define JOB_PRIORITY_MAX 1000
int job_spec_copy(struct job_spec *dst, const struct job_spec *src) ST_CHECK;
void job_spec_fini(struct job_spec *s);

struct job_piece {
    uint32_t file;
    uint64_t offset, length;
};
struct job_layer {
    char *id, *device; /* device: cluster-wide id; "" while the job has no place */
    enum layer_state state;
    uint64_t bytes, loaded; /* loaded: of the load in flight */
    uint64_t mem;    /* bytes it counts on its device: weights, cache, its stage's scratch; ≥ bytes */
    char source[64]; /* "file", or the node it was fetched from; "" = not loaded yet */
    bool has_sha, release_first;
    uint8_t sha256[32]; /* of its bytes in the model file */
    unsigned attempts;
    struct job_piece *pieces;
    size_t npieces;
    void *call; /* the load in flight, for jobs_agents.cancel; NULL = none */
};
/* A layer on its way from where it serves to another device: copied, verified, switched, then the old copy is
 * freed. `copy` is what is being loaded; until the switch is on disk the job's own layer is untouched. */
enum shift_state { SHIFT_COPY, SHIFT_SWITCH, SHIFT_FREE, SHIFT_DROP };
struct job_shift {
    struct job *j;
    struct job_layer *l;   /* the job's */
    struct job_layer copy; /* device: where it goes; id and pieces are the job's layer's */
    char old[96];          /* device of the copy that is to be freed */
    enum shift_state state;
    bool lost;  /* the new copy went while its switch was on its way to disk */
    bool asked; /* a release is in flight */
    uint64_t started_ns;
    char peer[64];
    struct job_shift *next;
};
struct job_ask;
struct submission;
struct job {
    char id[40], principal[80], name[128];
    struct job_spec spec;
    enum job_state state;
    bool moving; /* a transition is on its way to disk */
    char reason_code[40], reason[400];
    int64_t created_us, updated_us;
    uint8_t header_sha256[32];
    unsigned nfiles;
    char **sources; /* nodes that have the file */
    size_t nsources;
    char *plan_json;
    struct job_layer *layers;
    size_t nlayers;
    struct jobs *jobs;
    struct job *next;
    unsigned loads, releases;    /* calls to agents in flight */
    struct job_ask *cancels;     /* who waits for the release to be under way */
    bool stalled;                /* something was refused: jobs_tick tries again */
    struct submission *sub;      /* a plan for it is being made; NULL = none */
    struct job_shift *shifts;    /* layers on their way */
    unsigned moved, move_failed; /* layers of the migration under way */
    uint64_t tried;              /* the room's last change that its place was looked for after */
    bool victim;                 /* its bytes count as free while a plan for another is made */
    bool fail_pending;           /* releasing because it failed, not because it was cancelled */
    bool want_degrade;           /* asked for while another move was on its way to disk */
};
uint64_t job_total_bytes(const struct job *j);
uint64_t job_loaded_bytes(const struct job *j);

/* ---- how agents are reached ---- */

struct jobs_model { /* what an agent says of a model file */
    const char *model_json;
    uint8_t header_sha256[32];
    unsigned nfiles;
    const struct job_layer *layers; /* id, bytes and pieces only */
    size_t nlayers;
};
/* Each call completes exactly once, later, with `rc`; on failure *e says why. */
typedef void (*jobs_inspect_fn)(void *arg, const char *node, int rc, const struct err *e,
                                const struct jobs_model *m);
struct jobs_load_event {
    uint64_t loaded;
    bool done; /* rc, e, sha256 and device_sha256 are meaningful */
    int rc;
    const struct err *e;
    const uint8_t *sha256, *device_sha256; /* 32 bytes each when rc is ST_OK */
};
typedef void (*jobs_load_fn)(void *arg, const struct jobs_load_event *ev);
typedef void (*jobs_call_fn)(void *arg, int rc, const struct err *e);
typedef void (*jobs_verify_fn)(void *arg, int rc, const struct err *e, const uint8_t *device_sha256);

struct jobs_agents {
    int (*inspect)(void *ctx, struct topo_node *n, const struct job_spec *s, jobs_inspect_fn fn, void *arg);
    /* peer NULL = from the node's own disk. *call is what cancel takes, until done was told. */
    int (*load)(void *ctx, struct topo_node *n, const struct job *j, const struct job_layer *l,
                struct topo_node *peer, jobs_load_fn fn, void *arg, void **call);
    /* The load ends soon, without waiting for the agent: done follows with ST_ECANCELED, never inline. */
    void (*cancel)(void *ctx, void *call);
    int (*verify)(void *ctx, struct topo_node *n, const struct job *j, const struct job_layer *l,
                  jobs_verify_fn fn, void *arg);
    /* layer NULL = all of the job's on that node; device (cluster-wide id) NULL = on all its devices */
    int (*release)(void *ctx, struct topo_node *n, const char *job, const char *layer, const char *device,
                   jobs_call_fn fn, void *arg);
};

typedef void (*jobs_planned_fn)(void *arg, int rc, const struct err *e, struct plan *p); /* p: the callee's */
struct model;
struct request;

struct jobs_cfg {
    const struct clock *clock;
    const struct rng *rng;
    const struct log *log;
    struct topo *topo;
    struct store *store;
    struct audit *audit; /* NULL: refused plans are not audited */
    struct port *port;   /* the planner's thread answers through it */
    /* For tests: solves instead of the room's own thread. Takes c, m and r; answers later, exactly once. */
    int (*plan)(void *ctx, struct cluster *c, struct model *m, struct request *r, enum plan_goal goal,
                jobs_planned_fn fn, void *arg);
    void *plan_ctx;
    const struct jobs_agents *agents;
    void *agents_ctx;
    const struct policy *(*policy)(void *ctx, const char *principal); /* NULL = none */
    void *policy_ctx;
    struct quota *quota; /* what principals hold; NULL: the room keeps a ledger of its own */
    /* Adds declared or measured links to a snapshot. */
    int (*links)(void *ctx, struct cluster *c);
    void *links_ctx;
    void (*changed)(void *ctx, const struct job *j); /* state or progress changed; NULL = nobody cares */
    void *changed_ctx;
};

int jobs_new(struct jobs **out, const struct jobs_cfg *cfg) ST_CHECK;
/* Before store_start: jobs as they were. Reservations are made again. */
int jobs_load(struct jobs *js, struct err *e) ST_CHECK;
/* Nothing new begins and nothing more is written: before the store closes. Completions may still come. */
void jobs_stop(struct jobs *js);
/* Tries again what was refused, such as by a full disk; call it every second or so. */
void jobs_tick(struct jobs *js);
/* Waits for a planner in flight. Calls to agents must have ended (sessions closed) before. */
void jobs_free(struct jobs *js);

struct job *jobs_find(struct jobs *js, const char *id);
struct job *jobs_first(struct jobs *js); /* newest first; then ->next */

/* j is borrowed for the callback; for a dry run it is not kept. NULL j with *e on failure. */
typedef void (*jobs_submit_fn)(void *arg, const struct job *j, const struct err *e);
/* Answers once: with the job durably reserved, or queued because it would fit but does not now, or refused
 * with *e. Repeated with the same request_id (NULL or
 * "" = none) by the same principal it answers with the same job, also after a restart, for a day; another
 * submission under that id is ST_ECONFLICT. */
void jobs_submit(struct jobs *js, const struct job_spec *s, const char *principal, const char *request_id,
                 bool dry_run, jobs_submit_fn fn, void *arg);
/* Moves the layers first … last, in the job's order, to a device while they serve where they are. Answers
 * once the migration is durably under way; its end shows in the job's state. ST_ECONFLICT unless the job is
 * ready. */
void jobs_move(struct jobs *js, struct job *j, const char *first, const char *last, const char *to,
               const char *principal, jobs_call_fn fn, void *arg);
/* Something may fit now that did not: a policy changed, a device has more memory free. */
void jobs_room_changed(struct jobs *js);
/* Layers of jobs that lie on, or go to, this node, and their bytes. */
size_t jobs_on_node(struct jobs *js, const char *node, uint64_t *bytes);
/* Answers once the release is durably under way; loads in flight are cancelled, not waited for. */
void jobs_cancel(struct jobs *js, struct job *j, const char *principal, jobs_call_fn fn, void *arg);
/* Re-reads every resident layer on its device. ST_ECORRUPT when one differs: it is then lost and reloaded. */
void jobs_verify(struct jobs *js, struct job *j, jobs_call_fn fn, void *arg);

/* A node said hello holding these; *drop is set for those that nobody wants there. */
struct jobs_resident {
    const char *job, *layer, *device; /* device: local id */
    const uint8_t *sha256;            /* 32 bytes or NULL */
    uint64_t bytes;
    bool drop;
};
void jobs_node_up(struct jobs *js, struct topo_node *n, struct jobs_resident *r, size_t nr);
void jobs_node_lost(struct jobs *js, struct topo_node *n);

/* The cluster as the planner sees it now, for this principal's policy (NULL = all devices). */
int jobs_snapshot(struct jobs *js, const struct policy *p, struct cluster **out, struct err *e) ST_CHECK;

#endif
