/* What a finished assignment costs, for chains and DAGs alike. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

void eval_fini(struct eval *ev)
{
    free(ev->dev);
    free(ev->stage_of);
    free(ev->compute);
    free(ev->in);
    free(ev->bytes);
    memset(ev, 0, sizeof *ev);
}

struct work {
    const struct inst *in;
    const uint32_t *on;
    size_t n;
    uint32_t *first;     /* D: stage of a device in order of first layer, or INST_NOBODY */
    uint32_t *dev;       /* n */
    uint32_t *mark;      /* L */
    double *hop;         /* n × n, −1 = no hop */
    double *give, *take; /* n: bytes from and to the client, −1 = none */
    bool *used;          /* L: some layer depends on it */
};

static void work_fini(struct work *w)
{
    free(w->first);
    free(w->dev);
    free(w->mark);
    free(w->hop);
    free(w->give);
    free(w->take);
    free(w->used);
}

static int collect(struct work *w)
{
    const struct inst *in = w->in;
    w->first = malloc((in->D + 1) * sizeof *w->first);
    w->dev = malloc((in->L + 1) * sizeof *w->dev);
    w->mark = calloc(in->L + 1, sizeof *w->mark);
    w->used = calloc(in->L + 1, sizeof *w->used);
    if (!w->first || !w->dev || !w->mark || !w->used)
        return ST_ENOMEM;
    for (size_t d = 0; d < in->D; d++)
        w->first[d] = INST_NOBODY;
    for (size_t i = 0; i < in->L; i++)
        if (w->first[w->on[i]] == INST_NOBODY) {
            w->dev[w->n] = w->on[i];
            w->first[w->on[i]] = (uint32_t)w->n++;
        }
    w->hop = malloc((w->n * w->n + 1) * sizeof *w->hop);
    w->give = malloc((w->n + 1) * sizeof *w->give);
    w->take = malloc((w->n + 1) * sizeof *w->take);
    if (!w->hop || !w->give || !w->take)
        return ST_ENOMEM;
    for (size_t i = 0; i < w->n * w->n; i++)
        w->hop[i] = -1;
    for (size_t i = 0; i < w->n; i++)
        w->give[i] = w->take[i] = -1;
    return ST_OK;
}

static void add(double *at, double bytes)
{
    *at = (*at < 0 ? 0 : *at) + bytes;
}

static void hops(struct work *w)
{
    const struct inst *in = w->in;
    for (size_t s = 0; s < w->n; s++) /* each layer of another stage counts once for s: mark holds s + 1 */
        for (size_t i = 0; i < in->L; i++) {
            const struct model_layer *l = &in->m->layers[in->layer[i]];
            if (w->on[i] != w->dev[s])
                continue;
            if (l->ndeps == 0)
                add(&w->give[s], l->input_bytes);
            for (size_t k = 0; k < l->ndeps; k++) {
                uint32_t u = in->pos[l->deps[k]];
                w->used[u] = true;
                uint32_t r = w->first[w->on[u]];
                if (r == s || w->mark[u] == s + 1)
                    continue;
                w->mark[u] = (uint32_t)s + 1;
                add(&w->hop[r * w->n + s], in->m->layers[l->deps[k]].output_bytes);
            }
        }
    for (size_t i = 0; i < in->L; i++)
        if (!w->used[i])
            add(&w->take[w->first[w->on[i]]], in->m->layers[in->layer[i]].output_bytes);
}

/* Stages in an order that respects their hops; ST_EINFEASIBLE when they form a circle. */
static int order(const struct work *w, uint32_t *out)
{
    size_t done = 0;
    bool *placed = calloc(w->n + 1, sizeof *placed);
    if (!placed)
        return ST_ENOMEM;
    while (done < w->n) {
        size_t s = 0;
        for (; s < w->n; s++) {
            bool ready = !placed[s];
            for (size_t r = 0; ready && r < w->n; r++)
                ready = placed[r] || w->hop[r * w->n + s] < 0;
            if (ready)
                break;
        }
        if (s == w->n)
            break;
        placed[s] = true;
        out[done++] = (uint32_t)s;
    }
    free(placed);
    return done == w->n ? ST_OK : ST_EINFEASIBLE;
}

static void slowest(struct eval *ev, double s, bool link, size_t from, size_t to)
{
    if (s > ev->bottleneck || (ev->from == SIZE_MAX && s >= ev->bottleneck)) {
        ev->bottleneck = s;
        ev->link = link;
        ev->from = from;
        ev->to = to;
    }
}

/* Seconds of a hop; sets *ok to false when there is no link. Also keeps the bottleneck. */
static double cross(const struct inst *in, struct eval *ev, size_t from, size_t to, double bytes, bool *ok)
{
    const struct inst_hop h = inst_hop(in, from, to);
    if (!h.ok) {
        *ok = false;
        return 0;
    }
    slowest(ev, bytes / h.rate, true, from, to);
    return h.half_rtt + bytes / h.rate;
}

