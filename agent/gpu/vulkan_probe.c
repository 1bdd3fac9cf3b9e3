/*
 * Vulkan: finding devices. Everything that fails here means "no Vulkan devices": a node without a driver is
 * ordinary. Monitoring makes no VkDevice.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/vulkan_priv.h"
#include "common/base/clock.h"
#include "common/base/str.h"

static const struct gpu_native vk_map[] = {
    {VK_ERROR_OUT_OF_DEVICE_MEMORY, GPU_F_NOMEM_DEVICE, "out of device memory"},
    {VK_ERROR_OUT_OF_HOST_MEMORY, GPU_F_NOMEM_HOST, "out of host memory"},
    {VK_ERROR_TOO_MANY_OBJECTS, GPU_F_NOMEM_DEVICE, "too many allocations"},
    {VK_ERROR_FRAGMENTED_POOL, GPU_F_NOMEM_DEVICE, "fragmented pool"},
    {VK_ERROR_MEMORY_MAP_FAILED, GPU_F_NOMEM_HOST, "memory cannot be mapped"},
    {VK_ERROR_DEVICE_LOST, GPU_F_LOST, "device lost"},
    {VK_TIMEOUT, GPU_F_HUNG, "no answer in time"},
    {VK_ERROR_INITIALIZATION_FAILED, GPU_F_LOST, "initialisation failed"},
    {VK_ERROR_INCOMPATIBLE_DRIVER, GPU_F_NO_DRIVER, "incompatible driver"},
    {VK_ERROR_EXTENSION_NOT_PRESENT, GPU_F_UNSUPPORTED, "extension not present"},
    {VK_ERROR_FEATURE_NOT_PRESENT, GPU_F_UNSUPPORTED, "feature not present"},
};

int vk_error(VkResult r, const char *id, const char *what, struct err *e)
{
    return gpu_native_error(vk_map, sizeof vk_map / sizeof vk_map[0], (int)r, id, what, e);
}

static const char *vendor_name(uint32_t id)
{
    switch (id) {
    case 0x10de:
        return "NVIDIA";
    case 0x1002:
        return "AMD";
    case 0x8086:
        return "Intel";
    case 0x13b5:
        return "ARM";
    case 0x5143:
        return "Qualcomm";
    case 0x1010:
        return "Imagination";
    case 0x14e4:
        return "Broadcom";
    case 0x106b:
        return "Apple";
    case 0x10005:
        return "Mesa";
    default:
        return "unknown";
    }
}

bool vk_has_extension(VkPhysicalDevice p, const char *name)
{
    VkExtensionProperties v[512];
    uint32_t n = sizeof v / sizeof v[0];
    VkResult r = vkEnumerateDeviceExtensionProperties(p, NULL, &n, v);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(v[i].extensionName, name) == 0)
            return true;
    return false;
}

/* Sizes from the largest device-local heap; the driver's budget, where it tells one, bounds what is
 * available. */
static void heap_sizes(VkPhysicalDevice p, struct gpu_info *g)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 m = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    bool told = vk_has_extension(p, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    if (told)
        m.pNext = &budget;
    vkGetPhysicalDeviceMemoryProperties2(p, &m);
    for (uint32_t i = 0; i < m.memoryProperties.memoryHeapCount; i++) {
        const VkMemoryHeap *h = &m.memoryProperties.memoryHeaps[i];
        if (!(h->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) || h->size <= g->total_bytes)
            continue;
        g->total_bytes = h->size;
        g->limit_bytes = h->size / 100 * 95; /* the driver needs some itself */
        g->available_bytes = g->limit_bytes;
        if (told && budget.heapBudget[i]) {
            uint64_t left =
                budget.heapBudget[i] > budget.heapUsage[i] ? budget.heapBudget[i] - budget.heapUsage[i] : 0;
            g->available_bytes = left < g->limit_bytes ? left : g->limit_bytes;
        }
    }
}

/* False: too old, or without what we need. */
static bool describe(VkPhysicalDevice p, struct gpu_info *g)
{
    VkPhysicalDeviceDriverProperties drv = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceIDProperties ids = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES,
                                        .pNext = &drv};
    VkPhysicalDeviceMaintenance3Properties m3 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = &ids};
    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                         .pNext = &m3};
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 feat = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f12};
    VkPhysicalDeviceProperties basic;

    vkGetPhysicalDeviceProperties(p, &basic); /* the 1.1 query is not there on a 1.0 device */
    if (basic.apiVersion < VK_API_VERSION_1_2)
        return false;
    vkGetPhysicalDeviceProperties2(p, &props);
    vkGetPhysicalDeviceFeatures2(p, &feat);
    *g = (struct gpu_info){0};
    heap_sizes(p, g);
    if (!f12.timelineSemaphore || g->total_bytes == 0)
        return false;
    str_copy(g->name, sizeof g->name, basic.deviceName);
    str_copy(g->vendor, sizeof g->vendor, vendor_name(basic.vendorID));
    snprintf(g->driver, sizeof g->driver, "%.40s %.50s", drv.driverName, drv.driverInfo);
    memcpy(g->uuid, ids.deviceUUID, sizeof g->uuid);
    g->max_buffer_bytes =
        g->limit_bytes; /* larger than one allocation of the driver, it is cut into several */
    g->software =
        basic.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU || drv.driverID == VK_DRIVER_ID_MESA_LLVMPIPE;
    g->support = g->software ? GPU_SOFTWARE : GPU_SUPPORTED;
    return true;
}

int vk_probe(void **ctx, const struct gpu_cfg *cfg, struct gpu_info *v, size_t cap, size_t *n, struct err *e)
{
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "strata-worker",
                             .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &app};
    VkPhysicalDevice found[VK_MAX_FOUND];
    uint32_t count = VK_MAX_FOUND;
    struct vk_ctx *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ST_ENOMEM, "vulkan: no memory to look for devices");
    *ctx = c;
    *n = 0;
    c->extent_bytes = cfg->extent_bytes;
    c->wait_ns = cfg->wait_ns ? cfg->wait_ns : 10 * NS_PER_S;
    if (volkInitialize() != VK_SUCCESS || volkGetInstanceVersion() < VK_API_VERSION_1_2)
        return ST_OK;
    if (vkCreateInstance(&ci, NULL, &c->instance) != VK_SUCCESS) {
        c->instance = VK_NULL_HANDLE;
        return ST_OK;
    }
    volkLoadInstanceOnly(c->instance);
    VkResult r = vkEnumeratePhysicalDevices(c->instance, &count, found);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return ST_OK;
    for (uint32_t i = 0; i < count && *n < cap && *n < GPU_MAX_DEVICES; i++)
        if (describe(found[i], &v[*n]))
            c->phys[(*n)++] = found[i];
    return ST_OK;
}

void vk_fini(void *ctx)
{
    struct vk_ctx *c = ctx;
    if (c->instance)
        vkDestroyInstance(c->instance, NULL);
    free(c);
}
