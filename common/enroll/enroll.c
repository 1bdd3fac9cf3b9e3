/* One call over a connection that is trusted by a pin alone; an event loop of its own. */
#include "common/enroll/enroll.h"

#include <event2/event.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/rpc/rpc.h"
#include "strata/v1/enroll.pb-c.h"

struct join {
    struct event_base *base;
    struct event *timer;
    struct tls_ctx *tls;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_session *session;
    struct log log;
    bool up, closed, timed_out, done;
    struct quic_close why;
    struct rpc_status st;
    Strata__V1__JoinReply *reply;
    int64_t answered_us;
};

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct join *j = arg;
    (void)fd, (void)what;
    j->timed_out = true;
    event_base_loopbreak(j->base);
}

static void on_up(struct rpc_session *s, void *arg)
{
    struct join *j = arg;
    (void)s;
    j->up = true;
    event_base_loopbreak(j->base);
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct join *j = arg;
    (void)s;
    j->closed = true;
    j->up = false;
    j->session = NULL;
    j->why = *why;
    event_base_loopbreak(j->base);
}

static const struct rpc_session_ops session_ops = {on_up, on_closed};

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct join *j = arg;
    size_t n = protobuf_c_message_get_packed_size(msg);
    uint8_t *p = malloc(n ? n : 1);
    (void)call;
    if (p && !j->reply) {
        protobuf_c_message_pack(msg, p);
        j->reply = strata__v1__join_reply__unpack(NULL, n, p);
        j->answered_us = clock_wall_us(clock_system());
    }
    free(p);
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct join *j = arg;
    (void)call, (void)digest;
    j->done = true;
    j->st = *st;
    event_base_loopbreak(j->base);
}

static const struct rpc_call_ops call_ops = {.on_message = on_message, .on_done = on_done};

static int open_join(struct join *j, const char *address, const struct enroll_token *t, struct quic_addr *to,
                     struct err *e)
{
    int rc = quic_addr_parse(address, to, e);
    if (rc < 0 || (rc = tls_enroll_client_new(&j->tls, t->ca_spki, clock_system(), e)) < 0)
        return rc;
    j->log = (struct log){.fd = -1, .program = "strata", .clock = clock_system()};
    if (!(j->base = event_base_new()) || !(j->timer = evtimer_new(j->base, on_timer, j)))
        return err_set(e, ST_ERESOURCE, "cannot make an event loop: out of memory or of file descriptors");
    struct quic_ep_cfg cfg = {.clock = clock_system(), .rng = rng_system(), .log = &j->log, .tls = j->tls};
    quic_limits_control(&cfg.limits);
    rng_system()->fill(NULL, cfg.reset_secret, sizeof cfg.reset_secret);
    return quic_udp_new(&j->udp, &j->ep, j->base, 0, to->ss.ss_family == AF_INET6 ? "[::]:0" : "0.0.0.0:0",
                        &cfg, e);
}

static int lost(const struct join *j, const char *address, struct err *e)
{
    if (j->timed_out)
        return err_reason(e, ST_EDEADLINE, "NO_ANSWER", "the coordinator at %s did not answer in time",
                          address);
    if (j->why.kind == QUIC_CLOSE_TRUST)
        return err_reason(e, ST_ETRUST, j->why.reason_code, "nothing was sent to %s: %s", address,
                          j->why.reason);
    return err_reason(e, ST_EUNREACH, j->why.reason_code[0] ? j->why.reason_code : "UNREACHABLE",
                      "cannot enrol at %s: %s", address, j->why.reason);
}

static int spin(struct join *j, const bool *until, const char *address, struct err *e)
{
    while (!*until && !j->closed && !j->timed_out)
        if (event_base_dispatch(j->base) < 0)
            return err_set(e, ST_EINTERNAL, "the event loop failed");
    return *until ? ST_OK : lost(j, address, e);
}

static int ask(struct join *j, const char *address, const struct enroll_token *t, const char *name,
               const char *hostname, const struct buf *csr, uint64_t timeout_ns, struct err *e)
{
    Strata__V1__JoinRequest q = STRATA__V1__JOIN_REQUEST__INIT;
    const struct rpc_call_opts o = {.timeout_ns = timeout_ns};
    struct rpc_call *call;
    q.token_id = (ProtobufCBinaryData){ENROLL_ID_LEN, (uint8_t *)t->id};
    q.secret = (ProtobufCBinaryData){ENROLL_SECRET_LEN, (uint8_t *)t->secret};
    q.name = (char *)(name ? name : "");
    q.hostname = (char *)(hostname ? hostname : "");
    q.csr = (ProtobufCBinaryData){csr->len, csr->data};
    q.version = (char *)STRATA_VERSION;
    int rc = rpc_call(&call, j->session, &strata__v1__enroll__descriptor, "Join", RPC_UNARY, &q.base, &o,
                      &call_ops, j, e);
    if (rc < 0 || (rc = spin(j, &j->done, address, e)) < 0)
        return rc;
    if (j->st.code)
        return err_reason(e, status_from_rpc(j->st.code), j->st.reason, "%s refuses: %s", address,
                          j->st.text);
    return j->reply ? ST_OK : err_set(e, ST_EPROTO, "%s answered without a certificate", address);
}

