#include "agent/agent.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/control.h"
#include "agent/handlers.h"
#include "agent/identity.h"
#include "agent/layers/layers.h"
#include "agent/layers/peers.h"
#include "agent/layers/serve.h"
#include "agent/reports.h"
#include "agent/session/session.h"
#include "agent/spool/deliver.h"
#include "agent/spool/spool.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/quic/quic.h"
#include "common/rpc/rpc.h"

#define FILE_THREADS 4
#define MAX_DEVICES 64
#define MAX_FETCHES 64
#define CALLS_PER_PEER 64

struct agent {
    struct agent_env env;
    struct identity *identity;
    struct files *files;
    struct quic_udp *udp, *bulk_udp;
    struct quic_ep *ep, *bulk_ep;
    struct pool *pool;
    struct peers *peers;
    struct layers *layers;
    struct serve *serve;
    struct sessions *sessions;
    struct reports *reports;
    struct handlers handlers;
    struct rpc_table *table, *peer_table;
    struct control *control;
    struct port *port; /* of the spool */
    struct event *port_ready;
    struct spool *spool;
    struct deliver *deliver;
    struct witness witness;
    char peer_address[300];
    char backends[40];
    struct pool_device device[MAX_DEVICES];
    size_t ndevices;
    bool ready_told;
    /* What the last request pointed to. */
    Strata__V1__Device dev_msg[MAX_DEVICES];
    Strata__V1__Device *dev_ptr[MAX_DEVICES];
    Strata__V1__Resident *res_msg, **res_ptr;
    size_t nres, res_cap;
    uint64_t hello_serial; /* of the newest load that the last hello could tell of */
};

/* ---- the audit spool ---- */

static void on_port(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    port_drain(((struct agent *)arg)->port);
}

static int open_spool(struct agent *a, struct err *e)
{
    char spool[4200], witness[4200];
    const char *dir = a->env.config->state_dir;
    int rc = fs_mkdirs(dir, 0700, e);
    if (rc < 0)
        return rc;
    if (fs_join(spool, sizeof spool, dir, "audit.spool") < 0 ||
        fs_join(witness, sizeof witness, dir, "audit.witness") < 0)
        return err_set(e, ST_ELIMIT, "the path of state.dir is too long");
    if ((rc = witness_open(&a->witness, witness, a->env.log, e)) < 0)
        return rc;
    if (port_new(&a->port) < 0 ||
        !(a->port_ready = event_new(a->env.base, port_fd(a->port), EV_READ | EV_PERSIST, on_port, a)) ||
        event_add(a->port_ready, NULL) < 0)
        return err_set(e, ST_ERESOURCE, "no memory or descriptors for the audit spool");
    const struct spool_cfg cfg = {.path = spool,
                                  .max_bytes = a->env.config->spool_bytes,
                                  .port = a->port,
                                  .clock = a->env.clock,
                                  .log = a->env.log};
    if ((rc = spool_open(&a->spool, &cfg, e)) < 0)
        return rc;
    rc = deliver_new(&a->deliver, &(struct deliver_cfg){a->env.base, a->spool, a->env.log});
    return rc < 0 ? err_set(e, rc, "no memory for the audit spool") : ST_OK;
}

/* Keep-class events of the node itself; nobody waits for them. */
static void record(struct agent *a, int type, const char *device, const char *meta)
{
    struct audit_event ev = event_make(type, EVENT_SUCCESS, clock_wall_us(a->env.clock));
    struct err e;
    char who[80];
    snprintf(who, sizeof who, "node/%.63s", a->env.config->node);
    ev.principal = who;
    ev.node = a->env.config->node;
    ev.device = device;
    ev.operation = event_info(type)->name;
    ev.meta = meta;
    if (spool_emit(a->spool, &ev, NULL, NULL, &e) < 0)
        LOG_E(a->env.log, "agent", "event not recorded type=%s text=\"%s\"", ev.operation, e.text);
}

static void record_devices(struct agent *a)
{
    for (size_t i = 0; i < a->ndevices; i++) {
        struct event_meta m = {0};
        char id[160];
        snprintf(id, sizeof id, "%.63s/%.63s", a->env.config->node, a->device[i].id);
        event_meta_str(&m, "backend", a->device[i].backend);
        event_meta_str(&m, "driver", a->device[i].driver_version);
        record(a, EV_SYSTEM_BACKEND_INITIALIZED, id, event_meta_text(&m));
        event_meta_fini(&m);
    }
    struct event_meta m = {0};
    event_meta_u64(&m, "devices", a->ndevices);
    record(a, EV_SYSTEM_DISCOVERY_COMPLETED, NULL, event_meta_text(&m));
    event_meta_fini(&m);
}

