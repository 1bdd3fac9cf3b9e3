/* What the files of this room share: options, inputs, errors. */
#ifndef STRATA_CTL_PLAN_PRIV_H
#define STRATA_CTL_PLAN_PRIV_H

#include <stdbool.h>
#include <stdio.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/ctl/plan/plan_cmd.h"
#include "coordinator/plan/plan.h"

enum {
    OPT_CLUSTER = 1,
    OPT_MODEL,
    OPT_GOAL,
    OPT_REQUEST,
    OPT_REPLICAS,
    OPT_TIME,
    OPT_THREADS,
    OPT_STATS,
    OPT_JSON,
    OPT_CONTEXT,
    OPT_SEQUENCES,
    OPT_TOKENS,
    OPT_FROM,
    OPT_SLACK,
    OPT_STEPS,
    OPT_COOLDOWN,
    OPT_SINCE,
    OPT_TO,
    OPT_HELP,
    OPT_RECOMPUTE
};

struct args {
    const char *cluster, *model, *request, *file, *second, *from, *to;
    bool has_goal, has_slack, json, recompute;
    struct plan_opts o;
    struct model_options mo;
    double slack, steps, cooldown_s, since_s;
};

#define PLAN_FILE_MAX ((size_t)64 << 20)

#define BIT(o) (1u << (o))
#define BITS_INPUT                                                                                           \
    (BIT(OPT_CLUSTER) | BIT(OPT_MODEL) | BIT(OPT_REQUEST) | BIT(OPT_JSON) | BIT(OPT_CONTEXT) |               \
     BIT(OPT_SEQUENCES) | BIT(OPT_TOKENS))

struct input {
    struct cluster *c;
    struct model *m;
    struct request r;
    bool has_request;
};

/* 0 = go on, −1 = help was asked for and printed, else the exit code. `known` has one bit per option; files
 * is how many names must follow the options (at most two). */
int plan_args(int argc, char **argv, unsigned known, int files, const char *usage, struct args *a, FILE *out,
              FILE *err);
int plan_input_open(const struct args *a, struct input *in, struct err *e) ST_CHECK;
void plan_input_fini(struct input *in);
int plan_open(const char *path, struct plan **out, struct err *e) ST_CHECK;
/* Prints the error and returns its exit code. */
int plan_complain(FILE *err, int rc, const struct err *e);
int plan_put_json(const struct plan *p, FILE *out, FILE *err);

#endif
