/* Options and inputs of the plan commands. */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "coordinator/ctl/plan/plan_priv.h"

#define EXIT_USAGE 2

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
    {"from", required_argument, NULL, OPT_FROM},
    {"slack", required_argument, NULL, OPT_SLACK},
    {"steps", required_argument, NULL, OPT_STEPS},
    {"cooldown", required_argument, NULL, OPT_COOLDOWN},
    {"since", required_argument, NULL, OPT_SINCE},
    {"to", required_argument, NULL, OPT_TO},
    {"recompute", no_argument, NULL, OPT_RECOMPUTE},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
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

static bool amount(const char *s, double max, double *out)
{
    char *end;
    *out = strtod(s, &end);
    return *s && !*end && *out >= 0 && *out <= max;
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
    case OPT_RECOMPUTE:
        return a->recompute = true;
    case OPT_TIME:
        a->o.time_limit_s = strtod(v, &end);
        return *v && !*end && a->o.time_limit_s > 0 && a->o.time_limit_s <= 1e9;
    case OPT_THREADS:
        if (!whole(v, 1, 1024, &n))
            return false;
        a->o.threads = (unsigned)n;
        return true;
    case OPT_FROM:
        a->from = v;
        return true;
    case OPT_TO:
        a->to = v;
        return true;
    case OPT_SLACK:
        return a->has_slack = amount(v, 1e6, &a->slack);
    case OPT_STEPS:
        return amount(v, 1e18, &a->steps);
    case OPT_COOLDOWN:
        return amount(v, 1e9, &a->cooldown_s);
    case OPT_SINCE:
        return amount(v, 1e9, &a->since_s);
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

int plan_args(int argc, char **argv, unsigned known, int files, const char *usage, struct args *a, FILE *out,
              FILE *err)
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
    if (files > 0 && optind < argc)
        a->file = argv[optind++];
    if (files > 1 && optind < argc)
        a->second = argv[optind++];
    if (optind < argc)
        return bad(err, usage, "unexpected argument %s", argv[optind]);
    if ((files > 0 && !a->file) || (files > 1 && !a->second))
        return bad(err, usage, "%s is missing", "the plan file");
    if ((known >> OPT_RECOMPUTE & 1u) && !a->recompute) {
        if (a->cluster || a->model || a->request)
            return bad(err, usage, "%s is for --recompute",
                       a->cluster ? "--cluster"
                       : a->model ? "--model"
                                  : "--request");
        return 0;
    }
    if ((known >> OPT_CLUSTER & 1u) && !a->cluster)
        return bad(err, usage, "%s is missing", "--cluster");
    if ((known >> OPT_MODEL & 1u) && !a->model)
        return bad(err, usage, "%s is missing", "--model");
    if ((known >> OPT_GOAL & 1u) && !(known >> OPT_FROM & 1u) && !a->has_goal)
        return bad(err, usage, "%s is missing", "--goal");
    if ((known >> OPT_FROM & 1u) && !a->from)
        return bad(err, usage, "%s is missing", "--from");
    return 0;
}

int plan_input_open(const struct args *a, struct input *in, struct err *e)
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

void plan_input_fini(struct input *in)
{
    if (in->has_request)
        request_fini(&in->r);
    cluster_free(in->c);
    model_free(in->m);
}

int plan_complain(FILE *err, int rc, const struct err *e)
{
    fprintf(err, "strata plan: %s\n", e->text[0] ? e->text : status_name(rc));
    return status_exit_code(rc);
}

int plan_put_json(const struct plan *p, FILE *out, FILE *err)
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

int plan_open(const char *path, struct plan **out, struct err *e)
{
    struct buf b = {0};
    int rc = fs_read(path, PLAN_FILE_MAX, &b, e);
    if (rc == ST_OK && (rc = plan_from_json(buf_cstr(&b), b.len, out, e)) < 0)
        err_prefix(e, "%s", path);
    buf_fini(&b);
    return rc;
}
