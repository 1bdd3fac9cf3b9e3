/*
 * The coordinator's RPC services over its rooms: Nodes, Jobs, Plans, Audit; and the way to agents that the
 * jobs room asks for. One struct coord owns everything; loop thread only, but for the threads of store,
 * audit, planner and offload, which answer through `port`.
 */
#ifndef STRATA_API_API_H
#define STRATA_API_API_H

#include "common/rpc/rpc.h"
#include "coordinator/access/quota.h"
#include "coordinator/access/set.h"
#include "coordinator/api/offload.h"
#include "coordinator/api/session.h"
#include "coordinator/config/config.h"
#include "coordinator/jobs/jobs.h"

struct event_base;
struct ticket_key;
struct coord_watch;
struct trust;
struct policy_op;
struct coord_net;
struct calibration;

struct coord {
    struct event_base *base;
    const struct clock *clock;
    const struct rng *rng;
    struct log log;
    struct coord_config cfg;
    struct port *port;
    struct offload *offload;
    struct tls_ctx *tls;
    struct ticket_key *ticket_key;
    uint8_t ticket_public[32];
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_table *table;
    struct topo *topo;
    struct store *store;
    struct audit *audit;
    struct trust *trust;
    struct jobs *jobs;
    struct coord_net *net;
    struct calibration *calibrations; /* of devices */
    bool calibrating;                 /* one at a time: two would disturb each other */
    struct access_set *access;        /* policies */
    struct quota *quota;              /* what principals hold: jobs and device sessions */
    struct dsessions dsessions;
    struct policy policy_view;    /* of the latest api_policy() */
    struct policy_op *policy_ops; /* changes of policies, one after the other */
    bool recheck_jobs;            /* a job that lost its right could not be stopped yet */
    bool stopping;                /* the store is closed: what completes now starts nothing */
    struct audit_key *audit_key;
    struct audit_reader *audit_reader; /* the offload thread's, opened at the first query */
    struct map *spools;                /* node → what was taken of its audit spool, owned */
    struct coord_session *sessions;
    struct coord_watch *watches;
    char audit_path[1024];
    int64_t started_us;
};

/* One connection: an agent's or a user's. */
struct coord_session {
    struct coord *c;
    struct rpc_session *rpc;
    char node[64];        /* set by a successful hello */
    uint8_t instance[16]; /* of the process that said it */
    bool ending;          /* closed by us, its last upcall is to come */
    uint64_t epoch;       /* of that hello */
    uint64_t tell_ns;     /* when it is this agent's turn to hear of a rotation; 0 = nothing to tell */
    bool tell_renew, tell_fresh;
    struct coord_session *next;
};

/* The dispatch table for all services (freed by the caller), and what accepts connections. */
int api_table_new(struct coord *c, struct err *e) ST_CHECK;
extern const struct quic_conn_ops api_accept_ops; /* arg: struct coord */

/* How the jobs room reaches agents; ctx is struct coord. */
extern const struct jobs_agents api_agents;
/* jobs_cfg callbacks; ctx is struct coord. The policy is valid until the next call. */
const struct policy *api_policy(void *ctx, const char *principal);
int api_links(void *ctx, struct cluster *cl);
void api_job_changed(void *ctx, const struct job *j);

/* Ages leases; call it every quarter of a heartbeat. */
void api_tick(struct coord *c);

/* What was taken of a node's audit spool before; before store_start. */
int api_spool_load(struct coord *c, const char *node, struct err *e) ST_CHECK;
void api_spool_free(struct coord *c);

/* ---- between the files of this room ---- */

/* Is the caller allowed `perm`? If not the call is failed, the denial audited, and false comes back. */
bool api_allow(struct rpc_call *call, struct coord *c, enum permission perm);
bool api_is_admin(struct coord *c, const char *principal);
/* The caller's job, or anybody's for an admin; NULL: the call was refused. */
struct job *api_own_job(struct rpc_call *call, struct coord *c, const char *id);
/* Refuses the call with the sentence for d, and audits the denial. d must be a refusal. */
void api_deny(struct rpc_call *call, struct coord *c, const struct decision *d,
              const struct access_request *rq);
/* Refuses the call with e, and audits it as `type` with e's reason in the metadata. */
void api_refuse(struct rpc_call *call, struct coord *c, int type, const struct err *e);
/* Answers the call with NO_MEMORY. */
void api_no_memory(struct rpc_call *call);
/* A node's session, NULL when it is not connected. */
struct rpc_session *api_node_rpc(struct topo_node *n);
/* A keep-class event, or a must-class one without a mutation of its own. */
void api_record(struct coord *c, const struct audit_event *ev);
void api_event(struct coord *c, int type, int result, const char *principal, const char *node,
               const char *meta, const char *error);

void api_nodes_hello(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_nodes_heartbeat(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_nodes_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_nodes_status(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_nodes_drain(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_nodes_resume(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_nodes_forget(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
/* Nodes that were being drained when the coordinator ended; before the store starts. */
int api_drains_load(struct coord *c, struct err *e) ST_CHECK;
/* A node as a message: all borrowed but the devices' array and messages. */
struct Strata__V1__Node;
int api_node_fill(struct coord *c, struct Strata__V1__Node *o, const struct topo_node *n,
                  bool devices) ST_CHECK;
void api_node_fini(struct Strata__V1__Node *o);
void api_nodes_gone(struct coord_session *s, const struct quic_close *why);
void api_jobs_submit(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_jobs_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_jobs_get(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_jobs_watch(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_jobs_cancel(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_jobs_move(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_jobs_verify(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_plans_cluster(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_plans_inputs(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_plans_calibrate(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_plans_show(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_policies_apply(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_policies_remove(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_policies_get(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_policies_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_policies_test(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_policies_quota(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
/* Removes expired policies; ends jobs that could not be stopped before. */
void api_policies_tick(struct coord *c);
/* Frees what waits; before the store is closed nothing may be asked for any more. */
void api_policies_fini(struct coord *c);
void api_sessions_open(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_sessions_renew(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_sessions_close(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_sessions_kill(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_sessions_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_sessions_report(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_spool_push(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_audit_query(struct rpc_call *call, const ProtobufCMessage *req, void *arg);
void api_audit_tail(struct rpc_call *call, const ProtobufCMessage *req, void *arg);

#endif
