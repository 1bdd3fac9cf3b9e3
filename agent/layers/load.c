/*
 * One load on its way: open, allocate, move the bytes through staging slots, read them back as a digest,
 * compare. From a file one read is under way at a time, so that the hash sees the bytes in order, while
 * earlier pieces are being written to the device. From a peer the bytes come as they please and are held back
 * while no slot is free.
 */
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/layers_priv.h"
#include "common/base/str.h"

struct load {
    struct layers *ls;
    struct layer *layer;
    const struct layers_load_ops *ops; /* NULL = nobody waits any more */
    void *arg;
    struct load *next, **prev;

    Strata__V1__FetchRequest *fetch_req; /* also the copy of path, pieces and ticket */
    char *peer_node, *peer_address;
    uint64_t timeout_ns;

    /* What is in flight. The load lives until all of it is back. */
    bool opening, allocating, reading, digesting;
    unsigned writes;
    struct fetch *fetch;

    struct files_job job; /* open, then every read */
    struct source *src;
    EVP_MD_CTX *md;
    int job_rc;
    struct err job_err;
    size_t read_n;

    struct worker_slot slot; /* being filled */
    bool have_slot;
    size_t slot_fill;
    bool wants_slot;

    uint64_t off;     /* handed to the device so far, or being read */
    uint64_t written; /* on the device */
    bool source_done; /* sha holds the digest of all bytes as read */
    bool aborted;
    int rc;
    struct err e;
    uint8_t sha[32], dev[32];
};

struct write {
    struct load *l;
    size_t n;
};

static void pump(struct load *l);

struct layer *load_layer(const struct load *l)
{
    return l->layer;
}

struct load *load_next(const struct load *l)
{
    return l->next;
}

static void load_free(struct load *l)
{
    *l->prev = l->next;
    if (l->next)
        l->next->prev = l->prev;
    if (l->fetch_req)
        strata__v1__fetch_request__free_unpacked(l->fetch_req, NULL);
    source_close(l->src);
    EVP_MD_CTX_free(l->md);
    free(l->peer_node);
    free(l->peer_address);
    free(l);
}

/* The end of a load that failed, once its memory is free. */
void load_ended(struct load *l)
{
    const struct layers_load_ops *ops = l->ops;
    void *arg = l->arg;
    int rc = l->rc;
    struct err e = l->e;
    load_free(l);
    if (ops)
        ops->on_done(arg, rc, &e, NULL, NULL);
}

static void settle(struct load *l)
{
    if (l->opening || l->allocating || l->reading || l->digesting || l->writes || l->fetch)
        return;
    struct layer *y = l->layer;
    if (y->state == LAYER_ALLOCATING)
        layer_free_memory(y); /* load_ended() follows */
}

static void drop_slot(struct load *l)
{
    if (!l->have_slot)
        return;
    tenant_slot_put(l->layer->tenant, &l->slot);
    l->have_slot = false;
}

/* The first failure is the one that is told. */
static void fail(struct load *l, int rc, const struct err *e)
{
    if (!l->aborted) {
        l->aborted = true;
        l->rc = rc;
        l->e = *e;
        l->e.code = rc;
        LOG_W(l->ls->cfg.log, "layers", "load failed job=%s layer=%s device=%s code=%s why=\"%s\"",
              l->layer->job, l->layer->name, l->layer->device, status_name(rc), e->text);
        layer_unindex(l->layer);
    }
    if (!l->reading) /* else a file thread writes into it */
        drop_slot(l);
    if (l->fetch) {
        struct fetch *f = l->fetch;
        l->fetch = NULL;
        fetch_cancel(f);
    }
    settle(l);
}

void load_abort(struct load *l, int rc, const char *why)
{
    struct err e = {0};
    err_set(&e, rc, "layer %s: %s", l->layer->name, why);
    fail(l, rc, &e);
}

void layers_load_cancel(struct load *l)
{
    l->ops = NULL;
    load_abort(l, ST_ECANCELED, "the caller gave up");
}

/* ---- device ---- */

static void resident(struct load *l)
{
    struct layer *y = l->layer;
    const struct layers_load_ops *ops = l->ops;
    void *arg = l->arg;
    uint8_t sha[32], dev[32];
    memcpy(sha, l->sha, 32);
    memcpy(dev, l->dev, 32);
    memcpy(y->sha256, l->sha, 32);
    y->state = LAYER_RESIDENT;
    y->load = NULL;
    LOG_I(l->ls->cfg.log, "layers", "resident job=%s layer=%s device=%s bytes=%" PRIu64 " from=%s", y->job,
          y->name, y->device, y->bytes, l->peer_node[0] ? l->peer_node : "file");
    load_free(l);
    if (ops)
        ops->on_done(arg, ST_OK, &(struct err){0}, sha, dev);
}

