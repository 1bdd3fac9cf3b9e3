/* A plan with replicas, written out: every replica of a stage has placements of its own. */
#include <stdlib.h>

#include "common/base/str.h"
#include "coordinator/plan/replicate.h"
#include "coordinator/plan/report.h"

struct writer {
    const struct replicated *r;
    const struct inst *in;
    struct plan *p;
    struct replicated_stage before, at;
    size_t placements;
};

static const char *id_of(const struct inst *in, size_t d)
{
    return in->c->devices[in->dev[d]].id;
}
static const char *node_of(const struct inst *in, const struct replica *x)
{
    uint32_t n = x ? in->node[x->dev] : in->c->client_node;
    return n == CLUSTER_NO_NODE ? "client" : in->c->nodes[n];
}

static int slowest(struct writer *w, double s, const struct replica *from, const struct replica *to,
                   bool link)
{
    struct plan_bottleneck *b = &w->p->bottleneck;
    if (b->device && s <= w->p->bottleneck_s)
        return ST_OK;
    w->p->bottleneck_s = s;
    free(b->device);
    free(b->from);
    free(b->to);
    *b = (struct plan_bottleneck){.link = link};
    b->device = plan_text("%s", id_of(w->in, from ? from->dev : to->dev));
    if (link) {
        b->from = plan_text("%s", node_of(w->in, from));
        b->to = plan_text("%s", node_of(w->in, to));
    }
    return b->device && (!link || (b->from && b->to)) ? ST_OK : ST_ENOMEM;
}

/* All hops between two groups (n = 0: the client) at layer l; *most = the largest in seconds. */
static int hops(struct writer *w, const struct replicated_stage *x, const struct replicated_stage *y,
                size_t l, double *most)
{
    int rc = ST_OK;
    *most = 0;
    for (size_t i = 0; i < (x ? x->n : 1); i++)
        for (size_t k = 0; k < (y ? y->n : 1) && rc == ST_OK; k++) {
            const struct replica *from = x ? &x->v[i] : NULL, *to = y ? &y->v[k] : NULL;
            double s, wire;
            if (!replicate_hop(w->in, from, to, l, &s, &wire))
                return ST_EINTERNAL;
            *most = s > *most ? s : *most;
            rc = slowest(w, wire, from, to, true);
        }
    return rc;
}

static int placements(struct writer *w, const struct replica *x, size_t a, size_t b, double in_s)
{
    const struct cluster_device *cd = &w->in->c->devices[w->in->dev[x->dev]];
    size_t blocks = 0;
    for (size_t i = a; i < b; i++)
        blocks += w->in->m->layers[w->in->layer[i]].type == LAYER_BLOCK;
    for (size_t i = a; i < b; i++) {
        const struct model_layer *l = &w->in->m->layers[w->in->layer[i]];
        struct plan_placement *q = &w->p->placements[w->p->n_placements++];
        q->layer = plan_text("%s", l->id);
        q->device = plan_text("%s", id_of(w->in, x->dev));
        q->latency_s = cd->has_segment && l->type == LAYER_BLOCK
                           ? cd->speed_factor * cd->segment_s[blocks - 1] / (double)blocks
                           : w->in->t[x->dev * w->in->L + i];
        q->memory_bytes = l->weight_bytes + x->share * l->kv_bytes;
        q->transfer_s = i == a ? in_s : 0;
        if (!q->layer || !q->device)
            return ST_ENOMEM;
    }
    return ST_OK;
}

static int chosen(struct writer *w, const struct replica *x, size_t s, double time)
{
    const struct inst *in = w->in;
    struct plan_device *q = &w->p->devices[in->dev[x->dev]];
    const struct plan_stage *st = &w->p->stages[s];
    char held[16];
    fmt_bytes(held, (uint64_t)fmin(x->bytes, 9e18));
    q->code = PLAN_CODE_CHOSEN;
    q->memory_ratio = x->bytes / in->cap[x->dev];
    q->busy_ratio = time; /* of the bottleneck, once that is known */
    w->p->max_memory_ratio = fmax(w->p->max_memory_ratio, q->memory_ratio);
    q->reason = st->n_replicas
                    ? plan_text("stage %zu of %zu, %zu layers, %.1f%% of its work, %s", s + 1, w->r->n,
                                st->n_layers, 100 * x->share, held)
                    : plan_text("stage %zu of %zu, %zu layers, %s", s + 1, w->r->n, st->n_layers, held);
    return q->reason ? ST_OK : ST_ENOMEM;
}

