/* status, node list, gpu list: what there is. */
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/nodes.pb-c.h"

static int call(struct ctl *c, const char *method, const ProtobufCMessage *req, ProtobufCMessage **resp)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__nodes__descriptor, method, req, c->timeout_ns, NULL, resp,
                           &e) < 0)
        return ctl_client_fail(c, &e);
    return 0;
}

static json_t *time_json(int64_t us)
{
    char t[28];
    clock_rfc3339(us, t);
    return json_string(t);
}

int ctl_status(struct ctl *c, int argc, char **argv)
{
    if (ctl_parse(argc, argv, NULL, 0) != 0)
        return ctl_misuse(c, "status takes nothing");
    Strata__V1__StatusRequest q = STRATA__V1__STATUS_REQUEST__INIT;
    ProtobufCMessage *m;
    int x = call(c, "Status", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__StatusReply *s = (const Strata__V1__StatusReply *)m;
    if (c->json) {
        x = ctl_print_json(
            "strata.status.v1",
            json_pack("{s:s,s:s,s:s,s:s,s:o,s:o,s:I,s:I,s:I,s:I,s:I,s:I}", "version", s->version,
                      "trust_domain", s->trust_domain, "coordinator", strata_client_coordinator(c->client),
                      "principal", strata_client_principal(c->client), "started", time_json(s->started_us),
                      "now", time_json(s->now_us), "nodes_connected", (json_int_t)s->nodes_connected,
                      "nodes_lost", (json_int_t)s->nodes_lost, "devices", (json_int_t)s->devices,
                      "jobs_ready", (json_int_t)s->jobs_ready, "jobs_total", (json_int_t)s->jobs_total,
                      "audit_rows", (json_int_t)s->audit_rows));
    } else {
        char up[16];
        fmt_seconds(up, (double)(s->now_us - s->started_us) / 1e6);
        printf("coordinator  %s, strata %s, up %s, trust domain %s\nyou are      %s\n"
               "nodes        %u connected, %u lost\ndevices      %u\njobs         %u ready of %u\naudit      "
               "  %llu rows\n",
               strata_client_coordinator(c->client), s->version, up, s->trust_domain,
               strata_client_principal(c->client), s->nodes_connected, s->nodes_lost, s->devices,
               s->jobs_ready, s->jobs_total, (unsigned long long)s->audit_rows);
    }
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

static json_t *device_json(const Strata__V1__Device *d)
{
    return json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:b,s:I,s:I,s:I,s:o,s:o}", "id", d->id, "node", d->node, "backend",
        d->backend, "name", d->name, "vendor", d->vendor, "uuid", d->uuid, "driver", d->driver_version,
        "support", d->support_level, "software", (int)d->software, "memory_bytes",
        (json_int_t)d->memory_bytes, "available_bytes", (json_int_t)d->available_bytes, "compute_units",
        (json_int_t)d->compute_units, "compute_flops_per_s",
        d->compute_flops_per_s > 0 ? json_real(d->compute_flops_per_s) : json_null(), "memory_bytes_per_s",
        d->memory_bytes_per_s > 0 ? json_real(d->memory_bytes_per_s) : json_null());
}

static int list(struct ctl *c, bool devices, ProtobufCMessage **m)
{
    Strata__V1__ListNodesRequest q = STRATA__V1__LIST_NODES_REQUEST__INIT;
    q.devices = devices;
    return call(c, "List", &q.base, m);
}

int ctl_node_list(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"NODE", "STATE", "ADDRESS", "RTT>", "DEVICES>", "LAST SEEN", "VERSION"};
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, NULL, 0) != 0)
        return ctl_misuse(c, "node list takes nothing");
    int x = list(c, true, &m);
    if (x)
        return x;
    const Strata__V1__ListNodesReply *r = (const Strata__V1__ListNodesReply *)m;
    json_t *a = json_array();
    struct table *t = table_new(col, 7);
    for (size_t i = 0; i < r->n_nodes; i++) {
        const Strata__V1__Node *n = r->nodes[i];
        char rtt[16] = "-", seen[28];
        if (n->rtt_s > 0)
            fmt_seconds(rtt, n->rtt_s);
        clock_rfc3339(n->last_seen_us, seen);
        json_t *d = json_array();
        for (size_t k = 0; k < n->n_devices; k++)
            json_array_append_new(d, device_json(n->devices[k]));
        json_array_append_new(
            a, json_pack("{s:s,s:b,s:I,s:I,s:s,s:s,s:s,s:s,s:o,s:o,s:o,s:o}", "name", n->name, "draining",
                         (int)n->draining, "layers", (json_int_t)n->layers, "layer_bytes",
                         (json_int_t)n->layer_bytes, "state", n->state, "address", n->address, "peer_address",
                         n->peer_address, "version", n->version, "first_seen", time_json(n->first_seen_us),
                         "last_seen", time_json(n->last_seen_us), "rtt_s",
                         n->rtt_s > 0 ? json_real(n->rtt_s) : json_null(), "devices", d));
        table_cell(t, "%s", n->name);
        if (n->draining && n->layers)
            table_cell(t, "%s, draining %u layers", n->state, n->layers);
        else
            table_cell(t, "%s%s", n->state, n->draining ? ", drained" : "");
        table_cell(t, "%s", n->address);
        table_cell(t, "%s", rtt);
        table_cell(t, "%zu", n->n_devices);
        table_cell(t, "%.19sZ", seen);
        table_cell(t, "%s", n->version);
    }
    if (c->json)
        x = ctl_print_json("strata.node.v1", json_pack("{s:O}", "nodes", a));
    else
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

int ctl_gpu_list(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"DEVICE",  "NAME",  "KIND",     "FREE>",
                                      "MEMORY>", "RATE>", "COMPUTE>", "DRIVER"};
    ProtobufCMessage *m;
    if (ctl_parse(argc, argv, NULL, 0) != 0)
        return ctl_misuse(c, "gpu list takes nothing");
    int x = list(c, true, &m);
    if (x)
        return x;
    const Strata__V1__ListNodesReply *r = (const Strata__V1__ListNodesReply *)m;
    json_t *a = json_array();
    struct table *t = table_new(col, 8);
    for (size_t i = 0; i < r->n_nodes; i++)
        for (size_t k = 0; k < r->nodes[i]->n_devices; k++) {
            const Strata__V1__Device *d = r->nodes[i]->devices[k];
            char avail[16], total[16];
            fmt_bytes(avail, d->available_bytes);
            fmt_bytes(total, d->memory_bytes);
            json_array_append_new(a, device_json(d));
            table_cell(t, "%s", d->id);
            table_cell(t, "%s", d->name);
            table_cell(t, "%s", d->software ? "software" : d->backend);
            table_cell(t, "%s", avail);
            table_cell(t, "%s", total);
            if (d->memory_bytes_per_s > 0)
                table_cell(t, "%.1f GB/s", d->memory_bytes_per_s / 1e9);
            else
                table_cell(t, "-");
            if (d->compute_flops_per_s > 0)
                table_cell(t, "%.1f GFLOP/s", d->compute_flops_per_s / 1e9);
            else
                table_cell(t, "-");
            table_cell(t, "%s", d->driver_version);
        }
    if (c->json)
        x = ctl_print_json("strata.device.v1", json_pack("{s:O}", "devices", a));
    else
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}
