/* What follows from the figures: paths, sites, the bottleneck, estimates. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "coordinator/topology/netmap_priv.h"
#include "coordinator/topology/sites.h"

/* A figure is half as sure after this long. */
#define HALF_LIFE_S 3600.0
/* How far two nodes are for the clustering: a round trip, and this much data at their rate. */
#define SITE_BYTES 16e3

struct net_view {
    size_t n;
    int64_t now_us;
    const struct net_link **at;       /* from × n + to */
    const struct coord_place **place; /* NULL = nowhere yet */
    uint32_t *site, nsites;
    double *rate; /* site × nsites + site: mean of what was measured between them; 0 = nothing was */
};

static bool usable(const struct net_link *l)
{
    return l && l->reached && !l->disputed && l->received > 0;
}

static bool has_rate(const struct net_link *l)
{
    return l && !l->disputed && l->bytes_per_s > 0;
}

/* Seconds between two nodes as the clustering sees it, of the figures alone. */
static double separation(size_t i, size_t j, void *arg)
{
    const struct net_view *v = arg;
    const struct net_link *ij = v->at[i * v->n + j], *ji = v->at[j * v->n + i];
    double rtt = 0, rate = 0;
    if (usable(ij))
        rtt = ij->rtt_p50_s;
    if (usable(ji) && (rtt <= 0 || ji->rtt_p50_s < rtt))
        rtt = ji->rtt_p50_s;
    if (rtt <= 0 && v->place[i] && v->place[j])
        rtt = coord_distance(v->place[i], v->place[j]);
    if (rtt <= 0)
        return INFINITY;
    if (has_rate(ij))
        rate = ij->bytes_per_s;
    if (has_rate(ji) && ji->bytes_per_s > rate)
        rate = ji->bytes_per_s;
    return rtt + (rate > 0 ? SITE_BYTES / rate : 0);
}

static int site_rates(struct net_view *v)
{
    size_t s = v->nsites;
    uint32_t *count = calloc(s * s, sizeof *count);
    v->rate = calloc(s * s, sizeof *v->rate);
    if (!count || !v->rate) {
        free(count);
        return ST_ENOMEM;
    }
    for (size_t i = 0; i < v->n; i++)
        for (size_t j = 0; j < v->n; j++) {
            const struct net_link *l = v->at[i * v->n + j];
            if (i != j && has_rate(l)) {
                v->rate[v->site[i] * s + v->site[j]] += l->bytes_per_s;
                count[v->site[i] * s + v->site[j]]++;
            }
        }
    for (size_t k = 0; k < s * s; k++)
        v->rate[k] = count[k] ? v->rate[k] / count[k] : 0;
    free(count);
    return ST_OK;
}

int net_view_new(struct net_view **out, const struct netmap *m, const char *const *nodes, size_t n,
                 int64_t now_us)
{
    struct net_view *v = calloc(1, sizeof *v);
    if (!v)
        return ST_ENOMEM;
    v->n = n;
    v->now_us = now_us;
    v->at = calloc(n * n + 1, sizeof(*v->at));
    v->place = calloc(n + 1, sizeof(*v->place));
    v->site = calloc(n + 1, sizeof *v->site);
    int rc = v->at && v->place && v->site ? ST_OK : ST_ENOMEM;
    for (size_t i = 0; rc == ST_OK && i < n; i++) {
        v->place[i] = map_get(m->places, nodes[i], strlen(nodes[i]));
        for (size_t j = 0; j < n; j++)
            if (i != j)
                v->at[i * n + j] = netmap_find(m, nodes[i], nodes[j]);
    }
    if (rc == ST_OK)
        rc = sites_find(n, separation, v, v->site, &v->nsites);
    if (rc == ST_OK)
        rc = site_rates(v);
    if (rc < 0) {
        net_view_free(v);
        return rc;
    }
    *out = v;
    return ST_OK;
}

void net_view_free(struct net_view *v)
{
    if (!v)
        return;
    free(v->at);
    free(v->place);
    free(v->site);
    free(v->rate);
    free(v);
}

