#include "agent/control.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/resolve.h"
#include "strata/v1/certs.pb-c.h"

#define BACKOFF_BASE_NS (100 * NS_PER_MS)
#define BACKOFF_CAP_NS (15 * NS_PER_S)
#define HEALTHY_NS (30 * NS_PER_S)
#define HELLO_TIMEOUT_NS (10 * NS_PER_S)
#define HEARTBEAT_MIN_NS (10 * NS_PER_MS)
#define HEARTBEAT_MAX_NS (60 * NS_PER_S)
#define MAX_INBOUND_CALLS 256

enum control_state { CTL_WAITING, CTL_RESOLVING, CTL_DIALING, CTL_HELLO, CTL_REGISTERED, CTL_CLOSED };

struct control {
    struct control_cfg cfg;
    const struct control_ops *ops;
    void *arg;
    enum control_state state;
    struct event *timer; /* next dial when waiting, next heartbeat when registered */
    struct rpc_session *session;
    bool session_up;
    bool hello_wanted; /* asked for while another Hello was under way */
    bool closing_session;
    struct rpc_call *heartbeat;
    uint64_t epoch, heartbeat_ns;
    uint64_t up_ns; /* when the session came up */
    unsigned attempt;
    struct resolve *resolve;
    struct rpc_session *next; /* that is to take over from session */
    bool rebinding;
    uint8_t instance[16]; /* random: this process, not another with the same key */
};

static void send_hello(struct control *c);

static void arm(struct control *c, uint64_t ns)
{
    uint64_t us = (ns + 999) / 1000;
    struct timeval tv = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};
    if (event_add(c->timer, &tv) < 0)
        LOG_E(c->cfg.log, "control", "no timer; the agent will not reconnect");
}

uint64_t control_backoff_ns(const struct rng *rng, unsigned n)
{
    uint64_t top = n >= 8 ? BACKOFF_CAP_NS : BACKOFF_BASE_NS << n;
    if (top > BACKOFF_CAP_NS)
        top = BACKOFF_CAP_NS;
    return rng_below(rng, top + 1);
}

static void dial_later(struct control *c, const char *why)
{
    if (c->state == CTL_CLOSED)
        return;
    uint64_t wait = control_backoff_ns(c->cfg.rng, c->attempt);
    if (c->attempt < 16)
        c->attempt++;
    c->state = CTL_WAITING;
    LOG_W(c->cfg.log, "control", "coordinator=%s unreachable retry_ms=%" PRIu64 " why=\"%s\"", c->cfg.address,
          (uint64_t)(wait / NS_PER_MS), why);
    arm(c, wait);
}

static void drop_session(struct control *c, const char *why)
{
    if (!c->session || c->closing_session)
        return;
    c->closing_session = true;
    rpc_session_close(c->session, 0, why);
}

/* ---- heartbeat ---- */

static void heartbeat_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest,
                           void *arg)
{
    (void)call;
    (void)digest;
    struct control *c = arg;
    c->heartbeat = NULL;
    if (c->state != CTL_REGISTERED || st->code == 0)
        return;
    LOG_W(c->cfg.log, "control", "heartbeat refused code=%u why=\"%s\"", st->code, st->text);
    if (st->code == 4 || st->code == 14)
        drop_session(c, "heartbeats go unanswered");
    else
        send_hello(c); /* our registration is void: say who we are again */
}

static void heartbeat_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)call;
    struct control *c = arg;
    const Strata__V1__HeartbeatReply *r = (const Strata__V1__HeartbeatReply *)msg;
    if (r->epoch != c->epoch)
        LOG_W(c->cfg.log, "control", "heartbeat epoch=%" PRIu64 " expected=%" PRIu64, r->epoch, c->epoch);
    else
        c->ops->on_heartbeat(r, c->arg);
}

static const struct rpc_call_ops heartbeat_ops = {.on_message = heartbeat_message, .on_done = heartbeat_done};

static void send_heartbeat(struct control *c)
{
    arm(c, c->heartbeat_ns);
    if (c->heartbeat)
        return; /* the last one is still out; its deadline decides */
    Strata__V1__HeartbeatRequest req = STRATA__V1__HEARTBEAT_REQUEST__INIT;
    req.epoch = c->epoch;
    c->ops->fill_heartbeat(&req, c->arg);
    struct rpc_call_opts o = {.timeout_ns = c->heartbeat_ns * 5};
    struct err e;
    if (rpc_call(&c->heartbeat, c->session, &strata__v1__nodes__descriptor, "Heartbeat", RPC_UNARY, &req.base,
                 &o, &heartbeat_ops, c, &e) < 0) {
        c->heartbeat = NULL;
        LOG_W(c->cfg.log, "control", "no heartbeat sent why=\"%s\"", e.text);
    }
}

