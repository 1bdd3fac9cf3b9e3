/*
 * Vulkan: kernels of one's own. Everything a call needs is made for it and gone after it; a device that is
 * lost is left as it is, with its process.
 */
#include <string.h>

#include "agent/gpu/vulkan_priv.h"

#define PUSH_BYTES 128u /* what every device has; what a module reads beyond its scalars is 0 */

struct own {
    VkShaderModule module;
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkPipeline pipeline;
    VkDescriptorPool pool;
    VkDescriptorSet set;
    VkDescriptorBufferInfo bind[GPU_OWN_SPANS];
};

static int bind_spans(struct vk_dev *d, struct own *k, const struct gpu_own *o, struct err *e)
{
    for (uint32_t i = 0; i < o->program->spans; i++) {
        struct vk_place pl;
        vk_place(o->part[i].mem, o->part[i].off, &pl);
        if (pl.off % d->bind_align)
            return err_set(
                e, ST_EINVAL,
                "%s: %s: argument %u begins at byte %llu; on this device a kernel of one's own takes "
                "multiples of %llu",
                d->id, o->program->entry, i, (unsigned long long)o->part[i].off,
                (unsigned long long)d->bind_align);
        if (o->part[i].len > d->bind_max || o->part[i].len > pl.left)
            return err_set(
                e, ST_ELIMIT,
                "%s: %s: argument %u is larger than the %llu bytes that one binding holds, or lies on "
                "the seam of a large buffer",
                d->id, o->program->entry, i, (unsigned long long)d->bind_max);
        k->bind[i] = (VkDescriptorBufferInfo){.buffer = pl.buf, .offset = pl.off, .range = o->part[i].len};
    }
    return ST_OK;
}

static VkResult layouts(struct vk_dev *d, struct own *k, uint32_t spans)
{
    VkDescriptorSetLayoutBinding b[GPU_OWN_SPANS];
    for (uint32_t i = 0; i < spans; i++)
        b[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                              .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                              .descriptorCount = 1,
                                              .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    const VkDescriptorSetLayoutCreateInfo li = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = spans, .pBindings = b};
    const VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = PUSH_BYTES};
    const VkPipelineLayoutCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                           .setLayoutCount = 1,
                                           .pSetLayouts = &k->set_layout,
                                           .pushConstantRangeCount = 1,
                                           .pPushConstantRanges = &push};
    const VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, .descriptorCount = spans};
    const VkDescriptorPoolCreateInfo po = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                           .maxSets = 1,
                                           .poolSizeCount = 1,
                                           .pPoolSizes = &size};
    VkResult r = d->t.vkCreateDescriptorSetLayout(d->dev, &li, NULL, &k->set_layout);
    if (r == VK_SUCCESS)
        r = d->t.vkCreatePipelineLayout(d->dev, &pi, NULL, &k->layout);
    if (r == VK_SUCCESS)
        r = d->t.vkCreateDescriptorPool(d->dev, &po, NULL, &k->pool);
    const VkDescriptorSetAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                            .descriptorPool = k->pool,
                                            .descriptorSetCount = 1,
                                            .pSetLayouts = &k->set_layout};
    return r == VK_SUCCESS ? d->t.vkAllocateDescriptorSets(d->dev, &ai, &k->set) : r;
}

static int pipeline(struct vk_dev *d, struct own *k, const struct gpu_own *o, struct err *e)
{
    const VkShaderModuleCreateInfo mi = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = o->len, .pCode = o->code};
    VkResult r = layouts(d, k, o->program->spans);
    if (r != VK_SUCCESS)
        return vk_error(r, d->id, "preparing a kernel", e);
    r = d->t.vkCreateShaderModule(d->dev, &mi, NULL, &k->module);
    const VkComputePipelineCreateInfo ci = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = k->module,
                  .pName = o->program->entry},
        .layout = k->layout};
    if (r == VK_SUCCESS)
        r = d->t.vkCreateComputePipelines(d->dev, VK_NULL_HANDLE, 1, &ci, NULL, &k->pipeline);
    if (r == VK_SUCCESS)
        return ST_OK;
    int rc = vk_error(r, d->id, "compiling a kernel", e);
    return rc == ST_EINTERNAL ? (e->code = ST_EINVAL) : rc; /* the module is the caller's, not our bug */
}

static int dispatch(struct vk_dev *d, struct own *k, const struct gpu_program *p, struct err *e)
{
    VkWriteDescriptorSet w[GPU_OWN_SPANS];
    uint32_t push[PUSH_BYTES / 4] = {0};
    struct piece *pc = &d->work->piece[d->next_piece++ % PIECES];
    int rc = vk_wait_for(d, pc->done, e);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < p->spans; i++)
        w[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                      .dstSet = k->set,
                                      .dstBinding = i,
                                      .descriptorCount = 1,
                                      .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                      .pBufferInfo = &k->bind[i]};
    d->t.vkUpdateDescriptorSets(d->dev, p->spans, w, 0, NULL);
    for (uint32_t i = 0; i < p->scalars; i++)
        push[i] = (uint32_t)p->scalar[i];
    if ((rc = vk_record_begin(d, pc, e)) < 0)
        return rc;
    d->t.vkCmdBindPipeline(pc->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->pipeline);
    d->t.vkCmdBindDescriptorSets(pc->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, k->layout, 0, 1, &k->set, 0, NULL);
    d->t.vkCmdPushConstants(pc->cmd, k->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, PUSH_BYTES, push);
    d->t.vkCmdDispatch(pc->cmd, p->groups[0], p->groups[1], p->groups[2]);
    if ((rc = vk_record_submit(d, pc, e)) < 0)
        return rc;
    uint64_t usual = d->wait_ns;
    d->wait_ns = p->deadline_ns;
    rc = vk_wait_for(d, d->submitted, e);
    d->wait_ns = usual;
    return rc;
}

int vk_run(void *dev, const struct gpu_own *o, struct err *e)
{
    struct vk_dev *d = dev;
    struct own k = {0};
    for (uint32_t i = 0; i < o->program->scalars; i++)
        if (o->program->scalar[i] > UINT32_MAX)
            return err_set(e, ST_EINVAL, "%s: %s: number %u has more than 32 bits", d->id, o->program->entry,
                           i);
    int rc = bind_spans(d, &k, o, e);
    if (rc == ST_OK)
        rc = vk_wait_for(d, d->submitted, e);
    if (rc == ST_OK)
        rc = pipeline(d, &k, o, e);
    if (rc == ST_OK)
        rc = dispatch(d, &k, o->program, e);
    if (gpu_fatal(rc))
        return rc;
    d->t.vkDestroyDescriptorPool(d->dev, k.pool, NULL); /* a null handle is fine for all of these */
    d->t.vkDestroyPipeline(d->dev, k.pipeline, NULL);
    d->t.vkDestroyPipelineLayout(d->dev, k.layout, NULL);
    d->t.vkDestroyDescriptorSetLayout(d->dev, k.set_layout, NULL);
    d->t.vkDestroyShaderModule(d->dev, k.module, NULL);
    return rc;
}
