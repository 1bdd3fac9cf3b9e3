/*
 * All pairs of n nodes in rounds, so that no node is in two pairs of a round: the round-robin tournament by
 * the circle method. Any k of its rounds are a graph in which every node has k neighbours, which is how a
 * cluster too large for all pairs is sampled. Pure.
 */
#ifndef STRATA_TOPOLOGY_TOURNEY_H
#define STRATA_TOPOLOGY_TOURNEY_H

#include <stdint.h>

struct tourney_pair {
    uint32_t a, b; /* a < b */
};

/* n - 1 for an even n, n for an odd one, 0 below 2. */
uint32_t tourney_rounds(uint32_t n);
/* The pairs of round r < tourney_rounds(n) into out (room for n / 2); returns how many. */
uint32_t tourney_round(uint32_t n, uint32_t r, struct tourney_pair *out);

#endif