static void on_heartbeat(const Strata__V1__HeartbeatReply *r, void *arg)
{
    struct agent *a = arg;
    struct witness_head h = {0};
    if (!r->audit || r->audit->head.len != sizeof h.head || r->audit->signature.len > sizeof h.sig)
        return;
    h.size = r->audit->size;
    h.time_us = r->audit->time_us;
    h.sig_len = r->audit->signature.len;
    memcpy(h.head, r->audit->head.data, sizeof h.head);
    if (h.sig_len)
        memcpy(h.sig, r->audit->signature.data, h.sig_len);
    /* What goes into the file is one word a field. */
    if (str_ident_ok(r->audit->key_id, sizeof h.key_id - 1))
        str_copy(h.key_id, sizeof h.key_id, r->audit->key_id);
    witness_take(&a->witness, &h);
}

/* ---- what the coordinator is told ---- */

static uint64_t available(const struct agent *a, const struct pool_device *d)
{
    uint64_t held = layers_device_bytes(a->layers, d->id) + sessions_device_bytes(a->sessions, d->id);
    if (sessions_leased(a->sessions, d->id))
        return 0; /* nothing of anybody else fits there now */
    return held < d->available_bytes ? d->available_bytes - held : 0;
}

static void fill_devices(struct agent *a, bool all)
{
    for (size_t i = 0; i < a->ndevices; i++) {
        struct pool_device *d = &a->device[i];
        Strata__V1__Device *m = &a->dev_msg[i];
        strata__v1__device__init(m);
        m->id = d->id;
        m->available_bytes = available(a, d);
        a->dev_ptr[i] = m;
        if (!all)
            continue;
        m->node = a->env.config->node;
        m->backend = d->backend;
        m->name = d->name;
        m->vendor = d->vendor;
        m->uuid = d->uuid;
        m->driver_version = d->driver_version;
        m->support_level = d->support_level;
        m->software = d->software;
        m->memory_bytes = d->memory_bytes;
        m->compute_units = d->compute_units;
        m->compute_flops_per_s = d->flops_per_s;
        m->memory_bytes_per_s = d->bytes_per_s;
    }
}

static void add_resident(const struct layers_info *i, void *arg)
{
    struct agent *a = arg;
    if (a->nres == a->res_cap) {
        size_t cap = a->res_cap ? a->res_cap * 2 : 64;
        Strata__V1__Resident *v = realloc(a->res_msg, cap * sizeof *v);
        if (!v)
            return; /* not told of: the coordinator counts it as lost and loads it again */
        a->res_msg = v;
        a->res_cap = cap;
    }
    Strata__V1__Resident *m = &a->res_msg[a->nres++];
    strata__v1__resident__init(m);
    m->job = (char *)i->job;
    m->layer = (char *)i->layer;
    m->device = (char *)i->device;
    m->bytes = i->bytes;
    m->sha256 = (ProtobufCBinaryData){.len = 32, .data = (uint8_t *)i->sha256};
}

static void fill_hello(Strata__V1__HelloRequest *rq, void *arg)
{
    struct agent *a = arg;
    fill_devices(a, true);
    rq->peer_address = a->peer_address;
    rq->devices = a->dev_ptr;
    rq->n_devices = a->ndevices;
    a->nres = 0;
    a->hello_serial = layers_serial(a->layers);
    layers_each(a->layers, add_resident, a);
    free(a->res_ptr);
    a->res_ptr = calloc(a->nres ? a->nres : 1, sizeof(*a->res_ptr));
    if (!a->res_ptr)
        return;
    for (size_t i = 0; i < a->nres; i++)
        a->res_ptr[i] = &a->res_msg[i];
    rq->resident = a->res_ptr;
    rq->n_resident = a->nres;
}

static void fill_heartbeat(Strata__V1__HeartbeatRequest *rq, void *arg)
{
    struct agent *a = arg;
    fill_devices(a, false);
    rq->devices = a->dev_ptr;
    rq->n_devices = a->ndevices;
}

