/* A connection from its first packet to its last upcall: making it, reading into it, identity, ending it. */
#include <assert.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/base/str.h"
#include "common/quic/quic_priv.h"

static const char *kind_word(enum tls_kind k)
{
    static const char *const word[] = {"the coordinator", "a node", "a user", "nobody in particular"};
    return word[k];
}

static const char *who(const struct quic_conn *c, char buf[64])
{
    if (c->told_up && c->peer.principal[0])
        return c->peer.principal;
    quic_addr_str(&c->remote, buf);
    return buf;
}

uint64_t quic_conn_ts(const struct quic_conn *c)
{
    uint64_t now = quic_ep_now(c->ep), last = ngtcp2_conn_get_timestamp(c->nc);
    return last != UINT64_MAX && last > now ? last : now; /* ngtcp2 aborts when its time runs backwards */
}

/* ---- ids ---- */

/* What the endpoint's maps say of a connection is listed in it, so that nothing stays behind when it goes. */
int quic_conn_cid_add(struct quic_conn *c, const ngtcp2_cid *cid)
{
    if (c->ncids == QUIC_IDS_MAX)
        return ST_ELIMIT;
    int rc = quic_ep_cid_add(c->ep, cid, c);
    if (rc == ST_OK)
        c->cids[c->ncids++] = *cid;
    return rc;
}

void quic_conn_cid_del(struct quic_conn *c, const ngtcp2_cid *cid)
{
    for (unsigned i = 0; i < c->ncids; i++)
        if (ngtcp2_cid_eq(&c->cids[i], cid)) {
            quic_ep_cid_del(c->ep, cid);
            c->cids[i] = c->cids[--c->ncids];
            return;
        }
}

int quic_conn_token_add(struct quic_conn *c, const ngtcp2_stateless_reset_token *t)
{
    if (c->ntokens == QUIC_IDS_MAX)
        return ST_OK; /* that reset goes unnoticed, the idle timeout does not */
    int rc = quic_ep_token_add(c->ep, t->data, c);
    if (rc == ST_OK)
        c->tokens[c->ntokens++] = *t;
    return rc;
}

void quic_conn_token_del(struct quic_conn *c, const ngtcp2_stateless_reset_token *t)
{
    for (unsigned i = 0; i < c->ntokens; i++)
        if (memcmp(c->tokens[i].data, t->data, sizeof t->data) == 0) {
            quic_ep_token_del(c->ep, t->data, c);
            c->tokens[i] = c->tokens[--c->ntokens];
            return;
        }
}

/* ---- making ---- */

static ngtcp2_conn *get_conn(ngtcp2_crypto_conn_ref *ref)
{
    return ((struct quic_conn *)ref->user_data)->nc;
}

static ngtcp2_path make_path(struct quic_addr *local, struct quic_addr *remote)
{
    return (ngtcp2_path){.local = {(struct sockaddr *)&local->ss, local->len},
                         .remote = {(struct sockaddr *)&remote->ss, remote->len}};
}

static struct quic_conn *conn_alloc(struct quic_ep *ep, const struct quic_addr *local,
                                    const struct quic_addr *remote)
{
    struct quic_conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->ep = ep;
    c->id = ep->id_base + ++ep->id_next;
    c->local = *local;
    c->remote = *remote;
    c->tls = tls_ctx_ref(ep->tls);
    c->ref = (ngtcp2_crypto_conn_ref){get_conn, c};
    c->done_tail = &c->done_head;
    TAILQ_INIT(&c->streams);
    TAILQ_INIT(&c->tx);
    TAILQ_INIT(&c->ev);
    STAILQ_INIT(&c->drx);
    STAILQ_INIT(&c->dtx);
    return c;
}

static void drop_dgrams(struct quic_dgram_list *l)
{
    for (struct quic_dgram *d; (d = STAILQ_FIRST(l));) {
        STAILQ_REMOVE_HEAD(l, e);
        free(d);
    }
}

/* For a connection that no list knows any more. */
static void conn_free(struct quic_conn *c)
{
    for (struct quic_stream *s; (s = TAILQ_FIRST(&c->streams));)
        quic_stream_last_upcall(s);
    drop_dgrams(&c->drx);
    drop_dgrams(&c->dtx);
    if (c->ssl) {
        SSL_set_app_data(c->ssl,
                         NULL); /* SSL_free may call back; the ngtcp2 connection must not be asked then */
        SSL_free(c->ssl);
    }
    ngtcp2_crypto_ossl_ctx_del(c->octx);
    ngtcp2_conn_del(c->nc);
    tls_ctx_unref(c->tls);
    free(c);
}

