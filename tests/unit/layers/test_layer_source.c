/* Layer sources: order of pieces, containment in the model directories, change detection, identity. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/layers/source.h"
#include "common/base/str.h"
#include "common/model/model.h"
#include "common/model/synth.h"
#include "strata/v1/layers.pb-c.h"

static char top[] = "/tmp/strata-source-XXXXXX";
static char root[64], a[96], b[96], outside[96];
static const char *const roots[] = {root};

static void put(const char *path, size_t n, unsigned seed)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    for (size_t i = 0; i < n; i++)
        fputc((int)((i * 31 + seed) & 0xff), f);
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(top))
        return -1;
    snprintf(root, sizeof root, "%s/models", top);
    snprintf(a, sizeof a, "%s/a.bin", root);
    snprintf(b, sizeof b, "%s/b.bin", root);
    snprintf(outside, sizeof outside, "%s/secret", top);
    return mkdir(root, 0700);
}

static int teardown(void **state)
{
    (void)state;
    unlink(a);
    unlink(b);
    unlink(outside);
    rmdir(root);
    return rmdir(top);
}

static void test_order_and_digest(void **state)
{
    (void)state;
    put(a, 1000, 1);
    put(b, 500, 2);
    const char *const files[] = {a, b};
    const struct source_piece p[] = {{1, 100, 50}, {0, 900, 100}, {0, 0, 0}, {1, 0, 500}, {0, 3, 1}};
    uint8_t want[651], got[651], sha[32], ref[32];
    size_t at = 0;
    for (size_t i = 0; i < 5; i++)
        for (uint64_t k = 0; k < p[i].length; k++)
            want[at++] = (uint8_t)(((p[i].offset + k) * 31 + (p[i].file ? 2 : 1)) & 0xff);
    struct source *s;
    struct err e = {0};
    assert_int_equal(source_open(&s, roots, 1, files, 2, p, 5, &e), ST_OK);
    assert_int_equal(source_bytes(s), 651);
    for (size_t off = 0; off <= 651; off += 13) /* any window */
        for (size_t n = 0; off + n <= 651; n += 101) {
            memset(got, 0, sizeof got);
            assert_int_equal(source_read(s, off, got, n, &e), ST_OK);
            assert_memory_equal(got, want + off, n);
        }
    assert_int_equal(source_read(s, 651, got, 1, &e), ST_EINVAL);
    assert_int_equal(source_read(s, UINT64_MAX, got, 2, &e), ST_EINVAL);
    assert_int_equal(EVP_Digest(want, sizeof want, ref, NULL, EVP_sha256(), NULL), 1);
    for (size_t chunk = 1; chunk <= 700; chunk += 233) {
        struct layer_reader *r;
        size_t n, sum = 0;
        assert_int_equal(layer_reader_new(&r, s), ST_OK);
        assert_int_equal(layer_reader_digest(r, sha), ST_EAGAIN);
        do {
            assert_int_equal(
                layer_reader_next(r, got + sum, chunk < 651 - sum ? chunk : 651 - sum + 1, &n, &e), ST_OK);
            sum += n;
        } while (n);
        assert_int_equal(sum, 651);
        assert_memory_equal(got, want, 651);
        assert_int_equal(layer_reader_digest(r, sha), ST_OK);
        assert_memory_equal(sha, ref, 32);
        layer_reader_free(r);
    }
    source_close(s);
}

static void test_bad_pieces(void **state)
{
    (void)state;
    put(a, 1000, 1);
    const char *const files[] = {a, outside};
    struct source *s = NULL;
    struct err e = {0};
    assert_int_equal(source_open(&s, roots, 1, files, 1, &(struct source_piece){1, 0, 1}, 1, &e), ST_EINVAL);
    assert_int_equal(source_open(&s, roots, 1, files, 1, &(struct source_piece){0, 999, 2}, 1, &e),
                     ST_ECORRUPT);
    assert_int_equal(source_open(&s, roots, 1, files, 1, &(struct source_piece){0, UINT64_MAX, 2}, 1, &e),
                     ST_ECORRUPT);
    /* a file that no piece needs is not touched */
    assert_int_equal(source_open(&s, roots, 1, files, 2, &(struct source_piece){0, 0, 1}, 1, &e), ST_OK);
    source_close(s);
}