/* The coordinator is trusted by now; a slip of it must still not leave us with files that fit nothing. */
static int take(struct join *j, const char *address, const struct enroll_token *t, struct enroll_result *out,
                struct err *e)
{
    const Strata__V1__JoinReply *r = j->reply;
    struct tls_identity id;
    struct quic_conn_info info;
    const char *colon = strrchr(address, ':');
    int rc = tls_cert_read(r->certificate.data, r->certificate.len, &id, e);
    if (rc < 0)
        return err_prefix(e, "the certificate from %s", address);
    if (strcmp(id.spiffe, r->identity) || strcmp(id.trust_domain, r->trust_domain) ||
        !tls_bundle_has(r->ca.data, r->ca.len, t->ca_spki))
        return err_reason(e, ST_ETRUST, "BAD_ANSWER",
                          "%s answered with a certificate that is not the one asked for", address);
    quic_conn_info(rpc_session_conn(j->session), &info);
    str_copy(out->identity, sizeof out->identity, r->identity);
    str_copy(out->trust_domain, sizeof out->trust_domain, r->trust_domain);
    str_copy(out->pool, sizeof out->pool, r->pool);
    snprintf(out->coordinator, sizeof out->coordinator, "%.*s:%u", (int)(colon - address), address, r->port);
    out->expires_us = r->expires_us;
    out->rtt_s = (double)info.min_rtt_ns / 1e9;
    out->skew_s = (double)(j->answered_us - r->now_us) / 1e6 - out->rtt_s / 2;
    if (buf_append(&out->certificate, r->certificate.data, r->certificate.len) < 0 ||
        buf_append(&out->ca, r->ca.data, r->ca.len) < 0)
        return err_set(e, ST_ENOMEM, "no memory");
    return ST_OK;
}

static void close_join(struct join *j)
{
    if (j->udp)
        quic_udp_free(j->udp, 0, "bye");
    tls_ctx_unref(j->tls);
    if (j->timer)
        event_free(j->timer);
    if (j->base)
        event_base_free(j->base);
    if (j->reply)
        strata__v1__join_reply__free_unpacked(j->reply, NULL);
}

int enroll_join(const char *address, const struct enroll_token *t, const char *name, const char *hostname,
                const char *key_path, uint64_t timeout_ns, struct enroll_result *out, struct err *e)
{
    struct join j = {0};
    struct quic_addr to;
    struct buf csr = {0};
    *out = (struct enroll_result){0};
    if (!strrchr(address, ':'))
        return err_set(e, ST_EINVAL, "'%s' has no port: write host:port", address);
    int rc = open_join(&j, address, t, &to, e);
    if (rc == ST_OK) {
        const struct rpc_cfg cfg = {.base = j.base, .clock = clock_system(), .log = &j.log};
        const struct timeval tv = {(time_t)(timeout_ns / NS_PER_S),
                                   (suseconds_t)(timeout_ns % NS_PER_S / 1000)};
        evtimer_add(j.timer, &tv);
        rc = rpc_dial(&j.session, &cfg, j.ep, &to, TLS_COORDINATOR, NULL, &session_ops, &j, e);
    }
    if (rc == ST_OK && (rc = spin(&j, &j.up, address, e)) == ST_OK) {
        /* Only now is it known who answers, and in which trust domain the name is wanted. */
        const struct tls_identity *peer = rpc_session_peer(j.session);
        char spiffe[256] = "";
        if (name)
            snprintf(spiffe, sizeof spiffe, "spiffe://%s/%s/%s", peer->trust_domain,
                     t->kind == ENROLL_NODE ? "node" : "user", name);
        rc = tls_csr_make(key_path, name ? spiffe : NULL, &csr, e);
        if (rc == ST_OK)
            rc = ask(&j, address, t, name, hostname, &csr, timeout_ns, e);
        if (rc == ST_OK)
            rc = take(&j, address, t, out, e);
    }
    close_join(&j);
    buf_fini(&csr);
    if (rc < 0)
        enroll_result_fini(out);
    return rc;
}

void enroll_result_fini(struct enroll_result *r)
{
    buf_fini(&r->certificate);
    buf_fini(&r->ca);
}