/* ---- Hello ---- */

static void hello_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)call;
    struct control *c = arg;
    const Strata__V1__HelloReply *r = (const Strata__V1__HelloReply *)msg;
    if (c->state != CTL_HELLO)
        return;
    c->epoch = r->epoch;
    c->heartbeat_ns = r->heartbeat_ns < HEARTBEAT_MIN_NS   ? HEARTBEAT_MIN_NS
                      : r->heartbeat_ns > HEARTBEAT_MAX_NS ? HEARTBEAT_MAX_NS
                                                           : r->heartbeat_ns;
    c->state = CTL_REGISTERED;
    arm(c, c->heartbeat_ns);
    LOG_I(c->cfg.log, "control",
          "registered coordinator=%s epoch=%" PRIu64 " heartbeat_ms=%" PRIu64 " drop=%zu", c->cfg.address,
          c->epoch, (uint64_t)(c->heartbeat_ns / NS_PER_MS), r->n_drop);
    c->ops->on_registered(r, c->arg);
}

static void hello_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    (void)call;
    (void)digest;
    struct control *c = arg;
    if (c->state == CTL_CLOSED)
        return;
    if (st->code != 0 || c->state == CTL_HELLO) {
        LOG_W(c->cfg.log, "control", "registration refused code=%u reason=%s why=\"%s\"", st->code,
              st->reason, st->text);
        drop_session(c, "registration failed");
        return;
    }
    if (c->hello_wanted)
        send_hello(c);
}

static const struct rpc_call_ops hello_ops = {.on_message = hello_message, .on_done = hello_done};

static void send_hello(struct control *c)
{
    if (!c->session || !c->session_up || c->closing_session)
        return;
    if (c->state == CTL_HELLO || c->rebinding) {
        c->hello_wanted = true;
        return;
    }
    c->hello_wanted = false;
    c->state = CTL_HELLO;
    event_del(c->timer);
    Strata__V1__HelloRequest req = STRATA__V1__HELLO_REQUEST__INIT;
    req.version = (char *)STRATA_VERSION;
    req.instance = (ProtobufCBinaryData){sizeof c->instance, c->instance};
    c->ops->fill_hello(&req, c->arg);
    struct rpc_call_opts o = {.timeout_ns = HELLO_TIMEOUT_NS};
    struct rpc_call *call;
    struct err e;
    if (rpc_call(&call, c->session, &strata__v1__nodes__descriptor, "Hello", RPC_UNARY, &req.base, &o,
                 &hello_ops, c, &e) < 0) {
        LOG_W(c->cfg.log, "control", "cannot register why=\"%s\"", e.text);
        drop_session(c, "registration failed");
    }
}

void control_hello_again(struct control *c)
{
    if (c->state == CTL_REGISTERED || c->state == CTL_HELLO)
        send_hello(c);
}

/* ---- moving to a new connection ---- */

static void moved(struct control *c, bool ok, const char *why)
{
    if (ok) {
        struct rpc_session *old = c->session;
        c->session = c->next;
        c->next = NULL;
        LOG_I(c->cfg.log, "control", "moved to a new connection epoch=%" PRIu64, c->epoch);
        rpc_session_drain(old, "moved to a new connection");
    } else {
        LOG_W(c->cfg.log, "control", "not moved to a new connection why=\"%s\"", why);
    }
    if (c->hello_wanted && c->state == CTL_REGISTERED)
        send_hello(c);
    if (c->ops->on_moved)
        c->ops->on_moved(ok, c->arg);
}

static void rebind_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct control *c = arg;
    (void)call, (void)digest;
    c->rebinding = false;
    if (!c->next || c->state == CTL_CLOSED)
        return;
    if (st->code == 0 && c->session && !c->closing_session) {
        moved(c, true, "");
        return;
    }
    struct rpc_session *s = c->next;
    c->next = NULL;
    rpc_session_close(s, 0, "not taken over");
    moved(c, false, st->text);
}

static const struct rpc_call_ops rebind_ops = {.on_done = rebind_done};

static void rebind(struct control *c)
{
    Strata__V1__RebindRequest q = STRATA__V1__REBIND_REQUEST__INIT;
    const struct rpc_call_opts o = {.timeout_ns = HELLO_TIMEOUT_NS};
    struct rpc_call *call;
    struct err e;
    q.epoch = c->epoch;
    c->rebinding = true;
    if (c->state == CTL_REGISTERED && rpc_call(&call, c->next, &strata__v1__certs__descriptor, "Rebind",
                                               RPC_UNARY, &q.base, &o, &rebind_ops, c, &e) == ST_OK)
        return;
    c->rebinding = false;
    rpc_session_close(c->next, 0, "not taken over"); /* its last upcall tells */
}

