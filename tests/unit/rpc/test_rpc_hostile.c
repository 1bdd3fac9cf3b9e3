/*
 * Peers that break the protocol, as callers and as callees: each is told what the contract says, and the
 * connection goes on serving.
 */
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/rpc/rpc_priv.h"
#include "strata/v1/rpc.pb-c.h"
#include "tests/unit/rpc/rpcpeer.h"

/* A stream of our own making. */
struct raw {
    struct quic_stream *s;
    struct frame_dec dec;
    unsigned messages, code;
    bool status, reset, fin, closed;
    uint64_t reset_code;
    char reason[40];
};

static void raw_readable(struct quic_stream *s, void *arg)
{
    struct raw *r = arg;
    const uint8_t *p;
    for (size_t n, used; (n = quic_stream_peek(s, &p, &r->fin)) > 0; quic_stream_consume(s, n)) {
        for (size_t at = 0; at < n; at += used) {
            struct frame f;
            if (frame_next(&r->dec, p + at, n - at, &used, &f) <= 0)
                continue;
            r->messages += f.kind == FRAME_MESSAGE;
            if (f.kind != FRAME_STATUS)
                continue;
            Strata__V1__CallStatus *st = strata__v1__call_status__unpack(NULL, f.n, f.p);
            assert_non_null(st);
            r->status = true;
            r->code = st->code;
            snprintf(r->reason, sizeof r->reason, "%s", st->reason);
            strata__v1__call_status__free_unpacked(st, NULL);
        }
    }
}

static void raw_reset(struct quic_stream *s, uint64_t code, void *arg)
{
    struct raw *r = arg;
    r->reset = true;
    r->reset_code = code;
    quic_stream_reset(s, code);
}

static void raw_closed(struct quic_stream *s, void *arg)
{
    struct raw *r = arg;
    (void)s;
    r->closed = true;
    r->s = NULL;
}

static const struct quic_stream_ops raw_ops = {raw_readable, NULL, raw_reset, raw_closed};

static void header(struct buf *b, const char *service, const char *method, uint64_t timeout_ns,
                   const char *request_id)
{
    Strata__V1__CallHeader h = STRATA__V1__CALL_HEADER__INIT;
    h.service = (char *)service;
    h.method = (char *)method;
    h.timeout_ns = timeout_ns;
    h.request_id = (char *)request_id;
    assert_int_equal(rpc_pack(b, FRAME_HEADER, &h.base), ST_OK);
}

static void get_header(struct buf *b)
{
    header(b, "strata.v1.Jobs", "Get", NS_PER_S, "");
}

static void message(struct buf *b, const char *id)
{
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    q.id = (char *)id;
    assert_int_equal(rpc_pack(b, FRAME_MESSAGE, &q.base), ST_OK);
}

static void bytes(struct buf *b, const char *p, size_t n)
{
    assert_int_equal(buf_append(b, p, n), ST_OK);
}

enum input {
    UNKNOWN_METHOD,
    UNKNOWN_SERVICE,
    NO_DEADLINE,
    LONG_ID,
    UGLY_ID,
    MALFORMED,
    BIG_MESSAGE,
    BIG_MESSAGE_GOES_ON,
    SHORT_DEADLINE,
    BIG_HEADER,
    MESSAGE_FIRST,
    BAD_HEADER,
    BAD_KIND,
    STATUS_FROM_CALLER,
    TWO_MESSAGES,
    ONLY_FIN,
    CUT_HEADER,
    CUT_MESSAGE,
};

static void make(struct buf *b, enum input what)
{
    char id[100];
    uint8_t h[9];
    memset(id, 'r', sizeof id);
    id[80] = 0;
    switch (what) {
    case UNKNOWN_METHOD:
        header(b, "strata.v1.Jobs", "Erase", NS_PER_S, "");
        message(b, "x");
        break;
    case UNKNOWN_SERVICE:
        header(b, "", "", NS_PER_S, "");
        message(b, "x");
        break;
    case NO_DEADLINE:
        header(b, "strata.v1.Jobs", "Get", 0, "");
        message(b, "x");
        break;
    case LONG_ID:
        header(b, "strata.v1.Jobs", "Get", NS_PER_S, id);
        break;
    case UGLY_ID:
        header(b, "strata.v1.Jobs", "Get", NS_PER_S, "a\nb");
        break;
    case MALFORMED:
        get_header(b);
        bytes(b, "\x02\x02\x0a\x7f", 4);
        break;
    case BIG_MESSAGE:
    case BIG_MESSAGE_GOES_ON:
        get_header(b);
        h[0] = FRAME_MESSAGE;
        bytes(b, (char *)h, 1 + varint_encode(h + 1, RPC_MAX_MESSAGE + 1));
        for (unsigned i = 0; what == BIG_MESSAGE_GOES_ON && i < 2000; i++)
            bytes(b, id, sizeof id);
        break;
    case SHORT_DEADLINE:
        header(b, "strata.v1.Jobs", "Get", 30 * NS_PER_MS, "");
        message(b, "hold");
        break;
    case BIG_HEADER:
        h[0] = FRAME_HEADER;
        bytes(b, (char *)h, 1 + varint_encode(h + 1, RPC_MAX_CONTROL + 1));
        break;
    case MESSAGE_FIRST:
        message(b, "x");
        break;
    case BAD_HEADER:
        bytes(b, "\x01\x02\x0a\x7f", 4);
        break;
    case BAD_KIND:
        get_header(b);
        bytes(b, "\x07\x01x", 3);
        break;
    case STATUS_FROM_CALLER:
        get_header(b);
        bytes(b, "\x03\x00", 2);
        break;
    case TWO_MESSAGES:
        get_header(b);
        message(b, "hold");
        message(b, "hold");
        break;
    case ONLY_FIN:
        break;
    case CUT_HEADER:
        get_header(b);
        b->len -= 3;
        break;
    case CUT_MESSAGE:
        get_header(b);
        message(b, "hello");
        b->len -= 2;
        break;
    }
}

