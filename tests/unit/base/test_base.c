/* The base room: containers against naive models, files through failures, parsers at their edges. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/fs.h"
#include "common/base/heap.h"
#include "common/base/log.h"
#include "common/base/map.h"
#include "common/base/port.h"
#include "common/base/str.h"

static void test_status(void **st)
{
    (void)st;
    for (int rc = 0; rc >= ST_ECONFIG; rc--) {
        assert_string_not_equal(status_name(rc), "E?");
        assert_in_range(status_to_rpc(rc), 0, 16);
        assert_true((rc == 0) == (status_exit_code(rc) == 0));
        assert_true((rc == 0) == (status_to_rpc(rc) == 0));
    }
    for (unsigned c = 0; c <= 16; c++)
        if (c != 2) /* UNKNOWN has no status of its own */
            assert_int_equal(status_to_rpc(status_from_rpc(c)), c);
    assert_int_equal(status_from_rpc(99), ST_EINTERNAL);
}

static void test_varint(void **st)
{
    (void)st;
    static const uint64_t v[] = {0, 63, 64, 16383, 16384, (1u << 30) - 1, 1u << 30, (1ull << 62) - 1};
    for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
        uint8_t b[8];
        uint64_t back = 0;
        size_t n = varint_encode(b, v[i]);
        for (size_t k = 0; k < n; k++)
            assert_int_equal(varint_decode(b, k, &back), 0);
        assert_int_equal(varint_decode(b, n, &back), n);
        assert_true(back == v[i]);
    }
}

static void test_buf_limit(void **st)
{
    (void)st;
    struct buf b = {.limit = 10};
    assert_int_equal(buf_append(&b, "12345678", 8), ST_OK);
    assert_int_equal(buf_append(&b, "abc", 3), ST_ELIMIT);
    assert_int_equal(b.len, 8);
    assert_int_equal(buf_printf(&b, "%d", 99), ST_OK);
    assert_string_equal(buf_cstr(&b), "1234567899");
    buf_consume(&b, 6);
    assert_string_equal(buf_cstr(&b), "7899");
    assert_int_equal(buf_reserve(&b, SIZE_MAX), ST_ELIMIT);
    buf_fini(&b);
}

static int count_one(const void *k, size_t n, void *v, void *arg)
{
    (void)k;
    (void)n;
    (void)v;
    ++*(size_t *)arg;
    return 0;
}

/* A map of 512 possible keys under random puts and deletes, compared with a plain array after each step. */
static void test_map_model(void **st)
{
    (void)st;
    struct map *m;
    assert_int_equal(map_new(&m, rng_system()), ST_OK);
    static char cell[512];
    void *model[512] = {0};
    size_t live = 0;
    uint64_t x = 88172645463325252ull;
    for (int step = 0; step < 20000; step++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint32_t k = x & 511;
        if (x >> 60 & 1) {
            void *old;
            assert_int_equal(map_put(m, &k, sizeof k, &cell[(x >> 20) & 511], &old), ST_OK);
            assert_ptr_equal(old, model[k]);
            live += !model[k];
            model[k] = &cell[(x >> 20) & 511];
        } else {
            assert_ptr_equal(map_del(m, &k, sizeof k), model[k]);
            live -= !!model[k];
            model[k] = NULL;
        }
        uint32_t probe = (uint32_t)(x >> 32) & 511;
        assert_ptr_equal(map_get(m, &probe, sizeof probe), model[probe]);
        assert_int_equal(map_count(m), live);
    }
    size_t seen = 0;
    map_each(m, count_one, &seen);
    assert_int_equal(seen, live);
    map_free(m);
}

/* The reference vector of the SipHash paper, appendix A. */
static void test_siphash(void **st)
{
    (void)st;
    uint8_t key[16], in[15];
    for (uint8_t i = 0; i < 16; i++)
        key[i] = i;
    for (uint8_t i = 0; i < 15; i++)
        in[i] = i;
    assert_true(siphash24(key, in, 15) == 0xa129ca6149be45e5ull);
}

