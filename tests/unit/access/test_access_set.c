/* The set of compiled policies against a plain array of them; handles, devices, expiry. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/access/set.h"

static uint64_t seed = 42;
static uint64_t rnd(uint64_t below)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (seed >> 33) % below;
}

static struct policy make(const char *name, unsigned roles)
{
    struct policy p = {.roles = roles, .generation = 1};
    snprintf(p.principal, sizeof p.principal, "%s", name);
    return p;
}

static struct decision ask(const struct access_set *s, const char *who, enum permission perm,
                           const char *device, int64_t now)
{
    return access_set_ask(s, who,
                          &(struct access_request){.permission = perm, .device = device, .now_us = now});
}

static void handles(void **state)
{
    (void)state;
    struct access_set *s;
    struct err e;
    assert_int_equal(access_set_new(&s, rng_system()), ST_OK);
    assert_int_equal(access_set_find(s, "user/a", 6).slot, 0);
    struct policy p = make("user/a", ROLE_BIT(ROLE_USER));
    assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    struct access_handle h = access_set_find(s, "user/a", 6);
    assert_true(access_set_decide(s, h, PERM_MEMORY_ALLOCATE, 0, 1).allowed);
    p.roles = ROLE_BIT(ROLE_MONITOR);
    p.generation = 2;
    assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    struct decision d = access_set_decide(s, h, PERM_MEMORY_ALLOCATE, 0, 1);
    assert_int_equal(d.reason, ACCESS_MISSING_PERMISSION); /* swapped under the handle */
    assert_int_equal(d.generation, 2);
    assert_true(access_set_del(s, "user/a"));
    assert_false(access_set_del(s, "user/a"));
    assert_int_equal(access_set_decide(s, h, PERM_DEVICE_LIST, 0, 1).reason, ACCESS_NO_POLICY);
    struct policy b = make("user/b", ROLE_BIT(ROLE_ADMIN)); /* takes the vacant place */
    assert_int_equal(access_set_put(s, &b, &e), ST_OK);
    assert_int_equal(access_set_decide(s, h, PERM_DEVICE_LIST, 0, 1).reason, ACCESS_NO_POLICY);
    assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    assert_int_equal(access_set_decide(s, h, PERM_DEVICE_LIST, 0, 1).reason, ACCESS_NO_POLICY);
    const struct access_handle wrong[] = {{0, 0}, {99, 1}, {h.slot, h.stamp + 77}};
    for (unsigned i = 0; i < 3; i++)
        assert_false(access_set_decide(s, wrong[i], PERM_DEVICE_LIST, 0, 1).allowed);
    struct policy bad = make("a b", 1);
    assert_int_equal(access_set_put(s, &bad, &e), ST_EINVAL);
    assert_int_equal(access_set_count(s), 2);
    access_set_free(s);
    access_set_free(NULL);
}

static void devices(void **state)
{
    (void)state;
    struct access_set *s;
    struct err e;
    assert_int_equal(access_set_new(&s, rng_system()), ST_OK);
    uint32_t before = access_set_device(s, "rhea/cuda:0");
    struct policy p = make("user/a", ROLE_BIT(ROLE_USER)), q = make("user/b", ROLE_BIT(ROLE_USER)), out;
    strcpy(p.devices[0], "dione/*");
    strcpy(p.devices[1], "rhea/cuda:*");
    p.n_devices = 2;
    memcpy(q.devices, p.devices, sizeof p.devices);
    q.n_devices = 2;
    assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    assert_int_equal(access_set_put(s, &q, &e), ST_OK);
    struct access_handle h = access_set_find(s, "user/a", 6);
    char id[64];
    for (unsigned i = 0; i < 3000; i++) { /* far apart, so that the mask has to grow both ways */
        snprintf(id, sizeof id, "%s/cuda:%u", i % 500 == 499 ? "dione" : "other", i);
        uint32_t n = access_set_device(s, id);
        assert_int_equal(access_set_device(s, id), n);
        struct decision d = access_set_decide(s, h, PERM_DEVICE_INFO, n, 1);
        assert_int_equal(d.allowed, i % 500 == 499);
        assert_int_equal(d.reason, d.allowed ? ACCESS_OK : ACCESS_DEVICE_NOT_ALLOWED);
    }
    assert_true(access_set_decide(s, h, PERM_DEVICE_INFO, before, 1).allowed);
    assert_false(access_set_decide(s, h, PERM_DEVICE_INFO, ACCESS_UNKNOWN_DEVICE, 1).allowed);
    assert_true(ask(s, "user/b", PERM_DEVICE_INFO, "dione/never:seen", 1).allowed);
    assert_false(ask(s, "user/b", PERM_DEVICE_INFO, "rhea/vulkan:0", 1).allowed);
    p.n_devices = 1; /* narrowed; the other keeps the list they shared */
    assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    assert_false(access_set_decide(s, h, PERM_DEVICE_INFO, before, 1).allowed);
    assert_true(ask(s, "user/b", PERM_DEVICE_INFO, "rhea/cuda:0", 1).allowed);
    assert_true(access_set_get(s, "user/a", &out));
    assert_int_equal(out.n_devices, 1);
    assert_string_equal(out.devices[0], "dione/*");
    assert_false(access_set_get(s, "user/none", &out));
    access_set_free(s);
}

