/* Tickets: round trip, each refusal with its own reason, and every byte of a ticket flipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/ticket/ticket.h"

#define NOW 1700000000000000ll

struct env {
    char dir[64], path[128];
    struct ticket_key *key, *other;
    uint8_t pub[TICKET_PUB_LEN], holder[32];
    struct ticket t;
};

static int setup(void **st)
{
    struct env *v = calloc(1, sizeof *v);
    struct err e = {0};
    char p[128];
    assert_non_null(v);
    strcpy(v->dir, "/tmp/strata-ticket-XXXXXX");
    assert_non_null(mkdtemp(v->dir));
    assert_int_equal(fs_join(v->path, sizeof v->path, v->dir, "ticket.key"), ST_OK);
    assert_int_equal(fs_join(p, sizeof p, v->dir, "other.key"), ST_OK);
    assert_int_equal(ticket_key_create(v->path, &e), ST_OK);
    assert_int_equal(ticket_key_create(p, &e), ST_OK);
    assert_int_equal(ticket_key_load(&v->key, v->path, &e), ST_OK);
    assert_int_equal(ticket_key_load(&v->other, p, &e), ST_OK);
    ticket_key_public(v->key, v->pub);
    rng_system()->fill(rng_system()->arg, v->holder, sizeof v->holder);
    v->t = (struct ticket){.purpose = TICKET_FETCH,
                           .node = "dione",
                           .resource = "job/j-17/layer/3",
                           .limit_bytes = 1ull << 33,
                           .issued_us = NOW,
                           .expires_us = NOW + 60000000};
    memcpy(v->t.holder, v->holder, 32);
    ticket_serial(rng_system(), v->t.serial);
    *st = v;
    return 0;
}

static int teardown(void **st)
{
    struct env *v = *st;
    char cmd[128];
    ticket_key_free(v->key);
    ticket_key_free(v->other);
    snprintf(cmd, sizeof cmd, "rm -r '%s'", v->dir);
    assert_int_equal(system(cmd), 0);
    free(v);
    return 0;
}

static void test_round_trip(void **st)
{
    struct env *v = *st;
    uint8_t w[TICKET_MAX];
    size_t n = 0;
    struct ticket got;
    struct err e;
    assert_int_equal(ticket_sign(v->key, &v->t, w, &n, &e), ST_OK);
    assert_int_equal(ticket_verify(v->pub, w, n, NOW + 1, "dione", v->holder, &got, &e), ST_OK);
    assert_memory_equal(got.serial, v->t.serial, sizeof got.serial);
    assert_int_equal(got.purpose, TICKET_FETCH);
    assert_string_equal(got.node, "dione");
    assert_string_equal(got.resource, "job/j-17/layer/3");
    assert_true(got.limit_bytes == 1ull << 33 && got.issued_us == NOW && got.expires_us == NOW + 60000000);
    /* The largest there can be. */
    memset(v->t.node, 'n', TICKET_NODE_MAX);
    memset(v->t.resource, 'r', TICKET_RESOURCE_MAX);
    assert_int_equal(ticket_sign(v->key, &v->t, w, &n, &e), ST_OK);
    assert_int_equal(n, TICKET_PLAIN_MAX);
    assert_int_equal(ticket_verify(v->pub, w, n, NOW, v->t.node, v->holder, &got, NULL), ST_OK);
}

/* A device ticket with every field as long as it may be. */
static struct ticket device_ticket(const struct env *v)
{
    struct ticket t = v->t;
    t.purpose = TICKET_DEVICE;
    t.grant = (struct ticket_grant){.permissions = PERM_BIT(PERM_DEVICE_LIST) | PERM_BIT(PERM_MONITOR_CLOCK),
                                    .generation = 1ull << 40 | 7,
                                    .principal = "user/alice",
                                    .n_devices = 2,
                                    .devices = {"cpu:0", "cuda:*"}};
    memset(t.grant.session, 0x5e, sizeof t.grant.session);
    return t;
}

