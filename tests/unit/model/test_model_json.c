/* The planner's JSON files: what is accepted, and that each defect is named with its key and path. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"

#define L(id, more)                                                                                          \
    "{\"id\":\"" id "\",\"type\":\"block\",\"weight_bytes\":10,\"flops\":1,\"input_bytes\":2,"               \
    "\"output_bytes\":3" more "}"
#define M(layers) "{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"layers\":[" layers "]}"
#define D(id, node, more)                                                                                    \
    "{\"id\":\"" id "\",\"node\":\"" node "\",\"memory_bytes\":100,\"compute_flops_per_s\":1e9,"             \
    "\"memory_bytes_per_s\":1e9" more "}"
#define C(devices, more) "{\"schema\":\"strata.cluster.v1\",\"devices\":[" devices "]" more "}"
#define K(from, to, more) "{\"from\":\"" from "\",\"to\":\"" to "\",\"bytes_per_s\":5,\"rtt_s\":0.1" more "}"

struct bad {
    const char *text, *says;
};

static const struct bad bad_models[] = {
    {"", "m.json"},
    {"[]", "one JSON object"},
    {"{} x", "line 1"},
    {"{\"name\":\"m\"}", "schema: missing"},
    {"{\"schema\":\"strata.model.v2\",\"name\":\"m\",\"layers\":[]}", "schema: is \"strata.model.v2\""},
    {"{\"schema\":\"strata.model.v1\",\"layers\":[]}", "name: missing"},
    {"{\"schema\":\"strata.model.v1\",\"name\":\"m\"}", "layers: missing"},
    {"{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"layers\":{}}", "layers: must be a list"},
    {"{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"name\":\"n\",\"layers\":[]}", "duplicate"},
    {"{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"layers\":[],\"x\":1}", "x: unknown key"},
    {M(""), "at least one"},
    {M("3"), "layers[0]: must be an object"},
    {M(L("a", "") "," L("a", "")), "layers[1].id: duplicate layer id \"a\""},
    {M(L("a", ",\"count\":2") "," L("a.1", "")), "layers[1].id: duplicate"},
    {M(L("a.0", "") "," L("a", ",\"count\":2")), "layers[1].id: duplicate"},
    {M(L("a", ",\"weihgt\":1")), "layers[0].weihgt: unknown key"},
    {M(L("a", ",\"kv_bytes\":-1")), "layers[0].kv_bytes: -1 is negative"},
    {M(L("a", ",\"kv_bytes\":\"1\"")), "layers[0].kv_bytes: must be a number"},
    {M(L("a", ",\"kv_bytes\":null")), "layers[0].kv_bytes: must be a number"},
    {M(L("a", ",\"kv_bytes\":1e999")), "line"},
    {M(L("a", ",\"kv_bytes\":1e99")), "too large"},
    {M(L("a", ",\"kv_bytes\":NaN")), "line"},
    {M(L("a", ",\"count\":0")), "layers[0].count"},
    {M(L("a", ",\"count\":1.5")), "layers[0].count"},
    {M(L("a", ",\"count\":1e9")), "layers[0].count"},
    {M(L("a", ",\"count\":60000") "," L("b", ",\"count\":60000")), "layers[1].count: makes more"},
    {M("{\"id\":\"a\",\"type\":\"bloc\",\"weight_bytes\":1,\"flops\":1,\"input_bytes\":1,\"output_bytes\":"
       "1}"),
     "layers[0].type: \"bloc\""},
    {M("{\"id\":\"a\",\"type\":\"block\",\"flops\":1,\"input_bytes\":1,\"output_bytes\":1}"),
     "layers[0].weight_bytes: missing"},
    {M("{\"type\":\"block\",\"weight_bytes\":1,\"flops\":1,\"input_bytes\":1,\"output_bytes\":1}"),
     "layers[0].id: missing"},
    {M("{\"id\":\"\",\"type\":\"block\",\"weight_bytes\":1,\"flops\":1,\"input_bytes\":1,\"output_bytes\":"
       "1}"),
     "layers[0].id: must be a string"},
    {M(L("a", ",\"dependencies\":[\"b\"]")), "layers[0].dependencies[0]: no layer"},
    {M(L("a", ",\"dependencies\":[\"a\"]")), "cycle"},
    {M(L("a", ",\"dependencies\":[\"b\"]") "," L("b", ",\"dependencies\":[\"a\"]")), "cycle"},
    {M(L("a", "") "," L("b", ",\"dependencies\":[\"a\",\"a\"]")),
     "layers[1].dependencies[1]: names \"a\" a second"},
    {M(L("a", ",\"count\":3,\"dependencies\":[\"a\"]")), "cycle"},
    {M(L("a", ",\"dependencies\":\"b\"")), "layers[0].dependencies: must be a list"},
};

static void test_bad_models(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_models / sizeof *bad_models; i++) {
        struct model *m = NULL;
        struct err e = {0};
        const char *t = bad_models[i].text;
        assert_int_equal(model_read_json(t, strlen(t), "m.json", &m, &e), ST_EINVAL);
        assert_null(m);
        if (!strstr(e.text, bad_models[i].says) || !strstr(e.text, "m.json"))
            fail_msg("model %zu: \"%s\" does not say \"%s\"", i, e.text, bad_models[i].says);
    }
}

static struct model *model_of(const char *text)
{
    struct model *m = NULL;
    struct err e = {0};
    if (model_read_json(text, strlen(text), "m.json", &m, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}

static void test_model(void **state)
{
    (void)state;
    struct model *m =
        model_of(M(L("e", "") "," L("b", ",\"count\":3,\"kv_bytes\":7,\"read_bytes\":4.5") "," L("o", "")));
    assert_int_equal(m->nlayers, 5);
    assert_true(m->chain);
    assert_string_equal(m->layers[1].id, "b.0");
    assert_int_equal(model_find(m, "b"), 3);
    assert_int_equal(model_find(m, "b.1"), 2);
    assert_int_equal(model_find(m, "x"), MODEL_NONE);
    assert_true(m->layers[0].read_bytes == 10 && m->layers[1].read_bytes == 4.5 &&
                m->layers[0].kv_bytes == 0);
    assert_int_equal(m->layers[4].deps[0], 3);
    struct buf b = {0}, again = {0};
    assert_int_equal(model_write_json(m, &b), ST_OK);
    struct model *n = model_of(buf_cstr(&b));
    assert_int_equal(model_write_json(n, &again), ST_OK);
    assert_string_equal(buf_cstr(&b), buf_cstr(&again));
    model_free(m);
    model_free(n);
    buf_fini(&b);
    buf_fini(&again);
}

static void test_dag(void **state)
{
    (void)state;
    /* d needs b and c; b and c need a; the list is not in order, and "c" is a counted group. */
    struct model *m =
        model_of(M(L("d", ",\"dependencies\":[\"b\",\"c\"]") "," L("b", ",\"dependencies\":[\"a\"]") "," L(
            "c", ",\"count\":2,\"dependencies\":[\"a\"]") "," L("a", "")));
    static const uint32_t want[] = {4, 1, 2, 3, 0};
    assert_false(m->chain);
    assert_int_equal(m->layers[4].ndeps, 0);
    assert_int_equal(m->layers[0].deps[1], 3);
    assert_int_equal(m->layers[3].deps[0], 2);
    assert_memory_equal(m->order, want, sizeof want);
    struct buf b = {0};
    assert_int_equal(model_write_json(m, &b), ST_OK);
    struct model *n = model_of(buf_cstr(&b));
    assert_memory_equal(n->order, want, sizeof want);
    model_free(m);
    model_free(n);
    buf_fini(&b);
}

