/* How the jobs room reaches agents: calls of service Layers over the connection that the agent made. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/ticket/ticket.h"
#include "coordinator/api/api.h"
#include "strata/v1/layers.pb-c.h"

#define INSPECT_NS (20 * NS_PER_S)
#define LOAD_NS (3600 * NS_PER_S)
#define RELEASE_NS (30 * NS_PER_S)
#define VERIFY_NS (600 * NS_PER_S)
#define TICKET_LIFE_US (3600ll * 1000000)

struct ask { /* one call to an agent, until its on_done */
    char node[64];
    jobs_inspect_fn inspect;
    jobs_load_fn load;
    jobs_verify_fn verify;
    jobs_call_fn release;
    void *arg;
    struct rpc_call *call;
    Strata__V1__InspectReply *model;
    uint64_t loaded;
    bool has_digests, has_sha;
    uint8_t sha[32], device_sha[32];
};

static int start(struct topo_node *n, const char *method, unsigned flags, const ProtobufCMessage *req,
                 uint64_t timeout, const struct rpc_call_ops *ops, struct ask *a)
{
    struct rpc_session *s = api_node_rpc(n);
    const struct rpc_call_opts o = {.timeout_ns = timeout};
    struct err e;
    str_copy(a->node, sizeof a->node, n->name);
    int rc = s ? rpc_call(&a->call, s, &strata__v1__layers__descriptor, method, flags, req, &o, ops, a, &e)
               : ST_EUNREACH;
    if (rc < 0)
        free(a);
    return rc;
}

static int status_error(const struct ask *a, const struct rpc_status *st, struct err *e)
{
    *e = (struct err){0};
    return st->code ? err_reason(e, status_from_rpc(st->code), st->reason, "node %s: %s", a->node, st->text)
                    : ST_OK;
}

/* ---- inspect ---- */

static void on_inspect_msg(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct ask *a = arg;
    (void)call;
    size_t n = protobuf_c_message_get_packed_size(msg);
    uint8_t *p = malloc(n ? n : 1);
    if (p && !a->model) {
        protobuf_c_message_pack(msg, p);
        a->model = strata__v1__inspect_reply__unpack(NULL, n, p);
    }
    free(p);
}

static void layers_free(struct job_layer *l, size_t n)
{
    for (size_t i = 0; l && i < n; i++)
        free(l[i].pieces);
    free(l);
}

static struct job_layer *layers_of(const Strata__V1__InspectReply *m)
{
    struct job_layer *l = calloc(m->n_layers + 1, sizeof *l);
    for (size_t i = 0; l && i < m->n_layers; i++) {
        const Strata__V1__Layer *p = m->layers[i];
        l[i].id = p->id; /* borrowed from the message */
        l[i].bytes = p->bytes;
        l[i].npieces = p->n_pieces;
        l[i].pieces = calloc(p->n_pieces + 1, sizeof *l[i].pieces);
        if (!l[i].pieces) {
            layers_free(l, i);
            return NULL;
        }
        for (size_t k = 0; k < p->n_pieces; k++)
            l[i].pieces[k] =
                (struct job_piece){p->pieces[k]->file, p->pieces[k]->offset, p->pieces[k]->length};
    }
    return l;
}

static void on_inspect_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest,
                            void *arg)
{
    struct ask *a = arg;
    struct err e;
    (void)call;
    (void)digest;
    int rc = status_error(a, st, &e);
    struct job_layer *l = NULL;
    if (rc == ST_OK && (!a->model || a->model->header_sha256.len != 32))
        rc = err_set(&e, ST_EPROTO, "node %s answered Inspect without a model", a->node);
    if (rc == ST_OK && !(l = layers_of(a->model)))
        rc = err_set(&e, ST_ENOMEM, "no memory for the model of node %s", a->node);
    if (rc == ST_OK) {
        struct jobs_model m = {.model_json = a->model->model_json,
                               .nfiles = (unsigned)a->model->n_files,
                               .layers = l,
                               .nlayers = a->model->n_layers};
        memcpy(m.header_sha256, a->model->header_sha256.data, 32);
        a->inspect(a->arg, a->node, ST_OK, &e, &m);
    } else {
        a->inspect(a->arg, a->node, rc, &e, NULL);
    }
    layers_free(l, a->model ? a->model->n_layers : 0);
    if (a->model)
        strata__v1__inspect_reply__free_unpacked(a->model, NULL);
    free(a);
}

