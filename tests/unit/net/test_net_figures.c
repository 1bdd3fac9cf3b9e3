/* What a series of probes and a stream of bytes say, against figures worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "agent/net/probe.h"
#include "agent/net/rate.h"

#define MS 1000000ull

static struct probe pong(uint32_t seq, uint32_t order, uint64_t held)
{
    return (struct probe){.kind = PROBE_PONG, .session = 7, .seq = seq, .order = order, .held_ns = held};
}

static void test_codec(void **state)
{
    (void)state;
    uint8_t buf[PROBE_MAX_BYTES];
    struct probe in = pong(3, 2, 99), out;
    probe_encode(&in, buf, 64);
    assert_int_equal(probe_decode(buf, 64, &out), ST_OK);
    assert_true(out.kind == in.kind && out.session == in.session && out.seq == in.seq &&
                out.order == in.order && out.held_ns == in.held_ns);
    assert_int_equal(probe_decode(buf, PROBE_MIN_BYTES - 1, &out), ST_EPROTO);
    assert_int_equal(probe_decode(buf, PROBE_MAX_BYTES + 1, &out), ST_EPROTO);
    for (size_t i = 0; i < 8; i++) {
        buf[i] ^= 0x40;
        assert_int_equal(probe_decode(buf, 64, &out), ST_EPROTO);
        buf[i] ^= 0x40;
    }
    struct probe ping = {.kind = PROBE_PING, .session = 7, .held_ns = 1};
    probe_encode(&ping, buf, 64);
    assert_int_equal(probe_decode(buf, 64, &out), ST_EPROTO); /* a ping holds nothing */
}

static struct probe_series *sent(uint32_t n, uint64_t timeout)
{
    struct probe_series *s;
    uint32_t seq;
    assert_int_equal(probe_series_new(&s, 7, n, timeout), ST_OK);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(probe_series_sent(s, 1000 * MS + i * 10 * MS, &seq), ST_OK);
        assert_int_equal(seq, i);
    }
    assert_int_equal(probe_series_sent(s, 0, &seq), ST_ELIMIT);
    return s;
}

static void test_figures(void **state)
{
    (void)state;
    struct probe_series *s = sent(4, 500 * MS);
    const uint64_t rtt[] = {10 * MS, 12 * MS, 8 * MS, 10 * MS};
    for (uint32_t i = 0; i < 4; i++) {
        struct probe p = pong(i, i, i == 1 ? MS : 0);
        assert_false(probe_series_over(s, 1031 * MS));
        probe_series_got(s, &p, 1000 * MS + i * 10 * MS + rtt[i] + (i == 1 ? MS : 0));
    }
    assert_true(probe_series_over(s, 1031 * MS));
    struct probe_stats st;
    probe_series_stats(s, &st);
    assert_int_equal(st.sent, 4);
    assert_int_equal(st.received, 4);
    assert_int_equal(st.peer_received, 4);
    assert_true(st.loss == 0);
    assert_int_equal(st.min_ns, 8 * MS);
    assert_int_equal(st.max_ns, 12 * MS);
    assert_int_equal(st.mean_ns, 10 * MS);
    assert_int_equal(st.p50_ns, 10 * MS);
    assert_int_equal(st.p99_ns, 12 * MS);
    /* sqrt((0 + 4 + 4 + 0) / 3) ms */
    assert_in_range(st.stddev_ns, 1632990, 1632998);
    /* D = 2, 4, 2 ms: J = 0.125, then 0.125 + (4 - 0.125) / 16, then + (2 - that) / 16 */
    assert_in_range(st.jitter_ns, 469230, 469240);
    probe_series_free(s);
}

