/* Shared by the files of the jobs room alone. */
#ifndef STRATA_JOBS_PRIV_H
#define STRATA_JOBS_PRIV_H

#include "coordinator/jobs/jobs.h"

struct planner;

struct jobs {
    struct jobs_cfg cfg;
    struct job *head;
    struct planner *planner;
};

/* job.c */
struct job *job_new(struct jobs *js);
void job_free(struct job *j);
void job_layers_free(struct job_layer *l, size_t n);
int64_t jobs_now(const struct jobs *js);
void job_changed(struct job *j);

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

/* load.c */
void job_pump(struct job *j);
void job_account_resident(struct jobs *js);

/* planner.c: one thread; answers on the loop */
typedef void (*planner_fn)(void *arg, int rc, const struct err *e, struct plan *p); /* p is the callee's */
int planner_new(struct planner **out, struct port *port) ST_CHECK;
void planner_free(struct planner *p);
/* Takes cluster, model and request in every case. */
struct model;
struct request;
int planner_submit(struct planner *p, struct cluster *c, struct model *m, struct request *r,
                   enum plan_goal goal, planner_fn fn, void *arg) ST_CHECK;

#endif
