/*
 * Vulkan: the kernels of exec.h. A call is cut into dispatches that fit the device's largest storage binding;
 * up to PIECES of them are under way at once, each with its own descriptor set, and all are complete on
 * return.
 */
#include <string.h>

#include "agent/gpu/vulkan_priv.h"

#define GROUPS_MAX 32768u /* below every device's limit of 65535 */
#define DISPATCH_WORK                                                                                        \
    (1ull << 34) /* multiply-adds: a fraction of what watchdogs allow even on slow devices */
#define SUM_BYTES 256u

static const uint32_t checksum_code[] = {
#include "checksum.spv.inc"
};
static const uint32_t axpb_code[] = {
#include "axpb.spv.inc"
};
static const uint32_t matmul_code[] = {
#include "matmul.spv.inc"
};
static const uint32_t fma_code[] = {
#include "fma.spv.inc"
};

static const struct {
    const uint32_t *code;
    size_t bytes;
    uint32_t bindings, params;
} shaders[] = {
    [VK_PIPE_CHECKSUM] = {checksum_code, sizeof checksum_code, 2, 20},
    [VK_PIPE_AXPB] = {axpb_code, sizeof axpb_code, 1, 20},
    [VK_PIPE_MATMUL] = {matmul_code, sizeof matmul_code, 3, 40},
    [VK_PIPE_FMA] = {fma_code, sizeof fma_code, 1, 12},
};

/* A piece of a buffer as a kernel sees it: a binding at an offset the device allows, and the words before. */
struct view {
    VkDescriptorBufferInfo bind;
    uint32_t skip; /* words */
};

/* ---- pipelines ---- */

static VkResult layouts_make(struct vk_dev *d, struct vk_pipe *k, uint32_t bindings, uint32_t params)
{
    VkDescriptorSetLayoutBinding b[VK_MAX_BINDINGS];
    for (uint32_t i = 0; i < bindings; i++)
        b[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                              .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                              .descriptorCount = 1,
                                              .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    VkDescriptorSetLayoutCreateInfo li = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                          .bindingCount = bindings,
                                          .pBindings = b};
    VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = params};
    VkResult r = d->t.vkCreateDescriptorSetLayout(d->dev, &li, NULL, &k->set_layout);
    if (r != VK_SUCCESS)
        return r;
    VkPipelineLayoutCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                     .setLayoutCount = 1,
                                     .pSetLayouts = &k->set_layout,
                                     .pushConstantRangeCount = 1,
                                     .pPushConstantRanges = &range};
    return d->t.vkCreatePipelineLayout(d->dev, &pi, NULL, &k->layout);
}

static VkResult sets_make(struct vk_dev *d, struct vk_pipe *k, uint32_t bindings)
{
    VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                 .descriptorCount = bindings * PIECES};
    VkDescriptorPoolCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                     .maxSets = PIECES,
                                     .poolSizeCount = 1,
                                     .pPoolSizes = &size};
    VkDescriptorSetLayout l[PIECES];
    for (size_t i = 0; i < PIECES; i++)
        l[i] = k->set_layout;
    VkResult r = d->t.vkCreateDescriptorPool(d->dev, &pi, NULL, &k->pool);
    if (r != VK_SUCCESS)
        return r;
    VkDescriptorSetAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                      .descriptorPool = k->pool,
                                      .descriptorSetCount = PIECES,
                                      .pSetLayouts = l};
    return d->t.vkAllocateDescriptorSets(d->dev, &ai, k->set);
}

static void pipe_fini(struct vk_dev *d, struct vk_pipe *k)
{
    d->t.vkDestroyDescriptorPool(d->dev, k->pool, NULL); /* a null handle is fine for all of these */
    d->t.vkDestroyPipeline(d->dev, k->pipeline, NULL);
    d->t.vkDestroyPipelineLayout(d->dev, k->layout, NULL);
    d->t.vkDestroyDescriptorSetLayout(d->dev, k->set_layout, NULL);
    *k = (struct vk_pipe){0};
}

int vk_pipe_need(struct vk_dev *d, enum vk_pipe_id id, struct err *e)
{
    struct vk_pipe *k = &d->pipe[id];
    VkShaderModule module = VK_NULL_HANDLE;
    if (k->pipeline)
        return ST_OK;
    VkShaderModuleCreateInfo mi = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                   .codeSize = shaders[id].bytes,
                                   .pCode = shaders[id].code};
    VkResult r = d->t.vkCreateShaderModule(d->dev, &mi, NULL, &module);
    if (r == VK_SUCCESS)
        r = layouts_make(d, k, shaders[id].bindings, shaders[id].params);
    if (r == VK_SUCCESS)
        r = sets_make(d, k, shaders[id].bindings);
    VkComputePipelineCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                .module = module,
                                                .pName = "main"},
                                      .layout = k->layout};
    if (r == VK_SUCCESS)
        r = d->t.vkCreateComputePipelines(d->dev, VK_NULL_HANDLE, 1, &ci, NULL, &k->pipeline);
    d->t.vkDestroyShaderModule(d->dev, module, NULL);
    if (r == VK_SUCCESS)
        return ST_OK;
    pipe_fini(d, k);
    return vk_error(r, d->id, "preparing a kernel", e);
}

