/* libstrata against a server in a process of its own: calls, streams, interrupts, and each way not to
 * connect. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/fs.h"
#include "common/client/include/strata/client.h"
#include "tests/unit/rpc/rpcpeer.h"

struct env {
    struct pki pki;
    pid_t pid;
    uint16_t port;
};

static void file(const struct env *v, const char *name, const char *text)
{
    char path[160];
    struct err e;
    snprintf(path, sizeof path, "%s/%s", v->pki.dir, name);
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0600, &e), ST_OK);
}

static void yaml(const struct env *v, const char *domain, uint16_t port, const char *more)
{
    char text[300];
    snprintf(text, sizeof text, "coordinator: 127.0.0.1:%u\ntrust_domain: %s\n%s", port, domain, more);
    file(v, "client.yaml", text);
}

static void issue(const struct env *v, struct tls_ca *ca)
{
    char crt[160], key[160];
    struct err e;
    int64_t now = clock_wall_us(clock_system());
    struct tls_issue is = {.kind = TLS_USER,
                           .name = "alice",
                           .not_before_us = now - 60000000,
                           .not_after_us = now + 3600000000ll};
    snprintf(crt, sizeof crt, "%s/client.crt", v->pki.dir);
    snprintf(key, sizeof key, "%s/client.key", v->pki.dir);
    assert_int_equal(tls_ca_issue(ca, &is, crt, key, &e), ST_OK);
}

static int setup(void **state)
{
    struct env *v = calloc(1, sizeof *v);
    assert_non_null(v);
    pki_open(&v->pki);
    v->pid = server_fork(&v->pki, &v->port);
    issue(v, v->pki.ca);
    yaml(v, "test.example", v->port, "");
    *state = v;
    return 0;
}

static int teardown(void **state)
{
    static const char *const names[] = {"client.yaml", "client.crt", "client.key"};
    struct env *v = *state;
    server_kill(v->pid);
    for (size_t i = 0; i < 3; i++) {
        char path[160];
        snprintf(path, sizeof path, "%s/%s", v->pki.dir, names[i]);
        unlink(path);
    }
    pki_close(&v->pki);
    free(v);
    return 0;
}

static struct strata_client *open_ok(const struct env *v)
{
    struct strata_client *c = NULL;
    struct strata_error e = {0};
    if (strata_client_open(&c, v->pki.dir, 0, &e) < 0)
        fail_msg("%s", e.text);
    return c;
}

static int get(struct strata_client *c, const char *id, uint64_t timeout_ns, struct strata_error *e)
{
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    q.id = (char *)id;
    int rc =
        strata_client_call(c, &strata__v1__jobs__descriptor, "Get", &q.base, timeout_ns, "request-1", &m, e);
    if (rc == 0) {
        assert_string_equal(((Strata__V1__Job *)m)->id, id);
        protobuf_c_message_free_unpacked(m, NULL);
    }
    return rc;
}

struct seen {
    unsigned n, stop_at;
};

static int on_job(const ProtobufCMessage *m, void *arg)
{
    struct seen *s = arg;
    assert_int_equal(strtoul(((const Strata__V1__Job *)m)->id, NULL, 10), s->n);
    return ++s->n == s->stop_at;
}

static int watch(struct strata_client *c, const char *id, struct seen *s, struct strata_error *e)
{
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    q.id = (char *)id;
    return strata_client_stream(c, &strata__v1__jobs__descriptor, "Watch", &q.base, UINT64_MAX, on_job, s, e);
}

static void test_calls(void **state)
{
    struct strata_error e = {0};
    struct seen all = {0}, some = {.stop_at = 3};
    struct strata_client *c = open_ok(*state);
    assert_string_equal(strata_client_principal(c), "user/alice");
    assert_non_null(strstr(strata_client_coordinator(c), "127.0.0.1:"));
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(get(c, "job-1", 0, &e), 0);
    assert_true(get(c, "fail", 0, &e) < 0);
    assert_string_equal(e.reason, "NO_JOB");
    assert_string_equal(e.text, "there is no job \"fail\": see strata jobs");
    assert_int_equal(strata_error_exit(&e), 3);
    assert_true(get(c, "hold", 100 * NS_PER_MS, &e) < 0);
    assert_int_equal(e.code, ST_EDEADLINE);
    assert_int_equal(watch(c, "100", &all, &e), 0);
    assert_int_equal(all.n, 100);
    assert_int_equal(watch(c, "100", &some, &e), 0);
    assert_int_equal(some.n, 3);
    assert_int_equal(get(c, "after", 0, &e), 0);
    strata_client_close(c);
    strata_client_close(NULL);
}

static struct strata_client *volatile to_interrupt; /* a signal handler has no argument */

