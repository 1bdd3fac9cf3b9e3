/* The registry: which layers have device memory here, and what ends that. */
#include "agent/layers/layers.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/layers_priv.h"
#include "common/base/map.h"
#include "common/base/str.h"

#define MAX_NAME 256
#define MAX_PIECES 65536u
#define MAX_LAYERS 262144u

struct release {
    unsigned waiting; /* layers whose memory is not free yet, plus one while still being set up */
    unsigned layers;
    uint64_t bytes;
    int rc;
    struct err e;
    layers_release_fn fn;
    void *arg;
};

/* A layer can be waited for by several releases. */
struct release_link {
    struct release *r;
    struct release_link *next;
};

static void release_put(struct release *r)
{
    if (--r->waiting)
        return;
    if (r->fn)
        r->fn(r->arg, r->rc, &r->e, r->layers, r->bytes);
    free(r);
}

void layer_unindex(struct layer *l)
{
    if (map_get(l->ls->index, l->key, l->key_len) == l)
        (void)map_del(l->ls->index, l->key, l->key_len);
}

void layer_gone(struct layer *l)
{
    struct release_link *k = l->releases;
    struct tenant *t = l->tenant;
    struct load *load = l->load;
    layer_unindex(l);
    *l->prev = l->next;
    if (l->next)
        l->next->prev = l->prev;
    while (k) {
        struct release_link *next = k->next;
        release_put(k->r);
        free(k);
        k = next;
    }
    free(l->key);
    free(l->job);
    free(l->name);
    free(l->device);
    free(l);
    if (load)
        load_ended(load);
    if (t)
        tenant_unuse(t);
}

static void memory_freed(void *arg, int rc, const struct err *e)
{
    struct layer *l = arg;
    if (rc < 0)
        LOG_W(l->ls->cfg.log, "layers", "free job=%s layer=%s device=%s error=\"%s\"", l->job, l->name,
              l->device, e->text);
    layer_gone(l);
}

void layer_free_memory(struct layer *l)
{
    struct err e;
    l->state = LAYER_RELEASING;
    layer_unindex(l);
    if (l->verifying) {
        l->free_wanted = true;
        return;
    }
    l->free_wanted = false;
    if (!l->allocated) {
        layer_gone(l);
        return;
    }
    l->allocated = false;
    int rc = tenant_release(l->tenant, l->buffer, memory_freed, l, &e);
    if (rc < 0)
        memory_freed(l, rc, &e); /* only a dead worker refuses, and its memory is free */
}

/* ---- worker events ---- */

static void on_lost_event(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct layers *ls = arg;
    ls->cfg.on_lost(ls->cfg.arg);
}

static void on_died(struct tenant *t, const char *why, void *arg)
{
    struct layers *ls = arg;
    unsigned lost = 0;
    for (struct layer *l = ls->head, *next; l; l = next) {
        next = l->next;
        if (l->tenant != t)
            continue;
        l->allocated = false;
        if (l->state == LAYER_ALLOCATING) {
            load_abort(l->load, ST_ECLOSED, why);
        } else if (l->state == LAYER_RESIDENT) {
            lost++;
            layer_gone(l);
        } /* RELEASING: its own completion has run or will */
    }
    if (lost) {
        LOG_E(ls->cfg.log, "layers", "lost layers=%u why=\"%s\"", lost, why);
        event_active(ls->lost, 0, 0);
    }
}

static void on_slot(struct tenant *t, void *arg)
{
    struct layers *ls = arg;
    for (struct load *l = ls->loads, *next; l; l = next) {
        next = load_next(l);
        if (load_layer(l)->tenant == t)
            load_slot_free(l);
    }
}

/* ---- the whole ---- */

int layers_new(struct layers **out, const struct layers_cfg *cfg, struct err *e)
{
    struct layers *ls = calloc(1, sizeof *ls);
    if (!ls)
        return err_set(e, ST_ENOMEM, "no memory for the layers");
    ls->cfg = *cfg;
    ls->lost = event_new(cfg->base, -1, 0, on_lost_event, ls);
    if (!ls->lost || map_new(&ls->index, cfg->rng) < 0) {
        layers_free(ls);
        return err_set(e, ST_ENOMEM, "no memory for the layers");
    }
    ls->user = (struct pool_user){.on_slot = on_slot, .on_died = on_died, .arg = ls};
    pool_join(cfg->pool, &ls->user);
    *out = ls;
    return ST_OK;
}

void layers_close(struct layers *ls)
{
    ls->closing = true;
    for (struct load *l = ls->loads, *next; l; l = next) {
        next = load_next(l);
        load_abort(l, ST_ECLOSED, "the agent stops");
    }
}

void layers_free(struct layers *ls)
{
    if (!ls)
        return;
    while (ls->head) {
        ls->head->tenant = NULL; /* the pool ends the workers */
        layer_gone(ls->head);
    }
    map_free(ls->index);
    if (ls->lost)
        event_free(ls->lost);
    free(ls);
}

