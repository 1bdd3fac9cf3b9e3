/* Service Nodes: agents say hello and that they live; users ask what there is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/calibration.h"
#include "coordinator/api/net.h"
#include "coordinator/api/trust.h"
#include "strata/v1/nodes.pb-c.h"

#define PROTO_MAX_RESIDENTS 100000u

static bool from_node(struct rpc_call *call, struct coord *c)
{
    const struct tls_identity *id = rpc_peer(call);
    if (id->kind == TLS_NODE)
        return true;
    struct event_meta m = {0};
    event_meta_str(&m, "reason", "NOT_A_NODE");
    api_event(c, EV_SECURITY_ACCESS_DENIED, EVENT_DENIED, id->principal, NULL, event_meta_text(&m),
              "only a node's certificate may register as a node");
    event_meta_fini(&m);
    rpc_finish(call, 7, "NOT_A_NODE", "%s is no node: register with a certificate of the kind node/NAME",
               id->principal);
    return false;
}

static void take_device(struct topo_device *d, const Strata__V1__Device *p)
{
    *d = (struct topo_device){.software = p->software,
                              .memory_bytes = p->memory_bytes,
                              .session_used_bytes = p->session_bytes,
                              .available_bytes =
                                  p->available_bytes < p->memory_bytes ? p->available_bytes : p->memory_bytes,
                              .compute_units = p->compute_units,
                              .flops_per_s = p->compute_flops_per_s,
                              .bytes_per_s = p->memory_bytes_per_s};
    str_copy(d->local_id, sizeof d->local_id, p->id);
    str_copy(d->backend, sizeof d->backend, p->backend);
    str_copy(d->name, sizeof d->name, p->name);
    str_copy(d->vendor, sizeof d->vendor, p->vendor);
    str_copy(d->uuid, sizeof d->uuid, p->uuid);
    str_copy(d->driver_version, sizeof d->driver_version, p->driver_version);
    str_copy(d->support_level, sizeof d->support_level, p->support_level);
    /* What an agent claims is bounded: a rate that is no finite positive number is no measurement. */
    if (!(d->flops_per_s > 0 && d->flops_per_s < 1e30))
        d->flops_per_s = 0;
    if (!(d->bytes_per_s > 0 && d->bytes_per_s < 1e30))
        d->bytes_per_s = 0;
}

static void store_node(struct coord *c, struct topo_node *n)
{
    struct store_txn *t = store_txn_new();
    if (!t)
        return;
    char spki[65] = "";
    hex_encode(spki, rpc_session_peer(api_node_rpc(n))->spki_sha256, 32);
    store_txn_node_put(t, &(struct store_node){.id = n->name,
                                               .address = n->address,
                                               .spki = spki,
                                               .state = (int)n->state,
                                               .incarnation = n->epoch,
                                               .enrolled_us = n->first_seen_us,
                                               .seen_us = n->last_seen_us,
                                               .info = n->version,
                                               .info_len = strlen(n->version)});
    for (size_t i = 0; i < n->ndevices; i++)
        store_txn_device_put(t, &(struct store_device){.id = n->devices[i].id,
                                                       .node = n->name,
                                                       .total_bytes = n->devices[i].memory_bytes,
                                                       .info = n->devices[i].name,
                                                       .info_len = strlen(n->devices[i].name),
                                                       .updated_us = n->last_seen_us});
    struct event_meta m = {0};
    event_meta_u64(&m, "devices", n->ndevices);
    struct audit_event ev = event_make(EV_NODE_DEVICES_CHANGED, EVENT_SUCCESS, n->last_seen_us);
    char principal[80];
    snprintf(principal, sizeof principal, "node/%s", n->name);
    ev.principal = principal;
    ev.node = n->name;
    ev.operation = "node.devices_changed";
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
    int rc = store_submit(c->store, t, NULL, NULL);
    if (rc < 0)
        LOG_E(&c->log, "api", "node not recorded node=%s error=%s", n->name, status_name(rc));
}

static struct jobs_resident *take_residents(const Strata__V1__HelloRequest *q)
{
    struct jobs_resident *r = calloc(q->n_resident + 1, sizeof *r);
    for (size_t i = 0; r && i < q->n_resident; i++)
        r[i] = (struct jobs_resident){.job = q->resident[i]->job,
                                      .layer = q->resident[i]->layer,
                                      .device = q->resident[i]->device,
                                      .sha256 = q->resident[i]->sha256.len == 32 ? q->resident[i]->sha256.data
                                                                                 : NULL,
                                      .bytes = q->resident[i]->bytes};
    return r;
}

