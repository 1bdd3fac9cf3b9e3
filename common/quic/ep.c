/*
 * The endpoint: connection ids, admission of new connections, and the turn that runs everything in order:
 * timers, upcalls, egress, reaping. See quic_priv.h.
 */
#include <assert.h>

#include "common/quic/quic_priv.h"

enum { MAX_HANDSHAKE_FACTOR = 4, TOKEN_LIFE_S = 10 };

void quic_limits_control(struct quic_limits *l)
{
    *l = (struct quic_limits){
        .stream_window = 256 << 10,
        .conn_window = 1 << 20,
        .max_streams = 128,
        .send_queue = 256 << 10,
        .max_conns = 4096,
        .max_conns_per_addr = 1024,
        .max_handshakes = 64,
        .idle_ns = 15 * NS_PER_S,
        .handshake_ns = 5 * NS_PER_S,
        .keepalive_ns = 5 * NS_PER_S,
        .max_datagram_frame = 1200,
    };
}

void quic_limits_bulk(struct quic_limits *l)
{
    quic_limits_control(l);
    l->stream_window = l->conn_window = 1 << 20;
    l->max_stream_window = l->max_conn_window = 4 << 20;
    l->max_streams = 16;
    l->send_queue = 1 << 20;
}

/* ---- life ---- */

static void ep_release(struct quic_ep *ep)
{
    tls_ctx_unref(ep->tls);
    map_free(ep->cids);
    map_free(ep->stub_cids);
    map_free(ep->reset_tokens);
    map_free(ep->per_addr);
    heap_fini(&ep->timers);
    heap_fini(&ep->stub_timers);
    for (struct quic_seg *g; (g = ep->segs);) {
        ep->segs = g->next;
        free(g);
    }
    free(ep->held.data);
    free(ep->tx);
    free(ep);
}

int quic_ep_new(struct quic_ep **out, const struct quic_ep_cfg *cfg, struct err *e)
{
    struct quic_ep *ep = calloc(1, sizeof *ep);
    if (!ep)
        return err_set(e, ST_ENOMEM, "no memory for a QUIC endpoint");
    (void)ngtcp2_crypto_ossl_init(); /* looks algorithms up once instead of for each connection */
    ep->clock = cfg->clock;
    ep->rng = cfg->rng;
    ep->log = cfg->log;
    ep->tls = tls_ctx_ref(cfg->tls);
    ep->lim = cfg->limits;
    memcpy(ep->reset_secret, cfg->reset_secret, sizeof ep->reset_secret);
    ep->rng->fill(ep->rng->arg, ep->token_secret, sizeof ep->token_secret);
    ep->accept = cfg->accept;
    ep->accept_ops = cfg->accept_ops;
    ep->accept_arg = cfg->accept_arg;
    ep->link = cfg->link;
    ep->link_arg = cfg->link_arg;
    ep->local = cfg->local;
    ep->id_base = (rng_u64(ep->rng) >> 40)
                  << 32; /* endpoints of one process do not share connection numbers */
    TAILQ_INIT(&ep->conns);
    TAILQ_INIT(&ep->dirty);
    TAILQ_INIT(&ep->closed);
    TAILQ_INIT(&ep->stubs);
    ep->tx = malloc(QUIC_TX_BUF);
    ep->held.data = malloc(QUIC_TX_BUF);
    if (!ep->tx || !ep->held.data || map_new(&ep->cids, ep->rng) < 0 ||
        map_new(&ep->stub_cids, ep->rng) < 0 || map_new(&ep->reset_tokens, ep->rng) < 0 ||
        map_new(&ep->per_addr, ep->rng) < 0) {
        ep_release(ep);
        return err_set(e, ST_ENOMEM, "no memory for a QUIC endpoint");
    }
    *out = ep;
    return ST_OK;
}

