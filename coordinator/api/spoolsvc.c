/*
 * Service Spool: what agents recorded goes through state.db's outbox into audit.db. A node's batch, the
 * sequence it reached and its last hash are one transaction, so a record that arrives twice is written once;
 * each node's records keep their order, their own time, and get the time of receipt.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/str.h"
#include "common/spool/record.h"
#include "coordinator/api/api.h"
#include "strata/v1/spool.pb-c.h"

#define RECORDS_MAX (256u << 10)

struct spool_node {
    uint8_t id[SPOOL_ID], hash[SPOOL_HASH];
    uint64_t seq; /* 0: nothing was ever taken */
    bool busy;    /* a batch is on its way to the disk */
};

struct push {
    struct coord *c;
    struct rpc_call *call; /* NULL once nobody waits */
    struct spool_node *n;
    struct store_txn *t;
    char node[64];
    const uint8_t *before;  /* hash before the first record */
    struct spool_node next; /* what n becomes when it is on disk */
    unsigned taken;
    bool seen;
    int64_t now_us;
};

/* ---- what was taken, over restarts ---- */

static void meta_key(const char *node, char out[80])
{
    snprintf(out, 80, "spool/%s", node);
}

static struct spool_node *spool_of(struct coord *c, const char *node)
{
    struct spool_node *n = map_get(c->spools, node, strlen(node));
    if (n)
        return n;
    n = calloc(1, sizeof *n);
    if (n && map_put(c->spools, node, strlen(node), n, NULL) < 0) {
        free(n);
        n = NULL;
    }
    return n;
}

int api_spool_load(struct coord *c, const char *node, struct err *e)
{
    char key[80], text[160] = "", id[17], hash[65];
    unsigned long long seq = 0;
    size_t a = 0, b = 0;
    meta_key(node, key);
    int rc = store_load_meta(c->store, key, text, sizeof text, e);
    if (rc < 0 || !*text)
        return rc;
    struct spool_node *n = spool_of(c, node);
    if (!n)
        return err_set(e, ST_ENOMEM, "no memory for the spool of %s", node);
    if (sscanf(text, "%16[0-9a-f] %llu %64[0-9a-f]", id, &seq, hash) != 3 ||
        hex_decode(n->id, SPOOL_ID, id, &a) < 0 || hex_decode(n->hash, SPOOL_HASH, hash, &b) < 0 ||
        a != SPOOL_ID || b != SPOOL_HASH)
        return err_set(e, ST_ECORRUPT, "state.db: what is known of the spool of %s is malformed", node);
    n->seq = seq;
    return ST_OK;
}

static void remember(struct push *p)
{
    char key[80], text[160], id[2 * SPOOL_ID + 1], hash[2 * SPOOL_HASH + 1];
    meta_key(p->node, key);
    hex_encode(id, p->next.id, SPOOL_ID);
    hex_encode(hash, p->next.hash, SPOOL_HASH);
    snprintf(text, sizeof text, "%s %llu %s", id, (unsigned long long)p->next.seq, hash);
    store_txn_meta_put(p->t, key, text);
    store_txn_spool(p->t, p->node, p->next.seq);
}

/* ---- a batch ---- */

static void note(struct push *p, int type, const char *reason, uint64_t first, const char *error)
{
    struct event_meta m = {0};
    struct audit_event ev = event_make(type, EVENT_FAILURE, p->now_us);
    char who[80];
    snprintf(who, sizeof who, "node/%s", p->node);
    event_meta_str(&m, "reason", reason);
    event_meta_u64(&m, "first", first);
    event_meta_u64(&m, "expected", p->n->seq + 1);
    ev.principal = who;
    ev.node = p->node;
    ev.operation = "spool";
    ev.error = error;
    ev.meta = event_meta_text(&m);
    store_txn_event(p->t, &ev);
    event_meta_fini(&m);
}

/* The receipt goes into the metadata, in front of what is there. */
static void add_event(struct push *p, uint64_t seq, const struct audit_event *from)
{
    struct audit_event ev = *from;
    char meta[EVENT_META_MAX + 128];
    const char *rest = ev.meta && ev.meta[0] == '{' ? ev.meta + 1 : "}";
    bool empty = rest[strspn(rest, " \t\r\n")] == '}';
    int n = snprintf(meta, sizeof meta, "{\"received_us\":%lld,\"spool_seq\":%llu%s%s", (long long)p->now_us,
                     (unsigned long long)seq, empty ? "" : ",", rest);
    if (n > 0 && (size_t)n <= EVENT_META_MAX)
        ev.meta = meta;
    ev.node = p->node; /* whatever it says: a node speaks for itself alone */
    store_txn_event(p->t, &ev);
}

