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

#define EXTENT_BYTES (4ull << 30) /* of one VkBuffer: every driver takes it, and offsets stay small */
#define FILL_BYTES (1ull << 30)   /* one fill or copy, so that its wait stays far from the bound */

/* Accesses that the stages of a queue can make. */
static VkAccessFlags shader(const struct vk_queue *q, VkAccessFlags f)
{
    return q->stages & VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT ? f : 0;
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
                                           shader(p->q, VK_ACCESS_SHADER_WRITE_BIT),
                          .dstAccessMask =
                              VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT |
                              shader(p->q, VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT)};
    VkResult r = d->t.vkBeginCommandBuffer(p->cmd, &bi);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "recording commands", e);
    d->t.vkCmdPipelineBarrier(p->cmd, p->q->stages | VK_PIPELINE_STAGE_HOST_BIT, p->q->stages, 0, 1, &mb, 0,
                              NULL, 0, NULL);
    return ST_OK;
}

int vk_record_submit(struct vk_dev *d, struct piece *p, struct err *e)
{
    VkMemoryBarrier mb = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                          .srcAccessMask =
                              VK_ACCESS_TRANSFER_WRITE_BIT | shader(p->q, VK_ACCESS_SHADER_WRITE_BIT),
                          .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    uint64_t value = d->submitted + 1;
    /* After a change of queue the wait makes visible what the other one wrote; it is complete already. */
    bool other = d->last != p->q;
    VkPipelineStageFlags all = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    VkTimelineSemaphoreSubmitInfo ti = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                        .waitSemaphoreValueCount = other,
                                        .pWaitSemaphoreValues = &d->submitted,
                                        .signalSemaphoreValueCount = 1,
                                        .pSignalSemaphoreValues = &value};
    VkSubmitInfo si = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                       .pNext = &ti,
                       .waitSemaphoreCount = other,
                       .pWaitSemaphores = &d->sem,
                       .pWaitDstStageMask = &all,
                       .commandBufferCount = 1,
                       .pCommandBuffers = &p->cmd,
                       .signalSemaphoreCount = 1,
                       .pSignalSemaphores = &d->sem};
    d->t.vkCmdPipelineBarrier(p->cmd, p->q->stages, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &mb, 0, NULL, 0, NULL);
    VkResult r = d->t.vkEndCommandBuffer(p->cmd);
    if (r == VK_SUCCESS)
        r = d->t.vkQueueSubmit(p->q->queue, 1, &si, VK_NULL_HANDLE);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "submitting commands", e);
    p->done = d->submitted = value;
    d->last = p->q;
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

/* The end of a call: nothing of it is under way, however it went. A device that is lost or hangs cannot be
 * waited for. */
static int settle(struct vk_dev *d, int rc, struct err *e)
{
    if (gpu_fatal(rc))
        return rc;
    int end = vk_wait_for(d, d->submitted, rc == ST_OK ? e : NULL);
    return rc == ST_OK || gpu_fatal(end) ? end : rc;
}

/* One direct copy between a buffer and pinned memory at p, cut at the seams of the buffer. */
static int copy_pinned(struct vk_dev *d, const struct vk_mem *m, uint64_t off, const struct vk_pin *pin,
                       const uint8_t *p, uint64_t len, bool in, struct err *e)
{
    int rc = ST_OK;
    for (uint64_t at = 0, k = 0, n; rc == ST_OK && at < len; at += n, k++) {
        struct piece *pc = &d->move->piece[k % PIECES];
        struct vk_place pl;
        uint64_t host = (uint64_t)(p - pin->base) + at;
        vk_place(m, off + at, &pl);
        n = min_u64(min_u64(FILL_BYTES, len - at), pl.left);
        VkBufferCopy c = {in ? host : pl.off, in ? pl.off : host, n};
        if ((rc = vk_wait_for(d, pc->done, e)) == ST_OK)
            rc = copy_submit(d, pc, in ? pin->buf : pl.buf, in ? pl.buf : pin->buf, &c, e);
    }
    return settle(d, rc, e);
}

