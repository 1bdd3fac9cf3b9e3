/* Endpoints on a simulated network: every case is decided by its seed, and time is virtual. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/quic/simnet.h"

/* ---- cases ---- */

static void test_echo(void **state)
{
    struct net n;
    struct xfer x = {0}, r = {.by_ref = true};
    struct quic_conn_info i;
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    assert_string_equal(quic_conn_peer(n.s.app.conn)->principal, "node/dione");
    assert_int_equal(xfer_start(&x, n.c.app.conn, 300000), ST_OK);
    assert_int_equal(xfer_start(&r, n.c.app.conn, 300000), ST_OK);
    assert_true(sim_run(n.sim, 10 * SEC, xfer_closed, &x));
    assert_true(sim_run(n.sim, 10 * SEC, xfer_closed, &r));
    assert_true(xfer_ok(&x));
    assert_true(xfer_ok(&r));
    assert_int_equal(r.refs_done, (300000 + 8191) / 8192);
    assert_true(sim_run(n.sim, SEC, NULL, NULL) || n.s.app.streams_closed == 2);
    quic_conn_info(n.c.app.conn, &i);
    assert_in_range(i.min_rtt_ns, 2 * MS, 4 * MS);
    assert_int_equal(quic_ep_conns(n.s.ep), 1);
    net_stop(&n);
    assert_int_equal(n.c.app.closes, 1);
}

static void lossy(uint64_t seed, unsigned loss_ppm, uint64_t bytes)
{
    struct net n;
    struct xfer x[3] = {{0}};
    struct sim_cfg cfg = {
        .seed = seed, .delay_ns = MS, .jitter_ns = MS / 2, .loss_ppm = loss_ppm, .dup_ppm = 20000};
    struct quic_conn_info i;
    net_prepare(&n, &cfg);
    net_start(&n);
    up(&n);
    for (int k = 0; k < 3; k++)
        assert_int_equal(xfer_start(&x[k], n.c.app.conn, bytes), ST_OK);
    for (int k = 0; k < 3; k++) {
        if (!sim_run(n.sim, 600 * SEC, xfer_closed, &x[k]) || !xfer_ok(&x[k]))
            fail_msg("seed %llu: stream %d got %llu of %llu%s", (unsigned long long)seed, k,
                     (unsigned long long)x[k].got, (unsigned long long)bytes, x[k].bad ? ", damaged" : "");
    }
    quic_conn_info(n.c.app.conn, &i);
    assert_true(i.pkt_lost > 0);
    net_stop(&n);
}

static void test_loss(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++)
        lossy(seed, 50000, 1 << 20);
    lossy(99, 200000, 100000);
}

static void test_handshake_under_loss(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct net n;
        struct sim_cfg cfg = {
            .seed = seed, .delay_ns = MS, .jitter_ns = MS, .loss_ppm = 200000, .dup_ppm = 50000};
        net_prepare(&n, &cfg);
        n.s.cfg.limits.handshake_ns = n.c.cfg.limits.handshake_ns = 30 * SEC;
        n.s.cfg.limits.idle_ns = n.c.cfg.limits.idle_ns = 30 * SEC;
        net_start(&n);
        assert_int_equal(dial_as(&n, TLS_COORDINATOR, NULL), ST_OK);
        if (!sim_run(n.sim, 30 * SEC, both_up, &n))
            fail_msg("seed %llu: %s", (unsigned long long)seed, n.c.app.why.reason);
        net_stop(&n);
    }
}

static void test_no_answer(void **state)
{
    struct net n;
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    sim_port_cut(n.s.port, true);
    assert_int_equal(dial_as(&n, TLS_COORDINATOR, NULL), ST_OK);
    assert_true(sim_run(n.sim, 6 * SEC, client_closed, &n));
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_HANDSHAKE);
    assert_int_equal(n.c.app.why.status, ST_EUNREACH);
    assert_string_equal(n.c.app.why.reason_code, "NO_ANSWER");
    assert_non_null(strstr(n.c.app.why.reason, "10.0.0.1:7433"));
    net_stop(&n);
}

