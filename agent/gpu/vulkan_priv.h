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

/* The backend's table row of a VkResult, as an error of `id`. */
int vk_error(VkResult r, const char *id, const char *what, struct err *e);

int vk_probe(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n, struct err *e);
void vk_fini(void *ctx);

#endif
