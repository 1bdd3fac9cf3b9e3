/*
 * Vulkan: memory. Buffers below SMALL_BYTES share blocks, because drivers limit the number of allocations and
 * round them up; those above the driver's largest allocation are cut into extents. Host memory is imported
 * where the driver can, so that the device reads and writes it without a copy in between.
 */
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/vulkan_priv.h"
#include "common/base/clock.h"

#define SMALL_BYTES (32ull << 20)
#define BLOCK_BYTES (64ull << 20)
#define BUDGET_NS (250 * NS_PER_MS) /* asking takes milliseconds on some drivers */

struct vk_block {
    struct vk_block *next;
    VkDeviceMemory mem;
    uint32_t type;
    struct suballoc places;
};

/* The type among `bits` that has `want`, in the largest heap, with the fewest flags beyond `want` and `like`;
 * with `like` preferred to without. UINT32_MAX: none. */
static uint32_t pick_type(const VkPhysicalDeviceMemoryProperties *m, uint32_t bits,
                          VkMemoryPropertyFlags want, VkMemoryPropertyFlags like)
{
    const VkMemoryPropertyFlags never = VK_MEMORY_PROPERTY_PROTECTED_BIT |
                                        VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT |
                                        VK_MEMORY_PROPERTY_DEVICE_UNCACHED_BIT_AMD;
    uint32_t best = UINT32_MAX;
    int best_extra = 0;
    for (uint32_t i = 0; i < m->memoryTypeCount; i++) {
        VkMemoryPropertyFlags f = m->memoryTypes[i].propertyFlags;
        if (!(bits & 1u << i) || (f & want) != want || (f & never))
            continue;
        int extra = 2 * __builtin_popcount(f & ~want & ~like) + 8 * __builtin_popcount(like & ~f);
        VkDeviceSize heap = m->memoryHeaps[m->memoryTypes[i].heapIndex].size;
        VkDeviceSize best_heap = best == UINT32_MAX ? 0 : m->memoryHeaps[m->memoryTypes[best].heapIndex].size;
        if (best == UINT32_MAX || heap > best_heap || (heap == best_heap && extra < best_extra)) {
            best = i;
            best_extra = extra;
        }
    }
    return best;
}

static VkResult buffer_only(struct vk_dev *d, uint64_t bytes, const void *next, VkBuffer *buf,
                            VkMemoryRequirements *req)
{
    uint32_t families[2] = {d->work->family, d->move->family};
    VkBufferCreateInfo bi = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                             .pNext = next,
                             .size = (bytes + 3) & ~3ull, /* fills work in words */
                             .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                                      VK_BUFFER_USAGE_STORAGE_BUFFER_BIT};
    if (families[0] != families[1]) { /* both queues use it, without handing it over each time */
        bi.sharingMode = VK_SHARING_MODE_CONCURRENT;
        bi.queueFamilyIndexCount = 2;
        bi.pQueueFamilyIndices = families;
    }
    VkResult r = d->t.vkCreateBuffer(d->dev, &bi, NULL, buf);
    if (r == VK_SUCCESS)
        d->t.vkGetBufferMemoryRequirements(d->dev, *buf, req);
    return r;
}

int vk_buffer_make(struct vk_dev *d, uint64_t bytes, VkMemoryPropertyFlags want, VkMemoryPropertyFlags like,
                   VkBuffer *buf, VkDeviceMemory *mem, struct err *e)
{
    VkMemoryRequirements req;
    VkResult r = buffer_only(d, bytes, NULL, buf, &req);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "making a buffer", e);
    VkMemoryAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                               .allocationSize = req.size,
                               .memoryTypeIndex = pick_type(&d->types, req.memoryTypeBits, want, like)};
    if (ai.memoryTypeIndex == UINT32_MAX) {
        d->t.vkDestroyBuffer(d->dev, *buf, NULL);
        return err_set(e, ST_ENOTSUP, "%s: the driver offers no memory of the kind needed", d->id);
    }
    if ((r = d->t.vkAllocateMemory(d->dev, &ai, NULL, mem)) != VK_SUCCESS) {
        d->t.vkDestroyBuffer(d->dev, *buf, NULL);
        return vk_error(r, d->id, "allocating memory", e);
    }
    if ((r = d->t.vkBindBufferMemory(d->dev, *buf, *mem, 0)) != VK_SUCCESS) {
        d->t.vkDestroyBuffer(d->dev, *buf, NULL);
        d->t.vkFreeMemory(d->dev, *mem, NULL);
        return vk_error(r, d->id, "binding memory", e);
    }
    return ST_OK;
}

/* ---- blocks ---- */

