/* Compiled policies: entries in one array, an index of 8-byte slots over it, device patterns as bit masks. */
#include "coordinator/access/set.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/heap.h"
#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/access/access_priv.h"

#define NAME_INLINE 72u

/* The pattern list of one or more policies, and which known devices it matches. Most policies of a cluster
 * share a few lists; a list that matches a few devices of many keeps only the words between them. */
struct matcher {
    unsigned refs;
    uint32_t first, words; /* bits[0] is word `first` of the whole mask */
    uint64_t *bits;
    size_t len;
    char text[]; /* patterns, one a line */
};

struct record { /* what a decision does not need */
    struct heap_node expiry;
    char *principal;
    uint32_t slot, roles, extra;
    bool has_quota, has_node_quota, has_device_quota;
    uint64_t quota_bytes, node_quota_bytes, device_quota_bytes;
    int64_t created_us;
};

struct entry { /* two cache lines: the first decides, the second is compared by name */
    struct access_rules rules;
    struct matcher *devices; /* NULL = all */
    struct record *rec;      /* NULL = vacant */
    uint32_t stamp, name_len;
    char name[NAME_INLINE];
};

struct slot {
    uint32_t tag, entry; /* entry 0 = empty */
};

struct access_set {
    struct entry *v; /* [0] is nobody */
    uint32_t n, cap, count;
    uint32_t *vacant;
    uint32_t nvacant;
    struct slot *index;
    uint32_t index_cap; /* a power of two */
    uint8_t seed[16];
    struct heap expiries;
    struct map *matchers, *device_numbers;
    char **devices; /* names by number; [0] unused */
    uint32_t ndevices, devices_cap;
};

_Static_assert(sizeof(struct entry) == 128, "an entry is two cache lines");

int access_set_new(struct access_set **out, const struct rng *rng)
{
    struct access_set *s = calloc(1, sizeof *s);
    if (!s)
        return ST_ENOMEM;
    rng->fill(rng->arg, s->seed, sizeof s->seed);
    s->cap = 16;
    s->n = 1;
    s->ndevices = 1;
    s->index_cap = 32;
    s->v = aligned_alloc(64, s->cap * sizeof *s->v);
    s->index = calloc(s->index_cap, sizeof *s->index);
    if (!s->v || !s->index || map_new(&s->matchers, rng) < 0 || map_new(&s->device_numbers, rng) < 0) {
        access_set_free(s);
        return ST_ENOMEM;
    }
    memset(s->v, 0, s->cap * sizeof *s->v);
    *out = s;
    return ST_OK;
}

static int free_matcher(const void *k, size_t n, void *value, void *arg)
{
    struct matcher *m = value;
    (void)k;
    (void)n;
    (void)arg;
    free(m->bits);
    free(m);
    return 0;
}

static void record_free(struct record *r)
{
    if (r)
        free(r->principal);
    free(r);
}

void access_set_free(struct access_set *s)
{
    if (!s)
        return;
    for (uint32_t i = 1; s->v && i < s->n; i++)
        record_free(s->v[i].rec);
    if (s->matchers)
        map_each(s->matchers, free_matcher, NULL);
    map_free(s->matchers);
    map_free(s->device_numbers);
    for (uint32_t i = 1; i < s->ndevices; i++)
        free(s->devices[i]);
    free(s->devices);
    heap_fini(&s->expiries);
    free(s->vacant);
    free(s->index);
    free(s->v);
    free(s);
}

size_t access_set_count(const struct access_set *s)
{
    return s->count;
}

/* ---- device patterns ---- */

static bool text_matches(const char *text, const char *device)
{
    char pattern[POLICY_PATTERN_MAX];
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, "\n");
        if (n < sizeof pattern) {
            memcpy(pattern, p, n);
            pattern[n] = 0;
            if (device_match(pattern, device))
                return true;
        }
        p += n + (p[n] == '\n');
    }
    return false;
}

