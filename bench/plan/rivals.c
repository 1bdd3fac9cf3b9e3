/*
 * How others split a chain, reduced to the rule by which each decides: how many layers which device gets, in
 * which order. None looks at links, and only llama.cpp's fill looks at the caches beside the weights.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/plan/world.h"
#include "common/model/cluster.h"
#include "common/model/model.h"

#define LLAMA_MARGIN ((double)(1u << 30))

const char *const rival_names[RIVALS] = {"memory-proportional", "even split", "greedy by FLOPs",
                                         "llama.cpp's fill", "exo's split"};

struct split {
    const struct world *w;
    size_t D, L;
    size_t *order; /* devices that are used, in the order of the stages */
    size_t *count; /* layers of each of those */
    size_t n;
};

static double room(const struct split *s, size_t d)
{
    const struct cluster_device *cd = &s->w->c->devices[d];
    return cd->memory_bytes - cd->headroom_bytes;
}

static double held(const struct split *s, size_t from, size_t to, bool cache)
{
    double sum = 0, scratch = 0;
    for (size_t i = from; i < to; i++) {
        const struct model_layer *l = &s->w->m->layers[i];
        sum += l->weight_bytes + (cache ? l->kv_bytes : 0);
        scratch = fmax(scratch, cache ? l->activation_bytes : 0);
    }
    return sum + scratch;
}

/* L layers in proportion to the room of the devices in order; what rounding leaves goes to the largest
 * remainders. */
static bool by_room(struct split *s)
{
    double total = 0;
    size_t given = 0;
    double *rest = malloc(s->n * sizeof *rest);
    if (!rest)
        return false;
    for (size_t i = 0; i < s->n; i++)
        total += room(s, s->order[i]);
    for (size_t i = 0; i < s->n; i++) {
        double share = (double)s->L * room(s, s->order[i]) / total;
        s->count[i] = (size_t)share;
        rest[i] = share - (double)s->count[i];
        given += s->count[i];
    }
    for (; given < s->L; given++) {
        size_t best = 0;
        for (size_t i = 1; i < s->n; i++)
            best = rest[i] > rest[best] ? i : best;
        s->count[best]++;
        rest[best] = -1;
    }
    free(rest);
    return true;
}

static void sort_by(struct split *s, double (*key)(const struct split *, size_t))
{
    for (size_t i = 1; i < s->n; i++) {
        size_t d = s->order[i], k = i;
        for (; k > 0 && key(s, s->order[k - 1]) < key(s, d); k--)
            s->order[k] = s->order[k - 1];
        s->order[k] = d;
    }
}
static double flops(const struct split *s, size_t d)
{
    return s->w->c->devices[d].compute_flops_per_s;
}
static int by_index(const void *x, const void *y)
{
    size_t a = *(const size_t *)x, b = *(const size_t *)y;
    return (a > b) - (a < b);
}

static bool even(struct split *s)
{
    s->n = s->n < s->L ? s->n : s->L;
    for (size_t i = 0; i < s->n; i++)
        s->count[i] = s->L / s->n + (i < s->L % s->n);
    return true;
}

/* Each device takes as many layers as its memory holds, by weights alone, the fastest first. */
static bool greedy(struct split *s)
{
    size_t l = 0;
    sort_by(s, flops);
    for (size_t i = 0; i < s->n; i++)
        for (s->count[i] = 0; l < s->L && held(s, l - s->count[i], l + 1, false) <= room(s, s->order[i]); l++)
            s->count[i]++;
    return l == s->L;
}

/* From the back, each device as full as its memory less a margin allows. */
static bool llama(struct split *s)
{
    size_t l = s->L;
    for (size_t i = s->n; i-- > 0;) {
        double have = room(s, s->order[i]);
        have -= have > 4 * LLAMA_MARGIN ? LLAMA_MARGIN : 0;
        for (s->count[i] = 0; l > 0 && held(s, l - 1, l + s->count[i], true) <= have; l--)
            s->count[i]++;
    }
    return l == 0;
}

/* The fewest devices whose memory holds the weights, those with the most of it; then in proportion. */
static bool exo(struct split *s)
{
    double need = held(s, 0, s->L, false), have = 0;
    size_t n = 0;
    sort_by(s, room);
    while (n < s->n && have < need)
        have += room(s, s->order[n++]);
    s->n = n;
    qsort(s->order, n, sizeof *s->order, by_index);
    return have >= need && by_room(s);
}

static double layer_s(const struct cluster_device *d, const struct model_layer *l)
{
    return d->speed_factor * (d->layer_overhead_s +
                              fmax(l->flops / d->compute_flops_per_s, l->read_bytes / d->memory_bytes_per_s));
}

static bool hop(const struct cluster *c, uint32_t from, uint32_t to, double bytes, struct world_figures *f)
{
    struct cluster_rate r;
    int rc = from == CLUSTER_NO_NODE || to == CLUSTER_NO_NODE ? 0 : cluster_path(c, from, to, &r);
    if (rc <= 0)
        return rc == 0;
    f->latency += r.rtt_s / 2 + bytes / r.bytes_per_s;
    f->bottleneck = fmax(f->bottleneck, bytes / r.bytes_per_s);
    return true;
}

static int cost(const struct split *s, struct world_figures *f)
{
    const struct cluster *c = s->w->c;
    const struct model *m = s->w->m;
    size_t l = 0;
    uint32_t last = c->client_node;
    *f = (struct world_figures){0};
    for (size_t i = 0; i < s->n; i++) {
        const struct cluster_device *d = &c->devices[s->order[i]];
        double seconds = d->speed_factor * d->stage_overhead_s, bytes = held(s, l, l + s->count[i], true);
        if (!s->count[i])
            continue;
        if (bytes > room(s, s->order[i]) || (d->has_segment && s->count[i] > d->nsegment) ||
            !hop(c, last, d->node, l ? m->layers[l - 1].output_bytes : m->layers[0].input_bytes, f))
            return ST_EINFEASIBLE;
        for (size_t k = 0; !d->has_segment && k < s->count[i]; k++)
            seconds += layer_s(d, &m->layers[l + k]);
        if (d->has_segment)
            seconds += d->speed_factor * d->segment_s[s->count[i] - 1];
        f->latency += seconds;
        f->bottleneck = fmax(f->bottleneck, seconds);
        f->ratio = fmax(f->ratio, bytes / room(s, s->order[i]));
        l += s->count[i];
        last = d->node;
    }
    return hop(c, last, c->client_node, m->layers[s->L - 1].output_bytes, f) ? ST_OK : ST_EINFEASIBLE;
}

int rival_run(const struct world *w, enum rival r, struct world_figures *out)
{
    struct split s = {.w = w, .D = w->c->ndevices, .L = w->m->nlayers, .n = w->c->ndevices};
    s.order = malloc(s.D * sizeof *s.order);
    s.count = calloc(s.D, sizeof *s.count);
    int rc = s.order && s.count ? ST_OK : ST_ENOMEM;
    for (size_t i = 0; rc == ST_OK && i < s.D; i++)
        s.order[i] = i;
    if (rc == ST_OK) {
        bool fits = r == RIVAL_PROPORTIONAL ? by_room(&s)
                    : r == RIVAL_EVEN       ? even(&s)
                    : r == RIVAL_FLOPS      ? greedy(&s)
                    : r == RIVAL_LLAMA      ? llama(&s)
                                            : exo(&s);
        rc = fits ? cost(&s, out) : ST_EINFEASIBLE;
    }
    free(s.order);
    free(s.count);
    return rc;
}
