/* Certificates and server processes of the rpc area. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/rpc/peer.h"
#include "common/base/fs.h"

#define DAY_US 86400000000ll

static int one_identity(struct tls_ca *ca, const char *dir, enum tls_kind kind, const char *name,
                        const char *file, struct tls_ctx **out, struct err *e)
{
    char crt[128], key[128], root[128];
    int64_t now = clock_wall_us(clock_system());
    struct tls_issue w = {
        .kind = kind, .name = name, .not_before_us = now - 60000000, .not_after_us = now + DAY_US};
    snprintf(crt, sizeof crt, "%s/%s.crt", dir, file);
    snprintf(key, sizeof key, "%s/%s.key", dir, file);
    snprintf(root, sizeof root, "%s/ca.crt", dir);
    int rc = tls_ca_issue(ca, &w, crt, key, e);
    struct tls_cfg cfg = {
        .ca_file = root, .cert_file = crt, .key_file = key, .trust_domain = "bench.example"};
    return rc < 0 ? rc : tls_ctx_new(out, &cfg, clock_system(), e);
}

int bench_pki_open(struct bench_pki *p, struct err *e)
{
    struct tls_ca *ca = NULL;
    *p = (struct bench_pki){.dir = "/tmp/strata-bench-XXXXXX"};
    if (!mkdtemp(p->dir))
        return err_errno(e, errno, "cannot make a directory for the certificates in /tmp");
    int rc = tls_ca_create(p->dir, "bench.example", 2, clock_system(), e);
    if (rc == ST_OK)
        rc = tls_ca_load(&ca, p->dir, e);
    if (rc == ST_OK)
        rc = one_identity(ca, p->dir, TLS_COORDINATOR, NULL, "server", &p->server, e);
    if (rc == ST_OK)
        rc = one_identity(ca, p->dir, TLS_NODE, "client", "client", &p->client, e);
    tls_ca_free(ca);
    if (rc < 0)
        bench_pki_close(p);
    return rc;
}

void bench_pki_close(struct bench_pki *p)
{
    static const char *const file[] = {"ca.crt",     "ca.key",     "server.crt",
                                       "server.key", "client.crt", "client.key"};
    char path[128];
    tls_ctx_unref(p->server);
    tls_ctx_unref(p->client);
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        snprintf(path, sizeof path, "%s/%s", p->dir, file[i]);
        unlink(path);
    }
    rmdir(p->dir);
    *p = (struct bench_pki){0};
}

void pin_cpu(unsigned n)
{
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) || CPU_COUNT(&all) < 2)
        return;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all) && n-- == 0) {
            CPU_SET(i, &one);
            (void)sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

static void parent_gone(evutil_socket_t fd, short what, void *base)
{
    (void)fd, (void)what;
    event_base_loopexit(base, NULL);
}

struct report { /* what a new server says, once */
    int rc;
    uint16_t ports[PORTS];
    struct err e;
};

static void serve(const struct transport *t, const struct bench_pki *pki, int ctl, int out)
{
    struct report r = {0};
    pin_cpu(0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct event_base *base = event_base_new();
    struct event *ev = base ? event_new(base, ctl, EV_READ, parent_gone, base) : NULL;
    if (!ev || event_base_priority_init(base, 2) || event_add(ev, NULL))
        r.rc = err_set(&r.e, ST_ENOMEM, "no event loop for the server");
    else
        r.rc = t->serve(base, pki, r.ports, &r.e);
    if (write(out, &r, sizeof r) != (ssize_t)sizeof r || r.rc < 0)
        _exit(1);
    close(out);
    event_base_dispatch(base);
    _exit(0);
}

int server_start(struct server *s, const struct transport *t, const struct bench_pki *pki, struct err *e)
{
    int ctl[2], rep[2];
    *s = (struct server){.t = t, .pid = -1, .ctl = -1};
    if (pipe(ctl))
        return err_errno(e, errno, "cannot make a pipe");
    if (pipe(rep)) {
        int why = errno;
        close(ctl[0]);
        close(ctl[1]);
        return err_errno(e, why, "cannot make a pipe");
    }
    fflush(NULL);
    s->pid = fork();
    int why = errno;
    if (s->pid == 0) {
        close(ctl[1]);
        close(rep[0]);
        serve(t, pki, ctl[0], rep[1]);
    }
    close(ctl[0]);
    close(rep[1]);
    s->ctl = ctl[1];
    struct report r = {0};
    bool told = s->pid > 0 && read(rep[0], &r, sizeof r) == (ssize_t)sizeof r;
    close(rep[0]);
    if (told && r.rc == ST_OK) {
        memcpy(s->ports, r.ports, sizeof s->ports);
        return ST_OK;
    }
    int rc = s->pid < 0 ? err_errno(e, why, "cannot fork a server")
             : told     ? err_set(e, r.rc, "the server of %s: %s", t->name, r.e.text)
                        : err_set(e, ST_EINTERNAL, "the server of %s died at start", t->name);
    server_stop(s);
    return rc;
}

void server_stop(struct server *s)
{
    if (s->ctl >= 0)
        close(s->ctl);
    /* Later servers hold a copy of this end of the pipe, so its end alone would not tell. */
    if (s->pid > 0) {
        kill(s->pid, SIGTERM);
        waitpid(s->pid, NULL, 0);
    }
    *s = (struct server){.pid = -1, .ctl = -1};
}

double server_cpu_s(const struct server *s)
{
    clockid_t id;
    struct timespec ts;
    if (clock_getcpuclockid(s->pid, &id) || clock_gettime(id, &ts))
        return 0;
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

double server_rss_kb(const struct server *s)
{
    char path[64];
    unsigned long total = 0, rss = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", s->pid);
    FILE *f = fopen(path, "r");
    int got = f ? fscanf(f, "%lu %lu", &total, &rss) : 0;
    if (f)
        fclose(f);
    return got == 2 ? (double)rss * (double)sysconf(_SC_PAGESIZE) / 1000.0 : 0;
}
