/* One batch is one transaction: rows, roll-ups, seal, drained sequence, now and then a checkpoint. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

#define NAMES_MAX 50000u
#define RATES 64u

struct rate {
    int64_t minute;
    int event, severity, result;
    int64_t n;
};

static int begin(struct batch_writer *w, struct err *e)
{
    return db_exec(w->db, "BEGIN IMMEDIATE", e);
}

/* Commits, or takes everything back. */
static int finish(struct batch_writer *w, int rc, struct err *e)
{
    if (rc == ST_OK)
        rc = db_exec(w->db, "COMMIT", e);
    if (rc < 0 && !sqlite3_get_autocommit(w->db))
        sqlite3_exec(w->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

static int fill_event_types(sqlite3 *db, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(
        db,
        "INSERT INTO event_type(id,name) VALUES(?1,?2) ON CONFLICT(id) DO UPDATE SET name=excluded.name "
        "WHERE name<>excluded.name",
        &st, e);
    const struct event_info *info;
    for (size_t i = 0; rc == ST_OK && (info = event_at(i)); i++) {
        sqlite3_bind_int(st, 1, info->type);
        sqlite3_bind_text(st, 2, info->name, -1, SQLITE_STATIC);
        int step = sqlite3_step(st);
        if (step != SQLITE_DONE)
            rc = db_fail(db, step, "writing the event types", e);
        sqlite3_reset(st);
    }
    sqlite3_finalize(st);
    return rc;
}

static int read_state(struct batch_writer *w, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(w->db, "SELECT size,head,drained FROM state", &st, e);
    if (rc < 0)
        return rc;
    int step = sqlite3_step(st);
    if (step == SQLITE_ROW && sqlite3_column_bytes(st, 1) == CHAIN_HASH) {
        w->size = sqlite3_column_int64(st, 0);
        memcpy(w->head, sqlite3_column_blob(st, 1), CHAIN_HASH);
        w->drained = (uint64_t)sqlite3_column_int64(st, 2);
    } else if (step == SQLITE_ROW || step == SQLITE_DONE) {
        rc = err_reason(e, ST_ECORRUPT, "DAMAGED",
                        "audit.db: its state row is missing or malformed; run 'strata audit verify', then "
                        "move the file aside");
    } else {
        rc = db_fail(w->db, step, "reading the state", e);
    }
    sqlite3_finalize(st);
    return rc;
}

/* The open segment, and how many closed ones are in the file. */
static int read_segments(struct batch_writer *w, struct err *e)
{
    struct segment *v = NULL;
    size_t n = 0;
    int rc = segment_list(w->db, &v, &n, e);
    w->live = 0;
    for (size_t i = 0; rc == ST_OK && i + 1 < n; i++)
        w->live += !v[i].file[0];
    if (rc == ST_OK && (!n || v[n - 1].last || v[n - 1].file[0]))
        rc = err_reason(
            e, ST_ECORRUPT, "DAMAGED",
            "audit.db: it has no open segment (is it a sealed one?); run 'strata audit verify', then "
            "move the file aside");
    if (rc == ST_OK)
        w->seg = v[n - 1];
    free(v);
    return rc;
}

static int prepare_insert(struct batch_writer *w, struct err *e)
{
    char sql[256];
    sqlite3_finalize(w->insert);
    w->insert = NULL;
    snprintf(sql, sizeof sql,
             "INSERT INTO audit_%06lld(" SEGMENT_COLUMNS
             ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)",
             (long long)w->seg.slot);
    return db_prepare(w->db, sql, &w->insert, e);
}

static int prepare_all(struct batch_writer *w, struct err *e)
{
    const struct {
        sqlite3_stmt **st;
        const char *sql;
    } all[] = {
        {&w->seal, "INSERT INTO seal(first,last,ts_min,ts_max,prev,hash) VALUES(?1,?2,?3,?4,?5,?6)"},
        {&w->state, "UPDATE state SET size=?1,head=?2,drained=?3"},
        {&w->checkpoint,
         "INSERT OR REPLACE INTO checkpoint(size,head,ts_us,key_id,sig) VALUES(?1,?2,?3,?4,?5)"},
        {&w->minute, "INSERT INTO rate_1m(minute,event,severity,result,n) VALUES(?1,?2,?3,?4,?5) ON CONFLICT "
                     "DO UPDATE SET n=n+excluded.n"},
        {&w->hour, "INSERT INTO rate_1h(hour,event,severity,result,n) VALUES(?1,?2,?3,?4,?5) ON CONFLICT DO "
                   "UPDATE SET n=n+excluded.n"},
        {&w->name_get, "SELECT id,seen FROM name WHERE text=?1"},
        {&w->name_put, "INSERT INTO name(text,seen) VALUES(?1,?2)"},
        {&w->name_seen, "UPDATE name SET seen=?2 WHERE id=?1"},
    };
    int rc = prepare_insert(w, e);
    for (size_t i = 0; rc == ST_OK && i < sizeof all / sizeof all[0]; i++)
        rc = db_prepare(w->db, all[i].sql, all[i].st, e);
    return rc;
}

static int on_commit(void *arg, sqlite3 *db, const char *name, int pages)
{
    (void)db;
    (void)name;
    ((struct batch_writer *)arg)->wal_pages = pages;
    return SQLITE_OK;
}

/* The latest checkpoint, so that witnesses hear of it before the next. */
static int read_signed_head(struct batch_writer *w, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(w->db, "SELECT size,ts_us,head,key_id,sig FROM checkpoint ORDER BY size DESC LIMIT 1",
                        &st, e);
    if (rc < 0)
        return rc;
    int step = sqlite3_step(st);
    struct audit_head *h = &w->signed_head;
    if (step == SQLITE_ROW && sqlite3_column_bytes(st, 2) == CHAIN_HASH &&
        sqlite3_column_bytes(st, 4) <= (int)sizeof h->sig) {
        h->size = sqlite3_column_int64(st, 0);
        h->ts_us = sqlite3_column_int64(st, 1);
        memcpy(h->head, sqlite3_column_blob(st, 2), CHAIN_HASH);
        str_copy(h->key_id, sizeof h->key_id, db_text(st, 3));
        h->sig_len = (size_t)sqlite3_column_bytes(st, 4);
        if (h->sig_len)
            memcpy(h->sig, sqlite3_column_blob(st, 4), h->sig_len);
    }
    rc = step == SQLITE_ROW || step == SQLITE_DONE ? ST_OK
                                                   : db_fail(w->db, step, "reading the checkpoints", e);
    sqlite3_finalize(st);
    return rc;
}

int batch_open(struct batch_writer *w, const char *path, unsigned max_pages, int64_t now_us, struct err *e)
{
    memset(w, 0, sizeof *w);
    int rc = db_open(&w->db, path, &audit_db_kind, max_pages, e);
    if (rc < 0)
        return rc;
    rc = begin(w, e);
    if (rc == ST_OK) {
        rc = fill_event_types(w->db, e);
        if (rc == ST_OK)
            rc = segment_views(w->db, e);
        rc = finish(w, rc, e);
    }
    if (rc == ST_OK)
        rc = read_state(w, e);
    if (rc == ST_OK)
        rc = read_segments(w, e);
    if (rc == ST_OK)
        rc = read_signed_head(w, e);
    sqlite3_wal_hook(w->db, on_commit, w);
    if (rc == ST_OK && !w->seg.opened_us)
        w->seg.opened_us = now_us;
    if (rc == ST_OK)
        rc = prepare_all(w, e);
    if (rc == ST_OK && (map_new(&w->names, rng_system()) < 0 || chain_init(&w->chain) < 0))
        rc = err_set(e, ST_ENOMEM, "audit.db: out of memory");
    if (rc < 0)
        batch_close(w);
    return rc;
}

void batch_close(struct batch_writer *w)
{
    sqlite3_stmt *all[] = {w->insert, w->seal,     w->state,    w->checkpoint, w->minute,
                           w->hour,   w->name_get, w->name_put, w->name_seen};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sqlite3_finalize(all[i]);
    map_free(w->names);
    free(w->events);
    chain_fini(&w->chain);
    db_close(w->db);
    memset(w, 0, sizeof *w);
}

/* Steps a statement that returns no rows. */
static int run(struct batch_writer *w, sqlite3_stmt *st, const char *doing, struct err *e)
{
    int step = sqlite3_step(st);
    int rc = step == SQLITE_DONE ? ST_OK : db_fail(w->db, sqlite3_extended_errcode(w->db), doing, e);
    sqlite3_reset(st);
    return rc;
}

static int name_id(struct batch_writer *w, const char *text, int64_t *id, struct err *e)
{
    size_t n = strlen(text);
    *id = 0;
    if (n == 0)
        return ST_OK;
    void *v = w->names ? map_get(w->names, text, n) : NULL;
    if (v) {
        *id = (int64_t)(intptr_t)v;
        return ST_OK;
    }
    sqlite3_bind_text(w->name_get, 1, text, (int)n, SQLITE_STATIC);
    int step = sqlite3_step(w->name_get), rc = ST_OK;
    bool seen = false;
    if (step == SQLITE_ROW) {
        *id = sqlite3_column_int64(w->name_get, 0);
        seen = sqlite3_column_int64(w->name_get, 1) >= w->seg.n;
    } else if (step != SQLITE_DONE) {
        rc = db_fail(w->db, step, "looking a name up", e);
    }
    sqlite3_reset(w->name_get);
    if (rc == ST_OK && *id == 0) {
        sqlite3_bind_text(w->name_put, 1, text, (int)n, SQLITE_STATIC);
        sqlite3_bind_int64(w->name_put, 2, w->seg.n);
        rc = run(w, w->name_put, "writing a name", e);
        *id = sqlite3_last_insert_rowid(w->db);
    } else if (rc == ST_OK && !seen) {
        sqlite3_bind_int64(w->name_seen, 1, *id);
        sqlite3_bind_int64(w->name_seen, 2, w->seg.n);
        rc = run(w, w->name_seen, "writing a name", e);
    }
    if (rc == ST_OK && w->names && map_put(w->names, text, n, (void *)(intptr_t)*id, NULL) < 0)
        return ST_OK; /* only the cache misses it */
    return rc;
}

/* A failed batch took its names back; the cache must not remember their numbers. */
static void forget_names(struct batch_writer *w)
{
    map_free(w->names);
    w->names = NULL;
    if (map_new(&w->names, rng_system()) < 0)
        w->names = NULL; /* works without the cache as well */
}

void batch_strings(const struct audit_event *e, const char *out[CHAIN_STRINGS])
{
    const char *s[CHAIN_STRINGS] = {e->principal, e->device,    e->node,  e->session,
                                    e->job,       e->operation, e->error, e->meta};
    for (unsigned i = 0; i < CHAIN_STRINGS; i++)
        out[i] = s[i] ? s[i] : "";
}

/* What came through the ring was encoded a moment ago by this process; the outbox lay on a disk. */
static void decode(const struct batch_item *it, struct audit_event *ev)
{
    if ((it->seq ? event_decode(it->p, it->n, ev) : event_decode_ours(it->p, it->n, ev)) == ST_OK)
        return;
    *ev = event_make(EV_AUDIT_LOSS, EVENT_FAILURE, 0);
    ev->operation = "drain";
    ev->error =
        "a record of the audit outbox could not be decoded; it was written by another version or is damaged";
    ev->meta = "{\"dropped\":1}";
}

static int write_row(struct batch_writer *w, int64_t id, const struct audit_event *ev, struct err *e)
{
    const char *s[CHAIN_STRINGS];
    struct chain_row row = {id, ev->time_us, ev->type, ev->severity, ev->result, {{0}}};
    sqlite3_stmt *st = w->insert;
    batch_strings(ev, s);
    sqlite3_bind_int64(st, 1, id);
    sqlite3_bind_int64(st, 2, ev->time_us);
    sqlite3_bind_int(st, 3, ev->type);
    sqlite3_bind_int(st, 4, ev->severity);
    sqlite3_bind_int(st, 5, ev->result);
    for (unsigned i = 0; i < CHAIN_STRINGS; i++) {
        row.s[i].p = s[i];
        row.s[i].n = strlen(s[i]);
        if (i < 6) {
            int64_t name;
            int rc = name_id(w, s[i], &name, e);
            if (rc < 0)
                return rc;
            sqlite3_bind_int64(st, 6 + (int)i, name);
        } else if (row.s[i].n) {
            sqlite3_bind_text(st, 6 + (int)i, s[i], (int)row.s[i].n, SQLITE_STATIC);
        } else {
            sqlite3_bind_null(st, 6 + (int)i);
        }
    }
    if (chain_add(&w->chain, &row) < 0)
        return err_set(e, ST_ENOMEM, "audit.db: cannot hash a row");
    return run(w, st, "writing an audit row", e);
}

static int add_rate(struct batch_writer *w, sqlite3_stmt *st, int64_t slot, const struct rate *r,
                    struct err *e)
{
    sqlite3_bind_int64(st, 1, slot);
    sqlite3_bind_int(st, 2, r->event);
    sqlite3_bind_int(st, 3, r->severity);
    sqlite3_bind_int(st, 4, r->result);
    sqlite3_bind_int64(st, 5, r->n);
    return run(w, st, "writing the rates", e);
}

static int write_rates(struct batch_writer *w, struct rate *r, size_t *n, struct err *e)
{
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i < *n; i++) {
        rc = add_rate(w, w->minute, r[i].minute, &r[i], e);
        if (rc == ST_OK)
            rc = add_rate(w, w->hour, r[i].minute / 60, &r[i], e);
    }
    *n = 0;
    return rc;
}

