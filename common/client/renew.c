/*
 * The client's own certificate: renewed at two thirds of its life, before the first call of a program or in
 * the middle of a long one, over the connection that the old one made; then the client moves to a connection
 * made with the new one, and the old one ends when its calls have.
 */
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/client/client_priv.h"
#include "strata/v1/certs.pb-c.h"

#define RENEW_NS (5 * NS_PER_S)
#define LOOK_S 1

static int64_t now_us(void)
{
    return clock_wall_us(clock_system());
}

static void plan(struct strata_client *c)
{
    const struct tls_identity *self = tls_ctx_self(c->tls);
    int64_t life = self->not_after_us - self->not_before_us;
    c->renew_us = self->not_after_us - life / 3 - (int64_t)rng_below(rng_system(), (uint64_t)(life / 20) + 1);
}

/* Not before a sixteenth of what is left has passed, so that a coordinator that cannot is not asked for ever.
 */
static void later(struct strata_client *c, const char *why)
{
    int64_t left = tls_ctx_self(c->tls)->not_after_us - now_us();
    c->renew_us = now_us() + (left > 16000000 ? left / 16 : 1000000);
    snprintf(c->notice, sizeof c->notice,
             "the certificate of %s ends in %" PRId64 " s and was not renewed: %.300s",
             tls_ctx_self(c->tls)->principal, left / 1000000, why);
}

/* ---- files ---- */

static int path_of(const struct strata_client *c, const char *name, char out[4096], struct err *e)
{
    return fs_join(out, 4096, c->dir, name) < 0 ? err_set(e, ST_ELIMIT, "path too long: %s", c->dir) : ST_OK;
}

int client_load_tls(struct strata_client *c, struct tls_ctx **out, struct err *e)
{
    char ca[4096], crt[4096], key[4096];
    int rc;
    if ((rc = path_of(c, "ca.crt", ca, e)) < 0 || (rc = path_of(c, "client.crt", crt, e)) < 0 ||
        (rc = path_of(c, "client.key", key, e)) < 0)
        return rc;
    return tls_ctx_new(
        out,
        &(struct tls_cfg){
            .ca_file = ca, .cert_file = crt, .key_file = key, .trust_domain = c->settings->trust_domain},
        clock_system(), e);
}

static int take(struct strata_client *c, const Strata__V1__RenewReply *r, struct err *e)
{
    char ca[4096], crt[4096];
    struct tls_ctx *fresh = NULL;
    int rc;
    if ((rc = path_of(c, "ca.crt", ca, e)) < 0 || (rc = path_of(c, "client.crt", crt, e)) < 0)
        return rc;
    /* The bundle first: it has all that the old certificate needs as well. */
    if (r->ca.len && (rc = fs_write_atomic(ca, r->ca.data, r->ca.len, 0644, e)) < 0)
        return rc;
    if ((rc = fs_write_atomic(crt, r->certificate.data, r->certificate.len, 0644, e)) < 0 ||
        (rc = client_load_tls(c, &fresh, e)) < 0)
        return rc;
    tls_ctx_unref(c->tls);
    c->tls = fresh;
    c->generation++;
    c->notice[0] = 0;
    quic_ep_set_tls(c->ep, fresh);
    plan(c);
    return ST_OK;
}

static int request(struct strata_client *c, struct buf *csr, struct err *e)
{
    char key[4096];
    int rc = path_of(c, "client.key", key, e);
    if (rc == ST_OK && access(c->dir, W_OK) != 0)
        rc = err_reason(e, ST_EDENIED, "READ_ONLY", "%s cannot be written to", c->dir);
    return rc < 0 ? rc : tls_csr_make(key, tls_ctx_self(c->tls)->spiffe, csr, e);
}

/* ---- moving ---- */

static void next_up(struct rpc_session *s, void *arg)
{
    struct strata_client *c = arg;
    struct rpc_session *old = c->session;
    if (s != c->next)
        return;
    c->session = s;
    c->next = NULL;
    c->up = true;
    c->closed = false;
    if (old)
        rpc_session_drain(old, "moved to a new connection");
}

