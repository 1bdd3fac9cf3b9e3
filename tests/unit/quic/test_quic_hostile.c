/*
 * Hostile peers, on the simulated network: frames that break the protocol, floods of handshakes, half-open
 * connections, readers that never read. Each costs its sender its connection or nothing; the others go on.
 *
 * The hostile client is an ordinary one whose packets are rewritten before they are encrypted: the linker
 * sends the library's encryption through __wrap_ngtcp2_crypto_encrypt_cb().
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/buf.h"
#include "common/quic/quic_priv.h"
#include "tests/unit/quic/simnet.h"

/* ---- rewriting packets ---- */

static const char MARK[] = "#rewrite this packet#";
static struct {
    uint8_t frames[1100];
    size_t n; /* 0 = an empty packet; the rest of a longer one is padding */
    bool armed;
    unsigned done;
} hook;

int __real_ngtcp2_crypto_encrypt_cb(uint8_t *dest, const ngtcp2_crypto_aead *aead,
                                    const ngtcp2_crypto_aead_ctx *ctx, const uint8_t *plain, size_t n,
                                    const uint8_t *nonce, size_t noncelen, const uint8_t *aad, size_t aadlen);
int __wrap_ngtcp2_crypto_encrypt_cb(uint8_t *dest, const ngtcp2_crypto_aead *aead,
                                    const ngtcp2_crypto_aead_ctx *ctx, const uint8_t *plain, size_t n,
                                    const uint8_t *nonce, size_t noncelen, const uint8_t *aad, size_t aadlen);

int __wrap_ngtcp2_crypto_encrypt_cb(uint8_t *dest, const ngtcp2_crypto_aead *aead,
                                    const ngtcp2_crypto_aead_ctx *ctx, const uint8_t *plain, size_t n,
                                    const uint8_t *nonce, size_t noncelen, const uint8_t *aad, size_t aadlen)
{
    uint8_t b[65536];
    if (hook.armed && n <= sizeof b && memmem(plain, n, MARK, sizeof MARK - 1)) {
        assert_true(hook.n <= n);
        memset(b, 0, n);
        memcpy(b, hook.frames, hook.n);
        plain = b;
        hook.done++;
    }
    return __real_ngtcp2_crypto_encrypt_cb(dest, aead, ctx, plain, n, nonce, noncelen, aad, aadlen);
}

/* ---- frames ---- */

static void put(uint64_t v)
{
    hook.n += varint_encode(hook.frames + hook.n, v);
}

static void put_bytes(const void *p, size_t n)
{
    memcpy(hook.frames + hook.n, p, n);
    hook.n += n;
}

static void frame(size_t nfields, const uint64_t *fields)
{
    for (size_t i = 0; i < nfields; i++)
        put(fields[i]);
}
#define FRAME(...) frame(sizeof((uint64_t[]){__VA_ARGS__}) / 8, (uint64_t[]){__VA_ARGS__})

static void unknown_type(void)
{
    FRAME(0x3f3f);
}

static void overlong_type(void)
{
    put_bytes("\x40\x01", 2); /* PING in two bytes */
}

static void past_stream_window(void)
{
    FRAME(0x0e, 0, 10 << 20, 4);
    put_bytes("over", 4);
}

static void past_final_size(void)
{
    FRAME(0x0f, 0, 0, 4); /* FIN at 4 … */
    put_bytes("last", 4);
    FRAME(0x0e, 0, 4, 4); /* … and more behind it */
    put_bytes("more", 4);
}

static void too_many_streams(void)
{
    FRAME(0x0e, 4 * 100000, 0, 1);
    put_bytes("x", 1);
}

static void unidirectional(void)
{
    FRAME(0x0e, 2, 0, 1);
    put_bytes("x", 1);
}

static void the_servers_stream(void)
{
    FRAME(0x0e, 1, 0, 1);
    put_bytes("x", 1);
}

static void credit_for_nothing(void)
{
    FRAME(0x11, 1, 1000); /* MAX_STREAM_DATA of a stream the server never opened */
}

