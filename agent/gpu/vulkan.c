/*
 * Vulkan 1.2 backend: device-local buffers, a ring of staging pieces, one queue, one timeline semaphore whose
 * value counts submissions. Bytes move by vkCmdCopyBuffer only, on unified memory too, so that what is tested
 * on a software device is what runs on a real one. Every wait is bounded; one that passes its bound means the
 * device hangs, and nothing it may still write is ever freed or reused after that.
 */
#include <stdlib.h>
#include <string.h>

#include "agent/gpu/vulkan_priv.h"
#include "common/base/clock.h"

#define FILL_BYTES (1ull << 30) /* one fill or copy, so that its wait stays far from the bound */
#define WORK_STAGES (VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT)

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

int vk_buffer_make(struct vk_dev *d, uint64_t bytes, VkMemoryPropertyFlags want, VkMemoryPropertyFlags like,
                   VkBuffer *buf, VkDeviceMemory *mem, uint64_t *committed, struct err *e)
{
    VkBufferCreateInfo bi = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                             .size = (bytes + 3) & ~3ull, /* fills work in words */
                             .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                                      VK_BUFFER_USAGE_STORAGE_BUFFER_BIT};
    VkMemoryRequirements req;
    VkResult r = d->t.vkCreateBuffer(d->dev, &bi, NULL, buf);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "making a buffer", e);
    d->t.vkGetBufferMemoryRequirements(d->dev, *buf, &req);
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
    if (committed)
        *committed = req.size;
    return ST_OK;
}

int vk_wait_for(struct vk_dev *d, uint64_t value, struct err *e)
{
    VkSemaphoreWaitInfo wi = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                              .semaphoreCount = 1,
                              .pSemaphores = &d->sem,
                              .pValues = &value};
    VkResult r = d->t.vkWaitSemaphores(d->dev, &wi, d->wait_ns);
    return r == VK_SUCCESS ? ST_OK : vk_error(r, d->id, "waiting for the device", e);
}

/* Starts the recording of a piece whose last submission is complete, behind a barrier against all before it.
 */
int vk_record_begin(struct vk_dev *d, struct piece *p, struct err *e)
{
    VkCommandBufferBeginInfo bi = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                   .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkMemoryBarrier mb = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                          .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_HOST_WRITE_BIT |
                                           VK_ACCESS_SHADER_WRITE_BIT,
                          .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT |
                                           VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    VkResult r = d->t.vkBeginCommandBuffer(p->cmd, &bi);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "recording commands", e);
    d->t.vkCmdPipelineBarrier(p->cmd, WORK_STAGES | VK_PIPELINE_STAGE_HOST_BIT, WORK_STAGES, 0, 1, &mb, 0,
                              NULL, 0, NULL);
    return ST_OK;
}

int vk_record_submit(struct vk_dev *d, struct piece *p, struct err *e)
{
    VkMemoryBarrier mb = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                          .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_SHADER_WRITE_BIT,
                          .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    uint64_t value = d->submitted + 1;
    VkTimelineSemaphoreSubmitInfo ti = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                        .signalSemaphoreValueCount = 1,
                                        .pSignalSemaphoreValues = &value};
    VkSubmitInfo si = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                       .pNext = &ti,
                       .commandBufferCount = 1,
                       .pCommandBuffers = &p->cmd,
                       .signalSemaphoreCount = 1,
                       .pSignalSemaphores = &d->sem};
    d->t.vkCmdPipelineBarrier(p->cmd, WORK_STAGES, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &mb, 0, NULL, 0, NULL);
    VkResult r = d->t.vkEndCommandBuffer(p->cmd);
    if (r == VK_SUCCESS)
        r = d->t.vkQueueSubmit(d->queue, 1, &si, VK_NULL_HANDLE);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "submitting commands", e);
    p->done = d->submitted = value;
    return ST_OK;
}

static int copy_submit(struct vk_dev *d, struct piece *p, VkBuffer src, VkBuffer dst, const VkBufferCopy *c,
                       struct err *e)
{
    int rc = vk_record_begin(d, p, e);
    if (rc < 0)
        return rc;
    d->t.vkCmdCopyBuffer(p->cmd, src, dst, 1, c);
    return vk_record_submit(d, p, e);
}

