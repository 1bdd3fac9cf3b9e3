/* Coordinates on a synthetic network of 1,000 nodes: the median relative error of all predicted round trips.
 */
#ifndef STRATA_BENCH_COORDS_H
#define STRATA_BENCH_COORDS_H

double bench_coords_error(void); /* 0 … ; < 0 = no memory */

#endif
