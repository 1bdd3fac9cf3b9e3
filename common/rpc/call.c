/* Outbound calls: on_done runs exactly once, never from inside a function of ours that the application
 * called. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/rpc/rpc_priv.h"
#include "strata/v1/rpc.pb-c.h"

static void done(struct rpc_call *c, const struct rpc_status *st, const uint8_t *digest)
{
    if (c->ended)
        return;
    c->ended = true;
    /* A peer that does not end its side, too, is not waited for long. */
    if (c->stream && rpc_deadline_set(c, clock_ns(c->s->cfg.clock) + RPC_LINGER_NS) < 0)
        rpc_call_reset(c, 1);
    if (c->flags & RPC_UPLOAD && !c->upload_over && !c->reset)
        rpc_call_reset(c, 1); /* answered already: the rest of the bytes stays here */
    c->ops->on_done(c, st, digest, c->arg);
}

static void fail(struct rpc_call *c, unsigned code, const char *reason, const char *text)
{
    if (c->ended)
        return;
    struct rpc_status st;
    rpc_status_set(&st, code, reason, text);
    rpc_call_reset(c, code == 4 ? 4 : 1);
    done(c, &st, NULL);
}

static int take_status(struct rpc_call *c, const struct frame *f)
{
    struct rpc_arena arena;
    struct rpc_status got;
    Strata__V1__CallStatus *st =
        (Strata__V1__CallStatus *)rpc_unpack_in(&arena, &strata__v1__call_status__descriptor, f->p, f->n);
    if (!st)
        return ST_EPROTO;
    bool fits = st->code || !(c->flags & RPC_BULK); /* a transfer is well only if its digest is */
    rpc_status_set(&got, st->code, st->reason, st->message);
    rpc_msg_free_in(&arena, &st->base);
    if (!fits)
        return ST_EPROTO;
    done(c, &got, NULL);
    return ST_OK;
}

static int take_message(struct rpc_call *c, const struct frame *f)
{
    struct rpc_arena arena;
    ProtobufCMessage *m = rpc_unpack_in(&arena, c->reply, f->p, f->n);
    if (!m)
        return ST_EPROTO;
    if (c->flags & RPC_BULK)
        c->got_head = true;
    if (c->ops->on_message)
        c->ops->on_message(c, m, c->arg);
    rpc_msg_free_in(&arena, m);
    return ST_OK;
}

/* Stops early when the application cancels: p is gone then. */
static int take_frames(struct rpc_call *c, const uint8_t *p, size_t n, size_t *at)
{
    while (*at < n && !c->ended && !c->reset && !(c->got_head && c->flags & RPC_BULK)) {
        struct frame f;
        size_t used;
        int rc = frame_next(&c->dec, p + *at, n - *at, &used, &f);
        *at += used;
        if (rc < 0)
            return rc;
        if (rc == 0)
            return ST_OK;
        if (f.kind == FRAME_HEADER)
            return ST_EPROTO;
        if ((rc = f.kind == FRAME_STATUS ? take_status(c, &f) : take_message(c, &f)) < 0)
            return rc;
    }
    return ST_OK;
}

static size_t give(struct rpc_call *c, const uint8_t *p, size_t n)
{
    return c->ops->on_bulk(c, p, n, c->arg);
}

static void take_bulk(struct rpc_call *c)
{
    int rc = rpc_raw_take(c, give);
    if (rc == ST_OK || rc == ST_ECLOSED)
        return;
    if (rc < 0) {
        fail(c, rc == ST_EINTERNAL ? 13 : 15, rpc_raw_reason(rc), rpc_raw_text(rc));
        return;
    }
    struct rpc_status ok;
    rpc_status_set(&ok, 0, "", "");
    done(c, &ok, c->digest);
}

