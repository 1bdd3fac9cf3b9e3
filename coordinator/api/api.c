/* Sessions, rights and the dispatch table. */
#include "coordinator/api/api.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/net.h"
#include "coordinator/api/trust.h"
#include "strata/v1/audit.pb-c.h"
#include "strata/v1/jobs.pb-c.h"
#include "strata/v1/nodes.pb-c.h"
#include "strata/v1/plans.pb-c.h"
#include "strata/v1/policies.pb-c.h"
#include "strata/v1/sessions.pb-c.h"
#include "strata/v1/spool.pb-c.h"

#define MAX_INBOUND_CALLS 128 /* as many streams as a control endpoint lets a peer have */

static const struct rpc_method methods[] = {
    {"strata.v1.Nodes", "Hello", RPC_UNARY, api_nodes_hello},
    {"strata.v1.Nodes", "Heartbeat", RPC_UNARY, api_nodes_heartbeat},
    {"strata.v1.Nodes", "List", RPC_UNARY, api_nodes_list},
    {"strata.v1.Nodes", "Status", RPC_UNARY, api_nodes_status},
    {"strata.v1.Nodes", "Drain", RPC_UNARY, api_nodes_drain},
    {"strata.v1.Nodes", "Resume", RPC_UNARY, api_nodes_resume},
    {"strata.v1.Nodes", "Forget", RPC_UNARY, api_nodes_forget},
    {"strata.v1.Jobs", "Submit", RPC_UNARY, api_jobs_submit},
    {"strata.v1.Jobs", "List", RPC_UNARY, api_jobs_list},
    {"strata.v1.Jobs", "Get", RPC_UNARY, api_jobs_get},
    {"strata.v1.Jobs", "Watch", RPC_SERVER_STREAM, api_jobs_watch},
    {"strata.v1.Jobs", "Cancel", RPC_UNARY, api_jobs_cancel},
    {"strata.v1.Jobs", "Move", RPC_UNARY, api_jobs_move},
    {"strata.v1.Jobs", "Verify", RPC_UNARY, api_jobs_verify},
    {"strata.v1.Plans", "Cluster", RPC_UNARY, api_plans_cluster},
    {"strata.v1.Plans", "Show", RPC_UNARY, api_plans_show},
    {"strata.v1.Plans", "Inputs", RPC_UNARY, api_plans_inputs},
    {"strata.v1.Plans", "Calibrate", RPC_SERVER_STREAM, api_plans_calibrate},
    {"strata.v1.Policies", "Apply", RPC_UNARY, api_policies_apply},
    {"strata.v1.Policies", "Remove", RPC_UNARY, api_policies_remove},
    {"strata.v1.Policies", "Get", RPC_UNARY, api_policies_get},
    {"strata.v1.Policies", "List", RPC_UNARY, api_policies_list},
    {"strata.v1.Policies", "Test", RPC_UNARY, api_policies_test},
    {"strata.v1.Policies", "Quota", RPC_UNARY, api_policies_quota},
    {"strata.v1.Sessions", "Open", RPC_UNARY, api_sessions_open},
    {"strata.v1.Sessions", "Renew", RPC_UNARY, api_sessions_renew},
    {"strata.v1.Sessions", "Close", RPC_UNARY, api_sessions_close},
    {"strata.v1.Sessions", "Kill", RPC_UNARY, api_sessions_kill},
    {"strata.v1.Sessions", "List", RPC_UNARY, api_sessions_list},
    {"strata.v1.Sessions", "Report", RPC_UNARY, api_sessions_report},
    {"strata.v1.Audit", "Query", RPC_UNARY, api_audit_query},
    {"strata.v1.Audit", "Tail", RPC_SERVER_STREAM, api_audit_tail},
    {"strata.v1.Spool", "Push", RPC_UNARY, api_spool_push},
};

