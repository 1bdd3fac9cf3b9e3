/* GGUF reading: hand-made files, every type, truncation at each byte, hostile counts, split sets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <unistd.h>

#include "common/model/model.h"
#include "tests/unit/model/make.h"

/* Reads n bytes from a block of exactly that size, so that a read too far is caught. */
static int read_bytes(const struct buf *b, size_t n, struct gguf *g, struct tensor_table *t, struct err *e)
{
    uint8_t *p = malloc(n ? n : 1);
    assert_non_null(p);
    if (n)
        memcpy(p, b->data, n);
    struct model_src src = {.pread = mk_pread, .arg = p, .size = n};
    int rc = gguf_read(&src, "x.gguf", 0, g, t, e);
    free(p);
    return rc;
}

/* A v2 file with nested arrays, an odd alignment and two tensors. Returns where the data begins. */
static size_t make_v2(struct buf *b)
{
    mk_head(b, 2, 3, 7);
    mk_kv_string(b, "general.architecture", "llama");
    mk_kv_u32(b, "general.alignment", 64);
    mk_string(b, "nested"); /* [[1,2],["a"]] as arrays of arrays */
    mk_uint(b, 4, GGUF_ARRAY);
    mk_uint(b, 4, GGUF_ARRAY);
    mk_uint(b, 8, 2);
    mk_uint(b, 4, GGUF_U16);
    mk_uint(b, 8, 2);
    mk_uint(b, 2, 1);
    mk_uint(b, 2, 2);
    mk_uint(b, 4, GGUF_STRING);
    mk_uint(b, 8, 1);
    mk_string(b, "a");
    mk_string(b, "llama.attention.head_count_kv");
    mk_uint(b, 4, GGUF_ARRAY);
    mk_uint(b, 4, GGUF_I32);
    mk_uint(b, 8, 2);
    mk_uint(b, 4, 1);
    mk_uint(b, 4, 0);
    mk_kv_u32(b, "llama.attention.head_count", 2);
    mk_kv_u32(b, "llama.embedding_length", 64);
    mk_string(b, "ratio");
    mk_uint(b, 4, GGUF_F64);
    double half = 0.5;
    mk_bytes(b, &half, 8);
    mk_tensor(b, "token_embd.weight", 64, 10, 0, 0);
    mk_tensor(b, "blk.0.attn_k.weight", 64, 32, 8, 2560);
    mk_tensor(b, "blk.1.attn_k.weight", 64, 32, 8, 4736);
    size_t header = b->len;
    mk_pad(b, 64);
    for (int i = 0; i < 4736 + 2176; i++)
        mk_uint(b, 1, (uint64_t)i);
    return header;
}

static void test_v2(void **state)
{
    (void)state;
    struct buf b = {0};
    struct gguf g;
    struct tensor_table t = {0};
    struct err e = {0};
    struct hparams h = {0};
    make_v2(&b);
    assert_int_equal(read_bytes(&b, b.len, &g, &t, &e), ST_OK);
    assert_int_equal(g.version, 2);
    assert_int_equal(g.alignment, 64);
    assert_int_equal(g.data_offset % 64, 0);
    assert_int_equal(t.n, 3);
    assert_string_equal(t.v[1].dtype, "Q8_0");
    assert_int_equal(t.v[1].length, 64 * 32 / 32 * 34);
    assert_int_equal(t.v[1].offset, g.data_offset + 2560);
    assert_true(gguf_get(&g, "ratio")->f == 0.5);
    assert_int_equal(gguf_get(&g, "nested")->count, 2);
    assert_null(gguf_get(&g, "absent"));
    assert_int_equal(gguf_hparams(&g, &h), ST_OK);
    assert_int_equal(h.heads_kv, 1);
    assert_int_equal(h.nheads_kv_each, 2);
    assert_int_equal(h.heads_kv_each[1], 0);
    assert_int_equal(tensor_table_check(&t, "x", &e), ST_OK);
    hparams_fini(&h);
    gguf_fini(&g);
    tensor_table_fini(&t);
    buf_fini(&b);
}

static void test_truncated_everywhere(void **state)
{
    (void)state;
    struct buf b = {0};
    make_v2(&b);
    for (size_t n = 0; n < b.len; n++) {
        struct gguf g;
        struct tensor_table t = {0};
        struct err e = {0};
        int rc = read_bytes(&b, n, &g, &t, &e);
        assert_int_equal(rc, ST_ECORRUPT); /* the last tensor ends with the file, so any cut shows */
        assert_non_null(strstr(e.text, "x.gguf"));
        tensor_table_fini(&t);
    }
    buf_fini(&b);
}

