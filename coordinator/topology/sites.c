#include "coordinator/topology/sites.h"

#include <math.h>
#include <stdlib.h>

struct edge {
    uint32_t a, b;
    double d;
};

static int by_length(const void *p, const void *q)
{
    double x = ((const struct edge *)p)->d, y = ((const struct edge *)q)->d;
    return (x > y) - (x < y);
}

/* The tree of shortest joins (Prim): n - 1 edges. */
static int tree(size_t n, double (*dist)(size_t, size_t, void *), void *arg, struct edge *out)
{
    double *best = malloc(n * sizeof *best);
    uint32_t *from = calloc(n, sizeof *from);
    uint8_t *in = calloc(n, 1);
    int rc = best && from && in ? ST_OK : ST_ENOMEM;
    for (size_t i = 1; rc == ST_OK && i < n; i++)
        best[i] = dist(0, i, arg);
    if (rc == ST_OK)
        in[0] = 1;
    for (size_t k = 0; rc == ST_OK && k + 1 < n; k++) {
        size_t next = 0;
        for (size_t i = 1; i < n; i++)
            if (!in[i] && (!next || best[i] < best[next]))
                next = i;
        in[next] = 1;
        out[k] = (struct edge){from[next], (uint32_t)next, best[next]};
        for (size_t i = 1; i < n; i++) {
            double d = in[i] ? 0 : dist(next, i, arg);
            if (!in[i] && d < best[i]) {
                best[i] = d;
                from[i] = (uint32_t)next;
            }
        }
    }
    free(best);
    free(from);
    free(in);
    return rc;
}

static double near_at_least(double d)
{
    return d > SITES_NEAR_S ? d : SITES_NEAR_S;
}

/* How many of the sorted edges lie within sites. */
static size_t cut(const struct edge *e, size_t n)
{
    double top = SITES_GAP;
    size_t keep = n;
    for (size_t i = 0; i < n; i++) {
        if (isinf(e[i].d))
            return keep < i ? keep : i;
        if (i == 0 && e[i].d < SITES_FAR_S)
            continue;
        double ratio = near_at_least(e[i].d) / near_at_least(i ? e[i - 1].d : 0);
        if (ratio >= top) {
            top = ratio;
            keep = i;
        }
    }
    return keep;
}

static uint32_t root(uint32_t *up, uint32_t i)
{
    while (up[i] != i)
        i = up[i] = up[up[i]];
    return i;
}

int sites_find(size_t n, double (*dist)(size_t, size_t, void *), void *arg, uint32_t *site, uint32_t *nsites)
{
    *nsites = 0;
    if (n == 0)
        return ST_OK;
    struct edge *e = calloc(n, sizeof *e);
    uint32_t *up = malloc(n * sizeof *up);
    int rc = e && up ? tree(n, dist, arg, e) : ST_ENOMEM;
    if (rc == ST_OK) {
        qsort(e, n - 1, sizeof *e, by_length);
        size_t keep = cut(e, n - 1);
        for (uint32_t i = 0; i < n; i++)
            up[i] = i;
        for (size_t i = 0; i < keep; i++) {
            uint32_t a = root(up, e[i].a), b = root(up, e[i].b);
            up[a > b ? a : b] = a > b ? b : a; /* the lower one is the root: sites are numbered by it */
        }
        for (uint32_t i = 0; i < n; i++)
            site[i] = root(up, i) == i ? (*nsites)++ : site[root(up, i)];
    }
    free(e);
    free(up);
    return rc;
}
