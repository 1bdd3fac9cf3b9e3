/* The table of sessions: how one begins, who may do what in it, and how it ends. */
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

#define RECHECK_NS (60 * NS_PER_S) /* the wall clock may be set while a timer runs */

static uint64_t now_ns(const struct sessions *ss)
{
    return clock_ns(ss->cfg.clock);
}

static int64_t wall_us(const struct sessions *ss)
{
    return clock_wall_us(ss->cfg.clock);
}

/* ---- what ended ---- */

static void gone_drop(struct sessions *ss, struct gone *g)
{
    (void)map_del(ss->gone, g->name, strlen(g->name));
    *g->prev = g->next;
    if (g->next)
        g->next->prev = g->prev;
    ss->ngone--;
    free(g);
}

/* The oldest are at the end; those whose tickets are void and whose end was acknowledged are not needed. */
static void gone_sweep(struct sessions *ss)
{
    int64_t now = wall_us(ss);
    for (struct gone *g = ss->gone_head, *next; g; g = next) {
        next = g->next;
        if (!g->seq && g->expires_us + TICKET_SKEW_US < now)
            gone_drop(ss, g);
    }
}

static void gone_put(struct sessions *ss, const char *name, const char *reason, int64_t expires_us,
                     bool report)
{
    int64_t latest = wall_us(ss) + TICKET_MAX_LIFE_US + TICKET_SKEW_US;
    struct gone *g = map_get(ss->gone, name, strlen(name));
    if (!g) {
        if (ss->ngone >= GONE_MAX / 2)
            gone_sweep(ss);
        if (ss->ngone < GONE_MAX && (g = calloc(1, sizeof *g))) {
            str_copy(g->name, sizeof g->name, name);
            if (map_put(ss->gone, g->name, strlen(g->name), g, NULL) < 0) {
                free(g);
                g = NULL;
            }
        }
        if (!g) { /* cannot be remembered by name: refuse all that is as old */
            ss->floor_us = wall_us(ss) + TICKET_SKEW_US;
            return;
        }
        str_copy(g->reason, sizeof g->reason, reason);
        g->next = ss->gone_head;
        g->prev = &ss->gone_head;
        if (g->next)
            g->next->prev = &g->next;
        ss->gone_head = g;
        ss->ngone++;
    }
    if (expires_us > latest)
        expires_us = latest;
    if (expires_us > g->expires_us)
        g->expires_us = expires_us;
    if (report)
        g->seq = ++ss->ended_seq;
}

void sessions_ended_each(const struct sessions *ss,
                         void (*fn)(const char *session, const char *reason, uint64_t seq, void *arg),
                         void *arg)
{
    for (const struct gone *g = ss->gone_head; g; g = g->next)
        if (g->seq)
            fn(g->name, g->reason, g->seq, arg);
}

void sessions_ended_ack(struct sessions *ss, uint64_t up_to_seq)
{
    for (struct gone *g = ss->gone_head; g; g = g->next)
        if (g->seq && g->seq <= up_to_seq)
            g->seq = 0;
    gone_sweep(ss);
}

/* ---- the end ---- */

static void on_change(evutil_socket_t fd, short what, void *arg)
{
    struct sessions *ss = arg;
    bool urgent = ss->change_urgent;
    (void)fd;
    (void)what;
    ss->change_urgent = false;
    ss->cfg.on_change(urgent, ss->cfg.arg);
}

void session_changed(struct sessions *ss, bool urgent)
{
    ss->change_urgent |= urgent;
    if (!ss->closing)
        event_active(ss->change, 0, 0);
}

static void arm(struct session *s)
{
    uint64_t now = now_ns(s->owner), wait = RECHECK_NS;
    if (s->ending) {
        wait = s->kill_ns > now ? s->kill_ns - now : 0;
    } else {
        int64_t left = s->ticket.expires_us - wall_us(s->owner);
        uint64_t ns = left > 0 ? (uint64_t)left * 1000 : 0;
        if (ns < wait)
            wait = ns;
        if (!s->nlinks) {
            uint64_t due = s->idle_since_ns + s->linger_ns;
            ns = due > now ? due - now : 0;
            if (ns < wait)
                wait = ns;
        }
    }
    uint64_t us = (wait + 999) / 1000;
    const struct timeval tv = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    evtimer_add(s->timer, &tv);
}

