/*
 * Streams: a queue of chunks that stay in place until acknowledged, received bytes in segments, bounded by
 * the flow-control window, and credit returned to the peer when the application consumes.
 */
#include <assert.h>

#include "common/base/asan.h"
#include "common/quic/quic_priv.h"

static bool usable(const struct quic_stream *s)
{
    return !s->gone && s->conn->state <= QUIC_ST_UP;
}

struct quic_stream *quic_stream_new(struct quic_conn *c, int64_t id, bool local)
{
    struct quic_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->conn = c;
    s->id = id;
    s->local = local;
    c->nremote += !local;
    TAILQ_INSERT_TAIL(&c->streams, s, all);
    return s;
}

int quic_stream_open(struct quic_stream **out, struct quic_conn *c, const struct quic_stream_ops *ops,
                     void *arg)
{
    if (c->state > QUIC_ST_UP)
        return ST_ECLOSED;
    if (c->state != QUIC_ST_UP || ngtcp2_conn_get_streams_bidi_left(c->nc) == 0)
        return ST_EAGAIN;
    struct quic_stream *s = quic_stream_new(c, -1, true);
    if (!s)
        return ST_ENOMEM;
    int rv = ngtcp2_conn_open_bidi_stream(c->nc, &s->id, s);
    if (rv != 0) {
        TAILQ_REMOVE(&c->streams, s, all);
        free(s);
        return rv == NGTCP2_ERR_STREAM_ID_BLOCKED ? ST_EAGAIN : ST_ENOMEM;
    }
    s->ops = ops;
    s->arg = arg;
    *out = s;
    return ST_OK;
}

void quic_stream_set(struct quic_stream *s, const struct quic_stream_ops *ops, void *arg)
{
    s->ops = ops;
    s->arg = arg;
}

struct quic_conn *quic_stream_conn(struct quic_stream *s)
{
    return s->conn;
}

int64_t quic_stream_id(const struct quic_stream *s)
{
    return s->id;
}

/* ---- credit ---- */

/* The peer may open another stream. */
static void stream_credit(struct quic_stream *s)
{
    if (s->local || s->credited || s->conn->state > QUIC_ST_UP)
        return;
    s->credited = true;
    ngtcp2_conn_extend_max_streams_bidi(s->conn->nc, 1);
    quic_ep_dirty(s->conn);
}

/* A stream that is read and answered to its end needs no more work, only the peer's acknowledgement. Credit
 * that waited for that would come a delayed acknowledgement late, and a peer at its limit has nothing else to
 * send that would carry one. Who acknowledges nothing is stopped by the number of streams it holds, and long
 * answers wait for their acknowledgement, so that he does not make us hold much. */
static void maybe_credit(struct quic_stream *s)
{
    if (s->rx_fin && s->rx_len == 0 && s->fin_queued && quic_stream_queued(s) <= QUIC_EARLY_CREDIT &&
        s->conn->nremote <= QUIC_LIVE_FACTOR * s->conn->ep->lim.max_streams)
        stream_credit(s);
}

/* ---- receiving ---- */

static void give_credit(struct quic_stream *s, size_t n)
{
    struct quic_conn *c = s->conn;
    if (n == 0 || c->state > QUIC_ST_UP)
        return;
    ngtcp2_conn_extend_max_offset(c->nc, n);
    if (!s->gone)
        (void)ngtcp2_conn_extend_max_stream_offset(c->nc, s->id,
                                                   n); /* fails for lack of memory only: no credit */
    quic_ep_dirty(c);
}

/* Segments of the full size go back to the endpoint: the pages of a transfer stay mapped and in the cache. */
static void seg_free(struct quic_ep *ep, struct quic_seg *g)
{
    if (g->cap != QUIC_RX_SEG || ep->nsegs >= QUIC_RX_POOL) {
        free(g);
        return;
    }
    ASAN_POISON(g->room, QUIC_RX_JOIN + g->cap);
    g->next = ep->segs;
    ep->segs = g;
    ep->nsegs++;
}

