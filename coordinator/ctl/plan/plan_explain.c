/* strata plan explain and diff. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/ctl/plan/plan_priv.h"

#define COUNTERFACTUAL_DEVICES 16u

static const char explain_usage[] =
    "usage: strata plan explain --cluster C.json --model M.json [--request R.json] PLAN.json\n"
    "       [--context N] [--sequences N] [--tokens N]\n"
    "For every device why it is or is not in the plan, with the number behind it, and what would change the\n"
    "plan: a device less, a quarter more memory, a rule of the request less.\n";
static const char diff_usage[] = "usage: strata plan diff A.json B.json\nWhat differs between two plans: "
                                 "figures, and which layers moved.\n";

/* What is printed holds names from files: control characters become `?`. */
static int put_safe(char *text, size_t n, FILE *out)
{
    for (size_t i = 0; text && i < n; i++)
        if (((unsigned char)text[i] < 0x20 && text[i] != '\n') || text[i] == 0x7f)
            text[i] = '?';
    int bad = !text || fwrite(text, 1, n, out) != n;
    free(text);
    return bad;
}

struct ask {
    struct input *in;
    const struct request *r;
    enum plan_goal goal;
    double now;
};

/* The goal's best value for the problem as it stands; INFINITY when there is no plan, NAN when it failed. */
static double value(const struct ask *q)
{
    struct plan_opts o = {.goal = q->goal};
    struct plan *p = NULL;
    struct err e;
    int rc = plan_solve(q->in->c, q->in->m, q->r, &o, &p, &e);
    double v = rc == ST_OK ? p->objective : rc == ST_EINFEASIBLE ? INFINITY : NAN;
    plan_free(p);
    return v;
}

static void tell(const struct ask *q, double v, FILE *out)
{
    if (v == INFINITY)
        fprintf(out, "no plan exists\n");
    else if (isnan(v))
        fprintf(out, "not known\n");
    else if (fabs(v - q->now) <= 1e-9 * fabs(q->now))
        fprintf(out, "no change\n");
    else
        fprintf(out, "%s %.6g instead of %.6g (%+.2f%%)\n", plan_goal_name(q->goal), v, q->now,
                100 * (v / q->now - 1));
}

static void rates(const struct input *in, uint32_t d, const struct plan_device *p, FILE *out)
{
    const struct cluster_device *cd = &in->c->devices[d];
    char cap[16];
    double chain = 0;
    for (size_t i = 0; i < in->m->nlayers; i++)
        chain += cd->speed_factor *
                 (cd->layer_overhead_s + fmax(in->m->layers[i].flops / cd->compute_flops_per_s,
                                              in->m->layers[i].read_bytes / cd->memory_bytes_per_s));
    fmt_bytes(cap, (uint64_t)fmin(fmax(cd->memory_bytes - cd->headroom_bytes, 0), 9e18));
    fprintf(out, "%-24s %-11s %s\n", p->id, plan_code_name(p->code), p->reason);
    fprintf(out, "%-24s   %.1f%% of %s used, %.1f%% busy; all layers would take it %.4g s%s\n", "",
            100 * p->memory_ratio, cap, 100 * p->busy_ratio, chain, cd->speed_factor > 1 ? " (derated)" : "");
}

static void counterfactuals(struct ask *q, const struct plan *p, FILE *out)
{
    char more[16];
    fprintf(out, "\nWhat if\n");
    for (size_t i = 0; i < p->n_devices; i++) {
        uint32_t d = cluster_find_device(q->in->c, p->devices[i].id);
        if (d == UINT32_MAX)
            continue;
        struct cluster_device *cd = &q->in->c->devices[d];
        double memory = cd->memory_bytes;
        if (p->devices[i].code == PLAN_CODE_CHOSEN) {
            cd->memory_bytes = 0; /* as good as not there */
            fprintf(out, "  without %s: ", p->devices[i].id);
            tell(q, value(q), out);
            cd->memory_bytes = memory;
        }
        if (p->devices[i].code == PLAN_CODE_NO_MEMORY || p->devices[i].memory_ratio > 0.75) {
            cd->memory_bytes = memory * 1.25;
            fmt_bytes(more, (uint64_t)fmin(memory * 0.25, 9e18));
            fprintf(out, "  with %s more on %s: ", more, p->devices[i].id);
            tell(q, value(q), out);
            cd->memory_bytes = memory;
        }
    }
    if (!q->r)
        return;
    struct request all = *q->r;
    const struct {
        const char *name;
        struct request r;
        bool set;
    } rules[] = {
#define WITHOUT(change)                                                                                      \
    ({                                                                                                       \
        struct request x = all;                                                                              \
        change;                                                                                              \
        x;                                                                                                   \
    })
        {"allow and deny", WITHOUT((x.nallow = x.ndeny = 0)), all.nallow || all.ndeny},
        {"pin", WITHOUT(x.npins = 0), all.npins > 0},
        {"together", WITHOUT(x.ntogether = 0), all.ntogether > 0},
        {"max_stages", WITHOUT(x.max_stages = UINT32_MAX), all.max_stages != UINT32_MAX},
        {"min_nodes", WITHOUT(x.min_nodes = 0), all.min_nodes > 0},
        {"max_bytes_per_node", WITHOUT(x.max_bytes_per_node = INFINITY), all.max_bytes_per_node < INFINITY},
        {"max_total_bytes", WITHOUT(x.max_total_bytes = INFINITY), all.max_total_bytes < INFINITY},
#undef WITHOUT
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].set) {
            struct ask other = *q;
            other.r = &rules[i].r;
            fprintf(out, "  without the request's %s: ", rules[i].name);
            tell(q, value(&other), out);
        }
}