static int take(void *arg, const struct record *r)
{
    struct push *p = arg;
    struct audit_event ev;
    bool same = p->n->seq && memcmp(p->next.id, p->n->id, SPOOL_ID) == 0;
    /* Where the batch touches what was taken before, the hashes must meet. */
    if (same && ((r->seq == p->n->seq && memcmp(r->hash, p->n->hash, SPOOL_HASH) != 0) ||
                 (!p->seen && r->seq == p->n->seq + 1 && memcmp(p->before, p->n->hash, SPOOL_HASH) != 0)))
        return ST_ETRUST;
    p->seen = true;
    if (same && r->seq <= p->n->seq)
        return 0;
    memcpy(p->next.hash, r->hash, SPOOL_HASH);
    if (p->taken == 0 && same && r->seq != p->n->seq + 1)
        note(p, EV_AUDIT_SPOOL_REFUSED, "GAP", r->seq, "records of this node's spool are missing");
    if (event_decode(r->event, r->len, &ev) == ST_OK)
        add_event(p, r->seq, &ev);
    else
        note(p, EV_AUDIT_SPOOL_REFUSED, "MALFORMED", r->seq,
             "a record of this node's spool is no event; it was written by another version or is damaged");
    p->next.seq = r->seq;
    p->taken++;
    return 0;
}

static void answer(struct push *p, uint64_t seq)
{
    Strata__V1__SpoolTaken rep = STRATA__V1__SPOOL_TAKEN__INIT;
    rep.seq = seq;
    if (p->call)
        rpc_reply(p->call, &rep.base);
}

static void stored(void *arg, int rc, const struct err *e)
{
    struct push *p = arg;
    p->n->busy = false;
    if (rc == ST_OK) {
        *p->n = p->next;
        answer(p, p->next.seq);
    } else if (p->call) {
        rpc_fail(p->call, e);
    }
    free(p);
}

static void gone(struct rpc_call *call, void *arg)
{
    (void)call;
    ((struct push *)arg)->call = NULL;
}

/* Fills p->t. ST_ETRUST: the records do not follow from one another or from what was taken before. */
static int read_batch(struct push *p, const Strata__V1__SpoolBatch *m, struct err *e)
{
    uint8_t hash[SPOOL_HASH];
    memcpy(hash, m->before.data, SPOOL_HASH);
    p->before = m->before.data;
    memcpy(p->next.id, m->spool.data, SPOOL_ID);
    p->next.seq = p->n->seq;
    memcpy(p->next.hash, p->n->hash, SPOOL_HASH);
    if (p->n->seq && memcmp(p->next.id, p->n->id, SPOOL_ID) != 0)
        LOG_W(&p->c->log, "api", "node=%s begins a new audit spool", p->node);
    int rc = records_each(m->records.data, m->records.len, hash, take, p);
    if (rc < 0)
        return err_reason(
            e, ST_ETRUST, "SPOOL_BROKEN",
            "the records of node %s do not follow from one another: its spool was damaged or changed",
            p->node);
    return ST_OK;
}

void api_spool_push(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct coord *c = arg;
    const Strata__V1__SpoolBatch *m = (const Strata__V1__SpoolBatch *)req;
    const struct tls_identity *id = rpc_peer(call);
    struct err e;
    if (id->kind != TLS_NODE || m->spool.len != SPOOL_ID || m->before.len != SPOOL_HASH ||
        m->records.len > RECORDS_MAX) {
        rpc_finish(call, id->kind != TLS_NODE ? 7 : 3, id->kind != TLS_NODE ? "NOT_A_NODE" : "BAD_BATCH",
                   "only a node may bring its audit spool, at most %u bytes at a time", RECORDS_MAX);
        return;
    }
    struct spool_node *n = spool_of(c, id->name);
    struct push *p = n ? calloc(1, sizeof *p) : NULL;
    if (p)
        p->t = store_txn_new();
    if (!p || !p->t || n->busy) {
        rpc_finish(call, p && p->t ? 14 : 13, p && p->t ? "BUSY" : "NO_MEMORY",
                   "the batch of node %s cannot be taken now", id->name);
        if (p)
            store_txn_free(p->t);
        free(p);
        return;
    }
    p->c = c;
    p->call = call;
    p->n = n;
    p->now_us = clock_wall_us(c->clock);
    str_copy(p->node, sizeof p->node, id->name);
    int rc = read_batch(p, m, &e);
    if (rc < 0 || !p->taken) {
        if (rc < 0) {
            /* Said where it is seen: the batch itself is not taken. */
            struct event_meta em = {0};
            event_meta_str(&em, "reason", e.reason);
            api_event(c, EV_AUDIT_SPOOL_REFUSED, EVENT_FAILURE, id->principal, id->name, event_meta_text(&em),
                      e.text);
            event_meta_fini(&em);
            rpc_fail(call, &e);
        } else {
            answer(p, n->seq); /* all of it was taken before */
        }
        store_txn_free(p->t);
        free(p);
        return;
    }
    remember(p);
    rpc_on_cancel(call, gone, p);
    n->busy = true;
    rc = store_submit(c->store, p->t, stored, p);
    if (rc < 0) {
        n->busy = false;
        rpc_finish(call, 14, "BUSY", "the coordinator cannot take audit records now: %s", status_name(rc));
        free(p);
    }
}

static int free_one(const void *k, size_t n, void *v, void *arg)
{
    (void)k;
    (void)n;
    (void)arg;
    free(v);
    return 0;
}

void api_spool_free(struct coord *c)
{
    if (c->spools)
        map_each(c->spools, free_one, NULL);
    map_free(c->spools);
    c->spools = NULL;
}
