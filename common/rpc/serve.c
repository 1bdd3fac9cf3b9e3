/*
 * Inbound calls. The struct lives until its stream's last upcall; `ended` says that the application has
 * answered or was told of the end, and touches it no more.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/rpc/rpc_priv.h"
#include "strata/v1/rpc.pb-c.h"

static void tell_cancelled(struct rpc_call *c)
{
    if (c->ended)
        return;
    rpc_call_ended(c);
    if (c->cancel_fn)
        c->cancel_fn(c, c->cancel_arg);
}

/* Raw bytes follow what went out, so no STATUS may. */
static bool bulk_begun(const struct rpc_call *c)
{
    return c->flags & RPC_BULK && c->begun;
}

static void break_off(struct rpc_call *c, unsigned code)
{
    rpc_call_ended(c);
    rpc_call_reset(c, code ? code : 13);
}

static int flush_tail(struct rpc_call *c)
{
    int rc = quic_stream_write(c->stream, c->tail.data, c->tail.len, true);
    if (rc == ST_OK)
        c->tail.len = 0;
    return rc;
}

static void finish(struct rpc_call *c, unsigned code, const char *reason, const char *text)
{
    Strata__V1__CallStatus st = STRATA__V1__CALL_STATUS__INIT;
    st.code = code;
    st.reason = (char *)(reason ? reason : "");
    st.message = (char *)(text ? text : "");
    rpc_call_ended(c);
    int rc = rpc_pack(&c->tail, FRAME_STATUS, &st.base);
    if (rc == ST_OK)
        rc = flush_tail(c);
    /* EAGAIN: on_writable comes back to it. */
    if ((rc < 0 && rc != ST_EAGAIN) || rpc_deadline_set(c, clock_ns(c->s->cfg.clock) + RPC_LINGER_NS) < 0)
        rpc_call_reset(c, code ? code : 13);
}

void rpc_finish(struct rpc_call *c, unsigned code, const char *reason, const char *fmt, ...)
{
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (c->ended)
        return;
    if (bulk_begun(c))
        break_off(c, code);
    else
        finish(c, code, reason, text);
}

void rpc_fail(struct rpc_call *c, const struct err *e)
{
    rpc_finish(c, status_to_rpc(e->code), e->reason, "%s", e->text);
}

int rpc_send(struct rpc_call *c, const ProtobufCMessage *msg)
{
    struct buf b = {0};
    if (c->ended)
        return ST_ECLOSED;
    if (bulk_begun(c))
        return ST_ECONFLICT;
    int rc = rpc_pack(&b, FRAME_MESSAGE, msg);
    if (rc == ST_OK)
        rc = quic_stream_write(c->stream, b.data, b.len, false);
    if (rc == ST_OK)
        c->begun = true;
    buf_fini(&b);
    return rc;
}

void rpc_reply(struct rpc_call *c, const ProtobufCMessage *msg)
{
    if (c->ended)
        return;
    if (c->flags & RPC_BULK) { /* its answer is bytes and a digest */
        break_off(c, 13);
        return;
    }
    int rc = rpc_pack(&c->tail, FRAME_MESSAGE, msg);
    if (rc == ST_OK) {
        finish(c, 0, NULL, NULL);
        return;
    }
    c->tail.len = 0;
    finish(c, status_to_rpc(rc), "REPLY_TOO_LARGE",
           "the answer does not fit a message: ask for less at once");
}

int rpc_bulk_write(struct rpc_call *c, const void *p, size_t n, void (*done)(void *), void *arg)
{
    if (c->ended)
        return ST_ECLOSED;
    if (!bulk_begun(c))
        return ST_ECONFLICT;
    int rc = rpc_digest_ready(c) ? quic_stream_write_ref(c->stream, p, n, false, done, arg) : ST_ENOMEM;
    if (rc == ST_OK && !EVP_DigestUpdate(c->md, p, n))
        rpc_call_reset(c, 13); /* the bytes are lent already: `done` gives them back */
    return rc;
}

