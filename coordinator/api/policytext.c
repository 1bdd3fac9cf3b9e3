/* Policies as messages and as words. */
#include "coordinator/api/policytext.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/str.h"

int policy_from_message(struct policy *out, const Strata__V1__Policy *m, const char *trust_domain,
                        struct err *e)
{
    struct policy p = {.has_quota = m->has_quota,
                       .has_node_quota = m->has_node_quota,
                       .has_device_quota = m->has_device_quota,
                       .quota_bytes = m->has_quota ? m->quota_bytes : 0,
                       .node_quota_bytes = m->has_node_quota ? m->node_quota_bytes : 0,
                       .device_quota_bytes = m->has_device_quota ? m->device_quota_bytes : 0,
                       .expires_us = m->expires_us};
    int rc = policy_principal_short(p.principal, m->principal, trust_domain);
    if (rc < 0)
        return err_reason(e, ST_EINVAL, "UNKNOWN_PRINCIPAL", "a principal is at most %u bytes long",
                          POLICY_PRINCIPAL_MAX - 1);
    for (size_t i = 0; i < m->n_roles && rc == ST_OK; i++)
        rc = role_parse(m->roles[i], &p.roles, e);
    for (size_t i = 0; i < m->n_extra && rc == ST_OK; i++)
        rc = permission_parse(m->extra[i], &p.extra, e);
    for (size_t i = 0; i < m->n_denied && rc == ST_OK; i++)
        rc = permission_parse(m->denied[i], &p.denied, e);
    if (rc < 0)
        return err_prefix(e, "policy of %.80s", p.principal);
    if (m->n_devices > POLICY_DEVICES_MAX)
        return err_reason(e, ST_EINVAL, "TOO_MANY_DEVICES", "policy of %.80s: at most %u device patterns",
                          p.principal, POLICY_DEVICES_MAX);
    for (size_t i = 0; i < m->n_devices; i++)
        if (!str_copy(p.devices[p.n_devices++], sizeof p.devices[0], m->devices[i]))
            return err_reason(e, ST_EINVAL, "BAD_DEVICE",
                              "policy of %.80s: a device pattern has at most %u bytes", p.principal,
                              POLICY_PATTERN_MAX - 1);
    if ((rc = policy_validate(&p, e)) < 0) {
        if (e && !*e->reason)
            str_copy(e->reason, sizeof e->reason, "BAD_POLICY");
        return rc;
    }
    *out = p;
    return ST_OK;
}

static size_t names(uint32_t set, unsigned count, const char *(*name)(unsigned), char **out)
{
    size_t n = 0;
    for (unsigned i = 0; i < count; i++)
        if (set & (1u << i))
            out[n++] = (char *)name(i);
    return n;
}

static const char *role_of(unsigned i)
{
    return role_name((enum role)i);
}

static const char *permission_of(unsigned i)
{
    return permission_name((enum permission)i);
}

void policy_message_fill(struct policy_message *o, const struct policy *p)
{
    *o = (struct policy_message){.m = STRATA__V1__POLICY__INIT};
    o->m.principal = (char *)p->principal;
    o->m.n_roles = names(p->roles, ROLE_COUNT, role_of, o->roles);
    o->m.n_extra = names(p->extra, PERM_COUNT, permission_of, o->extra);
    o->m.n_denied = names(p->denied, PERM_COUNT, permission_of, o->denied);
    for (unsigned i = 0; i < p->n_devices; i++)
        o->devices[i] = (char *)p->devices[i];
    o->m.roles = o->roles;
    o->m.extra = o->extra;
    o->m.denied = o->denied;
    o->m.devices = o->devices;
    o->m.n_devices = p->n_devices;
    o->m.has_quota = p->has_quota;
    o->m.quota_bytes = p->quota_bytes;
    o->m.has_node_quota = p->has_node_quota;
    o->m.node_quota_bytes = p->node_quota_bytes;
    o->m.has_device_quota = p->has_device_quota;
    o->m.device_quota_bytes = p->device_quota_bytes;
    o->m.created_us = p->created_us;
    o->m.expires_us = p->expires_us;
    o->m.generation = p->generation;
}

/* ---- words ---- */

struct words {
    char *out;
    size_t cap, n;
};

static void say(struct words *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct words *w, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int k = vsnprintf(w->out + w->n, w->cap - w->n, fmt, ap);
    va_end(ap);
    if (k > 0)
        w->n = w->n + (size_t)k < w->cap ? w->n + (size_t)k : w->cap - 1;
}

static void say_set(struct words *w, uint32_t set, unsigned count, const char *(*name)(unsigned))
{
    const char *comma = "";
    for (unsigned i = 0; i < count; i++)
        if (set & (1u << i)) {
            say(w, "%s%s", comma, name(i));
            comma = ",";
        }
}

static void say_bytes(struct words *w, bool has, uint64_t bytes)
{
    if (has)
        say(w, "%llu", (unsigned long long)bytes);
    else
        say(w, "unlimited");
}

const char *policy_field_name(unsigned i)
{
    static const char *const fields[POLICY_FIELDS] = {"roles", "extra",      "denied",       "devices",
                                                      "quota", "node_quota", "device_quota", "expires"};
    return i < POLICY_FIELDS ? fields[i] : "?";
}

void policy_field_words(const struct policy *p, unsigned i, char *out, size_t cap)
{
    struct words w = {out, cap, 0};
    out[0] = 0;
    switch (i) {
    case 0:
        say_set(&w, p->roles, ROLE_COUNT, role_of);
        break;
    case 1:
        say_set(&w, p->extra, PERM_COUNT, permission_of);
        break;
    case 2:
        say_set(&w, p->denied, PERM_COUNT, permission_of);
        break;
    case 3:
        for (unsigned k = 0; k < p->n_devices; k++) {
            if (w.n + strlen(p->devices[k]) + 24 > cap) {
                say(&w, ",(%u in all)", p->n_devices);
                break;
            }
            say(&w, "%s%s", k ? "," : "", p->devices[k]);
        }
        if (!p->n_devices)
            say(&w, "all");
        break;
    case 4:
        say_bytes(&w, p->has_quota, p->quota_bytes);
        break;
    case 5:
        say_bytes(&w, p->has_node_quota, p->node_quota_bytes);
        break;
    case 6:
        say_bytes(&w, p->has_device_quota, p->device_quota_bytes);
        break;
    default:
        if (p->expires_us && cap >= 28)
            clock_rfc3339(p->expires_us, out);
        else
            say(&w, "never");
    }
}

void policy_words(const struct policy *p, char *out, size_t cap)
{
    struct words w = {out, cap, 0};
    char field[2048];
    out[0] = 0;
    for (unsigned i = 0; i < POLICY_FIELDS; i++) {
        policy_field_words(p, i, field, sizeof field);
        if (*field)
            say(&w, "%s%s=%s", w.n ? " " : "", policy_field_name(i), field);
    }
}

bool policy_same(const struct policy *a, const struct policy *b)
{
    if (a->n_devices != b->n_devices)
        return false;
    for (unsigned i = 0; i < a->n_devices; i++)
        if (strcmp(a->devices[i], b->devices[i]))
            return false;
    return a->roles == b->roles && a->extra == b->extra && a->denied == b->denied &&
           a->has_quota == b->has_quota && a->has_node_quota == b->has_node_quota &&
           a->has_device_quota == b->has_device_quota && a->quota_bytes == b->quota_bytes &&
           a->node_quota_bytes == b->node_quota_bytes && a->device_quota_bytes == b->device_quota_bytes &&
           a->expires_us == b->expires_us;
}
