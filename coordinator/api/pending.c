#include "coordinator/api/pending.h"

#include <stdlib.h>

static void pending_free(struct trust_pending *p)
{
    if (p->record)
        protobuf_c_message_free_unpacked(p->record, NULL);
    buf_fini(&p->pem);
    free(p);
}

static void cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct trust_pending *)arg)->call = NULL;
}

static void stored(void *arg, int rc, const struct err *e)
{
    struct trust_pending *p = arg;
    if (rc == ST_OK) {
        ProtobufCMessage *r = p->record;
        p->record = NULL;
        if (r && trust_keep(p->map, p->id, r) < 0)
            LOG_E(&p->t->c->log, "tls", "no memory for the record %s", p->id);
        else if (!r && p->remove)
            trust_drop(p->map, p->id);
        p->apply(p);
    } else if (p->call) {
        rpc_fail(p->call, e);
    }
    pending_free(p);
}

struct trust_pending *trust_pending_new(struct trust *t, struct rpc_call *call,
                                        void (*apply)(struct trust_pending *p))
{
    struct trust_pending *p = calloc(1, sizeof *p);
    if (!p) {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
        return NULL;
    }
    p->t = t;
    p->call = call;
    p->apply = apply;
    p->revoked = -1;
    rpc_on_cancel(call, cancelled, p);
    return p;
}

void trust_pending_submit(struct trust_pending *p, struct store_txn *txn)
{
    int rc = txn ? store_submit(p->t->c->store, txn, stored, p) : ST_ENOMEM;
    if (rc == ST_OK)
        return;
    if (p->call) {
        rpc_on_cancel(p->call, NULL, NULL);
        rpc_finish(p->call, status_to_rpc(rc), "BUSY",
                   "the coordinator cannot write this down now: try again");
    }
    pending_free(p);
}

void trust_pending_fail(struct trust_pending *p, const struct err *e)
{
    if (p->call) {
        rpc_on_cancel(p->call, NULL, NULL);
        rpc_fail(p->call, e);
    }
    pending_free(p);
}

void trust_pending_reply(struct trust_pending *p, const ProtobufCMessage *m)
{
    if (p->call)
        rpc_reply(p->call, m);
}
