/* Seeded planning problems for the benchmark, and what simpler planners make of them. All of them are chains.
 */
#ifndef STRATA_BENCH_PLAN_WORLD_H
#define STRATA_BENCH_PLAN_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct cluster;
struct model;

struct world {
    struct cluster *c;
    struct model *m;
};

/* One node a device, every link another one, layers that differ; all memory together is `room` times what the
 * model needs. */
int world_mesh(struct world *w, size_t devices, size_t layers, double room, uint64_t seed,
               struct err *e) ST_CHECK;
/* Devices in `sites` nodes, equal layers, links that obey the triangle inequality. */
int world_sites(struct world *w, size_t devices, size_t sites, size_t layers, uint64_t seed,
                struct err *e) ST_CHECK;
/* One node a device, twenty listed links each and a default, layers that differ, room for one to six of them
 * on a device: nothing to exploit. */
int world_flat(struct world *w, size_t devices, size_t layers, uint64_t seed, struct err *e) ST_CHECK;
/* Five nodes that an equal split serves badly. */
int world_exo957(struct world *w, struct err *e) ST_CHECK;
/* Ten nodes and a model of 60 layers with measured throughputs by layers held. */
int world_helix10(struct world *w, struct err *e) ST_CHECK;
/* The same without the device; nobody holds anything. */
int world_without(const struct world *w, size_t device, struct world *out, struct err *e) ST_CHECK;
void world_free(struct world *w);

enum rival { RIVAL_PROPORTIONAL, RIVAL_EVEN, RIVAL_FLOPS, RIVAL_LLAMA, RIVAL_EXO, RIVALS };
extern const char *const rival_names[RIVALS];

struct world_figures {
    double latency, bottleneck, ratio;
};
/* The rival's split and what it costs. ST_EINFEASIBLE: a device would hold more than it has, or a hop has no
 * link. */
int rival_run(const struct world *w, enum rival r, struct world_figures *out) ST_CHECK;

#endif
