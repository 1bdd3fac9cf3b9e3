/* What event_decode() accepts must encode to the same bytes and print as one JSON object; the rest is
 * refused. */
#include <stdlib.h>
#include <string.h>

#include "common/event/event.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct audit_event e;
    event_json_object_ok((const char *)data, size);
    uint8_t *copy = malloc(size ? size : 1); /* its own block, so that a read past the end is seen */
    if (!copy)
        return 0;
    if (size)
        memcpy(copy, data, size);
    if (event_decode(copy, size, &e) == ST_OK) {
        struct buf b = {0}, j = {0};
        if (event_encode(&e, &b) < 0 || b.len != size || memcmp(b.data, copy, size) != 0)
            abort();
        if (event_json(&e, &j) < 0 || !event_json_object_ok((const char *)j.data, j.len))
            abort();
        buf_fini(&b);
        buf_fini(&j);
    }
    free(copy);
    return 0;
}
