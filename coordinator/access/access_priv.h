/* Shared by the files of this room: a policy as masks, and the decision on them. */
#ifndef STRATA_ACCESS_PRIV_H
#define STRATA_ACCESS_PRIV_H

#include "coordinator/access/access.h"

#define ACCESS_WHY_EXTRA 15u /* among the roles' numbers in access_rules.why */

struct access_rules {
    uint32_t grants, denied; /* PERM_BIT sets; grants of roles and extras, denials not yet taken off */
    uint64_t why;            /* four bits a permission: the lowest role that grants it, or ACCESS_WHY_EXTRA */
    int64_t expires_us;      /* 0 = never */
    uint64_t generation;
};
struct access_rules access_compile(const struct policy *p);

/* The one order of a decision, less its quota. */
static inline struct decision access_rules_decide(const struct access_rules *r, enum permission perm,
                                                  bool on_device, int64_t now_us)
{
    struct decision d = {.reason = ACCESS_NO_POLICY, .rule = RULE_DEFAULT_DENY};
    if ((unsigned)perm >= PERM_COUNT)
        return d;
    uint32_t bit = PERM_BIT(perm);
    d.generation = r->generation;
    if (r->expires_us != 0 && now_us >= r->expires_us) {
        d.reason = ACCESS_EXPIRED;
        d.rule = RULE_EXPIRY;
    } else if (r->grants & PERM_BIT(PERM_ADMIN)) {
        d.allowed = true;
        d.rule = RULE_ADMIN;
    } else if (r->denied & bit) {
        d.reason = ACCESS_EXPLICITLY_DENIED;
        d.rule = RULE_DENIED;
    } else if (!(r->grants & bit)) {
        d.reason = ACCESS_MISSING_PERMISSION;
    } else if (!on_device) {
        d.reason = ACCESS_DEVICE_NOT_ALLOWED;
        d.rule = RULE_DEVICE;
    } else {
        unsigned why = (unsigned)(r->why >> (4 * (unsigned)perm)) & 15u;
        d.allowed = true;
        d.rule = why == ACCESS_WHY_EXTRA ? RULE_EXTRA : RULE_ROLE;
        d.index = why == ACCESS_WHY_EXTRA ? 0 : why;
    }
    if (d.allowed)
        d.reason = ACCESS_OK;
    return d;
}

#endif
