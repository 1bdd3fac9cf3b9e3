/* The cluster object: building, sealing, look-ups. */
#include "common/model/cluster.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/map.h"
#include "common/model/jread.h"

#define MAX_LINKS (1u << 22)

int cluster_new(struct cluster **out)
{
    struct cluster *c = calloc(1, sizeof *c);
    if (!c)
        return ST_ENOMEM;
    c->client_node = CLUSTER_NO_NODE;
    if (map_new(&c->device_index, rng_system()) < 0 || map_new(&c->node_index, rng_system()) < 0) {
        cluster_free(c);
        return ST_ENOMEM;
    }
    *out = c;
    return ST_OK;
}

void cluster_free(struct cluster *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->ndevices; i++) {
        struct cluster_device *d = &c->devices[i];
        free(d->id);
        free(d->segment_s);
        jread_free_strings(d->resident_layers, d->nresident);
    }
    jread_free_strings(c->nodes, c->nnodes);
    map_free(c->device_index);
    map_free(c->node_index);
    free(c->devices);
    free(c->links);
    free(c);
}

/* Room for one more element; cap doubles, so addresses change: the maps hold indices, never addresses. */
static int grow(void **v, size_t n, size_t *cap, size_t size, size_t max)
{
    if (n >= max)
        return ST_ELIMIT;
    if (n < *cap)
        return ST_OK;
    size_t want = *cap ? *cap * 2 : 8;
    void *p = realloc(*v, want * size);
    if (!p)
        return ST_ENOMEM;
    *v = p;
    *cap = want;
    return ST_OK;
}

static uint32_t find(const struct map *m, const char *s)
{
    const void *v = map_get(m, s, strlen(s));
    return v ? (uint32_t)((uintptr_t)v - 1) : UINT32_MAX;
}

static int put(struct map *m, const char *s, size_t index)
{
    return map_put(m, s, strlen(s), (void *)(uintptr_t)(index + 1), NULL);
}

uint32_t cluster_find_device(const struct cluster *c, const char *id)
{
    return find(c->device_index, id);
}

uint32_t cluster_find_node(const struct cluster *c, const char *node)
{
    return find(c->node_index, node);
}

static int intern_node(struct cluster *c, const char *node, uint32_t *out)
{
    uint32_t i = cluster_find_node(c, node);
    if (i == CLUSTER_NO_NODE) {
        if (!*node)
            return ST_EINVAL;
        int rc = grow((void **)&c->nodes, c->nnodes, &c->node_cap, sizeof *c->nodes, MAX_LINKS);
        if (rc < 0)
            return rc;
        char *copy = strdup(node);
        if (!copy || (rc = put(c->node_index, node, c->nnodes)) < 0) {
            free(copy);
            return copy ? rc : ST_ENOMEM;
        }
        i = (uint32_t)c->nnodes;
        c->nodes[c->nnodes++] = copy;
    }
    *out = i;
    return ST_OK;
}

static bool in_range(double v, double min)
{
    return isfinite(v) && v >= min && v <= JREAD_MAX_NUMBER;
}

static bool device_ok(const struct cluster_device *d)
{
    const double tiny = 1 / JREAD_MAX_NUMBER;
    bool ok = in_range(d->memory_bytes, 0) && in_range(d->headroom_bytes, 0) &&
              in_range(d->compute_flops_per_s, tiny) && in_range(d->memory_bytes_per_s, tiny) &&
              in_range(d->layer_overhead_s, 0) && in_range(d->stage_overhead_s, 0) &&
              in_range(d->speed_factor, tiny);
    for (size_t i = 0; ok && d->has_segment && i < d->nsegment; i++)
        ok = in_range(d->segment_s[i], 0);
    return ok;
}

/* Fills *to with copies of what *d points to; on failure *to owns whatever was copied. */
static int copy_device(struct cluster_device *to, const struct cluster_device *d, const char *id)
{
    *to = *d;
    to->nresident = 0;
    to->nsegment = d->has_segment ? d->nsegment : 0;
    to->segment_s = NULL;
    to->resident_layers = NULL;
    if (!(to->id = strdup(id)))
        return ST_ENOMEM;
    if (to->nsegment) {
        if (!(to->segment_s = calloc(to->nsegment, sizeof *to->segment_s)))
            return ST_ENOMEM;
        memcpy(to->segment_s, d->segment_s, to->nsegment * sizeof *to->segment_s);
    }
    if (d->nresident && !(to->resident_layers = calloc(d->nresident, sizeof *to->resident_layers)))
        return ST_ENOMEM;
    for (; to->nresident < d->nresident; to->nresident++)
        if (!(to->resident_layers[to->nresident] = strdup(d->resident_layers[to->nresident])))
            return ST_ENOMEM;
    return ST_OK;
}

