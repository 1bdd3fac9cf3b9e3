/* Memory may run out at any allocation of the pure rooms: each says so, changes nothing it had, and leaks
 * nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/map.h"
#include "common/conf/conf.h"
#include "common/event/event.h"
#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "common/model/synth.h"
#include "coordinator/access/quota.h"
#include "coordinator/access/set.h"
#include "coordinator/topology/topo.h"
#include "tests/support/oom.h"

#define DEV(id, node, mem)                                                                                   \
    "{\"id\":\"" id "\",\"node\":\"" node "\",\"memory_bytes\":" mem                                         \
    ",\"compute_flops_per_s\":1e9,\"memory_bytes_per_s\":1e9,\"resident_layers\":[\"l1\"]}"
#define CLUSTER(mem)                                                                                         \
    "{\"schema\":\"strata.cluster.v1\",\"devices\":[" DEV("a/cpu:0", "a", mem) "," DEV(                      \
        "a/cpu:1", "a", mem) "," DEV("b/cpu:0", "b",                                                         \
                                     mem) "],\"links\":[{\"from\":\"a\",\"to\":\"b\",\"bytes_per_s\":1e8,"   \
                                          "\"rtt_s\":1e-3}],\"client_node\":\"a\"}"
#define LAYER(id, deps)                                                                                      \
    "{\"id\":\"" id "\",\"type\":\"mlp\",\"weight_bytes\":10,\"flops\":5,\"input_bytes\":4,"                 \
    "\"output_bytes\":4" deps "}"
#define DAG                                                                                                  \
    "{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"layers\":[" LAYER("l0", "") "," LAYER(                 \
        "l1", ",\"dependencies\":[\"l0\"]") "," LAYER("l2",                                                  \
                                                      ",\"dependencies\":[\"l0\"]") "," LAYER("l3",          \
                                                                                              ",\"dependenc" \
                                                                                              "ies\":["      \
                                                                                              "\"l1\","      \
                                                                                              "\"l2\"]") "]" \
                                                                                                         "}"
#define REQUEST                                                                                              \
    "{\"schema\":\"strata.request.v1\",\"allow\":[\"*\"],\"deny\":[\"c/*\"],\"pin\":{\"l0\":\"a/cpu:0\"},"   \
    "\"together\":[[\"l1\",\"l2\"]],\"max_stages\":3}"

struct problem {
    const char *cluster, *model, *request;
};

static int read_and_write(void *arg, struct err *e)
{
    const struct problem *p = arg;
    struct cluster *c = NULL;
    struct model *m = NULL;
    struct request r;
    struct buf out = {0};
    request_init(&r);
    int rc = cluster_read_json(p->cluster, strlen(p->cluster), "c", &c, e);
    if (rc == ST_OK)
        rc = model_read_json(p->model, strlen(p->model), "m", &m, e);
    if (rc == ST_OK)
        rc = request_read_json(p->request, strlen(p->request), "r", m, c, &r, e);
    if (rc == ST_OK)
        rc = cluster_write_json(c, &out);
    if (rc == ST_OK)
        rc = model_write_json(m, &out);
    request_fini(&r);
    cluster_free(c);
    model_free(m);
    buf_fini(&out);
    return rc;
}

static void planner(void **st)
{
    (void)st;
    struct problem files = {CLUSTER("1000"), DAG, REQUEST};
    assert_true(oom_each("planner files", read_and_write, &files, ST_EINVAL) > 20);
}

static int open_model(void *arg, struct err *e)
{
    struct model *m = NULL;
    int rc = model_open(arg, &(struct model_options){.split = true}, &m, e);
    model_free(m);
    return rc;
}

static int make_model(void *arg, struct err *e)
{
    return synth_write(arg, &(struct synth_options){.target_bytes = 300000}, NULL, NULL, e);
}

static void model_files(void **st)
{
    (void)st;
    char dir[] = "/tmp/strata-oom-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    assert_true(oom_each("writing a model", make_model, path, ST_OK) > 3);
    assert_true(oom_each("a GGUF file", open_model, path, ST_OK) > 50);
    unlink(path);
    snprintf(path, sizeof path, "%s/m.safetensors", dir);
    static const char head[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"model.embed_tokens.weight\":{\"dtype\":\"F16\",\"shape\":[8,4],\"data_offsets\":[0,64]},"
        "\"model.layers.0.mlp.up_proj.weight\":{\"dtype\":\"F16\",\"shape\":[4,4],\"data_offsets\":[64,96]},"
        "\"model.layers.0.self_attn.k_proj.weight\":{\"dtype\":\"F16\",\"shape\":[4,4],"
        "\"data_offsets\":[96,128]},"
        "\"model.norm.weight\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[128,136]},"
        "\"lm_head.weight\":{\"dtype\":\"F16\",\"shape\":[8,4],\"data_offsets\":[136,200]}}";
    FILE *f = fopen(path, "wb");
    uint64_t n = sizeof head - 1;
    static const char data[200];
    assert_true(f && fwrite(&n, 8, 1, f) == 1 && fwrite(head, n, 1, f) == 1 && fwrite(data, 200, 1, f) == 1);
    assert_int_equal(fclose(f), 0);
    assert_true(oom_each("a safetensors file", open_model, path, ST_ECORRUPT) > 20);
    unlink(path);
    rmdir(dir);
}

static int events(void *arg, struct err *e)
{
    (void)arg;
    (void)e;
    struct buf b = {0}, json = {0};
    struct event_meta meta = {0};
    event_meta_str(&meta, "reason", "a \"quoted\" reason");
    event_meta_u64(&meta, "bytes", 1ull << 60);
    event_meta_f64(&meta, "seconds", 0.25);
    struct audit_event ev = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, 1700000000000000), back;
    ev.principal = "user/alice";
    ev.job = "job-1";
    ev.meta = event_meta_text(&meta);
    int rc = meta.rc;
    if (rc == ST_OK)
        rc = event_encode(&ev, &b);
    if (rc == ST_OK)
        rc = event_decode(b.data, b.len, &back);
    if (rc == ST_OK)
        rc = event_json(&back, &json);
    event_meta_fini(&meta);
    buf_fini(&b);
    buf_fini(&json);
    return rc;
}

static void event_rows(void **st)
{
    (void)st;
    assert_true(oom_each("an event", events, NULL, ST_OK) >= 3);
}

/* After a refusal the set and the ledger must be as they were: each step checks what the last one left. */
static int rights(void *arg, struct err *e)
{
    const struct rng *rng = arg;
    struct access_set *s = NULL;
    struct quota *q = NULL;
    struct quota_refusal why;
    struct policy p = {.principal = "user/alice",
                       .roles = ROLE_BIT(ROLE_USER),
                       .n_devices = 1,
                       .has_quota = true,
                       .quota_bytes = 1000,
                       .created_us = 1,
                       .expires_us = 100};
    snprintf(p.devices[0], sizeof p.devices[0], "a/*");
    const struct quota_part parts[] = {{"a", 600}, {"a/cpu:0", 600}};
    struct quota_claim claim = {"job-1", "user/alice", 600, parts, 2};
    int rc = access_set_new(&s, rng);
    if (rc == ST_OK)
        rc = access_set_put(s, &p, e);
    if (rc == ST_OK) {
        p.quota_bytes = 900;
        rc = access_set_put(s, &p, e);
        struct policy now;
        if (!access_set_get(s, "user/alice", &now) || now.quota_bytes != (rc == ST_OK ? 900u : 1000u))
            rc = ST_EINTERNAL;
    }
    if (rc == ST_OK)
        rc = quota_new(&q, rng);
    if (rc == ST_OK) {
        rc = quota_reserve(q, &claim, &p, &why);
        if (quota_charged(q, "user/alice", "") != (rc == ST_OK ? 600u : 0u) ||
            quota_charged(q, "user/alice", "a/cpu:0") != (rc == ST_OK ? 600u : 0u))
            rc = ST_EINTERNAL;
    }
    access_set_free(s);
    quota_free(q);
    return rc;
}

