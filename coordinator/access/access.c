/* The decision. */
#include "coordinator/access/access_priv.h"

#include <string.h>

#include "common/base/str.h"

#define MONITOR_BITS                                                                                         \
    (PERM_BIT(PERM_MONITOR_MEMORY) | PERM_BIT(PERM_MONITOR_TEMPERATURE) | PERM_BIT(PERM_MONITOR_POWER) |     \
     PERM_BIT(PERM_MONITOR_CLOCK))
#define LIST_BITS (PERM_BIT(PERM_DEVICE_LIST) | PERM_BIT(PERM_DEVICE_INFO))

uint32_t role_permissions(enum role r)
{
    switch (r) {
    case ROLE_MONITOR:
        return LIST_BITS | MONITOR_BITS;
    case ROLE_USER:
        return LIST_BITS | PERM_BIT(PERM_MEMORY_ALLOCATE) | PERM_BIT(PERM_MEMORY_DEALLOCATE) |
               PERM_BIT(PERM_MEMORY_COPY_TO_DEVICE) | PERM_BIT(PERM_MEMORY_COPY_FROM_DEVICE) |
               PERM_BIT(PERM_COMPUTE_EXECUTE) | PERM_BIT(PERM_COMPUTE_SYNCHRONIZE) |
               PERM_BIT(PERM_MONITOR_MEMORY);
    case ROLE_POWER_USER:
        return PERM_ALL14;
    case ROLE_ADMIN:
        return PERM_BIT(PERM_ADMIN);
    case ROLE_COUNT:
        break;
    }
    return 0;
}

static uint32_t role_grants(const struct policy *p)
{
    uint32_t set = 0;
    for (unsigned r = 0; r < ROLE_COUNT; r++)
        if (p->roles & ROLE_BIT(r))
            set |= role_permissions((enum role)r);
    return set;
}

uint32_t access_effective(const struct policy *p)
{
    uint32_t set = (role_grants(p) | p->extra) & (PERM_ALL14 | PERM_BIT(PERM_ADMIN));
    if (set & PERM_BIT(PERM_ADMIN))
        return PERM_ALL14 | PERM_BIT(PERM_ADMIN);
    return set & ~p->denied;
}

bool policy_expired(const struct policy *p, int64_t now_us)
{
    return p->expires_us != 0 && now_us >= p->expires_us;
}

static bool half_match(const char *pattern, size_t n, const char *s)
{
    char glob[POLICY_PATTERN_MAX];
    if (n >= sizeof glob)
        return false;
    memcpy(glob, pattern, n);
    glob[n] = 0;
    return str_glob(glob, s);
}

bool device_match(const char *pattern, const char *device)
{
    if (str_starts(pattern, "node/") && strchr(pattern + 5, '/'))
        pattern += 5;
    const char *cut = strchr(pattern, '/'), *slash = strchr(device, '/');
    const char *local = slash ? slash + 1 : device;
    size_t node_len = slash ? (size_t)(slash - device) : 0;
    char node[POLICY_PATTERN_MAX];
    if (!cut)
        return str_glob(pattern, local);
    if (node_len >= sizeof node)
        return false;
    memcpy(node, device, node_len);
    node[node_len] = 0;
    if (!slash && !(cut == pattern + 1 && *pattern == '*'))
        return false;
    return half_match(pattern, (size_t)(cut - pattern), node) && str_glob(cut + 1, local);
}

struct access_rules access_compile(const struct policy *p)
{
    struct access_rules r = {.grants = role_grants(p) | p->extra,
                             .denied = p->denied,
                             .expires_us = p->expires_us,
                             .generation = p->generation};
    for (unsigned perm = 0; perm < PERM_COUNT; perm++) {
        uint64_t why = ACCESS_WHY_EXTRA;
        for (unsigned role = ROLE_COUNT; role-- > 0;)
            if ((p->roles & ROLE_BIT(role)) && (role_permissions((enum role)role) & PERM_BIT(perm)))
                why = role;
        r.why |= why << (4 * perm);
    }
    return r;
}

static bool quota_allows(const struct policy *p, const struct access_request *q)
{
    if (!p->has_quota || q->ask_bytes == 0)
        return true;
    return q->used_bytes <= p->quota_bytes && q->ask_bytes <= p->quota_bytes - q->used_bytes;
}

