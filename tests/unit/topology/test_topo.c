/* Leases, epochs and reservations of the registry on a clock made of numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "coordinator/topology/topo.h"

static struct topo_device dev(const char *id, uint64_t mem)
{
    struct topo_device d = {.memory_bytes = mem, .available_bytes = mem};
    snprintf(d.local_id, sizeof d.local_id, "%s", id);
    return d;
}

struct seen {
    int n;
    enum topo_state last;
};

static void on_change(struct topo_node *n, enum topo_state was, void *arg)
{
    struct seen *s = arg;
    assert_int_not_equal(was, n->state);
    s->n++;
    s->last = n->state;
}

static void test_lease(void **st)
{
    (void)st;
    struct topo *t;
    struct err e;
    struct topo_node *n;
    struct seen s = {0};
    assert_int_equal(topo_new(&t, 3 * NS_PER_S, 5 * NS_PER_S, 7), ST_OK);
    struct topo_device d = dev("cpu:0", 100);
    assert_int_equal(topo_hello(t, "a", &d, 1, 10 * NS_PER_S, 1, &n, &e), ST_OK);
    assert_int_equal(n->epoch, 7);
    topo_tick(t, 12 * NS_PER_S, on_change, &s);
    assert_int_equal(s.n, 0);
    topo_tick(t, 13 * NS_PER_S, on_change, &s);
    assert_int_equal(s.n, 1);
    assert_int_equal(s.last, TOPO_SUSPECT);
    assert_int_equal(topo_heartbeat(t, n, 7, 14 * NS_PER_S, 2), ST_OK);
    assert_int_equal(n->state, TOPO_CONNECTED);
    assert_int_equal(topo_heartbeat(t, n, 6, 14 * NS_PER_S, 2), ST_ECONFLICT);
    topo_tick(t, 19 * NS_PER_S, on_change, &s);
    assert_int_equal(s.last, TOPO_LOST);
    /* A lost node's old lease is void: it has to say hello again. */
    assert_int_equal(topo_heartbeat(t, n, 7, 19 * NS_PER_S, 2), ST_ECONFLICT);
    assert_int_equal(topo_hello(t, "a", &d, 1, 20 * NS_PER_S, 3, &n, &e), ST_OK);
    assert_int_equal(n->epoch, 8);
    assert_int_equal(n->first_seen_us, 1);
    topo_disconnected(t, n);
    assert_int_equal(n->state, TOPO_SUSPECT);
    topo_free(t);
}

static void test_expected_node_is_lost_if_silent(void **st)
{
    (void)st;
    struct topo *t;
    struct seen s = {0};
    assert_int_equal(topo_new(&t, 3 * NS_PER_S, 5 * NS_PER_S, 1), ST_OK);
    assert_int_equal(topo_expect(t, "a", 100, 5, 6), ST_OK);
    assert_int_equal(topo_expect(t, "a", 100, 5, 6), ST_EEXIST);
    topo_tick(t, 5 * NS_PER_S + 99, on_change, &s);
    assert_int_equal(s.n, 0);
    topo_tick(t, 5 * NS_PER_S + 100, on_change, &s);
    assert_int_equal(s.last, TOPO_LOST);
    topo_free(t);
}

static void test_devices(void **st)
{
    (void)st;
    struct topo *t;
    struct err e;
    struct topo_node *n;
    assert_int_equal(topo_new(&t, 3, 5, 1), ST_OK);
    static const char *const bad[] = {"", "cpu", ":0", "cpu:", "a/cpu:0", "cpu:*"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct topo_device d = dev(bad[i], 1);
        assert_int_equal(topo_hello(t, "a", &d, 1, 0, 0, &n, &e), ST_EINVAL);
    }
    struct topo_device two[2] = {dev("cpu:0", 100), dev("cpu:0", 100)};
    assert_int_equal(topo_hello(t, "a", two, 2, 0, 0, &n, &e), ST_EINVAL);
    assert_int_equal(topo_hello(t, "../a", two, 1, 0, 0, &n, &e), ST_EINVAL);
    assert_int_equal(topo_hello(t, "a", two, TOPO_MAX_DEVICES + 1, 0, 0, &n, &e), ST_ELIMIT);
    assert_int_equal(topo_count(t), 0);
    two[1] = dev("vulkan:0", 200);
    assert_int_equal(topo_hello(t, "b", two, 2, 0, 0, &n, &e), ST_OK);
    assert_int_equal(topo_hello(t, "a", two, 1, 0, 0, &n, &e), ST_OK);
    assert_string_equal(topo_at(t, 0)->name, "a");
    struct topo_device *d = topo_device(t, "b/vulkan:0", &n);
    assert_non_null(d);
    assert_string_equal(n->name, "b");
    assert_null(topo_device(t, "b/cuda:0", NULL));
    assert_null(topo_device(t, "vulkan:0", NULL));
    d->reserved_bytes = 150;
    assert_int_equal(topo_free_bytes(d), 50);
    d->resident_bytes = 150; /* its agent's word is older than that: the memory there is decides */
    assert_int_equal(topo_free_bytes(d), 50);
    d->available_bytes = 20;
    assert_int_equal(topo_free_bytes(d), 20);
    d->available_bytes = 200;
    d->reserved_bytes = d->resident_bytes = 50;
    d->available_bytes = 150;
    d->session_bytes = 100; /* what sessions may take is taken, whether they have it yet or not */
    assert_int_equal(topo_free_bytes(d), 50);
    d->session_used_bytes = 100;
    d->available_bytes = 50;
    assert_int_equal(topo_free_bytes(d), 50);
    d->available_bytes = 30; /* 20 bytes are somebody else's */
    assert_int_equal(topo_free_bytes(d), 30);
    d->session_used_bytes = 40;
    d->available_bytes = 90;
    assert_int_equal(topo_free_bytes(d), 30);
    d->session_bytes = d->session_used_bytes = 0;
    d->available_bytes = 200;
    d->resident_bytes = 0;
    d->reserved_bytes = 300;
    assert_int_equal(topo_free_bytes(d), 0);
    assert_int_equal(topo_hello(t, "b", two, 2, 0, 0, &n, &e), ST_OK);
    assert_int_equal(topo_device(t, "b/vulkan:0", NULL)->reserved_bytes, 300);
    topo_free(t);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(test_lease),
                                   cmocka_unit_test(test_expected_node_is_lost_if_silent),
                                   cmocka_unit_test(test_devices)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