static void test_idle(void **state)
{
    struct net n;
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    assert_false(sim_run(n.sim, 60 * SEC, client_closed, &n)); /* keepalive holds it */
    assert_int_equal(n.s.app.closes, 0);
    sim_port_cut(n.c.port, true);
    assert_true(sim_run(n.sim, 16 * SEC, client_closed, &n));
    assert_true(sim_run(n.sim, 6 * SEC, server_closed, &n));
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_IDLE);
    assert_int_equal(n.s.app.why.kind, QUIC_CLOSE_IDLE);
    assert_int_equal(quic_ep_conns(n.s.ep), 0);
    net_stop(&n);
}

static void test_close(void **state)
{
    struct net n;
    struct xfer x = {.hold = true};
    struct quic_stream *none;
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 50000), ST_OK);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_int_equal(n.s.app.streams, 1);
    struct quic_conn *sc = n.s.app.conn;
    quic_conn_close(sc, 9, "shutting down");
    quic_conn_close(sc, 10, "twice");
    assert_int_equal(quic_stream_open(&none, sc, NULL, NULL), ST_ECLOSED);
    assert_int_equal(n.s.app.closes, 0); /* never inline */
    assert_true(sim_run(n.sim, SEC, client_closed, &n));
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_PEER);
    assert_int_equal(n.c.app.why.code, 9);
    assert_string_equal(n.c.app.why.reason, "shutting down");
    assert_string_equal(n.c.app.why.reason_code, "");
    assert_int_equal(n.s.app.why.kind, QUIC_CLOSE_LOCAL);
    assert_true(x.closed);
    assert_int_equal(n.s.app.streams_closed, 1);
    net_stop(&n);
}

/* The first close packet is lost: the stub answers the peer's next packet with it. */
static void test_close_lost(void **state)
{
    struct net n;
    struct xfer x = {0};
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    sim_run(n.sim, SEC, NULL, NULL);
    sim_port_cut(n.s.port, true);
    quic_conn_close(n.s.app.conn, 9, "gone");
    assert_true(sim_run(n.sim, MS, server_closed, &n));
    sim_port_cut(n.s.port, false);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 10), ST_OK);
    assert_true(sim_run(n.sim, SEC, client_closed, &n));
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_PEER);
    assert_int_equal(n.c.app.why.code, 9);
    net_stop(&n);
}

static void test_close_on_up(void **state)
{
    struct net n;
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.close_on_up = true;
    net_start(&n);
    assert_int_equal(dial_as(&n, TLS_COORDINATOR, NULL), ST_OK);
    assert_true(sim_run(n.sim, 2 * SEC, client_closed, &n));
    assert_int_equal(n.c.app.ups, 0);
    assert_int_equal(n.c.app.why.code, 7);
    assert_int_equal(n.s.app.closes, 1);
    net_stop(&n);
}

static void test_reset(void **state)
{
    struct net n;
    struct xfer x = {0}, y = {0};
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.hold = true;
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 1 << 20), ST_OK);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_non_null(n.s.app.last);
    quic_stream_reset(n.s.app.last, 77);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x));
    assert_true(x.reset);
    assert_int_equal(x.reset_code, 77);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_int_equal(n.s.app.streams_closed, 1);

    /* The other way: cancelling a call. The connection goes on, and its credit is whole again. */
    assert_int_equal(xfer_start(&y, n.c.app.conn, 1 << 20), ST_OK);
    sim_run(n.sim, SEC, NULL, NULL);
    quic_stream_reset(y.s, 5);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &y));
    assert_false(y.reset);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_int_equal(n.s.app.streams_closed, 2);
    n.s.app.hold = false;
    for (int i = 0; i < 8; i++) {
        struct xfer z = {0};
        assert_int_equal(xfer_start(&z, n.c.app.conn, 512 << 10), ST_OK);
        assert_true(sim_run(n.sim, 10 * SEC, xfer_closed, &z));
        assert_true(xfer_ok(&z));
    }
    net_stop(&n);
}

static void test_ignored_stream(void **state)
{
    struct net n;
    struct xfer x = {0};
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.ignore_streams = true;
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 1000), ST_OK);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x));
    assert_true(x.reset);
    net_stop(&n);
}

