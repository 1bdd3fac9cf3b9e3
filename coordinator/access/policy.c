/* Names, parsing and validation of policies. */
#include <stdio.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/access/access.h"

static const char *const roles[ROLE_COUNT] = {"monitor", "user", "power_user", "admin"};

const char *role_name(enum role r)
{
    return (unsigned)r < ROLE_COUNT ? roles[r] : "?";
}

int permission_parse(const char *word, uint32_t *set, struct err *e)
{
    size_t n = strlen(word);
    uint32_t bits = 0;
    bool group = n > 2 && strcmp(word + n - 2, ":*") == 0;
    for (unsigned i = 0; i < PERM_COUNT; i++) {
        const char *name = permission_name((enum permission)i);
        if (group ? i != PERM_ADMIN && strncmp(name, word, n - 1) == 0 : strcmp(name, word) == 0)
            bits |= PERM_BIT(i);
    }
    if (!bits)
        return err_reason(
            e, ST_EINVAL, "UNKNOWN_PERMISSION",
            "unknown permission \"%.60s\"; the groups are device: memory: compute: monitor: (each also "
            "with *) and admin:full_access",
            word);
    *set |= bits;
    return ST_OK;
}

int role_parse(const char *word, uint32_t *set, struct err *e)
{
    for (unsigned i = 0; i < ROLE_COUNT; i++)
        if (strcmp(roles[i], word) == 0) {
            *set |= ROLE_BIT(i);
            return ST_OK;
        }
    return err_reason(e, ST_EINVAL, "UNKNOWN_ROLE",
                      "unknown role \"%.60s\"; the roles are monitor, user, power_user and admin", word);
}

static bool pattern_ok(const char *s)
{
    unsigned slashes = 0;
    size_t n = strnlen(s, POLICY_PATTERN_MAX);
    if (n == 0 || n == POLICY_PATTERN_MAX)
        return false;
    for (const char *c = s; *c; c++) {
        if (*c == '/')
            slashes++;
        else if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
                   strchr("._-:*", *c)))
            return false;
    }
    return (slashes <= 1 || (slashes == 2 && str_starts(s, "node/"))) && s[0] != '/' && s[n - 1] != '/';
}

int policy_validate(const struct policy *p, struct err *e)
{
    size_t n = strnlen(p->principal, POLICY_PRINCIPAL_MAX);
    if (n == 0 || n == POLICY_PRINCIPAL_MAX)
        return err_set(e, ST_EINVAL, "policy: principal is empty or longer than %u bytes",
                       POLICY_PRINCIPAL_MAX - 1);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p->principal[i] <= ' ' || p->principal[i] == 0x7f)
            return err_set(e, ST_EINVAL,
                           "policy: principal contains a space or control character at byte %zu", i + 1);
    if (p->roles >> ROLE_COUNT || p->extra >> PERM_COUNT || p->denied >> PERM_COUNT)
        return err_set(e, ST_EINVAL, "policy of %s: an unknown role or permission bit is set", p->principal);
    if (p->denied & PERM_BIT(PERM_ADMIN))
        return err_set(e, ST_EINVAL,
                       "policy of %s: admin:full_access cannot be denied; take the admin role away instead",
                       p->principal);
    if (p->n_devices > POLICY_DEVICES_MAX)
        return err_set(e, ST_EINVAL, "policy of %s: %u device patterns, at most %u are allowed", p->principal,
                       p->n_devices, POLICY_DEVICES_MAX);
    for (unsigned i = 0; i < p->n_devices; i++)
        if (!pattern_ok(p->devices[i]))
            return err_set(
                e, ST_EINVAL,
                "policy of %s: device pattern \"%.60s\" is not of the form node/backend:index with * for any",
                p->principal, p->devices[i]);
    if (p->created_us < 0 || p->expires_us < 0 || (p->expires_us && p->expires_us <= p->created_us))
        return err_set(e, ST_EINVAL, "policy of %s: it would expire before it is created", p->principal);
    if (p->quota_bytes > INT64_MAX || p->node_quota_bytes > INT64_MAX || p->device_quota_bytes > INT64_MAX)
        return err_set(e, ST_EINVAL, "policy of %s: quota is beyond 8 EiB; leave it out for none",
                       p->principal);
    return ST_OK;
}

