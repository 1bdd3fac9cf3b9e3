/* Reading everything back, before the loop runs. */
#include <assert.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/store/store_priv.h"

typedef int (*row_fn)(sqlite3_stmt *st, void *fn_arg, struct err *e);

/* Runs the query and gives each row to `row` with ctx. */
static int each(struct store *s, const char *sql, row_fn row, void *ctx, struct err *e)
{
    assert(!s->started);
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(s->db, sql, &st, e), step = SQLITE_DONE;
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW)
        rc = row(st, ctx, e);
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(s->db, step, "loading", e);
    sqlite3_finalize(st);
    return rc;
}

static const void *blob(sqlite3_stmt *st, int col, size_t *n)
{
    const void *p = sqlite3_column_blob(st, col);
    *n = (size_t)sqlite3_column_bytes(st, col);
    return p;
}

static uint64_t u64(sqlite3_stmt *st, int col)
{
    return (uint64_t)sqlite3_column_int64(st, col);
}

struct policy_ctx {
    int (*fn)(void *arg, const struct policy *p);
    void *arg;
};

static int policy_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    struct policy_ctx *c = ctx;
    struct policy p = {.roles = (uint32_t)u64(st, 1),
                       .extra = (uint32_t)u64(st, 2),
                       .denied = (uint32_t)u64(st, 3),
                       .has_quota = sqlite3_column_type(st, 5) != SQLITE_NULL,
                       .has_node_quota = sqlite3_column_type(st, 9) != SQLITE_NULL,
                       .has_device_quota = sqlite3_column_type(st, 10) != SQLITE_NULL,
                       .quota_bytes = u64(st, 5),
                       .node_quota_bytes = u64(st, 9),
                       .device_quota_bytes = u64(st, 10),
                       .created_us = sqlite3_column_int64(st, 6),
                       .expires_us = sqlite3_column_int64(st, 7),
                       .generation = u64(st, 8)};
    if (!str_copy(p.principal, sizeof p.principal, db_text(st, 0)) ||
        policy_devices_split(&p, db_text(st, 4)) < 0 || policy_validate(&p, NULL) < 0)
        return err_set(e, ST_ECORRUPT, "state.db: the policy of %.100s is malformed; remove or mend its row",
                       db_text(st, 0));
    return c->fn(c->arg, &p);
}

int store_load_policies(struct store *s, int (*fn)(void *arg, const struct policy *p), void *arg,
                        struct err *e)
{
    struct policy_ctx c = {fn, arg};
    return each(s,
                "SELECT principal,roles,extra,denied,devices,quota_bytes,created_us,expires_us,generation,"
                "node_quota_bytes,device_quota_bytes FROM policy ORDER BY principal",
                policy_row, &c, e);
}

struct session_ctx {
    int (*fn)(void *arg, const struct store_session *r);
    void *arg;
};

static int session_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct session_ctx *c = ctx;
    const struct store_session r = {.id = db_text(st, 0),
                                    .principal = db_text(st, 1),
                                    .node = db_text(st, 2),
                                    .devices = db_text(st, 3),
                                    .reason = db_text(st, 4),
                                    .permissions = (uint32_t)u64(st, 5),
                                    .limit_bytes = u64(st, 6),
                                    .state = sqlite3_column_int(st, 7),
                                    .opened_us = sqlite3_column_int64(st, 8),
                                    .expires_us = sqlite3_column_int64(st, 9),
                                    .generation = u64(st, 10)};
    return c->fn(c->arg, &r);
}

int store_load_sessions(struct store *s, int (*fn)(void *arg, const struct store_session *r), void *arg,
                        struct err *e)
{
    struct session_ctx c = {fn, arg};
    return each(s,
                "SELECT id,principal,node,devices,reason,permissions,limit_bytes,state,opened_us,expires_us,"
                "generation FROM session ORDER BY id",
                session_row, &c, e);
}

struct node_ctx {
    int (*fn)(void *arg, const struct store_node *n);
    void *arg;
};

