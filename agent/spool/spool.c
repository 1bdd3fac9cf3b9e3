/*
 * The loop's side and the thread of the spool. The thread takes what was emitted, writes it as one group,
 * syncs and posts the completions; what nobody waits for is kept and tried again when the disk fails.
 */
#include "agent/spool/spool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/fs.h"

#include "agent/spool/spool_priv.h"

#define COMPACT_BYTES (1u << 20)
#define GROUP_BYTES (1u << 20)
#define RETRY_MS 250
#define USUAL_BYTES (SPOOL_RECORD_HEAD + 1024u)

struct pending {
    struct port_item item; /* first: the completion */
    struct pending *next;
    spool_done_fn done; /* NULL: nobody waits */
    void *arg;
    struct err err;
    size_t cost; /* in the file; 0 = a barrier */
    size_t len;
    uint8_t event[];
};

struct ready { /* posted to the loop, one at a time */
    struct port_item item;
    struct spool *s;
};

struct spool {
    struct spool_cfg cfg;
    pthread_t thread;
    pthread_mutex_t io; /* who holds it may use `file`; the loop holds it for reading and never for a sync */
    struct spool_file file;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    struct pending *head, **tail;
    uint64_t queued_bytes, durable_bytes, durable_last;
    bool closing, compact, ready_posted;
    /* the loop's own */
    uint64_t at, delivered; /* offset of the first undelivered record, and the sequence before it */
    uint8_t delivered_hash[SPOOL_HASH];
    uint64_t dropped;
    void (*on_ready)(void *arg);
    void *ready_arg;
    struct ready *ready;
};

/* ---- the thread ---- */

static void completed(struct port_item *it)
{
    struct pending *p = (struct pending *)it;
    p->done(p->arg, p->err.code, &p->err);
    free(p);
}

static void run_ready(struct port_item *it)
{
    struct ready *r = (struct ready *)it;
    struct spool *s = r->s;
    if (!s) { /* closed while it was posted */
        free(r);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->ready_posted = false;
    pthread_mutex_unlock(&s->lock);
    if (s->on_ready)
        s->on_ready(s->ready_arg);
}

/* Takes up to a group from the queue. Called with the lock. */
static struct pending *take_group(struct spool *s)
{
    struct pending *list = s->head, **at = &list;
    size_t bytes = 0;
    while (*at && (bytes += (*at)->len) <= GROUP_BYTES)
        at = &(*at)->next;
    if (*at && at == &list)
        at = &(*at)->next;
    s->head = *at;
    *at = NULL;
    if (!s->head)
        s->tail = &s->head;
    return list;
}

static int write_group(struct spool *s, const struct pending *list, struct err *e)
{
    struct buf b = {0};
    uint8_t hash[SPOOL_HASH];
    uint64_t seq = s->file.last;
    int rc = ST_OK;
    memcpy(hash, s->file.hash, sizeof hash);
    for (const struct pending *p = list; p && rc == ST_OK; p = p->next)
        if (p->cost)
            rc = record_append(&b, hash, ++seq, p->event, p->len);
    if (rc < 0)
        rc = err_set(e, rc, "no memory for the audit spool");
    else if (b.len)
        rc = file_append(&s->file, b.data, b.len, e);
    if (rc == ST_OK) {
        memcpy(s->file.hash, hash, sizeof hash);
        s->file.last = seq;
    }
    buf_fini(&b);
    return rc;
}

/* Answers those who wait; the rest is freed, or goes back to the front of the queue when it was not written.
 * Called with the lock. */
static void settle(struct spool *s, struct pending *list, int rc, const struct err *e)
{
    struct pending *back = NULL, **back_tail = &back;
    while (list) {
        struct pending *p = list;
        list = p->next;
        if (rc < 0 && !p->done) {
            *back_tail = p;
            back_tail = &p->next;
            continue;
        }
        s->queued_bytes -= p->cost;
        if (p->done) {
            p->err = rc < 0 ? *e : (struct err){.code = ST_OK};
            port_post(s->cfg.port, &p->item);
        } else {
            free(p);
        }
    }
    if (back) {
        *back_tail = s->head;
        if (!s->head)
            s->tail = back_tail;
        s->head = back;
    }
}

static void wait_retry(struct spool *s)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_nsec += RETRY_MS * 1000000l;
    ts.tv_sec += ts.tv_nsec / 1000000000l;
    ts.tv_nsec %= 1000000000l;
    while (!s->closing && pthread_cond_timedwait(&s->wake, &s->lock, &ts) == 0)
        ;
}

static void shorten(struct spool *s)
{
    struct err e;
    uint64_t at, seq;
    uint8_t hash[SPOOL_HASH];
    pthread_mutex_lock(&s->io);
    pthread_mutex_lock(&s->lock);
    at = s->at;
    seq = s->delivered;
    memcpy(hash, s->delivered_hash, sizeof hash);
    s->compact = false;
    pthread_mutex_unlock(&s->lock);
    int rc = file_compact(&s->file, at, seq, hash, &e);
    pthread_mutex_lock(&s->lock);
    if (rc == ST_OK) {
        s->at = s->at - at + SPOOL_FILE_HEAD;
        s->durable_bytes = s->file.size;
    }
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->io);
    if (rc < 0)
        LOG_E(s->cfg.log, "spool", "not shortened text=\"%s\"", e.text);
}