static void digest_done(void *arg, int rc, const struct err *e, const uint8_t *sha)
{
    struct load *l = arg;
    struct err mine = {0};
    l->digesting = false;
    if (l->aborted) {
        settle(l);
    } else if (rc < 0) {
        fail(l, rc, e);
    } else if (memcmp(sha, l->sha, 32) != 0) {
        err_reason(
            &mine, ST_ECORRUPT, "CHECKSUM_MISMATCH",
            "layer %s on %s differs from what was read: the device's memory or the way to it is faulty",
            l->layer->name, l->layer->device);
        fail(l, ST_ECORRUPT, &mine);
    } else {
        memcpy(l->dev, sha, 32);
        resident(l);
    }
}

static void maybe_digest(struct load *l)
{
    struct err e;
    if (l->aborted || !l->source_done || l->written != l->layer->bytes || l->digesting)
        return;
    l->digesting = true;
    int rc = tenant_digest(l->layer->tenant, l->layer->buffer, 0, l->layer->bytes, digest_done, l, &e);
    if (rc < 0) {
        l->digesting = false;
        fail(l, rc, &e);
    }
}

static void write_done(void *arg, int rc, const struct err *e)
{
    struct write *w = arg;
    struct load *l = w->l;
    l->writes--;
    l->written += w->n;
    free(w);
    if (rc < 0) {
        fail(l, rc, e);
        return;
    }
    if (l->aborted) {
        settle(l);
        return;
    }
    if (l->ops && l->ops->on_progress)
        l->ops->on_progress(l->arg, l->written);
    maybe_digest(l);
}

/* Hands the filled slot to the device. */
static void write_slot(struct load *l, size_t n)
{
    struct err e;
    struct write *w = malloc(sizeof *w);
    int rc = ST_ENOMEM;
    if (w) {
        *w = (struct write){l, n};
        rc = tenant_write(l->layer->tenant, l->layer->buffer, l->off, &l->slot, (uint32_t)n, write_done, w,
                          &e);
    } else {
        err_set(&e, rc, "no memory to load layer %s", l->layer->name);
    }
    if (rc < 0) {
        free(w);
        fail(l, rc, &e);
        return;
    }
    l->have_slot = false; /* it comes back by itself */
    l->writes++;
    l->off += n;
}

static bool take_slot(struct load *l)
{
    if (l->have_slot)
        return true;
    l->slot_fill = 0;
    l->have_slot = tenant_slot(l->layer->tenant, &l->slot);
    l->wants_slot = !l->have_slot;
    return l->have_slot;
}

void load_slot_free(struct load *l)
{
    if (!l->wants_slot || l->aborted)
        return;
    l->wants_slot = false;
    if (l->fetch)
        fetch_resume(l->fetch);
    else
        pump(l);
}

/* ---- from a file ---- */

static void read_work(struct files_job *job)
{
    struct load *l = (struct load *)((char *)job - offsetof(struct load, job));
    l->job_rc = source_read(l->src, l->off, l->slot.data, l->read_n, &l->job_err);
    if (l->job_rc == ST_OK && EVP_DigestUpdate(l->md, l->slot.data, l->read_n) != 1)
        l->job_rc = err_set(&l->job_err, ST_EINTERNAL, "SHA-256 failed");
    if (l->job_rc == ST_OK && l->off + l->read_n == l->layer->bytes) {
        /* Bytes read before and after a change of the file are no model at all. */
        l->job_rc = source_unchanged(l->src, &l->job_err);
        if (l->job_rc == ST_OK && EVP_DigestFinal_ex(l->md, l->sha, NULL) != 1)
            l->job_rc = err_set(&l->job_err, ST_EINTERNAL, "SHA-256 failed");
    }
}

static void read_done(struct files_job *job)
{
    struct load *l = (struct load *)((char *)job - offsetof(struct load, job));
    l->reading = false;
    if (l->aborted) {
        drop_slot(l);
        settle(l);
        return;
    }
    if (l->job_rc < 0) {
        fail(l, l->job_rc, &l->job_err);
        return;
    }
    l->source_done = l->off + l->read_n == l->layer->bytes;
    write_slot(l, l->read_n);
    if (!l->aborted && !l->source_done)
        pump(l);
}

static void pump(struct load *l)
{
    if (l->reading || l->aborted || l->source_done || !take_slot(l))
        return;
    uint64_t left = l->layer->bytes - l->off;
    l->read_n = left < l->slot.bytes ? (size_t)left : l->slot.bytes;
    l->reading = true;
    l->job.work = read_work;
    l->job.done = read_done;
    files_submit(l->ls->cfg.files, &l->job);
}

/* ---- from a peer ---- */

static size_t on_bytes(const uint8_t *p, size_t n, void *arg)
{
    struct load *l = arg;
    size_t took = 0;
    while (took < n && !l->aborted) {
        if (!take_slot(l))
            return took;
        size_t k = l->slot.bytes - l->slot_fill;
        if (k > n - took)
            k = n - took;
        memcpy(l->slot.data + l->slot_fill, p + took, k);
        l->slot_fill += k;
        took += k;
        if (l->slot_fill == l->slot.bytes || l->off + l->slot_fill == l->layer->bytes)
            write_slot(l, l->slot_fill);
    }
    return took;
}

static void on_fetched(int rc, const struct err *e, const uint8_t *digest, void *arg)
{
    struct load *l = arg;
    l->fetch = NULL;
    if (rc < 0) {
        fail(l, rc, e);
        return;
    }
    memcpy(l->sha, digest, 32);
    l->source_done = true;
    maybe_digest(l);
}

