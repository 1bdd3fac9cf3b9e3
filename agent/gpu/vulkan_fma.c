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

/* One dispatch from submission to completion. */
static int dispatch(struct vk_dev *d, const VkDescriptorBufferInfo *out, uint32_t rounds, uint64_t *ns,
                    struct err *e)
{
    const struct {
        float m, a;
        uint32_t rounds;
    } p = {.m = 0.999f, .a = 0.001f, .rounds = rounds};
    int rc = vk_wait_for(d, d->submitted, e);
    uint64_t start = clock_ns(clock_system());
    if (rc < 0 || (rc = vk_dispatch(d, VK_PIPE_FMA, out, &p, GROUPS, 1, e)) < 0 ||
        (rc = vk_wait_for(d, d->submitted, e)) < 0)
        return rc;
    *ns = clock_ns(clock_system()) - start;
    return ST_OK;
}

int vk_measure_fma(void *dev, uint64_t budget_ns, double *rate, struct err *e)
{
    struct vk_dev *d = dev;
    VkDescriptorBufferInfo out = {.range = VK_WHOLE_SIZE};
    VkDeviceMemory mem;
    uint32_t rounds = 8;
    uint64_t until = 0, took = 0, ns = 0;
    double flop = 0;
    int rc = vk_buffer_make(d, (uint64_t)GROUPS * GROUP_SIZE * 16, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0,
                            &out.buffer, &mem, e);
    if (rc < 0)
        return rc;
    if ((rc = vk_pipe_need(d, VK_PIPE_FMA, e)) == ST_OK)
        rc = dispatch(d, &out, 1, &ns, e);
    until = clock_ns(clock_system()) + budget_ns;
    while (rc == ST_OK) {
        if ((rc = dispatch(d, &out, rounds, &ns, e)) < 0)
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
    if (rc != ST_EDEADLINE) { /* a device that hangs may still write: nothing of it is freed */
        d->t.vkDestroyBuffer(d->dev, out.buffer, NULL);
        d->t.vkFreeMemory(d->dev, mem, NULL);
    }
    return rc;
}
