/*
 * Who may do what: 14 permissions below admin:full_access, four roles, policies, and the decision. Pure, no
 * I/O, no allocation. Default deny. set.h holds all policies of a cluster compiled, and decides by handle;
 * quota.h keeps the ledger of what principals hold.
 *
 * Order of a decision, first match wins: no policy → expired → admin (grants every permission on every
 * device, whatever is denied) → explicit denial → not granted → device restriction → quota. A quota is a
 * limit and not a permission, so one that is set binds admins as well.
 */
#ifndef STRATA_ACCESS_ACCESS_H
#define STRATA_ACCESS_ACCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/permission.h"
#include "common/base/status.h"

enum role { ROLE_MONITOR, ROLE_USER, ROLE_POWER_USER, ROLE_ADMIN, ROLE_COUNT };
#define ROLE_BIT(r) (1u << (r))

#define POLICY_PRINCIPAL_MAX 256u
#define POLICY_DEVICES_MAX 32u
#define POLICY_PATTERN_MAX 128u

struct policy {
    char principal[POLICY_PRINCIPAL_MAX]; /* SPIFFE id or short form, compared as it stands */
    uint32_t roles;                       /* ROLE_BIT set */
    uint32_t extra, denied;               /* PERM_BIT sets */
    unsigned n_devices;                   /* 0 = all devices */
    char devices[POLICY_DEVICES_MAX][POLICY_PATTERN_MAX];
    bool has_quota, has_node_quota, has_device_quota; /* false = unlimited */
    uint64_t quota_bytes;                             /* over the whole cluster */
    uint64_t node_quota_bytes, device_quota_bytes;    /* on any one node, on any one device */
    int64_t created_us, expires_us; /* expires 0 = never; expired from that microsecond on */
    uint64_t generation;            /* counts the changes of this policy; goes to the audit row */
};

enum access_reason {
    ACCESS_OK,
    ACCESS_NO_POLICY,
    ACCESS_EXPIRED,
    ACCESS_EXPLICITLY_DENIED,  /* the permission is among the denied ones */
    ACCESS_MISSING_PERMISSION, /* no role and no extra permission grants it */
    ACCESS_DEVICE_NOT_ALLOWED, /* the device is not among the policy's */
    ACCESS_QUOTA_EXCEEDED,
};

enum access_rule {
    RULE_DEFAULT_DENY,
    RULE_EXPIRY,
    RULE_ADMIN,
    RULE_DENIED,
    RULE_ROLE,
    RULE_EXTRA,
    RULE_DEVICE,
    RULE_QUOTA
};

struct access_request {
    enum permission permission;
    const char *device; /* "dione/cuda:0"; NULL when the act names no device */
    uint64_t used_bytes,
        ask_bytes; /* held in the cluster now (quota.h), and what this act would add; 0 = no memory */
    int64_t now_us;
};

struct decision {
    bool allowed;
    enum access_reason reason;
    enum access_rule rule; /* what decided */
    unsigned index;        /* RULE_ROLE: the enum role */
    uint64_t generation;   /* of the policy that was asked */
};

/* policy NULL = the principal has none. Any thread; policy and request are only read. */
struct decision access_check(const struct policy *policy, const struct access_request *req);

/* "NO_POLICY", "QUOTA_EXCEEDED"…: stable, for programs. Never NULL. */
const char *access_reason_name(enum access_reason r);
/* "role user", "denied permissions", "device restriction", …, for audit rows. */
const char *access_rule_text(const struct decision *d);
/* The sentence for the caller: what was refused, on what, why, and what to do. Fills *e and returns its code:
 * ST_EDENIED, or ST_ERESOURCE for a quota. d must be a refusal. */
int access_explain(const struct decision *d, const struct policy *policy, const struct access_request *req,
                   struct err *e);

/* What the policy's roles and extras grant less its denials (admin: all 15 bits); expiry and devices not
 * considered. */
uint32_t access_effective(const struct policy *p);
uint32_t role_permissions(enum role r);
bool policy_expired(const struct policy *p, int64_t now_us);

/*
 * Device patterns: "node/device", each half a glob in which '*' matches any run, so no '*' crosses the '/'. A
 * pattern without '/' is a device on every node ("cuda:0", "*"); a leading "node/" before two more halves, as
 * in "node/<star>/cuda:0", is dropped. A device without node ("cuda:0") matches only patterns whose node half
 * is "*".
 */
bool device_match(const char *pattern, const char *device);

const char *role_name(enum role r);
/* A name, or "group:*" for all of a group ("monitor:*"); ST_EINVAL with the nearest remedy in *e. Sets bits
 * in *set. */
int permission_parse(const char *word, uint32_t *set, struct err *e) ST_CHECK;
int role_parse(const char *word, uint32_t *set, struct err *e) ST_CHECK;

/* Is this policy well formed: principal present, known bits only, patterns sane, admin not denied, expiry
 * after creation? ST_EINVAL names the field. */
int policy_validate(const struct policy *p, struct err *e) ST_CHECK;

/* A policy that grants one role on all devices, without quota or end. ST_EINVAL for a bad principal. */
int policy_from_role(struct policy *out, const char *principal, enum role r, int64_t now_us,
                     struct err *e) ST_CHECK;
/* What is wrong with a policy that somebody wants now, beyond its form: CONTRADICTORY_POLICY (the same
 * permission granted as extra and denied; denials beside admin:full_access, which they cannot touch),
 * EXPIRY_IN_PAST, UNKNOWN_PRINCIPAL (neither "user/NAME", "node/NAME" nor "coordinator"). ST_EINVAL. */
int policy_sensible(const struct policy *p, int64_t now_us, struct err *e) ST_CHECK;
/* "spiffe://DOMAIN/user/alice" of this trust domain becomes "user/alice"; anything else is copied. ST_ELIMIT.
 */
int policy_principal_short(char out[POLICY_PRINCIPAL_MAX], const char *id, const char *trust_domain) ST_CHECK;

/* Text list of the patterns, one a line, and back; both bounded. */
int policy_devices_join(const struct policy *p, char *out, size_t cap) ST_CHECK;
int policy_devices_split(struct policy *p, const char *lines) ST_CHECK;

#endif
