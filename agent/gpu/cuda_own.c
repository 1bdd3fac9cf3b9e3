/* CUDA: kernels of one's own, from PTX that agent/kernel has looked at. Never run on hardware. */
#include <string.h>

#include "agent/gpu/cuda_priv.h"

static int launch(struct cuda_dev *d, cu_function f, const struct gpu_own *o, struct err *e)
{
    const struct gpu_program *p = o->program;
    uint64_t value[GPU_OWN_SPANS + GPU_OWN_SCALARS]; /* a parameter of less than 64 bits takes the low ones */
    void *args[GPU_OWN_SPANS + GPU_OWN_SCALARS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->spans; i++)
        value[n++] = ((const struct cuda_mem *)o->part[i].mem)->p + o->part[i].off;
    for (uint32_t i = 0; i < p->scalars; i++)
        value[n++] = p->scalar[i];
    for (uint32_t i = 0; i < n; i++)
        args[i] = &value[i];
    int r = d->api->launch(f, p->groups[0], p->groups[1], p->groups[2], p->threads[0], p->threads[1],
                           p->threads[2], 0, d->lane[CUDA_WORK], args, NULL);
    if (r != CU_OK)
        return cuda_error(r, d->id, "starting a kernel", e);
    uint64_t usual = d->wait_ns;
    d->wait_ns = p->deadline_ns;
    int rc = cuda_settle(d, CUDA_WORK, e);
    d->wait_ns = usual;
    return rc;
}

int cuda_run(void *dev, const struct gpu_own *o, struct err *e)
{
    struct cuda_dev *d = dev;
    cu_module m = NULL;
    cu_function f = NULL;
    int rc = cuda_enter(d, e);
    if (rc < 0)
        return rc;
    int r = d->api->module_load(&m, o->code, 0, NULL, NULL);
    if (r != CU_OK) {
        rc = cuda_error(r, d->id, "compiling a kernel", e);
        return gpu_fatal(rc) || rc == ST_ERESOURCE || rc == ST_ENOMEM ? rc : (e->code = ST_EINVAL);
    }
    r = d->api->function(&f, m, o->program->entry);
    if (r == CU_OK)
        rc = launch(d, f, o, e);
    else
        rc = err_set(e, ST_ENOENT, "%s: the module has no kernel '%s'", d->id, o->program->entry);
    if (!gpu_fatal(rc))
        (void)d->api->module_free(m);
    return rc;
}
