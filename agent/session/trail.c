/*
 * The audit trail: rows go to the node's spool, and what they tell of is answered when they are on disk. An
 * answer waits only if a row of the must class was emitted for it: `owing` says so from the row to the
 * answer, which follow one another within a turn.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

static void emit(struct sessions *ss, const struct audit_event *ev)
{
    struct err e;
    unsigned held;
    if (spool_emit(ss->cfg.spool, ev, NULL, NULL, &e) < 0) {
        ss->unrecorded = true;
        if (log_limited(&ss->lost, clock_ns(ss->cfg.clock), 1, &held))
            LOG_E(ss->cfg.log, "session", "audit row not recorded type=%s suppressed=%u why=\"%s\"",
                  event_info(ev->type)->name, held, e.text);
    }
    ss->owing |= event_class(ev) == EVENT_MUST;
}

int trail_room(const struct sessions *ss, struct err *e)
{
    return spool_room(ss->cfg.spool)
               ? ST_OK
               : err_reason(
                     e, ST_ERESOURCE, "SPOOL_FULL",
                     "refused, because it could not be audited: the audit spool of node %s is full; it works "
                     "again once the coordinator has taken what is in it",
                     ss->cfg.node);
}

void session_audit(struct session *s, int type, int result, const char *device, struct event_meta *meta,
                   const char *error)
{
    char full[TICKET_NODE_MAX + 40];
    struct audit_event e = event_make(type, result, clock_wall_us(s->owner->cfg.clock));
    if (device) {
        snprintf(full, sizeof full, "%s/%.31s", s->owner->cfg.node, device);
        e.device = full;
    }
    e.principal = s->ticket.grant.principal;
    e.node = s->owner->cfg.node;
    e.session = s->name;
    e.error = error;
    e.meta = meta ? event_meta_text(meta) : NULL;
    emit(s->owner, &e);
    if (meta)
        event_meta_fini(meta);
}

/* A client that is refused over and over fills neither the log nor the audit trail: what is held back is
 * counted in the next row, at the latest in that of the session's end. */
void session_refused(struct session *s, const char *operation, const char *device, const struct err *e,
                     const char *permission)
{
    unsigned held;
    if (!log_limited(&s->refusals, clock_ns(s->owner->cfg.clock), 20, &held)) {
        s->held_back++;
        return;
    }
    struct event_meta m = {0};
    event_meta_str(&m, "reason", e->reason);
    if (permission)
        event_meta_str(&m, "permission", permission);
    event_meta_str(&m, "operation", operation);
    event_meta_u64(&m, "generation", s->ticket.grant.generation);
    if (held)
        event_meta_u64(&m, "suppressed", held);
    s->held_back = 0;
    session_audit(s, EV_SECURITY_ACCESS_DENIED, EVENT_DENIED, device, &m, e->text);
}

void trail_ticket_refused(struct sessions *ss, struct rpc_call *call, const uint8_t *p, size_t n,
                          const struct err *e)
{
    unsigned held;
    struct ticket t;
    char hex[2 * TICKET_SERIAL_LEN + 1] = "";
    if (!log_limited(&ss->refused, clock_ns(ss->cfg.clock), 20, &held))
        return;
    LOG_W(ss->cfg.log, "session", "ticket refused peer=%s reason=%s why=\"%s\" suppressed=%u",
          rpc_peer(call)->principal, e->reason, e->text, held);
    struct event_meta m = {0};
    struct audit_event ev =
        event_make(EV_SECURITY_TICKET_REFUSED, EVENT_DENIED, clock_wall_us(ss->cfg.clock));
    event_meta_str(&m, "reason", e->reason);
    if (ticket_decode(p, n, &t, NULL) == ST_OK) {
        hex_encode(hex, t.serial, sizeof t.serial);
        event_meta_str(&m, "ticket", hex);
    }
    if (held)
        event_meta_u64(&m, "suppressed", held);
    ev.principal = rpc_peer(call)->principal;
    ev.node = ss->cfg.node;
    ev.error = e->text;
    ev.meta = event_meta_text(&m);
    emit(ss, &ev);
    event_meta_fini(&m);
}

/* ---- answers that wait ---- */

struct held {
    struct sessions *ss;
    struct rpc_call *call;   /* NULL: the caller left */
    ProtobufCMessage *reply; /* NULL: e */
    struct err e;
    uint8_t handle[HANDLE_LEN]; /* of the buffer to give back when the row cannot be written */
    bool undo;
};

static ProtobufCMessage *copy_of(const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *p = malloc(n + 1);
    ProtobufCMessage *c = NULL;
    if (p) {
        protobuf_c_message_pack(m, p);
        c = protobuf_c_message_unpack(m->descriptor, NULL, n, p);
    }
    free(p);
    return c;
}

static void held_gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct held *)arg)->call = NULL;
}

