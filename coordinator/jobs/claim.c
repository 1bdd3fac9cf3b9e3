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

static int claim(const struct job *j, const struct policy *p, bool held, struct quota_refusal *why)
{
    struct jobs *js = j->jobs;
    struct quota_part *parts = calloc(2 * j->nlayers + 1, sizeof *parts);
    char(*nodes)[64] = calloc(j->nlayers + 1, sizeof(*nodes));
    size_t n = 0;
    int rc = parts && nodes ? ST_OK : ST_ENOMEM;
    for (size_t i = 0; i < j->nlayers && rc == ST_OK; i++) {
        const char *device = j->layers[i].device, *slash = device ? strchr(device, '/') : NULL;
        if (!slash || !j->layers[i].mem)
            continue;
        size_t len =
            (size_t)(slash - device) < sizeof nodes[0] ? (size_t)(slash - device) : sizeof nodes[0] - 1;
        memcpy(nodes[i], device, len);
        add(parts, &n, nodes[i], j->layers[i].mem);
        add(parts, &n, device, j->layers[i].mem);
    }
    if (rc == ST_OK) {
        const struct quota_claim c = {j->id, j->principal, job_held_bytes(j), parts, n};
        rc = held ? quota_hold(js->quota, &c) : quota_reserve(js->quota, &c, p, why);
    }
    free(parts);
    free(nodes);
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

int job_quota_refused(const struct job *j, const struct quota_refusal *why, struct err *e)
{
    struct jobs *js = j->jobs;
    char asked[16], used[16], limit[16];
    const char *where = *why->where ? why->where : "the cluster";
    fmt_bytes(asked, why->asked);
    fmt_bytes(used, why->used);
    fmt_bytes(limit, why->limit);
    int rc = err_reason(
        e, ST_ERESOURCE, "QUOTA_EXCEEDED",
        "the job needs %s on %s, where %s holds %s of its quota of %s; cancel jobs, close sessions, "
        "or ask an admin for more",
        asked, where, j->principal, used, limit);
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
