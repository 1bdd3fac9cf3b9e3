/* See executor.h. A request was checked for shape by the main thread; here it is checked against the ring. */
#include "agent/worker/executor.h"

#include <errno.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/str.h"

#define DIGEST_BYTES (4u << 20)

struct executor {
    struct executor_cfg cfg;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct wire_req queue[WORKER_MAX_PENDING];
    size_t head, count;        /* under lock */
    _Atomic(struct gpu *) gpu; /* NULL until first used; set under `use` */
    pthread_mutex_t use;       /* whoever works with the device; two are taken in the order of their index */
    uint8_t *scratch;          /* DIGEST_BYTES, from the first digest on */
};

void executor_reply(int control, struct wire_rep *rep)
{
    ssize_t n;
    rep->magic = WIRE_REP_MAGIC;
    do
        n = send(control, rep, sizeof *rep, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof *rep)
        _exit(0); /* nobody is left to work for; the kernel frees what we hold */
}

static int slot_check(const struct executor *x, const struct wire_req *r, uint8_t **data, struct err *e)
{
    if (r->slot >= x->cfg.slots)
        return err_set(e, ST_EINVAL, "there is no staging slot %u, only %u", r->slot, x->cfg.slots);
    if (r->len > x->cfg.slot_bytes)
        return err_set(e, ST_EINVAL, "%llu bytes do not fit a staging slot of %u", (unsigned long long)r->len,
                       x->cfg.slot_bytes);
    *data = x->cfg.ring + (size_t)r->slot * x->cfg.slot_bytes;
    return ST_OK;
}

/* Hashes what the device holds now: every byte is copied out of its memory. */
static int digest(struct executor *x, struct gpu *g, const struct wire_req *r, uint8_t out[32], struct err *e)
{
    uint64_t size = 0, handle = WIRE_LOCAL(r->handle);
    if (gpu_size(g, handle, &size) < 0)
        return err_set(e, ST_ENOENT, "buffer %llx is not there: freed before, or never allocated",
                       (unsigned long long)r->handle);
    if (r->offset > size || r->len > size - r->offset)
        return err_set(e, ST_EINVAL, "a digest over %llu bytes from %llu on reaches past the buffer's %llu",
                       (unsigned long long)r->len, (unsigned long long)r->offset, (unsigned long long)size);
    if (!x->scratch && !(x->scratch = malloc(DIGEST_BYTES)))
        return err_set(e, ST_ENOMEM, "no memory to compute a digest");
    EVP_MD_CTX *m = EVP_MD_CTX_new();
    int rc = m && EVP_DigestInit_ex(m, EVP_sha256(), NULL) == 1
                 ? ST_OK
                 : err_set(e, ST_ENOMEM, "no memory for SHA-256");
    for (uint64_t at = 0; rc == ST_OK && at < r->len;) {
        uint64_t n = r->len - at < DIGEST_BYTES ? r->len - at : DIGEST_BYTES;
        rc = gpu_copy_out(g, handle, r->offset + at, x->scratch, n, e);
        if (rc == ST_OK && EVP_DigestUpdate(m, x->scratch, n) != 1)
            rc = err_set(e, ST_EINTERNAL, "SHA-256 failed");
        at += n;
    }
    if (rc == ST_OK && EVP_DigestFinal_ex(m, out, NULL) != 1)
        rc = err_set(e, ST_EINTERNAL, "SHA-256 failed");
    EVP_MD_CTX_free(m);
    return rc;
}

/* The device, opened at its first use. Under x->use. */
static int device_need(struct executor *x, struct gpu **g, struct err *e)
{
    *g = atomic_load(&x->gpu);
    if (*g)
        return ST_OK;
    int rc = gpu_open(g, x->cfg.set, x->cfg.device, e);
    if (rc < 0)
        return rc;
    /* So that bytes are copied once; a device or driver that cannot copies twice, as before. */
    (void)!gpu_pin(*g, x->cfg.ring, (uint64_t)x->cfg.slots * x->cfg.slot_bytes, NULL);
    atomic_store(&x->gpu, *g);
    return ST_OK;
}

static int copy(struct executor *x, const struct wire_req *r, struct err *e)
{
    struct executor *to = x->cfg.peers[WIRE_DEVICE_OF(r->handle)]; /* the main thread checked the index */
    struct executor *first = to->cfg.device < x->cfg.device ? to : x, *second = first == x ? to : x;
    struct gpu *dst, *src;
    pthread_mutex_lock(&first->use);
    if (second != first)
        pthread_mutex_lock(&second->use);
    int rc = device_need(x, &src, e);
    if (rc == ST_OK && (rc = device_need(to, &dst, e)) == ST_OK)
        rc = gpu_copy(dst, WIRE_LOCAL(r->handle), r->offset, src, WIRE_LOCAL(r->src_handle), r->src_offset,
                      r->len, e);
    if (second != first)
        pthread_mutex_unlock(&second->use);
    pthread_mutex_unlock(&first->use);
    return rc;
}

static int kernel(struct gpu *g, const struct wire_req *r, uint64_t *value, struct err *e)
{
    struct gpu_exec x = r->u.exec;
    for (uint32_t i = 0; i < x.spans && i < GPU_MAX_SPANS; i++) {
        if (WIRE_DEVICE_OF(x.span[i].handle) != r->device)
            return err_set(e, ST_EINVAL, "argument %u of %.*s is a buffer of another device", i,
                           GPU_KERNEL_NAME - 1, x.kernel);
        x.span[i].handle = WIRE_LOCAL(x.span[i].handle);
    }
    return gpu_exec(g, &x, value, e);
}