static int make_ssl(struct quic_conn *c)
{
    unsigned alpn_len;
    const unsigned char *alpn = tls_ctx_alpn(c->tls, &alpn_len);
    c->ssl = SSL_new(c->server ? tls_ctx_server(c->tls) : tls_ctx_client(c->tls));
    if (!c->ssl || ngtcp2_crypto_ossl_ctx_new(&c->octx, c->ssl) != 0)
        return ST_ENOMEM;
    int rv = c->server ? ngtcp2_crypto_ossl_configure_server_session(c->ssl)
                       : ngtcp2_crypto_ossl_configure_client_session(c->ssl);
    if (rv != 0)
        return ST_EINTERNAL;
    SSL_set_app_data(c->ssl, &c->ref);
    if (c->server)
        SSL_set_accept_state(c->ssl);
    else
        SSL_set_connect_state(c->ssl);
    if (!c->server && SSL_set_alpn_protos(c->ssl, alpn, alpn_len) != 0)
        return ST_ENOMEM;
    return ST_OK;
}

static void make_settings(struct quic_ep *ep, ngtcp2_settings *s, ngtcp2_transport_params *p)
{
    static const uint16_t probes[] = {1444, 8952 - 20, 8952, 32000};
    const struct quic_limits *l = &ep->lim;
    ngtcp2_settings_default(s);
    s->initial_ts = quic_ep_now(ep);
    s->initial_rtt = 25 * NGTCP2_MILLISECONDS;
    s->cc_algo = NGTCP2_CC_ALGO_CUBIC;
    s->handshake_timeout = l->handshake_ns;
    s->max_stream_window = l->max_stream_window < QUIC_WINDOW_MAX ? l->max_stream_window : QUIC_WINDOW_MAX;
    s->max_window = l->max_conn_window;
    s->rand_ctx.native_handle = (void *)(uintptr_t)ep->rng;
    /* Loopback takes 64 kB; half of that is where the cost of a packet no longer shows. */
    s->max_tx_udp_payload_size = l->max_packet ? l->max_packet : 32000;
    s->pmtud_probes = probes;
    s->pmtud_probeslen = sizeof probes / sizeof probes[0];
    ngtcp2_transport_params_default(p);
    p->initial_max_stream_data_bidi_local = l->stream_window;
    p->initial_max_stream_data_bidi_remote = l->stream_window;
    p->initial_max_data = l->conn_window;
    p->initial_max_streams_bidi = l->max_streams;
    p->initial_max_streams_uni = 0;
    p->max_idle_timeout = l->idle_ns;
    p->max_datagram_frame_size = l->max_datagram_frame;
    p->disable_active_migration = 1;
}

static void list(struct quic_conn *c)
{
    TAILQ_INSERT_TAIL(&c->ep->conns, c, all);
    c->ep->nconns++;
    quic_ep_dirty(c);
}

int quic_conn_accept(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                     const ngtcp2_pkt_hd *hd, const ngtcp2_cid *odcid, struct quic_conn **out)
{
    struct quic_conn *c = conn_alloc(ep, local, remote);
    ngtcp2_settings st;
    ngtcp2_transport_params tp;
    ngtcp2_cid scid = {.datalen = QUIC_SCID_LEN};
    if (!c)
        return ST_ENOMEM;
    c->server = true;
    c->ops = ep->accept_ops;
    c->arg = ep->accept_arg;
    ep->rng->fill(ep->rng->arg, scid.data, scid.datalen);
    make_settings(ep, &st, &tp);
    if (odcid) {
        st.token = hd->token;
        st.tokenlen = hd->tokenlen;
        st.token_type = NGTCP2_TOKEN_TYPE_RETRY;
        tp.retry_scid = hd->dcid;
        tp.retry_scid_present = 1;
    }
    tp.original_dcid = odcid ? *odcid : hd->dcid;
    tp.original_dcid_present = 1;
    tp.stateless_reset_token_present = 1;
    ngtcp2_path path = make_path(&c->local, &c->remote);
    int rc = make_ssl(c);
    if (rc == ST_OK && ngtcp2_crypto_generate_stateless_reset_token(
                           tp.stateless_reset_token, ep->reset_secret, sizeof ep->reset_secret, &scid) != 0)
        rc = ST_EINTERNAL;
    if (rc == ST_OK && ngtcp2_conn_server_new(&c->nc, &hd->scid, &scid, &path, hd->version,
                                              &quic_server_callbacks, &st, &tp, NULL, c) != 0)
        rc = ST_ENOMEM;
    if (rc < 0 || (rc = quic_conn_cid_add(c, &scid)) < 0 || (rc = quic_conn_cid_add(c, &hd->dcid)) < 0 ||
        (rc = quic_ep_addr_count(ep, remote, 1, 1)) < 0)
        goto fail;
    ngtcp2_conn_set_tls_native_handle(c->nc, c->octx);
    c->counted_hs = true;
    ep->handshakes++;
    ep->naccepted++;
    ep->stats.accepted++;
    list(c);
    *out = c;
    return ST_OK;
fail:
    quic_conn_unregister(c);
    conn_free(c);
    return rc;
}

