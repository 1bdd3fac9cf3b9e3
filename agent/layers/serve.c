#include "agent/layers/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/source.h"
#include "common/base/str.h"
#include "strata/v1/layers.pb-c.h"

#define BUFFERS 2

struct serve {
    struct serve_cfg cfg;
    uint8_t pub[TICKET_PUB_LEN];
    bool have_pub, have_before;
    uint8_t before[TICKET_PUB_LEN]; /* the key that pub replaced */
    unsigned active;
    struct log_limit refused;
};

struct serving;

struct chunk {
    struct serving *s;
    uint8_t *p;
    size_t n;
    bool busy; /* being read, or not yet acknowledged by the peer */
};

struct serving {
    struct files_job job;
    struct serve *owner;
    struct rpc_call *call; /* NULL = gone */
    Strata__V1__FetchRequest *req;
    struct source *src;
    struct chunk chunk[BUFFERS];
    struct chunk *cur; /* read, or being read; waits to be written */
    uint64_t off;      /* read so far */
    bool reading;
    unsigned unacked;
    int rc;
    struct err e;
};

static void next_chunk(struct serving *s);

static void serving_free(struct serving *s)
{
    if (s->call || s->reading || s->unacked)
        return;
    s->owner->active--;
    source_close(s->src);
    for (unsigned i = 0; i < BUFFERS; i++)
        free(s->chunk[i].p);
    strata__v1__fetch_request__free_unpacked(s->req, NULL);
    free(s);
}

static void serving_fail(struct serving *s, const struct err *e)
{
    struct rpc_call *call = s->call;
    s->call = NULL;
    rpc_fail(call, e);
    serving_free(s);
}

static void chunk_acked(void *arg)
{
    struct chunk *c = arg;
    struct serving *s = c->s;
    c->busy = false;
    s->unacked--;
    if (s->call)
        next_chunk(s);
    else
        serving_free(s);
}

/* Writes the chunk that was read; the call says EAGAIN while too much is unsent, and on_writable comes here.
 */
static void write_chunk(struct serving *s)
{
    struct chunk *c = s->cur;
    struct err e;
    if (!c || s->reading)
        return;
    int rc = rpc_bulk_write(s->call, c->p, c->n, chunk_acked, c);
    if (rc == ST_EAGAIN)
        return;
    if (rc < 0) {
        err_set(&e, rc, "the layer's bytes cannot be sent");
        serving_fail(s, &e);
        return;
    }
    s->unacked++;
    s->cur = NULL;
    if (s->off == s->req->bytes) {
        struct rpc_call *call = s->call;
        s->call = NULL;
        rpc_bulk_end(call);
        return; /* the acknowledgements free the rest */
    }
    next_chunk(s);
}

static void writable(struct rpc_call *call, void *arg)
{
    (void)call;
    write_chunk(arg);
}

static void read_work(struct files_job *job)
{
    struct serving *s = (struct serving *)job;
    s->rc = source_read(s->src, s->off, s->cur->p, s->cur->n, &s->e);
    if (s->rc == ST_OK && s->off + s->cur->n == s->req->bytes)
        s->rc = source_unchanged(s->src, &s->e);
}

static void read_done(struct files_job *job)
{
    struct serving *s = (struct serving *)job;
    s->reading = false;
    if (!s->call) {
        serving_free(s);
    } else if (s->rc < 0) {
        serving_fail(s, &s->e);
    } else {
        s->off += s->cur->n;
        write_chunk(s);
    }
}

static void next_chunk(struct serving *s)
{
    if (s->reading || s->cur || s->off == s->req->bytes)
        return;
    for (unsigned i = 0; i < BUFFERS && !s->cur; i++)
        if (!s->chunk[i].busy)
            s->cur = &s->chunk[i];
    if (!s->cur)
        return; /* an acknowledgement comes here again */
    uint64_t left = s->req->bytes - s->off;
    s->cur->busy = true;
    s->cur->n = left < SERVE_CHUNK ? (size_t)left : SERVE_CHUNK;
    s->reading = true;
    s->job.work = read_work;
    s->job.done = read_done;
    files_submit(s->owner->cfg.files, &s->job);
}

