#include "coordinator/ctl/plan/plan_priv.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"

#include "common/model/jread.h"

static const char solve_usage[] =
    "usage: strata plan solve --cluster C.json --model M.json --goal latency|throughput|memory|balanced\n"
    "       [--request R.json] [--replicas] [--time-limit S] [--threads N] [--stats] [--json]\n"
    "       [--context N] [--sequences N] [--tokens N]\n"
    "Finds the best placement of the model's layers. --model also takes .gguf and .safetensors files, for "
    "which\n"
    "--context, --sequences and --tokens (per step: 1 = decode, more = prefill) say what is run.\n";
static const char check_usage[] =
    "usage: strata plan check --cluster C.json --model M.json [--request R.json] [--json] PLAN.json\n"
    "       [--context N] [--sequences N] [--tokens N]\n"
    "Recomputes every figure and rule of a plan, independently of the solvers.\n";
static const char show_usage[] =
    "usage: strata plan show [--json] PLAN.json\n"
    "       strata plan show [--json] [--recompute] [--save DIR] JOB\n"
    "       strata plan show --recompute --cluster C.json --model M.json [--request R.json] PLAN.json\n"
    "       [--context N] [--sequences N] [--tokens N]\n"
    "Draws a plan: its stages, a strip of its layers and how full its devices are. With --recompute it is "
    "made\n"
    "anew from the inputs and must be the same bytes. --save keeps a job's plan and its inputs as files.\n";

int ctl_plan_solve(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct input in;
    struct plan *p = NULL;
    struct err e = {0};
    int rc = plan_args(argc, argv,
                       BITS_INPUT | BIT(OPT_GOAL) | BIT(OPT_REPLICAS) | BIT(OPT_TIME) | BIT(OPT_THREADS) |
                           BIT(OPT_STATS),
                       0, solve_usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    rc = plan_input_open(&a, &in, &e);
    if (rc == ST_OK)
        rc = plan_solve(in.c, in.m, in.has_request ? &in.r : NULL, &a.o, &p, &e);
    int code = rc < 0 ? plan_complain(err, rc, &e) : 0;
    if (p && a.json && plan_put_json(p, out, err) < 0)
        code = 1;
    else if (p && !a.json)
        ctl_plan_print(p, out);
    if (p && !a.json && p->has_stats)
        fprintf(out, "\n%.3f s, %llu states, %llu bytes of tables\n", p->stats.seconds,
                (unsigned long long)p->stats.states, (unsigned long long)p->stats.table_bytes);
    plan_free(p);
    plan_input_fini(&in);
    return code;
}

static int put_report(const struct plan_check_report *rep, FILE *out)
{
    struct buf b = {0};
    int rc = buf_printf(&b, "{\"schema\": \"strata.plan-check.v1\", \"ok\": %s, \"problems\": [",
                        rep->n ? "false" : "true");
    for (size_t i = 0; i < rep->n && rc == ST_OK; i++) {
        rc = buf_printf(&b, i ? ",\n  " : "\n  ");
        if (rc == ST_OK)
            rc = jwrite_string(&b, rep->problems[i]);
    }
    if (rc == ST_OK)
        rc = buf_printf(&b,
                        "],\n \"latency_s\": %.17g, \"bottleneck_s\": %.17g, \"max_memory_ratio\": %.17g}\n",
                        rep->latency_s, rep->bottleneck_s, rep->max_memory_ratio);
    if (rc == ST_OK && fwrite(b.data, 1, b.len, out) != b.len)
        rc = ST_EIO;
    buf_fini(&b);
    return rc;
}

int ctl_plan_check(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct input in;
    struct plan *p = NULL;
    struct plan_check_report rep = {0};
    struct err e = {0};
    int rc = plan_args(argc, argv, BITS_INPUT, 1, check_usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    rc = plan_input_open(&a, &in, &e);
    if (rc == ST_OK)
        rc = plan_open(a.file, &p, &e);
    if (rc == ST_OK) {
        rc = plan_check(in.c, in.m, in.has_request ? &in.r : NULL, p, &rep, &e);
        int put = ST_OK;
        if (a.json && (rc == ST_OK || rc == ST_ECONFLICT))
            put = put_report(&rep, out);
        else if (rc == ST_OK)
            fprintf(out, "%s: every figure and rule holds\n", a.file);
        for (size_t i = 0; i < rep.n; i++)
            fprintf(err, "%s: %s\n", a.file, rep.problems[i]);
        if (put < 0)
            rc = err_set(&e, put, "the report could not be written: %s", status_name(put));
        else if (rep.n)
            err_set(&e, rc, "%zu figures or rules are wrong", rep.n);
    }
    int code = rc < 0 ? plan_complain(err, rc, &e) : 0;
    plan_check_fini(&rep);
    plan_free(p);
    plan_input_fini(&in);
    return code;
}

/* The plan of the file made anew: the same bytes, or the first line that is not. */
static int recompute(const struct args *a, const struct plan *p, struct err *e)
{
    struct input in;
    struct plan *again = NULL;
    struct buf text = {0}, now = {0};
    struct plan_opts o = {.goal = p->goal, .replicas = !strcmp(p->solver, "replicas")};
    if (p->stopped || p->has_stats || !strcmp(p->solver, "replan"))
        return err_set(e, ST_EINVAL,
                       "%s: a plan that a limit on time stopped, that was changed from another one, or "
                       "that holds statistics is not made again from its inputs alone",
                       a->file);
    int rc = plan_input_open(a, &in, e);
    if (rc == ST_OK)
        rc = fs_read(a->file, PLAN_FILE_MAX, &text, e);
    if (rc == ST_OK) {
        rc = plan_solve(in.c, in.m, in.has_request ? &in.r : NULL, &o, &again, e);
        rc = again ? plan_to_json(again, &now) : rc;
    }
    if (rc == ST_OK && (text.len != now.len || memcmp(text.data, now.data, now.len))) {
        size_t i = 0, line = 1;
        for (; i < text.len && i < now.len && text.data[i] == now.data[i]; i++)
            line += text.data[i] == '\n';
        rc = err_set(e, ST_ECONFLICT, "%s: line %zu is not what these inputs give", a->file, line);
    }
    plan_free(again);
    buf_fini(&text);
    buf_fini(&now);
    plan_input_fini(&in);
    return rc;
}

int ctl_plan_show(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct plan *p = NULL;
    struct err e = {0};
    int rc = plan_args(argc, argv, BITS_INPUT | BIT(OPT_RECOMPUTE), 1, show_usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    if ((rc = plan_open(a.file, &p, &e)) < 0)
        return plan_complain(err, rc, &e);
    int code = 0;
    if (a.recompute)
        rc = recompute(&a, p, &e);
    if (rc < 0)
        code = plan_complain(err, rc, &e);
    else if (!a.json)
        ctl_plan_print(p, out);
    else if (plan_put_json(p, out, err) < 0)
        code = 1;
    if (a.recompute && rc == ST_OK && !a.json)
        fprintf(out, "\nmade anew from its inputs: the same bytes\n");
    plan_free(p);
    return code;
}
