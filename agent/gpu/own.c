/* Kernels of one's own: what must hold whatever the backend, then the backend. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/gpu_priv.h"

static int shape_check(const struct gpu *g, const struct gpu_program *p, struct err *e)
{
    uint64_t threads = 1;
    if (!memchr(p->entry, 0, sizeof p->entry) || !p->entry[0])
        return err_set(e, ST_EINVAL, "%s: the kernel has no entry point", g->info.id);
    if (!p->spans || p->spans > GPU_OWN_SPANS || p->scalars > GPU_OWN_SCALARS)
        return err_set(e, ST_EINVAL, "%s: %s: 1 to %u buffers and at most %u numbers, not %u and %u",
                       g->info.id, p->entry, GPU_OWN_SPANS, GPU_OWN_SCALARS, p->spans, p->scalars);
    for (int i = 0; i < 3; i++) {
        if (!p->groups[i] || p->groups[i] > GPU_OWN_GROUPS)
            return err_set(e, ST_EINVAL, "%s: %s: %u groups in one direction; 1 to %u", g->info.id, p->entry,
                           p->groups[i], GPU_OWN_GROUPS);
        threads *= p->threads[i];
        if (!p->threads[i] || threads > GPU_OWN_THREADS)
            return err_set(e, ST_EINVAL, "%s: %s: a group has 1 to %u threads", g->info.id, p->entry,
                           GPU_OWN_THREADS);
    }
    if (!p->deadline_ns)
        return err_set(e, ST_EINVAL, "%s: %s: no time to run in", g->info.id, p->entry);
    return ST_OK;
}

int gpu_run(struct gpu *g, const struct gpu_program *p, const void *code, size_t len, struct err *e)
{
    struct gpu_own o = {.program = p, .len = len};
    int rc = shape_check(g, p, e);
    for (uint32_t i = 0; i < p->spans && rc == ST_OK; i++) {
        const struct gpu_span *s = &p->span[i];
        struct gpu_buffer *b;
        if ((rc = gpu_range(g, s->handle, s->offset, s->len, &b, e)) < 0)
            err_prefix(e, "%s: argument %u", p->entry, i);
        else if (s->offset % 4 || s->len % 4 || !s->len)
            rc = err_set(e, ST_EINVAL, "%s: %s: argument %u does not lie on 32-bit words", g->info.id,
                         p->entry, i);
        else
            o.part[i] = (struct gpu_part){b->mem, s->offset, s->len};
    }
    if (rc == ST_OK && !g->ops->run)
        rc = err_set(e, ST_ENOTSUP, "%s: %s devices run no kernels of one's own", g->info.id, g->ops->name);
    if (rc < 0)
        return rc;
    /* Aligned for words and ended by a 0, as one driver and the other want it. */
    uint8_t *copy = malloc(len + 1);
    if (!copy)
        return err_set(e, ST_ENOMEM, "%s: no memory for a kernel", g->info.id);
    memcpy(copy, code, len);
    copy[len] = 0;
    o.code = copy;
    rc = gpu_answer(g, g->ops->run(g->dev, &o, e));
    free(copy);
    return rc;
}