int quic_connect(struct quic_conn **out, struct quic_ep *ep, const struct quic_addr *remote,
                 enum tls_kind expect_kind, const char *expect_name, const struct quic_conn_ops *ops,
                 void *arg, struct err *e)
{
    struct quic_addr to = *remote;
    char text[64];
    ngtcp2_settings st;
    ngtcp2_transport_params tp;
    ngtcp2_cid scid = {.datalen = QUIC_SCID_LEN}, dcid = {.datalen = QUIC_SCID_LEN};
    quic_addr_str(remote, text);
    if (ep->local.ss.ss_family == AF_INET6)
        quic_addr_map6(&to);
    if (to.ss.ss_family != ep->local.ss.ss_family)
        return err_set(e, ST_EINVAL,
                       "cannot reach %s from a socket bound to an IPv4 address; bind to [::] instead", text);
    struct quic_conn *c = conn_alloc(ep, &ep->local, &to);
    if (!c)
        return err_set(e, ST_ENOMEM, "no memory for a connection to %s", text);
    c->ops = ops;
    c->arg = arg;
    c->expect_kind = expect_kind;
    c->expect_any = expect_name == NULL;
    if (expect_name && !str_copy(c->expect_name, sizeof c->expect_name, expect_name)) {
        conn_free(c);
        return err_set(e, ST_EINVAL, "the name \"%s\" of the peer at %s is too long", expect_name, text);
    }
    ep->rng->fill(ep->rng->arg, scid.data, scid.datalen);
    ep->rng->fill(ep->rng->arg, dcid.data, dcid.datalen);
    make_settings(ep, &st, &tp);
    ngtcp2_path path = make_path(&c->local, &c->remote);
    int rc = make_ssl(c);
    if (rc == ST_OK && ngtcp2_conn_client_new(&c->nc, &dcid, &scid, &path, NGTCP2_PROTO_VER_V1,
                                              &quic_client_callbacks, &st, &tp, NULL, c) != 0)
        rc = ST_ENOMEM;
    if (rc == ST_OK)
        rc = quic_conn_cid_add(c, &scid);
    if (rc < 0) {
        conn_free(c);
        return err_set(e, rc, "cannot start a connection to %s: %s", text, status_name(rc));
    }
    ngtcp2_conn_set_tls_native_handle(c->nc, c->octx);
    list(c);
    *out = c;
    return ST_OK;
}

/* ---- reading ---- */

/* TLS alerts that speak of a certificate. */
static bool cert_alert(uint64_t alert)
{
    return (alert >= 41 && alert <= 49) || alert == 116;
}

static void clean_reason(char out[200], const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (; i < n && i < 199; i++)
        out[i] = p[i] >= 0x20 && p[i] < 0x7f ? (char)p[i] : '?';
    out[i] = '\0';
}

/* Our peers say "REASON_CODE: sentence". Moves the code out of the text; without one, `other` is it. */
static void take_reason_code(char code[40], char *text, const char *other)
{
    size_t n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");
    if (n < 3 || n > 39 || text[n] != ':' || text[n + 1] != ' ') {
        snprintf(code, 40, "%s", other);
        return;
    }
    memcpy(code, text, n);
    code[n] = '\0';
    memmove(text, text + n + 2, strlen(text + n + 2) + 1);
}

