/* access_check() against an oracle written from the manual's words, over every combination that matters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "coordinator/access/set.h"

/* ---- the oracle: words, no bits ---- */

static const char *const role_words[4][16] = {
    {"device:list", "device:info", "monitor:memory", "monitor:temperature", "monitor:power", "monitor:clock"},
    {"device:list", "device:info", "memory:allocate", "memory:deallocate", "memory:copy_to_device",
     "memory:copy_from_device", "compute:execute", "compute:synchronize", "monitor:memory"},
    {"device:list", "device:info", "device:allocate", "memory:allocate", "memory:deallocate",
     "memory:copy_to_device", "memory:copy_from_device", "memory:copy_device_to_device", "compute:execute",
     "compute:synchronize", "monitor:memory", "monitor:temperature", "monitor:power", "monitor:clock"},
    {"admin:full_access"}};

static bool has_word(const char *const *set, const char *w)
{
    for (; *set; set++)
        if (strcmp(*set, w) == 0)
            return true;
    return false;
}

struct scene {
    unsigned roles;
    const char *extra[2], *denied[2];
    bool deny_all;
    int64_t expires;
    int devices; /* 0 none, 1 matches, 2 another, 3 another then a match */
    const char *device;
    bool has_quota;
    uint64_t quota, used, ask;
};

static enum access_reason oracle(const struct scene *s, const char *perm, int64_t now)
{
    bool admin = false, granted = false;
    if (s->expires != 0 && s->expires <= now)
        return ACCESS_EXPIRED;
    for (unsigned r = 0; r < 4; r++) {
        if (!(s->roles >> r & 1))
            continue;
        admin = admin || has_word(role_words[r], "admin:full_access");
        granted = granted || has_word(role_words[r], perm);
    }
    admin = admin || has_word(s->extra, "admin:full_access");
    granted = granted || has_word(s->extra, perm);
    if (!admin) {
        if (has_word(s->denied, perm) || (s->deny_all && strcmp(perm, "admin:full_access") != 0))
            return ACCESS_EXPLICITLY_DENIED;
        if (!granted)
            return ACCESS_MISSING_PERMISSION;
        if (s->device && s->devices == 2)
            return ACCESS_DEVICE_NOT_ALLOWED;
    }
    if (s->has_quota && s->ask > 0 && (__uint128_t)s->used + s->ask > s->quota)
        return ACCESS_QUOTA_EXCEEDED;
    return ACCESS_OK;
}

static void build(struct policy *p, const struct scene *s)
{
    memset(p, 0, sizeof *p);
    strcpy(p->principal, "user/alice");
    p->roles = s->roles;
    p->expires_us = s->expires;
    if (s->extra[0])
        assert_int_equal(permission_parse(s->extra[0], &p->extra, NULL), ST_OK);
    if (s->denied[0])
        assert_int_equal(permission_parse(s->denied[0], &p->denied, NULL), ST_OK);
    if (s->deny_all)
        p->denied = PERM_ALL14;
    if (s->devices) {
        strcpy(p->devices[0], s->devices == 1 ? "dione/cuda:*" : "rhea/*");
        p->n_devices = 1;
    }
    if (s->devices == 3) {
        strcpy(p->devices[1], "node/*/cuda:0");
        p->n_devices = 2;
    }
    p->has_quota = s->has_quota;
    p->quota_bytes = s->quota;
    p->generation = 5;
}

/* The compiled policy decides as the record does, by handle, by name and for a device without a number. */
static void compiled_agrees(struct access_set *set, const struct policy *p, const struct access_request *rq,
                            const struct decision *d, uint32_t known)
{
    assert_int_equal(access_set_put(set, p, NULL), ST_OK);
    struct decision n = access_set_ask(set, p->principal, rq);
    assert_int_equal(n.allowed, d->allowed);
    assert_int_equal(n.reason, d->reason);
    assert_int_equal(n.rule, d->rule);
    assert_int_equal(n.index, d->index);
    assert_int_equal(n.generation, d->generation);
    struct decision h = access_set_decide(set, access_set_find(set, p->principal, strlen(p->principal)),
                                          rq->permission, rq->device ? known : ACCESS_NO_DEVICE, rq->now_us);
    if (d->reason == ACCESS_QUOTA_EXCEEDED) /* the ledger's word, not the handle's */
        assert_true(h.allowed);
    else
        assert_int_equal(h.reason, d->reason);
    if (rq->device) { /* a sister of that device which nobody has numbered yet */
        struct access_request sister = *rq;
        sister.device = "dione/cuda:00";
        struct policy q = *p;
        assert_int_equal(access_set_ask(set, p->principal, &sister).reason, access_check(&q, &sister).reason);
    }
}

