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
/* The same for a plan with replicas (report_replicas.c). */
struct replicated;
int report_replicas(const struct replicated *r, struct plan *p) ST_CHECK;
/* Why a device of the cluster holds nothing. */
int report_unused(const struct inst *in, uint32_t index, const struct plan *p,
                  struct plan_device *out) ST_CHECK;

#endif
