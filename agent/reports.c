#include "agent/reports.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "strata/v1/agentctl.pb-c.h"
#include "strata/v1/sessions.pb-c.h"

#define REPORT_NS (10 * NS_PER_S)
#define RETRY_S 1
#define MAX_ENDED 1000u /* in one report, the oldest first */

struct ended {
    char session[SESSION_NAME_MAX + 1], reason[40];
    uint64_t seq;
};

struct reports {
    struct reports_cfg cfg;
    struct event *timer;
    struct rpc_call *call; /* under way */
    bool complete, sent_complete, dirty;
    uint64_t sent_seq;
};

static void send_report(struct reports *r);

static void later(struct reports *r)
{
    const struct timeval tv = {.tv_sec = RETRY_S};
    if (!evtimer_pending(r->timer, NULL))
        evtimer_add(r->timer, &tv);
}

/* ---- what goes into one ---- */

struct gather {
    Strata__V1__SessionHeld *held;
    size_t nheld, cap;
    struct ended *ended;
    size_t nended, ended_cap;
    bool short_of_memory;
};

static void add_held(const struct session_info *i, void *arg)
{
    struct gather *g = arg;
    if (g->nheld == g->cap) {
        size_t cap = g->cap ? g->cap * 2 : 16;
        void *v = realloc(g->held, cap * sizeof *g->held);
        if (!v) {
            g->short_of_memory = true;
            return;
        }
        g->held = v;
        g->cap = cap;
    }
    Strata__V1__SessionHeld *h = &g->held[g->nheld++];
    strata__v1__session_held__init(h);
    h->session = (char *)i->session;
    h->principal = (char *)i->principal;
    h->limit_bytes = i->limit_bytes;
    h->used_bytes = i->used_bytes;
    h->expires_us = i->expires_us;
}

static void add_ended(const char *session, const char *reason, uint64_t seq, void *arg)
{
    struct gather *g = arg;
    if (g->nended == g->ended_cap) {
        size_t cap = g->ended_cap ? g->ended_cap * 2 : 16;
        void *v = realloc(g->ended, cap * sizeof *g->ended);
        if (!v)
            return; /* told the next time */
        g->ended = v;
        g->ended_cap = cap;
    }
    struct ended *x = &g->ended[g->nended++];
    strcpy(x->session, session);
    strcpy(x->reason, reason);
    x->seq = seq;
}

static int by_seq(const void *a, const void *b)
{
    const struct ended *x = a, *y = b;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* ---- the call ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct reports *r = arg;
    const Strata__V1__SessionReportReply *p = (const Strata__V1__SessionReportReply *)msg;
    (void)call;
    for (size_t i = 0; i < p->n_end; i++)
        sessions_revoke(*r->cfg.sessions, p->end[i]->session, p->end[i]->reason, p->end[i]->expires_us, NULL,
                        NULL);
    sessions_ended_ack(*r->cfg.sessions, r->sent_seq);
    if (r->sent_complete) {
        r->complete = false;
        sessions_trust(*r->cfg.sessions);
    }
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct reports *r = arg;
    (void)call;
    (void)digest;
    r->call = NULL;
    if (st->code) {
        LOG_W(r->cfg.log, "reports", "sessions not reported code=%u reason=%s why=\"%s\"", st->code,
              st->reason, st->text);
        r->dirty = true;
        later(r);
    } else if (r->dirty) {
        send_report(r);
    }
}

static const struct rpc_call_ops report_ops = {.on_message = on_message, .on_done = on_done};

static void fill(struct reports *r, struct gather *g, Strata__V1__SessionReport *q,
                 Strata__V1__SessionEnded *ev, Strata__V1__SessionEnded **ep, Strata__V1__SessionHeld **hp)
{
    if (g->nended)
        qsort(g->ended, g->nended, sizeof *g->ended, by_seq);
    for (size_t i = 0; i < g->nended && i < MAX_ENDED; i++) {
        strata__v1__session_ended__init(&ev[i]);
        ev[i].session = g->ended[i].session;
        ev[i].reason = g->ended[i].reason;
        ep[q->n_ended++] = &ev[i];
        r->sent_seq = g->ended[i].seq;
    }
    for (size_t i = 0; i < g->nheld; i++)
        hp[q->n_held++] = &g->held[i];
    q->ended = ep;
    q->held = hp;
    q->complete = r->complete;
    q->epoch = control_epoch(*r->cfg.control);
    r->sent_complete = q->complete;
}

