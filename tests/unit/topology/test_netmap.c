/* The tournament, coordinates, sites, and what is concluded from links. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/topology/netmap.h"
#include "coordinator/topology/sites.h"
#include "coordinator/topology/tourney.h"

/* xorshift, so that a failure repeats. */
static void rnd_fill(void *arg, void *out, size_t n)
{
    uint64_t *s = arg;
    for (size_t i = 0; i < n; i++) {
        *s ^= *s << 13;
        *s ^= *s >> 7;
        *s ^= *s << 17;
        ((uint8_t *)out)[i] = (uint8_t)(*s >> 32);
    }
}

static uint64_t seed = 0x9e3779b97f4a7c15ull;
static const struct rng rng = {rnd_fill, &seed};

static double unit(void)
{
    return (double)rng_below(&rng, 1000000) / 1e6;
}

static void test_tourney(void **state)
{
    (void)state;
    assert_int_equal(tourney_rounds(0), 0);
    assert_int_equal(tourney_rounds(1), 0);
    assert_int_equal(tourney_rounds(16), 15);
    assert_int_equal(tourney_rounds(17), 17);
    for (uint32_t n = 2; n <= 41; n++) {
        struct tourney_pair p[21];
        uint8_t met[41][41] = {{0}};
        uint32_t total = 0;
        for (uint32_t r = 0; r < tourney_rounds(n); r++) {
            uint8_t busy[41] = {0};
            uint32_t k = tourney_round(n, r, p);
            assert_int_equal(k, n / 2);
            for (uint32_t i = 0; i < k; i++) {
                assert_true(p[i].a < p[i].b && p[i].b < n);
                assert_false(busy[p[i].a]++ || busy[p[i].b]++);
                assert_false(met[p[i].a][p[i].b]++);
                total++;
            }
        }
        assert_int_equal(total, n * (n - 1) / 2);
    }
}

static void test_sample(void **state)
{
    (void)state;
    uint32_t v[40];
    for (uint32_t all = 1; all <= 40; all++)
        for (uint32_t k = 0; k <= all; k++) {
            uint64_t seen = 0;
            tourney_sample(all, k, &rng, v);
            for (uint32_t i = 0; i < k; i++) {
                assert_true(v[i] < all && !(seen >> v[i] & 1));
                seen |= 1ull << v[i];
                assert_true(k < all || v[i] == i);
            }
        }
}

/* ---- coordinates ---- */

#define NODES 1000
#define SITES 12

struct world {
    double x[NODES], y[NODES], access[NODES];
    float *rtt; /* NODES × NODES */
};

/* Sites on a plane some 100 ms wide, access links, jitter on each pair, and one pair in twenty that goes a
 * long way round, which breaks the triangle inequality. */