void rpc_bulk_end(struct rpc_call *c)
{
    uint8_t d[32];
    if (c->ended)
        return;
    if (!bulk_begun(c) || !rpc_digest_ready(c) || !EVP_DigestFinal_ex(c->md, d, NULL) ||
        buf_append(&c->tail, d, sizeof d) < 0) {
        break_off(c, 13);
        return;
    }
    rpc_call_ended(c);
    int rc = flush_tail(c);
    if (rc < 0 && rc != ST_EAGAIN)
        rpc_call_reset(c, 13);
}

/* ---- reading a call ---- */

/* Request ids end in logs and the audit trail. */
static bool printable(const char *s)
{
    for (; *s; s++)
        if (*s <= ' ' || *s > '~')
            return false;
    return true;
}

static int take_header(struct rpc_call *c, const struct frame *f)
{
    if (f->kind != FRAME_HEADER)
        return ST_EPROTO;
    struct rpc_arena arena;
    Strata__V1__CallHeader *h =
        (Strata__V1__CallHeader *)rpc_unpack_in(&arena, &strata__v1__call_header__descriptor, f->p, f->n);
    if (!h)
        return ST_EPROTO;
    c->got_header = true;
    bool id_ok = printable(h->request_id) && str_copy(c->request_id, sizeof c->request_id, h->request_id);
    c->entry = rpc_table_find(c->s->cfg.table, h->service, h->method, &c->entry_arg);
    if (c->entry)
        c->flags = c->entry->m->flags;
    uint64_t now = clock_ns(c->s->cfg.clock);
    int rc = ST_OK;
    if (!c->entry)
        finish(c, 12, "UNKNOWN_METHOD", "this peer does not serve that method: is it an older version?");
    else if (!id_ok)
        finish(c, 3, "REQUEST_ID", "a request id has at most 79 printable ASCII characters and no space");
    else if (!h->timeout_ns)
        finish(c, 3, "NO_DEADLINE", "every call needs a timeout");
    else
        rc = rpc_deadline_set(c, h->timeout_ns > UINT64_MAX / 4 ? UINT64_MAX : now + h->timeout_ns);
    rpc_msg_free_in(&arena, &h->base);
    return rc;
}

static int take_request(struct rpc_call *c, const struct frame *f)
{
    if (f->kind != FRAME_MESSAGE || c->got_head)
        return ST_EPROTO;
    c->got_head = true;
    if (c->ended)
        return ST_OK;
    struct rpc_arena arena;
    ProtobufCMessage *req = rpc_unpack_in(&arena, c->entry->in, f->p, f->n);
    if (!req) {
        finish(c, 3, "MALFORMED", "the request is no valid message, or too large when decoded");
        return ST_OK;
    }
    c->entry->m->handler(c, req, c->entry_arg);
    rpc_msg_free_in(&arena, req);
    return ST_OK;
}

static void refuse(struct rpc_call *c, int rc)
{
    c->deaf = true;
    if (rc == ST_ELIMIT && !c->got_head) {
        if (!c->ended)
            finish(c, 8, "FRAME_TOO_LARGE", "a header may have 64 KiB and a message 1 MiB");
        return;
    }
    tell_cancelled(c);
    rpc_call_reset(c, rc == ST_ELIMIT ? 8 : 13);
}

/* Raw bytes follow the request, not frames. */
static bool uploading(const struct rpc_call *c)
{
    return c->got_head && c->flags & RPC_UPLOAD && !c->ended;
}

