/* Calls between two ends on loopback: answers, errors, streams, cancels, deadlines, lost peers. */
#include <event2/event.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/rpc/rpcpeer.h"

static void test_unary(void **state)
{
    struct world w = {0};
    struct asked a = {0}, b = {0};
    (void)state;
    world_start(&w, false);
    uint64_t before = clock_ns(clock_system());
    ask(&a, w.c, "Get", "job-7", 20 * NS_PER_S);
    UNTIL(&w, a.done);
    assert_int_equal(a.st.code, 0);
    assert_int_equal(a.messages, 1);
    assert_string_equal(a.id, "job-7");
    assert_string_equal(w.by_s.request_id, "request-1");
    assert_string_equal(w.by_s.principal, "node/dione");
    assert_string_equal(w.by_s.name, "Jobs.Get");
    assert_true(w.by_s.deadline_ns >= before + 20 * NS_PER_S);
    assert_true(w.by_s.deadline_ns <= clock_ns(clock_system()) + 20 * NS_PER_S);
    /* The other way over the same connection. */
    ask(&b, w.s, "Get", "back", 0);
    UNTIL(&w, b.done);
    assert_int_equal(b.st.code, 0);
    assert_string_equal(b.id, "back");
    assert_string_equal(w.by_c.principal, "coordinator");
    world_stop(&w);
}

static void test_many(void **state)
{
    struct world w = {.max_inbound = 64};
    static struct asked a[16];
    char id[16];
    unsigned done = 0;
    (void)state;
    world_start(&w, false);
    for (unsigned round = 0; round < 20; round++) {
        memset(a, 0, sizeof a);
        for (unsigned i = 0; i < 16; i++) {
            snprintf(id, sizeof id, "%u-%u", round, i);
            ask(&a[i], w.c, "Get", id, 0);
        }
        for (unsigned i = 0; i < 16; i++) {
            UNTIL(&w, a[i].done);
            snprintf(id, sizeof id, "%u-%u", round, i);
            assert_int_equal(a[i].st.code, 0);
            assert_string_equal(a[i].id, id);
            done++;
        }
    }
    assert_int_equal(done, 320);
    assert_int_equal(w.by_s.calls, 320);
    world_stop(&w);
}

static void test_errors(void **state)
{
    struct world w = {0};
    struct asked a = {0}, b = {0}, c = {0};
    (void)state;
    world_start(&w, false);
    ask(&a, w.c, "Get", "fail", 0);
    ask(&b, w.c, "Verify", "x", 0);
    UNTIL(&w, a.done && b.done);
    assert_int_equal(b.st.code, 7);
    assert_string_equal(b.st.reason, "NO_POLICY");
    assert_int_equal(a.st.code, 5);
    assert_string_equal(a.st.reason, "NO_JOB");
    assert_string_equal(a.st.text, "there is no job \"fail\": see strata jobs");
    assert_int_equal(a.messages, 0);
    ask(&c, w.c, "Get", "huge", 0);
    UNTIL(&w, c.done);
    assert_int_equal(c.st.code, 11);
    assert_string_equal(c.st.reason, "REPLY_TOO_LARGE");
    world_stop(&w);
}

static void test_refused_here(void **state)
{
    struct world w = {0};
    struct rpc_call *call;
    struct err e;
    Strata__V1__GetJobRequest req = STRATA__V1__GET_JOB_REQUEST__INIT;
    (void)state;
    world_start(&w, false);
    assert_int_equal(rpc_call(&call, w.c, &strata__v1__jobs__descriptor, "Erase", 0, &req.base, NULL,
                              &asked_ops, NULL, &e),
                     ST_EINVAL);
    assert_int_equal(rpc_call(&call, w.c, &strata__v1__jobs__descriptor, "Submit", 0, &req.base, NULL,
                              &asked_ops, NULL, &e),
                     ST_EINVAL);
    req.id = malloc(RPC_MAX_MESSAGE + 1);
    assert_non_null(req.id);
    memset(req.id, 'i', RPC_MAX_MESSAGE);
    req.id[RPC_MAX_MESSAGE] = 0;
    assert_int_equal(
        rpc_call(&call, w.c, &strata__v1__jobs__descriptor, "Get", 0, &req.base, NULL, &asked_ops, NULL, &e),
        ST_ELIMIT);
    free(req.id);
    world_stop(&w);
}

