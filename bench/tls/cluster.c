/* The coordinator that the tls area measures. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/tls/tls.h"
#include "common/base/fs.h"
#include "strata/client.h"
#include "strata/v1/certs.pb-c.h"

extern char **environ;

static int program(const char *name, char out[1024], struct err *e)
{
    ssize_t n = readlink("/proc/self/exe", out, 900);
    if (n <= 0)
        return err_errno(e, errno, "cannot tell where this program lies");
    out[n] = 0;
    snprintf(strrchr(out, '/') + 1, 100, "%s", name);
    return access(out, X_OK) ? err_set(e, ST_ENOENT, "%s is not there", out) : ST_OK;
}

static pid_t launch(const char *const *argv)
{
    posix_spawn_file_actions_t fa;
    pid_t pid = -1;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
    if (posix_spawn(&pid, argv[0], &fa, NULL, (char *const *)argv, environ))
        pid = -1;
    posix_spawn_file_actions_destroy(&fa);
    return pid;
}

static int unlimited(const char *dir, struct err *e)
{
    char path[256];
    struct buf in = {0}, out = {0};
    snprintf(path, sizeof path, "%s/coordinator/coordinator.yaml", dir);
    int rc = fs_read(path, 65536, &in, e);
    const char *at = rc == ST_OK ? strstr(buf_cstr(&in), "enroll: {") : NULL;
    if (rc == ST_OK && !at)
        rc = err_set(e, ST_EINTERNAL, "%s has no enrolment", path);
    if (rc == ST_OK)
        rc =
            buf_printf(&out, "%.*srate: 100000, %s", (int)(at + 9 - buf_cstr(&in)), buf_cstr(&in), at + 9) < 0
                ? err_set(e, ST_ENOMEM, "no memory")
                : fs_write_atomic(path, out.data, out.len, 0644, e);
    buf_fini(&in);
    buf_fini(&out);
    return rc;
}

int bench_cluster_token(const struct bench_cluster *cl, unsigned uses, struct enroll_token *t, struct err *e)
{
    char admin[256];
    struct strata_client *c;
    struct strata_error se = {0};
    ProtobufCMessage *m;
    Strata__V1__CreateTokenRequest q = STRATA__V1__CREATE_TOKEN_REQUEST__INIT;
    snprintf(admin, sizeof admin, "%s/admin", cl->dir);
    if (strata_client_open(&c, admin, 10 * NS_PER_S, &se) < 0)
        return err_set(e, ST_EUNREACH, "%s", se.text);
    q.kind = (char *)"node";
    q.uses = uses;
    int rc = ST_OK;
    if (strata_client_call(c, &strata__v1__certs__descriptor, "CreateToken", &q.base, 0, NULL, &m, &se) < 0)
        rc = err_set(e, ST_EINTERNAL, "%s", se.text);
    else {
        rc = enroll_token_decode(((Strata__V1__CreateTokenReply *)m)->token, t, e);
        protobuf_c_message_free_unpacked(m, NULL);
    }
    strata_client_close(c);
    return rc;
}

int bench_cluster_open(struct bench_cluster *c, const char *parent, const char *name, struct err *e)
{
    char strata[1024], coordinator[1024], config[256];
    int rc, st;
    *c = (struct bench_cluster){.pid = -1};
    if ((rc = program("strata", strata, e)) < 0 || (rc = program("strata-coordinator", coordinator, e)) < 0)
        return rc;
    unsigned port = 20000 + (unsigned)rng_below(rng_system(), 10000);
    snprintf(c->dir, sizeof c->dir, "%.100s/%.20s", parent, name);
    snprintf(config, sizeof config, "%s/coordinator/coordinator.yaml", c->dir);
    snprintf(c->control, sizeof c->control, "127.0.0.1:%u", port);
    snprintf(c->enroll, sizeof c->enroll, "127.0.0.1:%u", port + 2);
    pid_t pid = launch((const char *const[]){strata, "init", c->dir, "--listen", c->control, NULL});
    if (pid < 0 || waitpid(pid, &st, 0) != pid || st)
        return err_set(e, ST_EINTERNAL, "strata init failed");
    if ((rc = unlimited(c->dir, e)) < 0)
        return rc;
    c->pid = launch((const char *const[]){coordinator, "run", "--config", config, NULL});
    return c->pid < 0 ? err_set(e, ST_EINTERNAL, "cannot start the coordinator") : ST_OK;
}

void bench_cluster_close(struct bench_cluster *c)
{
    int st;
    if (c->pid <= 0)
        return;
    kill(c->pid, SIGTERM);
    waitpid(c->pid, &st, 0);
    c->pid = -1;
}