int ctl_plan_explain(int argc, char **argv, FILE *to, FILE *err)
{
    struct args a;
    struct input in = {0};
    struct plan *p = NULL;
    struct err e = {0};
    int rc = plan_args(argc, argv, BITS_INPUT & ~BIT(OPT_JSON), 1, explain_usage, &a, to, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return plan_complain(err, ST_ENOMEM, &e);
    rc = plan_input_open(&a, &in, &e);
    if (rc == ST_OK)
        rc = plan_open(a.file, &p, &e);
    if (rc == ST_OK && p->feasible != PLAN_YES) {
        ctl_plan_print(p, out);
        if (p->has_shortfall)
            fprintf(out, "smallest change that helps: %s\n", p->shortfall.hint);
    } else if (rc == ST_OK) {
        struct ask q = {&in, in.has_request ? &in.r : NULL, p->goal, p->objective};
        for (size_t i = 0; i < p->n_devices && rc == ST_OK; i++) {
            uint32_t d = cluster_find_device(in.c, p->devices[i].id);
            if (d == UINT32_MAX)
                rc = err_set(&e, ST_EINVAL, "the plan's device %s is not in the cluster", p->devices[i].id);
            else
                rates(&in, d, &p->devices[i], out);
        }
        if (rc == ST_OK && in.c->ndevices <= COUNTERFACTUAL_DEVICES)
            counterfactuals(&q, p, out);
    }
    int code = rc < 0 ? plan_complain(err, rc, &e) : 0;
    if ((fclose(out) || put_safe(text, n, to)) && !code)
        code = 1;
    plan_free(p);
    plan_input_fini(&in);
    return code;
}

static const char *device_of(const struct plan *p, const char *layer)
{
    for (size_t i = 0; i < p->n_placements; i++)
        if (!strcmp(p->placements[i].layer, layer))
            return p->placements[i].device;
    return "-";
}

static void figure(FILE *out, const char *name, double a, double b)
{
    if (a != b)
        fprintf(out, "%-18s %.6g -> %.6g (%+.2f%%)\n", name, a, b, a > 0 ? 100 * (b / a - 1) : 0);
}

/* Runs of layers that went the same way, in the order of B. */
static size_t print_moved(const struct plan *a, const struct plan *b, FILE *out)
{
    size_t moved = 0;
    for (size_t i = 0, k; i < b->n_placements; i = k) {
        const struct plan_placement *first = &b->placements[i];
        const char *from = device_of(a, first->layer);
        for (k = i + 1; k < b->n_placements && !strcmp(b->placements[k].device, first->device) &&
                        !strcmp(device_of(a, b->placements[k].layer), from);)
            k++;
        if (!strcmp(from, first->device))
            continue;
        fprintf(out, "%s .. %s (%zu): %s -> %s\n", first->layer, b->placements[k - 1].layer, k - i, from,
                first->device);
        moved += k - i;
    }
    return moved;
}

int ctl_plan_diff(int argc, char **argv, FILE *to, FILE *err)
{
    struct args a;
    struct plan *x = NULL, *y = NULL;
    struct err e = {0};
    int rc = plan_args(argc, argv, 0, 2, diff_usage, &a, to, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        return plan_complain(err, ST_ENOMEM, &e);
    rc = plan_open(a.file, &x, &e);
    if (rc == ST_OK)
        rc = plan_open(a.second, &y, &e);
    if (rc == ST_OK && (x->feasible != PLAN_YES || y->feasible != PLAN_YES))
        rc = err_set(&e, ST_EINVAL, "both plans must be feasible to be compared");
    if (rc == ST_OK) {
        if (x->goal != y->goal)
            fprintf(out, "%-18s %s -> %s\n", "goal", plan_goal_name(x->goal), plan_goal_name(y->goal));
        figure(out, "latency_s", x->latency_s, y->latency_s);
        figure(out, "bottleneck_s", x->bottleneck_s, y->bottleneck_s);
        figure(out, "max_memory_ratio", x->max_memory_ratio, y->max_memory_ratio);
        size_t moved = print_moved(x, y, out);
        if (moved)
            fprintf(out, "%zu of %zu layers are elsewhere\n", moved, y->n_placements);
        else
            fprintf(out, "all layers are where they were\n");
    }
    int code = rc < 0 ? plan_complain(err, rc, &e) : 0;
    if ((fclose(out) || put_safe(text, n, to)) && !code)
        code = 1;
    plan_free(x);
    plan_free(y);
    return code;
}