static const struct bad bad_clusters[] = {
    {C("", ""), "devices: must name at least one"},
    {C(D("a", "n", "") "," D("a", "m", ""), ""), "devices[1].id: duplicate device id \"a\""},
    {C(D("a", "n", ",\"headroom\":1"), ""), "devices[0].headroom: unknown key"},
    {C(D("a", "n", ",\"headroom_bytes\":-1"), ""), "devices[0].headroom_bytes: -1 is negative"},
    {C(D("a", "n", ",\"speed_factor\":0"), ""), "devices[0].speed_factor: 0 is not above zero"},
    {C("{\"id\":\"a\",\"node\":\"n\",\"memory_bytes\":1,\"compute_flops_per_s\":0,\"memory_bytes_per_s\":1}",
       ""),
     "devices[0].compute_flops_per_s: 0 is not above zero"},
    {C("{\"id\":\"a\",\"node\":\"n\",\"memory_bytes\":1,\"compute_flops_per_s\":1}", ""),
     "devices[0].memory_bytes_per_s: missing"},
    {C("{\"id\":\"a\",\"memory_bytes\":1}", ""), "devices[0].node: missing"},
    {C(D("a", "n", ",\"segment_s\":[1,-2]"), ""), "devices[0].segment_s[1]: -2 is negative"},
    {C(D("a", "n", ",\"resident_layers\":[1]"), ""), "devices[0].resident_layers[0]"},
    {C(D("a", "n", ""), ",\"links\":[" K("n", "m", "") "," K("n", "m", "") "]"), "links[1]: duplicate link"},
    {C(D("a", "n", ""), ",\"links\":[" K("n", "m", ",\"loss\":1") "]"), "links[0].loss: unknown key"},
    {C(D("a", "n", ""), ",\"links\":[{\"from\":\"n\",\"to\":\"m\",\"bytes_per_s\":0,\"rtt_s\":1}]"),
     "links[0].bytes_per_s: 0 is not above zero"},
    {C(D("a", "n", ""), ",\"links\":[{\"from\":\"n\",\"to\":\"m\",\"bytes_per_s\":1}]"),
     "links[0].rtt_s: missing"},
    {C(D("a", "n", ""), ",\"default_link\":{\"bytes_per_s\":1,\"rtt_s\":-1}"),
     "default_link.rtt_s: -1 is negative"},
    {C(D("a", "n", ""), ",\"same_node_link\":3"), "same_node_link: must be an object"},
    {C(D("a", "n", ""), ",\"client_node\":7"), "client_node: must be a string"},
    {C(D("a", "n", ""), ",\"clientnode\":\"x\""), "clientnode: unknown key"},
};

