/* Filling a struct plan from a solver's answer. Private to the room. */
#ifndef STRATA_PLAN_REPORT_H
#define STRATA_PLAN_REPORT_H

#include "coordinator/plan/inst.h"

/* Warnings; also for plans that are not feasible. */
int report_common(const struct inst *in, const struct cluster *c, const struct model *m,
                  struct plan *p) ST_CHECK;
/* Stages, placements, devices with reasons, bottleneck and figures. p->optimal and p->goal are set already.
 */
int report_fill(const struct inst *in, const uint32_t *on, struct plan *p) ST_CHECK;

#endif