static void test_heap(void **st)
{
    (void)st;
    struct heap h = {0};
    struct heap_node x[64] = {{0}};
    uint64_t r = 1;
    for (int i = 0; i < 64; i++) {
        r = r * 6364136223846793005ull + 1442695040888963407ull;
        assert_int_equal(heap_set(&h, &x[i], r >> 40), ST_OK);
    }
    for (int i = 0; i < 64; i += 3) {
        r = r * 6364136223846793005ull + 1442695040888963407ull;
        assert_int_equal(heap_set(&h, &x[i], r >> 40), ST_OK);
    }
    for (int i = 0; i < 64; i += 5)
        heap_del(&h, &x[i]);
    heap_del(&h, &x[0]);
    uint64_t last = 0;
    int n = 0;
    for (struct heap_node *t; (t = heap_top(&h)); heap_del(&h, t), n++) {
        assert_true(t->key >= last);
        last = t->key;
    }
    assert_int_equal(n, 64 - 13);
    heap_fini(&h);
}

struct post {
    struct port_item it;
    int producer, seq;
    int *next; /* expected sequence per producer */
};

static void post_run(struct port_item *it)
{
    struct post *p = (struct post *)it;
    assert_int_equal(p->next[p->producer]++, p->seq);
    free(p);
}

struct producer {
    struct port *port;
    int id, *next;
};

static void *produce(void *arg)
{
    struct producer *pr = arg;
    for (int i = 0; i < 2000; i++) {
        struct post *p = malloc(sizeof *p);
        *p = (struct post){{post_run, NULL}, pr->id, i, pr->next};
        port_post(pr->port, &p->it);
    }
    return NULL;
}

static void test_port_order(void **st)
{
    (void)st;
    struct port *port;
    assert_int_equal(port_new(&port), ST_OK);
    int next[3] = {0};
    pthread_t t[3];
    struct producer pr[3];
    for (int i = 0; i < 3; i++) {
        pr[i] = (struct producer){port, i, next};
        assert_int_equal(pthread_create(&t[i], NULL, produce, &pr[i]), 0);
    }
    while (next[0] + next[1] + next[2] < 6000)
        port_drain(port);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    port_free(port);
}

static void test_files(void **st)
{
    (void)st;
    char dir[] = "/tmp/strata-base-XXXXXX", path[128];
    assert_non_null(mkdtemp(dir));
    struct err e;
    snprintf(path, sizeof path, "%s/a/b/c", dir);
    assert_int_equal(fs_mkdirs(path, 0700, &e), ST_OK);
    assert_int_equal(fs_mkdirs(path, 0700, &e), ST_OK);
    snprintf(path, sizeof path, "%s/f", dir);
    assert_int_equal(fs_write_atomic(path, "hello", 5, 0600, &e), ST_OK);
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    struct buf b = {0};
    assert_int_equal(fs_read(path, 4, &b, &e), ST_ELIMIT);
    assert_non_null(strstr(e.text, path));
    assert_int_equal(fs_read(path, 5, &b, &e), ST_OK);
    assert_string_equal(buf_cstr(&b), "hello");
    buf_fini(&b);
    assert_int_equal(fs_read("/nonexistent/x", 5, &b, &e), ST_ENOENT);
    assert_int_equal(fs_read(dir, 5, &b, &e), ST_EINVAL);
    char under[160];
    snprintf(under, sizeof under, "%s/g", path); /* a file is no directory */
    assert_true(fs_write_atomic(under, "x", 1, 0600, &e) < 0);
    assert_true(fs_mkdirs(under, 0700, &e) < 0);
    char cmd[160];
    snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    assert_int_equal(system(cmd), 0);
}

static void test_parse(void **st)
{
    (void)st;
    static const struct {
        const char *in;
        int rc;
        uint64_t v;
    } bytes[] = {{"0", 0, 0},
                 {"512MiB", 0, 512ull << 20},
                 {"1.5G", 0, 3ull << 29},
                 {"2GB", 0, 2000000000},
                 {"-1", ST_EINVAL, 0},
                 {"", ST_EINVAL, 0},
                 {"1e3", ST_EINVAL, 0},
                 {"0x10", ST_EINVAL, 0},
                 {"5 MB", ST_EINVAL, 0},
                 {"99999999T", ST_ELIMIT, 0},
                 {"nan", ST_EINVAL, 0}},
      dur[] = {
          {"50ms", 0, 50000000}, {"7d", 0, 604800000000000ull}, {"5", ST_EINVAL, 0}, {"1w", ST_EINVAL, 0}};
    uint64_t v;
    for (unsigned i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        assert_int_equal(parse_bytes(bytes[i].in, &v), bytes[i].rc);
        if (!bytes[i].rc)
            assert_true(v == bytes[i].v);
    }
    for (unsigned i = 0; i < sizeof dur / sizeof *dur; i++) {
        assert_int_equal(parse_duration_ns(dur[i].in, &v), dur[i].rc);
        if (!dur[i].rc)
            assert_true(v == dur[i].v);
    }
}

