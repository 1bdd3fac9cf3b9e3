/* Claims by key, sums by principal and place. A sum is changed by its claims alone, and goes with the last.
 */
#include "coordinator/access/quota.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"

#define WHERE_MAX 128u
#define USED_MAX (1ull << 46) /* what an agent may say that one claim holds: sums cannot run over */

struct sum { /* of one principal in one place */
    struct quota_usage u;
    unsigned claims;
    uint16_t where_at; /* key[where_at…] is the place */
    char key[];        /* principal '\n' place */
};
struct part {
    struct sum *sum;
    uint64_t bytes;
    bool is_node; /* the use of a claim can be told for nodes, not for devices */
};
struct claim {
    bool committed;
    uint64_t used;
    size_t nparts;
    struct part parts[]; /* [0] is the cluster */
};
struct quota {
    struct map *claims, *sums;
};

int quota_new(struct quota **out, const struct rng *rng)
{
    struct quota *q = calloc(1, sizeof *q);
    if (!q || map_new(&q->claims, rng) < 0 || map_new(&q->sums, rng) < 0) {
        quota_free(q);
        return ST_ENOMEM;
    }
    *out = q;
    return ST_OK;
}

static int free_value(const void *k, size_t n, void *value, void *arg)
{
    (void)k;
    (void)n;
    (void)arg;
    free(value);
    return 0;
}

void quota_free(struct quota *q)
{
    if (!q)
        return;
    if (q->claims)
        map_each(q->claims, free_value, NULL);
    if (q->sums)
        map_each(q->sums, free_value, NULL);
    map_free(q->claims);
    map_free(q->sums);
    free(q);
}

/* ---- sums ---- */

struct sum_key {
    size_t n, where_at;
    char text[POLICY_PRINCIPAL_MAX + WHERE_MAX];
};

static bool sum_key(struct sum_key *k, const char *principal, const char *where)
{
    size_t p = strlen(principal), w = strlen(where);
    if (p >= POLICY_PRINCIPAL_MAX || w >= WHERE_MAX)
        return false;
    memcpy(k->text, principal, p);
    k->text[p] = '\n';
    memcpy(k->text + p + 1, where, w);
    k->where_at = p + 1;
    k->n = p + 1 + w;
    return true;
}

static struct sum *sum_find(const struct quota *q, const char *principal, const char *where)
{
    struct sum_key k;
    return sum_key(&k, principal, where) ? map_get(q->sums, k.text, k.n) : NULL;
}

static struct sum *sum_take(struct quota *q, const char *principal, const char *where)
{
    struct sum_key k;
    if (!sum_key(&k, principal, where))
        return NULL;
    struct sum *s = map_get(q->sums, k.text, k.n);
    if (!s) {
        s = calloc(1, sizeof *s + k.n + 1);
        if (!s || map_put(q->sums, k.text, k.n, s, NULL) < 0) {
            free(s);
            return NULL;
        }
        memcpy(s->key, k.text, k.n);
        s->where_at = (uint16_t)k.where_at;
    }
    s->claims++;
    return s;
}

static void sum_drop(struct quota *q, struct sum *s)
{
    if (--s->claims)
        return;
    map_del(q->sums, s->key, strlen(s->key));
    free(s);
}

/* ---- claims ---- */

static uint64_t charge(const struct claim *c, const struct part *p)
{
    return p->is_node && c->used > p->bytes ? c->used : p->bytes;
}

static void add(const struct claim *c)
{
    for (size_t i = 0; i < c->nparts; i++) {
        struct quota_usage *u = &c->parts[i].sum->u;
        *(c->committed ? &u->committed : &u->reserved) += charge(c, &c->parts[i]);
        if (c->parts[i].is_node)
            u->allocated += c->used;
    }
}

static void subtract(const struct claim *c)
{
    for (size_t i = 0; i < c->nparts; i++) {
        struct quota_usage *u = &c->parts[i].sum->u;
        *(c->committed ? &u->committed : &u->reserved) -= charge(c, &c->parts[i]);
        if (c->parts[i].is_node)
            u->allocated -= c->used;
    }
}

static void claim_free(struct quota *q, struct claim *c)
{
    for (size_t i = 0; c && i < c->nparts; i++)
        sum_drop(q, c->parts[i].sum);
    free(c);
}

static struct claim *claim_new(struct quota *q, const struct quota_claim *w)
{
    struct claim *c = calloc(1, sizeof *c + (w->nparts + 1) * sizeof c->parts[0]);
    if (!c)
        return NULL;
    size_t nodes = 0;
    for (size_t i = 0; i < w->nparts; i++)
        nodes += !strchr(w->parts[i].where, '/');
    for (size_t i = 0; i <= w->nparts; i++) {
        const char *where = i ? w->parts[i - 1].where : "";
        struct sum *s = sum_take(q, w->principal, where);
        if (!s) {
            claim_free(q, c);
            return NULL;
        }
        /* What a claim uses is one figure, so it is known of a node only where there is one node. */
        c->parts[c->nparts++] = (struct part){s, i ? w->parts[i - 1].bytes : w->bytes,
                                              i == 0 || (nodes == 1 && !strchr(where, '/'))};
    }
    return c;
}

