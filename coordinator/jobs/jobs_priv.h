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
struct submission {
    struct jobs *js;
    struct job *j; /* not yet in the list */
    bool dry_run;
    struct asked *asked; /* NULL: it came without a request id */
    jobs_submit_fn fn;
    void *arg;
    unsigned waiting; /* nodes that have not said yet whether they have the file */
    struct found *found;
    size_t nfound;
    struct found *model; /* the one that was taken */
    struct err last;     /* what the last node without the file said */
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
void submission_plan(struct submission *s);
/* Answers and ends; `j` NULL on failure. */
void submission_end(struct submission *s, const struct job *j, const struct err *e);
/* Sets each layer's mem from the plan's stages. */
int job_take_memory(struct job *j, const struct plan *p, struct err *e) ST_CHECK;

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
bool job_device_usable(const struct topo_node *n, const struct topo_device *d);

/* claim.c: the job's memory in the quota ledger. Again, with other devices, whenever layers change places. */
int job_claim(const struct job *j, struct quota_refusal *why) ST_CHECK; /* ST_ERESOURCE with *why */
int job_claim_held(const struct job *j) ST_CHECK;                       /* whatever the quota says */
/* The sentence for a refusal, audited. Returns ST_ERESOURCE. */
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
void job_pump(struct job *j);
void job_account_resident(struct jobs *js);

/* planner.c: one thread; answers on the loop */
int planner_new(struct planner **out, struct port *port) ST_CHECK;
void planner_free(struct planner *p);
int planner_submit(struct planner *p, struct cluster *c, struct model *m, struct request *r,
                   enum plan_goal goal, jobs_planned_fn fn, void *arg) ST_CHECK;
/* The thread, or the one that the configuration gives. Takes cluster, model and request in every case. */
int jobs_plan(struct jobs *js, struct cluster *c, struct model *m, struct request *r, enum plan_goal goal,
              jobs_planned_fn fn, void *arg) ST_CHECK;

#endif
