/* Service Audit: queries run on the offload thread over their own read-only connection. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/api.h"
#include "strata/v1/audit.pb-c.h"

#define PAGE_MAX 1000u
#define PAGE_BYTES (900u << 10) /* below a message's limit */

struct query {
    struct offload_job job; /* first */
    struct coord *c;
    struct rpc_call *call; /* NULL once it was cancelled */
    char path[1024];
    struct audit_filter f;
    char *principal, *type, *node, *device, *jobid, *session, *text; /* what f points to */
    Strata__V1__AuditRow **rows;
    size_t n, bytes;
    int rc;
    struct err e;
    /* tail */
    bool tail, busy, again, blocked;
    struct audit_watch *watch;
};

static char *opt(const char *s)
{
    return *s ? strdup(s) : NULL;
}

static void rows_free(struct query *q)
{
    for (size_t i = 0; i < q->n; i++)
        strata__v1__audit_row__free_unpacked(q->rows[i], NULL);
    free(q->rows);
    q->rows = NULL;
    q->n = q->bytes = 0;
}

static void query_free(struct query *q)
{
    rows_free(q);
    audit_watch_free(q->watch);
    free(q->principal);
    free(q->type);
    free(q->node);
    free(q->device);
    free(q->jobid);
    free(q->session);
    free(q->text);
    free(q);
}

/* On the thread: a row becomes a message of its own. */
static int take_row(void *arg, const struct audit_event *e)
{
    struct query *q = arg;
    Strata__V1__AuditRow r = STRATA__V1__AUDIT_ROW__INIT;
    const struct event_info *info = event_info(e->type);
    r.id = (uint64_t)e->id;
    r.time_us = e->time_us;
    r.type = (char *)(info ? info->name : "unknown");
    r.severity = (char *)event_severity_name(e->severity);
    r.result = (char *)event_result_name(e->result);
    r.principal = (char *)e->principal;
    r.device = (char *)e->device;
    r.node = (char *)e->node;
    r.session = (char *)e->session;
    r.job = (char *)e->job;
    r.operation = (char *)e->operation;
    r.error = (char *)e->error;
    r.meta = (char *)e->meta;
    size_t n = strata__v1__audit_row__get_packed_size(&r);
    if (q->bytes + n > PAGE_BYTES)
        return 1; /* the page is full; the caller pages on from the last id */
    uint8_t *p = malloc(n ? n : 1);
    Strata__V1__AuditRow **v = realloc(q->rows, (q->n + 1) * sizeof(*v));
    if (v)
        q->rows = v;
    if (!p || !v) {
        free(p);
        return ST_ENOMEM;
    }
    strata__v1__audit_row__pack(&r, p);
    v[q->n] = strata__v1__audit_row__unpack(NULL, n, p);
    free(p);
    if (!v[q->n])
        return ST_ENOMEM;
    q->n++;
    q->bytes += n + 8;
    return 0;
}

static void work(struct offload_job *j)
{
    struct query *q = (struct query *)j;
    struct audit_reader **r = &q->c->audit_reader;
    q->rc = *r ? ST_OK : audit_reader_open(r, q->path, &q->e);
    if (q->rc == ST_OK)
        q->rc = audit_reader_query(*r, &q->f, take_row, q, &q->e);
    if (q->rc > 0)
        q->rc = ST_OK;
}

static void on_gone(struct rpc_call *call, void *arg)
{
    struct query *q = arg;
    (void)call;
    q->call = NULL;
    if (q->tail && !q->busy)
        query_free(q);
}

static int fill_filter(struct query *q, const Strata__V1__AuditQuery *m, struct err *e)
{
    q->f = AUDIT_FILTER_ALL;
    q->f.since_us = m->since_us;
    q->f.until_us = m->until_us;
    q->f.principal = q->principal = opt(m->principal);
    q->f.type = q->type = opt(m->type);
    q->f.node = q->node = opt(m->node);
    q->f.device = q->device = opt(m->device);
    q->f.job = q->jobid = opt(m->job);
    q->f.session = q->session = opt(m->session);
    q->f.text = q->text = opt(m->text);
    if (*m->severity && event_severity_parse(m->severity, &q->f.severity_min) < 0)
        return err_set(e, ST_EINVAL, "'%.40s' is no severity: debug, info, warning, error or critical",
                       m->severity);
    if (*m->result && event_result_parse(m->result, &q->f.result) < 0)
        return err_set(e, ST_EINVAL, "'%.40s' is no result: success, failure or denied", m->result);
    q->f.descending = !m->oldest_first;
    q->f.after_id = (int64_t)(m->oldest_first ? m->after_id : m->before_id);
    q->f.limit = m->limit == 0 ? 100 : m->limit > PAGE_MAX ? PAGE_MAX : m->limit;
    return ST_OK;
}

