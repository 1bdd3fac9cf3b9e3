/* The live registry as the planner's input. */
#include <stdio.h>
#include <string.h>

#include "common/model/cluster.h"
#include "coordinator/jobs/jobs_priv.h"

bool job_device_usable(const struct topo_node *n, const struct topo_device *d)
{
    /* An unmeasured device has no place in a plan that is proved from measured rates. */
    return n->state == TOPO_CONNECTED && n->user && d->flops_per_s > 0 && d->bytes_per_s > 0;
}

static bool usable(const struct topo_node *n, const struct topo_device *d, const struct policy *p)
{
    if (!job_device_usable(n, d) || topo_free_bytes(d) == 0)
        return false;
    if (!p || !p->n_devices)
        return true;
    for (unsigned i = 0; i < p->n_devices; i++)
        if (device_match(p->devices[i], d->id))
            return true;
    return false;
}

int jobs_snapshot(struct jobs *js, const struct policy *p, struct cluster **out, struct err *e)
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
            offered++;
            if (!usable(node, d, p))
                continue;
            n++;
            rc = cluster_add_device(c, d->id, node->name,
                                    &(struct cluster_device){.memory_bytes = (double)topo_free_bytes(d),
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
        return rc < 0
                   ? err_set(e, rc, "cannot describe the cluster to the planner: %s", status_name(rc))
                   : err_reason(
                         e, ST_EINFEASIBLE, "NO_DEVICE",
                         "no device is usable now (%zu are known): they are lost, full, not measured, or the "
                         "policy does not allow them; see strata gpu list",
                         offered);
    }
    *out = c;
    return ST_OK;
}
