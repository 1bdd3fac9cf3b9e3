/* The agent's configuration file: what it takes, and that each mistake is named with its place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/config.h"
#include "common/base/fs.h"

#define BODY "node: dione\ncoordinator: \"127.0.0.1:7443\"\nstate: {dir: /s}\nmodels: {dirs: [/m, /n]}\n"
#define GOOD "version: 1\n" BODY "tls: {dir: /t, trust_domain: lab}\n"

static int read_text(const char *text, struct agent_config *c, struct err *e)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/strata-agent-config-%d.yaml", (int)getpid());
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0600, e), ST_OK);
    int rc = agent_config_read(c, path, e);
    unlink(path);
    return rc;
}

static void test_good(void **st)
{
    (void)st;
    struct agent_config c;
    struct err e;
    assert_int_equal(read_text(GOOD, &c, &e), ST_OK);
    assert_string_equal(c.node, "dione");
    assert_string_equal(c.listen, "127.0.0.1:0");
    assert_string_equal(c.ca_file, "/t/ca.crt");
    assert_string_equal(c.cert_file, "/t/node.crt");
    assert_string_equal(c.key_file, "/t/node.key");
    assert_null(c.worker);
    assert_true(c.nmodel_dirs == 2 && strcmp(c.model_dirs[1], "/n") == 0);
    assert_true(c.cpu == AGENT_BACKEND_AUTO && c.cpu_memory_bytes == 0 && c.log_level == LOG_LV_INFO);
    agent_config_fini(&c);
    assert_int_equal(
        read_text(
            "version: 1\n" BODY
            "tls: {ca: /a, cert: /b, key: /c, trust_domain: lab}\nlisten: 0.0.0.0:7\nadvertise: dione.lab\n"
            "worker: /w\nbackends: {cpu: on, vulkan: off}\ncpu_memory: 1GiB\nlog: debug\n",
            &c, &e),
        ST_OK);
    assert_string_equal(c.key_file, "/c");
    assert_string_equal(c.worker, "/w");
    assert_true(c.cpu == AGENT_BACKEND_ON && c.vulkan == AGENT_BACKEND_OFF && c.cuda == AGENT_BACKEND_AUTO);
    assert_true(c.cpu_memory_bytes == 1u << 30 && c.log_level == LOG_LV_DEBUG);
    agent_config_fini(&c);
}

static void test_bad(void **st)
{
    (void)st;
    static const struct {
        const char *text, *says;
    } row[] = {
        {GOOD "wroker: x\n", "wroker"},
        {GOOD "wroker: x\n", ":7:1: unknown key"},
        {GOOD "backends: {cpu: maybe}\n", "backends.cpu"},
        {GOOD "backends: {rocm: on}\n", "rocm"},
        {GOOD "cpu_memory: lots\n", "cpu_memory"},
        {GOOD "log: loud\n", "loud"},
        {"version: 1\nnode: a\ncoordinator: \"a:1\"\nstate: {dir: /s, spool: 1KiB}\nmodels: {dirs: [/m]}\n"
         "tls: {dir: /t, trust_domain: lab}\n",
         "state.spool"},
        {GOOD "user_kernels: {allow: maybe}\n", "neither on nor off"},
        {GOOD "user_kernels: {time: 1s}\n", "allow"},
        {GOOD "user_kernels: {allow: on, max_bytes: 1MiB}\n", "512KiB"},
        {GOOD "user_kernels: {allow: on, max_bytes: 0}\n", "512KiB"},
        {GOOD "user_kernels: {allow: on, time: 9s}\n", "8s"},
        {GOOD "user_kernels: {allow: on, time: 0s}\n", "8s"},
        {GOOD "listen: nowhere\n", "host:port"},
        {GOOD "listen: 0.0.0.0:7000\n", "advertise"},
        {GOOD "x: &a b\ny: *a\n", "yaml"},
        {"version: 2\n" BODY "tls: {dir: /t, trust_domain: lab}\n", "version 2"},
        {"version: 1\n" BODY "tls: {trust_domain: lab}\n", "either dir"},
        {"version: 1\n" BODY "tls: {dir: /t, ca: /x, trust_domain: lab}\n", "either dir"},
        {"version: 1\n" BODY, "tls"},
        {"version: 1\nnode: a/b\ncoordinator: \"a:1\"\nstate: {dir: /s}\nmodels: {dirs: [/m]}\n"
         "tls: {dir: /t, trust_domain: lab}\n",
         "a/b"},
        {"version: 1\nnode: a\ncoordinator: \"a:1\"\nstate: {dir: /s}\nmodels: {dirs: [m]}\n"
         "tls: {dir: /t, trust_domain: lab}\n",
         "absolute"},
        {"version: 1\nnode: a\ncoordinator: \"a:1\"\nstate: {dir: /s}\nmodels: {dirs: []}\n"
         "tls: {dir: /t, trust_domain: lab}\n",
         "dirs"},
        {"", "yaml"},
        {"{{{{", "yaml"},
    };
    for (unsigned i = 0; i < sizeof row / sizeof *row; i++) {
        struct agent_config c;
        struct err e = {0};
        assert_int_equal(read_text(row[i].text, &c, &e), ST_ECONFIG);
        if (!strstr(e.text, row[i].says))
            fail_msg("row %u: '%s' does not say '%s'", i, e.text, row[i].says);
    }
    struct agent_config c;
    struct err e;
    assert_int_equal(read_text(GOOD, &c, &e), ST_OK);
    assert_false(c.user_kernels.allow); /* off unless the file says otherwise */
    agent_config_fini(&c);
    assert_int_equal(read_text(GOOD "user_kernels: {allow: on, time: 2s}\n", &c, &e), ST_OK);
    assert_true(c.user_kernels.allow && c.user_kernels.deadline_ns == 2000000000ull &&
                c.user_kernels.max_bytes == 256u << 10);
    agent_config_fini(&c);
    assert_int_equal(agent_config_read(&c, "/nonexistent.yaml", &e), ST_ECONFIG);
    assert_non_null(strstr(e.text, "/nonexistent.yaml"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