int api_table_new(struct coord *c, struct err *e)
{
    const ProtobufCServiceDescriptor *const services[] = {
        &strata__v1__nodes__descriptor, &strata__v1__jobs__descriptor,     &strata__v1__plans__descriptor,
        &strata__v1__audit__descriptor, &strata__v1__policies__descriptor, &strata__v1__sessions__descriptor,
        &strata__v1__spool__descriptor};
    const ProtobufCServiceDescriptor *const certs[] = {&strata__v1__certs__descriptor};
    const ProtobufCServiceDescriptor *const net[] = {&strata__v1__net__descriptor};
    struct rpc_table *more;
    int rc = rpc_table_new(&c->table, services, sizeof services / sizeof *services, methods,
                           sizeof methods / sizeof *methods, c, e);
    if (rc == ST_OK)
        rc = rpc_table_new(&more, certs, 1, trust_methods, trust_methods_n, c, e);
    if (rc == ST_OK && (rc = rpc_table_join(c->table, more, e)) < 0)
        rpc_table_free(more);
    if (rc == ST_OK)
        rc = rpc_table_new(&more, net, 1, net_methods, net_methods_n, c, e);
    if (rc == ST_OK && (rc = rpc_table_join(c->table, more, e)) < 0)
        rpc_table_free(more);
    return rc;
}

/* ---- rights ---- */

const struct policy *api_policy(void *ctx, const char *principal)
{
    struct coord *c = ctx;
    return access_set_get(c->access, principal, &c->policy_view) ? &c->policy_view : NULL;
}

bool api_is_admin(struct coord *c, const char *principal)
{
    const struct access_request rq = {.permission = PERM_ADMIN, .now_us = clock_wall_us(c->clock)};
    return access_set_ask(c->access, principal, &rq).allowed;
}

bool api_allow(struct rpc_call *call, struct coord *c, enum permission perm)
{
    const char *who = rpc_peer(call)->principal;
    const struct access_request rq = {.permission = perm, .now_us = clock_wall_us(c->clock)};
    struct decision d = access_set_ask(c->access, who, &rq);
    if (d.allowed)
        return true;
    api_deny(call, c, &d, &rq);
    return false;
}

void api_deny(struct rpc_call *call, struct coord *c, const struct decision *d,
              const struct access_request *rq)
{
    const char *who = rpc_peer(call)->principal;
    struct err e;
    access_explain(d, api_policy(c, who), rq, &e);
    struct event_meta m = {0};
    event_meta_str(&m, "reason", access_reason_name(d->reason));
    event_meta_str(&m, "permission", permission_name(rq->permission));
    event_meta_str(&m, "rule", access_rule_text(d));
    event_meta_u64(&m, "policy", d->generation);
    struct audit_event ev = event_make(EV_SECURITY_ACCESS_DENIED, EVENT_DENIED, clock_wall_us(c->clock));
    ev.principal = who;
    ev.device = rq->device;
    ev.operation = rpc_call_name(call);
    ev.meta = event_meta_text(&m);
    ev.error = e.text;
    api_record(c, &ev);
    event_meta_fini(&m);
    rpc_fail(call, &e);
}

void api_refuse(struct rpc_call *call, struct coord *c, int type, const struct err *e)
{
    struct event_meta m = {0};
    event_meta_str(&m, "reason", *e->reason ? e->reason : status_name(e->code));
    struct audit_event ev = event_make(type, EVENT_FAILURE, clock_wall_us(c->clock));
    ev.principal = rpc_peer(call)->principal;
    ev.operation = rpc_call_name(call);
    ev.meta = event_meta_text(&m);
    ev.error = e->text;
    api_record(c, &ev);
    event_meta_fini(&m);
    rpc_fail(call, e);
}

void api_no_memory(struct rpc_call *call)
{
    rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
}

void api_event(struct coord *c, int type, int result, const char *principal, const char *node,
               const char *meta, const char *error)
{
    struct audit_event ev = event_make(type, result, clock_wall_us(c->clock));
    ev.principal = principal;
    ev.node = node;
    ev.operation = event_info(type)->name;
    ev.meta = meta;
    ev.error = error;
    api_record(c, &ev);
}