static void test_backpressure(void **state)
{
    struct net n;
    struct xfer x = {0};
    const uint64_t total = 2 << 20;
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.hold = true;
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, total), ST_OK);
    assert_true(x.sent < total); /* the queue is bounded */
    sim_run(n.sim, 5 * SEC, NULL, NULL);
    /* Nothing was consumed: one stream window left us, and one queue waits. */
    assert_true(x.sent <= n.s.cfg.limits.stream_window + n.c.cfg.limits.send_queue);
    assert_true(quic_stream_queued(x.s) > 0);
    assert_int_equal(x.got, 0);
    sim_run(n.sim, 60 * SEC, NULL, NULL); /* standing still is no reason to fail */
    assert_int_equal(n.c.app.closes, 0);
    peer_resume(&n.s.app);
    assert_true(sim_run(n.sim, 60 * SEC, xfer_closed, &x));
    assert_true(xfer_ok(&x));
    net_stop(&n);
}

/* Reads on until n bytes have been consumed. */
static size_t drain_until(struct quic_stream *s, size_t n)
{
    const uint8_t *p;
    bool fin;
    size_t done = 0;
    for (size_t got; done < n && (got = quic_stream_peek(s, &p, &fin)) > 0;) {
        got = got < n - done ? got : n - done;
        quic_stream_consume(s, got);
        done += got;
    }
    return done;
}

/* A finished stream with unread bytes stays until they are read. */
static void test_unread_fin(void **state)
{
    struct net n;
    struct xfer x = {.hold = true};
    const uint8_t *b;
    bool fin;
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 5000), ST_OK);
    sim_run(n.sim, 5 * SEC, NULL, NULL);
    assert_false(x.closed);
    size_t got = drain_until(x.s, 4000);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_false(x.closed);
    assert_int_equal(got + quic_stream_peek(x.s, &b, &fin), 5000);
    assert_true(fin);
    quic_stream_consume(x.s, 5000 - got);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x));
    net_stop(&n);
}

/* The caller sent all and then gives up: the callee hears of it once, though nothing of it was read. */
static void test_stop_sending(void **state)
{
    struct net n;
    struct xfer x = {0};
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.hold = true;
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 1000), ST_OK);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_int_equal(n.s.app.resets, 0);
    quic_stream_reset(x.s, 0x101);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_true(x.closed);
    assert_int_equal(n.s.app.resets, 1);
    assert_int_equal(n.s.app.reset_code, 0x101);
    assert_int_equal(n.s.app.streams_closed, 1);
    net_stop(&n);
}

/* Bytes peeked before a reset may still be given back after it: their credit is not given twice. */
static void test_consume_after_reset(void **state)
{
    struct net n;
    struct xfer x = {0}, y = {0};
    const uint8_t *b;
    bool fin;
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.hold = true;
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 1 << 20), ST_OK);
    sim_run(n.sim, SEC, NULL, NULL);
    struct quic_stream *s = n.s.app.last;
    size_t got = drain_until(s, n.s.cfg.limits.stream_window / 2);
    assert_int_equal(got, n.s.cfg.limits.stream_window / 2);
    got = quic_stream_peek(s, &b, &fin);
    assert_true(got > 0);
    quic_stream_reset(s, 3);
    quic_stream_consume(s, got);
    assert_int_equal(quic_stream_peek(s, &b, &fin), 0);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x));
    n.s.app.hold = false;
    assert_int_equal(xfer_start(&y, n.c.app.conn, 2 << 20), ST_OK);
    assert_true(sim_run(n.sim, 60 * SEC, xfer_closed, &y));
    assert_true(xfer_ok(&y));
    net_stop(&n);
}

static void test_stream_limit(void **state)
{
    struct net n;
    struct xfer x[9] = {{0}};
    (void)state;
    net_prepare(&n, &calm);
    n.s.cfg.limits.max_streams = 8;
    n.s.app.hold = true;
    net_start(&n);
    up(&n);
    for (int i = 0; i < 8; i++)
        assert_int_equal(xfer_start(&x[i], n.c.app.conn, 10), ST_OK);
    assert_int_equal(xfer_start(&x[8], n.c.app.conn, 10), ST_EAGAIN);
    sim_run(n.sim, SEC, NULL, NULL);
    quic_stream_reset(x[0].s, 1);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x[0]));
    sim_run(n.sim, SEC, NULL, NULL);
    assert_int_equal(n.s.app.streams_closed, 1);
    assert_int_equal(xfer_start(&x[8], n.c.app.conn, 10), ST_OK);
    assert_int_equal(xfer_start(&x[0], n.c.app.conn, 10), ST_EAGAIN);
    net_stop(&n);
}