static void open_work(struct files_job *job)
{
    struct serving *s = (struct serving *)job;
    s->rc = source_open_request(&s->src, s->owner->cfg.roots, s->owner->cfg.nroots, s->req, &s->e);
}

static void open_done(struct files_job *job)
{
    struct serving *s = (struct serving *)job;
    s->reading = false;
    if (!s->call) {
        serving_free(s);
        return;
    }
    if (s->rc < 0) {
        serving_fail(s, &s->e);
        return;
    }
    Strata__V1__FetchHead head = STRATA__V1__FETCH_HEAD__INIT;
    head.bytes = s->req->bytes;
    int rc = rpc_send(s->call, &head.base);
    if (rc < 0) {
        err_set(&s->e, rc, "the layer's head cannot be sent");
        serving_fail(s, &s->e);
        return;
    }
    rpc_on_writable(s->call, writable, s);
    next_chunk(s);
}

static void cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    struct serving *s = arg;
    s->call = NULL;
    serving_free(s);
}

/* ---- who may ---- */

static int allowed(struct serve *o, struct rpc_call *call, const Strata__V1__FetchRequest *rq, struct err *e)
{
    const struct tls_identity *who = rpc_peer(call);
    struct ticket t;
    if (who->kind != TLS_NODE)
        return err_reason(e, ST_EDENIED, "NOT_A_NODE", "%s is no node: only agents fetch layers",
                          who->principal);
    if (!o->have_pub)
        return err_reason(e, ST_EUNREACH, "NO_TICKET_KEY",
                          "node %s has not yet been given the coordinator's ticket key; try again",
                          o->cfg.node);
    if (rq->ticket.len == 0)
        return err_reason(e, ST_EDENIED, "NO_TICKET",
                          "a fetch from node %s needs a ticket of the coordinator", o->cfg.node);
    int64_t now = clock_wall_us(o->cfg.clock);
    int rc =
        ticket_verify(o->pub, rq->ticket.data, rq->ticket.len, now, o->cfg.node, who->spki_sha256, &t, e);
    /* The key was rotated: what the one before it signed is honoured until it ends. */
    if (rc < 0 && o->have_before && !strcmp(e->reason, "TICKET_FORGED"))
        rc = ticket_verify(o->before, rq->ticket.data, rq->ticket.len, now, o->cfg.node, who->spki_sha256, &t,
                           e);
    if (rc < 0)
        return rc;
    if (t.purpose != TICKET_FETCH)
        return err_reason(e, ST_EDENIED, "TICKET_WRONG_PURPOSE", "the ticket is not for fetching layers");
    if (rq->header_sha256.len != 32)
        return err_set(e, ST_EINVAL, "header_sha256 must have 32 bytes, not %zu", rq->header_sha256.len);
    char resource[TICKET_RESOURCE_MAX + 1];
    int n = snprintf(resource, sizeof resource, "job/%s/layer/%s", rq->job, rq->layer);
    if (n < 0 || (size_t)n >= sizeof resource || strcmp(t.resource, resource))
        return err_reason(e, ST_EDENIED, "TICKET_WRONG_RESOURCE",
                          "the ticket is for '%s', not for layer %.64s of job %.64s", t.resource, rq->layer,
                          rq->job);
    if (rq->bytes > t.limit_bytes)
        return err_reason(e, ST_EDENIED, "TICKET_LIMIT",
                          "the ticket allows %" PRIu64 " bytes, the layer has %" PRIu64, t.limit_bytes,
                          rq->bytes);
    return ST_OK;
}