static void test_unknown_method(void **state)
{
    struct world w = {0};
    struct asked a = {0};
    struct err e;
    Strata__V1__ClusterRequest req = STRATA__V1__CLUSTER_REQUEST__INIT;
    (void)state;
    world_start(&w, false);
    assert_int_equal(rpc_call(&a.call, w.c, &strata__v1__plans__descriptor, "Cluster", 0, &req.base, NULL,
                              &asked_ops, &a, &e),
                     ST_OK);
    UNTIL(&w, a.done);
    assert_int_equal(a.st.code, 12);
    assert_string_equal(a.st.reason, "UNKNOWN_METHOD");
    world_stop(&w);
}

static void test_stream(void **state)
{
    struct world w = {0};
    struct asked a = {0}, b = {0};
    (void)state;
    world_start(&w, false);
    ask(&a, w.c, "Watch", "300", 0); /* 19 MiB through a queue and windows far smaller */
    UNTIL(&w, a.done);
    assert_int_equal(a.st.code, 0);
    assert_int_equal(a.messages, 300);
    assert_false(a.bad);
    assert_true(w.by_s.again > 10);
    ask(&b, w.c, "Watch", "0", 0);
    UNTIL(&w, b.done);
    assert_int_equal(b.st.code, 0);
    assert_int_equal(b.messages, 0);
    world_stop(&w);
}

static void test_cancel(void **state)
{
    struct world w = {0};
    struct asked a = {0}, b = {0}, c = {0};
    (void)state;
    world_start(&w, false);
    ask(&a, w.c, "Get", "hold", UINT64_MAX);
    UNTIL(&w, w.by_s.held);
    rpc_cancel(a.call);
    assert_false(a.done);
    rpc_cancel(a.call);
    UNTIL(&w, a.done && w.by_s.cancels == 1);
    assert_int_equal(a.st.code, 1);
    assert_null(w.by_s.held);
    /* From inside on_message, with more messages in the same buffer. */
    b.cancel_on_message = true;
    ask(&b, w.c, "Watch", "300", 0);
    UNTIL(&w, b.done && w.by_s.cancels == 2);
    assert_int_equal(b.st.code, 1);
    assert_int_equal(b.messages, 1);
    /* The callee gives up. */
    ask(&c, w.c, "Get", "hold", 0);
    UNTIL(&w, w.by_s.held);
    rpc_finish(w.by_s.held, 1, "SHUTDOWN", "shutting down");
    UNTIL(&w, c.done);
    assert_int_equal(c.st.code, 1);
    assert_string_equal(c.st.reason, "SHUTDOWN");
    assert_int_equal(w.by_s.cancels, 2);
    world_stop(&w);
}

static void test_deadline(void **state)
{
    struct world w = {0};
    struct asked a = {0}, b = {0};
    (void)state;
    world_start(&w, false);
    uint64_t t = clock_ns(clock_system());
    ask(&b, w.c, "Get", "hold", UINT64_MAX);
    UNTIL(&w, w.by_s.held);
    struct rpc_call *endless = w.by_s.held;
    assert_true(rpc_deadline_ns(endless) == UINT64_MAX);
    ask(&a, w.c, "Get", "hold", 50 * NS_PER_MS);
    UNTIL(&w, a.done && w.by_s.cancels == 1);
    assert_int_equal(a.st.code, 4);
    assert_true(clock_ns(clock_system()) - t >= 50 * NS_PER_MS);
    assert_false(b.done);
    rpc_finish(endless, 0, NULL, "%s", "");
    UNTIL(&w, b.done);
    assert_int_equal(b.st.code, 0);
    world_stop(&w);
}

static void test_too_many(void **state)
{
    struct world w = {.max_inbound = 3};
    struct asked a[5] = {{0}};
    (void)state;
    world_start(&w, false);
    for (unsigned i = 0; i < 4; i++)
        ask(&a[i], w.c, "Get", "hold", 0);
    UNTIL(&w, a[3].done);
    assert_int_equal(a[3].st.code, 8);
    assert_int_equal(w.by_s.calls, 3);
    rpc_cancel(a[0].call);
    UNTIL(&w, a[0].done && w.by_s.cancels == 1);
    /* A place is free once the stream is closed, which the server hears of by an acknowledgement. */
    while (!a[4].done || a[4].st.code == 8) {
        assert_false(w.late);
        memset(&a[4], 0, sizeof a[4]);
        ask(&a[4], w.c, "Get", "fits", 0);
        UNTIL(&w, a[4].done);
    }
    assert_int_equal(a[4].st.code, 0);
    world_stop(&w);
    assert_true(a[1].done && a[2].done);
    assert_int_equal(a[1].st.code, 14);
}

