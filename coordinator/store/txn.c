/* Building transactions, and applying them on the writer thread. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/store/store_priv.h"

#define TXN_MAX (16u << 20)

static const struct store_sql sqls[SQL_COUNT] = {
    [SQL_JOB_INSERT] =
        {"INSERT INTO job(id,principal,name,reason,plan_id,state,bytes,spec,created_us,updated_us) "
         "VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
         "adding a job", ST_OK},
    [SQL_JOB_STATE] = {"UPDATE job SET state=?3,reason=?4,plan_id=coalesce(?5,plan_id),updated_us=?6 "
                       "WHERE id=?1 AND (?2<0 OR state=?2)",
                       "moving a job to another state", ST_ECONFLICT},
    [SQL_JOB_DELETE] = {"DELETE FROM job WHERE id=?1", "removing a job", ST_OK},
    [SQL_JOB_LAYERS_DELETE] = {"DELETE FROM job_layer WHERE job=?1", "removing a job's layers", ST_OK},
    [SQL_LAYER_PUT] = {"INSERT INTO job_layer(job,layer,device,checksum,state,bytes,updated_us) "
                       "VALUES(?1,?2,?3,?4,?5,?6,?7) ON CONFLICT DO UPDATE SET checksum=excluded.checksum,"
                       "state=excluded.state,bytes=excluded.bytes,updated_us=excluded.updated_us",
                       "writing a layer", ST_OK},
    [SQL_LAYER_DELETE] = {"DELETE FROM job_layer WHERE job=?1 AND layer=?2 AND device=?3", "removing a layer",
                          ST_OK},
    [SQL_NODE_PUT] = {"INSERT INTO node(id,address,spki,state,incarnation,enrolled_us,seen_us,info) "
                      "VALUES(?1,?2,?3,?4,?5,?6,?7,?8) ON CONFLICT DO UPDATE SET address=excluded.address,"
                      "spki=excluded.spki,state=excluded.state,incarnation=excluded.incarnation,"
                      "enrolled_us=excluded.enrolled_us,seen_us=excluded.seen_us,info=excluded.info",
                      "writing a node", ST_OK},
    [SQL_NODE_DELETE] = {"DELETE FROM node WHERE id=?1", "removing a node", ST_OK},
    [SQL_NODE_DEVICES_DELETE] = {"DELETE FROM device WHERE node=?1", "removing a node's devices", ST_OK},
    [SQL_DEVICE_PUT] =
        {"INSERT INTO device(id,node,state,total_bytes,info,updated_us) VALUES(?1,?2,?3,?4,?5,?6) "
         "ON CONFLICT DO UPDATE SET node=excluded.node,state=excluded.state,"
         "total_bytes=excluded.total_bytes,info=excluded.info,updated_us=excluded.updated_us",
         "writing a device", ST_OK},
    [SQL_DEVICE_DELETE] = {"DELETE FROM device WHERE id=?1", "removing a device", ST_OK},
    [SQL_POLICY_PUT] =
        {"INSERT OR REPLACE INTO policy(principal,roles,extra,denied,devices,quota_bytes,created_us,"
         "expires_us,generation,node_quota_bytes,device_quota_bytes) "
         "VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
         "writing a policy", ST_OK},
    [SQL_POLICY_DELETE] = {"DELETE FROM policy WHERE principal=?1", "removing a policy", ST_ENOENT},
    [SQL_SESSION_PUT] =
        {"INSERT OR REPLACE INTO session(id,principal,node,devices,reason,permissions,limit_bytes,state,"
         "opened_us,expires_us,generation) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
         "writing a session", ST_OK},
    [SQL_SESSION_DELETE] = {"DELETE FROM session WHERE id=?1", "removing a session", ST_OK},
    [SQL_PLAN_PUT] = {"INSERT OR REPLACE INTO plan(id,job,goal,doc,inputs,created_us) "
                      "VALUES(?1,?2,?3,?4,?5,?6)",
                      "writing a plan", ST_OK},
    [SQL_CALIBRATION_PUT] = {"INSERT OR REPLACE INTO calibration(device,memory_ppm,compute_ppm,updated_us) "
                             "VALUES(?1,?2,?3,?4)",
                             "writing a device's calibration", ST_OK},
    /* '0' follows '/' */
    [SQL_CALIBRATIONS_FORGET] = {"DELETE FROM calibration WHERE device>=?1||'/' AND device<?1||'0'",
                                 "removing a node's calibrations", ST_OK},
    [SQL_REQUEST_PUT] =
        {"INSERT INTO request(principal,request_id,method,response,created_us) VALUES(?1,?2,?3,?4,?5)",
         "writing a request id", ST_OK},
    [SQL_REQUESTS_EXPIRE] = {"DELETE FROM request WHERE created_us<?1", "removing old request ids", ST_OK},
    [SQL_META_PUT] = {"INSERT OR REPLACE INTO meta(key,value) VALUES(?1,?2)", "writing a setting", ST_OK},
    [SQL_SPOOL] = {"UPDATE node SET spool_seq=?2 WHERE id=?1 AND spool_seq<?2", "taking a node's spool",
                   ST_ECONFLICT},
    [SQL_TRUST_PUT] = {"INSERT OR REPLACE INTO trust(kind,id,doc,updated_us) VALUES(?1,?2,?3,?4)",
                       "writing a trust record", ST_OK},
    [SQL_TRUST_DELETE] = {"DELETE FROM trust WHERE kind=?1 AND id=?2", "removing a trust record", ST_OK},
    [SQL_NET_PUT] = {"INSERT OR REPLACE INTO net_link(src,dst,doc,updated_us) VALUES(?1,?2,?3,?4)",
                     "writing a link's figures", ST_OK},
    [SQL_NET_FORGET] = {"DELETE FROM net_link WHERE src=?1 OR dst=?1", "removing a node's links", ST_OK},
    [SQL_NET_HISTORY_FORGET] = {"DELETE FROM net_history WHERE src=?1 OR dst=?1",
                                "removing a node's network history", ST_OK},
    [SQL_NET_SAMPLE] =
        {"INSERT INTO net_history(src,dst,span_us,time_us,samples,failures,rates,rtt_min,rtt_sum,rtt_max,"
         "loss_sum,rate_min,rate_sum,rate_max) "
         "VALUES(?1,?2,?3,?4,1,?5,?6,nullif(?7,0),?7,?7,?8,nullif(?9,0),?9,?9) ON CONFLICT DO UPDATE SET "
         "samples=samples+1,failures=failures+excluded.failures,rates=rates+excluded.rates,"
         "rtt_min=min(coalesce(rtt_min,excluded.rtt_min),coalesce(excluded.rtt_min,rtt_min)),"
         "rtt_sum=rtt_sum+excluded.rtt_sum,rtt_max=max(rtt_max,excluded.rtt_max),"
         "loss_sum=loss_sum+excluded.loss_sum,"
         "rate_min=min(coalesce(rate_min,excluded.rate_min),coalesce(excluded.rate_min,rate_min)),"
         "rate_sum=rate_sum+excluded.rate_sum,rate_max=max(rate_max,excluded.rate_max)",
         "writing the network's history", ST_OK},
    [SQL_NET_EXPIRE] = {"DELETE FROM net_history WHERE span_us=?1 AND time_us<?2",
                        "thinning the network's history", ST_OK},
    [SQL_EVENT] = {"INSERT INTO outbox(event) VALUES(?1)", "writing the audit outbox", ST_OK},
};

