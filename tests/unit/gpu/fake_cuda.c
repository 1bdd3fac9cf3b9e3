/* See fake_cuda.h. One thread at a time, as the tests use it. */
#include "tests/unit/gpu/fake_cuda.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "agent/gpu/cuda_api.h"

struct fake_cuda fake_cuda;
static int stuck; /* the sticky error, once it came */

#define MAX_ALLOCS 8192
static struct {
    uint8_t *p;
    size_t n;
} live[MAX_ALLOCS];

/* What a driver keeps for its process is freed when the driver goes, also what a hung device never gave back.
 */
static struct kept {
    struct kept *prev, *next;
} kept = {&kept, &kept};

static void *keep(size_t n)
{
    struct kept *k = malloc(sizeof *k + n);
    if (!k)
        abort();
    *k = (struct kept){&kept, kept.next};
    k->next->prev = kept.next = k;
    return k + 1;
}

static void drop(void *p)
{
    if (!p)
        return;
    struct kept *k = (struct kept *)p - 1;
    k->prev->next = k->next;
    k->next->prev = k->prev;
    free(k);
}

__attribute__((destructor)) static void unload(void)
{
    while (kept.next != &kept)
        drop(kept.next + 1);
}

static int fault(const char *name)
{
    struct fake_cuda *f = &fake_cuda;
    if (stuck)
        return stuck;
    if (f->countdown == 0 || (f->fail[0] && strcmp(f->fail, name) != 0) || --f->countdown > 0)
        return CU_OK;
    f->fired++;
    if (f->sticky)
        stuck = f->code;
    return f->code;
}
#define FAULT                                                                                                \
    do {                                                                                                     \
        int r_ = fault(__func__);                                                                            \
        if (r_ != CU_OK)                                                                                     \
            return r_;                                                                                       \
    } while (0)

static int inside(cu_ptr p, size_t n)
{
    for (int i = 0; i < MAX_ALLOCS; i++)
        if (live[i].p && p >= (uintptr_t)live[i].p && p - (uintptr_t)live[i].p <= live[i].n &&
            n <= live[i].n - (p - (uintptr_t)live[i].p))
            return 1;
    fake_cuda.bad++;
    return 0;
}

int cuInit(unsigned f)
{
    (void)f;
    stuck = 0;
    FAULT;
    return CU_OK;
}
int cuDriverGetVersion(int *v)
{
    FAULT;
    *v = 12080;
    return CU_OK;
}
int cuDeviceGetCount(int *n)
{
    FAULT;
    *n = 2;
    return CU_OK;
}
int cuDeviceGet(cu_device *d, int i)
{
    FAULT;
    *d = i;
    return CU_OK;
}
int cuDeviceGetName(char *out, int n, cu_device d)
{
    FAULT;
    strncpy(out, d ? "Stand-in GPU B" : "Stand-in GPU A", (size_t)n);
    return CU_OK;
}
int cuDeviceTotalMem_v2(size_t *n, cu_device d)
{
    (void)d;
    FAULT;
    *n = (size_t)1 << 30;
    return CU_OK;
}
int cuDeviceGetAttribute(int *v, int which, cu_device d)
{
    (void)d;
    FAULT;
    *v = which == CU_ATTR_PROCESSORS ? 132 : which == CU_ATTR_MAJOR ? 9 : which == CU_ATTR_MEMORY_POOLS;
    return CU_OK;
}
int cuDeviceGetUuid(cu_uuid *u, cu_device d)
{
    FAULT;
    memset(u->bytes, 0x11 + d, 16);
    return CU_OK;
}
int cuDevicePrimaryCtxSetFlags_v2(cu_device d, unsigned f)
{
    (void)d, (void)f;
    FAULT;
    return CU_OK;
}
int cuDevicePrimaryCtxRetain(cu_context *c, cu_device d)
{
    FAULT;
    *c = (cu_context)(uintptr_t)(0x1000 + d);
    fake_cuda.contexts++;
    return CU_OK;
}
int cuDevicePrimaryCtxRelease_v2(cu_device d)
{
    (void)d;
    fake_cuda.contexts--;
    return CU_OK;
}
int cuCtxSetCurrent(cu_context c)
{
    (void)c;
    return CU_OK;
}

