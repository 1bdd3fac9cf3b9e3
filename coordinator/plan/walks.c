#include "coordinator/plan/walks.h"

#include <stdlib.h>
#include <string.h>

static int pair_new(struct walks_pair *p, size_t n)
{
    p->v1 = malloc(n * sizeof *p->v1);
    p->v2 = malloc(n * sizeof *p->v2);
    p->p1 = malloc(n * sizeof *p->p1);
    p->p2 = malloc(n * sizeof *p->p2);
    return p->v1 && p->v2 && p->p1 && p->p2 ? ST_OK : ST_ENOMEM;
}
static void pair_free(struct walks_pair *p)
{
    free(p->v1);
    free(p->v2);
    free(p->p1);
    free(p->p2);
}
static void pair_clear(struct walks_pair *p, size_t from, size_t n)
{
    for (size_t i = from; i < from + n; i++) {
        p->v1[i] = p->v2[i] = INFINITY;
        p->p1[i] = p->p2[i] = INST_NOBODY;
    }
}
static inline void offer(struct walks_pair *p, size_t i, double v, uint32_t who)
{
    if (v < p->v1[i]) {
        if (who != p->p1[i]) {
            p->v2[i] = p->v1[i];
            p->p2[i] = p->p1[i];
        }
        p->v1[i] = v;
        p->p1[i] = who;
    } else if (who != p->p1[i] && v < p->v2[i]) {
        p->v2[i] = v;
        p->p2[i] = who;
    }
}

void walks_free(struct walks *q)
{
    if (!q)
        return;
    free(q->dev);
    free(q->group);
    free(q->first);
    free(q->pre);
    free(q->open);
    free(q->simple);
    free(q->last);
    free(q->begin);
    free(q->price);
    free(q->off);
    free(q->lo);
    free(q->hi);
    free(q->from.v);
    free(q->from.at);
    free(q->to.v);
    free(q->to.at);
    free(q->self);
    pair_free(&q->at);
    pair_free(&q->rest);
    pair_free(&q->in);
    free(q->s1);
    free(q->s2);
    free(q->out);
    free(q->group_at);
    free(q);
}

static int allocate(struct walks *q, struct budget *b)
{
    size_t n = q->n, L = q->L, W = q->W;
    double bytes = (double)n * (double)W * 80 + (double)q->p->in->c->nlinks * 2 * sizeof *q->from.v;
    if (bytes > (double)b->memory_limit)
        return ST_ELIMIT;
    b->table_bytes = (size_t)bytes > b->table_bytes ? (size_t)bytes : b->table_bytes;
    q->dev = malloc(n * sizeof *q->dev);
    q->group = malloc(n * sizeof *q->group);
    q->first = malloc((n + 1) * sizeof *q->first);
    q->pre = malloc(n * W * sizeof *q->pre);
    q->open = malloc(n * sizeof *q->open);
    q->simple = malloc(n * sizeof *q->simple);
    q->last = calloc(n * L, sizeof *q->last);
    q->begin = malloc(n * W * sizeof *q->begin);
    q->price = calloc(n, sizeof *q->price);
    q->off = calloc(n, sizeof *q->off);
    q->lo = calloc(n, sizeof *q->lo);
    q->hi = malloc(n * sizeof *q->hi);
    q->self = malloc(n * sizeof *q->self);
    q->s1 = malloc(n * W * sizeof *q->s1);
    q->s2 = malloc(n * W * sizeof *q->s2);
    q->out = malloc(n * W * sizeof *q->out);
    q->group_at = malloc((q->p->in->N + 1) * sizeof *q->group_at);
    q->from.v = malloc((q->p->in->c->nlinks + 1) * sizeof *q->from.v);
    q->to.v = malloc((q->p->in->c->nlinks + 1) * sizeof *q->to.v);
    q->from.at = calloc(n + 2, sizeof *q->from.at);
    q->to.at = calloc(n + 2, sizeof *q->to.at);
    if (pair_new(&q->at, n * W) < 0 || pair_new(&q->rest, n * W) < 0 || pair_new(&q->in, n) < 0)
        return ST_ENOMEM;
    return q->dev && q->group && q->first && q->pre && q->open && q->simple && q->last && q->begin &&
                   q->price && q->off && q->lo && q->hi && q->self && q->s1 && q->s2 && q->out &&
                   q->group_at && q->from.v && q->to.v && q->from.at && q->to.at
               ? ST_OK
               : ST_ENOMEM;
}

