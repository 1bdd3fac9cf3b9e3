/* job submit, list, show, watch, cancel. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/jobs.pb-c.h"

#define VERIFY_NS (600ull * NS_PER_S)

static int call(struct ctl *c, const char *method, const ProtobufCMessage *req, uint64_t timeout_ns,
                const char *id, ProtobufCMessage **resp)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__jobs__descriptor, method, req, timeout_ns, id, resp, &e) <
        0)
        return ctl_client_fail(c, &e);
    return 0;
}

static json_t *job_json(const Strata__V1__Job *j)
{
    char made[28], changed[28];
    clock_rfc3339(j->created_us, made);
    clock_rfc3339(j->updated_us, changed);
    json_t *layers = json_array();
    for (size_t i = 0; i < j->n_layers; i++) {
        const Strata__V1__JobLayer *l = j->layers[i];
        char hex[65] = "";
        if (l->sha256.len == 32)
            hex_encode(hex, l->sha256.data, 32);
        json_array_append_new(layers,
                              json_pack("{s:s,s:s,s:s,s:I,s:I,s:s,s:s}", "id", l->id, "device", l->device,
                                        "state", l->state, "bytes", (json_int_t)l->bytes, "loaded_bytes",
                                        (json_int_t)l->loaded_bytes, "source", l->source, "sha256", hex));
    }
    json_t *plan = *j->plan_json ? json_loads(j->plan_json, 0, NULL) : NULL;
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:s,s:s,s:i,s:b,s:o,s:o}", "id", j->id,
                     "principal", j->principal, "model", j->model, "model_path", j->model_path, "goal",
                     j->goal, "state", j->state, "reason_code", j->reason_code, "reason", j->reason,
                     "total_bytes", (json_int_t)j->total_bytes, "loaded_bytes", (json_int_t)j->loaded_bytes,
                     "created", made, "updated", changed, "priority", (int)j->priority, "preemptible",
                     (int)j->preemptible, "layers", layers, "plan", plan ? plan : json_null());
}

static void print_layers(const Strata__V1__Job *j)
{
    static const char *const col[] = {"LAYER", "DEVICE", "STATE", "BYTES>", "FROM", "SHA-256"};
    struct table *t = table_new(col, 6);
    for (size_t i = 0; i < j->n_layers; i++) {
        const Strata__V1__JobLayer *l = j->layers[i];
        char n[16], hex[65] = "";
        fmt_bytes(n, l->bytes);
        if (l->sha256.len == 32)
            hex_encode(hex, l->sha256.data, 32);
        table_cell(t, "%s", l->id);
        table_cell(t, "%s", l->device);
        table_cell(t, "%s", l->state);
        table_cell(t, "%s", n);
        table_cell(t, "%s", *l->source ? l->source : "-");
        table_cell(t, "%.12s", *hex ? hex : "-");
    }
    table_print(t, stdout);
    table_free(t);
}

static void print_job(const Strata__V1__Job *j)
{
    char total[16], loaded[16], made[28];
    fmt_bytes(total, j->total_bytes);
    fmt_bytes(loaded, j->loaded_bytes);
    clock_rfc3339(j->created_us, made);
    printf("job      %s\nmodel    %s (%s)\nowner    %s, submitted %.19sZ\ngoal     %s\nstate    "
           "%s%s%s\nreason   %s\n"
           "bytes    %s of %s on devices\n\n",
           j->id, j->model, j->model_path, j->principal, made, j->goal, j->state, *j->reason_code ? " " : "",
           j->reason_code, j->reason, loaded, total);
    print_layers(j);
}

static int show(const struct ctl *c, const ProtobufCMessage *m)
{
    if (c->json)
        return ctl_print_json("strata.job.v1", job_json((const Strata__V1__Job *)m));
    print_job((const Strata__V1__Job *)m);
    return 0;
}

/* ---- watch ---- */

struct watch {
    struct ctl *c;
    char state[32];
    int exit;
    bool until_ready;
};

