#include "coordinator/topology/tourney.h"

#include <stdbool.h>

uint32_t tourney_rounds(uint32_t n)
{
    return n < 2 ? 0 : n % 2 ? n : n - 1;
}

/* Seat 0 stays, the others go round it one seat a round. An odd one out sits where node n would. */
uint32_t tourney_round(uint32_t n, uint32_t r, struct tourney_pair *out)
{
    uint32_t seats = n + n % 2, k = 0;
    if (n < 2)
        return 0;
    for (uint32_t i = 0; i < seats / 2; i++) {
        uint32_t x = i ? 1 + (i - 1 + r) % (seats - 1) : 0;
        uint32_t y = 1 + (seats - 2 - i + r) % (seats - 1);
        if (x >= n || y >= n)
            continue;
        out[k++] = x < y ? (struct tourney_pair){x, y} : (struct tourney_pair){y, x};
    }
    return k;
}

static bool drawn(const uint32_t *v, uint32_t n, uint32_t x)
{
    for (uint32_t i = 0; i < n; i++)
        if (v[i] == x)
            return true;
    return false;
}

void tourney_sample(uint32_t all, uint32_t k, const struct rng *rng, uint32_t *out)
{
    for (uint32_t i = 0; i < k; i++) {
        uint32_t j = all - k + i, x = k == all ? j : (uint32_t)rng_below(rng, j + 1ull);
        out[i] = k < all && drawn(out, i, x) ? j : x;
    }
}
