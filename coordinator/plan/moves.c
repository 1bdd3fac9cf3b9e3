#include "coordinator/plan/moves.h"

#include <stdlib.h>
#include <string.h>

static size_t usable_at(const struct inst *in, uint32_t device)
{
    size_t d = 0;
    while (d < in->D && in->dev[d] != device)
        d++;
    return d;
}

static void hold(struct holding *h, const struct inst *in, uint32_t device, const char *layer)
{
    uint32_t l = model_find(in->m, layer);
    if (device == UINT32_MAX || l == MODEL_NONE)
        return;
    size_t d = usable_at(in, device), i = in->pos[l];
    if (d < in->D)
        h->has[d * h->L + i] = 1;
    else
        h->unusable[i] = device;
}

int holding_open(struct holding *h, const struct inst *in, const struct plan *from)
{
    *h = (struct holding){.D = in->D, .L = in->L};
    h->has = calloc(in->D * in->L + 1, 1);
    h->unusable = malloc((in->L + 1) * sizeof *h->unusable);
    if (!h->has || !h->unusable)
        return ST_ENOMEM;
    for (size_t i = 0; i < in->L; i++)
        h->unusable[i] = INST_NOBODY;
    for (uint32_t d = 0; d < in->c->ndevices; d++)
        for (size_t k = 0; k < in->c->devices[d].nresident; k++)
            hold(h, in, d, in->c->devices[d].resident_layers[k]);
    for (size_t s = 0; s < from->n_stages; s++)
        for (size_t k = 0; k < from->stages[s].n_layers; k++)
            hold(h, in, cluster_find_device(in->c, from->stages[s].device), from->stages[s].layers[k]);
    return ST_OK;
}

void holding_fini(struct holding *h)
{
    free(h->has);
    free(h->unusable);
}

static double weight(const struct inst *in, size_t i)
{
    return in->m->layers[in->layer[i]].weight_bytes;
}

double holding_lost(const struct holding *h, const struct inst *in)
{
    double sum = 0;
    for (size_t i = 0; i < in->L; i++) {
        bool held = h->unusable[i] != INST_NOBODY;
        for (size_t d = 0; d < in->D && !held; d++)
            held = holding_has(h, d, i);
        sum += held ? 0 : weight(in, i);
    }
    return sum;
}

bool holding_old(const struct holding *h, const struct inst *in, const struct plan *from, uint32_t *on)
{
    (void)h;
    for (size_t i = 0; i < in->L; i++)
        on[i] = INST_NOBODY;
    for (size_t s = 0; s < from->n_stages; s++) {
        uint32_t device = cluster_find_device(in->c, from->stages[s].device);
        size_t d = device == UINT32_MAX ? in->D : usable_at(in, device);
        for (size_t k = 0; k < from->stages[s].n_layers; k++) {
            uint32_t l = model_find(in->m, from->stages[s].layers[k]);
            if (l != MODEL_NONE && d < in->D)
                on[in->pos[l]] = (uint32_t)d;
        }
    }
    for (size_t i = 0; i < in->L; i++)
        if (on[i] == INST_NOBODY)
            return false;
    return true;
}

/* Seconds for layer i from a node to device d; INFINITY without a link. */
static double fetch_s(const struct inst *in, uint32_t node, size_t d, size_t i)
{
    struct cluster_rate r;
    int rc = cluster_path(in->c, node, in->node[d], &r);
    return rc < 0 ? INFINITY : rc == 0 ? 0 : r.rtt_s / 2 + weight(in, i) / r.bytes_per_s;
}

/* The source that layer i comes from soonest: a device of the cluster, or INST_NOBODY = its origin. */
static uint32_t source(const struct holding *h, const struct inst *in, size_t i, size_t to, double *seconds)
{
    uint32_t from = h->unusable[i];
    double best = from == INST_NOBODY ? INFINITY : fetch_s(in, in->c->devices[from].node, to, i);
    for (size_t d = 0; d < in->D; d++) {
        double s = holding_has(h, d, i) ? fetch_s(in, in->node[d], to, i) : INFINITY;
        if (s < best || (s == best && s < INFINITY && in->dev[d] < from)) {
            best = s;
            from = in->dev[d];
        }
    }
    *seconds = best < INFINITY ? best : 0;
    return best < INFINITY ? from : INST_NOBODY;
}

int moves_seconds(const struct holding *h, const struct inst *in, const uint32_t *on, double *seconds)
{
    double *node = calloc(in->N + 1, sizeof *node), s;
    *seconds = 0;
    if (!node)
        return ST_ENOMEM;
    for (size_t i = 0; i < in->L; i++)
        if (!holding_has(h, on[i], i)) {
            source(h, in, i, on[i], &s);
            node[in->node[on[i]]] += s;
            *seconds = fmax(*seconds, node[in->node[on[i]]]);
        }
    free(node);
    return ST_OK;
}