static void dropped(void *arg, int rc, const struct err *e, unsigned layers, uint64_t bytes)
{
    struct agent *a = arg;
    if (rc < 0)
        LOG_W(a->env.log, "agent", "drop error=\"%s\"", e->text);
    else
        LOG_I(a->env.log, "agent", "dropped layers=%u bytes=%" PRIu64, layers, bytes);
}

static void on_registered(const Strata__V1__HelloReply *r, void *arg)
{
    struct agent *a = arg;
    struct err e;
    if (r->ticket_public_key.len == TICKET_PUB_LEN) {
        serve_set_key(a->serve, r->ticket_public_key.data);
        sessions_set_key(a->sessions, r->ticket_public_key.data);
    }
    reports_registered(a->reports);
    for (size_t i = 0; i < r->n_drop; i++) {
        LOG_I(a->env.log, "agent", "nobody wants job=%s layer=%s", r->drop[i]->job, r->drop[i]->layer);
        if (r->drop[i]->layer[0] &&
            layers_release(a->layers, r->drop[i]->job, r->drop[i]->layer, r->drop[i]->device, a->hello_serial,
                           dropped, a, &e) < 0 &&
            e.code != ST_ENOENT)
            LOG_W(a->env.log, "agent", "drop error=\"%s\"", e.text);
    }
    if (!a->ready_told)
        LOG_I(a->env.log, "agent", "ready node=%s coordinator=%s peers=%s devices=%zu", a->env.config->node,
              a->env.config->coordinator, a->peer_address, a->ndevices);
    a->ready_told = true;
    deliver_session(a->deliver, control_session(a->control));
    identity_registered(a->identity);
    if (a->env.on_registered)
        a->env.on_registered(a->env.arg);
}

static void on_disconnected(const char *why, void *arg)
{
    struct agent *a = arg;
    deliver_session(a->deliver, NULL);
    LOG_W(a->env.log, "agent", "coordinator lost why=\"%s\"", why);
}

static void on_moved(bool ok, void *arg)
{
    struct agent *a = arg;
    (void)ok;
    deliver_session(a->deliver, control_session(a->control));
    identity_registered(a->identity);
}

static const struct control_ops control_ops = {
    .fill_hello = fill_hello,
    .fill_heartbeat = fill_heartbeat,
    .on_registered = on_registered,
    .on_heartbeat = on_heartbeat,
    .on_lost = on_disconnected,
    .on_moved = on_moved,
};

/* What layers may have of it: what sessions hold is not theirs. */
static uint64_t capacity(const char *device, void *arg)
{
    const struct agent *a = arg;
    for (size_t i = 0; i < a->ndevices; i++)
        if (strcmp(a->device[i].id, device) == 0) {
            uint64_t held = sessions_leased(a->sessions, device) ? UINT64_MAX
                                                                 : sessions_device_bytes(a->sessions, device);
            return held < a->device[i].memory_bytes ? a->device[i].memory_bytes - held : 1;
        }
    return 0;
}

/* ---- device sessions ---- */

static const struct pool_device *session_devices(size_t *n, void *arg)
{
    const struct agent *a = arg;
    *n = a->ndevices;
    return a->device;
}

static uint64_t session_layer_bytes(const char *device, void *arg)
{
    return layers_device_bytes(((const struct agent *)arg)->layers, device);
}

static void session_change(bool urgent, void *arg)
{
    reports_changed(((struct agent *)arg)->reports, urgent);
}

static void on_layers_lost(void *arg)
{
    struct agent *a = arg;
    if (a->control)
        control_hello_again(a->control);
}

/* ---- peers ---- */

static void peer_session_up(struct rpc_session *s, void *arg)
{
    (void)s;
    (void)arg;
}

static void peer_session_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct agent *a = arg;
    LOG_D(a->env.log, "agent", "peer=%s gone why=\"%s\"", rpc_session_peer(s)->principal, why->reason);
    sessions_gone(a->sessions, s);
}

static const struct rpc_session_ops peer_session_ops = {.on_up = peer_session_up,
                                                        .on_closed = peer_session_closed};

static void on_peer(struct quic_conn *c, void *arg)
{
    struct agent *a = arg;
    struct rpc_session *s;
    const struct rpc_cfg cfg = {
        .base = a->env.base,
        .clock = a->env.clock,
        .log = a->env.log,
        .table = a->peer_table,
        .max_inbound_calls = CALLS_PER_PEER,
    };
    if (quic_conn_peer(c)->kind == TLS_COORDINATOR)
        quic_conn_close(c, 7, "agents and holders of tickets connect here");
    else if (rpc_accept(&s, &cfg, c, &peer_session_ops, a) < 0)
        quic_conn_close(c, 8, "no memory for another peer");
}