static int count_rate(struct batch_writer *w, struct rate r[RATES], size_t *n, const struct audit_event *ev,
                      struct err *e)
{
    int64_t minute = ev->time_us / 60000000;
    for (size_t i = *n; i-- > 0;) /* the latest first: rows of one kind come together */
        if (r[i].minute == minute && r[i].event == ev->type && r[i].severity == ev->severity &&
            r[i].result == ev->result) {
            r[i].n++;
            return ST_OK;
        }
    int rc = *n == RATES ? write_rates(w, r, n, e) : ST_OK;
    r[(*n)++] = (struct rate){minute, ev->type, ev->severity, ev->result, 1};
    return rc;
}

static int write_checkpoint(struct batch_writer *w, int64_t size, const uint8_t *head,
                            const struct batch_checkpoint *cp, struct err *e)
{
    char text[160];
    uint8_t sig[256];
    size_t n = 0;
    int rc = chain_checkpoint_text(text, sizeof text, size, head, cp->ts_us);
    if (rc == ST_OK && cp->signer->sign)
        rc = cp->signer->sign(cp->signer->arg, (const uint8_t *)text, strlen(text), sig, &n);
    if (rc < 0)
        return err_set(e, rc, "audit.db: the checkpoint at row %lld cannot be signed with key %s",
                       (long long)size, cp->signer->key_id ? cp->signer->key_id : "(none)");
    sqlite3_bind_int64(w->checkpoint, 1, size);
    sqlite3_bind_blob(w->checkpoint, 2, head, CHAIN_HASH, SQLITE_STATIC);
    sqlite3_bind_int64(w->checkpoint, 3, cp->ts_us);
    sqlite3_bind_text(w->checkpoint, 4, cp->signer->key_id ? cp->signer->key_id : "", -1, SQLITE_STATIC);
    sqlite3_bind_blob(w->checkpoint, 5, sig, (int)n, SQLITE_STATIC);
    rc = run(w, w->checkpoint, "writing a checkpoint", e);
    if (rc < 0)
        return rc;
    w->signed_head = (struct audit_head){.size = size, .ts_us = cp->ts_us};
    memcpy(w->signed_head.head, head, CHAIN_HASH);
    str_copy(w->signed_head.key_id, sizeof w->signed_head.key_id,
             cp->signer->key_id ? cp->signer->key_id : "");
    if (n <= sizeof w->signed_head.sig) {
        memcpy(w->signed_head.sig, sig, n);
        w->signed_head.sig_len = n;
    }
    return ST_OK;
}

