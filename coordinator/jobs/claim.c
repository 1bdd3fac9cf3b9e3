/* A job's memory in the quota ledger: one claim of the job's id, on the nodes and devices of its layers. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

static void add(struct quota_part *parts, size_t *n, const char *where, uint64_t bytes)
{
    for (size_t i = 0; i < *n; i++)
        if (!strcmp(parts[i].where, where)) {
            parts[i].bytes += bytes;
            return;
        }
    parts[(*n)++] = (struct quota_part){where, bytes};
}

static size_t count_shifts(const struct job *j)
{
    size_t n = 0;
    for (const struct job_shift *h = j->shifts; h; h = h->next)
        n++;
    return n;
}

static const char *shift_place(const struct job_shift *h, uint64_t *bytes)
{
    bool frees = h->state == SHIFT_FREE;
    *bytes = !frees ? h->copy.mem : strcmp(h->old, h->l->device) ? h->l->bytes : 0;
    return frees ? h->old : h->copy.device;
}

struct places {
    struct quota_part *parts;
    char (*nodes)[64];
    size_t n, nnodes;
};

static void add_device(struct places *p, const char *device, uint64_t bytes)
{
    const char *slash = device ? strchr(device, '/') : NULL;
    if (!slash || !bytes)
        return;
    size_t len = (size_t)(slash - device);
    char *node = p->nodes[p->nnodes++];
    if (len >= sizeof p->nodes[0])
        len = sizeof p->nodes[0] - 1;
    memcpy(node, device, len);
    add(p->parts, &p->n, node, bytes);
    add(p->parts, &p->n, device, bytes);
}

/* What is on its way between devices counts on both, as it does on the devices (job_account_resident), and
 * once over the cluster. */
static int claim(const struct job *j, const struct policy *pol, bool held, struct quota_refusal *why)
{
    struct jobs *js = j->jobs;
    size_t most = j->nlayers + count_shifts(j) + 1;
    struct places p = {calloc(2 * most, sizeof *p.parts), calloc(most, sizeof *p.nodes), 0, 0};
    int rc = p.parts && p.nodes ? ST_OK : ST_ENOMEM;
    for (size_t i = 0; i < j->nlayers && rc == ST_OK; i++)
        add_device(&p, j->layers[i].device, j->layers[i].mem);
    for (const struct job_shift *h = j->shifts; h && rc == ST_OK; h = h->next) {
        uint64_t bytes = 0;
        const char *device = shift_place(h, &bytes);
        add_device(&p, device, bytes);
    }
    if (rc == ST_OK) {
        const struct quota_claim c = {j->id, j->principal, job_held_bytes(j), p.parts, p.n};
        rc = held ? quota_hold(js->quota, &c) : quota_reserve(js->quota, &c, pol, why);
    }
    free(p.parts);
    free(p.nodes);
    return rc;
}

int job_claim(const struct job *j, struct quota_refusal *why)
{
    const struct jobs_cfg *cfg = &j->jobs->cfg;
    return claim(j, cfg->policy(cfg->policy_ctx, j->principal), false, why);
}

int job_claim_held(const struct job *j)
{
    return claim(j, NULL, true, NULL);
}

void job_recount(struct job *j)
{
    int rc = job_claim_held(j);
    if (rc < 0) /* what was counted before stays; the next change of its places counts again */
        LOG_E(j->jobs->cfg.log, "jobs", "quota not counted again job=%s error=%s", j->id, status_name(rc));
    job_account_resident(j->jobs);
}

bool job_may_lie(const struct job *j, const char *device, uint64_t bytes, struct quota_refusal *why)
{
    const struct jobs_cfg *cfg = &j->jobs->cfg;
    const struct policy *pol = cfg->policy(cfg->policy_ctx, j->principal);
    if (!pol)
        return true;
    struct policy p = *pol;
    p.has_quota = false; /* over the cluster it is counted already */
    return quota_fits(j->jobs->quota, &p, device, bytes, why);
}

int job_quota_why(const struct job *j, const struct quota_refusal *why, struct err *e)
{
    char asked[16], used[16], limit[16];
    const char *where = *why->where ? why->where : "the cluster";
    fmt_bytes(asked, why->asked);
    fmt_bytes(used, why->used);
    fmt_bytes(limit, why->limit);
    return err_reason(
        e, ST_ERESOURCE, "QUOTA_EXCEEDED",
        "the job needs %s on %s, where %s holds %s of its quota of %s; cancel jobs, close sessions, "
        "or ask an admin for more",
        asked, where, j->principal, used, limit);
}

int job_quota_refused(const struct job *j, const struct quota_refusal *why, struct err *e)
{
    struct jobs *js = j->jobs;
    int rc = job_quota_why(j, why, e);
    struct store_txn *t = store_txn_new();
    struct event_meta m = {0};
    if (!t)
        return rc;
    event_meta_u64(&m, "bytes", why->asked);
    event_meta_u64(&m, "used", why->used);
    event_meta_u64(&m, "quota", why->limit);
    event_meta_str(&m, "where", *why->where ? why->where : "cluster");
    struct audit_event ev = event_make(EV_SECURITY_QUOTA_EXCEEDED, EVENT_DENIED, jobs_now(js));
    ev.principal = j->principal;
    ev.operation = "job.submit";
    ev.error = e->text;
    ev.meta = event_meta_text(&m);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
    int stored = jobs_store(js, t, NULL, NULL);
    if (stored < 0)
        LOG_E(js->cfg.log, "jobs", "quota refusal not recorded principal=%s error=%s", j->principal,
              status_name(stored));
    return rc;
}
