/* Replicated stages: several devices hold the same run of a chain and share its work. Private to the room. */
#ifndef STRATA_PLAN_REPLICATE_H
#define STRATA_PLAN_REPLICATE_H

#include "coordinator/plan/inst.h"

struct replicated {
    const struct inst *in; /* runs without regard to memory: what a replica holds depends on its share */
    size_t n;
    uint32_t *start; /* L + 1: of n stages, and the end */
    uint32_t *stage; /* D: of each device, INST_NOBODY = none */
    double value;    /* bottleneck; INFINITY = no plan */
    double bound;
    bool proven;
};
/* What one device of a stage does and holds. */
struct replica {
    uint32_t dev;
    double share, compute, bytes;
};
struct replicated_stage {
    size_t n;
    struct replica *v; /* ascending by device; the caller's, D entries */
    double time, in;   /* 1 / Σ 1/compute; largest hop */
};

/*
 * The least bottleneck. `on` is a plan without replicas (NULL = there is none) to start from. Exact up to ten
 * devices unless the work limit stops it. ST_ENOTSUP: a rule of the request that counts bytes or stages.
 */
int replicate_solve(const struct inst *in, struct budget *b, const uint32_t *on,
                    struct replicated *out) ST_CHECK;
void replicate_fini(struct replicated *r);

/* Stage s of a plan; false when it does not fit. */
bool replicate_stage(const struct replicated *r, size_t s, struct replicated_stage *out);
/* Seconds and wire time of the hop from one replica to another (NULL = the client) at layer l; false: no
 * link. */
bool replicate_hop(const struct inst *in, const struct replica *from, const struct replica *to, size_t l,
                   double *seconds, double *wire);

#endif