/* For a peer that says no more than the alert. */
static const char *alert_reason(uint64_t alert)
{
    switch (alert) {
    case 44:
        return "REVOKED";
    case 45:
        return "EXPIRED";
    case 48:
        return "UNKNOWN_CA";
    case 116:
        return "NO_CERTIFICATE";
    default:
        return "BAD_CERTIFICATE";
    }
}

static void peer_closed(struct quic_conn *c)
{
    const ngtcp2_ccerr *e = ngtcp2_conn_get_ccerr(c->nc);
    char buf[64], said[200], rc[40];
    const char *w = who(c, buf);
    uint64_t code = e->error_code, alert = code - 0x100;
    bool refused = e->type != NGTCP2_CCERR_TYPE_APPLICATION && code == NGTCP2_CONNECTION_REFUSED;
    bool cert =
        e->type != NGTCP2_CCERR_TYPE_APPLICATION && code >= 0x100 && code <= 0x1ff && cert_alert(alert);
    clean_reason(said, e->reason, e->reason ? e->reasonlen : 0);
    take_reason_code(rc, said,
                     refused                                    ? "REFUSED"
                     : cert                                     ? alert_reason(alert)
                     : e->type == NGTCP2_CCERR_TYPE_APPLICATION ? ""
                                                                : "PROTOCOL");
    if (c->got_reset)
        quic_conn_fail(c, QUIC_CLOSE_RESET, ST_EUNREACH, 0, QUIC_BYE_SILENT, 0, "PEER_RESTARTED",
                       "%s restarted and does not know this connection any more", w);
    else if (e->type == NGTCP2_CCERR_TYPE_APPLICATION)
        quic_conn_fail(c, QUIC_CLOSE_PEER, ST_ECLOSED, code, QUIC_BYE_SILENT, 0, rc, "%s",
                       said[0] ? said : "the peer closed the connection");
    else if (code == NGTCP2_NO_ERROR)
        quic_conn_fail(c, QUIC_CLOSE_PEER, ST_ECLOSED, code, QUIC_BYE_SILENT, 0, "",
                       "%s closed the connection", w);
    else if (refused)
        quic_conn_fail(c, QUIC_CLOSE_HANDSHAKE, ST_EUNREACH, code, QUIC_BYE_SILENT, 0, rc,
                       "%s refuses new connections: %s", w, said[0] ? said : "it is full or shutting down");
    else if (cert)
        quic_conn_fail(c, QUIC_CLOSE_TRUST, ST_ETRUST, code, QUIC_BYE_SILENT, 0, rc,
                       "%s refused our certificate (TLS alert %u)%s%s", w, (unsigned)alert,
                       said[0] ? ": " : "", said);
    else
        quic_conn_fail(c, c->told_up ? QUIC_CLOSE_ERROR : QUIC_CLOSE_HANDSHAKE, ST_EPROTO, code,
                       QUIC_BYE_SILENT, 0, rc, "%s ended the connection with transport error 0x%llx%s%s", w,
                       (unsigned long long)code, said[0] ? ": " : "", said);
}

static void tls_failed(struct quic_conn *c)
{
    char buf[64];
    const char *w = who(c, buf);
    int alert = ngtcp2_conn_get_tls_alert(c->nc);
    struct err e = {0};
    struct tls_identity unverified;
    ERR_clear_error();
    bool trust = tls_peer_identity(c->tls, c->ssl, &unverified, &e) < 0 &&
                 (cert_alert((uint64_t)alert) || SSL_get_verify_result(c->ssl) != X509_V_OK);
    if (trust)
        quic_conn_fail(c, QUIC_CLOSE_TRUST, ST_ETRUST, 0x100u + (unsigned)alert, QUIC_BYE_ALERT, alert,
                       e.reason, "%s: %s (TLS alert %d)", w, e.text, alert);
    else if (cert_alert((uint64_t)alert))
        quic_conn_fail(c, QUIC_CLOSE_TRUST, ST_ETRUST, 0x100u + (unsigned)alert, QUIC_BYE_ALERT, alert,
                       alert_reason((uint64_t)alert), "%s showed no acceptable certificate (TLS alert %d)", w,
                       alert);
    else
        quic_conn_fail(c, QUIC_CLOSE_HANDSHAKE, ST_EPROTO, 0x100u + (unsigned)alert, QUIC_BYE_ALERT, alert,
                       "TLS_FAILED", "the TLS handshake with %s failed (alert %d)", w, alert);
}