static void restart_server(struct net *n, bool same_secret)
{
    sim_port_cut(n->s.port, true); /* a crash: no close leaves the machine */
    side_stop(&n->s);
    if (!same_secret)
        memset(n->s.cfg.reset_secret, 0x77, 32);
    side_start(n, &n->s, SRV);
}

static void test_stateless_reset(void **state)
{
    struct net n;
    struct xfer x = {0};
    struct quic_ep_stats st;
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    sim_run(n.sim, SEC, NULL, NULL);
    restart_server(&n, true);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 100), ST_OK);
    assert_true(sim_run(n.sim, SEC, client_closed, &n));
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_RESET);
    assert_string_equal(n.c.app.why.reason_code, "PEER_RESTARTED");
    assert_non_null(strstr(n.c.app.why.reason, "coordinator"));
    assert_true(x.closed);
    quic_ep_stats(n.s.ep, &st);
    assert_int_equal(st.resets_sent, 1);
    net_stop(&n);
}

/* Without the secret a reset proves nothing and is ignored. */
static void test_forged_reset(void **state)
{
    struct net n;
    struct xfer x = {0};
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    sim_run(n.sim, SEC, NULL, NULL);
    restart_server(&n, false);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 100), ST_OK);
    assert_false(sim_run(n.sim, 5 * SEC, client_closed, &n));
    assert_true(sim_run(n.sim, 30 * SEC, client_closed, &n));
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_IDLE);
    net_stop(&n);
}

static void wrong_peer(enum tls_kind kind, const char *name)
{
    struct net n;
    net_prepare(&n, &calm);
    net_start(&n);
    assert_int_equal(dial_as(&n, kind, name), ST_OK);
    assert_true(sim_run(n.sim, 5 * SEC, client_closed, &n));
    assert_int_equal(n.c.app.ups, 0);
    assert_int_equal(n.c.app.why.kind, QUIC_CLOSE_TRUST);
    assert_int_equal(n.c.app.why.status, ST_ETRUST);
    assert_string_equal(n.c.app.why.reason_code, "WRONG_PEER");
    assert_non_null(strstr(n.c.app.why.reason, "coordinator answered where"));
    net_stop(&n);
}

static void test_wrong_peer(void **state)
{
    (void)state;
    wrong_peer(TLS_NODE, NULL);
    wrong_peer(TLS_NODE, "dione");
    wrong_peer(TLS_USER, "alice");
}

/* What a side whose certificate is refused sees, and the side that refuses it. */
static void refused_peer(struct net *n, struct tls_ctx *server, struct tls_ctx *client, unsigned told,
                         const char *code, const char *why)
{
    net_prepare(n, &calm);
    n->s.cfg.tls = server;
    n->c.cfg.tls = client;
    net_start(n);
    assert_int_equal(dial_as(n, TLS_COORDINATOR, NULL), ST_OK);
    assert_true(sim_run(n->sim, 6 * SEC, client_closed, n));
    assert_int_equal(n->c.app.ups, 0);
    assert_int_equal(n->s.app.ups, 0);
    assert_int_equal(n->c.app.why.kind, QUIC_CLOSE_TRUST);
    assert_string_equal(n->c.app.why.reason_code, code); /* both ends name it alike */
    sim_run(n->sim, 6 * SEC, NULL, NULL);
    assert_int_equal(n->s.app.closes, told);
    if (told) {
        assert_int_equal(n->s.app.why.kind, QUIC_CLOSE_TRUST);
        assert_int_equal(n->s.app.why.status, ST_ETRUST);
        assert_string_equal(n->s.app.why.reason_code, code);
        if (!strstr(n->s.app.why.reason, why))
            fail_msg("%s", n->s.app.why.reason);
    }
    assert_int_equal(quic_ep_conns(n->s.ep), 0);
    net_stop(n);
}