struct decision access_check(const struct policy *p, const struct access_request *q)
{
    struct decision d = {.reason = ACCESS_NO_POLICY, .rule = RULE_DEFAULT_DENY};
    if (!p)
        return d;
    const struct access_rules r = access_compile(p);
    bool on_device = p->n_devices == 0 || !q->device;
    for (unsigned i = 0; !on_device && i < p->n_devices && i < POLICY_DEVICES_MAX; i++)
        on_device = device_match(p->devices[i], q->device);
    d = access_rules_decide(&r, q->permission, on_device, q->now_us);
    if (d.allowed && !quota_allows(p, q))
        d = (struct decision){
            .reason = ACCESS_QUOTA_EXCEEDED, .rule = RULE_QUOTA, .generation = p->generation};
    return d;
}

const char *access_reason_name(enum access_reason r)
{
    switch (r) {
    case ACCESS_OK:
        return "OK";
    case ACCESS_NO_POLICY:
        return "NO_POLICY";
    case ACCESS_EXPIRED:
        return "EXPIRED";
    case ACCESS_EXPLICITLY_DENIED:
        return "EXPLICITLY_DENIED";
    case ACCESS_MISSING_PERMISSION:
        return "MISSING_PERMISSION";
    case ACCESS_DEVICE_NOT_ALLOWED:
        return "DEVICE_NOT_ALLOWED";
    case ACCESS_QUOTA_EXCEEDED:
        return "QUOTA_EXCEEDED";
    }
    return "?";
}

const char *access_rule_text(const struct decision *d)
{
    static const char *const roles[] = {"role monitor", "role user", "role power_user", "role admin"};
    switch (d->rule) {
    case RULE_DEFAULT_DENY:
        return "default deny";
    case RULE_EXPIRY:
        return "expiry";
    case RULE_ADMIN:
        return "admin:full_access";
    case RULE_DENIED:
        return "denied permissions";
    case RULE_ROLE:
        return d->index < ROLE_COUNT ? roles[d->index] : "role";
    case RULE_EXTRA:
        return "extra permissions";
    case RULE_DEVICE:
        return "device restriction";
    case RULE_QUOTA:
        return "quota";
    }
    return "?";
}

int access_explain(const struct decision *d, const struct policy *p, const struct access_request *q,
                   struct err *e)
{
    const char *perm = permission_name(q->permission), *who = p ? p->principal : "this identity",
               *reason = access_reason_name(d->reason);
    const char *dev = q->device ? q->device : "any device";
    char used[16], ask[16], quota[16];
    switch (d->reason) {
    case ACCESS_EXPIRED:
        return err_reason(
            e, ST_EDENIED, reason,
            "%s on %s refused: the policy of %s has expired; an admin renews it with 'strata policy apply'",
            perm, dev, who);
    case ACCESS_EXPLICITLY_DENIED:
        return err_reason(
            e, ST_EDENIED, reason,
            "%s on %s refused: the policy of %s denies it explicitly; an admin can take it out of `denied`",
            perm, dev, who);
    case ACCESS_MISSING_PERMISSION:
        return err_reason(e, ST_EDENIED, reason,
                          "%s on %s refused: no role or extra permission of %s grants it; ask an admin for a "
                          "role that does",
                          perm, dev, who);
    case ACCESS_DEVICE_NOT_ALLOWED:
        return err_reason(
            e, ST_EDENIED, reason,
            "%s on %s refused: the policy of %s is restricted to other devices; see 'strata policy get'",
            perm, dev, who);
    case ACCESS_QUOTA_EXCEEDED:
        fmt_bytes(used, q->used_bytes);
        fmt_bytes(ask, q->ask_bytes);
        fmt_bytes(quota, p ? p->quota_bytes : 0);
        return err_reason(
            e, ST_ERESOURCE, reason,
            "%s of %s on %s refused: %s uses %s of its quota of %s; free memory or ask an admin for more",
            perm, ask, dev, who, used, quota);
    case ACCESS_OK:
    case ACCESS_NO_POLICY:
        break;
    }
    return err_reason(
        e, ST_EDENIED, reason,
        "%s on %s refused: there is no policy for %s; an admin adds one with 'strata policy apply'", perm,
        dev, who);
}
