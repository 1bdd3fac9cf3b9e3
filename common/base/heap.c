/* Intrusive binary min-heap. */
#include "common/base/heap.h"

#include <stdlib.h>

void heap_fini(struct heap *h)
{
    free(h->v);
    *h = (struct heap){0};
}

static void place(struct heap *h, size_t i, struct heap_node *x)
{
    h->v[i] = x;
    x->pos = i;
}

static void up(struct heap *h, size_t i, struct heap_node *x)
{
    for (; i > 1 && h->v[i / 2]->key > x->key; i /= 2)
        place(h, i, h->v[i / 2]);
    place(h, i, x);
}

static void down(struct heap *h, size_t i, struct heap_node *x)
{
    for (size_t c; (c = 2 * i) <= h->n; i = c) {
        if (c < h->n && h->v[c + 1]->key < h->v[c]->key)
            c++;
        if (h->v[c]->key >= x->key)
            break;
        place(h, i, h->v[c]);
    }
    place(h, i, x);
}

int heap_add(struct heap *h, struct heap_node *x)
{
    if (h->n + 2 > h->cap) {
        size_t cap = h->cap ? h->cap * 2 : 16;
        struct heap_node **v = realloc(h->v, cap * sizeof(*v));
        if (!v)
            return ST_ENOMEM;
        h->v = v;
        h->cap = cap;
    }
    up(h, ++h->n, x);
    return ST_OK;
}

void heap_del(struct heap *h, struct heap_node *x)
{
    size_t i = x->pos;
    if (!i)
        return;
    x->pos = 0;
    struct heap_node *last = h->v[h->n--];
    if (last == x)
        return;
    if (i > 1 && h->v[i / 2]->key > last->key)
        up(h, i, last);
    else
        down(h, i, last);
}

int heap_set(struct heap *h, struct heap_node *x, uint64_t key)
{
    if (!x->pos) {
        x->key = key;
        return heap_add(h, x);
    }
    uint64_t was = x->key;
    x->key = key;
    if (key < was)
        up(h, x->pos, x);
    else
        down(h, x->pos, x);
    return ST_OK;
}

struct heap_node *heap_top(const struct heap *h)
{
    return h->n ? h->v[1] : NULL;
}