static void on_peer_stream(struct quic_conn *c, struct quic_stream *s, void *arg)
{
    (void)c;
    (void)arg;
    quic_stream_reset(s, 0);
}

static void on_peer_closed(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    (void)c;
    (void)why;
    (void)arg;
}

static const struct quic_conn_ops accept_ops = {
    .on_up = on_peer, .on_stream = on_peer_stream, .on_closed = on_peer_closed};

/* ---- devices ---- */

/* A backend that the configuration insists on must have a device. */
static int check_backends(const struct agent *a, struct err *e)
{
    const struct agent_config *c = a->env.config;
    const struct {
        const char *name;
        enum agent_backend_use use;
    } want[] = {{"cpu", c->cpu}, {"vulkan", c->vulkan}, {"cuda", c->cuda}};
    for (unsigned k = 0; k < sizeof want / sizeof *want; k++) {
        bool found = false;
        for (size_t i = 0; i < a->ndevices; i++)
            found |= strcmp(a->device[i].backend, want[k].name) == 0;
        if (want[k].use == AGENT_BACKEND_ON && !found)
            return err_reason(
                e, ST_ENOENT, "NO_DEVICE",
                "backends.%s is on but this node has no such device; install its driver or set it to "
                "auto",
                want[k].name);
    }
    return ST_OK;
}

static int start_control(struct agent *a, struct err *e)
{
    const struct control_cfg cfg = {
        .base = a->env.base,
        .clock = a->env.clock,
        .rng = a->env.rng,
        .log = a->env.log,
        .ep = a->ep,
        .files = a->files,
        .table = a->table,
        .address = a->env.config->coordinator,
    };
    int rc = control_new(&a->control, &cfg, &control_ops, a, e);
    if (rc == ST_OK)
        identity_start(a->identity, a->control);
    return rc;
}

static void on_probed(void *arg, int rc, const struct err *why, const struct pool_device *v, size_t n)
{
    struct agent *a = arg;
    struct err e = *why;
    if (rc == ST_OK && n > MAX_DEVICES) {
        LOG_W(a->env.log, "agent", "devices=%zu only the first %d are used", n, MAX_DEVICES);
        n = MAX_DEVICES;
    }
    if (rc == ST_OK) {
        memcpy(a->device, v, n * sizeof *v);
        a->ndevices = n;
        for (size_t i = 0; i < n; i++)
            LOG_I(a->env.log, "agent", "device=%s name=\"%s\" memory_bytes=%" PRIu64, v[i].id, v[i].name,
                  v[i].memory_bytes);
        record_devices(a);
        rc = check_backends(a, &e);
        if (rc == ST_OK)
            rc = start_control(a, &e);
    }
    if (rc < 0) {
        LOG_E(a->env.log, "agent", "cannot start: %s", e.text);
        a->env.on_fatal(a->env.arg, &e);
    }
}

/* ---- setting up ---- */

static void on_context(struct tls_ctx *fresh, void *arg)
{
    struct agent *a = arg;
    quic_ep_set_tls(a->ep, fresh);
    quic_ep_set_tls(a->bulk_ep, fresh);
    peers_renewed(a->peers);
}

static void on_check(void *arg)
{
    struct agent *a = arg;
    unsigned n = quic_ep_close_bad(a->ep) + quic_ep_close_bad(a->bulk_ep);
    if (n)
        LOG_W(a->env.log, "agent", "closed connections=%u whose certificates are no longer good", n);
}

static void on_ticket_key(const uint8_t pub[TICKET_PUB_LEN], void *arg)
{
    struct agent *a = arg;
    serve_set_key(a->serve, pub);
    sessions_set_key(a->sessions, pub);
}

static int open_identity(struct agent *a, struct err *e)
{
    const struct identity_cfg cfg = {.base = a->env.base,
                                     .clock = a->env.clock,
                                     .rng = a->env.rng,
                                     .log = a->env.log,
                                     .config = a->env.config,
                                     .on_context = on_context,
                                     .on_check = on_check,
                                     .on_ticket_key = on_ticket_key,
                                     .arg = a};
    return identity_new(&a->identity, &cfg, e);
}

