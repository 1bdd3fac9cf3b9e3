/*
 * Random operations on every backend with a device here, with faults injected below the backend, beside a
 * model in plain memory: what succeeds has the model's bytes, what fails changes nothing but the range it was
 * about, and in the end nothing is left. Then every allocation fails once, one after the other.
 */
#include <dlfcn.h>
#include <stdio.h>

#include "agent/gpu/vulkan_priv.h"
#include "tests/unit/gpu/fake_cuda.h"
#include "tests/unit/gpu/gpu_help.h"

#define BUFFERS 24
#define MAX_BYTES (300u << 10)

/* What is left on a device that hangs is left on purpose; the stand-in's own counters tell everything else.
 */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libfake_cuda\n";
}

/* ---- faults ---- */

static long host_left; /* allocations of the room until one fails; 0 = never */
static long host_fired;
static bool host_fails(void)
{
    if (host_left == 0 || --host_left > 0)
        return false;
    host_fired++;
    return true;
}
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n)
{
    return host_fails() ? NULL : __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t m)
{
    return host_fails() ? NULL : __real_calloc(n, m);
}
void *__wrap_realloc(void *p, size_t n)
{
    return host_fails() ? NULL : __real_realloc(p, n);
}

/* Vulkan's calls go through a table of the device's own: entries are replaced there. */
static long vk_left, vk_fired;
static struct VolkDeviceTable vk_true;
static bool vk_fails(void)
{
    if (vk_left == 0 || --vk_left > 0)
        return false;
    vk_fired++;
    return true;
}
static VKAPI_ATTR VkResult VKAPI_CALL bad_allocate(VkDevice d, const VkMemoryAllocateInfo *i,
                                                   const VkAllocationCallbacks *a, VkDeviceMemory *m)
{
    return vk_fails() ? VK_ERROR_OUT_OF_DEVICE_MEMORY : vk_true.vkAllocateMemory(d, i, a, m);
}
static VKAPI_ATTR VkResult VKAPI_CALL bad_buffer(VkDevice d, const VkBufferCreateInfo *i,
                                                 const VkAllocationCallbacks *a, VkBuffer *b)
{
    return vk_fails() ? VK_ERROR_OUT_OF_HOST_MEMORY : vk_true.vkCreateBuffer(d, i, a, b);
}
static VKAPI_ATTR VkResult VKAPI_CALL bad_bind(VkDevice d, VkBuffer b, VkDeviceMemory m, VkDeviceSize o)
{
    return vk_fails() ? VK_ERROR_OUT_OF_DEVICE_MEMORY : vk_true.vkBindBufferMemory(d, b, m, o);
}
static VKAPI_ATTR VkResult VKAPI_CALL bad_begin(VkCommandBuffer c, const VkCommandBufferBeginInfo *i)
{
    return vk_fails() ? VK_ERROR_OUT_OF_HOST_MEMORY : vk_true.vkBeginCommandBuffer(c, i);
}
static VKAPI_ATTR VkResult VKAPI_CALL bad_submit(VkQueue q, uint32_t n, const VkSubmitInfo *s, VkFence f)
{
    return vk_fails() ? VK_ERROR_OUT_OF_HOST_MEMORY : vk_true.vkQueueSubmit(q, n, s, f);
}
static void vk_patch(struct gpu *g)
{
    struct vk_dev *d = gpu_backend_device(g);
    vk_true = d->t;
    d->t.vkAllocateMemory = bad_allocate;
    d->t.vkCreateBuffer = bad_buffer;
    d->t.vkBindBufferMemory = bad_bind;
    d->t.vkBeginCommandBuffer = bad_begin;
    d->t.vkQueueSubmit = bad_submit;
}

static struct fake_cuda *cuda_lib(void)
{
    static struct fake_cuda *f;
    if (!f) {
        void *lib = dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
        f = lib ? dlsym(lib, "fake_cuda") : NULL;
        assert_non_null(f);
    }
    return f;
}

enum kind { CPU, VULKAN, CUDA };
static enum kind kind_of(const struct fix *f)
{
    return strcmp(f->backend, "cpu") == 0 ? CPU : strcmp(f->backend, "vulkan") == 0 ? VULKAN : CUDA;
}