static int matcher_set(struct matcher *m, uint32_t device)
{
    uint32_t word = device / 64;
    uint32_t first = m->words && m->first < word ? m->first : word;
    uint32_t last = m->words && m->first + m->words - 1 > word ? m->first + m->words - 1 : word;
    if (!m->words || first != m->first || last != m->first + m->words - 1) {
        uint64_t *bits = calloc(last - first + 1, sizeof *bits);
        if (!bits)
            return ST_ENOMEM;
        if (m->words)
            memcpy(bits + (m->first - first), m->bits, m->words * sizeof *bits);
        free(m->bits);
        m->bits = bits;
        m->first = first;
        m->words = last - first + 1;
    }
    m->bits[word - m->first] |= 1ull << (device % 64);
    return ST_OK;
}

static inline bool matcher_has(const struct matcher *m, uint32_t device)
{
    uint32_t word = device / 64 - m->first;
    return word < m->words && (m->bits[word] >> (device % 64) & 1);
}

static void matcher_unref(struct access_set *s, struct matcher *m)
{
    if (!m || --m->refs)
        return;
    map_del(s->matchers, m->text, m->len);
    free_matcher(NULL, 0, m, NULL);
}

static struct matcher *matcher_for(struct access_set *s, const char *text)
{
    size_t n = strlen(text);
    struct matcher *m = map_get(s->matchers, text, n);
    if (m) {
        m->refs++;
        return m;
    }
    m = calloc(1, sizeof *m + n + 1);
    if (!m)
        return NULL;
    memcpy(m->text, text, n + 1);
    m->len = n;
    m->refs = 1;
    int rc = map_put(s->matchers, text, n, m, NULL);
    for (uint32_t i = 1; i < s->ndevices && rc == ST_OK; i++)
        if (text_matches(text, s->devices[i]))
            rc = matcher_set(m, i);
    if (rc < 0) {
        map_del(s->matchers, text, n);
        free_matcher(NULL, 0, m, NULL);
        return NULL;
    }
    return m;
}

struct see_device {
    const char *id;
    uint32_t number;
};

static int matcher_sees(const void *k, size_t n, void *value, void *arg)
{
    struct matcher *m = value;
    const struct see_device *d = arg;
    (void)k;
    (void)n;
    return text_matches(m->text, d->id) ? matcher_set(m, d->number) : ST_OK;
}

uint32_t access_set_device(struct access_set *s, const char *id)
{
    size_t n = strlen(id);
    uintptr_t known = (uintptr_t)map_get(s->device_numbers, id, n);
    if (known)
        return (uint32_t)known;
    if (s->ndevices == ACCESS_MAX_DEVICES)
        return ACCESS_UNKNOWN_DEVICE;
    if (s->ndevices >= s->devices_cap) {
        uint32_t cap = s->devices_cap ? s->devices_cap * 2 : 64;
        char **v = realloc(s->devices, cap * sizeof(*v));
        if (!v)
            return ACCESS_UNKNOWN_DEVICE;
        s->devices = v;
        s->devices_cap = cap;
    }
    /* Bits before the name: a number that is found has its bit in every matcher. After a failure the number
     * is spent, for some matchers may know it. */
    struct see_device d = {id, s->ndevices};
    char *copy = strdup(id);
    if (!copy)
        return ACCESS_UNKNOWN_DEVICE;
    s->devices[s->ndevices++] = copy;
    if (map_each(s->matchers, matcher_sees, &d) < 0 ||
        map_put(s->device_numbers, id, n, (void *)(uintptr_t)d.number, NULL) < 0)
        return ACCESS_UNKNOWN_DEVICE;
    return d.number;
}