static const struct rpc_call_ops inspect_ops = {.on_message = on_inspect_msg, .on_done = on_inspect_done};

static int do_inspect(void *ctx, struct topo_node *n, const struct job_spec *s, jobs_inspect_fn fn, void *arg)
{
    (void)ctx;
    struct ask *a = calloc(1, sizeof *a);
    if (!a)
        return ST_ENOMEM;
    a->inspect = fn;
    a->arg = arg;
    Strata__V1__InspectRequest q = STRATA__V1__INSPECT_REQUEST__INIT;
    q.path = s->path;
    q.split = s->split;
    q.context = s->context;
    q.sequences = s->sequences;
    q.tokens = s->tokens;
    return start(n, "Inspect", RPC_UNARY, &q.base, INSPECT_NS, &inspect_ops, a);
}

/* ---- load ---- */

static void on_load_msg(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct ask *a = arg;
    const Strata__V1__LoadProgress *p = (const Strata__V1__LoadProgress *)msg;
    (void)call;
    a->loaded = p->loaded_bytes;
    if (!p->done) {
        a->load(a->arg, &(struct jobs_load_event){.loaded = a->loaded});
    } else if (p->sha256.len == 32 && p->device_sha256.len == 32) {
        a->has_digests = true;
        memcpy(a->sha, p->sha256.data, 32);
        memcpy(a->device_sha, p->device_sha256.data, 32);
    }
}

static void on_load_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct ask *a = arg;
    struct err e;
    (void)call;
    (void)digest;
    int rc = status_error(a, st, &e);
    if (rc == ST_OK && !a->has_digests)
        rc = err_set(&e, ST_EPROTO, "node %s loaded a layer without telling its digests", a->node);
    a->load(a->arg, &(struct jobs_load_event){.loaded = a->loaded,
                                              .done = true,
                                              .rc = rc,
                                              .e = &e,
                                              .sha256 = a->sha,
                                              .device_sha256 = a->device_sha});
    free(a);
}

static const struct rpc_call_ops load_ops = {.on_message = on_load_msg, .on_done = on_load_done};

/* Lets `n`, and only it, pull this one layer of this job from `peer`. */
static int fetch_ticket(struct coord *c, struct topo_node *n, struct topo_node *peer, const struct job *j,
                        const struct job_layer *l, uint8_t out[TICKET_MAX], size_t *len)
{
    struct ticket t = {.purpose = TICKET_FETCH, .limit_bytes = l->bytes};
    struct err e;
    if (!api_node_rpc(n))
        return ST_EUNREACH;
    t.issued_us = clock_wall_us(c->clock);
    t.expires_us = t.issued_us + TICKET_LIFE_US;
    ticket_serial(c->rng, t.serial);
    memcpy(t.holder, rpc_session_peer(api_node_rpc(n))->spki_sha256, 32);
    str_copy(t.node, sizeof t.node, peer->name);
    int k = snprintf(t.resource, sizeof t.resource, "job/%s/layer/%s", j->id, l->id);
    if (k < 0 || (size_t)k >= sizeof t.resource)
        return ST_ELIMIT;
    int rc = ticket_sign(c->ticket_key, &t, out, len, &e);
    if (rc < 0) {
        LOG_E(&c->log, "api", "ticket not signed job=%s layer=%s error=%s", j->id, l->id, e.text);
        return rc;
    }
    char hex[2 * TICKET_SERIAL_LEN + 1];
    hex_encode(hex, t.serial, TICKET_SERIAL_LEN);
    struct event_meta m = {0};
    event_meta_str(&m, "ticket", hex);
    event_meta_u64(&m, "bytes", l->bytes);
    event_meta_i64(&m, "expires_us", t.expires_us);
    api_event(c, EV_SECURITY_TICKET_ISSUED, EVENT_SUCCESS, rpc_session_peer(api_node_rpc(n))->principal,
              peer->name, event_meta_text(&m), NULL);
    event_meta_fini(&m);
    return ST_OK;
}