static void next_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct strata_client *c = arg;
    if (s == c->next)
        c->next = NULL; /* the old one serves until it ends; the next call dials anew */
    else
        client_session_closed(s, why, c);
}

static void move(struct strata_client *c)
{
    static const struct rpc_session_ops ops = {next_up, next_closed};
    const struct rpc_cfg cfg = {.base = c->base, .clock = clock_system(), .log = &c->log};
    struct err e;
    if (!c->next && c->session &&
        rpc_dial(&c->next, &cfg, c->ep, &c->to, TLS_COORDINATOR, NULL, &ops, c, &e) < 0)
        c->next = NULL;
}

/* ---- in the middle of a long call ---- */

static void renew_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct strata_client *c = arg;
    struct err e = {0};
    (void)call;
    if (take(c, (const Strata__V1__RenewReply *)msg, &e) < 0)
        later(c, e.text);
}

static void renew_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct strata_client *c = arg;
    (void)call, (void)digest;
    c->renewing = false;
    if (st->code)
        later(c, st->text);
    else
        move(c);
}

static void start(struct strata_client *c)
{
    static const struct rpc_call_ops ops = {.on_message = renew_message, .on_done = renew_done};
    const struct rpc_call_opts o = {.timeout_ns = RENEW_NS};
    Strata__V1__RenewRequest q = STRATA__V1__RENEW_REQUEST__INIT;
    struct rpc_call *call;
    struct buf csr = {0};
    struct err e = {0};
    int rc = request(c, &csr, &e);
    q.csr = (ProtobufCBinaryData){csr.len, csr.data};
    if (rc == ST_OK)
        rc = rpc_call(&call, c->session, &strata__v1__certs__descriptor, "Renew", RPC_UNARY, &q.base, &o,
                      &ops, c, &e);
    buf_fini(&csr);
    c->renewing = rc == ST_OK;
    if (rc < 0)
        later(c, e.text);
}

static void on_look(evutil_socket_t fd, short what, void *arg)
{
    struct strata_client *c = arg;
    (void)fd, (void)what;
    if (c->up && c->session && !c->renewing && now_us() >= c->renew_us)
        start(c);
}

int client_renewal_init(struct strata_client *c)
{
    const struct timeval tv = {LOOK_S, 0};
    plan(c);
    c->look = event_new(c->base, -1, EV_PERSIST, on_look, c);
    return c->look && event_add(c->look, &tv) == 0 ? ST_OK : ST_ENOMEM;
}

/* ---- now ---- */

int strata_client_renew(struct strata_client *c, int64_t *expires_us, struct strata_error *se)
{
    Strata__V1__RenewRequest q = STRATA__V1__RENEW_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    struct buf csr = {0};
    struct err e = {0};
    int rc = request(c, &csr, &e);
    q.csr = (ProtobufCBinaryData){csr.len, csr.data};
    if (rc < 0)
        client_export_error(se, &e);
    else
        rc = strata_client_call(c, &strata__v1__certs__descriptor, "Renew", &q.base, RENEW_NS, NULL, &m, se);
    buf_fini(&csr);
    if (rc < 0)
        return rc;
    rc = take(c, (const Strata__V1__RenewReply *)m, &e);
    protobuf_c_message_free_unpacked(m, NULL);
    if (rc < 0)
        client_export_error(se, &e);
    else
        move(c);
    if (rc == ST_OK && expires_us)
        *expires_us = tls_ctx_self(c->tls)->not_after_us;
    return rc;
}

void client_renew_if_due(struct strata_client *c)
{
    struct strata_error e = {0};
    if (now_us() >= c->renew_us && strata_client_renew(c, NULL, &e) < 0)
        later(c, e.text);
}

const char *strata_client_notice(const struct strata_client *c)
{
    return c->notice;
}
