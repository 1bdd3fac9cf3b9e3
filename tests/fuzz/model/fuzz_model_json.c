/* Any text as strata.model.v1: what is accepted must survive writing and reading again. */
#include <stdlib.h>

#include "common/model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model *m, *again;
    struct buf b = {0};
    struct err e;
    if (model_read_json((const char *)data, size, "input", &m, &e) < 0)
        return 0;
    if (m->nlayers < 2000) { /* counted groups would make the rest slow */
        if (model_write_json(m, &b) < 0 || model_read_json(buf_cstr(&b), b.len, "again", &again, &e) < 0 ||
            again->nlayers != m->nlayers || again->chain != m->chain)
            abort();
        model_free(again);
    }
    buf_fini(&b);
    model_free(m);
    return 0;
}