static struct quic_seg *seg_new(struct quic_ep *ep, size_t cap)
{
    struct quic_seg *g = cap == QUIC_RX_SEG ? ep->segs : NULL;
    if (g) {
        ASAN_UNPOISON(g->room, QUIC_RX_JOIN + g->cap);
        ep->segs = g->next;
        ep->nsegs--;
    } else if (!(g = malloc(sizeof *g + QUIC_RX_JOIN + cap))) {
        return NULL;
    }
    *g = (struct quic_seg){.cap = cap, .head = QUIC_RX_JOIN};
    return g;
}

static void rx_pop(struct quic_stream *s)
{
    struct quic_seg *g = s->rx;
    s->rx = g->next;
    if (!s->rx)
        s->rx_tail = NULL;
    seg_free(s->conn->ep, g);
}

static void rx_release(struct quic_stream *s)
{
    while (s->rx)
        rx_pop(s);
}

/* The segments stay until the stream is freed: an upcall further up may still look at bytes it peeked. */
static void rx_drop(struct quic_stream *s)
{
    size_t n = s->rx_len;
    s->rx_len = 0;
    give_credit(s, n);
}

int quic_stream_rx(struct quic_stream *s, const uint8_t *p, size_t n, bool fin)
{
    if (fin)
        s->rx_fin = true;
    if (s->reset_local) {
        give_credit(s, n);
        return ST_OK;
    }
    if (n > 0 || fin)
        quic_stream_event(s, QUIC_EV_READABLE);
    /* ngtcp2 enforces the window, so this never holds more than max_stream_window. */
    while (n > 0) {
        struct quic_seg *g = s->rx_tail;
        size_t room = g ? QUIC_RX_JOIN + g->cap - g->head - g->len : 0;
        if (!room) { /* a small call stays small */
            if (!(g = seg_new(s->conn->ep, !s->rx && n <= QUIC_RX_SMALL ? QUIC_RX_SMALL : QUIC_RX_SEG)))
                return ST_ENOMEM;
            if (s->rx_tail)
                s->rx_tail->next = g;
            else
                s->rx = g;
            s->rx_tail = g;
            room = g->cap;
        }
        size_t take = n < room ? n : room;
        memcpy(g->room + g->head + g->len, p, take);
        g->len += take;
        s->rx_len += take;
        p += take;
        n -= take;
    }
    return ST_OK;
}

size_t quic_stream_peek(struct quic_stream *s, const uint8_t **p, bool *fin)
{
    s->rx_told = false;
    *p = (const uint8_t *)"";
    *fin = s->rx_fin;
    if (!s->rx_len)
        return 0;
    struct quic_seg *g = s->rx, *next = g->next;
    if (next && g->len < QUIC_RX_JOIN) { /* a short rest goes in front of what follows it */
        assert(next->head == QUIC_RX_JOIN);
        next->head -= g->len;
        next->len += g->len;
        memcpy(next->room + next->head, g->room + g->head, g->len);
        rx_pop(s);
        g = next;
    }
    *fin = s->rx_fin && !g->next;
    *p = g->room + g->head;
    return g->len;
}

void quic_stream_consume(struct quic_stream *s, size_t n)
{
    if (s->reset_local)
        return; /* dropped with the reset, credit and all */
    struct quic_seg *g = s->rx;
    assert(n <= s->rx_len && (n == 0 || n <= g->len));
    if (n > 0) {
        g->head += n;
        g->len -= n;
        s->rx_len -= n;
        if (g->len == 0 && (g->next || g->cap == QUIC_RX_SEG || s->rx_fin || s->gone))
            rx_pop(s);
        else if (g->len == 0)
            g->head = QUIC_RX_JOIN;
    }
    give_credit(s, n);
    maybe_credit(s);
    if (s->gone && s->rx_len == 0)
        quic_stream_event(s, QUIC_EV_CLOSED);
}

/* ---- sending ---- */

size_t quic_stream_queued(const struct quic_stream *s)
{
    return (size_t)(s->queued - s->acked);
}

void quic_stream_ready(struct quic_stream *s)
{
    if (s->in_tx || s->tx_shut || s->tx_blocked || !usable(s))
        return;
    if (s->sent == s->queued && (!s->fin_queued || s->fin_sent))
        return;
    s->in_tx = true;
    TAILQ_INSERT_TAIL(&s->conn->tx, s, tx);
    quic_ep_dirty(s->conn);
}