static void session_free(struct session *s)
{
    if (s->timer)
        event_free(s->timer);
    if (s->later)
        event_free(s->later);
    while (s->leases) {
        struct lease *l = s->leases;
        s->leases = l->next;
        free(l);
    }
    while (s->waiters) {
        struct waiter *w = s->waiters;
        s->waiters = w->next;
        w->fn(w->arg, s->name, s->reason);
        free(w);
    }
    free(s);
}

static void finish(struct session *s)
{
    struct sessions *ss = s->owner;
    *s->prev = s->next;
    if (s->next)
        s->next->prev = s->prev;
    ss->n--;
    LOG_I(ss->cfg.log, "session", "ended session=%s principal=%s reason=%s", s->name,
          s->ticket.grant.principal, s->reason);
    gone_put(ss, s->name, s->reason, s->ticket.expires_us, false);
    trail_closed(s);
    if (s->tenant)
        tenant_unuse(s->tenant);
    session_free(s);
}

void session_over(struct sessions *ss, const char *name, const char *reason, int64_t expires_us)
{
    gone_put(ss, name, reason, expires_us, true);
    session_changed(ss, true);
}

static void on_later(evutil_socket_t fd, short what, void *arg)
{
    struct session *s = arg;
    (void)fd;
    (void)what;
    if (!s->ending || s->nworks)
        return;
    if (!s->freeing) {
        s->freeing = true;
        for (struct buffer *b = s->buffers, *next; b; b = next) {
            next = b->next;
            if (!b->releasing)
                buffer_release(b);
        }
    }
    if (!s->buffers)
        finish(s);
}

void session_settle(struct session *s)
{
    if (s->ending && !s->nworks && !s->owner->closing)
        event_active(s->later, 0, 0);
}

static int end_error(const char *reason, struct err *e)
{
    return err_reason(e, strcmp(reason, "CLOSED") ? ST_EDENIED : ST_ECLOSED, reason,
                      "the session has ended (%s) and what it held is free: open another one", reason);
}

void session_end(struct session *s, const char *reason)
{
    struct err e = {0};
    if (s->ending)
        return;
    s->ending = true;
    str_copy(s->reason, sizeof s->reason, reason);
    LOG_I(s->owner->cfg.log, "session", "ending session=%s principal=%s reason=%s bytes=%" PRIu64 " calls=%u",
          s->name, s->ticket.grant.principal, reason, s->used, s->nworks);
    for (struct session_link *l = s->links; l; l = l->next) {
        l->s = NULL;
        str_copy(l->why, sizeof l->why, reason);
    }
    s->links = NULL;
    s->nlinks = 0;
    offers_drop(s, NULL);
    end_error(reason, &e);
    for (struct work *w = s->works, *next; w; w = next) {
        next = w->next;
        work_fail(w, e.code, &e);
        w->on_slot = NULL;
        w->stop(w);
    }
    s->kill_ns = now_ns(s->owner) + REVOKE_NS;
    arm(s);
    session_settle(s);
}

int session_end_tell(struct session *s, const char *reason, sessions_ended_fn fn, void *arg)
{
    struct waiter *w = calloc(1, sizeof *w);
    if (!w)
        return ST_ENOMEM;
    *w = (struct waiter){s->waiters, fn, arg};
    s->waiters = w;
    session_end(s, reason);
    return ST_OK;
}

/* Who ended it can wait until the worker is through; a right that was taken away cannot. */
static bool by_choice(const struct session *s)
{
    return strcmp(s->reason, "CLOSED") == 0 || strcmp(s->reason, "DISCONNECTED") == 0;
}

/* A worker that is still busy for a session that must end now is killed, also when other memory of the
 * principal is in it: nothing runs on under a right that is gone. A session that ended by its owner's choice
 * waits for the worker's own deadline rather than take that memory with it. */
