#include "tests/unit/plan/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t test_rand(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static unsigned below(uint64_t *s, unsigned n)
{
    return (unsigned)(test_rand(s) % n);
}

static void must(int rc, const struct err *e)
{
    if (rc == ST_OK)
        return;
    fprintf(stderr, "the generator made a bad file: %s\n", e->text);
    abort();
}

static void gen_cluster(struct problem *p, uint64_t *s, unsigned devices, unsigned flags)
{
    struct buf b = {0};
    struct err e = {0};
    unsigned nodes = 1 + below(s, devices);
    buf_printf(&b, "{\"schema\":\"strata.cluster.v1\",\"devices\":[");
    for (unsigned d = 0; d < devices; d++) {
        unsigned mem = (flags & GEN_TIGHT) ? 20 + below(s, 60) : 60 + below(s, 200);
        buf_printf(&b, "%s{\"id\":\"n%u/cpu:%u\",\"node\":\"n%u\",\"memory_bytes\":%u,\"headroom_bytes\":%u,",
                   d ? "," : "", d % nodes, d, d % nodes, mem, below(s, 10));
        buf_printf(&b, "\"compute_flops_per_s\":%u,\"memory_bytes_per_s\":%u,\"layer_overhead_s\":%g,",
                   1 + below(s, 9), 1 + below(s, 9), below(s, 3) / 10.0);
        if (below(s, 4) == 0) {
            buf_printf(&b, "\"segment_s\":[");
            for (unsigned k = 0, n = 1 + below(s, 6); k < n; k++)
                buf_printf(&b, "%s%g", k ? "," : "", 1 + below(s, 100) / 7.0);
            buf_printf(&b, "],");
        }
        buf_printf(&b, "\"stage_overhead_s\":%g,\"speed_factor\":%g}", below(s, 4) / 10.0,
                   1 + below(s, 3) / 4.0);
    }
    buf_printf(&b, "],\"links\":[");
    unsigned n = 0;
    for (unsigned i = 0; i < nodes; i++)
        for (unsigned j = 0; j < nodes; j++)
            if (i != j && below(s, 3) == 0)
                buf_printf(&b, "%s{\"from\":\"n%u\",\"to\":\"n%u\",\"bytes_per_s\":%u,\"rtt_s\":%g}",
                           n++ ? "," : "", i, j, 1 + below(s, 20), below(s, 10) / 5.0);
    buf_printf(&b, "]");
    if (below(s, 3))
        buf_printf(&b, ",\"default_link\":{\"bytes_per_s\":%u,\"rtt_s\":%g}", 1 + below(s, 20),
                   below(s, 10) / 5.0);
    if (below(s, 2))
        buf_printf(&b, ",\"same_node_link\":{\"bytes_per_s\":%u,\"rtt_s\":0.01}", 5 + below(s, 50));
    if (below(s, 2))
        buf_printf(&b, ",\"client_node\":\"n%u\"", below(s, nodes));
    buf_printf(&b, "}");
    must(cluster_read_json(buf_cstr(&b), b.len, "cluster", &p->c, &e), &e);
    buf_fini(&b);
}

static void gen_model(struct problem *p, uint64_t *s, unsigned layers, unsigned flags)
{
    struct buf b = {0};
    struct err e = {0};
    buf_printf(&b, "{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"layers\":[");
    for (unsigned i = 0; i < layers; i++) {
        buf_printf(&b, "%s{\"id\":\"l%u\",\"type\":\"%s\",\"weight_bytes\":%u,\"flops\":%u,", i ? "," : "", i,
                   below(s, 3) ? "block" : "mlp", 1 + below(s, 30), 1 + below(s, 30));
        if (below(s, 2))
            buf_printf(&b, "\"activation_bytes\":%u,\"kv_bytes\":%u,", below(s, 12), below(s, 12));
        if (flags & GEN_DAG) {
            unsigned n = 0;
            buf_printf(&b, "\"dependencies\":[");
            for (unsigned j = 0; j < i; j++)
                if (below(s, 3) == 0)
                    buf_printf(&b, "%s\"l%u\"", n++ ? "," : "", j);
            buf_printf(&b, "],");
        }
        buf_printf(&b, "\"input_bytes\":%u,\"output_bytes\":%u}", below(s, 20), below(s, 20));
    }
    buf_printf(&b, "]}");
    must(model_read_json(buf_cstr(&b), b.len, "model", &p->m, &e), &e);
    buf_fini(&b);
}