void quic_stream_unready(struct quic_stream *s)
{
    if (!s->in_tx)
        return;
    s->in_tx = false;
    TAILQ_REMOVE(&s->conn->tx, s, tx);
}

void quic_stream_shut_tx(struct quic_stream *s)
{
    quic_stream_unready(s);
    s->tx_shut = true;
    s->conn->tx_backlog -= s->queued - s->sent;
    s->sent = s->queued; /* nothing more will be offered; acked_ stays behind until the chunks are released */
    s->cur = NULL;
}

static int may_write(struct quic_stream *s, size_t n)
{
    if (!usable(s) || s->tx_shut || s->fin_queued)
        return ST_ECLOSED;
    if (n > QUIC_WRITE_MAX)
        return ST_ELIMIT;
    size_t q = quic_stream_queued(s);
    if (q > 0 && n > 0 && q + n > s->conn->ep->lim.send_queue) {
        s->want_write = true;
        return ST_EAGAIN;
    }
    return ST_OK;
}

static void append(struct quic_stream *s, struct quic_chunk *k)
{
    k->next = NULL;
    k->off = s->queued;
    if (s->tail)
        s->tail->next = k;
    else
        s->head = k;
    s->tail = k;
    if (!s->cur)
        s->cur = k;
}

static void enqueued(struct quic_stream *s, size_t n, bool fin)
{
    s->queued += n;
    s->conn->tx_backlog += n;
    s->fin_queued = fin;
    quic_stream_ready(s);
    maybe_credit(s);
}

int quic_stream_write(struct quic_stream *s, const void *p, size_t n, bool fin)
{
    int rc = may_write(s, n);
    if (rc < 0)
        return rc;
    struct quic_chunk *k = s->tail;
    if (n > 0 && k && k->cap - k->len >= n &&
        k->cap > 0) { /* small writes share a chunk; sent bytes stay put */
        memcpy(k->own + k->len, p, n);
        k->len += n;
        if (!s->cur)
            s->cur = k;
    } else if (n > 0) {
        size_t cap = n < QUIC_COPY_CHUNK && !fin ? QUIC_COPY_CHUNK : n;
        if (!(k = malloc(sizeof *k + cap)))
            return ST_ENOMEM;
        *k = (struct quic_chunk){.len = n, .cap = cap};
        memcpy(k->own, p, n);
        k->p = k->own;
        append(s, k);
    }
    enqueued(s, n, fin);
    return ST_OK;
}

int quic_stream_write_ref(struct quic_stream *s, const void *p, size_t n, bool fin, void (*done)(void *arg),
                          void *arg)
{
    int rc = may_write(s, n);
    if (rc < 0)
        return rc;
    struct quic_chunk *k = malloc(sizeof *k);
    if (!k)
        return ST_ENOMEM;
    *k = (struct quic_chunk){.p = p, .len = n, .done = done, .arg = arg};
    append(s, k);
    enqueued(s, n, fin);
    return ST_OK;
}

size_t quic_stream_pending(const struct quic_stream *s, ngtcp2_vec *v, size_t max, bool *fin)
{
    size_t n = 0;
    uint64_t at = s->sent;
    const struct quic_chunk *k = s->cur;
    for (; k && n < max; k = k->next) {
        size_t skip = (size_t)(at - k->off);
        if (skip == k->len)
            continue;
        v[n++] = (ngtcp2_vec){.base = (uint8_t *)(uintptr_t)(k->p + skip), .len = k->len - skip};
        at = k->off + k->len;
    }
    *fin = s->fin_queued && at == s->queued;
    return n;
}

void quic_stream_sent(struct quic_stream *s, size_t n, bool fin)
{
    s->sent += n;
    s->conn->tx_backlog -= n;
    while (s->cur && s->sent >= s->cur->off + s->cur->len && s->cur->next)
        s->cur = s->cur->next;
    if (fin && s->sent == s->queued)
        s->fin_sent = true;
    quic_stream_unready(s);
    quic_stream_ready(s); /* to the tail: streams take turns */
}

static void retire(struct quic_stream *s, struct quic_chunk *k)
{
    if (!k->done) {
        free(k);
        return;
    }
    k->next = NULL;
    *s->conn->done_tail = k;
    s->conn->done_tail = &k->next;
}

