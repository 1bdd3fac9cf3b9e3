/* Dabek et al., "Vivaldi: a decentralized network coordinate system", with height vectors. */
#include "coordinator/topology/coords.h"

#include <math.h>
#include <string.h>

#define ERROR_MAX 1.5
#define CE 0.25 /* how fast the error follows */
#define CC 0.25 /* how far one sample moves a node */
#define HEIGHT_MIN 1e-6

void coord_place_init(struct coord_place *c)
{
    memset(c, 0, sizeof *c);
    c->height = HEIGHT_MIN;
    c->error = ERROR_MAX;
}

static double apart(const struct coord_place *a, const struct coord_place *b, double unit[COORDS_DIM])
{
    double sum = 0;
    for (unsigned i = 0; i < COORDS_DIM; i++) {
        unit[i] = a->x[i] - b->x[i];
        sum += unit[i] * unit[i];
    }
    return sqrt(sum);
}

double coord_distance(const struct coord_place *a, const struct coord_place *b)
{
    double unit[COORDS_DIM];
    return apart(a, b, unit) + a->height + b->height;
}

void coord_update(struct coord_place *me, const struct coord_place *other, double rtt_s,
                  const struct rng *rng)
{
    if (!(rtt_s > 0 && rtt_s < 1e3))
        return;
    double unit[COORDS_DIM], d = apart(me, other, unit), dist = d + me->height + other->height;
    double weight = me->error + other->error > 0 ? me->error / (me->error + other->error) : 0.5;
    double wrong = fabs(dist - rtt_s) / rtt_s;
    me->error += CE * weight * (wrong - me->error);
    me->error = me->error > ERROR_MAX ? ERROR_MAX : me->error;
    double force = CC * weight * (rtt_s - dist);
    if (d > 1e-9) {
        for (unsigned i = 0; i < COORDS_DIM; i++)
            unit[i] /= d;
    } else { /* on top of each other: any direction will do */
        double sum = 0;
        for (unsigned i = 0; i < COORDS_DIM; i++) {
            unit[i] = (double)rng_below(rng, 2000001) / 1e6 - 1;
            sum += unit[i] * unit[i];
        }
        for (unsigned i = 0; i < COORDS_DIM; i++)
            unit[i] /= sum > 0 ? sqrt(sum) : 1;
    }
    for (unsigned i = 0; i < COORDS_DIM; i++)
        me->x[i] += unit[i] * force;
    if (d > 1e-9)
        me->height += (me->height + other->height) * force / d;
    if (!(me->height > HEIGHT_MIN))
        me->height = HEIGHT_MIN;
}
