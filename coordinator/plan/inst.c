#include "coordinator/plan/inst.h"

#include <stdlib.h>
#include <string.h>

static double layer_s(const struct cluster_device *d, const struct model_layer *l)
{
    double flops = l->flops / d->compute_flops_per_s, read = l->read_bytes / d->memory_bytes_per_s;
    return d->speed_factor * (d->layer_overhead_s + (flops > read ? flops : read));
}

double inst_stage_s(const struct inst *in, size_t d, size_t k, double own)
{
    const struct cluster_device *cd = &in->c->devices[in->dev[d]];
    if (!cd->has_segment || k == 0)
        return in->open[d] + own;
    if (k > cd->nsegment)
        return INFINITY;
    return in->open[d] + own + cd->speed_factor * cd->segment_s[k - 1];
}

static bool usable(const struct inst *in, const struct cluster_device *d)
{
    if ((in->rules & RULE_DEVICES) && in->r && !request_allows(in->r, d->id))
        return false;
    return !(in->rules & RULE_MEMORY) || d->memory_bytes > d->headroom_bytes;
}

struct inst_hop inst_path(const struct inst *in, uint32_t i, uint32_t j)
{
    uint32_t from = i < in->N ? i : in->c->client_node, to = j < in->N ? j : in->c->client_node;
    struct inst_hop h = {0, INFINITY, true};
    struct cluster_rate r;
    if (!(in->rules & RULE_LINKS) || from == CLUSTER_NO_NODE || to == CLUSTER_NO_NODE)
        return h;
    int rc = cluster_path(in->c, from, to, &r);
    if (rc < 0)
        h.ok = false;
    else if (rc > 0)
        h = (struct inst_hop){r.rtt_s / 2, r.bytes_per_s, true};
    return h;
}