/* The n-th next call below the backend fails; 0: none does. */
static void arm(enum kind k, long n, bool host)
{
    host_left = host || k == CPU ? n : 0;
    vk_left = k == VULKAN && !host ? n : 0;
    if (k == CUDA)
        *cuda_lib() = (struct fake_cuda){.countdown = host ? 0 : n,
                                         .code = n % 2 ? 2 : 801,
                                         .fired = cuda_lib()->fired,
                                         .allocations = cuda_lib()->allocations,
                                         .pinned = cuda_lib()->pinned,
                                         .registered = cuda_lib()->registered,
                                         .streams = cuda_lib()->streams,
                                         .events = cuda_lib()->events,
                                         .modules = cuda_lib()->modules,
                                         .contexts = cuda_lib()->contexts,
                                         .bad = cuda_lib()->bad};
}

static void assert_nothing_left(enum kind k)
{
    const struct fake_cuda *f = k == CUDA ? cuda_lib() : NULL;
    if (!f)
        return; /* the sanitizer and the device's own account tell */
    assert_int_equal(f->allocations, 0);
    assert_int_equal(f->pinned, 0);
    assert_int_equal(f->registered, 0);
    assert_int_equal(f->streams, 0);
    assert_int_equal(f->events, 0);
    assert_int_equal(f->modules, 0);
    assert_int_equal(f->contexts, 0);
    assert_int_equal(f->bad, 0);
}

/* ---- the random run ---- */

static uint64_t state_;
static uint32_t rnd(uint32_t below)
{
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return below ? (uint32_t)(state_ >> 33) % below : 0;
}

struct model {
    uint64_t handle; /* 0 = none */
    uint32_t bytes;
    uint8_t *data;
};

struct run {
    struct gpu *g;
    enum kind kind;
    struct model m[BUFFERS];
    uint8_t *scratch;
    uint64_t stale[64];
    size_t stales;
    long faults, failed;
};

static void verify(struct run *r, const struct model *m)
{
    struct err e = {0};
    if (gpu_copy_out(r->g, m->handle, 0, r->scratch, m->bytes, &e) < 0)
        fail_msg("%s", e.text);
    assert_memory_equal(r->scratch, m->data, m->bytes);
}

/* After a failed write the range holds anything: it is written anew, and the rest must be as it was. */
static void repair(struct run *r, const struct model *m, uint32_t off, uint32_t len)
{
    arm(r->kind, 0, false);
    assert_int_equal(gpu_copy_in(r->g, m->handle, off, m->data + off, len, NULL), ST_OK);
    verify(r, m);
}

static void span_of(const struct model *m, uint32_t *off, uint32_t *len, bool words)
{
    *off = rnd(m->bytes);
    *len = rnd(m->bytes - *off) + 1;
    if (words) {
        *off &= ~3u;
        *len = (*len + 3) & ~3u;
        if (*off + *len > m->bytes)
            *len = (m->bytes - *off) & ~3u;
    }
}

static void do_alloc(struct run *r, struct model *m)
{
    uint32_t n = rnd(8) ? rnd(MAX_BYTES) + 1 : rnd(16) + 1;
    int rc = gpu_alloc(r->g, n, &m->handle, NULL);
    if (rc < 0) {
        m->handle = 0;
        r->failed++;
        assert_true(rc == ST_ERESOURCE || rc == ST_ENOMEM || rc == ST_ENOTSUP);
        return;
    }
    m->bytes = n;
    m->data = __real_calloc(1, n);
}

static void do_free(struct run *r, struct model *m)
{
    assert_int_equal(gpu_free(r->g, m->handle, NULL), ST_OK);
    r->stale[r->stales++ % 64] = m->handle;
    free(m->data);
    *m = (struct model){0};
}

static void do_write(struct run *r, struct model *m)
{
    uint32_t off, len;
    span_of(m, &off, &len, false);
    for (uint32_t i = 0; i < len; i++)
        m->data[off + i] = (uint8_t)rnd(256);
    if (gpu_copy_in(r->g, m->handle, off, m->data + off, len, NULL) < 0) {
        r->failed++;
        repair(r, m, off, len);
    }
}

static void do_read(struct run *r, struct model *m)
{
    uint32_t off, len;
    span_of(m, &off, &len, false);
    if (gpu_copy_out(r->g, m->handle, off, r->scratch, len, NULL) < 0)
        r->failed++;
    else
        assert_memory_equal(r->scratch, m->data + off, len);
}

static void do_copy(struct run *r, struct model *m)
{
    struct model *s = &r->m[rnd(BUFFERS)];
    uint32_t off, len, from;
    if (!s->handle)
        return;
    span_of(m, &off, &len, false);
    len = len < s->bytes ? len : s->bytes;
    from = rnd(s->bytes - len + 1);
    bool overlap = s == m && from < off + len && off < from + len;
    int rc = gpu_copy(r->g, m->handle, off, r->g, s->handle, from, len, NULL);
    if (overlap) {
        assert_int_equal(rc, ST_EINVAL);
        return;
    }
    memcpy(m->data + off, s->data + from, len);
    if (rc < 0) {
        r->failed++;
        repair(r, m, off, len);
    }
}

