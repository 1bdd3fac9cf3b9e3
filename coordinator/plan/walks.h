/*
 * Walks through a chain: stages that may come back to a device, but never to the one just before the last
 * (A, B, A). That costs little more than to allow everything, and leaves out most of what makes such walks
 * cheaper than plans. Over a chosen set of devices, for sums (latency; bytes moved), with a price on each
 * use.
 */
#ifndef STRATA_PLAN_WALKS_H
#define STRATA_PLAN_WALKS_H

#include "coordinator/plan/inst.h"

struct walks_link {
    uint32_t to; /* group at its other end */
    double s;
};
/* The links of each group, the quickest first: those of g are at[g] to at[g + 1]. */
struct walks_links {
    struct walks_link *v;
    uint32_t *at; /* G + 1 */
};
/* The two least costs of something by the device before it (or behind it), which differ. Rows of n. */
struct walks_pair {
    double *v1, *v2;
    uint32_t *p1, *p2; /* index of that device, INST_NOBODY = none */
};
struct walks {
    const struct prob *p;
    size_t L, W, n, G;
    uint32_t *dev;           /* n: devices of the instance, those of a node next to each other */
    uint32_t *group, *first; /* n; G + 1 */
    double *pre, *open;      /* n × W sums of a stage, n; where simple */
    bool *simple;
    uint32_t *last, *begin; /* n × L: last end from a start, 0 = none; n × W: first start for an end */
    double *price;          /* n, the caller's to set */
    bool *off;              /* n, the caller's to set: not to be used */
    uint32_t *lo, *hi;      /* n: starts in [lo, hi) only */
    /* links between the groups at hand, only those better than the default; for hops of hop_bytes */
    struct walks_links from, to;
    size_t n_link;
    double base, *self, hop_bytes; /* self: G */
    /* forwards at (m, i): [0, m) whose last stage is on i */
    struct walks_pair at;
    uint32_t *s1, *s2;      /* its start */
    struct walks_pair rest; /* backwards at (l, i): [l, L) whose first stage is on i */
    double *out; /* (m, i): least of what follows a stage on i that ends at m; after walks_backwards */
    struct walks_pair in; /* n, at the position at hand */
    uint32_t *group_at;   /* nodes of the cluster: their group, INST_NOBODY = none */
};
struct walks_stage {
    uint32_t i, start;
};

/* ST_ELIMIT (memory limit), ST_ENOMEM. Ended by walks_free, which takes NULL. */
int walks_new(struct walks **out, const struct prob *p, struct budget *b, const uint32_t *dev,
              size_t n) ST_CHECK;
void walks_free(struct walks *q);

/*
 * The cheapest walk over layers [from, to), after a stage on `before` and followed by one on `after` (indices
 * of devices of the instance, D = the client). INFINITY: none. *end = its last device.
 */
double walks_forwards(struct walks *q, size_t from, size_t to, size_t before, size_t after, uint32_t *end);
/* The stages of that walk, the last first; at most L. Returns how many. */
size_t walks_trace(const struct walks *q, size_t from, size_t to, uint32_t end, struct walks_stage *out);
/* Fills out[]. */
void walks_backwards(struct walks *q);

static inline double walks_stage(const struct walks *q, size_t i, size_t l, size_t m)
{
    return q->simple[i] ? q->open[i] + (q->pre[i * q->W + m] - q->pre[i * q->W + l])
                        : prob_stage(q->p, q->dev[i], l, m);
}

#endif