/* ---- the index over names ---- */

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIPROUND                                                                                             \
    do {                                                                                                     \
        v0 += v1, v1 = ROTL(v1, 13), v1 ^= v0, v0 = ROTL(v0, 32);                                            \
        v2 += v3, v3 = ROTL(v3, 16), v3 ^= v2;                                                               \
        v0 += v3, v3 = ROTL(v3, 21), v3 ^= v0;                                                               \
        v2 += v1, v1 = ROTL(v1, 17), v1 ^= v2, v2 = ROTL(v2, 32);                                            \
    } while (0)

/* SipHash-1-3 under a random key: half the rounds of the map's, enough to keep names from being chosen to
 * collide, and a third of what a decision by name may cost. */
static uint32_t tag_of(const struct access_set *s, const char *name, size_t n)
{
    uint64_t k0, k1, m;
    memcpy(&k0, s->seed, 8);
    memcpy(&k1, s->seed + 8, 8);
    uint64_t v0 = k0 ^ 0x736f6d6570736575ull, v1 = k1 ^ 0x646f72616e646f6dull;
    uint64_t v2 = k0 ^ 0x6c7967656e657261ull, v3 = k1 ^ 0x7465646279746573ull;
    size_t left = n;
    for (; left >= 8; left -= 8, name += 8) {
        memcpy(&m, name, 8);
        v3 ^= m;
        SIPROUND;
        v0 ^= m;
    }
    m = (uint64_t)n << 56;
    for (size_t i = 0; i < left; i++)
        m |= (uint64_t)(uint8_t)name[i] << (8 * i);
    v3 ^= m;
    SIPROUND;
    v0 ^= m;
    v2 ^= 0xff;
    SIPROUND;
    SIPROUND;
    SIPROUND;
    return (uint32_t)(v0 ^ v1 ^ v2 ^ v3);
}

static bool is_named(const struct entry *e, const char *name, size_t n)
{
    return e->name_len == n && memcmp(n <= NAME_INLINE ? e->name : e->rec->principal, name, n) == 0;
}

static uint32_t index_at(const struct access_set *s, uint32_t tag, const char *name, size_t n)
{
    uint32_t mask = s->index_cap - 1, i = tag & mask;
    while (s->index[i].entry && (s->index[i].tag != tag || !is_named(&s->v[s->index[i].entry], name, n)))
        i = (i + 1) & mask;
    return i;
}

static int index_grow(struct access_set *s)
{
    if ((s->count + 1) * 2 <= s->index_cap)
        return ST_OK;
    uint32_t cap = s->index_cap * 2;
    struct slot *v = calloc(cap, sizeof *v);
    if (!v)
        return ST_ENOMEM;
    for (uint32_t i = 0; i < s->index_cap; i++) {
        if (!s->index[i].entry)
            continue;
        uint32_t k = s->index[i].tag & (cap - 1);
        while (v[k].entry)
            k = (k + 1) & (cap - 1);
        v[k] = s->index[i];
    }
    free(s->index);
    s->index = v;
    s->index_cap = cap;
    return ST_OK;
}

/* Closes the hole: pulls back every follower whose home is not inside (i, j]. */
static void index_del(struct access_set *s, uint32_t i)
{
    uint32_t mask = s->index_cap - 1;
    for (uint32_t j = (i + 1) & mask; s->index[j].entry; j = (j + 1) & mask) {
        uint32_t home = s->index[j].tag & mask;
        if (((j - home) & mask) >= ((j - i) & mask)) {
            s->index[i] = s->index[j];
            i = j;
        }
    }
    s->index[i].entry = 0;
}

struct access_handle access_set_find(const struct access_set *s, const char *principal, size_t n)
{
    uint32_t tag = tag_of(s, principal, n);
    /* Both lines of the likely entry at once: the name is on the second, the decision on the first. */
    __builtin_prefetch(&s->v[s->index[tag & (s->index_cap - 1)].entry]);
    uint32_t at = s->index[index_at(s, tag, principal, n)].entry;
    return (struct access_handle){at, at ? s->v[at].stamp : 0};
}

/* ---- changing ---- */