void layers_each(const struct layers *ls, void (*fn)(const struct layers_info *i, void *arg), void *arg)
{
    for (const struct layer *l = ls->head; l; l = l->next) {
        if (l->state != LAYER_RESIDENT)
            continue;
        const struct layers_info i = {
            .job = l->job, .layer = l->name, .device = l->device, .bytes = l->bytes, .sha256 = l->sha256};
        fn(&i, arg);
    }
}

uint64_t layers_device_bytes(const struct layers *ls, const char *device)
{
    uint64_t sum = 0;
    for (const struct layer *l = ls->head; l; l = l->next)
        if (l->state != LAYER_RELEASING && strcmp(l->device, device) == 0)
            sum += l->bytes;
    return sum;
}

/* ---- load ---- */

static bool name_ok(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > MAX_NAME)
        return false;
    for (; *s; s++)
        if ((unsigned char)*s < 0x20)
            return false;
    return true;
}

static int check_request(const struct layers *ls, const struct layers_load *r, struct err *e)
{
    if (!name_ok(r->job) || !name_ok(r->layer) || !name_ok(r->device) || !name_ok(r->principal))
        return err_set(e, ST_EINVAL,
                       "job, layer, device and principal must have 1 to %d printable characters", MAX_NAME);
    if (r->npieces == 0 || r->npieces > MAX_PIECES)
        return err_set(e, ST_EINVAL, "layer %s must have 1 to %u pieces, not %zu", r->layer, MAX_PIECES,
                       r->npieces);
    uint64_t sum = 0;
    for (size_t i = 0; i < r->npieces; i++) {
        if (r->pieces[i].file >= r->file_count || r->pieces[i].length > UINT64_MAX - r->pieces[i].offset ||
            r->pieces[i].length > UINT64_MAX - sum)
            return err_set(e, ST_EINVAL, "piece %zu of layer %s lies in no file of the model", i, r->layer);
        sum += r->pieces[i].length;
    }
    if (sum == 0 || sum != r->bytes)
        return err_set(e, ST_EINVAL, "the pieces of layer %s have %" PRIu64 " bytes, not %" PRIu64, r->layer,
                       sum, r->bytes);
    if (r->peer_node[0] && !ls->cfg.peers)
        return err_set(e, ST_ENOTSUP, "this agent does not fetch layers from others");
    return ST_OK;
}

/* Workers see only their own principal's memory: that all together fit is for the agent to see to. */
static int check_room(const struct layers *ls, const struct layers_load *r, struct err *e)
{
    uint64_t cap = ls->cfg.capacity(r->device, ls->cfg.arg), used = layers_device_bytes(ls, r->device);
    if (cap == 0)
        return err_reason(e, ST_ENOENT, "NO_DEVICE", "this node has no device %s", r->device);
    if (used > cap || r->bytes > cap - used)
        return err_reason(e, ST_ERESOURCE, "DEVICE_FULL",
                          "layer %s needs %" PRIu64 " bytes; %s has %" PRIu64 " of %" PRIu64 " left",
                          r->layer, r->bytes, r->device, used > cap ? 0 : cap - used, cap);
    return ST_OK;
}

static char *make_key(const char *job, const char *layer, const char *device, size_t *n)
{
    char *k = NULL;
    int len = asprintf(&k, "%s\n%s\n%s", job, layer, device);
    *n = len < 0 ? 0 : (size_t)len;
    return len < 0 ? NULL : k;
}

static struct layer *find(const struct layers *ls, const char *job, const char *layer, const char *device)
{
    size_t n;
    if (!device[0]) {
        for (struct layer *l = ls->head; l; l = l->next)
            if (l->state == LAYER_RESIDENT && !strcmp(l->job, job) && !strcmp(l->name, layer))
                return l;
        return NULL;
    }
    char *k = make_key(job, layer, device, &n);
    struct layer *l = k ? map_get(ls->index, k, n) : NULL;
    free(k);
    return l;
}

static int layer_new(struct layers *ls, const struct layers_load *r, struct layer **out, struct err *e)
{
    if (map_count(ls->index) >= MAX_LAYERS)
        return err_set(e, ST_ERESOURCE, "this agent already holds %u layers, the most it keeps track of",
                       MAX_LAYERS);
    struct layer *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(e, ST_ENOMEM, "no memory to load layer %s", r->layer);
    l->ls = ls;
    l->key = make_key(r->job, r->layer, r->device, &l->key_len);
    l->job = strdup(r->job);
    l->name = strdup(r->layer);
    l->device = strdup(r->device);
    l->bytes = r->bytes;
    l->serial = ++ls->serial;
    if (!l->key || !l->job || !l->name || !l->device || map_put(ls->index, l->key, l->key_len, l, NULL) < 0) {
        free(l->key);
        free(l->job);
        free(l->name);
        free(l->device);
        free(l);
        return err_set(e, ST_ENOMEM, "no memory to load layer %s", r->layer);
    }
    l->next = ls->head;
    l->prev = &ls->head;
    if (ls->head)
        ls->head->prev = &l->next;
    ls->head = l;
    *out = l;
    return ST_OK;
}

