/* Frames cut at every byte, the bounds, the cap on decoding, and tables that drifted from the .proto files.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rpc/rpc_priv.h"
#include "strata/v1/audit.pb-c.h"
#include "strata/v1/jobs.pb-c.h"
#include "strata/v1/plans.pb-c.h"
#include "strata/v1/rpc.pb-c.h"

static void put(struct buf *b, enum frame_kind kind, size_t n, uint8_t fill)
{
    assert_int_equal(frame_head(b, kind, n), ST_OK);
    assert_int_equal(buf_reserve(b, n + 1), ST_OK);
    memset(b->data + b->len, fill, n);
    b->len += n;
}

/* Feeds p[0..n) in pieces of `step` from a heap copy of each piece's own size, so that a read past it shows.
 */
static int feed(const uint8_t *p, size_t n, size_t step, struct frame *seen, uint8_t *fill, size_t max)
{
    struct frame_dec d = {0};
    size_t frames = 0;
    int rc = 0;
    for (size_t at = 0; at < n && rc >= 0;) {
        size_t m = n - at < step ? n - at : step, used;
        uint8_t *piece = malloc(m);
        assert_non_null(piece);
        memcpy(piece, p + at, m);
        for (size_t i = 0; i < m; i += used) {
            struct frame f;
            rc = frame_next(&d, piece + i, m - i, &used, &f);
            if (rc <= 0) {
                if (rc == 0)
                    assert_int_equal(used, m - i);
                break;
            }
            assert_true(used > 0);
            assert_true(frames < max);
            for (size_t k = 1; k < f.n; k++)
                assert_int_equal(f.p[k], f.p[0]);
            fill[frames] = f.n ? f.p[0] : 0;
            seen[frames++] = f;
        }
        at += m;
        free(piece);
    }
    frame_dec_fini(&d);
    return rc < 0 ? rc : (int)frames;
}

static void test_split(void **state)
{
    static const struct {
        enum frame_kind kind;
        size_t n;
    } in[] = {{FRAME_HEADER, 3},    {FRAME_MESSAGE, 0},     {FRAME_MESSAGE, 63}, {FRAME_MESSAGE, 64},
              {FRAME_MESSAGE, 300}, {FRAME_MESSAGE, 16384}, {FRAME_STATUS, 7}};
    enum { N = sizeof in / sizeof *in };
    struct buf b = {0};
    (void)state;
    for (size_t i = 0; i < N; i++)
        put(&b, in[i].kind, in[i].n, (uint8_t)(i + 1));
    for (size_t step = 1; step <= b.len; step += step < 600 ? 1 : 997) {
        struct frame f[N];
        uint8_t fill[N];
        assert_int_equal(feed(b.data, b.len, step, f, fill, N), N);
        for (size_t i = 0; i < N; i++) {
            assert_int_equal(f[i].kind, in[i].kind);
            assert_int_equal(f[i].n, in[i].n);
            assert_int_equal(fill[i], in[i].n ? i + 1 : 0);
        }
    }
    buf_fini(&b);
}

static void test_truncated(void **state)
{
    struct buf b = {0};
    (void)state;
    put(&b, FRAME_MESSAGE, 70, 5);
    for (size_t n = 0; n < b.len; n++) {
        struct frame f[1];
        uint8_t fill[1];
        assert_int_equal(feed(b.data, n, n ? n : 1, f, fill, 1), 0);
        assert_int_equal(feed(b.data, n, 1, f, fill, 1), 0);
    }
    buf_fini(&b);
}