static int not_recorded(struct err *e, const char *why)
{
    return err_reason(e, ST_ERESOURCE, "NOT_AUDITED",
                      "it could not be audited, so it does not count as done: %.200s", why);
}

static void undo(struct sessions *ss, const uint8_t handle[HANDLE_LEN])
{
    struct buffer *b = map_get(ss->handles, handle, HANDLE_LEN);
    if (b && b->allocated && !b->releasing && !b->busy && !b->s->ending)
        buffer_release(b);
}

static void on_disk(void *arg, int rc, const struct err *why)
{
    struct held *h = arg;
    struct err e;
    if (rc < 0 && h->undo)
        undo(h->ss, h->handle);
    if (h->call && rc < 0 && h->reply) {
        not_recorded(&e, why->text);
        rpc_fail(h->call, &e);
    } else if (h->call && h->reply) {
        rpc_reply(h->call, h->reply);
    } else if (h->call) {
        rpc_fail(h->call, &h->e);
    }
    if (h->reply)
        protobuf_c_message_free_unpacked(h->reply, NULL);
    free(h);
}

static void answer(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *reply,
                   const struct err *e, const uint8_t *handle)
{
    bool owing = ss->owing, unrecorded = ss->unrecorded;
    struct err mine = {0};
    ss->owing = ss->unrecorded = false;
    if (!call)
        return;
    if (!owing) {
        if (reply)
            rpc_reply(call, reply);
        else
            rpc_fail(call, e);
        return;
    }
    struct held *h = unrecorded ? NULL : calloc(1, sizeof *h);
    if (h) {
        *h = (struct held){.ss = ss, .call = call, .undo = handle != NULL};
        if (handle)
            memcpy(h->handle, handle, HANDLE_LEN);
        if (reply)
            h->reply = copy_of(reply);
        else
            h->e = *e;
    }
    if (h && (!reply || h->reply)) {
        rpc_on_cancel(call, held_gone, h);
        if (spool_barrier(ss->cfg.spool, on_disk, h, &mine) == ST_OK)
            return;
    }
    /* Not even that: a refusal is one all the same, and what was done is taken back. */
    if (handle)
        undo(ss, handle);
    if (reply)
        not_recorded(&mine, unrecorded ? "the audit spool is full" : "no memory");
    rpc_fail(call, reply ? &mine : e);
    if (h && h->reply)
        protobuf_c_message_free_unpacked(h->reply, NULL);
    free(h);
}

void trail_reply(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *reply)
{
    answer(ss, call, reply, NULL, NULL);
}

void trail_reply_buffer(struct sessions *ss, struct rpc_call *call, const ProtobufCMessage *reply,
                        const uint8_t handle[HANDLE_LEN])
{
    answer(ss, call, reply, NULL, handle);
}

void trail_fail(struct sessions *ss, struct rpc_call *call, const struct err *e)
{
    answer(ss, call, NULL, e, NULL);
}

/* ---- ends that wait ---- */

struct closing {
    struct sessions *ss;
    struct waiter *waiters;
    char name[SESSION_NAME_MAX + 1], reason[40];
    int64_t expires_us;
};

/* Told only now that the row is on disk; if it cannot be written, told all the same: the memory is free, and
 * the spool goes on trying. */
static void closing_recorded(void *arg, int rc, const struct err *e)
{
    struct closing *c = arg;
    if (rc < 0)
        LOG_E(c->ss->cfg.log, "session", "the end of session=%s is not recorded yet: %s", c->name, e->text);
    session_over(c->ss, c->name, c->reason, c->expires_us);
    while (c->waiters) {
        struct waiter *w = c->waiters;
        c->waiters = w->next;
        w->fn(w->arg, c->name, c->reason);
        free(w);
    }
    free(c);
}

void trail_closed(struct session *s)
{
    struct event_meta m = {0};
    struct err e = {0};
    struct sessions *ss = s->owner;
    struct closing *c = calloc(1, sizeof *c);
    event_meta_str(&m, "reason", s->reason);
    if (s->held_back)
        event_meta_u64(&m, "suppressed", s->held_back);
    session_audit(s, EV_SECURITY_SESSION_CLOSED, EVENT_SUCCESS, NULL, &m, NULL);
    ss->owing = ss->unrecorded = false; /* nobody's answer: the end itself waits, here */
    if (!c) {
        session_over(ss, s->name, s->reason, s->ticket.expires_us);
        return; /* the waiters are told as the session is freed */
    }
    *c = (struct closing){.ss = ss, .waiters = s->waiters, .expires_us = s->ticket.expires_us};
    str_copy(c->name, sizeof c->name, s->name);
    str_copy(c->reason, sizeof c->reason, s->reason);
    s->waiters = NULL;
    int rc = spool_barrier(ss->cfg.spool, closing_recorded, c, &e);
    if (rc < 0)
        closing_recorded(c, rc, &e);
}
