/* The readers of plans and of what they were made from: whatever it accepts must be written and read again to
 * the same text, and survive the check. */
#include <stdlib.h>
#include <string.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "coordinator/plan/inputs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char cluster_text[] =
    "{\"schema\":\"strata.cluster.v1\",\"devices\":["
    "{\"id\":\"n/"
    "cpu:0\",\"node\":\"n\",\"memory_bytes\":40,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9},"
    "{\"id\":\"n/"
    "cpu:1\",\"node\":\"n\",\"memory_bytes\":40,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1e9}]}";
static const char model_text[] =
    "{\"schema\":\"strata.model.v1\",\"name\":\"w\",\"layers\":["
    "{\"id\":\"a\",\"type\":\"mlp\",\"weight_bytes\":10,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0},"
    "{\"id\":\"b\",\"type\":\"mlp\",\"weight_bytes\":20,\"flops\":1,\"input_bytes\":0,\"output_bytes\":0}]}";

static void check(const struct plan *p)
{
    struct cluster *c = NULL;
    struct model *m = NULL;
    struct plan_check_report rep = {0};
    if (cluster_read_json(cluster_text, sizeof cluster_text - 1, "c", &c, NULL) < 0 ||
        model_read_json(model_text, sizeof model_text - 1, "m", &m, NULL) < 0)
        abort();
    if (plan_check(c, m, NULL, p, &rep, NULL) == ST_OK && rep.n)
        abort();
    plan_check_fini(&rep);
    cluster_free(c);
    model_free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct plan *p = NULL, *again = NULL;
    struct buf a = {0}, b = {0};
    struct plan_inputs in;
    if (plan_inputs_from_json((const char *)data, size, &in, NULL) == ST_OK) {
        if (plan_inputs_to_json(in.c, in.m, &in.r, in.goal, &a) < 0)
            abort();
        plan_inputs_fini(&in);
        if (plan_inputs_from_json(buf_cstr(&a), a.len, &in, NULL) < 0)
            abort();
        plan_inputs_fini(&in);
        buf_fini(&a);
    }
    if (plan_from_json((const char *)data, size, &p, NULL) < 0)
        return 0;
    check(p);
    if (plan_to_json(p, &a) < 0 || plan_from_json(buf_cstr(&a), a.len, &again, NULL) < 0 ||
        plan_to_json(again, &b) < 0 || a.len != b.len || memcmp(a.data, b.data, a.len))
        abort();
    plan_free(p);
    plan_free(again);
    buf_fini(&a);
    buf_fini(&b);
    return 0;
}