static void every_combination(void **state)
{
    (void)state;
    static const struct {
        bool has;
        uint64_t quota, used, ask;
    } quotas[] = {
        {false, 0, UINT64_MAX, UINT64_MAX}, {true, 100, 60, 40}, {true, 100, 60, 41}, {true, 100, 101, 1},
        {true, 100, 60, UINT64_MAX},        {true, 0, 0, 0}};
    static const int64_t expiries[] = {0, 1001, 1000, 999};
    unsigned long cases = 0, allowed = 0;
    struct access_set *set;
    assert_int_equal(access_set_new(&set, rng_system()), ST_OK);
    uint32_t known = access_set_device(set, "dione/cuda:0");
    for (unsigned roles = 0; roles < 16; roles++)
        for (unsigned perm = 0; perm < PERM_COUNT; perm++)
            for (unsigned x = 0; x < 4; x++)
                for (unsigned dn = 0; dn < 4; dn++)
                    for (unsigned rest = 0; rest < 4 * 4 * 2 * 6; rest++) {
                        const char *w = permission_name((enum permission)perm);
                        const char *other = perm == PERM_DEVICE_LIST ? "device:info" : "device:list";
                        unsigned q = rest % 6, dev = rest / 6 % 2, devs = rest / 12 % 4, ex = rest / 48;
                        struct scene s = {.roles = roles,
                                          .expires = expiries[ex],
                                          .devices = (int)devs,
                                          .device = dev ? "dione/cuda:0" : NULL,
                                          .has_quota = quotas[q].has,
                                          .quota = quotas[q].quota,
                                          .used = quotas[q].used,
                                          .ask = quotas[q].ask};
                        s.extra[0] = x == 0 ? NULL : x == 1 ? w : x == 2 ? "admin:full_access" : other;
                        s.denied[0] = dn == 0 || dn == 3 ? NULL : dn == 1 && perm != PERM_ADMIN ? w : other;
                        s.deny_all = dn == 3;
                        struct policy p;
                        build(&p, &s);
                        struct access_request rq = {.permission = (enum permission)perm,
                                                    .device = s.device,
                                                    .used_bytes = s.used,
                                                    .ask_bytes = s.ask,
                                                    .now_us = 1000};
                        struct decision d = access_check(&p, &rq);
                        enum access_reason want = oracle(&s, w, 1000);
                        if (d.reason != want || d.allowed != (want == ACCESS_OK))
                            fail_msg("roles %x %s extra %s denied %s: %s, should be %s", roles, w,
                                     s.extra[0] ? s.extra[0] : "-", s.denied[0] ? s.denied[0] : "-",
                                     access_reason_name(d.reason), access_reason_name(want));
                        assert_int_equal(d.generation, 5);
                        compiled_agrees(set, &p, &rq, &d, known);
                        struct err e;
                        if (!d.allowed) {
                            int code = access_explain(&d, &p, &rq, &e);
                            assert_int_equal(code, want == ACCESS_QUOTA_EXCEEDED ? ST_ERESOURCE : ST_EDENIED);
                            assert_string_equal(e.reason, access_reason_name(want));
                        }
                        cases++;
                        allowed += d.allowed;
                    }
    access_set_free(set);
    assert_int_equal(cases, 16 * 15 * 16 * 192);
    assert_true(allowed > 10000 && allowed < cases);
}

static void roles_are_as_written(void **state)
{
    (void)state;
    for (unsigned r = 0; r < ROLE_COUNT; r++) {
        uint32_t want = 0, roleset = 0;
        for (const char *const *w = role_words[r]; *w; w++)
            assert_int_equal(permission_parse(*w, &want, NULL), ST_OK);
        assert_int_equal(role_permissions((enum role)r), want);
        assert_int_equal(role_parse(role_name((enum role)r), &roleset, NULL), ST_OK);
        assert_int_equal(roleset, ROLE_BIT(r));
    }
    assert_int_equal(__builtin_popcount(PERM_ALL14), 14);
}