const struct store_sql *store_sql(enum store_stmt s)
{
    return &sqls[s];
}

struct store_txn *store_txn_new(void)
{
    struct store_txn *t = calloc(1, sizeof *t);
    if (t)
        t->ops.limit = TXN_MAX;
    return t;
}

void store_txn_free(struct store_txn *t)
{
    if (!t)
        return;
    buf_fini(&t->ops);
    free(t);
}

/* ---- building ---- */

static void put(struct store_txn *t, const void *p, size_t n)
{
    if (t->rc == ST_OK)
        t->rc = buf_append(&t->ops, p, n);
}

static void op(struct store_txn *t, enum store_stmt s, unsigned params)
{
    put(t, (uint8_t[]){(uint8_t)s, (uint8_t)params}, 2);
    t->n_ops++;
}

static void num(struct store_txn *t, int64_t v)
{
    put(t, "i", 1);
    put(t, &v, sizeof v);
}

static void bytes(struct store_txn *t, char type, const void *p, size_t n)
{
    uint32_t len = (uint32_t)n;
    if (n > TXN_MAX && t->rc == ST_OK)
        t->rc = ST_ELIMIT;
    put(t, &type, 1);
    put(t, &len, sizeof len);
    put(t, p, n);
}

static void text(struct store_txn *t, const char *s)
{
    bytes(t, 't', s ? s : "", s ? strlen(s) : 0);
}

