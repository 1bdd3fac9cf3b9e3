/* The Vulkan backend's own types, shared by the part that finds devices and the part that uses them. */
#ifndef STRATA_GPU_VULKAN_PRIV_H
#define STRATA_GPU_VULKAN_PRIV_H

#define VK_NO_PROTOTYPES
#include <volk.h>

#include "agent/gpu/gpu_priv.h"
#include "agent/gpu/suballoc.h"

#define VK_MAX_FOUND 32 /* physical devices looked at */

struct vk_ctx {
    VkInstance instance;
    VkPhysicalDevice phys[GPU_MAX_DEVICES];
    uint64_t wait_ns, extent_bytes; /* 0 = the driver's largest */
};

#define PIECES 4
#define PIECE_BYTES (2ull << 20)
struct piece {
    VkCommandBuffer cmd;
    struct vk_queue *q;
    uint64_t done; /* the semaphore's value once its last submission is complete */
};

/* A queue and what its submissions are recorded in. */
struct vk_queue {
    VkQueue queue;
    VkCommandPool pool;
    uint32_t family;
    VkPipelineStageFlags stages; /* that its work may be in */
    struct piece piece[PIECES];
};

enum vk_pipe_id { VK_PIPE_CHECKSUM, VK_PIPE_AXPB, VK_PIPE_MATMUL, VK_PIPE_FMA, VK_PIPES };
#define VK_MAX_BINDINGS 3

struct vk_pipe { /* made at first use */
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkPipeline pipeline;
    VkDescriptorPool pool;
    VkDescriptorSet set[PIECES]; /* one for each piece */
};

struct vk_block;

struct vk_dev {
    char id[24];
    uint64_t wait_ns;
    VkPhysicalDevice phys;
    VkPhysicalDeviceMemoryProperties types;
    VkDevice dev;
    struct VolkDeviceTable t;
    struct vk_queue queue[2]; /* [0] computes; [1] only moves bytes, where the device has such a family */
    struct vk_queue *work, *move, *last;
    VkSemaphore sem; /* its value counts the submissions to either queue; the calls do not overlap */
    uint64_t submitted;
    VkBuffer staging;
    VkDeviceMemory staging_mem;
    uint8_t *map;
    size_t next_piece; /* of a dispatch */
    struct vk_pipe pipe[VK_PIPES];
    VkBuffer sum; /* where the checksum kernel adds up */
    VkDeviceMemory sum_mem;
    uint32_t *sum_map;
    uint64_t bind_align, bind_max; /* of a storage binding */
    uint64_t extent_bytes;         /* of one VkBuffer of ours */
    struct vk_block *blocks;
    uint64_t import_align; /* of host memory; 0 = the driver cannot import it */
    bool tells_budget;
    uint64_t budget_left, budget_at_ns; /* as last told; at 0 = never */
};

/* A buffer: VkBuffers of extent_bytes each, the last one shorter. */
struct vk_extent {
    VkBuffer buf;
    VkDeviceMemory mem;     /* its own, or */
    struct vk_block *block; /* a place in a block */
    uint64_t off, len;
};
struct vk_mem {
    uint64_t bytes, extent_bytes; /* bytes: rounded up to words */
    uint32_t n;
    struct vk_extent x[];
};

/* Host memory that the device reaches directly. */
struct vk_pin {
    VkBuffer buf;
    VkDeviceMemory mem;
    uint8_t *base;
};

/* The backend's table row of a VkResult, as an error of `id`. */
int vk_error(VkResult r, const char *id, const char *what, struct err *e);

bool vk_has_extension(VkPhysicalDevice p, const char *name);
int vk_probe(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n, struct err *e);
void vk_fini(void *ctx);

int vk_buffer_make(struct vk_dev *d, uint64_t bytes, VkMemoryPropertyFlags want, VkMemoryPropertyFlags like,
                   VkBuffer *buf, VkDeviceMemory *mem, struct err *e);
/* Memory of a buffer, not cleared. Small ones share blocks, large ones have extents. */
int vk_mem_new(struct vk_dev *d, uint64_t bytes, struct vk_mem **out, uint64_t *committed, struct err *e);
/* destroy: what the device holds of it, too. */
void vk_mem_free(struct vk_dev *d, struct vk_mem *m, bool destroy);
void vk_blocks_fini(struct vk_dev *d);
int vk_pin(void *dev, void *p, uint64_t len, void **pin, struct err *e);
void vk_unpin(void *dev, void *pin, bool hung);

/* All submissions up to `value` are complete; bounded. */
int vk_wait_for(struct vk_dev *d, uint64_t value, struct err *e);
/* Recording of one piece: its last submission must be complete. */
int vk_record_begin(struct vk_dev *d, struct piece *p, struct err *e);
int vk_record_submit(struct vk_dev *d, struct piece *p, struct err *e);

/* Where byte `off` of a buffer lies, and how far the same VkBuffer goes on from there. */
struct vk_place {
    VkBuffer buf;
    uint64_t off, left;
};
void vk_place(const struct vk_mem *m, uint64_t off, struct vk_place *out);

/* Both are complete on return. `off` and `len` of a fill are multiples of 4. */
int vk_fill(struct vk_dev *d, struct vk_mem *m, uint64_t off, uint64_t len, uint32_t word, struct err *e);
int vk_copy(void *dev, void *dst, uint64_t dst_off, void *src, uint64_t src_off, uint64_t len, struct err *e);

/* Makes the pipeline unless it is there. */
int vk_pipe_need(struct vk_dev *d, enum vk_pipe_id id, struct err *e);
void vk_pipes_fini(struct vk_dev *d);
/* Submits one dispatch behind all before it; does not wait for it. */
int vk_dispatch(struct vk_dev *d, enum vk_pipe_id id, const VkDescriptorBufferInfo *bind, const void *params,
                uint32_t groups_x, uint32_t groups_y, struct err *e);
int vk_exec(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e);
int vk_run(void *dev, const struct gpu_own *o, struct err *e);
int vk_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e);

#endif