static void test_device_ticket(void **st)
{
    struct env *v = *st;
    uint8_t w[TICKET_MAX];
    size_t n = 0;
    struct ticket got, t = device_ticket(v);
    struct err e;
    assert_int_equal(ticket_sign(v->key, &t, w, &n, &e), ST_OK);
    assert_int_equal(ticket_verify(v->pub, w, n, NOW + 1, "dione", v->holder, &got, &e), ST_OK);
    assert_memory_equal(&got.grant, &t.grant, sizeof t.grant);
    for (unsigned p = 0; p < PERM_COUNT; p++)
        assert_int_equal(ticket_grants(&got, (enum permission)p),
                         p == PERM_DEVICE_LIST || p == PERM_MONITOR_CLOCK);
    assert_true(ticket_device_ok(&got, "cpu:0") && ticket_device_ok(&got, "cuda:11"));
    assert_false(ticket_device_ok(&got, "cpu:1") || ticket_device_ok(&got, "vulkan:0"));
    got.grant.permissions = PERM_BIT(PERM_ADMIN);
    assert_true(ticket_grants(&got, PERM_MEMORY_ALLOCATE) && ticket_grants(&got, PERM_ADMIN));
    got.purpose = TICKET_FETCH;
    assert_false(ticket_grants(&got, PERM_MEMORY_ALLOCATE) || ticket_device_ok(&got, "cpu:0"));

    memset(t.node, 'n', TICKET_NODE_MAX);
    memset(t.resource, 'r', TICKET_RESOURCE_MAX);
    memset(t.grant.principal, 'p', TICKET_PRINCIPAL_MAX);
    t.grant.n_devices = TICKET_DEVICES_MAX;
    for (unsigned i = 0; i < TICKET_DEVICES_MAX; i++)
        memset(t.grant.devices[i], 'd', TICKET_DEVICE_MAX);
    assert_int_equal(ticket_sign(v->key, &t, w, &n, &e), ST_OK);
    assert_int_equal(n, TICKET_MAX);
    assert_int_equal(ticket_verify(v->pub, w, n, NOW, t.node, v->holder, &got, NULL), ST_OK);
    assert_memory_equal(&got.grant, &t.grant, sizeof t.grant);
}

static void test_device_refusals(void **st)
{
    struct env *v = *st;
    uint8_t w[TICKET_MAX];
    size_t n = 0;
    const struct ticket good = device_ticket(v);
    struct ticket bad[9];
    for (size_t i = 0; i < 9; i++)
        bad[i] = good;
    bad[0].grant.permissions = 0;
    bad[1].grant.permissions |= 1u << PERM_COUNT;
    memset(bad[2].grant.session, 0, TICKET_SESSION_LEN);
    bad[3].grant.principal[0] = 0;
    str_copy(bad[4].grant.principal, sizeof bad[4].grant.principal, "user/a b");
    bad[5].grant.n_devices = 0;
    bad[6].grant.n_devices = TICKET_DEVICES_MAX + 1;
    bad[7].grant.devices[1][0] = 0;
    str_copy(bad[8].grant.devices[0], sizeof bad[8].grant.devices[0], "rhea/cpu:0");
    for (size_t i = 0; i < 9; i++)
        if (ticket_sign(v->key, &bad[i], w, &n, NULL) != ST_EINVAL)
            fail_msg("bad device ticket %zu was signed", i);
    assert_int_equal(n, 0);
}

static void want(struct env *v, const uint8_t *w, size_t n, const uint8_t *pub, int64_t now, const char *node,
                 const uint8_t *holder, const char *reason)
{
    struct ticket got, untouched;
    struct err e = {0};
    memset(&got, 0x5a, sizeof got);
    memset(&untouched, 0x5a, sizeof untouched);
    (void)v;
    int rc = ticket_verify(pub, w, n, now, node, holder, &got, &e);
    if (rc != ST_ETRUST || strcmp(e.reason, reason))
        fail_msg("got %s '%s', want %s", status_name(rc), e.reason, reason);
    assert_memory_equal(&got, &untouched, sizeof got);
    assert_int_equal(ticket_verify(pub, w, n, now, node, holder, &got, NULL), ST_ETRUST);
}