static void reset_below_data(void)
{
    FRAME(0x0e, 0, 0, 4);
    put_bytes("data", 4);
    FRAME(0x04, 0, 7, 2);
}

static void handshake_done(void)
{
    FRAME(0x1e);
}

static void new_token(void)
{
    FRAME(0x07, 4);
    put_bytes("abcd", 4);
}

static void ack_of_the_future(void)
{
    FRAME(0x02, 1 << 20, 0, 0, 0);
}

static void ack_below_zero(void)
{
    FRAME(0x02, 1, 0, 0, 5);
}

static void much_crypto(void)
{
    FRAME(0x06, 1 << 20, 4);
    put_bytes("abcd", 4);
}

static void ids_without_end(void)
{
    uint8_t token[16] = {0};
    for (uint8_t i = 0; i < 20; i++) {
        FRAME(0x18, i + 40u, 0, 8);
        put_bytes((uint8_t[8]){i, 9, 9, 9, 9, 9, 9, 9}, 8);
        token[0] = i;
        put_bytes(token, 16);
    }
}

static void id_retired_before_it_came(void)
{
    FRAME(0x18, 3, 9, 8);
    put_bytes("abcdefgh0123456789abcdef", 24);
}

static void retired_in_use(void)
{
    FRAME(0x19, 5000);
}

static void large_datagram(void)
{
    FRAME(0x31, 900); /* the server's limit in this case is 100 */
    hook.n += 900;
}

static void cut_short(void)
{
    FRAME(0x06, 0, 8000); /* a CRYPTO frame longer than its packet */
    put_bytes("x", 1);
}

static const struct {
    const char *name;
    void (*make)(void);
    uint64_t code; /* RFC 9000, section 20.1 */
} hostile[] = {
    {"unknown frame type", unknown_type, 0x07},
    {"frame type in too many bytes", overlong_type, 0x07},
    {"more than the stream's credit", past_stream_window, 0x03},
    {"data behind the end", past_final_size, 0x06},
    {"more streams than allowed", too_many_streams, 0x04},
    {"a unidirectional stream", unidirectional, 0x04},
    {"data on the server's own stream", the_servers_stream, 0x05},
    {"credit for no stream", credit_for_nothing, 0x05},
    {"a reset below what came", reset_below_data, 0x06},
    {"HANDSHAKE_DONE from a client", handshake_done, 0x0a},
    {"NEW_TOKEN from a client", new_token, 0x0a},
    {"an ACK of what was never sent", ack_of_the_future, 0x0a},
    {"an ACK below packet 0", ack_below_zero, 0x07},
    {"crypto data far ahead", much_crypto, 0x0d},
    {"connection ids without end", ids_without_end, 0x09},
    {"an id retired before it came", id_retired_before_it_came, 0x07},
    {"an id retired that never was", retired_in_use, 0x0a},
    {"a datagram above the limit", large_datagram, 0x0a},
    {"a frame cut short", cut_short, 0x07},
};

static const struct quic_stream_ops deaf = {0}; /* data is never read, the end not noticed */

/* A packet of the client with marked data leaves, rewritten. */
static void send_rewritten(struct net *n)
{
    uint8_t data[1100] = {0};
    struct quic_stream *s;
    memcpy(data, MARK, sizeof MARK - 1);
    hook.done = 0;
    hook.armed = true;
    assert_int_equal(quic_stream_open(&s, n->c.app.conn, &deaf, NULL), ST_OK);
    assert_int_equal(quic_stream_write(s, data, sizeof data, false), ST_OK);
    sim_run(n->sim, 20 * MS, NULL, NULL);
    hook.armed = false;
    assert_true(hook.done >= 1);
}

/* Another client of the same server. */
static void side_dial(struct net *n, struct side *d, unsigned host, uint16_t port)
{
    struct quic_addr to;
    struct err e = {0};
    memset(d, 0, sizeof *d);
    d->cfg = n->c.cfg;
    d->port = sim_port_new(n->sim, host, port, &d->cfg);
    assert_int_equal(quic_ep_new(&d->ep, &d->cfg, &e), ST_OK);
    sim_port_attach(d->port, d->ep);
    sim_addr(SRV, 7433, &to);
    assert_int_equal(quic_connect(&d->app.conn, d->ep, &to, TLS_COORDINATOR, NULL, &peer_ops, &d->app, &e),
                     ST_OK);
}