static void test_bad_clusters(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_clusters / sizeof *bad_clusters; i++) {
        struct cluster *c = NULL;
        struct err e = {0};
        const char *t = bad_clusters[i].text;
        assert_int_equal(cluster_read_json(t, strlen(t), "c.json", &c, &e), ST_EINVAL);
        if (!strstr(e.text, bad_clusters[i].says) || !strstr(e.text, "c.json"))
            fail_msg("cluster %zu: \"%s\" does not say \"%s\"", i, e.text, bad_clusters[i].says);
    }
}

static struct cluster *cluster_of(const char *text)
{
    struct cluster *c = NULL;
    struct err e = {0};
    if (cluster_read_json(text, strlen(text), "c.json", &c, &e) < 0)
        fail_msg("%s", e.text);
    return c;
}

static void test_cluster(void **state)
{
    (void)state;
    struct cluster *c = cluster_of(
        C(D("x/g0", "x", ",\"segment_s\":[]") "," D("x/g1", "x", "") "," D(
              "y/g0", "y", ",\"segment_s\":[1,2],\"resident_layers\":[\"gone\"]"),
          ",\"links\":[" K("x", "y",
                           "") ",{\"from\":\"y\",\"to\":\"z\",\"bytes_per_s\":9,"
                               "\"rtt_s\":0},{\"from\":\"z\",\"to\":\"y\",\"bytes_per_s\":8,\"rtt_s\":0}]"
                               ",\"client_node\":\"q\""));
    struct cluster_rate r = {0};
    assert_int_equal(c->ndevices, 3);
    assert_int_equal(c->nnodes, 4);
    assert_int_equal(c->client_node, cluster_find_node(c, "q"));
    assert_true(c->devices[0].has_segment && c->devices[0].nsegment == 0 && !c->devices[1].has_segment);
    assert_true(c->devices[1].speed_factor == 1);
    assert_string_equal(c->devices[2].resident_layers[0], "gone");
    uint32_t x = cluster_find_node(c, "x"), y = cluster_find_node(c, "y"), z = cluster_find_node(c, "z");
    assert_int_equal(cluster_path(c, x, y, &r), 1);
    assert_true(r.bytes_per_s == 5 && r.rtt_s == 0.1);
    assert_int_equal(cluster_path(c, y, x, &r), 1); /* holds both ways */
    assert_int_equal(cluster_path(c, z, y, &r), 1);
    assert_true(r.bytes_per_s == 8);
    assert_int_equal(cluster_path(c, x, x, &r), 0);
    assert_int_equal(cluster_path(c, x, z, &r), ST_EUNREACH);
    struct buf b = {0}, again = {0};
    assert_int_equal(cluster_write_json(c, &b), ST_OK);
    struct cluster *d = cluster_of(buf_cstr(&b));
    assert_int_equal(cluster_write_json(d, &again), ST_OK);
    assert_string_equal(buf_cstr(&b), buf_cstr(&again));
    assert_int_equal(d->nlinks, 4);
    cluster_free(c);
    cluster_free(d);
    buf_fini(&b);
    buf_fini(&again);
}