static int take(cu_ptr *p, size_t n)
{
    for (int i = 0; i < MAX_ALLOCS; i++)
        if (!live[i].p) {
            live[i].p = keep(n);
            live[i].n = n;
            memset(live[i].p, 0xa5, n); /* a driver may hand out anything */
            *p = (uintptr_t)live[i].p;
            fake_cuda.allocations++;
            return CU_OK;
        }
    return CU_E_OUT_OF_MEMORY;
}
static int give(cu_ptr p)
{
    for (int i = 0; i < MAX_ALLOCS; i++)
        if (live[i].p && (uintptr_t)live[i].p == p) {
            drop(live[i].p);
            live[i].p = NULL;
            fake_cuda.allocations--;
            return CU_OK;
        }
    fake_cuda.bad++;
    return CU_E_INVALID_VALUE;
}
int cuMemAlloc_v2(cu_ptr *p, size_t n)
{
    FAULT;
    return take(p, n);
}
int cuMemFree_v2(cu_ptr p)
{
    return give(p);
}
int cuMemAllocAsync(cu_ptr *p, size_t n, cu_stream s)
{
    (void)s;
    FAULT;
    return take(p, n);
}
int cuMemFreeAsync(cu_ptr p, cu_stream s)
{
    (void)s;
    return give(p);
}
int cuDeviceGetDefaultMemPool(cu_pool *p, cu_device d)
{
    (void)d;
    FAULT;
    *p = (cu_pool)(uintptr_t)1;
    return CU_OK;
}
int cuMemPoolSetAttribute(cu_pool p, int a, void *v)
{
    (void)p, (void)a, (void)v;
    FAULT;
    return CU_OK;
}
int cuMemHostAlloc(void **p, size_t n, unsigned f)
{
    (void)f;
    FAULT;
    *p = keep(n);
    fake_cuda.pinned++;
    return CU_OK;
}
int cuMemFreeHost(void *p)
{
    drop(p);
    fake_cuda.pinned--;
    return CU_OK;
}
int cuMemHostRegister_v2(void *p, size_t n, unsigned f)
{
    (void)p, (void)n, (void)f;
    FAULT;
    fake_cuda.registered++;
    return CU_OK;
}
int cuMemHostUnregister(void *p)
{
    (void)p;
    fake_cuda.registered--;
    return CU_OK;
}
int cuMemcpyHtoDAsync_v2(cu_ptr d, const void *s, size_t n, cu_stream q)
{
    (void)q;
    FAULT;
    if (!inside(d, n))
        return CU_E_INVALID_VALUE;
    memcpy((void *)(uintptr_t)d, s, n);
    return CU_OK;
}
int cuMemcpyDtoHAsync_v2(void *d, cu_ptr s, size_t n, cu_stream q)
{
    (void)q;
    FAULT;
    if (!inside(s, n))
        return CU_E_INVALID_VALUE;
    memcpy(d, (void *)(uintptr_t)s, n);
    return CU_OK;
}
static int d2d(cu_ptr d, cu_ptr s, size_t n)
{
    if (!inside(d, n) || !inside(s, n))
        return CU_E_INVALID_VALUE;
    memcpy((void *)(uintptr_t)d, (void *)(uintptr_t)s, n);
    return CU_OK;
}
int cuMemcpyDtoDAsync_v2(cu_ptr d, cu_ptr s, size_t n, cu_stream q)
{
    (void)q;
    FAULT;
    return d2d(d, s, n);
}
int cuMemcpyPeerAsync(cu_ptr d, cu_context dc, cu_ptr s, cu_context sc, size_t n, cu_stream q)
{
    (void)q;
    FAULT;
    fake_cuda.bad += !dc || !sc || dc == sc;
    return d2d(d, s, n);
}
int cuMemsetD32Async(cu_ptr d, unsigned v, size_t n, cu_stream q)
{
    (void)q;
    FAULT;
    if (!inside(d, n * 4))
        return CU_E_INVALID_VALUE;
    for (size_t i = 0; i < n; i++)
        memcpy((uint8_t *)(uintptr_t)d + 4 * i, &v, 4);
    return CU_OK;
}
int cuStreamCreate(cu_stream *s, unsigned f)
{
    FAULT;
    fake_cuda.bad += f != CU_STREAM_NON_BLOCKING;
    *s = keep(1);
    fake_cuda.streams++;
    return CU_OK;
}
int cuStreamDestroy_v2(cu_stream s)
{
    drop(s);
    fake_cuda.streams--;
    return CU_OK;
}
int cuEventCreate(cu_event *v, unsigned f)
{
    (void)f;
    FAULT;
    *v = keep(1);
    fake_cuda.events++;
    return CU_OK;
}
int cuEventDestroy_v2(cu_event v)
{
    drop(v);
    fake_cuda.events--;
    return CU_OK;
}
int cuEventRecord(cu_event v, cu_stream s)
{
    (void)v, (void)s;
    FAULT;
    return CU_OK;
}
int cuEventQuery(cu_event v)
{
    (void)v;
    FAULT;
    return fake_cuda.hang ? CU_E_NOT_READY : CU_OK;
}

/* ---- kernels: every thread of a block is a coroutine, a barrier is its turn's end ---- */

typedef uint32_t uint;
typedef unsigned long ulong;
typedef uint8_t uchar;
#define LANES 8 /* enough for every step of a reduction; the real number only costs time */
#define THREADS 8u
static ucontext_t scheduler, fiber[LANES];
static uint8_t stacks[LANES][16384];
static struct {
    uint tid, block, blocks, block_y;
} me;