static int write_seal(struct batch_writer *w, int64_t last, const int64_t span[2], const uint8_t *hash,
                      uint64_t drained, struct err *e)
{
    sqlite3_bind_int64(w->seal, 1, w->size + 1);
    sqlite3_bind_int64(w->seal, 2, last);
    sqlite3_bind_int64(w->seal, 3, span[0]);
    sqlite3_bind_int64(w->seal, 4, span[1]);
    sqlite3_bind_blob(w->seal, 5, w->head, CHAIN_HASH, SQLITE_STATIC);
    sqlite3_bind_blob(w->seal, 6, hash, CHAIN_HASH, SQLITE_STATIC);
    int rc = run(w, w->seal, "sealing a batch", e);
    if (rc < 0)
        return rc;
    sqlite3_bind_int64(w->state, 1, last);
    sqlite3_bind_blob(w->state, 2, hash, CHAIN_HASH, SQLITE_STATIC);
    sqlite3_bind_int64(w->state, 3, (int64_t)drained);
    return run(w, w->state, "sealing a batch", e);
}

static int write_all(struct batch_writer *w, const struct batch_item *items, size_t n,
                     const struct batch_checkpoint *cp, uint8_t hash[CHAIN_HASH], uint64_t *drained,
                     struct err *e)
{
    struct rate rates[RATES];
    size_t n_rates = 0;
    int64_t span[2] = {INT64_MAX, INT64_MIN}, last = w->size + (int64_t)n;
    for (size_t i = 0; i < n; i++) {
        struct audit_event *ev = &w->events[i];
        decode(&items[i], ev);
        span[0] = ev->time_us < span[0] ? ev->time_us : span[0];
        span[1] = ev->time_us > span[1] ? ev->time_us : span[1];
        if (items[i].seq > *drained)
            *drained = items[i].seq;
    }
    if (chain_begin(&w->chain, w->head, w->size + 1, last, span[0], span[1]) < 0)
        return err_set(e, ST_EINTERNAL, "audit.db: cannot start a hash");
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i < n; i++) {
        rc = write_row(w, w->size + 1 + (int64_t)i, &w->events[i], e);
        if (rc == ST_OK)
            rc = count_rate(w, rates, &n_rates, &w->events[i], e);
    }
    if (rc == ST_OK)
        rc = write_rates(w, rates, &n_rates, e);
    if (rc == ST_OK && chain_end(&w->chain, hash) < 0)
        rc = err_set(e, ST_EINTERNAL, "audit.db: cannot finish a hash");
    if (rc == ST_OK)
        rc = write_seal(w, last, span, hash, *drained, e);
    if (rc == ST_OK && cp)
        rc = write_checkpoint(w, last, hash, cp, e);
    return rc;
}