static void *table(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

static int alloc_base(struct inst *in)
{
    size_t D = in->D, L = in->L;
    in->layer = table(L, sizeof *in->layer);
    in->pos = table(L, sizeof *in->pos);
    in->node = table(D, sizeof *in->node);
    in->cap = table(D, sizeof *in->cap);
    in->open = table(D, sizeof *in->open);
    in->t = table(D * L, sizeof *in->t);
    if (in->N <= INST_DENSE_NODES)
        in->hop = table((in->N + 1) * (in->N + 1), sizeof *in->hop);
    in->pin = table(L, sizeof *in->pin);
    in->glued = table(L, sizeof *in->glued);
    return in->layer && in->pos && in->node && in->cap && in->open && in->t &&
                   (in->hop || in->N > INST_DENSE_NODES) && in->pin && in->glued
               ? ST_OK
               : ST_ENOMEM;
}

static void fill_layers(struct inst *in)
{
    in->chain = true;
    for (size_t i = 0; i < in->L; i++) {
        in->layer[i] = in->m->order[i];
        in->pos[in->layer[i]] = (uint32_t)i;
        in->pin[i] = INST_NOBODY;
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        if (i == 0 ? l->ndeps != 0 : (l->ndeps != 1 || l->deps[0] != in->layer[i - 1]))
            in->chain = false;
    }
}

/* Pairs that no link lists are all alike, so only the listed ones are looked up. */
static void fill_hops(struct inst *in)
{
    const struct cluster *c = in->c;
    size_t W = in->N + 1;
    struct inst_hop other = {0, INFINITY, true};
    if (in->rules & RULE_LINKS) {
        other.ok = c->has_default_link;
        if (c->has_default_link)
            other = (struct inst_hop){c->default_link.rtt_s / 2, c->default_link.bytes_per_s, true};
    }
    for (uint32_t i = 0; i < in->N; i++)
        for (uint32_t j = 0; j < in->N; j++)
            in->hop[i * W + j] = i == j ? inst_path(in, i, j) : other;
    for (size_t k = 0; k < c->nlinks; k++)
        in->hop[c->links[k].from * W + c->links[k].to] = inst_path(in, c->links[k].from, c->links[k].to);
    for (uint32_t i = 0; i <= in->N; i++) {
        in->hop[i * W + in->N] = inst_path(in, i, (uint32_t)in->N);
        in->hop[in->N * W + i] = inst_path(in, (uint32_t)in->N, i);
    }
}

static void fill_devices(struct inst *in)
{
    for (size_t d = 0; d < in->D; d++) {
        const struct cluster_device *cd = &in->c->devices[in->dev[d]];
        in->node[d] = cd->node;
        in->cap[d] = cd->memory_bytes - cd->headroom_bytes;
        in->open[d] = cd->speed_factor * cd->stage_overhead_s;
        for (size_t i = 0; i < in->L; i++)
            in->t[d * in->L + i] = layer_s(cd, &in->m->layers[in->layer[i]]);
    }
    if (in->hop)
        fill_hops(in);
}

static void fill_rules(struct inst *in)
{
    const struct request *r = in->r;
    in->max_stages = SIZE_MAX;
    in->max_node = in->max_total = INFINITY;
    if (!r)
        return;
    if (in->rules & RULE_MAX_STAGES && r->max_stages != UINT32_MAX)
        in->max_stages = r->max_stages;
    if (in->rules & RULE_MIN_NODES)
        in->min_nodes = r->min_nodes;
    if (in->rules & RULE_NODE_BYTES)
        in->max_node = r->max_bytes_per_node;
    if (in->rules & RULE_TOTAL_BYTES)
        in->max_total = r->max_total_bytes;
    for (size_t i = 0; (in->rules & RULE_PIN) && i < r->npins; i++) {
        uint32_t d = 0;
        while (d < in->D && in->dev[d] != r->pins[i].device)
            d++;
        in->pin[in->pos[r->pins[i].layer]] = d;
    }
    for (size_t g = 0; (in->rules & RULE_TOGETHER) && g < r->ntogether; g++) {
        uint32_t lo = UINT32_MAX, hi = 0;
        for (size_t i = 0; i < r->together[g].n; i++) {
            uint32_t p = in->pos[r->together[g].layers[i]];
            lo = p < lo ? p : lo;
            hi = p > hi ? p : hi;
        }
        for (uint32_t p = lo; r->together[g].n && p < hi; p++)
            in->glued[p + 1] = true;
    }
}

static void fill_bytes(struct inst *in)
{
    for (size_t a = 0; a < in->L; a++) {
        double sum = 0, act = 0;
        for (size_t b = a + 1; b <= in->L; b++) {
            const struct model_layer *l = &in->m->layers[in->layer[b - 1]];
            sum += l->weight_bytes + l->kv_bytes;
            act = l->activation_bytes > act ? l->activation_bytes : act;
            in->bytes[a * (in->L + 1) + b] = sum + act;
        }
    }
}

static void fill_runs(struct inst *in, size_t d)
{
    const struct cluster_device *cd = &in->c->devices[in->dev[d]];
    for (size_t a = 0; a < in->L; a++) {
        double *row = &in->run[(d * in->L + a) * (in->L + 1)];
        double own = 0;
        size_t k = 0;
        for (size_t b = 0; b <= in->L; b++)
            row[b] = INFINITY;
        if (a > 0 && in->glued[a])
            continue;
        for (size_t b = a + 1; b <= in->L; b++) {
            if (in->pin[b - 1] != INST_NOBODY && in->pin[b - 1] != d)
                break;
            if (((in->rules & RULE_MEMORY) && inst_bytes(in, a, b) > in->cap[d]) ||
                inst_bytes(in, a, b) > in->max_node)
                break;
            if (cd->has_segment && in->m->layers[in->layer[b - 1]].type == LAYER_BLOCK)
                k++;
            else
                own += in->t[d * in->L + b - 1];
            if (b == in->L || !in->glued[b])
                row[b] = inst_stage_s(in, d, k, own);
            if (row[b] < INFINITY)
                in->last[d * in->L + a] = (uint32_t)b;
        }
    }
}

/* The same as fill_runs without a table. Bytes only grow with the run, so its end only moves forward. */
static void fill_lean(struct inst *in, size_t d)
{
    const struct cluster_device *cd = &in->c->devices[in->dev[d]];
    double *own = &in->own[d * (in->L + 1)];
    size_t b = 0, barrier = 0;
    double room = in->rules & RULE_MEMORY ? fmin(in->cap[d], in->max_node) : in->max_node;
    for (size_t i = 0; i < in->L; i++)
        own[i + 1] =
            own[i] +
            (cd->has_segment && in->m->layers[in->layer[i]].type == LAYER_BLOCK ? 0 : in->t[d * in->L + i]);
    for (size_t a = 0; a < in->L; a++) {
        for (barrier = barrier > a ? barrier : a;
             barrier < in->L && (in->pin[barrier] == INST_NOBODY || in->pin[barrier] == d);)
            barrier++;
        b = b > a ? b : a;
        while (b < barrier && inst_bytes(in, a, b + 1) <= room)
            b++;
        size_t end = b;
        while (end > a && ((end < in->L && in->glued[end]) ||
                           (cd->has_segment && in->blocks[end] - in->blocks[a] > cd->nsegment)))
            end--;
        in->last[d * in->L + a] = end > a && !(a > 0 && in->glued[a]) ? (uint32_t)end : 0;
    }
}

/* Do node or total bytes depend on how several stages are chosen together? */
static bool is_coupled(const struct inst *in)
{
    if (in->max_node < INFINITY)
        for (size_t d = 0; d < in->D; d++)
            for (size_t e = 0; e < d; e++)
                if (in->node[d] == in->node[e])
                    return true;
    if (in->max_total == INFINITY)
        return false;
    double worst = 0; /* every layer a stage of its own */
    for (size_t i = 0; i < in->L; i++)
        worst += inst_bytes(in, i, i + 1);
    return worst > in->max_total;
}

static enum layer_type m_type(const struct inst *in, size_t i)
{
    return in->m->layers[in->layer[i]].type;
}

static int build(struct inst *in, const uint32_t *only, size_t n_only, size_t memory_limit)
{
    size_t n = only ? n_only : in->c->ndevices;
    in->L = in->m->nlayers;
    in->N = in->c->nnodes;
    in->dev = table(n, sizeof *in->dev);
    if (!in->dev)
        return ST_ENOMEM;
    for (size_t i = 0; i < n; i++) {
        uint32_t d = only ? only[i] : (uint32_t)i;
        if (usable(in, &in->c->devices[d]))
            in->dev[in->D++] = d;
    }
    size_t L = in->L, D = in->D;
    in->lean = D > INST_EXACT_DEVICES;
    double each = in->lean ? 24 : 8 * (double)(L + 1),
           nodes = in->N <= INST_DENSE_NODES ? (double)in->N + 1 : 0;
    if ((double)(D + 1) * (double)L * each + (double)L * (double)(L + 1) * 8 + nodes * nodes * 24 >
        (double)memory_limit)
        return ST_ELIMIT;
    if (alloc_base(in) < 0)
        return ST_ENOMEM;
    fill_layers(in);
    fill_devices(in);
    fill_rules(in);
    if (!in->chain)
        return ST_OK;
    in->bytes = table(L * (L + 1), sizeof *in->bytes);
    in->last = table(D * L, sizeof *in->last);
    if (in->lean) {
        in->own = table(D * (L + 1), sizeof *in->own);
        in->blocks = table(L + 1, sizeof *in->blocks);
    } else {
        in->run = table(D * L * (L + 1), sizeof *in->run);
    }
    if (!in->bytes || !in->last || (in->lean ? !in->own || !in->blocks : !in->run))
        return ST_ENOMEM;
    fill_bytes(in);
    for (size_t i = 0; in->lean && i < L; i++)
        in->blocks[i + 1] = in->blocks[i] + (m_type(in, i) == LAYER_BLOCK);
    for (size_t d = 0; d < D; d++)
        in->lean ? fill_lean(in, d) : fill_runs(in, d);
    in->coupled = is_coupled(in);
    return ST_OK;
}

int inst_new(struct inst **out, const struct cluster *c, const struct model *m, const struct request *r,
             unsigned rules, const uint32_t *only, size_t n_only, size_t memory_limit)
{
    struct inst *in = calloc(1, sizeof *in);
    if (!in)
        return ST_ENOMEM;
    in->c = c;
    in->m = m;
    in->r = r;
    in->rules = rules;
    int rc = build(in, only, n_only, memory_limit);
    if (rc < 0) {
        inst_free(in);
        return rc;
    }
    *out = in;
    return ST_OK;
}

void inst_free(struct inst *in)
{
    if (!in)
        return;
    free(in->dev);
    free(in->layer);
    free(in->pos);
    free(in->node);
    free(in->cap);
    free(in->t);
    free(in->open);
    free(in->hop);
    free(in->pin);
    free(in->glued);
    free(in->bytes);
    free(in->run);
    free(in->own);
    free(in->blocks);
    free(in->last);
    free(in);
}
