#include "bench/plan/world.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/model/cluster.h"
#include "common/model/model.h"

#define GB 1e9

static double rnd(uint64_t *s) /* [0, 1) */
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}
static double between(uint64_t *s, double lo, double hi)
{
    return lo + (hi - lo) * rnd(s);
}

/* Decoder blocks between an embedding and an output; `spread` is how far they differ from 1 GB. */
static int make_model(struct world *w, size_t layers, double spread, uint64_t *s, struct err *e)
{
    struct buf b = {0};
    int rc = buf_printf(&b, "{\"schema\":\"strata.model.v1\",\"name\":\"bench\",\"layers\":[");
    for (size_t i = 0; i < layers && rc == ST_OK; i++) {
        double size = floor(GB * (1 + spread * between(s, -1, 1)));
        rc = buf_printf(&b,
                        "%s{\"id\":\"blk.%zu\",\"type\":\"block\",\"weight_bytes\":%.0f,\"flops\":%.0f,"
                        "\"kv_bytes\":%.0f,\"activation_bytes\":1e7,\"input_bytes\":16384,"
                        "\"output_bytes\":16384}",
                        i ? "," : "", i, size, 2 * size, floor(size / 16));
    }
    if (rc == ST_OK)
        rc = buf_printf(&b, "]}");
    rc = rc < 0 ? err_set(e, rc, "out of memory") : model_read_json(buf_cstr(&b), b.len, "bench", &w->m, e);
    buf_fini(&b);
    return rc;
}

static double model_bytes(const struct model *m)
{
    double sum = 0;
    for (size_t i = 0; i < m->nlayers; i++)
        sum += m->layers[i].weight_bytes + m->layers[i].kv_bytes;
    return sum;
}

/* Eight classes of device, each one a fifth more or less than its class. */
static struct cluster_device any_device(uint64_t *s)
{
    static const double tflops[8] = {10, 18, 30, 45, 65, 90, 150, 250},
                        gbps[8] = {120, 250, 300, 450, 670, 930, 1500, 2400};
    size_t k = (size_t)(rnd(s) * 8);
    return (struct cluster_device){.compute_flops_per_s = tflops[k] * 1e12 * between(s, 0.8, 1.2),
                                   .memory_bytes_per_s = gbps[k] * GB * between(s, 0.8, 1.2),
                                   .layer_overhead_s = between(s, 1e-5, 5e-5),
                                   .stage_overhead_s = between(s, 1e-5, 2e-4),
                                   .speed_factor = 1};
}

static int add(struct cluster *c, size_t node, size_t index, const struct cluster_device *d)
{
    char id[48], name[24];
    snprintf(name, sizeof name, "n%zu", node);
    snprintf(id, sizeof id, "n%zu/cuda:%zu", node, index);
    return cluster_add_device(c, id, name, d);
}
static int join(struct cluster *c, size_t i, size_t j, double bytes_per_s, double rtt_s)
{
    char from[24], to[24];
    snprintf(from, sizeof from, "n%zu", i);
    snprintf(to, sizeof to, "n%zu", j);
    return cluster_add_link(c, from, to, &(struct cluster_rate){bytes_per_s, rtt_s});
}
static int close_world(struct world *w, int rc, struct err *e)
{
    if (rc == ST_OK)
        rc = cluster_seal(w->c);
    if (rc == ST_OK)
        return ST_OK;
    world_free(w);
    return *e->text ? rc : err_set(e, rc, "the problem could not be made: %s", status_name(rc));
}

