/* Any text as strata.cluster.v1 and strata.request.v1: an accepted cluster must survive writing and reading
 * again. */
#include <stdlib.h>
#include <string.h>

#include "common/model/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_request(const uint8_t *data, size_t size)
{
    static const char model[] =
        "{\"schema\":\"strata.model.v1\",\"name\":\"m\",\"layers\":[{\"id\":\"a\",\"type\":\"block\","
        "\"weight_bytes\":1,\"flops\":1,\"input_bytes\":1,\"output_bytes\":1,\"count\":4}]}";
    static const char cluster[] =
        "{\"schema\":\"strata.cluster.v1\",\"devices\":[{\"id\":\"x\",\"node\":\"n\","
        "\"memory_bytes\":1,\"compute_flops_per_s\":1,\"memory_bytes_per_s\":1}]}";
    struct model *m;
    struct cluster *c;
    struct request r;
    struct err e;
    if (model_read_json(model, strlen(model), "m", &m, &e) < 0 ||
        cluster_read_json(cluster, strlen(cluster), "c", &c, &e) < 0)
        abort();
    if (request_read_json((const char *)data, size, "input", m, c, &r, &e) == ST_OK)
        request_fini(&r);
    model_free(m);
    cluster_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cluster *c, *again;
    struct buf b = {0};
    struct err e;
    try_request(data, size);
    if (cluster_read_json((const char *)data, size, "input", &c, &e) < 0)
        return 0;
    if (cluster_write_json(c, &b) < 0 || cluster_read_json(buf_cstr(&b), b.len, "again", &again, &e) < 0 ||
        again->ndevices != c->ndevices || again->nlinks != c->nlinks)
        abort();
    cluster_free(again);
    cluster_free(c);
    buf_fini(&b);
    return 0;
}