/* ---- the session ---- */

static void session_up(struct rpc_session *s, void *arg)
{
    struct control *c = arg;
    if (s == c->next) {
        rebind(c);
        return;
    }
    c->session_up = true;
    c->up_ns = clock_ns(c->cfg.clock);
    if (c->state != CTL_CLOSED)
        send_hello(c);
}

static void session_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct control *c = arg;
    if (s == c->next) {
        c->next = NULL;
        c->rebinding = false;
        if (c->state != CTL_CLOSED)
            moved(c, false, why->reason);
        return;
    }
    if (s != c->session)
        return; /* drained */
    if (c->next) {
        struct rpc_session *n = c->next;
        c->next = NULL;
        c->rebinding = false;
        rpc_session_close(n, 0, "nothing to take over any more");
    }
    bool was = c->state == CTL_REGISTERED || (c->state == CTL_HELLO && c->epoch);
    if (c->session_up && clock_ns(c->cfg.clock) - c->up_ns >= HEALTHY_NS)
        c->attempt = 0;
    c->session = NULL;
    c->session_up = false;
    c->closing_session = false;
    c->hello_wanted = false;
    c->heartbeat = NULL;
    c->epoch = 0;
    if (c->state == CTL_CLOSED)
        return;
    event_del(c->timer);
    if (was)
        c->ops->on_lost(why->reason, c->arg);
    dial_later(c, why->reason);
}

static const struct rpc_session_ops session_ops = {.on_up = session_up, .on_closed = session_closed};

static struct rpc_cfg session_cfg(const struct control *c)
{
    return (struct rpc_cfg){
        .base = c->cfg.base,
        .clock = c->cfg.clock,
        .log = c->cfg.log,
        .table = c->cfg.table,
        .max_inbound_calls = MAX_INBOUND_CALLS,
    };
}

int control_move(struct control *c, struct err *e)
{
    if (c->state != CTL_REGISTERED || c->next || c->closing_session)
        return err_set(e, ST_EAGAIN, "not registered now");
    const struct rpc_cfg cfg = session_cfg(c);
    const struct quic_addr to = *quic_conn_remote(rpc_session_conn(c->session));
    int rc = rpc_dial(&c->next, &cfg, c->cfg.ep, &to, TLS_COORDINATOR, NULL, &session_ops, c, e);
    if (rc < 0)
        c->next = NULL;
    return rc;
}

struct rpc_session *control_session(const struct control *c)
{
    return c->state == CTL_REGISTERED && !c->closing_session ? c->session : NULL;
}

static void on_resolved(void *arg, int rc, const struct quic_addr *addr, const struct err *why)
{
    struct control *c = arg;
    struct err e = *why;
    c->resolve = NULL;
    if (c->state != CTL_RESOLVING)
        return;
    if (rc == ST_OK) {
        const struct rpc_cfg rc_cfg = session_cfg(c);
        c->state = CTL_DIALING;
        rc = rpc_dial(&c->session, &rc_cfg, c->cfg.ep, addr, TLS_COORDINATOR, NULL, &session_ops, c, &e);
    }
    if (rc < 0) {
        c->session = NULL;
        dial_later(c, e.text);
    }
}

static void dial(struct control *c)
{
    struct err e;
    c->state = CTL_RESOLVING;
    if (resolve_start(&c->resolve, c->cfg.files, c->cfg.address, on_resolved, c, &e) < 0)
        dial_later(c, e.text);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct control *c = arg;
    if (c->state == CTL_WAITING)
        dial(c);
    else if (c->state == CTL_REGISTERED)
        send_heartbeat(c);
}

int control_new(struct control **out, const struct control_cfg *cfg, const struct control_ops *ops, void *arg,
                struct err *e)
{
    struct control *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ST_ENOMEM, "no memory for the coordinator's connection");
    c->cfg = *cfg;
    c->ops = ops;
    c->arg = arg;
    cfg->rng->fill(cfg->rng->arg, c->instance, sizeof c->instance);
    c->timer = evtimer_new(cfg->base, on_timer, c);
    if (!c->timer) {
        free(c);
        return err_set(e, ST_ENOMEM, "no memory for the coordinator's connection");
    }
    *out = c;
    dial(c);
    return ST_OK;
}

void control_close(struct control *c)
{
    if (c->state == CTL_CLOSED)
        return;
    c->state = CTL_CLOSED;
    event_del(c->timer);
    if (c->next)
        rpc_session_close(c->next, 0, "agent stops");
    drop_session(c, "agent stops");
}

void control_free(struct control *c)
{
    if (!c)
        return;
    resolve_cancel(c->resolve);
    event_free(c->timer);
    free(c);
}

uint64_t control_epoch(const struct control *c)
{
    return c->epoch;
}