static void let_go(struct session *s)
{
    unsigned ours = 0;
    for (const struct session *o = s->owner->head; o; o = o->next)
        ours += o->tenant == s->tenant && o->ending;
    if (s->tenant && (!by_choice(s) || tenant_uses(s->tenant) == ours)) {
        LOG_W(s->owner->cfg.log, "session", "worker killed session=%s principal=%s: it did not let go",
              s->name, s->ticket.grant.principal);
        tenant_kill(s->tenant);
    }
    s->kill_ns = now_ns(s->owner) + RECHECK_NS;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct session *s = arg;
    struct sessions *ss = s->owner;
    (void)fd;
    (void)what;
    if (s->ending) {
        if (now_ns(ss) >= s->kill_ns)
            let_go(s);
    } else if (wall_us(ss) >= s->ticket.expires_us) {
        session_end(s, "TICKET_EXPIRED");
        return;
    } else if (!s->nlinks && now_ns(ss) >= s->idle_since_ns + s->linger_ns) {
        session_end(s, "DISCONNECTED");
        return;
    }
    arm(s);
}

/* ---- the beginning ---- */

static void name_of(const struct ticket *t, char out[SESSION_NAME_MAX + 1])
{
    memcpy(out, "s-", 2);
    hex_encode(out + 2, t->grant.session, TICKET_SESSION_LEN);
}

static struct session *find(const struct sessions *ss, const char *name)
{
    struct session *s = ss->head;
    while (s && strcmp(s->name, name) != 0)
        s = s->next;
    return s;
}

/* Everything a ticket must be, whoever it begins or renews a session for. */
static int check_ticket(struct sessions *ss, struct rpc_call *call, const uint8_t *p, size_t n,
                        struct ticket *t, char name[SESSION_NAME_MAX + 1], struct err *e)
{
    if (!ss->have_pub || !ss->trusted || ss->closing)
        return err_reason(
            e, ST_EUNREACH, "NOT_REPORTED",
            "node %s has not yet heard from the coordinator which tickets are revoked; try again",
            ss->cfg.node);
    const uint8_t *holder = rpc_peer(call)->spki_sha256;
    int rc = ticket_verify(ss->pub, p, n, wall_us(ss), ss->cfg.node, holder, t, e);
    /* The key was rotated: what the one before it signed is honoured until it ends. */
    if (rc < 0 && ss->have_before && !strcmp(e->reason, "TICKET_FORGED"))
        rc = ticket_verify(ss->before, p, n, wall_us(ss), ss->cfg.node, holder, t, e);
    if (rc < 0)
        return rc;
    if (t->purpose != TICKET_DEVICE)
        return err_reason(e, ST_EDENIED, "TICKET_WRONG_PURPOSE", "the ticket is not for devices");
    name_of(t, name);
    const struct gone *g = map_get(ss->gone, name, strlen(name));
    if (g || t->issued_us < ss->floor_us)
        return err_reason(e, ST_EDENIED, "TICKET_REVOKED",
                          "the ticket's session is over (%s): ask the coordinator for another one",
                          g ? g->reason : "too old");
    const struct session *s = find(ss, name);
    if (s && (s->ending || memcmp(s->ticket.holder, t->holder, sizeof t->holder)))
        return err_reason(e, ST_EDENIED, s->ending ? "TICKET_REVOKED" : "TICKET_WRONG_HOLDER",
                          "the ticket's session %s: ask the coordinator for another one",
                          s->ending ? "is ending" : "was begun with another certificate");
    return ST_OK;
}

static int link_new(struct session *s, struct rpc_call *call, struct err *e)
{
    struct session_link *l = s->nlinks < MAX_LINKS ? calloc(1, sizeof *l) : NULL;
    if (!l)
        return err_reason(e, ST_ERESOURCE, "BUSY", "session %s has %u connections already", s->name,
                          s->nlinks);
    l->rpc = rpc_call_session(call);
    l->s = s;
    l->owner = s->owner;
    l->next = s->links;
    s->links = l;
    s->nlinks++;
    rpc_session_set_user(l->rpc, l);
    return ST_OK;
}

static int session_new(struct session **out, struct sessions *ss, const struct ticket *t, const char *name,
                       struct err *e)
{
    unsigned same = 0;
    for (const struct session *s = ss->head; s; s = s->next)
        same += strcmp(s->ticket.grant.principal, t->grant.principal) == 0;
    if (ss->n >= MAX_SESSIONS || same >= MAX_PER_PRINCIPAL)
        return err_reason(e, ST_ERESOURCE, "BUSY",
                          "node %s has %u sessions already, %u of them yours; close one or try again",
                          ss->cfg.node, ss->n, same);
    struct session *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_ENOMEM, "no memory for another session");
    s->owner = ss;
    s->ticket = *t;
    str_copy(s->name, sizeof s->name, name);
    s->timer = evtimer_new(ss->cfg.base, on_timer, s);
    s->later = event_new(ss->cfg.base, -1, 0, on_later, s);
    if (!s->timer || !s->later) {
        session_free(s);
        return err_set(e, ST_ENOMEM, "no memory for another session");
    }
    s->next = ss->head;
    s->prev = &ss->head;
    if (s->next)
        s->next->prev = &s->next;
    ss->head = s;
    ss->n++;
    s->idle_since_ns = now_ns(ss);
    arm(s);
    *out = s;
    return ST_OK;
}

