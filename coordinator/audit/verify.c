/* Recomputing the chain from the rows as they stand. One read transaction, so a live writer does not disturb
 * it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/audit/audit_priv.h"

struct names {
    struct {
        char *p;
        size_t n;
    } * v;
    int64_t n;
};

struct verify {
    sqlite3 *db;
    sqlite3_stmt *rows, *seals;
    struct chain chain;
    struct names names;
    struct audit_verdict *v;
    int64_t next;  /* id the next row must have */
    bool have_row; /* `rows` stands on a row that no batch has taken yet */
};

static void names_free(struct names *s)
{
    for (int64_t i = 0; i < s->n; i++)
        free(s->v[i].p);
    free(s->v);
}

/* All names in memory: the rows hold their numbers. Their ids are dense, for they are only ever added. */
static int names_load(sqlite3 *db, struct names *s, struct err *e)
{
    int64_t max = 0, count = 0;
    sqlite3_stmt *st = NULL;
    int rc = db_int(db, "SELECT max(id) FROM name", 0, &max, e);
    if (rc == ST_OK)
        rc = db_int(db, "SELECT count(*) FROM name", 0, &count, e);
    if (rc < 0)
        return rc;
    if (max < 0 || max / 2 > count + 1024)
        return err_set(e, ST_ECORRUPT, "audit.db: the name table has gaps that strata never leaves");
    s->v = calloc((size_t)max + 1, sizeof *s->v);
    if (!s->v)
        return err_set(e, ST_ENOMEM, "audit verify: out of memory for %lld names", (long long)max);
    s->n = max + 1;
    rc = db_prepare(db, "SELECT id,text FROM name WHERE id>=0", &st, e);
    int step = SQLITE_DONE;
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        int64_t id = sqlite3_column_int64(st, 0);
        size_t n = (size_t)sqlite3_column_bytes(st, 1);
        if (id <= 0 || id >= s->n)
            continue; /* number 0 means absent, whatever somebody put there */
        s->v[id].p = malloc(n + 1);
        if (!s->v[id].p) {
            rc = err_set(e, ST_ENOMEM, "audit verify: out of memory");
            break;
        }
        memcpy(s->v[id].p, db_text(st, 1), n);
        s->v[id].n = n;
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(db, step, "reading the names", e);
    sqlite3_finalize(st);
    return rc;
}

/* Event numbers are hashed; what they are called must be what we call them. */
static int event_types_ok(sqlite3 *db, bool *ok, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(db, "SELECT id,name FROM event_type", &st, e), step = SQLITE_DONE;
    *ok = true;
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        const struct event_info *info = event_info(sqlite3_column_int(st, 0));
        if (info && strcmp(info->name, db_text(st, 1)) != 0)
            *ok = false;
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(db, step, "reading the event types", e);
    sqlite3_finalize(st);
    return rc;
}

static int broken(struct verify *c, int64_t first, int64_t last, int64_t since, int64_t until,
                  const char *why)
{
    struct audit_verdict *v = c->v;
    v->broken = true;
    v->bad_first = first;
    v->bad_last = last;
    v->bad_since_us = since;
    v->bad_until_us = until;
    snprintf(v->why, sizeof v->why, "%s", why);
    return ST_ECORRUPT;
}

static int next_row(struct verify *c, struct err *e)
{
    int step = sqlite3_step(c->rows);
    c->have_row = step == SQLITE_ROW;
    return step == SQLITE_ROW || step == SQLITE_DONE ? ST_OK
                                                     : db_fail(c->db, step, "reading the audit rows", e);
}

/* The current row in the chain's form; false if it refers to a name that is not there. */
static bool read_row(struct verify *c, struct chain_row *r)
{
    sqlite3_stmt *st = c->rows;
    r->id = sqlite3_column_int64(st, 0);
    r->ts_us = sqlite3_column_int64(st, 1);
    r->event = sqlite3_column_int64(st, 2);
    r->severity = sqlite3_column_int64(st, 3);
    r->result = sqlite3_column_int64(st, 4);
    for (int i = 0; i < (int)CHAIN_STRINGS; i++) {
        if (i >= 6) {
            r->s[i].p = db_text(st, 5 + i);
            r->s[i].n = (size_t)sqlite3_column_bytes(st, 5 + i);
            continue;
        }
        int64_t id = sqlite3_column_int64(st, 5 + i);
        if (id < 0 || (id > 0 && (id >= c->names.n || !c->names.v[id].p)))
            return false;
        r->s[i].p = id ? c->names.v[id].p : "";
        r->s[i].n = id ? c->names.v[id].n : 0;
    }
    return true;
}

