#include "agent/handlers.h"

#include "agent/identity.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/source.h"
#include "common/base/str.h"
#include "common/model/model.h"
#include "strata/v1/layers.pb-c.h"

#define PROGRESS_NS (100 * NS_PER_MS)

static bool from_coordinator(struct rpc_call *call)
{
    if (rpc_peer(call)->kind == TLS_COORDINATOR)
        return true;
    rpc_finish(call, 7, "NOT_COORDINATOR", "only the coordinator may call %s", rpc_call_name(call));
    return false;
}

/* ---- Inspect ---- */

struct inspect {
    struct files_job job;
    struct rpc_call *call; /* NULL = nobody waits any more */
    struct handlers *h;
    char *path;
    struct model_options opt;
    struct model *model;
    struct buf json;
    int rc;
    struct err e;
};

static void inspect_work(struct files_job *job)
{
    struct inspect *in = (struct inspect *)job;
    char resolved[4096];
    in->rc = source_resolve(in->h->roots, in->h->nroots, in->path, resolved, sizeof resolved, &in->e);
    if (in->rc == ST_OK)
        in->rc = model_open(resolved, &in->opt, &in->model, &in->e);
    if (in->rc == ST_OK && (in->rc = model_write_json(in->model, &in->json)) < 0)
        err_set(&in->e, in->rc, "no memory to describe the model %s", in->path);
}

static int reply_layers(const struct model *m, Strata__V1__InspectReply *r)
{
    r->layers = calloc(m->nlayers, sizeof(*r->layers));
    if (!r->layers)
        return ST_ENOMEM;
    for (size_t i = 0; i < m->nlayers; i++) {
        const struct model_layer *l = &m->layers[i];
        Strata__V1__Layer *o = calloc(1, sizeof *o);
        if (!o)
            return ST_ENOMEM;
        strata__v1__layer__init(o);
        r->layers[r->n_layers++] = o;
        o->id = l->id;
        o->type = (char *)layer_type_name(l->type);
        o->bytes = model_layer_bytes(l);
        o->pieces = calloc(l->npieces ? l->npieces : 1, sizeof(*o->pieces));
        if (!o->pieces)
            return ST_ENOMEM;
        for (size_t k = 0; k < l->npieces; k++) {
            Strata__V1__Piece *p = calloc(1, sizeof *p);
            if (!p)
                return ST_ENOMEM;
            strata__v1__piece__init(p);
            o->pieces[o->n_pieces++] = p;
            p->file = l->pieces[k].file;
            p->offset = l->pieces[k].offset;
            p->length = l->pieces[k].length;
        }
    }
    return ST_OK;
}

/* Only what reply_layers() and inspect_reply() allocated: the strings are the model's. */
static void reply_free(Strata__V1__InspectReply *r)
{
    for (size_t i = 0; i < r->n_layers; i++) {
        for (size_t k = 0; k < r->layers[i]->n_pieces; k++)
            free(r->layers[i]->pieces[k]);
        free(r->layers[i]->pieces);
        free(r->layers[i]);
    }
    free(r->layers);
    free(r->files);
    free(r->file_bytes);
}

static void inspect_reply(struct inspect *in)
{
    Strata__V1__InspectReply r = STRATA__V1__INSPECT_REPLY__INIT;
    const struct model *m = in->model;
    uint8_t header[32];
    size_t n = 0;
    struct err e;
    if (hex_decode(header, sizeof header, m->digest, &n) < 0 || n != 32) {
        rpc_finish(in->call, 9, "NO_FILES",
                   "%s describes a model but holds no layers' bytes; name a GGUF or "
                   "safetensors file",
                   in->path);
        return;
    }
    r.model_json = (char *)buf_cstr(&in->json);
    r.header_sha256 = (ProtobufCBinaryData){.len = 32, .data = header};
    r.files = calloc(m->nfiles ? m->nfiles : 1, sizeof(*r.files));
    r.file_bytes = calloc(m->nfiles ? m->nfiles : 1, sizeof(*r.file_bytes));
    int rc = r.files && r.file_bytes ? reply_layers(m, &r) : ST_ENOMEM;
    for (size_t i = 0; rc == ST_OK && i < m->nfiles; i++) {
        r.files[r.n_files++] = m->files[i].path;
        r.file_bytes[r.n_file_bytes++] = m->files[i].size;
    }
    if (rc < 0)
        err_set(&e, rc, "no memory to describe the model %s", in->path);
    else if (strata__v1__inspect_reply__get_packed_size(&r) > RPC_MAX_MESSAGE)
        rc = err_reason(&e, ST_ELIMIT, "MODEL_TOO_DETAILED",
                        "the description of %s is larger than %u KiB, the most one message may hold",
                        in->path, RPC_MAX_MESSAGE >> 10);
    if (rc < 0)
        rpc_fail(in->call, &e);
    else
        rpc_reply(in->call, &r.base);
    reply_free(&r);
}