int world_mesh(struct world *w, size_t devices, size_t layers, double room, uint64_t seed, struct err *e)
{
    uint64_t s = seed * 977 + devices;
    *w = (struct world){0};
    double share[64], sum = 0;
    int rc = make_model(w, layers, 0.4, &s, e);
    if (rc == ST_OK)
        rc = cluster_new(&w->c);
    for (size_t i = 0; i < devices; i++)
        sum += share[i] = between(&s, 1, 4);
    for (size_t i = 0; i < devices && rc == ST_OK; i++) {
        struct cluster_device d = any_device(&s);
        d.memory_bytes = ceil(room * model_bytes(w->m) * share[i] / sum);
        rc = add(w->c, i, 0, &d);
    }
    for (size_t i = 0; i < devices; i++)
        for (size_t j = 0; j < devices && rc == ST_OK; j++)
            if (i != j)
                rc = join(w->c, i, j, between(&s, 0.1, 3) * GB, between(&s, 1e-4, 1e-2));
    if (rc == ST_OK)
        rc = cluster_set_client(w->c, "n0");
    return close_world(w, rc, e);
}

int world_sites(struct world *w, size_t devices, size_t sites, size_t layers, uint64_t seed, struct err *e)
{
    uint64_t s = seed * 991 + devices;
    *w = (struct world){0};
    double x[64], y[64];
    int rc = make_model(w, layers, 0, &s, e);
    if (rc == ST_OK)
        rc = cluster_new(&w->c);
    for (size_t i = 0; i < sites; i++) {
        x[i] = rnd(&s);
        y[i] = rnd(&s);
    }
    for (size_t i = 0; i < devices && rc == ST_OK; i++) {
        struct cluster_device d = any_device(&s);
        d.memory_bytes = floor(between(&s, 1.2, 6.5) * GB);
        rc = add(w->c, i % sites, i / sites, &d);
    }
    for (size_t i = 0; i < sites; i++) /* all at one rate, and round trips grow with distance */
        for (size_t j = 0; j < sites && rc == ST_OK; j++)
            rc = join(w->c, i, j, i == j ? 12 * GB : 1 * GB,
                      i == j ? 2e-5 : 2e-3 + 0.02 * hypot(x[i] - x[j], y[i] - y[j]));
    if (rc == ST_OK)
        rc = cluster_set_client(w->c, "n0");
    return close_world(w, rc, e);
}

int world_flat(struct world *w, size_t devices, size_t layers, uint64_t seed, struct err *e)
{
    uint64_t s = seed * 1009 + devices;
    *w = (struct world){0};
    int rc = make_model(w, layers, 0.4, &s, e);
    if (rc == ST_OK)
        rc = cluster_new(&w->c);
    for (size_t i = 0; i < devices && rc == ST_OK; i++) {
        struct cluster_device d = any_device(&s);
        d.memory_bytes = floor(between(&s, 1.5, 8) * GB);
        rc = add(w->c, i, 0, &d);
    }
    for (size_t i = 0; i < devices; i++)
        for (size_t k = 0; k < 20 && rc == ST_OK; k++) {
            size_t step = (devices - 1) / 20; /* each neighbour once */
            size_t j = (i + 1 + k * step + (size_t)(rnd(&s) * (double)step)) % devices;
            double bytes_per_s = between(&s, 0.5, 12) * GB;
            rc = join(w->c, i, j, bytes_per_s, between(&s, 1e-4, 3e-3));
        }
    if (rc == ST_OK) {
        w->c->has_default_link = true;
        w->c->default_link = (struct cluster_rate){1 * GB, 3e-3};
        rc = cluster_set_client(w->c, "n0");
    }
    return close_world(w, rc, e);
}

int world_exo957(struct world *w, struct err *e)
{
    static const double ram[5] = {36, 96, 64, 96, 36}, gbps[5] = {264.4, 344, 308.7, 351.2, 177.6};
    static const char model[] =
        "{\"schema\":\"strata.model.v1\",\"name\":\"exo957\",\"layers\":[{\"id\":\"b\",\"type\":\"block\","
        "\"count\":40,\"weight_bytes\":1e9,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0}]}";
    *w = (struct world){0};
    int rc = model_read_json(model, sizeof model - 1, "exo957", &w->m, e);
    if (rc == ST_OK)
        rc = cluster_new(&w->c);
    for (size_t i = 0; i < 5 && rc == ST_OK; i++)
        rc = add(w->c, i, 0,
                 &(struct cluster_device){.memory_bytes = ram[i] * GB,
                                          .compute_flops_per_s = 1e30,
                                          .memory_bytes_per_s = gbps[i] * GB,
                                          .speed_factor = 1});
    if (rc == ST_OK) {
        w->c->has_default_link = true;
        w->c->default_link = (struct cluster_rate){1e30, 0};
    }
    return close_world(w, rc, e);
}

