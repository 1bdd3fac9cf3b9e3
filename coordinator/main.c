/*
 * strata-coordinator: parses its arguments, reads its configuration, wires the rooms together and runs one
 * loop until a signal ends it. Everything that can fail at start fails with a sentence and an exit code.
 */
#include <event2/event.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/map.h"
#include "common/base/str.h"
#include "common/ticket/ticket.h"
#include "coordinator/api/calibration.h"
#include "coordinator/api/net.h"
#include "coordinator/api/trust.h"

static void usage(FILE *f)
{
    fputs("strata-coordinator run --config FILE        runs the coordinator in the foreground\n"
          "strata-coordinator check-config --config FILE   says whether the file is right, and exits\n"
          "strata-coordinator --version\n",
          f);
}

static void on_signal(evutil_socket_t fd, short what, void *arg)
{
    struct coord *c = arg;
    (void)fd;
    (void)what;
    LOG_I(&c->log, "main", "stopping on a signal");
    event_base_loopbreak(c->base);
}

static void on_port(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    port_drain(((struct coord *)arg)->port);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    api_tick(arg);
}

/* 32 bytes that survive restarts, so that peers of an earlier run are told at once that it is gone. */
static int reset_secret(const char *dir, const struct rng *rng, uint8_t out[32], struct err *e)
{
    char path[1024];
    struct buf b = {0};
    if (fs_join(path, sizeof path, dir, "reset.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", dir);
    if (!fs_exists(path)) {
        rng->fill(rng->arg, out, 32);
        return fs_write_atomic(path, out, 32, 0600, e);
    }
    int rc = fs_read(path, 32, &b, e);
    if (rc == ST_OK && b.len != 32)
        rc = err_set(e, ST_ECORRUPT, "%s has not 32 bytes: remove it, a new one is made", path);
    if (rc == ST_OK)
        memcpy(out, b.data, 32);
    buf_fini(&b);
    return rc;
}

static int open_ticket_key(struct coord *c, struct err *e)
{
    char path[1024];
    int rc;
    if (fs_join(path, sizeof path, c->cfg.state_dir, "ticket.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", c->cfg.state_dir);
    if ((!fs_exists(path) && (rc = ticket_key_create(path, e)) < 0) ||
        (rc = ticket_key_load(&c->ticket_key, path, e)) < 0)
        return rc;
    ticket_key_public(c->ticket_key, c->ticket_public);
    return ST_OK;
}

static int take_policy(void *arg, const struct policy *p)
{
    struct coord *c = arg;
    return access_set_put(c->access, p, NULL);
}

static int take_node(void *arg, const struct store_node *n)
{
    struct coord *c = arg;
    return topo_expect(c->topo, n->id, clock_ns(c->clock), n->enrolled_us, n->seen_us);
}

static int take_epoch(void *arg, const struct store_node *n)
{
    uint64_t *next = arg;
    if (n->incarnation >= *next)
        *next = n->incarnation + 1;
    return 0;
}

static int take_spool(void *arg, const struct store_node *n)
{
    struct err e;
    return api_spool_load(arg, n->id, &e);
}

/* audit.db with what the configuration says of it; its key is made at the first start. */
static int open_audit(struct coord *c, struct err *e)
{
    char key[1024];
    if (fs_join(c->audit_path, sizeof c->audit_path, c->cfg.state_dir, "audit.db") < 0 ||
        fs_join(key, sizeof key, c->cfg.state_dir, "audit.key") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", c->cfg.state_dir);
    int rc = audit_key_open(&c->audit_key, key, e);
    if (rc < 0)
        return rc;
    const struct config_audit *a = &c->cfg.audit;
    return audit_open(&c->audit,
                      &(struct audit_config){.path = c->audit_path,
                                             .flush_ns = a->flush_ns,
                                             .flush_rows = a->flush_rows,
                                             .ring_rows = a->ring_rows,
                                             .checkpoint_ns = a->checkpoint_ns,
                                             .segment_rows = a->segment_rows,
                                             .segment_us = (int64_t)(a->segment_ns / NS_PER_US),
                                             .hot_segments = a->hot_segments,
                                             .keep_us = (int64_t)(a->keep_ns / NS_PER_US),
                                             .echo_fd = a->echo ? STDERR_FILENO : -1,
                                             .lines_path = a->lines,
                                             .syslog = a->syslog,
                                             .signer = audit_key_signer(c->audit_key),
                                             .clock = c->clock,
                                             .log = &c->log},
                      c->store, e);
}

static int open_stores(struct coord *c, struct err *e)
{
    char state[1024];
    uint64_t epoch = 1;
    int rc = fs_mkdirs(c->cfg.state_dir, 0750, e);
    if (rc < 0)
        return rc;
    if (fs_join(state, sizeof state, c->cfg.state_dir, "state.db") < 0)
        return err_set(e, ST_ELIMIT, "path too long: %s", c->cfg.state_dir);
    if ((rc = store_open(&c->store, &(struct store_config){.path = state, .log = &c->log}, e)) < 0 ||
        (rc = open_audit(c, e)) < 0 || (rc = store_load_policies(c->store, take_policy, c, e)) < 0 ||
        (rc = store_load_nodes(c->store, take_epoch, &epoch, e)) < 0)
        return rc;
    if ((rc = topo_new(&c->topo, c->cfg.suspect_ns, c->cfg.lost_ns, epoch)) < 0)
        return err_set(e, rc, "no memory for the registry");
    if ((rc = store_load_nodes(c->store, take_spool, c, e)) < 0)
        return rc;
    return store_load_nodes(c->store, take_node, c, e);
}

static int open_jobs(struct coord *c, struct err *e)
{
    const struct jobs_cfg jc = {.clock = c->clock,
                                .rng = c->rng,
                                .log = &c->log,
                                .topo = c->topo,
                                .store = c->store,
                                .audit = c->audit,
                                .port = c->port,
                                .agents = &api_agents,
                                .agents_ctx = c,
                                .policy = api_policy,
                                .policy_ctx = c,
                                .quota = c->quota,
                                .links = api_links,
                                .links_ctx = c,
                                .changed = api_job_changed,
                                .changed_ctx = c};
    int rc = jobs_new(&c->jobs, &jc);
    if (rc < 0)
        return err_set(e, rc, "cannot start the planner's thread");
    rc = api_drains_load(c, e);
    return rc < 0 ? rc : jobs_load(c->jobs, e);
}

static void admin_stored(void *arg, int rc, const struct err *e)
{
    struct coord *c = arg;
    if (rc < 0) {
        LOG_E(&c->log, "main", "the first admin policy was not stored: %s", e->text);
        event_base_loopbreak(c->base);
    }
}

/* A cluster without any policy could never get one: the configured admin is the first. */
static int first_admin(struct coord *c, struct err *e)
{
    if (access_set_count(c->access))
        return ST_OK;
    struct policy p = {.roles = ROLE_BIT(ROLE_ADMIN), .created_us = clock_wall_us(c->clock), .generation = 1};
    str_copy(p.principal, sizeof p.principal, c->cfg.admin);
    struct store_txn *t = store_txn_new();
    int rc = t ? take_policy(c, &p) : ST_ENOMEM;
    if (rc < 0) {
        store_txn_free(t);
        return err_set(e, rc, "no memory for the admin's policy");
    }
    struct event_meta m = {0};
    event_meta_str(&m, "subject", p.principal);
    event_meta_str(&m, "roles", "admin");
    struct audit_event ev = event_make(EV_SECURITY_POLICY_ADDED, EVENT_SUCCESS, p.created_us);
    ev.principal = "coordinator";
    ev.operation = "security.policy_added";
    ev.meta = event_meta_text(&m);
    store_txn_policy_put(t, &p);
    store_txn_event(t, &ev);
    event_meta_fini(&m);
    rc = store_submit(c->store, t, admin_stored, c);
    return rc < 0 ? err_set(e, rc, "state.db does not take the admin's policy: %s", status_name(rc)) : ST_OK;
}

static int listen_now(struct coord *c, struct err *e)
{
    struct quic_ep_cfg ec = {.clock = c->clock,
                             .rng = c->rng,
                             .log = &c->log,
                             .tls = c->tls,
                             .accept = true,
                             .accept_ops = &api_accept_ops,
                             .accept_arg = c};
    quic_limits_control(&ec.limits);
    int rc = reset_secret(c->cfg.state_dir, c->rng, ec.reset_secret, e);
    return rc < 0 ? rc : quic_udp_new(&c->udp, &c->ep, c->base, 0, c->cfg.listen, &ec, e);
}

static int start(struct coord *c, struct err *e)
{
    int rc;
    if (!(c->base = event_base_new()) || port_new(&c->port) < 0 || access_set_new(&c->access, c->rng) < 0 ||
        quota_new(&c->quota, c->rng) < 0 || dsessions_init(c) < 0 || map_new(&c->spools, c->rng) < 0 ||
        offload_new(&c->offload, c->port) < 0 || net_init(c) < 0)
        return err_set(e, ST_ERESOURCE,
                       "cannot make the event loop: out of memory, threads or file descriptors");
    if ((rc = trust_new(c, e)) < 0 || (rc = open_stores(c, e)) < 0 || (rc = trust_load(c->trust, e)) < 0 ||
        (rc = open_ticket_key(c, e)) < 0 || (rc = open_jobs(c, e)) < 0 || (rc = dsessions_load(c, e)) < 0 ||
        (rc = net_load(c, e)) < 0 || (rc = calibrations_load(c, e)) < 0 || (rc = api_table_new(c, e)) < 0 ||
        (rc = store_start(c->store, c->port, e)) < 0 || (rc = first_admin(c, e)) < 0)
        return rc;
    /* What a policy stopped carrying while its sessions were being ended when the last run died. */
    dsessions_recheck(c, NULL, "coordinator");
    c->recheck_jobs = true;
    rc = listen_now(c, e);
    return rc < 0 ? rc : trust_listen(c->trust, e);
}

/* Backwards: first nobody can ask, then what was asked is written down, then all is freed. */
static void stop(struct coord *c)
{
    jobs_stop(c->jobs);
    net_stop(c);
    if (c->trust && c->trust->enroll_udp)
        quic_udp_free(c->trust->enroll_udp, 0, "the coordinator stops");
    if (c->udp)
        quic_udp_free(c->udp, 0, "the coordinator stops");
    c->stopping = true;
    offload_free(c->offload);
    audit_reader_close(c->audit_reader);
    audit_close(c->audit);
    audit_key_free(c->audit_key);
    store_close(c->store);
    if (c->port)
        port_drain(c->port);
    net_fini(c);
    calibrations_fini(c);
    api_spool_free(c);
    jobs_free(c->jobs);
    rpc_table_free(c->table);
    topo_free(c->topo);
    ticket_key_free(c->ticket_key);
    tls_ctx_unref(c->tls);
    trust_free(c->trust);
    api_policies_fini(c);
    dsessions_fini(c);
    quota_free(c->quota);
    access_set_free(c->access);
    port_free(c->port);
    if (c->base)
        event_base_free(c->base);
    coord_config_fini(&c->cfg);
}

static int loop(struct coord *c)
{
    uint64_t us = c->cfg.heartbeat_ns / 4 / NS_PER_US;
    const struct timeval tv = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
    struct event *ev[] = {evsignal_new(c->base, SIGTERM, on_signal, c),
                          evsignal_new(c->base, SIGINT, on_signal, c),
                          event_new(c->base, port_fd(c->port), EV_READ | EV_PERSIST, on_port, c),
                          event_new(c->base, -1, EV_PERSIST, on_tick, c)};
    int rc = ST_OK;
    for (unsigned i = 0; i < 4; i++)
        if (!ev[i] || event_add(ev[i], i == 3 ? &tv : NULL))
            rc = ST_ERESOURCE;
    if (rc == ST_OK) {
        struct event_meta m = {0};
        event_meta_str(&m, "version", STRATA_VERSION);
        api_event(c, EV_SYSTEM_STARTED, EVENT_SUCCESS, "coordinator", NULL, event_meta_text(&m), NULL);
        event_meta_fini(&m);
        LOG_I(&c->log, "main", "ready version=%s port=%u trust_domain=%s", STRATA_VERSION,
              quic_udp_port(c->udp), c->cfg.trust_domain);
        if (event_base_dispatch(c->base) < 0)
            rc = ST_EINTERNAL;
        api_event(c, EV_SYSTEM_STOPPED, EVENT_SUCCESS, "coordinator", NULL, NULL, NULL);
    }
    for (unsigned i = 0; i < 4; i++)
        if (ev[i])
            event_free(ev[i]);
    return rc;
}

static int run(const char *config, bool check_only)
{
    struct coord c = {.clock = clock_system(), .rng = rng_system()};
    struct err e = {0};
    c.log = (struct log){.fd = STDERR_FILENO,
                         .level = LOG_LV_INFO,
                         .journal = getenv("JOURNAL_STREAM") != NULL,
                         .program = "strata-coordinator",
                         .clock = c.clock};
    int rc = coord_config_read(&c.cfg, config, &e);
    if (rc == ST_OK && check_only) {
        printf("%s is right\n", config);
        coord_config_fini(&c.cfg);
        return 0;
    }
    if (rc == ST_OK) {
        c.log.level = c.cfg.log_level;
        c.started_us = clock_wall_us(c.clock);
        rc = start(&c, &e);
        if (rc == ST_OK)
            rc = loop(&c);
        stop(&c);
    }
    if (rc < 0)
        fprintf(stderr, "strata-coordinator: %s\n", e.text[0] ? e.text : status_name(rc));
    return status_exit_code(rc);
}

int main(int argc, char **argv)
{
    static const struct option opts[] = {{"config", required_argument, NULL, 'c'},
                                         {"version", no_argument, NULL, 'v'},
                                         {"help", no_argument, NULL, 'h'},
                                         {0}};
    const char *config = NULL;
    for (int o; (o = getopt_long(argc, argv, "c:vh", opts, NULL)) != -1;) {
        if (o == 'c')
            config = optarg;
        else if (o == 'v')
            return printf("strata-coordinator %s\n", STRATA_VERSION) < 0;
        else {
            usage(o == 'h' ? stdout : stderr);
            return o == 'h' ? 0 : 2;
        }
    }
    const char *cmd = optind < argc ? argv[optind] : NULL;
    bool check = cmd && !strcmp(cmd, "check-config");
    if (!cmd || !config || optind + 1 != argc || (!check && strcmp(cmd, "run"))) {
        usage(stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    return run(config, check);
}
