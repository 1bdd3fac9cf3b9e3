/*
 * Sites: nodes that are near to one another and far from the rest. Nodes are joined nearest first (single
 * linkage); where the next join is much farther than the one before, what has been joined so far are the
 * sites. Pure.
 */
#ifndef STRATA_TOPOLOGY_SITES_H
#define STRATA_TOPOLOGY_SITES_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

/* Less than this (seconds) apart is near, whatever the ratios say; the noise of a busy host is in it. */
#define SITES_NEAR_S 300e-6
/* Nodes of which no two are nearer than this are sites of their own; otherwise the nearest share one. */
#define SITES_FAR_S 5e-3
/* A gap of this ratio parts sites. */
#define SITES_GAP 3.0

/* dist(i, j) in seconds, INFINITY = cannot reach each other, symmetric. site[i] gets 0 …; *nsites how many,
 * numbered by their first node. ST_ENOMEM. */
int sites_find(size_t n, double (*dist)(size_t i, size_t j, void *arg), void *arg, uint32_t *site,
               uint32_t *nsites) ST_CHECK;

#endif
