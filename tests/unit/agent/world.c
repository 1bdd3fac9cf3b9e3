#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>
#include <fcntl.h>
#include <openssl/evp.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/model/synth.h"
#include "common/spool/record.h"
#include "strata/v1/nodes.pb-c.h"
#include "strata/v1/spool.pb-c.h"
#include "tests/unit/agent/world.h"

#define PATIENCE_NS (60 * NS_PER_S)
#define HEARTBEAT_NS (50 * NS_PER_MS)

#define OK(x)                                                                                                \
    do {                                                                                                     \
        struct err *e_ = &e;                                                                                 \
        if ((x) != ST_OK)                                                                                    \
            fail_msg("%s: %s", #x, e_->text);                                                                \
    } while (0)

void world_turn(struct world *w, uint64_t since_ns)
{
    if (clock_ns(clock_system()) - since_ns > PATIENCE_NS)
        fail_msg("waited too long");
    event_base_loop(w->base, EVLOOP_ONCE);
}

/* ---- the coordinator ---- */

static struct world_node *node_of(struct world *w, const char *name)
{
    for (unsigned i = 0; i < WORLD_NODES; i++)
        if (strcmp(w->node[i].name, name) == 0)
            return &w->node[i];
    fail_msg("who is %s?", name);
    return NULL;
}

static void on_hello(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct world *w = arg;
    const Strata__V1__HelloRequest *q = (const Strata__V1__HelloRequest *)msg;
    struct world_node *n = node_of(w, rpc_peer(call)->name);
    Strata__V1__HelloReply r = STRATA__V1__HELLO_REPLY__INIT;
    Strata__V1__Resident *drop[64];
    uint8_t pub[TICKET_PUB_LEN];
    assert_true(q->n_devices >= 1);
    assert_string_equal(q->devices[0]->id, "cpu:0");
    assert_true(q->devices[0]->memory_bytes > 0 && q->devices[0]->compute_flops_per_s > 0);
    n->session = rpc_call_session(call);
    memcpy(n->spki, rpc_peer(call)->spki_sha256, 32);
    str_copy(n->peer_address, sizeof n->peer_address, q->peer_address);
    n->residents = (unsigned)q->n_resident;
    ticket_key_public(w->key, pub);
    r.epoch = ++n->hellos;
    r.heartbeat_ns = HEARTBEAT_NS;
    r.ticket_public_key = (ProtobufCBinaryData){sizeof pub, pub};
    r.drop = drop;
    for (size_t i = 0; i < q->n_resident && w->drop_job; i++)
        if (strcmp(q->resident[i]->job, w->drop_job) == 0)
            drop[r.n_drop++] = q->resident[i];
    rpc_reply(call, &r.base);
}

static void on_heartbeat(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__HeartbeatRequest *q = (const Strata__V1__HeartbeatRequest *)msg;
    struct world_node *n = node_of(arg, rpc_peer(call)->name);
    Strata__V1__HeartbeatReply r = STRATA__V1__HEARTBEAT_REPLY__INIT;
    if (q->epoch != n->hellos) {
        rpc_finish(call, 9, "OLD_EPOCH", "register again");
        return;
    }
    n->heartbeats++;
    r.epoch = q->epoch;
    rpc_reply(call, &r.base);
}

static void on_report(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct world *w = arg;
    const Strata__V1__SessionReport *q = (const Strata__V1__SessionReport *)msg;
    struct world_node *n = node_of(w, rpc_peer(call)->name);
    Strata__V1__SessionReportReply r = STRATA__V1__SESSION_REPORT_REPLY__INIT;
    Strata__V1__SessionEnd end = STRATA__V1__SESSION_END__INIT, *ends = &end;
    if (w->mute) {
        rpc_finish(call, 14, "MUTE", "not now");
        return;
    }
    n->held = (unsigned)q->n_held;
    n->held_bytes = 0;
    for (size_t i = 0; i < q->n_held; i++)
        n->held_bytes += q->held[i]->used_bytes;
    for (size_t i = 0; i < q->n_ended; i++) {
        n->ended++;
        str_copy(n->ended_reason, sizeof n->ended_reason, q->ended[i]->reason);
    }
    if (w->end_session) {
        end.session = (char *)w->end_session;
        end.reason = (char *)"KILLED";
        end.expires_us = clock_wall_us(clock_system()) + 60000000;
        r.end = &ends;
        r.n_end = 1;
        w->end_session = NULL;
    }
    n->reports++;
    rpc_reply(call, &r.base);
}

/* Takes each record once, as the coordinator does. */
static int take_record(void *arg, const struct record *r)
{
    struct world_node *n = arg;
    struct audit_event e;
    if (r->seq <= n->spooled)
        return 0;
    n->spooled = r->seq;
    assert_int_equal(event_decode(r->event, r->len, &e), ST_OK);
    if (n->w->on_event && !str_starts(e.principal, "node/")) /* what concerns sessions */
        n->w->on_event(&e, n->w->event_arg);
    return 0;
}

static void on_push(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct world *w = arg;
    const Strata__V1__SpoolBatch *q = (const Strata__V1__SpoolBatch *)msg;
    struct world_node *n = node_of(w, rpc_peer(call)->name);
    Strata__V1__SpoolTaken r = STRATA__V1__SPOOL_TAKEN__INIT;
    uint8_t hash[SPOOL_HASH];
    if (w->spool_full) {
        rpc_finish(call, 14, "MUTE", "not now");
        return;
    }
    assert_int_equal(q->before.len, SPOOL_HASH);
    memcpy(hash, q->before.data, SPOOL_HASH);
    assert_int_equal(records_each(q->records.data, q->records.len, hash, take_record, n), ST_OK);
    r.seq = n->spooled;
    if (w->lose_replies) { /* taken, and the agent does not know */
        w->lose_replies--;
        rpc_finish(call, 14, "LOST", "the answer is lost");
        return;
    }
    rpc_reply(call, &r.base);
}

static void on_unused(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    (void)msg;
    (void)arg;
    rpc_finish(call, 12, "NOT_HERE", "not in this test");
}

static void session_up(struct rpc_session *s, void *arg)
{
    (void)s;
    (void)arg;
}

static void session_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct world *w = arg;
    (void)why;
    for (unsigned i = 0; i < WORLD_NODES; i++)
        if (w->node[i].session == s)
            w->node[i].session = NULL;
}