/* Stops early when a frame made us reset the stream (p is gone then), and before an upload's bytes. */
static int take_frames(struct rpc_call *c, const uint8_t *p, size_t n, size_t *at)
{
    for (size_t used; *at < n && !c->reset && !uploading(c); *at += used) {
        struct frame f;
        if (c->ended && c->got_head &&
            c->flags & RPC_UPLOAD) { /* refused at once: nothing of it is a frame */
            *at = n;
            return ST_OK;
        }
        int rc = frame_next(&c->dec, p + *at, n - *at, &used, &f);
        if (rc > 0)
            rc = c->got_header ? take_request(c, &f) : take_header(c, &f);
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

static void on_readable(struct quic_stream *st, void *arg)
{
    struct rpc_call *c = arg;
    const uint8_t *p;
    bool fin = false;
    for (size_t n; !c->reset && !uploading(c) && (n = quic_stream_peek(st, &p, &fin)) > 0;) {
        size_t at = 0;
        int rc = c->deaf ? ST_OK : take_frames(c, p, n, &at);
        if (rc < 0)
            refuse(c, rc);
        if (!c->reset)
            quic_stream_consume(st, rc < 0 || c->deaf ? n : at);
    }
    if (!c->reset && uploading(c)) {
        rpc_upload_read(c);
        return;
    }
    if (fin && !c->got_head && !c->ended)
        refuse(c, ST_EPROTO);
}

static void on_writable(struct quic_stream *st, void *arg)
{
    struct rpc_call *c = arg;
    (void)st;
    if (c->tail.len) {
        int rc = flush_tail(c);
        if (rc < 0 && rc != ST_EAGAIN)
            rpc_call_reset(c, 13);
    } else if (!c->ended && c->writable_fn) {
        c->writable_fn(c, c->writable_arg);
    }
}

static void on_reset(struct quic_stream *st, uint64_t code, void *arg)
{
    (void)st;
    (void)code;
    tell_cancelled(arg);
    rpc_call_reset(arg, 1);
}

static void on_closed(struct quic_stream *st, void *arg)
{
    (void)st;
    struct rpc_call *c = arg;
    tell_cancelled(c);
    rpc_call_free(c);
}

static const struct quic_stream_ops serve_ops = {on_readable, on_writable, on_reset, on_closed};

void rpc_serve_start(struct rpc_session *s, struct quic_stream *st)
{
    struct rpc_call *c = NULL;
    if (s->cfg.table && s->inbound < s->cfg.max_inbound_calls)
        c = rpc_call_alloc(s, true);
    if (!c) {
        quic_stream_reset(st, RPC_RESET_BASE + 8);
        return;
    }
    c->stream = st;
    quic_stream_set(st, &serve_ops, c);
    /* Until the header says better: a peer that sends none does not hold a slot for ever. */
    if (rpc_deadline_set(c, clock_ns(s->cfg.clock) + RPC_DEFAULT_TIMEOUT_NS) < 0)
        rpc_call_reset(c, 8);
}

void rpc_serve_expired(struct rpc_call *c)
{
    if (c->resumed && !c->ended) {
        c->resumed = false;
        if (rpc_deadline_set(c, c->deadline_ns) < 0)
            rpc_call_reset(c, 8);
        else
            rpc_upload_read(c);
        return;
    }
    bool silent = c->ended || !c->got_header || bulk_begun(c);
    tell_cancelled(c);
    if (silent)
        rpc_call_reset(c, 4);
    else
        finish(c, 4, "DEADLINE", "the call was not answered before its deadline");
}

/* ---- facts ---- */

const struct tls_identity *rpc_peer(const struct rpc_call *c)
{
    return rpc_session_peer(c->s);
}

struct rpc_session *rpc_call_session(const struct rpc_call *c)
{
    return c->s;
}

const char *rpc_request_id(const struct rpc_call *c)
{
    return c->request_id;
}

uint64_t rpc_deadline_ns(const struct rpc_call *c)
{
    return c->deadline_ns;
}

const char *rpc_call_name(const struct rpc_call *c)
{
    return c->entry ? c->entry->name : "";
}

void rpc_on_cancel(struct rpc_call *c, void (*fn)(struct rpc_call *, void *), void *arg)
{
    c->cancel_fn = fn;
    c->cancel_arg = arg;
}

void rpc_on_writable(struct rpc_call *c, void (*fn)(struct rpc_call *, void *), void *arg)
{
    c->writable_fn = fn;
    c->writable_arg = arg;
}