static void do_kernel(struct run *r, struct model *m)
{
    uint32_t off, len;
    uint64_t sum = 0;
    bool fill = rnd(2);
    span_of(m, &off, &len, true);
    uint32_t word = (uint32_t)rnd(UINT32_MAX);
    struct gpu_exec x = {.kernel = "checksum", .spans = 1, .span = {{m->handle, off, len}}};
    if (fill) {
        memcpy(x.kernel, "fill", 5);
        x.scalars = 1;
        x.scalar[0] = word;
        for (uint32_t i = 0; i < len; i += 4)
            memcpy(m->data + off + i, &word, 4);
    }
    int rc = gpu_exec(r->g, &x, &sum, NULL);
    if (rc == ST_OK && !fill)
        assert_true(sum == gpu_checksum(m->data + off, len));
    if (rc < 0) {
        r->failed++;
        if (fill && len)
            repair(r, m, off, len);
    }
}

static void do_wrong(struct run *r, struct model *m)
{
    uint8_t b = 0;
    uint64_t h;
    arm(r->kind, 0, false);
    assert_int_equal(gpu_copy_in(r->g, m->handle, m->bytes, &b, 1, NULL), ST_EINVAL);
    assert_int_equal(gpu_copy_out(r->g, m->handle, UINT64_MAX, &b, 2, NULL), ST_EINVAL);
    assert_int_equal(gpu_alloc(r->g, 0, &h, NULL), ST_EINVAL);
    for (size_t i = 0; i < r->stales && i < 64; i++)
        assert_int_equal(gpu_copy_out(r->g, r->stale[i], 0, &b, 1, NULL), ST_ENOENT);
}

static void step(struct run *r)
{
    static void (*const ops[])(struct run *, struct model *) = {
        do_write, do_write, do_read, do_read, do_copy, do_copy, do_free, do_kernel, do_wrong};
    struct model *m = &r->m[rnd(BUFFERS)];
    if (rnd(4) == 0)
        arm(r->kind, rnd(6) + 1, rnd(3) == 0);
    if (!m->handle)
        do_alloc(r, m);
    else
        ops[rnd(sizeof ops / sizeof ops[0])](r, m);
    arm(r->kind, 0, false);
}

static void test_random(void **state)
{
    struct fix *f = *state;
    struct gpu *g = dev(state);
    struct run *r = __real_calloc(1, sizeof *r);
    struct gpu_usage u;
    const char *n = getenv("STRATA_GPU_RANDOM"), *s = getenv("STRATA_GPU_SEED");
    long steps = n ? atol(n) : 10000;
    r->g = g;
    r->kind = kind_of(f);
    r->scratch = __real_malloc(MAX_BYTES + 8);
    state_ = s ? strtoull(s, NULL, 0) : 42;
    if (r->kind == VULKAN)
        vk_patch(g);
    for (long i = 0; i < steps; i++)
        step(r);
    for (int i = 0; i < BUFFERS; i++)
        if (r->m[i].handle) {
            verify(r, &r->m[i]);
            do_free(r, &r->m[i]);
        }
    gpu_usage(g, &u);
    assert_int_equal(u.allocated_bytes, 0);
    assert_int_equal(u.buffers, 0);
    assert_false(u.lost);
    print_message("%s: %ld steps, %ld operations failed as injected\n", f->backend, steps, r->failed);
    assert_true(r->failed > 50 || r->kind == CPU);
    free(r->scratch);
    free(r);
    fix_teardown(state);
    assert_nothing_left(kind_of(f));
}

