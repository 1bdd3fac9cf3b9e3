/* safetensors: single file, shards with an index, config.json, and damaged headers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <unistd.h>

#include "common/model/model.h"
#include "common/model/safetensors.h"
#include "tests/unit/model/make.h"

static char dir[] = "/tmp/strata-st-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir);
}

static void at(char out[128], const char *name)
{
    snprintf(out, 128, "%s/%s", dir, name);
}

static void make(struct buf *b, const char *header, size_t data)
{
    mk_uint(b, 8, strlen(header));
    mk_bytes(b, header, strlen(header));
    for (size_t i = 0; i < data; i++)
        mk_uint(b, 1, i);
}

static int read_it(const char *header, size_t data, size_t cut, struct tensor_table *t, struct err *e)
{
    struct buf b = {0};
    uint8_t digest[32];
    make(&b, header, data);
    size_t n = b.len - cut;
    uint8_t *p = malloc(n + 1);
    assert_non_null(p);
    memcpy(p, b.data, n);
    struct model_src src = {.pread = mk_pread, .arg = p, .size = n};
    int rc = safetensors_read(&src, "x.safetensors", 0, digest, t, e);
    if (rc == ST_OK)
        rc = tensor_table_check(t, "x.safetensors", e);
    free(p);
    buf_fini(&b);
    return rc;
}

#define T(name, dtype, shape, off)                                                                           \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" off "}"

static void test_header(void **state)
{
    (void)state;
    struct tensor_table t = {0};
    struct err e = {0};
    const char *h = "{\"__metadata__\":{\"format\":\"pt\"}," T("a", "BF16", "[2,3]", "[0,12]") "," T(
        "b", "F8_E4M3", "[]", "[12,13]") "," T("c", "F4", "[3,2]", "[13,16]") "}   ";
    assert_int_equal(read_it(h, 16, 0, &t, &e), ST_OK);
    assert_int_equal(t.n, 3);
    assert_int_equal(t.v[0].rows, 2);
    assert_int_equal(t.v[0].offset, 8 + strlen(h));
    assert_int_equal(t.v[1].length, 1);
    assert_int_equal(t.v[2].length, 3);
    tensor_table_fini(&t);
    for (size_t cut = 1; cut <= 8 + strlen(h) + 16; cut++) {
        assert_int_equal(read_it(h, 16, cut, &t, &e), ST_ECORRUPT);
        tensor_table_fini(&t);
    }
}

static void test_damage(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        int rc;
        const char *says;
    } bad[] = {
        {"{" T("a", "F32", "[2]", "[0,7]") "}", ST_ECORRUPT, "do not fit"},
        {"{" T("a", "F32", "[2]", "[8,0]") "}", ST_ECORRUPT, "data_offsets"},
        {"{" T("a", "F32", "[2]", "[0]") "}", ST_ECORRUPT, "data_offsets"},
        {"{" T("a", "F32", "[-2]", "[0,8]") "}", ST_ECORRUPT, "whole number"},
        {"{" T("a", "F32", "[9223372036854775807,9223372036854775807]", "[0,8]") "}", ST_ECORRUPT,
         "overflows"},
        {"{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", ST_ECORRUPT, "8 sizes"},
        {"{" T("a", "F99", "[2]", "[0,8]") "}", ST_ENOTSUP, "F99"},
        {"{" T("a", "F4", "[3]", "[0,1]") "}", ST_ECORRUPT, "do not fit"},
        {"{" T("a", "F32", "[64]", "[0,256]") "}", ST_ECORRUPT, "beyond the end"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[4,12]") "}", ST_ECORRUPT, "overlap"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("a", "F32", "[2]", "[8,16]") "}", ST_ECORRUPT, "duplicate"},
        {"{\"a\":3}", ST_ECORRUPT, "shape"},
        {"[1]", ST_ECORRUPT, "not an object"},
        {"{\"a\":", ST_ECORRUPT, "not JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tensor_table t = {0};
        struct err e = {0};
        assert_int_equal(read_it(bad[i].header, 32, 0, &t, &e), bad[i].rc);
        if (!strstr(e.text, bad[i].says) || !strstr(e.text, "x.safetensors"))
            fail_msg("%zu: \"%s\" does not say \"%s\"", i, e.text, bad[i].says);
        tensor_table_fini(&t);
    }
    uint8_t huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{'}, digest[32];
    struct model_src src = {.pread = mk_pread, .arg = huge, .size = sizeof huge};
    struct tensor_table t = {0};
    struct err e = {0};
    assert_int_equal(safetensors_read(&src, "x", 0, digest, &t, &e), ST_ECORRUPT);
}

static void put(const char *name, const char *text)
{
    char path[128];
    at(path, name);
    mk_file(path, text, strlen(text));
}

static void put_shard(const char *name, const char *header, size_t data)
{
    struct buf b = {0};
    char path[128];
    make(&b, header, data);
    at(path, name);
    mk_file(path, b.data, b.len);
    buf_fini(&b);
}

#define INDEX(second)                                                                                        \
    "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"model.embed_tokens.weight\":\"m-1.safetensors\","    \
    "\"model.layers.0.self_attn.k_proj.weight\":\"m-1.safetensors\",\"model.layers.0.mlp.up_proj.weight\":"  \
    "\"" second "\",\"model.norm.weight\":\"m-2.safetensors\",\"lm_head.weight\":\"m-2.safetensors\"}}"

static void test_shards(void **state)
{
    (void)state;
    char path[128];
    struct model *m = NULL;
    struct err e = {0};
    struct model_options mo = {.context = 10};
    put_shard("m-1.safetensors",
              "{" T("model.embed_tokens.weight", "F16", "[10,8]", "[0,160]") "," T(
                  "model.layers.0.self_attn.k_proj.weight", "F16", "[4,8]", "[160,224]") "}",
              224);
    put_shard("m-2.safetensors",
              "{" T("lm_head.weight", "F16", "[10,8]", "[16,176]") "," T(
                  "model.norm.weight", "F16", "[8]", "[0,16]") "," T("model.layers.0.mlp.up_proj.weight",
                                                                     "F16", "[16,8]", "[176,432]") "}",
              432);
    put("model.safetensors.index.json", INDEX("m-2.safetensors"));
    put("config.json", "{\"model_type\":\"llama\",\"hidden_size\":8,\"num_attention_heads\":4,"
                       "\"num_key_value_heads\":2,\"num_hidden_layers\":1,\"vocab_size\":10}");
    if (model_open(dir, &mo, &m, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(m->nlayers, 4);
    assert_string_equal(m->arch, "llama");
    assert_int_equal(m->nfiles, 2);
    assert_int_equal(m->layers[1].npieces, 2);
    assert_int_equal(m->layers[1].pieces[1].file, 1);
    assert_string_equal(m->layers[1].pieces[1].tensor, "model.layers.0.mlp.up_proj.weight");
    assert_true(m->layers[1].kv_bytes == 10 * 2 * (2 + 2) * 2);
    assert_true(m->layers[0].read_bytes == 16 && m->layers[3].output_bytes == 40);
    model_free(m);
    m = NULL;
    put("config.json", "[");
    assert_int_equal(model_open(dir, &mo, &m, &e), ST_ECORRUPT);
    at(path, "config.json");
    unlink(path);
    put("model.safetensors.index.json", INDEX("m-1.safetensors"));
    assert_int_equal(model_open(dir, &mo, &m, &e), ST_ECORRUPT);
    assert_non_null(strstr(e.text, "up_proj.weight is not in m-1.safetensors"));
    put("model.safetensors.index.json", INDEX("../m-2.safetensors"));
    assert_int_equal(model_open(dir, &mo, &m, &e), ST_ECORRUPT);
    assert_non_null(strstr(e.text, "plain file name"));
    put("model.safetensors.index.json", INDEX("m-3.safetensors"));
    assert_int_equal(model_open(dir, &mo, &m, &e), ST_ENOENT);
    at(path, "m-1.safetensors");
    assert_int_equal(model_open(path, &mo, &m, &e),
                     ST_OK); /* by itself; its head is tied, its cache from shapes */
    assert_true(m->layers[2].type == LAYER_OUTPUT && m->layers[1].kv_bytes == 10 * 4 * 2);
    model_free(m);
    static const char *const files[] = {"m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json"};
    for (int i = 0; i < 3; i++) {
        at(path, files[i]);
        unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
