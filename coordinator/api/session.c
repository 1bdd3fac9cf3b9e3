/* The book of device sessions: claims, ends, expiry, what agents are told. */
#include "coordinator/api/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/api/api.h"
#include "strata/v1/agentctl.pb-c.h"

/* After its tickets have ended by an agent's clock that runs as late as it may. */
#define GRACE_US (TICKET_SKEW_US + 1000000)
#define REVOKE_NS (10 * NS_PER_S)
#define PUSH_MAX 256u /* sessions in one call to an agent */

int dsessions_init(struct coord *c)
{
    return map_new(&c->dsessions.by_id, c->rng);
}

void dsessions_fini(struct coord *c)
{
    while (c->dsessions.head) {
        struct dsession *s = c->dsessions.head;
        c->dsessions.head = s->next;
        free(s);
    }
    map_free(c->dsessions.by_id);
    c->dsessions.by_id = NULL;
    heap_fini(&c->dsessions.expiries);
}

struct dsession *dsession_find(struct coord *c, const char *id)
{
    return map_get(c->dsessions.by_id, id, strlen(id));
}

int dsession_claim(struct coord *c, const struct dsession *s, const struct policy *p, bool held,
                   struct quota_refusal *why)
{
    char ids[TICKET_DEVICES_MAX][TICKET_NODE_MAX + TICKET_DEVICE_MAX + 2];
    struct quota_part parts[TICKET_DEVICES_MAX + 1];
    parts[0] = (struct quota_part){s->node, s->limit_bytes};
    for (unsigned i = 0; i < s->n_devices; i++) {
        snprintf(ids[i], sizeof ids[i], "%s/%s", s->node, s->devices[i]);
        parts[i + 1] = (struct quota_part){ids[i], s->limit_bytes};
    }
    const struct quota_claim q = {s->id, s->principal, s->limit_bytes, parts, s->n_devices + 1};
    return held ? quota_hold(c->quota, &q) : quota_reserve(c->quota, &q, p, why);
}

/* ---- what sessions may take of devices ---- */

/* A session that may use several devices could put all of it on any of them. */
static void account_list(const struct coord *c, const struct dsession *s, struct topo_node *n)
{
    for (; s; s = s->next) {
        if (strcmp(s->node, n->name) || !quota_has(c->quota, s->id))
            continue;
        for (unsigned i = 0; i < s->n_devices; i++)
            for (size_t k = 0; k < n->ndevices; k++) {
                struct topo_device *d = &n->devices[k];
                if (!strcmp(d->local_id, s->devices[i]) &&
                    __builtin_add_overflow(d->session_bytes, s->limit_bytes, &d->session_bytes))
                    d->session_bytes = UINT64_MAX;
            }
    }
}

void dsessions_account(struct coord *c, const char *node)
{
    struct topo_node *n = topo_node(c->topo, node);
    for (size_t k = 0; n && k < n->ndevices; k++)
        n->devices[k].session_bytes = 0;
    if (n) {
        account_list(c, c->dsessions.head, n);
        account_list(c, c->dsessions.opening, n);
    }
}

void dsession_opening(struct coord *c, struct dsession *s)
{
    s->next = c->dsessions.opening;
    c->dsessions.opening = s;
    dsessions_account(c, s->node);
}

