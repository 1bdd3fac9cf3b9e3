/* A coordinator and one agent as real processes, for as long as a benchmark needs them. */
#ifndef STRATA_BENCH_ACCESS_CLUSTER_H
#define STRATA_BENCH_ACCESS_CLUSTER_H

#include <sys/types.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "strata/client.h"

struct bench_cluster {
    char dir[64], bin[2048];
    pid_t coordinator, agent;
};
/* The programs are those beside this one. ST_ENOENT with NO_PROGRAMS. After a failure stop() is still to be
 * called. */
int bench_cluster_start(struct bench_cluster *k, struct err *e) ST_CHECK;
void bench_cluster_stop(struct bench_cluster *k);
/* "admin" or a user; waits until the coordinator answers. */
int bench_cluster_client(const struct bench_cluster *k, const char *who, struct strata_client **out,
                         struct err *e) ST_CHECK;
int bench_enforced(struct bench_cluster *k, double *ms, unsigned rounds, struct err *e) ST_CHECK;

#endif
