/* Any bytes as a GGUF file: header, checks, layers. */
#include <stdlib.h>
#include <string.h>

#include "common/model/gguf.h"
#include "common/model/layers.h"

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
        .context = 64, .sequences = 2, .tokens = 3, .kv_element_bytes = 2, .act_element_bytes = 2};
    struct gguf g;
    struct tensor_table t = {0};
    struct hparams h = {0};
    struct err e;
    struct model *m;
    if (gguf_read(&src, "input", 0, &g, &t, &e) == ST_OK) {
        o.split = size & 1;
        if (gguf_hparams(&g, &h) == ST_OK && tensor_table_check(&t, "input", &e) == ST_OK &&
            layers_build(&t, &h, &o, "input", &m, &e) == ST_OK) {
            for (size_t i = 0; i < m->nlayers; i++)
                for (size_t p = 0; p < m->layers[i].npieces; p++)
                    if (m->layers[i].pieces[p].offset + m->layers[i].pieces[p].length > size)
                        abort(); /* a piece outside the file */
            model_free(m);
        }
        gguf_fini(&g);
    }
    hparams_fini(&h);
    tensor_table_fini(&t);
    return 0;
}
