#include "agent/net/net_priv.h"

#include <stdlib.h>
#include <string.h>

int net_new(struct net **out, const struct net_cfg *cfg, struct err *e)
{
    struct net *n = calloc(1, sizeof *n);
    if (!n)
        return err_set(e, ST_ENOMEM, "no memory for the network's probes");
    n->cfg = *cfg;
    *out = n;
    return ST_OK;
}

void net_close(struct net *n)
{
    n->closing = true;
    probers_close(n);
}

void net_free(struct net *n)
{
    if (!n)
        return;
    probers_close(n);
    free(n);
}

void net_set_key(struct net *n, const uint8_t pub[TICKET_PUB_LEN])
{
    if (n->have_pub && memcmp(n->pub, pub, TICKET_PUB_LEN)) {
        memcpy(n->before, n->pub, TICKET_PUB_LEN);
        n->have_before = true;
    }
    memcpy(n->pub, pub, TICKET_PUB_LEN);
    n->have_pub = true;
}

static bool from_coordinator(struct rpc_call *call)
{
    if (rpc_peer(call)->kind == TLS_COORDINATOR)
        return true;
    rpc_finish(call, 7, "NOT_COORDINATOR", "only the coordinator may call %s", rpc_call_name(call));
    return false;
}

static void on_probe(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    if (from_coordinator(call))
        prober_start(call, arg, (const Strata__V1__ProbeRequest *)msg);
}

static void on_seen(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    if (from_coordinator(call))
        answer_seen(call, arg, ((const Strata__V1__SeenRequest *)msg)->id);
}

static void on_doctor(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)msg;
    if (from_coordinator(call))
        doctor_answer(call, arg);
}

int net_agent_table(struct rpc_table **out, struct net *n, struct err *e)
{
    static const struct rpc_method methods[] = {
        {"strata.v1.NetAgent", "Probe", RPC_UNARY, on_probe},
        {"strata.v1.NetAgent", "Seen", RPC_UNARY, on_seen},
        {"strata.v1.NetAgent", "Doctor", RPC_UNARY, on_doctor},
    };
    const ProtobufCServiceDescriptor *const services[] = {&strata__v1__net_agent__descriptor};
    return rpc_table_new(out, services, 1, methods, sizeof methods / sizeof *methods, n, e);
}

int net_peer_table(struct rpc_table **out, struct net *n, struct err *e)
{
    return answer_table(out, n, e);
}
