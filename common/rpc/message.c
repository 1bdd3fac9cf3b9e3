/* Protobuf in and out, with a cap on what a hostile message can make the decoder allocate. */
#include <stdlib.h>
#include <string.h>

#include "common/base/asan.h"
#include "common/rpc/rpc_priv.h"

#define UNPACK_MAX (8u << 20) /* of one message, all its parts together */

struct budget {
    size_t left;
    struct rpc_arena *arena; /* NULL: all from the heap */
};

static void *take(void *arg, size_t n)
{
    struct budget *b = arg;
    if (n > b->left)
        return NULL;
    b->left -= n;
    size_t up = (n + 15) & ~(size_t)15;
    if (b->arena && up <= sizeof b->arena->room - b->arena->used) {
        void *p = b->arena->room + b->arena->used;
        b->arena->used += up;
        return p;
    }
    return malloc(n);
}

static bool inside(const struct rpc_arena *a, const void *p)
{
    return a && (uintptr_t)p - (uintptr_t)a->room < sizeof a->room;
}

static void release(void *arg, void *p)
{
    const struct budget *b = arg;
    if (!inside(b->arena, p))
        free(p);
}

ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n)
{
    struct budget b = {UNPACK_MAX, NULL};
    ProtobufCAllocator a = {take, release, &b};
    return protobuf_c_message_unpack(d, &a, n, n ? p : (const uint8_t *)"");
}

ProtobufCMessage *rpc_unpack_in(struct rpc_arena *arena, const ProtobufCMessageDescriptor *d,
                                const uint8_t *p, size_t n)
{
    /* Under AddressSanitizer every part is an allocation of its own, so that its bounds are watched. */
    struct budget b = {UNPACK_MAX, ASAN_ON ? NULL : arena};
    ProtobufCAllocator a = {take, release, &b};
    arena->used = 0;
    return protobuf_c_message_unpack(d, &a, n, n ? p : (const uint8_t *)"");
}

void rpc_msg_free_in(struct rpc_arena *arena, ProtobufCMessage *m)
{
    struct budget b = {0, ASAN_ON ? NULL : arena};
    ProtobufCAllocator a = {take, release, &b};
    if (m)
        protobuf_c_message_free_unpacked(m, &a);
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