static void default_deny_and_rules(void **state)
{
    (void)state;
    struct access_request q = {.permission = PERM_MEMORY_ALLOCATE, .device = "dione/cuda:0", .ask_bytes = 10};
    struct decision d = access_check(NULL, &q);
    assert_false(d.allowed);
    assert_int_equal(d.reason, ACCESS_NO_POLICY);
    assert_string_equal(access_rule_text(&d), "default deny");
    struct policy p = {.principal = "user/bob", .roles = ROLE_BIT(ROLE_POWER_USER) | ROLE_BIT(ROLE_USER)};
    d = access_check(&p, &q);
    assert_true(d.allowed);
    assert_string_equal(access_rule_text(&d), "role user");
    p.roles = 0;
    p.extra = PERM_BIT(PERM_MEMORY_ALLOCATE);
    d = access_check(&p, &q);
    assert_string_equal(access_rule_text(&d), "extra permissions");
    p.denied = p.extra;
    d = access_check(&p, &q);
    assert_string_equal(access_rule_text(&d), "denied permissions");
    assert_int_equal(access_effective(&p), 0);
    p.roles = ROLE_BIT(ROLE_ADMIN);
    d = access_check(&p, &q);
    assert_true(d.allowed);
    assert_string_equal(access_rule_text(&d), "admin:full_access");
    assert_int_equal(access_effective(&p), PERM_ALL14 | PERM_BIT(PERM_ADMIN));
    q.permission = (enum permission)99;
    assert_false(access_check(&p, &q).allowed);
    for (int rule = RULE_DEFAULT_DENY; rule <= RULE_QUOTA; rule++) {
        d.rule = (enum access_rule)rule;
        assert_string_not_equal(access_rule_text(&d), "?");
    }
}

static void patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *device;
        bool match;
    } t[] = {
        {"dione/cuda:0", "dione/cuda:0", true},
        {"dione/cuda:0", "dione/cuda:1", false},
        {"dione/*", "dione/cuda:1", true},
        {"dione/*", "rhea/cuda:1", false},
        {"*/cuda:0", "rhea/cuda:0", true},
        {"*/cuda:0", "rhea/vulkan:0", false},
        {"node/*/cuda:0", "rhea/cuda:0", true},
        {"node/dione/cuda:0", "rhea/cuda:0", false},
        {"node/cuda:0", "node/cuda:0", true},
        {"node/cuda:0", "rhea/cuda:0", false},
        {"*", "rhea/cuda:0", true},
        {"cuda:*", "rhea/cuda:3", true},
        {"cuda:0", "cuda:0", true},
        {"dione/cuda:0", "cuda:0", false},
        {"*/cuda:0", "cuda:0", true},
        {"d*/cuda:0", "cuda:0", false},
        {"d*", "dione/cuda:0", false},
        {"d*e/cuda:0", "dione/x/e/cuda:0", false},
        {"", "dione/cuda:0", false},
        {"dione/cuda:0", "", false},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        if (device_match(t[i].pattern, t[i].device) != t[i].match)
            fail_msg("%s on %s", t[i].pattern, t[i].device);
}

static void parsing_and_validation(void **state)
{
    (void)state;
    uint32_t set = 0;
    struct err e;
    assert_int_equal(permission_parse("monitor:*", &set, &e), ST_OK);
    assert_int_equal(__builtin_popcount(set), 4);
    set = 0;
    static const char *const bad[] = {"",   "*", ":*", "admin:*", "memory", "memory:", "memory:allocate ",
                                      "a:*"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(permission_parse(bad[i], &set, &e), ST_EINVAL);
    assert_int_equal(role_parse("root", &set, &e), ST_EINVAL);
    assert_int_equal(set, 0);

    struct policy p = {.principal = "user/alice"}, q;
    assert_int_equal(policy_validate(&p, &e), ST_OK);
    strcpy(p.devices[0], "node/*/cuda:0");
    strcpy(p.devices[1], "dione/vulkan:*");
    p.n_devices = 2;
    assert_int_equal(policy_validate(&p, &e), ST_OK);
    char text[POLICY_DEVICES_MAX * POLICY_PATTERN_MAX];
    assert_int_equal(policy_devices_join(&p, text, 8), ST_ELIMIT);
    assert_int_equal(policy_devices_join(&p, text, sizeof text), ST_OK);
    assert_int_equal(policy_devices_split(&q, text), ST_OK);
    assert_int_equal(q.n_devices, 2);
    assert_string_equal(q.devices[1], "dione/vulkan:*");
    assert_int_equal(policy_devices_split(&q, "a\n\nb"), ST_ECORRUPT);
    strcpy(p.devices[1], "a/b/c");
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    strcpy(p.devices[1], "a b");
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    p.n_devices = 1;
    p.denied = PERM_BIT(PERM_ADMIN);
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    p.denied = PERM_BIT(PERM_COUNT);
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    p.denied = 0;
    p.created_us = 10;
    p.expires_us = 10;
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    p.expires_us = 0;
    p.quota_bytes = UINT64_MAX;
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    p.quota_bytes = 0;
    strcpy(p.principal, "a b");
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
    p.principal[0] = 0;
    assert_int_equal(policy_validate(&p, &e), ST_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_combination),
                                       cmocka_unit_test(roles_are_as_written),
                                       cmocka_unit_test(default_deny_and_rules), cmocka_unit_test(patterns),
                                       cmocka_unit_test(parsing_and_validation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