void quic_ep_free(struct quic_ep *ep, uint64_t code, const char *reason)
{
    struct quic_conn *c;
    if (!ep)
        return;
    assert(!ep->in_turn);
    ep->accept = false;
    /* An on_closed may dial again: until none is left, each round closes what there is. */
    while (!TAILQ_EMPTY(&ep->conns) || !TAILQ_EMPTY(&ep->closed)) {
        TAILQ_FOREACH(c, &ep->conns, all)
        quic_conn_close(c, code, reason);
        ep->held.on = false; /* last chance for the close packets */
        quic_ep_turn(ep);
    }
    quic_stub_free_all(ep);
    ep->link->set_timer(ep->link_arg, UINT64_MAX);
    ep_release(ep);
}

void quic_ep_set_tls(struct quic_ep *ep, struct tls_ctx *tls)
{
    struct tls_ctx *old = ep->tls;
    ep->tls = tls_ctx_ref(tls);
    tls_ctx_unref(old);
}

unsigned quic_ep_close_bad(struct quic_ep *ep)
{
    struct quic_conn *c;
    struct err e;
    unsigned n = 0;
    TAILQ_FOREACH(c, &ep->conns, all)
    {
        e = (struct err){0};
        if (c->state != QUIC_ST_UP || tls_identity_still_good(ep->tls, &c->peer, &e) == ST_OK)
            continue;
        quic_conn_fail(c, QUIC_CLOSE_TRUST, ST_ETRUST, 0x10e, QUIC_BYE_APP, 0, e.reason, "%s", e.text);
        n++;
    }
    return n;
}

void quic_ep_drain(struct quic_ep *ep)
{
    ep->accept = false;
}

size_t quic_ep_conns(const struct quic_ep *ep)
{
    return ep->nconns;
}

void quic_ep_stats(const struct quic_ep *ep, struct quic_ep_stats *out)
{
    *out = ep->stats;
}

/* ---- bookkeeping ---- */

uint64_t quic_ep_now(struct quic_ep *ep)
{
    if (!ep->batch) {
        uint64_t now = clock_ns(ep->clock);
        if (now > ep->now_ns)
            ep->now_ns = now;
        ep->batch = ep->in_turn; /* outside of a turn nothing would end a batch, input apart */
    }
    return ep->now_ns;
}

void quic_ep_wake(struct quic_ep *ep)
{
    if (ep->in_turn || ep->kicked)
        return;
    ep->kicked = true;
    ep->link->kick(ep->link_arg);
}

void quic_ep_dirty(struct quic_conn *c)
{
    struct quic_ep *ep = c->ep;
    if (!c->dirty && c->state != QUIC_ST_CLOSED) {
        c->dirty = true;
        TAILQ_INSERT_TAIL(&ep->dirty, c, dirty_e);
    }
    quic_ep_wake(ep);
}

int quic_ep_cid_add(struct quic_ep *ep, const ngtcp2_cid *cid, struct quic_conn *c)
{
    return map_put(ep->cids, cid->data, cid->datalen, c, NULL);
}

void quic_ep_cid_del(struct quic_ep *ep, const ngtcp2_cid *cid)
{
    map_del(ep->cids, cid->data, cid->datalen);
}

/* First come, first served: a peer that announces the token of another peer gains nothing. */
int quic_ep_token_add(struct quic_ep *ep, const uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN],
                      struct quic_conn *c)
{
    if (map_get(ep->reset_tokens, token, NGTCP2_STATELESS_RESET_TOKENLEN))
        return ST_OK;
    return map_put(ep->reset_tokens, token, NGTCP2_STATELESS_RESET_TOKENLEN, c, NULL);
}

void quic_ep_token_del(struct quic_ep *ep, const uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN],
                       const struct quic_conn *c)
{
    if (map_get(ep->reset_tokens, token, NGTCP2_STATELESS_RESET_TOKENLEN) == c)
        map_del(ep->reset_tokens, token, NGTCP2_STATELESS_RESET_TOKENLEN);
}