static void gen_request(struct problem *p, uint64_t *s, unsigned devices, unsigned layers)
{
    struct buf b = {0};
    struct err e = {0};
    unsigned what = below(s, 256);
    buf_printf(&b, "{\"schema\":\"strata.request.v1\"");
    if (what & 1)
        buf_printf(&b, ",\"deny\":[\"*cpu:%u\"]", below(s, devices));
    if ((what & 6) == 6)
        buf_printf(&b, ",\"pin\":{\"l%u\":\"%s\"}", below(s, layers), p->c->devices[below(s, devices)].id);
    if ((what & 24) == 24 && layers > 1) {
        unsigned i = below(s, layers - 1);
        buf_printf(&b, ",\"together\":[[\"l%u\",\"l%u\"]]", i, i + 1 + below(s, layers - i - 1));
    }
    if (what & 32)
        buf_printf(&b, ",\"max_stages\":%u", 1 + below(s, devices));
    if ((what & 68) == 68)
        buf_printf(&b, ",\"min_nodes\":%u", 1 + below(s, 3));
    if ((what & 130) == 130)
        buf_printf(&b, ",\"max_bytes_per_node\":%u", 40 + below(s, 100));
    if ((what & 17) == 17)
        buf_printf(&b, ",\"max_total_bytes\":%u", 40 + below(s, 160));
    buf_printf(&b, "}");
    must(request_read_json(buf_cstr(&b), b.len, "request", p->m, p->c, &p->r, &e), &e);
    p->has_request = true;
    buf_fini(&b);
}

void problem_random(struct problem *p, uint64_t seed, unsigned max_devices, unsigned max_layers,
                    unsigned flags)
{
    uint64_t s = seed * 7919 + 17;
    unsigned devices = 1 + below(&s, max_devices), layers = 1 + below(&s, max_layers);
    memset(p, 0, sizeof *p);
    gen_cluster(p, &s, devices, flags);
    gen_model(p, &s, layers, flags);
    if (flags & GEN_REQUEST)
        gen_request(p, &s, devices, layers);
}

void problem_fini(struct problem *p)
{
    if (p->has_request)
        request_fini(&p->r);
    cluster_free(p->c);
    model_free(p->m);
}

#define MAX_PLANS 400000u
struct oracle {
    const struct problem *p;
    unsigned on[8];
    const uint32_t *home; /* of oracle_fewest, or NULL */
    double (*seen)[4];
    size_t n, cap;
};

static double hop_s(const struct cluster *c, uint32_t from, uint32_t to, double bytes, double *wire)
{
    struct cluster_rate r;
    if (from == CLUSTER_NO_NODE || to == CLUSTER_NO_NODE)
        return 0;
    int rc = cluster_path(c, from, to, &r);
    if (rc < 0)
        return INFINITY;
    if (rc == 0)
        return 0;
    *wire = fmax(*wire, bytes / r.bytes_per_s);
    return r.rtt_s / 2 + bytes / r.bytes_per_s;
}

static double stage_s(const struct oracle *o, unsigned d)
{
    const struct cluster_device *cd = &o->p->c->devices[d];
    double t = cd->stage_overhead_s;
    size_t k = 0;
    for (size_t i = 0; i < o->p->m->nlayers; i++) {
        const struct model_layer *l = &o->p->m->layers[i];
        if (o->on[i] != d)
            continue;
        if (l->type == LAYER_BLOCK && cd->has_segment)
            k++;
        else
            t += cd->layer_overhead_s +
                 fmax(l->flops / cd->compute_flops_per_s, l->read_bytes / cd->memory_bytes_per_s);
    }
    if (k > cd->nsegment)
        return INFINITY;
    return cd->speed_factor * (t + (k ? cd->segment_s[k - 1] : 0));
}