static int entry_room(struct access_set *s)
{
    if (s->nvacant || s->n < s->cap)
        return ST_OK;
    uint32_t cap = s->cap * 2;
    struct entry *v = aligned_alloc(64, cap * sizeof *v);
    uint32_t *vacant =
        realloc(s->vacant, cap * sizeof *vacant); /* room for every entry: a removal never fails */
    if (vacant)
        s->vacant = vacant;
    if (!v || !vacant) {
        free(v);
        return ST_ENOMEM;
    }
    memcpy(v, s->v, s->n * sizeof *v);
    memset(v + s->n, 0, (cap - s->n) * sizeof *v);
    free(s->v);
    s->v = v;
    s->cap = cap;
    return ST_OK;
}

static struct record *record_new(struct access_set *s, const char *principal, struct err *e)
{
    struct record *r = calloc(1, sizeof *r);
    if (r)
        r->principal = strdup(principal);
    if (!r || !r->principal || entry_room(s) < 0 || index_grow(s) < 0 ||
        (!s->vacant && !(s->vacant = calloc(s->cap, sizeof *s->vacant)))) {
        record_free(r);
        err_set(e, ST_ENOMEM, "no memory for the policy of %s", principal);
        return NULL;
    }
    return r;
}

static struct entry *entry_take(struct access_set *s, struct record *r, uint32_t index)
{
    size_t n = strlen(r->principal);
    r->slot = s->nvacant ? s->vacant[--s->nvacant] : s->n++;
    struct entry *en = &s->v[r->slot];
    en->stamp++;
    en->rec = r;
    en->name_len = (uint32_t)n;
    memcpy(en->name, r->principal, n < NAME_INLINE ? n : NAME_INLINE);
    s->index[index] = (struct slot){tag_of(s, r->principal, n), r->slot};
    s->count++;
    return en;
}

int access_set_put(struct access_set *s, const struct policy *p, struct err *e)
{
    char text[POLICY_DEVICES_MAX * POLICY_PATTERN_MAX];
    int rc = policy_validate(p, e);
    if (rc < 0 || (rc = policy_devices_join(p, text, sizeof text)) < 0)
        return rc;
    size_t n = strlen(p->principal);
    uint32_t at = access_set_find(s, p->principal, n).slot;
    struct record *r = at ? s->v[at].rec : record_new(s, p->principal, e);
    struct matcher *m = r && p->n_devices ? matcher_for(s, text) : NULL;
    if (!r || (p->n_devices && !m) ||
        (p->expires_us && heap_set(&s->expiries, &r->expiry, (uint64_t)p->expires_us) < 0)) {
        matcher_unref(s, m);
        if (!at)
            record_free(r);
        return err_set(e, ST_ENOMEM, "no memory for the policy of %s", p->principal);
    }
    if (!p->expires_us)
        heap_del(&s->expiries, &r->expiry);
    struct entry *en =
        at ? &s->v[at] : entry_take(s, r, index_at(s, tag_of(s, p->principal, n), p->principal, n));
    matcher_unref(s, en->devices);
    en->devices = m;
    en->rules = access_compile(p);
    r->roles = p->roles;
    r->extra = p->extra;
    r->has_quota = p->has_quota;
    r->has_node_quota = p->has_node_quota;
    r->has_device_quota = p->has_device_quota;
    r->quota_bytes = p->quota_bytes;
    r->node_quota_bytes = p->node_quota_bytes;
    r->device_quota_bytes = p->device_quota_bytes;
    r->created_us = p->created_us;
    return ST_OK;
}

bool access_set_del(struct access_set *s, const char *principal)
{
    size_t n = strlen(principal);
    uint32_t i = index_at(s, tag_of(s, principal, n), principal, n), at = s->index[i].entry;
    if (!at)
        return false;
    struct entry *en = &s->v[at];
    index_del(s, i);
    heap_del(&s->expiries, &en->rec->expiry);
    matcher_unref(s, en->devices);
    record_free(en->rec);
    *en = (struct entry){.stamp = en->stamp + 1};
    s->vacant[s->nvacant++] = at;
    s->count--;
    return true;
}