static void *run(void *arg)
{
    struct spool *s = arg;
    bool failed = false;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->head && !s->compact && !s->closing)
            pthread_cond_wait(&s->wake, &s->lock);
        if (s->closing && (!s->head || failed))
            break;
        if (!s->head) {
            pthread_mutex_unlock(&s->lock);
            shorten(s);
            pthread_mutex_lock(&s->lock);
            continue;
        }
        struct pending *list = take_group(s);
        pthread_mutex_unlock(&s->lock);
        struct err e = {.code = ST_OK};
        int rc = write_group(s, list, &e);
        if (rc < 0 && !failed)
            LOG_E(s->cfg.log, "spool", "write failed status=%s text=\"%s\"", status_name(rc), e.text);
        if (rc == ST_OK && failed)
            LOG_W(s->cfg.log, "spool", "writing again");
        failed = rc < 0;
        pthread_mutex_lock(&s->lock);
        settle(s, list, rc, &e);
        s->durable_last = s->file.last;
        s->durable_bytes = s->file.size;
        if (rc == ST_OK && !s->ready_posted) {
            s->ready_posted = true;
            port_post(s->cfg.port, &s->ready->item);
        }
        if (failed && s->head)
            wait_retry(s);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the loop ---- */

static uint64_t used(const struct spool *s)
{
    return s->durable_bytes - s->at + s->queued_bytes;
}

bool spool_room(const struct spool *s)
{
    struct spool *m = (struct spool *)(uintptr_t)s;
    pthread_mutex_lock(&m->lock);
    bool room = used(s) + USUAL_BYTES <= s->cfg.max_bytes;
    pthread_mutex_unlock(&m->lock);
    return room;
}

/* Called with the lock. */
static void push(struct spool *s, struct pending *p)
{
    *s->tail = p;
    s->tail = &p->next;
    s->queued_bytes += p->cost;
    pthread_cond_signal(&s->wake);
}

int spool_emit(struct spool *s, const struct audit_event *ev, spool_done_fn done, void *arg, struct err *e)
{
    uint8_t enc[EVENT_ENCODED_MAX];
    size_t n;
    int rc = event_encode_into(ev, enc, &n);
    if (rc < 0)
        return err_set(e, rc, "an audit event does not encode: %s", status_name(rc));
    struct pending *p = malloc(sizeof *p + n);
    if (!p)
        return err_set(e, ST_ENOMEM, "no memory for an audit event");
    uint64_t need = SPOOL_RECORD_HEAD + n;
    *p = (struct pending){.item = {.run = completed}, .done = done, .arg = arg, .cost = need, .len = n};
    memcpy(p->event, enc, n);
    pthread_mutex_lock(&s->lock);
    enum event_class cls = event_class(ev);
    uint64_t limit = cls == EVENT_SHED   ? s->cfg.max_bytes / 4 * 3
                     : cls == EVENT_MUST ? s->cfg.max_bytes / 8 * 9
                                         : s->cfg.max_bytes;
    if (used(s) + need > limit) {
        pthread_mutex_unlock(&s->lock);
        free(p);
        if (event_class(ev) == EVENT_SHED) {
            s->dropped++;
            return ST_OK;
        }
        return err_reason(
            e, ST_ERESOURCE, "SPOOL_FULL",
            "refused, because it could not be audited: the node's audit spool %s is full and the "
            "coordinator has not taken it; it works again once the coordinator is reached",
            s->cfg.path);
    }
    push(s, p);
    pthread_mutex_unlock(&s->lock);
    return ST_OK;
}

int spool_barrier(struct spool *s, spool_done_fn done, void *arg, struct err *e)
{
    struct pending *p = malloc(sizeof *p);
    if (!p)
        return err_set(e, ST_ENOMEM, "no memory to wait for the audit spool");
    *p = (struct pending){.item = {.run = completed}, .done = done, .arg = arg};
    pthread_mutex_lock(&s->lock);
    push(s, p);
    pthread_mutex_unlock(&s->lock);
    return ST_OK;
}

/* Whole records of out[0..len), and how many bytes they are. */
static size_t whole(const struct buf *b, size_t from, uint64_t *first, uint64_t *last)
{
    size_t at = from;
    struct record r;
    for (size_t n; (n = record_read(b->data + at, b->len - at, NULL, &r)); at += n) {
        *first = *first ? *first : r.seq;
        *last = r.seq;
    }
    return at;
}