static void blob(struct store_txn *t, const void *p, size_t n)
{
    bytes(t, 'b', p, p ? n : 0);
}

static void null(struct store_txn *t)
{
    put(t, "n", 1);
}

void store_txn_job_insert(struct store_txn *t, const struct store_job *j)
{
    op(t, SQL_JOB_INSERT, 10);
    text(t, j->id);
    text(t, j->principal);
    text(t, j->name);
    text(t, j->reason);
    text(t, j->plan_id);
    num(t, j->state);
    num(t, (int64_t)j->bytes);
    blob(t, j->spec, j->spec_len);
    num(t, j->created_us);
    num(t, j->updated_us);
}

void store_txn_job_state(struct store_txn *t, const char *id, int from, int to, const char *reason,
                         const char *plan_id, int64_t now_us)
{
    op(t, SQL_JOB_STATE, 6);
    text(t, id);
    num(t, from);
    num(t, to);
    text(t, reason);
    if (plan_id)
        text(t, plan_id);
    else
        null(t);
    num(t, now_us);
}

void store_txn_job_delete(struct store_txn *t, const char *id)
{
    op(t, SQL_JOB_LAYERS_DELETE, 1);
    text(t, id);
    op(t, SQL_JOB_DELETE, 1);
    text(t, id);
}

void store_txn_layer_put(struct store_txn *t, const struct store_layer *l)
{
    op(t, SQL_LAYER_PUT, 7);
    text(t, l->job);
    text(t, l->layer);
    text(t, l->device);
    text(t, l->checksum);
    num(t, l->state);
    num(t, (int64_t)l->bytes);
    num(t, l->updated_us);
}

void store_txn_layer_delete(struct store_txn *t, const char *job, const char *layer, const char *device)
{
    op(t, SQL_LAYER_DELETE, 3);
    text(t, job);
    text(t, layer);
    text(t, device);
}

void store_txn_node_put(struct store_txn *t, const struct store_node *n)
{
    op(t, SQL_NODE_PUT, 8);
    text(t, n->id);
    text(t, n->address);
    text(t, n->spki);
    num(t, n->state);
    num(t, (int64_t)n->incarnation);
    num(t, n->enrolled_us);
    num(t, n->seen_us);
    blob(t, n->info, n->info_len);
}

void store_txn_node_delete(struct store_txn *t, const char *id)
{
    op(t, SQL_NODE_DEVICES_DELETE, 1);
    text(t, id);
    op(t, SQL_NODE_DELETE, 1);
    text(t, id);
}

void store_txn_device_put(struct store_txn *t, const struct store_device *d)
{
    op(t, SQL_DEVICE_PUT, 6);
    text(t, d->id);
    text(t, d->node);
    num(t, d->state);
    num(t, (int64_t)d->total_bytes);
    blob(t, d->info, d->info_len);
    num(t, d->updated_us);
}

void store_txn_device_delete(struct store_txn *t, const char *id)
{
    op(t, SQL_DEVICE_DELETE, 1);
    text(t, id);
}

static void quota(struct store_txn *t, bool has, uint64_t bytes)
{
    if (has)
        num(t, (int64_t)bytes);
    else
        null(t);
}

