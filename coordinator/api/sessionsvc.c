/* Service Sessions: granting device sessions to users, and what agents say about them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/api/api.h"
#include "strata/v1/sessions.pb-c.h"

#define LIFE_DEFAULT_US (300ll * 1000000)
#define LIFE_MIN_US (1ll * 1000000)
#define LIFE_MAX_US (3600ll * 1000000)
#define LIST_PAGE 500u
#define REPORT_MAX 20000u /* sessions in one report */

/* ---- what the caller may have ---- */

static int life_of(uint64_t ttl_ns, int64_t *us, struct err *e)
{
    *us =
        ttl_ns ? (int64_t)(ttl_ns / NS_PER_US < INT64_MAX ? ttl_ns / NS_PER_US : INT64_MAX) : LIFE_DEFAULT_US;
    if (*us < LIFE_MIN_US || *us > LIFE_MAX_US)
        return err_reason(e, ST_EINVAL, "TTL", "a ticket lives from 1 s to 1 h; renew it for longer work");
    return ST_OK;
}

static int wanted(const Strata__V1__OpenSessionRequest *q, uint32_t *perms, struct err *e)
{
    int rc = ST_OK;
    *perms = 0;
    for (size_t i = 0; i < q->n_permissions && rc == ST_OK; i++)
        rc = permission_parse(q->permissions[i], perms, e);
    if (rc == ST_OK && (*perms & PERM_BIT(PERM_ADMIN)))
        rc = err_reason(e, ST_EINVAL, "UNKNOWN_PERMISSION",
                        "admin:full_access is no permission on a device: name those of device:, memory:, "
                        "compute: or monitor:, or none for all that you have");
    return rc;
}

static bool asked_for(const Strata__V1__OpenSessionRequest *q, const struct topo_device *d)
{
    for (size_t i = 0; i < q->n_devices; i++)
        if (str_glob(q->devices[i], d->local_id) || !strcmp(q->devices[i], d->id))
            return true;
    return q->n_devices == 0;
}

static int names_known(const Strata__V1__OpenSessionRequest *q, const struct topo_node *n, struct err *e)
{
    for (size_t i = 0; i < q->n_devices; i++) {
        bool known = false;
        for (size_t k = 0; k < n->ndevices && !known; k++)
            known =
                str_glob(q->devices[i], n->devices[k].local_id) || !strcmp(q->devices[i], n->devices[k].id);
        if (!known)
            return err_reason(e, ST_ENOENT, "UNKNOWN_DEVICE",
                              "node %s has no device '%.60s': strata gpu list shows what there is", n->name,
                              q->devices[i]);
    }
    return ST_OK;
}

/* Which of the permissions (0: all) the caller has on the device; *d says why not for the first one missing.
 */
static uint32_t granted_on(struct coord *c, struct access_handle h, const char *device, uint32_t perms,
                           struct decision *d, enum permission *missing)
{
    uint32_t have = 0, number = access_set_device(c->access, device);
    int64_t now = clock_wall_us(c->clock);
    d->allowed = true;
    for (unsigned p = PERM_ADMIN; p-- > 0;) { /* downwards: the first one missing is kept last */
        if (perms && !(perms & PERM_BIT(p)))
            continue;
        struct decision one = access_set_decide(c->access, h, (enum permission)p, number, now);
        if (one.allowed) {
            have |= PERM_BIT(p);
            d->generation = one.generation;
        } else {
            *d = one;
            *missing = (enum permission)p;
        }
    }
    return have;
}