static void test_closed(void **state)
{
    struct world w = {0};
    struct asked a = {0}, b = {0};
    (void)state;
    world_start(&w, false);
    ask(&a, w.c, "Get", "hold", 0);
    ask(&b, w.c, "Get", "close", 0);
    UNTIL(&w, a.done && b.done && !w.c && !w.s);
    assert_int_equal(a.st.code, 14);
    assert_int_equal(b.st.code, 14);
    assert_int_equal(w.by_s.cancels, 2);
    assert_int_equal(w.why.kind, QUIC_CLOSE_PEER);
    assert_string_equal(w.why.reason, "closing time");
    world_stop(&w);
}

/* ---- a peer that falls silent ---- */

struct lone { /* the client's end alone, before a server in another process */
    struct world w;
    pid_t pid;
};

static void lone_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct world *w = arg;
    (void)s;
    w->c = NULL;
    w->why = *why;
}

static void late(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    ((struct world *)arg)->late = true;
}

static void lone_start(struct lone *l, uint64_t idle_ns)
{
    static const struct rpc_session_ops ops = {.on_closed = lone_closed};
    struct world *w = &l->w;
    struct err e;
    char text[64];
    uint16_t port;
    struct quic_addr to;
    w->log = (struct log){.fd = -1, .clock = clock_system()};
    pki_open(&w->pki);
    l->pid = server_fork(&w->pki, &port);
    w->base = event_base_new();
    w->deadline = evtimer_new(w->base, late, w);
    evtimer_add(w->deadline, &(struct timeval){.tv_sec = 60});
    w->tls_c = pki_ctx(&w->pki, TLS_NODE, "dione");
    struct quic_ep_cfg cfg = {
        .clock = clock_system(), .rng = rng_system(), .log = &w->log, .tls = w->tls_c, .reset_secret = {3}};
    const struct rpc_cfg rc = {.base = w->base, .clock = clock_system(), .log = &w->log};
    quic_limits_control(&cfg.limits);
    cfg.limits.idle_ns = idle_ns;
    assert_int_equal(quic_udp_new(&w->uc, &w->ec, w->base, 0, "127.0.0.1:0", &cfg, &e), ST_OK);
    snprintf(text, sizeof text, "127.0.0.1:%u", port);
    assert_int_equal(quic_addr_parse(text, &to, &e), ST_OK);
    assert_int_equal(rpc_dial(&w->c, &rc, w->ec, &to, TLS_COORDINATOR, NULL, &ops, w, &e), ST_OK);
    struct asked a = {0};
    UNTIL(w, !w->c || rpc_session_peer(w->c)->principal[0]);
    assert_non_null(w->c);
    ask(&a, w->c, "Get", "here", 0);
    UNTIL(w, a.done);
    assert_int_equal(a.st.code, 0);
}

static void lone_stop(struct lone *l)
{
    server_kill(l->pid);
    quic_udp_free(l->w.uc, 0, "done");
    tls_ctx_unref(l->w.tls_c);
    pki_close(&l->w.pki);
    event_free(l->w.deadline);
    event_base_free(l->w.base);
}

static void test_silent_peer(void **state)
{
    struct lone l = {0};
    struct asked a = {0}, b = {0};
    (void)state;
    lone_start(&l, 15 * NS_PER_S);
    kill(l.pid, SIGSTOP);
    uint64_t t = clock_ns(clock_system());
    ask(&a, l.w.c, "Get", "x", 100 * NS_PER_MS);
    ask(&b, l.w.c, "Get", "x", 0);
    UNTIL(&l.w, a.done);
    assert_int_equal(a.st.code, 4);
    rpc_cancel(b.call);
    UNTIL(&l.w, b.done);
    assert_int_equal(b.st.code, 1);
    assert_true(clock_ns(clock_system()) - t < 5 * NS_PER_S); /* far below the idle timeout */
    lone_stop(&l);
}

static void test_vanished_peer(void **state)
{
    struct lone l = {0};
    struct asked a = {0};
    (void)state;
    lone_start(&l, 2 * NS_PER_S);
    kill(l.pid, SIGKILL);
    ask(&a, l.w.c, "Get", "x", 50 * NS_PER_S);
    UNTIL(&l.w, a.done && !l.w.c);
    assert_int_equal(a.st.code, 14);
    assert_string_equal(a.st.reason, "CONNECTION_LOST");
    assert_int_equal(l.w.why.kind, QUIC_CLOSE_IDLE);
    lone_stop(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unary),          cmocka_unit_test(test_many),
        cmocka_unit_test(test_errors),         cmocka_unit_test(test_refused_here),
        cmocka_unit_test(test_unknown_method), cmocka_unit_test(test_stream),
        cmocka_unit_test(test_cancel),         cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_too_many),       cmocka_unit_test(test_closed),
        cmocka_unit_test(test_silent_peer),    cmocka_unit_test(test_vanished_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
