/*
 * Recomputes a plan from the cluster, the model and the request alone. Shares no code with the solvers on
 * purpose: it works on layer and device indices of the files and walks dependencies, never cut points.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/check_priv.h"

#define TOLERANCE 1e-9
#define MAX_PROBLEMS 100u

struct check {
    const struct cluster *c;
    const struct model *m;
    const struct request *r;
    const struct plan *p;
    struct plan_check_report *rep;
    struct err *e;
    int rc;                       /* ST_OK or ST_ENOMEM */
    uint32_t *stage;              /* of each layer */
    uint32_t *device;             /* of each stage */
    double *compute, *in, *bytes; /* of each stage */
    double latency, bottleneck, ratio;
};

static void wrong(struct check *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void wrong(struct check *k, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (check_problem(k->rep, k->e, fmt, ap) < 0)
        k->rc = ST_ENOMEM;
    va_end(ap);
}

int check_problem(struct plan_check_report *r, struct err *e, const char *fmt, va_list ap)
{
    char *s = NULL;
    if (r->n >= MAX_PROBLEMS)
        return ST_OK;
    int n = vasprintf(&s, fmt, ap);
    char **v = n < 0 ? NULL : realloc(r->problems, (r->n + 1) * sizeof *v);
    if (!v) {
        if (n >= 0)
            free(s);
        return ST_ENOMEM;
    }
    r->problems = v;
    v[r->n++] = s;
    if (r->n == 1)
        err_set(e, ST_ECONFLICT, "%s", s);
    return ST_OK;
}

bool check_same(double a, double b)
{
    return fabs(a - b) <= TOLERANCE * fmax(fabs(a), fabs(b));
}

static void figure(struct check *k, const char *what, double given, double right)
{
    if (!check_same(given, right))
        wrong(k, "%s is %.17g, should be %.17g", what, given, right);
}
static void figure_at(struct check *k, const char *list, size_t i, const char *what, double given,
                      double right)
{
    char name[96];
    snprintf(name, sizeof name, "%s[%zu].%s", list, i, what);
    figure(k, name, given, right);
}

/* Resolves names; false when the plan cannot be costed at all. */
static bool resolve(struct check *k)
{
    const struct plan *p = k->p;
    size_t before = k->rep->n;
    for (size_t i = 0; i < k->m->nlayers; i++)
        k->stage[i] = MODEL_NONE;
    if (p->n_stages == 0)
        wrong(k, "the plan has no stages");
    for (size_t s = 0; s < p->n_stages; s++) {
        k->device[s] = cluster_find_device(k->c, p->stages[s].device);
        if (k->device[s] == UINT32_MAX)
            wrong(k, "stages[%zu].device: no device %s in the cluster", s, p->stages[s].device);
        for (size_t t = 0; t < s; t++)
            if (k->device[t] == k->device[s] && k->device[s] != UINT32_MAX)
                wrong(k, "stages[%zu]: device %s already has stage %zu", s, p->stages[s].device, t);
        for (size_t i = 0; i < p->stages[s].n_layers; i++) {
            const char *id = p->stages[s].layers[i];
            uint32_t l = model_find(k->m, id);
            if (l == MODEL_NONE || strcmp(k->m->layers[l].id, id))
                wrong(k, "stages[%zu].layers: no layer %s in the model", s, id);
            else if (k->stage[l] != MODEL_NONE)
                wrong(k, "stages[%zu].layers: layer %s is already in stage %u", s, id, k->stage[l]);
            else
                k->stage[l] = (uint32_t)s;
        }
    }
    for (size_t i = 0; i < k->m->nlayers; i++)
        if (k->stage[i] == MODEL_NONE)
            wrong(k, "layer %s is in no stage", k->m->layers[i].id);
    return k->rep->n == before && k->rc == ST_OK;
}

double check_layer_time(const struct cluster_device *d, const struct model_layer *l)
{
    return d->speed_factor * (d->layer_overhead_s +
                              fmax(l->flops / d->compute_flops_per_s, l->read_bytes / d->memory_bytes_per_s));
}

size_t check_blocks(const struct model *m, const uint32_t *stage, size_t s)
{
    size_t n = 0;
    for (size_t i = 0; i < m->nlayers; i++)
        n += stage[i] == s && m->layers[i].type == LAYER_BLOCK;
    return n;
}

/* The time of one layer as a placement lists it. */
static double share(const struct check *k, size_t i)
{
    size_t s = k->stage[i];
    const struct cluster_device *d = &k->c->devices[k->device[s]];
    if (k->m->layers[i].type != LAYER_BLOCK || !d->has_segment)
        return check_layer_time(d, &k->m->layers[i]);
    size_t n = check_blocks(k->m, k->stage, s);
    return n <= d->nsegment ? d->speed_factor * d->segment_s[n - 1] / (double)n : INFINITY;
}

static void compute_stage(struct check *k, size_t s)
{
    const struct cluster_device *d = &k->c->devices[k->device[s]];
    double scratch = 0, held = 0, seconds = d->speed_factor * d->stage_overhead_s;
    size_t blocks = d->has_segment ? check_blocks(k->m, k->stage, s) : 0;
    for (size_t i = 0; i < k->m->nlayers; i++) {
        const struct model_layer *l = &k->m->layers[i];
        if (k->stage[i] != s)
            continue;
        held += l->weight_bytes + l->kv_bytes;
        scratch = fmax(scratch, l->activation_bytes);
        if (!(d->has_segment && l->type == LAYER_BLOCK))
            seconds += check_layer_time(d, l);
    }
    if (blocks > d->nsegment && d->has_segment)
        wrong(k, "stages[%zu]: %zu blocks are more than the segment table of %s holds (%zu)", s, blocks,
              d->id, d->nsegment);
    else if (blocks)
        seconds += d->speed_factor * d->segment_s[blocks - 1];
    k->compute[s] = seconds;
    k->bytes[s] = held + scratch;
    k->bottleneck = fmax(k->bottleneck, seconds);
    double room = d->memory_bytes - d->headroom_bytes;
    if (room <= 0 || k->bytes[s] > room * (1 + 1e-12))
        wrong(k, "stages[%zu]: %s would hold %.0f bytes, it has %.0f", s, d->id, k->bytes[s], fmax(room, 0));
    if (room > 0)
        k->ratio = fmax(k->ratio, k->bytes[s] / room);
}

/* Seconds from node to node, or −1 without a link; notes the wire time for the bottleneck. */
static double hop(struct check *k, uint32_t from, uint32_t to, double bytes)
{
    struct cluster_rate r;
    if (from == CLUSTER_NO_NODE || to == CLUSTER_NO_NODE)
        return 0;
    int rc = cluster_path(k->c, from, to, &r);
    if (rc < 0) {
        wrong(k, "no link from node %s to node %s", k->c->nodes[from], k->c->nodes[to]);
        return 0;
    }
    if (rc == 0)
        return 0;
    k->bottleneck = fmax(k->bottleneck, bytes / r.bytes_per_s);
    return r.rtt_s / 2 + bytes / r.bytes_per_s;
}

static uint32_t node(const struct check *k, size_t s)
{
    return k->c->devices[k->device[s]].node;
}

/* Does any layer of stage s depend on layer u? */
static bool needs(const struct check *k, size_t s, size_t u)
{
    for (size_t i = 0; i < k->m->nlayers; i++)
        for (size_t d = 0; k->stage[i] == s && d < k->m->layers[i].ndeps; d++)
            if (k->m->layers[i].deps[d] == u)
                return true;
    return false;
}

static void hops_into(struct check *k, size_t s)
{
    double bytes = 0;
    bool any = false;
    for (size_t i = 0; i < k->m->nlayers; i++)
        if (k->stage[i] == s && k->m->layers[i].ndeps == 0) {
            any = true;
            bytes += k->m->layers[i].input_bytes;
        }
    if (any)
        k->in[s] = hop(k, k->c->client_node, node(k, s), bytes);
    double *from = calloc(k->p->n_stages, sizeof *from);
    bool *is = calloc(k->p->n_stages, sizeof *is);
    if (!from || !is)
        k->rc = ST_ENOMEM;
    for (size_t u = 0; from && is && u < k->m->nlayers; u++)
        if (k->stage[u] != s && needs(k, s, u)) {
            from[k->stage[u]] += k->m->layers[u].output_bytes;
            is[k->stage[u]] = true;
        }
    for (size_t r = 0; from && is && r < k->p->n_stages; r++) {
        if (!is[r])
            continue;
        if (r > s)
            wrong(k, "stages[%zu] depends on the later stages[%zu]", s, r);
        k->in[s] = fmax(k->in[s], hop(k, node(k, r), node(k, s), from[r]));
    }
    free(from);
    free(is);
}

static double hop_back(struct check *k)
{
    double most = 0;
    bool *used = calloc(k->m->nlayers, sizeof *used);
    for (size_t i = 0; used && i < k->m->nlayers; i++)
        for (size_t d = 0; d < k->m->layers[i].ndeps; d++)
            used[k->m->layers[i].deps[d]] = true;
    for (size_t s = 0; used && s < k->p->n_stages; s++) {
        double bytes = 0;
        bool any = false;
        for (size_t i = 0; i < k->m->nlayers; i++)
            if (k->stage[i] == s && !used[i]) {
                any = true;
                bytes += k->m->layers[i].output_bytes;
            }
        if (any)
            most = fmax(most, hop(k, node(k, s), k->c->client_node, bytes));
    }
    if (!used)
        k->rc = ST_ENOMEM;
    free(used);
    return most;
}

static void stage_figures(struct check *k)
{
    for (size_t s = 0; s < k->p->n_stages; s++) {
        compute_stage(k, s);
        hops_into(k, s);
        k->latency += k->compute[s] + k->in[s];
        figure_at(k, "stages", s, "compute_s", k->p->stages[s].compute_s, k->compute[s]);
        figure_at(k, "stages", s, "transfer_in_s", k->p->stages[s].transfer_in_s, k->in[s]);
        figure_at(k, "stages", s, "memory_bytes", k->p->stages[s].memory_bytes, k->bytes[s]);
    }
    k->latency += hop_back(k);
    figure(k, "latency_s", k->p->latency_s, k->latency);
    figure(k, "bottleneck_s", k->p->bottleneck_s, k->bottleneck);
    figure(k, "max_memory_ratio", k->p->max_memory_ratio, k->ratio);
}

static double multiple(double v, double optimum)
{
    return optimum > 0 ? v / optimum : 1;
}

static void goal_figures(struct check *k)
{
    const struct plan *p = k->p;
    double want = p->goal == PLAN_LATENCY      ? k->latency
                  : p->goal == PLAN_THROUGHPUT ? k->bottleneck
                                               : k->ratio;
    if (p->goal == PLAN_BALANCED) {
        if (!p->has_optima)
            wrong(k, "optima: missing in a balanced plan");
        want = fmax(
            fmax(multiple(k->latency, p->optima.latency_s), multiple(k->bottleneck, p->optima.bottleneck_s)),
            multiple(k->ratio, p->optima.max_memory_ratio));
        if (p->optima.latency_s > k->latency * (1 + TOLERANCE) ||
            p->optima.bottleneck_s > k->bottleneck * (1 + TOLERANCE) ||
            p->optima.max_memory_ratio > k->ratio * (1 + TOLERANCE))
            wrong(k, "optima: this plan itself is better than one of them");
    }
    figure(k, "objective", p->objective, want);
    if (p->lower_bound > want * (1 + TOLERANCE))
        wrong(k, "lower_bound %.17g is above the objective %.17g", p->lower_bound, want);
    double gap = want > 0 ? 1 - p->lower_bound / want : 0;
    if (fabs(p->gap - gap) > TOLERANCE)
        wrong(k, "gap is %.17g, should be %.17g", p->gap, gap);
    if (p->optimal && gap > TOLERANCE)
        wrong(k, "optimal is true but the gap is %.17g", gap);
}

static void placements(struct check *k)
{
    const struct plan *p = k->p;
    bool *seen = calloc(k->m->nlayers, sizeof *seen), *opened = calloc(p->n_stages, sizeof *opened);
    if (!seen || !opened) {
        k->rc = ST_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < p->n_placements; i++) {
        const struct plan_placement *q = &p->placements[i];
        uint32_t l = model_find(k->m, q->layer);
        if (l == MODEL_NONE || strcmp(k->m->layers[l].id, q->layer) || seen[l]) {
            wrong(k, "placements[%zu].layer: %s is unknown or there twice", i, q->layer);
            continue;
        }
        seen[l] = true;
        uint32_t s = k->stage[l];
        if (strcmp(q->device, p->stages[s].device))
            wrong(k, "placements[%zu].device: %s, but the layer's stage is on %s", i, q->device,
                  p->stages[s].device);
        bool first = !strcmp(p->stages[s].layers[0], q->layer);
        opened[s] = opened[s] || first;
        figure_at(k, "placements", i, "latency_s", q->latency_s, share(k, l));
        figure_at(k, "placements", i, "memory_bytes", q->memory_bytes,
                  k->m->layers[l].weight_bytes + k->m->layers[l].kv_bytes);
        figure_at(k, "placements", i, "transfer_s", q->transfer_s, first ? k->in[s] : 0);
    }
    if (p->n_placements != k->m->nlayers)
        wrong(k, "placements: %zu for %zu layers", p->n_placements, k->m->nlayers);
done:
    free(seen);
    free(opened);
}

static void devices(struct check *k)
{
    const struct plan *p = k->p;
    if (p->n_devices != k->c->ndevices)
        wrong(k, "devices: %zu, the cluster has %zu", p->n_devices, k->c->ndevices);
    for (size_t i = 0; i < p->n_devices; i++) {
        uint32_t d = cluster_find_device(k->c, p->devices[i].id);
        size_t s = 0;
        if (d == UINT32_MAX) {
            wrong(k, "devices[%zu].id: no device %s in the cluster", i, p->devices[i].id);
            continue;
        }
        for (size_t t = 0; t < i; t++)
            if (!strcmp(p->devices[t].id, p->devices[i].id))
                wrong(k, "devices[%zu].id: %s is there twice", i, p->devices[i].id);
        while (s < p->n_stages && k->device[s] != d)
            s++;
        if ((p->devices[i].code == PLAN_CODE_CHOSEN) != (s < p->n_stages))
            wrong(k, "devices[%zu].code: %s, but the stages say otherwise", i,
                  plan_code_name(p->devices[i].code));
        double room = k->c->devices[d].memory_bytes - k->c->devices[d].headroom_bytes;
        bool held = s < p->n_stages;
        figure_at(k, "devices", i, "memory_ratio", p->devices[i].memory_ratio,
                  held && room > 0 ? k->bytes[s] / room : 0);
        figure_at(k, "devices", i, "busy_ratio", p->devices[i].busy_ratio,
                  held && k->bottleneck > 0 ? k->compute[s] / k->bottleneck : 0);
    }
}

/* The named bottleneck must be one: its own time is bottleneck_s. */
static void bottleneck(struct check *k)
{
    const struct plan_bottleneck *b = &k->p->bottleneck;
    uint32_t d = cluster_find_device(k->c, b->device);
    if (d == UINT32_MAX) {
        wrong(k, "bottleneck_device: no device %s in the cluster", b->device);
        return;
    }
    if (!b->link) {
        for (size_t s = 0; s < k->p->n_stages; s++)
            if (k->device[s] == d && check_same(k->compute[s], k->bottleneck))
                return;
        wrong(k, "bottleneck: %s is not the slowest stage", b->device);
        return;
    }
    for (size_t s = 0; s < k->p->n_stages; s++)
        if (check_same(k->compute[s], k->bottleneck) && k->bottleneck > 0)
            return; /* a tie between a stage and a link: either may be named */
    if (cluster_find_node(k->c, b->from) == CLUSTER_NO_NODE ||
        cluster_find_node(k->c, b->to) == CLUSTER_NO_NODE)
        wrong(k, "bottleneck: link %s to %s names an unknown node", b->from, b->to);
    const char *node_of_device = k->c->nodes[k->c->devices[d].node];
    if (strcmp(node_of_device, b->from) && strcmp(node_of_device, b->to))
        wrong(k, "bottleneck_device: %s is at neither end of %s to %s", b->device, b->from, b->to);
}

static void total_rules(struct check *k)
{
    const struct request *r = k->r;
    double total = 0;
    size_t nodes = 0;
    for (size_t s = 0; s < k->p->n_stages; s++) {
        double on_node = 0;
        bool first = true;
        for (size_t t = 0; t < k->p->n_stages; t++)
            if (node(k, t) == node(k, s)) {
                on_node += k->bytes[t];
                first = first && t >= s;
            }
        total += k->bytes[s];
        nodes += first;
        if (first && on_node > r->max_bytes_per_node)
            wrong(k, "node %s would hold %.0f bytes, max_bytes_per_node is %.0f", k->c->nodes[node(k, s)],
                  on_node, r->max_bytes_per_node);
        if (!request_allows(r, k->c->devices[k->device[s]].id))
            wrong(k, "stages[%zu]: the request does not allow %s", s, k->p->stages[s].device);
    }
    if (total > r->max_total_bytes)
        wrong(k, "the plan holds %.0f bytes, max_total_bytes is %.0f", total, r->max_total_bytes);
    if (k->p->n_stages > r->max_stages)
        wrong(k, "%zu stages, max_stages is %u", k->p->n_stages, r->max_stages);
    if (nodes < r->min_nodes)
        wrong(k, "%zu nodes, min_nodes is %u", nodes, r->min_nodes);
}

static void rules(struct check *k)
{
    const struct request *r = k->r;
    if (!r)
        return;
    total_rules(k);
    for (size_t i = 0; i < r->npins; i++)
        if (k->device[k->stage[r->pins[i].layer]] != r->pins[i].device)
            wrong(k, "layer %s is pinned to %s", k->m->layers[r->pins[i].layer].id,
                  k->c->devices[r->pins[i].device].id);
    for (size_t g = 0; g < r->ntogether; g++)
        for (size_t i = 1; i < r->together[g].n; i++)
            if (k->stage[r->together[g].layers[i]] != k->stage[r->together[g].layers[0]])
                wrong(k, "layer %s must be with %s", k->m->layers[r->together[g].layers[i]].id,
                      k->m->layers[r->together[g].layers[0]].id);
}

static void moves(struct check *k)
{
    double sum = 0;
    for (size_t i = 0; i < k->p->n_moves; i++) {
        const struct plan_move *v = &k->p->moves[i];
        uint32_t l = model_find(k->m, v->layer);
        if (l == MODEL_NONE || strcmp(k->m->layers[l].id, v->layer)) {
            wrong(k, "moves[%zu].layer: no layer %s in the model", i, v->layer);
            continue;
        }
        if (strcmp(v->to, k->p->stages[k->stage[l]].device))
            wrong(k, "moves[%zu].to: %s, but the layer's stage is on %s", i, v->to,
                  k->p->stages[k->stage[l]].device);
        figure_at(k, "moves", i, "bytes", v->bytes, k->m->layers[l].weight_bytes);
        sum += v->bytes;
    }
    figure(k, "moved_bytes", k->p->moved_bytes, sum);
}

int plan_check(const struct cluster *c, const struct model *m, const struct request *r, const struct plan *p,
               struct plan_check_report *report, struct err *e)
{
    struct check k = {.c = c, .m = m, .r = r, .p = p, .rep = report, .e = e};
    *report = (struct plan_check_report){0};
    if (p->feasible != PLAN_YES)
        return err_set(e, ST_EINVAL, "the plan says it is not feasible: there is nothing to check");
    for (size_t s = 0; s < p->n_stages; s++)
        if (p->stages[s].n_replicas) {
            int rc = check_replicas(c, m, r, p, report, e);
            return rc < 0 ? err_set(e, rc, "out of memory") : report->n ? ST_ECONFLICT : ST_OK;
        }
    k.stage = calloc(m->nlayers, sizeof *k.stage);
    k.device = calloc(p->n_stages + 1, sizeof *k.device);
    k.compute = calloc(p->n_stages + 1, sizeof *k.compute);
    k.in = calloc(p->n_stages + 1, sizeof *k.in);
    k.bytes = calloc(p->n_stages + 1, sizeof *k.bytes);
    if (!k.stage || !k.device || !k.compute || !k.in || !k.bytes)
        k.rc = ST_ENOMEM;
    else if (resolve(&k)) {
        stage_figures(&k);
        goal_figures(&k);
        placements(&k);
        devices(&k);
        bottleneck(&k);
        rules(&k);
        moves(&k);
        report->latency_s = k.latency;
        report->bottleneck_s = k.bottleneck;
        report->max_memory_ratio = k.ratio;
    }
    free(k.stage);
    free(k.device);
    free(k.compute);
    free(k.in);
    free(k.bytes);
    if (k.rc < 0)
        return err_set(e, k.rc, "out of memory");
    return report->n ? ST_ECONFLICT : ST_OK;
}

void plan_check_fini(struct plan_check_report *r)
{
    for (size_t i = 0; i < r->n; i++)
        free(r->problems[i]);
    free(r->problems);
    *r = (struct plan_check_report){0};
}
