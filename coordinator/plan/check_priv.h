/* What the two checkers share: how a problem is told. */
#ifndef STRATA_PLAN_CHECK_PRIV_H
#define STRATA_PLAN_CHECK_PRIV_H

#include <stdarg.h>

#include "coordinator/plan/plan.h"

/* Adds a problem; the first one is also told in *e. ST_ENOMEM. */
int check_problem(struct plan_check_report *r, struct err *e, const char *fmt, va_list ap) ST_CHECK;
/* plan_check for a plan in which some stage has replicas. ST_ENOMEM; what is wrong stands in the report. */
int check_replicas(const struct cluster *c, const struct model *m, const struct request *r,
                   const struct plan *p, struct plan_check_report *rep, struct err *e) ST_CHECK;

#endif