static bool is_up(void *arg)
{
    return ((struct side *)arg)->app.ups > 0;
}

static void works(struct net *n, struct side *d)
{
    struct xfer x = {0};
    assert_int_equal(xfer_start(&x, d->app.conn, 20000), ST_OK);
    assert_true(sim_run(n->sim, 5 * SEC, xfer_closed, &x));
    assert_true(xfer_ok(&x));
}

static void test_frames(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct net n;
        struct side other;
        net_prepare(&n, &calm);
        n.s.cfg.limits.max_datagram_frame = 100;
        net_start(&n);
        side_dial(&n, &other, 9, 9);
        assert_true(sim_run(n.sim, SEC, is_up, &other));
        up(&n);
        hook.n = 0;
        hostile[i].make();
        send_rewritten(&n);
        if (!n.c.app.closes || n.c.app.why.code != hostile[i].code)
            fail_msg("%s: closed %u, code %llx, %s", hostile[i].name, n.c.app.closes,
                     (unsigned long long)n.c.app.why.code, n.c.app.why.reason);
        assert_int_equal(n.s.app.closes, 1);
        assert_int_equal(n.s.app.why.kind, QUIC_CLOSE_ERROR);
        assert_string_equal(n.s.app.why.reason_code, "PROTOCOL");
        works(&n, &other);
        side_stop(&other);
        net_stop(&n);
    }
}