static void answer_hello(struct rpc_call *call, struct coord *c, const struct topo_node *n,
                         const Strata__V1__HelloRequest *q, const struct jobs_resident *r)
{
    Strata__V1__HelloReply rep = STRATA__V1__HELLO_REPLY__INIT;
    Strata__V1__Resident **drop = calloc(q->n_resident + 1, sizeof(*drop));
    rep.epoch = n->epoch;
    rep.heartbeat_ns = c->cfg.heartbeat_ns;
    rep.ticket_public_key = (ProtobufCBinaryData){sizeof c->ticket_public, c->ticket_public};
    for (size_t i = 0; drop && i < q->n_resident; i++)
        if (r[i].drop)
            drop[rep.n_drop++] = q->resident[i];
    rep.drop = drop;
    rpc_reply(call, &rep.base);
    free(drop);
}

/* A name is held by one live machine. The same process may come again, its old connection is a leftover; so
 * may a process that follows a silent one with the same key, or with the key that was certified after it. */
static bool refuse_second(struct rpc_call *call, struct coord *c, const struct topo_node *old,
                          const struct coord_session *other, const Strata__V1__HelloRequest *q)
{
    const struct tls_identity *id = rpc_peer(call);
    bool follows = trust_succeeds(c->trust, rpc_session_peer(other->rpc), id);
    bool same = q->instance.len == sizeof other->instance &&
                !memcmp(q->instance.data, other->instance, sizeof other->instance);
    bool silent = clock_ns(c->clock) - old->last_heard_ns > 2 * c->cfg.heartbeat_ns;
    if (follows && (same || silent))
        return false;
    char addr[64];
    quic_addr_str(quic_conn_remote(rpc_session_conn(rpc_call_session(call))), addr);
    const char *reason = follows ? "DUPLICATE_IDENTITY" : "NAME_IN_USE";
    struct event_meta m = {0};
    event_meta_str(&m, "reason", reason);
    event_meta_str(&m, "peer", addr);
    api_event(c, EV_NODE_DUPLICATE, EVENT_DENIED, id->principal, id->name, event_meta_text(&m),
              "a second live session with this identity was refused");
    event_meta_fini(&m);
    rpc_finish(call, 10, reason,
               "node %s is already connected from %s%s: give this one another name, or stop the other",
               id->name, old->address, follows ? "" : " with another key");
    return true;
}

