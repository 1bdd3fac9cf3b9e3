/*
 * How long the device takes over a resident layer: products of its bytes, as they lie there, with vectors of
 * ones. What the bytes mean does not matter for the time; which layout is taken for them follows from how
 * many operations the layer does for each byte it reads. The way to the worker and back is measured beside
 * it, with a kernel that does next to nothing, and taken off.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/layers_priv.h"
#include "common/base/clock.h"

#define COLS 4096u
#define CHUNK_BYTES (16ull << 20) /* of results */
#define VECTORS_MAX 4096u
#define EMPTY_ROUNDS 5u
#define ROUNDS_MAX 100u
#define ENOUGH_NS (2 * NS_PER_S) /* no further round after so long */

enum step { STEP_X, STEP_Y, STEP_ONES, STEP_EMPTY, STEP_RUN, STEP_FREE_X, STEP_FREE_Y };

struct timing {
    struct layer *l;
    layers_time_fn fn;
    void *arg;
    struct layers_time_ask ask;
    enum gpu_dtype type;
    uint32_t cols, n;
    uint64_t row_bytes, rows, chunk_rows, at; /* at: rows done in this round */
    uint64_t x, y;                            /* buffers; 0 = none */
    enum step step;
    unsigned empties, round;
    uint64_t asked_ns, empty_ns, round_ns, best_ns, total_ns, begun_ns;
    int rc;
    struct err e;
};

static const struct {
    enum gpu_dtype type;
    uint32_t block, bytes; /* so many weights in so many bytes */
} layouts[] = {{GPU_F32, 1, 4}, {GPU_F16, 1, 2}, {GPU_Q8_0, 32, 34}, {GPU_Q4_0, 32, 18}};
#define LAYOUTS (sizeof layouts / sizeof *layouts)

/* Multiply-adds for each byte: with one vector by layout, beyond the densest layout by more vectors of f16.
 */
static void choose(struct timing *t, uint64_t bytes)
{
    double want = t->ask.flops / t->ask.read_bytes, best = INFINITY;
    size_t k = 1;
    t->n = 1;
    for (size_t i = 0; i < LAYOUTS; i++) {
        double off = fabs(log(want / (2.0 * layouts[i].block / layouts[i].bytes)));
        if (off < best) {
            best = off;
            k = i;
        }
    }
    if (want > 8) { /* no layout does so much for a byte: several tokens at once */
        k = 1;
        t->n = (uint32_t)fmin(VECTORS_MAX, fmax(1, round(want)));
    }
    if (bytes < layouts[k].bytes)
        k = bytes < 4 ? 1 : 0;
    t->type = layouts[k].type;
    t->cols = COLS;
    while (t->cols > layouts[k].block && (uint64_t)t->cols / layouts[k].block * layouts[k].bytes > bytes)
        t->cols /= 2;
    t->row_bytes = (uint64_t)t->cols / layouts[k].block * layouts[k].bytes;
    t->rows = bytes / t->row_bytes;
    uint64_t most = CHUNK_BYTES / 4 / t->n;
    if (most > GPU_MAX_WORK / t->n / t->cols)
        most = GPU_MAX_WORK / t->n / t->cols;
    if (most > INT32_MAX)
        most = INT32_MAX;
    most &= ~1ull; /* chunks begin on a word whatever the layout */
    t->chunk_rows = t->rows < most ? t->rows : most;
}

static void finish(struct timing *t)
{
    struct layer *l = t->l;
    const struct layers_timing r = {.best_s = (double)t->best_ns / 1e9,
                                    .mean_s = t->round > 1 ? (double)t->total_ns / (t->round - 1) / 1e9 : 0,
                                    .call_s = (double)t->empty_ns / 1e9,
                                    .bytes = t->rows * t->row_bytes,
                                    .flops = 2.0 * (double)t->rows * t->cols * t->n,
                                    .rounds = t->round ? t->round - 1 : 0};
    l->verifying--;
    bool release = !l->verifying && l->free_wanted;
    t->fn(t->arg, t->rc, &t->e, &r);
    free(t);
    if (release)
        layer_free_memory(l);
}

static void next(struct timing *t);

static void failed(struct timing *t, int rc, const struct err *e)
{
    if (t->rc == ST_OK) {
        t->rc = rc;
        t->e = *e;
    }
    t->step = STEP_FREE_X;
}

static void on_alloc(void *arg, int rc, const struct err *e, uint64_t buffer)
{
    struct timing *t = arg;
    if (rc < 0)
        failed(t, rc, e);
    else if (t->step == STEP_X)
        t->x = buffer, t->step = STEP_Y;
    else
        t->y = buffer, t->step = STEP_ONES;
    next(t);
}

static void round_over(struct timing *t)
{
    uint64_t calls = (t->rows + t->chunk_rows - 1) / t->chunk_rows, off = calls * t->empty_ns;
    uint64_t ns = t->round_ns > off ? t->round_ns - off : 1;
    if (t->round++) { /* the first one warms up */
        t->total_ns += ns;
        if (!t->best_ns || ns < t->best_ns)
            t->best_ns = ns;
    }
    t->at = t->round_ns = 0;
    if (t->round > t->ask.rounds || (t->round > 1 && clock_ns(t->l->ls->cfg.clock) - t->begun_ns > ENOUGH_NS))
        t->step = STEP_FREE_X;
}

