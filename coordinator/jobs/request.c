/*
 * Request ids: a submission repeated with the id it was first made with gives the same job, not another one.
 * An id belongs to its principal, is kept for a day, and is stored in the transaction that stores its job.
 * One that is still on its way is joined: both callers get the one answer.
 */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/map.h"
#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

#define KEEP_US (24ll * 3600 * 1000000)
#define METHOD "Jobs.Submit"

struct waiter {
    jobs_submit_fn fn;
    void *arg;
    struct waiter *next;
};
struct asked {
    char *principal, *id;
    uint8_t body[32];
    char job[40]; /* "" while it is on its way */
    int64_t created_us;
    struct waiter *waiters;
    struct asked *next, **prev; /* of all, oldest first */
};

static size_t make_key(char out[512], const char *principal, const char *id)
{
    int n = snprintf(out, 512, "%s\n%s", principal, id);
    return n < 0 || n >= 512 ? 0 : (size_t)n;
}

static int add_text(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s) + 1);
}

static int add_list(struct buf *b, char *const *v, size_t n)
{
    int rc = buf_append(b, &n, sizeof n);
    for (size_t i = 0; i < n && rc == ST_OK; i++)
        rc = add_text(b, v[i]);
    return rc;
}

/* What was asked for, so that another wish under the same id is seen. */
static int digest(const struct job_spec *s, uint8_t out[32])
{
    struct buf b = {0};
    const uint64_t numbers[] = {(uint64_t)s->goal, s->context,   s->sequences, s->tokens,
                                s->split,          s->min_nodes, s->max_stages};
    int rc = add_text(&b, s->path);
    if (rc == ST_OK)
        rc = buf_append(&b, numbers, sizeof numbers);
    if (rc == ST_OK)
        rc = add_list(&b, s->allow, s->nallow);
    if (rc == ST_OK)
        rc = add_list(&b, s->deny, s->ndeny);
    if (rc == ST_OK && EVP_Digest(b.data, b.len, out, NULL, EVP_sha256(), NULL) != 1)
        rc = ST_EINTERNAL;
    buf_fini(&b);
    return rc;
}

static void asked_free(struct jobs *js, struct asked *a)
{
    char key[512];
    size_t n = make_key(key, a->principal, a->id);
    if (n && map_get(js->asked, key, n) == a)
        (void)map_del(js->asked, key, n);
    *a->prev = a->next;
    if (a->next)
        a->next->prev = a->prev;
    else
        js->asked_last = a->prev;
    free(a->principal);
    free(a->id);
    free(a);
}

static int asked_new(struct jobs *js, const char *principal, const char *id, struct asked **out)
{
    char key[512];
    size_t n = make_key(key, principal, id);
    struct asked *a = n ? calloc(1, sizeof *a) : NULL;
    if (!a)
        return n ? ST_ENOMEM : ST_ELIMIT;
    a->principal = strdup(principal);
    a->id = strdup(id);
    a->created_us = jobs_now(js);
    if (!a->principal || !a->id || map_put(js->asked, key, n, a, NULL) < 0) {
        free(a->principal);
        free(a->id);
        free(a);
        return ST_ENOMEM;
    }
    a->prev = js->asked_last;
    *a->prev = a;
    js->asked_last = &a->next;
    *out = a;
    return ST_OK;
}

static void forget_old(struct jobs *js)
{
    int64_t before = jobs_now(js) - KEEP_US;
    for (struct asked *a = js->asked_head, *next; a && a->created_us < before; a = next) {
        next = a->next;
        if (a->job[0])
            asked_free(js, a);
    }
}

static int join(struct jobs *js, struct asked *a, jobs_submit_fn fn, void *arg, struct err *e)
{
    struct waiter *w = malloc(sizeof *w);
    if (!w)
        return err_set(e, ST_ENOMEM, "no memory to wait for the request '%s'", a->id);
    (void)js;
    *w = (struct waiter){fn, arg, a->waiters};
    a->waiters = w;
    return 1;
}

