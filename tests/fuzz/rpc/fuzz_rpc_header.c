/* Any bytes as the control messages of a call and as a nested request: bounded, and stable when packed again.
 */
#include <stdlib.h>
#include <string.h>

#include "common/rpc/rpc_priv.h"
#include "strata/v1/layers.pb-c.h"
#include "strata/v1/rpc.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_one(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n)
{
    ProtobufCMessage *m = rpc_unpack(d, p, n);
    if (!m)
        return;
    size_t a = protobuf_c_message_get_packed_size(m);
    uint8_t *x = malloc(a + 1), *y = malloc(a + 1);
    if (!x || !y || protobuf_c_message_pack(m, x) != a)
        abort();
    rpc_msg_free(m);
    m = rpc_unpack(d, x, a);
    if (m) { /* packing may be longer than what came in, and pass the cap */
        if (protobuf_c_message_get_packed_size(m) != a || protobuf_c_message_pack(m, y) != a ||
            memcmp(x, y, a))
            abort();
        rpc_msg_free(m);
    }
    free(x);
    free(y);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > RPC_MAX_CONTROL)
        return 0;
    try_one(&strata__v1__call_header__descriptor, data, size);
    try_one(&strata__v1__call_status__descriptor, data, size);
    try_one(&strata__v1__fetch_request__descriptor, data, size);
    return 0;
}