/* Fills devices and permissions of s. On refusal the call has been answered. */
static int resolve(struct rpc_call *call, struct coord *c, const struct topo_node *n,
                   const Strata__V1__OpenSessionRequest *q, uint32_t perms, struct dsession *s)
{
    struct access_handle h = access_set_find(c->access, s->principal, strlen(s->principal));
    struct decision d, refusal = {.reason = ACCESS_NO_POLICY, .rule = RULE_DEFAULT_DENY};
    enum permission missing = PERM_DEVICE_LIST, refused = perms ? (enum permission)__builtin_ctz(perms) : 0;
    const char *where = NULL;
    struct err e;
    for (size_t i = 0; i < n->ndevices; i++) {
        const struct topo_device *dev = &n->devices[i];
        if (!asked_for(q, dev))
            continue;
        uint32_t have = granted_on(c, h, dev->id, perms, &d, &missing);
        if (perms ? !d.allowed : !have) {
            refusal = d;
            refused = missing;
            where = dev->id;
            continue; /* a pattern takes those that are allowed; a name is looked at below */
        }
        if (s->n_devices == TICKET_DEVICES_MAX) {
            err_reason(&e, ST_EINVAL, "TOO_MANY_DEVICES",
                       "a session covers at most %u devices: name those that you want", TICKET_DEVICES_MAX);
            api_refuse(call, c, EV_SECURITY_SESSION_OPENED, &e);
            return e.code;
        }
        /* On every device of the session the same: what is granted on all of them. */
        s->permissions = s->n_devices ? s->permissions & have : have;
        s->generation = d.generation;
        str_copy(s->devices[s->n_devices++], sizeof s->devices[0], dev->local_id);
    }
    bool by_name = false;
    for (size_t i = 0; where && i < q->n_devices; i++)
        by_name = by_name || !strcmp(q->devices[i], where) || !strcmp(q->devices[i], strchr(where, '/') + 1);
    if (s->n_devices && s->permissions && !by_name)
        return ST_OK;
    if (!where && n->ndevices == 0) {
        err_reason(&e, ST_ENOENT, "UNKNOWN_DEVICE", "node %s offers no device", n->name);
        api_refuse(call, c, EV_SECURITY_SESSION_OPENED, &e);
        return e.code;
    }
    api_deny(
        call, c, &refusal,
        &(struct access_request){.permission = refused, .device = where, .now_us = clock_wall_us(c->clock)});
    return ST_EDENIED;
}

static void refuse_quota(struct rpc_call *call, struct coord *c, const char *principal,
                         const struct quota_refusal *why)
{
    char asked[16], used[16], limit[16];
    struct event_meta m = {0};
    struct err e;
    fmt_bytes(asked, why->asked);
    fmt_bytes(used, why->used);
    fmt_bytes(limit, why->limit);
    err_reason(
        &e, ST_ERESOURCE, "QUOTA_EXCEEDED",
        "%s more refused: %s holds %s of its quota of %s on %s; close sessions, cancel jobs, or ask an "
        "admin for more",
        asked, principal, used, limit, *why->where ? why->where : "the cluster");
    event_meta_u64(&m, "bytes", why->asked);
    event_meta_u64(&m, "used", why->used);
    event_meta_u64(&m, "quota", why->limit);
    event_meta_str(&m, "where", *why->where ? why->where : "cluster");
    struct audit_event ev = event_make(EV_SECURITY_QUOTA_EXCEEDED, EVENT_DENIED, clock_wall_us(c->clock));
    ev.principal = principal;
    ev.operation = rpc_call_name(call);
    ev.error = e.text;
    ev.meta = event_meta_text(&m);
    api_record(c, &ev);
    event_meta_fini(&m);
    rpc_fail(call, &e);
}

/* ---- answers ---- */

struct grant { /* an opening or renewal on its way to disk */
    struct coord *c;
    struct rpc_call *call;  /* NULL: the caller is gone */
    struct dsession *fresh; /* an opening: not in the list yet */
    char id[40];
    uint8_t holder[32], serial[TICKET_SERIAL_LEN];
    int64_t issued_us, expires_us;
};

static void on_grant_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct grant *)arg)->call = NULL;
}

static int sign(struct grant *g, const struct dsession *s, uint8_t out[TICKET_MAX], size_t *n, struct err *e)
{
    struct ticket t = {.purpose = TICKET_DEVICE,
                       .limit_bytes = s->limit_bytes,
                       .issued_us = g->issued_us,
                       .expires_us = g->expires_us};
    size_t got = 0;
    memcpy(t.serial, g->serial, sizeof t.serial);
    memcpy(t.holder, g->holder, sizeof t.holder);
    str_copy(t.node, sizeof t.node, s->node);
    snprintf(t.resource, sizeof t.resource, "session/%s", s->id);
    t.grant.permissions = s->permissions;
    t.grant.generation = s->generation;
    str_copy(t.grant.principal, sizeof t.grant.principal, s->principal);
    t.grant.n_devices = s->n_devices;
    for (unsigned i = 0; i < s->n_devices; i++)
        str_copy(t.grant.devices[i], sizeof t.grant.devices[0], s->devices[i]);
    if (hex_decode(t.grant.session, sizeof t.grant.session, s->id + 2, &got) < 0 ||
        got != sizeof t.grant.session)
        return err_set(e, ST_EINTERNAL, "session %s has no id that a ticket can carry", s->id);
    return ticket_sign(g->c->ticket_key, &t, out, n, e);
}