static struct vk_block *block_new(struct vk_dev *d, uint32_t type)
{
    VkMemoryAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                               .allocationSize = BLOCK_BYTES,
                               .memoryTypeIndex = type};
    struct vk_block *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    if (suballoc_init(&b->places, BLOCK_BYTES) < 0) {
        free(b);
        return NULL;
    }
    if (d->t.vkAllocateMemory(d->dev, &ai, NULL, &b->mem) != VK_SUCCESS) {
        suballoc_fini(&b->places);
        free(b);
        return NULL;
    }
    b->type = type;
    b->next = d->blocks;
    d->blocks = b;
    return b;
}

static void block_free(struct vk_dev *d, struct vk_block *b, bool destroy)
{
    if (destroy)
        d->t.vkFreeMemory(d->dev, b->mem, NULL);
    suballoc_fini(&b->places);
    free(b);
}

void vk_blocks_fini(struct vk_dev *d)
{
    for (struct vk_block *b = d->blocks, *next; b; b = next) {
        next = b->next;
        block_free(d, b, true);
    }
    d->blocks = NULL;
}

/* An empty block is given back, unless it is the last of its type: that one saves the next allocation. */
static void block_retire(struct vk_dev *d, struct vk_block *b)
{
    bool other = false;
    for (struct vk_block *o = d->blocks; o; o = o->next)
        other |= o != b && o->type == b->type;
    if (!other || !suballoc_empty(&b->places))
        return;
    for (struct vk_block **p = &d->blocks; *p; p = &(*p)->next)
        if (*p == b) {
            *p = b->next;
            break;
        }
    block_free(d, b, true);
}

/* False: no block has room and no new one is to be had; then the buffer gets memory of its own. */
static bool place_in_block(struct vk_dev *d, struct vk_extent *x, uint32_t type,
                           const VkMemoryRequirements *req)
{
    struct vk_block *b = d->blocks;
    for (; b; b = b->next)
        if (b->type == type && suballoc_take(&b->places, req->size, req->alignment, &x->off) == ST_OK)
            break;
    if (!b &&
        (!(b = block_new(d, type)) || suballoc_take(&b->places, req->size, req->alignment, &x->off) < 0))
        return false;
    x->block = b;
    return true;
}

/* ---- buffers ---- */

/* What the driver says is left for this process, asked at most four times a second. Only few drivers tell. */
static int budget_check(struct vk_dev *d, uint64_t bytes, uint32_t heap, struct err *e)
{
    uint64_t now = clock_ns(clock_system());
    if (!d->tells_budget)
        return ST_OK;
    if (!d->budget_at_ns || now - d->budget_at_ns > BUDGET_NS) {
        VkPhysicalDeviceMemoryBudgetPropertiesEXT b = {
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
        VkPhysicalDeviceMemoryProperties2 m = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                               .pNext = &b};
        vkGetPhysicalDeviceMemoryProperties2(d->phys, &m);
        uint64_t most = b.heapBudget[heap] < m.memoryProperties.memoryHeaps[heap].size
                            ? b.heapBudget[heap]
                            : m.memoryProperties.memoryHeaps[heap].size;
        d->budget_left = b.heapUsage[heap] < most ? most - b.heapUsage[heap] : 0;
        d->budget_at_ns = now ? now : 1;
    }
    if (bytes > d->budget_left)
        return err_set(e, ST_ERESOURCE, "%s: %llu bytes asked for, the driver has %llu left for this process",
                       d->id, (unsigned long long)bytes, (unsigned long long)d->budget_left);
    d->budget_left -= bytes;
    return ST_OK;
}

static void extent_free(struct vk_dev *d, struct vk_extent *x)
{
    d->t.vkDestroyBuffer(d->dev, x->buf, NULL);
    if (x->block) {
        suballoc_give(&x->block->places, x->off, x->len);
        block_retire(d, x->block);
    } else {
        d->t.vkFreeMemory(d->dev, x->mem, NULL);
    }
}

static int extent_make(struct vk_dev *d, struct vk_extent *x, uint64_t bytes, struct err *e)
{
    VkMemoryRequirements req;
    VkResult r = buffer_only(d, bytes, NULL, &x->buf, &req);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "making a buffer", e);
    uint32_t type = pick_type(&d->types, req.memoryTypeBits, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0);
    int rc = type == UINT32_MAX
                 ? err_set(e, ST_ENOTSUP, "%s: the driver offers no memory of the kind needed", d->id)
                 : budget_check(d, req.size, d->types.memoryTypes[type].heapIndex, e);
    if (rc < 0) {
        d->t.vkDestroyBuffer(d->dev, x->buf, NULL);
        return rc;
    }
    x->len = req.size;
    if (bytes >= SMALL_BYTES || !place_in_block(d, x, type, &req)) {
        VkMemoryAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                   .allocationSize = req.size,
                                   .memoryTypeIndex = type};
        if ((r = d->t.vkAllocateMemory(d->dev, &ai, NULL, &x->mem)) != VK_SUCCESS) {
            d->t.vkDestroyBuffer(d->dev, x->buf, NULL);
            return vk_error(r, d->id, "allocating memory", e);
        }
    }
    r = d->t.vkBindBufferMemory(d->dev, x->buf, x->block ? x->block->mem : x->mem, x->off);
    if (r != VK_SUCCESS) {
        extent_free(d, x);
        return vk_error(r, d->id, "binding memory", e);
    }
    return ST_OK;
}

