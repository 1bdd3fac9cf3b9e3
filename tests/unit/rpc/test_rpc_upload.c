/* Uploads: bytes and digest, pauses, answers before the end, corruption, truncation, silence. */
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <event2/event.h>

#include "common/rpc/rpc_priv.h"
#include "tests/unit/rpc/rpcpeer.h"

#define MIB (1u << 20)

/* What the callee does is in the id asked for. */
struct sink {
    struct world w;
    struct rpc_table *table;
    struct rpc_call *call;
    uint64_t got, limit; /* pauses for good at limit */
    bool bad, ended, cancelled, tiny;
    int rc;
    char reason[40];
    uint8_t digest[32];
};

struct source {
    struct rpc_call *call;
    uint64_t at, size;
    bool end, corrupt, cut, done;
    unsigned again, messages;
    struct rpc_status st;
};

static size_t on_bytes(struct rpc_call *call, const uint8_t *p, size_t n, void *arg)
{
    struct sink *k = arg;
    assert_ptr_equal(call, k->call);
    if (k->tiny && n > 999)
        n = 999;
    if (k->limit && n > k->limit - k->got)
        n = (size_t)(k->limit - k->got);
    for (size_t i = 0; i < n; i++)
        k->bad |= p[i] != rpc_pattern(k->got + i);
    k->got += n;
    if (k->tiny)
        rpc_upload_resume(call); /* too early: not paused yet, nothing must come of it */
    return n;
}

static void on_end(struct rpc_call *call, int rc, const struct err *e, const uint8_t *digest, void *arg)
{
    struct sink *k = arg;
    k->ended = true;
    k->rc = rc;
    k->call = NULL;
    if (rc < 0) {
        strcpy(k->reason, e->reason);
        rpc_fail(call, e);
        return;
    }
    memcpy(k->digest, digest, 32);
    Strata__V1__Job r = STRATA__V1__JOB__INIT;
    r.total_bytes = k->got;
    rpc_reply(call, &r.base);
}

static const struct rpc_upload_ops up_ops = {on_bytes, on_end};

static void on_cancel(struct rpc_call *call, void *arg)
{
    struct sink *k = arg;
    (void)call;
    k->cancelled = true;
    k->call = NULL;
}

static void on_put(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct sink *k = arg;
    const char *id = ((const Strata__V1__GetJobRequest *)msg)->id;
    if (!strcmp(id, "refuse")) {
        rpc_finish(call, 7, "NO", "not here");
        return;
    }
    k->call = call;
    rpc_on_cancel(call, on_cancel, k);
    k->tiny = !strcmp(id, "tiny");
    k->limit = !strcmp(id, "stop") ? 1000 : 0;
    rpc_upload_start(call, &up_ops, k);
}

static void on_other(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)msg;
    (void)arg;
    rpc_finish(call, 12, "NOT_HERE", "not here");
}

static void start(struct sink *k)
{
    static const ProtobufCServiceDescriptor *const svc[] = {&strata__v1__jobs__descriptor};
    static const struct rpc_method m[] = {
        {"strata.v1.Jobs", "Submit", 0, on_other},        {"strata.v1.Jobs", "List", 0, on_other},
        {"strata.v1.Jobs", "Get", 0, on_other},           {"strata.v1.Jobs", "Watch", 0, on_other},
        {"strata.v1.Jobs", "Cancel", 0, on_other},        {"strata.v1.Jobs", "Move", 0, on_other},
        {"strata.v1.Jobs", "Verify", RPC_UPLOAD, on_put},
    };
    struct err e;
    *k = (struct sink){0};
    world_start(&k->w, true);
    assert_int_equal(rpc_table_new(&k->table, svc, 1, m, sizeof m / sizeof *m, k, &e), ST_OK);
    k->w.s->cfg.table = k->table;
}

static void stop(struct sink *k)
{
    world_stop(&k->w);
    rpc_table_free(k->table);
}

static void more(struct rpc_call *call, void *arg)
{
    struct source *s = arg;
    uint8_t b[16384];
    int rc = ST_OK;
    while (s->at < s->size && rc == ST_OK) {
        size_t n = s->size - s->at < sizeof b ? (size_t)(s->size - s->at) : sizeof b;
        for (size_t i = 0; i < n; i++)
            b[i] = rpc_pattern(s->at + i);
        rc = rpc_upload_write(call, b, n);
        if (rc == ST_OK)
            s->at += n;
    }
    if (rc == ST_EAGAIN)
        s->again++;
    if (rc < 0 || s->end)
        return;
    s->end = true;
    if (s->corrupt)
        EVP_DigestUpdate(call->md, "x", 1);
    if (s->cut)
        (void)!quic_stream_write(call->stream, "0123456789", 10, true);
    else
        rpc_upload_end(call);
}

static void on_message(struct rpc_call *call, const ProtobufCMessage *m, void *arg)
{
    struct source *s = arg;
    (void)call;
    s->messages++;
    assert_true(((const Strata__V1__Job *)m)->total_bytes == s->size);
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct source *s = arg;
    assert_null(digest);
    assert_int_equal(rpc_upload_write(call, "x", 1), ST_ECLOSED);
    s->done = true;
    s->call = NULL;
    s->st = *st;
}

static const struct rpc_call_ops put_ops = {
    .on_message = on_message, .on_done = on_done, .on_writable = more};

static void put(struct sink *k, struct source *s, const char *id, uint64_t timeout_ns)
{
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    const struct rpc_call_opts o = {.timeout_ns = timeout_ns};
    struct err e;
    q.id = (char *)id;
    k->got = 0;
    k->ended = k->cancelled = k->bad = false;
    assert_int_equal(rpc_call(&s->call, k->w.c, &strata__v1__jobs__descriptor, "Verify", RPC_UPLOAD, &q.base,
                              &o, &put_ops, s, &e),
                     ST_OK);
    more(s->call, s);
}