static const struct fetch_ops fetch_ops = {.on_bytes = on_bytes, .on_done = on_fetched};

/* ---- beginning ---- */

static void alloc_done(void *arg, int rc, const struct err *e, uint64_t buffer)
{
    struct load *l = arg;
    struct err why;
    l->allocating = false;
    if (rc == ST_OK) {
        l->layer->buffer = buffer;
        l->layer->allocated = true;
    }
    if (l->aborted) {
        settle(l);
        return;
    }
    if (rc < 0) {
        fail(l, rc, e);
        return;
    }
    if (!l->peer_node[0]) {
        pump(l);
        return;
    }
    const struct fetch_ask ask = {&strata__v1__layer_source__descriptor, "Fetch", &l->fetch_req->base,
                                  l->fetch_req->bytes};
    rc = peers_fetch(&l->fetch, l->ls->cfg.peers, l->peer_node, l->peer_address, &ask, l->timeout_ns,
                     &fetch_ops, l, &why);
    if (rc < 0)
        fail(l, rc, &why);
}

static void allocate(struct load *l)
{
    struct err e;
    l->allocating = true;
    int rc = tenant_alloc(l->layer->tenant, l->layer->device, l->layer->bytes, alloc_done, l, &e);
    if (rc < 0) {
        l->allocating = false;
        fail(l, rc, &e);
    }
}

static void open_work(struct files_job *job)
{
    struct load *l = (struct load *)((char *)job - offsetof(struct load, job));
    l->job_rc = source_open_request(&l->src, l->ls->cfg.roots, l->ls->cfg.nroots, l->fetch_req, &l->job_err);
}

/* A peer's layer: nothing to open here, but no completion may run inside load_start() either. */
static void open_nothing(struct files_job *job)
{
    struct load *l = (struct load *)((char *)job - offsetof(struct load, job));
    l->job_rc = ST_OK;
}

static void open_done(struct files_job *job)
{
    struct load *l = (struct load *)((char *)job - offsetof(struct load, job));
    l->opening = false;
    if (l->aborted)
        settle(l);
    else if (l->job_rc < 0)
        fail(l, l->job_rc, &l->job_err);
    else
        allocate(l);
}

/* A deep copy in the form a peer would be asked with. */
static Strata__V1__FetchRequest *copy_request(const struct layers_load *r)
{
    Strata__V1__FetchRequest f = STRATA__V1__FETCH_REQUEST__INIT;
    Strata__V1__Piece *v = calloc(r->npieces, sizeof *v), **pv = calloc(r->npieces, sizeof(*pv));
    Strata__V1__FetchRequest *out = NULL;
    uint8_t *bytes = NULL;
    if (v && pv) {
        for (size_t i = 0; i < r->npieces; i++) {
            strata__v1__piece__init(&v[i]);
            v[i].file = r->pieces[i].file;
            v[i].offset = r->pieces[i].offset;
            v[i].length = r->pieces[i].length;
            pv[i] = &v[i];
        }
        f.path = (char *)r->path;
        f.bytes = r->bytes;
        f.file_count = r->file_count;
        f.header_sha256 = (ProtobufCBinaryData){.len = 32, .data = (uint8_t *)r->header_sha256};
        f.ticket = (ProtobufCBinaryData){.len = r->ticket_len, .data = (uint8_t *)r->ticket};
        f.pieces = pv;
        f.n_pieces = r->npieces;
        size_t n = strata__v1__fetch_request__get_packed_size(&f);
        if ((bytes = malloc(n))) {
            strata__v1__fetch_request__pack(&f, bytes);
            out = strata__v1__fetch_request__unpack(NULL, n, bytes);
        }
    }
    free(bytes);
    free(v);
    free(pv);
    return out;
}

int load_start(struct load **out, struct layer *y, const struct layers_load *r,
               const struct layers_load_ops *ops, void *arg, struct err *e)
{
    struct load *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(e, ST_ENOMEM, "no memory to load layer %s", r->layer);
    l->ls = y->ls;
    l->layer = y;
    l->ops = ops;
    l->arg = arg;
    l->timeout_ns = r->timeout_ns;
    l->next = l->ls->loads;
    l->prev = &l->ls->loads;
    if (l->next)
        l->next->prev = &l->next;
    l->ls->loads = l;
    l->fetch_req = copy_request(r);
    l->peer_node = strdup(r->peer_node);
    l->peer_address = strdup(r->peer_address);
    l->md = EVP_MD_CTX_new();
    if (!l->fetch_req || !l->peer_node || !l->peer_address || !l->md ||
        EVP_DigestInit_ex(l->md, EVP_sha256(), NULL) != 1) {
        load_free(l);
        return err_set(e, ST_ENOMEM, "no memory to load layer %s", r->layer);
    }
    *out = l;
    l->opening = true;
    l->job.work = l->peer_node[0] ? open_nothing : open_work;
    l->job.done = open_done;
    files_submit(l->ls->cfg.files, &l->job);
    return ST_OK;
}