struct placed {
    uint32_t node, dev;
};
static int by_node(const void *x, const void *y)
{
    const struct placed *a = x, *b = y;
    if (a->node != b->node)
        return a->node < b->node ? -1 : 1;
    return a->dev < b->dev ? -1 : a->dev > b->dev;
}

static int group(struct walks *q, const uint32_t *dev)
{
    const struct inst *in = q->p->in;
    struct placed *v = malloc(q->n * sizeof *v);
    if (!v)
        return ST_ENOMEM;
    for (size_t i = 0; i < q->n; i++)
        v[i] = (struct placed){in->node[dev[i]], dev[i]};
    qsort(v, q->n, sizeof *v, by_node);
    for (size_t i = 0; i < q->n; i++) {
        q->dev[i] = v[i].dev;
        if (i == 0 || v[i].node != v[i - 1].node)
            q->first[q->G++] = (uint32_t)i;
        q->group[i] = (uint32_t)q->G - 1;
        q->hi[i] = (uint32_t)q->L;
    }
    q->first[q->G] = (uint32_t)q->n;
    free(v);
    return ST_OK;
}

/* The stages that a device can have, and whether they are differences of sums in windows without holes. */
static void windows(struct walks *q, size_t i)
{
    const struct prob *p = q->p;
    const struct inst *in = p->in;
    size_t d = q->dev[i], W = q->W;
    double *pre = &q->pre[i * W], scale = p->kind == PROB_MOVE ? p->per_second : 1;
    bool table = in->c->devices[in->dev[d]].has_segment || in->table;
    for (size_t m = 0; m <= q->L; m++)
        q->begin[i * W + m] = UINT32_MAX;
    pre[0] = 0;
    for (size_t l = 0; l < q->L; l++) {
        uint32_t *last = &q->last[i * q->L + l];
        pre[l + 1] = pre[l] + scale * in->t[d * q->L + l];
        if (p->kind == PROB_MOVE)
            pre[l + 1] += p->moved[d * W + l + 1] - p->moved[d * W + l];
        for (size_t m = l + 1, end = inst_last(in, d, l); m <= end; m++) {
            if (m < q->L && in->glued[m])
                continue;
            if (prob_stage(p, d, l, m) == INFINITY)
                continue;
            *last = (uint32_t)m;
            if (q->begin[i * W + m] == UINT32_MAX)
                q->begin[i * W + m] = (uint32_t)l;
        }
    }
    q->open[i] = scale * in->open[d];
    q->simple[i] = !table; /* without one a stage that is above a cap stays above it as it grows */
}

int walks_new(struct walks **out, const struct prob *p, struct budget *b, const uint32_t *dev, size_t n)
{
    struct walks *q = calloc(1, sizeof *q);
    if (!q)
        return ST_ENOMEM;
    *q = (struct walks){.p = p, .L = p->in->L, .W = p->in->L + 1, .n = n, .hop_bytes = -1};
    int rc = allocate(q, b);
    if (rc == ST_OK)
        rc = group(q, dev);
    for (size_t i = 0; rc == ST_OK && i < n; i++)
        windows(q, i);
    if (rc < 0)
        walks_free(q);
    else
        *out = q;
    return rc;
}

static double seconds(const struct prob *p, const struct cluster_rate *r, double bytes)
{
    double s = bytes / r->bytes_per_s;
    if (s > p->cap_bottleneck)
        return INFINITY;
    return (r->rtt_s / 2 + s) * (p->kind == PROB_MOVE ? p->per_second : 1);
}

static int by_seconds(const void *x, const void *y)
{
    const struct walks_link *a = x, *b = y;
    if (a->s != b->s)
        return a->s < b->s ? -1 : 1;
    return a->to < b->to ? -1 : a->to > b->to;
}

/* Seconds of all hops of that size. A listed link slower than the default is taken for one of those: a walk
 * may be too cheap, never too dear. */
