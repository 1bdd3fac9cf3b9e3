/*
 * Any bytes, cut anywhere: the first byte seeds the cuts. The frames must be the same as those of the whole
 * input at once, within their bounds, and a refusal must come at the same frame.
 */
#include <stdlib.h>
#include <string.h>

#include "common/rpc/rpc_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct outcome {
    int rc;
    unsigned frames;
    uint64_t sum; /* over kinds, lengths and payloads, in order */
};

static void mix(struct outcome *o, uint64_t v)
{
    o->sum = (o->sum ^ v) * 1099511628211ull;
}

static void note(struct outcome *o, const struct frame *f)
{
    if (f->n > (f->kind == FRAME_MESSAGE ? RPC_MAX_MESSAGE : RPC_MAX_CONTROL))
        abort();
    o->frames++;
    mix(o, f->kind);
    mix(o, f->n);
    for (size_t i = 0; i < f->n; i++)
        mix(o, f->p[i]);
}

static struct outcome run(const uint8_t *p, size_t n, uint32_t seed)
{
    struct outcome o = {0};
    struct frame_dec d = {0};
    for (size_t at = 0; at < n && o.rc >= 0;) {
        seed = seed * 1664525u + 1013904223u;
        size_t m = seed >> 31 ? n - at : 1 + (seed >> 24) % 9;
        if (m > n - at)
            m = n - at;
        uint8_t *piece = malloc(m); /* of its own size, so that a read past it is seen */
        if (!piece)
            abort();
        memcpy(piece, p + at, m);
        for (size_t i = 0, used; i < m; i += used) {
            struct frame f;
            o.rc = frame_next(&d, piece + i, m - i, &used, &f);
            if (o.rc <= 0) {
                if (o.rc == 0 && used != m - i)
                    abort();
                break;
            }
            if (!used)
                abort();
            note(&o, &f);
        }
        at += m;
        free(piece);
    }
    if (o.rc > 0) /* ended on a frame: as good as waiting for more */
        o.rc = 0;
    if (d.part.cap > 4u << 20)
        abort();
    frame_dec_fini(&d);
    return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    struct outcome whole = run(data + 1, size - 1, UINT32_MAX),
                   cut = run(data + 1, size - 1, data[0] * 2654435761u);
    if (whole.rc != cut.rc || whole.frames != cut.frames || whole.sum != cut.sum)
        abort();
    return 0;
}