static int close_segment(struct batch_writer *w, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(w->db,
                        "UPDATE segment SET last=?2,head=?3,"
                        "ts_min=(SELECT min(ts_min) FROM seal WHERE first BETWEEN ?4 AND ?2),"
                        "ts_max=(SELECT max(ts_max) FROM seal WHERE first BETWEEN ?4 AND ?2) WHERE n=?1",
                        &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_int64(st, 1, w->seg.n);
    sqlite3_bind_int64(st, 2, w->size);
    sqlite3_bind_blob(st, 3, w->head, CHAIN_HASH, SQLITE_STATIC);
    sqlite3_bind_int64(st, 4, w->seg.first);
    rc = run(w, st, "closing a segment", e);
    sqlite3_finalize(st);
    return rc;
}

/* Inside a transaction; the caller puts w->seg back if that fails. */
static int rotate(struct batch_writer *w, const struct batch_checkpoint *cp, struct err *e)
{
    struct segment next = {.n = w->seg.n + 1, .first = w->size + 1, .opened_us = cp->ts_us};
    memcpy(next.prev, w->head, CHAIN_HASH);
    int rc = close_segment(w, e);
    if (rc == ST_OK)
        rc = write_checkpoint(w, w->size, w->head, cp, e);
    if (rc == ST_OK)
        rc = segment_create(w->db, &next, e);
    if (rc < 0)
        return rc;
    w->seg = next;
    forget_names(w);
    return prepare_insert(w, e);
}

/* Inside a transaction. */
static int drop(struct batch_writer *w, const struct seal_result *r, struct err *e)
{
    char sql[600], hex[2 * CHAIN_HASH + 1];
    hex_encode(hex, r->sha256, CHAIN_HASH);
    /* Without a condition SQLite frees the pages of a table and does not look at its rows one by one.
     * Checkpoints stay, for they are few and tell of the chain before the rows that are here. */
    snprintf(sql, sizeof sql,
             "DELETE FROM audit_%06lld; DELETE FROM seal WHERE first BETWEEN %lld AND %lld;"
             "UPDATE segment SET file='%s',sha256=x'%s' WHERE n=%lld;"
             "DELETE FROM name WHERE seen<=%lld",
             (long long)r->slot, (long long)r->first, (long long)r->last, r->file, hex, (long long)r->n,
             (long long)r->n);
    return db_exec(w->db, sql, e);
}

/* What a failure took back. */
static void back_to(struct batch_writer *w, const struct segment *seg, const struct audit_head *signed_head)
{
    if (w->seg.n != seg->n) { /* the next batch prepares it for the segment that is still open */
        sqlite3_finalize(w->insert);
        w->insert = NULL;
    }
    w->seg = *seg;
    w->signed_head = *signed_head; /* a witness must never see one that is not on disk */
    forget_names(w);
}

static int make_room(struct batch_writer *w, size_t n, struct err *e)
{
    if (!w->names || map_count(w->names) > NAMES_MAX)
        forget_names(w);
    if (n > w->events_cap) {
        struct audit_event *v = realloc(w->events, n * sizeof *v);
        if (!v)
            return err_set(e, ST_ENOMEM, "audit.db: out of memory");
        w->events = v;
        w->events_cap = n;
    }
    return w->insert ? ST_OK : prepare_insert(w, e);
}

int batch_write(struct batch_writer *w, const struct batch_item *items, size_t n, const struct batch_extra *x,
                struct err *e)
{
    uint8_t hash[CHAIN_HASH] = {0};
    uint64_t drained = w->drained;
    struct segment seg = w->seg;
    struct audit_head signed_head = w->signed_head;
    w->tried_size = 0;
    int rc = make_room(w, n, e);
    if (rc == ST_OK)
        rc = begin(w, e);
    if (rc < 0)
        return rc;
    if (x->drop)
        rc = drop(w, x->drop, e);
    if (rc == ST_OK && x->rotate)
        rc = rotate(w, x->rotate, e);
    if (rc == ST_OK)
        rc = write_all(w, items, n, x->checkpoint, hash, &drained, e);
    w->tried_size = rc == ST_OK ? w->size + (int64_t)n : 0;
    memcpy(w->tried_head, hash, CHAIN_HASH);
    rc = finish(w, rc, e);
    if (rc < 0) {
        back_to(w, &seg, &signed_head);
        return rc;
    }
    w->tried_size = 0;
    w->size += (int64_t)n;
    w->drained = drained;
    memcpy(w->head, hash, CHAIN_HASH);
    w->live += x->rotate != NULL;
    if (x->drop) {
        w->live -= w->live > 0;
        forget_names(w); /* some of them are gone */
    }
    return ST_OK;
}

int batch_checkpoint(struct batch_writer *w, const struct batch_checkpoint *cp, struct err *e)
{
    struct audit_head signed_head = w->signed_head;
    int rc = begin(w, e);
    if (rc == ST_OK)
        rc = finish(w, write_checkpoint(w, w->size, w->head, cp, e), e);
    if (rc < 0)
        w->signed_head = signed_head;
    return rc;
}

int batch_drop(struct batch_writer *w, const struct seal_result *r, struct err *e)
{
    int rc = begin(w, e);
    if (rc < 0)
        return rc;
    rc = finish(w, drop(w, r, e), e);
    if (rc == ST_OK) {
        w->live -= w->live > 0;
        forget_names(w);
    }
    return rc;
}

int batch_retire(struct batch_writer *w, int64_t before_us, struct segment *out, struct err *e)
{
    struct segment *v = NULL;
    size_t n = 0, i = 0;
    char sql[80];
    int rc = segment_list(w->db, &v, &n, e);
    while (rc == ST_OK && i < n && v[i].retired)
        i++;
    /* Oldest first and without gaps: what is kept is always the end of the chain. */
    if (rc == ST_OK && (i == n || !v[i].file[0] || v[i].ts_max >= before_us))
        rc = ST_ENOENT;
    if (rc == ST_OK) {
        *out = v[i];
        snprintf(sql, sizeof sql, "UPDATE segment SET retired=1 WHERE n=%lld", (long long)v[i].n);
        rc = db_exec(w->db, sql, e);
    }
    free(v);
    return rc;
}
