/*
 * Work that blocks (a database query), off the loop: one thread, in order, answers through the loop's port.
 * Jobs are caller-allocated and belong to the thread until `done` begins.
 */
#ifndef STRATA_API_OFFLOAD_H
#define STRATA_API_OFFLOAD_H

#include "common/base/port.h"

struct offload;
struct offload_job {
    struct port_item item;               /* private */
    void (*work)(struct offload_job *j); /* on the thread */
    void (*done)(struct offload_job *j); /* on the loop; may free the job */
    struct offload_job *next;            /* private */
};
int offload_new(struct offload **out, struct port *port) ST_CHECK;
void offload_free(struct offload *o); /* finishes what is queued, then drains the port */
void offload_run(struct offload *o, struct offload_job *j);

#endif