/* Open, allocate, copy, run a kernel, close: with the n-th call failing, for every n until none fails. */
static int story(struct fix *f, bool host, long n)
{
    struct gpu_cfg cfg = {.backends = f->backend, .cuda_library = f->library, .cpu_memory_bytes = 64 * MIB};
    struct gpu_set *s =
        f->set; /* Vulkan's is made once: loading the driver takes long, and its faults are its own */
    struct gpu *g = NULL;
    uint64_t a = 0, b = 0, sum;
    uint8_t x[100] = {1, 2, 3};
    struct gpu_exec k = {.kernel = "checksum", .spans = 1};
    arm(kind_of(f), n, host);
    int rc = s ? ST_OK : gpu_set_new(&s, &cfg, NULL);
    if (rc == ST_OK && gpu_set_count(s) == 0)
        rc = ST_ENOENT; /* a driver that does not answer is a driver that is not there */
    if (rc == ST_OK)
        rc = gpu_open(&g, s, 0, NULL);
    if (rc == ST_OK && kind_of(f) == VULKAN)
        vk_patch(g);
    if (rc == ST_OK && (rc = gpu_alloc(g, 5000, &a, NULL)) == ST_OK &&
        (rc = gpu_alloc(g, 40 * MIB, &b, NULL)) == ST_OK &&
        (rc = gpu_copy_in(g, a, 7, x, sizeof x, NULL)) == ST_OK &&
        (rc = gpu_copy(g, b, 0, g, a, 0, 200, NULL)) == ST_OK) {
        k.span[0] = (struct gpu_span){b, 0, 4096};
        if (kind_of(f) != VULKAN) /* compiling its kernel each time takes long; test_random runs it */
            rc = gpu_exec(g, &k, &sum, NULL);
    }
    arm(kind_of(f), 0, false);
    gpu_close(g);
    if (s != f->set)
        gpu_set_free(s);
    assert_nothing_left(kind_of(f));
    return rc;
}

static void test_every_allocation(void **state)
{
    struct fix *f = *state;
    int refused = 0;
    struct gpu_cfg cfg = {.backends = f->backend};
    if (kind_of(f) == VULKAN)
        assert_int_equal(gpu_set_new(&f->set, &cfg, NULL), ST_OK);
    if (story(f, false, 0) == ST_ENOENT) {
        gpu_set_free(f->set);
        f->set = NULL;
        skip();
    }
    for (int host = 0; host < 2; host++)
        for (long n = 1; n < 400; n++) {
            long before = host_fired + vk_fired + (kind_of(f) == CUDA ? cuda_lib()->fired : 0);
            int rc = story(f, host, n);
            long after = host_fired + vk_fired + (kind_of(f) == CUDA ? cuda_lib()->fired : 0);
            refused += rc < 0;
            if (after == before) {
                assert_int_equal(rc, ST_OK); /* past the last call: nothing failed */
                break;
            }
        }
    gpu_set_free(f->set);
    f->set = NULL;
    print_message("%s: %d single faults were refused and cleaned up\n", f->backend, refused);
    assert_true(refused >= 2);
}

/* A sticky error is the end of the device, not of the process; a hang is too, and nothing is freed under it.
 */
static void test_cuda_end(void **state)
{
    struct fix *f = *state;
    struct gpu_usage u;
    uint64_t h;
    uint8_t x = 1;
    struct err e = {0};
    assert_int_equal(gpu_alloc(f->g, 100, &h, NULL), ST_OK);
    struct fake_cuda *c = cuda_lib();
    c->countdown = 1, c->code = 700, c->sticky = 1;
    assert_int_equal(gpu_copy_in(f->g, h, 0, &x, 1, &e), ST_EIO);
    assert_non_null(strstr(e.text, "illegal address"));
    c->countdown = 0;
    assert_int_equal(gpu_copy_out(f->g, h, 0, &x, 1, &e), ST_EIO);
    assert_non_null(strstr(e.text, "lost"));
    gpu_usage(f->g, &u);
    assert_true(u.lost);
    fix_teardown(state);
    c->sticky = 0;
    f->wait_ns = 20 * 1000 * 1000;
    assert_int_equal(open_dev(f), 0); /* a new one works */
    assert_int_equal(gpu_alloc(f->g, 100, &h, NULL), ST_OK);
    c->hang = 1;
    assert_int_equal(gpu_copy_in(f->g, h, 0, &x, 1, &e), ST_EDEADLINE);
    long alive = c->allocations;
    gpu_usage(f->g, &u);
    assert_true(u.lost);
    assert_int_equal(gpu_free(f->g, h, NULL), ST_OK);
    assert_int_equal(c->allocations, alive); /* the device may still write there */
    c->hang = 0;
    f->wait_ns = 0;
}

static struct fix cpu = {.backend = "cpu"}, vulkan = {.backend = "vulkan"},
                  cut = {.backend = "vulkan", .extent = 1 << 16},
                  fake = {.backend = "cuda", .library = FAKE_CUDA};

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_random, cpu),
        T(test_random, vulkan),
        T(test_random, cut),
        T(test_random, fake),
        {"test_every_allocation (cpu)", test_every_allocation, NULL, NULL, &cpu},
        {"test_every_allocation (vulkan)", test_every_allocation, NULL, NULL, &vulkan},
        {"test_every_allocation (fake)", test_every_allocation, NULL, NULL, &fake},
        T(test_cuda_end, fake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