/* The application hears of whom it refused, not of who refused it, nor of handshakes that came to nothing. */
static void test_foreign_ca(void **state)
{
    struct net n;
    struct pki other, twin;
    (void)state;
    pki_open_as(&other, "other.example");
    pki_open(&twin);
    struct tls_ctx *both = pki_ctx_trusting(&simnet_pki, TLS_COORDINATOR, NULL, &other);
    struct tls_ctx *stranger = pki_ctx_trusting(&twin, TLS_NODE, "dione", &simnet_pki);
    struct tls_ctx *abroad = pki_ctx_trusting(&other, TLS_NODE, "dione", &simnet_pki);
    struct tls_ctx *foreign = pki_ctx(&other, TLS_NODE, "dione");
    refused_peer(&n, simnet_coord, foreign, 0, "UNKNOWN_CA", "");
    refused_peer(&n, simnet_coord, stranger, 1, "UNKNOWN_CA", "certificate");
    refused_peer(&n, both, abroad, 0, "FOREIGN_TRUST_DOMAIN", "");
    tls_ctx_unref(both);
    tls_ctx_unref(abroad);
    tls_ctx_unref(stranger);
    tls_ctx_unref(foreign);
    pki_close(&other);
    pki_close(&twin);
}

static void test_retry(void **state)
{
    struct net n;
    struct xfer x = {0};
    struct quic_ep_stats st;
    (void)state;
    net_prepare(&n, &calm);
    n.s.cfg.limits.max_handshakes = 0; /* every address must prove itself … */
    net_start(&n);
    assert_int_equal(dial_as(&n, TLS_COORDINATOR, NULL), ST_OK);
    sim_run(n.sim, SEC, NULL, NULL);
    quic_ep_stats(n.s.ep, &st);
    assert_true(st.retries >= 1);
    assert_int_equal(st.accepted, 0); /* … and 4 × 0 handshakes may run at once */
    net_stop(&n);

    net_prepare(&n, &calm);
    n.s.cfg.limits.max_handshakes = 1;
    net_start(&n);
    assert_int_equal(dial_as(&n, TLS_COORDINATOR, NULL), ST_OK);
    assert_int_equal(dial_as(&n, TLS_COORDINATOR, NULL), ST_OK);
    sim_run(n.sim, 2 * SEC, NULL, NULL);
    assert_int_equal(n.c.app.ups, 2);
    quic_ep_stats(n.s.ep, &st);
    assert_int_equal(st.retries, 1);
    assert_int_equal(st.accepted, 2);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 1000), ST_OK);
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x));
    assert_true(xfer_ok(&x));
    net_stop(&n);
}

static void refused(struct net *n, const char *code, const char *why)
{
    net_start(n);
    if (strstr(why, "no new"))
        quic_ep_drain(n->s.ep);
    assert_int_equal(dial_as(n, TLS_COORDINATOR, NULL), ST_OK);
    assert_true(sim_run(n->sim, SEC, client_closed, n));
    assert_int_equal(n->c.app.why.kind, QUIC_CLOSE_HANDSHAKE);
    assert_string_equal(n->c.app.why.reason_code, code);
    assert_non_null(strstr(n->c.app.why.reason, why));
    net_stop(n);
}

static void test_limits(void **state)
{
    struct net n;
    (void)state;
    net_prepare(&n, &calm);
    n.s.cfg.limits.max_conns = 0;
    refused(&n, "FULL", "taken");
    net_prepare(&n, &calm);
    n.s.cfg.limits.max_conns_per_addr = 0;
    refused(&n, "FULL_FOR_ADDRESS", "this address");
    net_prepare(&n, &calm);
    refused(&n, "DRAINING", "no new connections");
}

