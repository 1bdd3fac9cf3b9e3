/* plan show JOB: the plan that the coordinator keeps for a job, and what it was made from. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "coordinator/ctl/plan/plan_cmd.h"
#include "coordinator/plan/inputs.h"
#include "strata/v1/plans.pb-c.h"

static int call(struct ctl *c, const char *method, const ProtobufCMessage *req, ProtobufCMessage **resp)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__plans__descriptor, method, req, c->timeout_ns, NULL, resp,
                           &e) < 0)
        return ctl_client_fail(c, &e);
    return 0;
}

static int no_plan(const struct ctl *c, const char *what, const char *job)
{
    struct err e;
    err_reason(&e, ST_ENOENT, "NO_PLAN", what, job);
    return ctl_fail(c, &e);
}

static int fetch_plan(struct ctl *c, const char *job, struct buf *out)
{
    Strata__V1__ShowPlanRequest q = STRATA__V1__SHOW_PLAN_REQUEST__INIT;
    ProtobufCMessage *m;
    q.job = (char *)job;
    int x = call(c, "Show", &q.base, &m);
    if (x)
        return x;
    const char *text = ((const Strata__V1__ShowPlanReply *)m)->plan_json;
    if (!*text)
        x = no_plan(c, "job %s has no plan: it waits for a place, or ended before it had one", job);
    else if (buf_append(out, text, strlen(text)) < 0)
        x = 1;
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

static int fetch_inputs(struct ctl *c, const char *job, struct buf *out)
{
    int64_t made = 0;
    uint64_t total = 0;
    do {
        Strata__V1__PlanInputsRequest q = STRATA__V1__PLAN_INPUTS_REQUEST__INIT;
        ProtobufCMessage *m;
        q.job = (char *)job;
        q.offset = out->len;
        int x = call(c, "Inputs", &q.base, &m);
        if (x)
            return x;
        const Strata__V1__PlanInputsReply *r = (const Strata__V1__PlanInputsReply *)m;
        if (out->len && r->created_us != made)
            out->len = 0; /* another plan was made meanwhile: from its beginning */
        else if (buf_append(out, r->piece.data, r->piece.len) < 0)
            x = 1;
        made = r->created_us;
        total = r->total;
        bool ends = !r->piece.len;
        protobuf_c_message_free_unpacked(m, NULL);
        if (x || (ends && out->len < total) || total > MODEL_MAX_JSON_BYTES)
            return x ? x : no_plan(c, "the inputs of job %s's plan end too early", job);
    } while (out->len < total);
    return total ? 0 : no_plan(c, "what the plan of job %s was made from is not kept", job);
}

static int save(const char *dir, const char *name, const struct buf *b, struct err *e)
{
    char path[1200];
    int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(e, ST_EINVAL, "%.100s: the name of the directory is too long", dir);
    return fs_write_atomic(path, b->data, b->len, 0644, e);
}

static int save_all(const char *dir, const struct plan_inputs *in, const struct buf *plan, struct err *e)
{
    struct buf b = {0};
    if (mkdir(dir, 0777) < 0 && errno != EEXIST)
        return err_set(e, ST_EIO, "%.200s cannot be made: %s", dir, strerror(errno));
    int rc = save(dir, "plan.json", plan, e);
    if (rc == ST_OK && (rc = cluster_write_json(in->c, &b)) == ST_OK)
        rc = save(dir, "cluster.json", &b, e);
    b.len = 0;
    if (rc == ST_OK && (rc = model_write_json(in->m, &b)) == ST_OK)
        rc = save(dir, "model.json", &b, e);
    b.len = 0;
    if (rc == ST_OK && (rc = request_write_json(&in->r, in->m, in->c, &b)) == ST_OK)
        rc = save(dir, "request.json", &b, e);
    buf_fini(&b);
    return rc;
}

static int check(const struct plan_inputs *in, const struct plan *p, struct err *e)
{
    struct plan_check_report rep = {0};
    int rc = plan_check(in->c, in->m, &in->r, p, &rep, e);
    plan_check_fini(&rep);
    return rc;
}

int ctl_plan_job_show(struct ctl *c, int argc, char **argv)
{
    const char *dir = NULL;
    bool again = false;
    const struct ctl_opt opts[] = {{.name = "save", .value = &dir}, {.name = "recompute", .flag = &again}};
    struct buf plan = {0}, text = {0};
    struct plan_inputs in = {0};
    struct plan *p = NULL;
    struct err e = {0};
    size_t line = 0;
    if (ctl_parse(argc, argv, opts, 2) != 1)
        return ctl_usage("plan show needs one job or plan file; see strata plan show --help");
    int x = fetch_plan(c, argv[0], &plan), rc = ST_OK;
    if (!x && (dir || again))
        x = fetch_inputs(c, argv[0], &text);
    if (!x) {
        rc = plan_from_json(buf_cstr(&plan), plan.len, &p, &e);
        if (rc == ST_OK && (dir || again))
            rc = plan_inputs_from_json(buf_cstr(&text), text.len, &in, &e);
        if (rc == ST_OK && dir)
            rc = save_all(dir, &in, &plan, &e);
        if (rc == ST_OK && again && (rc = check(&in, p, &e)) == ST_OK)
            rc = plan_inputs_again(&in, buf_cstr(&plan), plan.len, &line, &e);
        if (rc < 0)
            x = ctl_fail(c, &e);
        else if (c->json)
            x = fwrite(plan.data, 1, plan.len, stdout) != plan.len;
        else
            ctl_plan_print(p, stdout);
    }
    if (!x && !c->json && again)
        printf("\nevery figure and rule holds; made anew from its inputs: the same bytes\n");
    if (!x && !c->json && dir)
        printf("\n%s: plan.json, cluster.json, model.json, request.json\n", dir);
    plan_free(p);
    plan_inputs_fini(&in);
    buf_fini(&text);
    buf_fini(&plan);
    return x;
}