/* Bytes on device d when it holds what has[] says. */
static double held_bytes(const struct inst *in, const unsigned char *has, size_t d)
{
    double sum = 0, act = 0;
    for (size_t i = 0; i < in->L; i++) {
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        if (!has[d * in->L + i])
            continue;
        sum += l->weight_bytes + l->kv_bytes;
        act = fmax(act, l->activation_bytes);
    }
    return sum + act;
}

struct order {
    const struct inst *in;
    const struct holding *h;
    const uint32_t *on;
    unsigned char *has; /* copies at this point */
    uint32_t *from;     /* of each layer that moves */
    bool *todo;
};

/* A copy that is neither wanted nor read by a move to come takes no room. */
static void drop(struct order *o, size_t i)
{
    for (size_t d = 0; d < o->in->D; d++)
        if (o->on[i] != d && !(o->todo[i] && o->from[i] == o->in->dev[d]))
            o->has[d * o->in->L + i] = 0;
}

static int emit(struct order *o, size_t i, struct plan *p)
{
    const struct inst *in = o->in;
    struct plan_move *v = &p->moves[p->n_moves++];
    v->layer = plan_text("%s", in->m->layers[in->layer[i]].id);
    v->to = plan_text("%s", in->c->devices[in->dev[o->on[i]]].id);
    v->bytes = weight(in, i);
    p->moved_bytes += v->bytes;
    if (o->from[i] != INST_NOBODY && !(v->from = plan_text("%s", in->c->devices[o->from[i]].id)))
        return ST_ENOMEM;
    o->todo[i] = false;
    o->has[o->on[i] * in->L + i] = 1;
    drop(o, i);
    return v->layer && v->to ? ST_OK : ST_ENOMEM;
}

static int write_all(struct order *o, size_t left, struct plan *p)
{
    const struct inst *in = o->in;
    while (left) {
        bool any = false;
        for (size_t i = 0; i < in->L; i++) {
            if (!o->todo[i])
                continue;
            o->has[o->on[i] * in->L + i] = 1;
            bool fits = held_bytes(in, o->has, o->on[i]) <= in->cap[o->on[i]];
            o->has[o->on[i] * in->L + i] = 0;
            if (!fits)
                continue;
            if (emit(o, i, p) < 0)
                return ST_ENOMEM;
            any = true;
            left--;
        }
        for (size_t i = 0; i < in->L && !any; i++) /* full devices wait for each other: one layer gives way */
            if (o->todo[i] && o->from[i] != INST_NOBODY && usable_at(in, o->from[i]) < in->D) {
                o->from[i] = INST_NOBODY;
                drop(o, i);
                any = true;
            }
        if (!any)
            return ST_EINTERNAL;
    }
    return ST_OK;
}

static int warn(struct plan *p, const char *what, const char *name)
{
    char **v = realloc(p->warnings, (p->n_warnings + 1) * sizeof *v);
    if (!v)
        return ST_ENOMEM;
    p->warnings = v;
    v[p->n_warnings] = plan_text("the old plan's %s %s does not exist here; ignored", what, name);
    return v[p->n_warnings++] ? ST_OK : ST_ENOMEM;
}

static int warnings(const struct inst *in, const struct plan *from, struct plan *p)
{
    for (size_t s = 0; s < from->n_stages; s++) {
        if (cluster_find_device(in->c, from->stages[s].device) == UINT32_MAX &&
            warn(p, "device", from->stages[s].device) < 0)
            return ST_ENOMEM;
        for (size_t k = 0; k < from->stages[s].n_layers; k++)
            if (model_find(in->m, from->stages[s].layers[k]) == MODEL_NONE &&
                warn(p, "layer", from->stages[s].layers[k]) < 0)
                return ST_ENOMEM;
    }
    return ST_OK;
}

int moves_write(const struct holding *h, const struct inst *in, const struct plan *from, const uint32_t *on,
                struct plan *p)
{
    struct order o = {.in = in, .h = h, .on = on};
    size_t n = 0;
    double s;
    o.has = malloc(in->D * in->L + 1);
    o.from = malloc((in->L + 1) * sizeof *o.from);
    o.todo = calloc(in->L + 1, sizeof *o.todo);
    p->moves = calloc(in->L + 1, sizeof *p->moves);
    int rc = o.has && o.from && o.todo && p->moves ? warnings(in, from, p) : ST_ENOMEM;
    if (rc == ST_OK) {
        memcpy(o.has, h->has, in->D * in->L);
        for (size_t i = 0; i < in->L; i++)
            if (!holding_has(h, on[i], i)) {
                o.todo[i] = true;
                o.from[i] = source(h, in, i, on[i], &s);
                n++;
            }
        for (size_t i = 0; i < in->L; i++)
            drop(&o, i);
        rc = write_all(&o, n, p);
    }
    free(o.has);
    free(o.from);
    free(o.todo);
    return rc;
}