static void set_hop(struct walks *q, double bytes)
{
    const struct inst *in = q->p->in;
    const struct cluster *c = in->c;
    bool linked = in->rules & RULE_LINKS;
    if (bytes == q->hop_bytes)
        return;
    q->hop_bytes = bytes;
    q->base = !linked ? 0 : c->has_default_link ? seconds(q->p, &c->default_link, bytes) : INFINITY;
    for (size_t g = 0; g < q->G; g++)
        q->self[g] = prob_hop(q->p, q->dev[q->first[g]], q->dev[q->first[g]], bytes);
    q->n_link = 0;
    memset(q->from.at, 0, (q->G + 2) * sizeof *q->from.at);
    memset(q->to.at, 0, (q->G + 2) * sizeof *q->to.at);
    uint32_t *at = q->group_at;
    for (size_t i = 0; i <= in->N; i++)
        at[i] = INST_NOBODY;
    for (size_t g = 0; g < q->G; g++)
        at[in->node[q->dev[q->first[g]]]] = (uint32_t)g;
    for (int pass = 0; linked && pass < 2; pass++) { /* count, then put in place */
        for (size_t i = 0; i < c->nlinks; i++) {
            uint32_t x = at[c->links[i].from], y = at[c->links[i].to];
            if (x == INST_NOBODY || y == INST_NOBODY || x == y)
                continue;
            double s = seconds(q->p, &c->links[i].rate, bytes);
            if (!(s < q->base))
                continue;
            if (pass == 0) {
                q->from.at[x + 2]++;
                q->to.at[y + 2]++;
                q->n_link++;
            } else {
                q->from.v[q->from.at[x + 1]++] = (struct walks_link){y, s};
                q->to.v[q->to.at[y + 1]++] = (struct walks_link){x, s};
            }
        }
        for (size_t g = 0; pass == 0 && g < q->G; g++) {
            q->from.at[g + 2] += q->from.at[g + 1];
            q->to.at[g + 2] += q->to.at[g + 1];
        }
    }
    for (size_t g = 0; g < q->G; g++) {
        qsort(&q->from.v[q->from.at[g]], q->from.at[g + 1] - q->from.at[g], sizeof *q->from.v, by_seconds);
        qsort(&q->to.v[q->to.at[g]], q->to.at[g + 1] - q->to.at[g], sizeof *q->to.v, by_seconds);
    }
}

#define TOPS 6u
struct top {
    double v;
    uint32_t i, p;
};

static void top_add(struct top *t, unsigned *n, double v, uint32_t i, uint32_t p)
{
    if (!(v < INFINITY) || (*n == TOPS && v >= t[TOPS - 1].v))
        return;
    unsigned k = *n < TOPS ? (*n)++ : TOPS - 1;
    for (; k > 0 && t[k - 1].v > v; k--)
        t[k] = t[k - 1];
    t[k] = (struct top){v, i, p};
}

/* in[e] gets the two best of `a` at row `at` over a hop of h seconds; how: 0 = group of e alone, 1 = others.
 */
static void from_tops(struct walks *q, const struct walks_pair *a, size_t row, const struct top *t,
                      unsigned n, size_t e, double h, bool others)
{
    uint32_t got = INST_NOBODY;
    for (unsigned k = 0; k < n; k++) {
        if (t[k].i == e || t[k].p == e || t[k].i == got || (others && q->group[t[k].i] == q->group[e]))
            continue;
        offer(&q->in, e, t[k].v + h, t[k].i);
        if (got != INST_NOBODY)
            return;
        got = t[k].i;
    }
    if (n < TOPS)
        return;
    size_t g = q->group[e], x = others ? 0 : q->first[g], y = others ? q->n : q->first[g + 1];
    for (size_t i = x; i < y; i++) { /* the list was too short for this one */
        size_t k = row + i;
        if (i == e || (others && q->group[i] == g))
            continue;
        offer(&q->in, e, (a->p1[k] != e ? a->v1[k] : a->v2[k]) + h, (uint32_t)i);
    }
}

