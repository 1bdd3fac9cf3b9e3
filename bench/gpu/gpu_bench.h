/* What the parts of the GPU benchmark share: one device under test and the CPU beside it. */
#ifndef STRATA_BENCH_GPU_H
#define STRATA_BENCH_GPU_H

#include "agent/gpu/gpu.h"
#include "bench/bench.h"

#define MB 1000000ull
#define MAX_SAMPLES 400

struct gb {
    struct bench_run *run;
    const char *prefix; /* of its cases: "software", "vulkan", "cuda" */
    struct gpu_set *set;
    size_t index;
    struct gpu *g, *cpu;
    struct err *e;
};

double gb_now(void); /* seconds, monotonic */
const char *gb_name(char out[96], const struct gb *b, const char *what);
void gb_skip(const struct gb *b, const char *what, const char *why);

int gb_copies(struct gb *b);  /* transfers at all sizes, against memcpy */
int gb_latency(struct gb *b); /* allocation, synchronisation, completion, sensors */
int gb_rates(struct gb *b);   /* kernels, against the CPU backend */

#endif