static void expiry(void **state)
{
    (void)state;
    struct access_set *s;
    struct err e;
    char name[40];
    assert_int_equal(access_set_new(&s, rng_system()), ST_OK);
    assert_int_equal(access_set_next_expiry(s), INT64_MAX);
    for (unsigned i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "user/%u", i);
        struct policy p = make(name, ROLE_BIT(ROLE_USER));
        p.expires_us = i % 5 ? 1000 + (int64_t)((i * 7919u) % 500) : 0;
        assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    }
    struct policy longer = make("user/1", ROLE_BIT(ROLE_USER));
    longer.expires_us = 5000;
    assert_int_equal(access_set_put(s, &longer, &e), ST_OK);
    assert_true(ask(s, "user/1", PERM_DEVICE_LIST, NULL, 4999).allowed);
    assert_int_equal(ask(s, "user/1", PERM_DEVICE_LIST, NULL, 5000).reason, ACCESS_EXPIRED);
    unsigned gone = 0;
    for (int64_t now = 999; now < 1500; now++) {
        const char *who;
        assert_true(access_set_next_expiry(s) >= now);
        while ((who = access_set_pop_expired(s, now))) {
            struct policy p;
            assert_true(access_set_get(s, who, &p));
            assert_int_equal(p.expires_us, now);
            assert_int_equal(ask(s, who, PERM_DEVICE_LIST, NULL, now).reason, ACCESS_EXPIRED);
            strcpy(name, who);
            assert_true(access_set_del(s, name));
            gone++;
        }
    }
    assert_int_equal(gone, 399);
    assert_int_equal(access_set_count(s), 101);
    assert_int_equal(access_set_next_expiry(s), 5000);
    longer.expires_us = 0;
    assert_int_equal(access_set_put(s, &longer, &e), ST_OK);
    assert_int_equal(access_set_next_expiry(s), INT64_MAX);
    assert_null(access_set_pop_expired(s, INT64_MAX));
    access_set_free(s);
}

/* Linked with --wrap: every allocation of this program comes through here. */
static unsigned long allocations;
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    allocations++;
    return __real_malloc(n);
}
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    allocations++;
    return __real_calloc(n, size);
}
void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n)
{
    allocations++;
    return __real_realloc(p, n);
}

static void decisions_allocate_nothing(void **state)
{
    (void)state;
    struct access_set *s;
    struct err e;
    unsigned long allowed = 0;
    assert_int_equal(access_set_new(&s, rng_system()), ST_OK);
    struct policy p = make("user/a", ROLE_BIT(ROLE_USER));
    strcpy(p.devices[0], "dione/*");
    p.n_devices = 1;
    assert_int_equal(access_set_put(s, &p, &e), ST_OK);
    uint32_t dev = access_set_device(s, "dione/cuda:0");
    unsigned long before = allocations;
    assert_true(before > 0); /* the counter counts */
    for (unsigned i = 0; i < 1000; i++) {
        struct access_handle h = access_set_find(s, "user/a", 6);
        allowed += access_set_decide(s, h, (enum permission)(i % PERM_COUNT), dev, 1).allowed;
        allowed += ask(s, "user/a", PERM_DEVICE_LIST, "dione/never:seen", 1).allowed;
        allowed += ask(s, "user/none", PERM_DEVICE_LIST, NULL, 1).allowed;
    }
    assert_int_equal(allocations, before);
    assert_true(allowed > 1000);
    access_set_free(s);
}

