/*
 * The inner loops of the exact sums: least-of-sums over arrays. Each does the same operations on each element
 * whatever the width of the machine's registers, so results are the same bits everywhere. Private to the
 * room.
 */
#ifndef STRATA_PLAN_MINPLUS_H
#define STRATA_PLAN_MINPLUS_H

#include <stdbool.h>
#include <stddef.h>

struct minplus {
    /* a[i] = min(a[i], h[i] + f[i]) */
    void (*least)(double *restrict a, const double *restrict h, const double *restrict f, size_t n);
    /* a[i] = INFINITY where max(r[i], s[i]) + a[i] > limit. False when nothing finite is left. */
    bool (*prune)(double *restrict a, const double *restrict r, const double *restrict s, double limit,
                  size_t n);
    /* Level 0 is t[0 .. n); level j at t + j·stride holds the least of 2^j entries from each on. Entries from
     * n on up to n + 2^levels are INFINITY and stay so. */
    void (*ladder)(double *t, size_t stride, size_t n, unsigned levels);
};
const struct minplus *minplus_pick(void);

#endif