static void test_cluster_building(void **state)
{
    (void)state;
    struct cluster *c;
    struct cluster_device d = {
        .memory_bytes = 1, .compute_flops_per_s = 1, .memory_bytes_per_s = 1, .speed_factor = 1};
    struct cluster_rate r = {.bytes_per_s = 1};
    assert_int_equal(cluster_new(&c), ST_OK);
    assert_int_equal(cluster_seal(c), ST_EINVAL);
    for (int i = 0; i < 100; i++) {
        char id[16];
        snprintf(id, sizeof id, "d%d", i);
        assert_int_equal(cluster_add_device(c, id, "n", &d), ST_OK);
    }
    assert_int_equal(cluster_add_device(c, "d7", "n", &d), ST_EEXIST);
    assert_int_equal(cluster_find_device(c, "d99"), 99);
    d.speed_factor = NAN;
    assert_int_equal(cluster_add_device(c, "nan", "n", &d), ST_EINVAL);
    assert_int_equal(cluster_add_link(c, "n", "m", &r), ST_OK);
    assert_int_equal(cluster_add_link(c, "n", "m", &r), ST_OK);
    assert_int_equal(cluster_seal(c), ST_EEXIST);
    cluster_free(c);
}

static const struct bad bad_requests[] = {
    {"{\"schema\":\"strata.request.v2\"}", "schema"},
    {"{\"pin\":{\"a\":\"nope\"}}", "pin.a: the cluster has no device \"nope\""},
    {"{\"pin\":{\"zz\":\"x\"}}", "pin.zz: the model has no such layer"},
    {"{\"pin\":{\"b\":\"x\",\"b.1\":\"x\"}}", "pinned twice"},
    {"{\"pin\":[]}", "pin: must be an object"},
    {"{\"together\":[[\"a\",\"q\"]]}", "together[0][1]: the model has no layer \"q\""},
    {"{\"together\":[\"a\"]}", "together[0]: must be a list"},
    {"{\"max_stages\":0}", "max_stages"},
    {"{\"max_stages\":1.5}", "max_stages"},
    {"{\"min_nodes\":-1}", "min_nodes: -1 is negative"},
    {"{\"max_total_bytes\":-1}", "max_total_bytes: -1 is negative"},
    {"{\"allow\":[3]}", "allow[0]"},
    {"{\"alow\":[]}", "alow: unknown key"},
};

static void test_requests(void **state)
{
    (void)state;
    struct model *m = model_of(M(L("a", "") "," L("b", ",\"count\":2")));
    struct cluster *c = cluster_of(C(D("x", "n", "") "," D("y", "n", ""), ""));
    struct request r;
    struct err e = {0};
    for (size_t i = 0; i < sizeof bad_requests / sizeof *bad_requests; i++) {
        const char *t = bad_requests[i].text;
        assert_int_equal(request_read_json(t, strlen(t), "r.json", m, c, &r, &e), ST_EINVAL);
        if (!strstr(e.text, bad_requests[i].says) || !strstr(e.text, "r.json"))
            fail_msg("request %zu: \"%s\" does not say \"%s\"", i, e.text, bad_requests[i].says);
    }
    const char *t =
        "{\"allow\":[\"x*\",\"y\"],\"deny\":[\"y\"],\"pin\":{\"b\":\"y\"},\"together\":[[\"a\",\"b.0\"]],"
        "\"max_total_bytes\":0}";
    assert_int_equal(request_read_json(t, strlen(t), "r.json", m, c, &r, &e), ST_OK);
    assert_true(request_allows(&r, "x") && !request_allows(&r, "y") && !request_allows(&r, "z"));
    assert_true(r.pins[0].layer == 2 && r.pins[0].device == 1 && r.together[0].n == 2);
    assert_true(r.max_total_bytes == 0 && isinf(r.max_bytes_per_node) && r.max_stages == UINT32_MAX);
    request_fini(&r);
    assert_int_equal(request_read_json("{}", 2, "r.json", m, c, &r, &e), ST_OK);
    assert_true(request_allows(&r, "anything"));
    request_fini(&r);
    model_free(m);
    cluster_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_models), cmocka_unit_test(test_model),
        cmocka_unit_test(test_dag),        cmocka_unit_test(test_bad_clusters),
        cmocka_unit_test(test_cluster),    cmocka_unit_test(test_cluster_building),
        cmocka_unit_test(test_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