void vk_pipes_fini(struct vk_dev *d)
{
    for (size_t i = 0; i < VK_PIPES; i++)
        pipe_fini(d, &d->pipe[i]);
    d->t.vkDestroyBuffer(d->dev, d->sum, NULL);
    d->t.vkFreeMemory(d->dev, d->sum_mem, NULL);
    d->sum = VK_NULL_HANDLE;
    d->sum_mem = VK_NULL_HANDLE;
}

int vk_dispatch(struct vk_dev *d, enum vk_pipe_id id, const VkDescriptorBufferInfo *bind, const void *params,
                uint32_t groups_x, uint32_t groups_y, struct err *e)
{
    struct vk_pipe *k = &d->pipe[id];
    struct piece *p;
    size_t slot = d->next_piece++ % PIECES;
    VkWriteDescriptorSet w[VK_MAX_BINDINGS];
    p = &d->work->piece[slot];
    int rc = vk_wait_for(d, p->done, e);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < shaders[id].bindings; i++)
        w[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                      .dstSet = k->set[slot],
                                      .dstBinding = i,
                                      .descriptorCount = 1,
                                      .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                      .pBufferInfo = &bind[i]};
    d->t.vkUpdateDescriptorSets(d->dev, shaders[id].bindings, w, 0, NULL);
    if ((rc = vk_record_begin(d, p, e)) < 0)
        return rc;
    d->t.vkCmdBindPipeline(p->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->pipeline);
    d->t.vkCmdBindDescriptorSets(p->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->layout, 0, 1, &k->set[slot], 0,
                                 NULL);
    d->t.vkCmdPushConstants(p->cmd, k->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, shaders[id].params, params);
    d->t.vkCmdDispatch(p->cmd, groups_x, groups_y, 1);
    return vk_record_submit(d, p, e);
}

/* ---- kernels ---- */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Up to `want` bytes of a part from `at` on, as many as one binding holds. */
static uint64_t view_of(const struct vk_dev *d, const struct gpu_part *part, uint64_t at, uint64_t want,
                        struct view *v)
{
    struct vk_place pl;
    vk_place(part->mem, part->off + at, &pl);
    uint64_t down = pl.off / d->bind_align * d->bind_align, room = d->bind_max - (pl.off - down);
    uint64_t n = min_u64(want, min_u64(pl.left, room & ~3ull));
    v->skip = (uint32_t)((pl.off - down) / 4);
    /* Whole words: every buffer is made of them. */
    v->bind =
        (VkDescriptorBufferInfo){.buffer = pl.buf, .offset = down, .range = (pl.off - down + n + 3) & ~3ull};
    return n;
}

static uint32_t groups(uint64_t words, uint32_t size)
{
    uint64_t n = (words + size - 1) / size;
    return n < GROUPS_MAX ? (uint32_t)n : GROUPS_MAX;
}

static int sum_need(struct vk_dev *d, struct err *e)
{
    void *map;
    if (d->sum)
        return ST_OK;
    int rc = vk_buffer_make(d, SUM_BYTES,
                            VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                            VK_MEMORY_PROPERTY_HOST_CACHED_BIT, &d->sum, &d->sum_mem, e);
    if (rc < 0) {
        d->sum = VK_NULL_HANDLE;
        d->sum_mem = VK_NULL_HANDLE;
        return rc;
    }
    VkResult r = d->t.vkMapMemory(d->dev, d->sum_mem, 0, VK_WHOLE_SIZE, 0, &map);
    if (r != VK_SUCCESS) {
        d->t.vkDestroyBuffer(d->dev, d->sum, NULL);
        d->t.vkFreeMemory(d->dev, d->sum_mem, NULL);
        d->sum = VK_NULL_HANDLE;
        d->sum_mem = VK_NULL_HANDLE;
        return vk_error(r, d->id, "mapping the memory for results", e);
    }
    d->sum_map = map;
    return ST_OK;
}

static int checksum(struct vk_dev *d, const struct gpu_part *part, uint64_t *value, struct err *e)
{
    struct view v;
    int rc = vk_pipe_need(d, VK_PIPE_CHECKSUM, e);
    if (rc < 0 || (rc = sum_need(d, e)) < 0)
        return rc;
    memset(d->sum_map, 0, SUM_BYTES); /* nothing is under way: every call is complete on return */
    for (uint64_t at = 0, n; at < part->len; at += n) {
        uint64_t first = at / 4,
                 turn = ((1ull << 32) - (uint32_t)first) * 4; /* bytes to the next high word */
        n = view_of(d, part, at, min_u64(part->len - at, turn), &v);
        struct {
            uint32_t skip, words, low, high, last_mask;
        } p = {v.skip, (uint32_t)((n + 3) / 4), (uint32_t)first, (uint32_t)(first >> 32),
               n % 4 ? (1u << 8 * (n % 4)) - 1 : UINT32_MAX};
        VkDescriptorBufferInfo b[2] = {v.bind, {.buffer = d->sum, .range = 8}};
        if ((rc = vk_dispatch(d, VK_PIPE_CHECKSUM, b, &p, groups(p.words, 128 * 16), 1, e)) < 0)
            return rc;
    }
    if ((rc = vk_wait_for(d, d->submitted, e)) < 0)
        return rc;
    *value = (uint64_t)d->sum_map[1] << 32 | d->sum_map[0];
    return ST_OK;
}

