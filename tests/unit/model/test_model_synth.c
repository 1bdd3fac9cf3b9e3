/* Synthetic models read back, their sizes, and the costs that come out of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/model/model.h"
#include "common/model/synth.h"
#include "tests/unit/model/make.h"

static char dir[] = "/tmp/strata-synth-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir); /* fails when a test left something behind */
}

static void at(char out[128], const char *name)
{
    snprintf(out, 128, "%s/%s", dir, name);
}

static int count(void *arg, uint64_t done, uint64_t total)
{
    uint64_t *last = arg;
    assert_true(done >= *last && done <= total);
    *last = done;
    return ST_OK;
}

static uint64_t size_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static void test_each_type(void **state)
{
    (void)state;
    static const double per_weight[] = {4, 2, 34.0 / 32, 18.0 / 32};
    for (int t = SYNTH_F32; t <= SYNTH_Q4_0; t++) {
        struct synth_options o = {.layers = 3,
                                  .embedding = 128,
                                  .ff = 96,
                                  .vocab = 512,
                                  .heads = 4,
                                  .heads_kv = 2,
                                  .type = (enum synth_type)t,
                                  .seed = 7};
        struct model_options mo = {.context = 100, .sequences = 2};
        struct model *m = NULL;
        struct err e = {0};
        uint64_t last = 0, size;
        char path[128];
        at(path, "m.gguf");
        assert_int_equal(synth_plan(&o, &size, &e), ST_OK);
        if (synth_write(path, &o, count, &last, &e) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(last, size);
        assert_int_equal(size_of(path), size);
        if (model_open(path, &mo, &m, &e) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(m->nlayers, 6);
        assert_string_equal(m->arch, "llama");
        assert_string_equal(m->name, "synthetic");
        const struct model_layer *b = &m->layers[1];
        double w = 128 * (2 * 128 + 2 * 64) + 3 * 128 * 96;
        assert_int_equal(b->type, LAYER_BLOCK);
        assert_int_equal(b->npieces, 9);
        assert_true(b->weight_bytes == w * per_weight[t] + 2 * 128 * 4);
        assert_true((double)model_layer_bytes(b) == b->weight_bytes);
        assert_true(b->kv_bytes ==
                    2.0 * 100 * 2 * 2 * 32 * 2); /* sequences, context, K and V, heads, length, F16 */
        assert_true(b->flops == 2 * w * 2 + 4 * 4 * 32 * 2.0 * 100);
        assert_true(b->read_bytes == b->weight_bytes + b->kv_bytes);
        assert_true(b->input_bytes == 2 * 128 * 2 && b->output_bytes == b->input_bytes);
        assert_true(m->layers[5].flops == 2.0 * 128 * 512 * 2 && m->layers[5].output_bytes == 2 * 512 * 4);
        assert_true(m->layers[0].read_bytes == 2 * 128 * per_weight[t]);
        assert_int_equal(strlen(m->digest), 64);
        model_free(m);
        unlink(path);
    }
}

static void test_seed(void **state)
{
    (void)state;
    struct synth_options o = {
        .layers = 1, .embedding = 64, .ff = 64, .vocab = 259, .type = SYNTH_Q8_0, .seed = 1};
    struct buf b[3] = {{0}};
    struct err e = {0};
    char path[128];
    at(path, "s.gguf");
    for (int i = 0; i < 3; i++) {
        o.seed = i == 2 ? 2 : 1;
        assert_int_equal(synth_write(path, &o, NULL, NULL, &e), ST_OK);
        assert_int_equal(fs_read(path, 1u << 20, &b[i], &e), ST_OK);
    }
    assert_int_equal(b[0].len, b[2].len);
    assert_memory_equal(b[0].data, b[1].data, b[0].len);
    assert_int_not_equal(memcmp(b[0].data, b[2].data, b[0].len), 0);
    for (int i = 0; i < 3; i++)
        buf_fini(&b[i]);
    unlink(path);
}

static void test_target_sizes(void **state)
{
    (void)state;
    for (int t = SYNTH_F32; t <= SYNTH_Q4_0; t++)
        for (double target = 1 << 20; target < 1e11; target *= 3.7) {
            struct synth_options o = {.target_bytes = (uint64_t)target, .type = (enum synth_type)t};
            struct err e = {0};
            uint64_t size = 0;
            if (synth_plan(&o, &size, &e) < 0)
                fail_msg("%.0f: %s", target, e.text);
            if (fabs((double)size / target - 1) > 0.03)
                fail_msg("type %d: asked %.0f, got %llu (d %u, layers %u, ff %u, vocab %u)", t, target,
                         (unsigned long long)size, o.embedding, o.layers, o.ff, o.vocab);
        }
    struct synth_options o = {.target_bytes = 300u << 20, .layers = 8, .type = SYNTH_F16};
    struct err e = {0};
    uint64_t size = 0;
    assert_int_equal(synth_plan(&o, &size, &e), ST_OK);
    assert_int_equal(o.layers, 8);
    assert_true(fabs((double)size / (300u << 20) - 1) < 0.03);
}

static int stop(void *arg, uint64_t done, uint64_t total)
{
    (void)arg;
    return done * 2 > total ? ST_ECANCELED : ST_OK;
}

static void test_refusals(void **state)
{
    (void)state;
    struct synth_options o = {.layers = 2, .embedding = 100, .type = SYNTH_F16};
    struct err e = {0};
    char path[128];
    at(path, "bad.gguf");
    assert_int_equal(synth_write(path, &o, NULL, NULL, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "multiples of 32"));
    o = (struct synth_options){.vocab = 10};
    assert_int_equal(synth_write(path, &o, NULL, NULL, &e), ST_EINVAL);
    o = (struct synth_options){.embedding = 64, .heads = 3};
    assert_int_equal(synth_write(path, &o, NULL, NULL, &e), ST_EINVAL);
    o = (struct synth_options){.layers = 2, .embedding = 512, .ff = 2048, .type = SYNTH_F32};
    assert_int_equal(synth_write(path, &o, stop, NULL, &e), ST_ECANCELED);
    assert_int_equal(synth_write("/nonexistent/x.gguf", &o, NULL, NULL, &e), ST_ENOENT);
    assert_false(fs_exists(path));
    assert_int_equal(synth_write("/dev/full/x", &o, NULL, NULL, &e) < 0, 1);
    enum synth_type t;
    assert_int_equal(synth_type_parse("q8_0", &t), ST_OK);
    assert_int_equal(t, SYNTH_Q8_0);
    assert_int_equal(synth_type_parse("q9", &t), ST_EINVAL);
}

/* A disk that fills up half way, played by a limit on file sizes. */
static void test_full_disk(void **state)
{
    (void)state;
    struct synth_options o = {.layers = 2, .embedding = 512, .ff = 2048, .type = SYNTH_F32};
    struct rlimit was, now;
    struct err e = {0};
    char path[128];
    at(path, "full.gguf");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    now = was;
    now.rlim_cur = 5u << 20;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
    int rc = synth_write(path, &o, NULL, NULL, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_true(rc < 0);
    assert_non_null(strstr(e.text, "free some space"));
    assert_false(fs_exists(path)); /* and teardown finds the directory empty: no temporary file either */
}

static void test_split_and_prefill(void **state)
{
    (void)state;
    struct synth_options o = {.layers = 2, .embedding = 64, .ff = 128, .vocab = 300, .type = SYNTH_F32};
    struct model_options mo = {.context = 64, .tokens = 64, .split = true};
    struct model *m = NULL;
    struct err e = {0};
    char path[128];
    at(path, "p.gguf");
    assert_int_equal(synth_write(path, &o, NULL, NULL, &e), ST_OK);
    assert_int_equal(model_open(path, &mo, &m, &e), ST_OK);
    assert_int_equal(m->nlayers, 7);
    assert_string_equal(m->layers[1].id, "block.0.attention");
    assert_string_equal(m->layers[2].id, "block.0.mlp");
    assert_int_equal(m->layers[1].type, LAYER_ATTENTION);
    assert_int_equal(m->layers[2].type, LAYER_MLP);
    assert_true(m->layers[2].kv_bytes == 0 && m->layers[2].flops == 2.0 * 3 * 64 * 128 * 64);
    assert_true(m->layers[1].flops == 2.0 * 4 * 64 * 64 * 64 + 4.0 * 64 * 64 * (64 - 63 / 2.0));
    assert_true(m->layers[2].weight_bytes == 4.0 * (3 * 64 * 128 + 64));
    assert_string_equal(m->layers[5].id, "normalization");
    model_free(m);
    mo.tokens = 65;
    assert_int_equal(model_open(path, &mo, &m, &e), ST_EINVAL);
    assert_non_null(strstr(e.text, "raise the context"));
    /* every byte of the data section belongs to exactly one layer */
    mo = (struct model_options){0};
    assert_int_equal(model_open(path, &mo, &m, &e), ST_OK);
    double sum = 0;
    for (size_t i = 0; i < m->nlayers; i++)
        sum += m->layers[i].weight_bytes;
    assert_true(sum == 4.0 * (2 * 64 * 300 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)));
    struct buf b = {0};
    struct model *n = NULL;
    assert_int_equal(model_write_json(m, &b), ST_OK);
    if (model_read_json(buf_cstr(&b), b.len, "w", &n, &e) < 0)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < m->nlayers; i++)
        assert_true(m->layers[i].flops == n->layers[i].flops && m->layers[i].type == n->layers[i].type);
    model_free(m);
    model_free(n);
    buf_fini(&b);
    unlink(path);
}

/* A mixture of experts with merged expert tensors: two of eight work, a batch touches more. */
static void test_experts(void **state)
{
    (void)state;
    struct buf b = {0};
    char path[128];
    struct model *m = NULL;
    struct err e = {0};
    at(path, "moe.gguf");
    mk_head(&b, 3, 3, 5);
    mk_kv_string(&b, "general.architecture", "x");
    mk_kv_u32(&b, "x.embedding_length", 32);
    mk_kv_u32(&b, "x.expert_count", 8);
    mk_kv_u32(&b, "x.expert_used_count", 2);
    mk_kv_u32(&b, "x.block_count", 1);
    mk_tensor(&b, "token_embd.weight", 32, 10, 0, 0);
    mk_tensor(&b, "blk.0.ffn_norm.weight", 32, 0, 0, 1280);
    mk_string(&b, "blk.0.ffn_up_exps.weight");
    mk_uint(&b, 4, 3);
    mk_uint(&b, 8, 32);
    mk_uint(&b, 8, 16);
    mk_uint(&b, 8, 8);
    mk_uint(&b, 4, 0);
    mk_uint(&b, 8, 1408);
    mk_pad(&b, 32);
    for (int i = 0; i < 1408 + 32 * 16 * 8 * 4; i++)
        mk_uint(&b, 1, 0);
    mk_file(path, b.data, b.len);
    struct model_options mo = {.sequences = 3, .context = 16};
    if (model_open(path, &mo, &m, &e) < 0)
        fail_msg("%s", e.text);
    double w = 32 * 16 * 8;
    assert_true(m->layers[1].flops == 2 * w * 3 / 4);
    assert_true(fabs(m->layers[1].read_bytes - (128 + 4 * w * (1 - pow(0.75, 3)))) < 1e-6);
    assert_true(m->layers[1].kv_bytes == 0); /* no attention in it */
    model_free(m);
    buf_fini(&b);
    unlink(path);
}

static void test_not_a_model(void **state)
{
    (void)state;
    struct model *m = NULL;
    struct err e = {0};
    char path[128];
    at(path, "n");
    mk_file(path, "hello", 5);
    assert_int_equal(model_open(path, NULL, &m, &e), ST_ECORRUPT);
    mk_file(path, "", 0);
    assert_int_equal(model_open(path, NULL, &m, &e), ST_ECORRUPT);
    mk_file(path, "GGUF", 4);
    assert_int_equal(model_open(path, NULL, &m, &e), ST_ECORRUPT);
    unlink(path);
    assert_int_equal(model_open(path, NULL, &m, &e), ST_ENOENT);
    assert_int_equal(model_open(dir, NULL, &m, &e), ST_ENOENT);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(model_open(path, NULL, &m, &e), ST_EINVAL);
    unlink(path);
    assert_null(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_type),         cmocka_unit_test(test_seed),
        cmocka_unit_test(test_target_sizes),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_experts),           cmocka_unit_test(test_not_a_model),
        cmocka_unit_test(test_split_and_prefill), cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