static void test_callers(void **state)
{
    static const struct {
        enum input what;
        bool fin;
        unsigned code;      /* of the STATUS, when there is a reason */
        const char *reason; /* NULL: a reset with 0x100 + code instead */
    } t[] = {
        {UNKNOWN_METHOD, true, 12, "UNKNOWN_METHOD"},
        {UNKNOWN_SERVICE, true, 12, "UNKNOWN_METHOD"},
        {NO_DEADLINE, true, 3, "NO_DEADLINE"},
        {LONG_ID, true, 3, "REQUEST_ID"},
        {UGLY_ID, true, 3, "REQUEST_ID"},
        {MALFORMED, true, 3, "MALFORMED"},
        {BIG_MESSAGE, true, 8, "FRAME_TOO_LARGE"},
        {BIG_MESSAGE_GOES_ON, true, 8, "FRAME_TOO_LARGE"},
        {SHORT_DEADLINE, true, 4, "DEADLINE"},
        {BIG_HEADER, false, 8, "FRAME_TOO_LARGE"},
        {MESSAGE_FIRST, false, 13, NULL},
        {BAD_HEADER, false, 13, NULL},
        {BAD_KIND, false, 13, NULL},
        {STATUS_FROM_CALLER, false, 13, NULL},
        {TWO_MESSAGES, false, 13, NULL},
        {ONLY_FIN, true, 13, NULL},
        {CUT_HEADER, true, 13, NULL},
        {CUT_MESSAGE, true, 13, NULL},
    };
    struct world w = {0};
    (void)state;
    world_start(&w, false);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct raw r = {0};
        struct buf b = {0};
        struct asked a = {0};
        make(&b, t[i].what);
        assert_int_equal(quic_stream_open(&r.s, rpc_session_conn(w.c), &raw_ops, &r), ST_OK);
        assert_int_equal(quic_stream_write(r.s, b.data, b.len, t[i].fin), ST_OK);
        UNTIL(&w, r.status || r.reset);
        if (t[i].reason) {
            assert_true(r.status);
            assert_int_equal(r.code, t[i].code);
            assert_string_equal(r.reason, t[i].reason);
        } else {
            assert_true(r.reset && !r.status);
            assert_int_equal(r.reset_code, 0x100 + t[i].code);
        }
        if (r.s && !t[i].fin)
            quic_stream_reset(r.s, 1);
        UNTIL(&w, r.closed);
        assert_int_equal(r.messages, 0);
        frame_dec_fini(&r.dec);
        buf_fini(&b);
        ask(&a, w.c, "Get", "alive", 0);
        UNTIL(&w, a.done);
        assert_int_equal(a.st.code, 0);
    }
    world_stop(&w);
}

#define STATUS_OK "\x03\x00"
#define EMPTY_MESSAGE "\x02\x00"

static void test_callees(void **state)
{
    static char digest[] = EMPTY_MESSAGE "0123456789abcdef0123456789abcdef";
    static const struct {
        const char *p;
        size_t n;
        bool bulk;
        unsigned code;
        const char *reason;
    } t[] = {
        {STATUS_OK, 2, false, 0, ""},
        {"", 0, false, 13, "NO_STATUS"},
        {EMPTY_MESSAGE, 2, false, 13, "NO_STATUS"},
        {"\x03\x04\x08", 3, false, 13, "NO_STATUS"},
        {"\x09\x00", 2, false, 13, "PROTOCOL"},
        {"\x01\x00", 2, false, 13, "PROTOCOL"},
        {"\x02\x02\x0a\x7f", 4, false, 13, "PROTOCOL"},
        {"\x03\x02\x12\x7f", 4, false, 13, "PROTOCOL"},
        {"\x03\x80\x01\x00\x01", 5, false, 8, "PROTOCOL"},
        {"\x02\x80\x10\x00\x01", 5, false, 8, "PROTOCOL"},
        {STATUS_OK "\x09garbage behind the end", 24, false, 0, ""},
        {STATUS_OK, 2, true, 13, "PROTOCOL"},
        {"\x03\x02\x08\x07", 4, true, 7, ""},
        {EMPTY_MESSAGE, 2, true, 15, "TRUNCATED"},
        {digest, 33, true, 15, "TRUNCATED"},
        {digest, 34, true, 15, "DIGEST_MISMATCH"},
    };
    (void)state;
    struct world w = {.raw = (const uint8_t *)""};
    world_start(&w, false);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct asked a = {0};
        w.raw = (const uint8_t *)t[i].p;
        w.nraw = t[i].n;
        if (t[i].bulk)
            fetch(&a, w.c, "x", 0, 0);
        else
            ask(&a, w.c, "Get", "x", 0);
        UNTIL(&w, a.done);
        assert_int_equal(a.st.code, t[i].code);
        assert_string_equal(a.st.reason, t[i].reason);
        assert_false(a.has_digest);
        assert_non_null(w.c);
    }
    world_stop(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_callers), cmocka_unit_test(test_callees)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