static const struct rpc_session_ops session_ops = {.on_up = session_up, .on_closed = session_closed};

static void accepted(struct quic_conn *c, void *arg)
{
    struct world *w = arg;
    struct rpc_session *s;
    const struct rpc_cfg cfg = {
        .base = w->base, .clock = clock_system(), .log = &w->log, .table = w->table, .max_inbound_calls = 16};
    assert_int_equal(rpc_accept(&s, &cfg, c, &session_ops, w), ST_OK);
}

static void stream_ignored(struct quic_conn *c, struct quic_stream *s, void *arg)
{
    (void)c;
    (void)s;
    (void)arg;
}

static void conn_closed(struct quic_conn *c, const struct quic_close *why, void *arg)
{
    (void)c;
    (void)why;
    (void)arg;
}

static const struct quic_conn_ops accept_ops = {
    .on_up = accepted, .on_stream = stream_ignored, .on_closed = conn_closed};

static void open_coordinator(struct world *w, struct err *ep)
{
    static const struct rpc_method methods[] = {
        {"strata.v1.Nodes", "Hello", RPC_UNARY, on_hello},
        {"strata.v1.Nodes", "Heartbeat", RPC_UNARY, on_heartbeat},
        {"strata.v1.Nodes", "List", RPC_UNARY, on_unused},
        {"strata.v1.Nodes", "Status", RPC_UNARY, on_unused},
        {"strata.v1.Nodes", "Drain", RPC_UNARY, on_unused},
        {"strata.v1.Nodes", "Resume", RPC_UNARY, on_unused},
        {"strata.v1.Nodes", "Forget", RPC_UNARY, on_unused},
        {"strata.v1.Sessions", "Open", RPC_UNARY, on_unused},
        {"strata.v1.Sessions", "Renew", RPC_UNARY, on_unused},
        {"strata.v1.Sessions", "Close", RPC_UNARY, on_unused},
        {"strata.v1.Sessions", "Kill", RPC_UNARY, on_unused},
        {"strata.v1.Sessions", "List", RPC_UNARY, on_unused},
        {"strata.v1.Sessions", "Report", RPC_UNARY, on_report},
        {"strata.v1.Spool", "Push", RPC_UNARY, on_push},
    };
    const ProtobufCServiceDescriptor *const services[] = {
        &strata__v1__nodes__descriptor, &strata__v1__sessions__descriptor, &strata__v1__spool__descriptor};
    char ca[128], crt[128], key[128];
    struct err e;
    (void)ep;
    snprintf(ca, sizeof ca, "%s/ca.crt", w->dir);
    snprintf(crt, sizeof crt, "%s/coordinator.crt", w->dir);
    snprintf(key, sizeof key, "%s/coordinator.key", w->dir);
    const struct tls_cfg tls = {.ca_file = ca, .cert_file = crt, .key_file = key, .trust_domain = "lab"};
    OK(tls_ctx_new(&w->tls, &tls, clock_system(), &e));
    OK(rpc_table_new(&w->table, services, 3, methods, sizeof methods / sizeof *methods, w, &e));
    struct quic_ep_cfg cfg = {.clock = clock_system(),
                              .rng = rng_system(),
                              .log = &w->log,
                              .tls = w->tls,
                              .accept = true,
                              .accept_ops = &accept_ops,
                              .accept_arg = w};
    quic_limits_control(&cfg.limits);
    OK(quic_udp_new(&w->udp, &w->ep, w->base, 0, "127.0.0.1:0", &cfg, &e));
}

