/*
 * Bytes into a buffer, from the caller or from another node. They are gathered in a chunk of the agent's own
 * memory and pass through a staging slot only when the chunk is full, so that a slow sender holds no slot
 * that the principal's other copies and loads wait for. What was written is read back as a digest and
 * compared with that of the bytes as they came.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/session/session_priv.h"
#include "common/base/str.h"

#define MAX_WRITES 4u

struct sink {
    struct work w;
    struct buffer *b;
    uint64_t off, total, got; /* got: taken from the sender */
    uint64_t put, written;    /* handed to the worker; in device memory */
    uint8_t *chunk;
    size_t fill;
    unsigned writes;
    unsigned inside; /* it is freed by the outermost of its functions */
    bool stopped, source_done, digesting, verify;
    struct fetch *fetch; /* from another node */
    uint8_t sha[32];
};

struct writing {
    struct sink *k;
    size_t n;
};

static void enter(struct sink *k)
{
    k->inside++;
}

static void leave(struct sink *k)
{
    if (--k->inside || !k->stopped || k->writes || k->digesting)
        return;
    k->b->busy--;
    work_end(&k->w);
    free(k->chunk);
    free(k);
}

/* Nothing more is begun; the end comes when nothing is in flight. */
static void stop(struct work *w)
{
    struct sink *k = (struct sink *)w;
    enter(k);
    k->stopped = true;
    w->on_slot = NULL;
    if (k->fetch) {
        struct fetch *f = k->fetch;
        k->fetch = NULL;
        fetch_cancel(f);
    }
    leave(k);
}

static void fail(struct sink *k, int rc, const struct err *e)
{
    if (k->stopped)
        return;
    work_tell_copy(&k->w, k->b->device, k->total, EVENT_FAILURE, e->text);
    work_fail(&k->w, rc, e);
    stop(&k->w);
}

static void resume(struct sink *k)
{
    if (k->stopped)
        return;
    if (k->fetch)
        fetch_resume(k->fetch);
    else if (k->w.type == EV_MEMORY_COPY_TO_DEVICE && k->w.call)
        rpc_upload_resume(k->w.call);
}

/* ---- the end ---- */

static void succeed(struct sink *k, const uint8_t *device_sha)
{
    Strata__V1__Copied r = STRATA__V1__COPIED__INIT;
    r.bytes = k->total;
    r.sha256 = (ProtobufCBinaryData){32, k->sha};
    if (device_sha)
        r.device_sha256 = (ProtobufCBinaryData){32, (uint8_t *)device_sha};
    work_tell_copy(&k->w, k->b->device, k->total, EVENT_SUCCESS, NULL);
    if (k->w.call)
        trail_reply(k->w.s->owner, k->w.call, &r.base);
    k->w.call = NULL;
    stop(&k->w);
}

static void digested(void *arg, int rc, const struct err *e, const uint8_t *sha)
{
    struct sink *k = arg;
    struct err mine;
    enter(k);
    k->digesting = false;
    if (k->stopped) {
        /* only to be freed */
    } else if (rc < 0) {
        fail(k, rc, e);
    } else if (memcmp(sha, k->sha, 32) != 0) {
        rc = err_reason(&mine, ST_ECORRUPT, "CHECKSUM_MISMATCH",
                        "%" PRIu64
                        " bytes on %s differ from those that were sent: the device's memory or the way "
                        "to it is faulty",
                        k->total, k->b->device);
        fail(k, rc, &mine);
    } else {
        succeed(k, sha);
    }
    leave(k);
}

static void maybe_verify(struct sink *k)
{
    struct err e;
    if (k->stopped || !k->source_done || k->written != k->total || k->digesting)
        return;
    if (!k->verify) {
        succeed(k, NULL);
        return;
    }
    int rc = tenant_digest(k->w.s->tenant, k->b->memory, k->off, k->total, digested, k, &e);
    if (rc < 0)
        fail(k, rc, &e);
    else
        k->digesting = true;
}

/* ---- to the device ---- */

static void pump(struct sink *k);

static void written(void *arg, int rc, const struct err *e)
{
    struct writing *w = arg;
    struct sink *k = w->k;
    enter(k);
    k->writes--;
    k->written += w->n;
    free(w);
    if (rc < 0)
        fail(k, rc, e);
    else
        pump(k);
    leave(k);
}

static void on_slot(struct work *w)
{
    struct sink *k = (struct sink *)w;
    enter(k);
    pump(k);
    leave(k);
}

/* Hands the chunk over if it is full, or the last. False: it has to wait. */
static bool flush(struct sink *k)
{
    struct worker_slot slot;
    struct tenant *t = k->w.s->tenant;
    struct err e;
    size_t at = 0;
    while (at < k->fill) {
        if (k->writes >= MAX_WRITES || !tenant_slot(t, &slot)) {
            if (k->writes < MAX_WRITES)
                k->w.on_slot = on_slot;
            memmove(k->chunk, k->chunk + at, k->fill - at);
            k->fill -= at;
            return false;
        }
        size_t n = k->fill - at < slot.bytes ? k->fill - at : slot.bytes;
        struct writing *w = malloc(sizeof *w);
        int rc = w ? ST_OK : err_set(&e, ST_ENOMEM, "no memory for a copy");
        if (rc == ST_OK) {
            *w = (struct writing){k, n};
            memcpy(slot.data, k->chunk + at, n);
            rc = tenant_write(t, k->b->memory, k->off + k->put, &slot, (uint32_t)n, written, w, &e);
        }
        if (rc < 0) {
            free(w);
            tenant_slot_put(t, &slot);
            fail(k, rc, &e);
            return false;
        }
        k->writes++;
        k->put += n;
        at += n;
    }
    k->fill = 0;
    return true;
}