const struct net_link *net_view_link(const struct net_view *v, size_t from, size_t to)
{
    return v->at[from * v->n + to];
}

uint32_t net_view_sites(const struct net_view *v)
{
    return v->nsites;
}

uint32_t net_view_site(const struct net_view *v, size_t node)
{
    return v->site[node];
}

static double aged(const struct net_view *v, int64_t at_us)
{
    double age = (double)(v->now_us - at_us) / 1e6;
    return age > 0 ? pow(0.5, age / HALF_LIFE_S) : 1;
}

/* Round trips are the same both ways: the newer of the two that came through. */
static const struct net_link *heard(const struct net_link *a, const struct net_link *b)
{
    if (!usable(a))
        return usable(b) ? b : NULL;
    return usable(b) && b->tried_us > a->tried_us ? b : a;
}

void net_view_path(const struct net_view *v, size_t from, size_t to, struct net_path *out)
{
    const struct net_link *l = v->at[from * v->n + to], *back = v->at[to * v->n + from];
    const struct net_link *h = heard(l, back);
    const struct coord_place *a = v->place[from], *b = v->place[to];
    double sure = 0;
    *out = (struct net_path){0};
    out->unreachable = l && l->tried_us && (!l->reached || l->disputed);
    if (out->unreachable)
        return;
    if (h) {
        out->rtt_source = NET_MEASURED;
        out->rtt_s = h->rtt_p50_s;
        sure = aged(v, h->tried_us);
    } else if (a && b) {
        out->rtt_source = NET_PREDICTED;
        out->rtt_s = coord_distance(a, b);
        out->rtt_error = a->error > b->error ? a->error : b->error;
        sure = out->rtt_error < 1 ? 0.7 * (1 - out->rtt_error) : 0;
    }
    double rate = v->rate[v->site[from] * v->nsites + v->site[to]];
    if (has_rate(l)) {
        out->rate_source = l->rate_source;
        out->bytes_per_s = l->bytes_per_s;
        out->spread = l->spread;
        double s = aged(v, l->rate_us) * (l->rate_source == NET_PASSIVE ? 0.7 : 1) *
                   (l->spread < 1 ? 1 - l->spread : 0);
        sure = s < sure ? s : sure;
    } else if (rate > 0) {
        out->rate_source = NET_PREDICTED;
        out->bytes_per_s = rate;
        out->spread = 0.5;
        sure *= 0.5;
    }
    out->confidence = sure;
}

/* ---- the report ---- */

static int by_value(const void *p, const void *q)
{
    double x = *(const double *)p, y = *(const double *)q;
    return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n ? v[n / 2] : 0;
}

static void look_at(const struct net_view *v, size_t i, size_t j, struct net_report *r)
{
    const struct net_link *l = v->at[i * v->n + j], *back = v->at[j * v->n + i];
    r->pairs++;
    if (!l || !l->tried_us)
        return;
    if (l->disputed)
        r->disputed++;
    else if (!l->reached)
        r->unreachable++;
    if (!usable(l))
        return;
    r->measured++;
    r->rtt_mean_s += l->rtt_mean_s;
    if (l->rtt_p50_s > r->diameter_s) {
        r->diameter_s = l->rtt_p50_s;
        r->far_from = i;
        r->far_to = j;
    }
    if (!has_rate(l))
        return;
    if (r->slow_from == NET_NOBODY || l->bytes_per_s < r->slow_rate) {
        r->slow_rate = l->bytes_per_s;
        r->slow_from = i;
        r->slow_to = j;
    }
    if (has_rate(back) && back->bytes_per_s / l->bytes_per_s > r->uneven_ratio) {
        r->uneven_ratio = back->bytes_per_s / l->bytes_per_s;
        r->uneven_from = i;
        r->uneven_to = j;
    }
}

/* The best rate a node has with each of its neighbours, either way: a node is slow when none of its links is
 * better than that, not when one of them is slow. */
