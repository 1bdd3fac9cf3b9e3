/*
 * How the rates that planners count with differ from those that agents find at their start: a factor for each
 * of a device's two rates, from `plan calibrate`, kept in state.db. Loop thread only.
 */
#ifndef STRATA_API_CALIBRATION_H
#define STRATA_API_CALIBRATION_H

#include "coordinator/api/api.h"

#define CALIBRATION_MIN 0.25 /* an agent's own measurement is not so wrong that more should be believed */
#define CALIBRATION_MAX 4.0

struct calibration {
    char device[96];
    double memory, compute;
    struct calibration *next;
};
int calibrations_load(struct coord *c, struct err *e) ST_CHECK; /* before the store starts */
void calibrations_fini(struct coord *c);
/* Corrects the rates that an agent gave for a device of the node. */
void calibration_apply(const struct coord *c, const char *node, struct topo_device *d);
/* The factors in use; 1 where there are none. */
void calibration_of(const struct coord *c, const char *device, double *memory, double *compute);
/* From now on, also for the device as it is known; the caller has written it to state.db. */
int calibration_set(struct coord *c, const char *device, double memory, double compute) ST_CHECK;
void calibrations_forget(struct coord *c, const char *node);

#endif