static void test_glob(void **st)
{
    (void)st;
    assert_true(str_glob("dione/*", "dione/cuda:0"));
    assert_true(str_glob("*/cuda:0", "dione/cuda:0"));
    assert_true(str_glob("*", ""));
    assert_true(str_glob("a*b*c", "aXXbYYbc"));
    assert_false(str_glob("dione/cuda:?", "dione/cuda:0"));
    assert_false(str_glob("a*b", "ac"));
    assert_false(str_glob("", "x"));
}

static void test_text(void **st)
{
    (void)st;
    char t[28], s[16];
    clock_rfc3339(0, t);
    assert_string_equal(t, "1970-01-01T00:00:00.000000Z");
    clock_rfc3339(-1, t);
    assert_string_equal(t, "1969-12-31T23:59:59.999999Z");
    clock_rfc3339(INT64_MAX, t);
    assert_int_equal(strlen(t), 27);
    fmt_bytes(s, 1536);
    assert_string_equal(s, "1.5 KiB");
    fmt_bytes(s, UINT64_MAX);
    assert_string_equal(s, "16.0 EiB");
    fmt_seconds(s, 0.0123);
    assert_string_equal(s, "12.3 ms");
    uint8_t raw[4];
    size_t n;
    assert_int_equal(hex_decode(raw, 4, "00fF10", &n), ST_OK);
    assert_int_equal(n, 3);
    assert_int_equal(hex_decode(raw, 4, "0g", &n), ST_EINVAL);
    assert_int_equal(hex_decode(raw, 1, "0000", &n), ST_EINVAL);
    assert_true(str_ident_ok("dione-2.lab", 64));
    assert_false(str_ident_ok("../x", 64));
    assert_false(str_ident_ok("toolong", 3));
}

/* A peer's text must not be able to start a line of its own. */
static void test_log_injection(void **st)
{
    (void)st;
    int p[2];
    assert_int_equal(pipe(p), 0);
    struct log l = {p[1], LOG_LV_INFO, false, "t", clock_system()};
    LOG_I(&l, "base", "peer=%s", "x\nforged \033[31m");
    LOG_D(&l, "base", "dropped");
    char out[512];
    ssize_t n = read(p[0], out, sizeof out - 1);
    assert_true(n > 0);
    out[n] = 0;
    assert_ptr_equal(strchr(out, '\n'), out + n - 1);
    assert_null(strchr(out, '\033'));
    assert_null(strstr(out, "dropped"));
    close(p[0]);
    close(p[1]);
    struct log_limit lim = {0};
    unsigned held, passed = 0;
    for (int i = 0; i < 10; i++)
        passed += log_limited(&lim, 5 * NS_PER_S, 3, &held);
    assert_int_equal(passed, 3);
    assert_true(log_limited(&lim, 7 * NS_PER_S, 3, &held));
    assert_int_equal(held, 7);
}

static void test_err(void **st)
{
    (void)st;
    struct err e;
    assert_int_equal(err_reason(&e, ST_EDENIED, "NO_POLICY", "user %s", "x"), ST_EDENIED);
    assert_string_equal(e.reason, "NO_POLICY");
    assert_int_equal(err_prefix(&e, "job %d", 7), ST_EDENIED);
    assert_string_equal(e.text, "job 7: user x");
    assert_int_equal(err_errno(&e, 28 /* ENOSPC */, "disk"), ST_ERESOURCE);
    assert_int_equal(err_set(NULL, ST_EIO, "nobody listens"), ST_EIO);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_status),     cmocka_unit_test(test_varint),
        cmocka_unit_test(test_buf_limit),  cmocka_unit_test(test_map_model),
        cmocka_unit_test(test_siphash),    cmocka_unit_test(test_heap),
        cmocka_unit_test(test_port_order), cmocka_unit_test(test_files),
        cmocka_unit_test(test_parse),      cmocka_unit_test(test_glob),
        cmocka_unit_test(test_text),       cmocka_unit_test(test_log_injection),
        cmocka_unit_test(test_err),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