static void access_rights(void **st)
{
    (void)st;
    assert_true(oom_each("policies and quota", rights, (void *)rng_system(), ST_OK) > 3);
}

static int registry(void *arg, struct err *e)
{
    (void)arg;
    struct topo *t = NULL;
    struct topo_node *n = NULL;
    struct topo_device d[2] = {{.id = "a/cpu:0", .local_id = "cpu:0", .backend = "cpu", .memory_bytes = 10},
                               {.id = "a/cpu:1", .local_id = "cpu:1", .backend = "cpu", .memory_bytes = 10}};
    int rc = topo_new(&t, 3, 5, 1);
    if (rc == ST_OK)
        rc = topo_hello(t, "a", d, 1, 1, 1, &n, e);
    if (rc == ST_OK) {
        rc = topo_hello(t, "a", d, 2, 2, 2, &n, e);
        if (topo_count(t) != 1 || topo_at(t, 0)->ndevices != (rc == ST_OK ? 2u : 1u))
            rc = ST_EINTERNAL;
    }
    if (rc == ST_OK)
        rc = topo_expect(t, "b", 1, 1, 1);
    topo_free(t);
    return rc;
}

static void topology(void **st)
{
    (void)st;
    assert_true(oom_each("the registry", registry, NULL, ST_OK) >= 3);
}

struct doc {
    char *name;
};
static const cyaml_schema_field_t doc_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, struct doc, name, 1, 100), CYAML_FIELD_END};
static const cyaml_schema_value_t schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct doc, doc_fields)};

static int yaml(void *arg, struct err *e)
{
    void *out = NULL;
    int rc = conf_parse("f.yaml", arg, strlen(arg), &schema, &out, e);
    conf_free(&schema, out);
    return rc;
}

static void configuration(void **st)
{
    (void)st;
    char text[] = "name: a\n";
    assert_true(oom_each("a YAML file", yaml, text, ST_OK) > 5);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(planner),    cmocka_unit_test(model_files),
                                   cmocka_unit_test(event_rows), cmocka_unit_test(access_rights),
                                   cmocka_unit_test(topology),   cmocka_unit_test(configuration)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
