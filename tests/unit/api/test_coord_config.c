/* The coordinator's configuration file: what it takes, and that each mistake is named with its place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/fs.h"
#include "coordinator/config/config.h"

#define GOOD "version: 1\nlisten: \"127.0.0.1:7443\"\ntls: {dir: /t, trust_domain: lab}\nstate: {dir: /s}\n"

static int read_text(const char *text, struct coord_config *c, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/strata-config-%d.yaml", (int)getpid());
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0600, e), ST_OK);
    int rc = coord_config_read(c, path, e);
    unlink(path);
    return rc;
}

static void test_good(void **st)
{
    (void)st;
    struct coord_config c;
    struct err e;
    assert_int_equal(read_text(GOOD, &c, &e), ST_OK);
    assert_string_equal(c.admin, "user/admin");
    assert_true(c.lost_ns == 5000000000ull && c.heartbeat_ns == 1000000000ull);
    coord_config_fini(&c);
    assert_int_equal(read_text(GOOD "admin: user/root\nlog: debug\naudit: {echo: true}\n"
                                    "lease: {interval: 100ms, suspect: 300ms, dead: 500ms}\n"
                                    "default_link: {bytes_per_s: 1GiB, rtt: 100us}\n"
                                    "links: [{from: a, to: b, bytes_per_s: 125MB, rtt: 1ms}]\n",
                               &c, &e),
                     ST_OK);
    assert_true(c.nlinks == 1 && c.links[0].bytes_per_s == 125e6 && c.links[0].rtt_ns == 1000000);
    assert_true(c.audit.echo && c.log_level == LOG_LV_DEBUG && c.default_bytes_per_s == 1073741824.0);
    coord_config_fini(&c);
}

static void test_bad(void **st)
{
    (void)st;
    static const struct {
        const char *text, *says;
    } row[] = {
        {GOOD "lisen: x\n", "lisen"},
        {GOOD "lisen: x\n", ":5:1: unknown key"},
        {GOOD "lease: {interval: 5s}\n", "interval < suspect"},
        {GOOD "lease: {dead: soon}\n", "lease.dead"},
        {GOOD "log: loud\n", "loud"},
        {GOOD "admin: root\n", "user/NAME"},
        {GOOD "default_link: {bytes_per_s: 0, rtt: 1ms}\n", "default_link.bytes_per_s"},
        {GOOD "links: [{from: a, to: b, bytes_per_s: fast, rtt: 1ms}]\n", "links[].bytes_per_s"},
        {GOOD "x: &a b\ny: *a\n", "yaml"},
        {"version: 2\nlisten: a\ntls: {dir: /t, trust_domain: lab}\nstate: {dir: /s}\n", "version 2"},
        {"version: 1\n", "listen"},
        {"", "yaml"},
        {"{{{{", "yaml"},
        {"\xff\xfe\x00garbage", "yaml"},
    };
    for (unsigned i = 0; i < sizeof row / sizeof *row; i++) {
        struct coord_config c;
        struct err e = {0};
        assert_int_equal(read_text(row[i].text, &c, &e), ST_ECONFIG);
        if (!strstr(e.text, row[i].says))
            fail_msg("row %u: '%s' does not say '%s'", i, e.text, row[i].says);
    }
    struct coord_config c;
    struct err e;
    assert_int_equal(coord_config_read(&c, "/nonexistent.yaml", &e), ST_ECONFIG);
    assert_non_null(strstr(e.text, "/nonexistent.yaml"));
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
