/*
 * strata-bench tls: handshakes with each group and with a pin, both ends on one core; then, against a
 * coordinator of its own with journal and disk, enrolments and (rotation.c) a rotation under many agents.
 */
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/tls/tls.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/quic/quic.h"

#define DAY_US 86400000000ll
#define IN_FLIGHT 8
#define JOINERS 4

static const struct log silent = {.fd = -1};
static const char *const needs_cluster[] = {"enrolments", "rotation-500-agents-dropped",
                                            "rotation-500-agents-slowest-call", "rotation-500-agents-bulk"};

struct pki {
    char dir[64];
    struct tls_ca *ca;
};

/* ---- handshakes ---- */

struct world {
    struct event_base *base;
    struct quic_ep *client;
    struct quic_addr to;
    uint64_t until_ns, done, failed;
    unsigned flying;
};

static void accepted(struct quic_conn *c, void *arg)
{
    (void)c, (void)arg;
}

static void gone(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    (void)c, (void)why, (void)arg;
}

static void dial(struct world *w);

static void up(struct quic_conn *c, void *arg)
{
    ((struct world *)arg)->done++;
    quic_conn_close(c, 0, "");
}

static void down(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    struct world *w = arg;
    (void)c;
    w->flying--;
    w->failed += why->kind != QUIC_CLOSE_LOCAL;
    if (clock_ns(clock_system()) < w->until_ns && !w->failed)
        dial(w);
    else if (!w->flying)
        event_base_loopbreak(w->base);
}

static void dial(struct world *w)
{
    static const struct quic_conn_ops ops = {.on_up = up, .on_closed = down};
    struct quic_conn *c;
    if (quic_connect(&c, w->client, &w->to, TLS_COORDINATOR, NULL, &ops, w, NULL) < 0)
        w->failed++;
    else
        w->flying++;
}

static int context(struct pki *p, enum tls_kind kind, const char *file, const char *groups,
                   struct tls_rules *rules, struct tls_ctx **out, struct err *e)
{
    char crt[128], key[128], ca[128];
    int64_t now = clock_wall_us(clock_system());
    const struct tls_issue w = {.kind = kind,
                                .name = kind == TLS_NODE ? "client" : NULL,
                                .not_before_us = now - 60000000,
                                .not_after_us = now + DAY_US};
    snprintf(crt, sizeof crt, "%s/%s.crt", p->dir, file);
    snprintf(key, sizeof key, "%s/%s.key", p->dir, file);
    snprintf(ca, sizeof ca, "%s/ca.crt", p->dir);
    const struct tls_cfg cfg = {.ca_file = ca,
                                .cert_file = crt,
                                .key_file = key,
                                .trust_domain = "bench.example",
                                .groups = groups,
                                .rules = rules};
    int rc = fs_exists(crt) ? ST_OK : tls_ca_issue(p->ca, &w, crt, key, e);
    return rc < 0 ? rc : tls_ctx_new(out, &cfg, clock_system(), e);
}

static int open_ep(struct world *w, struct tls_ctx *t, bool accept, struct quic_udp **udp,
                   struct quic_ep **ep, struct err *e)
{
    static const struct quic_conn_ops ops = {.on_up = accepted, .on_closed = gone};
    struct quic_ep_cfg cfg = {.clock = clock_system(),
                              .rng = rng_system(),
                              .log = &silent,
                              .tls = t,
                              .accept = accept,
                              .accept_ops = &ops,
                              .accept_arg = w};
    quic_limits_control(&cfg.limits);
    cfg.limits.max_conns = cfg.limits.max_conns_per_addr = 100000;
    cfg.limits.max_handshakes = 1000;
    return quic_udp_new(udp, ep, w->base, 0, "127.0.0.1:0", &cfg, e);
}

/* Pins of as many peers as a large cluster has, the right one the last. */
static int pin_many(struct tls_rules *r, const struct tls_identity *id)
{
    char subject[80];
    uint8_t other[32] = {1};
    int rc = ST_OK;
    for (unsigned i = 0; i < 500 && rc == ST_OK; i++) {
        snprintf(subject, sizeof subject, "node/n%u", i);
        rc = tls_rules_pin(r, subject, other);
    }
    if (rc == ST_OK)
        rc = tls_rules_pin(r, id->principal, other);
    return rc == ST_OK ? tls_rules_pin(r, id->principal, id->spki_sha256) : rc;
}

static int measure(struct pki *p, const char *groups, bool pins, double seconds, double *per_s, struct err *e)
{
    struct world w = {.base = event_base_new()};
    struct tls_ctx *server = NULL, *client = NULL;
    struct tls_rules *rules = NULL;
    struct quic_udp *su = NULL, *cu = NULL;
    struct quic_ep *se;
    char to[32];
    int rc = w.base ? tls_rules_new(&rules, rng_system()) : ST_ENOMEM;
    if (rc < 0)
        err_set(e, rc, "no memory");
    if (rc == ST_OK && (rc = context(p, TLS_COORDINATOR, "server", groups, rules, &server, e)) == ST_OK &&
        (rc = context(p, TLS_NODE, "client", groups, rules, &client, e)) == ST_OK &&
        (rc = open_ep(&w, server, true, &su, &se, e)) == ST_OK)
        rc = open_ep(&w, client, false, &cu, &w.client, e);
    if (rc == ST_OK && pins &&
        (pin_many(rules, tls_ctx_self(client)) < 0 || pin_many(rules, tls_ctx_self(server)) < 0))
        rc = err_set(e, ST_ENOMEM, "no memory");
    if (rc == ST_OK) {
        snprintf(to, sizeof to, "127.0.0.1:%u", quic_udp_port(su));
        rc = quic_addr_parse(to, &w.to, e);
    }
    if (rc == ST_OK) {
        uint64_t begin = clock_ns(clock_system());
        w.until_ns = begin + (uint64_t)(seconds * 1e9);
        for (int i = 0; i < IN_FLIGHT; i++)
            dial(&w);
        event_base_dispatch(w.base);
        *per_s = (double)w.done / ((double)(clock_ns(clock_system()) - begin) / 1e9);
        if (w.failed || !w.done)
            rc = err_set(e, ST_EINTERNAL, "a handshake with the groups %s failed", groups);
    }
    quic_udp_free(cu, 0, "");
    quic_udp_free(su, 0, "");
    tls_ctx_unref(server);
    tls_ctx_unref(client);
    tls_rules_unref(rules);
    if (w.base)
        event_base_free(w.base);
    return rc;
}

