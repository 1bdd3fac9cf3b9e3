/* Any bytes as a safetensors file, as an index, and as a config. */
#include <stdlib.h>
#include <string.h>

#include "common/model/layers.h"
#include "common/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int from_memory(void *arg, void *p, size_t n, uint64_t off)
{
    memcpy(p, (const uint8_t *)arg + off, n);
    return ST_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_src src = {.pread = from_memory, .arg = (void *)data, .size = size};
    struct model_options o = {
        .context = 64, .sequences = 1, .tokens = 1, .kv_element_bytes = 2, .act_element_bytes = 2};
    struct tensor_table t = {0};
    struct hparams h = {0};
    struct safetensors_index ix;
    struct model *m;
    struct err e;
    uint8_t digest[32];
    if (safetensors_read(&src, "input", 0, digest, &t, &e) == ST_OK &&
        tensor_table_check(&t, "input", &e) == ST_OK) {
        for (size_t i = 0; i < t.n; i++)
            if (t.v[i].offset + t.v[i].length > size)
                abort(); /* a tensor outside the file */
        if (layers_build(&t, &h, &o, "input", &m, &e) == ST_OK)
            model_free(m);
    }
    if (safetensors_index_read((const char *)data, size, "input", &ix, &e) == ST_OK) {
        for (size_t i = 0; i < t.n; i++)
            t.v[i].file = (uint32_t)(i % ix.nfiles);
        (void)!safetensors_index_check(&ix, "input", &t, &e);
        safetensors_index_fini(&ix);
    }
    (void)!safetensors_config((const char *)data, size, "input", &h, &e);
    hparams_fini(&h);
    tensor_table_fini(&t);
    return 0;
}