/* Over the default link: all devices are reached from the same two, but for those that these two rule out. */
static void from_anywhere(struct walks *q, const struct walks_pair *a, size_t row, const struct top *t,
                          unsigned n)
{
    unsigned k = 1;
    while (k < n && t[k].i == t[0].i)
        k++;
    struct top second = k < n ? t[k] : (struct top){INFINITY, INST_NOBODY, INST_NOBODY};
    for (size_t e = 0; e < q->n; e++) {
        q->in.v1[e] = t[0].v + q->base;
        q->in.v2[e] = second.v + q->base;
        q->in.p1[e] = t[0].i;
        q->in.p2[e] = second.i;
    }
    for (unsigned j = 0; j < 2; j++) {
        const struct top *x = j ? &second : &t[0];
        if (x->i == INST_NOBODY)
            break;
        size_t g = q->group[x->i], to = q->first[g + 1];
        for (size_t e = q->first[g]; e <= to; e++) {
            size_t i = e < to ? e : x->p; /* and the one before it */
            if (i == INST_NOBODY)
                break;
            pair_clear(&q->in, i, 1);
            from_tops(q, a, row, t, n, i, q->base, true);
        }
    }
}

static inline void cross(struct walks *q, const struct walks_pair *a, size_t row, size_t i, size_t e,
                         double s)
{
    size_t k = row + i;
    double v = (a->p1[k] != e ? a->v1[k] : a->v2[k]) + s;
    if (v < q->in.v2[e])
        offer(&q->in, e, v, (uint32_t)i);
}

/* The two best ways from (to, when `into` is false) any device at that row of `a` to device e, for all e. */
static void reach(struct walks *q, const struct walks_pair *a, size_t row, bool into)
{
    struct top t[TOPS];
    unsigned n = 0;
    pair_clear(&q->in, 0, q->n);
    for (size_t i = 0; i < q->n; i++) {
        top_add(t, &n, a->v1[row + i], (uint32_t)i, a->p1[row + i]);
        top_add(t, &n, a->v2[row + i], (uint32_t)i, a->p2[row + i]);
    }
    if (!n)
        return;
    if (q->base < INFINITY)
        from_anywhere(q, a, row, t, n);
    for (size_t g = 0; g < q->G; g++) {
        if (q->first[g + 1] - q->first[g] < 2)
            continue;
        n = 0;
        for (size_t i = q->first[g]; i < q->first[g + 1]; i++) {
            top_add(t, &n, a->v1[row + i], (uint32_t)i, a->p1[row + i]);
            top_add(t, &n, a->v2[row + i], (uint32_t)i, a->p2[row + i]);
        }
        for (size_t e = q->first[g]; e < q->first[g + 1]; e++)
            from_tops(q, a, row, t, n, e, q->self[g], false);
    }
    double worst = 0; /* links that lead to no less than that change nothing */
    for (size_t e = 0; e < q->n; e++)
        worst = q->in.v2[e] > worst ? q->in.v2[e] : worst;
    const struct walks_links *links = into ? &q->from : &q->to;
    for (size_t i = 0; i < q->n; i++) {
        double v = a->v1[row + i];
        size_t g = q->group[i];
        for (size_t k = links->at[g]; k < links->at[g + 1] && v + links->v[k].s < worst; k++)
            for (size_t e = q->first[links->v[k].to]; e < q->first[links->v[k].to + 1]; e++)
                cross(q, a, row, i, e, links->v[k].s);
    }
}

/* Like offer, and keeps where the stage began. */
static inline void settle(struct walks *q, size_t k, double v, uint32_t who, uint32_t start)
{
    struct walks_pair *p = &q->at;
    if (v < p->v1[k]) {
        if (who != p->p1[k]) {
            p->v2[k] = p->v1[k];
            p->p2[k] = p->p1[k];
            q->s2[k] = q->s1[k];
        }
        p->v1[k] = v;
        p->p1[k] = who;
        q->s1[k] = start;
    } else if (who != p->p1[k] && v < p->v2[k]) {
        p->v2[k] = v;
        p->p2[k] = who;
        q->s2[k] = start;
    }
}