/* Layer ids on the way from device to device must never lead back: a stage order exists. */
static bool ordered(const struct oracle *o)
{
    const struct model *m = o->p->m;
    bool to[8][8] = {{false}};
    for (size_t i = 0; i < m->nlayers; i++)
        for (size_t k = 0; k < m->layers[i].ndeps; k++)
            if (o->on[m->layers[i].deps[k]] != o->on[i])
                to[o->on[m->layers[i].deps[k]]][o->on[i]] = true;
    for (unsigned k = 0; k < 8; k++)
        for (unsigned i = 0; i < 8; i++)
            for (unsigned j = 0; j < 8; j++)
                to[i][j] = to[i][j] || (to[i][k] && to[k][j]);
    for (unsigned i = 0; i < 8; i++)
        if (to[i][i])
            return false;
    return true;
}

static bool request_holds(const struct oracle *o, const double *bytes, const bool *used)
{
    const struct request *r = &o->p->r;
    double total = 0;
    unsigned stages = 0, nodes = 0;
    if (!o->p->has_request)
        return true;
    for (uint32_t n = 0; n < o->p->c->nnodes; n++) {
        double sum = 0;
        bool any = false;
        for (size_t d = 0; d < o->p->c->ndevices; d++)
            if (used[d] && o->p->c->devices[d].node == n) {
                sum += bytes[d];
                any = true;
            }
        nodes += any;
        total += sum;
        if (sum > r->max_bytes_per_node)
            return false;
    }
    for (size_t d = 0; d < o->p->c->ndevices; d++) {
        stages += used[d];
        if (used[d] && !request_allows(r, o->p->c->devices[d].id))
            return false;
    }
    for (size_t i = 0; i < r->npins; i++)
        if (o->on[r->pins[i].layer] != r->pins[i].device)
            return false;
    for (size_t g = 0; g < r->ntogether; g++)
        for (size_t i = 1; i < r->together[g].n; i++)
            if (o->on[r->together[g].layers[i]] != o->on[r->together[g].layers[0]])
                return false;
    return total <= r->max_total_bytes && stages <= r->max_stages && nodes >= r->min_nodes;
}

/* Largest incoming hop of stage d (or of the client for d = n), and the wire times. */
static double incoming(const struct oracle *o, unsigned d, double *wire)
{
    const struct cluster *c = o->p->c;
    const struct model *m = o->p->m;
    double worst = 0;
    for (unsigned r = 0; r <= c->ndevices; r++) {
        double bytes = 0;
        bool any = false;
        for (size_t u = 0; u < m->nlayers; u++) {
            bool hit = false, needed = false;
            for (size_t v = 0; v < m->nlayers; v++)
                for (size_t k = 0; k < m->layers[v].ndeps; k++)
                    if (m->layers[v].deps[k] == u) {
                        needed = true;
                        hit = hit || o->on[v] == d;
                    }
            if (d == c->ndevices) {
                hit = r < c->ndevices && o->on[u] == r && !needed;
                bytes += hit ? m->layers[u].output_bytes : 0;
            } else if (r == c->ndevices) {
                hit = o->on[u] == d && m->layers[u].ndeps == 0;
                bytes += hit ? m->layers[u].input_bytes : 0;
            } else {
                hit = hit && r != d && o->on[u] == r;
                bytes += hit ? m->layers[u].output_bytes : 0;
            }
            any = any || hit;
        }
        if (any)
            worst = fmax(worst, hop_s(c, r < c->ndevices ? c->devices[r].node : c->client_node,
                                      d < c->ndevices ? c->devices[d].node : c->client_node, bytes, wire));
    }
    return worst;
}