static void answer(struct grant *g, const struct dsession *s)
{
    uint8_t ticket[TICKET_MAX];
    size_t len = 0, np = 0;
    struct err e;
    char *devices[TICKET_DEVICES_MAX], *perms[PERM_ADMIN];
    int rc = sign(g, s, ticket, &len, &e);
    if (rc < 0) {
        rpc_fail(g->call, &e);
        return;
    }
    struct topo_node *n = topo_node(g->c->topo, s->node);
    for (unsigned i = 0; i < s->n_devices; i++)
        devices[i] = (char *)s->devices[i];
    for (unsigned p = 0; p < PERM_ADMIN; p++)
        if (s->permissions & PERM_BIT(p))
            perms[np++] = (char *)permission_name((enum permission)p);
    Strata__V1__SessionGrant r = STRATA__V1__SESSION_GRANT__INIT;
    r.session = (char *)s->id;
    r.node = (char *)s->node;
    r.peer_address = n ? n->peer_address : (char *)"";
    r.ticket = (ProtobufCBinaryData){len, ticket};
    r.expires_us = g->expires_us;
    r.devices = devices;
    r.n_devices = s->n_devices;
    r.permissions = perms;
    r.n_permissions = np;
    r.limit_bytes = s->limit_bytes;
    rpc_reply(g->call, &r.base);
}

static struct grant *grant_new(struct rpc_call *call, struct coord *c, const char *id, int64_t life_us,
                               const struct policy *p)
{
    struct grant *g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    *g = (struct grant){.c = c, .call = call, .issued_us = clock_wall_us(c->clock)};
    g->expires_us = g->issued_us + life_us;
    if (p->expires_us && p->expires_us < g->expires_us)
        g->expires_us = p->expires_us;
    str_copy(g->id, sizeof g->id, id);
    memcpy(g->holder, rpc_peer(call)->spki_sha256, sizeof g->holder);
    ticket_serial(c->rng, g->serial);
    return g;
}