/* Staging memory at the start of piece i. */
static uint64_t piece_offset(size_t i)
{
    return i * PIECE_BYTES;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int vk_copy_in(void *dev, void *mem, uint64_t off, const void *src, uint64_t len, struct err *e)
{
    struct vk_dev *d = dev;
    const struct vk_mem *m = mem;
    int rc;
    for (uint64_t at = 0, k = 0; at < len; at += PIECE_BYTES, k++) {
        struct piece *p = &d->piece[k % PIECES];
        VkBufferCopy c = {.srcOffset = piece_offset(k % PIECES),
                          .dstOffset = off + at,
                          .size = min_u64(PIECE_BYTES, len - at)};
        if ((rc = vk_wait_for(d, p->done, e)) < 0)
            return rc;
        memcpy(d->map + c.srcOffset, (const uint8_t *)src + at, c.size);
        if ((rc = copy_submit(d, p, d->staging, m->buf, &c, e)) < 0)
            return rc;
    }
    return vk_wait_for(d, d->submitted, e);
}

/* Up to PIECES copies run ahead of the host's reading. */
static int vk_copy_out(void *dev, void *mem, uint64_t off, void *dst, uint64_t len, struct err *e)
{
    struct vk_dev *d = dev;
    const struct vk_mem *m = mem;
    uint64_t n = (len + PIECE_BYTES - 1) / PIECE_BYTES, sent = 0;
    int rc = vk_wait_for(d, d->submitted, e);
    if (rc < 0)
        return rc;
    for (uint64_t got = 0; got < n; got++) {
        for (; sent < n && sent < got + PIECES; sent++) {
            VkBufferCopy c = {.srcOffset = off + sent * PIECE_BYTES,
                              .dstOffset = piece_offset(sent % PIECES),
                              .size = min_u64(PIECE_BYTES, len - sent * PIECE_BYTES)};
            if ((rc = copy_submit(d, &d->piece[sent % PIECES], m->buf, d->staging, &c, e)) < 0)
                return rc;
        }
        if ((rc = vk_wait_for(d, d->piece[got % PIECES].done, e)) < 0)
            return rc;
        memcpy((uint8_t *)dst + got * PIECE_BYTES, d->map + piece_offset(got % PIECES),
               min_u64(PIECE_BYTES, len - got * PIECE_BYTES));
    }
    return ST_OK;
}

static int vk_sync(void *dev, struct err *e)
{
    struct vk_dev *d = dev;
    return vk_wait_for(d, d->submitted, e);
}

static void vk_free(void *dev, void *mem, bool hung)
{
    struct vk_dev *d = dev;
    struct vk_mem *m = mem;
    if (!hung) { /* all calls are complete on return, so nothing uses it */
        d->t.vkDestroyBuffer(d->dev, m->buf, NULL);
        d->t.vkFreeMemory(d->dev, m->mem, NULL);
    }
    free(m);
}

void vk_place(const struct vk_mem *m, uint64_t off, struct vk_place *out)
{
    *out = (struct vk_place){m->buf, off, m->bytes - off};
}

int vk_fill(struct vk_dev *d, struct vk_mem *m, uint64_t off, uint64_t len, uint32_t word, struct err *e)
{
    for (uint64_t at = 0, n; at < len; at += n) {
        struct vk_place p;
        int rc = vk_wait_for(d, d->submitted, e);
        if (rc < 0 || (rc = vk_record_begin(d, &d->piece[0], e)) < 0)
            return rc;
        vk_place(m, off + at, &p);
        n = min_u64(min_u64(FILL_BYTES, p.left), len - at);
        d->t.vkCmdFillBuffer(d->piece[0].cmd, p.buf, p.off, n, word);
        if ((rc = vk_record_submit(d, &d->piece[0], e)) < 0)
            return rc;
    }
    return vk_wait_for(d, d->submitted, e);
}

int vk_copy(void *dev, void *dst, uint64_t dst_off, void *src, uint64_t src_off, uint64_t len, struct err *e)
{
    struct vk_dev *d = dev;
    int rc;
    for (uint64_t at = 0, n; at < len; at += n) {
        struct vk_place to, from;
        if ((rc = vk_wait_for(d, d->submitted, e)) < 0)
            return rc;
        vk_place(dst, dst_off + at, &to);
        vk_place(src, src_off + at, &from);
        n = min_u64(min_u64(FILL_BYTES, len - at), min_u64(to.left, from.left));
        VkBufferCopy c = {.srcOffset = from.off, .dstOffset = to.off, .size = n};
        if ((rc = copy_submit(d, &d->piece[0], from.buf, to.buf, &c, e)) < 0)
            return rc;
    }
    return vk_wait_for(d, d->submitted, e);
}

static int vk_alloc(void *dev, uint64_t bytes, void **mem, uint64_t *committed, struct err *e)
{
    struct vk_dev *d = dev;
    struct vk_mem *m = calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ST_ENOMEM, "%s: no host memory for one more buffer", d->id);
    int rc = vk_buffer_make(d, bytes, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0, &m->buf, &m->mem, committed, e);
    if (rc < 0) {
        free(m);
        return rc;
    }
    m->bytes = (bytes + 3) & ~3ull;
    /* Drivers may hand out memory with another process's bytes in it. */
    if ((rc = vk_fill(d, m, 0, m->bytes, 0, e)) < 0) {
        vk_free(d, m, rc == ST_EDEADLINE);
        return rc;
    }
    *mem = m;
    return ST_OK;
}