/* Both numbers lie in the map's pointer itself. */
struct quic_addr_use quic_ep_addr_use(struct quic_ep *ep, const struct quic_addr *a)
{
    uint8_t key[16];
    quic_addr_key(a, key);
    uintptr_t v = (uintptr_t)map_get(ep->per_addr, key, sizeof key);
    return (struct quic_addr_use){.conns = (uint32_t)v, .handshakes = (uint32_t)(v >> 32)};
}

int quic_ep_addr_count(struct quic_ep *ep, const struct quic_addr *a, int conns, int handshakes)
{
    uint8_t key[16];
    struct quic_addr_use u = quic_ep_addr_use(ep, a);
    u.conns += (uint32_t)conns;
    u.handshakes += (uint32_t)handshakes;
    quic_addr_key(a, key);
    if (u.conns == 0) {
        map_del(ep->per_addr, key, sizeof key);
        return ST_OK;
    }
    return map_put(ep->per_addr, key, sizeof key, (void *)(u.conns | (uintptr_t)u.handshakes << 32), NULL);
}

bool quic_ep_log_ok(struct quic_ep *ep)
{
    unsigned suppressed = 0;
    bool ok = log_limited(&ep->log_limit, quic_ep_now(ep), 10, &suppressed);
    if (ok && suppressed)
        LOG_I(ep->log, "quic", "lines_suppressed n=%u", suppressed);
    return ok;
}

/* ---- sending ---- */

static int send_now(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                    uint8_t ecn, const uint8_t *p, size_t n, size_t gso)
{
    int rc = ep->link->send(ep->link_arg, local, remote, ecn, p, n, gso);
    if (rc == ST_EAGAIN)
        return rc;
    size_t dgrams = (n + gso - 1) / gso;
    if (rc < 0) {
        ep->stats.tx_lost_local += dgrams; /* as good as lost on the way: recovery repairs it */
    } else {
        ep->stats.tx_datagrams += dgrams;
        ep->stats.tx_bytes += n;
    }
    return ST_OK;
}

void quic_ep_send(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                  uint8_t ecn, const uint8_t *p, size_t n, size_t gso)
{
    assert(!ep->held.on && n <= QUIC_TX_BUF);
    if (gso == 0)
        gso = n;
    if (send_now(ep, local, remote, ecn, p, n, gso) != ST_EAGAIN)
        return;
    ep->held.on = true;
    ep->held.local = *local;
    ep->held.remote = *remote;
    ep->held.ecn = ecn;
    ep->held.len = n;
    ep->held.gso = gso;
    memcpy(ep->held.data, p, n); /* ngtcp2 already counts them as in flight */
}

void quic_ep_writable(struct quic_ep *ep)
{
    if (ep->held.on) {
        if (send_now(ep, &ep->held.local, &ep->held.remote, ep->held.ecn, ep->held.data, ep->held.len,
                     ep->held.gso) == ST_EAGAIN)
            return;
        ep->held.on = false;
    }
    quic_ep_turn(ep);
}

/* ---- ingress ---- */

/* A Retry token proves the address. 1 = valid (odcid filled), 0 = none, negative = forged or stale. */
static int check_token(struct quic_ep *ep, const struct quic_addr *remote, const ngtcp2_pkt_hd *hd,
                       ngtcp2_cid *odcid)
{
    if (hd->tokenlen == 0 || hd->token[0] != NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2)
        return 0;
    int rv = ngtcp2_crypto_verify_retry_token2(odcid, hd->token, hd->tokenlen, ep->token_secret,
                                               sizeof ep->token_secret, hd->version,
                                               (const struct sockaddr *)&remote->ss, remote->len, &hd->dcid,
                                               TOKEN_LIFE_S * NGTCP2_SECONDS, quic_ep_now(ep));
    return rv == 0 ? 1 : rv == NGTCP2_CRYPTO_ERR_UNREADABLE_TOKEN ? 0 : ST_EPROTO;
}