static void whole(struct sink *k, const char *id, uint64_t n)
{
    struct source s = {.size = n};
    uint8_t want[32], *p = malloc(n + 1);
    put(k, &s, id, 60 * NS_PER_S);
    UNTIL(&k->w, s.done);
    assert_int_equal(s.st.code, 0);
    assert_int_equal(s.messages, 1);
    assert_true(k->ended && !k->bad && k->got == n);
    for (uint64_t i = 0; i < n; i++)
        p[i] = rpc_pattern(i);
    SHA256(p, n, want);
    free(p);
    assert_memory_equal(k->digest, want, 32);
}

static void test_sizes(void **state)
{
    static const uint64_t n[] = {0, 1, 31, 32, 33, 65536, 65537, 32 * MIB};
    struct sink k;
    (void)state;
    start(&k);
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        whole(&k, "plain", n[i]);
    assert_false(k.cancelled);
    stop(&k);
}

static void test_pauses(void **state)
{
    struct sink k;
    struct source s = {.size = MIB};
    (void)state;
    start(&k);
    put(&k, &s, "tiny", 60 * NS_PER_S);
    while (!s.done && !k.w.late) {
        event_base_loop(k.w.base, EVLOOP_ONCE);
        uint64_t got = k.got;
        if (k.call)
            rpc_upload_resume(k.call);
        assert_true(k.got == got); /* never inline */
    }
    assert_int_equal(s.st.code, 0);
    assert_true(k.got == MIB && !k.bad);
    stop(&k);
}

/* Who does not take stops the sender; the deadline still holds, and the callee is told. */
static void test_back_pressure(void **state)
{
    struct sink k;
    struct source s = {.size = 64 * MIB};
    (void)state;
    start(&k);
    put(&k, &s, "stop", 2 * NS_PER_S);
    UNTIL(&k.w, s.done);
    assert_int_equal(s.st.code, 4);
    assert_true(k.got == 1000 && s.again > 0);
    assert_true(s.at < 32 * MIB);
    UNTIL(&k.w, k.cancelled);
    assert_false(k.ended);
    whole(&k, "plain", 1000);
    stop(&k);
}

static void test_goes_wrong(void **state)
{
    struct sink k;
    (void)state;
    start(&k);
    struct source s = {.size = 300000, .corrupt = true};
    put(&k, &s, "plain", 20 * NS_PER_S);
    UNTIL(&k.w, s.done);
    assert_int_equal(s.st.code, 15);
    assert_string_equal(s.st.reason, "DIGEST_MISMATCH");
    /* Cut short: what is taken for the digest is none, or there are not even bytes enough for one. */
    s = (struct source){.size = 300000, .cut = true};
    put(&k, &s, "plain", 20 * NS_PER_S);
    UNTIL(&k.w, s.done);
    assert_string_equal(s.st.reason, "DIGEST_MISMATCH");
    s = (struct source){.size = 5, .cut = true};
    put(&k, &s, "plain", 20 * NS_PER_S);
    UNTIL(&k.w, s.done);
    assert_string_equal(s.st.reason, "TRUNCATED");
    /* Refused at the request, with more than any window on its way. */
    s = (struct source){.size = 64 * MIB};
    put(&k, &s, "refuse", 20 * NS_PER_S);
    UNTIL(&k.w, s.done);
    assert_int_equal(s.st.code, 7);
    assert_true(s.at < s.size);
    /* The caller gives up in the middle. */
    s = (struct source){.size = 64 * MIB};
    put(&k, &s, "stop", 20 * NS_PER_S);
    UNTIL(&k.w, k.got == 1000);
    rpc_cancel(s.call);
    UNTIL(&k.w, s.done && k.cancelled);
    assert_int_equal(s.st.code, 1);
    /* The callee answers in the middle. */
    s = (struct source){.size = 64 * MIB};
    put(&k, &s, "stop", 20 * NS_PER_S);
    UNTIL(&k.w, k.got == 1000);
    rpc_finish(k.call, 8, "FULL", "no more");
    UNTIL(&k.w, s.done);
    assert_string_equal(s.st.reason, "FULL");
    whole(&k, "plain", 100000);
    stop(&k);
}

/* An upload that waits for a stream: its bytes are asked for when it has one, an end without bytes is kept.
 */
static void test_waits(void **state)
{
    enum { AT_ONCE = 16 }; /* streams of a bulk endpoint */
    struct sink k;
    struct source s[AT_ONCE] = {{0}}, late = {.size = MIB}, empty = {0};
    (void)state;
    start(&k);
    for (int i = 0; i < AT_ONCE; i++) {
        s[i].end = true; /* nothing comes of it, not even an end */
        put(&k, &s[i], "plain", 60 * NS_PER_S);
    }
    put(&k, &late, "plain", 60 * NS_PER_S);
    put(&k, &empty, "plain", 60 * NS_PER_S);
    assert_int_equal(late.again, 1);
    assert_true(empty.end);
    rpc_cancel(s[0].call);
    UNTIL(&k.w, late.done);
    assert_int_equal(late.st.code, 0);
    assert_true(!k.bad && k.got == MIB);
    k.got = 0;
    UNTIL(&k.w, empty.done);
    assert_int_equal(empty.st.code, 0);
    stop(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),         cmocka_unit_test(test_pauses),
        cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_goes_wrong),
        cmocka_unit_test(test_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
