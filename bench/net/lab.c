#include "bench/net/lab.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_S 60

static int sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int sh(const char *fmt, ...)
{
    char cmd[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    return system(cmd) == 0 ? ST_OK : ST_EINTERNAL;
}

static void space(char out[48], unsigned i)
{
    snprintf(out, 48, "strata-bench-%d-%u", (int)getpid(), i);
}

const char *lab_cannot(void)
{
    if (geteuid() != 0)
        return "network namespaces need root";
    if (access("/dev/net/tun", R_OK | W_OK) < 0)
        return "there is no /dev/net/tun";
    if (sh("command -v ip >/dev/null && command -v tc >/dev/null") < 0)
        return "ip and tc (iproute2) are not installed";
    if (sh("ip netns add strata-bench-try-%d 2>/dev/null && ip netns del strata-bench-try-%d", (int)getpid(),
           (int)getpid()) < 0)
        return "network namespaces cannot be made here";
    return NULL;
}

/* A process with its output in a file; in a namespace unless that is NULL. */
static pid_t start(const struct lab *l, const char *ns, const char *log, const char *program, const char *a,
                   const char *b, const char *c)
{
    char path[1200], out[200];
    snprintf(path, sizeof path, "%s/%s", l->bin, program);
    snprintf(out, sizeof out, "%s/%s.log", l->dir, log);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(out, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(fd, 1);
        dup2(fd, 2);
        if (ns)
            execlp("ip", "ip", "netns", "exec", ns, path, a, b, c, (char *)NULL);
        else
            execl(path, path, a, b, c, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static int write_config(const struct lab *l, unsigned i, const char *ip, const char *co)
{
    char path[200];
    snprintf(path, sizeof path, "%s/a%u.yaml", l->dir, i);
    FILE *f = fopen(path, "w");
    if (!f)
        return ST_EIO;
    fprintf(f,
            "version: 1\nnode: n%u\ncoordinator: \"%s:7000\"\nlisten: \"%s:0\"\n"
            "tls: {dir: %s/c/nodes/n%u, trust_domain: strata.local}\nstate: {dir: %s/s%u}\n"
            "models: {dirs: [%s]}\ncpu_memory: 256MiB\nbackends: {cpu: on, vulkan: off}\n",
            i, co, ip, l->dir, i, l->dir, i, l->dir);
    return fclose(f) == 0 ? ST_OK : ST_EIO;
}

static unsigned connected(struct lab *l)
{
    json_t *r = lab_strata(l, "node list");
    size_t i;
    json_t *n;
    unsigned k = 0;
    json_array_foreach(json_object_get(r, "nodes"), i, n)
    {
        const char *state = json_string_value(json_object_get(n, "state"));
        k += state && !strcmp(state, "connected");
    }
    json_decref(r);
    return k;
}

/* The daemons, once the namespaces are there. */
static int start_all(struct lab *l, const char *co_ip, const char *const *ip, struct err *e)
{
    char ns[48], nodes[512] = "", path[200];
    size_t at = 0;
    for (unsigned i = 1; i <= l->nodes; i++)
        at += (size_t)snprintf(nodes + at, sizeof nodes - at, " --node n%u", i);
    snprintf(path, sizeof path, "%s/c/coordinator/coordinator.yaml", l->dir);
    if (sh("%s/strata init %s/c --listen %s:7000%s >/dev/null && echo 'network: {refresh: off}' >> %s",
           l->bin, l->dir, co_ip, nodes, path) < 0)
        return err_set(e, ST_EINTERNAL, "strata init failed in %s", l->dir);
    space(ns, l->veth ? 1 : l->nodes + 1);
    l->pid[0] = start(l, ns, "co", "strata-coordinator", "run", "--config", path);
    for (unsigned i = 1; i <= l->nodes; i++) {
        if (write_config(l, i, ip[i], co_ip) < 0)
            return err_set(e, ST_EIO, "cannot write into %s", l->dir);
        space(ns, i);
        snprintf(path, sizeof path, "%s/a%u.yaml", l->dir, i);
        char log[16];
        snprintf(log, sizeof log, "n%u", i);
        l->pid[i] = start(l, ns, log, "strata-agent", "run", "--config", path);
    }
    for (unsigned t = 0; t < START_S * 5; t++) {
        if (connected(l) == l->nodes)
            return ST_OK;
        usleep(200000); /* the daemons have no way to tell a stranger */
    }
    return err_set(e, ST_EDEADLINE, "the agents did not connect within %d s", START_S);
}

static int prepare(struct lab *l, unsigned spaces, struct err *e)
{
    char self[1024] = "", ns[48];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    snprintf(l->bin, sizeof l->bin, "%s", n > 0 ? dirname(self) : ".");
    snprintf(l->dir, sizeof l->dir, "/tmp/strata-bench-net-XXXXXX");
    if (!mkdtemp(l->dir))
        return err_errno(e, errno, "cannot make a directory in /tmp");
    for (unsigned i = 1; i <= spaces; i++) {
        space(ns, i);
        if (sh("ip netns add %s && ip -n %s link set lo up", ns, ns) < 0)
            return err_set(e, ST_EINTERNAL, "cannot make the network namespace %s", ns);
        l->spaces = i;
    }
    return ST_OK;
}

static int start_sim(struct lab *l, struct err *e)
{
    int to[2], from[2];
    char path[1200], name[LAB_MAX + 2][48], line[128], *argv[LAB_MAX + 4] = {0};
    snprintf(path, sizeof path, "%s/../tests/netsim", l->bin);
    if (access(path, X_OK) < 0)
        return err_set(e, ST_ENOENT, "%s is not built (ninja netsim)", path);
    argv[0] = path;
    for (unsigned i = 1; i <= l->nodes + 1; i++) {
        space(name[i], i);
        argv[i] = name[i];
    }
    if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
        return err_errno(e, errno, "pipe");
    l->sim = fork();
    if (l->sim == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        execv(path, argv);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    l->to_sim = fdopen(to[1], "w");
    l->from_sim = fdopen(from[0], "r");
    return fgets(line, sizeof line, l->from_sim) && !strncmp(line, "ok", 2)
               ? ST_OK
               : err_set(e, ST_EINTERNAL, "the simulated network did not start");
}

int lab_open_sim(struct lab *l, unsigned nodes, struct err *e)
{
    static const char *const ip[LAB_MAX + 2] = {
        "",           "10.77.0.1",  "10.77.0.2",  "10.77.0.3",  "10.77.0.4",  "10.77.0.5",
        "10.77.0.6",  "10.77.0.7",  "10.77.0.8",  "10.77.0.9",  "10.77.0.10", "10.77.0.11",
        "10.77.0.12", "10.77.0.13", "10.77.0.14", "10.77.0.15", "10.77.0.16", "10.77.0.17"};
    *l = (struct lab){.nodes = nodes};
    int rc = prepare(l, nodes + 1, e);
    if (rc == ST_OK)
        rc = start_sim(l, e);
    return rc < 0 ? rc : start_all(l, ip[nodes + 1], ip, e);
}

int lab_open_veth(struct lab *l, struct err *e)
{
    static const char *const ip[] = {"", "10.78.0.1", "10.78.0.2"};
    char a[48], b[48];
    *l = (struct lab){.nodes = 2, .veth = true};
    int rc = prepare(l, 2, e);
    space(a, 1);
    space(b, 2);
    if (rc == ST_OK &&
        sh("ip -n %s link add v0 type veth peer name v0 netns %s && ip -n %s addr add 10.78.0.1/24 dev v0 && "
           "ip -n %s addr add 10.78.0.2/24 dev v0 && ip -n %s link set v0 up && ip -n %s link set v0 up",
           a, b, a, b, a, b) < 0)
        rc = err_set(e, ST_EINTERNAL, "cannot make a veth pair");
    return rc < 0 ? rc : start_all(l, ip[1], ip, e);
}

void lab_close(struct lab *l)
{
    char ns[48];
    for (unsigned i = 0; i <= LAB_MAX; i++)
        if (l->pid[i] > 0) {
            kill(l->pid[i], SIGTERM);
            waitpid(l->pid[i], NULL, 0);
        }
    if (l->to_sim)
        fclose(l->to_sim); /* it ends at the end of its input */
    if (l->from_sim)
        fclose(l->from_sim);
    if (l->sim > 0)
        waitpid(l->sim, NULL, 0);
    for (unsigned i = 1; i <= l->spaces; i++) {
        space(ns, i);
        (void)!sh("ip netns del %s 2>/dev/null", ns);
    }
    if (l->dir[0])
        (void)!sh("rm -rf %s", l->dir);
}

int lab_sim(struct lab *l, char out[128], const char *fmt, ...)
{
    char line[128] = "";
    va_list ap;
    va_start(ap, fmt);
    vfprintf(l->to_sim, fmt, ap);
    va_end(ap);
    fputc('\n', l->to_sim);
    fflush(l->to_sim);
    if (!fgets(line, sizeof line, l->from_sim) || strncmp(line, "ok", 2))
        return ST_EINTERNAL;
    if (out)
        memcpy(out, line + 2, sizeof line - 2);
    return ST_OK;
}

int lab_pace(struct lab *l, double bits_per_s)
{
    char ns[48];
    int rc = ST_OK;
    if (!l->veth)
        return ST_EINVAL;
    for (unsigned i = 1; i <= 2 && rc == ST_OK; i++) {
        space(ns, i);
        (void)!sh("ip netns exec %s tc qdisc del dev v0 root 2>/dev/null", ns);
        /* A bucket of two milliseconds, never less than one large segment; a queue of 50 ms. */
        double burst = bits_per_s / 8 * 0.002;
        if (bits_per_s > 0)
            rc = sh("ip netns exec %s tc qdisc add dev v0 root tbf rate %.0fbit burst %.0f latency 50ms", ns,
                    bits_per_s, burst > 68000 ? burst : 68000.0);
    }
    return rc;
}

json_t *lab_strata(struct lab *l, const char *fmt, ...)
{
    char cmd[2048], ns[48];
    va_list ap;
    space(ns, l->veth ? 1 : l->nodes + 1);
    int n =
        snprintf(cmd, sizeof cmd, "ip netns exec %s %s/strata --dir %s/c/admin --json ", ns, l->bin, l->dir);
    va_start(ap, fmt);
    n += vsnprintf(cmd + n, sizeof cmd - (size_t)n, fmt, ap);
    va_end(ap);
    snprintf(cmd + n, sizeof cmd - (size_t)n, " 2>>%s/cli.log", l->dir);
    FILE *p = popen(cmd, "r");
    if (!p)
        return NULL;
    json_t *r = json_loadf(p, JSON_DISABLE_EOF_CHECK, NULL);
    pclose(p);
    return r;
}