static void test_refusals(void **st)
{
    struct env *v = *st;
    uint8_t w[TICKET_MAX + 1] = {0}, other[TICKET_PUB_LEN], thief[32];
    size_t n = 0;
    struct ticket got;
    assert_int_equal(ticket_sign(v->key, &v->t, w, &n, NULL), ST_OK);
    memcpy(thief, v->holder, 32);
    thief[31] ^= 1;
    ticket_key_public(v->other, other);
    int64_t end = v->t.expires_us;
    want(v, w, n, v->pub, end, "dione", v->holder, "TICKET_EXPIRED");
    assert_int_equal(ticket_verify(v->pub, w, n, end - 1, "dione", v->holder, &got, NULL), ST_OK);
    want(v, w, n, v->pub, NOW - TICKET_SKEW_US - 1, "dione", v->holder, "TICKET_NOT_YET_VALID");
    assert_int_equal(ticket_verify(v->pub, w, n, NOW - TICKET_SKEW_US, "dione", v->holder, &got, NULL),
                     ST_OK);
    want(v, w, n, v->pub, NOW, "rhea", v->holder, "TICKET_WRONG_NODE");
    want(v, w, n, v->pub, NOW, "dion", v->holder, "TICKET_WRONG_NODE");
    want(v, w, n, v->pub, NOW, "dione", thief, "TICKET_WRONG_HOLDER");
    want(v, w, n, other, NOW, "dione", v->holder, "TICKET_FORGED");
    want(v, w, n + 1, v->pub, NOW, "dione", v->holder, "TICKET_FORGED");
    for (size_t i = 0; i < n; i++)
        want(v, w, i, v->pub, NOW, "dione", v->holder, "TICKET_FORGED");
}

static void every_bit(struct env *v, const struct ticket *t)
{
    uint8_t w[TICKET_MAX];
    size_t n = 0;
    assert_int_equal(ticket_sign(v->key, t, w, &n, NULL), ST_OK);
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit++) {
            w[i] ^= (uint8_t)(1u << bit);
            want(v, w, n, v->pub, NOW, "dione", v->holder, "TICKET_FORGED");
            w[i] ^= (uint8_t)(1u << bit);
        }
    for (size_t i = 0; i < n; i++)
        want(v, w, i, v->pub, NOW, "dione", v->holder, "TICKET_FORGED");
}

static void test_every_bit(void **st)
{
    struct env *v = *st;
    const struct ticket t = device_ticket(v);
    every_bit(v, &v->t);
    every_bit(v, &t);
}

static void test_no_bad_ticket_is_signed(void **st)
{
    struct env *v = *st;
    uint8_t w[TICKET_MAX];
    size_t n = 0;
    struct err e;
    const struct ticket good = v->t;
    struct ticket bad[8];
    for (size_t i = 0; i < 8; i++)
        bad[i] = good;
    bad[0].purpose = (enum ticket_purpose)0;
    bad[1].purpose = (enum ticket_purpose)(TICKET_BENCH + 1);
    bad[2].node[0] = 0;
    str_copy(bad[3].node, sizeof bad[3].node, "../x");
    bad[4].resource[0] = 0;
    str_copy(bad[5].resource, sizeof bad[5].resource, "a b");
    bad[6].expires_us = bad[6].issued_us;
    bad[7].expires_us = bad[7].issued_us + TICKET_MAX_LIFE_US + 1;
    for (size_t i = 0; i < 8; i++)
        if (ticket_sign(v->key, &bad[i], w, &n, &e) != ST_EINVAL)
            fail_msg("bad ticket %zu was signed", i);
    assert_int_equal(n, 0);
}

static void test_keys(void **st)
{
    struct env *v = *st;
    struct ticket_key *k = NULL;
    struct err e;
    struct stat sb;
    char p[128];
    assert_int_equal(stat(v->path, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    assert_int_equal(ticket_key_create(v->path, &e), ST_EEXIST);
    assert_int_equal(chmod(v->path, 0644), 0);
    assert_int_equal(ticket_key_load(&k, v->path, &e), ST_EDENIED);
    assert_non_null(strstr(e.text, "chmod 600"));
    assert_int_equal(fs_join(p, sizeof p, v->dir, "junk"), ST_OK);
    assert_int_equal(ticket_key_load(&k, p, &e), ST_ENOENT);
    assert_int_equal(fs_write_atomic(p, "junk", 4, 0600, &e), ST_OK);
    assert_int_equal(ticket_key_load(&k, p, &e), ST_ETRUST);
    assert_null(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_device_ticket, setup, teardown),
        cmocka_unit_test_setup_teardown(test_device_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_bit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_bad_ticket_is_signed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_keys, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
