/*
 * Vivaldi network coordinates: a place in a space of a few dimensions and a height for every node, such that
 * the distance of two places and their heights is about the round trip between them. With a few measured
 * neighbours each, the round trip of every other pair is predicted. Pure.
 */
#ifndef STRATA_TOPOLOGY_COORDS_H
#define STRATA_TOPOLOGY_COORDS_H

#include "common/base/clock.h"

#define COORDS_DIM 4u

struct coord_place {
    double x[COORDS_DIM]; /* seconds */
    double height;        /* of the access link, > 0 */
    double error;         /* relative, 0 … 1.5: how far to trust it */
};

void coord_place_init(struct coord_place *c);
double coord_distance(const struct coord_place *a, const struct coord_place *b);
/* One measured round trip to `other`: moves `me` towards where it should be. Ignores what is no finite
 * positive time. */
void coord_update(struct coord_place *me, const struct coord_place *other, double rtt_s,
                  const struct rng *rng);

#endif