static void stage_own(const struct work *w, uint32_t d, double *compute, double *bytes)
{
    const struct inst *in = w->in;
    bool table = in->c->devices[in->dev[d]].has_segment;
    double own = 0, sum = 0, act = 0;
    size_t k = 0;
    for (size_t i = 0; i < in->L; i++) {
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        if (w->on[i] != d)
            continue;
        if (table && l->type == LAYER_BLOCK)
            k++;
        else
            own += in->t[d * in->L + i];
        sum += l->weight_bytes + l->kv_bytes;
        act = l->activation_bytes > act ? l->activation_bytes : act;
    }
    *compute = inst_stage_s(in, d, k, own);
    *bytes = sum + act;
}

static bool rules_hold(const struct work *w, const struct eval *ev)
{
    const struct inst *in = w->in;
    const struct request *r = in->r;
    size_t nodes = 0;
    double total = 0;
    for (size_t s = 0; s < ev->n; s++) {
        bool seen = false;
        double on_node = 0;
        total += ev->bytes[s];
        for (size_t k = 0; k < ev->n; k++)
            if (in->node[ev->dev[k]] == in->node[ev->dev[s]]) {
                seen = seen || k < s;
                on_node += ev->bytes[k];
            }
        nodes += !seen;
        if (on_node > in->max_node)
            return false;
    }
    if (ev->n > in->max_stages || nodes < in->min_nodes || total > in->max_total)
        return false;
    for (size_t i = 0; i < in->L; i++)
        if (in->pin[i] != INST_NOBODY && in->pin[i] != w->on[i])
            return false;
    for (size_t g = 0; r && (in->rules & RULE_TOGETHER) && g < r->ntogether; g++)
        for (size_t k = 1; k < r->together[g].n; k++)
            if (w->on[in->pos[r->together[g].layers[k]]] != w->on[in->pos[r->together[g].layers[0]]])
                return false;
    return true;
}

static bool figures(const struct work *w, struct eval *ev, const uint32_t *seq)
{
    const struct inst *in = w->in;
    bool ok = true;
    double back = 0;
    ev->from = SIZE_MAX;
    for (size_t k = 0; k < ev->n; k++) {
        uint32_t s = seq[k], d = w->dev[s];
        ev->dev[k] = d;
        stage_own(w, d, &ev->compute[k], &ev->bytes[k]);
        slowest(ev, ev->compute[k], false, d, d);
        double in_s = w->give[s] < 0 ? 0 : cross(in, ev, in->D, d, w->give[s], &ok);
        for (size_t r = 0; r < ev->n; r++)
            if (w->hop[r * w->n + s] >= 0) {
                double x = cross(in, ev, w->dev[r], d, w->hop[r * w->n + s], &ok);
                in_s = x > in_s ? x : in_s;
            }
        if (w->take[s] >= 0) {
            double x = cross(in, ev, d, in->D, w->take[s], &ok);
            back = x > back ? x : back;
        }
        ev->in[k] = in_s;
        ev->latency += ev->compute[k] + in_s;
        double ratio = ev->bytes[k] / in->cap[d];
        ev->ratio = ratio > ev->ratio ? ratio : ev->ratio;
        if (ev->compute[k] == INFINITY || ((in->rules & RULE_MEMORY) && ev->bytes[k] > in->cap[d]))
            ok = false;
    }
    ev->latency += back;
    return ok;
}

int eval_run(const struct inst *in, const uint32_t *on, struct eval *out)
{
    struct work w = {.in = in, .on = on};
    struct eval ev = {0};
    uint32_t *seq = NULL;
    for (size_t i = 0; i < in->L; i++)
        if (on[i] >= in->D)
            return ST_EINFEASIBLE;
    int rc = collect(&w);
    if (rc < 0)
        goto done;
    hops(&w);
    ev.n = w.n;
    ev.dev = malloc((w.n + 1) * sizeof *ev.dev);
    ev.stage_of = malloc((in->L + 1) * sizeof *ev.stage_of);
    ev.compute = calloc(w.n + 1, sizeof *ev.compute);
    ev.in = calloc(w.n + 1, sizeof *ev.in);
    ev.bytes = calloc(w.n + 1, sizeof *ev.bytes);
    seq = malloc((w.n + 1) * sizeof *seq);
    rc = ST_ENOMEM;
    if (!ev.dev || !ev.stage_of || !ev.compute || !ev.in || !ev.bytes || !seq)
        goto done;
    if ((rc = order(&w, seq)) < 0)
        goto done;
    rc = ST_EINFEASIBLE;
    if (!figures(&w, &ev, seq) || !rules_hold(&w, &ev))
        goto done;
    for (size_t i = 0; i < in->L; i++)
        for (size_t k = 0; k < ev.n; k++)
            if (ev.dev[k] == on[i])
                ev.stage_of[i] = (uint32_t)k;
    rc = ST_OK;
done:
    free(seq);
    work_fini(&w);
    if (rc < 0)
        eval_fini(&ev);
    else
        *out = ev;
    return rc;
}