static int check_pieces(const Strata__V1__FetchRequest *rq, struct err *e)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < rq->n_pieces; i++) {
        if (rq->pieces[i]->length > UINT64_MAX - sum)
            return err_set(e, ST_EINVAL, "the pieces are longer than a number can say");
        sum += rq->pieces[i]->length;
    }
    if (sum != rq->bytes || sum == 0)
        return err_set(e, ST_EINVAL, "the pieces have %" PRIu64 " bytes, not %" PRIu64, sum, rq->bytes);
    return ST_OK;
}

static void refuse(struct serve *o, struct rpc_call *call, const struct err *e)
{
    unsigned held;
    if (log_limited(&o->refused, clock_ns(o->cfg.clock), 10, &held))
        LOG_W(o->cfg.log, "serve", "fetch refused peer=%s reason=%s why=\"%s\" suppressed=%u",
              rpc_peer(call)->principal, e->reason[0] ? e->reason : status_name(e->code), e->text, held);
    rpc_fail(call, e);
}

static Strata__V1__FetchRequest *copy_request(const Strata__V1__FetchRequest *rq)
{
    size_t n = strata__v1__fetch_request__get_packed_size(rq);
    uint8_t *p = malloc(n ? n : 1);
    if (!p)
        return NULL;
    strata__v1__fetch_request__pack(rq, p);
    Strata__V1__FetchRequest *c = strata__v1__fetch_request__unpack(NULL, n, p);
    free(p);
    return c;
}

static void on_fetch(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct serve *o = arg;
    const Strata__V1__FetchRequest *rq = (const Strata__V1__FetchRequest *)msg;
    struct err e = {0};
    if (allowed(o, call, rq, &e) < 0 || check_pieces(rq, &e) < 0) {
        refuse(o, call, &e);
        return;
    }
    struct serving *s = o->active < o->cfg.max_fetches ? calloc(1, sizeof *s) : NULL;
    bool ok = s && (s->req = copy_request(rq));
    for (unsigned i = 0; ok && i < BUFFERS; i++) {
        s->chunk[i].s = s;
        ok = (s->chunk[i].p = malloc(SERVE_CHUNK)) != NULL;
    }
    if (!ok) {
        for (unsigned i = 0; s && i < BUFFERS; i++)
            free(s->chunk[i].p);
        if (s && s->req)
            strata__v1__fetch_request__free_unpacked(s->req, NULL);
        free(s);
        err_reason(&e, ST_ERESOURCE, "BUSY", "node %s serves %u fetches already; try again", o->cfg.node,
                   o->active);
        refuse(o, call, &e);
        return;
    }
    o->active++;
    s->owner = o;
    s->call = call;
    s->reading = true;
    s->job.work = open_work;
    s->job.done = open_done;
    rpc_on_cancel(call, cancelled, s);
    files_submit(o->cfg.files, &s->job);
}

int serve_new(struct serve **out, const struct serve_cfg *cfg, struct err *e)
{
    struct serve *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_ENOMEM, "no memory to serve layers");
    s->cfg = *cfg;
    *out = s;
    return ST_OK;
}

void serve_free(struct serve *s)
{
    free(s);
}

void serve_set_key(struct serve *s, const uint8_t pub[TICKET_PUB_LEN])
{
    if (s->have_pub && memcmp(s->pub, pub, TICKET_PUB_LEN)) {
        memcpy(s->before, s->pub, TICKET_PUB_LEN);
        s->have_before = true;
    }
    memcpy(s->pub, pub, TICKET_PUB_LEN);
    s->have_pub = true;
}

unsigned serve_active(const struct serve *s)
{
    return s->active;
}

int serve_table(struct rpc_table **out, struct serve *s, struct err *e)
{
    static const struct rpc_method methods[] = {{"strata.v1.LayerSource", "Fetch", RPC_BULK, on_fetch}};
    const ProtobufCServiceDescriptor *const services[] = {&strata__v1__layer_source__descriptor};
    return rpc_table_new(out, services, 1, methods, 1, s, e);
}