static void issue(struct world *w, struct tls_ca *ca, enum tls_kind kind, const char *name, const char *dir,
                  const char *file)
{
    char crt[160], key[160];
    struct err e;
    int64_t now = clock_wall_us(clock_system());
    const struct tls_issue what = {.kind = kind,
                                   .name = name,
                                   .not_before_us = now - 60000000ll,
                                   .not_after_us = now + 3600 * 1000000ll};
    (void)w;
    snprintf(crt, sizeof crt, "%s/%s.crt", dir, file);
    snprintf(key, sizeof key, "%s/%s.key", dir, file);
    OK(tls_ca_issue(ca, &what, crt, key, &e));
}

struct tls_ctx *world_user(struct world *w, const char *name)
{
    char ca_file[128], crt[160], key[160];
    struct tls_ca *ca;
    struct tls_ctx *t;
    struct err e;
    OK(tls_ca_load(&ca, w->dir, &e));
    issue(w, ca, TLS_USER, name, w->dir, name);
    tls_ca_free(ca);
    snprintf(ca_file, sizeof ca_file, "%s/ca.crt", w->dir);
    snprintf(crt, sizeof crt, "%s/%s.crt", w->dir, name);
    snprintf(key, sizeof key, "%s/%s.key", w->dir, name);
    const struct tls_cfg cfg = {.ca_file = ca_file, .cert_file = crt, .key_file = key, .trust_domain = "lab"};
    OK(tls_ctx_new(&t, &cfg, clock_system(), &e));
    return t;
}

/* ---- agents ---- */

static void fatal(void *arg, const struct err *why)
{
    (void)arg;
    fail_msg("the agent gave up: %s", why->text);
}

static void open_node(struct world *w, unsigned i, struct tls_ca *ca, const char *devices)
{
    struct world_node *n = &w->node[i];
    char path[160], text[2048];
    struct err e;
    n->w = w;
    snprintf(n->name, sizeof n->name, "n%u", i);
    snprintf(n->dir, sizeof n->dir, "%s/%s", w->dir, n->name);
    OK(fs_mkdirs(n->dir, 0700, &e));
    issue(w, ca, TLS_NODE, n->name, n->dir, "node");
    snprintf(path, sizeof path, "%s/agent.yaml", n->dir);
    /* Only the first node has the model below its roots. */
    int k = snprintf(text, sizeof text,
                     "version: 1\nnode: %s\ncoordinator: \"127.0.0.1:%u\"\n"
                     "tls: {ca: %s/ca.crt, cert: %s/node.crt, key: %s/node.key, trust_domain: lab}\n"
                     "state: {dir: %s/state, spool: 256KiB}\nmodels: {dirs: [%s%s]}\nworker: %s\n"
                     "%s\ncpu_memory: 512MiB\n",
                     n->name, quic_udp_port(w->udp), w->dir, n->dir, n->dir, n->dir, i ? n->dir : w->dir,
                     i ? "" : "/models", STRATA_WORKER, devices);
    assert_true(k > 0 && (size_t)k < sizeof text);
    OK(fs_write_atomic(path, text, (size_t)k, 0600, &e));
    OK(agent_config_read(&n->cfg, path, &e));
    const struct agent_env env = {
        .base = w->base,
        .clock = clock_system(),
        .rng = rng_system(),
        .log = &w->log,
        .config = &n->cfg,
        .worker_path = n->cfg.worker,
        .on_fatal = fatal,
        .arg = w,
    };
    OK(agent_new(&n->agent, &env, &e));
}

void world_open(struct world *w)
{
    world_open_as(w, "backends: {cpu: on, vulkan: off}");
}