void dsession_opened(struct coord *c, struct dsession *s)
{
    for (struct dsession **at = &c->dsessions.opening; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    s->next = NULL;
}

int dsession_add(struct coord *c, struct dsession *s)
{
    int rc = heap_set(&c->dsessions.expiries, &s->expiry, (uint64_t)(s->expires_us + GRACE_US));
    if (rc == ST_OK && (rc = map_put(c->dsessions.by_id, s->id, strlen(s->id), s, NULL)) < 0)
        heap_del(&c->dsessions.expiries, &s->expiry);
    if (rc < 0) {
        free(s);
        return rc;
    }
    s->next = c->dsessions.head;
    c->dsessions.head = s;
    c->dsessions.ending += s->state == DSESSION_ENDING;
    dsessions_account(c, s->node);
    return ST_OK;
}

static void forget(struct coord *c, struct dsession *s)
{
    map_del(c->dsessions.by_id, s->id, strlen(s->id));
    heap_del(&c->dsessions.expiries, &s->expiry);
    for (struct dsession **at = &c->dsessions.head; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    free(s);
}

/* ---- rows and events ---- */

static void devices_join(const struct dsession *s, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = 0;
    for (unsigned i = 0; i < s->n_devices; i++)
        at += (size_t)snprintf(out + at, cap - at, "%s%s", i ? "\n" : "", s->devices[i]);
}

void dsession_put(struct store_txn *t, const struct dsession *s)
{
    char devices[TICKET_DEVICES_MAX * (TICKET_DEVICE_MAX + 1) + 1];
    devices_join(s, devices, sizeof devices);
    store_txn_session_put(t, &(struct store_session){.id = s->id,
                                                     .principal = s->principal,
                                                     .node = s->node,
                                                     .devices = devices,
                                                     .reason = s->reason,
                                                     .permissions = s->permissions,
                                                     .limit_bytes = s->limit_bytes,
                                                     .generation = s->generation,
                                                     .state = s->state,
                                                     .opened_us = s->opened_us,
                                                     .expires_us = s->expires_us});
}

void dsession_event(struct coord *c, struct store_txn *t, const struct dsession *s, int type, int result,
                    const char *by, const char *meta, const char *error)
{
    struct audit_event ev = event_make(type, result, clock_wall_us(c->clock));
    ev.principal = by ? by : s->principal;
    ev.node = s->node;
    ev.session = s->id;
    ev.operation = event_info(type)->name;
    ev.meta = meta;
    ev.error = error;
    store_txn_event(t, &ev);
}

static int load(void *arg, const struct store_session *r)
{
    struct coord *c = arg;
    struct dsession *s = calloc(1, sizeof *s);
    if (!s)
        return ST_ENOMEM;
    str_copy(s->id, sizeof s->id, r->id);
    str_copy(s->principal, sizeof s->principal, r->principal);
    str_copy(s->node, sizeof s->node, r->node);
    str_copy(s->reason, sizeof s->reason, r->reason);
    s->permissions = r->permissions;
    s->limit_bytes = r->limit_bytes;
    s->generation = r->generation;
    s->opened_us = r->opened_us;
    s->expires_us = r->expires_us;
    s->state = r->state == DSESSION_OPEN || r->state == DSESSION_ENDED ? (enum dsession_state)r->state
                                                                       : DSESSION_ENDING;
    for (const char *p = r->devices; *p && s->n_devices < TICKET_DEVICES_MAX;) {
        size_t n = strcspn(p, "\n");
        snprintf(s->devices[s->n_devices++], sizeof s->devices[0], "%.*s",
                 n < TICKET_DEVICE_MAX ? (int)n : TICKET_DEVICE_MAX, p);
        p += n + (p[n] == '\n');
    }
    int rc = s->state == DSESSION_ENDED ? ST_OK : dsession_claim(c, s, NULL, true, NULL);
    if (rc < 0) {
        free(s);
        return rc;
    }
    return dsession_add(c, s);
}

/* Under which request a session was opened, so that the request repeated is not another session. */
static int load_request(void *arg, const struct store_request *r)
{
    struct coord *c = arg;
    char id[40] = "";
    if (strcmp(r->method, DSESSION_OPEN_METHOD) || r->response_len <= 32 || r->response_len >= 32 + sizeof id)
        return 0;
    memcpy(id, (const uint8_t *)r->response + 32, r->response_len - 32);
    struct dsession *s = dsession_find(c, id);
    if (s && str_copy(s->request_id, sizeof s->request_id, r->request_id))
        memcpy(s->wish, r->response, 32);
    return 0;
}

int dsessions_load(struct coord *c, struct err *e)
{
    int rc = store_load_sessions(c->store, load, c, e);
    if (rc == ST_OK)
        rc = store_load_requests(c->store, load_request, c, e);
    return rc == ST_ENOMEM ? err_set(e, rc, "no memory for the sessions of state.db") : rc;
}

/* ---- ends ---- */

bool dsession_lost(const struct dsession *s, const struct policy *p, int64_t now_us, char reason[40])
{
    for (unsigned perm = 0; perm < PERM_ADMIN; perm++) {
        if (!(s->permissions & PERM_BIT(perm)))
            continue;
        for (unsigned i = 0; i < s->n_devices; i++) {
            char id[TICKET_NODE_MAX + TICKET_DEVICE_MAX + 2];
            snprintf(id, sizeof id, "%s/%s", s->node, s->devices[i]);
            const struct access_request rq = {
                .permission = (enum permission)perm, .device = id, .now_us = now_us};
            const struct decision d = access_check(p, &rq);
            if (!d.allowed) {
                str_copy(reason, 40, access_reason_name(d.reason));
                return true;
            }
        }
    }
    return false;
}

struct change { /* a session's transaction on its way */
    struct coord *c;
    char id[40];
    bool freed;
};

static void changed(void *arg, int rc, const struct err *e)
{
    struct change *ch = arg;
    struct coord *c = ch->c;
    struct dsession *s = c->stopping ? NULL : dsession_find(c, ch->id);
    if (s) {
        s->writing--;
        if (rc < 0)
            LOG_E(&c->log, "api", "session not recorded session=%s error=%s", s->id, e->text);
        if (rc == ST_OK && ch->freed) {
            quota_release(c->quota, s->id);
            dsessions_account(c, s->node);
            jobs_room_changed(c->jobs);
        } else if (rc < 0 && ch->freed) { /* still charged: tried again with the next tick */
            s->state = DSESSION_ENDING;
            c->dsessions.ending++;
            s->asked = false;
        }
        if (s->freed && s->state != DSESSION_ENDED)
            dsession_freed(c, s, s->reason);
        else if (s->state == DSESSION_ENDING)
            dsessions_push(c, s->node);
    }
    free(ch);
}

static void write_change(struct coord *c, struct dsession *s, struct store_txn *t, bool freed)
{
    struct change *ch = calloc(1, sizeof *ch);
    if (!ch) {
        store_txn_free(t);
        LOG_E(&c->log, "api", "no memory to record session=%s", s->id);
        return;
    }
    *ch = (struct change){.c = c, .freed = freed};
    str_copy(ch->id, sizeof ch->id, s->id);
    s->writing++;
    int rc = store_submit(c->store, t, changed, ch);
    if (rc < 0) {
        struct err e;
        err_set(&e, rc, "state.db does not take it: %s", status_name(rc));
        changed(ch, rc, &e);
    }
}

void dsession_end(struct coord *c, struct dsession *s, const char *reason, const char *by)
{
    if (s->state != DSESSION_OPEN)
        return;
    struct store_txn *t = store_txn_new();
    s->state = DSESSION_ENDING;
    c->dsessions.ending++;
    str_copy(s->reason, sizeof s->reason, reason);
    if (!t) {
        LOG_E(&c->log, "api", "no memory to record the end of session=%s", s->id);
        dsessions_push(c, s->node);
        return;
    }
    struct event_meta m = {0};
    event_meta_str(&m, "reason", reason);
    event_meta_str(&m, "subject", s->principal);
    dsession_put(t, s);
    dsession_event(c, t, s, EV_SECURITY_TICKET_REVOKED, EVENT_SUCCESS, by, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    write_change(c, s, t, false);
}

void dsession_freed(struct coord *c, struct dsession *s, const char *reason)
{
    if (s->state == DSESSION_ENDED)
        return;
    if (s->writing) {
        s->freed = true;
        return;
    }
    struct store_txn *t = store_txn_new();
    if (!t)
        return; /* expiry tries again */
    c->dsessions.ending -= s->state == DSESSION_ENDING;
    s->state = DSESSION_ENDED;
    s->active = s->asked = false;
    s->used_bytes = 0;
    quota_used(c->quota, s->id, 0);
    if (!s->reason[0])
        str_copy(s->reason, sizeof s->reason, reason);
    struct event_meta m = {0};
    event_meta_str(&m, "reason", s->reason);
    dsession_put(t, s);
    dsession_event(c, t, s, EV_SECURITY_SESSION_CLOSED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    write_change(c, s, t, true);
}

void dsessions_recheck(struct coord *c, const char *principal, const char *by)
{
    struct policy p;
    char reason[40], of[POLICY_PRINCIPAL_MAX] = "";
    bool has = false;
    for (struct dsession *s = c->dsessions.head; s; s = s->next) {
        if (s->state != DSESSION_OPEN || (principal && strcmp(principal, s->principal)))
            continue;
        if (strcmp(of, s->principal)) {
            has = access_set_get(c->access, s->principal, &p);
            str_copy(of, sizeof of, s->principal);
        }
        if (dsession_lost(s, has ? &p : NULL, clock_wall_us(c->clock), reason))
            dsession_end(c, s, reason, by);
    }
}

/* ---- telling agents ---- */

struct push {
    struct coord *c;
    char node[64];
    size_t n;
    char ids[PUSH_MAX][40];
};

static void on_revoked(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct push *p = arg;
    const Strata__V1__RevokeSessionsReply *r = (const Strata__V1__RevokeSessionsReply *)msg;
    (void)call;
    for (size_t i = 0; i < r->n_ended; i++) {
        struct dsession *s = dsession_find(p->c, r->ended[i]->session);
        if (s && !strcmp(s->node, p->node))
            dsession_freed(p->c, s, *r->ended[i]->reason ? r->ended[i]->reason : "REVOKED");
    }
}

static void on_push_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct push *p = arg;
    (void)call;
    (void)digest;
    if (st->code)
        LOG_W(&p->c->log, "api", "node=%s did not end %zu sessions reason=%s %s", p->node, p->n, st->reason,
              st->text);
    for (size_t i = 0; i < p->n; i++) {
        struct dsession *s = dsession_find(p->c, p->ids[i]);
        if (s)
            s->asked = false; /* what is still ending is asked for again with the next tick */
    }
    free(p);
}

void dsessions_push(struct coord *c, const char *node)
{
    static const struct rpc_call_ops ops = {.on_message = on_revoked, .on_done = on_push_done};
    struct topo_node *n = topo_node(c->topo, node);
    struct rpc_session *rpc = n && n->state != TOPO_LOST ? api_node_rpc(n) : NULL;
    struct push *p = rpc ? calloc(1, sizeof *p) : NULL;
    Strata__V1__SessionEnd *v = p ? calloc(PUSH_MAX, sizeof *v) : NULL;
    Strata__V1__SessionEnd *pv[PUSH_MAX];
    if (!v) {
        free(p);
        return; /* its next hello, or the next tick */
    }
    p->c = c;
    str_copy(p->node, sizeof p->node, node);
    for (struct dsession *s = c->dsessions.head; s && p->n < PUSH_MAX; s = s->next) {
        if (s->state != DSESSION_ENDING || s->writing || s->asked || strcmp(s->node, node))
            continue;
        strata__v1__session_end__init(&v[p->n]);
        v[p->n].session = s->id;
        v[p->n].reason = s->reason;
        v[p->n].expires_us = s->expires_us;
        pv[p->n] = &v[p->n];
        str_copy(p->ids[p->n++], sizeof p->ids[0], s->id);
        s->asked = true;
    }
    Strata__V1__RevokeSessionsRequest q = STRATA__V1__REVOKE_SESSIONS_REQUEST__INIT;
    q.end = pv;
    q.n_end = p->n;
    struct rpc_call *call;
    struct err e;
    int rc = p->n ? rpc_call(&call, rpc, &strata__v1__session_control__descriptor, "Revoke", RPC_UNARY,
                             &q.base, &(struct rpc_call_opts){.timeout_ns = REVOKE_NS}, &ops, p, &e)
                  : ST_ENOENT;
    free(v);
    if (rc < 0) {
        for (size_t i = 0; i < p->n; i++)
            dsession_find(c, p->ids[i])->asked = false;
        free(p);
    }
}

/* ---- time ---- */

static struct dsession *of_heap(struct heap_node *x)
{
    return (struct dsession *)((char *)x - offsetof(struct dsession, expiry));
}

static void drop_row(struct coord *c, struct dsession *s)
{
    struct store_txn *t = store_txn_new();
    if (t) {
        store_txn_session_delete(t, s->id);
        if (store_submit(c->store, t, NULL, NULL) < 0)
            LOG_W(&c->log, "api", "the row of the ended session=%s stays until the next start", s->id);
    }
    forget(c, s);
}

void dsessions_tick(struct coord *c)
{
    int64_t now = clock_wall_us(c->clock);
    struct heap_node *x;
    while ((x = heap_top(&c->dsessions.expiries)) && (int64_t)x->key <= now) {
        struct dsession *s = of_heap(x);
        struct topo_node *n = topo_node(c->topo, s->node);
        if (s->state == DSESSION_ENDED && !s->writing) {
            drop_row(c, s);
            continue;
        }
        /* Moving it back in the heap needs no memory. What a connected agent still holds it has to free
         * first. */
        if (heap_set(&c->dsessions.expiries, x, (uint64_t)(now + GRACE_US)) < 0)
            return;
        if (s->active && s->state == DSESSION_OPEN && n && api_node_rpc(n))
            dsession_end(c, s, "TICKET_EXPIRED", "coordinator");
        else if (!s->active || !n || !api_node_rpc(n))
            dsession_freed(c, s, "TICKET_EXPIRED");
    }
    if (!c->dsessions.ending)
        return;
    for (size_t i = 0; i < topo_count(c->topo); i++)
        if (api_node_rpc(topo_at(c->topo, i)))
            dsessions_push(c, topo_at(c->topo, i)->name);
}
