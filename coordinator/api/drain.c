/*
 * Nodes.Drain, Resume and Forget. That a node is being drained is a row of state.db's meta table, written
 * with its audit event before it is answered; moving the layers off is the jobs room's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/calibration.h"
#include "coordinator/api/net.h"
#include "strata/v1/nodes.pb-c.h"

enum what { DRAIN, RESUME, FORGET };

struct change {
    struct coord *c;
    struct rpc_call *call; /* NULL once nobody waits */
    enum what what;
    char node[64];
};

static void on_caller_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct change *)arg)->call = NULL;
}

static void key_of(char out[80], const char *node)
{
    snprintf(out, 80, "drain/%s", node);
}

static void answer(struct change *g, struct topo_node *n)
{
    Strata__V1__NodeReply rep = STRATA__V1__NODE_REPLY__INIT;
    Strata__V1__Node node;
    strata__v1__node__init(&node);
    node.name = g->node;
    int rc = n ? api_node_fill(g->c, &node, n, true) : ST_OK;
    rep.node = &node;
    if (g->call && rc == ST_OK)
        rpc_reply(g->call, &rep.base);
    else if (g->call)
        api_no_memory(g->call);
    api_node_fini(&node);
}

static void on_stored(void *arg, int rc, const struct err *e)
{
    struct change *g = arg;
    struct coord *c = g->c;
    struct topo_node *n = topo_node(c->topo, g->node);
    if (rc < 0) {
        if (g->call)
            rpc_fail(g->call, e);
        free(g);
        return;
    }
    if (n && g->what != FORGET) {
        n->draining = g->what == DRAIN;
    } else if (n && !n->user) { /* else it came back in this very moment: it is a new one */
        n->state = TOPO_LOST;
        jobs_node_lost(c->jobs, n);
        topo_forget(c->topo, n);
        netmap_forget(c->net->map, g->node);
        calibrations_forget(c, g->node);
        n = NULL;
    }
    LOG_I(&c->log, "api", "node=%s %s", g->node,
          g->what == DRAIN    ? "is being drained"
          : g->what == RESUME ? "takes layers again"
                              : "is forgotten");
    answer(g, n);
    free(g);
    if (!c->stopping)
        jobs_room_changed(c->jobs);
}

static struct store_txn *make_txn(const struct change *g, const char *who)
{
    static const int type[] = {EV_NODE_DRAINED, EV_NODE_RESUMED, EV_NODE_FORGOTTEN};
    struct store_txn *t = store_txn_new();
    char key[80];
    if (!t)
        return NULL;
    key_of(key, g->node);
    store_txn_meta_put(t, key, g->what == DRAIN ? "1" : "");
    if (g->what == FORGET) {
        store_txn_node_delete(t, g->node);
        store_txn_net_forget(t, g->node);
        store_txn_calibrations_forget(t, g->node);
    }
    struct audit_event ev = event_make(type[g->what], EVENT_SUCCESS, clock_wall_us(g->c->clock));
    struct event_meta m = {0};
    uint64_t bytes;
    if (g->what == DRAIN)
        event_meta_u64(&m, "layers", jobs_on_node(g->c->jobs, g->node, &bytes));
    ev.principal = who;
    ev.node = g->node;
    ev.operation = event_info(type[g->what])->name;
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
    return t;
}

static void change(struct rpc_call *call, struct coord *c, const char *name, enum what what)
{
    struct err e;
    if (!api_allow(call, c, PERM_ADMIN))
        return;
    struct topo_node *n = topo_node(c->topo, name);
    if (!n) {
        rpc_finish(call, 5, "NO_NODE", "there is no node '%.64s': strata node list shows them", name);
        return;
    }
    if (what == FORGET && (n->user || n->state == TOPO_CONNECTED)) {
        err_reason(&e, ST_ECONFLICT, "NODE_CONNECTED",
                   "node %s is connected: drain it and stop its agent before it is forgotten", n->name);
        rpc_fail(call, &e);
        return;
    }
    struct change *g = calloc(1, sizeof *g);
    struct store_txn *t = NULL;
    if (g) {
        *g = (struct change){.c = c, .call = call, .what = what};
        str_copy(g->node, sizeof g->node, n->name);
        t = make_txn(g, rpc_peer(call)->principal);
    }
    int rc = t ? store_submit(c->store, t, on_stored, g) : ST_ENOMEM;
    if (rc < 0) {
        free(g);
        err_set(&e, rc, "state.db does not take it now (%s): try again", status_name(rc));
        rpc_fail(call, &e);
        return;
    }
    rpc_on_cancel(call, on_caller_gone, g);
}

void api_nodes_drain(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    change(call, arg, ((const Strata__V1__NodeRequest *)req)->name, DRAIN);
}

void api_nodes_resume(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    change(call, arg, ((const Strata__V1__NodeRequest *)req)->name, RESUME);
}

void api_nodes_forget(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    change(call, arg, ((const Strata__V1__NodeRequest *)req)->name, FORGET);
}

int api_drains_load(struct coord *c, struct err *e)
{
    for (size_t i = 0; i < topo_count(c->topo); i++) {
        struct topo_node *n = topo_at(c->topo, i);
        char key[80], value[8];
        key_of(key, n->name);
        int rc = store_load_meta(c->store, key, value, sizeof value, e);
        if (rc < 0)
            return rc;
        n->draining = value[0] == '1';
    }
    return ST_OK;
}