void world_open_as(struct world *w, const char *devices)
{
    struct tls_ca *ca;
    struct err e;
    char path[128];
    *w = (struct world){0};
    strcpy(w->dir, "/tmp/strata-agent-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    w->log = (struct log){
        .fd = getenv("TEST_LOG") ? 2 : -1, .level = LOG_LV_DEBUG, .program = "test", .clock = clock_system()};
    struct event_config *ec = event_config_new();
    event_config_set_flag(ec, EVENT_BASE_FLAG_PRECISE_TIMER);
    w->base = event_base_new_with_config(ec);
    event_config_free(ec);
    assert_non_null(w->base);
    event_base_priority_init(w->base, 2);
    OK(tls_ca_create(w->dir, "lab", 2, clock_system(), &e));
    OK(tls_ca_load(&ca, w->dir, &e));
    issue(w, ca, TLS_COORDINATOR, NULL, w->dir, "coordinator");
    snprintf(path, sizeof path, "%s/ticket.key", w->dir);
    OK(ticket_key_create(path, &e));
    OK(ticket_key_load(&w->key, path, &e));
    snprintf(path, sizeof path, "%s/models", w->dir);
    OK(fs_mkdirs(path, 0700, &e));
    snprintf(w->model, sizeof w->model, "%s/models/m.gguf", w->dir);
    /* The embedding is larger than the whole staging ring, so that a load of it can be held up half way. */
    struct synth_options o = {
        .layers = 2, .embedding = 512, .ff = 512, .vocab = 48000, .type = SYNTH_F16, .seed = 7};
    OK(synth_write(w->model, &o, NULL, NULL, &e));
    open_coordinator(w, &e);
    for (unsigned i = 0; i < WORLD_NODES; i++)
        open_node(w, i, ca, devices);
    tls_ca_free(ca);
    WAIT(w, w->node[0].session && w->node[1].session);
    Strata__V1__InspectRequest rq = STRATA__V1__INSPECT_REQUEST__INIT;
    struct result r;
    rq.path = w->model;
    world_call(w, 0, "Inspect", RPC_UNARY, &rq.base, &r);
    WAIT(w, r.done);
    if (r.code)
        fail_msg("Inspect: %s", r.text);
    w->model_info = r.inspect;
}

static void remove_tree(const char *dir)
{
    char cmd[200];
    snprintf(cmd, sizeof cmd, "rm -rf -- '%s'", dir);
    assert_int_equal(system(cmd), 0);
}

void world_close(struct world *w)
{
    for (unsigned i = 0; i < WORLD_NODES; i++) {
        agent_free(w->node[i].agent);
        agent_config_fini(&w->node[i].cfg);
    }
    quic_udp_free(w->udp, 0, "end");
    rpc_table_free(w->table);
    tls_ctx_unref(w->tls);
    ticket_key_free(w->key);
    if (w->model_info)
        strata__v1__inspect_reply__free_unpacked(w->model_info, NULL);
    event_base_free(w->base);
    remove_tree(w->dir);
}

/* ---- calls ---- */

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct result *r = arg;
    (void)call;
    if (msg->descriptor == &strata__v1__load_progress__descriptor) {
        const Strata__V1__LoadProgress *p = (const Strata__V1__LoadProgress *)msg;
        r->progress++;
        if (p->done) {
            assert_true(p->sha256.len == 32 && p->device_sha256.len == 32);
            memcpy(r->sha, p->sha256.data, 32);
            memcpy(r->dev, p->device_sha256.data, 32);
            r->has = true;
        }
    } else if (msg->descriptor == &strata__v1__verify_reply__descriptor) {
        const Strata__V1__VerifyReply *v = (const Strata__V1__VerifyReply *)msg;
        memcpy(r->sha, v->sha256.data, 32);
        memcpy(r->dev, v->device_sha256.data, 32);
        r->has = true;
    } else if (msg->descriptor == &strata__v1__time_reply__descriptor) {
        const Strata__V1__TimeReply *t = (const Strata__V1__TimeReply *)msg;
        r->best_s = t->best_s;
        r->flops = t->flops;
        r->bytes = t->bytes;
        r->rounds = t->rounds;
        r->has = t->mean_s >= t->best_s && t->call_s > 0;
    } else if (msg->descriptor == &strata__v1__release_reply__descriptor) {
        r->layers = ((const Strata__V1__ReleaseReply *)msg)->layers;
        r->bytes = ((const Strata__V1__ReleaseReply *)msg)->bytes;
    } else {
        size_t n = protobuf_c_message_get_packed_size(msg);
        uint8_t *p = malloc(n);
        protobuf_c_message_pack(msg, p);
        r->inspect = strata__v1__inspect_reply__unpack(NULL, n, p);
        free(p);
    }
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct result *r = arg;
    (void)call;
    (void)digest;
    r->done = true;
    r->code = st->code;
    memcpy(r->reason, st->reason, sizeof r->reason);
    memcpy(r->text, st->text, sizeof r->text);
}