static int do_load(void *ctx, struct topo_node *n, const struct job *j, const struct job_layer *l,
                   struct topo_node *peer, jobs_load_fn fn, void *arg, void **call)
{
    uint8_t ticket[TICKET_MAX];
    size_t ticket_len = 0;
    int rc = peer ? fetch_ticket(ctx, n, peer, j, l, ticket, &ticket_len) : ST_OK;
    if (rc < 0)
        return rc;
    struct ask *a = calloc(1, sizeof *a);
    Strata__V1__Piece *v = calloc(l->npieces + 1, sizeof *v);
    Strata__V1__Piece **pv = calloc(l->npieces + 1, sizeof(*pv));
    if (!a || !v || !pv) {
        free(a);
        free(v);
        free(pv);
        return ST_ENOMEM;
    }
    a->load = fn;
    a->arg = arg;
    for (size_t i = 0; i < l->npieces; i++) {
        strata__v1__piece__init(&v[i]);
        v[i].file = l->pieces[i].file;
        v[i].offset = l->pieces[i].offset;
        v[i].length = l->pieces[i].length;
        pv[i] = &v[i];
    }
    Strata__V1__LoadRequest q = STRATA__V1__LOAD_REQUEST__INIT;
    q.job = (char *)j->id;
    q.layer = l->id;
    q.device = strchr(l->device, '/') + 1;
    q.principal = (char *)j->principal;
    q.bytes = l->bytes;
    q.path = j->spec.path;
    q.pieces = pv;
    q.n_pieces = l->npieces;
    q.header_sha256 = (ProtobufCBinaryData){32, (uint8_t *)j->header_sha256};
    q.file_count = j->nfiles;
    if (peer) {
        q.peer_node = peer->name;
        q.peer_address = peer->peer_address;
        q.ticket = (ProtobufCBinaryData){ticket_len, ticket};
    }
    rc = start(n, "Load", RPC_SERVER_STREAM, &q.base, LOAD_NS, &load_ops, a);
    if (rc == ST_OK)
        *call = a;
    free(v);
    free(pv);
    return rc;
}

static void do_cancel(void *ctx, void *call)
{
    (void)ctx;
    rpc_cancel(((struct ask *)call)->call);
}

/* ---- verify, release ---- */

static void on_verify_msg(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct ask *a = arg;
    const Strata__V1__VerifyReply *p = (const Strata__V1__VerifyReply *)msg;
    (void)call;
    if ((a->has_sha = p->device_sha256.len == 32))
        memcpy(a->sha, p->device_sha256.data, 32);
}

static void on_verify_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest,
                           void *arg)
{
    struct ask *a = arg;
    struct err e;
    (void)call;
    (void)digest;
    int rc = status_error(a, st, &e);
    if (rc == ST_OK && !a->has_sha)
        rc = err_set(&e, ST_EPROTO, "node %s checked a layer without telling its digest", a->node);
    a->verify(a->arg, rc, &e, a->sha);
    free(a);
}

static const struct rpc_call_ops verify_ops = {.on_message = on_verify_msg, .on_done = on_verify_done};

static int do_verify(void *ctx, struct topo_node *n, const struct job *j, const struct job_layer *l,
                     jobs_verify_fn fn, void *arg)
{
    (void)ctx;
    struct ask *a = calloc(1, sizeof *a);
    if (!a)
        return ST_ENOMEM;
    a->verify = fn;
    a->arg = arg;
    Strata__V1__VerifyRequest q = STRATA__V1__VERIFY_REQUEST__INIT;
    q.job = (char *)j->id;
    q.layer = l->id;
    q.device = strchr(l->device, '/') + 1;
    return start(n, "Verify", RPC_UNARY, &q.base, VERIFY_NS, &verify_ops, a);
}

static void on_release_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest,
                            void *arg)
{
    struct ask *a = arg;
    struct err e;
    (void)call;
    (void)digest;
    int rc = status_error(a, st, &e);
    a->release(a->arg, rc, &e);
    free(a);
}

static const struct rpc_call_ops release_ops = {.on_done = on_release_done};

static int do_release(void *ctx, struct topo_node *n, const char *job, const char *layer, const char *device,
                      jobs_call_fn fn, void *arg)
{
    (void)ctx;
    struct ask *a = calloc(1, sizeof *a);
    if (!a)
        return ST_ENOMEM;
    a->release = fn;
    a->arg = arg;
    Strata__V1__ReleaseRequest q = STRATA__V1__RELEASE_REQUEST__INIT;
    q.job = (char *)job;
    q.layer = (char *)(layer ? layer : "");
    q.device = device ? strchr(device, '/') + 1 : (char *)"";
    return start(n, "Release", RPC_UNARY, &q.base, RELEASE_NS, &release_ops, a);
}

const struct jobs_agents api_agents = {
    .inspect = do_inspect, .load = do_load, .cancel = do_cancel, .verify = do_verify, .release = do_release};