void quic_conn_liberr(struct quic_conn *c, int rv)
{
    char buf[64], t[64];
    const char *w = who(c, buf);
    switch (rv) {
    case NGTCP2_ERR_DRAINING:
        peer_closed(c);
        return;
    case NGTCP2_ERR_CRYPTO:
        tls_failed(c);
        return;
    case NGTCP2_ERR_IDLE_CLOSE:
        if (c->told_up) {
            quic_conn_fail(c, QUIC_CLOSE_IDLE, ST_EUNREACH, 0, QUIC_BYE_NOTHING, 0, "IDLE_TIMEOUT",
                           "%s has been silent for %llu s", w,
                           (unsigned long long)(c->ep->lim.idle_ns / NS_PER_S));
            return;
        }
        /* fall through */
    case NGTCP2_ERR_HANDSHAKE_TIMEOUT:
        quic_addr_str(&c->remote, t);
        quic_conn_fail(c, QUIC_CLOSE_HANDSHAKE, ST_EUNREACH, 0, QUIC_BYE_NOTHING, 0, "NO_ANSWER",
                       "no answer from %s; check that it runs, its address and the firewall (UDP)", t);
        return;
    case NGTCP2_ERR_DROP_CONN:
        quic_conn_fail(c, QUIC_CLOSE_HANDSHAKE, ST_EPROTO, 0, QUIC_BYE_NOTHING, 0, "PROTOCOL",
                       "%s sent an unusable first packet", w);
        return;
    case NGTCP2_ERR_RECV_VERSION_NEGOTIATION:
        quic_conn_fail(c, QUIC_CLOSE_HANDSHAKE, ST_EPROTO, 0, QUIC_BYE_NOTHING, 0, "WRONG_VERSION",
                       "%s does not speak QUIC version 1", w);
        return;
    case NGTCP2_ERR_NOMEM:
    case NGTCP2_ERR_CALLBACK_FAILURE: /* ours fail for lack of memory only */
        quic_conn_fail(c, QUIC_CLOSE_ERROR, ST_ENOMEM, 0, QUIC_BYE_LIBERR, NGTCP2_ERR_INTERNAL, "NO_MEMORY",
                       "no memory for the connection with %s", w);
        return;
    default:
        quic_conn_fail(c, c->told_up ? QUIC_CLOSE_ERROR : QUIC_CLOSE_HANDSHAKE, ST_EPROTO,
                       ngtcp2_err_infer_quic_transport_error_code(rv), QUIC_BYE_LIBERR, rv, "PROTOCOL",
                       "the connection with %s broke the protocol: %s", w, ngtcp2_strerror(rv));
    }
}

void quic_conn_read(struct quic_conn *c, const struct quic_addr *local, const struct quic_addr *remote,
                    uint8_t ecn, const uint8_t *pkt, size_t n)
{
    if (c->state > QUIC_ST_UP)
        return;
    /* A dialler's socket may be a wildcard: its path keeps the address it was made with. */
    struct quic_addr l = c->server ? *local : c->local, r = *remote;
    ngtcp2_path path = make_path(&l, &r);
    ngtcp2_pkt_info pi = {.ecn = ecn};
    int rv = ngtcp2_conn_read_pkt(c->nc, &path, &pi, pkt, n, quic_conn_ts(c));
    quic_ep_dirty(c);
    if (rv != 0 && rv != NGTCP2_ERR_CLOSING)
        quic_conn_liberr(c, rv);
}

void quic_conn_expired(struct quic_conn *c)
{
    quic_ep_dirty(c);
    if (c->state > QUIC_ST_UP)
        return;
    int rv = ngtcp2_conn_handle_expiry(c->nc, quic_conn_ts(c));
    if (rv != 0)
        quic_conn_liberr(c, rv);
}

/* ---- telling the application ---- */

static int check_peer(struct quic_conn *c, struct err *e)
{
    int rc = tls_peer_identity(c->tls, c->ssl, &c->peer, e);
    if (rc < 0 || c->server)
        return rc;
    if (c->peer.kind == c->expect_kind && (c->expect_any || strcmp(c->peer.name, c->expect_name) == 0))
        return ST_OK;
    return err_reason(e, ST_ETRUST, "WRONG_PEER", "%s answered where %s%s%s%s was expected",
                      c->peer.principal, kind_word(c->expect_kind),
                      c->expect_any || !c->expect_name[0] ? "" : " named \"",
                      c->expect_any ? "" : c->expect_name, c->expect_any || !c->expect_name[0] ? "" : "\"");
}

