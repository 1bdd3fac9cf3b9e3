/* What every backend's buffer begins with. */
#ifndef STRATA_GPU_PRIV_H
#define STRATA_GPU_PRIV_H

#include "agent/gpu/gpu.h"

struct gpu_buf {
    uint64_t bytes;
    struct gpu_buf *next, **link; /* in its device's list */
};

static inline void gpu_buf_link(struct gpu_buf **head, struct gpu_buf *b)
{
    b->next = *head;
    b->link = head;
    if (b->next)
        b->next->link = &b->next;
    *head = b;
}

static inline void gpu_buf_unlink(struct gpu_buf *b)
{
    *b->link = b->next;
    if (b->next)
        b->next->link = b->link;
}

#endif
