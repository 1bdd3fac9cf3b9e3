/* Registry of nodes: a sorted array, since it is listed far more often than it grows. */
#include "coordinator/topology/topo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"

struct topo {
    struct topo_node **v; /* by name */
    size_t n, cap;
    uint64_t suspect_ns, lost_ns, next_epoch;
};

const char *topo_state_name(enum topo_state s)
{
    static const char *const name[] = {"connected", "suspect", "lost"};
    return name[s];
}

int topo_new(struct topo **out, uint64_t suspect_ns, uint64_t lost_ns, uint64_t first_epoch)
{
    struct topo *t = calloc(1, sizeof *t);
    if (!t)
        return ST_ENOMEM;
    t->suspect_ns = suspect_ns;
    t->lost_ns = lost_ns;
    t->next_epoch = first_epoch;
    *out = t;
    return ST_OK;
}

static void node_free(struct topo_node *n)
{
    free(n->devices);
    free(n);
}

void topo_free(struct topo *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        node_free(t->v[i]);
    free(t->v);
    free(t);
}

/* Where `name` is, or would go. */
static size_t position(const struct topo *t, const char *name, bool *found)
{
    size_t lo = 0, hi = t->n;
    *found = false;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(t->v[mid]->name, name);
        if (c == 0) {
            *found = true;
            return mid;
        }
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

struct topo_node *topo_node(struct topo *t, const char *name)
{
    bool found;
    size_t i = position(t, name, &found);
    return found ? t->v[i] : NULL;
}

static int insert(struct topo *t, const char *name, struct topo_node **out)
{
    bool found;
    size_t i = position(t, name, &found);
    if (t->n >= TOPO_MAX_NODES)
        return ST_ELIMIT;
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 16;
        struct topo_node **v = realloc(t->v, cap * sizeof(*v));
        if (!v)
            return ST_ENOMEM;
        t->v = v;
        t->cap = cap;
    }
    struct topo_node *n = calloc(1, sizeof *n);
    if (!n)
        return ST_ENOMEM;
    str_copy(n->name, sizeof n->name, name);
    memmove(&t->v[i + 1], &t->v[i], (t->n - i) * sizeof(*t->v));
    t->v[i] = n;
    t->n++;
    *out = n;
    return ST_OK;
}

static int check_devices(const char *node, const struct topo_device *d, size_t n, struct err *e)
{
    if (n > TOPO_MAX_DEVICES)
        return err_set(e, ST_ELIMIT, "node %s offers %zu devices, more than %d", node, n, TOPO_MAX_DEVICES);
    for (size_t i = 0; i < n; i++) {
        const char *colon = strchr(d[i].local_id, ':');
        if (!colon || colon == d[i].local_id || !colon[1] || strpbrk(d[i].local_id, "/* "))
            return err_set(e, ST_EINVAL, "node %s offers a device with the id '%s': want backend:index", node,
                           d[i].local_id);
        for (size_t j = 0; j < i; j++)
            if (!strcmp(d[i].local_id, d[j].local_id))
                return err_set(e, ST_EINVAL, "node %s offers the device %s twice", node, d[i].local_id);
    }
    return ST_OK;
}

int topo_hello(struct topo *t, const char *name, const struct topo_device *devices, size_t ndev,
               uint64_t now_ns, int64_t wall_us, struct topo_node **out, struct err *e)
{
    if (!str_ident_ok(name, 63))
        return err_set(e, ST_EINVAL, "'%s' is no node name", name);
    int rc = check_devices(name, devices, ndev, e);
    if (rc < 0)
        return rc;
    struct topo_device *copy = calloc(ndev ? ndev : 1, sizeof *copy);
    struct topo_node *n = topo_node(t, name);
    if (!copy || (!n && (rc = insert(t, name, &n)) < 0)) {
        free(copy);
        return err_set(e, rc < 0 ? rc : ST_ENOMEM, "no room for node %s", name);
    }
    for (size_t i = 0; i < ndev; i++) {
        copy[i] = devices[i];
        snprintf(copy[i].id, sizeof copy[i].id, "%s/%s", name, devices[i].local_id);
        copy[i].reserved_bytes = copy[i].resident_bytes = copy[i].session_bytes = 0;
        for (size_t j = 0; j < n->ndevices; j++)
            if (!strcmp(n->devices[j].local_id, copy[i].local_id))
                copy[i].reserved_bytes = n->devices[j].reserved_bytes;
    }
    free(n->devices);
    n->devices = copy;
    n->ndevices = ndev;
    if (n->state != TOPO_CONNECTED || !n->epoch)
        n->connected_ns = now_ns;
    n->state = TOPO_CONNECTED;
    n->epoch = t->next_epoch++;
    n->last_heard_ns = now_ns;
    if (!n->first_seen_us)
        n->first_seen_us = wall_us;
    n->last_seen_us = wall_us;
    *out = n;
    return ST_OK;
}