static int on_job(const ProtobufCMessage *m, void *arg)
{
    struct watch *w = arg;
    const Strata__V1__Job *j = (const Strata__V1__Job *)m;
    if (w->c->json)
        ctl_print_json("strata.job.v1", job_json(j));
    else
        ctl_bar(w->c, j->id, j->loaded_bytes, j->total_bytes, j->state);
    if (!w->c->json && !w->c->tty && strcmp(w->state, j->state))
        fprintf(stderr, "%s %s %s\n", j->id, j->state, j->reason);
    str_copy(w->state, sizeof w->state, j->state);
    if (!strcmp(j->state, "failed"))
        w->exit = 10;
    bool ended =
        !strcmp(j->state, "failed") || !strcmp(j->state, "cancelled") || !strcmp(j->state, "released");
    if (ended && !w->c->json)
        fprintf(stderr, "\nstrata: job %s %s: %s\n", j->id, j->state, j->reason);
    return ended || (w->until_ready && !strcmp(j->state, "ready"));
}

static int watch(struct ctl *c, const char *id, bool until_ready)
{
    struct watch w = {.c = c, .until_ready = until_ready};
    struct strata_error e;
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    q.id = (char *)id;
    int x = ctl_connect(c);
    if (x)
        return x;
    int rc = strata_client_stream(c->client, &strata__v1__jobs__descriptor, "Watch", &q.base, UINT64_MAX,
                                  on_job, &w, &e);
    ctl_bar_end(c);
    return rc < 0 ? ctl_client_fail(c, &e) : w.exit;
}

/* ---- commands ---- */

static char *absolute(const char *path)
{
    char *full = realpath(path, NULL);
    return full ? full : strdup(path); /* it may exist on the agents alone */
}

int ctl_job_submit(struct ctl *c, int argc, char **argv)
{
    const char *model = NULL, *goal = "latency", *ctx = NULL, *seqs = NULL, *tokens = NULL, *rid = NULL,
               *min_nodes = NULL, *max_stages = NULL, *priority = NULL, *allow[64], *deny[64];
    size_t nallow = 0, ndeny = 0;
    bool dry = false, follow = false, split = false, preemptible = false;
    uint64_t context = 0, sequences = 0, ntokens = 0, nmin = 0, nmax = 0;
    const struct ctl_opt opts[] = {
        {.name = "model", .value = &model},
        {.name = "goal", .value = &goal},
        {.name = "context", .value = &ctx},
        {.name = "sequences", .value = &seqs},
        {.name = "tokens", .value = &tokens},
        {.name = "request-id", .value = &rid},
        {.name = "min-nodes", .value = &min_nodes},
        {.name = "max-stages", .value = &max_stages},
        {.name = "priority", .value = &priority},
        {.name = "preemptible", .flag = &preemptible},
        {.name = "dry-run", .flag = &dry},
        {.name = "watch", .flag = &follow},
        {.name = "split", .flag = &split},
        {.name = "allow", .list = allow, .n = &nallow, .list_max = 64},
        {.name = "deny", .list = deny, .n = &ndeny, .list_max = 64},
    };
    int n = ctl_parse(argc, argv, opts, sizeof opts / sizeof *opts);
    if (n < 0)
        return 2;
    if (n == 1 && !model)
        model = argv[0];
    else if (n || !model)
        return ctl_misuse(c, "job submit needs one model");
    if (ctl_number(ctx, "context", 1ull << 40, &context) ||
        ctl_number(seqs, "sequences", 1u << 20, &sequences) ||
        ctl_number(tokens, "tokens", 1u << 30, &ntokens) ||
        ctl_number(min_nodes, "min-nodes", 10000, &nmin) ||
        ctl_number(max_stages, "max-stages", 10000, &nmax))
        return 2;
    long prio = 0;
    if (priority) {
        char *end;
        prio = strtol(priority, &end, 10);
        if (!*priority || *end || prio < -1000 || prio > 1000)
            return ctl_usage("--priority: '%s' is no number between -1000 and 1000", priority);
    }
    Strata__V1__SubmitRequest q = STRATA__V1__SUBMIT_REQUEST__INIT;
    q.priority = (int32_t)prio;
    q.model_path = absolute(model);
    q.goal = (char *)goal;
    q.context = context;
    q.sequences = (uint32_t)sequences;
    q.tokens = (uint32_t)ntokens;
    q.min_nodes = (uint32_t)nmin;
    q.max_stages = (uint32_t)nmax;
    q.split = split;
    q.preemptible = preemptible;
    q.dry_run = dry;
    q.allow = (char **)allow;
    q.n_allow = nallow;
    q.deny = (char **)deny;
    q.n_deny = ndeny;
    ProtobufCMessage *m;
    int x =
        q.model_path ? call(c, "Submit", &q.base, c->timeout_ns ? c->timeout_ns : 60 * NS_PER_S, rid, &m) : 1;
    free(q.model_path);
    if (x)
        return x;
    char id[64];
    str_copy(id, sizeof id, ((Strata__V1__Job *)m)->id);
    if (!(follow && c->json))
        x = show(c, m);
    protobuf_c_message_free_unpacked(m, NULL);
    if (!x && dry && !c->json)
        puts("\nno changes made: submit without --dry-run to place it");
    return x || dry || !follow ? x : watch(c, id, true);
}

