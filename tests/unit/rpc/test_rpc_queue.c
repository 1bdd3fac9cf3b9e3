/* More calls than the peer allows at once: they wait their turn at the caller, within bounds, and end there
 * too. */
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rpc/rpc_priv.h"
#include "strata/v1/jobs.pb-c.h"
#include "tests/unit/rpc/rpcpeer.h"

enum { AT_ONCE = 128 }; /* streams of a control endpoint */

static void test_all_answered(void **state)
{
    enum { N = 1000 };
    struct world w = {.max_inbound = AT_ONCE};
    struct asked *a = calloc(N, sizeof *a);
    char id[16];
    (void)state;
    world_start(&w, false);
    for (unsigned i = 0; i < N; i++) {
        snprintf(id, sizeof id, "%u", i);
        ask(&a[i], w.c, "Get", id, 0);
    }
    for (unsigned i = 0; i < N; i++) {
        UNTIL(&w, a[i].done);
        snprintf(id, sizeof id, "%u", i);
        assert_int_equal(a[i].st.code, 0);
        assert_string_equal(a[i].id, id);
    }
    assert_int_equal(w.by_s.calls, N);
    world_stop(&w);
    free(a);
}

static void held(struct world *w, struct asked *a)
{
    memset(a, 0, AT_ONCE * sizeof *a);
    unsigned before = w->by_s.calls;
    for (unsigned i = 0; i < AT_ONCE; i++)
        ask(&a[i], w->c, "Get", "hold", 60 * NS_PER_S);
    UNTIL(w, w->by_s.calls == before + AT_ONCE);
}

/* A call that waits ends by its deadline, by a cancel, or goes when one of those before it is over. */
static void test_ends_while_waiting(void **state)
{
    struct world w = {.max_inbound = AT_ONCE};
    static struct asked a[AT_ONCE], late, gone, next;
    (void)state;
    world_start(&w, false);
    held(&w, a);
    ask(&late, w.c, "Get", "x", 50 * NS_PER_MS);
    ask(&gone, w.c, "Get", "x", 0);
    ask(&next, w.c, "Get", "next", 0);
    rpc_cancel(gone.call);
    assert_false(gone.done);
    UNTIL(&w, gone.done && late.done);
    assert_int_equal(gone.st.code, 1);
    assert_int_equal(late.st.code, 4);
    assert_non_null(strstr(late.st.text, "waited"));
    assert_false(next.done);
    assert_int_equal(w.by_s.calls, AT_ONCE); /* neither left the caller */
    rpc_cancel(a[7].call);
    UNTIL(&w, next.done);
    assert_int_equal(next.st.code, 0);
    assert_string_equal(next.id, "next");
    world_stop(&w);
}

struct pair {
    struct rpc_call *other;
    unsigned done, code;
};

static void done_cancels(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct pair *p = arg;
    (void)call, (void)digest;
    p->done++;
    p->code = st->code;
    if (p->other)
        rpc_cancel(p->other);
}

/* With the connection all that waits ends as well; one end may cancel another. */
static void test_lost_while_waiting(void **state)
{
    static const struct rpc_call_ops ops = {.on_done = done_cancels};
    struct world w = {.max_inbound = AT_ONCE};
    static struct asked a[AT_ONCE];
    struct pair p[3] = {{0}};
    struct rpc_call *c[3];
    struct err e = {0};
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    (void)state;
    world_start(&w, false);
    held(&w, a);
    for (int i = 0; i < 3; i++)
        assert_int_equal(
            rpc_call(&c[i], w.c, &strata__v1__jobs__descriptor, "Get", 0, &q.base, NULL, &ops, &p[i], &e),
            ST_OK);
    p[1].other = c[0];
    rpc_session_close(w.c, 0, "enough");
    UNTIL(&w, !w.c);
    for (int i = 0; i < 3; i++)
        assert_int_equal(p[i].done, 1);
    assert_int_equal(p[1].code, 14);
    world_stop(&w);
}

static void test_bounds(void **state)
{
    struct world w = {.max_inbound = AT_ONCE};
    static struct asked a[AT_ONCE];
    struct asked *b = calloc(RPC_MAX_WAITING, sizeof *b);
    struct err e = {0};
    struct rpc_call *c;
    char *big = malloc((1u << 20) - 1000);
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    (void)state;
    world_start(&w, false);
    held(&w, a);
    for (unsigned i = 0; i < RPC_MAX_WAITING; i++)
        ask(&b[i], w.c, "Get", "x", 0);
    assert_int_equal(
        rpc_call(&c, w.c, &strata__v1__jobs__descriptor, "Get", 0, &q.base, NULL, &asked_ops, &b[0], &e),
        ST_EAGAIN);
    assert_non_null(strstr(e.text, "wait"));
    for (unsigned i = 0; i < RPC_MAX_WAITING; i++)
        rpc_cancel(b[i].call);
    for (unsigned i = 0; i < RPC_MAX_WAITING; i++)
        UNTIL(&w, b[i].done);
    /* The same in bytes. */
    memset(big, 'x', (1u << 20) - 1001);
    big[(1u << 20) - 1001] = 0;
    memset(b, 0, 5 * sizeof *b);
    for (unsigned i = 0; i < 4; i++)
        ask(&b[i], w.c, "Get", big, 0);
    q.id = big;
    assert_int_equal(
        rpc_call(&c, w.c, &strata__v1__jobs__descriptor, "Get", 0, &q.base, NULL, &asked_ops, &b[0], &e),
        ST_EAGAIN);
    rpc_cancel(b[1].call);
    ask(&b[4], w.c, "Get", big, 0);
    for (unsigned i = 0; i < AT_ONCE; i++)
        rpc_cancel(a[i].call);
    for (unsigned i = 0; i < 5; i++) {
        UNTIL(&w, b[i].done);
        assert_int_equal(b[i].st.code, i == 1 ? 1 : 0);
    }
    world_stop(&w);
    free(b);
    free(big);
}

/* A server that allows fewer calls than streams refuses; the caller hears of it. */
static void test_refused(void **state)
{
    struct world w = {.max_inbound = 4};
    static struct asked a[5], b;
    (void)state;
    world_start(&w, false);
    for (unsigned i = 0; i < 4; i++)
        ask(&a[i], w.c, "Get", "hold", 0);
    ask(&a[4], w.c, "Get", "x", 0);
    UNTIL(&w, a[4].done);
    assert_int_equal(a[4].st.code, 8);
    rpc_cancel(a[0].call);
    UNTIL(&w, w.by_s.cancels == 1);
    ask(&b, w.c, "Get", "x", 0);
    UNTIL(&w, b.done);
    assert_int_equal(b.st.code, 0);
    world_stop(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_answered),
        cmocka_unit_test(test_ends_while_waiting),
        cmocka_unit_test(test_lost_while_waiting),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