/* The reason of a close is the peer's to choose: it is cut and cleaned. */
static void test_reason(void **state)
{
    static const struct {
        const char *said, *code, *text;
    } v[] = {
        {"NOT_WANTED: go \x01\xff away", "NOT_WANTED", "go ?? away"},
        {"lower: case", "", "lower: case"},
        {"NO_COLON", "", "NO_COLON"},
        {"AB: short", "", "AB: short"},
        {"A_CODE_OF_MORE_THAN_39_CHARACTERS_IS_NONE_AT_ALL: x", "", "A_CODE_OF_MORE"},
        {"EMPTY: ", "EMPTY", "closed"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        struct net n;
        net_prepare(&n, &calm);
        net_start(&n);
        up(&n);
        quic_conn_close(n.c.app.conn, 7, v[i].said);
        assert_true(sim_run(n.sim, SEC, server_closed, &n));
        assert_int_equal(n.s.app.why.code, 7);
        assert_string_equal(n.s.app.why.reason_code, v[i].code);
        assert_non_null(strstr(n.s.app.why.reason, v[i].text));
        net_stop(&n);
    }
}

enum { CROWD = 64, HANDSHAKES = 8 };

static void crowd_net(struct net *n)
{
    net_prepare(n, &calm);
    n->s.cfg.limits.max_handshakes = HANDSHAKES;
    net_start(n);
}

/* Senders of first packets only, each from an address of its own that answers nothing. */
static void test_half_open(void **state)
{
    struct net n;
    struct quic_ep_stats st;
    static struct side d[CROWD];
    (void)state;
    crowd_net(&n);
    for (unsigned i = 0; i < CROWD; i++) {
        side_dial(&n, &d[i], 100 + i, 1);
        sim_run(n.sim, MS / 2, NULL, NULL);
        sim_port_cut(d[i].port, true);
    }
    sim_run(n.sim, 5 * MS, NULL, NULL);
    quic_ep_stats(n.s.ep, &st);
    assert_int_equal(st.accepted, HANDSHAKES); /* the others hold nothing here */
    assert_int_equal(st.retries, CROWD - HANDSHAKES);
    up(&n);
    works(&n, &n.c);
    sim_run(n.sim, 8 * SEC, NULL, NULL);
    assert_int_equal(quic_ep_conns(n.s.ep), 1);
    assert_int_equal(n.s.ep->handshakes, 0);
    assert_int_equal(n.s.app.closes, 0); /* nobody hears of them */
    for (unsigned i = 0; i < CROWD; i++)
        side_stop(&d[i]);
    net_stop(&n);
}

/* One address that proves itself and then stalls every handshake: it gets its share, and no more. */
static void test_half_open_one_address(void **state)
{
    struct net n;
    static struct side d[CROWD];
    (void)state;
    crowd_net(&n);
    for (unsigned i = 0; i < CROWD; i++) {
        side_dial(&n, &d[i], 100, (uint16_t)(1 + i));
        /* Until its first packet is out, or from the ninth on its answer to the Retry. */
        sim_run(n.sim, i < HANDSHAKES ? MS / 2 : 2 * MS + MS / 2, NULL, NULL);
        sim_port_cut(d[i].port, true);
        sim_run(n.sim, MS, NULL, NULL);
        assert_true(n.s.ep->handshakes <= HANDSHAKES);
    }
    up(&n);
    works(&n, &n.c);
    sim_run(n.sim, 8 * SEC, NULL, NULL);
    assert_int_equal(quic_ep_conns(n.s.ep), 1);
    for (unsigned i = 0; i < CROWD; i++)
        side_stop(&d[i]);
    net_stop(&n);
}

static bool all_up(void *arg)
{
    const struct side *d = arg;
    for (unsigned i = 0; i < CROWD; i++)
        if (!d[i].app.ups)
            return false;
    return true;
}

/* Everyone dials at once, as after a restart of the coordinator: all come up. */
static void test_storm(void **state)
{
    struct net n;
    static struct side d[CROWD];
    struct quic_ep_stats st;
    (void)state;
    crowd_net(&n);
    for (unsigned i = 0; i < CROWD; i++)
        side_dial(&n, &d[i], 100 + i, 1);
    assert_true(sim_run(n.sim, 5 * SEC, all_up, d));
    quic_ep_stats(n.s.ep, &st);
    assert_true(st.retries > 0);
    for (unsigned i = 0; i < CROWD; i++) {
        works(&n, &d[i]);
        side_stop(&d[i]);
    }
    net_stop(&n);
}

/* A peer that asks for much and reads none of it holds what its queues hold, and keeps nobody busy. */
static void test_slow_reader(void **state)
{
    enum { STREAMS = 20 };
    struct net n;
    struct side other;
    static struct xfer x[STREAMS];
    struct quic_ep_stats a, b;
    struct quic_stream *s;
    size_t queued = 0, unread = 0;
    (void)state;
    memset(x, 0, sizeof x);
    net_prepare(&n, &calm);
    net_start(&n);
    side_dial(&n, &other, 9, 9);
    assert_true(sim_run(n.sim, SEC, is_up, &other));
    up(&n);
    for (int i = 0; i < STREAMS; i++) {
        x[i].hold = true;
        assert_int_equal(xfer_start(&x[i], n.c.app.conn, 1 << 20), ST_OK);
    }
    sim_run(n.sim, 5 * SEC, NULL, NULL);
    TAILQ_FOREACH(s, &n.s.app.conn->streams, all)
    {
        assert_true(quic_stream_queued(s) <= n.s.cfg.limits.send_queue);
        queued += quic_stream_queued(s);
        unread += s->rx_len;
    }
    assert_true(queued > 0);
    assert_true(unread <= n.s.cfg.limits.conn_window);
    quic_ep_stats(n.s.ep, &a);
    sim_run(n.sim, 10 * SEC, NULL, NULL);
    quic_ep_stats(n.s.ep, &b);
    assert_true(b.tx_datagrams - a.tx_datagrams < 200);
    works(&n, &other);
    assert_int_equal(n.s.app.closes, 0);
    side_stop(&other);
    net_stop(&n);
}

/* Who takes answers and acknowledges little holds streams within their bound, however fast he opens them. */
static void test_live_streams(void **state)
{
    enum { STREAMS = 500, LIMIT = 8 };
    struct net n;
    static struct xfer x[STREAMS];
    unsigned most = 0, opened = 0, closed = 0;
    (void)state;
    memset(x, 0, sizeof x);
    net_prepare(&n, &calm);
    n.s.cfg.limits.max_streams = LIMIT;
    net_start(&n);
    up(&n);
    uint64_t start = sim_now(n.sim);
    while (closed < STREAMS && sim_now(n.sim) - start < 20 * SEC) {
        while (opened < STREAMS && xfer_start(&x[opened], n.c.app.conn, 100) == ST_OK)
            opened++;
        sim_run(n.sim, MS / 10, NULL, NULL);
        most = n.s.app.conn->nremote > most ? n.s.app.conn->nremote : most;
        for (closed = 0; closed < opened && x[closed].closed;)
            closed++;
    }
    assert_int_equal(closed, STREAMS);
    assert_true(most <= QUIC_LIVE_FACTOR * LIMIT + LIMIT);
    /* A round trip is 2 ms, and LIMIT streams fit in each: credit that waited for acknowledgements took twice
     * that. */
    assert_true(sim_now(n.sim) - start < (STREAMS / LIMIT + 4) * 2 * MS);
    net_stop(&n);
}

/* Bits that turn on the way: packets are lost, never accepted. */
static void test_corruption(void **state)
{
    struct sim_cfg dirty = {.delay_ns = MS, .corrupt_ppm = 30000};
    (void)state;
    for (dirty.seed = 1; dirty.seed <= 5; dirty.seed++) {
        struct net n;
        struct xfer x = {0};
        net_prepare(&n, &dirty);
        net_start(&n);
        up(&n);
        assert_int_equal(xfer_start(&x, n.c.app.conn, 500000), ST_OK);
        assert_true(sim_run(n.sim, 60 * SEC, xfer_closed, &x));
        assert_true(xfer_ok(&x));
        net_stop(&n);
    }
}

/* After a close late packets draw the close again, ever more seldom; when it is forgotten, a stateless reset.
 */
static void test_drain(void **state)
{
    struct net n;
    struct quic_addr to;
    struct quic_ep_stats a, b;
    uint8_t late[60];
    (void)state;
    net_prepare(&n, &calm);
    net_start(&n);
    up(&n);
    sim_addr(SRV, 7433, &to);
    sim_rng(n.sim)->fill(sim_rng(n.sim)->arg, late, sizeof late);
    late[0] = 0x40;
    memcpy(late + 1, n.s.app.conn->cids[0].data, QUIC_SCID_LEN);
    sim_run(n.sim, SEC, NULL, NULL); /* settled: a short probe timeout */
    quic_conn_close(n.s.app.conn, 1, "enough");
    sim_run(n.sim, 5 * MS, NULL, NULL);
    assert_int_equal(n.s.app.closes, 1);
    assert_int_equal(quic_ep_conns(n.s.ep), 0);
    quic_ep_stats(n.s.ep, &a);
    for (int i = 0; i < 16; i++)
        sim_inject(n.c.port, &to, late, sizeof late);
    sim_run(n.sim, 2 * MS, NULL, NULL);
    quic_ep_stats(n.s.ep, &b);
    assert_int_equal(b.tx_datagrams - a.tx_datagrams, 5); /* to the 1st, 2nd, 4th, 8th and 16th */
    assert_int_equal(b.resets_sent, 0);
    sim_run(n.sim, 5 * SEC, NULL, NULL);
    assert_int_equal(n.s.ep->nstubs, 0);
    sim_inject(n.c.port, &to, late, sizeof late);
    sim_run(n.sim, SEC, NULL, NULL);
    quic_ep_stats(n.s.ep, &b);
    assert_true(b.resets_sent >= 1);
    /* The client has forgotten it, too, and answers the reset: each is shorter than the last, and so they
     * end. */
    assert_true(b.resets_sent <= 41 - 21);
    net_stop(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames),       cmocka_unit_test(test_reason),
        cmocka_unit_test(test_half_open),    cmocka_unit_test(test_half_open_one_address),
        cmocka_unit_test(test_storm),        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_live_streams), cmocka_unit_test(test_corruption),
        cmocka_unit_test(test_drain),
    };
    return cmocka_run_group_tests(tests, simnet_setup, simnet_teardown);
}
