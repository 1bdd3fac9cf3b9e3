#include "coordinator/plan/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"

char *plan_text(const char *fmt, ...)
{
    va_list ap;
    char *s = NULL;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : s;
}

void plan_free(struct plan *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_stages; i++) {
        for (size_t k = 0; k < p->stages[i].n_layers; k++)
            free(p->stages[i].layers[k]);
        free(p->stages[i].layers);
        for (size_t k = 0; k < p->stages[i].n_replicas; k++)
            free(p->stages[i].replicas[k].device);
        free(p->stages[i].replicas);
        free(p->stages[i].device);
    }
    for (size_t i = 0; i < p->n_placements; i++) {
        free(p->placements[i].layer);
        free(p->placements[i].device);
    }
    for (size_t i = 0; i < p->n_devices; i++) {
        free(p->devices[i].id);
        free(p->devices[i].reason);
    }
    for (size_t i = 0; i < p->n_moves; i++) {
        free(p->moves[i].layer);
        free(p->moves[i].from);
        free(p->moves[i].to);
    }
    for (size_t i = 0; i < p->n_warnings; i++)
        free(p->warnings[i]);
    free(p->stages);
    free(p->placements);
    free(p->devices);
    free(p->moves);
    free(p->warnings);
    free(p->solver);
    free(p->stopped);
    free(p->bottleneck.device);
    free(p->bottleneck.from);
    free(p->bottleneck.to);
    free(p->shortfall.where);
    free(p->shortfall.hint);
    free(p->inputs);
    free(p);
}

int report_common(const struct inst *in, const struct cluster *c, const struct model *m, struct plan *p)
{
    (void)in;
    for (size_t d = 0; d < c->ndevices; d++)
        for (size_t i = 0; i < c->devices[d].nresident; i++) {
            if (model_find(m, c->devices[d].resident_layers[i]) != MODEL_NONE)
                continue;
            char **v = realloc(p->warnings, (p->n_warnings + 1) * sizeof *v);
            if (!v)
                return ST_ENOMEM;
            p->warnings = v;
            v[p->n_warnings] = plan_text("device %s: resident layer %s is not in the model; ignored",
                                         c->devices[d].id, c->devices[d].resident_layers[i]);
            if (!v[p->n_warnings++])
                return ST_ENOMEM;
        }
    return ST_OK;
}

static const char *id_of(const struct inst *in, size_t d)
{
    return in->c->devices[in->dev[d]].id;
}
static const struct model_layer *layer_of(const struct inst *in, size_t i)
{
    return &in->m->layers[in->layer[i]];
}

static int fill_stages(const struct inst *in, const struct eval *ev, struct plan *p)
{
    p->stages = calloc(ev->n, sizeof *p->stages);
    if (!p->stages)
        return ST_ENOMEM;
    p->n_stages = ev->n;
    for (size_t k = 0; k < ev->n; k++) {
        struct plan_stage *s = &p->stages[k];
        s->device = plan_text("%s", id_of(in, ev->dev[k]));
        s->compute_s = ev->compute[k];
        s->transfer_in_s = ev->in[k];
        s->memory_bytes = ev->bytes[k];
        s->layers = calloc(in->L, sizeof *s->layers);
        if (!s->device || !s->layers)
            return ST_ENOMEM;
        for (size_t i = 0; i < in->L; i++)
            if (ev->stage_of[i] == k && !(s->layers[s->n_layers++] = plan_text("%s", layer_of(in, i)->id)))
                return ST_ENOMEM;
    }
    return ST_OK;
}

/* A layer's own time, or an equal share of its segment's. */
static double layer_share_s(const struct inst *in, const struct eval *ev, size_t i)
{
    size_t d = ev->dev[ev->stage_of[i]], k = 0;
    const struct cluster_device *cd = &in->c->devices[in->dev[d]];
    if (!cd->has_segment || layer_of(in, i)->type != LAYER_BLOCK)
        return in->t[d * in->L + i];
    for (size_t j = 0; j < in->L; j++)
        k += ev->stage_of[j] == ev->stage_of[i] && layer_of(in, j)->type == LAYER_BLOCK;
    return cd->speed_factor * cd->segment_s[k - 1] / (double)k;
}

static int fill_placements(const struct inst *in, const struct eval *ev, struct plan *p)
{
    size_t n = 0;
    p->placements = calloc(in->L, sizeof *p->placements);
    if (!p->placements)
        return ST_ENOMEM;
    p->n_placements = in->L;
    for (size_t k = 0; k < ev->n; k++) {
        bool first = true;
        for (size_t i = 0; i < in->L; i++) {
            if (ev->stage_of[i] != k)
                continue;
            struct plan_placement *q = &p->placements[n++];
            q->layer = plan_text("%s", layer_of(in, i)->id);
            q->device = plan_text("%s", id_of(in, ev->dev[k]));
            q->latency_s = layer_share_s(in, ev, i);
            q->memory_bytes = layer_of(in, i)->weight_bytes + layer_of(in, i)->kv_bytes;
            q->transfer_s = first ? ev->in[k] : 0;
            first = false;
            if (!q->layer || !q->device)
                return ST_ENOMEM;
        }
    }
    return ST_OK;
}

static double layer_need(const struct model_layer *l)
{
    return l->weight_bytes + l->kv_bytes + l->activation_bytes;
}

