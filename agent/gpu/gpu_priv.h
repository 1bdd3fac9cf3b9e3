/*
 * What a backend implements. All arguments are checked before a backend sees them: sizes are positive, ranges
 * lie inside the buffer, the device is not lost. Each call is complete on return.
 */
#ifndef STRATA_GPU_PRIV_H
#define STRATA_GPU_PRIV_H

#include <stdatomic.h>

#include "agent/gpu/gpu.h"

/* What went wrong on a device, whatever the driver calls it. gpu_fault() turns it into a status. */
enum gpu_fault {
    GPU_F_NOMEM_DEVICE,
    GPU_F_NOMEM_HOST,
    GPU_F_LOST, /* the driver says the device is gone */
    GPU_F_HUNG, /* a wait passed its bound */
    GPU_F_NO_DRIVER,
    GPU_F_UNSUPPORTED,
    GPU_F_INVALID, /* our bug */
    GPU_F_OTHER,
};

/* A driver's code in the error map of its backend. */
struct gpu_native {
    int code;
    enum gpu_fault fault;
    const char *word;
};

/* "<id>: <what> failed: <native word> (<code>)" with the status of the fault. Codes that the map lacks are
 * OTHER. */
int gpu_native_error(const struct gpu_native *map, size_t n, int code, const char *id, const char *what,
                     struct err *e);
int gpu_fault(enum gpu_fault f);
bool gpu_fatal(int rc); /* the device is of no more use after this status */

enum gpu_kernel { GPU_K_FILL, GPU_K_COPY, GPU_K_CHECKSUM, GPU_K_FMA, GPU_K_MATMUL };

/* A piece of a buffer, inside it. */
struct gpu_part {
    void *mem;
    uint64_t off, len;
};

/* A checked call of a kernel of one's own. The code ends with a 0 beyond its length. */
struct gpu_own {
    const struct gpu_program *program;
    struct gpu_part part[GPU_OWN_SPANS];
    const void *code;
    size_t len;
};

/* A checked call of a kernel. matvec is a matmul of one vector. */
struct gpu_task {
    enum gpu_kernel kernel;
    struct gpu_part part[GPU_MAX_SPANS]; /* in the order of exec.h */
    uint32_t word;                       /* fill */
    float m, a;                          /* fma */
    uint32_t rounds;
    uint32_t rows, cols, n; /* matmul */
    enum gpu_dtype type;
};

uint64_t gpu_row_bytes(enum gpu_dtype type, uint64_t cols);
/* The checksum without the part of the length: words from index `first` on, tail padded. Sums of parts that
 * end on words add up, half by half (gpu_checksum_add). */
uint64_t gpu_checksum_words(const void *data, uint64_t len, uint64_t first);
uint64_t gpu_checksum_add(uint64_t a, uint64_t b);
uint64_t gpu_checksum_len(uint64_t len);

struct gpu_ops {
    const char *name;
    /* Fills up to cap devices (id and backend excepted). *ctx lives until fini. No driver: *n = 0 and ST_OK.
     */
    int (*probe)(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n,
                 struct err *e);
    void (*fini)(void *ctx);
    int (*open)(void **dev, void *ctx, size_t index, const struct gpu_info *info, struct err *e);
    void (*close)(void *dev, bool hung); /* all memory is freed, unless hung */
    int (*alloc)(void *dev, uint64_t bytes, void **mem, uint64_t *committed, struct err *e);
    void (*free)(void *dev, void *mem, bool hung);
    /* pin: of this device, around all of the host's range; or NULL. */
    int (*copy_in)(void *dev, void *mem, uint64_t off, const void *src, uint64_t len, void *pin,
                   struct err *e);
    int (*copy_out)(void *dev, void *mem, uint64_t off, void *dst, uint64_t len, void *pin, struct err *e);
    int (*pin)(void *dev, void *p, uint64_t len, void **pin, struct err *e); /* NULL = cannot */
    void (*unpin)(void *dev, void *pin, bool hung);
    int (*sync)(void *dev, struct err *e);
    int (*copy)(void *dev, void *dst, uint64_t dst_off, void *src, uint64_t src_off, uint64_t len,
                struct err *e);
    /* Between two devices of this backend, directly. ST_ENOTSUP (or NULL): through the host, then. */
    int (*copy_peer)(void *dst_dev, void *dst, uint64_t dst_off, void *src_dev, void *src, uint64_t src_off,
                     uint64_t len, struct err *e);
    /* ST_ENOTSUP: this kernel is not there. *value is set by a checksum, the length's part excluded. */
    int (*exec)(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e);
    int (*run)(void *dev, const struct gpu_own *o, struct err *e); /* NULL = none of one's own here */
    /* Copies `bytes` from b to a for about budget_ns and tells the rate. */
    int (*measure_copy)(void *dev, void *a, void *b, uint64_t bytes, uint64_t budget_ns, double *rate,
                        struct err *e);
    int (*measure_fma)(void *dev, uint64_t budget_ns, double *rate, struct err *e); /* NULL = cannot */
};

struct gpu_buffer {
    void *mem; /* NULL = free place */
    uint64_t bytes, committed;
    uint32_t gen, next_free;
};

struct gpu_pin {
    uint8_t *p; /* NULL = free place */
    uint64_t len;
    void *pin;
};

struct gpu {
    const struct gpu_ops *ops;
    struct gpu_info info;
    void *dev;
    struct gpu_buffer *v;       /* grows up to GPU_MAX_BUFFERS */
    uint32_t n, cap, free_head; /* free_head: index + 1, 0 = none */
    struct gpu_pin pins[GPU_MAX_PINS];
    bool hung;
    _Atomic uint64_t allocated, limit;
    _Atomic uint32_t buffers;
    _Atomic bool lost;
};

/* The device lives, the handle is of a buffer, the range lies inside it. */
int gpu_range(struct gpu *g, uint64_t handle, uint64_t off, uint64_t len, struct gpu_buffer **b,
              struct err *e);
/* Every answer of a backend passes here, so that a fatal one marks the device. */
int gpu_answer(struct gpu *g, int rc);

extern const struct gpu_ops gpu_cpu, gpu_cuda, gpu_vulkan;

/* For tests: makes the driver report a lost device from the next call on, as a real loss would. */
void gpu_vulkan_lose(struct gpu *g);
void *gpu_backend_device(struct gpu *g);

#endif