void api_nodes_hello(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__HelloRequest *q = (const Strata__V1__HelloRequest *)req;
    const struct tls_identity *id = rpc_peer(call);
    struct coord_session *s = rpc_session_user(rpc_call_session(call));
    struct err e;
    if (!from_node(call, c))
        return;
    if (q->n_devices > TOPO_MAX_DEVICES || q->n_resident > PROTO_MAX_RESIDENTS) {
        rpc_finish(call, 3, "TOO_MANY", "more devices or resident layers than a node may have");
        return;
    }
    struct topo_node *old = topo_node(c->topo, id->name);
    struct coord_session *other = old ? old->user : NULL;
    if (other && other != s && old->state == TOPO_CONNECTED) {
        if (refuse_second(call, c, old, other, q))
            return;
        other->node[0] = 0;
        rpc_session_close(other->rpc, 0, "replaced by a newer connection of this node");
    }
    struct topo_device *d = calloc(q->n_devices + 1, sizeof *d);
    struct jobs_resident *r = take_residents(q);
    struct topo_node *n = NULL;
    for (size_t i = 0; d && i < q->n_devices; i++) {
        take_device(&d[i], q->devices[i]);
        calibration_apply(c, id->name, &d[i]);
    }
    int rc = d && r ? topo_hello(c->topo, id->name, d, q->n_devices, clock_ns(c->clock),
                                 clock_wall_us(c->clock), &n, &e)
                    : err_set(&e, ST_ENOMEM, "no memory for the node");
    free(d);
    if (rc < 0) {
        free(r);
        rpc_fail(call, &e);
        return;
    }
    n->user = s;
    str_copy(s->node, sizeof s->node, id->name);
    s->epoch = n->epoch;
    memset(s->instance, 0, sizeof s->instance);
    if (q->instance.len == sizeof s->instance)
        memcpy(s->instance, q->instance.data, sizeof s->instance);
    quic_addr_str(quic_conn_remote(rpc_session_conn(s->rpc)), n->address);
    str_copy(n->peer_address, sizeof n->peer_address, q->peer_address);
    str_copy(n->version, sizeof n->version, q->version);
    struct event_meta m = {0};
    event_meta_str(&m, "address", n->address);
    event_meta_str(&m, "version", n->version);
    event_meta_u64(&m, "incarnation", n->epoch);
    api_event(c, EV_NODE_CONNECTED, EVENT_SUCCESS, id->principal, n->name, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    store_node(c, n);
    net_node_up(c, n);
    LOG_I(&c->log, "api", "node=%s connected devices=%zu resident=%zu epoch=%llu", n->name, n->ndevices,
          q->n_resident, (unsigned long long)n->epoch);
    dsessions_account(c, n->name);
    jobs_node_up(c->jobs, n, r, q->n_resident);
    answer_hello(call, c, n, q, r);
    trust_tell(c->trust, s, false, false);
    free(r);
}

static void take_available(struct coord *c, struct topo_device *d, uint64_t bytes, uint64_t sessions)
{
    uint64_t was = d->available_bytes;
    d->available_bytes = bytes < d->memory_bytes ? bytes : d->memory_bytes;
    d->session_used_bytes = sessions;
    /* A little more or less is noise of others on the device. */
    if (d->available_bytes > was && d->available_bytes - was > d->memory_bytes / 256)
        jobs_room_changed(c->jobs);
}

void api_nodes_heartbeat(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__HeartbeatRequest *q = (const Strata__V1__HeartbeatRequest *)req;
    if (!from_node(call, c))
        return;
    struct topo_node *n = topo_node(c->topo, rpc_peer(call)->name);
    if (!n || topo_heartbeat(c->topo, n, q->epoch, clock_ns(c->clock), clock_wall_us(c->clock)) < 0) {
        rpc_finish(call, 10, "STALE_EPOCH", "this registration of the node is void: say hello again");
        return;
    }
    struct quic_conn_info info;
    quic_conn_info(rpc_session_conn(rpc_call_session(call)), &info);
    n->rtt_s = (double)info.min_rtt_ns / 1e9;
    for (size_t i = 0; i < q->n_devices; i++)
        for (size_t k = 0; k < n->ndevices; k++)
            if (!strcmp(n->devices[k].local_id, q->devices[i]->id))
                take_available(c, &n->devices[k], q->devices[i]->available_bytes,
                               q->devices[i]->session_bytes);
    for (size_t i = 0; i < q->n_passive && i < TOPO_MAX_DEVICES; i++)
        net_passive(c, n->name, q->passive[i]);
    Strata__V1__HeartbeatReply rep = STRATA__V1__HEARTBEAT_REPLY__INIT;
    Strata__V1__AuditHead head = STRATA__V1__AUDIT_HEAD__INIT;
    struct audit_stats st;
    rep.epoch = n->epoch;
    audit_stats(c->audit, &st);
    if (st.signed_head.size) {
        head.size = st.signed_head.size;
        head.time_us = st.signed_head.ts_us;
        head.head = (ProtobufCBinaryData){sizeof st.signed_head.head, st.signed_head.head};
        head.key_id = st.signed_head.key_id;
        head.signature = (ProtobufCBinaryData){st.signed_head.sig_len, st.signed_head.sig};
        rep.audit = &head;
    }
    rpc_reply(call, &rep.base);
}

void api_nodes_gone(struct coord_session *s, const struct quic_close *why)
{
    struct coord *c = s->c;
    struct topo_node *n = topo_node(c->topo, s->node);
    if (!n || n->user != s)
        return;
    topo_disconnected(c->topo, n);
    struct event_meta m = {0};
    event_meta_str(&m, "reason", why->reason);
    api_event(c, EV_NODE_DISCONNECTED, EVENT_FAILURE, NULL, n->name, event_meta_text(&m), why->reason);
    event_meta_fini(&m);
    LOG_W(&c->log, "api", "node=%s disconnected reason=%s", n->name, why->reason);
}

static void on_lease(struct topo_node *n, enum topo_state was, void *arg)
{
    struct coord *c = arg;
    (void)was;
    struct event_meta m = {0};
    event_meta_u64(&m, "silent_us", (clock_ns(c->clock) - n->last_heard_ns) / NS_PER_US);
    bool lost = n->state == TOPO_LOST;
    api_event(c, lost ? EV_NODE_DEAD : EV_NODE_SUSPECT, EVENT_FAILURE, NULL, n->name, event_meta_text(&m),
              NULL);
    event_meta_fini(&m);
    LOG_W(&c->log, "api", "node=%s state=%s", n->name, topo_state_name(n->state));
    if (!lost)
        return;
    struct coord_session *s = n->user;
    n->user = NULL;
    if (s) {
        s->node[0] = 0;
        rpc_session_close(s->rpc, 0, "no heartbeat: the lease ran out");
    }
    jobs_node_lost(c->jobs, n);
}

void api_tick(struct coord *c)
{
    trust_tick(c->trust);
    topo_tick(c->topo, clock_ns(c->clock), on_lease, c);
    api_policies_tick(c);
    dsessions_tick(c);
    jobs_tick(c->jobs);
    net_tick(c);
}

/* ---- what users ask ---- */

static int fill_devices(Strata__V1__Node *o, const struct topo_node *n)
{
    o->devices = calloc(n->ndevices + 1, sizeof(*o->devices));
    if (!o->devices)
        return ST_ENOMEM;
    for (size_t i = 0; i < n->ndevices; i++) {
        const struct topo_device *d = &n->devices[i];
        Strata__V1__Device *p = malloc(sizeof *p);
        if (!p)
            return ST_ENOMEM;
        strata__v1__device__init(p);
        p->id = (char *)d->id;
        p->node = (char *)n->name;
        p->backend = (char *)d->backend;
        p->name = (char *)d->name;
        p->vendor = (char *)d->vendor;
        p->uuid = (char *)d->uuid;
        p->driver_version = (char *)d->driver_version;
        p->support_level = (char *)d->support_level;
        p->software = d->software;
        p->memory_bytes = d->memory_bytes;
        p->available_bytes = topo_free_bytes(d);
        p->compute_units = d->compute_units;
        p->compute_flops_per_s = d->flops_per_s;
        p->memory_bytes_per_s = d->bytes_per_s;
        o->devices[o->n_devices++] = p;
    }
    return ST_OK;
}

int api_node_fill(struct coord *c, Strata__V1__Node *o, const struct topo_node *n, bool devices)
{
    strata__v1__node__init(o);
    o->name = (char *)n->name;
    o->state = (char *)topo_state_name(n->state);
    o->address = (char *)n->address;
    o->peer_address = (char *)n->peer_address;
    o->version = (char *)n->version;
    o->first_seen_us = n->first_seen_us;
    o->last_seen_us = n->last_seen_us;
    o->rtt_s = n->rtt_s;
    o->epoch = n->epoch;
    o->draining = n->draining;
    o->layers = (uint32_t)jobs_on_node(c->jobs, n->name, &o->layer_bytes);
    return devices ? fill_devices(o, n) : ST_OK;
}

void api_node_fini(Strata__V1__Node *o)
{
    for (size_t k = 0; k < o->n_devices; k++)
        free(o->devices[k]);
    free(o->devices);
}

void api_nodes_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    size_t n = topo_count(c->topo);
    Strata__V1__ListNodesReply rep = STRATA__V1__LIST_NODES_REPLY__INIT;
    Strata__V1__Node *v = calloc(n + 1, sizeof *v);
    Strata__V1__Node **pv = calloc(n + 1, sizeof(*pv));
    int rc = v && pv ? ST_OK : ST_ENOMEM;
    for (size_t i = 0; i < n && rc == ST_OK; i++) {
        rc = api_node_fill(c, &v[i], topo_at(c->topo, i),
                           ((const Strata__V1__ListNodesRequest *)req)->devices);
        pv[rep.n_nodes++] = &v[i];
    }
    rep.nodes = pv;
    if (rc == ST_OK)
        rpc_reply(call, &rep.base);
    else
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
    for (size_t i = 0; v && i < n; i++)
        api_node_fini(&v[i]);
    free(v);
    free(pv);
}

void api_nodes_status(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    (void)req;
    if (!api_allow(call, c, PERM_DEVICE_LIST))
        return;
    Strata__V1__StatusReply rep = STRATA__V1__STATUS_REPLY__INIT;
    struct audit_stats st;
    audit_stats(c->audit, &st);
    rep.version = (char *)STRATA_VERSION;
    rep.trust_domain = c->cfg.trust_domain;
    rep.started_us = c->started_us;
    rep.now_us = clock_wall_us(c->clock);
    rep.audit_rows = st.rows;
    for (size_t i = 0; i < topo_count(c->topo); i++) {
        const struct topo_node *n = topo_at(c->topo, i);
        rep.nodes_connected += n->state == TOPO_CONNECTED;
        rep.nodes_lost += n->state == TOPO_LOST;
        if (n->state == TOPO_CONNECTED)
            rep.devices += (uint32_t)n->ndevices;
    }
    for (struct job *j = jobs_first(c->jobs); j; j = j->next) {
        rep.jobs_total++;
        rep.jobs_ready += j->state == JOB_READY;
    }
    rpc_reply(call, &rep.base);
}