static int axpb(struct vk_dev *d, const struct gpu_task *t, struct err *e)
{
    struct view v;
    uint64_t most = DISPATCH_WORK / (t->rounds + 1ull) * 4;
    int rc = vk_pipe_need(d, VK_PIPE_AXPB, e);
    for (uint64_t at = 0, n; rc == ST_OK && at < t->part[0].len; at += n) {
        n = view_of(d, &t->part[0], at, min_u64(t->part[0].len - at, most ? most : 4), &v);
        struct {
            uint32_t skip, words, rounds;
            float m, a;
        } p = {v.skip, (uint32_t)(n / 4), t->rounds, t->m, t->a};
        rc = vk_dispatch(d, VK_PIPE_AXPB, &v.bind, &p, groups(p.words, 128), 1, e);
    }
    return rc < 0 ? rc : vk_wait_for(d, d->submitted, e);
}

/* One dispatch over as many rows as a binding of the weights holds; the number of rows, 0 if not even one, or
 * a status. */
static int64_t matmul_rows(struct vk_dev *d, const struct gpu_task *t, const struct view *y,
                           const struct view *x, uint32_t first, uint32_t n, struct err *e)
{
    uint64_t row = gpu_row_bytes(t->type, t->cols), at = first * row;
    uint64_t most = DISPATCH_WORK / ((uint64_t)t->cols * n) + 1;
    struct gpu_part w = t->part[1];
    struct view v;
    uint64_t odd = (w.off + at) % 4; /* rows of some types end on half words */
    w.off -= odd;
    uint64_t got = view_of(d, &w, at, odd + min_u64(t->rows - first, most) * row, &v);
    uint64_t rows = got < odd ? 0 : (got - odd) / row;
    struct {
        uint32_t y_skip, w_skip, x_skip, w_byte, first, count, rows, cols, n, type;
    } p = {y->skip, v.skip,  x->skip, (uint32_t)odd,    first, (uint32_t)rows,
           t->rows, t->cols, n,       (uint32_t)t->type};
    VkDescriptorBufferInfo b[3] = {y->bind, v.bind, x->bind};
    if (rows == 0)
        return 0;
    int rc = vk_dispatch(d, VK_PIPE_MATMUL, b, &p, groups(rows, 1), (n + 3) / 4, e);
    return rc < 0 ? rc : (int64_t)rows;
}

static int matmul(struct vk_dev *d, const struct gpu_task *t, struct err *e)
{
    struct view y, x;
    int rc = vk_pipe_need(d, VK_PIPE_MATMUL, e);
    for (uint32_t k = 0, n = 0; rc == ST_OK && k < t->n; k += n) {
        uint64_t xb = 4ull * t->cols, yb = 4ull * t->rows, left = t->n - k;
        uint64_t fit_x = view_of(d, &t->part[2], k * xb, left * xb, &x) / xb;
        uint64_t fit_y = view_of(d, &t->part[0], k * yb, left * yb, &y) / yb;
        n = (uint32_t)min_u64(left, min_u64(fit_x, fit_y));
        int64_t rows = n;
        for (uint32_t r = 0; rows > 0 && r < t->rows; r += (uint32_t)rows)
            rows = matmul_rows(d, t, &y, &x, r, n, e);
        if (rows == 0)
            return err_set(e, ST_ELIMIT,
                           "%s: a vector or row of the product exceeds the %llu bytes that one "
                           "binding holds, or lies on the seam of a large buffer; cut it up",
                           d->id, (unsigned long long)d->bind_max);
        rc = rows < 0 ? (int)rows : ST_OK;
    }
    int end = rc < 0 ? rc : vk_wait_for(d, d->submitted, e);
    return end;
}

int vk_exec(void *dev, const struct gpu_task *t, uint64_t *value, struct err *e)
{
    struct vk_dev *d = dev;
    int rc = vk_wait_for(d, d->submitted, e);
    if (rc < 0)
        return rc;
    switch (t->kernel) {
    case GPU_K_FILL:
        return vk_fill(d, t->part[0].mem, t->part[0].off, t->part[0].len, t->word, e);
    case GPU_K_COPY:
        return vk_copy(d, t->part[0].mem, t->part[0].off, t->part[1].mem, t->part[1].off, t->part[0].len, e);
    case GPU_K_CHECKSUM:
        return checksum(d, &t->part[0], value, e);
    case GPU_K_FMA:
        return axpb(d, t, e);
    case GPU_K_MATMUL:
        return matmul(d, t, e);
    }
    return err_set(e, ST_EINTERNAL, "%s: kernel %d is not in the table", d->id, (int)t->kernel);
}
