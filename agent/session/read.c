/*
 * Bytes out of a buffer, to the caller or to another node. A staging slot is held only for as long as the
 * worker fills it; what a slow receiver has not taken yet waits in the agent's own memory, at most PIECES of
 * COPY_CHUNK.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

#define PIECES 3u

struct reader;

struct piece {
    struct reader *r;
    uint8_t *p;
    size_t n;
    bool lent; /* being filled, or the stream's until it is acknowledged */
};

struct reader {
    struct work w;
    struct buffer *b;
    uint64_t off, total, sent;
    struct piece piece[PIECES], *cur; /* cur: read or being read, not yet sent */
    struct worker_slot slot;
    bool reading, stopped,
        over; /* over: no work of its session any more, only acknowledgements are awaited */
    unsigned unacked;
};

static void settle(struct reader *r)
{
    if (!r->stopped || r->reading)
        return;
    if (!r->over) {
        r->over = true;
        r->b->busy--;
        work_end(&r->w);
    }
    if (r->unacked)
        return;
    for (unsigned i = 0; i < PIECES; i++)
        free(r->piece[i].p);
    free(r);
}

static void stop(struct work *w)
{
    struct reader *r = (struct reader *)w;
    r->stopped = true;
    settle(r);
}

static void fail(struct reader *r, int rc, const struct err *e)
{
    if (r->stopped)
        return;
    work_tell_copy(&r->w, r->b->device, r->total, EVENT_FAILURE, e->text);
    work_fail(&r->w, rc, e);
    stop(&r->w);
}

static void next(struct reader *r);

static void acked(void *arg)
{
    struct piece *c = arg;
    struct reader *r = c->r;
    c->lent = false;
    r->unacked--;
    if (r->stopped)
        settle(r);
    else
        next(r);
}

static void send_piece(struct reader *r)
{
    struct err e;
    if (r->stopped || r->reading || !r->cur)
        return;
    int rc = rpc_bulk_write(r->w.call, r->cur->p, r->cur->n, acked, r->cur);
    if (rc == ST_EAGAIN)
        return; /* writable() comes here again */
    if (rc < 0) {
        err_set(&e, rc, "the bytes cannot be sent");
        fail(r, rc, &e);
        return;
    }
    r->unacked++;
    r->sent += r->cur->n;
    r->cur = NULL;
    if (r->sent < r->total) {
        next(r);
        return;
    }
    work_tell_copy(&r->w, r->b->device, r->total, EVENT_SUCCESS, NULL);
    rpc_bulk_end(r->w.call);
    r->w.call = NULL;
    stop(&r->w);
}

static void writable(struct rpc_call *call, void *arg)
{
    (void)call;
    send_piece(arg);
}

static void read_done(void *arg, int rc, const struct err *e)
{
    struct reader *r = arg;
    struct tenant *t = r->w.s->tenant;
    r->reading = false;
    if (rc == ST_OK && !r->stopped)
        memcpy(r->cur->p, r->slot.data, r->cur->n);
    tenant_slot_put(t, &r->slot);
    if (r->stopped)
        settle(r);
    else if (rc < 0)
        fail(r, rc, e);
    else
        send_piece(r);
}

static void on_slot(struct work *w)
{
    next((struct reader *)w);
}

static void next(struct reader *r)
{
    struct err e;
    if (r->stopped || r->reading || r->cur || r->sent == r->total)
        return;
    struct piece *c = NULL;
    for (unsigned i = 0; i < PIECES && !c; i++)
        if (!r->piece[i].lent)
            c = &r->piece[i];
    if (!c)
        return; /* an acknowledgement comes here again */
    if (!tenant_slot(r->w.s->tenant, &r->slot)) {
        r->w.on_slot = on_slot;
        return;
    }
    uint64_t left = r->total - r->sent;
    size_t most = r->slot.bytes < COPY_CHUNK ? r->slot.bytes : COPY_CHUNK;
    c->n = left < most ? (size_t)left : most;
    c->lent = true;
    r->cur = c;
    r->reading = true;
    int rc = tenant_read(r->w.s->tenant, r->b->memory, r->off + r->sent, &r->slot, (uint32_t)c->n, read_done,
                         r, &e);
    if (rc < 0) {
        r->reading = false;
        tenant_slot_put(r->w.s->tenant, &r->slot);
        fail(r, rc, &e);
    }
}

void copy_out(struct session *s, struct rpc_call *call, struct buffer *b, uint64_t offset, uint64_t bytes,
              int type)
{
    struct err e;
    Strata__V1__FetchHead head = STRATA__V1__FETCH_HEAD__INIT;
    struct reader *r = NULL;
    int rc = buffer_range(b, offset, bytes, &e);
    if (rc < 0)
        goto refused;
    rc = (r = calloc(1, sizeof *r)) ? ST_OK : ST_ENOMEM;
    for (unsigned i = 0; rc == ST_OK && i < PIECES; i++) {
        r->piece[i].r = r;
        if (i * (uint64_t)COPY_CHUNK < bytes && !(r->piece[i].p = malloc(COPY_CHUNK)))
            rc = ST_ENOMEM;
        r->piece[i].lent = !r->piece[i].p; /* a short copy needs fewer */
    }
    if (rc < 0) {
        err_set(&e, rc, "no memory for a copy");
        goto refused;
    }
    if ((rc = work_begin(s, &r->w, call, type, true, &e)) < 0)
        goto refused;
    r->w.stop = stop;
    r->b = b;
    b->busy++;
    r->off = offset;
    r->total = bytes;
    head.bytes = bytes;
    rc = rpc_send(call, &head.base);
    if (rc < 0) {
        err_set(&e, rc, "the head cannot be sent");
        fail(r, rc, &e);
        return;
    }
    rpc_on_writable(call, writable, r);
    next(r);
    return;
refused:
    for (unsigned i = 0; r && i < PIECES; i++)
        free(r->piece[i].p);
    free(r);
    trail_fail(s->owner, call, &e);
}
