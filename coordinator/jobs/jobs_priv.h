/* Shared by the files of the jobs room alone. */
#ifndef STRATA_JOBS_PRIV_H
#define STRATA_JOBS_PRIV_H

#include "coordinator/jobs/jobs.h"

struct planner;

struct asked;
struct map;

struct found { /* one version of the model, and who has it */
    uint8_t header[32];
    char *model_json;
    unsigned nfiles;
    struct job_layer *layers;
    size_t nlayers;
    char **nodes;
    size_t nnodes;
};
enum sub_kind {
    SUB_NEW,    /* a job that is not in the list yet */
    SUB_QUEUED, /* one that waits for its place */
    SUB_HEAL,   /* a degraded one: its lost layers need another place */
    SUB_MOVE,   /* a ready one with layers on a node that is drained */
};
enum sub_stage {
    PLAN_NOW,     /* on what is free */
    PLAN_WHOLE,   /* on empty devices: could it ever fit? */
    PLAN_PREEMPT, /* as if those it may preempt were gone */
};
struct submission {
    enum sub_kind kind;
    enum sub_stage stage;
    struct jobs *js;
    struct job *j;
    bool dry_run;
    struct asked *asked; /* NULL: it came without a request id */
    jobs_submit_fn fn;
    void *arg;
    unsigned waiting; /* nodes that have not said yet whether they have the file */
    struct found *found;
    size_t nfound;
    struct found *model; /* the one that was taken */
    struct err last;     /* what the last node without the file said */
    struct err why;      /* why it does not fit now */
    unsigned tries;      /* plans that no longer fitted when they were ready */
    struct submission *next_holding;
};

struct jobs {
    struct jobs_cfg cfg;
    struct job *head;
    struct planner *planner;    /* NULL when cfg.plan is given */
    struct submission *holding; /* their bytes count, their transaction is on its way */
    struct map *asked;
    struct asked *asked_head, **asked_last;
    uint64_t room;        /* counts the moments at which something may fit that did not */
    uint64_t reserved;    /* bytes on all devices when they were last counted */
    uint64_t next_try_ns; /* of all that waits, whatever happened */
    bool admitting;       /* one of the queue is being planned */
    bool stopping;
    struct quota *quota, *own_quota;
};

/* job.c */
struct job *job_new(struct jobs *js);
void job_free(struct job *j);
void job_layers_free(struct job_layer *l, size_t n);
int64_t jobs_now(const struct jobs *js);
void job_changed(struct job *j);

/* Every transaction of the room goes through here; refused once the room stops. Takes t. */
int jobs_store(struct jobs *js, struct store_txn *t, store_done_fn done, void *arg) ST_CHECK;
uint64_t job_held_bytes(const struct job *j); /* what it counts against devices and quota */

/* submit.c, admit.c */
int submission_rights(struct jobs *js, const char *principal, struct err *e) ST_CHECK; /* audits a denial */
/* Asks every node for the model, plans, and goes on by kind; ends in submission_end. */
void submission_inspect(struct submission *s);
void submission_plan(struct submission *s);
/* Answers and ends. `j` NULL on failure. */
void submission_end(struct submission *s, const struct job *j, const struct err *e);
/* For a job that exists; NULL: no memory. */
struct submission *submission_of(struct job *j, enum sub_kind kind);
/* Does what was planned on an earlier snapshot still fit? Then its bytes are claimed. ST_EAGAIN: not on the
 * devices; ST_ERESOURCE: not under the quota, *why says where. j is not counted on the devices yet. */
int job_still_fits(const struct job *j, struct quota_refusal *why) ST_CHECK;
/* Would another plan help? ST_EAGAIN, or a quota that the planner knows. */
bool job_plan_again(int fits, const struct quota_refusal *why);
/* Sets each layer's mem from the plan's stages. */
int job_take_memory(struct job *j, const struct plan *p, struct err *e) ST_CHECK;
int job_take_plan(struct job *j, const struct plan *p,
                  struct err *e) ST_CHECK; /* devices, mem and plan_json */
int job_take_plan_json(struct job *j, const struct plan *p, struct err *e) ST_CHECK;
const struct plan_placement *plan_placement_of(const struct plan *p, const char *layer);
void job_txn_plan(struct store_txn *t, const struct job *j, const struct plan *p); /* row and event */
void job_list(struct job *j); /* it exists for others from here on */

/* queue.c */
void job_unplace(struct job *j);        /* its layers lie nowhere */
void queue_store(struct submission *s); /* a new one, durably */
void queue_admit(struct submission *s, const struct plan *p);
bool queue_wants_preempt(struct submission *s);
void queue_preempt(struct submission *s, const struct plan *p);
void queue_ended(struct submission *s, const struct err *e); /* no place this time */
void queue_run(struct jobs *js);

/* heal.c: a plan for a job of which some layers must go elsewhere and all others stay */
void heal_run(struct job *j); /* a degraded one whose devices do not come back */
void drain_run(struct jobs *js);
int replan_request(struct submission *s, const struct model *m, const struct cluster *c, struct request *r,
                   struct err *e) ST_CHECK;