int session_attach(struct sessions *ss, struct rpc_call *call, const uint8_t *ticket, size_t n,
                   uint64_t linger_ns, struct session **out, struct err *e)
{
    struct ticket t;
    char name[SESSION_NAME_MAX + 1];
    int rc = trail_room(ss, e);
    if (rc < 0)
        return rc;
    rc = check_ticket(ss, call, ticket, n, &t, name, e);
    if (rc == ST_OK && rpc_session_user(rpc_call_session(call)))
        rc = err_reason(e, ST_ECONFLICT, "ALREADY_OPEN",
                        "this connection acts for a session already: use another connection");
    if (rc < 0) {
        trail_ticket_refused(ss, call, ticket, n, e);
        return rc;
    }
    struct session *s = find(ss, name);
    bool begun = s != NULL;
    if (!begun && (rc = session_new(&s, ss, &t, name, e)) < 0)
        return rc;
    if ((rc = link_new(s, call, e)) < 0)
        return rc; /* a new one has no connection and ends by its timer */
    s->linger_ns = linger_ns < MAX_LINGER_NS ? linger_ns : MAX_LINGER_NS;
    if (t.issued_us > s->ticket.issued_us)
        s->ticket = t;
    arm(s);
    if (!begun) {
        struct event_meta m = {0};
        event_meta_str(&m, "peer", rpc_peer(call)->principal);
        session_audit(s, EV_SECURITY_SESSION_OPENED, EVENT_SUCCESS, NULL, &m, NULL);
        LOG_I(ss->cfg.log, "session", "begun session=%s principal=%s limit_bytes=%" PRIu64, s->name,
              t.grant.principal, t.limit_bytes);
        session_changed(ss, true);
    }
    *out = s;
    return ST_OK;
}

int session_renew(struct session *s, struct rpc_call *call, const uint8_t *ticket, size_t n, struct err *e)
{
    struct ticket t;
    char name[SESSION_NAME_MAX + 1];
    int rc = check_ticket(s->owner, call, ticket, n, &t, name, e);
    if (rc == ST_OK && strcmp(name, s->name) != 0)
        rc = err_reason(e, ST_EDENIED, "TICKET_WRONG_SESSION",
                        "the ticket is of session %s and this connection acts for %s", name, s->name);
    if (rc == ST_OK && t.issued_us < s->ticket.issued_us)
        rc = err_reason(e, ST_ECONFLICT, "TICKET_OLDER", "session %s has a newer ticket already", s->name);
    if (rc < 0) {
        trail_ticket_refused(s->owner, call, ticket, n, e);
        return rc;
    }
    s->ticket = t;
    arm(s);
    session_changed(s->owner, false);
    return ST_OK;
}

/* ---- who may ---- */

int session_of(struct rpc_call *call, struct session **out, struct err *e)
{
    struct session_link *l = rpc_session_user(rpc_call_session(call));
    if (!l)
        return err_reason(e, ST_EDENIED, "NO_SESSION",
                          "this connection has presented no ticket: call Devices.Open first");
    if (!l->s)
        return end_error(l->why, e);
    if (wall_us(l->owner) >= l->s->ticket.expires_us) {
        session_end(l->s, "TICKET_EXPIRED");
        return end_error("TICKET_EXPIRED", e);
    }
    *out = l->s;
    return ST_OK;
}

const struct pool_device *session_device(const struct sessions *ss, const char *id)
{
    size_t n;
    const struct pool_device *v = ss->cfg.devices(&n, ss->cfg.arg);
    for (size_t i = 0; i < n; i++)
        if (strcmp(v[i].id, id) == 0)
            return &v[i];
    return NULL;
}

