/* Transfers: bytes and digest, pauses, refusals before the head, breaks after it, corruption. */
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <event2/event.h>

#include "tests/unit/rpc/rpcpeer.h"

#define MIB (1u << 20)

static void check_digest(const struct asked *a, uint64_t n)
{
    uint8_t want[32], *p = malloc(n + 1);
    assert_non_null(p);
    for (uint64_t i = 0; i < n; i++)
        p[i] = rpc_pattern(i);
    SHA256(p, n, want);
    free(p);
    assert_true(a->has_digest);
    assert_memory_equal(a->digest, want, 32);
}

static void whole(struct world *w, uint64_t n)
{
    struct asked a = {0};
    fetch(&a, w->c, "x", n, 60 * NS_PER_S);
    UNTIL(w, a.done);
    assert_int_equal(a.st.code, 0);
    assert_int_equal(a.messages, 1);
    assert_int_equal(a.got, n);
    assert_false(a.bad);
    check_digest(&a, n);
}

static void test_sizes(void **state)
{
    static const uint64_t n[] = {0, 1, 31, 32, 33, 65536, 65537, 32 * MIB};
    struct world w = {0};
    unsigned chunks = 0;
    (void)state;
    world_start(&w, true);
    for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
        whole(&w, n[i]);
        chunks += (unsigned)((n[i] + 65535) / 65536);
        UNTIL(&w, w.by_s.acked == chunks); /* every lent chunk comes back */
    }
    assert_true(w.by_s.again > 0);
    assert_int_equal(w.by_s.cancels, 0);
    world_stop(&w);
}

static void test_pauses(void **state)
{
    struct world w = {0};
    struct asked a = {.take_at_most = 3000};
    (void)state;
    world_start(&w, false);
    fetch(&a, w.c, "x", 2 * MIB, 60 * NS_PER_S);
    unsigned seen = 0;
    while (!a.done && !w.late) {
        event_base_loop(w.base, EVLOOP_ONCE);
        if (!a.done && a.pauses > seen) {
            uint64_t got = a.got;
            seen = a.pauses;
            rpc_bulk_resume(a.call);
            assert_int_equal(a.got, got); /* never inline */
        }
    }
    assert_int_equal(a.st.code, 0);
    assert_int_equal(a.got, 2 * MIB);
    assert_true(a.pauses > 100);
    check_digest(&a, 2 * MIB);
    world_stop(&w);
}

/* Who does not take stops the sender: no more than the windows is under way. The deadline still holds. */
static void test_back_pressure(void **state)
{
    struct world w = {0};
    struct asked a = {.take_at_most = 1000};
    (void)state;
    world_start(&w, false);
    fetch(&a, w.c, "x", 8 * MIB, 3 * NS_PER_S);
    UNTIL(&w, a.done);
    assert_int_equal(a.st.code, 4);
    assert_int_equal(a.got, 1000);
    assert_false(a.has_digest);
    assert_true(w.by_s.at < 4 * MIB);
    UNTIL(&w, w.by_s.cancels == 1);
    world_stop(&w);
}

static void test_goes_wrong(void **state)
{
    static const struct {
        const char *path;
        unsigned code, messages;
        const char *reason;
    } t[] = {{"deny", 7, 0, "NO_TICKET"}, {"break", 9, 1, "RESET"}, {"corrupt", 15, 1, "DIGEST_MISMATCH"}};
    struct world w = {0};
    (void)state;
    world_start(&w, true);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct asked a = {0};
        fetch(&a, w.c, t[i].path, 300000, 20 * NS_PER_S);
        UNTIL(&w, a.done);
        assert_int_equal(a.st.code, t[i].code);
        assert_string_equal(a.st.reason, t[i].reason);
        assert_true(a.messages <= t[i].messages);
        assert_false(a.has_digest);
        whole(&w, 1000);
    }
    world_stop(&w);
}

static void test_cancel(void **state)
{
    struct world w = {0};
    struct asked a = {.cancel_on_message = true}, b = {.take_at_most = 10};
    (void)state;
    world_start(&w, false);
    fetch(&a, w.c, "x", 8 * MIB, 20 * NS_PER_S);
    UNTIL(&w, a.done && w.by_s.cancels == 1);
    assert_int_equal(a.st.code, 1);
    /* While paused, and with a resume just before. */
    fetch(&b, w.c, "x", 8 * MIB, 20 * NS_PER_S);
    UNTIL(&w, b.pauses);
    rpc_bulk_resume(b.call);
    rpc_cancel(b.call);
    rpc_bulk_resume(b.call);
    UNTIL(&w, b.done && w.by_s.cancels == 2);
    assert_int_equal(b.st.code, 1);
    assert_int_equal(b.got, 10);
    world_stop(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),         cmocka_unit_test(test_pauses),
        cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_goes_wrong),
        cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
