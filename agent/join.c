#include "agent/join.h"

#include <event2/event.h>
#include <getopt.h>
#include <jansson.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/pool/pool.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/enroll/enroll.h"
#include "common/quic/quic.h"

#define JOIN_NS (20 * NS_PER_S)
#define MAX_DIRS 16

struct join_opts {
    const char *address, *token, *token_file, *dir, *name, *state, *listen, *worker;
    const char *models[MAX_DIRS];
    size_t nmodels;
    bool json, force;
};

struct found {
    struct event_base *base;
    int rc;
    struct err e;
    struct pool_device device[64];
    size_t n;
};

static const char usage[] = "usage: strata-agent join HOST:PORT TOKEN [--name NAME] [--dir DIR] [--models "
                            "DIR]... [--listen HOST:PORT]\n"
                            "       strata-agent join HOST:PORT --token-file FILE ...\n"
                            "\n"
                            "Checks that HOST:PORT belongs to the cluster that the token names, makes a key, "
                            "gets a certificate for it\n"
                            "and writes DIR/agent.yaml (DIR: /etc/strata). A token on the command line can "
                            "be seen by other users of\n"
                            "this machine; --token-file, which only you may read, cannot.\n";

static int parse(int argc, char **argv, struct join_opts *o)
{
    static const struct option options[] = {
        {"token-file", required_argument, NULL, 't'},
        {"name", required_argument, NULL, 'n'},
        {"dir", required_argument, NULL, 'd'},
        {"models", required_argument, NULL, 'm'},
        {"state-dir", required_argument, NULL, 's'},
        {"listen", required_argument, NULL, 'l'},
        {"worker", required_argument, NULL, 'w'},
        {"json", no_argument, NULL, 'j'},
        {"force", no_argument, NULL, 'f'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    int k;
    optind = 0;
    while ((k = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        const char **s = k == 't'   ? &o->token_file
                         : k == 'n' ? &o->name
                         : k == 'd' ? &o->dir
                         : k == 's' ? &o->state
                         : k == 'l' ? &o->listen
                         : k == 'w' ? &o->worker
                                    : NULL;
        if (s)
            *s = optarg;
        else if (k == 'm' && o->nmodels < MAX_DIRS)
            o->models[o->nmodels++] = optarg;
        else if (k == 'j')
            o->json = true;
        else if (k == 'f')
            o->force = true;
        else {
            fputs(usage, k == 'h' ? stdout : stderr);
            return k == 'h' ? 0 : 2;
        }
    }
    if (argc - optind != (o->token_file ? 1 : 2)) {
        fputs(usage, stderr);
        return 2;
    }
    o->address = argv[optind];
    o->token = o->token_file ? NULL : argv[optind + 1];
    return -1;
}

/* The address that the coordinator's network sees this node at. */
static void local_host(const char *coordinator, char out[INET6_ADDRSTRLEN + 3])
{
    struct quic_addr to, me = {.len = sizeof me.ss};
    char host[64];
    str_copy(out, INET6_ADDRSTRLEN + 3, "127.0.0.1");
    if (quic_addr_parse(coordinator, &to, NULL) < 0)
        return;
    int fd = socket(to.ss.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to.ss, to.len) == 0 &&
        getsockname(fd, (struct sockaddr *)&me.ss, &me.len) == 0 &&
        getnameinfo((struct sockaddr *)&me.ss, me.len, host, sizeof host, NULL, 0, NI_NUMERICHOST) == 0)
        snprintf(out, INET6_ADDRSTRLEN + 3, strchr(host, ':') ? "[%s]" : "%s", host);
    if (fd >= 0)
        close(fd);
}

static int write_config(const struct join_opts *o, const struct enroll_result *r, const char *node,
                        const char *path, struct err *e)
{
    struct buf b = {0};
    char host[INET6_ADDRSTRLEN + 3];
    local_host(r->coordinator, host);
    buf_printf(&b, "# strata-agent run --config THIS\nversion: 1\nnode: %s\ncoordinator: \"%s\"\n", node,
               r->coordinator);
    if (o->listen)
        buf_printf(&b, "listen: \"%s\"\n", o->listen);
    else
        buf_printf(&b, "listen: \"%s:0\"\n", host);
    buf_printf(&b, "tls: {dir: \"%s/tls\", trust_domain: %s}\nstate: {dir: \"%s\"}\nmodels: {dirs: [", o->dir,
               r->trust_domain, o->state);
    for (size_t i = 0; i < o->nmodels; i++)
        buf_printf(&b, "%s\"%s\"", i ? ", " : "", o->models[i]);
    int rc = buf_printf(&b, "]}\n") < 0 ? err_set(e, ST_ENOMEM, "no memory") : ST_OK;
    if (rc == ST_OK)
        rc = fs_write_atomic(path, b.data, b.len, 0644, e);
    buf_fini(&b);
    return rc;
}

static int join(const struct join_opts *o, const struct enroll_token *t, const char *hostname,
                struct enroll_result *r, char config[PATH_MAX], struct err *e)
{
    char tls[PATH_MAX], key[PATH_MAX + 16], crt[PATH_MAX + 16], ca[PATH_MAX + 16];
    struct tls_ctx *ctx = NULL;
    int rc;
    if (fs_join(config, PATH_MAX, o->dir, "agent.yaml") < 0 || fs_join(tls, sizeof tls, o->dir, "tls") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", o->dir);
    snprintf(key, sizeof key, "%s/node.key", tls);
    snprintf(crt, sizeof crt, "%s/node.crt", tls);
    snprintf(ca, sizeof ca, "%s/ca.crt", tls);
    if (fs_exists(crt) && !o->force)
        return err_reason(e, ST_EEXIST, "ENROLLED",
                          "%s is there: this node has joined already; --force joins anew, with a new key",
                          crt);
    for (size_t i = 0; i < o->nmodels; i++)
        if (o->models[i][0] != '/' || strpbrk(o->models[i], "\"\\\n"))
            return err_set(e, ST_EINVAL, "--models: '%s' must be an absolute path", o->models[i]);
    if ((rc = fs_mkdirs(tls, 0700, e)) < 0 || (rc = tls_key_make(key, true, e)) < 0 ||
        (rc = enroll_join(o->address, t, o->name, hostname, key, JOIN_NS, r, e)) < 0)
        return rc;
    const struct tls_cfg cfg = {
        .ca_file = ca, .cert_file = crt, .key_file = key, .trust_domain = r->trust_domain};
    if ((rc = fs_write_atomic(ca, r->ca.data, r->ca.len, 0644, e)) < 0 ||
        (rc = fs_write_atomic(crt, r->certificate.data, r->certificate.len, 0644, e)) < 0 ||
        (rc = tls_ctx_new(&ctx, &cfg, clock_system(), e)) < 0)
        return err_prefix(e, "the certificate that was given is of no use");
    rc = write_config(o, r, tls_ctx_self(ctx)->name, config, e);
    tls_ctx_unref(ctx);
    return rc;
}

/* ---- what this node has ---- */

static void on_probed(void *arg, int rc, const struct err *e, const struct pool_device *v, size_t n)
{
    struct found *f = arg;
    f->rc = rc;
    f->e = *e;
    f->n = n < 64 ? n : 64;
    if (rc == ST_OK)
        memcpy(f->device, v, f->n * sizeof *v);
    event_base_loopbreak(f->base);
}

/* The node has joined by now: a driver that does not answer is a warning. */
static void probe(const struct join_opts *o, struct found *f)
{
    char worker[PATH_MAX];
    static const struct log silent = {.fd = -1};
    struct pool *p = NULL;
    ssize_t n = readlink("/proc/self/exe", worker, sizeof worker - 1);
    if (o->worker) {
        str_copy(worker, sizeof worker, o->worker);
    } else if (n > 0) {
        worker[n] = 0;
        char *slash = strrchr(worker, '/');
        str_copy(slash + 1, sizeof worker - (size_t)(slash + 1 - worker), "strata-worker");
    }
    f->rc = ST_EINTERNAL;
    if (!(f->base = event_base_new()))
        return;
    const struct pool_cfg cfg = {
        .base = f->base, .clock = clock_system(), .log = &silent, .worker_path = worker};
    if ((f->rc = pool_new(&p, &cfg, &f->e)) == ST_OK && (f->rc = pool_probe(p, on_probed, f, &f->e)) == ST_OK)
        event_base_dispatch(f->base);
    pool_free(p);
    event_base_free(f->base);
}

static int report(const struct join_opts *o, const struct enroll_result *r, const char *config,
                  const struct found *f)
{
    char end[28], rtt[16];
    clock_rfc3339(r->expires_us, end);
    fmt_seconds(rtt, r->rtt_s);
    if (o->json) {
        json_t *d = json_array();
        for (size_t i = 0; i < f->n; i++)
            json_array_append_new(d, json_pack("{s:s,s:s,s:s,s:I}", "id", f->device[i].id, "backend",
                                               f->device[i].backend, "name", f->device[i].name,
                                               "memory_bytes", (json_int_t)f->device[i].memory_bytes));
        json_t *j = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:f,s:f,s:o}", "schema", "strata.join.v1", "identity",
                              r->identity, "coordinator", r->coordinator, "config", config, "pool", r->pool,
                              "expires", end, "rtt_s", r->rtt_s, "clock_skew_s", r->skew_s, "devices", d);
        int rc = j ? json_dumpf(j, stdout, JSON_COMPACT) : -1;
        putchar('\n');
        json_decref(j);
        return rc ? 1 : 0;
    }
    printf("joined    %s until %.10s%s%s\n", r->identity, end, r->pool[0] ? ", pool " : "", r->pool);
    printf("path      %s, round trip %s\n", r->coordinator, rtt);
    printf("clock     %+.3f s against the coordinator%s\n", r->skew_s,
           r->skew_s > 5 || r->skew_s < -5 ? ": set it right, certificates and tickets depend on it" : "");
    for (size_t i = 0; i < f->n; i++) {
        char mem[16];
        fmt_bytes(mem, f->device[i].memory_bytes);
        printf("device    %s  %s  %s\n", f->device[i].id, f->device[i].name, mem);
    }
    if (f->rc < 0)
        printf("device    none found: %s\n", f->e.text);
    printf("start     strata-agent run --config %s\n", config);
    return 0;
}

int agent_join(int argc, char **argv)
{
    struct join_opts o = {.dir = "/etc/strata", .state = "/var/lib/strata"};
    char host[65] = "", config[PATH_MAX], full[PATH_MAX];
    struct enroll_token t;
    struct enroll_result r = {0};
    struct err e = {0};
    int x = parse(argc, argv, &o);
    if (x >= 0)
        return x;
    gethostname(host, sizeof host - 1);
    host[strcspn(host, ".")] = 0;
    int rc = o.token_file ? enroll_token_file(o.token_file, &t, &e) : enroll_token_decode(o.token, &t, &e);
    if (rc == ST_OK && t.kind != ENROLL_NODE)
        rc = err_reason(&e, ST_EINVAL, "BAD_TOKEN", "this token is for a user: strata login takes it");
    if (rc == ST_OK && (rc = fs_mkdirs(o.dir, 0755, &e)) == ST_OK && !realpath(o.dir, full))
        rc = err_set(&e, ST_EIO, "cannot use the directory %s", o.dir);
    if (rc == ST_OK) {
        o.dir = full;
        rc = join(&o, &t, host, &r, config, &e);
    }
    explicit_bzero(&t, sizeof t);
    if (rc < 0) {
        fprintf(stderr, "strata-agent: %s%s%s%s\n", e.text, e.reason[0] ? " (" : "", e.reason,
                e.reason[0] ? ")" : "");
        enroll_result_fini(&r);
        return status_exit_code(rc);
    }
    struct found *f = calloc(1, sizeof *f);
    if (f) {
        probe(&o, f);
        x = report(&o, &r, config, f);
    }
    free(f);
    enroll_result_fini(&r);
    return x < 0 ? 1 : x;
}
