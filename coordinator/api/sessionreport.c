/* Sessions.Report: what agents say that they hold and what ended there. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/api.h"
#include "strata/v1/sessions.pb-c.h"

#define LIFE_MAX_US (3600ll * 1000000)
#define REPORT_MAX 20000u /* sessions in one report */

/* An agent holds what nobody here knows of (a state.db from a backup): charged, and ended. */
static void adopt(struct coord *c, const char *node, const Strata__V1__SessionHeld *h)
{
    struct dsession *s = calloc(1, sizeof *s);
    if (!s || strlen(h->session) >= sizeof s->id || strlen(h->principal) >= sizeof s->principal) {
        free(s);
        return;
    }
    str_copy(s->id, sizeof s->id, h->session);
    str_copy(s->principal, sizeof s->principal, h->principal);
    str_copy(s->node, sizeof s->node, node);
    s->limit_bytes = h->limit_bytes > INT64_MAX / 1024 ? INT64_MAX / 1024 : h->limit_bytes;
    s->opened_us = clock_wall_us(c->clock);
    s->expires_us = h->expires_us > s->opened_us && h->expires_us < s->opened_us + TICKET_MAX_LIFE_US
                        ? h->expires_us
                        : s->opened_us + LIFE_MAX_US;
    char id[40];
    str_copy(id, sizeof id, s->id);
    if (dsession_claim(c, s, NULL, true, NULL) < 0) {
        free(s);
        return;
    }
    if (dsession_add(c, s) < 0) {
        quota_release(c->quota, id);
        return;
    }
    s->active = true;
    dsession_end(c, s, "UNKNOWN_SESSION", "coordinator");
}

static void take_held(struct coord *c, const char *node, const Strata__V1__SessionHeld *h)
{
    struct dsession *s = dsession_find(c, h->session);
    if (!s) {
        adopt(c, node, h);
        s = dsession_find(c, h->session);
    }
    if (!s || strcmp(s->node, node) || s->state == DSESSION_ENDED)
        return;
    s->active = true;
    s->used_bytes = h->used_bytes;
    quota_used(c->quota, s->id, h->used_bytes);
}

static bool lists(const Strata__V1__SessionReport *q, const char *id)
{
    for (size_t i = 0; i < q->n_held; i++)
        if (!strcmp(q->held[i]->session, id))
            return true;
    return false;
}

/* Whatever the node has to end or to go on refusing. */
static void answer_report(struct rpc_call *call, struct coord *c, const char *node, bool complete)
{
    Strata__V1__SessionReportReply rep = STRATA__V1__SESSION_REPORT_REPLY__INIT;
    size_t n = 0, k = 0;
    for (struct dsession *s = c->dsessions.head; s; s = s->next)
        n += !strcmp(s->node, node);
    Strata__V1__SessionEnd *v = calloc(n + 1, sizeof *v), **pv = calloc(n + 1, sizeof(*pv));
    for (struct dsession *s = v && pv ? c->dsessions.head : NULL; s; s = s->next) {
        if (strcmp(s->node, node) || s->state == DSESSION_OPEN || (s->state == DSESSION_ENDED && !complete))
            continue;
        strata__v1__session_end__init(&v[k]);
        v[k].session = s->id;
        v[k].reason = s->reason;
        v[k].expires_us = s->expires_us;
        pv[k] = &v[k];
        k++;
    }
    rep.end = pv;
    rep.n_end = k;
    if (v && pv)
        rpc_reply(call, &rep.base);
    else
        api_no_memory(call);
    free(v);
    free(pv);
}

void api_sessions_report(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__SessionReport *q = (const Strata__V1__SessionReport *)req;
    const struct tls_identity *id = rpc_peer(call);
    struct topo_node *n = id->kind == TLS_NODE ? topo_node(c->topo, id->name) : NULL;
    struct err e;
    if (!n) {
        err_reason(&e, ST_EDENIED, "NOT_A_NODE", "only a registered node reports sessions, %s is none",
                   id->principal);
        api_refuse(call, c, EV_SECURITY_ACCESS_DENIED, &e);
        return;
    }
    if (n->epoch != q->epoch || api_node_rpc(n) != rpc_call_session(call)) {
        rpc_finish(call, 10, "STALE_EPOCH", "this registration of the node is void: say hello again");
        return;
    }
    if (q->n_held > REPORT_MAX || q->n_ended > REPORT_MAX) {
        rpc_finish(call, 3, "TOO_MANY", "more sessions than a node may report at once");
        return;
    }
    for (size_t i = 0; i < q->n_held; i++)
        take_held(c, n->name, q->held[i]);
    for (size_t i = 0; i < q->n_ended; i++) {
        struct dsession *s = dsession_find(c, q->ended[i]->session);
        if (s && !strcmp(s->node, n->name))
            dsession_freed(c, s, *q->ended[i]->reason ? q->ended[i]->reason : "CLOSED");
    }
    /* An agent that started anew lost them; their tickets must not bring them back unseen. */
    for (struct dsession *s = q->complete ? c->dsessions.head : NULL; s; s = s->next)
        if (s->active && s->state == DSESSION_OPEN && !strcmp(s->node, n->name) && !lists(q, s->id))
            dsession_end(c, s, "AGENT_RESTARTED", "coordinator");
    answer_report(call, c, n->name, q->complete);
}