static int vk_copy_in(void *dev, void *mem, uint64_t off, const void *src, uint64_t len, void *pin,
                      struct err *e)
{
    struct vk_dev *d = dev;
    const struct vk_mem *m = mem;
    int rc = ST_OK;
    if (pin)
        return copy_pinned(d, m, off, pin, src, len, true, e);
    for (uint64_t at = 0, k = 0, n; rc == ST_OK && at < len; at += n, k++) {
        struct piece *p = &d->move->piece[k % PIECES];
        struct vk_place pl;
        vk_place(m, off + at, &pl);
        n = min_u64(min_u64(PIECE_BYTES, len - at), pl.left);
        VkBufferCopy c = {piece_offset(k % PIECES), pl.off, n};
        if ((rc = vk_wait_for(d, p->done, e)) < 0)
            break;
        memcpy(d->map + c.srcOffset, (const uint8_t *)src + at, n);
        rc = copy_submit(d, p, d->staging, pl.buf, &c, e);
    }
    return settle(d, rc, e);
}

/* Up to PIECES copies run ahead of the host's reading. */
static int vk_copy_out(void *dev, void *mem, uint64_t off, void *dst, uint64_t len, void *pin, struct err *e)
{
    struct vk_dev *d = dev;
    const struct vk_mem *m = mem;
    uint64_t size[PIECES], asked = 0, sent = 0, got = 0;
    if (pin)
        return copy_pinned(d, m, off, pin, dst, len, false, e);
    int rc = vk_wait_for(d, d->submitted, e);
    for (uint64_t at = 0; rc == ST_OK && at < len; got++) {
        for (; asked < len && sent < got + PIECES; sent++) {
            struct vk_place pl;
            vk_place(m, off + asked, &pl);
            uint64_t n = min_u64(min_u64(PIECE_BYTES, len - asked), pl.left);
            VkBufferCopy c = {pl.off, piece_offset(sent % PIECES), n};
            if ((rc = copy_submit(d, &d->move->piece[sent % PIECES], pl.buf, d->staging, &c, e)) < 0)
                return settle(d, rc, e);
            size[sent % PIECES] = n;
            asked += n;
        }
        if ((rc = vk_wait_for(d, d->move->piece[got % PIECES].done, e)) < 0)
            break;
        memcpy((uint8_t *)dst + at, d->map + piece_offset(got % PIECES), size[got % PIECES]);
        at += size[got % PIECES];
    }
    return settle(d, rc, e);
}

static int vk_sync(void *dev, struct err *e)
{
    struct vk_dev *d = dev;
    return vk_wait_for(d, d->submitted, e);
}

static void vk_free(void *dev, void *mem, bool hung)
{
    vk_mem_free(dev, mem, !hung); /* all calls are complete on return, so nothing uses it */
}

int vk_fill(struct vk_dev *d, struct vk_mem *m, uint64_t off, uint64_t len, uint32_t word, struct err *e)
{
    struct piece *pc = &d->work->piece[0];
    for (uint64_t at = 0, n; at < len; at += n) {
        struct vk_place p;
        int rc = vk_wait_for(d, d->submitted, e);
        if (rc < 0 || (rc = vk_record_begin(d, pc, e)) < 0)
            return rc;
        vk_place(m, off + at, &p);
        n = min_u64(min_u64(FILL_BYTES, p.left), len - at);
        d->t.vkCmdFillBuffer(pc->cmd, p.buf, p.off, n, word);
        if ((rc = vk_record_submit(d, pc, e)) < 0)
            return rc;
    }
    return vk_wait_for(d, d->submitted, e);
}

int vk_copy(void *dev, void *dst, uint64_t dst_off, void *src, uint64_t src_off, uint64_t len, struct err *e)
{
    struct vk_dev *d = dev;
    int rc = ST_OK;
    for (uint64_t at = 0, k = 0, n; rc == ST_OK && at < len; at += n, k++) {
        struct piece *pc = &d->work->piece[k % PIECES];
        struct vk_place to, from;
        vk_place(dst, dst_off + at, &to);
        vk_place(src, src_off + at, &from);
        n = min_u64(min_u64(FILL_BYTES, len - at), min_u64(to.left, from.left));
        VkBufferCopy c = {.srcOffset = from.off, .dstOffset = to.off, .size = n};
        if ((rc = vk_wait_for(d, pc->done, e)) == ST_OK)
            rc = copy_submit(d, pc, from.buf, to.buf, &c, e);
    }
    return settle(d, rc, e);
}

