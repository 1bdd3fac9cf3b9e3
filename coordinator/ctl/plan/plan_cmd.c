#include "coordinator/ctl/plan/plan_cmd.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/model/cluster.h"
#include "common/model/jread.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/plan.h"

#define PLAN_FILE_MAX ((size_t)64 << 20)
#define EXIT_USAGE 2

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
static const char show_usage[] = "usage: strata plan show [--json] PLAN.json\nDraws a plan as a table.\n";

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
    OPT_HELP
};

static const struct option options[] = {
    {"cluster", required_argument, NULL, OPT_CLUSTER},
    {"model", required_argument, NULL, OPT_MODEL},
    {"goal", required_argument, NULL, OPT_GOAL},
    {"request", required_argument, NULL, OPT_REQUEST},
    {"replicas", no_argument, NULL, OPT_REPLICAS},
    {"time-limit", required_argument, NULL, OPT_TIME},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"stats", no_argument, NULL, OPT_STATS},
    {"json", no_argument, NULL, OPT_JSON},
    {"context", required_argument, NULL, OPT_CONTEXT},
    {"sequences", required_argument, NULL, OPT_SEQUENCES},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

struct args {
    const char *cluster, *model, *request, *file;
    bool has_goal, json;
    struct plan_opts o;
    struct model_options mo;
};

static int bad(FILE *err, const char *usage, const char *fmt, const char *what)
{
    fprintf(err, "strata plan: ");
    fprintf(err, fmt, what);
    fprintf(err, "\n%s", usage);
    return EXIT_USAGE;
}

static bool whole(const char *s, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno || *s < '0' || *s > '9' || *end || v < min || v > max)
        return false;
    *out = v;
    return true;
}

static bool take(struct args *a, int opt, const char *v)
{
    char *end;
    uint64_t n = 0;
    switch (opt) {
    case OPT_CLUSTER:
        a->cluster = v;
        return true;
    case OPT_MODEL:
        a->model = v;
        return true;
    case OPT_REQUEST:
        a->request = v;
        return true;
    case OPT_GOAL:
        a->has_goal = true;
        return plan_goal_parse(v, &a->o.goal) == ST_OK;
    case OPT_REPLICAS:
        return a->o.replicas = true;
    case OPT_STATS:
        return a->o.stats = true;
    case OPT_JSON:
        return a->json = true;
    case OPT_TIME:
        a->o.time_limit_s = strtod(v, &end);
        return *v && !*end && a->o.time_limit_s > 0 && a->o.time_limit_s <= 1e9;
    case OPT_THREADS:
        if (!whole(v, 1, 1024, &n))
            return false;
        a->o.threads = (unsigned)n;
        return true;
    case OPT_CONTEXT:
        return whole(v, 1, 1ull << 40, &a->mo.context);
    case OPT_SEQUENCES:
        return whole(v, 1, 1ull << 40, &a->mo.sequences);
    case OPT_TOKENS:
        return whole(v, 1, 1ull << 40, &a->mo.tokens);
    default:
        return false;
    }
}

/* 0 = go on, −1 = help was asked for and printed, else the exit code. `known` has one bit per option. */
static int parse(int argc, char **argv, unsigned known, bool wants_file, const char *usage, struct args *a,
                 FILE *out, FILE *err)
{
    int opt, index = 0;
    memset(a, 0, sizeof *a);
    a->o.clock = clock_system();
    opterr = 0;
    optind = 0; /* start anew: another command may have been parsed before */
    while ((opt = getopt_long(argc, argv, ":", options, &index)) != -1) {
        if (opt == OPT_HELP) {
            fprintf(out, "%s", usage);
            return -1;
        }
        if (opt == ':')
            return bad(err, usage, "%s needs a value", argv[optind - 1]);
        if (opt == '?' || !(known >> opt & 1u))
            return bad(err, usage, "unknown option %s", argv[optind - 1]);
        if (!take(a, opt, optarg))
            return bad(err, usage, "the value of --%s is out of range or not one of its words",
                       options[index].name);
    }
    if (wants_file && optind < argc)
        a->file = argv[optind++];
    if (optind < argc)
        return bad(err, usage, "unexpected argument %s", argv[optind]);
    if (wants_file && !a->file)
        return bad(err, usage, "%s is missing", "the plan file");
    if ((known >> OPT_CLUSTER & 1u) && !a->cluster)
        return bad(err, usage, "%s is missing", "--cluster");
    if ((known >> OPT_MODEL & 1u) && !a->model)
        return bad(err, usage, "%s is missing", "--model");
    if ((known >> OPT_GOAL & 1u) && !a->has_goal)
        return bad(err, usage, "%s is missing", "--goal");
    return 0;
}

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