int asked_begin(struct jobs *js, const char *principal, const char *id, const struct job_spec *s,
                jobs_submit_fn fn, void *arg, struct asked **out, struct err *e)
{
    char key[512];
    uint8_t body[32];
    *out = NULL;
    if (!id || !*id)
        return ST_OK;
    size_t n = make_key(key, principal, id);
    int rc = digest(s, body);
    if (rc < 0)
        return err_set(e, rc, "no memory for the request '%s'", id);
    forget_old(js);
    struct asked *a = n ? map_get(js->asked, key, n) : NULL;
    if (!a) {
        if ((rc = asked_new(js, principal, id, &a)) < 0)
            return err_set(e, rc, "the request id '%.80s' cannot be kept: %s", id,
                           rc == ST_ELIMIT ? "it is too long" : "no memory");
        memcpy(a->body, body, 32);
        *out = a;
        return ST_OK;
    }
    if (memcmp(a->body, body, 32))
        return err_reason(
            e, ST_ECONFLICT, "REQUEST_ID_REUSED",
            "the request id '%.80s' was used for another submission%s%s: give this one a new id", id,
            a->job[0] ? ", which made " : "", a->job);
    if (!a->job[0])
        return join(js, a, fn, arg, e);
    struct job *j = jobs_find(js, a->job);
    if (!j)
        return err_set(e, ST_ENOENT, "the request '%.80s' made %s, which is no longer kept", id, a->job);
    fn(arg, j, NULL);
    return 1;
}

void asked_record(const struct asked *a, const char *job, struct store_txn *t, int64_t now_us)
{
    if (!a)
        return;
    uint8_t response[32 + 40] = {0};
    size_t n = strlen(job);
    memcpy(response, a->body, 32);
    memcpy(response + 32, job, n);
    store_txn_requests_expire(t, now_us - KEEP_US);
    store_txn_request_put(t, &(struct store_request){.principal = a->principal,
                                                     .request_id = a->id,
                                                     .method = METHOD,
                                                     .response = response,
                                                     .response_len = 32 + n,
                                                     .created_us = a->created_us});
}

void asked_end(struct jobs *js, struct asked *a, const struct job *j, const struct err *e)
{
    if (!a)
        return;
    struct waiter *w = a->waiters;
    a->waiters = NULL;
    if (j)
        str_copy(a->job, sizeof a->job, j->id);
    else
        asked_free(js, a);
    while (w) {
        struct waiter *next = w->next;
        w->fn(w->arg, j, e);
        free(w);
        w = next;
    }
}

struct loaded {
    struct jobs *js;
    struct asked **v;
    size_t n, cap;
};

static int load_one(void *arg, const struct store_request *r)
{
    struct loaded *ld = arg;
    struct asked *a;
    const uint8_t *p = r->response;
    if (strcmp(r->method, METHOD) || r->response_len <= 32 || r->response_len >= 32 + sizeof a->job)
        return 0;
    if (ld->n == ld->cap) {
        size_t cap = ld->cap ? ld->cap * 2 : 64;
        struct asked **v = realloc(ld->v, cap * sizeof(*v));
        if (!v)
            return ST_ENOMEM;
        ld->v = v;
        ld->cap = cap;
    }
    int rc = asked_new(ld->js, r->principal, r->request_id, &a);
    if (rc < 0)
        return rc;
    memcpy(a->body, p, 32);
    memcpy(a->job, p + 32, r->response_len - 32);
    a->created_us = r->created_us;
    ld->v[ld->n++] = a;
    return 0;
}

static int by_age(const void *x, const void *y)
{
    const struct asked *a = *(struct asked *const *)x, *b = *(struct asked *const *)y;
    return (a->created_us > b->created_us) - (a->created_us < b->created_us);
}

int asked_load(struct jobs *js, struct err *e)
{
    struct loaded ld = {.js = js};
    int rc = store_load_requests(js->cfg.store, load_one, &ld, e);
    if (ld.n)
        qsort(ld.v, ld.n, sizeof(*ld.v), by_age);
    js->asked_last = &js->asked_head;
    for (size_t i = 0; i < ld.n; i++) { /* the store gives them by principal; here they stand by age */
        ld.v[i]->prev = js->asked_last;
        ld.v[i]->next = NULL;
        *js->asked_last = ld.v[i];
        js->asked_last = &ld.v[i]->next;
    }
    free(ld.v);
    return rc;
}

int asked_init(struct jobs *js)
{
    js->asked_last = &js->asked_head;
    return map_new(&js->asked, js->cfg.rng);
}

void asked_fini(struct jobs *js)
{
    while (js->asked_head) {
        while (js->asked_head->waiters) {
            struct waiter *w = js->asked_head->waiters;
            js->asked_head->waiters = w->next;
            free(w);
        }
        asked_free(js, js->asked_head);
    }
    map_free(js->asked);
}