void api_record(struct coord *c, const struct audit_event *ev)
{
    int rc;
    if (event_class(ev) == EVENT_MUST) {
        struct store_txn *t = store_txn_new();
        if (t)
            store_txn_event(t, ev);
        rc = t ? store_submit(c->store, t, NULL, NULL) : ST_ENOMEM;
    } else {
        rc = audit_emit(c->audit, ev);
    }
    if (rc < 0)
        LOG_E(&c->log, "audit", "event not recorded type=%s principal=%s error=%s",
              event_info(ev->type)->name, ev->principal ? ev->principal : "", status_name(rc));
}

/* ---- sessions ---- */

struct rpc_session *api_node_rpc(struct topo_node *n)
{
    struct coord_session *s = n->user;
    return s ? s->rpc : NULL;
}

static void on_session_closed(struct rpc_session *rpc, const struct quic_close *why, void *arg)
{
    struct coord_session *s = arg;
    (void)rpc;
    for (struct coord_session **at = &s->c->sessions; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    s->rpc = NULL;
    if (s->node[0])
        api_nodes_gone(s, why);
    free(s);
}

static const struct rpc_session_ops session_ops = {.on_closed = on_session_closed};

static void on_up(struct quic_conn *conn, void *arg)
{
    struct coord *c = arg;
    struct coord_session *s = calloc(1, sizeof *s);
    const struct rpc_cfg rc = {.base = c->base,
                               .clock = c->clock,
                               .log = &c->log,
                               .table = c->table,
                               .max_inbound_calls = MAX_INBOUND_CALLS};
    if (!s || rpc_accept(&s->rpc, &rc, conn, &session_ops, s) < 0) {
        free(s);
        quic_conn_close(conn, 0x10d, "out of memory");
        return;
    }
    s->c = c;
    rpc_session_set_user(s->rpc, s);
    s->next = c->sessions;
    c->sessions = s;
    char addr[64];
    quic_addr_str(quic_conn_remote(conn), addr);
    LOG_I(&c->log, "api", "connected principal=%s address=%s", quic_conn_peer(conn)->principal, addr);
}

static void on_stream_before_up(struct quic_conn *conn, struct quic_stream *s, void *arg)
{
    (void)conn;
    (void)arg;
    quic_stream_reset(s, 0x10d);
}

/* An accepted connection that never came up: its certificate was refused. A flood of them is counted, not
 * written down one by one; a broken pin is somebody's attack or somebody's mistake, and always told. */
static void on_refused(struct quic_conn *conn, const struct quic_close *why, void *arg)
{
    struct coord *c = arg;
    char addr[64];
    unsigned held = 0;
    bool pin = !strcmp(why->reason_code, "PIN_MISMATCH");
    if (!log_limited(&c->trust->refusals, clock_ns(c->clock), 50, &held) && !pin)
        return;
    quic_addr_str(quic_conn_remote(conn), addr);
    struct event_meta m = {0};
    event_meta_str(&m, "reason", why->reason_code);
    event_meta_str(&m, "peer", addr);
    if (held)
        event_meta_u64(&m, "count", held + 1);
    struct audit_event ev = event_make(EV_SECURITY_HANDSHAKE_REFUSED, EVENT_DENIED, clock_wall_us(c->clock));
    if (pin)
        ev.severity = EVENT_CRITICAL;
    ev.operation = "security.handshake_refused";
    ev.meta = event_meta_text(&m);
    ev.error = why->reason;
    struct store_txn *t = store_txn_new();
    if (t)
        store_txn_event(t, &ev);
    int rc = t ? store_submit(c->store, t, NULL, NULL) : ST_ENOMEM;
    if (rc < 0)
        LOG_E(&c->log, "audit", "refusal not recorded peer=%s reason=%s error=%s", addr, why->reason_code,
              status_name(rc));
    event_meta_fini(&m);
}

const struct quic_conn_ops api_accept_ops = {
    .on_up = on_up, .on_stream = on_stream_before_up, .on_closed = on_refused};