static void ticket_event(struct grant *g, struct store_txn *t, const struct dsession *s)
{
    char serial[2 * TICKET_SERIAL_LEN + 1];
    struct event_meta m = {0};
    hex_encode(serial, g->serial, sizeof g->serial);
    event_meta_str(&m, "ticket", serial);
    event_meta_u64(&m, "bytes", s->limit_bytes);
    event_meta_i64(&m, "expires_us", g->expires_us);
    dsession_event(g->c, t, s, EV_SECURITY_TICKET_ISSUED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
}

/* ---- Open ---- */

static void on_opened(void *arg, int rc, const struct err *e)
{
    struct grant *g = arg;
    struct coord *c = g->c;
    struct dsession *s = g->fresh;
    char id[40];
    str_copy(id, sizeof id, s->id);
    if (rc < 0 || c->stopping) {
        quota_release(c->quota, id);
        free(s);
        rc = rc < 0 ? rc : ST_ECLOSED;
    } else if ((rc = dsession_add(c, s)) < 0) {
        LOG_E(&c->log, "api", "no memory to keep session=%s: it is granted to nobody", id);
    } else {
        quota_commit(c->quota, id);
        dsessions_recheck(c, s->principal, "coordinator"); /* the policy may have changed meanwhile */
    }
    if (g->call && rc == ST_OK && s->state == DSESSION_OPEN)
        answer(g, s);
    else if (g->call && rc == ST_OK)
        rpc_finish(g->call, 7, "POLICY_CHANGED", "your policy changed while the session was being opened");
    else if (g->call)
        rpc_fail(g->call, e);
    else if (rc == ST_OK)
        dsession_end(c, s, "CLIENT_GONE", "coordinator");
    free(g);
}

static int check_open(struct coord *c, const Strata__V1__OpenSessionRequest *q, struct topo_node **n,
                      uint32_t *perms, int64_t *life, struct err *e)
{
    int rc = life_of(q->ttl_ns, life, e);
    if (rc < 0 || (rc = wanted(q, perms, e)) < 0)
        return rc;
    if (q->limit_bytes > INT64_MAX)
        return err_reason(e, ST_EINVAL, "SIZE", "a memory limit of %llu bytes is beyond 8 EiB",
                          (unsigned long long)q->limit_bytes);
    *n = topo_node(c->topo, q->node);
    if (!*n)
        return err_reason(e, ST_ENOENT, "UNKNOWN_NODE",
                          "there is no node '%.60s': strata node list shows those there are", q->node);
    if ((*n)->state != TOPO_CONNECTED || !api_node_rpc(*n) || !(*n)->peer_address[0])
        return err_reason(e, ST_EUNREACH, "NODE_NOT_CONNECTED", "node %s is not connected now", (*n)->name);
    return names_known(q, *n, e);
}

void api_sessions_open(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__OpenSessionRequest *q = (const Strata__V1__OpenSessionRequest *)req;
    struct topo_node *n = NULL;
    struct quota_refusal why;
    struct err e;
    uint32_t perms;
    int64_t life;
    /* Whoever has no policy learns nothing, not even which nodes there are. */
    if (!api_allow(call, c, PERM_DEVICE_INFO))
        return;
    if (check_open(c, q, &n, &perms, &life, &e) < 0) {
        api_refuse(call, c, EV_SECURITY_SESSION_OPENED, &e);
        return;
    }
    struct dsession *s = calloc(1, sizeof *s);
    if (!s) {
        api_no_memory(call);
        return;
    }
    uint8_t raw[TICKET_SESSION_LEN];
    c->rng->fill(c->rng->arg, raw, sizeof raw);
    memcpy(s->id, "s-", 2);
    hex_encode(s->id + 2, raw, sizeof raw);
    str_copy(s->principal, sizeof s->principal, rpc_peer(call)->principal);
    str_copy(s->node, sizeof s->node, n->name);
    s->limit_bytes = q->limit_bytes;
    if (s->limit_bytes && perms)
        perms |=
            PERM_BIT(PERM_MEMORY_ALLOCATE); /* a limit is worth nothing without it: it has to be granted */
    if (resolve(call, c, n, q, perms, s) < 0) {
        free(s);
        return;
    }
    if (s->limit_bytes && !(s->permissions & PERM_BIT(PERM_MEMORY_ALLOCATE))) {
        struct access_request rq = {.permission = PERM_MEMORY_ALLOCATE, .now_us = clock_wall_us(c->clock)};
        struct decision d = access_set_ask(c->access, s->principal, &rq);
        if (d.allowed)
            d = (struct decision){.reason = ACCESS_MISSING_PERMISSION, .generation = d.generation};
        api_deny(call, c, &d, &rq);
        free(s);
        return;
    }
    const struct policy *p = api_policy(c, s->principal);
    int rc = dsession_claim(c, s, p, false, &why);
    if (rc == ST_ERESOURCE)
        refuse_quota(call, c, s->principal, &why);
    else if (rc == ST_ELIMIT)
        rpc_finish(call, 3, "SIZE", "with that limit %s would hold more than 8 EiB", s->principal);
    else if (rc < 0)
        api_no_memory(call);
    struct grant *g = rc == ST_OK ? grant_new(call, c, s->id, life, p) : NULL;
    struct store_txn *t = g ? store_txn_new() : NULL;
    if (rc < 0 || !t) {
        if (rc == ST_OK) {
            quota_release(c->quota, s->id);
            api_no_memory(call);
        }
        free(g);
        free(s);
        return;
    }
    s->opened_us = g->issued_us;
    s->expires_us = g->expires_us;
    g->fresh = s;
    struct event_meta m = {0};
    char addr[64];
    quic_addr_str(quic_conn_remote(rpc_session_conn(rpc_call_session(call))), addr);
    event_meta_str(&m, "peer", addr);
    event_meta_u64(&m, "bytes", s->limit_bytes);
    event_meta_u64(&m, "policy", s->generation);
    dsession_put(t, s);
    dsession_event(c, t, s, EV_SECURITY_SESSION_OPENED, EVENT_SUCCESS, NULL, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    ticket_event(g, t, s);
    rpc_on_cancel(call, on_grant_gone, g);
    if ((rc = store_submit(c->store, t, on_opened, g)) < 0) {
        err_set(&e, rc, "state.db does not take the session now (%s): try again", status_name(rc));
        on_opened(g, rc, &e);
    }
}

/* ---- Renew, Close, Kill ---- */

/* The caller's own session, or anyone's for an admin; NULL when the call has been answered. */
static struct dsession *own(struct rpc_call *call, struct coord *c, const char *id, bool any)
{
    struct dsession *s = dsession_find(c, id);
    const char *who = rpc_peer(call)->principal;
    struct err e;
    if (s && (!strcmp(s->principal, who) || (any && api_is_admin(c, who))))
        return s;
    if (s && any && !api_allow(call, c, PERM_ADMIN))
        return NULL;
    /* Somebody else's and none at all look the same. */
    err_reason(&e, ST_ENOENT, "NO_SESSION", "there is no session '%.60s': strata session list shows yours",
               id);
    api_refuse(call, c, EV_SECURITY_TICKET_REFUSED, &e);
    return NULL;
}

static void on_renewed(void *arg, int rc, const struct err *e)
{
    struct grant *g = arg;
    struct dsession *s = g->c->stopping ? NULL : dsession_find(g->c, g->id);
    if (s) {
        s->writing--;
        if (rc == ST_OK && s->state == DSESSION_ENDING)
            dsessions_push(g->c, s->node);
        if (s->freed && s->state != DSESSION_ENDED)
            dsession_freed(g->c, s, s->reason);
    }
    if (g->call && rc == ST_OK && s && s->state == DSESSION_OPEN)
        answer(g, s);
    else if (g->call && rc == ST_OK)
        rpc_finish(g->call, 9, "TICKET_REVOKED", "the session ended while it was being renewed");
    else if (g->call)
        rpc_fail(g->call, e);
    free(g);
}

void api_sessions_renew(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__RenewSessionRequest *q = (const Strata__V1__RenewSessionRequest *)req;
    struct dsession *s = own(call, c, q->session, false);
    char reason[40];
    struct err e;
    int64_t life;
    if (!s)
        return;
    int rc = life_of(q->ttl_ns, &life, &e);
    if (rc == ST_OK && s->state != DSESSION_OPEN)
        rc = err_reason(&e, ST_ECONFLICT, "TICKET_REVOKED", "session %s has ended (%s): open another", s->id,
                        s->reason);
    if (rc == ST_OK && clock_wall_us(c->clock) >= s->expires_us)
        rc = err_reason(&e, ST_ECONFLICT, "TICKET_EXPIRED",
                        "session %s has run out: open another, and renew it before its ticket ends", s->id);
    const struct policy *p = api_policy(c, s->principal);
    if (rc == ST_OK && dsession_lost(s, p, clock_wall_us(c->clock), reason))
        rc = err_reason(&e, ST_EDENIED, reason, "your policy does not carry session %s any more", s->id);
    if (rc < 0) {
        api_refuse(call, c, EV_SECURITY_TICKET_REFUSED, &e);
        return;
    }
    struct grant *g = grant_new(call, c, s->id, life, p);
    struct store_txn *t = g ? store_txn_new() : NULL;
    /* The escrow is held for the longer life from now on, whatever becomes of the transaction. */
    int64_t until = g && g->expires_us > s->expires_us ? g->expires_us : s->expires_us;
    if (!t ||
        heap_set(&c->dsessions.expiries, &s->expiry, (uint64_t)(until + TICKET_SKEW_US + 1000000)) < 0) {
        store_txn_free(t);
        free(g);
        api_no_memory(call);
        return;
    }
    s->expires_us = until;
    s->generation = p->generation;
    dsession_put(t, s);
    ticket_event(g, t, s);
    rpc_on_cancel(call, on_grant_gone, g);
    s->writing++;
    if ((rc = store_submit(c->store, t, on_renewed, g)) < 0) {
        err_set(&e, rc, "state.db does not take the renewal now (%s): try again", status_name(rc));
        on_renewed(g, rc, &e);
    }
}

struct info {
    Strata__V1__SessionInfo m;
    char *devices[TICKET_DEVICES_MAX], *perms[PERM_ADMIN];
};

static const char *state_name(const struct dsession *s)
{
    return s->state == DSESSION_ENDED    ? "ended"
           : s->state == DSESSION_ENDING ? "ending"
           : s->active                   ? "active"
                                         : "open";
}

static void fill_info(struct info *o, const struct dsession *s)
{
    *o = (struct info){.m = STRATA__V1__SESSION_INFO__INIT};
    o->m.session = (char *)s->id;
    o->m.principal = (char *)s->principal;
    o->m.node = (char *)s->node;
    o->m.state = (char *)state_name(s);
    for (unsigned i = 0; i < s->n_devices; i++)
        o->devices[i] = (char *)s->devices[i];
    o->m.devices = o->devices;
    o->m.n_devices = s->n_devices;
    for (unsigned p = 0; p < PERM_ADMIN; p++)
        if (s->permissions & PERM_BIT(p))
            o->perms[o->m.n_permissions++] = (char *)permission_name((enum permission)p);
    o->m.permissions = o->perms;
    o->m.limit_bytes = s->limit_bytes;
    o->m.used_bytes = s->used_bytes;
    o->m.opened_us = s->opened_us;
    o->m.expires_us = s->expires_us;
    o->m.generation = s->generation;
    o->m.reason = (char *)s->reason;
}

/* Ends it; the answer waits for the disk and is the session as it then is. */
struct ending {
    struct coord *c;
    struct rpc_call *call;
    char id[40];
};

static void on_ending_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct ending *)arg)->call = NULL;
}

