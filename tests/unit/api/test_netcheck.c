/* Both ends' stories of a link: honest ones pass, each way of lying is caught. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/api/netcheck.h"

struct tale {
    Strata__V1__NetLatency lat_a, lat_b;
    Strata__V1__NetRate forth, told, received, back, sent;
    Strata__V1__ProbeReply ab, ba;
    Strata__V1__SeenReply seen;
    struct net_story s;
};

static void latency(Strata__V1__NetLatency *l, uint64_t ms)
{
    strata__v1__net_latency__init(l);
    l->sent = l->received = 20;
    l->min_ns = ms * 1000000;
    l->mean_ns = l->p50_ns = l->min_ns + 1000;
    l->p99_ns = l->max_ns = l->min_ns + 50000;
}

static void rate(Strata__V1__NetRate *r, uint64_t bytes, uint64_t ms, double per_s)
{
    strata__v1__net_rate__init(r);
    r->bytes = bytes;
    r->ns = ms * 1000000;
    r->bytes_per_s = per_s;
    r->spread = 0.01;
    r->wire_bytes_per_s = per_s * 1.05;
}

/* 100 MB/s both ways for half a second, 10 ms away, told as it was. */
static struct tale *honest(void)
{
    static struct tale t;
    memset(&t, 0, sizeof t);
    strata__v1__probe_reply__init(&t.ab);
    strata__v1__probe_reply__init(&t.ba);
    strata__v1__seen_reply__init(&t.seen);
    latency(&t.lat_a, 10);
    latency(&t.lat_b, 11);
    rate(&t.forth, 50000000, 520, 96e6);
    t.forth.wire_bytes_per_s = 0; /* a sender's */
    rate(&t.received, 50000000, 505, 100e6);
    t.told = t.received;
    rate(&t.back, 49000000, 500, 100e6);
    rate(&t.sent, 49000000, 520, 95e6);
    t.ab.latency = &t.lat_a;
    t.ab.forth = &t.forth;
    t.ab.forth_peer = &t.told;
    t.ab.back = &t.back;
    t.ba.latency = &t.lat_b;
    t.seen.known = true;
    t.seen.pings = 20;
    t.seen.received = &t.received;
    t.seen.sent = &t.sent;
    t.s = (struct net_story){&t.ab, &t.seen, &t.ba};
    return &t;
}

static void test_honest(void **state)
{
    (void)state;
    struct tale *t = honest();
    assert_null(net_contradiction(&t->s));
    t->lat_a.received = 15; /* five lost on the way back */
    assert_null(net_contradiction(&t->s));
    t->seen.pings = 17; /* and three on the way there */
    assert_null(net_contradiction(&t->s));
    t->s.ab_seen = NULL;
    assert_null(net_contradiction(&t->s));
    t->s.ab = t->s.ba = NULL;
    assert_null(net_contradiction(&t->s));
}

static void caught(struct tale *t, const char *reason)
{
    const char *bad = net_contradiction(&t->s);
    assert_non_null(bad);
    assert_string_equal(bad, reason);
}

static void test_lies(void **state)
{
    (void)state;
    struct tale *t = honest();
    t->lat_a.received = 21;
    caught(t, "IMPOSSIBLE_FIGURES"); /* more came back than went out */
    t = honest();
    t->lat_a.p50_ns = 1;
    caught(t, "IMPOSSIBLE_FIGURES"); /* a median below the minimum */
    t = honest();
    t->lat_a.min_ns = t->lat_a.mean_ns = t->lat_a.p50_ns = t->lat_a.p99_ns = t->lat_a.max_ns = 0;
    caught(t, "IMPOSSIBLE_FIGURES");
    t = honest();
    t->ab.latency = NULL;
    caught(t, "IMPOSSIBLE_FIGURES");
    t = honest();
    t->seen.pings = 12;
    caught(t, "PROBES_DISAGREE"); /* answers to pings that the other end never saw */
    t = honest();
    t->seen.pings = 60;
    caught(t, "PROBES_DISAGREE");
    t = honest();
    latency(&t->lat_b, 2);
    caught(t, "RTT_DISAGREES"); /* one end says it is nearer than the other does */
    t = honest();
    t->told.bytes_per_s = 200e6;
    t->told.wire_bytes_per_s = 210e6;
    caught(t, "REPORT_ALTERED"); /* the prober passes on what the receiver did not say */
    t = honest();
    t->received.bytes = t->told.bytes = 90000000;
    caught(t, "BYTES_DISAGREE"); /* more received than was sent */
    t = honest();
    t->back.bytes = 90000000;
    caught(t, "BYTES_DISAGREE");
    t = honest();
    t->back.ns = 100000000;
    caught(t, "RATE_DISAGREES"); /* in a fifth of the time it took to send */
    t = honest();
    t->back.bytes_per_s = 1e9;
    t->back.wire_bytes_per_s = 1.05e9;
    caught(t, "IMPOSSIBLE_FIGURES"); /* a steady part ten times as fast as the whole */
    t = honest();
    t->back.bytes_per_s = -1;
    caught(t, "IMPOSSIBLE_FIGURES");
    t = honest();
    t->back.wire_bytes_per_s = 1e9;
    caught(t, "IMPOSSIBLE_FIGURES");
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(test_honest), cmocka_unit_test(test_lies)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