int spool_peek(struct spool *s, size_t max_bytes, struct buf *out, uint64_t *first, uint64_t *last,
               uint8_t before[SPOOL_HASH], struct err *e)
{
    size_t from = out->len, most = max_bytes;
    int rc = ST_OK;
    *first = *last = 0;
    memcpy(before, s->delivered_hash, SPOOL_HASH);
    pthread_mutex_lock(&s->io);
    pthread_mutex_lock(&s->lock);
    uint64_t left = s->durable_bytes - s->at;
    pthread_mutex_unlock(&s->lock);
    if (most < SPOOL_RECORD_HEAD + EVENT_ENCODED_MAX)
        most = SPOOL_RECORD_HEAD + EVENT_ENCODED_MAX; /* one record always fits */
    size_t n = left < most ? (size_t)left : most;
    if (n && (rc = buf_reserve(out, n)) < 0)
        rc = err_set(e, rc, "no memory to read the audit spool");
    if (n && rc == ST_OK && (rc = fs_pread_full(s->file.fd, out->data + from, n, s->at)) < 0)
        rc = err_set(e, rc, "%s: cannot be read back", s->cfg.path);
    pthread_mutex_unlock(&s->io);
    if (rc < 0 || !n)
        return rc;
    out->len = from + n;
    out->len = whole(out, from, first, last);
    if (out->len == from)
        rc = err_reason(e, ST_ECORRUPT, "DAMAGED", "%s: was damaged while it was in use", s->cfg.path);
    return rc;
}

static void advance(struct spool *s, const struct buf *b, uint64_t seq)
{
    struct record r;
    size_t at = 0;
    for (size_t n; (n = record_read(b->data + at, b->len - at, NULL, &r)) && r.seq <= seq; at += n) {
        memcpy(s->delivered_hash, r.hash, SPOOL_HASH);
        s->delivered = r.seq;
    }
    pthread_mutex_lock(&s->lock);
    s->at += at;
    if (s->at == s->durable_bytes ? s->at > COMPACT_BYTES : s->at > s->cfg.max_bytes / 2) {
        s->compact = true;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
}

void spool_delivered(struct spool *s, uint64_t seq)
{
    struct buf b = {0};
    struct err e;
    while (s->delivered < seq) {
        uint64_t first, last;
        uint8_t before[SPOOL_HASH];
        b.len = 0;
        if (spool_peek(s, 1u << 18, &b, &first, &last, before, &e) < 0 || !first || first > seq)
            break;
        advance(s, &b, seq);
    }
    buf_fini(&b);
}

void spool_on_ready(struct spool *s, void (*fn)(void *arg), void *arg)
{
    s->on_ready = fn;
    s->ready_arg = arg;
}

void spool_stats(const struct spool *s, struct spool_stats *out)
{
    struct spool *m = (struct spool *)(uintptr_t)s;
    pthread_mutex_lock(&m->lock);
    *out = (struct spool_stats){.first = s->delivered + 1,
                                .last = s->durable_last,
                                .bytes = used(s),
                                .max_bytes = s->cfg.max_bytes,
                                .dropped = s->dropped};
    pthread_mutex_unlock(&m->lock);
    memcpy(out->id, s->file.id, sizeof out->id);
}

/* ---- life ---- */

static void destroy(struct spool *s)
{
    while (s->head) { /* not written: the disk failed to the last */
        struct pending *p = s->head;
        s->head = p->next;
        if (p->done) {
            p->err.code = ST_OK;
            err_set(&p->err, ST_ECLOSED, "the agent stops and the audit spool could not be written");
            port_post(s->cfg.port, &p->item);
        } else {
            free(p);
        }
    }
    file_close(&s->file);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->io);
    free(s);
}

int spool_open(struct spool **out, const struct spool_cfg *cfg, struct err *e)
{
    struct spool *s = calloc(1, sizeof *s);
    struct ready *r = calloc(1, sizeof *r);
    if (!s || !r) {
        free(s);
        free(r);
        return err_set(e, ST_ENOMEM, "no memory for the audit spool");
    }
    s->cfg = *cfg;
    s->cfg.max_bytes = cfg->max_bytes ? cfg->max_bytes : 64u << 20;
    s->cfg.clock = cfg->clock ? cfg->clock : clock_system();
    s->tail = &s->head;
    *r = (struct ready){.item = {.run = run_ready}, .s = s};
    s->ready = r;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->io, NULL);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    s->file.fd = -1;
    /* A new file begins beyond any earlier one of this node, so that the coordinator takes it for new. */
    int rc = file_open(&s->file, cfg->path, (uint64_t)clock_wall_us(s->cfg.clock), cfg->log, e);
    if (rc == ST_OK) {
        s->at = SPOOL_FILE_HEAD;
        s->delivered = s->file.base;
        memcpy(s->delivered_hash, s->file.base_hash, SPOOL_HASH);
        s->durable_bytes = s->file.size;
        s->durable_last = s->file.last;
        int err = pthread_create(&s->thread, NULL, run, s);
        if (err)
            rc = err_errno(e, err, "cannot start the thread of the audit spool");
    }
    if (rc < 0) {
        free(r);
        destroy(s);
        return rc;
    }
    *out = s;
    return ST_OK;
}

void spool_close(struct spool *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    if (s->ready_posted)
        s->ready->s = NULL;
    else
        free(s->ready);
    destroy(s);
}
