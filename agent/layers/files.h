/*
 * A few threads for what blocks on the disk. A job runs on one of them and then reports on the loop, so the
 * loop itself never reads a file.
 */
#ifndef STRATA_LAYERS_FILES_H
#define STRATA_LAYERS_FILES_H

#include "common/base/err.h"
#include "common/base/port.h"

struct event_base;
struct files;

/* Embedded in the caller's own request, which must live until `done` has begun. */
struct files_job {
    struct port_item item;             /* private */
    struct files_job *next;            /* private */
    struct files *owner;               /* private */
    void (*work)(struct files_job *j); /* on a file thread: touches only what the job carries */
    void (*done)(struct files_job *j); /* on the loop, after work; may free the job */
};

int files_new(struct files **out, struct event_base *base, unsigned nthreads, struct err *e) ST_CHECK;
/* Waits for the jobs that were submitted and runs their `done`. NULL is fine. */
void files_free(struct files *f);
/* Loop thread. Never runs anything inline. */
void files_submit(struct files *f, struct files_job *j);

#endif