void replan_planned(struct submission *s, int rc, const struct err *e, const struct plan *p);

/* shift.c */
struct job_shift *shift_new(struct job *j, struct job_layer *l, const char *to); /* counts from here on */
void shifts_free(struct job *j);
void shifts_pump(struct job *j);
void shifts_abort(struct job *j); /* those that have not switched are dropped */
void shift_node_lost(struct job *j, const struct topo_node *n);
/* What a node says it holds of a layer that is being switched to it. */
void shift_reconcile(struct job *j, const struct topo_node *n, struct jobs_resident *r, size_t nr);

/* request.c: 0 = go on (*out NULL when there is no id), 1 = answered, or will be by the one under way. */
int asked_init(struct jobs *js) ST_CHECK;
void asked_fini(struct jobs *js);
int asked_load(struct jobs *js, struct err *e) ST_CHECK;
int asked_begin(struct jobs *js, const char *principal, const char *id, const struct job_spec *s,
                jobs_submit_fn fn, void *arg, struct asked **out, struct err *e) ST_CHECK;
void asked_record(const struct asked *a, const char *job, struct store_txn *t,
                  int64_t now_us); /* a may be NULL */
void asked_end(struct jobs *js, struct asked *a, const struct job *j, const struct err *e);

/* snapshot.c */
struct snapshot_opts {
    const struct policy *policy; /* NULL = all devices */
    bool whole;                  /* devices as if empty */
    bool victims;                /* bytes of jobs marked as victims count as free */
    bool stay;                   /* what the job has on a drained node may be planned to stay */
    const struct job *own;       /* its bytes count as free; NULL = none */
};
int snapshot_build(struct jobs *js, const struct snapshot_opts *o, struct cluster **out,
                   struct err *e) ST_CHECK;
bool job_device_usable(const struct topo_node *n, const struct topo_device *d);

/* claim.c: the job's memory in the quota ledger. Again, with other devices, whenever layers change places. */
int job_claim(const struct job *j, struct quota_refusal *why) ST_CHECK; /* ST_ERESOURCE with *why */
int job_claim_held(const struct job *j) ST_CHECK;                       /* whatever the quota says */
/* Copies or layers came, went or changed places: counted again in the ledger and on the devices. */
void job_recount(struct job *j);
/* May this much more of it lie on the device, by its owner's quotas for the device and its node? */
bool job_may_lie(const struct job *j, const char *device, uint64_t bytes, struct quota_refusal *why);
/* The sentence for a refusal; the second also audits it. Return ST_ERESOURCE. */
int job_quota_why(const struct job *j, const struct quota_refusal *why, struct err *e);
int job_quota_refused(const struct job *j, const struct quota_refusal *why, struct err *e);

/* record.c: a job's immutable part as the blob in state.db */
int job_record_write(const struct job *j, struct buf *out) ST_CHECK;
int job_record_read(struct job *j, const char *text, size_t n, struct err *e) ST_CHECK;

/* move.c: transitions. `done` may be NULL. Extra mutations are added to t (NULL = a fresh transaction). */
void job_move(struct job *j, enum job_state to, const char *code, struct store_txn *t, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void job_event(struct store_txn *t, const struct job *j, int type, int result, const char *device,
               const char *meta, const char *error);
void job_store_layer(struct store_txn *t, const struct job *j, const struct job_layer *l);
int event_of_state(enum job_state s);

/* ask.c: asks for the release when somebody waits for it and no other move is under way. */
bool job_cancel_waiting(struct job *j);

/* load.c */
#define LOADS_PER_NODE 2 /* of one job at once: one reads while the other writes */
bool node_reachable(const struct topo_node *n);
struct topo_node *layer_node(const struct job *j, const struct job_layer *l);
/* Whom a node gets the layer's file from: *peer NULL = its own disk. False: nobody is there that has it. */
bool layer_source(const struct job *j, const struct job_layer *l, const struct topo_node *n,
                  struct topo_node **peer);
/* A layer's bytes are the same whoever read them: two sources that disagree mean that a file changed. */
int layer_digests(struct job_layer *l, const struct jobs_load_event *ev, struct err *e);
void job_pump(struct job *j);
void job_account_resident(struct jobs *js);
/* A layer's new state, counted on its device at once. */
void job_layer_state(struct jobs *js, struct job_layer *l, enum layer_state s);

/* planner.c: one thread; answers on the loop */
int planner_new(struct planner **out, struct port *port) ST_CHECK;
void planner_free(struct planner *p);
int planner_submit(struct planner *p, struct cluster *c, struct model *m, struct request *r,
                   enum plan_goal goal, jobs_planned_fn fn, void *arg) ST_CHECK;
/* The thread, or the one that the configuration gives. Takes cluster, model and request in every case. */
int jobs_plan(struct jobs *js, struct cluster *c, struct model *m, struct request *r, enum plan_goal goal,
              jobs_planned_fn fn, void *arg) ST_CHECK;

#endif