static void test_containment(void **state)
{
    (void)state;
    char link[96], out[256], real[256], path[160];
    struct err e = {0};
    struct source *s = NULL;
    put(a, 10, 1);
    put(outside, 10, 1);
    assert_non_null(realpath(a, real));
    assert_int_equal(source_resolve(roots, 1, a, out, sizeof out, &e), ST_OK);
    assert_string_equal(out, real);
    assert_int_equal(source_resolve(roots, 1, "a.bin", out, sizeof out, &e), ST_OK);
    assert_string_equal(out, real);
    assert_int_equal(source_resolve(roots, 1, "nope.bin", out, sizeof out, &e), ST_ENOENT);
    assert_int_equal(source_resolve(roots, 1, outside, out, sizeof out, &e), ST_EDENIED);
    assert_string_equal(e.reason, "OUTSIDE_MODEL_DIRS");
    assert_int_equal(source_resolve(roots, 1, "/no/such/file", out, sizeof out, &e),
                     ST_EDENIED); /* not ENOENT */
    assert_int_equal(source_resolve(roots, 1, "../secret", out, sizeof out, &e), ST_EDENIED);
    assert_int_equal(source_resolve(roots, 1, "../nothing", out, sizeof out, &e), ST_EDENIED);
    assert_int_equal(source_resolve(roots, 1, root, out, sizeof out, &e), ST_EDENIED); /* not below itself */
    assert_int_equal(source_resolve(NULL, 0, a, out, sizeof out, &e), ST_EDENIED);
    snprintf(path, sizeof path, "%s-evil", root); /* a name that merely starts the same */
    put(path, 10, 1);
    assert_int_equal(source_resolve(roots, 1, path, out, sizeof out, &e), ST_EDENIED);
    unlink(path);
    snprintf(link, sizeof link, "%s/link", root);
    assert_int_equal(symlink(outside, link), 0);
    assert_int_equal(source_resolve(roots, 1, link, out, sizeof out, &e), ST_EDENIED);
    const char *const files[] = {link};
    assert_int_equal(source_open(&s, roots, 1, files, 1, &(struct source_piece){0, 0, 1}, 1, &e), ST_EDENIED);
    unlink(link);
    assert_int_equal(symlink(a, link), 0); /* inside it is fine */
    assert_int_equal(source_resolve(roots, 1, link, out, sizeof out, &e), ST_OK);
    assert_string_equal(out, real);
    unlink(link);
    assert_int_equal(mkfifo(link, 0600), 0);
    assert_int_equal(source_open(&s, roots, 1, files, 1, &(struct source_piece){0, 0, 1}, 1, &e), ST_EINVAL);
    unlink(link);
    /* a root that is itself a link */
    snprintf(path, sizeof path, "%s/alias", top);
    assert_int_equal(symlink(root, path), 0);
    const char *const alias[] = {path};
    assert_int_equal(source_resolve(alias, 1, a, out, sizeof out, &e), ST_OK);
    unlink(path);
}

static struct source *open_one(void)
{
    const char *const files[] = {a};
    struct source *s = NULL;
    struct err e = {0};
    if (source_open(&s, roots, 1, files, 1, &(struct source_piece){0, 100, 800}, 1, &e) < 0)
        fail_msg("%s", e.text);
    return s;
}