static void test_trouble(void **state)
{
    (void)state;
    struct probe_series *s = sent(10, 50 * MS);
    struct probe p = pong(1, 0, 0);
    probe_series_got(s, &p, 1015 * MS);
    p = pong(0, 1, 0);
    probe_series_got(s, &p, 1016 * MS); /* overtaken */
    probe_series_got(s, &p, 1017 * MS); /* twice */
    p = pong(2, 2, 0);
    probe_series_got(s, &p, 1020 * MS + 51 * MS); /* too late */
    p = pong(3, 3, 3600000 * MS);
    probe_series_got(s, &p, 1040 * MS); /* held longer than it was away */
    p = pong(10, 3, 0);
    probe_series_got(s, &p, 1040 * MS); /* never sent */
    p = pong(4, 3, 0);
    p.session = 8;
    probe_series_got(s, &p, 1045 * MS);
    p = pong(5, 400, 0);
    probe_series_got(s, &p,
                     1000 * MS); /* before it was sent: a clock of another making; no time has passed */
    assert_false(probe_series_over(s, 1090 * MS + 50 * MS));
    assert_true(probe_series_over(s, 1090 * MS + 51 * MS));
    struct probe_stats st;
    probe_series_stats(s, &st);
    assert_int_equal(st.received, 3);
    assert_int_equal(st.late, 1);
    assert_int_equal(st.duplicates, 1);
    assert_int_equal(st.reordered, 1);
    assert_int_equal(st.invalid, 3);
    assert_int_equal(st.peer_received, 3);
    assert_true(st.loss > 0.699 && st.loss < 0.701);
    probe_series_free(s);
}

/* A peer cannot talk its link short: what it claims to have held beyond any reason is not taken off. */
static void test_held_is_bounded(void **state)
{
    (void)state;
    struct probe_series *s = sent(1, 500 * MS);
    struct probe p = pong(0, 0, 90 * MS);
    struct probe_stats st;
    probe_series_got(s, &p, 1100 * MS);
    probe_series_stats(s, &st);
    assert_int_equal(st.p50_ns, 100 * MS);
    probe_series_free(s);
}

static void test_nothing_came(void **state)
{
    (void)state;
    struct probe_series *s = sent(3, 50 * MS);
    struct probe_stats st;
    probe_series_stats(s, &st);
    assert_int_equal(st.received, 0);
    assert_int_equal(st.p50_ns, 0);
    assert_true(st.loss == 1);
    probe_series_unsent(s);
    probe_series_stats(s, &st);
    assert_int_equal(st.sent, 2);
    probe_series_free(s);
    assert_int_equal(probe_series_new(&s, 7, 0, MS), ST_EINVAL);
    assert_int_equal(probe_series_new(&s, 7, PROBE_MAX_COUNT + 1, MS), ST_EINVAL);
}

static bool near(double a, double b, double part)
{
    return a > b * (1 - part) && a < b * (1 + part);
}

/* 1 MB/s after a slow start of 200 ms, and after a burst at ten times the rate. */
static void test_rate(void **state)
{
    (void)state;
    for (int burst = 0; burst < 2; burst++)
        for (uint64_t total_ms = 1000; total_ms <= 100000; total_ms *= 10) {
            struct rate_meter m;
            struct rate_figures f;
            rate_init(&m, MS);
            for (uint64_t t = 0; t <= total_ms; t++)
                rate_add(&m, 5 * MS + t * MS, t >= 200 ? 1000 : burst ? (t < 50 ? 10000 : 1000) : 1 + t * 5);
            rate_figures(&m, &f);
            assert_true(near(f.bytes_per_s, 1e6, 0.02));
            assert_true(f.spread < 0.05);
            assert_int_equal(f.ns, total_ms * MS);
            assert_true(f.steady_ns < f.ns && f.steady_ns > f.ns / 2);
        }
    struct rate_meter m;
    struct rate_figures f;
    rate_init(&m, MS);
    rate_add(&m, 1, 100);
    rate_figures(&m, &f);
    assert_true(f.bytes_per_s == 0); /* one packet is no rate */
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_codec),        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_trouble),      cmocka_unit_test(test_held_is_bounded),
        cmocka_unit_test(test_nothing_came), cmocka_unit_test(test_rate),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
