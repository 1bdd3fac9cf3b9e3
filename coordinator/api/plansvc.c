/* Service Plans. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/cluster.h"
#include "coordinator/api/api.h"
#include "strata/v1/plans.pb-c.h"

#define PIECE ((size_t)512 << 10) /* of a document: well below what a message may hold */

void api_plans_cluster(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    (void)req;
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    struct cluster *cl = NULL;
    struct buf b = {0};
    struct err e;
    int rc = jobs_snapshot(c->jobs, api_policy(c, rpc_peer(call)->principal), &cl, &e);
    if (rc == ST_OK && (rc = cluster_write_json(cl, &b)) < 0)
        err_set(&e, rc, "cannot write the cluster down");
    if (rc == ST_OK) {
        Strata__V1__ClusterReply rep = STRATA__V1__CLUSTER_REPLY__INIT;
        rep.cluster_json = (char *)buf_cstr(&b);
        rpc_reply(call, &rep.base);
    } else {
        rpc_fail(call, &e);
    }
    buf_fini(&b);
    cluster_free(cl);
}

void api_plans_show(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct job *j = api_own_job(call, arg, ((const Strata__V1__ShowPlanRequest *)req)->job);
    if (!j)
        return;
    Strata__V1__ShowPlanReply rep = STRATA__V1__SHOW_PLAN_REPLY__INIT;
    if (j->plan_json)
        rep.plan_json = j->plan_json;
    rpc_reply(call, &rep.base);
}

/* ---- what a plan was made from: read off the loop ---- */

struct inputs {
    struct offload_job job; /* first */
    struct coord *c;
    struct rpc_call *call; /* NULL once it was cancelled */
    char id[40];
    uint64_t offset, total;
    int64_t created_us;
    struct buf piece;
    int rc;
    struct err e;
};

static void inputs_work(struct offload_job *j)
{
    struct inputs *in = (struct inputs *)j;
    in->rc = store_plan_inputs(in->c->store, in->id, in->offset, PIECE, &in->piece, &in->total,
                               &in->created_us, &in->e);
}

static void inputs_done(struct offload_job *j)
{
    struct inputs *in = (struct inputs *)j;
    if (in->call && in->rc < 0) {
        rpc_fail(in->call, &in->e);
    } else if (in->call) {
        Strata__V1__PlanInputsReply rep = STRATA__V1__PLAN_INPUTS_REPLY__INIT;
        rep.piece = (ProtobufCBinaryData){in->piece.len, in->piece.data};
        rep.total = in->total;
        rep.created_us = in->created_us;
        rpc_reply(in->call, &rep.base);
    }
    buf_fini(&in->piece);
    free(in);
}

static void inputs_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct inputs *)arg)->call = NULL;
}

void api_plans_inputs(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    const Strata__V1__PlanInputsRequest *q = (const Strata__V1__PlanInputsRequest *)req;
    struct job *j = api_own_job(call, arg, q->job);
    if (!j)
        return;
    struct inputs *in = calloc(1, sizeof *in);
    if (!in) {
        api_no_memory(call);
        return;
    }
    in->c = arg;
    in->call = call;
    in->offset = q->offset < INT64_MAX ? q->offset : INT64_MAX - 1;
    str_copy(in->id, sizeof in->id, j->id);
    in->job.work = inputs_work;
    in->job.done = inputs_done;
    rpc_on_cancel(call, inputs_gone, in);
    offload_run(in->c->offload, &in->job);
}