static void build(struct world *w)
{
    w->rtt = malloc(sizeof(float) * NODES * NODES);
    assert_non_null(w->rtt);
    double sx[SITES], sy[SITES];
    for (int s = 0; s < SITES; s++) {
        sx[s] = unit() * 0.1;
        sy[s] = unit() * 0.1;
    }
    for (int i = 0; i < NODES; i++) {
        int s = (int)rng_below(&rng, SITES);
        w->x[i] = sx[s] + (unit() - 0.5) * 0.004;
        w->y[i] = sy[s] + (unit() - 0.5) * 0.004;
        w->access[i] = 0.0002 + unit() * 0.003;
    }
    for (int i = 0; i < NODES; i++)
        for (int j = i; j < NODES; j++) {
            double d = hypot(w->x[i] - w->x[j], w->y[i] - w->y[j]) + w->access[i] + w->access[j];
            if (rng_below(&rng, 20) == 0)
                d *= 1.5;
            d *= 0.95 + 0.1 * unit();
            w->rtt[i * NODES + j] = w->rtt[j * NODES + i] = (float)d;
        }
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* 16 rounds of the tournament, each gone over 48 times with 2 % noise: 16 neighbours a node of 999. */
static void test_coords(void **state)
{
    (void)state;
    static struct world w;
    static struct coord_place c[NODES];
    static struct tourney_pair p[NODES / 2];
    uint32_t round[16];
    build(&w);
    for (int i = 0; i < NODES; i++)
        coord_place_init(&c[i]);
    tourney_sample(tourney_rounds(NODES), 16, &rng, round);
    for (int pass = 0; pass < 48; pass++)
        for (int r = 0; r < 16; r++) {
            uint32_t k = tourney_round(NODES, round[r], p);
            for (uint32_t i = 0; i < k; i++) {
                struct coord_place was = c[p[i].a];
                double t = w.rtt[p[i].a * NODES + p[i].b] * (0.98 + 0.04 * unit());
                coord_update(&c[p[i].a], &c[p[i].b], t, &rng);
                coord_update(&c[p[i].b], &was, t, &rng);
            }
        }
    float *e = malloc(sizeof(float) * NODES * NODES);
    assert_non_null(e);
    size_t n = 0;
    for (int i = 0; i < NODES; i++)
        for (int j = i + 1; j < NODES; j++) {
            double t = w.rtt[i * NODES + j];
            e[n++] = (float)(fabs(coord_distance(&c[i], &c[j]) - t) / t);
        }
    qsort(e, n, sizeof *e, by_value);
    printf("relative error of %zu predicted round trips: median %.1f %%, 90 %% below %.1f %%\n", n,
           100.0 * (double)e[n / 2], 100.0 * (double)e[n * 9 / 10]);
    assert_true(e[n / 2] <= 0.15f);
    struct coord_place before = c[0];
    coord_update(&c[0], &c[1], -1, &rng);
    coord_update(&c[0], &c[1], NAN, &rng);
    coord_update(&c[0], &c[1], INFINITY, &rng);
    assert_memory_equal(&before, &c[0], sizeof before);
    free(e);
    free(w.rtt);
}

/* ---- sites ---- */

static double line_dist(size_t i, size_t j, void *arg)
{
    const double *x = arg;
    return fabs(x[i] - x[j]);
}

static void test_sites(void **state)
{
    (void)state;
    /* three sites, one of them a lone node; within them up to 0.5 ms */
    double x[] = {0, 0.0005, 0.020, 0.0202, 0.0001, 0.100, 0.0205};
    uint32_t site[7], n;
    assert_int_equal(sites_find(7, line_dist, x, site, &n), ST_OK);
    const uint32_t want[] = {0, 0, 1, 1, 0, 2, 1};
    assert_int_equal(n, 3);
    assert_memory_equal(site, want, sizeof want);
    /* one site: noise below what counts as near */
    double y[] = {0, 40e-6, 45e-6, 200e-6};
    assert_int_equal(sites_find(4, line_dist, y, site, &n), ST_OK);
    assert_int_equal(n, 1);
    /* alike and not far: one site; alike and far: each its own */
    double z[] = {0, 0.002, 0.004};
    assert_int_equal(sites_find(3, line_dist, z, site, &n), ST_OK);
    assert_int_equal(n, 1);
    double w[] = {0, 0.02, 0.04};
    assert_int_equal(sites_find(3, line_dist, w, site, &n), ST_OK);
    assert_int_equal(n, 3);
    double far[] = {0, INFINITY};
    assert_int_equal(sites_find(2, line_dist, far, site, &n), ST_OK);
    assert_int_equal(n, 2);
    assert_int_equal(sites_find(1, line_dist, x, site, &n), ST_OK);
    assert_int_equal(n, 1);
    assert_int_equal(sites_find(0, line_dist, x, site, &n), ST_OK);
    assert_int_equal(n, 0);
}

/* ---- the map ---- */

#define NOW 1000000000000ll

static void put(struct netmap *m, const char *a, const char *b, double rtt, double rate)
{
    struct net_link *l;
    assert_int_equal(netmap_link(m, a, b, &l), ST_OK);
    l->tried_us = l->rate_us = NOW;
    l->reached = true;
    l->sent = l->received = 100;
    l->rtt_min_s = l->rtt_mean_s = l->rtt_p50_s = l->rtt_p99_s = rtt;
    l->bytes_per_s = rate;
    l->rate_source = NET_MEASURED;
    l->spread = 0.01;
}

static const char *const names[] = {"a", "b", "c", "d", "e"};

/* a b | c d | e: 1 GB/s within a site, 100 MB/s between, and 10 MB/s from c to a alone. e is not measured. */
static struct netmap *example(void)
{
    struct netmap *m;
    assert_int_equal(netmap_new(&m, &rng), ST_OK);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if (i != j) {
                bool same = i / 2 == j / 2;
                put(m, names[i], names[j], same ? 100e-6 : 20e-3,
                    i == 2 && j == 0 ? 10e6
                    : same           ? 1e9
                                     : 100e6);
            }
    return m;
}

static void test_map(void **state)
{
    (void)state;
    struct netmap *m = example();
    struct net_link *l;
    assert_int_equal(netmap_count(m), 12);
    assert_int_equal(netmap_link(m, "a", "a", &l), ST_EINVAL);
    assert_int_equal(netmap_link(m, "a", "b c", &l), ST_EINVAL);
    assert_null(netmap_find(m, "a", "e"));
    netmap_forget(m, "b");
    assert_int_equal(netmap_count(m), 6);
    assert_null(netmap_find(m, "a", "b"));
    assert_non_null(netmap_find(m, "c", "a"));
    netmap_free(m);
}

static void test_report(void **state)
{
    (void)state;
    struct netmap *m = example();
    struct net_view *v;
    struct net_report r;
    struct net_path p;
    assert_int_equal(net_view_new(&v, m, names, 5, NOW), ST_OK);
    assert_int_equal(net_view_report(v, &r), ST_OK);
    assert_int_equal(r.pairs, 20);
    assert_int_equal(r.measured, 12);
    assert_int_equal(r.unreachable, 0);
    assert_int_equal(r.slow_from, 2);
    assert_int_equal(r.slow_to, 0);
    assert_true(fabs(r.slow_ratio - 10) < 0.01);
    assert_int_equal(r.slow_node, NET_NOBODY); /* c and a have fast links, too */
    assert_int_equal(r.uneven_from, 2);
    assert_int_equal(r.uneven_to, 0);
    assert_true(fabs(r.uneven_ratio - 10) < 0.01);
    assert_true(fabs(r.diameter_s - 20e-3) < 1e-9);
    assert_int_equal(net_view_sites(v), 3);
    assert_int_equal(net_view_site(v, 0), net_view_site(v, 1));
    assert_int_not_equal(net_view_site(v, 0), net_view_site(v, 2));
    net_view_path(v, 0, 4, &p);
    assert_int_equal(p.rtt_source, NET_UNKNOWN); /* nothing is known of e, and nothing is made up */
    assert_int_equal(p.rate_source, NET_UNKNOWN);
    assert_true(p.rtt_s == 0 && p.bytes_per_s == 0 && p.confidence == 0 && !p.unreachable);
    net_view_free(v);
    /* one that is slow on all sides is a slow node */
    for (int i = 0; i < 4; i++) {
        put(m, names[i], "e", 20e-3, 1e6);
        put(m, "e", names[i], 20e-3, 1e6);
    }
    assert_int_equal(net_view_new(&v, m, names, 5, NOW), ST_OK);
    assert_int_equal(net_view_report(v, &r), ST_OK);
    assert_int_equal(r.slow_node, 4);
    net_view_free(v);
    netmap_free(m);
}

static void test_paths(void **state)
{
    (void)state;
    struct netmap *m = example();
    struct net_view *v;
    struct net_path p, q;
    struct net_link *l;
    /* e is measured to b alone: the rest is predicted, from where it is and what its site has */
    put(m, "e", "b", 100e-6, 1e9);
    netmap_relax(m, 100);
    assert_int_equal(net_view_new(&v, m, names, 5, NOW), ST_OK);
    assert_int_equal(net_view_site(v, 4), net_view_site(v, 0));
    net_view_path(v, 4, 2, &p);
    assert_int_equal(p.rtt_source, NET_PREDICTED);
    assert_int_equal(p.rate_source, NET_PREDICTED);
    assert_true(p.rtt_s > 10e-3 && p.rtt_s < 40e-3);
    assert_true(fabs(p.bytes_per_s - 100e6) < 1);
    net_view_path(v, 0, 1, &q);
    assert_int_equal(q.rtt_source, NET_MEASURED);
    assert_true(q.confidence > 0.98 && p.confidence < q.confidence);
    net_view_free(v);
    /* older is less sure; not reached, or in dispute, is no path at all */
    assert_int_equal(net_view_new(&v, m, names, 5, NOW + 7200ll * 1000000), ST_OK);
    net_view_path(v, 0, 1, &p);
    assert_true(p.confidence > 0.2 && p.confidence < 0.3);
    net_view_free(v);
    l = netmap_find(m, "a", "b");
    l->reached = false;
    l = netmap_find(m, "c", "d");
    l->disputed = true;
    assert_int_equal(net_view_new(&v, m, names, 5, NOW), ST_OK);
    net_view_path(v, 0, 1, &p);
    assert_true(p.unreachable && p.bytes_per_s == 0);
    net_view_path(v, 1, 0, &p);
    assert_false(p.unreachable); /* one way it is */
    net_view_path(v, 2, 3, &p);
    assert_true(p.unreachable);
    struct net_report r;
    assert_int_equal(net_view_report(v, &r), ST_OK);
    assert_int_equal(r.unreachable, 1);
    assert_int_equal(r.disputed, 1);
    net_view_free(v);
    netmap_free(m);
}

static void test_estimate(void **state)
{
    (void)state;
    struct net_path p = {.rtt_s = 10e-3, .bytes_per_s = 100e6, .spread = 0.02, .confidence = 1};
    struct net_estimate e;
    assert_int_equal(net_estimate(&p, 100e6, &e), ST_OK);
    /* a second of bytes, a round trip, and the seven that slow start takes to 1 MB under way, less what it
     * carries meanwhile */
    assert_true(e.seconds > 1.05 && e.seconds < 1.09);
    assert_true(e.low_s < e.seconds && e.seconds < e.high_s);
    assert_true(e.high_s / e.seconds < 1.06);
    assert_int_equal(net_estimate(&p, 0, &e), ST_OK);
    assert_true(fabs(e.seconds - 10e-3) < 1e-9);
    p.confidence = 0.1;
    assert_int_equal(net_estimate(&p, 100e6, &e), ST_OK);
    assert_true(e.high_s / e.seconds > 1.25);
    p.bytes_per_s = 0;
    assert_int_equal(net_estimate(&p, 1, &e), ST_ENOENT);
    p = (struct net_path){.rtt_s = 1, .bytes_per_s = 1, .unreachable = true};
    assert_int_equal(net_estimate(&p, 1, &e), ST_ENOENT);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_tourney), cmocka_unit_test(test_sample),   cmocka_unit_test(test_coords),
        cmocka_unit_test(test_sites),   cmocka_unit_test(test_map),      cmocka_unit_test(test_report),
        cmocka_unit_test(test_paths),   cmocka_unit_test(test_estimate),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
