/* What the two checkers share: how a problem is told, and the figures of plan-json that both recompute. */
#ifndef STRATA_PLAN_CHECK_PRIV_H
#define STRATA_PLAN_CHECK_PRIV_H

#include <stdarg.h>
#include <stdbool.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "coordinator/plan/plan.h"

/* Adds a problem; the first one is also told in *e. ST_ENOMEM. */
int check_problem(struct plan_check_report *r, struct err *e, const char *fmt, va_list ap) ST_CHECK;
/* Equal but for a relative 1e-9. */
bool check_same(double a, double b);
/* Seconds of one layer on a device by the roofline, without its segment table. */
double check_layer_time(const struct cluster_device *d, const struct model_layer *l);
/* How many blocks a stage has; stage[] is of each layer. */
size_t check_blocks(const struct model *m, const uint32_t *stage, size_t s);
/* plan_check for a plan in which some stage has replicas. ST_ENOMEM; what is wrong stands in the report. */
int check_replicas(const struct cluster *c, const struct model *m, const struct request *r,
                   const struct plan *p, struct plan_check_report *rep, struct err *e) ST_CHECK;

#endif
