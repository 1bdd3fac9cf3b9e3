/* The model object: allocation, names, order. */
#include "common/model/model.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/heap.h"
#include "common/base/map.h"
#include "common/model/model_priv.h"

static const char *const type_names[] = {
    [LAYER_EMBEDDING] = "embedding",         [LAYER_ATTENTION] = "attention", [LAYER_MLP] = "mlp",
    [LAYER_NORMALIZATION] = "normalization", [LAYER_OUTPUT] = "output",       [LAYER_BLOCK] = "block",
};

const char *layer_type_name(enum layer_type t)
{
    return (size_t)t < sizeof type_names / sizeof *type_names ? type_names[t] : "?";
}

int layer_type_parse(const char *word, enum layer_type *out)
{
    for (size_t i = 0; i < sizeof type_names / sizeof *type_names; i++)
        if (!strcmp(word, type_names[i])) {
            *out = (enum layer_type)i;
            return ST_OK;
        }
    return ST_EINVAL;
}

int model_alloc(struct model **out, size_t nlayers)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return ST_ENOMEM;
    m->layers = calloc(nlayers, sizeof *m->layers);
    m->order = calloc(nlayers, sizeof *m->order);
    m->arch = strdup("");
    m->metadata = strdup("{}");
    if (!m->layers || !m->order || !m->arch || !m->metadata || map_new(&m->index, rng_system()) < 0) {
        model_free(m);
        return ST_ENOMEM;
    }
    m->nlayers = nlayers;
    *out = m;
    return ST_OK;
}

void model_free(struct model *m)
{
    if (!m)
        return;
    for (size_t i = 0; m->layers && i < m->nlayers; i++) {
        struct model_layer *l = &m->layers[i];
        for (size_t p = 0; l->pieces && p < l->npieces; p++)
            free(l->pieces[p].tensor);
        free(l->pieces);
        free(l->deps);
        free(l->id);
    }
    for (size_t i = 0; i < m->nfiles; i++)
        free(m->files[i].path);
    map_free(m->index);
    free(m->files);
    free(m->layers);
    free(m->order);
    free(m->name);
    free(m->arch);
    free(m->metadata);
    free(m);
}

int model_index_add(struct model *m, const char *id, uint32_t layer)
{
    size_t n = strlen(id);
    if (map_get(m->index, id, n))
        return ST_EEXIST;
    return map_put(m->index, id, n, &m->layers[layer], NULL);
}

uint32_t model_find(const struct model *m, const char *id)
{
    const struct model_layer *l = map_get(m->index, id, strlen(id));
    return l ? (uint32_t)(l - m->layers) : MODEL_NONE;
}

uint64_t model_layer_bytes(const struct model_layer *l)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < l->npieces; i++)
        sum += l->pieces[i].length;
    return sum;
}

int model_set_chain(struct model *m)
{
    for (size_t i = 1; i < m->nlayers; i++) {
        uint32_t *d = malloc(sizeof *d);
        if (!d)
            return ST_ENOMEM;
        *d = (uint32_t)(i - 1);
        free(m->layers[i].deps);
        m->layers[i].deps = d;
        m->layers[i].ndeps = 1;
    }
    return ST_OK;
}

/* Kahn's algorithm with a min-heap on the index, over dependents in compressed rows. */
int model_sort(struct model *m, uint32_t *on)
{
    size_t n = m->nlayers, edges = 0, done = 0;
    m->chain = m->layers[0].ndeps == 0;
    for (size_t i = 0; i < n; i++) {
        edges += m->layers[i].ndeps;
        if (i && (m->layers[i].ndeps != 1 || m->layers[i].deps[0] != i - 1))
            m->chain = false;
    }
    int rc = ST_ENOMEM;
    struct heap ready = {0};
    uint32_t *start = calloc(n + 2, sizeof *start), *to = calloc(edges + 1, sizeof *to);
    uint32_t *left = calloc(n, sizeof *left);
    struct heap_node *nodes = calloc(n, sizeof *nodes);
    if (!start || !to || !left || !nodes)
        goto out;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < m->layers[i].ndeps; k++)
            start[m->layers[i].deps[k] + 2]++;
    for (size_t i = 2; i < n + 2; i++)
        start[i] += start[i - 1];
    for (size_t i = 0; i < n; i++) {
        left[i] = (uint32_t)m->layers[i].ndeps;
        for (size_t k = 0; k < m->layers[i].ndeps; k++)
            to[start[m->layers[i].deps[k] + 1]++] = (uint32_t)i;
        nodes[i].key = i;
        if (!left[i] && (rc = heap_add(&ready, &nodes[i])) < 0)
            goto out;
    }
    for (struct heap_node *x; (x = heap_top(&ready));) {
        heap_del(&ready, x);
        uint32_t i = (uint32_t)x->key;
        m->order[done++] = i;
        for (uint32_t k = start[i]; k < start[i + 1]; k++)
            if (!--left[to[k]] && (rc = heap_add(&ready, &nodes[to[k]])) < 0)
                goto out;
    }
    rc = ST_OK;
    if (done < n) {
        /* From a layer that never got ready, going back over unready dependencies must enter a cycle. */
        uint32_t at = 0;
        while (!left[at])
            at++;
        while (nodes[at].key != UINT64_MAX) {
            nodes[at].key = UINT64_MAX; /* seen; it is in no heap */
            const struct model_layer *l = &m->layers[at];
            size_t k = 0;
            while (!left[l->deps[k]])
                k++;
            at = l->deps[k];
        }
        *on = at;
        rc = ST_ECONFLICT;
    }
out:
    heap_fini(&ready);
    free(start);
    free(to);
    free(left);
    free(nodes);
    return rc;
}