static void test_types(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        const char *name;
        uint64_t bytes; /* of 256 elements */
    } want[] = {
        {0, "F32", 1024},   {1, "F16", 512},     {2, "Q4_0", 144},   {3, "Q4_1", 160},    {6, "Q5_0", 176},
        {7, "Q5_1", 192},   {8, "Q8_0", 272},    {9, "Q8_1", 288},   {10, "Q2_K", 84},    {11, "Q3_K", 110},
        {12, "Q4_K", 144},  {13, "Q5_K", 176},   {14, "Q6_K", 210},  {15, "Q8_K", 292},   {16, "IQ2_XXS", 66},
        {17, "IQ2_XS", 74}, {18, "IQ3_XXS", 98}, {19, "IQ1_S", 50},  {20, "IQ4_NL", 144}, {21, "IQ3_S", 110},
        {22, "IQ2_S", 82},  {23, "IQ4_XS", 136}, {24, "I8", 256},    {25, "I16", 512},    {26, "I32", 1024},
        {27, "I64", 2048},  {28, "F64", 2048},   {29, "IQ1_M", 56},  {30, "BF16", 512},   {34, "TQ1_0", 54},
        {35, "TQ2_0", 66},  {39, "MXFP4", 136},  {40, "NVFP4", 144}, {41, "Q1_0", 36},    {42, "Q2_0", 72},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct buf b = {0};
        struct gguf g;
        struct tensor_table t = {0};
        struct err e = {0};
        mk_head(&b, 3, 1, 0);
        mk_tensor(&b, "w", 256, 0, want[i].type, 0);
        mk_pad(&b, 32);
        for (uint64_t k = 0; k < want[i].bytes; k++)
            mk_uint(&b, 1, k);
        assert_int_equal(read_bytes(&b, b.len, &g, &t, &e), ST_OK);
        assert_int_equal(t.v[0].length, want[i].bytes);
        assert_string_equal(t.v[0].dtype, want[i].name);
        gguf_fini(&g);
        tensor_table_fini(&t);
        buf_fini(&b);
    }
    const char *name;
    uint32_t block, bytes;
    assert_false(ggml_type_info(4, &name, &block, &bytes)); /* removed long ago, never had a stable layout */
    assert_false(ggml_type_info(999, &name, &block, &bytes));
}

static void expect(struct buf *b, int rc, const char *text)
{
    struct gguf g;
    struct tensor_table t = {0};
    struct err e = {0};
    mk_pad(b, 32);
    int got = read_bytes(b, b->len, &g, &t, &e);
    if (got == ST_OK) {
        got = tensor_table_check(&t, "x.gguf", &e);
        gguf_fini(&g);
    }
    assert_int_equal(got, rc);
    if (!strstr(e.text, text))
        fail_msg("\"%s\" does not say \"%s\"", e.text, text);
    tensor_table_fini(&t);
    buf_fini(b);
}

static void test_hostile(void **state)
{
    (void)state;
    struct buf b = {0};
    mk_head(&b, 3, UINT64_MAX, 0);
    expect(&b, ST_ECORRUPT, "tensor count");
    mk_head(&b, 3, 0, UINT64_MAX);
    expect(&b, ST_ECORRUPT, "metadata count");
    mk_head(&b, 3, 0, 1);
    mk_uint(&b, 8, UINT64_MAX - 3); /* a key of nearly 2^64 bytes */
    expect(&b, ST_ECORRUPT, "metadata count");
    mk_head(&b, 3, 0, 1);
    mk_uint(&b, 8, UINT64_MAX - 3);
    mk_uint(&b, 8, 0);
    expect(&b, ST_ECORRUPT, "longer than the file");
    mk_head(&b, 3, 0, 1);
    mk_string(&b, "k");
    mk_uint(&b, 4, GGUF_ARRAY);
    mk_uint(&b, 4, GGUF_U64);
    mk_uint(&b, 8, 1ull << 61); /* times 8 is 0 */
    expect(&b, ST_ECORRUPT, "array is longer");
    mk_head(&b, 3, 0, 1);
    mk_string(&b, "k");
    for (int i = 0; i < 12; i++) {
        mk_uint(&b, 4, GGUF_ARRAY);
        if (i)
            mk_uint(&b, 8, 1);
    }
    mk_uint(&b, 4, GGUF_U8);
    mk_uint(&b, 8, 0);
    expect(&b, ST_ECORRUPT, "nested too deeply");
    mk_head(&b, 3, 0, 1);
    mk_string(&b, "k");
    mk_uint(&b, 4, 13);
    mk_uint(&b, 8, 0);
    expect(&b, ST_ECORRUPT, "unknown type");
    mk_head(&b, 3, 0, 2);
    mk_kv_u32(&b, "a", 1);
    mk_kv_u32(&b, "a", 2);
    expect(&b, ST_ECORRUPT, "twice");
    mk_head(&b, 3, 0, 1);
    mk_kv_u32(&b, "general.alignment", 24);
    expect(&b, ST_ECORRUPT, "power of two");
    mk_head(&b, 3, 1, 0);
    mk_tensor(&b, "w", 1ull << 40, 1ull << 40, 0, 0);
    expect(&b, ST_ECORRUPT, "overflows");
    mk_head(&b, 3, 1, 0);
    mk_tensor(&b, "w", 1ull << 62, 0, 0, 0);
    expect(&b, ST_ECORRUPT, "overflows");
    mk_head(&b, 3, 1, 0);
    mk_tensor(&b, "w", 8, 0, 0, UINT64_MAX - 31);
    expect(&b, ST_ECORRUPT, "beyond the end");
    mk_head(&b, 3, 1, 0);
    mk_tensor(&b, "w", 8, 0, 0, 7);
    expect(&b, ST_ECORRUPT, "multiple of 32");
    mk_head(&b, 3, 1, 0);
    mk_tensor(&b, "w", 33, 0, 8, 0);
    expect(&b, ST_ECORRUPT, "whole blocks");
    mk_head(&b, 3, 1, 0);
    mk_tensor(&b, "w", 32, 0, 77, 0);
    expect(&b, ST_ENOTSUP, "unknown type 77");
    mk_head(&b, 1, 0, 0);
    expect(&b, ST_ENOTSUP, "version 1");
    mk_head(&b, 0x03000000, 0, 0);
    expect(&b, ST_ENOTSUP, "big-endian");
}