int world_helix10(struct world *w, struct err *e)
{
    static double t4[7] = {1988, 901.9, 539, 404.3, 285.3, 331.3, 231.1},
                  l4[11] = {2485.5, 1145, 763.5, 481, 384.9, 286.587, 245.7, 189.1, 168.2, 212.6, 193.5};
    static const char model[] =
        "{\"schema\":\"strata.model.v1\",\"name\":\"helix10\",\"layers\":[{\"id\":\"b\",\"type\":\"block\","
        "\"count\":60,\"weight_bytes\":1070000000,\"flops\":1.07e9,\"input_bytes\":13312,"
        "\"output_bytes\":13312}]}";
    *w = (struct world){0};
    int rc = model_read_json(model, sizeof model - 1, "helix10", &w->m, e);
    if (rc == ST_OK)
        rc = cluster_new(&w->c);
    for (size_t i = 0; i < 10 && rc == ST_OK; i++) {
        const double *rate = i < 6 ? t4 : l4;
        size_t n = i < 6 ? 7 : 11;
        double seconds[11];
        for (size_t k = 0; k < n; k++)
            seconds[k] = 1 / rate[k];
        struct cluster_device d = {.memory_bytes = i < 6 ? 16 * GB : 24 * GB,
                                   .compute_flops_per_s = i < 6 ? 65e12 : 121e12,
                                   .memory_bytes_per_s = i < 6 ? 300 * GB : 300 * GB,
                                   .speed_factor = 1,
                                   .has_segment = true,
                                   .segment_s = seconds,
                                   .nsegment = n};
        rc = add(w->c, i, 0, &d);
    }
    if (rc == ST_OK) {
        w->c->has_default_link = true;
        w->c->default_link = (struct cluster_rate){1e9, 2e-3};
    }
    return close_world(w, rc, e);
}

int world_without(const struct world *w, size_t device, struct world *out, struct err *e)
{
    struct buf b = {0};
    *out = (struct world){0};
    int rc = model_write_json(w->m, &b);
    if (rc == ST_OK)
        rc = model_read_json(buf_cstr(&b), b.len, "bench", &out->m, e);
    buf_fini(&b);
    if (rc == ST_OK)
        rc = cluster_new(&out->c);
    for (size_t i = 0; i < w->c->ndevices && rc == ST_OK; i++)
        if (i != device)
            rc = cluster_add_device(out->c, w->c->devices[i].id, w->c->nodes[w->c->devices[i].node],
                                    &w->c->devices[i]);
    for (size_t i = 0; i < w->c->nlinks && rc == ST_OK; i++)
        rc = cluster_add_link(out->c, w->c->nodes[w->c->links[i].from], w->c->nodes[w->c->links[i].to],
                              &w->c->links[i].rate);
    if (rc == ST_OK) {
        out->c->has_default_link = w->c->has_default_link;
        out->c->default_link = w->c->default_link;
        out->c->has_same_node_link = w->c->has_same_node_link;
        out->c->same_node_link = w->c->same_node_link;
        if (w->c->client_node != CLUSTER_NO_NODE)
            rc = cluster_set_client(out->c, w->c->nodes[w->c->client_node]);
    }
    return close_world(out, rc, e);
}

void world_free(struct world *w)
{
    cluster_free(w->c);
    model_free(w->m);
    *w = (struct world){0};
}