static bool reachable(const struct inst *in, size_t d)
{
    if (inst_hop(in, in->D, d).ok && inst_hop(in, d, in->D).ok)
        return true;
    for (size_t e = 0; e < in->D; e++)
        if (e != d && (inst_hop(in, e, d).ok || inst_hop(in, d, e).ok))
            return true;
    return false;
}

static bool has_run(const struct inst *in, size_t d)
{
    if (!in->chain)
        return true;
    for (size_t i = 0; i < in->L; i++)
        if (inst_last(in, d, i))
            return true;
    return false;
}

static void unused_reason(const struct inst *in, uint32_t index, const struct plan *p,
                          struct plan_device *out)
{
    const struct cluster_device *cd = &in->c->devices[index];
    double cap = cd->memory_bytes - cd->headroom_bytes, least = INFINITY;
    char need[16], have[16];
    size_t d = 0;
    for (size_t i = 0; i < in->L; i++)
        least = fmin(least, layer_need(layer_of(in, i)));
    while (d < in->D && in->dev[d] != index)
        d++;
    if (in->r && !request_allows(in->r, cd->id)) {
        out->code = PLAN_CODE_NOT_ALLOWED;
        out->reason = plan_text("the request's allow or deny list keeps it out");
    } else if (d == in->D || least > cap) {
        fmt_bytes(need, (uint64_t)fmin(least, 9e18));
        fmt_bytes(have, (uint64_t)fmin(fmax(cap, 0), 9e18));
        out->code = PLAN_CODE_NO_MEMORY;
        out->reason = plan_text("%s are usable, the smallest layer needs %s", have, need);
    } else if (!reachable(in, d)) {
        out->code = PLAN_CODE_UNREACHABLE;
        out->reason = plan_text("no link joins it to the client or to another usable device");
    } else if (!has_run(in, d)) {
        out->code = PLAN_CODE_CONSTRAINT;
        out->reason = plan_text("no run of layers on it meets the request, its memory and its table");
    } else {
        out->code = p->optimal ? PLAN_CODE_NOT_BETTER : PLAN_CODE_NOT_FOUND;
        out->reason = plan_text(p->optimal ? "no plan with it has a better %s goal than this one"
                                           : "the search found no plan with it that has a better %s goal",
                                plan_goal_name(p->goal));
    }
}

int report_unused(const struct inst *in, uint32_t index, const struct plan *p, struct plan_device *out)
{
    unused_reason(in, index, p, out);
    return out->reason ? ST_OK : ST_ENOMEM;
}

static int fill_devices(const struct inst *in, const struct eval *ev, struct plan *p)
{
    p->devices = calloc(in->c->ndevices, sizeof *p->devices);
    if (!p->devices)
        return ST_ENOMEM;
    p->n_devices = in->c->ndevices;
    for (size_t i = 0; i < p->n_devices; i++) {
        struct plan_device *q = &p->devices[i];
        size_t k = 0;
        q->id = plan_text("%s", in->c->devices[i].id);
        while (k < ev->n && in->dev[ev->dev[k]] != i)
            k++;
        if (k == ev->n) {
            unused_reason(in, (uint32_t)i, p, q);
        } else {
            char held[16];
            fmt_bytes(held, (uint64_t)fmin(ev->bytes[k], 9e18));
            q->code = PLAN_CODE_CHOSEN;
            q->memory_ratio = ev->bytes[k] / in->cap[ev->dev[k]];
            q->busy_ratio = ev->bottleneck > 0 ? ev->compute[k] / ev->bottleneck : 0;
            q->reason =
                plan_text("stage %zu of %zu, %zu layers, %s", k + 1, ev->n, p->stages[k].n_layers, held);
        }
        if (!q->id || !q->reason)
            return ST_ENOMEM;
    }
    return ST_OK;
}

static const char *node_of(const struct inst *in, size_t d)
{
    uint32_t n = d < in->D ? in->node[d] : in->c->client_node;
    return n == CLUSTER_NO_NODE ? "client" : in->c->nodes[n];
}

static int fill_bottleneck(const struct inst *in, const struct eval *ev, struct plan *p)
{
    struct plan_bottleneck *b = &p->bottleneck;
    b->link = ev->link;
    b->device =
        plan_text("%s", id_of(in, ev->from < in->D ? ev->from : ev->to)); /* the client is no device */
    if (b->link) {
        b->from = plan_text("%s", node_of(in, ev->from));
        b->to = plan_text("%s", node_of(in, ev->to));
    }
    return b->device && (!b->link || (b->from && b->to)) ? ST_OK : ST_ENOMEM;
}

int report_fill(const struct inst *in, const uint32_t *on, struct plan *p)
{
    struct eval ev;
    int rc = eval_run(in, on, &ev);
    if (rc < 0)
        return rc;
    p->latency_s = ev.latency;
    p->bottleneck_s = ev.bottleneck;
    p->max_memory_ratio = ev.ratio;
    rc = fill_stages(in, &ev, p);
    if (rc == ST_OK)
        rc = fill_placements(in, &ev, p);
    if (rc == ST_OK)
        rc = fill_devices(in, &ev, p);
    if (rc == ST_OK)
        rc = fill_bottleneck(in, &ev, p);
    eval_fini(&ev);
    return rc;
}