/* Kept over restarts, so that peers notice one at once. */
static int reset_secret(const struct agent *a, const char *name, uint8_t out[32], struct err *e)
{
    char path[4200];
    struct buf b = {0};
    int rc = fs_mkdirs(a->env.config->state_dir, 0700, e);
    if (rc < 0)
        return rc;
    if (fs_join(path, sizeof path, a->env.config->state_dir, name) < 0)
        return err_set(e, ST_ELIMIT, "the path of state.dir is too long");
    if (!fs_exists(path)) {
        a->env.rng->fill(a->env.rng->arg, out, 32);
        return fs_write_atomic(path, out, 32, 0600, e);
    }
    rc = fs_read(path, 32, &b, e);
    if (rc == ST_OK && b.len != 32)
        rc = err_set(e, ST_ECORRUPT, "%s must have 32 bytes; remove it and start again", path);
    if (rc == ST_OK)
        memcpy(out, b.data, 32);
    buf_fini(&b);
    return rc;
}

static int open_sockets(struct agent *a, struct err *e)
{
    const struct agent_config *c = a->env.config;
    struct quic_ep_cfg cfg = {.clock = a->env.clock,
                              .rng = a->env.rng,
                              .log = a->env.log,
                              .tls = identity_tls(a->identity),
                              .accept = false};
    quic_limits_control(&cfg.limits);
    int rc = reset_secret(a, "reset.key", cfg.reset_secret, e);
    if (rc < 0)
        return rc;
    rc = quic_udp_new(&a->udp, &a->ep, a->env.base, 0, c->coordinator[0] == '[' ? "[::]:0" : "0.0.0.0:0",
                      &cfg, e);
    if (rc < 0)
        return rc;
    quic_limits_bulk(&cfg.limits);
    cfg.accept = true;
    cfg.accept_ops = &accept_ops;
    cfg.accept_arg = a;
    rc = quic_udp_new(&a->bulk_udp, &a->bulk_ep, a->env.base, 1, c->listen, &cfg, e);
    if (rc < 0)
        return rc;
    const char *host = c->advertise ? c->advertise : c->listen;
    int n = c->advertise ? (int)strlen(host) : (int)(strrchr(host, ':') - host);
    snprintf(a->peer_address, sizeof a->peer_address, "%.*s:%u", n, host, quic_udp_port(a->bulk_udp));
    return ST_OK;
}

/* NULL = whatever the worker knows. */
static const char *backend_list(struct agent *a)
{
    const struct agent_config *c = a->env.config;
    if (c->cpu != AGENT_BACKEND_OFF && c->vulkan != AGENT_BACKEND_OFF && c->cuda == AGENT_BACKEND_AUTO)
        return NULL;
    snprintf(a->backends, sizeof a->backends, "%s%s%s", c->cpu != AGENT_BACKEND_OFF ? ",cpu" : "",
             c->vulkan != AGENT_BACKEND_OFF ? ",vulkan" : "", c->cuda == AGENT_BACKEND_ON ? ",cuda" : "");
    return a->backends[0] ? a->backends + 1 : "";
}

static int open_sessions(struct agent *a, struct err *e)
{
    const struct reports_cfg reports = {
        .base = a->env.base,
        .clock = a->env.clock,
        .log = a->env.log,
        .sessions = &a->sessions,
        .control = &a->control,
    };
    const struct sessions_cfg sessions = {
        .base = a->env.base,
        .clock = a->env.clock,
        .rng = a->env.rng,
        .log = a->env.log,
        .pool = a->pool,
        .peers = a->peers,
        .spool = a->spool,
        .node = a->env.config->node,
        .devices = session_devices,
        .own = {a->env.config->user_kernels.allow, a->env.config->user_kernels.max_bytes,
                a->env.config->user_kernels.deadline_ns},
        .layer_bytes = session_layer_bytes,
        .on_change = session_change,
        .arg = a,
    };
    int rc = reports_new(&a->reports, &reports, e);
    return rc < 0 ? rc : sessions_new(&a->sessions, &sessions, e);
}

/* The coordinator's connection serves what concerns sessions beside layers, the listener device sessions
 * beside layers for other agents. */
static int join_tables(struct agent *a, struct err *e)
{
    struct rpc_table *control = NULL, *devices = NULL;
    int rc = reports_table(&control, a->reports, e);
    if (rc == ST_OK && (rc = rpc_table_join(a->table, control, e)) < 0)
        rpc_table_free(control);
    if (rc == ST_OK && (rc = sessions_table(&devices, a->sessions, e)) == ST_OK &&
        (rc = rpc_table_join(a->peer_table, devices, e)) < 0)
        rpc_table_free(devices);
    return rc;
}