static void vk_close(void *dev, bool hung)
{
    struct vk_dev *d = dev;
    if (!hung && d->dev) {
        if (d->t.vkDeviceWaitIdle)
            d->t.vkDeviceWaitIdle(d->dev);
#ifdef STRATA_GPU_KERNELS
        vk_pipes_fini(d);
#endif
        d->t.vkDestroyBuffer(d->dev, d->staging, NULL);
        d->t.vkFreeMemory(d->dev, d->staging_mem, NULL);
        d->t.vkDestroySemaphore(d->dev, d->sem, NULL);
        d->t.vkDestroyCommandPool(d->dev, d->pool, NULL);
        d->t.vkDestroyDevice(d->dev, NULL);
    }
    free(d);
}

/* A family that computes and copies without drawing, if there is one; else any that computes. */
static uint32_t pick_family(VkPhysicalDevice p)
{
    VkQueueFamilyProperties f[32];
    uint32_t n = 32, best = UINT32_MAX;
    vkGetPhysicalDeviceQueueFamilyProperties(p, &n, f);
    for (uint32_t i = 0; i < n; i++) {
        if (!(f[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || f[i].queueCount == 0)
            continue;
        if (!(f[i].queueFlags & VK_QUEUE_GRAPHICS_BIT))
            return i;
        if (best == UINT32_MAX)
            best = i;
    }
    return best;
}

static int device_make(struct vk_dev *d, VkPhysicalDevice p, struct err *e)
{
    float priority = 1.0f;
    uint32_t family = pick_family(p);
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .timelineSemaphore = VK_TRUE};
    VkDeviceQueueCreateInfo qi = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                  .queueFamilyIndex = family,
                                  .queueCount = 1,
                                  .pQueuePriorities = &priority};
    VkDeviceCreateInfo di = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                             .pNext = &f12,
                             .queueCreateInfoCount = 1,
                             .pQueueCreateInfos = &qi};
    VkCommandPoolCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                  .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                  .queueFamilyIndex = family};
    if (family == UINT32_MAX)
        return err_set(e, ST_ENOTSUP, "%s: the device has no queue that computes", d->id);
    VkResult r = vkCreateDevice(p, &di, NULL, &d->dev);
    if (r != VK_SUCCESS) {
        d->dev = VK_NULL_HANDLE;
        return vk_error(r, d->id, "opening the device", e);
    }
    volkLoadDeviceTable(&d->t, d->dev);
    d->t.vkGetDeviceQueue(d->dev, family, 0, &d->queue);
    r = d->t.vkCreateCommandPool(d->dev, &pi, NULL, &d->pool);
    return r == VK_SUCCESS ? ST_OK : vk_error(r, d->id, "making a command pool", e);
}