int layers_load(struct load **out, struct layers *ls, const struct layers_load *r,
                const struct layers_load_ops *ops, void *arg, struct err *e)
{
    int rc = check_request(ls, r, e);
    if (rc < 0)
        return rc;
    if (ls->closing)
        return err_set(e, ST_ECLOSED, "the agent is stopping");
    struct layer *old = find(ls, r->job, r->layer, r->device), *l = NULL;
    if (old && old->state != LAYER_RESIDENT)
        return err_reason(e, ST_ECONFLICT, "LAYER_BUSY", "layer %s of job %s is being loaded here already",
                          r->layer, r->job);
    if (old)
        layer_free_memory(old);
    if ((rc = check_room(ls, r, e)) < 0)
        return rc;
    if ((rc = layer_new(ls, r, &l, e)) < 0)
        return rc;
    if ((rc = pool_tenant(ls->cfg.pool, r->principal, &l->tenant, e)) < 0 ||
        (rc = load_start(&l->load, l, r, ops, arg, e)) < 0) {
        layer_gone(l);
        return rc;
    }
    *out = l->load;
    return ST_OK;
}

struct layer *layer_resident(const struct layers *ls, const char *job, const char *layer, const char *device)
{
    struct layer *l = find(ls, job, layer, device);
    return l && l->state == LAYER_RESIDENT ? l : NULL;
}

/* ---- verify ---- */

struct verify {
    struct layer *l;
    layers_verify_fn fn;
    void *arg;
};

static void verified(void *arg, int rc, const struct err *e, const uint8_t *sha)
{
    struct verify *v = arg;
    struct layer *l = v->l;
    uint8_t recorded[32];
    memcpy(recorded, l->sha256, 32);
    l->verifying--;
    bool release = !l->verifying && l->free_wanted;
    if (rc == ST_OK && memcmp(recorded, sha, 32) != 0)
        LOG_E(l->ls->cfg.log, "layers", "changed on the device job=%s layer=%s device=%s", l->job, l->name,
              l->device);
    v->fn(v->arg, rc, e, recorded, sha);
    free(v);
    if (release)
        layer_free_memory(l);
}

int layers_verify(struct layers *ls, const char *job, const char *layer, const char *device,
                  layers_verify_fn fn, void *arg, struct err *e)
{
    struct layer *l = find(ls, job, layer, device);
    if (!l || l->state != LAYER_RESIDENT)
        return err_reason(e, ST_ENOENT, "NOT_RESIDENT", "layer %s of job %s is not resident here", layer,
                          job);
    struct verify *v = calloc(1, sizeof *v);
    if (!v)
        return err_set(e, ST_ENOMEM, "no memory to verify layer %s", layer);
    *v = (struct verify){l, fn, arg};
    int rc = tenant_digest(l->tenant, l->buffer, 0, l->bytes, verified, v, e);
    if (rc < 0)
        free(v);
    else
        l->verifying++;
    return rc;
}

/* ---- release ---- */

static int release_one(struct layer *l, struct release *r)
{
    struct release_link *k = malloc(sizeof *k);
    if (!k)
        return ST_ENOMEM;
    *k = (struct release_link){r, l->releases};
    l->releases = k;
    r->waiting++;
    r->layers++;
    r->bytes += l->bytes;
    if (l->state == LAYER_ALLOCATING)
        load_abort(l->load, ST_ECANCELED, "the layer was released while it was loading");
    else if (l->state == LAYER_RESIDENT)
        layer_free_memory(l);
    return ST_OK;
}

static void release_later(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    release_put(arg);
}

uint64_t layers_serial(const struct layers *ls)
{
    return ls->serial;
}

int layers_release(struct layers *ls, const char *job, const char *layer, const char *device, uint64_t serial,
                   layers_release_fn fn, void *arg, struct err *e)
{
    struct release *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, ST_ENOMEM, "no memory to release layers of job %s", job);
    *r = (struct release){.waiting = 1, .fn = fn, .arg = arg};
    for (struct layer *l = ls->head, *next; l; l = next) {
        next = l->next;
        if (strcmp(l->job, job) == 0 && (!layer[0] || strcmp(l->name, layer) == 0) &&
            (!device[0] || strcmp(l->device, device) == 0) && l->serial <= serial && release_one(l, r) < 0)
            r->rc = err_set(&r->e, ST_ENOMEM, "no memory to release all layers of job %s; ask again", job);
    }
    if (r->layers == 0 && r->rc == ST_OK) {
        free(r);
        return err_reason(e, ST_ENOENT, "NOT_RESIDENT", "this agent holds nothing of job %s%s%s", job,
                          layer[0] ? ", layer " : "", layer);
    }
    /* The last reference is dropped by the loop, so that fn never runs inside this call. */
    struct timeval now = {0};
    if (event_base_once(ls->cfg.base, -1, EV_TIMEOUT, release_later, r, &now) < 0) {
        r->fn = NULL;
        release_put(r);
        return err_set(e, ST_ENOMEM, "no memory to tell when job %s is released", job);
    }
    return ST_OK;
}
