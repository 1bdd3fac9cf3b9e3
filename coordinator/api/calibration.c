#include "coordinator/api/calibration.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"

static struct calibration *find(const struct coord *c, const char *device)
{
    for (struct calibration *k = c->calibrations; k; k = k->next)
        if (!strcmp(k->device, device))
            return k;
    return NULL;
}

static int put(struct coord *c, const char *device, double memory, double compute)
{
    struct calibration *k = find(c, device);
    if (!k) {
        if (!(k = calloc(1, sizeof *k)))
            return ST_ENOMEM;
        str_copy(k->device, sizeof k->device, device);
        k->next = c->calibrations;
        c->calibrations = k;
    }
    k->memory = memory;
    k->compute = compute;
    return ST_OK;
}

static bool sane(double v)
{
    return v >= 0.99 * CALIBRATION_MIN && v <= 1.01 * CALIBRATION_MAX;
}

static int take(void *arg, const struct store_calibration *r)
{
    return sane(r->memory) && sane(r->compute) ? put(arg, r->device, r->memory, r->compute) : ST_OK;
}

int calibrations_load(struct coord *c, struct err *e)
{
    return store_load_calibrations(c->store, take, c, e);
}

void calibrations_fini(struct coord *c)
{
    while (c->calibrations) {
        struct calibration *k = c->calibrations;
        c->calibrations = k->next;
        free(k);
    }
}

void calibration_of(const struct coord *c, const char *device, double *memory, double *compute)
{
    const struct calibration *k = find(c, device);
    *memory = k ? k->memory : 1;
    *compute = k ? k->compute : 1;
}

void calibration_apply(const struct coord *c, const char *node, struct topo_device *d)
{
    char id[sizeof d->id];
    double memory, compute;
    snprintf(id, sizeof id, "%s/%s", node, d->local_id);
    calibration_of(c, id, &memory, &compute);
    d->bytes_per_s *= memory;
    d->flops_per_s *= compute;
}

int calibration_set(struct coord *c, const char *device, double memory, double compute)
{
    double was_memory, was_compute;
    struct topo_node *n;
    calibration_of(c, device, &was_memory, &was_compute);
    int rc = put(c, device, memory, compute);
    struct topo_device *d = topo_device(c->topo, device, &n);
    if (rc == ST_OK && d) {
        d->bytes_per_s *= memory / was_memory;
        d->flops_per_s *= compute / was_compute;
    }
    return rc;
}

void calibrations_forget(struct coord *c, const char *node)
{
    size_t n = strlen(node);
    for (struct calibration **at = &c->calibrations, *k; (k = *at);) {
        if (strncmp(k->device, node, n) || k->device[n] != '/') {
            at = &k->next;
            continue;
        }
        *at = k->next;
        free(k);
    }
}
