/* Where layers are now, and the moves from there to a plan. Private to the room. */
#ifndef STRATA_PLAN_MOVES_H
#define STRATA_PLAN_MOVES_H

#include "coordinator/plan/inst.h"

struct holding {
    size_t D, L;
    unsigned char *has; /* usable device, layer position; bit 0 = held now */
    uint32_t *unusable; /* L: device of the cluster that holds it but may hold nothing more, or INST_NOBODY */
};
int holding_open(struct holding *h, const struct inst *in, const struct plan *from) ST_CHECK;
void holding_fini(struct holding *h);
static inline bool holding_has(const struct holding *h, size_t d, size_t i)
{
    return h->has[d * h->L + i] & 1u;
}
/* Weight bytes of the layers that no device holds. */
double holding_lost(const struct holding *h, const struct inst *in);
/* The assignment that `from` describes; false when it is not whole here. */
bool holding_old(const struct holding *h, const struct inst *in, const struct plan *from, uint32_t *on);

/* The longest that any node receives. */
int moves_seconds(const struct holding *h, const struct inst *in, const uint32_t *on,
                  double *seconds) ST_CHECK;
/* Fills p->moves, p->moved_bytes and warnings about names of `from` that no longer exist. */
int moves_write(const struct holding *h, const struct inst *in, const struct plan *from, const uint32_t *on,
                struct plan *p) ST_CHECK;

#endif