static void inspect_done(struct files_job *job)
{
    struct inspect *in = (struct inspect *)job;
    if (in->call) {
        if (in->rc < 0)
            rpc_fail(in->call, &in->e);
        else
            inspect_reply(in);
    }
    model_free(in->model);
    buf_fini(&in->json);
    free(in->path);
    free(in);
}

static void inspect_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct inspect *)arg)->call = NULL;
}

static void on_inspect(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct handlers *h = arg;
    const Strata__V1__InspectRequest *rq = (const Strata__V1__InspectRequest *)msg;
    if (!from_coordinator(call))
        return;
    struct inspect *in = calloc(1, sizeof *in);
    if (!in || !(in->path = strdup(rq->path))) {
        free(in);
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
        return;
    }
    in->h = h;
    in->call = call;
    in->opt = (struct model_options){
        .split = rq->split, .context = rq->context, .sequences = rq->sequences, .tokens = rq->tokens};
    in->job.work = inspect_work;
    in->job.done = inspect_done;
    rpc_on_cancel(call, inspect_cancelled, in);
    files_submit(h->files, &in->job);
}

/* ---- Load ---- */

struct loading {
    struct rpc_call *call;
    struct handlers *h;
    struct load *load;
    uint64_t last_ns;
};

static void load_progress(void *arg, uint64_t loaded)
{
    struct loading *l = arg;
    uint64_t now = clock_ns(l->h->clock);
    if (now - l->last_ns < PROGRESS_NS)
        return;
    l->last_ns = now;
    Strata__V1__LoadProgress p = STRATA__V1__LOAD_PROGRESS__INIT;
    p.loaded_bytes = loaded;
    int rc = rpc_send(l->call, &p.base);
    (void)rc; /* the next one says more: a reader that is slow misses only steps between */
}

static void load_done(void *arg, int rc, const struct err *e, const uint8_t *sha, const uint8_t *dev)
{
    struct loading *l = arg;
    if (rc < 0) {
        rpc_fail(l->call, e);
    } else {
        Strata__V1__LoadProgress p = STRATA__V1__LOAD_PROGRESS__INIT;
        uint8_t a[32], b[32];
        memcpy(a, sha, 32);
        memcpy(b, dev, 32);
        p.done = true;
        p.sha256 = (ProtobufCBinaryData){.len = 32, .data = a};
        p.device_sha256 = (ProtobufCBinaryData){.len = 32, .data = b};
        rpc_reply(l->call, &p.base);
    }
    free(l);
}

static const struct layers_load_ops load_ops = {.on_progress = load_progress, .on_done = load_done};

static void load_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    struct loading *l = arg;
    layers_load_cancel(l->load);
    free(l);
}

static void on_load(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct handlers *h = arg;
    const Strata__V1__LoadRequest *rq = (const Strata__V1__LoadRequest *)msg;
    if (!from_coordinator(call))
        return;
    if (rq->header_sha256.len != 32) {
        rpc_finish(call, 3, "BAD_HEADER", "header_sha256 must have 32 bytes, not %zu", rq->header_sha256.len);
        return;
    }
    struct loading *l = calloc(1, sizeof *l);
    struct layers_piece *pieces = calloc(rq->n_pieces ? rq->n_pieces : 1, sizeof *pieces);
    struct err e;
    int rc = ST_ENOMEM;
    if (l && pieces) {
        uint64_t now = clock_ns(h->clock), deadline = rpc_deadline_ns(call);
        for (size_t i = 0; i < rq->n_pieces; i++)
            pieces[i] =
                (struct layers_piece){rq->pieces[i]->file, rq->pieces[i]->offset, rq->pieces[i]->length};
        struct layers_load req = {
            .job = rq->job,
            .layer = rq->layer,
            .device = rq->device,
            .principal = rq->principal,
            .bytes = rq->bytes,
            .path = rq->path,
            .pieces = pieces,
            .npieces = rq->n_pieces,
            .file_count = rq->file_count,
            .peer_node = rq->peer_node,
            .peer_address = rq->peer_address,
            .ticket = rq->ticket.data,
            .ticket_len = rq->ticket.len,
            .timeout_ns = deadline == UINT64_MAX ? UINT64_MAX
                          : deadline > now       ? deadline - now
                                                 : 1,
        };
        memcpy(req.header_sha256, rq->header_sha256.data, 32);
        l->call = call;
        l->h = h;
        rc = layers_load(&l->load, h->layers, &req, &load_ops, l, &e);
    } else {
        err_set(&e, rc, "the agent has no memory left for this call");
    }
    free(pieces);
    if (rc < 0) {
        free(l);
        rpc_fail(call, &e);
        return;
    }
    rpc_on_cancel(call, load_cancelled, l);
}

/* ---- Verify, Time and Release: short enough to run on when nobody waits any more ---- */

struct waiting {
    struct rpc_call *call; /* NULL = nobody waits */
};

static void waiting_cancelled(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct waiting *)arg)->call = NULL;
}

static struct waiting *wait_for(struct rpc_call *call)
{
    struct waiting *w = calloc(1, sizeof *w);
    if (!w) {
        rpc_finish(call, 8, "NO_MEMORY", "the agent has no memory left for this call");
        return NULL;
    }
    w->call = call;
    return w;
}