static int input_open(const struct args *a, struct input *in, struct err *e)
{
    memset(in, 0, sizeof *in);
    int rc = cluster_open(a->cluster, &in->c, e);
    if (rc == ST_OK)
        rc = model_open(a->model, &a->mo, &in->m, e);
    if (rc == ST_OK && a->request) {
        rc = request_open(a->request, in->m, in->c, &in->r, e);
        in->has_request = rc == ST_OK;
    }
    return rc;
}

static void input_fini(struct input *in)
{
    if (in->has_request)
        request_fini(&in->r);
    cluster_free(in->c);
    model_free(in->m);
}

static int complain(FILE *err, int rc, const struct err *e)
{
    fprintf(err, "strata plan: %s\n", e->text[0] ? e->text : status_name(rc));
    return status_exit_code(rc);
}

static int put_json(const struct plan *p, FILE *out, FILE *err)
{
    struct buf b = {0};
    int rc = plan_to_json(p, &b);
    if (rc == ST_OK && fwrite(b.data, 1, b.len, out) != b.len)
        rc = ST_EIO;
    buf_fini(&b);
    if (rc < 0)
        fprintf(err, "strata plan: the plan could not be written: %s\n", status_name(rc));
    return rc;
}

int ctl_plan_solve(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct input in;
    struct plan *p = NULL;
    struct err e = {0};
    int rc = parse(argc, argv,
                   BITS_INPUT | BIT(OPT_GOAL) | BIT(OPT_REPLICAS) | BIT(OPT_TIME) | BIT(OPT_THREADS) |
                       BIT(OPT_STATS),
                   false, solve_usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    rc = input_open(&a, &in, &e);
    if (rc == ST_OK)
        rc = plan_solve(in.c, in.m, in.has_request ? &in.r : NULL, &a.o, &p, &e);
    int code = rc < 0 ? complain(err, rc, &e) : 0;
    if (p && a.json && put_json(p, out, err) < 0)
        code = 1;
    else if (p && !a.json)
        ctl_plan_print(p, out);
    if (p && !a.json && p->has_stats)
        fprintf(out, "\n%.3f s, %llu states, %llu bytes of tables\n", p->stats.seconds,
                (unsigned long long)p->stats.states, (unsigned long long)p->stats.table_bytes);
    plan_free(p);
    input_fini(&in);
    return code;
}

static int plan_open(const char *path, struct plan **out, struct err *e)
{
    struct buf b = {0};
    int rc = fs_read(path, PLAN_FILE_MAX, &b, e);
    if (rc == ST_OK && (rc = plan_from_json(buf_cstr(&b), b.len, out, e)) < 0)
        err_prefix(e, "%s", path);
    buf_fini(&b);
    return rc;
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
    int rc = parse(argc, argv, BITS_INPUT, true, check_usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    rc = input_open(&a, &in, &e);
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
    int code = rc < 0 ? complain(err, rc, &e) : 0;
    plan_check_fini(&rep);
    plan_free(p);
    input_fini(&in);
    return code;
}

int ctl_plan_show(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct plan *p = NULL;
    struct err e = {0};
    int rc = parse(argc, argv, BIT(OPT_JSON), true, show_usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    if ((rc = plan_open(a.file, &p, &e)) < 0)
        return complain(err, rc, &e);
    int code = 0;
    if (!a.json)
        ctl_plan_print(p, out);
    else if (put_json(p, out, err) < 0)
        code = 1;
    plan_free(p);
    return code;
}