void store_txn_policy_put(struct store_txn *t, const struct policy *p)
{
    char devices[POLICY_DEVICES_MAX * POLICY_PATTERN_MAX];
    if (t->rc == ST_OK)
        t->rc = policy_validate(p, NULL);
    if (t->rc == ST_OK)
        t->rc = policy_devices_join(p, devices, sizeof devices);
    if (t->rc < 0)
        return;
    op(t, SQL_POLICY_PUT, 11);
    text(t, p->principal);
    num(t, p->roles);
    num(t, p->extra);
    num(t, p->denied);
    text(t, devices);
    quota(t, p->has_quota, p->quota_bytes);
    num(t, p->created_us);
    num(t, p->expires_us);
    num(t, (int64_t)p->generation);
    quota(t, p->has_node_quota, p->node_quota_bytes);
    quota(t, p->has_device_quota, p->device_quota_bytes);
}

void store_txn_policy_delete(struct store_txn *t, const char *principal)
{
    op(t, SQL_POLICY_DELETE, 1);
    text(t, principal);
}

void store_txn_session_put(struct store_txn *t, const struct store_session *r)
{
    op(t, SQL_SESSION_PUT, 11);
    text(t, r->id);
    text(t, r->principal);
    text(t, r->node);
    text(t, r->devices);
    text(t, r->reason);
    num(t, r->permissions);
    num(t, (int64_t)r->limit_bytes);
    num(t, r->state);
    num(t, r->opened_us);
    num(t, r->expires_us);
    num(t, (int64_t)r->generation);
}

void store_txn_session_delete(struct store_txn *t, const char *id)
{
    op(t, SQL_SESSION_DELETE, 1);
    text(t, id);
}

void store_txn_plan_put(struct store_txn *t, const struct store_plan *p)
{
    op(t, SQL_PLAN_PUT, 6);
    text(t, p->id);
    text(t, p->job);
    text(t, p->goal);
    blob(t, p->doc, p->doc_len);
    blob(t, p->inputs, p->inputs_len);
    num(t, p->created_us);
}

void store_txn_calibration_put(struct store_txn *t, const struct store_calibration *r)
{
    op(t, SQL_CALIBRATION_PUT, 4);
    text(t, r->device);
    num(t, (int64_t)(r->memory * 1e6));
    num(t, (int64_t)(r->compute * 1e6));
    num(t, r->updated_us);
}

void store_txn_calibrations_forget(struct store_txn *t, const char *node)
{
    op(t, SQL_CALIBRATIONS_FORGET, 1);
    text(t, node);
}

void store_txn_request_put(struct store_txn *t, const struct store_request *r)
{
    op(t, SQL_REQUEST_PUT, 5);
    text(t, r->principal);
    text(t, r->request_id);
    text(t, r->method);
    blob(t, r->response, r->response_len);
    num(t, r->created_us);
}

void store_txn_requests_expire(struct store_txn *t, int64_t before_us)
{
    op(t, SQL_REQUESTS_EXPIRE, 1);
    num(t, before_us);
}

void store_txn_meta_put(struct store_txn *t, const char *key, const char *value)
{
    op(t, SQL_META_PUT, 2);
    text(t, key);
    text(t, value);
}

void store_txn_trust_put(struct store_txn *t, const struct store_trust *d)
{
    op(t, SQL_TRUST_PUT, 4);
    text(t, d->kind);
    text(t, d->id);
    blob(t, d->doc, d->doc_len);
    num(t, d->updated_us);
}

void store_txn_trust_delete(struct store_txn *t, const char *kind, const char *id)
{
    op(t, SQL_TRUST_DELETE, 2);
    text(t, kind);
    text(t, id);
}

void store_txn_net_put(struct store_txn *t, const struct store_net *n)
{
    op(t, SQL_NET_PUT, 4);
    text(t, n->from);
    text(t, n->to);
    blob(t, n->doc, n->doc_len);
    num(t, n->updated_us);
}

void store_txn_net_forget(struct store_txn *t, const char *node)
{
    op(t, SQL_NET_FORGET, 1);
    text(t, node);
    op(t, SQL_NET_HISTORY_FORGET, 1);
    text(t, node);
}