static void on_kernel(void *arg, int rc, const struct err *e, uint64_t value)
{
    struct timing *t = arg;
    uint64_t took = clock_ns(t->l->ls->cfg.clock) - t->asked_ns;
    (void)value;
    if (rc < 0) {
        failed(t, rc, e);
    } else if (t->step == STEP_ONES) {
        t->step = STEP_EMPTY;
    } else if (t->step == STEP_EMPTY) {
        if (!t->empties++ || took < t->empty_ns)
            t->empty_ns = took;
        if (t->empties == EMPTY_ROUNDS) {
            t->step = STEP_RUN;
            t->begun_ns = clock_ns(t->l->ls->cfg.clock);
        }
    } else {
        t->round_ns += took;
        t->at += t->chunk_rows;
        if (t->at >= t->rows)
            round_over(t);
    }
    next(t);
}

static void on_freed(void *arg, int rc, const struct err *e)
{
    struct timing *t = arg;
    if (rc < 0 && t->rc == ST_OK) {
        t->rc = rc;
        t->e = *e;
    }
    if (t->step == STEP_FREE_X)
        t->x = 0;
    else
        t->y = 0;
    next(t);
}

static int fill(struct timing *t, uint64_t buffer, uint64_t len, struct err *e)
{
    struct gpu_exec x = {.kernel = "fill", .spans = 1, .scalars = 1};
    x.span[0] = (struct gpu_span){buffer, 0, len};
    x.scalar[0] = gpu_scalar_f32(1);
    return tenant_exec(t->l->tenant, &x, on_kernel, t, e);
}

static int run(struct timing *t, struct err *e)
{
    uint64_t rows = t->rows - t->at < t->chunk_rows ? t->rows - t->at : t->chunk_rows;
    struct gpu_exec x = {.kernel = "matmul", .spans = 3, .scalars = 4};
    x.span[0] = (struct gpu_span){t->y, 0, rows * t->n * 4};
    x.span[1] = (struct gpu_span){t->l->buffer, t->at * t->row_bytes, rows * t->row_bytes};
    x.span[2] = (struct gpu_span){t->x, 0, (uint64_t)t->cols * t->n * 4};
    x.scalar[0] = rows;
    x.scalar[1] = t->cols;
    x.scalar[2] = t->type;
    x.scalar[3] = t->n;
    return tenant_exec(t->l->tenant, &x, on_kernel, t, e);
}

/* What comes next is asked of the worker; a worker that refuses is dead, and its buffers with it. */
static void next(struct timing *t)
{
    struct err e = {0};
    int rc = ST_OK;
    t->asked_ns = clock_ns(t->l->ls->cfg.clock);
    switch (t->step) {
    case STEP_X:
        rc = tenant_alloc(t->l->tenant, t->l->device, (uint64_t)t->cols * t->n * 4, on_alloc, t, &e);
        break;
    case STEP_Y:
        rc = tenant_alloc(t->l->tenant, t->l->device, t->chunk_rows * t->n * 4, on_alloc, t, &e);
        break;
    case STEP_ONES:
        rc = fill(t, t->x, (uint64_t)t->cols * t->n * 4, &e);
        break;
    case STEP_EMPTY:
        rc = fill(t, t->y, 4, &e);
        break;
    case STEP_RUN:
        rc = run(t, &e);
        break;
    case STEP_FREE_X:
    case STEP_FREE_Y:
        t->step = t->x ? STEP_FREE_X : STEP_FREE_Y;
        if (t->x || t->y)
            rc = tenant_release(t->l->tenant, t->x ? t->x : t->y, on_freed, t, &e);
        else {
            finish(t);
            return;
        }
        break;
    }
    if (rc < 0) {
        failed(t, rc, &e);
        finish(t);
    }
}

int layers_time(struct layers *ls, const char *job, const char *layer, const char *device,
                const struct layers_time_ask *ask, layers_time_fn fn, void *arg, struct err *e)
{
    struct layer *l = layer_resident(ls, job, layer, device);
    if (!l)
        return err_reason(e, ST_ENOENT, "NOT_RESIDENT", "layer %s of job %s is not resident here", layer,
                          job);
    double want = fmin(ask->read_bytes, (double)l->bytes);
    if (!(ask->read_bytes >= 2) || !(want >= 2) || !(ask->flops > 0) || ask->flops > 1e30 || !ask->rounds ||
        ask->rounds > ROUNDS_MAX)
        return err_set(
            e, ST_EINVAL,
            "layer %s: to be timed it has to read at least 2 bytes, to compute, and to be run 1 to "
            "%u times",
            layer, ROUNDS_MAX);
    struct timing *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, ST_ENOMEM, "no memory to time layer %s", layer);
    *t = (struct timing){.l = l, .fn = fn, .arg = arg, .ask = *ask};
    choose(t, (uint64_t)want);
    int rc = tenant_alloc(l->tenant, l->device, (uint64_t)t->cols * t->n * 4, on_alloc, t, e);
    if (rc < 0)
        free(t);
    else
        l->verifying++;
    return rc;
}