int vk_mem_new(struct vk_dev *d, uint64_t bytes, struct vk_mem **out, uint64_t *committed, struct err *e)
{
    uint64_t n = (bytes + d->extent_bytes - 1) / d->extent_bytes;
    struct vk_mem *m = calloc(1, sizeof *m + n * sizeof m->x[0]);
    if (!m)
        return err_set(e, ST_ENOMEM, "%s: no host memory for one more buffer", d->id);
    m->bytes = (bytes + 3) & ~3ull;
    m->extent_bytes = d->extent_bytes;
    *committed = 0;
    for (uint64_t at = 0; m->n < n; m->n++, at += d->extent_bytes) {
        int rc =
            extent_make(d, &m->x[m->n], m->bytes - at < d->extent_bytes ? m->bytes - at : d->extent_bytes, e);
        if (rc < 0) {
            vk_mem_free(d, m, true);
            return rc;
        }
        *committed += m->x[m->n].len;
    }
    *out = m;
    return ST_OK;
}

void vk_mem_free(struct vk_dev *d, struct vk_mem *m, bool destroy)
{
    for (uint32_t i = 0; destroy && i < m->n; i++)
        extent_free(d, &m->x[i]);
    free(m);
}

void vk_place(const struct vk_mem *m, uint64_t off, struct vk_place *out)
{
    uint64_t i = off / m->extent_bytes, in = off % m->extent_bytes, end = (i + 1) * m->extent_bytes;
    *out = (struct vk_place){m->x[i].buf, in, (end < m->bytes ? end : m->bytes) - off};
}

/* ---- host memory ---- */

int vk_pin(void *dev, void *p, uint64_t len, void **pin, struct err *e)
{
    struct vk_dev *d = dev;
    const VkExternalMemoryHandleTypeFlagBits kind = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
    VkExternalMemoryBufferCreateInfo xi = {.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO,
                                           .handleTypes = (VkExternalMemoryHandleTypeFlags)kind};
    VkMemoryHostPointerPropertiesEXT props = {.sType = VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT};
    VkMemoryRequirements req;
    if (!d->import_align)
        return err_set(e, ST_ENOTSUP, "%s: the driver cannot use the host's memory directly", d->id);
    uint64_t mask = d->import_align - 1;
    uint8_t *base =
        (uint8_t *)((uintptr_t)p & ~(uintptr_t)mask); /* whole pages: they are there as the range is */
    uint64_t bytes = (len + (uint64_t)((uint8_t *)p - base) + mask) & ~mask;
    struct vk_pin *h = calloc(1, sizeof *h);
    if (!h)
        return err_set(e, ST_ENOMEM, "%s: no memory to note pinned memory", d->id);
    VkResult r = d->t.vkGetMemoryHostPointerPropertiesEXT(d->dev, kind, base, &props);
    if (r == VK_SUCCESS)
        r = buffer_only(d, bytes, &xi, &h->buf, &req);
    if (r != VK_SUCCESS) {
        free(h);
        return err_set(e, ST_ENOTSUP, "%s: the driver does not take this memory of the host (%d)", d->id,
                       (int)r);
    }
    uint32_t bits = req.memoryTypeBits & props.memoryTypeBits;
    VkImportMemoryHostPointerInfoEXT ii = {.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT,
                                           .handleType = kind,
                                           .pHostPointer = base};
    VkMemoryAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                               .pNext = &ii,
                               .allocationSize = bytes,
                               .memoryTypeIndex =
                                   pick_type(&d->types, bits, VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                                             VK_MEMORY_PROPERTY_HOST_CACHED_BIT)};
    r = ai.memoryTypeIndex == UINT32_MAX ? VK_ERROR_INVALID_EXTERNAL_HANDLE
                                         : d->t.vkAllocateMemory(d->dev, &ai, NULL, &h->mem);
    if (r == VK_SUCCESS)
        r = d->t.vkBindBufferMemory(d->dev, h->buf, h->mem, 0);
    if (r != VK_SUCCESS) {
        vk_unpin(d, h, false);
        return err_set(e, ST_ENOTSUP, "%s: the driver does not take this memory of the host (%d)", d->id,
                       (int)r);
    }
    h->base = base;
    *pin = h;
    return ST_OK;
}

void vk_unpin(void *dev, void *pin, bool hung)
{
    struct vk_dev *d = dev;
    struct vk_pin *h = pin;
    if (!hung) { /* a null handle is fine */
        d->t.vkDestroyBuffer(d->dev, h->buf, NULL);
        d->t.vkFreeMemory(d->dev, h->mem, NULL);
    }
    free(h);
}