void store_txn_net_sample(struct store_txn *t, const struct store_net_sample *s)
{
    static const int64_t span[] = {0, STORE_NET_HOUR_US, STORE_NET_DAY_US};
    for (unsigned i = 0; i < 3; i++) {
        op(t, SQL_NET_SAMPLE, 9);
        text(t, s->from);
        text(t, s->to);
        num(t, span[i]);
        num(t, span[i] ? s->time_us - s->time_us % span[i] : s->time_us);
        num(t, s->failures);
        num(t, s->rates);
        num(t, (int64_t)s->rtt_sum_ns);
        num(t, (int64_t)s->loss_sum_ppm);
        num(t, (int64_t)s->rate_sum);
    }
}

void store_txn_net_expire(struct store_txn *t, int64_t now_us)
{
    static const struct {
        int64_t span, keep;
    } rule[] = {{0, STORE_NET_DAY_US},
                {STORE_NET_HOUR_US, 30 * STORE_NET_DAY_US},
                {STORE_NET_DAY_US, 730 * STORE_NET_DAY_US}};
    for (unsigned i = 0; i < 3; i++) {
        op(t, SQL_NET_EXPIRE, 2);
        num(t, rule[i].span);
        num(t, now_us - rule[i].keep);
    }
}

void store_txn_fail(struct store_txn *t, int rc)
{
    if (t->rc == ST_OK)
        t->rc = rc;
}

void store_txn_spool(struct store_txn *t, const char *node, uint64_t seq)
{
    op(t, SQL_SPOOL, 2);
    text(t, node);
    num(t, (int64_t)seq);
}

void store_txn_event(struct store_txn *t, const struct audit_event *e)
{
    struct buf b = {0};
    int rc = event_encode(e, &b);
    if (rc < 0 && t->rc == ST_OK)
        t->rc = rc;
    op(t, SQL_EVENT, 1);
    blob(t, b.data, b.len);
    t->events++;
    buf_fini(&b);
}

/* ---- applying ---- */

static int64_t get_i64(const uint8_t *p)
{
    int64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Binds one parameter, returns the bytes it took. */
static size_t bind(sqlite3_stmt *st, int i, const uint8_t *p, int *rc)
{
    uint32_t n;
    switch (p[0]) {
    case 'i':
        *rc = sqlite3_bind_int64(st, i, get_i64(p + 1));
        return 9;
    case 'n':
        *rc = sqlite3_bind_null(st, i);
        return 1;
    default:
        memcpy(&n, p + 1, sizeof n);
        *rc = p[0] == 't' ? sqlite3_bind_text(st, i, (const char *)p + 5, (int)n, SQLITE_STATIC)
                          : sqlite3_bind_blob(st, i, p + 5, (int)n, SQLITE_STATIC);
        return 5 + (size_t)n;
    }
}

int store_txn_apply(const struct store_txn *t, sqlite3 *db, sqlite3_stmt *const stmts[SQL_COUNT],
                    struct err *e)
{
    const uint8_t *p = t->ops.data, *end = p + t->ops.len;
    while (p < end) {
        enum store_stmt s = p[0];
        int params = p[1], rc = SQLITE_OK;
        sqlite3_stmt *st = stmts[s];
        p += 2;
        for (int i = 1; i <= params && rc == SQLITE_OK; i++)
            p += bind(st, i, p, &rc);
        if (rc == SQLITE_OK)
            rc = sqlite3_step(st);
        if (rc == SQLITE_DONE)
            rc = SQLITE_OK;
        int code = rc == SQLITE_OK ? ST_OK : db_fail(db, sqlite3_extended_errcode(db), sqls[s].doing, e);
        bool none = rc == SQLITE_OK && sqls[s].when_none != ST_OK && sqlite3_changes(db) == 0;
        sqlite3_reset(st);
        if (code < 0)
            return code;
        if (none)
            return err_set(e, sqls[s].when_none, "%s failed: %s", sqls[s].doing,
                           sqls[s].when_none == ST_ENOENT
                               ? "there is none by that name"
                               : "its state has changed meanwhile; look again and retry");
    }
    return ST_OK;
}