static void pump(struct sink *k)
{
    if (k->stopped)
        return;
    if (k->fill && (k->fill == COPY_CHUNK || k->got == k->total) && !flush(k))
        return;
    resume(k);
    maybe_verify(k);
}

/* ---- from the source ---- */

static size_t take(struct sink *k, const uint8_t *p, size_t n)
{
    size_t took = 0;
    struct err e;
    enter(k);
    while (took < n && !k->stopped) {
        if (k->got == k->total) {
            int rc = err_reason(&e, ST_EINVAL, "TOO_MANY_BYTES",
                                "more came than the %" PRIu64 " bytes announced", k->total);
            fail(k, rc, &e);
            break;
        }
        if (k->fill == COPY_CHUNK && !flush(k))
            break;
        size_t m = COPY_CHUNK - k->fill;
        if (m > n - took)
            m = n - took;
        if (m > k->total - k->got)
            m = (size_t)(k->total - k->got);
        memcpy(k->chunk + k->fill, p + took, m);
        k->fill += m;
        k->got += m;
        took += m;
        if (k->got == k->total)
            (void)flush(k);
    }
    if (k->stopped)
        took = n;
    leave(k);
    return took;
}

static void source_over(struct sink *k, int rc, const struct err *e, const uint8_t *digest)
{
    struct err mine;
    enter(k);
    if (k->stopped) {
        /* only to be freed */
    } else if (rc < 0) {
        fail(k, rc, e);
    } else if (k->got != k->total) {
        rc = err_reason(&mine, ST_EINVAL, "TOO_FEW_BYTES", "%" PRIu64 " bytes came of %" PRIu64, k->got,
                        k->total);
        fail(k, rc, &mine);
    } else {
        memcpy(k->sha, digest, 32);
        k->source_done = true;
        maybe_verify(k);
    }
    leave(k);
}

static size_t on_upload(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    (void)call;
    return take(arg, p, n);
}

static void on_upload_end(struct rpc_call *call, int rc, const struct err *e, const uint8_t *digest,
                          void *arg)
{
    (void)call;
    source_over(arg, rc, e, digest);
}

static const struct rpc_upload_ops upload_ops = {.on_bytes = on_upload, .on_end = on_upload_end};

static size_t on_fetch(const uint8_t *p, size_t n, void *arg)
{
    return take(arg, p, n);
}

static void on_fetched(int rc, const struct err *e, const uint8_t *digest, void *arg)
{
    struct sink *k = arg;
    k->fetch = NULL;
    source_over(k, rc, e, digest);
}

static const struct fetch_ops fetch_ops = {.on_bytes = on_fetch, .on_done = on_fetched};

/* ---- beginning ---- */

static int begin(struct sink **out, struct session *s, struct rpc_call *call, struct buffer *b, int type,
                 uint64_t off, uint64_t total, struct err *e)
{
    int rc = buffer_range(b, off, total, e);
    if (rc < 0)
        return rc;
    struct sink *k = calloc(1, sizeof *k);
    if (!k || !(k->chunk = malloc(total < COPY_CHUNK ? (size_t)total : COPY_CHUNK)))
        rc = err_set(e, ST_ENOMEM, "no memory for a copy");
    if (rc == ST_OK)
        rc = work_begin(s, &k->w, call, type, true, e);
    if (rc < 0) {
        if (k)
            free(k->chunk);
        free(k);
        return rc;
    }
    k->w.stop = stop;
    k->b = b;
    b->busy++;
    k->off = off;
    k->total = total;
    k->verify = true;
    *out = k;
    return ST_OK;
}

void copy_in(struct session *s, struct rpc_call *call, struct buffer *b, const Strata__V1__CopyToRequest *rq)
{
    struct sink *k;
    struct err e;
    if (begin(&k, s, call, b, EV_MEMORY_COPY_TO_DEVICE, rq->offset, rq->bytes, &e) < 0) {
        trail_fail(s->owner, call, &e);
        return;
    }
    k->verify = !rq->unverified;
    rpc_upload_start(call, &upload_ops, k);
}

void copy_pull(struct session *s, struct rpc_call *call, struct buffer *b,
               const Strata__V1__CopyBetweenRequest *rq)
{
    struct sink *k;
    struct err e;
    Strata__V1__PullRequest pull = STRATA__V1__PULL_REQUEST__INIT;
    uint64_t now = clock_ns(s->owner->cfg.clock), due = rpc_deadline_ns(call);
    if (begin(&k, s, call, b, EV_MEMORY_COPY_DEVICE_TO_DEVICE, rq->to_offset, rq->bytes, &e) < 0) {
        trail_fail(s->owner, call, &e);
        return;
    }
    pull.offer = rq->offer;
    pull.bytes = rq->bytes;
    const struct fetch_ask ask = {&strata__v1__memory_source__descriptor, "Pull", &pull.base, rq->bytes};
    int rc = peers_fetch(&k->fetch, s->owner->cfg.peers, rq->from_node, rq->from_address, &ask,
                         due == UINT64_MAX ? UINT64_MAX
                         : due > now       ? due - now
                                           : 1,
                         &fetch_ops, k, &e);
    if (rc < 0)
        fail(k, rc, &e);
}
