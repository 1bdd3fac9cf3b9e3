/*
 * Vulkan's compute measurement: one kernel of multiply-adds, its trip count doubled until one dispatch is
 * long enough that submitting it does not matter.
 */
#include "agent/gpu/vulkan_priv.h"
#include "common/base/clock.h"

#define GROUPS 4096u
#define GROUP_SIZE 64u
#define FLOP_PER_ROUND (8.0 * 4 * 4 * 2) /* see fma.comp */
#define ROUNDS_MAX (1u << 15)
#define LONG_NS (8 * NS_PER_MS)

static const uint32_t fma_code[] = {
#include "fma.spv.inc"
};

struct params {
    float m, a;
    uint32_t rounds;
};

struct kernel {
    VkBuffer buf;
    VkDeviceMemory mem;
    VkShaderModule module;
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkPipeline pipeline;
    VkDescriptorPool pool;
    VkDescriptorSet set;
};

static void kernel_fini(struct vk_dev *d, struct kernel *k)
{
    d->t.vkDestroyDescriptorPool(d->dev, k->pool, NULL); /* a null handle is fine for all of these */
    d->t.vkDestroyPipeline(d->dev, k->pipeline, NULL);
    d->t.vkDestroyPipelineLayout(d->dev, k->layout, NULL);
    d->t.vkDestroyDescriptorSetLayout(d->dev, k->set_layout, NULL);
    d->t.vkDestroyShaderModule(d->dev, k->module, NULL);
    d->t.vkDestroyBuffer(d->dev, k->buf, NULL);
    d->t.vkFreeMemory(d->dev, k->mem, NULL);
}

static VkResult pipeline_make(struct vk_dev *d, struct kernel *k)
{
    VkDescriptorSetLayoutBinding bind = {.descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                         .descriptorCount = 1,
                                         .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    VkDescriptorSetLayoutCreateInfo li = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = 1, .pBindings = &bind};
    VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = sizeof(struct params)};
    VkShaderModuleCreateInfo mi = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = sizeof fma_code, .pCode = fma_code};
    VkResult r = d->t.vkCreateShaderModule(d->dev, &mi, NULL, &k->module);
    if (r == VK_SUCCESS)
        r = d->t.vkCreateDescriptorSetLayout(d->dev, &li, NULL, &k->set_layout);
    if (r != VK_SUCCESS)
        return r;
    VkPipelineLayoutCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                     .setLayoutCount = 1,
                                     .pSetLayouts = &k->set_layout,
                                     .pushConstantRangeCount = 1,
                                     .pPushConstantRanges = &range};
    if ((r = d->t.vkCreatePipelineLayout(d->dev, &pi, NULL, &k->layout)) != VK_SUCCESS)
        return r;
    VkComputePipelineCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                .module = k->module,
                                                .pName = "main"},
                                      .layout = k->layout};
    return d->t.vkCreateComputePipelines(d->dev, VK_NULL_HANDLE, 1, &ci, NULL, &k->pipeline);
}

static VkResult set_make(struct vk_dev *d, struct kernel *k)
{
    VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, .descriptorCount = 1};
    VkDescriptorPoolCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                     .maxSets = 1,
                                     .poolSizeCount = 1,
                                     .pPoolSizes = &size};
    VkResult r = d->t.vkCreateDescriptorPool(d->dev, &pi, NULL, &k->pool);
    if (r != VK_SUCCESS)
        return r;
    VkDescriptorSetAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                      .descriptorPool = k->pool,
                                      .descriptorSetCount = 1,
                                      .pSetLayouts = &k->set_layout};
    if ((r = d->t.vkAllocateDescriptorSets(d->dev, &ai, &k->set)) != VK_SUCCESS)
        return r;
    VkDescriptorBufferInfo bi = {.buffer = k->buf, .range = VK_WHOLE_SIZE};
    VkWriteDescriptorSet w = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                              .dstSet = k->set,
                              .descriptorCount = 1,
                              .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                              .pBufferInfo = &bi};
    d->t.vkUpdateDescriptorSets(d->dev, 1, &w, 0, NULL);
    return VK_SUCCESS;
}

/* One dispatch from submission to completion. */
static int dispatch(struct vk_dev *d, const struct kernel *k, uint32_t rounds, uint64_t *ns, struct err *e)
{
    const struct params p = {.m = 0.999f, .a = 0.001f, .rounds = rounds};
    struct piece *pc = &d->piece[0];
    int rc = vk_wait_for(d, d->submitted, e);
    if (rc < 0 || (rc = vk_record_begin(d, pc, e)) < 0)
        return rc;
    d->t.vkCmdBindPipeline(pc->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->pipeline);
    d->t.vkCmdBindDescriptorSets(pc->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->layout, 0, 1, &k->set, 0, NULL);
    d->t.vkCmdPushConstants(pc->cmd, k->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof p, &p);
    d->t.vkCmdDispatch(pc->cmd, GROUPS, 1, 1);
    uint64_t start = clock_ns(clock_system());
    if ((rc = vk_record_submit(d, pc, e)) < 0 || (rc = vk_wait_for(d, d->submitted, e)) < 0)
        return rc;
    *ns = clock_ns(clock_system()) - start;
    return ST_OK;
}

int vk_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e)
{
    struct vk_dev *d = dev;
    struct kernel k = {0};
    uint32_t rounds = 8;
    uint64_t until = 0, took = 0, ns = 0;
    double flop = 0;
    int rc = vk_buffer_make(d, (uint64_t)GROUPS * GROUP_SIZE * 16, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0,
                            &k.buf, &k.mem, NULL, e);
    if (rc < 0)
        return rc;
    VkResult r = pipeline_make(d, &k);
    if (r == VK_SUCCESS)
        r = set_make(d, &k);
    rc = r == VK_SUCCESS ? dispatch(d, &k, 1, &ns, e)
                         : vk_error(r, d->id, "preparing the measuring kernel", e);
    until = clock_ns(clock_system()) + budget_ns;
    while (rc == ST_OK) {
        if ((rc = dispatch(d, &k, rounds, &ns, e)) < 0)
            break;
        flop += FLOP_PER_ROUND * rounds * GROUPS * GROUP_SIZE;
        took += ns;
        if (clock_ns(clock_system()) >= until)
            break;
        if (ns < LONG_NS && rounds < ROUNDS_MAX) { /* too short to count: submitting weighs in */
            rounds *= 2;
            flop = 0;
            took = 0;
        }
    }
    if (rc == ST_OK)
        *rate = took ? flop * 1e9 / (double)took : 0;
    if (rc != ST_EDEADLINE) /* a device that hangs may still write: nothing of it is freed */
        kernel_fini(d, &k);
    return rc;
}
