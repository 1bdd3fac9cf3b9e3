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
};

struct vk_mem {
    VkBuffer buf;
    VkDeviceMemory mem;
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

int vk_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e);

#endif