static void on_end_stored(void *arg, int rc, const struct err *e)
{
    struct ending *w = arg;
    struct dsession *s = dsession_find(w->c, w->id);
    struct info i;
    if (w->call && rc < 0) {
        rpc_fail(w->call, e);
    } else if (w->call && s) {
        fill_info(&i, s);
        rpc_reply(w->call, &i.m.base);
    } else if (w->call) {
        rpc_finish(w->call, 5, "NO_SESSION", "session %s has ended", w->id);
    }
    free(w);
}

static void end_by_call(struct rpc_call *call, struct coord *c, struct dsession *s, const char *reason)
{
    struct ending *w = calloc(1, sizeof *w);
    struct store_txn *t = w ? store_txn_new() : NULL;
    struct err e;
    if (!t) {
        free(w);
        api_no_memory(call);
        return;
    }
    *w = (struct ending){.c = c, .call = call};
    str_copy(w->id, sizeof w->id, s->id);
    rpc_on_cancel(call, on_ending_gone, w);
    dsession_end(c, s, reason, rpc_peer(call)->principal);
    /* The store keeps the order: when this empty transaction is through, so is the one that ended it. */
    int rc = store_submit(c->store, t, on_end_stored, w);
    if (rc < 0) {
        err_set(&e, rc, "state.db does not take it now (%s): try again", status_name(rc));
        on_end_stored(w, rc, &e);
    }
}