static void admit(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                  uint8_t ecn, const uint8_t *pkt, size_t n)
{
    ngtcp2_pkt_hd hd;
    ngtcp2_cid odcid;
    struct quic_conn *c;
    if (ngtcp2_accept(&hd, pkt, n) != 0)
        return;
    int token = check_token(ep, remote, &hd, &odcid);
    if (token < 0) {
        quic_send_refusal(ep, local, remote, &hd, NGTCP2_INVALID_TOKEN,
                          "STALE_TOKEN: the retry token is stale");
        return;
    }
    if (!ep->accept) {
        quic_send_refusal(ep, local, remote, &hd, NGTCP2_CONNECTION_REFUSED,
                          "DRAINING: it takes no new connections");
        return;
    }
    if (ep->naccepted >= ep->lim.max_conns) {
        quic_send_refusal(ep, local, remote, &hd, NGTCP2_CONNECTION_REFUSED,
                          "FULL: all its connections are taken");
        return;
    }
    struct quic_addr_use use = quic_ep_addr_use(ep, remote);
    if (use.conns >= ep->lim.max_conns_per_addr) {
        quic_send_refusal(ep, local, remote, &hd, NGTCP2_CONNECTION_REFUSED,
                          "FULL_FOR_ADDRESS: too many connections from this address");
        return;
    }
    if (ep->handshakes >= ep->lim.max_handshakes && token == 0) {
        quic_send_retry(ep, local, remote, &hd, n);
        return;
    }
    /* One address, however well it proves itself, leaves room for the others. */
    if (ep->handshakes >= ep->lim.max_handshakes * MAX_HANDSHAKE_FACTOR ||
        use.handshakes >= ep->lim.max_handshakes) {
        ep->stats.refused++; /* it will send its Initial again */
        return;
    }
    if (quic_conn_accept(ep, local, remote, &hd, token ? &odcid : NULL, &c) < 0) {
        ep->stats.refused++;
        return;
    }
    quic_conn_read(c, local, remote, ecn, pkt, n);
}

void quic_ep_input(struct quic_ep *ep, const struct quic_addr *local, const struct quic_addr *remote,
                   uint8_t ecn, const uint8_t *pkt, size_t n)
{
    ngtcp2_version_cid vc;
    void *p;
    (void)quic_ep_now(ep);
    ep->batch = true; /* the packets of one read share a timestamp, until the turn that follows */
    ep->stats.rx_datagrams++;
    ep->stats.rx_bytes += n;
    if (n == 0)
        return;
    int rv = ngtcp2_pkt_decode_version_cid(&vc, pkt, n, QUIC_SCID_LEN);
    if (rv == NGTCP2_ERR_VERSION_NEGOTIATION) {
        if (ep->accept && n >= NGTCP2_MAX_UDP_PAYLOAD_SIZE)
            quic_send_version_negotiation(ep, local, remote, &vc);
        return;
    }
    if (rv != 0)
        return;
    if ((p = map_get(ep->cids, vc.dcid, vc.dcidlen)))
        quic_conn_read(p, local, remote, ecn, pkt, n);
    else if ((p = map_get(ep->stub_cids, vc.dcid, vc.dcidlen)))
        quic_stub_input(ep, p);
    else if (!(pkt[0] & 0x80) && n >= NGTCP2_STATELESS_RESET_TOKENLEN + NGTCP2_MIN_STATELESS_RESET_RANDLEN &&
             (p = map_get(ep->reset_tokens, pkt + n - NGTCP2_STATELESS_RESET_TOKENLEN,
                          NGTCP2_STATELESS_RESET_TOKENLEN)))
        quic_conn_read(p, local, remote, ecn, pkt, n); /* a stateless reset: its connection id is random */
    else if (!(pkt[0] & 0x80))
        quic_send_reset(ep, local, remote, vc.dcid, vc.dcidlen, n);
    else if (vc.version == NGTCP2_PROTO_VER_V1 && ep->accept_ops)
        admit(ep, local, remote, ecn, pkt, n);
}

/* ---- the turn ---- */