int policy_from_role(struct policy *out, const char *principal, enum role r, int64_t now_us, struct err *e)
{
    struct policy p = {.roles = ROLE_BIT(r), .created_us = now_us};
    if ((unsigned)r >= ROLE_COUNT || !str_copy(p.principal, sizeof p.principal, principal))
        return err_set(e, ST_EINVAL, "policy of %.60s: the principal is too long or the role is none",
                       principal);
    int rc = policy_validate(&p, e);
    if (rc == ST_OK)
        *out = p;
    return rc;
}

static bool principal_ok(const char *s)
{
    const char *name = strchr(s, '/');
    if (!name)
        return strcmp(s, "coordinator") == 0;
    return (str_starts(s, "user/") || str_starts(s, "node/")) && str_ident_ok(name + 1, 63);
}

int policy_sensible(const struct policy *p, int64_t now_us, struct err *e)
{
    uint32_t both = p->extra & p->denied;
    if (!principal_ok(p->principal))
        return err_reason(e, ST_EINVAL, "UNKNOWN_PRINCIPAL",
                          "policy of \"%.80s\": a principal is user/NAME, node/NAME or coordinator, as its "
                          "certificate says",
                          p->principal);
    for (unsigned i = 0; both && i < PERM_COUNT; i++)
        if (both & PERM_BIT(i))
            return err_reason(e, ST_EINVAL, "CONTRADICTORY_POLICY",
                              "policy of %s: %s is both in extra and in denied; leave out one of them",
                              p->principal, permission_name((enum permission)i));
    if (p->denied && ((p->roles & ROLE_BIT(ROLE_ADMIN)) || (p->extra & PERM_BIT(PERM_ADMIN))))
        return err_reason(
            e, ST_EINVAL, "CONTRADICTORY_POLICY",
            "policy of %s: a denial cannot touch admin:full_access; take the admin role away, or "
            "the denials",
            p->principal);
    if (policy_expired(p, now_us))
        return err_reason(e, ST_EINVAL, "EXPIRY_IN_PAST",
                          "policy of %s: it would have expired already; to take the rights away use 'strata "
                          "policy remove'",
                          p->principal);
    return ST_OK;
}

int policy_principal_short(char out[POLICY_PRINCIPAL_MAX], const char *id, const char *trust_domain)
{
    size_t n = strlen(trust_domain);
    if (str_starts(id, "spiffe://") && strncmp(id + 9, trust_domain, n) == 0 && id[9 + n] == '/')
        id += 10 + n;
    return str_copy(out, POLICY_PRINCIPAL_MAX, id) ? ST_OK : ST_ELIMIT;
}

int policy_devices_join(const struct policy *p, char *out, size_t cap)
{
    size_t at = 0;
    if (cap == 0)
        return ST_ELIMIT;
    out[0] = 0;
    for (unsigned i = 0; i < p->n_devices && i < POLICY_DEVICES_MAX; i++) {
        int n = snprintf(out + at, cap - at, "%s%s", i ? "\n" : "", p->devices[i]);
        if (n < 0 || (size_t)n >= cap - at)
            return ST_ELIMIT;
        at += (size_t)n;
    }
    return ST_OK;
}

int policy_devices_split(struct policy *p, const char *lines)
{
    p->n_devices = 0;
    for (const char *s = lines; *s;) {
        size_t n = strcspn(s, "\n");
        if (n == 0 || n >= POLICY_PATTERN_MAX || p->n_devices == POLICY_DEVICES_MAX)
            return ST_ECORRUPT;
        memcpy(p->devices[p->n_devices], s, n);
        p->devices[p->n_devices++][n] = 0;
        s += n + (s[n] == '\n');
    }
    return ST_OK;
}
