/* The live registry as the planner's input. */
#include <stdio.h>
#include <string.h>

#include "common/model/cluster.h"
#include "coordinator/jobs/jobs_priv.h"

bool job_device_usable(const struct topo_node *n, const struct topo_device *d)
{
    /* An unmeasured device has no place in a plan that is proved from measured rates. */
    return n->state == TOPO_CONNECTED && n->user && !n->draining && d->flops_per_s > 0 && d->bytes_per_s > 0;
}

static uint64_t held_on(const struct job *j, const char *device)
{
    uint64_t n = 0;
    for (size_t i = 0; i < j->nlayers && !job_ended(j->state); i++)
        n += strcmp(j->layers[i].device, device) ? 0 : j->layers[i].mem;
    return n;
}

static uint64_t memory_of(struct jobs *js, const struct snapshot_opts *o, const struct topo_node *n,
                          const struct topo_device *d)
{
    uint64_t own = o->own ? held_on(o->own, d->id) : 0;
    /* What a job has on a node that is being drained may stay until it is moved; nothing may come. */
    if (n->draining)
        return o->stay && n->state == TOPO_CONNECTED && n->user && d->flops_per_s > 0 && d->bytes_per_s > 0
                   ? own
                   : 0;
    if (!job_device_usable(n, d))
        return 0;
    if (o->whole)
        return d->memory_bytes;
    uint64_t bytes = topo_free_bytes(d) + own;
    for (const struct job *j = js->head; j && o->victims; j = j->next)
        if (j->victim && j != o->own)
            bytes += held_on(j, d->id);
    return bytes < d->memory_bytes ? bytes : d->memory_bytes;
}

static bool allowed(const struct policy *p, const struct topo_device *d)
{
    if (!p || !p->n_devices)
        return true;
    for (unsigned i = 0; i < p->n_devices; i++)
        if (device_match(p->devices[i], d->id))
            return true;
    return false;
}

int snapshot_build(struct jobs *js, const struct snapshot_opts *o, struct cluster **out, struct err *e)
{
    struct cluster *c;
    size_t offered = 0, n = 0;
    int rc = cluster_new(&c);
    if (rc < 0)
        return err_set(e, rc, "no memory for the planner's view of the cluster");
    for (size_t i = 0; i < topo_count(js->cfg.topo) && rc == ST_OK; i++) {
        struct topo_node *node = topo_at(js->cfg.topo, i);
        for (size_t k = 0; k < node->ndevices && rc == ST_OK; k++) {
            struct topo_device *d = &node->devices[k];
            uint64_t bytes = memory_of(js, o, node, d);
            offered++;
            if (!bytes || !allowed(o->policy, d))
                continue;
            n++;
            rc = cluster_add_device(c, d->id, node->name,
                                    &(struct cluster_device){.memory_bytes = (double)bytes,
                                                             .compute_flops_per_s = d->flops_per_s,
                                                             .memory_bytes_per_s = d->bytes_per_s,
                                                             .speed_factor = 1});
        }
    }
    if (rc == ST_OK && js->cfg.links)
        rc = js->cfg.links(js->cfg.links_ctx, c);
    if (rc == ST_OK && n)
        rc = cluster_seal(c);
    if (rc < 0 || !n) {
        cluster_free(c);
        return rc < 0 ? err_set(e, rc, "cannot describe the cluster to the planner: %s", status_name(rc))
                      : err_reason(e, ST_EINFEASIBLE, "NO_DEVICE",
                                   "no device is usable now (%zu are known): they are lost, full, drained, "
                                   "not measured, or "
                                   "the policy does not allow them; see strata gpu list",
                                   offered);
    }
    *out = c;
    return ST_OK;
}

int jobs_snapshot(struct jobs *js, const struct policy *p, struct cluster **out, struct err *e)
{
    return snapshot_build(js, &(struct snapshot_opts){.policy = p}, out, e);
}