static int handshakes(struct bench_run *run, struct pki *p, struct err *e)
{
    static const struct {
        const char *name, *groups;
        bool pins;
    } row[] = {{"handshakes-x25519", "X25519", false},
               {"handshakes-x25519-pinned", "X25519", true},
               {"handshakes-p256", "P-256", false},
               {"handshakes-x25519mlkem768", "X25519MLKEM768", false}};
    enum { ROWS = sizeof row / sizeof *row, ROUNDS = 3 };
    double v[ROWS][ROUNDS] = {{0}};
    double seconds = run->o.quick ? 0.2 : 2;
    for (int k = 0; k < ROUNDS; k++) /* in turn, so that a noisy minute hits all alike */
        for (int i = 0; i < ROWS; i++) {
            int rc = measure(p, row[i].groups, row[i].pins, seconds, &v[i][k], e);
            if (rc < 0)
                return rc;
        }
    double base = bench_median(v[0], ROUNDS);
    bench_put(run, "tls", row[0].name, base, 0);
    for (int i = 1; i < ROWS; i++)
        bench_put(run, "tls", row[i].name, bench_median(v[i], ROUNDS), base);
    return ST_OK;
}

/* ---- enrolments ---- */

static void joiner(const char *dir, const char *address, const struct enroll_token *t, unsigned k, unsigned n)
{
    char key[256], name[64];
    struct enroll_result r;
    struct err e;
    snprintf(key, sizeof key, "%s/joiner%u.key", dir, k);
    if (tls_key_make(key, true, &e) < 0)
        _exit(1);
    for (unsigned i = 0; i < n; i++) {
        snprintf(name, sizeof name, "n%u-%u", k, i);
        if (enroll_join(address, t, name, NULL, key, 30 * NS_PER_S, &r, &e) < 0)
            _exit(1);
        enroll_result_fini(&r);
    }
    _exit(0);
}

static int join_many(const struct bench_cluster *c, unsigned each, double *per_s, struct err *e)
{
    struct enroll_token t;
    pid_t pid[JOINERS];
    int rc = bench_cluster_token(c, JOINERS * each, &t, e), bad = 0, st;
    if (rc < 0)
        return rc;
    uint64_t begin = clock_ns(clock_system());
    fflush(NULL);
    for (unsigned k = 0; k < JOINERS; k++)
        if ((pid[k] = fork()) == 0)
            joiner(c->dir, c->enroll, &t, k, each);
    for (unsigned k = 0; k < JOINERS; k++)
        bad += pid[k] < 0 || waitpid(pid[k], &st, 0) != pid[k] || st != 0;
    *per_s = JOINERS * each / ((double)(clock_ns(clock_system()) - begin) / 1e9);
    return bad ? err_set(e, ST_EINTERNAL, "%d of %d joiners were refused", bad, JOINERS) : ST_OK;
}

static int enrolments(struct bench_run *run, const struct bench_cluster *c, struct err *e)
{
    double per_s = 0;
    int rc = join_many(c, run->o.quick ? 10 : 250, &per_s, e);
    if (rc == ST_OK)
        bench_put(run, "tls", "enrolments", per_s, 0);
    return rc;
}

/* What needs the programs beside this one: each with a cluster of its own, or the nodes that only enrolled
 * would be cut off by the rotation, and it would rightly refuse. */
static int with_cluster(struct bench_run *run, const char *dir, const char *name,
                        int (*take)(struct bench_run *run, const struct bench_cluster *c, struct err *e),
                        struct err *e)
{
    struct bench_cluster c;
    int rc = bench_cluster_open(&c, dir, name, e);
    if (rc == ST_OK)
        rc = take(run, &c, e);
    bench_cluster_close(&c);
    return rc;
}

static int clusters(struct bench_run *run, const char *dir, struct err *e)
{
    int rc = with_cluster(run, dir, "enrol", enrolments, e);
    if (rc == ST_OK)
        return with_cluster(run, dir, "rotate", bench_rotation, e);
    for (size_t i = 0; rc == ST_ENOENT && i < sizeof needs_cluster / sizeof *needs_cluster; i++)
        bench_skip(run, "tls", needs_cluster[i], e->text);
    return rc == ST_ENOENT ? ST_OK : rc;
}

int bench_tls(struct bench_run *run, struct err *e)
{
    struct pki p = {.dir = "/tmp/strata-bench-XXXXXX"};
    char cmd[96];
    if (!mkdtemp(p.dir))
        return err_errno(e, errno, "cannot make a directory in /tmp");
    int rc = tls_ca_create(p.dir, "bench.example", 2, clock_system(), e);
    if (rc == ST_OK && (rc = tls_ca_load(&p.ca, p.dir, e)) == ST_OK && (rc = handshakes(run, &p, e)) == ST_OK)
        rc = clusters(run, p.dir, e);
    tls_ca_free(p.ca);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", p.dir);
    if (system(cmd))
        fprintf(stderr, "strata-bench: %s was left behind\n", p.dir);
    return rc;
}