static void test_datagrams(void **state)
{
    struct net n;
    uint8_t b[1000];
    (void)state;
    net_prepare(&n, &calm);
    n.s.app.echo_dgrams = true;
    net_start(&n);
    up(&n);
    for (size_t i = 0; i < sizeof b; i++)
        b[i] = (uint8_t)i;
    for (int i = 0; i < 5; i++)
        assert_int_equal(quic_conn_send_datagram(n.c.app.conn, b, sizeof b), ST_OK);
    assert_int_equal(quic_conn_send_datagram(n.c.app.conn, b, 1200), ST_ELIMIT);
    sim_run(n.sim, SEC, NULL, NULL);
    assert_int_equal(n.s.app.dgrams, 5);
    assert_int_equal(n.c.app.dgrams, 5);
    assert_int_equal(n.c.app.dgram_len, sizeof b);
    assert_memory_equal(n.c.app.dgram, b, sizeof b);
    int rc = ST_OK;
    for (int i = 0; i < 1000 && rc == ST_OK; i++)
        rc = quic_conn_send_datagram(n.c.app.conn, b, 10);
    assert_int_equal(rc, ST_EAGAIN); /* bounded, not queued without end */
    net_stop(&n);
}

static void test_blocked_link(void **state)
{
    struct net n;
    struct xfer x = {0};
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    assert_int_equal(xfer_start(&x, n.c.app.conn, 200000), ST_OK);
    for (int i = 0; i < 50 && !x.closed; i++) {
        sim_port_block(n.c.port, true);
        sim_run(n.sim, 20 * MS, NULL, NULL);
        sim_port_block(n.c.port, false);
        sim_run(n.sim, 5 * MS, xfer_closed, &x);
    }
    assert_true(sim_run(n.sim, 10 * SEC, xfer_closed, &x));
    assert_true(xfer_ok(&x));
    net_stop(&n);
}

static void test_rotation(void **state)
{
    struct net n;
    struct xfer x = {0};
    struct tls_ctx *rhea = pki_ctx(&simnet_pki, TLS_NODE, "rhea");
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    struct quic_conn *old = n.c.app.conn;
    quic_ep_set_tls(n.c.ep, rhea);
    tls_ctx_unref(rhea);
    n.c.app.ups = n.s.app.ups = 0;
    up(&n);
    assert_string_equal(quic_conn_peer(n.s.app.conn)->principal, "node/rhea");
    assert_int_equal(xfer_start(&x, old, 1000), ST_OK); /* the live one goes on */
    assert_true(sim_run(n.sim, SEC, xfer_closed, &x));
    assert_true(xfer_ok(&x));
    net_stop(&n);
}

/* Bytes from nowhere: nothing crashes, nothing is accepted, answers are never longer than questions. */
static void test_garbage(void **state)
{
    struct net n;
    struct quic_addr to;
    struct quic_ep_stats st;
    uint8_t b[1400];
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    sim_addr(SRV, 7433, &to);
    for (int i = 0; i < 3000; i++) {
        uint64_t r = rng_u64(sim_rng(n.sim));
        size_t len = r % sizeof b;
        sim_rng(n.sim)->fill(sim_rng(n.sim)->arg, b, len);
        if (len > 5 && (r >> 32) % 3 == 0)
            memcpy(b, "\xc3\0\0\0\1", 5);
        sim_inject(n.c.port, &to, b, len);
        sim_run(n.sim, MS, NULL, NULL);
    }
    sim_run(n.sim, 10 * SEC, NULL, NULL);
    quic_ep_stats(n.s.ep, &st);
    assert_true(st.tx_bytes < st.rx_bytes);
    assert_int_equal(quic_ep_conns(n.s.ep), 0);
    assert_int_equal(n.s.app.ups, 0);
    net_stop(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_handshake_under_loss),
        cmocka_unit_test(test_no_answer),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_close_lost),
        cmocka_unit_test(test_close_on_up),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_ignored_stream),
        cmocka_unit_test(test_backpressure),
        cmocka_unit_test(test_unread_fin),
        cmocka_unit_test(test_stop_sending),
        cmocka_unit_test(test_consume_after_reset),
        cmocka_unit_test(test_stream_limit),
        cmocka_unit_test(test_stateless_reset),
        cmocka_unit_test(test_forged_reset),
        cmocka_unit_test(test_wrong_peer),
        cmocka_unit_test(test_foreign_ca),
        cmocka_unit_test(test_retry),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_datagrams),
        cmocka_unit_test(test_blocked_link),
        cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_garbage),
    };
    return cmocka_run_group_tests(tests, simnet_setup, simnet_teardown);
}
