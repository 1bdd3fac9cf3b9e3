#include "bench/net/coords.h"

#include <math.h>
#include <stdlib.h>

#include "bench/bench.h"
#include "coordinator/topology/coords.h"
#include "coordinator/topology/tourney.h"

#define N 1000u
#define SITES 12u
#define NEIGHBOURS 16u
#define PASSES 48u

/* Seeded, so that the figure is the same every time. */
static void fill(void *arg, void *out, size_t n)
{
    uint64_t *s = arg;
    for (size_t i = 0; i < n; i++) {
        *s ^= *s << 13;
        *s ^= *s >> 7;
        *s ^= *s << 17;
        ((uint8_t *)out)[i] = (uint8_t)(*s >> 32);
    }
}

static double unit(const struct rng *r)
{
    return (double)rng_below(r, 1000000) / 1e6;
}

/* Sites up to 140 ms apart, access links, 10 % jitter, one pair in twenty half as long again: triangles that
 * do not close. */
static void matrix(const struct rng *r, double *rtt)
{
    double sx[SITES], sy[SITES], x[N], y[N], access[N];
    for (unsigned s = 0; s < SITES; s++) {
        sx[s] = unit(r) * 0.1;
        sy[s] = unit(r) * 0.1;
    }
    for (unsigned i = 0; i < N; i++) {
        unsigned s = (unsigned)rng_below(r, SITES);
        x[i] = sx[s] + (unit(r) - 0.5) * 0.004;
        y[i] = sy[s] + (unit(r) - 0.5) * 0.004;
        access[i] = 0.0002 + unit(r) * 0.003;
    }
    for (unsigned i = 0; i < N; i++)
        for (unsigned j = i + 1; j < N; j++) {
            double d = hypot(x[i] - x[j], y[i] - y[j]) + access[i] + access[j];
            d *= rng_below(r, 20) ? 1 : 1.5;
            rtt[i * N + j] = d * (0.95 + 0.1 * unit(r));
        }
}

double bench_coords_error(void)
{
    uint64_t seed = 0x9e3779b97f4a7c15ull;
    const struct rng r = {fill, &seed};
    double *rtt = calloc(N * N, sizeof *rtt), *e = calloc(N * N, sizeof *e), median = -1;
    struct coord_place *c = calloc(N, sizeof *c);
    struct tourney_pair *p = calloc(N / 2, sizeof *p);
    uint32_t round[NEIGHBOURS];
    if (rtt && e && c && p) {
        size_t n = 0;
        matrix(&r, rtt);
        for (unsigned i = 0; i < N; i++)
            coord_place_init(&c[i]);
        tourney_sample(tourney_rounds(N), NEIGHBOURS, &r, round);
        for (unsigned k = 0; k < PASSES * NEIGHBOURS; k++) {
            uint32_t m = tourney_round(N, round[k % NEIGHBOURS], p);
            for (uint32_t i = 0; i < m; i++) {
                struct coord_place was = c[p[i].a];
                double t = rtt[p[i].a * N + p[i].b] * (0.98 + 0.04 * unit(&r));
                coord_update(&c[p[i].a], &c[p[i].b], t, &r);
                coord_update(&c[p[i].b], &was, t, &r);
            }
        }
        for (unsigned i = 0; i < N; i++)
            for (unsigned j = i + 1; j < N; j++)
                e[n++] = fabs(coord_distance(&c[i], &c[j]) / rtt[i * N + j] - 1);
        median = bench_median(e, n);
    }
    free(rtt);
    free(e);
    free(c);
    free(p);
    return median;
}