static void handshake_over(struct quic_conn *c)
{
    if (!c->counted_hs)
        return;
    c->counted_hs = false;
    c->ep->handshakes--;
    (void)!quic_ep_addr_count(c->ep, &c->remote, 0, -1); /* a key that is there needs no memory */
}

static void come_up(struct quic_conn *c)
{
    struct err e = {0};
    char addr[64];
    quic_addr_str(&c->remote, addr);
    handshake_over(c);
    if (check_peer(c, &e) < 0) {
        quic_conn_fail(c, QUIC_CLOSE_TRUST, ST_ETRUST, 0x100 + 42, QUIC_BYE_ALERT, 42 /* bad_certificate */,
                       e.reason, "%s: %s", addr, e.text);
        return;
    }
    c->state = QUIC_ST_UP;
    c->told_up = true;
    if (!c->server && c->ep->lim.keepalive_ns)
        ngtcp2_conn_set_keep_alive_timeout(c->nc, c->ep->lim.keepalive_ns);
    LOG_D(c->ep->log, "quic", "up conn=%llu peer=%s addr=%s", (unsigned long long)c->id, c->peer.principal,
          addr);
    if (c->ops->on_up)
        c->ops->on_up(c, c->arg);
}

bool quic_conn_has_upcalls(const struct quic_conn *c)
{
    if (c->state == QUIC_ST_HANDSHAKE)
        return c->secure;
    return c->done_head ||
           (c->state == QUIC_ST_UP && (c->credit || !TAILQ_EMPTY(&c->ev) || !STAILQ_EMPTY(&c->drx)));
}

void quic_conn_upcalls(struct quic_conn *c)
{
    struct quic_stream *s;
    struct quic_dgram *d;
    if (c->state == QUIC_ST_HANDSHAKE && c->secure)
        come_up(c);
    quic_stream_release_done(c);
    while (c->state == QUIC_ST_UP && (d = STAILQ_FIRST(&c->drx))) {
        STAILQ_REMOVE_HEAD(&c->drx, e);
        c->ndrx--;
        if (c->ops->on_datagram)
            c->ops->on_datagram(c, d->p, d->n, d->rx_ns, c->arg);
        free(d);
    }
    while (c->state == QUIC_ST_UP && (s = TAILQ_FIRST(&c->ev))) {
        s->in_ev = false;
        TAILQ_REMOVE(&c->ev, s, ev);
        quic_stream_upcalls(s);
    }
    if (c->state == QUIC_ST_UP && c->credit) { /* after the streams: what just ended made room, too */
        c->credit = false;
        if (c->ops->on_credit)
            c->ops->on_credit(c, c->arg);
    }
}

/* ---- ending ---- */

void quic_conn_fail(struct quic_conn *c, enum quic_close_kind kind, int status, uint64_t code,
                    enum quic_farewell bye, int bye_arg, const char *reason_code, const char *fmt, ...)
{
    va_list ap;
    if (c->state > QUIC_ST_UP)
        return;
    c->state = QUIC_ST_CLOSING;
    c->why = (struct quic_close){.kind = kind, .status = status, .code = code};
    snprintf(c->why.reason_code, sizeof c->why.reason_code, "%s", reason_code);
    c->bye = bye;
    c->bye_arg = bye_arg;
    va_start(ap, fmt);
    vsnprintf(c->why.reason, sizeof c->why.reason, fmt, ap);
    va_end(ap);
    quic_ep_dirty(c);
}

void quic_conn_close(struct quic_conn *c, uint64_t code, const char *reason)
{
    quic_conn_fail(c, QUIC_CLOSE_LOCAL, ST_ECLOSED, code, QUIC_BYE_APP, 0, "", "%s", reason ? reason : "");
}

void quic_conn_unregister(struct quic_conn *c)
{
    for (unsigned i = 0; i < c->ncids; i++)
        quic_ep_cid_del(c->ep, &c->cids[i]);
    for (unsigned i = 0; i < c->ntokens; i++)
        quic_ep_token_del(c->ep, c->tokens[i].data, c);
    c->ncids = c->ntokens = 0;
}

