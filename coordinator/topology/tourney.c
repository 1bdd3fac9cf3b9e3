#include "coordinator/topology/tourney.h"

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