static void barrier(void)
{
    swapcontext(&fiber[me.tid], &scheduler);
}
static float as_f(uint u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
#define KERNEL static
#define GLOBAL
#define SHARED static
#define TID me.tid
#define NTID ((uint)LANES)
#define BLOCK me.block
#define BLOCKS me.blocks
#define BLOCK_Y me.block_y
#define BARRIER() barrier()
#define FMA(x, m, a) fmaf(x, m, a)
#define AS_FLOAT(u) as_f(u)
#include "agent/gpu/cuda_kernels.cl"

static int which;
static void **args;
static int finished[LANES];
#define ARG(i, type) (*(type *)args[i])

static void lane_run(void)
{
    uint t = me.tid;
    if (which == 0)
        strata_checksum(ARG(0, const uint *), ARG(1, ulong), ARG(2, uint), ARG(3, uint *));
    else if (which == 1)
        strata_axpb(ARG(0, float *), ARG(1, ulong), ARG(2, uint), ARG(3, float), ARG(4, float));
    else if (which == 2)
        strata_fma_rate(ARG(0, float *), ARG(1, uint) & 1, ARG(2, float),
                        ARG(3, float)); /* a rate is not its job */
    else
        strata_matmul(ARG(0, float *), ARG(1, const uchar *), ARG(2, const float *), ARG(3, ulong),
                      ARG(4, uint), ARG(5, uint), ARG(6, uint));
    finished[t] = 1;
}

static void block_run(void)
{
    for (uint t = 0; t < LANES; t++) {
        getcontext(&fiber[t]);
        fiber[t].uc_stack.ss_sp = stacks[t];
        fiber[t].uc_stack.ss_size = sizeof stacks[t];
        fiber[t].uc_link = &scheduler;
        finished[t] = 0;
        makecontext(&fiber[t], lane_run, 0);
    }
    for (int left = LANES; left > 0;) {
        left = 0;
        for (uint t = 0; t < LANES; t++)
            if (!finished[t]) {
                me.tid = t;
                swapcontext(&scheduler, &fiber[t]);
                left += !finished[t];
            }
    }
}

int cuModuleLoadDataEx(cu_module *m, const void *image, unsigned n, int *o, void **v)
{
    (void)n, (void)o, (void)v;
    FAULT;
    if (!strstr(image, ".version 6.4") || !strstr(image, ".target sm_60"))
        return CU_E_UNSUPPORTED_PTX;
    *m = (cu_module)(uintptr_t)image;
    fake_cuda.modules++;
    fake_cuda.hang = fake_cuda.hang == 2 ? 0 : fake_cuda.hang; /* what a user's kernel of before left */
    return CU_OK;
}
int cuModuleUnload(cu_module m)
{
    (void)m;
    fake_cuda.modules--;
    return CU_OK;
}
/* ---- kernels of a user's own: what they do is agreed on by name ---- */

static const char *const user_names[] = {"user_scale", "user_forever", "user_fault"};

static int user_launch(int i, void **a, uint64_t threads)
{
    if (i == 1)
        fake_cuda.hang = 2;
    if (i == 2)
        return stuck = CU_E_ILLEGAL_ADDRESS;
    if (i != 0)
        return CU_OK;
    float *y = *(float **)a[0], *x = *(float **)a[1], m = *(float *)a[3], add = *(float *)a[4];
    unsigned n = *(unsigned *)a[2];
    if (!inside((uintptr_t)y, n * 4ull) || !inside((uintptr_t)x, n * 4ull))
        return stuck = CU_E_ILLEGAL_ADDRESS;
    for (unsigned k = 0; k < n && k < threads; k++)
        y[k] = m * x[k] + add;
    return CU_OK;
}

int cuModuleGetFunction(cu_function *f, cu_module m, const char *name)
{
    static const char *const names[] = {"strata_checksum", "strata_axpb", "strata_fma_rate", "strata_matmul"};
    char entry[64] = ".visible .entry ";
    FAULT;
    strncat(entry, name, 40);
    for (uintptr_t i = 0; i < 4; i++)
        if (strcmp(names[i], name) == 0 && strstr((const char *)m, entry)) {
            *f = (cu_function)(i + 1);
            return CU_OK;
        }
    for (uintptr_t i = 0; i < 3; i++)
        if (strcmp(user_names[i], name) == 0 && strstr((const char *)m, entry)) {
            *f = (cu_function)(i + 10);
            return CU_OK;
        }
    return CU_E_NOT_FOUND;
}
int cuLaunchKernel(cu_function f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned sh, cu_stream s, void **a, void **extra)
{
    (void)s, (void)extra;
    FAULT;
    if ((uintptr_t)f >= 10)
        return user_launch((int)(uintptr_t)f - 10, a, (uint64_t)x * y * z * bx * by * bz);
    if (!f || !x || !y || z != 1 || bx != 128 || by != 1 || bz != 1 || sh || y > 65535) {
        fake_cuda.bad++;
        return CU_E_INVALID_VALUE;
    }
    which = (int)(uintptr_t)f - 1;
    args = a;
    me.blocks = which == 2 ? 1 : x;
    for (me.block_y = 0; me.block_y < y; me.block_y++)
        for (me.block = 0; me.block < me.blocks; me.block++)
            block_run();
    return CU_OK;
}
