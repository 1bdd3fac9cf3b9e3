/* The Vulkan backend's own types, shared by the part that finds devices and the part that uses them. */
#ifndef STRATA_GPU_VULKAN_PRIV_H
#define STRATA_GPU_VULKAN_PRIV_H

#define VK_NO_PROTOTYPES
#include <volk.h>

#include "agent/gpu/gpu_priv.h"

#define VK_MAX_FOUND 32 /* physical devices looked at */

struct vk_ctx {
    VkInstance instance;
    VkPhysicalDevice phys[GPU_MAX_DEVICES];
    uint64_t wait_ns;
};

#define PIECES 4
#define PIECE_BYTES (2ull << 20)
struct piece {
    VkCommandBuffer cmd;
    uint64_t done; /* the semaphore's value once its last submission is complete */
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

struct vk_dev {
    char id[24];
    uint64_t wait_ns;
    VkPhysicalDeviceMemoryProperties types;
    VkDevice dev;
    struct VolkDeviceTable t;
    VkQueue queue;
    VkCommandPool pool;
    VkSemaphore sem;
    uint64_t submitted;
    VkBuffer staging;
    VkDeviceMemory staging_mem;
    uint8_t *map;
    struct piece piece[PIECES];
    size_t next_piece; /* of a dispatch */
    struct vk_pipe pipe[VK_PIPES];
    VkBuffer sum; /* where the checksum kernel adds up */
    VkDeviceMemory sum_mem;
    uint32_t *sum_map;
    uint64_t bind_align, bind_max; /* of a storage binding */
};

struct vk_mem {
    VkBuffer buf;
    VkDeviceMemory mem;
    uint64_t bytes; /* rounded up to words */
};

/* The backend's table row of a VkResult, as an error of `id`. */
int vk_error(VkResult r, const char *id, const char *what, struct err *e);

int vk_probe(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n, struct err *e);
void vk_fini(void *ctx);

int vk_buffer_make(struct vk_dev *d, uint64_t bytes, VkMemoryPropertyFlags want, VkMemoryPropertyFlags like,
                   VkBuffer *buf, VkDeviceMemory *mem, uint64_t *committed, struct err *e);
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
int vk_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e);

#endif