int session_may(struct session *s, enum permission p, const char *device, struct err *e)
{
    int rc = ST_OK;
    if (!ticket_grants(&s->ticket, p))
        rc = err_reason(e, ST_EDENIED, "MISSING_PERMISSION",
                        "%s is not among what the ticket of session %s grants; ask an admin for a role that "
                        "has it, then for a new ticket",
                        permission_name(p), s->name);
    else if (device && !ticket_device_ok(&s->ticket, device))
        rc = err_reason(e, ST_EDENIED, "DEVICE_NOT_ALLOWED",
                        "the ticket of session %s does not cover device %.40s of node %s", s->name, device,
                        s->owner->cfg.node);
    if (rc < 0) {
        session_refused(s, permission_name(p), device, e, permission_name(p));
        return rc;
    }
    if (device && !session_device(s->owner, device))
        return err_reason(e, ST_ENOENT, "NO_DEVICE", "node %s has no device %.40s", s->owner->cfg.node,
                          device);
    return trail_room(s->owner, e);
}

int session_worker(struct session *s, struct err *e)
{
    if (s->tenant)
        return ST_OK;
    return pool_tenant(s->owner->cfg.pool, s->ticket.grant.principal, &s->tenant, e);
}

/* ---- calls under way ---- */

static void on_cancel(struct rpc_call *call, void *arg)
{
    struct work *w = arg;
    (void)call;
    w->call = NULL;
    w->on_slot = NULL;
    w->stop(w);
}

int work_begin(struct session *s, struct work *w, struct rpc_call *call, int type, bool copy, struct err *e)
{
    if (s->nworks >= MAX_WORKS || (copy && s->ncopies >= MAX_COPIES))
        return err_reason(e, ST_ERESOURCE, "BUSY",
                          "session %s has %u calls under way, %u of them copies; wait for one to end",
                          s->name, s->nworks, s->ncopies);
    w->s = s;
    w->call = call;
    w->type = type;
    w->copy = copy;
    w->began_ns = now_ns(s->owner);
    w->next = s->works;
    w->prev = &s->works;
    if (w->next)
        w->next->prev = &w->next;
    s->works = w;
    s->nworks++;
    s->ncopies += copy;
    rpc_on_cancel(call, on_cancel, w);
    return ST_OK;
}

void work_end(struct work *w)
{
    struct session *s = w->s;
    *w->prev = w->next;
    if (w->next)
        w->next->prev = w->prev;
    s->nworks--;
    s->ncopies -= w->copy;
    w->s = NULL;
    session_settle(s);
}

void work_fail(struct work *w, int rc, const struct err *e)
{
    struct rpc_call *call = w->call;
    struct err told = *e;
    told.code = rc;
    w->call = NULL;
    if (call)
        trail_fail(w->s->owner, call, &told);
}

void work_tell_copy(const struct work *w, const char *device, uint64_t bytes, int result, const char *error)
{
    struct event_meta m = {0};
    event_meta_u64(&m, "bytes", bytes);
    event_meta_u64(&m, "us", work_us(w));
    session_audit(w->s, w->type, result, device, &m, error);
}

uint64_t work_us(const struct work *w)
{
    return (now_ns(w->s->owner) - w->began_ns) / 1000;
}

/* ---- the worker ---- */

static void on_slot(struct tenant *t, void *arg)
{
    struct sessions *ss = arg;
    for (struct session *s = ss->head; s; s = s->next)
        for (struct work *w = s->tenant == t ? s->works : NULL, *next; w; w = next) {
            void (*fn)(struct work *) = w->on_slot;
            next = w->next;
            w->on_slot = NULL;
            if (fn)
                fn(w);
        }
}

static void on_died(struct tenant *t, const char *why, void *arg)
{
    struct sessions *ss = arg;
    for (struct session *s = ss->head; s; s = s->next) {
        if (s->tenant != t)
            continue;
        for (struct buffer *b = s->buffers; b; b = b->next)
            b->allocated = false;
        struct event_meta m = {0};
        event_meta_u64(&m, "bytes", s->used);
        session_audit(s, EV_SYSTEM_WORKER_DIED, EVENT_FAILURE, NULL, &m, why);
        session_end(s, "WORKER_DIED");
        session_settle(s);
    }
}

/* ---- the whole ---- */

