/* Endpoints on real UDP sockets of the loopback interface. */
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/quicpeer.h"

struct world {
    struct event_base *base;
    struct event *deadline;
    bool late;
    struct pki pki;
    struct log log;
    struct tls_ctx *coord, *node;
    struct quic_udp *us, *uc;
    struct quic_ep *es, *ec;
    struct peer server, client;
};

static void too_late(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    ((struct world *)arg)->late = true;
}

static void open_side(struct world *w, bool server, const char *bind, const struct quic_limits *lim)
{
    struct err e = {0};
    struct quic_ep_cfg cfg = {.clock = clock_system(),
                              .rng = rng_system(),
                              .log = &w->log,
                              .tls = server ? w->coord : w->node,
                              .limits = *lim,
                              .accept = server,
                              .accept_ops = server ? &peer_ops : NULL,
                              .accept_arg = &w->server};
    memset(cfg.reset_secret, server ? 1 : 2, sizeof cfg.reset_secret);
    if (quic_udp_new(server ? &w->us : &w->uc, server ? &w->es : &w->ec, w->base, 0, bind, &cfg, &e) < 0)
        fail_msg("%s", e.text);
}

static void start(struct world *w, const char *bind_s, const char *bind_c, bool bulk)
{
    struct quic_limits lim;
    memset(w, 0, sizeof *w);
    w->log = (struct log){.fd = -1, .clock = clock_system()};
    w->base = event_base_new();
    w->deadline = evtimer_new(w->base, too_late, w);
    evtimer_add(w->deadline, &(struct timeval){.tv_sec = 60});
    pki_open(&w->pki);
    w->coord = pki_ctx(&w->pki, TLS_COORDINATOR, NULL);
    w->node = pki_ctx(&w->pki, TLS_NODE, "dione");
    if (bulk)
        quic_limits_bulk(&lim);
    else
        quic_limits_control(&lim);
    open_side(w, true, bind_s, &lim);
    open_side(w, false, bind_c, &lim);
}

static void stop(struct world *w)
{
    quic_udp_free(w->uc, 0, "done");
    quic_udp_free(w->us, 0, "done");
    tls_ctx_unref(w->coord);
    tls_ctx_unref(w->node);
    pki_close(&w->pki);
    event_free(w->deadline);
    event_base_free(w->base);
}

#define UNTIL(w, cond)                                                                                       \
    do {                                                                                                     \
        while (!(cond) && !(w)->late)                                                                        \
            event_base_loop((w)->base, EVLOOP_ONCE);                                                         \
        assert_true(cond);                                                                                   \
    } while (0)

static void dial(struct world *w, const char *host)
{
    char text[64];
    struct quic_addr to;
    struct err e = {0};
    snprintf(text, sizeof text, "%s:%u", host, quic_udp_port(w->us));
    assert_int_equal(quic_addr_parse(text, &to, &e), ST_OK);
    if (quic_connect(&w->client.conn, w->ec, &to, TLS_COORDINATOR, NULL, &peer_ops, &w->client, &e) < 0)
        fail_msg("%s", e.text);
    UNTIL(w, (w->client.ups && w->server.ups) || w->client.closes);
    if (!w->client.ups)
        fail_msg("%s", w->client.why.reason);
}

static void test_echo(void **state)
{
    struct world w;
    struct xfer x = {0};
    (void)state;
    start(&w, "127.0.0.1:0", "127.0.0.1:0", false);
    dial(&w, "127.0.0.1");
    assert_string_equal(quic_conn_peer(w.client.conn)->principal, "coordinator");
    assert_string_equal(quic_conn_peer(w.server.conn)->principal, "node/dione");
    assert_int_equal(xfer_start(&x, w.client.conn, 5), ST_OK);
    UNTIL(&w, x.closed);
    assert_true(xfer_ok(&x));
    UNTIL(&w, w.server.streams_closed == 1);
    quic_conn_close(w.client.conn, 42, "enough");
    UNTIL(&w, w.client.closes && w.server.closes);
    assert_int_equal(w.client.why.kind, QUIC_CLOSE_LOCAL);
    assert_int_equal(w.server.why.kind, QUIC_CLOSE_PEER);
    assert_int_equal(w.server.why.code, 42);
    assert_string_equal(w.server.why.reason, "enough");
    stop(&w);
}

static void test_bulk(void **state)
{
    struct world w;
    struct xfer x = {0};
    struct quic_ep_stats st;
    (void)state;
    start(&w, "127.0.0.1:0", "127.0.0.1:0", true);
    dial(&w, "127.0.0.1");
    assert_int_equal(xfer_start(&x, w.client.conn, 32 << 20), ST_OK);
    UNTIL(&w, x.closed);
    assert_true(xfer_ok(&x));
    quic_ep_stats(w.ec, &st);
    assert_true(st.tx_bytes > (32u << 20));
    stop(&w);
}

static void test_wildcard(void **state)
{
    struct world w;
    struct xfer x = {0};
    (void)state;
    start(&w, "0.0.0.0:0", "0.0.0.0:0", false);
    dial(&w, "127.0.0.1");
    assert_int_equal(xfer_start(&x, w.client.conn, 100000), ST_OK);
    UNTIL(&w, x.closed);
    assert_true(xfer_ok(&x));
    stop(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_bulk),
        cmocka_unit_test(test_wildcard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