static int staging_make(struct vk_dev *d, struct err *e)
{
    VkSemaphoreTypeCreateInfo ti = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                    .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo si = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &ti};
    VkCommandBuffer cmd[PIECES];
    VkCommandBufferAllocateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                      .commandPool = d->pool,
                                      .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                      .commandBufferCount = PIECES};
    VkResult r = d->t.vkCreateSemaphore(d->dev, &si, NULL, &d->sem);
    if (r == VK_SUCCESS)
        r = d->t.vkAllocateCommandBuffers(d->dev, &ci, cmd);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "preparing the queue", e);
    for (size_t i = 0; i < PIECES; i++)
        d->piece[i].cmd = cmd[i];
    /* Coherent needs no flushes; cached makes reading back several times faster. */
    int rc = vk_buffer_make(d, PIECES * PIECE_BYTES,
                            VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                            VK_MEMORY_PROPERTY_HOST_CACHED_BIT, &d->staging, &d->staging_mem, NULL, e);
    if (rc < 0) {
        d->staging = VK_NULL_HANDLE; /* vk_buffer_make left nothing behind */
        d->staging_mem = VK_NULL_HANDLE;
        return rc;
    }
    void *map;
    if ((r = d->t.vkMapMemory(d->dev, d->staging_mem, 0, VK_WHOLE_SIZE, 0, &map)) != VK_SUCCESS)
        return vk_error(r, d->id, "mapping the staging memory", e);
    d->map = map;
    return ST_OK;
}

static int vk_open(void **dev, void *ctx, size_t index, const struct gpu_info *info, struct err *e)
{
    const struct vk_ctx *c = ctx;
    struct vk_dev *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(e, ST_ENOMEM, "%s: no memory to open the device", info->id);
    memcpy(d->id, info->id, sizeof d->id);
    d->wait_ns = c->wait_ns;
    vkGetPhysicalDeviceMemoryProperties(c->phys[index], &d->types);
    VkPhysicalDeviceProperties props;
    vkGetPhysicalDeviceProperties(c->phys[index], &props);
    d->bind_align =
        props.limits.minStorageBufferOffsetAlignment > 4 ? props.limits.minStorageBufferOffsetAlignment : 4;
    d->bind_max = props.limits.maxStorageBufferRange & ~3u;
    int rc = device_make(d, c->phys[index], e);
    if (rc < 0 || (rc = staging_make(d, e)) < 0) {
        vk_close(d, false);
        return rc;
    }
    *dev = d;
    return ST_OK;
}

static int vk_measure_copy(void *dev, void *a, void *b, uint64_t bytes, uint64_t budget_ns, double *rate,
                           struct err *e)
{
    struct vk_dev *d = dev;
    VkBufferCopy c = {.size = bytes};
    const struct clock *clk = clock_system();
    uint64_t start = 0, now = 0, until = clock_ns(clk) + budget_ns, copies = 0;
    int rc = vk_wait_for(d, d->submitted, e);
    if (rc < 0)
        return rc;
    do { /* the first round is the warm-up; two submissions are always under way */
        struct piece *p = &d->piece[copies % PIECES];
        if ((rc = vk_wait_for(d, p->done, e)) < 0 ||
            (rc = copy_submit(d, p, ((struct vk_mem *)b)->buf, ((struct vk_mem *)a)->buf, &c, e)) < 0)
            return rc;
        if (copies++ == 0) {
            if ((rc = vk_wait_for(d, d->submitted, e)) < 0)
                return rc;
            start = clock_ns(clk);
        }
        now = clock_ns(clk);
    } while (now < until || copies < 4);
    if ((rc = vk_wait_for(d, d->submitted, e)) < 0)
        return rc;
    now = clock_ns(clk);
    *rate = now > start ? (double)(copies - 1) * (double)bytes * 1e9 / (double)(now - start) : 0;
    return ST_OK;
}

/* Signalling a value that has passed is invalid use, which drivers answer with a lost device: the nearest
 * thing to pulling the card. */
void gpu_vulkan_lose(struct gpu *g)
{
    struct vk_dev *d = gpu_backend_device(g);
    VkSemaphoreSignalInfo si = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_SIGNAL_INFO, .semaphore = d->sem, .value = 0};
    (void)d->t.vkSignalSemaphore(d->dev, &si);
}

const struct gpu_ops gpu_vulkan = {
    .name = "vulkan",
    .probe = vk_probe,
    .fini = vk_fini,
    .open = vk_open,
    .close = vk_close,
    .alloc = vk_alloc,
    .free = vk_free,
    .copy_in = vk_copy_in,
    .copy_out = vk_copy_out,
    .sync = vk_sync,
    .copy = vk_copy,
    .measure_copy = vk_measure_copy,
#ifdef STRATA_GPU_KERNELS
    .exec = vk_exec,
    .measure_fma = vk_measure_fma,
#endif
};