/* One's own rows always; everybody's with admin:full_access. */
static struct query *query_new(struct rpc_call *call, struct coord *c, const Strata__V1__AuditQuery *m)
{
    const char *who = rpc_peer(call)->principal;
    bool own = !strcmp(m->principal, who);
    struct err e;
    if (!own && !api_allow(call, c, PERM_ADMIN))
        return NULL;
    struct query *q = calloc(1, sizeof *q);
    int rc = q ? fill_filter(q, m, &e) : err_set(&e, ST_ENOMEM, "the coordinator is out of memory");
    if (rc < 0) {
        rpc_fail(call, &e);
        if (q)
            query_free(q);
        return NULL;
    }
    q->c = c;
    q->call = call;
    str_copy(q->path, sizeof q->path, c->audit_path);
    q->job.work = work;
    rpc_on_cancel(call, on_gone, q);
    return q;
}

static void page_done(struct offload_job *j)
{
    struct query *q = (struct query *)j;
    if (q->call && q->rc == ST_OK) {
        Strata__V1__AuditPage rep = STRATA__V1__AUDIT_PAGE__INIT;
        rep.rows = q->rows;
        rep.n_rows = q->n;
        if (q->n == q->f.limit || q->bytes > PAGE_BYTES / 2)
            rep.next_before_id = q->n ? q->rows[q->n - 1]->id : 0;
        rpc_reply(q->call, &rep.base);
    } else if (q->call) {
        rpc_fail(q->call, &q->e);
    }
    query_free(q);
}

static void flushed(void *arg, int rc, const struct err *e)
{
    struct query *q = arg;
    if (rc < 0 && q->call) {
        rpc_fail(q->call, e);
        q->call = NULL;
    }
    if (!q->call) {
        query_free(q);
        return;
    }
    offload_run(q->c->offload, &q->job);
}

/* What was acknowledged before the question is in the answer: the writer is asked to flush first. */
void api_audit_query(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct query *q = query_new(call, c, (const Strata__V1__AuditQuery *)req);
    if (!q)
        return;
    q->job.done = page_done;
    int rc = audit_flush(c->audit, c->port, flushed, q);
    if (rc < 0) {
        struct err e;
        err_set(&e, rc, "the audit store does not answer: %s", status_name(rc));
        rpc_fail(call, &e);
        query_free(q);
    }
}

/* ---- tail: the writer tells of new rows; they are read from the file, so nothing queues up here ---- */

static void tail_read(struct query *q)
{
    q->again = false;
    q->busy = true;
    offload_run(q->c->offload, &q->job);
}

static void on_rows(void *arg)
{
    struct query *q = arg;
    q->again = true;
    if (!q->busy && !q->blocked)
        tail_read(q);
}

static void on_tail_writable(struct rpc_call *call, void *arg)
{
    struct query *q = arg;
    (void)call;
    if (!q->blocked)
        return;
    q->blocked = false;
    if (!q->busy)
        tail_read(q);
}

static void tail_done(struct offload_job *j)
{
    struct query *q = (struct query *)j;
    q->busy = false;
    if (!q->call) {
        query_free(q);
        return;
    }
    if (q->rc < 0) {
        rpc_fail(q->call, &q->e);
        query_free(q);
        return;
    }
    bool more = !q->f.descending && (q->n == q->f.limit || q->bytes > PAGE_BYTES / 2);
    /* The first page is the newest rows, newest first; then everything after them, oldest first. */
    for (size_t i = 0; i < q->n; i++) {
        Strata__V1__AuditRow *r = q->rows[q->f.descending ? q->n - 1 - i : i];
        if (rpc_send(q->call, &r->base) < 0) {
            q->blocked = true; /* the rest is read again from the last id sent */
            break;
        }
        q->f.after_id = (int64_t)r->id;
    }
    if (q->f.descending && !q->n)
        q->f.after_id = 0;
    q->f.descending = false;
    q->f.limit = PAGE_MAX;
    rows_free(q);
    if (!q->blocked && (more || q->again))
        tail_read(q);
}

void api_audit_tail(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct query *q = query_new(call, c, (const Strata__V1__AuditQuery *)req);
    if (!q)
        return;
    q->tail = true;
    q->job.done = tail_done;
    q->f.descending = true;
    q->f.after_id = 0;
    /* Before the first look, so that no row falls between the two. */
    if (audit_watch_new(&q->watch, c->audit, c->port, on_rows, q) < 0) {
        rpc_finish(call, 13, "NO_MEMORY", "the coordinator is out of memory");
        query_free(q);
        return;
    }
    rpc_on_writable(call, on_tail_writable, q);
    tail_read(q);
}
