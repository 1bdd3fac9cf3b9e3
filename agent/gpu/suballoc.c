#include "agent/gpu/suballoc.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int suballoc_init(struct suballoc *s, uint64_t bytes)
{
    *s = (struct suballoc){.v = malloc(16 * sizeof *s->v), .n = 1, .cap = 16, .bytes = bytes};
    if (!s->v)
        return ST_ENOMEM;
    s->v[0] = (struct sub_range){0, bytes};
    return ST_OK;
}

void suballoc_fini(struct suballoc *s)
{
    free(s->v);
    *s = (struct suballoc){0};
}

static void erase(struct suballoc *s, size_t i)
{
    memmove(s->v + i, s->v + i + 1, (--s->n - i) * sizeof *s->v);
}

static void insert(struct suballoc *s, size_t i, struct sub_range r)
{
    memmove(s->v + i + 1, s->v + i, (s->n++ - i) * sizeof *s->v);
    s->v[i] = r;
}

int suballoc_take(struct suballoc *s, uint64_t len, uint64_t align, uint64_t *off)
{
    size_t i = 0;
    uint64_t at = 0;
    for (; i < s->n; i++) {
        at = (s->v[i].off + align - 1) & ~(align - 1);
        uint64_t lost = at - s->v[i].off;
        if (lost <= s->v[i].len && len <= s->v[i].len - lost)
            break;
    }
    if (i == s->n)
        return ST_ERESOURCE;
    /* A taken range adds at most one free range now and one when it returns; the room for both is made here.
     */
    if (s->n + 2 > s->cap) {
        struct sub_range *v = realloc(s->v, 2 * s->cap * sizeof *v);
        if (!v)
            return ST_ENOMEM;
        s->v = v;
        s->cap *= 2;
    }
    struct sub_range r = s->v[i], before = {r.off, at - r.off}, after = {at + len, r.off + r.len - at - len};
    if (before.len && after.len) {
        s->v[i] = before;
        insert(s, i + 1, after);
    } else if (before.len || after.len) {
        s->v[i] = before.len ? before : after;
    } else {
        erase(s, i);
    }
    *off = at;
    return ST_OK;
}

void suballoc_give(struct suballoc *s, uint64_t off, uint64_t len)
{
    size_t i = 0, n = s->n;
    while (n) { /* the first free range behind `off` */
        size_t half = n / 2;
        if (s->v[i + half].off < off)
            i += half + 1, n -= half + 1;
        else
            n = half;
    }
    bool left = i > 0 && s->v[i - 1].off + s->v[i - 1].len == off;
    bool right = i < s->n && off + len == s->v[i].off;
    assert(i == 0 || s->v[i - 1].off + s->v[i - 1].len <= off);
    assert(i == s->n || off + len <= s->v[i].off);
    if (left && right) {
        s->v[i - 1].len += len + s->v[i].len;
        erase(s, i);
    } else if (left) {
        s->v[i - 1].len += len;
    } else if (right) {
        s->v[i].off = off;
        s->v[i].len += len;
    } else {
        insert(s, i, (struct sub_range){off, len});
    }
}

bool suballoc_empty(const struct suballoc *s)
{
    return s->n == 1 && s->v[0].len == s->bytes;
}
