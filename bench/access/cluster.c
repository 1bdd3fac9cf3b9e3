/* See cluster.h. */
#include "bench/access/cluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/fs.h"

/* A port that is free now: the coordinator's file names it before the coordinator runs. */
static unsigned free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    unsigned port = 0;
    if (fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0 && getsockname(fd, (struct sockaddr *)&a, &n) == 0)
        port = ntohs(a.sin_port);
    if (fd >= 0)
        close(fd);
    return port;
}

static pid_t start(const struct bench_cluster *k, const char *program, const char *const argv[],
                   const char *log)
{
    char path[2200], out[1200];
    snprintf(path, sizeof path, "%s/%s", k->bin, program);
    snprintf(out, sizeof out, "%s/%s.log", k->dir, log);
    pid_t parent = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    int fd = open(out, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd >= 0) {
        dup2(fd, 1);
        dup2(fd, 2);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent)
        execv(path, (char *const *)(uintptr_t)argv);
    _exit(127);
}

static int finish(pid_t pid)
{
    int st = -1;
    while (pid > 0 && waitpid(pid, &st, 0) < 0 && errno == EINTR)
        ;
    return pid > 0 && WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

static int write_agent(const struct bench_cluster *k, unsigned port, struct err *e)
{
    char text[8192], path[1200];
    int n = snprintf(text, sizeof text,
                     "version: 1\nnode: n1\ncoordinator: \"127.0.0.1:%u\"\nlisten: \"127.0.0.1:0\"\n"
                     "tls: {dir: %s/c/nodes/n1, trust_domain: strata.local}\nstate: {dir: %s/n1}\n"
                     "models: {dirs: [%s]}\ncpu_memory: 64MiB\nbackends: {cpu: on, vulkan: off, cuda: off}\n",
                     port, k->dir, k->dir, k->dir);
    snprintf(path, sizeof path, "%s/n1.yaml", k->dir);
    return fs_write_atomic(path, text, (size_t)n, 0600, e);
}

int bench_cluster_start(struct bench_cluster *k, struct err *e)
{
    char self[2048], home[1200], listen[64], file[1200], agent[1200];
    *k = (struct bench_cluster){.dir = "/tmp/strata-bench-XXXXXX"};
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || !mkdtemp(k->dir))
        return err_errno(e, errno, "cannot make a place for a cluster in /tmp");
    self[n] = 0;
    *strrchr(self, '/') = 0;
    snprintf(k->bin, sizeof k->bin, "%s", self);
    unsigned port = free_port();
    snprintf(home, sizeof home, "%s/c", k->dir);
    snprintf(listen, sizeof listen, "127.0.0.1:%u", port);
    snprintf(file, sizeof file, "%s/c/coordinator/coordinator.yaml", k->dir);
    snprintf(agent, sizeof agent, "%s/n1.yaml", k->dir);
    const char *const init[] = {"strata", "init", home,     "--listen", listen,
                                "--node", "n1",   "--user", "bench",    NULL};
    if (finish(start(k, "strata", init, "init")) != 0)
        return err_reason(e, ST_ENOENT, "NO_PROGRAMS",
                          "strata, strata-coordinator and strata-agent are not beside strata-bench");
    int rc = write_agent(k, port, e);
    if (rc < 0)
        return rc;
    const char *const co[] = {"strata-coordinator", "run", "--config", file, NULL};
    const char *const ag[] = {"strata-agent", "run", "--config", agent, NULL};
    k->coordinator = start(k, "strata-coordinator", co, "coordinator");
    k->agent = start(k, "strata-agent", ag, "agent");
    return k->coordinator > 0 && k->agent > 0 ? ST_OK : err_set(e, ST_ERESOURCE, "cannot start a process");
}

static int drop(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    return remove(path);
}

void bench_cluster_stop(struct bench_cluster *k)
{
    pid_t pids[] = {k->agent, k->coordinator};
    for (size_t i = 0; i < 2; i++)
        if (pids[i] > 0) {
            kill(pids[i], SIGTERM);
            finish(pids[i]);
        }
    if (k->bin[0])
        nftw(k->dir, drop, 16, FTW_DEPTH | FTW_PHYS);
}

int bench_cluster_client(const struct bench_cluster *k, const char *who, struct strata_client **out,
                         struct err *e)
{
    char dir[1200];
    struct strata_error se = {0};
    snprintf(dir, sizeof dir, "%s/c/%s%s", k->dir, strcmp(who, "admin") ? "users/" : "", who);
    /* The processes cannot tell that they are ready but by answering. */
    for (int i = 0; i < 300; i++) {
        if (strata_client_open(out, dir, NS_PER_S, &se) == 0)
            return ST_OK;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return err_set(e, ST_EUNREACH, "the benchmark's coordinator does not answer: %.300s", se.text);
}
