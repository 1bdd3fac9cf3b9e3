/* strata-agent: parses the command line, wires the agent to a loop and to the signals that end it. */
#include <event2/event.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/join.h"
#include "common/base/fs.h"
#include "common/tls/tls.h"

static const char usage[] =
    "usage: strata-agent join HOST:PORT TOKEN [options]   (strata-agent join --help)\n"
    "       strata-agent run --config FILE\n"
    "       strata-agent check-config --config FILE\n"
    "       strata-agent --version\n"
    "\n"
    "run           serve this node's devices and model files to a strata cluster until SIGTERM or SIGINT\n"
    "check-config  read the configuration and the certificates, say what is wrong, and end\n"
    "\n"
    "Exit codes: 0 ok, 1 internal, 2 usage, 5 trust, 6 unreachable, 78 bad configuration.\n";

struct run {
    struct event_base *base;
    int rc;
};

/* strata-worker beside this program unless the configuration says where. */
static int worker_path(const struct agent_config *c, char *out, size_t cap, struct err *e)
{
    if (c->worker) {
        snprintf(out, cap, "%s", c->worker);
    } else {
        char self[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
        if (n < 0)
            return err_set(e, ST_EINTERNAL,
                           "cannot tell where this program lies; set worker in the configuration");
        self[n] = 0;
        char *slash = strrchr(self, '/');
        *slash = 0;
        if (fs_join(out, cap, self, "strata-worker") < 0)
            return err_set(e, ST_ELIMIT, "the path of this program is too long");
    }
    if (access(out, X_OK) != 0)
        return err_set(
            e, ST_ECONFIG,
            "worker: %.300s is no program that can be run; install strata-worker there or set worker in "
            "the configuration",
            out);
    return ST_OK;
}

static int check_tls(const struct agent_config *c, struct err *e)
{
    const struct tls_cfg cfg = {.ca_file = c->ca_file,
                                .cert_file = c->cert_file,
                                .key_file = c->key_file,
                                .trust_domain = c->trust_domain,
                                .ciphers = c->ciphers,
                                .groups = c->groups,
                                .crl_file = c->crl_file};
    struct tls_ctx *t;
    int rc = tls_ctx_new(&t, &cfg, clock_system(), e);
    if (rc < 0)
        return rc;
    const struct tls_identity *self = tls_ctx_self(t);
    if (self->kind != TLS_NODE || strcmp(self->name, c->node) != 0)
        rc = err_set(e, ST_ETRUST, "the certificate %s is for %s, but this node is configured as node/%s",
                     c->cert_file, self->principal, c->node);
    tls_ctx_unref(t);
    return rc;
}

static int check_dirs(const struct agent_config *c, struct err *e)
{
    for (unsigned i = 0; i < c->nmodel_dirs; i++)
        if (access(c->model_dirs[i], R_OK | X_OK) != 0)
            return err_set(e, ST_ECONFIG,
                           "models.dirs: %s is no directory that can be read; make it or take it out",
                           c->model_dirs[i]);
    return ST_OK;
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    (void)sig;
    (void)what;
    struct run *r = arg;
    event_base_loopbreak(r->base);
}

static void on_fatal(void *arg, const struct err *e)
{
    struct run *r = arg;
    r->rc = e->code;
    event_base_loopbreak(r->base);
}

static struct event_base *make_base(void)
{
    struct event_config *c = event_config_new();
    if (!c)
        return NULL;
    event_config_set_flag(c, EVENT_BASE_FLAG_PRECISE_TIMER);
    struct event_base *b = event_base_new_with_config(c);
    event_config_free(c);
    if (b && event_base_priority_init(b, 2) < 0) {
        event_base_free(b);
        return NULL;
    }
    return b;
}

static int run_loop(struct run *r, const struct agent_config *c, const char *worker, const struct log *log,
                    struct err *e)
{
    const struct agent_env env = {
        .base = r->base,
        .clock = clock_system(),
        .rng = rng_system(),
        .log = log,
        .config = c,
        .worker_path = worker,
        .on_fatal = on_fatal,
        .arg = r,
    };
    struct event *term = evsignal_new(r->base, SIGTERM, on_signal, r);
    struct event *intr = evsignal_new(r->base, SIGINT, on_signal, r);
    struct agent *a = NULL;
    int rc;
    if (!term || !intr || event_add(term, NULL) < 0 || event_add(intr, NULL) < 0)
        rc = err_set(e, ST_EINTERNAL, "cannot watch for signals");
    else
        rc = agent_new(&a, &env, e);
    if (rc == ST_OK) {
        LOG_I(log, "agent", "started version=%s node=%s", STRATA_VERSION, c->node);
        event_base_dispatch(r->base);
        LOG_I(log, "agent", "stopping");
        rc = r->rc;
        if (rc < 0)
            err_set(e, rc, "the agent cannot go on; the log says why");
    }
    agent_free(a);
    if (term)
        event_free(term);
    if (intr)
        event_free(intr);
    return rc;
}

static int run(const struct agent_config *c, const char *worker, struct err *e)
{
    const struct log log = {
        .fd = STDERR_FILENO,
        .level = c->log_level,
        .journal = getenv("JOURNAL_STREAM") != NULL,
        .program = "strata-agent",
        .clock = clock_system(),
    };
    struct run r = {.base = make_base()};
    if (!r.base)
        return err_set(e, ST_EINTERNAL, "cannot make an event loop");
    signal(SIGPIPE, SIG_IGN);
    int rc = run_loop(&r, c, worker, &log, e);
    event_base_free(r.base);
    return rc;
}

static int command(const char *verb, const char *file, struct err *e)
{
    struct agent_config c;
    char worker[PATH_MAX];
    int rc = agent_config_read(&c, file, e);
    if (rc < 0)
        return rc;
    if ((rc = worker_path(&c, worker, sizeof worker, e)) == ST_OK && (rc = check_dirs(&c, e)) == ST_OK)
        rc = check_tls(&c, e);
    if (rc == ST_OK && strcmp(verb, "run") == 0)
        rc = run(&c, worker, e);
    else if (rc == ST_OK)
        printf("%s: ok: node %s, coordinator %s\n", file, c.node, c.coordinator);
    agent_config_fini(&c);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "join") == 0)
        return agent_join(argc - 1, argv + 1);
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {0},
    };
    const char *file = NULL;
    int o;
    while ((o = getopt_long(argc, argv, "c:hv", options, NULL)) != -1) {
        if (o == 'c') {
            file = optarg;
        } else if (o == 'h') {
            fputs(usage, stdout);
            return 0;
        } else if (o == 'v') {
            puts(STRATA_VERSION);
            return 0;
        } else {
            fputs(usage, stderr);
            return 2;
        }
    }
    const char *verb = optind + 1 == argc ? argv[optind] : "";
    if (!file || (strcmp(verb, "run") != 0 && strcmp(verb, "check-config") != 0)) {
        fputs(usage, stderr);
        return 2;
    }
    struct err e = {0};
    int rc = command(verb, file, &e);
    if (rc == ST_OK)
        return 0;
    fprintf(stderr, "strata-agent: %s\n", e.text);
    return status_exit_code(rc);
}
