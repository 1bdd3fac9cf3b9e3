/* One planning problem on its way from the inputs to a plan: what plan_solve and plan_replan share. */
#ifndef STRATA_PLAN_RUN_H
#define STRATA_PLAN_RUN_H

#include "coordinator/plan/inst.h"

struct figs {
    double latency, bottleneck, ratio;
};
struct run {
    const struct inst *in;
    struct inst *owned; /* the same */
    struct budget b;
    uint64_t begun_ns;
    uint32_t *on, *spare; /* L: best so far; of the probe at hand */
    bool found, proven;
    double objective, bound;
    const char *solver;
    struct figs optima; /* balanced */
};

/* ST_EINVAL, ST_ENOTSUP, ST_ELIMIT, ST_ENOMEM, told in *e. run_close ends it, whatever it returned. */
int run_open(struct run *r, const struct cluster *c, const struct model *m, const struct request *rq,
             const struct plan_opts *o, struct err *e) ST_CHECK;
/* The optimum of the goal into r->on, or the best that the limits allow. */
int run_solve(struct run *r, enum plan_goal goal) ST_CHECK;
/* Puts an error of run_solve into words. */
int run_fail(int rc, struct err *e);
/* Writes out what r holds: ST_OK, ST_EINFEASIBLE, ST_EDEADLINE as plan_solve. */
int run_finish(struct run *r, const struct plan_opts *o, struct plan *p, struct err *e) ST_CHECK;
void run_close(struct run *r, const struct plan_opts *o, struct plan *p);
/* What an assignment costs; ST_EINTERNAL when it breaks a rule. */
int run_look(const struct run *r, const uint32_t *on, struct figs *f) ST_CHECK;
double run_rho(const struct figs *f, const struct figs *optima);

#endif
