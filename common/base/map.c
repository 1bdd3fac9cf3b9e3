/* Open-addressing map on SipHash-2-4; tombstone-free deletion by backward shift. */
#include "common/base/map.h"

#include <stdlib.h>
#include <string.h>

struct slot {
    uint64_t hash;
    void *key; /* NULL = empty */
    size_t n;
    void *value;
};
struct map {
    struct slot *v;
    size_t cap, count; /* cap is a power of two */
    uint8_t seed[16];
};

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIPROUND                                                                                             \
    do {                                                                                                     \
        v0 += v1, v1 = ROTL(v1, 13), v1 ^= v0, v0 = ROTL(v0, 32);                                            \
        v2 += v3, v3 = ROTL(v3, 16), v3 ^= v2;                                                               \
        v0 += v3, v3 = ROTL(v3, 21), v3 ^= v0;                                                               \
        v2 += v1, v1 = ROTL(v1, 17), v1 ^= v2, v2 = ROTL(v2, 32);                                            \
    } while (0)

/* SipHash-2-4: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012. */
uint64_t siphash24(const uint8_t key[16], const void *data, size_t n)
{
    uint64_t k0, k1, m;
    memcpy(&k0, key, 8);
    memcpy(&k1, key + 8, 8);
    uint64_t v0 = k0 ^ 0x736f6d6570736575ull, v1 = k1 ^ 0x646f72616e646f6dull;
    uint64_t v2 = k0 ^ 0x6c7967656e657261ull, v3 = k1 ^ 0x7465646279746573ull;
    const uint8_t *p = data;
    for (size_t left = n; left >= 8; left -= 8, p += 8) {
        memcpy(&m, p, 8);
        v3 ^= m;
        SIPROUND;
        SIPROUND;
        v0 ^= m;
    }
    m = (uint64_t)n << 56;
    for (size_t i = 0; i < (n & 7); i++)
        m |= (uint64_t)p[i] << (8 * i);
    v3 ^= m;
    SIPROUND;
    SIPROUND;
    v0 ^= m;
    v2 ^= 0xff;
    SIPROUND;
    SIPROUND;
    SIPROUND;
    SIPROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

int map_new(struct map **out, const struct rng *rng)
{
    struct map *m = calloc(1, sizeof *m);
    if (!m)
        return ST_ENOMEM;
    m->cap = 16;
    m->v = calloc(m->cap, sizeof *m->v);
    if (!m->v) {
        free(m);
        return ST_ENOMEM;
    }
    rng->fill(rng->arg, m->seed, sizeof m->seed);
    *out = m;
    return ST_OK;
}

void map_free(struct map *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->cap; i++)
        free(m->v[i].key);
    free(m->v);
    free(m);
}

size_t map_count(const struct map *m)
{
    return m->count;
}

static size_t find(const struct map *m, uint64_t h, const void *key, size_t n)
{
    size_t i = h & (m->cap - 1);
    while (m->v[i].key && (m->v[i].hash != h || m->v[i].n != n || memcmp(m->v[i].key, key, n)))
        i = (i + 1) & (m->cap - 1);
    return i;
}

void *map_get(const struct map *m, const void *key, size_t n)
{
    const struct slot *s = &m->v[find(m, siphash24(m->seed, key, n), key, n)];
    return s->key ? s->value : NULL;
}

static int grow(struct map *m)
{
    struct slot *old = m->v, *v = calloc(m->cap * 2, sizeof *v);
    if (!v)
        return ST_ENOMEM;
    size_t oldcap = m->cap;
    m->cap *= 2;
    m->v = v;
    for (size_t i = 0; i < oldcap; i++) {
        if (!old[i].key)
            continue;
        size_t j = old[i].hash & (m->cap - 1);
        while (v[j].key)
            j = (j + 1) & (m->cap - 1);
        v[j] = old[i];
    }
    free(old);
    return ST_OK;
}

int map_put(struct map *m, const void *key, size_t n, void *value, void **old)
{
    if (old)
        *old = NULL;
    if ((m->count + 1) * 4 > m->cap * 3 && grow(m) < 0)
        return ST_ENOMEM;
    uint64_t h = siphash24(m->seed, key, n);
    struct slot *s = &m->v[find(m, h, key, n)];
    if (s->key) {
        if (old)
            *old = s->value;
        s->value = value;
        return ST_OK;
    }
    void *copy = malloc(n ? n : 1);
    if (!copy)
        return ST_ENOMEM;
    if (n)
        memcpy(copy, key, n);
    *s = (struct slot){h, copy, n, value};
    m->count++;
    return ST_OK;
}

void *map_del(struct map *m, const void *key, size_t n)
{
    size_t i = find(m, siphash24(m->seed, key, n), key, n), mask = m->cap - 1;
    if (!m->v[i].key)
        return NULL;
    void *value = m->v[i].value;
    free(m->v[i].key);
    m->count--;
    /* Close the hole: pull back every follower whose home is not inside (i, j]. */
    for (size_t j = (i + 1) & mask; m->v[j].key; j = (j + 1) & mask) {
        size_t home = m->v[j].hash & mask;
        if (((j - home) & mask) >= ((j - i) & mask)) {
            m->v[i] = m->v[j];
            i = j;
        }
    }
    m->v[i].key = NULL;
    return value;
}

int map_each(const struct map *m, int (*fn)(const void *, size_t, void *, void *), void *arg)
{
    for (size_t i = 0; i < m->cap; i++)
        if (m->v[i].key) {
            int rc = fn(m->v[i].key, m->v[i].n, m->v[i].value, arg);
            if (rc)
                return rc;
        }
    return 0;
}