/* ---- asking ---- */

bool access_set_get(const struct access_set *s, const char *principal, struct policy *out)
{
    uint32_t at = access_set_find(s, principal, strlen(principal)).slot;
    if (!at)
        return false;
    const struct entry *en = &s->v[at];
    const struct record *r = en->rec;
    *out = (struct policy){.roles = r->roles,
                           .extra = r->extra,
                           .denied = en->rules.denied,
                           .has_quota = r->has_quota,
                           .has_node_quota = r->has_node_quota,
                           .has_device_quota = r->has_device_quota,
                           .quota_bytes = r->quota_bytes,
                           .node_quota_bytes = r->node_quota_bytes,
                           .device_quota_bytes = r->device_quota_bytes,
                           .created_us = r->created_us,
                           .expires_us = en->rules.expires_us,
                           .generation = en->rules.generation};
    str_copy(out->principal, sizeof out->principal, r->principal);
    return !en->devices || policy_devices_split(out, en->devices->text) == ST_OK;
}

int access_set_each(const struct access_set *s, int (*fn)(const char *principal, void *arg), void *arg)
{
    for (uint32_t i = 1; i < s->n; i++)
        if (s->v[i].rec) {
            int rc = fn(s->v[i].rec->principal, arg);
            if (rc)
                return rc;
        }
    return 0;
}

struct decision access_set_decide(const struct access_set *s, struct access_handle h, enum permission p,
                                  uint32_t device, int64_t now_us)
{
    if (h.slot == 0 || h.slot >= s->n || s->v[h.slot].stamp != h.stamp || !s->v[h.slot].rec)
        return (struct decision){.reason = ACCESS_NO_POLICY, .rule = RULE_DEFAULT_DENY};
    const struct entry *en = &s->v[h.slot];
    bool on_device = device == ACCESS_NO_DEVICE || !en->devices || matcher_has(en->devices, device);
    return access_rules_decide(&en->rules, p, on_device, now_us);
}

struct decision access_set_ask(const struct access_set *s, const char *principal,
                               const struct access_request *q)
{
    struct access_handle h = access_set_find(s, principal, strlen(principal));
    if (!h.slot)
        return (struct decision){.reason = ACCESS_NO_POLICY, .rule = RULE_DEFAULT_DENY};
    const struct entry *en = &s->v[h.slot];
    uint32_t number = 0;
    bool on_device = true;
    if (q->device && en->devices) {
        number = (uint32_t)(uintptr_t)map_get(s->device_numbers, q->device, strlen(q->device));
        on_device = number ? matcher_has(en->devices, number) : text_matches(en->devices->text, q->device);
    }
    struct decision d = access_rules_decide(&en->rules, q->permission, on_device, q->now_us);
    const struct record *r = en->rec;
    if (d.allowed && r->has_quota && q->ask_bytes &&
        (q->used_bytes > r->quota_bytes || q->ask_bytes > r->quota_bytes - q->used_bytes))
        d = (struct decision){
            .reason = ACCESS_QUOTA_EXCEEDED, .rule = RULE_QUOTA, .generation = en->rules.generation};
    return d;
}

/* ---- expiry ---- */

static struct record *of_heap(struct heap_node *x)
{
    return (struct record *)((char *)x - offsetof(struct record, expiry));
}

int64_t access_set_next_expiry(const struct access_set *s)
{
    const struct heap_node *x = heap_top(&s->expiries);
    return x ? (int64_t)x->key : INT64_MAX;
}

const char *access_set_pop_expired(struct access_set *s, int64_t now_us)
{
    struct heap_node *x = heap_top(&s->expiries);
    if (!x || (int64_t)x->key > now_us)
        return NULL;
    heap_del(&s->expiries, x);
    return of_heap(x)->principal;
}
