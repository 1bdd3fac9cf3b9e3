/*
 * From buffer to buffer on this node, within the worker, a piece at a time so that an end does not wait for
 * the whole; and offers, with which another node reads a part of a buffer once.
 */
#include <inttypes.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

#define PIECE_BYTES (64ull << 20)

struct between {
    struct work w;
    struct buffer *to, *from;
    uint64_t to_off, from_off, total, moved;
    uint64_t n; /* on its way */
    bool busy, stopped;
};

static void settle(struct between *c)
{
    if (!c->stopped || c->busy)
        return;
    c->to->busy--;
    c->from->busy--;
    work_end(&c->w);
    free(c);
}

static void stop(struct work *w)
{
    struct between *c = (struct between *)w;
    c->stopped = true;
    settle(c);
}

static void finish(struct between *c, int rc, const struct err *e)
{
    char to[TICKET_NODE_MAX + 40];
    struct event_meta m = {0};
    if (c->stopped)
        return;
    snprintf(to, sizeof to, "%s/%s", c->w.s->owner->cfg.node, c->to->device);
    event_meta_u64(&m, "bytes", c->total);
    event_meta_str(&m, "to", to);
    event_meta_u64(&m, "us", work_us(&c->w));
    session_audit(c->w.s, c->w.type, rc < 0 ? EVENT_FAILURE : EVENT_SUCCESS, c->from->device, &m,
                  rc < 0 ? e->text : NULL);
    if (rc < 0) {
        work_fail(&c->w, rc, e);
    } else if (c->w.call) {
        Strata__V1__Copied r = STRATA__V1__COPIED__INIT;
        r.bytes = c->total;
        trail_reply(c->w.s->owner, c->w.call, &r.base);
        c->w.call = NULL;
    }
    stop(&c->w);
}

static void next(struct between *c);

static void copied(void *arg, int rc, const struct err *e)
{
    struct between *c = arg;
    c->busy = false;
    c->moved += c->n;
    if (c->stopped)
        settle(c);
    else if (rc < 0 || c->moved == c->total)
        finish(c, rc, e);
    else
        next(c);
}

static void next(struct between *c)
{
    struct err e;
    uint64_t left = c->total - c->moved;
    c->n = left < PIECE_BYTES ? left : PIECE_BYTES;
    c->busy = true;
    int rc = tenant_copy(c->w.s->tenant, c->to->memory, c->to_off + c->moved, c->from->memory,
                         c->from_off + c->moved, c->n, copied, c, &e);
    if (rc < 0) {
        c->busy = false;
        finish(c, rc, &e);
    }
}

void copy_between(struct session *s, struct rpc_call *call, struct buffer *to, uint64_t to_offset,
                  struct buffer *from, uint64_t from_offset, uint64_t bytes)
{
    struct err e;
    struct between *c = NULL;
    int rc = buffer_range(to, to_offset, bytes, &e);
    if (rc == ST_OK)
        rc = buffer_range(from, from_offset, bytes, &e);
    if (rc == ST_OK && to == from && to_offset < from_offset + bytes && from_offset < to_offset + bytes)
        rc = err_reason(&e, ST_EINVAL, "OVERLAP", "the two ranges of the one buffer overlap");
    if (rc == ST_OK && !(c = calloc(1, sizeof *c)))
        rc = err_set(&e, ST_ENOMEM, "no memory for a copy");
    if (rc == ST_OK)
        rc = work_begin(s, &c->w, call, EV_MEMORY_COPY_DEVICE_TO_DEVICE, true, &e);
    if (rc < 0) {
        free(c);
        trail_fail(s->owner, call, &e);
        return;
    }
    c->w.stop = stop;
    c->to = to;
    c->from = from;
    to->busy++;
    from->busy++;
    c->to_off = to_offset;
    c->from_off = from_offset;
    c->total = bytes;
    next(c);
}

/* ---- offers ---- */

int offer_make(struct session *s, struct buffer *b, const Strata__V1__OfferRequest *rq, struct offer **out,
               struct err *e)
{
    uint64_t now = clock_ns(s->owner->cfg.clock);
    int rc = buffer_range(b, rq->offset, rq->bytes, e);
    if (rc < 0)
        return rc;
    if (!str_ident_ok(rq->to_node, TICKET_NODE_MAX))
        return err_reason(e, ST_EINVAL, "BAD_NODE", "an offer names the one node that may read");
    for (struct offer **at = &s->offers; *at;) {
        struct offer *o = *at;
        if (o->due_ns > now) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        s->noffers--;
        free(o);
    }
    struct offer *o = s->noffers < MAX_OFFERS ? calloc(1, sizeof *o) : NULL;
    if (!o)
        return err_reason(e, ST_ERESOURCE, "BUSY", "session %s has %u offers open; they end within a minute",
                          s->name, s->noffers);
    s->owner->cfg.rng->fill(s->owner->cfg.rng->arg, o->token, OFFER_LEN);
    o->s = s;
    o->b = b;
    o->offset = rq->offset;
    o->bytes = rq->bytes;
    o->due_ns = now + OFFER_NS;
    str_copy(o->to, sizeof o->to, rq->to_node);
    o->next = s->offers;
    s->offers = o;
    s->noffers++;
    *out = o;
    return ST_OK;
}

struct offer *offer_take(struct sessions *ss, const ProtobufCBinaryData *token, const char *node)
{
    uint64_t now = clock_ns(ss->cfg.clock);
    if (token->len != OFFER_LEN)
        return NULL;
    for (struct session *s = ss->head; s; s = s->next)
        for (struct offer **at = &s->offers; *at; at = &(*at)->next) {
            struct offer *o = *at;
            if (CRYPTO_memcmp(o->token, token->data, OFFER_LEN) != 0 || strcmp(o->to, node) != 0)
                continue;
            *at = o->next;
            s->noffers--;
            if (o->due_ns > now && !s->ending && o->b->allocated)
                return o;
            free(o);
            return NULL;
        }
    return NULL;
}

void offers_drop(struct session *s, const struct buffer *b)
{
    for (struct offer **at = &s->offers; *at;) {
        struct offer *o = *at;
        if (b && o->b != b) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        s->noffers--;
        free(o);
    }
}