static int own(struct executor *x, struct gpu *g, const struct wire_req *r, struct err *e)
{
    struct gpu_program p = r->u.program;
    uint8_t *code;
    int rc = slot_check(x, r, &code, e);
    p.entry[sizeof p.entry - 1] = 0;
    for (uint32_t i = 0; i < p.spans && i < GPU_OWN_SPANS && rc == ST_OK; i++) {
        if (WIRE_DEVICE_OF(p.span[i].handle) != r->device)
            rc = err_set(e, ST_EINVAL, "argument %u of %s is a buffer of another device", i, p.entry);
        p.span[i].handle = WIRE_LOCAL(p.span[i].handle);
    }
    return rc < 0 ? rc : gpu_run(g, &p, code, r->len, e);
}

static int execute(struct executor *x, struct gpu *g, const struct wire_req *r, struct wire_rep *rep,
                   struct err *e)
{
    uint64_t handle = WIRE_LOCAL(r->handle), made = 0;
    struct gpu_rates rates = {0};
    uint8_t *data = NULL;
    int rc;
    switch ((enum wire_op)r->op) {
    case WIRE_ALLOC:
        if ((rc = gpu_alloc(g, r->len, &made, e)) == ST_OK)
            rep->handle = WIRE_HANDLE(x->cfg.device, made);
        return rc;
    case WIRE_FREE:
        return gpu_free(g, handle, e);
    case WIRE_WRITE:
        rc = slot_check(x, r, &data, e);
        return rc < 0 ? rc : gpu_copy_in(g, handle, r->offset, data, r->len, e);
    case WIRE_READ:
        rc = slot_check(x, r, &data, e);
        return rc < 0 ? rc : gpu_copy_out(g, handle, r->offset, data, r->len, e);
    case WIRE_DIGEST:
        return digest(x, g, r, rep->sha256, e);
    case WIRE_MEASURE:
        rc = gpu_measure(g, &rates, e);
        rep->memory = rates.memory_bytes_per_s;
        rep->flops = rates.compute_flops_per_s;
        return rc;
    case WIRE_EXEC:
        return kernel(g, r, &rep->value, e);
    case WIRE_RUN:
        return own(x, g, r, e);
    case WIRE_SYNC:
        return gpu_sync(g, e);
    case WIRE_STAT:
    case WIRE_MONITOR:
    case WIRE_COPY:
        break; /* answered elsewhere */
    }
    return err_set(e, ST_EINTERNAL, "operation %u reached a device by mistake", r->op);
}

static void serve(struct executor *x, const struct wire_req *r)
{
    struct wire_rep rep = {.kind = WIRE_DONE, .id = r->id};
    struct err e = {0};
    struct gpu *g;
    int rc;
    if (r->op == WIRE_COPY) {
        rc = copy(x, r, &e);
    } else {
        pthread_mutex_lock(&x->use);
        rc = device_need(x, &g, &e);
        if (rc == ST_OK)
            rc = execute(x, g, r, &rep, &e);
        pthread_mutex_unlock(&x->use);
    }
    rep.status = rc;
    if (rc < 0)
        str_copy(rep.why, sizeof rep.why, e.text);
    executor_reply(x->cfg.control, &rep);
}

static void *run(void *arg)
{
    struct executor *x = arg;
    for (;;) {
        pthread_mutex_lock(&x->lock);
        while (x->count == 0)
            pthread_cond_wait(&x->more, &x->lock);
        struct wire_req r = x->queue[x->head];
        x->head = (x->head + 1) % WORKER_MAX_PENDING;
        x->count--;
        pthread_mutex_unlock(&x->lock);
        serve(x, &r);
    }
    return NULL;
}

int executor_new(struct executor **out, const struct executor_cfg *cfg, struct err *e)
{
    pthread_t id;
    struct executor *x = calloc(1, sizeof *x);
    if (!x)
        return err_set(e, ST_ENOMEM, "no memory for the thread of device %u", cfg->device);
    x->cfg = *cfg;
    pthread_mutex_init(&x->lock, NULL);
    pthread_mutex_init(&x->use, NULL);
    pthread_cond_init(&x->more, NULL);
    int rc = pthread_create(&id, NULL, run, x);
    if (rc != 0) {
        free(x);
        return err_errno(e, rc, "cannot start the thread of device %u", cfg->device);
    }
    pthread_detach(id);
    *out = x;
    return ST_OK;
}

int executor_post(struct executor *x, const struct wire_req *r)
{
    int rc = ST_EAGAIN;
    pthread_mutex_lock(&x->lock);
    if (x->count < WORKER_MAX_PENDING) {
        x->queue[(x->head + x->count++) % WORKER_MAX_PENDING] = *r;
        pthread_cond_signal(&x->more);
        rc = ST_OK;
    }
    pthread_mutex_unlock(&x->lock);
    return rc;
}

void executor_usage(struct executor *x, struct worker_usage *out)
{
    struct gpu *g = atomic_load(&x->gpu);
    struct gpu_usage u = {.available_bytes = gpu_set_info(x->cfg.set, x->cfg.device)->limit_bytes};
    if (g)
        gpu_usage(g, &u);
    *out = (struct worker_usage){.allocated_bytes = u.allocated_bytes,
                                 .available_bytes = u.available_bytes,
                                 .buffers = u.buffers,
                                 .lost = u.lost};
}