static void on_readable(struct quic_stream *st, void *arg)
{
    struct rpc_call *c = arg;
    const uint8_t *p;
    bool fin = false;
    while (!c->reset && (c->ended || !(c->got_head && c->flags & RPC_BULK))) {
        size_t n = quic_stream_peek(st, &p, &fin), at = 0;
        if (!n)
            break;
        int rc = c->ended ? ST_OK : take_frames(c, p, n, &at);
        if (c->reset)
            return;
        if (rc < 0) {
            fail(c, rc == ST_ELIMIT ? 8 : 13, "PROTOCOL",
                 "the peer answered with something that is no valid frame");
            return;
        }
        quic_stream_consume(st, c->ended ? n : at);
    }
    if (c->ended || c->reset)
        return;
    if (c->got_head && c->flags & RPC_BULK) {
        if (!c->paused && !c->resumed)
            take_bulk(c);
    } else if (fin)
        fail(c, 13, "NO_STATUS", "the peer ended the call without a status");
}

static void on_reset(struct quic_stream *st, uint64_t code, void *arg)
{
    struct rpc_call *c = arg;
    (void)st;
    unsigned rc =
        code > RPC_RESET_BASE && code <= RPC_RESET_BASE + 16 ? (unsigned)(code - RPC_RESET_BASE) : 14;
    fail(c, rc, "RESET",
         rc == 8 ? "the peer has no room for more calls now: try again" : "the peer gave the call up");
}

void rpc_out_lost(struct rpc_call *c)
{
    if (c->ended)
        return;
    struct rpc_status st;
    if (c->canceled)
        rpc_status_set(&st, 1, "CANCELLED", "cancelled");
    else
        rpc_status_set(&st, 14, "CONNECTION_LOST", "the connection was lost before the answer");
    rpc_call_reset(c, 1);
    done(c, &st, NULL);
}

static void on_closed(struct quic_stream *st, void *arg)
{
    struct rpc_call *c = arg;
    (void)st;
    rpc_out_lost(c);
    rpc_call_free(c);
}

static void on_writable(struct quic_stream *st, void *arg)
{
    struct rpc_call *c = arg;
    (void)st;
    if (c->ended || c->reset)
        return;
    if (c->tail.len) {
        int rc = quic_stream_write(c->stream, c->tail.data, c->tail.len, true);
        if (rc == ST_OK)
            c->tail.len = 0;
        else if (rc != ST_EAGAIN)
            rpc_cancel(c);
    } else if (c->ops->on_writable) {
        c->ops->on_writable(c, c->arg);
    }
}

static const struct quic_stream_ops call_ops = {on_readable, on_writable, on_reset, on_closed};

static int pack_call(struct buf *b, const ProtobufCServiceDescriptor *svc, const char *method,
                     const ProtobufCMessage *req, const struct rpc_call_opts *o)
{
    Strata__V1__CallHeader h = STRATA__V1__CALL_HEADER__INIT;
    h.service = (char *)svc->name;
    h.method = (char *)method;
    h.timeout_ns = o && o->timeout_ns ? o->timeout_ns : RPC_DEFAULT_TIMEOUT_NS;
    h.request_id = (char *)(o && o->request_id ? o->request_id : "");
    int rc = rpc_pack(b, FRAME_HEADER, &h.base);
    return rc < 0 ? rc : rpc_pack(b, FRAME_MESSAGE, req);
}

/* Past this point the stream owns the call: whatever fails, on_closed ends it. */
static int begin(struct rpc_call *c)
{
    int rc = quic_stream_open(&c->stream, c->s->conn, &call_ops, c);
    if (rc < 0)
        return rc;
    if (quic_stream_write(c->stream, c->ask.data, c->ask.len, !(c->flags & RPC_UPLOAD)) < 0)
        rpc_call_reset(c, 1);
    buf_fini(&c->ask);
    return ST_OK;
}

static void enqueue(struct rpc_call *c, bool first)
{
    struct rpc_session *s = c->s;
    c->waits = true;
    if (first)
        TAILQ_INSERT_HEAD(&s->waiting, c, wait);
    else
        TAILQ_INSERT_TAIL(&s->waiting, c, wait);
    s->nwaiting++;
    s->waiting_bytes += c->ask.len;
}

static int wait_for_stream(struct rpc_call *c)
{
    if (c->s->nwaiting >= RPC_MAX_WAITING || c->s->waiting_bytes + c->ask.len > RPC_MAX_WAITING_BYTES)
        return ST_EAGAIN;
    enqueue(c, false);
    return ST_OK;
}