int ctl_job_list(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"JOB", "MODEL", "STATE", "LOADED>", "BYTES>", "OWNER", "REASON"};
    bool all = false;
    const struct ctl_opt opts[] = {{.name = "all", .flag = &all}};
    Strata__V1__ListJobsRequest q = STRATA__V1__LIST_JOBS_REQUEST__INIT;
    if (ctl_parse(argc, argv, opts, 1) != 0)
        return ctl_misuse(c, "job list takes no operand");
    q.all = all;
    json_t *a = json_array();
    struct table *t = table_new(col, 7);
    char token[64] = "";
    int x;
    do {
        ProtobufCMessage *m;
        q.page_token = token;
        if ((x = call(c, "List", &q.base, c->timeout_ns, NULL, &m)))
            break;
        const Strata__V1__ListJobsReply *r = (const Strata__V1__ListJobsReply *)m;
        for (size_t i = 0; i < r->n_jobs; i++) {
            const Strata__V1__Job *j = r->jobs[i];
            char total[16], loaded[16];
            fmt_bytes(total, j->total_bytes);
            fmt_bytes(loaded, j->loaded_bytes);
            json_array_append_new(a, job_json(j));
            table_cell(t, "%s", j->id);
            table_cell(t, "%s", j->model);
            table_cell(t, "%s", j->state);
            table_cell(t, "%s", loaded);
            table_cell(t, "%s", total);
            table_cell(t, "%s", j->principal);
            table_cell(t, "%s", *j->reason_code ? j->reason_code : "-");
        }
        str_copy(token, sizeof token, r->next_page_token);
        protobuf_c_message_free_unpacked(m, NULL);
    } while (*token);
    if (!x && c->json)
        x = ctl_print_json("strata.jobs.v1", json_pack("{s:O}", "jobs", a));
    else if (!x)
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    return x;
}

static int one(struct ctl *c, int argc, char **argv, const char *verb, const char *method,
               uint64_t timeout_ns)
{
    if (argc != 1)
        return ctl_misuse(c, "job %s needs one job", verb);
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    q.id = argv[0];
    ProtobufCMessage *m;
    int x = call(c, method, &q.base, timeout_ns, NULL, &m);
    if (x)
        return x;
    x = show(c, m);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

int ctl_job_show(struct ctl *c, int argc, char **argv)
{
    bool verify = false;
    const struct ctl_opt opts[] = {{.name = "verify", .flag = &verify}};
    int n = ctl_parse(argc, argv, opts, 1);
    if (n < 0)
        return 2;
    return verify ? one(c, n, argv, "show --verify", "Verify", c->timeout_ns ? c->timeout_ns : VERIFY_NS)
                  : one(c, n, argv, "show", "Get", c->timeout_ns);
}

int ctl_job_watch(struct ctl *c, int argc, char **argv)
{
    bool ready = false;
    const struct ctl_opt opts[] = {{.name = "until-ready", .flag = &ready}};
    int n = ctl_parse(argc, argv, opts, 1);
    if (n < 0)
        return 2;
    return n == 1 ? watch(c, argv[0], ready) : ctl_misuse(c, "job watch needs one job");
}

int ctl_job_cancel(struct ctl *c, int argc, char **argv)
{
    int n = ctl_parse(argc, argv, NULL, 0);
    return n < 0 ? 2 : one(c, n, argv, "cancel", "Cancel", c->timeout_ns);
}
