/* Starting the process: socket pair, sealed staging ring, posix_spawn. Loop thread. */
#ifndef STRATA_WORKER_SPAWN_H
#define STRATA_WORKER_SPAWN_H

#include <sys/types.h>

#include "agent/worker/worker.h"

struct spawned {
    pid_t pid;
    int pidfd, control; /* both close-on-exec; control is non-blocking */
    uint8_t *ring;
    size_t ring_bytes;
};

int spawn_worker(struct spawned *out, const struct worker_cfg *cfg, struct err *e) ST_CHECK;
void spawn_fini(struct spawned *s); /* closes and unmaps; does not touch the process */

#endif