static int stage(struct writer *w, size_t s)
{
    const struct inst *in = w->in;
    struct plan_stage *st = &w->p->stages[s];
    struct replicated_stage *x = &w->at;
    size_t a = w->r->start[s], b = w->r->start[s + 1];
    if (!replicate_stage(w->r, s, x))
        return ST_EINTERNAL;
    int rc = hops(w, s ? &w->before : NULL, x, a, &x->in);
    st->device = plan_text("%s", id_of(in, x->v[0].dev));
    st->layers = calloc(b - a, sizeof *st->layers);
    st->replicas = x->n > 1 ? calloc(x->n, sizeof *st->replicas) : NULL;
    if (rc < 0 || !st->device || !st->layers || (x->n > 1 && !st->replicas))
        return rc < 0 ? rc : ST_ENOMEM;
    for (size_t i = a; i < b; i++)
        if (!(st->layers[st->n_layers++] = plan_text("%s", in->m->layers[in->layer[i]].id)))
            return ST_ENOMEM;
    st->compute_s = x->time;
    st->transfer_in_s = x->in;
    w->p->latency_s += x->in;
    for (size_t i = 0; i < x->n && rc == ST_OK; i++) {
        if (x->n > 1) {
            struct plan_replica *r = &st->replicas[st->n_replicas++];
            *r = (struct plan_replica){plan_text("%s", id_of(in, x->v[i].dev)), x->v[i].share,
                                       x->v[i].compute};
            if (!r->device)
                return ST_ENOMEM;
        }
        st->memory_bytes += x->v[i].bytes;
        w->p->latency_s += x->v[i].share * x->v[i].compute;
    }
    rc = slowest(w, x->time, &x->v[0], NULL, false);
    for (size_t i = 0; i < x->n && rc == ST_OK; i++)
        if ((rc = chosen(w, &x->v[i], s, x->time)) == ST_OK)
            rc = placements(w, &x->v[i], a, b, x->in);
    return rc;
}

int report_replicas(const struct replicated *r, struct plan *p)
{
    const struct inst *in = r->in;
    struct writer w = {.r = r, .in = in, .p = p};
    size_t most = 0;
    double back = 0;
    for (size_t s = 0; s < r->n; s++)
        for (size_t d = 0; d < in->D; d++)
            most += r->stage[d] == s ? r->start[s + 1] - r->start[s] : 0;
    w.before.v = malloc((in->D + 1) * sizeof *w.before.v);
    w.at.v = malloc((in->D + 1) * sizeof *w.at.v);
    p->stages = calloc(r->n, sizeof *p->stages);
    p->placements = calloc(most, sizeof *p->placements);
    p->devices = calloc(in->c->ndevices, sizeof *p->devices);
    p->n_devices = p->devices ? in->c->ndevices : 0;
    int rc = w.before.v && w.at.v && p->stages && p->placements && p->devices ? ST_OK : ST_ENOMEM;
    for (size_t s = 0; s < r->n && rc == ST_OK; s++) {
        p->n_stages++;
        rc = stage(&w, s);
        struct replica *swap = w.before.v;
        w.before = w.at;
        w.at.v = swap;
    }
    if (rc == ST_OK)
        rc = hops(&w, &w.before, NULL, in->L, &back);
    p->latency_s += back;
    for (size_t i = 0; i < p->n_devices && rc == ST_OK; i++) {
        struct plan_device *q = &p->devices[i];
        q->id = plan_text("%s", in->c->devices[i].id);
        if (!q->reason)
            rc = report_unused(in, (uint32_t)i, p, q);
        else
            q->busy_ratio = p->bottleneck_s > 0 ? q->busy_ratio / p->bottleneck_s : 0;
        if (!q->id)
            rc = ST_ENOMEM;
    }
    free(w.before.v);
    free(w.at.v);
    return rc;
}
