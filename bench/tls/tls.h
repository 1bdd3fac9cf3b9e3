/* A coordinator of the benchmark's own, for what needs one: strata init, strata-coordinator run. */
#ifndef STRATA_BENCH_TLS_H
#define STRATA_BENCH_TLS_H

#include <sys/types.h>

#include "bench/bench.h"
#include "common/enroll/enroll.h"

struct bench_cluster {
    char dir[128];                /* of strata init */
    char control[32], enroll[32]; /* host:port of the coordinator's two sockets */
    pid_t pid;
};

/* In parent/name. Enrols as fast as it is asked to. ST_ENOENT: the programs do not lie beside this one.
 */
int bench_cluster_open(struct bench_cluster *c, const char *parent, const char *name, struct err *e) ST_CHECK;
void bench_cluster_close(struct bench_cluster *c);
/* A token for `uses` nodes of any name. */
int bench_cluster_token(const struct bench_cluster *c, unsigned uses, struct enroll_token *t,
                        struct err *e) ST_CHECK;

/* Fills in the cases rotation-500-agents-*. */
int bench_rotation(struct bench_run *run, const struct bench_cluster *c, struct err *e) ST_CHECK;

#endif