/* One batch against its seal. ST_ECORRUPT with the verdict filled when they differ. */
static int check_batch(struct verify *c, struct err *e)
{
    sqlite3_stmt *st = c->seals;
    int64_t first = sqlite3_column_int64(st, 0), last = sqlite3_column_int64(st, 1),
            ts_min = sqlite3_column_int64(st, 2), ts_max = sqlite3_column_int64(st, 3);
    uint8_t hash[CHAIN_HASH];
    if (first != c->next)
        return broken(c, c->next, first - 1, 0, ts_min, "a batch is missing: its seal is gone");
    if (last < first || sqlite3_column_bytes(st, 4) != CHAIN_HASH ||
        sqlite3_column_bytes(st, 5) != CHAIN_HASH ||
        memcmp(sqlite3_column_blob(st, 4), c->v->head, CHAIN_HASH) != 0)
        return broken(c, first, last, ts_min, ts_max, "its seal does not continue the chain");
    int rc = chain_begin(&c->chain, c->v->head, first, last, ts_min, ts_max);
    for (; rc == ST_OK && c->next <= last; c->next++) {
        struct chain_row row;
        if (!c->have_row)
            return broken(c, first, last, ts_min, ts_max, "a row is missing");
        if (!read_row(c, &row))
            return broken(c, first, last, ts_min, ts_max, "a row refers to a name that is not there");
        if (row.id != c->next)
            return broken(c, first, last, ts_min, ts_max,
                          row.id < c->next ? "a row was inserted" : "a row is missing");
        rc = chain_add(&c->chain, &row);
        if (rc == ST_OK)
            rc = next_row(c, e);
        c->v->rows++;
    }
    if (rc == ST_OK)
        rc = chain_end(&c->chain, hash);
    if (rc < 0)
        return rc == ST_ENOMEM || !e || e->code != rc
                   ? err_set(e, rc, "audit verify: cannot hash: %s", status_name(rc))
                   : rc;
    if (memcmp(hash, sqlite3_column_blob(st, 5), CHAIN_HASH) != 0)
        return broken(c, first, last, ts_min, ts_max, "its rows or its seal were changed");
    memcpy(c->v->head, hash, CHAIN_HASH);
    c->v->batches++;
    return ST_OK;
}

/* The end of the chain: nothing after the last seal, and the state row agrees. */
static int check_end(struct verify *c, struct err *e)
{
    sqlite3_stmt *st = NULL;
    if (c->have_row)
        return broken(c, sqlite3_column_int64(c->rows, 0), INT64_MAX, 0, 0,
                      "a row was added after the last sealed batch");
    int rc = db_prepare(c->db, "SELECT size,head FROM state", &st, e);
    if (rc < 0)
        return rc;
    bool ok = sqlite3_step(st) == SQLITE_ROW && sqlite3_column_bytes(st, 1) == CHAIN_HASH;
    int64_t size = ok ? sqlite3_column_int64(st, 0) : 0;
    ok = ok && size == c->next - 1 && memcmp(sqlite3_column_blob(st, 1), c->v->head, CHAIN_HASH) == 0;
    sqlite3_finalize(st);
    return ok ? ST_OK
              : broken(c, c->next, size, 0, 0,
                       "the end of the chain is cut off or its state row was changed");
}

