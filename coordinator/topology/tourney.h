/*
 * All pairs of n nodes in rounds, so that no node is in two pairs of a round: the round-robin tournament by
 * the circle method. Any k of its rounds are a graph in which every node has k neighbours, which is how a
 * cluster too large for all pairs is sampled; drawn at random, for evenly spaced rounds tie the nodes into a
 * few strands, and coordinates fitted to them are off. Pure but for the random it is given.
 */
#ifndef STRATA_TOPOLOGY_TOURNEY_H
#define STRATA_TOPOLOGY_TOURNEY_H

#include <stdint.h>

#include "common/base/clock.h"

struct tourney_pair {
    uint32_t a, b; /* a < b */
};

/* n - 1 for an even n, n for an odd one, 0 below 2. */
uint32_t tourney_rounds(uint32_t n);
/* The pairs of round r < tourney_rounds(n) into out (room for n / 2); returns how many. */
uint32_t tourney_round(uint32_t n, uint32_t r, struct tourney_pair *out);

/* k of all rounds, k <= all, drawn by Floyd's method (Bentley & Floyd, CACM 30(9), 1987): each once, in no
 * order. All of them, in order, where k = all. O(k^2). */
void tourney_sample(uint32_t all, uint32_t k, const struct rng *rng, uint32_t *out);

#endif