static int open_rooms(struct agent *a, struct err *e)
{
    const struct agent_config *c = a->env.config;
    const char *const *roots = (const char *const *)c->model_dirs;
    const struct pool_cfg pool = {
        .base = a->env.base,
        .clock = a->env.clock,
        .log = a->env.log,
        .worker_path = a->env.worker_path,
        .backends = backend_list(a),
        .cpu_memory_bytes = c->cpu_memory_bytes,
    };
    const struct peers_cfg peers = {
        .base = a->env.base, .clock = a->env.clock, .log = a->env.log, .ep = a->bulk_ep, .files = a->files};
    const struct serve_cfg serve = {
        .files = a->files,
        .clock = a->env.clock,
        .log = a->env.log,
        .node = c->node,
        .roots = roots,
        .nroots = c->nmodel_dirs,
        .max_fetches = MAX_FETCHES,
    };
    int rc;
    if ((rc = pool_new(&a->pool, &pool, e)) < 0 || (rc = peers_new(&a->peers, &peers, e)) < 0 ||
        (rc = serve_new(&a->serve, &serve, e)) < 0)
        return rc;
    const struct layers_cfg layers = {
        .base = a->env.base,
        .clock = a->env.clock,
        .rng = a->env.rng,
        .log = a->env.log,
        .files = a->files,
        .pool = a->pool,
        .peers = a->peers,
        .roots = roots,
        .nroots = c->nmodel_dirs,
        .capacity = capacity,
        .on_lost = on_layers_lost,
        .arg = a,
    };
    if ((rc = layers_new(&a->layers, &layers, e)) < 0 || (rc = open_sessions(a, e)) < 0)
        return rc;
    a->handlers = (struct handlers){a->layers, a->files, a->env.clock, roots, c->nmodel_dirs, a->identity};
    if ((rc = handlers_table(&a->table, &a->handlers, e)) < 0 ||
        (rc = serve_table(&a->peer_table, a->serve, e)) < 0 || (rc = join_tables(a, e)) < 0)
        return rc;
    return pool_probe(a->pool, on_probed, a, e);
}

int agent_new(struct agent **out, const struct agent_env *env, struct err *e)
{
    struct agent *a = calloc(1, sizeof *a);
    int rc;
    if (!a)
        return err_set(e, ST_ENOMEM, "no memory for the agent");
    a->env = *env;
    if ((rc = open_identity(a, e)) < 0 || (rc = files_new(&a->files, env->base, FILE_THREADS, e)) < 0 ||
        (rc = open_spool(a, e)) < 0 || (rc = open_sockets(a, e)) < 0 || (rc = open_rooms(a, e)) < 0) {
        agent_free(a);
        return rc;
    }
    *out = a;
    return ST_OK;
}

/* Callers first, then what they called, so that nothing that ends can reach what is gone already. */
void agent_free(struct agent *a)
{
    if (!a)
        return;
    if (a->deliver)
        deliver_session(a->deliver, NULL);
    if (a->control)
        control_close(a->control);
    if (a->layers)
        layers_close(a->layers);
    if (a->sessions)
        sessions_close(a->sessions);
    if (a->peers)
        peers_close(a->peers);
    if (a->bulk_udp)
        quic_udp_free(a->bulk_udp, 0, "agent stops");
    if (a->udp)
        quic_udp_free(a->udp, 0, "agent stops");
    files_free(a->files);
    pool_free(a->pool);
    deliver_free(a->deliver);
    spool_close(a->spool); /* what waited for a row is told, while it is still there */
    if (a->port)
        port_drain(a->port);
    layers_free(a->layers);
    sessions_free(a->sessions);
    reports_free(a->reports);
    peers_free(a->peers);
    serve_free(a->serve);
    control_free(a->control);
    if (a->port_ready)
        event_free(a->port_ready);
    port_free(a->port);
    rpc_table_free(a->table);
    rpc_table_free(a->peer_table);
    identity_free(a->identity);
    free(a->res_msg);
    free(a->res_ptr);
    free(a);
}

const char *agent_peer_address(const struct agent *a)
{
    return a->peer_address;
}

struct sessions *agent_sessions(const struct agent *a)
{
    return a->sessions;
}

struct layers *agent_layers(const struct agent *a)
{
    return a->layers;
}