#define NAMES 600
struct model {
    bool there;
    unsigned roles;
    uint64_t generation;
};

static int counts(const char *who, void *arg)
{
    (void)who;
    ++*(unsigned *)arg;
    return 0;
}

/* Random puts and removals, many in one chain of the index; after each the whole set answers as the array. */
static void as_the_plain_array(void **state)
{
    (void)state;
    struct access_set *s;
    struct err e;
    struct model m[NAMES] = {{0}};
    char name[200];
    assert_int_equal(access_set_new(&s, rng_system()), ST_OK);
    for (unsigned step = 0; step < 20000; step++) {
        unsigned i = (unsigned)rnd(NAMES);
        /* Every tenth name is too long for the second cache line. */
        snprintf(name, sizeof name, i % 10 ? "user/%u" : "user/%0120u", i);
        if (rnd(3)) {
            struct policy p = make(name, (unsigned)rnd(16));
            p.generation = step + 1;
            assert_int_equal(access_set_put(s, &p, &e), ST_OK);
            m[i] = (struct model){true, p.roles, p.generation};
        } else {
            assert_int_equal(access_set_del(s, name), m[i].there);
            m[i].there = false;
        }
        unsigned k = (unsigned)rnd(NAMES);
        snprintf(name, sizeof name, k % 10 ? "user/%u" : "user/%0120u", k);
        struct decision d = ask(s, name, PERM_MEMORY_ALLOCATE, NULL, 1);
        bool want = m[k].there &&
                    (m[k].roles & (ROLE_BIT(ROLE_USER) | ROLE_BIT(ROLE_POWER_USER) | ROLE_BIT(ROLE_ADMIN)));
        assert_int_equal(d.allowed, want);
        assert_int_equal(d.generation, m[k].there ? m[k].generation : 0);
    }
    unsigned there = 0, seen = 0;
    for (unsigned i = 0; i < NAMES; i++)
        there += m[i].there;
    assert_int_equal(access_set_each(s, counts, &seen), 0);
    assert_int_equal(seen, there);
    assert_int_equal(access_set_count(s), there);
    access_set_free(s);
}

static void made_from_a_role(void **state)
{
    (void)state;
    struct policy p;
    struct err e;
    char name[POLICY_PRINCIPAL_MAX];
    assert_int_equal(policy_from_role(&p, "user/a", ROLE_POWER_USER, 7, &e), ST_OK);
    assert_int_equal(access_effective(&p), PERM_ALL14);
    assert_int_equal(p.created_us, 7);
    assert_int_equal(policy_sensible(&p, 8, &e), ST_OK);
    assert_int_equal(policy_from_role(&p, "a b", ROLE_USER, 7, &e), ST_EINVAL);
    p.expires_us = 8;
    assert_int_equal(policy_sensible(&p, 8, &e), ST_EINVAL);
    assert_string_equal(e.reason, "EXPIRY_IN_PAST");
    p.expires_us = 0;
    p.extra = p.denied = PERM_BIT(PERM_MONITOR_CLOCK);
    assert_int_equal(policy_sensible(&p, 8, &e), ST_EINVAL);
    assert_string_equal(e.reason, "CONTRADICTORY_POLICY");
    p.extra = PERM_BIT(PERM_ADMIN);
    assert_int_equal(policy_sensible(&p, 8, &e), ST_EINVAL);
    p.denied = 0;
    static const char *const bad[] = {"alice",    "user/",   "group/x",
                                      "user/a/b", "users/a", "spiffe://x/user/a"};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        strcpy(p.principal, bad[i]);
        assert_int_equal(policy_sensible(&p, 8, &e), ST_EINVAL);
        assert_string_equal(e.reason, "UNKNOWN_PRINCIPAL");
    }
    assert_int_equal(policy_principal_short(name, "spiffe://x.y/user/a", "x.y"), ST_OK);
    assert_string_equal(name, "user/a");
    assert_int_equal(policy_principal_short(name, "spiffe://x.yz/user/a", "x.y"), ST_OK);
    assert_string_equal(name, "spiffe://x.yz/user/a");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handles),          cmocka_unit_test(devices),
        cmocka_unit_test(expiry),           cmocka_unit_test(as_the_plain_array),
        cmocka_unit_test(made_from_a_role), cmocka_unit_test(decisions_allocate_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