static bool sums_stay_bounded(const struct claim *c)
{
    for (size_t i = 0; i < c->nparts; i++) {
        const struct quota_usage *u = &c->parts[i].sum->u;
        if (c->parts[i].bytes > INT64_MAX || u->reserved + u->committed > INT64_MAX - c->parts[i].bytes)
            return false;
    }
    return true;
}

static bool limit_of(const struct policy *p, const char *where, uint64_t *limit)
{
    bool device = strchr(where, '/') != NULL;
    if (!p)
        return false;
    *limit = !*where ? p->quota_bytes : device ? p->device_quota_bytes : p->node_quota_bytes;
    return !*where ? p->has_quota : device ? p->has_device_quota : p->has_node_quota;
}

static bool fits(const struct policy *p, const char *where, uint64_t used, uint64_t bytes,
                 struct quota_refusal *why)
{
    uint64_t limit;
    if (!bytes || !limit_of(p, where, &limit) || (used <= limit && bytes <= limit - used))
        return true;
    if (why) {
        *why = (struct quota_refusal){.asked = bytes, .used = used, .limit = limit};
        str_copy(why->where, sizeof why->where, where);
    }
    return false;
}

static bool claim_fits(const struct claim *c, const struct policy *p, struct quota_refusal *why)
{
    for (size_t i = 0; i < c->nparts; i++) {
        const struct sum *s = c->parts[i].sum;
        if (!fits(p, s->key + s->where_at, s->u.reserved + s->u.committed, c->parts[i].bytes, why))
            return false;
    }
    return true;
}

/* Puts the claim in the place of the one of the same key, if p allows it. */
static int take(struct quota *q, const struct quota_claim *w, const struct policy *p, bool committed,
                struct quota_refusal *why)
{
    size_t n = strlen(w->key);
    struct claim *old = map_get(q->claims, w->key, n), *c = claim_new(q, w);
    int rc = c ? ST_OK : ST_ENOMEM;
    if (old)
        subtract(old);
    if (rc == ST_OK)
        rc = !claim_fits(c, p, why) ? ST_ERESOURCE : !sums_stay_bounded(c) ? ST_ELIMIT : ST_OK;
    if (rc == ST_OK)
        rc = map_put(q->claims, w->key, n, c, NULL);
    if (rc < 0) {
        claim_free(q, c);
        if (old)
            add(old);
        return rc;
    }
    c->committed = committed;
    c->used = old ? old->used : 0;
    add(c);
    claim_free(q, old);
    return ST_OK;
}

int quota_reserve(struct quota *q, const struct quota_claim *c, const struct policy *p,
                  struct quota_refusal *why)
{
    return take(q, c, p, false, why);
}

int quota_hold(struct quota *q, const struct quota_claim *c)
{
    return take(q, c, NULL, true, NULL);
}

void quota_commit(struct quota *q, const char *key)
{
    struct claim *c = map_get(q->claims, key, strlen(key));
    if (!c || c->committed)
        return;
    subtract(c);
    c->committed = true;
    add(c);
}

void quota_used(struct quota *q, const char *key, uint64_t bytes)
{
    struct claim *c = map_get(q->claims, key, strlen(key));
    if (!c)
        return;
    subtract(c);
    c->used = bytes < USED_MAX ? bytes : USED_MAX;
    add(c);
}

void quota_release(struct quota *q, const char *key)
{
    struct claim *c = map_del(q->claims, key, strlen(key));
    if (!c)
        return;
    subtract(c);
    claim_free(q, c);
}

bool quota_has(const struct quota *q, const char *key)
{
    return map_get(q->claims, key, strlen(key)) != NULL;
}

/* ---- asking ---- */

struct quota_usage quota_usage(const struct quota *q, const char *principal, const char *where)
{
    const struct sum *s = sum_find(q, principal, where);
    return s ? s->u : (struct quota_usage){0};
}

uint64_t quota_charged(const struct quota *q, const char *principal, const char *where)
{
    const struct quota_usage u = quota_usage(q, principal, where);
    return u.reserved + u.committed;
}

bool quota_fits(const struct quota *q, const struct policy *p, const char *device, uint64_t bytes,
                struct quota_refusal *why)
{
    if (!p)
        return true;
    if (!fits(p, "", quota_charged(q, p->principal, ""), bytes, why))
        return false;
    const char *slash = device ? strchr(device, '/') : NULL;
    char node[WHERE_MAX];
    if (!slash || (size_t)(slash - device) >= sizeof node)
        return true;
    memcpy(node, device, (size_t)(slash - device));
    node[slash - device] = 0;
    return fits(p, node, quota_charged(q, p->principal, node), bytes, why) &&
           fits(p, device, quota_charged(q, p->principal, device), bytes, why);
}

struct each {
    int (*fn)(const char *principal, const char *where, const struct quota_usage *u, void *arg);
    void *arg;
};

static int visit(const void *k, size_t n, void *value, void *arg)
{
    const struct sum *s = value;
    const struct each *e = arg;
    char principal[POLICY_PRINCIPAL_MAX];
    (void)k;
    (void)n;
    memcpy(principal, s->key, s->where_at - 1u);
    principal[s->where_at - 1] = 0;
    return e->fn(principal, s->key + s->where_at, &s->u, e->arg);
}

int quota_each(const struct quota *q,
               int (*fn)(const char *principal, const char *where, const struct quota_usage *u, void *arg),
               void *arg)
{
    struct each e = {fn, arg};
    return map_each(q->sums, visit, &e);
}