/* A checkpoint's head must be the hash of the batch that ends there. */
static int check_checkpoints(struct verify *c, const struct audit_checker *checker, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(
            c->db,
            "SELECT c.size,c.head,c.ts_us,c.key_id,c.sig,s.first,s.last,s.ts_min,s.ts_max,s.hash FROM "
            "checkpoint c "
            "LEFT JOIN seal s ON s.first=(SELECT max(first) FROM seal WHERE first<=c.size) ORDER BY c.size",
            &st, e),
        step = SQLITE_DONE;
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        int64_t size = sqlite3_column_int64(st, 0), first = sqlite3_column_int64(st, 5),
                last = sqlite3_column_int64(st, 6);
        char text[160];
        if (last != size || sqlite3_column_bytes(st, 1) != CHAIN_HASH ||
            sqlite3_column_bytes(st, 9) != CHAIN_HASH ||
            memcmp(sqlite3_column_blob(st, 1), sqlite3_column_blob(st, 9), CHAIN_HASH) != 0)
            rc = broken(c, first, last, sqlite3_column_int64(st, 7), sqlite3_column_int64(st, 8),
                        "a checkpoint says otherwise: the chain was rewritten");
        else if (checker && checker->check &&
                 (chain_checkpoint_text(text, sizeof text, size, sqlite3_column_blob(st, 1),
                                        sqlite3_column_int64(st, 2)) < 0 ||
                  !checker->check(checker->arg, db_text(st, 3), (const uint8_t *)text, strlen(text),
                                  sqlite3_column_blob(st, 4), (size_t)sqlite3_column_bytes(st, 4))))
            rc = broken(c, first, last, sqlite3_column_int64(st, 7), sqlite3_column_int64(st, 8),
                        "the signature of its checkpoint is wrong");
        c->v->checkpoints++;
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(c->db, step, "reading the checkpoints", e);
    sqlite3_finalize(st);
    return rc;
}

static int check_all(struct verify *c, const struct audit_checker *checker, struct err *e)
{
    bool types_ok = true;
    int step = SQLITE_DONE, rc = db_exec(c->db, "BEGIN", e);
    if (rc == ST_OK)
        rc = names_load(c->db, &c->names, e);
    if (rc == ST_OK)
        rc = event_types_ok(c->db, &types_ok, e);
    if (rc == ST_OK && !types_ok)
        rc = broken(c, 1, INT64_MAX, 0, 0, "an event type was renamed in the file");
    if (rc == ST_OK)
        rc = db_prepare(
            c->db,
            "SELECT id,ts_us,event,severity,result,principal,device,node,session,job,operation,error,meta "
            "FROM audit NOT INDEXED ORDER BY id",
            &c->rows, e);
    if (rc == ST_OK)
        rc = db_prepare(c->db, "SELECT first,last,ts_min,ts_max,prev,hash FROM seal ORDER BY first",
                        &c->seals, e);
    if (rc == ST_OK)
        rc = next_row(c, e);
    while (rc == ST_OK && (step = sqlite3_step(c->seals)) == SQLITE_ROW)
        rc = check_batch(c, e);
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(c->db, step, "reading the seals", e);
    if (rc == ST_OK)
        rc = check_end(c, e);
    return rc == ST_OK ? check_checkpoints(c, checker, e) : rc;
}

int audit_verify(const char *path, const struct audit_checker *checker, struct audit_verdict *v,
                 struct err *e)
{
    struct verify c = {.v = v, .next = 1};
    memset(v, 0, sizeof *v);
    int rc = db_open_ro(&c.db, path, &audit_db_kind, e);
    if (rc == ST_OK && chain_init(&c.chain) < 0)
        rc = err_set(e, ST_ENOMEM, "audit verify: out of memory");
    if (rc == ST_OK)
        rc = check_all(&c, checker, e);
    if (v->broken)
        rc = err_reason(
            e, ST_ECORRUPT, "CHAIN_BROKEN",
            "%s: the audit chain is broken at rows %lld to %lld: %s; everything before row %lld is as it was "
            "written; keep the file and compare it with a backup or an exported checkpoint",
            path, (long long)v->bad_first, (long long)v->bad_last, v->why, (long long)v->bad_first);
    sqlite3_finalize(c.rows);
    sqlite3_finalize(c.seals);
    chain_fini(&c.chain);
    names_free(&c.names);
    db_close(c.db);
    return rc;
}