int cluster_add_device(struct cluster *c, const char *id, const char *node, const struct cluster_device *d)
{
    struct cluster_device copy = {0};
    int rc;
    if (!*id || !device_ok(d))
        return ST_EINVAL;
    if (cluster_find_device(c, id) != UINT32_MAX)
        return ST_EEXIST;
    if ((rc = grow((void **)&c->devices, c->ndevices, &c->device_cap, sizeof *c->devices,
                   CLUSTER_MAX_DEVICES)) < 0)
        return rc;
    if ((rc = copy_device(&copy, d, id)) < 0 || (rc = intern_node(c, node, &copy.node)) < 0 ||
        (rc = put(c->device_index, id, c->ndevices)) < 0) {
        free(copy.id);
        free(copy.segment_s);
        jread_free_strings(copy.resident_layers, copy.nresident);
        return rc;
    }
    c->devices[c->ndevices++] = copy;
    return ST_OK;
}

/* Duplicates are told by cluster_seal, after sorting; the JSON reader has its own check with the path. */
int cluster_add_link(struct cluster *c, const char *from, const char *to, const struct cluster_rate *r)
{
    struct cluster_link l = {.rate = *r};
    int rc;
    if (!in_range(r->bytes_per_s, 1 / JREAD_MAX_NUMBER) || !in_range(r->rtt_s, 0))
        return ST_EINVAL;
    if ((rc = intern_node(c, from, &l.from)) < 0 || (rc = intern_node(c, to, &l.to)) < 0 ||
        (rc = grow((void **)&c->links, c->nlinks, &c->link_cap, sizeof *c->links, MAX_LINKS)) < 0)
        return rc;
    c->links[c->nlinks++] = l;
    return ST_OK;
}

int cluster_set_client(struct cluster *c, const char *node)
{
    return intern_node(c, node, &c->client_node);
}

static int by_ends(const void *a, const void *b)
{
    const struct cluster_link *x = a, *y = b;
    if (x->from != y->from)
        return x->from < y->from ? -1 : 1;
    return x->to == y->to ? 0 : x->to < y->to ? -1 : 1;
}

static const struct cluster_link *find_link(const struct cluster_link *v, size_t n, uint32_t from,
                                            uint32_t to)
{
    struct cluster_link key = {.from = from, .to = to};
    return n ? bsearch(&key, v, n, sizeof *v, by_ends) : NULL;
}

int cluster_seal(struct cluster *c)
{
    size_t n = c->nlinks;
    if (!c->ndevices)
        return ST_EINVAL;
    if (!n)
        return ST_OK;
    qsort(c->links, n, sizeof *c->links, by_ends);
    for (size_t i = 1; i < n; i++)
        if (!by_ends(&c->links[i - 1], &c->links[i]))
            return ST_EEXIST;
    struct cluster_link *v = calloc(n, 2 * sizeof *v);
    if (!v)
        return ST_ENOMEM;
    memcpy(v, c->links, n * sizeof *v);
    size_t total = n;
    for (size_t i = 0; i < n; i++)
        if (!find_link(c->links, n, c->links[i].to, c->links[i].from)) {
            v[total] = c->links[i];
            v[total].from = c->links[i].to;
            v[total++].to = c->links[i].from;
        }
    qsort(v, total, sizeof *v, by_ends);
    free(c->links);
    c->links = v;
    c->nlinks = total;
    c->link_cap = 2 * n;
    return ST_OK;
}

int cluster_path(const struct cluster *c, uint32_t from, uint32_t to, struct cluster_rate *out)
{
    const struct cluster_link *l = find_link(c->links, c->nlinks, from, to);
    if (l)
        *out = l->rate;
    else if (from == to && !c->has_same_node_link)
        return 0;
    else if (from == to)
        *out = c->same_node_link;
    else if (c->has_default_link)
        *out = c->default_link;
    else
        return ST_EUNREACH;
    return 1;
}
