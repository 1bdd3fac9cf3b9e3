/* The table of links and the nodes' places. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/topology/netmap_priv.h"

const char *net_source_name(enum net_source s)
{
    static const char *const name[] = {"unknown", "measured", "passive", "predicted"};
    return name[s];
}

int netmap_new(struct netmap **out, const struct rng *rng)
{
    struct netmap *m = calloc(1, sizeof *m);
    if (!m)
        return ST_ENOMEM;
    m->rng = rng;
    if (map_new(&m->index, rng) < 0 || map_new(&m->places, rng) < 0) {
        netmap_free(m);
        return ST_ENOMEM;
    }
    *out = m;
    return ST_OK;
}

static int free_value(const void *key, size_t n, void *value, void *arg)
{
    (void)key, (void)n, (void)arg;
    free(value);
    return 0;
}

void netmap_free(struct netmap *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++)
        free(m->v[i]);
    free(m->v);
    if (m->places)
        map_each(m->places, free_value, NULL);
    map_free(m->places);
    map_free(m->index);
    free(m);
}

static size_t key_of(char key[130], const char *from, const char *to)
{
    int n = snprintf(key, 130, "%.63s\n%.63s", from, to);
    return (size_t)n;
}

struct net_link *netmap_find(const struct netmap *m, const char *from, const char *to)
{
    char key[130];
    return map_get(m->index, key, key_of(key, from, to));
}

int netmap_link(struct netmap *m, const char *from, const char *to, struct net_link **out)
{
    char key[130];
    if (!str_ident_ok(from, 63) || !str_ident_ok(to, 63) || !strcmp(from, to))
        return ST_EINVAL;
    if ((*out = netmap_find(m, from, to)))
        return ST_OK;
    if (m->n == m->cap) {
        size_t cap = m->cap ? m->cap * 2 : 64;
        struct net_link **v = realloc(m->v, cap * sizeof(*v));
        if (!v)
            return ST_ENOMEM;
        m->v = v;
        m->cap = cap;
    }
    struct net_link *l = calloc(1, sizeof *l);
    if (!l || map_put(m->index, key, key_of(key, from, to), l, NULL) < 0) {
        free(l);
        return ST_ENOMEM;
    }
    str_copy(l->from, sizeof l->from, from);
    str_copy(l->to, sizeof l->to, to);
    m->v[m->n++] = *out = l;
    return ST_OK;
}

void netmap_forget(struct netmap *m, const char *node)
{
    char key[130];
    size_t k = 0;
    for (size_t i = 0; i < m->n; i++) {
        struct net_link *l = m->v[i];
        if (strcmp(l->from, node) && strcmp(l->to, node)) {
            m->v[k++] = l;
            continue;
        }
        map_del(m->index, key, key_of(key, l->from, l->to));
        free(l);
    }
    m->n = k;
    free(map_del(m->places, node, strlen(node)));
}

size_t netmap_count(const struct netmap *m)
{
    return m->n;
}

int netmap_each(const struct netmap *m, int (*fn)(struct net_link *l, void *arg), void *arg)
{
    int rc = 0;
    for (size_t i = 0; i < m->n && !rc; i++)
        rc = fn(m->v[i], arg);
    return rc;
}

static struct coord_place *place(struct netmap *m, const char *node)
{
    struct coord_place *c = map_get(m->places, node, strlen(node));
    if (c)
        return c;
    c = malloc(sizeof *c);
    if (!c)
        return NULL;
    coord_place_init(c);
    if (map_put(m->places, node, strlen(node), c, NULL) < 0) {
        free(c);
        return NULL;
    }
    return c;
}

static void pull(struct netmap *m, const struct net_link *l)
{
    struct coord_place *x = place(m, l->from), *y = place(m, l->to);
    if (!x || !y) /* nothing is predicted for them until there is memory again */
        return;
    struct coord_place was = *x;
    coord_update(x, y, l->rtt_p50_s, m->rng);
    coord_update(y, &was, l->rtt_p50_s, m->rng);
}

void netmap_relax(struct netmap *m, unsigned passes)
{
    for (unsigned k = 0; k < passes; k++)
        for (size_t i = 0; i < m->n; i++)
            if (m->v[i]->reached && !m->v[i]->disputed && m->v[i]->received)
                pull(m, m->v[i]);
}