static double best_of_node(const struct net_view *v, size_t i)
{
    double best = 0;
    for (size_t j = 0; j < v->n; j++) {
        if (i == j)
            continue;
        const struct net_link *l = v->at[i * v->n + j], *b = v->at[j * v->n + i];
        if (has_rate(l) && l->bytes_per_s > best)
            best = l->bytes_per_s;
        if (has_rate(b) && b->bytes_per_s > best)
            best = b->bytes_per_s;
    }
    return best;
}

static int slow_node(const struct net_view *v, struct net_report *r)
{
    double *best = calloc(v->n + 1, sizeof *best), *sorted = calloc(v->n + 1, sizeof *sorted);
    size_t k = 0;
    if (!best || !sorted) {
        free(best);
        free(sorted);
        return ST_ENOMEM;
    }
    for (size_t i = 0; i < v->n; i++)
        if ((best[i] = best_of_node(v, i)) > 0)
            sorted[k++] = best[i];
    double typical = median(sorted, k);
    for (size_t i = 0; i < v->n && k > 2; i++)
        if (best[i] > 0 && best[i] <= typical / 2 &&
            (r->slow_node == NET_NOBODY || best[i] < r->slow_node_rate)) {
            r->slow_node = i;
            r->slow_node_rate = best[i];
        }
    free(best);
    free(sorted);
    return ST_OK;
}

int net_view_report(const struct net_view *v, struct net_report *r)
{
    size_t rates = 0;
    *r = (struct net_report){.far_from = NET_NOBODY,
                             .far_to = NET_NOBODY,
                             .slow_from = NET_NOBODY,
                             .slow_to = NET_NOBODY,
                             .slow_node = NET_NOBODY,
                             .uneven_from = NET_NOBODY,
                             .uneven_to = NET_NOBODY,
                             .uneven_ratio = 1};
    double *all = malloc((v->n * v->n + 1) * sizeof *all);
    if (!all)
        return ST_ENOMEM;
    for (size_t i = 0; i < v->n; i++)
        for (size_t j = 0; j < v->n; j++) {
            if (i == j)
                continue;
            look_at(v, i, j, r);
            if (has_rate(v->at[i * v->n + j])) {
                all[rates++] = v->at[i * v->n + j]->bytes_per_s;
                r->rate_mean += all[rates - 1];
            }
        }
    r->rtt_mean_s = r->measured ? r->rtt_mean_s / (double)r->measured : 0;
    r->rate_mean = rates ? r->rate_mean / (double)rates : 0;
    r->typical_rate = median(all, rates);
    r->slow_ratio = r->slow_rate > 0 ? r->typical_rate / r->slow_rate : 0;
    free(all);
    return slow_node(v, r);
}

/* ---- estimates ---- */

#define FIRST_WINDOW 14000.0 /* bytes that a sender may have under way at first */

static double seconds_at(double rtt, double rate, double bytes)
{
    double window = FIRST_WINDOW, t = rtt, full = rate * rtt;
    while (bytes > window && window < full) { /* slow start: one window a round trip, doubling */
        bytes -= window;
        t += rtt;
        window *= 2;
    }
    return t + bytes / rate;
}

int net_estimate(const struct net_path *p, double bytes, struct net_estimate *out)
{
    if (!(p->rtt_s > 0) || !(p->bytes_per_s > 0) || p->unreachable)
        return ST_ENOENT;
    /* Never surer than 5 %: what else uses the link is not known. Less sure the older the figures. */
    double u = p->spread > 0.05 ? p->spread : 0.05;
    u += (1 - p->confidence) * 0.3;
    u = u > 0.9 ? 0.9 : u;
    out->seconds = seconds_at(p->rtt_s, p->bytes_per_s, bytes);
    out->low_s = seconds_at(p->rtt_s * (1 - u), p->bytes_per_s * (1 + u), bytes);
    out->high_s = seconds_at(p->rtt_s * (1 + u), p->bytes_per_s * (1 - u), bytes);
    return ST_OK;
}