static void test_overlap(void **state)
{
    (void)state;
    struct buf b = {0};
    mk_head(&b, 3, 2, 0);
    mk_tensor(&b, "a", 16, 0, 0, 0);
    mk_tensor(&b, "b", 8, 0, 0, 32);
    mk_pad(&b, 32);
    for (int i = 0; i < 64; i++)
        mk_uint(&b, 1, 0);
    expect(&b, ST_ECORRUPT, "overlap");
    mk_head(&b, 3, 2, 0);
    mk_tensor(&b, "a", 8, 0, 0, 0);
    mk_tensor(&b, "a", 8, 0, 0, 32);
    mk_pad(&b, 32);
    for (int i = 0; i < 64; i++)
        mk_uint(&b, 1, 0);
    expect(&b, ST_ECORRUPT, "twice");
}

/* Part `no` of `count` with one block. */
static void make_part(const char *path, unsigned no, unsigned count, unsigned says_no, unsigned total)
{
    struct buf b = {0};
    char name[40];
    mk_head(&b, 3, no ? 1 : 2, no ? 2 : 5);
    if (!no) {
        mk_kv_string(&b, "general.architecture", "llama");
        mk_kv_u32(&b, "llama.block_count", count);
        mk_kv_u32(&b, "split.tensors.count", total);
    }
    mk_kv_u16(&b, "split.no", (uint16_t)says_no);
    mk_kv_u16(&b, "split.count", (uint16_t)count);
    snprintf(name, sizeof name, "blk.%u.ffn_up.weight", no);
    if (!no)
        mk_tensor(&b, "token_embd.weight", 32, 4, 0, 1024);
    mk_tensor(&b, name, 32, 8, 0, 0);
    mk_pad(&b, 32);
    for (int i = 0; i < 1024 + (no ? 0 : 512); i++)
        mk_uint(&b, 1, no);
    mk_file(path, b.data, b.len);
    buf_fini(&b);
}

static void test_splits(void **state)
{
    (void)state;
    char dir[] = "/tmp/strata-split-XXXXXX", path[3][96];
    struct model *m = NULL;
    struct err e = {0};
    assert_non_null(mkdtemp(dir));
    for (unsigned i = 0; i < 3; i++) {
        snprintf(path[i], sizeof path[i], "%s/m-%05u-of-00003.gguf", dir, i + 1);
        make_part(path[i], i, 3, i, 4);
    }
    assert_int_equal(model_open(path[0], NULL, &m, &e), ST_OK);
    assert_int_equal(m->nfiles, 3);
    assert_int_equal(m->nlayers, 5); /* embedding, three blocks, the tied head */
    assert_string_equal(m->layers[0].id, "embedding");
    assert_string_equal(m->layers[3].id, "block.2");
    assert_int_equal(m->layers[3].pieces[0].file, 2);
    assert_string_equal(m->layers[4].id, "output");
    assert_string_equal(m->layers[4].pieces[0].tensor, "token_embd.weight");
    assert_true(m->chain);
    model_free(m);
    assert_int_equal(model_open(path[1], NULL, &m, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "part 2"));
    make_part(path[2], 2, 3, 1, 4);
    assert_int_equal(model_open(path[0], NULL, &m, &e), ST_ECORRUPT);
    make_part(path[2], 2, 3, 2, 4);
    make_part(path[0], 0, 3, 0, 9);
    assert_int_equal(model_open(path[0], NULL, &m, &e), ST_ECORRUPT);
    assert_non_null(strstr(e.text, "should hold 9"));
    make_part(path[0], 0, 3, 0, 4);
    unlink(path[1]);
    assert_int_equal(model_open(path[0], NULL, &m, &e), ST_ENOENT);
    assert_non_null(strstr(e.text, "00002-of-00003"));
    unlink(path[0]);
    unlink(path[2]);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v2),      cmocka_unit_test(test_truncated_everywhere),
        cmocka_unit_test(test_types),   cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_overlap), cmocka_unit_test(test_splits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