static int node_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct node_ctx *c = ctx;
    struct store_node n = {.id = db_text(st, 0),
                           .address = db_text(st, 1),
                           .spki = db_text(st, 2),
                           .state = sqlite3_column_int(st, 3),
                           .incarnation = u64(st, 4),
                           .enrolled_us = sqlite3_column_int64(st, 5),
                           .seen_us = sqlite3_column_int64(st, 6),
                           .spool_seq = u64(st, 7)};
    n.info = blob(st, 8, &n.info_len);
    return c->fn(c->arg, &n);
}

int store_load_nodes(struct store *s, int (*fn)(void *arg, const struct store_node *n), void *arg,
                     struct err *e)
{
    struct node_ctx c = {fn, arg};
    return each(
        s,
        "SELECT id,address,spki,state,incarnation,enrolled_us,seen_us,spool_seq,info FROM node ORDER BY id",
        node_row, &c, e);
}

struct device_ctx {
    int (*fn)(void *arg, const struct store_device *d);
    void *arg;
};

static int device_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct device_ctx *c = ctx;
    struct store_device d = {.id = db_text(st, 0),
                             .node = db_text(st, 1),
                             .state = sqlite3_column_int(st, 2),
                             .total_bytes = u64(st, 3),
                             .updated_us = sqlite3_column_int64(st, 5)};
    d.info = blob(st, 4, &d.info_len);
    return c->fn(c->arg, &d);
}

int store_load_devices(struct store *s, int (*fn)(void *arg, const struct store_device *d), void *arg,
                       struct err *e)
{
    struct device_ctx c = {fn, arg};
    return each(s, "SELECT id,node,state,total_bytes,info,updated_us FROM device ORDER BY id", device_row, &c,
                e);
}

struct job_ctx {
    int (*fn)(void *arg, const struct store_job *j);
    void *arg;
};

static int job_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct job_ctx *c = ctx;
    struct store_job j = {.id = db_text(st, 0),
                          .principal = db_text(st, 1),
                          .name = db_text(st, 2),
                          .reason = db_text(st, 3),
                          .plan_id = db_text(st, 4),
                          .state = sqlite3_column_int(st, 5),
                          .bytes = u64(st, 6),
                          .created_us = sqlite3_column_int64(st, 8),
                          .updated_us = sqlite3_column_int64(st, 9)};
    j.spec = blob(st, 7, &j.spec_len);
    return c->fn(c->arg, &j);
}

int store_load_jobs(struct store *s, int (*fn)(void *arg, const struct store_job *j), void *arg,
                    struct err *e)
{
    struct job_ctx c = {fn, arg};
    return each(
        s,
        "SELECT id,principal,name,reason,plan_id,state,bytes,spec,created_us,updated_us FROM job ORDER BY id",
        job_row, &c, e);
}

struct layer_ctx {
    int (*fn)(void *arg, const struct store_layer *l);
    void *arg;
};

static int layer_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct layer_ctx *c = ctx;
    struct store_layer l = {.job = db_text(st, 0),
                            .layer = db_text(st, 1),
                            .device = db_text(st, 2),
                            .checksum = db_text(st, 3),
                            .state = sqlite3_column_int(st, 4),
                            .bytes = u64(st, 5),
                            .updated_us = sqlite3_column_int64(st, 6)};
    return c->fn(c->arg, &l);
}

int store_load_layers(struct store *s, int (*fn)(void *arg, const struct store_layer *l), void *arg,
                      struct err *e)
{
    struct layer_ctx c = {fn, arg};
    return each(
        s, "SELECT job,layer,device,checksum,state,bytes,updated_us FROM job_layer ORDER BY job,layer,device",
        layer_row, &c, e);
}

struct plan_ctx {
    int (*fn)(void *arg, const struct store_plan *p);
    void *arg;
};

static int plan_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct plan_ctx *c = ctx;
    struct store_plan p = {.id = db_text(st, 0),
                           .job = db_text(st, 1),
                           .goal = db_text(st, 2),
                           .created_us = sqlite3_column_int64(st, 4)};
    p.doc = blob(st, 3, &p.doc_len);
    return c->fn(c->arg, &p);
}