static void verify_done(void *arg, int rc, const struct err *e, const uint8_t *sha, const uint8_t *dev)
{
    struct waiting *w = arg;
    if (w->call && rc < 0) {
        rpc_fail(w->call, e);
    } else if (w->call) {
        uint8_t a[32], b[32];
        memcpy(a, sha, 32);
        memcpy(b, dev, 32);
        Strata__V1__VerifyReply r = STRATA__V1__VERIFY_REPLY__INIT;
        r.sha256 = (ProtobufCBinaryData){.len = 32, .data = a};
        r.device_sha256 = (ProtobufCBinaryData){.len = 32, .data = b};
        rpc_reply(w->call, &r.base);
    }
    free(w);
}

static void on_verify(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct handlers *h = arg;
    const Strata__V1__VerifyRequest *rq = (const Strata__V1__VerifyRequest *)msg;
    struct waiting *w = from_coordinator(call) ? wait_for(call) : NULL;
    struct err e;
    if (!w)
        return;
    if (layers_verify(h->layers, rq->job, rq->layer, rq->device, verify_done, w, &e) < 0) {
        free(w);
        rpc_fail(call, &e);
        return;
    }
    rpc_on_cancel(call, waiting_cancelled, w);
}

static void time_done(void *arg, int rc, const struct err *e, const struct layers_timing *t)
{
    struct waiting *w = arg;
    if (w->call && rc < 0) {
        rpc_fail(w->call, e);
    } else if (w->call) {
        Strata__V1__TimeReply r = STRATA__V1__TIME_REPLY__INIT;
        r.best_s = t->best_s;
        r.mean_s = t->mean_s;
        r.call_s = t->call_s;
        r.bytes = t->bytes;
        r.flops = t->flops;
        r.rounds = t->rounds;
        rpc_reply(w->call, &r.base);
    }
    free(w);
}

static void on_time(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct handlers *h = arg;
    const Strata__V1__TimeRequest *rq = (const Strata__V1__TimeRequest *)msg;
    const struct layers_time_ask ask = {rq->flops, rq->read_bytes, rq->rounds};
    struct waiting *w = from_coordinator(call) ? wait_for(call) : NULL;
    struct err e;
    if (!w)
        return;
    if (layers_time(h->layers, rq->job, rq->layer, rq->device, &ask, time_done, w, &e) < 0) {
        free(w);
        rpc_fail(call, &e);
        return;
    }
    rpc_on_cancel(call, waiting_cancelled, w);
}

static void release_done(void *arg, int rc, const struct err *e, unsigned layers, uint64_t bytes)
{
    struct waiting *w = arg;
    if (w->call && rc < 0) {
        rpc_fail(w->call, e);
    } else if (w->call) {
        Strata__V1__ReleaseReply r = STRATA__V1__RELEASE_REPLY__INIT;
        r.layers = layers;
        r.bytes = bytes;
        rpc_reply(w->call, &r.base);
    }
    free(w);
}

static void on_release(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct handlers *h = arg;
    const Strata__V1__ReleaseRequest *rq = (const Strata__V1__ReleaseRequest *)msg;
    struct waiting *w = from_coordinator(call) ? wait_for(call) : NULL;
    struct err e;
    if (!w)
        return;
    if (layers_release(h->layers, rq->job, rq->layer, rq->device, UINT64_MAX, release_done, w, &e) < 0) {
        free(w);
        rpc_fail(call, &e);
        return;
    }
    rpc_on_cancel(call, waiting_cancelled, w);
}

static void on_trust(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct handlers *h = arg;
    struct err e = {0};
    uint8_t sha[32];
    if (!from_coordinator(call))
        return;
    if (identity_update(h->identity, (const Strata__V1__TrustUpdate *)msg, sha, &e) < 0) {
        rpc_fail(call, &e);
        return;
    }
    Strata__V1__TrustReply r = STRATA__V1__TRUST_REPLY__INIT;
    r.ca_sha256 = (ProtobufCBinaryData){.len = 32, .data = sha};
    rpc_reply(call, &r.base);
}

int handlers_table(struct rpc_table **out, struct handlers *h, struct err *e)
{
    static const struct rpc_method methods[] = {
        {"strata.v1.Layers", "Inspect", RPC_UNARY, on_inspect},
        {"strata.v1.Layers", "Load", RPC_SERVER_STREAM, on_load},
        {"strata.v1.Layers", "Verify", RPC_UNARY, on_verify},
        {"strata.v1.Layers", "Time", RPC_UNARY, on_time},
        {"strata.v1.Layers", "Release", RPC_UNARY, on_release},
        {"strata.v1.Trust", "Update", RPC_UNARY, on_trust},
    };
    const ProtobufCServiceDescriptor *const services[] = {&strata__v1__layers__descriptor,
                                                          &strata__v1__trust__descriptor};
    return rpc_table_new(out, services, 2, methods, sizeof methods / sizeof *methods, h, e);
}