void rpc_unwait(struct rpc_call *c)
{
    if (!c->waits)
        return;
    c->waits = false;
    TAILQ_REMOVE(&c->s->waiting, c, wait);
    c->s->nwaiting--;
    c->s->waiting_bytes -= c->ask.len;
}

void rpc_out_begin_waiting(struct rpc_session *s)
{
    for (struct rpc_call *c; (c = TAILQ_FIRST(&s->waiting));) {
        rpc_unwait(c);
        int rc = begin(c);
        if (rc == ST_EAGAIN || rc == ST_ECLOSED) { /* more credit, or the session's end, comes back to it */
            enqueue(c, true);
            return;
        }
        if (rc < 0)
            rpc_cancel(c);
        else if (c->flags & RPC_UPLOAD)
            on_writable(c->stream, c);
    }
}

int rpc_call(struct rpc_call **out, struct rpc_session *s, const ProtobufCServiceDescriptor *svc,
             const char *method, unsigned flags, const ProtobufCMessage *req, const struct rpc_call_opts *o,
             const struct rpc_call_ops *ops, void *arg, struct err *e)
{
    const ProtobufCMethodDescriptor *m = protobuf_c_service_descriptor_get_method_by_name(svc, method);
    if (!m || m->input != req->descriptor)
        return err_set(e, ST_EINVAL, "%s has no method %s that takes this message", svc->name, method);
    if (s->closed || !s->up)
        return err_set(e, ST_EUNREACH, "the connection is not up");
    struct rpc_call *c = rpc_call_alloc(s, false);
    int rc = c ? pack_call(&c->ask, svc, method, req, o) : ST_ENOMEM;
    if (rc == ST_OK) {
        c->flags = flags;
        c->reply = m->output;
        c->ops = ops;
        c->arg = arg;
        rc = flags & RPC_BULK && !rpc_digest_ready(c) ? ST_ENOMEM
             : TAILQ_EMPTY(&s->waiting)               ? begin(c)
                                                      : ST_EAGAIN;
        if (rc == ST_EAGAIN)
            rc = wait_for_stream(c);
    }
    if (rc < 0) {
        if (c)
            rpc_call_free(c);
        return err_set(e, rc, "cannot start %s.%s: %s", svc->short_name, method,
                       rc == ST_EAGAIN   ? "too many calls wait for this connection"
                       : rc == ST_ELIMIT ? "the request is larger than a message may be"
                                         : status_name(rc));
    }
    uint64_t t = o && o->timeout_ns ? o->timeout_ns : RPC_DEFAULT_TIMEOUT_NS, now = clock_ns(s->cfg.clock);
    if (rpc_deadline_set(c, t > UINT64_MAX - now ? UINT64_MAX : now + t) < 0)
        rpc_cancel(c);
    *out = c;
    return ST_OK;
}

void rpc_cancel(struct rpc_call *c)
{
    if (c->ended || c->canceled)
        return;
    c->canceled = true;
    rpc_call_reset(c, 1);
    /* The peer may be gone: on_done does not wait for it. Without memory for that, on_closed brings it. */
    (void)!rpc_soon(c);
}

void rpc_out_expired(struct rpc_call *c)
{
    if (c->ended) {
        rpc_call_reset(c, 1);
    } else if (c->canceled) {
        fail(c, 1, "CANCELLED", "cancelled");
    } else if (c->resumed) {
        c->resumed = false;
        if (rpc_deadline_set(c, c->deadline_ns) < 0)
            fail(c, 8, "MEMORY", "no memory for the call's timer");
        else
            take_bulk(c);
    } else {
        fail(c, 4, "DEADLINE",
             c->stream ? "no answer before the deadline"
                       : "the deadline passed while the call waited for others on its connection");
    }
    if (!c->stream) /* it never left the queue */
        rpc_call_free(c);
}

void rpc_bulk_resume(struct rpc_call *c)
{
    if (c->ended || c->reset || !c->paused)
        return;
    c->paused = false;
    c->resumed = true;
    if (rpc_soon(c) < 0)
        rpc_call_reset(c, 1); /* on_closed ends the call */
}