int topo_expect(struct topo *t, const char *name, uint64_t now_ns, int64_t first_seen_us,
                int64_t last_seen_us)
{
    struct topo_node *n = topo_node(t, name);
    if (n)
        return ST_EEXIST;
    int rc = insert(t, name, &n);
    if (rc < 0)
        return rc;
    n->state = TOPO_SUSPECT;
    n->last_heard_ns = now_ns;
    n->first_seen_us = first_seen_us;
    n->last_seen_us = last_seen_us;
    return ST_OK;
}

int topo_heartbeat(struct topo *t, struct topo_node *n, uint64_t epoch, uint64_t now_ns, int64_t wall_us)
{
    (void)t;
    if (epoch != n->epoch || n->state == TOPO_LOST)
        return ST_ECONFLICT;
    n->last_heard_ns = now_ns;
    n->last_seen_us = wall_us;
    n->state = TOPO_CONNECTED;
    return ST_OK;
}

void topo_disconnected(struct topo *t, struct topo_node *n)
{
    (void)t;
    n->user = NULL;
    if (n->state == TOPO_CONNECTED)
        n->state = TOPO_SUSPECT;
}

void topo_forget(struct topo *t, struct topo_node *n)
{
    bool found;
    size_t i = position(t, n->name, &found);
    node_free(n);
    t->n--;
    memmove(&t->v[i], &t->v[i + 1], (t->n - i) * sizeof(*t->v));
}

void topo_tick(struct topo *t, uint64_t now_ns, void (*changed)(struct topo_node *, enum topo_state, void *),
               void *arg)
{
    for (size_t i = 0; i < t->n; i++) {
        struct topo_node *n = t->v[i];
        uint64_t silent = now_ns > n->last_heard_ns ? now_ns - n->last_heard_ns : 0;
        enum topo_state was = n->state;
        if (was != TOPO_LOST && silent >= t->lost_ns)
            n->state = TOPO_LOST;
        else if (was == TOPO_CONNECTED && silent >= t->suspect_ns)
            n->state = TOPO_SUSPECT;
        if (n->state != was && changed)
            changed(n, was, arg);
    }
}

struct topo_device *topo_device(struct topo *t, const char *id, struct topo_node **node)
{
    char name[64];
    const char *slash = strchr(id, '/');
    if (!slash || (size_t)(slash - id) >= sizeof name)
        return NULL;
    memcpy(name, id, (size_t)(slash - id));
    name[slash - id] = 0;
    struct topo_node *n = topo_node(t, name);
    for (size_t i = 0; n && i < n->ndevices; i++)
        if (!strcmp(n->devices[i].local_id, slash + 1)) {
            if (node)
                *node = n;
            return &n->devices[i];
        }
    return NULL;
}

size_t topo_count(const struct topo *t)
{
    return t->n;
}

struct topo_node *topo_at(const struct topo *t, size_t i)
{
    return t->v[i];
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

uint64_t topo_free_bytes(const struct topo_device *d)
{
    uint64_t free = less(d->available_bytes, less(d->reserved_bytes, d->resident_bytes));
    free = less(free, less(d->session_bytes, d->session_used_bytes));
    /* What the agent last said may be older than a load or a session that has begun since. */
    uint64_t ours = less(less(d->memory_bytes, d->reserved_bytes), d->session_bytes);
    return free < ours ? free : ours;
}