static void expire(struct quic_ep *ep)
{
    for (struct heap_node *t; (t = heap_top(&ep->timers)) && t->key <= ep->now_ns;) {
        heap_del(&ep->timers, t);
        quic_conn_expired(QUIC_OWNER(t, struct quic_conn, timer));
    }
    quic_stub_expire(ep, ep->now_ns);
}

static void arm(struct quic_conn *c)
{
    struct quic_ep *ep = c->ep;
    uint64_t at = ngtcp2_conn_get_expiry(c->nc);
    /* Without a backlog a delayed ACK waits for the next packet rather than for its own microseconds; and a
     * blocked socket must not make a past pacing deadline spin. */
    if (((c->tx_backlog == 0 && c->ndtx == 0) || ep->held.on) && at < ep->now_ns + NS_PER_MS)
        at = ep->now_ns + NS_PER_MS;
    if (at == UINT64_MAX)
        heap_del(&ep->timers, &c->timer);
    else if ((c->timer.pos == 0 || c->timer.key != at) && heap_set(&ep->timers, &c->timer, at) < 0)
        quic_conn_fail(c, QUIC_CLOSE_ERROR, ST_ENOMEM, 0, QUIC_BYE_LIBERR, NGTCP2_ERR_INTERNAL, "NO_MEMORY",
                       "no memory for a timer");
}

/* Each connection that was dirty at the start gets one visit; what dirties itself again waits for the next
 * turn. */
static void egress(struct quic_ep *ep)
{
    struct quic_conn_list now;
    struct quic_conn *c;
    TAILQ_INIT(&now);
    TAILQ_CONCAT(&now, &ep->dirty, dirty_e);
    while ((c = TAILQ_FIRST(&now))) {
        TAILQ_REMOVE(&now, c, dirty_e);
        c->dirty = false;
        bool more = false;
        if (c->state <= QUIC_ST_UP) {
            more = quic_conn_egress(c);
            arm(c);
        }
        if (c->state == QUIC_ST_CLOSING) {
            quic_conn_farewell(c);
            if (c->dirty) {
                c->dirty = false;
                TAILQ_REMOVE(&ep->dirty, c, dirty_e);
            }
            c->state = QUIC_ST_CLOSED;
            heap_del(&ep->timers, &c->timer);
            TAILQ_REMOVE(&ep->conns, c, all);
            ep->nconns--;
            TAILQ_INSERT_TAIL(&ep->closed, c, all);
        } else if (more || quic_conn_has_upcalls(c)) {
            quic_ep_dirty(c);
        }
    }
}

static void arm_link(struct quic_ep *ep)
{
    uint64_t at = UINT64_MAX;
    struct heap_node *t;
    if ((t = heap_top(&ep->timers)))
        at = t->key;
    if ((t = heap_top(&ep->stub_timers)) && t->key < at)
        at = t->key;
    ep->link->set_timer(ep->link_arg, at);
}

/* While the socket is blocked a dirty connection is worth a turn only if it has something to tell or to end.
 */
static bool work_left(const struct quic_ep *ep)
{
    const struct quic_conn *c;
    if (!ep->held.on)
        return !TAILQ_EMPTY(&ep->dirty);
    TAILQ_FOREACH(c, &ep->dirty, dirty_e)
    if (c->state > QUIC_ST_UP || quic_conn_has_upcalls(c))
        return true;
    return false;
}

void quic_ep_turn(struct quic_ep *ep)
{
    struct quic_conn *c;
    if (ep->in_turn)
        return;
    ep->in_turn = true;
    ep->kicked = false;
    ep->batch = false;
    (void)quic_ep_now(ep);
    expire(ep);
    TAILQ_FOREACH(c, &ep->dirty, dirty_e) /* grows at its tail while upcalls touch other connections */
    quic_conn_upcalls(c);
    egress(ep);
    while ((c = TAILQ_FIRST(&ep->closed)))
        quic_conn_bury(c);
    arm_link(ep);
    ep->in_turn = false;
    ep->batch = false;
    if (work_left(ep))
        quic_ep_wake(ep);
}
