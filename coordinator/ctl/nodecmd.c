/* node drain, resume, forget. */
#include <string.h>
#include <time.h>

#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/nodes.pb-c.h"

static int call(struct ctl *c, const char *method, const char *node, ProtobufCMessage **resp)
{
    struct strata_error e;
    Strata__V1__NodeRequest q = STRATA__V1__NODE_REQUEST__INIT;
    q.name = (char *)node;
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__nodes__descriptor, method, &q.base, c->timeout_ns, NULL,
                           resp, &e) < 0)
        return ctl_client_fail(c, &e);
    return 0;
}

static int show(const struct ctl *c, const Strata__V1__NodeReply *r)
{
    const Strata__V1__Node *n = r->node;
    char bytes[16];
    if (c->json)
        return ctl_print_json("strata.node_change.v1",
                              json_pack("{s:s,s:s,s:b,s:I,s:I}", "name", n->name, "state",
                                        *n->state ? n->state : "forgotten", "draining", (int)n->draining,
                                        "layers", (json_int_t)n->layers, "layer_bytes",
                                        (json_int_t)n->layer_bytes));
    fmt_bytes(bytes, n->layer_bytes);
    if (!*n->state)
        printf("%s is forgotten; an agent with its certificate that connects is a new node\n", n->name);
    else if (!n->draining)
        printf("%s takes layers again\n", n->name);
    else if (n->layers)
        printf(
            "%s is being drained: %u layers, %s, are still there; strata node list shows when it is empty\n",
            n->name, n->layers, bytes);
    else
        printf("%s is drained: nothing of a job is on it\n", n->name);
    return 0;
}

static int one(struct ctl *c, int argc, char **argv, const char *verb, const char *method)
{
    if (ctl_parse(argc, argv, NULL, 0) != 1)
        return ctl_misuse(c, "node %s needs one node", verb);
    ProtobufCMessage *m;
    int x = call(c, method, argv[0], &m);
    if (x)
        return x;
    x = show(c, (const Strata__V1__NodeReply *)m);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

int ctl_node_resume(struct ctl *c, int argc, char **argv)
{
    return one(c, argc, argv, "resume", "Resume");
}

int ctl_node_forget(struct ctl *c, int argc, char **argv)
{
    return one(c, argc, argv, "forget", "Forget");
}

int ctl_node_drain(struct ctl *c, int argc, char **argv)
{
    return one(c, argc, argv, "drain", "Drain");
}