void quic_stream_acked(struct quic_stream *s, uint64_t upto)
{
    if (upto > s->acked)
        s->acked = upto;
    while (s->head && s->head->off + s->head->len <= s->acked && s->head->off + s->head->len <= s->sent) {
        struct quic_chunk *k = s->head;
        if (s->cur == k)
            s->cur = k->next;
        s->head = k->next;
        if (!s->head)
            s->tail = NULL;
        retire(s, k);
    }
    if (s->want_write && quic_stream_queued(s) < s->conn->ep->lim.send_queue * 3 / 4) {
        s->want_write = false;
        quic_stream_event(s, QUIC_EV_WRITABLE);
    }
}

void quic_stream_release_done(struct quic_conn *c)
{
    while (c->done_head) {
        struct quic_chunk *k = c->done_head;
        c->done_head = k->next;
        if (!c->done_head)
            c->done_tail = &c->done_head;
        k->done(k->arg);
        free(k);
    }
}

void quic_stream_reset(struct quic_stream *s, uint64_t code)
{
    if (s->reset_local || !usable(s)) {
        if (s->gone && !s->reset_local) { /* unread bytes of a finished stream: nothing to tell the peer */
            s->reset_local = true;
            rx_drop(s);
            quic_stream_event(s, QUIC_EV_CLOSED);
        }
        return;
    }
    s->reset_local = true;
    quic_stream_shut_tx(s);
    rx_drop(s);
    int rv = ngtcp2_conn_shutdown_stream(s->conn->nc, 0, s->id, code);
    if (rv != 0)
        quic_conn_liberr(s->conn, rv);
    quic_ep_dirty(s->conn);
}

/* ---- telling the application ---- */

void quic_stream_event(struct quic_stream *s, unsigned ev)
{
    s->events |= ev;
    if (!s->in_ev) {
        s->in_ev = true;
        TAILQ_INSERT_TAIL(&s->conn->ev, s, ev);
    }
    quic_ep_dirty(s->conn);
}

static void stream_free(struct quic_stream *s)
{
    struct quic_conn *c = s->conn;
    quic_stream_shut_tx(s);
    if (s->in_ev)
        TAILQ_REMOVE(&c->ev, s, ev);
    TAILQ_REMOVE(&c->streams, s, all);
    rx_drop(s);
    rx_release(s);
    stream_credit(s);
    c->nremote -= !s->local;
    free(s);
}

void quic_stream_last_upcall(struct quic_stream *s)
{
    for (struct quic_chunk *k; (k = s->head);) {
        s->head = k->next;
        retire(s, k);
    }
    s->tail = s->cur = NULL;
    s->gone = true;
    quic_stream_release_done(s->conn);
    if (s->ops && s->ops->on_closed)
        s->ops->on_closed(s, s->arg);
    stream_free(s);
}

void quic_stream_upcalls(struct quic_stream *s)
{
    struct quic_conn *c = s->conn;
    unsigned ev = s->events;
    s->events = 0;
    if (ev & QUIC_EV_OPEN) {
        c->ops->on_stream(c, s, c->arg);
        if (!s->ops)
            quic_stream_reset(s, 0);
    }
    /* Any upcall may have reset the stream or closed the connection: look again before each. */
    if ((ev & QUIC_EV_READABLE) && !s->reset_local && !s->rx_told && c->state == QUIC_ST_UP) {
        s->rx_told = true;
        s->ops->on_readable(s, s->arg);
    }
    if ((ev & QUIC_EV_WRITABLE) && !s->reset_local && !s->tx_shut && c->state == QUIC_ST_UP &&
        s->ops->on_writable)
        s->ops->on_writable(s, s->arg);
    if ((ev & QUIC_EV_RESET) && !s->reset_local && !s->reset_told && c->state == QUIC_ST_UP) {
        s->reset_told = true;
        if (s->ops->on_reset)
            s->ops->on_reset(s, s->reset_code, s->arg);
        rx_drop(s);
    }
    if (s->gone && c->state == QUIC_ST_UP && s->rx_len == 0)
        quic_stream_last_upcall(s);
}