int store_load_plans(struct store *s, int (*fn)(void *arg, const struct store_plan *p), void *arg,
                     struct err *e)
{
    struct plan_ctx c = {fn, arg};
    return each(s, "SELECT id,job,goal,doc,created_us FROM plan ORDER BY id", plan_row, &c, e);
}

struct request_ctx {
    int (*fn)(void *arg, const struct store_request *r);
    void *arg;
};

static int request_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct request_ctx *c = ctx;
    struct store_request r = {.principal = db_text(st, 0),
                              .request_id = db_text(st, 1),
                              .method = db_text(st, 2),
                              .created_us = sqlite3_column_int64(st, 4)};
    r.response = blob(st, 3, &r.response_len);
    return c->fn(c->arg, &r);
}

int store_load_requests(struct store *s, int (*fn)(void *arg, const struct store_request *r), void *arg,
                        struct err *e)
{
    struct request_ctx c = {fn, arg};
    return each(
        s,
        "SELECT principal,request_id,method,response,created_us FROM request ORDER BY principal,request_id",
        request_row, &c, e);
}

int store_load_meta(struct store *s, const char *key, char *out, size_t cap, struct err *e)
{
    assert(!s->started);
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(s->db, "SELECT value FROM meta WHERE key=?1", &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_text(st, 1, key, -1, SQLITE_STATIC);
    int step = sqlite3_step(st);
    if (step == SQLITE_ROW && !str_copy(out, cap, db_text(st, 0)))
        rc = err_set(e, ST_ELIMIT, "state.db: meta value \"%s\" is longer than %zu bytes", key, cap - 1);
    else if (step == SQLITE_DONE && cap)
        out[0] = 0;
    else if (step != SQLITE_ROW)
        rc = db_fail(s->db, step, "loading", e);
    sqlite3_finalize(st);
    return rc;
}

struct trust_ctx {
    int (*fn)(void *arg, const struct store_trust *d);
    void *arg;
};

static int trust_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct trust_ctx *c = ctx;
    struct store_trust d = {
        .kind = db_text(st, 0), .id = db_text(st, 1), .updated_us = sqlite3_column_int64(st, 3)};
    d.doc = blob(st, 2, &d.doc_len);
    return c->fn(c->arg, &d);
}

int store_load_trust(struct store *s, int (*fn)(void *arg, const struct store_trust *d), void *arg,
                     struct err *e)
{
    struct trust_ctx c = {fn, arg};
    return each(s, "SELECT kind,id,doc,updated_us FROM trust ORDER BY kind,id", trust_row, &c, e);
}

struct net_ctx {
    int (*fn)(void *arg, const struct store_net *n);
    void *arg;
};

static int net_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct net_ctx *c = ctx;
    struct store_net n = {
        .from = db_text(st, 0), .to = db_text(st, 1), .updated_us = sqlite3_column_int64(st, 3)};
    n.doc = blob(st, 2, &n.doc_len);
    return c->fn(c->arg, &n);
}

int store_load_net(struct store *s, int (*fn)(void *arg, const struct store_net *n), void *arg, struct err *e)
{
    struct net_ctx c = {fn, arg};
    return each(s, "SELECT src,dst,doc,updated_us FROM net_link ORDER BY src,dst", net_row, &c, e);
}

struct calibration_ctx {
    int (*fn)(void *arg, const struct store_calibration *r);
    void *arg;
};

static int calibration_row(sqlite3_stmt *st, void *ctx, struct err *e)
{
    (void)e;
    struct calibration_ctx *c = ctx;
    const struct store_calibration r = {.device = db_text(st, 0),
                                        .memory = (double)sqlite3_column_int64(st, 1) / 1e6,
                                        .compute = (double)sqlite3_column_int64(st, 2) / 1e6,
                                        .updated_us = sqlite3_column_int64(st, 3)};
    return c->fn(c->arg, &r);
}

int store_load_calibrations(struct store *s, int (*fn)(void *arg, const struct store_calibration *r),
                            void *arg, struct err *e)
{
    struct calibration_ctx c = {fn, arg};
    return each(s, "SELECT device,memory_ppm,compute_ppm,updated_us FROM calibration ORDER BY device",
                calibration_row, &c, e);
}