static const struct rpc_call_ops call_ops = {.on_message = on_message, .on_done = on_done};

void world_call(struct world *w, unsigned node, const char *method, unsigned flags,
                const ProtobufCMessage *req, struct result *r)
{
    struct err e;
    const struct rpc_call_opts o = {.timeout_ns = 50 * NS_PER_S};
    *r = (struct result){.w = w};
    WAIT(w, w->node[node].session);
    OK(rpc_call(&r->call, w->node[node].session, &strata__v1__layers__descriptor, method, flags, req, &o,
                &call_ops, r, &e));
}

void world_load_request(struct world *w, const char *job, unsigned i, Strata__V1__LoadRequest *rq)
{
    const Strata__V1__Layer *l = w->model_info->layers[i];
    strata__v1__load_request__init(rq);
    rq->job = (char *)job;
    rq->layer = l->id;
    rq->device = (char *)"cpu:0";
    rq->principal = (char *)"user/alice";
    rq->bytes = l->bytes;
    rq->path = w->model;
    rq->pieces = l->pieces;
    rq->n_pieces = l->n_pieces;
    rq->header_sha256 = w->model_info->header_sha256;
    rq->file_count = (uint32_t)w->model_info->n_files;
}

struct result world_load(struct world *w, unsigned node, const Strata__V1__LoadRequest *rq)
{
    struct result r;
    world_call(w, node, "Load", RPC_SERVER_STREAM, &rq->base, &r);
    WAIT(w, r.done);
    return r;
}

struct result world_verify(struct world *w, unsigned node, const char *job, const char *layer)
{
    Strata__V1__VerifyRequest rq = STRATA__V1__VERIFY_REQUEST__INIT;
    struct result r;
    rq.job = (char *)job;
    rq.layer = (char *)layer;
    world_call(w, node, "Verify", RPC_UNARY, &rq.base, &r);
    WAIT(w, r.done);
    return r;
}

struct result world_time(struct world *w, unsigned node, const char *job, const char *layer, double flops,
                         double read_bytes)
{
    Strata__V1__TimeRequest rq = STRATA__V1__TIME_REQUEST__INIT;
    struct result r;
    rq.job = (char *)job;
    rq.layer = (char *)layer;
    rq.flops = flops;
    rq.read_bytes = read_bytes;
    rq.rounds = 3;
    world_call(w, node, "Time", RPC_UNARY, &rq.base, &r);
    WAIT(w, r.done);
    return r;
}

struct result world_release(struct world *w, unsigned node, const char *job, const char *layer)
{
    Strata__V1__ReleaseRequest rq = STRATA__V1__RELEASE_REQUEST__INIT;
    struct result r;
    rq.job = (char *)job;
    rq.layer = (char *)layer;
    world_call(w, node, "Release", RPC_UNARY, &rq.base, &r);
    WAIT(w, r.done);
    return r;
}

void world_layer_sha(struct world *w, unsigned i, uint8_t out[32])
{
    const Strata__V1__Layer *l = w->model_info->layers[i];
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int fd = open(w->model, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1);
    for (size_t k = 0; k < l->n_pieces; k++) {
        uint8_t *p = malloc(l->pieces[k]->length);
        assert_int_equal(pread(fd, p, l->pieces[k]->length, (off_t)l->pieces[k]->offset),
                         l->pieces[k]->length);
        EVP_DigestUpdate(md, p, l->pieces[k]->length);
        free(p);
    }
    EVP_DigestFinal_ex(md, out, NULL);
    EVP_MD_CTX_free(md);
    close(fd);
}

unsigned world_big(struct world *w)
{
    unsigned at = 0;
    for (unsigned i = 0; i < w->model_info->n_layers; i++)
        if (w->model_info->layers[i]->bytes > w->model_info->layers[at]->bytes)
            at = i;
    return at;
}

unsigned world_small(struct world *w)
{
    unsigned at = world_big(w);
    for (unsigned i = 0; i < w->model_info->n_layers; i++)
        if (w->model_info->layers[i]->bytes &&
            w->model_info->layers[i]->bytes < w->model_info->layers[at]->bytes)
            at = i;
    return at;
}

int world_setup(void **state)
{
    struct world *w = malloc(sizeof *w);
    world_open(w);
    *state = w;
    return 0;
}

int world_teardown(void **state)
{
    world_close(*state);
    free(*state);
    return 0;
}