static int vk_alloc(void *dev, uint64_t bytes, void **mem, uint64_t *committed, struct err *e)
{
    struct vk_dev *d = dev;
    struct vk_mem *m;
    int rc = vk_mem_new(d, bytes, &m, committed, e);
    if (rc < 0)
        return rc;
    /* Drivers may hand out memory with another process's bytes in it. */
    if ((rc = vk_fill(d, m, 0, m->bytes, 0, e)) < 0) {
        rc = settle(d, rc, NULL);
        vk_mem_free(d, m, rc != ST_EDEADLINE);
        return rc;
    }
    *mem = m;
    return ST_OK;
}

static void queue_fini(struct vk_dev *d, struct vk_queue *q)
{
    d->t.vkDestroyCommandPool(d->dev, q->pool, NULL); /* a null handle is fine */
    q->pool = VK_NULL_HANDLE;
}

static void vk_close(void *dev, bool hung)
{
    struct vk_dev *d = dev;
    if (!hung && d->dev && d->t.vkDeviceWaitIdle) {
        d->t.vkDeviceWaitIdle(d->dev);
#ifdef STRATA_GPU_KERNELS
        vk_pipes_fini(d);
#endif
        vk_blocks_fini(d);
        d->t.vkDestroyBuffer(d->dev, d->staging, NULL);
        d->t.vkFreeMemory(d->dev, d->staging_mem, NULL);
        d->t.vkDestroySemaphore(d->dev, d->sem, NULL);
        queue_fini(d, &d->queue[0]);
        queue_fini(d, &d->queue[1]);
        d->t.vkDestroyDevice(d->dev, NULL);
    }
    free(d);
}

/* A family that computes and copies without drawing, if there is one; else any that computes. And one that
 * only copies: that is the engine which moves bytes beside the computing ones. */
static void pick_families(VkPhysicalDevice p, uint32_t *work, uint32_t *move)
{
    VkQueueFamilyProperties f[32];
    uint32_t n = 32;
    *work = *move = UINT32_MAX;
    vkGetPhysicalDeviceQueueFamilyProperties(p, &n, f);
    for (uint32_t i = 0; i < n; i++) {
        VkQueueFlags has = f[i].queueFlags;
        VkExtent3D g = f[i].minImageTransferGranularity;
        if (f[i].queueCount == 0)
            continue;
        if (has & VK_QUEUE_COMPUTE_BIT) {
            if (*work == UINT32_MAX ||
                (!(has & VK_QUEUE_GRAPHICS_BIT) && f[*work].queueFlags & VK_QUEUE_GRAPHICS_BIT))
                *work = i;
        } else if (has & VK_QUEUE_TRANSFER_BIT && !(has & VK_QUEUE_GRAPHICS_BIT) && *move == UINT32_MAX &&
                   g.width <= 1) {
            *move = i;
        }
    }
    if (*move == UINT32_MAX)
        *move = *work;
}

static int queue_make(struct vk_dev *d, struct vk_queue *q, uint32_t family, VkPipelineStageFlags stages,
                      struct err *e)
{
    VkCommandPoolCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                  .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                  .queueFamilyIndex = family};
    VkCommandBuffer cmd[PIECES];
    d->t.vkGetDeviceQueue(d->dev, family, 0, &q->queue);
    q->family = family;
    q->stages = stages;
    VkResult r = d->t.vkCreateCommandPool(d->dev, &pi, NULL, &q->pool);
    VkCommandBufferAllocateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                      .commandPool = q->pool,
                                      .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                      .commandBufferCount = PIECES};
    if (r == VK_SUCCESS)
        r = d->t.vkAllocateCommandBuffers(d->dev, &ci, cmd);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "preparing a queue", e);
    for (size_t i = 0; i < PIECES; i++)
        q->piece[i] = (struct piece){.cmd = cmd[i], .q = q};
    return ST_OK;
}

