/* The CUDA backend's own types, shared by its parts. */
#ifndef STRATA_GPU_CUDA_PRIV_H
#define STRATA_GPU_CUDA_PRIV_H

#include "agent/gpu/cuda_api.h"
#include "agent/gpu/gpu_priv.h"

#define CUDA_PIECES 4
#define CUDA_PIECE_BYTES (4ull << 20)
#define CUDA_SUM_BLOCKS 1024u

enum cuda_lane { CUDA_H2D, CUDA_D2H, CUDA_WORK, CUDA_LANES };
enum cuda_kernel { CUDA_CHECKSUM, CUDA_AXPB, CUDA_FMA_RATE, CUDA_MATMUL, CUDA_KERNELS };

struct cuda_ctx {
    struct cuda_api api;
    cu_device device[GPU_MAX_DEVICES];
    uint64_t wait_ns;
};

struct cuda_dev {
    const struct cuda_api *api;
    char id[24];
    cu_device device;
    cu_context context;
    uint64_t wait_ns;
    cu_stream lane[CUDA_LANES];
    cu_event done[CUDA_LANES]; /* recorded behind what was submitted last */
    cu_event piece[CUDA_PIECES];
    uint8_t *staging; /* pinned, CUDA_PIECES pieces */
    bool pools;
    cu_module module; /* from the first kernel on */
    cu_function kernel[CUDA_KERNELS];
    cu_ptr sums; /* CUDA_SUM_BLOCKS × 8 bytes */
};

struct cuda_mem {
    cu_ptr p;
    uint64_t bytes; /* rounded up to words */
    bool pooled;
};

int cuda_error(int r, const char *id, const char *what, struct err *e);
/* The device's context is the thread's; cheap when it is already. */
int cuda_enter(struct cuda_dev *d, struct err *e);
/* Everything submitted to the lane so far is complete; bounded by wait_ns. */
int cuda_settle(struct cuda_dev *d, enum cuda_lane lane, struct err *e);

int cuda_exec(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e);
int cuda_run(void *dev, const struct gpu_own *o, struct err *e);
int cuda_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e);

#endif