void quic_conn_bury(struct quic_conn *c)
{
    struct quic_ep *ep = c->ep;
    char addr[64];
    assert(c->state == QUIC_ST_CLOSED && !c->dirty);
    TAILQ_REMOVE(&ep->closed, c, all);
    quic_addr_str(&c->remote, addr);
    handshake_over(c);
    if (!c->told_up) {
        ep->stats.handshakes_failed++;
        ep->stats.handshakes_timed_out += c->server && !strcmp(c->why.reason_code, "NO_ANSWER");
        ep->stats.handshakes_broken += c->server && !strcmp(c->why.reason_code, "PROTOCOL");
        if (quic_ep_log_ok(ep))
            LOG_I(ep->log, "quic", "handshake_failed conn=%llu addr=%s reason=\"%s\"",
                  (unsigned long long)c->id, addr, c->why.reason);
    } else {
        LOG_D(ep->log, "quic", "closed conn=%llu peer=%s addr=%s reason=\"%s\"", (unsigned long long)c->id,
              c->peer.principal, addr, c->why.reason);
    }
    for (struct quic_stream *s; (s = TAILQ_FIRST(&c->streams));)
        quic_stream_last_upcall(s);
    quic_stream_release_done(c);
    /* Of accepted connections that never came up only those matter whose certificate we refused. */
    bool refused = c->why.kind == QUIC_CLOSE_TRUST && c->bye == QUIC_BYE_ALERT;
    if ((c->told_up || !c->server || refused) && c->ops->on_closed)
        c->ops->on_closed(c, &c->why, c->arg);
    if (c->server) {
        ep->naccepted--;
        (void)!quic_ep_addr_count(ep, &c->remote, -1, 0);
    }
    conn_free(c);
}

/* ---- small things ---- */

void quic_conn_set(struct quic_conn *c, const struct quic_conn_ops *ops, void *arg)
{
    c->ops = ops;
    c->arg = arg;
}

const struct tls_identity *quic_conn_peer(const struct quic_conn *c)
{
    return &c->peer;
}

const struct quic_addr *quic_conn_remote(const struct quic_conn *c)
{
    return &c->remote;
}

uint64_t quic_conn_id(const struct quic_conn *c)
{
    return c->id;
}

int quic_conn_send_datagram(struct quic_conn *c, const void *p, size_t n)
{
    if (c->state > QUIC_ST_UP)
        return ST_ECLOSED;
    if (c->state != QUIC_ST_UP || c->ndtx >= QUIC_DGRAM_QUEUE)
        return ST_EAGAIN;
    const ngtcp2_transport_params *tp = ngtcp2_conn_get_remote_transport_params(c->nc);
    if (!tp || tp->max_datagram_frame_size == 0)
        return ST_ENOTSUP;
    /* frame type and length, and the header and tag of a packet of the smallest size */
    if (n + 9 > tp->max_datagram_frame_size || n > NGTCP2_MAX_UDP_PAYLOAD_SIZE - 64)
        return ST_ELIMIT;
    struct quic_dgram *d = malloc(sizeof *d + n);
    if (!d)
        return ST_ENOMEM;
    d->n = n;
    d->rx_ns = 0;
    memcpy(d->p, p, n);
    STAILQ_INSERT_TAIL(&c->dtx, d, e);
    c->ndtx++;
    quic_ep_dirty(c);
    return ST_OK;
}

void quic_conn_info(const struct quic_conn *c, struct quic_conn_info *out)
{
    ngtcp2_conn_info i;
    ngtcp2_conn_get_conn_info(c->nc, &i);
    *out = (struct quic_conn_info){
        .srtt_ns = i.smoothed_rtt,
        .min_rtt_ns = i.min_rtt == UINT64_MAX ? 0 : i.min_rtt,
        .rttvar_ns = i.rttvar,
        .cwnd = i.cwnd,
        .bytes_in_flight = i.bytes_in_flight,
        .pkt_sent = i.pkt_sent,
        .pkt_recv = i.pkt_recv,
        .pkt_lost = i.pkt_lost,
        .bytes_sent = i.bytes_sent,
        .bytes_recv = i.bytes_recv,
        .path_mtu = ngtcp2_conn_get_path_max_tx_udp_payload_size(c->nc),
    };
}
