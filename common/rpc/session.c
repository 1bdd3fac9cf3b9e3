/* Sessions: one per connection; deadlines of all its calls in one heap behind one timer. */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/rpc/rpc_priv.h"

void rpc_status_set(struct rpc_status *st, unsigned code, const char *reason, const char *text)
{
    st->code = code;
    str_copy(st->reason, sizeof st->reason, reason ? reason : "");
    str_copy(st->text, sizeof st->text, text ? text : "");
}

static void arm(struct rpc_session *s)
{
    const struct heap_node *top = heap_top(&s->deadlines);
    if (!top) {
        evtimer_del(s->timer);
        return;
    }
    uint64_t now = clock_ns(s->cfg.clock), left = top->key > now ? top->key - now : 0;
    uint64_t us = left / NS_PER_US + (left % NS_PER_US != 0);
    const struct timeval tv = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    evtimer_add(s->timer, &tv);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    struct rpc_session *s = arg;
    uint64_t now = clock_ns(s->cfg.clock);
    for (struct heap_node *x; (x = heap_top(&s->deadlines)) && x->key <= now;) {
        heap_del(&s->deadlines, x);
        struct rpc_call *c = (struct rpc_call *)x;
        if (c->inbound)
            rpc_serve_expired(c);
        else
            rpc_out_expired(c);
    }
    arm(s);
}

int rpc_deadline_set(struct rpc_call *c, uint64_t at_ns)
{
    c->deadline_ns = at_ns;
    if (at_ns == UINT64_MAX) {
        heap_del(&c->s->deadlines, &c->deadline);
        return ST_OK;
    }
    int rc = heap_set(&c->s->deadlines, &c->deadline, at_ns);
    if (rc == ST_OK && heap_top(&c->s->deadlines) == &c->deadline)
        arm(c->s);
    return rc;
}

int rpc_soon(struct rpc_call *c)
{
    int rc = heap_set(&c->s->deadlines, &c->deadline, 0);
    if (rc == ST_OK)
        arm(c->s);
    return rc;
}

void rpc_call_reset(struct rpc_call *c, unsigned code)
{
    c->reset = true;
    rpc_unwait(c);
    if (c->stream)
        quic_stream_reset(c->stream, RPC_RESET_BASE + code);
}

struct rpc_call *rpc_call_alloc(struct rpc_session *s, bool inbound)
{
    struct rpc_call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->s = s;
    c->inbound = inbound;
    c->next = s->calls;
    c->link = &s->calls;
    if (c->next)
        c->next->link = &c->next;
    s->calls = c;
    s->inbound += inbound;
    return c;
}

void rpc_call_ended(struct rpc_call *c)
{
    if (c->inbound && !c->ended)
        c->s->inbound--;
    c->ended = true;
}

void rpc_call_free(struct rpc_call *c)
{
    heap_del(&c->s->deadlines, &c->deadline);
    *c->link = c->next;
    if (c->next)
        c->next->link = c->link;
    rpc_call_ended(c);
    rpc_unwait(c);
    if (c->s->draining && !c->s->calls && !c->s->closed)
        quic_conn_close(c->s->conn, 0, c->s->drained);
    frame_dec_fini(&c->dec);
    buf_fini(&c->ask);
    buf_fini(&c->tail);
    EVP_MD_CTX_free(c->md);
    free(c);
}

static void session_free(struct rpc_session *s)
{
    if (s->timer)
        event_free(s->timer);
    heap_fini(&s->deadlines);
    free(s);
}

static void on_up(struct quic_conn *conn, void *arg)
{
    struct rpc_session *s = arg;
    (void)conn;
    s->up = true;
    if (s->ops->on_up)
        s->ops->on_up(s, s->arg);
}

static void on_stream(struct quic_conn *conn, struct quic_stream *st, void *arg)
{
    (void)conn;
    rpc_serve_start(arg, st);
}

static void on_closed(struct quic_conn *conn, const struct quic_close *why, void *arg)
{
    struct rpc_session *s = arg;
    (void)conn;
    s->closed = true;
    /* Those with a stream have ended with it; an on_done may cancel another one. */
    for (struct rpc_call *c; (c = s->calls);) {
        rpc_out_lost(c);
        rpc_call_free(c);
    }
    s->ops->on_closed(s, why, s->arg);
    session_free(s);
}

static void on_credit(struct quic_conn *conn, void *arg)
{
    (void)conn;
    rpc_out_begin_waiting(arg);
}

static void on_datagram(struct quic_conn *conn, const uint8_t *p, size_t n, uint64_t rx_ns, void *arg)
{
    struct rpc_session *s = arg;
    (void)conn;
    if (s->datagram_fn)
        s->datagram_fn(s, p, n, rx_ns, s->datagram_arg);
}

static const struct quic_conn_ops conn_ops = {.on_up = on_up,
                                              .on_stream = on_stream,
                                              .on_credit = on_credit,
                                              .on_datagram = on_datagram,
                                              .on_closed = on_closed};

static struct rpc_session *session_new(const struct rpc_cfg *cfg, const struct rpc_session_ops *ops,
                                       void *arg)
{
    struct rpc_session *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->cfg = *cfg;
    s->ops = ops;
    s->arg = arg;
    TAILQ_INIT(&s->waiting);
    s->timer = evtimer_new(cfg->base, on_timer, s);
    if (!s->timer) {
        session_free(s);
        return NULL;
    }
    return s;
}

int rpc_dial(struct rpc_session **out, const struct rpc_cfg *cfg, struct quic_ep *ep,
             const struct quic_addr *remote, enum tls_kind kind, const char *name,
             const struct rpc_session_ops *ops, void *arg, struct err *e)
{
    struct rpc_session *s = session_new(cfg, ops, arg);
    if (!s)
        return err_set(e, ST_ENOMEM, "no memory for a session");
    int rc = quic_connect(&s->conn, ep, remote, kind, name, &conn_ops, s, e);
    if (rc < 0) {
        session_free(s);
        return rc;
    }
    *out = s;
    return ST_OK;
}

int rpc_accept(struct rpc_session **out, const struct rpc_cfg *cfg, struct quic_conn *c,
               const struct rpc_session_ops *ops, void *arg)
{
    struct rpc_session *s = session_new(cfg, ops, arg);
    if (!s)
        return ST_ENOMEM;
    s->conn = c;
    s->up = true;
    quic_conn_set(c, &conn_ops, s);
    *out = s;
    return ST_OK;
}

struct quic_conn *rpc_session_conn(struct rpc_session *s)
{
    return s->conn;
}

const struct tls_identity *rpc_session_peer(const struct rpc_session *s)
{
    return quic_conn_peer(s->conn);
}

void rpc_session_close(struct rpc_session *s, uint64_t code, const char *reason)
{
    quic_conn_close(s->conn, code, reason);
}

void rpc_session_drain(struct rpc_session *s, const char *reason)
{
    s->draining = true;
    str_copy(s->drained, sizeof s->drained, reason);
    if (!s->calls && !s->closed)
        quic_conn_close(s->conn, 0, s->drained);
}

void rpc_session_on_datagram(struct rpc_session *s, rpc_datagram_fn fn, void *arg)
{
    s->datagram_fn = fn;
    s->datagram_arg = arg;
}

void rpc_session_set_user(struct rpc_session *s, void *user)
{
    s->user = user;
}

void *rpc_session_user(const struct rpc_session *s)
{
    return s->user;
}