static void send_report(struct reports *r)
{
    struct rpc_session *s = *r->cfg.control ? control_session(*r->cfg.control) : NULL;
    struct gather g = {0};
    Strata__V1__SessionReport q = STRATA__V1__SESSION_REPORT__INIT;
    struct err e = {0};
    if (!s || r->call)
        return; /* the registration, or the end of the call, comes here again */
    evtimer_del(r->timer);
    sessions_each(*r->cfg.sessions, add_held, &g);
    sessions_ended_each(*r->cfg.sessions, add_ended, &g);
    Strata__V1__SessionEnded *ev = calloc(MAX_ENDED, sizeof *ev), **ep = calloc(MAX_ENDED, sizeof(*ep));
    Strata__V1__SessionHeld **hp = calloc(g.nheld + 1, sizeof(*hp));
    const struct rpc_call_opts o = {.timeout_ns = REPORT_NS};
    int rc = ev && ep && hp && !g.short_of_memory ? ST_OK : ST_ENOMEM;
    r->dirty = false;
    if (rc == ST_OK) {
        fill(r, &g, &q, ev, ep, hp);
        rc = rpc_call(&r->call, s, &strata__v1__sessions__descriptor, "Report", RPC_UNARY, &q.base, &o,
                      &report_ops, r, &e);
    }
    if (rc < 0) {
        r->call = NULL;
        r->dirty = true;
        later(r);
    }
    free(ev);
    free(ep);
    free(hp);
    free(g.held);
    free(g.ended);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    send_report(arg);
}

void reports_registered(struct reports *r)
{
    r->complete = true;
    r->dirty = true;
    send_report(r);
}

void reports_changed(struct reports *r, bool urgent)
{
    r->dirty = true;
    if (urgent)
        send_report(r);
    else
        later(r);
}

/* ---- revocation ---- */

struct revoking {
    struct rpc_call *call; /* NULL: the coordinator gave up */
    size_t left, n;        /* left: sessions that have not ended, and one while it is set up */
    struct ended v[];
};

static void revoked_all(struct revoking *v)
{
    Strata__V1__RevokeSessionsReply r = STRATA__V1__REVOKE_SESSIONS_REPLY__INIT;
    if (--v->left)
        return;
    Strata__V1__SessionEnded *m = calloc(v->n + 1, sizeof *m), **p = calloc(v->n + 1, sizeof(*p));
    if (v->call && m && p) {
        for (size_t i = 0; i < v->n; i++) {
            strata__v1__session_ended__init(&m[i]);
            m[i].session = v->v[i].session;
            m[i].reason = v->v[i].reason;
            p[i] = &m[i];
        }
        r.ended = p;
        r.n_ended = v->n;
        rpc_reply(v->call, &r.base);
    } else if (v->call) {
        rpc_finish(v->call, 8, "NO_MEMORY", "the agent has no memory left for this call");
    }
    free(m);
    free(p);
    free(v);
}

static void one_ended(void *arg, const char *session, const char *reason)
{
    struct revoking *v = arg;
    strncpy(v->v[v->n].session, session, SESSION_NAME_MAX);
    strncpy(v->v[v->n].reason, reason, sizeof v->v[v->n].reason - 1);
    v->n++;
    revoked_all(v);
}

static void revoke_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct revoking *)arg)->call = NULL;
}

static void on_revoke(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct reports *r = arg;
    const Strata__V1__RevokeSessionsRequest *rq = (const Strata__V1__RevokeSessionsRequest *)msg;
    if (rpc_peer(call)->kind != TLS_COORDINATOR) {
        rpc_finish(call, 7, "NOT_COORDINATOR", "only the coordinator may call %s", rpc_call_name(call));
        return;
    }
    struct revoking *v = calloc(1, sizeof *v + rq->n_end * sizeof v->v[0]);
    if (!v) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
        return;
    }
    v->call = call;
    v->left = rq->n_end + 1;
    rpc_on_cancel(call, revoke_cancelled, v);
    for (size_t i = 0; i < rq->n_end; i++)
        sessions_revoke(*r->cfg.sessions, rq->end[i]->session, rq->end[i]->reason, rq->end[i]->expires_us,
                        one_ended, v);
    revoked_all(v);
}

int reports_table(struct rpc_table **out, struct reports *r, struct err *e)
{
    static const struct rpc_method methods[] = {{"strata.v1.SessionControl", "Revoke", RPC_UNARY, on_revoke}};
    const ProtobufCServiceDescriptor *const services[] = {&strata__v1__session_control__descriptor};
    return rpc_table_new(out, services, 1, methods, 1, r, e);
}

int reports_new(struct reports **out, const struct reports_cfg *cfg, struct err *e)
{
    struct reports *r = calloc(1, sizeof *r);
    if (!r || !(r->timer = evtimer_new(cfg->base, on_timer, r))) {
        free(r);
        return err_set(e, ST_ENOMEM, "no memory to report sessions");
    }
    r->cfg = *cfg;
    *out = r;
    return ST_OK;
}

void reports_free(struct reports *r)
{
    if (!r)
        return;
    event_free(r->timer);
    free(r);
}