void api_sessions_close(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct dsession *s = own(call, c, ((const Strata__V1__EndSessionRequest *)req)->session, false);
    if (s)
        end_by_call(call, c, s, "CLOSED");
}

void api_sessions_kill(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    struct dsession *s = own(call, c, ((const Strata__V1__EndSessionRequest *)req)->session, true);
    if (s)
        end_by_call(call, c, s, "KILLED");
}

void api_sessions_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__ListSessionsRequest *q = (const Strata__V1__ListSessionsRequest *)req;
    const char *who = rpc_peer(call)->principal;
    if ((q->all || (*q->principal && strcmp(q->principal, who))) && !api_allow(call, c, PERM_ADMIN))
        return;
    bool past = !*q->page_token, all = q->all || *q->principal;
    size_t page = q->page_size && q->page_size < LIST_PAGE ? q->page_size : LIST_PAGE, n = 0;
    struct info *v = calloc(page, sizeof *v);
    Strata__V1__SessionInfo **pv = calloc(page, sizeof(*pv));
    Strata__V1__ListSessionsReply rep = STRATA__V1__LIST_SESSIONS_REPLY__INIT;
    for (struct dsession *s = v && pv ? c->dsessions.head : NULL; s; s = s->next) {
        if (!past) {
            past = !strcmp(s->id, q->page_token);
            continue;
        }
        if (s->state == DSESSION_ENDED || (!all && strcmp(s->principal, who)) ||
            (*q->principal && strcmp(s->principal, q->principal)) || (*q->node && strcmp(s->node, q->node)))
            continue;
        if (n == page) {
            rep.next_page_token = pv[n - 1]->session;
            break;
        }
        fill_info(&v[n], s);
        pv[n] = &v[n].m;
        n++;
    }
    rep.sessions = pv;
    rep.n_sessions = n;
    if (v && pv)
        rpc_reply(call, &rep.base);
    else
        api_no_memory(call);
    free(v);
    free(pv);
}

/* ---- what agents say ---- */

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
