/* Protobuf in and out, with a cap on what a hostile message can make the decoder allocate. */
#include <stdlib.h>
#include <string.h>

#include "common/rpc/rpc_priv.h"

#define UNPACK_MAX (8u << 20) /* of one message, all its parts together */

struct budget {
    size_t left;
};

static void *take(void *arg, size_t n)
{
    struct budget *b = arg;
    if (n > b->left)
        return NULL;
    b->left -= n;
    return malloc(n);
}

static void release(void *arg, void *p)
{
    (void)arg;
    free(p);
}

ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n)
{
    struct budget b = {UNPACK_MAX};
    ProtobufCAllocator a = {take, release, &b};
    return protobuf_c_message_unpack(d, &a, n, n ? p : (const uint8_t *)"");
}

void rpc_msg_free(ProtobufCMessage *m)
{
    if (m)
        protobuf_c_message_free_unpacked(m, NULL);
}

int rpc_pack(struct buf *b, enum frame_kind kind, const ProtobufCMessage *msg)
{
    size_t n = protobuf_c_message_get_packed_size(msg);
    if (n > (kind == FRAME_MESSAGE ? RPC_MAX_MESSAGE : RPC_MAX_CONTROL))
        return ST_ELIMIT;
    int rc = frame_head(b, kind, n);
    if (rc == ST_OK)
        rc = buf_reserve(b, n);
    if (rc == ST_OK)
        b->len += protobuf_c_message_pack(msg, b->data + b->len);
    return rc;
}