static void assess(struct oracle *o)
{
    const struct cluster *c = o->p->c;
    double bytes[8] = {0}, act[8] = {0}, latency = 0, slow = 0, ratio = 0;
    bool used[8] = {false};
    if (!ordered(o))
        return;
    for (size_t i = 0; i < o->p->m->nlayers; i++) {
        const struct model_layer *l = &o->p->m->layers[i];
        used[o->on[i]] = true;
        bytes[o->on[i]] += l->weight_bytes + l->kv_bytes;
        act[o->on[i]] = fmax(act[o->on[i]], l->activation_bytes);
    }
    for (unsigned d = 0; d < c->ndevices; d++) {
        double room = c->devices[d].memory_bytes - c->devices[d].headroom_bytes;
        if (!used[d])
            continue;
        bytes[d] += act[d];
        if (room <= 0 || bytes[d] > room)
            return;
        double s = stage_s(o, d);
        ratio = fmax(ratio, bytes[d] / room);
        slow = fmax(slow, s);
        latency += s + incoming(o, d, &slow);
    }
    latency += incoming(o, (unsigned)c->ndevices, &slow);
    if (latency == INFINITY || !request_holds(o, bytes, used))
        return;
    if (o->n == o->cap &&
        (o->n == MAX_PLANS || !(o->seen = realloc(o->seen, (o->cap = o->cap * 2 + 256) * sizeof *o->seen))))
        abort();
    o->seen[o->n][0] = latency;
    o->seen[o->n][1] = slow;
    o->seen[o->n][3] = 0;
    for (size_t i = 0; o->home && i < o->p->m->nlayers; i++)
        o->seen[o->n][3] += o->on[i] == o->home[i] ? 0 : o->p->m->layers[i].weight_bytes;
    o->seen[o->n++][2] = ratio;
}

static void every(struct oracle *o, size_t i)
{
    if (i == o->p->m->nlayers) {
        assess(o);
        return;
    }
    for (unsigned d = 0; d < o->p->c->ndevices; d++) {
        bool back = false; /* a chain that returns to a device is no plan: spare the effort */
        for (size_t k = 0; o->p->m->chain && k + 1 < i; k++)
            back = back || (o->on[k] == d && o->on[i - 1] != d);
        o->on[i] = d;
        if (!back)
            every(o, i + 1);
    }
}

void oracle_run(const struct problem *p, struct truth *t)
{
    struct oracle o = {.p = p};
    *t = (struct truth){false, INFINITY, INFINITY, INFINITY, INFINITY};
    every(&o, 0);
    for (size_t i = 0; i < o.n; i++) {
        t->feasible = true;
        t->latency = fmin(t->latency, o.seen[i][0]);
        t->bottleneck = fmin(t->bottleneck, o.seen[i][1]);
        t->ratio = fmin(t->ratio, o.seen[i][2]);
    }
    for (size_t i = 0; i < o.n; i++)
        t->balanced = fmin(t->balanced, fmax(fmax(o.seen[i][0] / t->latency, o.seen[i][1] / t->bottleneck),
                                             o.seen[i][2] / t->ratio));
    free(o.seen);
}

double oracle_fewest(const struct problem *p, const struct truth *t, enum plan_goal g, double limit,
                     const uint32_t *home)
{
    struct oracle o = {.p = p, .home = home};
    double best = INFINITY;
    every(&o, 0);
    for (size_t i = 0; i < o.n; i++) {
        const double *v = o.seen[i];
        double x = g == PLAN_LATENCY      ? v[0]
                   : g == PLAN_THROUGHPUT ? v[1]
                   : g == PLAN_MEMORY     ? v[2]
                                      : fmax(fmax(v[0] / t->latency, v[1] / t->bottleneck), v[2] / t->ratio);
        if (x <= limit)
            best = fmin(best, v[3]);
    }
    free(o.seen);
    return best;
}
