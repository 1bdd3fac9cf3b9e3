#include "coordinator/ctl/plan/plan_priv.h"

static const char usage[] =
    "usage: strata plan replan --cluster C.json --model M.json --from PLAN.json [--slack 0.05] [--goal G]\n"
    "       [--request R.json] [--steps N] [--cooldown S --since S] [--time-limit S] [--stats] [--json]\n"
    "       [--context N] [--sequences N] [--tokens N]\n"
    "Among the plans within the slack of the best, finds one that moves the fewest bytes away from where "
    "the\n"
    "layers are, and says in numbers why to move or not to. --goal is the old plan's unless given. With "
    "--steps\n"
    "moving must pay for itself within so many steps; with --cooldown a plan that still works is kept until "
    "so\n"
    "long after the last move (--since).\n";

int ctl_plan_replan(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct input in;
    struct plan *from = NULL, *p = NULL;
    struct plan_case why = {0};
    struct err e = {0};
    int rc =
        plan_args(argc, argv,
                  BITS_INPUT | BIT(OPT_GOAL) | BIT(OPT_TIME) | BIT(OPT_THREADS) | BIT(OPT_STATS) |
                      BIT(OPT_FROM) | BIT(OPT_SLACK) | BIT(OPT_STEPS) | BIT(OPT_COOLDOWN) | BIT(OPT_SINCE),
                  0, usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    rc = plan_input_open(&a, &in, &e);
    if (rc == ST_OK)
        rc = plan_open(a.from, &from, &e);
    if (rc == ST_OK && from->feasible != PLAN_YES)
        rc = err_set(&e, ST_EINVAL, "%s: the plan is not feasible: there is nothing to start from", a.from);
    if (rc == ST_OK) {
        if (!a.has_goal)
            a.o.goal = from->goal;
        const struct plan_replan_opts o = {.o = a.o,
                                           .slack = a.has_slack ? a.slack : 0.05,
                                           .expected_steps = a.steps,
                                           .cooldown_s = a.cooldown_s,
                                           .since_s = a.since_s};
        rc = plan_replan(in.c, in.m, in.has_request ? &in.r : NULL, from, &o, &p, &why, &e);
    }
    int code = rc < 0 ? plan_complain(err, rc, &e) : 0;
    if (p && a.json && plan_put_json(p, out, err) < 0)
        code = 1;
    else if (p && !a.json)
        ctl_plan_print(p, out);
    if (p && rc == ST_OK)
        fprintf(a.json ? err : out, "%s%s%s\n", a.json ? "" : "\n", why.text,
                why.kept || why.fewest ? "" : " (not proven to be the fewest bytes)");
    plan_free(p);
    plan_free(from);
    plan_input_fini(&in);
    return code;
}