static int device_make(struct vk_dev *d, struct err *e)
{
    float priority = 1.0f;
    uint32_t work, move;
    pick_families(d->phys, &work, &move);
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .timelineSemaphore = VK_TRUE};
    VkDeviceQueueCreateInfo qi[2];
    for (int i = 0; i < 2; i++)
        qi[i] = (VkDeviceQueueCreateInfo){.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                          .queueFamilyIndex = i ? move : work,
                                          .queueCount = 1,
                                          .pQueuePriorities = &priority};
    const char *import = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    VkDeviceCreateInfo di = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                             .pNext = &f12,
                             .queueCreateInfoCount = work == move ? 1 : 2,
                             .pQueueCreateInfos = qi,
                             .enabledExtensionCount = d->import_align ? 1 : 0,
                             .ppEnabledExtensionNames = &import};
    if (work == UINT32_MAX)
        return err_set(e, ST_ENOTSUP, "%s: the device has no queue that computes", d->id);
    VkResult r = vkCreateDevice(d->phys, &di, NULL, &d->dev);
    if (r != VK_SUCCESS) {
        d->dev = VK_NULL_HANDLE;
        return vk_error(r, d->id, "opening the device", e);
    }
    volkLoadDeviceTable(&d->t, d->dev);
    if (!d->t.vkGetMemoryHostPointerPropertiesEXT)
        d->import_align = 0;
    d->work = d->last = &d->queue[0];
    d->move = work == move ? d->work : &d->queue[1];
    int rc = queue_make(d, d->work, work,
                        VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, e);
    if (rc == ST_OK && work != move)
        rc = queue_make(d, d->move, move, VK_PIPELINE_STAGE_TRANSFER_BIT, e);
    return rc;
}

static int staging_make(struct vk_dev *d, struct err *e)
{
    VkSemaphoreTypeCreateInfo ti = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                    .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo si = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &ti};
    VkResult r = d->t.vkCreateSemaphore(d->dev, &si, NULL, &d->sem);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "making a semaphore", e);
    /* Coherent needs no flushes; cached makes reading back several times faster. */
    int rc = vk_buffer_make(d, PIECES * PIECE_BYTES,
                            VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                            VK_MEMORY_PROPERTY_HOST_CACHED_BIT, &d->staging, &d->staging_mem, e);
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

/* What the device allows, and what its driver can do beyond the minimum. */
static void limits_read(struct vk_dev *d, const struct vk_ctx *c)
{
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceMaintenance3Properties m3 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &m3};
    bool imports = vk_has_extension(d->phys, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME);
    if (imports)
        m3.pNext = &host;
    vkGetPhysicalDeviceProperties2(d->phys, &p);
    vkGetPhysicalDeviceMemoryProperties(d->phys, &d->types);
    const VkPhysicalDeviceLimits *l = &p.properties.limits;
    d->bind_align = l->minStorageBufferOffsetAlignment > 4 ? l->minStorageBufferOffsetAlignment : 4;
    d->bind_max = l->maxStorageBufferRange & ~3u;
    d->import_align = imports ? host.minImportedHostPointerAlignment : 0;
    d->tells_budget = vk_has_extension(d->phys, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    d->extent_bytes = m3.maxMemoryAllocationSize < EXTENT_BYTES ? m3.maxMemoryAllocationSize : EXTENT_BYTES;
    if (c->extent_bytes && c->extent_bytes < d->extent_bytes)
        d->extent_bytes = c->extent_bytes;
    d->extent_bytes &= ~0xffffull;
}

static int vk_open(void **dev, void *ctx, size_t index, const struct gpu_info *info, struct err *e)
{
    const struct vk_ctx *c = ctx;
    struct vk_dev *d = calloc(1, sizeof *d);
    if (!d)
        return err_set(e, ST_ENOMEM, "%s: no memory to open the device", info->id);
    memcpy(d->id, info->id, sizeof d->id);
    d->wait_ns = c->wait_ns;
    d->phys = c->phys[index];
    limits_read(d, c);
    int rc = device_make(d, e);
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
    struct vk_place to, from;
    vk_place(a, 0, &to);
    vk_place(b, 0, &from);
    VkBufferCopy c = {from.off, to.off, min_u64(bytes, min_u64(to.left, from.left))};
    const struct clock *clk = clock_system();
    uint64_t start = 0, now = 0, until = clock_ns(clk) + budget_ns, copies = 0;
    int rc = vk_wait_for(d, d->submitted, e);
    if (rc < 0)
        return rc;
    do { /* the first round is the warm-up; two submissions are always under way */
        struct piece *p = &d->work->piece[copies % PIECES];
        if ((rc = vk_wait_for(d, p->done, e)) < 0 || (rc = copy_submit(d, p, from.buf, to.buf, &c, e)) < 0)
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
    *rate = now > start ? (double)(copies - 1) * (double)c.size * 1e9 / (double)(now - start) : 0;
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
    .pin = vk_pin,
    .unpin = vk_unpin,
    .run = vk_run,
    .measure_copy = vk_measure_copy,
#ifdef STRATA_GPU_KERNELS
    .exec = vk_exec,
    .measure_fma = vk_measure_fma,
#endif
};
