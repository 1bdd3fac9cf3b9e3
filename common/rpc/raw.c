/*
 * Raw bytes with a digest behind them: how they are read in either direction, and both ends of an upload.
 */
#include <string.h>

#include "common/rpc/rpc_priv.h"

#define TRAILER 32

bool rpc_digest_ready(struct rpc_call *c)
{
    return c->md || ((c->md = EVP_MD_CTX_new()) && EVP_DigestInit_ex(c->md, EVP_sha256(), NULL));
}

const char *rpc_raw_reason(int rc)
{
    return rc == ST_EPROTO ? "TRUNCATED" : rc == ST_ECORRUPT ? "DIGEST_MISMATCH" : "DIGEST";
}

const char *rpc_raw_text(int rc)
{
    return rc == ST_EPROTO     ? "the transfer ended before its digest"
           : rc == ST_ECORRUPT ? "the bytes received are not those that were sent"
                               : "cannot compute the digest";
}

/* The last 32 bytes of the stream are the digest: that many are always kept back. */
int rpc_raw_take(struct rpc_call *c, size_t (*take)(struct rpc_call *c, const uint8_t *p, size_t n))
{
    const uint8_t *p;
    bool fin = false;
    if (!rpc_digest_ready(c))
        return ST_EINTERNAL;
    for (;;) {
        size_t n = quic_stream_peek(c->stream, &p, &fin), body = n > TRAILER ? n - TRAILER : 0;
        if (!body)
            break;
        size_t took = take(c, p, body);
        if (c->reset) /* p is gone */
            return ST_ECLOSED;
        if (!EVP_DigestUpdate(c->md, p, took))
            return ST_EINTERNAL;
        quic_stream_consume(c->stream, took);
        if (took < body) {
            c->paused = true;
            return ST_OK;
        }
    }
    if (!fin)
        return ST_OK;
    uint8_t sent[TRAILER];
    size_t n = quic_stream_peek(c->stream, &p, &fin);
    if (n != TRAILER || !EVP_DigestFinal_ex(c->md, c->digest, NULL))
        return ST_EPROTO;
    memcpy(sent, p, TRAILER);
    quic_stream_consume(c->stream, TRAILER);
    return memcmp(sent, c->digest, TRAILER) ? ST_ECORRUPT : 1;
}

/* ---- the callee's end of an upload ---- */

static size_t give(struct rpc_call *c, const uint8_t *p, size_t n)
{
    size_t took = c->ended ? n : c->upload->on_bytes(c, p, n, c->upload_arg);
    return c->ended ? n : took; /* answered already: what still comes is thrown away */
}

void rpc_upload_read(struct rpc_call *c)
{
    struct err e = {0};
    if (!c->upload || c->paused || c->resumed || c->upload_over)
        return;
    int rc = rpc_raw_take(c, give);
    if (rc == ST_OK || rc == ST_ECLOSED || c->ended)
        return;
    c->upload_over = true;
    if (rc < 0)
        err_reason(&e, rc, rpc_raw_reason(rc), "%s", rpc_raw_text(rc));
    c->upload->on_end(c, rc < 0 ? rc : ST_OK, &e, rc < 0 ? NULL : c->digest, c->upload_arg);
}

static void go_on(struct rpc_call *c)
{
    c->paused = false;
    c->resumed = true;
    if (rpc_soon(c) < 0)
        rpc_call_reset(c, 8); /* on_closed ends the call */
}

void rpc_upload_start(struct rpc_call *c, const struct rpc_upload_ops *ops, void *arg)
{
    if (c->ended || c->reset)
        return;
    c->upload = ops;
    c->upload_arg = arg;
    go_on(c);
}

void rpc_upload_resume(struct rpc_call *c)
{
    if (!c->ended && !c->reset && c->paused)
        go_on(c);
}

/* ---- the caller's ---- */

int rpc_upload_write(struct rpc_call *c, const void *p, size_t n)
{
    if (c->ended || c->reset || c->upload_over)
        return ST_ECLOSED;
    if (!c->stream)
        return ST_EAGAIN;
    int rc = rpc_digest_ready(c) ? quic_stream_write(c->stream, p, n, false) : ST_ENOMEM;
    if (rc == ST_OK && !EVP_DigestUpdate(c->md, p, n))
        rc = ST_EINTERNAL;
    return rc;
}

void rpc_upload_end(struct rpc_call *c)
{
    uint8_t d[TRAILER];
    if (c->ended || c->reset || c->upload_over)
        return;
    c->upload_over = true;
    if (!rpc_digest_ready(c) || !EVP_DigestFinal_ex(c->md, d, NULL) || buf_append(&c->tail, d, TRAILER) < 0) {
        rpc_cancel(c);
        return;
    }
    int rc = c->stream ? quic_stream_write(c->stream, c->tail.data, c->tail.len, true) : ST_EAGAIN;
    if (rc == ST_OK)
        c->tail.len = 0;
    else if (rc != ST_EAGAIN) /* else on_writable comes back to it */
        rpc_cancel(c);
}
