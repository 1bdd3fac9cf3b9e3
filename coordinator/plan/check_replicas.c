/*
 * Recomputes a plan with replicated stages from the cluster, the model and the request alone; like check.c it
 * shares no code with the solvers. A stage without replicas is one with a single one.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/check_priv.h"

#define TOLERANCE 1e-9

struct part { /* a device of a stage */
    size_t stage, index;
    uint32_t device;
    double share, compute, bytes;
};
struct look {
    const struct cluster *c;
    const struct model *m;
    const struct request *r;
    const struct plan *p;
    struct plan_check_report *rep;
    struct err *e;
    int rc;
    uint32_t *stage; /* of each layer */
    struct part *part;
    size_t n;
    double *time; /* of each stage */
    double latency, bottleneck, ratio;
};

static void wrong(struct look *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void wrong(struct look *k, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (check_problem(k->rep, k->e, fmt, ap) < 0)
        k->rc = ST_ENOMEM;
    va_end(ap);
}
static void figure(struct look *k, const char *what, size_t i, double given, double right)
{
    if (!check_same(given, right))
        wrong(k, "%s (%zu) is %.17g, should be %.17g", what, i, given, right);
}

static void add_part(struct look *k, size_t s, size_t index, const char *device)
{
    struct part *v = &k->part[k->n];
    *v = (struct part){.stage = s, .index = index, .device = cluster_find_device(k->c, device)};
    if (v->device == UINT32_MAX)
        wrong(k, "stages[%zu]: no device %s in the cluster", s, device);
    for (size_t i = 0; i < k->n; i++)
        if (k->part[i].device == v->device)
            wrong(k, "stages[%zu]: device %s has two places in the plan", s, device);
    if (k->r && !request_allows(k->r, device))
        wrong(k, "stages[%zu]: the request does not allow %s", s, device);
    k->n++;
}

static bool resolve(struct look *k)
{
    const struct plan *p = k->p;
    for (size_t i = 0; i < k->m->nlayers; i++)
        k->stage[i] = MODEL_NONE;
    for (size_t s = 0; s < p->n_stages; s++) {
        const struct plan_stage *st = &p->stages[s];
        for (size_t i = 0; i < st->n_replicas; i++)
            add_part(k, s, i, st->replicas[i].device);
        if (!st->n_replicas)
            add_part(k, s, 0, st->device);
        for (size_t i = 0; i < st->n_layers; i++) {
            uint32_t l = model_find(k->m, st->layers[i]);
            if (l == MODEL_NONE || strcmp(k->m->layers[l].id, st->layers[i]) || k->stage[l] != MODEL_NONE)
                wrong(k, "stages[%zu].layers: %s is unknown or there twice", s, st->layers[i]);
            else
                k->stage[l] = (uint32_t)s;
        }
    }
    for (size_t i = 0; i < k->m->nlayers; i++)
        if (k->stage[i] == MODEL_NONE)
            wrong(k, "layer %s is in no stage", k->m->layers[i].id);
    return k->rep->n == 0 && k->rc == ST_OK;
}

static double compute_of(struct look *k, const struct part *v)
{
    const struct cluster_device *d = &k->c->devices[v->device];
    size_t blocks = d->has_segment ? check_blocks(k->m, k->stage, v->stage) : 0;
    double s = d->speed_factor * d->stage_overhead_s;
    if (blocks > d->nsegment)
        wrong(k, "stages[%zu]: %zu blocks are more than the segment table of %s holds", v->stage, blocks,
              d->id);
    else if (blocks)
        s += d->speed_factor * d->segment_s[blocks - 1];
    for (size_t i = 0; i < k->m->nlayers; i++)
        if (k->stage[i] == v->stage && !(d->has_segment && k->m->layers[i].type == LAYER_BLOCK))
            s += check_layer_time(d, &k->m->layers[i]);
    return s;
}

static double bytes_of(const struct look *k, const struct part *v)
{
    double weights = 0, cache = 0, scratch = 0;
    for (size_t i = 0; i < k->m->nlayers; i++)
        if (k->stage[i] == v->stage) {
            weights += k->m->layers[i].weight_bytes;
            cache += k->m->layers[i].kv_bytes;
            scratch = fmax(scratch, k->m->layers[i].activation_bytes);
        }
    return weights + scratch + v->share * cache;
}

static void stages(struct look *k)
{
    const struct plan *p = k->p;
    for (size_t s = 0; s < p->n_stages; s++) {
        double sum = 0, held = 0;
        size_t n = 0;
        for (size_t i = 0; i < k->n; i++)
            if (k->part[i].stage == s) {
                k->part[i].compute = compute_of(k, &k->part[i]);
                sum += 1 / fmax(k->part[i].compute, 1e-300);
                n++;
            }
        k->time[s] = 1 / sum;
        for (size_t i = 0; i < k->n; i++) {
            struct part *v = &k->part[i];
            if (v->stage != s)
                continue;
            v->share = n == 1 ? 1 : 1 / fmax(v->compute, 1e-300) / sum;
            k->time[s] = n == 1 ? v->compute : k->time[s];
            v->bytes = bytes_of(k, v);
            held += v->bytes;
            k->latency += v->share * v->compute;
            const struct cluster_device *d = &k->c->devices[v->device];
            double room = d->memory_bytes - d->headroom_bytes;
            if (room <= 0 || v->bytes > room * (1 + 1e-12))
                wrong(k, "stages[%zu]: %s would hold %.0f bytes, it has %.0f", s, d->id, v->bytes,
                      fmax(room, 0));
            else
                k->ratio = fmax(k->ratio, v->bytes / room);
            if (p->stages[s].n_replicas) {
                figure(k, "replicas.share", s, p->stages[s].replicas[v->index].share, v->share);
                figure(k, "replicas.compute_s", s, p->stages[s].replicas[v->index].compute_s, v->compute);
            }
        }
        k->bottleneck = fmax(k->bottleneck, k->time[s]);
        figure(k, "stages.compute_s", s, p->stages[s].compute_s, k->time[s]);
        figure(k, "stages.memory_bytes", s, p->stages[s].memory_bytes, held);
    }
}

/* Seconds of one hop; part NULL = the client. */
static double hop(struct look *k, const struct part *from, const struct part *to, double bytes)
{
    struct cluster_rate r;
    uint32_t x = from ? k->c->devices[from->device].node : k->c->client_node,
             y = to ? k->c->devices[to->device].node : k->c->client_node;
    if (x == CLUSTER_NO_NODE || y == CLUSTER_NO_NODE)
        return 0;
    int rc = cluster_path(k->c, x, y, &r);
    if (rc < 0)
        wrong(k, "no link from node %s to node %s", k->c->nodes[x], k->c->nodes[y]);
    if (rc <= 0)
        return 0;
    bytes *= (from ? from->share : 1) * (to ? to->share : 1);
    k->bottleneck = fmax(k->bottleneck, bytes / r.bytes_per_s);
    return r.rtt_s / 2 + bytes / r.bytes_per_s;
}

/* Bytes that stage s takes from r, each layer once; −1 = nothing. */
static double carried(const struct look *k, size_t r, size_t s)
{
    double sum = -1;
    for (size_t u = 0; u < k->m->nlayers; u++) {
        bool needed = false;
        for (size_t i = 0; k->stage[u] == r && i < k->m->nlayers && !needed; i++)
            for (size_t d = 0; k->stage[i] == s && d < k->m->layers[i].ndeps; d++)
                needed = needed || k->m->layers[i].deps[d] == u;
        if (needed)
            sum = fmax(sum, 0) + k->m->layers[u].output_bytes;
    }
    return sum;
}

static void hops(struct look *k)
{
    double back = 0, out = -1;
    for (size_t s = 0; s < k->p->n_stages; s++) {
        double in = -1, most = 0;
        for (size_t i = 0; i < k->m->nlayers; i++)
            if (k->stage[i] == s && !k->m->layers[i].ndeps)
                in = fmax(in, 0) + k->m->layers[i].input_bytes;
        for (size_t b = 0; b < k->n; b++) {
            if (k->part[b].stage != s)
                continue;
            if (in >= 0)
                most = fmax(most, hop(k, NULL, &k->part[b], in));
            for (size_t r = 0; r < k->p->n_stages; r++) {
                double bytes = r == s ? -1 : carried(k, r, s);
                if (bytes >= 0 && r > s)
                    wrong(k, "stages[%zu] depends on the later stages[%zu]", s, r);
                for (size_t a = 0; bytes >= 0 && a < k->n; a++)
                    if (k->part[a].stage == r)
                        most = fmax(most, hop(k, &k->part[a], &k->part[b], bytes));
            }
        }
        k->latency += most;
        figure(k, "stages.transfer_in_s", s, k->p->stages[s].transfer_in_s, most);
        out = -1;
        for (size_t u = 0; u < k->m->nlayers; u++) {
            bool needed = k->stage[u] != s;
            for (size_t i = 0; i < k->m->nlayers && !needed; i++)
                for (size_t d = 0; d < k->m->layers[i].ndeps; d++)
                    needed = needed || k->m->layers[i].deps[d] == u;
            if (!needed)
                out = fmax(out, 0) + k->m->layers[u].output_bytes;
        }
        for (size_t a = 0; out >= 0 && a < k->n; a++)
            if (k->part[a].stage == s)
                back = fmax(back, hop(k, &k->part[a], NULL, out));
    }
    k->latency += back;
}

static void listed(struct look *k)
{
    const struct plan *p = k->p;
    size_t want = 0;
    for (size_t i = 0; i < k->n; i++)
        want += p->stages[k->part[i].stage].n_layers;
    if (p->n_placements != want)
        wrong(k, "placements: %zu, the stages and their replicas have %zu", p->n_placements, want);
    for (size_t i = 0; i < p->n_placements; i++) {
        const struct plan_placement *q = &p->placements[i];
        uint32_t l = model_find(k->m, q->layer), d = cluster_find_device(k->c, q->device);
        const struct part *v = NULL;
        for (size_t a = 0; a < k->n; a++)
            if (k->part[a].device == d && l != MODEL_NONE && k->part[a].stage == k->stage[l])
                v = &k->part[a];
        for (size_t t = 0; v && t < i; t++)
            if (!strcmp(p->placements[t].layer, q->layer) && !strcmp(p->placements[t].device, q->device))
                wrong(k, "placements[%zu]: layer %s on %s is there twice", i, q->layer, q->device);
        if (!v) {
            wrong(k, "placements[%zu]: layer %s is not on %s", i, q->layer, q->device);
            continue;
        }
        const struct cluster_device *cd = &k->c->devices[d];
        size_t blocks = check_blocks(k->m, k->stage, v->stage);
        bool table = cd->has_segment && k->m->layers[l].type == LAYER_BLOCK && blocks <= cd->nsegment;
        figure(k, "placements.latency_s", i, q->latency_s,
               table ? cd->speed_factor * cd->segment_s[blocks - 1] / (double)blocks
                     : check_layer_time(cd, &k->m->layers[l]));
        figure(k, "placements.memory_bytes", i, q->memory_bytes,
               k->m->layers[l].weight_bytes + v->share * k->m->layers[l].kv_bytes);
    }
    if (p->n_devices != k->c->ndevices)
        wrong(k, "devices: %zu, the cluster has %zu", p->n_devices, k->c->ndevices);
    for (size_t i = 0; i < p->n_devices; i++) {
        uint32_t d = cluster_find_device(k->c, p->devices[i].id);
        const struct part *v = NULL;
        for (size_t a = 0; a < k->n; a++)
            v = k->part[a].device == d ? &k->part[a] : v;
        if (d == UINT32_MAX || (p->devices[i].code == PLAN_CODE_CHOSEN) != (v != NULL)) {
            wrong(k, "devices[%zu]: %s is unknown, or its code is not what the stages say", i,
                  p->devices[i].id);
            continue;
        }
        double room = k->c->devices[d].memory_bytes - k->c->devices[d].headroom_bytes;
        figure(k, "devices.memory_ratio", i, p->devices[i].memory_ratio, v && room > 0 ? v->bytes / room : 0);
        figure(k, "devices.busy_ratio", i, p->devices[i].busy_ratio,
               v && k->bottleneck > 0 ? k->time[v->stage] / k->bottleneck : 0);
    }
}

static void rules(struct look *k)
{
    const struct request *r = k->r;
    double total = 0;
    size_t nodes = 0;
    for (size_t i = 0; r && i < k->n; i++) {
        double held = 0;
        bool first = true;
        for (size_t a = 0; a < k->n; a++)
            if (k->c->devices[k->part[a].device].node == k->c->devices[k->part[i].device].node) {
                held += k->part[a].bytes;
                first = first && a >= i;
            }
        total += k->part[i].bytes;
        nodes += first;
        if (first && held > r->max_bytes_per_node)
            wrong(k, "a node would hold %.0f bytes, max_bytes_per_node is %.0f", held, r->max_bytes_per_node);
        for (size_t j = 0; j < r->npins; j++)
            if (k->part[i].stage == k->stage[r->pins[j].layer] && k->part[i].device != r->pins[j].device)
                wrong(k, "layer %s is pinned elsewhere", k->m->layers[r->pins[j].layer].id);
    }
    if (r && (total > r->max_total_bytes || k->p->n_stages > r->max_stages || nodes < r->min_nodes))
        wrong(k, "a limit of the request on bytes, stages or nodes is not kept");
    for (size_t g = 0; r && g < r->ntogether; g++)
        for (size_t i = 1; i < r->together[g].n; i++)
            if (k->stage[r->together[g].layers[i]] != k->stage[r->together[g].layers[0]])
                wrong(k, "layers that must be together are not");
}

int check_replicas(const struct cluster *c, const struct model *m, const struct request *r,
                   const struct plan *p, struct plan_check_report *rep, struct err *e)
{
    struct look k = {.c = c, .m = m, .r = r, .p = p, .rep = rep, .e = e};
    size_t most = p->n_stages + 1;
    for (size_t s = 0; s < p->n_stages; s++)
        most += p->stages[s].n_replicas;
    k.stage = calloc(m->nlayers, sizeof *k.stage);
    k.part = calloc(most, sizeof *k.part);
    k.time = calloc(p->n_stages + 1, sizeof *k.time);
    if (!k.stage || !k.part || !k.time)
        k.rc = ST_ENOMEM;
    else if (p->goal != PLAN_THROUGHPUT)
        wrong(&k, "replicas are for the throughput goal, this plan's is %s", plan_goal_name(p->goal));
    else if (resolve(&k)) {
        stages(&k);
        hops(&k);
        listed(&k);
        rules(&k);
        figure(&k, "latency_s", 0, p->latency_s, k.latency);
        figure(&k, "bottleneck_s", 0, p->bottleneck_s, k.bottleneck);
        figure(&k, "max_memory_ratio", 0, p->max_memory_ratio, k.ratio);
        figure(&k, "objective", 0, p->objective, k.bottleneck);
        double gap = k.bottleneck > 0 ? 1 - p->lower_bound / k.bottleneck : 0;
        if (p->lower_bound > k.bottleneck * (1 + TOLERANCE) || fabs(p->gap - gap) > TOLERANCE ||
            (p->optimal && gap > TOLERANCE))
            wrong(&k, "lower_bound %.17g, gap %.17g and optimal do not go together with %.17g",
                  p->lower_bound, p->gap, k.bottleneck);
        if (p->n_moves)
            wrong(&k, "moves: a plan with replicas has none");
        *rep = (struct plan_check_report){rep->problems, rep->n, k.latency, k.bottleneck, k.ratio};
    }
    free(k.stage);
    free(k.part);
    free(k.time);
    return k.rc;
}
