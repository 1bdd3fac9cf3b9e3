/* The program itself: exit codes of check-config and run, and that SIGTERM ends it cleanly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/wait.h>

#include "common/base/fs.h"
#include "common/tls/tls.h"

static char dir[64];

static void put_config(const char *name, const char *node, const char *more)
{
    char path[160], text[1500];
    struct err e;
    int n = snprintf(text, sizeof text,
                     "version: 1\nnode: %s\ncoordinator: \"127.0.0.1:1\"\nstate: {dir: %s/state}\n"
                     "models: {dirs: [%s]}\nworker: %s\nbackends: {vulkan: off}\n"
                     "tls: {dir: %s, trust_domain: lab}\n%s",
                     node, dir, dir, STRATA_WORKER, dir, more);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(fs_write_atomic(path, text, (size_t)n, 0600, &e), ST_OK);
}

static int setup(void **st)
{
    struct tls_ca *ca;
    struct err e;
    char crt[160], key[160];
    int64_t now = clock_wall_us(clock_system());
    const struct tls_issue what = {.kind = TLS_NODE,
                                   .name = "dione",
                                   .not_before_us = now - 60000000ll,
                                   .not_after_us = now + 3600 * 1000000ll};
    (void)st;
    strcpy(dir, "/tmp/strata-agent-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(crt, sizeof crt, "%s/node.crt", dir);
    snprintf(key, sizeof key, "%s/node.key", dir);
    assert_int_equal(tls_ca_create(dir, "lab", 2, clock_system(), &e), ST_OK);
    assert_int_equal(tls_ca_load(&ca, dir, &e), ST_OK);
    assert_int_equal(tls_ca_issue(ca, &what, crt, key, &e), ST_OK);
    tls_ca_free(ca);
    put_config("good.yaml", "dione", "");
    put_config("typo.yaml", "dione", "lisen: x\n");
    put_config("other.yaml", "rhea", "");
    return 0;
}

static int teardown(void **st)
{
    char cmd[100];
    (void)st;
    snprintf(cmd, sizeof cmd, "rm -rf -- '%s'", dir);
    return system(cmd);
}

/* Runs strata-agent with stdout and stderr on one pipe. */
static pid_t start(const char *verb, const char *file, int *out)
{
    char path[160];
    int p[2];
    assert_int_equal(pipe(p), 0);
    snprintf(path, sizeof path, "%s/%s", dir, file);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(p[1], 1);
        dup2(p[1], 2);
        close(p[0]);
        close(p[1]);
        if (file[0])
            execl(STRATA_AGENT, "strata-agent", verb, "--config", path, (char *)NULL);
        else
            execl(STRATA_AGENT, "strata-agent", verb, (char *)NULL);
        _exit(99);
    }
    close(p[1]);
    *out = p[0];
    return pid;
}

/* Reads until the text was seen (true) or the pipe ended. */
static bool read_until(int fd, const char *text, char *buf, size_t cap)
{
    size_t n = 0;
    ssize_t k;
    buf[0] = 0;
    while (n + 1 < cap && (!text || !strstr(buf, text)) && (k = read(fd, buf + n, cap - 1 - n)) > 0) {
        n += (size_t)k;
        buf[n] = 0;
    }
    return text && strstr(buf, text);
}

static void expect(const char *verb, const char *file, int code, const char *says)
{
    char text[8192];
    int fd, status;
    pid_t pid = start(verb, file, &fd);
    read_until(fd, NULL, text, sizeof text);
    close(fd);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code || !strstr(text, says))
        fail_msg("%s %s: status %x, not exit code %d; it said: %s", verb, file, (unsigned)status, code, text);
}

static void test_codes(void **st)
{
    (void)st;
    expect("check-config", "good.yaml", 0, "ok: node dione");
    expect("check-config", "typo.yaml", 78, "lisen");
    expect("run", "typo.yaml", 78, ":9:1: unknown key");
    expect("run", "missing.yaml", 78, "missing.yaml");
    expect("check-config", "other.yaml", 5, "node/dione");
    expect("run", "other.yaml", 5, "node/rhea");
    expect("dance", "good.yaml", 2, "usage");
    expect("run", "", 2, "usage");
}

static void test_sigterm(void **st)
{
    (void)st;
    char text[8192];
    int fd, status;
    pid_t pid = start("run", "good.yaml", &fd);
    if (!read_until(fd, "device=cpu:0", text, sizeof text))
        fail_msg("no device found: %s", text);
    assert_int_equal(kill(pid, SIGTERM), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(fd);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_codes), cmocka_unit_test(test_sigterm)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