static void on_alarm(int sig)
{
    (void)sig;
    strata_client_interrupt(to_interrupt);
}

/* A call without end, interrupted from a signal handler while it waits. */
static void interrupt_it(struct strata_client *c)
{
    struct strata_error e = {0};
    struct sigaction sa = {.sa_handler = on_alarm}, was;
    const struct itimerval in = {.it_value.tv_usec = 200000};
    to_interrupt = c;
    sigaction(SIGALRM, &sa, &was);
    uint64_t at = clock_ns(clock_system());
    assert_int_equal(setitimer(ITIMER_REAL, &in, NULL), 0);
    assert_int_equal(get(c, "hold", UINT64_MAX, &e), ST_ECANCELED);
    uint64_t took = clock_ns(clock_system()) - at;
    sigaction(SIGALRM, &was, NULL);
    assert_string_equal(e.reason, "INTERRUPTED");
    assert_true(took > 190 * NS_PER_MS && took < 5 * NS_PER_S);
    assert_int_equal(get(c, "x", 0, &e), ST_ECANCELED); /* and every later one */
}

static void test_interrupt(void **state)
{
    struct strata_error e = {0};
    struct strata_client *c = open_ok(*state);
    assert_int_equal(get(c, "x", 0, &e), 0);
    interrupt_it(c);
    strata_client_close(c);
}

/* The peer stopped: an interrupted call does not wait for it. */
static void test_interrupt_silent(void **state)
{
    struct env *v = *state;
    struct strata_client *c = open_ok(v);
    kill(v->pid, SIGSTOP);
    interrupt_it(c);
    strata_client_close(c);
    kill(v->pid, SIGCONT);
}

static void test_redial(void **state)
{
    struct env *v = *state;
    struct strata_error e = {0};
    struct strata_client *c = open_ok(v);
    assert_int_equal(get(c, "close", 0, &e), ST_EUNREACH);
    assert_int_equal(strata_error_exit(&e), 6);
    assert_int_equal(get(c, "again", 0, &e), 0);
    strata_client_close(c);
}

static void refused(const struct env *v, int code, const char *says, uint64_t timeout_ns)
{
    struct strata_client *c = NULL;
    struct strata_error e = {0};
    assert_int_equal(strata_client_open(&c, v->pki.dir, timeout_ns, &e), code);
    assert_null(c);
    assert_int_equal(e.code, code);
    if (!strstr(e.text, says))
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void test_settings(void **state)
{
    struct env *v = *state;
    yaml(v, "test.example", v->port, "colour: red\n");
    refused(v, ST_ECONFIG, "client.yaml", 0);
    file(v, "client.yaml", "trust_domain: test.example\n");
    refused(v, ST_ECONFIG, "coordinator", 0);
    file(v, "client.yaml", "");
    refused(v, ST_ECONFIG, "client.yaml", 0);
    file(v, "client.yaml", "coordinator: [a, b]\ntrust_domain: test.example\n");
    refused(v, ST_ECONFIG, "client.yaml", 0);
    file(v, "client.yaml", "coordinator: nonsense\ntrust_domain: test.example\n");
    refused(v, ST_EINVAL, "client.yaml", 0);
    char path[160];
    snprintf(path, sizeof path, "%s/client.yaml", v->pki.dir);
    unlink(path);
    refused(v, ST_ENOENT, "no identity in", 0);
}

static void test_unreachable(void **state)
{
    struct env *v = *state;
    /* A socket that nobody answers on. */
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    yaml(v, "test.example", ntohs(a.sin_port), "");
    uint64_t at = clock_ns(clock_system());
    refused(v, ST_EUNREACH, "coordinator at 127.0.0.1:", 300 * NS_PER_MS);
    assert_true(clock_ns(clock_system()) - at < 4 * NS_PER_S);
    close(fd);
}

static void test_trust(void **state)
{
    struct env *v = *state;
    struct pki other;
    /* Our certificate is another CA's, and we believe that CA: the server's is refused. */
    char from[160], to[160];
    struct err e;
    struct buf b = {0};
    pki_open(&other);
    snprintf(from, sizeof from, "%s/ca.crt", other.dir);
    snprintf(to, sizeof to, "%s/ca.crt", v->pki.dir);
    assert_int_equal(fs_read(from, 65536, &b, &e), ST_OK);
    assert_int_equal(fs_write_atomic(to, b.data, b.len, 0644, &e), ST_OK);
    buf_fini(&b);
    issue(v, other.ca);
    refused(v, ST_ETRUST, "", 0);
    pki_close(&other);
}

#define WITH(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH(test_calls),  WITH(test_interrupt), WITH(test_interrupt_silent),
        WITH(test_redial), WITH(test_settings),  WITH(test_unreachable),
        WITH(test_trust),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