static void test_bounds(void **state)
{
    static const struct {
        uint8_t kind;
        uint64_t n;
        int rc;
    } t[] = {{0, 1, ST_EPROTO},
             {4, 1, ST_EPROTO},
             {0xff, 1, ST_EPROTO},
             {FRAME_HEADER, RPC_MAX_CONTROL, 0},
             {FRAME_HEADER, RPC_MAX_CONTROL + 1, ST_ELIMIT},
             {FRAME_STATUS, RPC_MAX_CONTROL, 0},
             {FRAME_STATUS, RPC_MAX_CONTROL + 1, ST_ELIMIT},
             {FRAME_MESSAGE, RPC_MAX_MESSAGE, 0},
             {FRAME_MESSAGE, RPC_MAX_MESSAGE + 1, ST_ELIMIT},
             {FRAME_MESSAGE, (1ull << 62) - 1, ST_ELIMIT}};
    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        for (size_t step = 1; step <= 9; step += 8) {
            uint8_t h[9] = {t[i].kind};
            size_t n = 1 + varint_encode(h + 1, t[i].n);
            struct frame f[1];
            uint8_t fill[1];
            assert_int_equal(feed(h, n, step, f, fill, 1), t[i].rc);
        }
    /* The largest one whole. */
    struct buf b = {0};
    struct frame f[1];
    uint8_t fill[1];
    put(&b, FRAME_MESSAGE, RPC_MAX_MESSAGE, 9);
    assert_int_equal(feed(b.data, b.len, 65536, f, fill, 1), 1);
    assert_int_equal(f[0].n, RPC_MAX_MESSAGE);
    buf_fini(&b);
}

/* A refused length is refused before memory is taken for it. */
static void test_no_allocation(void **state)
{
    struct frame_dec d = {0};
    uint8_t h[9] = {FRAME_MESSAGE};
    struct frame f;
    size_t used;
    (void)state;
    size_t n = 1 + varint_encode(h + 1, RPC_MAX_MESSAGE + 1);
    for (size_t i = 0; i < n; i++) {
        int rc = frame_next(&d, h + i, 1, &used, &f);
        assert_int_equal(rc, i + 1 < n ? 0 : ST_ELIMIT);
    }
    assert_true(d.part.cap < 4096);
    frame_dec_fini(&d);
}

static void test_pack(void **state)
{
    Strata__V1__Job job = STRATA__V1__JOB__INIT;
    struct buf b = {0};
    (void)state;
    char *big = malloc(RPC_MAX_MESSAGE + 1);
    assert_non_null(big);
    memset(big, 'x', RPC_MAX_MESSAGE);
    big[RPC_MAX_MESSAGE] = 0;
    job.plan_json = big;
    assert_int_equal(rpc_pack(&b, FRAME_MESSAGE, &job.base), ST_ELIMIT);
    assert_int_equal(b.len, 0);
    big[RPC_MAX_MESSAGE - 16] = 0;
    assert_int_equal(rpc_pack(&b, FRAME_MESSAGE, &job.base), ST_OK);
    ProtobufCMessage *m = rpc_unpack(&strata__v1__job__descriptor, b.data + 5, b.len - 5);
    assert_non_null(m);
    assert_string_equal(((Strata__V1__Job *)m)->plan_json, big);
    rpc_msg_free(m);
    b.len = 0;
    assert_int_equal(rpc_pack(&b, FRAME_STATUS, &job.base), ST_ELIMIT);
    assert_non_null(m = rpc_unpack(&strata__v1__job__descriptor, NULL, 0));
    rpc_msg_free(m);
    assert_null(rpc_unpack(&strata__v1__job__descriptor, (const uint8_t *)"\x0a\x7f", 2));
    buf_fini(&b);
    free(big);
}

/* Half a MiB of two-byte empty layers asks for some forty MiB of structs. */
static void test_amplification(void **state)
{
    size_t n = 512u << 10;
    uint8_t *p = malloc(n);
    (void)state;
    assert_non_null(p);
    for (size_t i = 0; i < n; i += 2) {
        p[i] = 14 << 3 | 2; /* Job.layers */
        p[i + 1] = 0;
    }
    assert_null(rpc_unpack(&strata__v1__job__descriptor, p, n));
    ProtobufCMessage *m = rpc_unpack(&strata__v1__job__descriptor, p, 2000);
    assert_non_null(m);
    assert_int_equal(((Strata__V1__Job *)m)->n_layers, 1000);
    rpc_msg_free(m);
    free(p);
}

/* ---- dispatch table ---- */

static void handler(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    (void)call;
    (void)req;
    (void)arg;
}

