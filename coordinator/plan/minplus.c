#include "coordinator/plan/minplus.h"

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

INLINE void least(double *restrict a, const double *restrict h, const double *restrict f, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double v = h[i] + f[i];
        a[i] = v < a[i] ? v : a[i];
    }
}
INLINE bool prune(double *restrict a, const double *restrict r, const double *restrict s, double limit,
                  size_t n)
{
    double low = INFINITY;
    for (size_t i = 0; i < n; i++) {
        double rest = r[i] > s[i] ? r[i] : s[i];
        double v = rest + a[i] <= limit ? a[i] : INFINITY;
        a[i] = v;
        low = v < low ? v : low;
    }
    return low < INFINITY;
}
INLINE void ladder(double *t, size_t stride, size_t n, unsigned levels)
{
    for (unsigned j = 1; j <= levels; j++) {
        const double *restrict from = t + (j - 1) * stride, *restrict shifted = from + ((size_t)1 << (j - 1));
        double *restrict to = t + j * stride;
        for (size_t i = 0; i < n; i++)
            to[i] = from[i] < shifted[i] ? from[i] : shifted[i];
    }
}

#define VARIANT(suffix, attributes)                                                                          \
    attributes static void least_##suffix(double *restrict a, const double *restrict h,                      \
                                          const double *restrict f, size_t n)                                \
    {                                                                                                        \
        least(a, h, f, n);                                                                                   \
    }                                                                                                        \
    attributes static bool prune_##suffix(double *restrict a, const double *restrict r,                      \
                                          const double *restrict s, double limit, size_t n)                  \
    {                                                                                                        \
        return prune(a, r, s, limit, n);                                                                     \
    }                                                                                                        \
    attributes static void ladder_##suffix(double *t, size_t stride, size_t n, unsigned levels)              \
    {                                                                                                        \
        ladder(t, stride, n, levels);                                                                        \
    }                                                                                                        \
    static const struct minplus table_##suffix = {least_##suffix, prune_##suffix, ladder_##suffix};

VARIANT(plain, )
#if defined __x86_64__
VARIANT(avx2, __attribute__((target("avx2"))))
#endif

const struct minplus *minplus_pick(void)
{
#if defined __x86_64__
    if (__builtin_cpu_supports("avx2"))
        return &table_avx2;
#endif
    return &table_plain;
}