int sessions_new(struct sessions **out, const struct sessions_cfg *cfg, struct err *e)
{
    struct sessions *ss = calloc(1, sizeof *ss);
    if (!ss)
        return err_set(e, ST_ENOMEM, "no memory for device sessions");
    ss->cfg = *cfg;
    ss->change = event_new(cfg->base, -1, 0, on_change, ss);
    if (!ss->change || map_new(&ss->handles, cfg->rng) < 0 || map_new(&ss->gone, cfg->rng) < 0) {
        sessions_free(ss);
        return err_set(e, ST_ENOMEM, "no memory for device sessions");
    }
    ss->user = (struct pool_user){.on_slot = on_slot, .on_died = on_died, .arg = ss};
    pool_join(cfg->pool, &ss->user);
    *out = ss;
    return ST_OK;
}

void sessions_close(struct sessions *ss)
{
    ss->closing = true;
    for (struct session *s = ss->head; s; s = s->next)
        session_end(s, "AGENT_STOPPED");
}

void sessions_free(struct sessions *ss)
{
    if (!ss)
        return;
    while (ss->head) {
        struct session *s = ss->head;
        while (s->buffers)
            buffer_gone(s->buffers);
        ss->head = s->next;
        session_free(s);
    }
    while (ss->gone_head)
        gone_drop(ss, ss->gone_head);
    map_free(ss->handles);
    map_free(ss->gone);
    if (ss->change)
        event_free(ss->change);
    free(ss);
}

void sessions_gone(struct sessions *ss, struct rpc_session *rpc)
{
    struct session_link *l = rpc_session_user(rpc);
    (void)ss;
    if (!l)
        return;
    rpc_session_set_user(rpc, NULL);
    struct session *s = l->s;
    if (s) {
        for (struct session_link **at = &s->links; *at; at = &(*at)->next)
            if (*at == l) {
                *at = l->next;
                break;
            }
        if (--s->nlinks == 0) {
            s->idle_since_ns = now_ns(s->owner);
            if (s->linger_ns)
                arm(s);
            else
                session_end(s, "DISCONNECTED");
        }
    }
    free(l);
}

void sessions_set_key(struct sessions *ss, const uint8_t pub[TICKET_PUB_LEN])
{
    if (ss->have_pub && memcmp(ss->pub, pub, TICKET_PUB_LEN)) {
        memcpy(ss->before, ss->pub, TICKET_PUB_LEN);
        ss->have_before = true;
    }
    memcpy(ss->pub, pub, TICKET_PUB_LEN);
    ss->have_pub = true;
}

void sessions_trust(struct sessions *ss)
{
    ss->trusted = true;
}

void sessions_revoke(struct sessions *ss, const char *session, const char *reason, int64_t expires_us,
                     sessions_ended_fn fn, void *arg)
{
    struct session *s = find(ss, session);
    if (!s) {
        if (strlen(session) <= SESSION_NAME_MAX)
            gone_put(ss, session, reason, expires_us, false);
        if (fn)
            fn(arg, session, reason);
        return;
    }
    if (s->ticket.expires_us < expires_us)
        s->ticket.expires_us = expires_us; /* refused until then */
    if (!fn || session_end_tell(s, reason, fn, arg) < 0)
        session_end(s, reason); /* without memory the answer does not come and the coordinator asks again */
}

void sessions_each(const struct sessions *ss, void (*fn)(const struct session_info *i, void *arg), void *arg)
{
    for (const struct session *s = ss->head; s; s = s->next)
        fn(&(struct session_info){s->name, s->ticket.grant.principal, s->ticket.limit_bytes, s->used,
                                  s->ticket.expires_us},
           arg);
}

uint64_t sessions_device_bytes(const struct sessions *ss, const char *device)
{
    uint64_t sum = 0;
    for (const struct session *s = ss->head; s; s = s->next)
        for (const struct buffer *b = s->buffers; b; b = b->next)
            if (strcmp(b->device, device) == 0)
                sum += b->bytes;
    return sum;
}

bool sessions_leased(const struct sessions *ss, const char *device)
{
    for (const struct session *s = ss->head; s; s = s->next)
        for (const struct lease *l = s->leases; l; l = l->next)
            if (l->exclusive && strcmp(l->device, device) == 0)
                return true;
    return false;
}

size_t sessions_count(const struct sessions *ss)
{
    return ss->n;
}