#define PLANS "strata.v1.Plans"
#define GOOD                                                                                                 \
    {PLANS, "Cluster", 0, handler}, {PLANS, "Calibrate", RPC_SERVER_STREAM, handler},                        \
        {PLANS, "Inputs", 0, handler},                                                                       \
    {                                                                                                        \
        PLANS, "Show", 0, handler                                                                            \
    }

static void test_table(void **state)
{
    static const ProtobufCServiceDescriptor *const svc[] = {&strata__v1__plans__descriptor};
    static const struct {
        struct rpc_method m[6];
        size_t n;
        const char *says; /* NULL = accepted */
    } t[] = {
        {{GOOD}, 4, NULL},
        {{{PLANS, "Show", 0, handler}}, 1, "strata.v1.Plans.Cluster is declared and has no handler"},
        {{GOOD, {PLANS, "Erase", 0, handler}}, 5, "strata.v1.Plans.Erase has a handler and is not declared"},
        {{GOOD, {"strata.v1.Jobs", "Get", 0, handler}}, 5, "strata.v1.Jobs.Get"},
        {{GOOD, {PLANS, "Show", 0, handler}}, 5, "strata.v1.Plans.Show has two handlers"},
        {{{PLANS, "Cluster", 0, handler},
          {PLANS, "Calibrate", RPC_SERVER_STREAM, handler},
          {PLANS, "Inputs", 0, handler},
          {PLANS, "Show", 0, NULL}},
         4,
         "strata.v1.Plans.Show has no handler"},
        {{{PLANS, "", 0, handler}}, 0, "has no handler"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct rpc_table *tab = NULL;
        struct err e = {0};
        int rc = rpc_table_new(&tab, svc, 1, t[i].m, t[i].n, NULL, &e);
        assert_int_equal(rc, t[i].says ? ST_EINVAL : ST_OK);
        if (t[i].says) {
            assert_non_null(strstr(e.text, t[i].says));
            assert_null(tab);
            continue;
        }
        void *arg = &tab;
        assert_string_equal(rpc_table_find(tab, PLANS, "Show", &arg)->m->method, "Show");
        assert_null(arg);
        assert_null(rpc_table_find(tab, PLANS, "show", &arg));
        assert_null(rpc_table_find(tab, "", "", &arg));
        rpc_table_free(tab);
    }
    assert_null(rpc_table_find(NULL, PLANS, "Show", &(void *){NULL}));
}

/* Two tables on one connection: each handler gets the arg of its own; what is served twice is refused. */
static void test_join(void **state)
{
    static const ProtobufCServiceDescriptor *const plans[] = {&strata__v1__plans__descriptor},
                                                   *const audit[] = {&strata__v1__audit__descriptor};
    static const struct rpc_method p[] = {GOOD},
                                   q[] = {{"strata.v1.Audit", "Query", 0, handler},
                                          {"strata.v1.Audit", "Tail", RPC_SERVER_STREAM, handler}};
    struct rpc_table *a, *b, *c;
    struct err e = {0};
    int one, two;
    void *arg = NULL;
    (void)state;
    assert_int_equal(rpc_table_new(&a, plans, 1, p, sizeof p / sizeof *p, &one, &e), ST_OK);
    assert_int_equal(rpc_table_new(&b, audit, 1, q, 2, &two, &e), ST_OK);
    assert_int_equal(rpc_table_new(&c, plans, 1, p, sizeof p / sizeof *p, &two, &e), ST_OK);
    assert_int_equal(rpc_table_join(a, b, &e), ST_OK);
    assert_non_null(rpc_table_find(a, "strata.v1.Audit", "Tail", &arg));
    assert_ptr_equal(arg, &two);
    assert_non_null(rpc_table_find(a, PLANS, "Show", &arg));
    assert_ptr_equal(arg, &one);
    assert_int_equal(rpc_table_join(a, c, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "served twice"));
    rpc_table_free(c);
    rpc_table_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),  cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_bounds), cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_pack),   cmocka_unit_test(test_amplification),
        cmocka_unit_test(test_table),  cmocka_unit_test(test_join),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