static void test_changes(void **state)
{
    (void)state;
    char moved[128], got[800];
    struct err e = {0};
    struct layer_reader *r;
    size_t n;
    put(a, 1000, 1);
    struct source *s = open_one();
    assert_int_equal(source_unchanged(s, &e), ST_OK);
    assert_int_equal(layer_reader_new(&r, s), ST_OK);
    assert_int_equal(layer_reader_next(r, got, 400, &n, &e), ST_OK);
    put(b, 1000, 9);
    assert_int_equal(rename(b, a), 0); /* replaced half way */
    assert_int_equal(layer_reader_next(r, got, 400, &n, &e), ST_ECONFLICT);
    assert_string_equal(e.reason, "MODEL_CHANGED");
    assert_int_equal(n, 0);
    layer_reader_free(r);
    source_close(s);
    s = open_one();
    assert_int_equal(truncate(a, 500), 0);
    assert_int_equal(source_read(s, 0, got, 800, &e), ST_ECORRUPT);
    assert_non_null(strstr(e.text, "shorter"));
    assert_int_equal(source_unchanged(s, &e), ST_ECONFLICT);
    source_close(s);
    put(a, 1000, 1);
    s = open_one();
    struct timespec t[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, a, t, 0), 0);
    assert_int_equal(source_unchanged(s, &e), ST_ECONFLICT);
    source_close(s);
    s = open_one();
    snprintf(moved, sizeof moved, "%s.moved", a);
    assert_int_equal(rename(a, moved), 0);
    assert_int_equal(source_unchanged(s, &e), ST_ECONFLICT);
    assert_int_equal(source_read(s, 0, got, 800, &e), ST_OK); /* what was opened stays readable */
    source_close(s);
    unlink(moved);
}

static void test_request(void **state)
{
    (void)state;
    struct synth_options o = {.layers = 2, .embedding = 64, .ff = 64, .vocab = 259, .type = SYNTH_Q8_0};
    struct model *m;
    struct err e = {0};
    struct source *s = NULL;
    uint8_t digest[32];
    size_t n;
    assert_int_equal(synth_write(a, &o, NULL, NULL, &e), ST_OK);
    assert_int_equal(model_open(a, NULL, &m, &e), ST_OK);
    assert_int_equal(hex_decode(digest, sizeof digest, m->digest, &n), ST_OK);
    Strata__V1__FetchRequest rq = STRATA__V1__FETCH_REQUEST__INIT;
    Strata__V1__Piece piece[9], *list[9];
    const struct model_layer *l = &m->layers[1];
    assert_int_equal(l->npieces, 9);
    for (size_t i = 0; i < 9; i++) {
        strata__v1__piece__init(&piece[i]);
        piece[i].file = l->pieces[i].file;
        piece[i].offset = l->pieces[i].offset;
        piece[i].length = l->pieces[i].length;
        list[i] = &piece[i];
    }
    rq.path = a;
    rq.pieces = list;
    rq.n_pieces = 9;
    rq.bytes = model_layer_bytes(l);
    rq.file_count = 1;
    rq.header_sha256.data = digest;
    rq.header_sha256.len = 32;
    if (source_open_request(&s, roots, 1, &rq, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(source_bytes(s), model_layer_bytes(l));
    source_close(s);
    rq.bytes++;
    assert_int_equal(source_open_request(&s, roots, 1, &rq, &e), ST_EINVAL);
    rq.bytes--;
    rq.file_count = 2;
    assert_int_equal(source_open_request(&s, roots, 1, &rq, &e), ST_ECONFLICT);
    rq.file_count = 1;
    digest[5] ^= 1;
    assert_int_equal(source_open_request(&s, roots, 1, &rq, &e), ST_ECONFLICT);
    assert_string_equal(e.reason, "OTHER_MODEL");
    rq.path = outside;
    assert_int_equal(source_open_request(&s, roots, 1, &rq, &e), ST_EDENIED);
    model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_digest), cmocka_unit_test(test_bad_pieces),
        cmocka_unit_test(test_containment),      cmocka_unit_test(test_changes),
        cmocka_unit_test(test_request),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