static void step(struct walks *q, size_t i, size_t l, size_t to)
{
    size_t end = q->last[i * q->L + l];
    const double *pre = &q->pre[i * q->W];
    const bool *glued = q->p->in->glued;
    end = end < to ? end : to;
    double a = q->in.v1[i] + q->price[i], b = q->in.v2[i] + q->price[i];
    bool simple = q->simple[i];
    for (size_t m = l + 1; m <= end; m++) {
        if (m < q->L && glued[m])
            continue;
        double x = simple ? q->open[i] + (pre[m] - pre[l]) : walks_stage(q, i, l, m);
        size_t k = m * q->n + i;
        if (a + x < q->at.v2[k]) {
            settle(q, k, a + x, q->in.p1[i], (uint32_t)l);
            if (b + x < q->at.v2[k])
                settle(q, k, b + x, q->in.p2[i], (uint32_t)l);
        }
    }
}

double walks_forwards(struct walks *q, size_t from, size_t to, size_t before, size_t after, uint32_t *end)
{
    const struct prob *p = q->p;
    size_t n = q->n;
    double least = INFINITY;
    pair_clear(&q->at, from * n, (to - from + 1) * n);
    for (size_t l = from; l < to; l++) {
        double bytes = inst_cut_bytes(p->in, l);
        if (l > 0 && l < q->L && p->in->glued[l])
            continue;
        if (l > from) {
            set_hop(q, bytes);
            reach(q, &q->at, l * n, true);
        }
        for (size_t i = 0; i < n; i++) {
            if (q->off[i] || !q->last[i * q->L + l] || l < q->lo[i] || l >= q->hi[i])
                continue;
            if (l == from) {
                q->in.v1[i] = prob_hop(p, before, q->dev[i], bytes);
                q->in.v2[i] = INFINITY;
                q->in.p1[i] = q->in.p2[i] = INST_NOBODY;
            }
            if (q->in.v1[i] < INFINITY)
                step(q, i, l, to);
        }
    }
    *end = INST_NOBODY;
    for (size_t i = 0; i < n; i++) {
        double v = q->at.v1[to * n + i];
        if (v < least)
            v += prob_hop(p, q->dev[i], after, inst_cut_bytes(p->in, to));
        if (v < least) {
            least = v;
            *end = (uint32_t)i;
        }
    }
    return least;
}

size_t walks_trace(const struct walks *q, size_t from, size_t to, uint32_t end, struct walks_stage *out)
{
    size_t n = 0, m = to;
    uint32_t i = end, next = INST_NOBODY;
    while (m > from) {
        size_t k = m * q->n + i;
        bool second = next != INST_NOBODY && q->at.p1[k] == next;
        uint32_t start = second ? q->s2[k] : q->s1[k], p = second ? q->at.p2[k] : q->at.p1[k];
        out[n++] = (struct walks_stage){i, start};
        m = start;
        next = i;
        i = p;
    }
    return n;
}

void walks_backwards(struct walks *q)
{
    const struct prob *p = q->p;
    size_t n = q->n, L = q->L;
    pair_clear(&q->rest, 0, n * q->W);
    for (size_t m = L; m >= 1; m--) {
        double bytes = inst_cut_bytes(p->in, m);
        for (size_t i = 0; i < n; i++)
            q->out[m * n + i] = INFINITY;
        if (m < L && p->in->glued[m])
            continue;
        if (m < L) {
            set_hop(q, bytes);
            reach(q, &q->rest, m * n, false);
        }
        for (size_t i = 0; i < n; i++) {
            if (m == L) {
                q->in.v1[i] = prob_hop(p, q->dev[i], p->in->D, bytes);
                q->in.v2[i] = INFINITY;
                q->in.p1[i] = q->in.p2[i] = INST_NOBODY;
            }
            double a = q->in.v1[i], b = q->in.v2[i];
            q->out[m * n + i] = a;
            if (q->off[i] || a == INFINITY || q->begin[i * q->W + m] == UINT32_MAX)
                continue;
            for (size_t l = q->begin[i * q->W + m]; l < m; l++) {
                if (q->last[i * L + l] < m || l < q->lo[i] || l >= q->hi[i])
                    continue;
                double x = walks_stage(q, i, l, m) + q->price[i];
                size_t k = l * n + i;
                if (a + x < q->rest.v2[k]) {
                    offer(&q->rest, k, a + x, q->in.p1[i]);
                    if (b + x < q->rest.v2[k])
                        offer(&q->rest, k, b + x, q->in.p2[i]);
                }
            }
        }
    }
}
