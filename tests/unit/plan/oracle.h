/* Seeded random planning problems and the brute-force truth about them, for tests. */
#ifndef TESTS_PLAN_ORACLE_H
#define TESTS_PLAN_ORACLE_H

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/plan.h"

struct problem {
    struct cluster *c;
    struct model *m;
    struct request r;
    bool has_request;
};
/* What a generated problem may contain. */
enum { GEN_DAG = 1, GEN_REQUEST = 2, GEN_TIGHT = 4 };

void problem_random(struct problem *p, uint64_t seed, unsigned max_devices, unsigned max_layers,
                    unsigned flags);
void problem_fini(struct problem *p);

struct truth {
    bool feasible;
    double latency, bottleneck, ratio, balanced;
};
/* Every assignment of layers to devices that is a plan. */
void oracle_run(const struct problem *p, struct truth *t);
/* The fewest weight bytes that a plan whose goal's value is at most `limit` has to move, when layer i is at
 * home[i] (UINT32_MAX = nowhere). INFINITY when there is none. */
double oracle_fewest(const struct problem *p, const struct truth *t, enum plan_goal g, double limit,
                     const uint32_t *home);

uint64_t test_rand(uint64_t *state);

#endif
