/*
 * Recomputing the chain from the rows as they stand: the sealed files in their order, then the live one. Each
 * file is read in one transaction, so a live writer does not disturb it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/audit/audit_priv.h"

#define NAME_ID_MAX (1ll << 26)

struct names {
    struct name {
        const char *p;
        size_t n;
    } * v;
    int64_t n;
    struct name_block {
        struct name_block *next;
        size_t used;
        char text[];
    } * blocks;
};

struct verify {
    const struct audit_verify_opts *o;
    struct audit_verdict *v;
    struct chain chain;
    int64_t next;         /* id the next row must have; 0: nothing was looked at yet */
    size_t witness;       /* next of o->witnessed */
    int64_t witnessed_to; /* rows up to here are vouched for by a witness */
    int64_t sealed_n;     /* the last segment whose sealed file was looked at */
    /* the file that is being read */
    const char *path;
    sqlite3 *db;
    sqlite3_stmt *rows, *seals;
    struct names names;
    bool have_row; /* `rows` stands on a row that no batch has taken yet */
};

static void names_free(struct names *s)
{
    while (s->blocks) {
        struct name_block *b = s->blocks;
        s->blocks = b->next;
        free(b);
    }
    free(s->v);
    *s = (struct names){0};
}

static const char *names_keep(struct names *s, const char *p, size_t n)
{
    const size_t cap = 1u << 20;
    if (!s->blocks || cap - s->blocks->used < n) {
        struct name_block *b = malloc(sizeof *b + (n > cap ? n : cap));
        if (!b)
            return NULL;
        *b = (struct name_block){s->blocks, 0};
        s->blocks = b;
    }
    char *at = s->blocks->text + s->blocks->used;
    memcpy(at, p, n);
    s->blocks->used += n;
    return at;
}

/* All names in memory: the rows hold their numbers. */
static int names_load(sqlite3 *db, struct names *s, struct err *e)
{
    int64_t max = 0;
    sqlite3_stmt *st = NULL;
    int rc = db_int(db, "SELECT max(id) FROM name", 0, &max, e);
    if (rc < 0)
        return rc;
    if (max < 0 || max > NAME_ID_MAX)
        return err_set(e, ST_ECORRUPT, "audit.db: the name table holds a number that strata never gives");
    s->v = calloc((size_t)max + 1, sizeof *s->v);
    if (!s->v)
        return err_set(e, ST_ENOMEM, "audit verify: out of memory for %lld names", (long long)max);
    s->n = max + 1;
    rc = db_prepare(db, "SELECT id,text FROM name WHERE id>=0", &st, e);
    int step = SQLITE_DONE;
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        int64_t id = sqlite3_column_int64(st, 0);
        const char *text = db_text(st, 1);
        size_t n = (size_t)sqlite3_column_bytes(st, 1);
        if (id <= 0 || id >= s->n)
            continue; /* number 0 means absent, whatever somebody put there */
        s->v[id].p = names_keep(s, text, n);
        s->v[id].n = n;
        if (!s->v[id].p)
            rc = err_set(e, ST_ENOMEM, "audit verify: out of memory");
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

/* Was this batch's end seen elsewhere, and was it the same then? */
static int check_witness(struct verify *c, int64_t first, int64_t last, const int64_t span[2],
                         const uint8_t hash[CHAIN_HASH])
{
    for (; c->witness < c->o->n_witnessed; c->witness++) {
        const struct audit_head *h = &c->o->witnessed[c->witness];
        if (h->size > last)
            break;
        if (h->size < first)
            continue; /* of rows that are not looked at */
        if (h->size != last || memcmp(h->head, hash, CHAIN_HASH) != 0)
            return broken(c, c->witnessed_to ? c->witnessed_to + 1 : first, h->size, span[0], span[1],
                          "a witness saw another head: the chain was rewritten");
        c->witnessed_to = last;
    }
    return ST_OK;
}

static int hash_failed(int rc, struct err *e)
{
    return rc == ST_ENOMEM || !e || e->code != rc
               ? err_set(e, rc, "audit verify: cannot hash: %s", status_name(rc))
               : rc;
}

/* One batch against its seal. ST_ECORRUPT with the verdict filled when they differ. */
static int check_batch(struct verify *c, struct err *e)
{
    sqlite3_stmt *st = c->seals;
    int64_t first = sqlite3_column_int64(st, 0), last = sqlite3_column_int64(st, 1);
    const int64_t span[2] = {sqlite3_column_int64(st, 2), sqlite3_column_int64(st, 3)};
    uint8_t hash[CHAIN_HASH];
    if (first != c->next)
        return broken(c, c->next, first - 1, 0, span[0], "a batch is missing: its seal is gone");
    if (last < first || sqlite3_column_bytes(st, 4) != CHAIN_HASH ||
        sqlite3_column_bytes(st, 5) != CHAIN_HASH ||
        memcmp(sqlite3_column_blob(st, 4), c->v->head, CHAIN_HASH) != 0)
        return broken(c, first, last, span[0], span[1], "its seal does not continue the chain");
    int rc = chain_begin(&c->chain, c->v->head, first, last, span[0], span[1]);
    for (; rc == ST_OK && c->next <= last; c->next++) {
        struct chain_row row;
        if (!c->have_row)
            return broken(c, first, last, span[0], span[1], "a row is missing");
        if (!read_row(c, &row))
            return broken(c, first, last, span[0], span[1], "a row refers to a name that is not there");
        if (row.id != c->next)
            return broken(c, first, last, span[0], span[1],
                          row.id < c->next ? "a row was inserted" : "a row is missing");
        rc = chain_add(&c->chain, &row);
        if (rc == ST_OK)
            rc = next_row(c, e);
        c->v->rows++;
    }
    if (rc == ST_OK)
        rc = chain_end(&c->chain, hash);
    if (rc < 0)
        return hash_failed(rc, e);
    if (memcmp(hash, sqlite3_column_blob(st, 5), CHAIN_HASH) != 0)
        return broken(c, first, last, span[0], span[1], "its rows or its seal were changed");
    memcpy(c->v->head, hash, CHAIN_HASH);
    c->v->batches++;
    return check_witness(c, first, last, span, hash);
}

/* The end of a file: its state row agrees with the last batch. */
static int check_end(struct verify *c, struct err *e)
{
    sqlite3_stmt *st = NULL;
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

static bool signature_ok(const struct verify *c, sqlite3_stmt *st)
{
    const struct audit_checker *k = c->o->checker;
    char text[160];
    return !k || !k->check ||
           (chain_checkpoint_text(text, sizeof text, sqlite3_column_int64(st, 0), sqlite3_column_blob(st, 1),
                                  sqlite3_column_int64(st, 2)) == ST_OK &&
            k->check(k->arg, db_text(st, 3), (const uint8_t *)text, strlen(text), sqlite3_column_blob(st, 4),
                     (size_t)sqlite3_column_bytes(st, 4)));
}

/* A checkpoint's head must be the hash of the batch that ends there; `from` is the first row looked at here.
 */
static int check_checkpoints(struct verify *c, int64_t from, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(
            c->db,
            "SELECT c.size,c.head,c.ts_us,c.key_id,c.sig,s.first,s.last,s.ts_min,s.ts_max,s.hash FROM "
            "checkpoint c LEFT JOIN seal s ON s.first=(SELECT max(first) FROM seal WHERE first<=c.size) "
            "WHERE "
            "c.size>=?1 ORDER BY c.size",
            &st, e),
        step = SQLITE_DONE;
    if (rc == ST_OK)
        sqlite3_bind_int64(st, 1, from);
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        int64_t size = sqlite3_column_int64(st, 0), first = sqlite3_column_int64(st, 5),
                last = sqlite3_column_int64(st, 6), since = sqlite3_column_int64(st, 7),
                until = sqlite3_column_int64(st, 8);
        if (last != size || sqlite3_column_bytes(st, 1) != CHAIN_HASH ||
            sqlite3_column_bytes(st, 9) != CHAIN_HASH ||
            memcmp(sqlite3_column_blob(st, 1), sqlite3_column_blob(st, 9), CHAIN_HASH) != 0)
            rc = broken(c, first, last, since, until, "a checkpoint says otherwise: the chain was rewritten");
        else if (!signature_ok(c, st))
            rc = broken(c, first, last, since, until, "the signature of its checkpoint is wrong");
        c->v->checkpoints++;
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(c->db, step, "reading the checkpoints", e);
    sqlite3_finalize(st);
    return rc;
}

/* ---- segments ---- */

/* The chain does not begin with row 1 here: a checkpoint must vouch for what comes before. */
static int check_anchor(struct verify *c, const struct segment *s, struct err *e)
{
    sqlite3_stmt *st = NULL;
    static const uint8_t zero[CHAIN_HASH];
    if (s->first == 1)
        return memcmp(s->prev, zero, CHAIN_HASH) == 0
                   ? ST_OK
                   : broken(c, 1, 1, 0, 0, "the beginning of the chain was changed");
    int rc = db_prepare(c->db, "SELECT size,head,ts_us,key_id,sig FROM checkpoint WHERE size=?1", &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_int64(st, 1, s->first - 1);
    bool ok = sqlite3_step(st) == SQLITE_ROW && sqlite3_column_bytes(st, 1) == CHAIN_HASH &&
              memcmp(sqlite3_column_blob(st, 1), s->prev, CHAIN_HASH) == 0 && signature_ok(c, st);
    sqlite3_finalize(st);
    return ok ? ST_OK
              : broken(c, s->first, s->first, s->ts_min, s->ts_min,
                       "no checkpoint vouches for the rows before the first that is here");
}

/* Where --since begins: the first batch that reaches that time. *start 0: none in this segment. */
static int find_since(struct verify *c, const struct segment *s, int64_t *start, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(
        c->db,
        "SELECT first,prev FROM seal WHERE first=(SELECT min(first) FROM seal WHERE ts_max>=?1 AND "
        "first>=?2)",
        &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_int64(st, 1, c->o->since_us);
    sqlite3_bind_int64(st, 2, s->first);
    *start = 0;
    if (sqlite3_step(st) == SQLITE_ROW && sqlite3_column_bytes(st, 1) == CHAIN_HASH) {
        *start = sqlite3_column_int64(st, 0);
        memcpy(c->v->head, sqlite3_column_blob(st, 1), CHAIN_HASH);
    }
    sqlite3_finalize(st);
    return ST_OK;
}

/* Sets where the chain is taken up. */
static int begin_chain(struct verify *c, const struct segment *s, struct err *e)
{
    int64_t start = s->first;
    int rc = ST_OK;
    memcpy(c->v->head, s->prev, CHAIN_HASH);
    if (c->o->since_us)
        rc = find_since(c, s, &start, e);
    else
        rc = check_anchor(c, s, e);
    if (rc == ST_OK && start)
        c->v->first = c->next = start;
    return rc;
}

static int open_rows(struct verify *c, const struct segment *s, struct err *e)
{
    char sql[256];
    sqlite3_finalize(c->rows);
    sqlite3_finalize(c->seals);
    c->rows = c->seals = NULL;
    /* From the segment's first row on, or from where --since begins; a row before it is one too many. */
    snprintf(sql, sizeof sql, "SELECT " SEGMENT_COLUMNS " FROM audit_%06lld NOT INDEXED %s ORDER BY id",
             (long long)s->slot, c->next > s->first ? "WHERE id>=?1" : "");
    int rc = db_prepare(c->db, sql, &c->rows, e);
    if (rc == ST_OK)
        rc = db_prepare(
            c->db,
            "SELECT first,last,ts_min,ts_max,prev,hash FROM seal WHERE first>=?1 AND first<=?2 ORDER "
            "BY first",
            &c->seals, e);
    if (rc < 0)
        return rc;
    if (c->next > s->first)
        sqlite3_bind_int64(c->rows, 1, c->next);
    sqlite3_bind_int64(c->seals, 1, c->next);
    sqlite3_bind_int64(c->seals, 2, s->last ? s->last : INT64_MAX);
    return next_row(c, e);
}

static int check_segment(struct verify *c, const struct segment *s, struct err *e)
{
    int step = SQLITE_DONE, rc = ST_OK;
    if (!c->next) {
        rc = begin_chain(c, s, e);
        if (rc < 0 || !c->next)
            return rc;
    } else if (s->first != c->next || memcmp(s->prev, c->v->head, CHAIN_HASH) != 0) {
        return broken(c, c->next, s->first > c->next ? s->first - 1 : c->next, 0, s->ts_min,
                      "the list of segments does not continue the chain");
    }
    rc = open_rows(c, s, e);
    while (rc == ST_OK && (step = sqlite3_step(c->seals)) == SQLITE_ROW)
        rc = check_batch(c, e);
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(c->db, step, "reading the seals", e);
    if (rc < 0)
        return rc;
    if (c->have_row)
        return broken(c, sqlite3_column_int64(c->rows, 0), INT64_MAX, 0, 0,
                      "a row was added after the last sealed batch");
    if (s->last && (c->next != s->last + 1 || memcmp(c->v->head, s->head, CHAIN_HASH) != 0))
        return broken(c, c->next, s->last, 0, s->ts_max, "the end of a segment is missing");
    return ST_OK;
}

static void close_file(struct verify *c)
{
    sqlite3_finalize(c->rows);
    sqlite3_finalize(c->seals);
    c->rows = c->seals = NULL;
    names_free(&c->names);
    db_close(c->db);
    c->db = NULL;
}

static int open_file(struct verify *c, const char *path, struct err *e)
{
    bool types_ok = true;
    c->path = path;
    int rc = db_open_ro(&c->db, path, &audit_db_kind, e);
    if (rc == ST_OK)
        rc = db_exec(c->db, "BEGIN", e);
    if (rc == ST_OK)
        rc = names_load(c->db, &c->names, e);
    if (rc == ST_OK)
        rc = event_types_ok(c->db, &types_ok, e);
    if (rc == ST_OK && !types_ok)
        rc = broken(c, c->next ? c->next : 1, INT64_MAX, 0, 0, "an event type was renamed in the file");
    return rc;
}

/* Rows that no segment has would be seen by the views and covered by no hash. */
static int check_unused(struct verify *c, struct err *e)
{
    int64_t version = 0, slot = 0, id = 0;
    int rc = db_int(c->db, "PRAGMA user_version", 0, &version, e);
    while (rc == ST_OK && version >= SEGMENT_SLOTS_SINCE) {
        char sql[120];
        snprintf(sql, sizeof sql,
                 "SELECT min(n) FROM slot WHERE n>%lld AND n NOT IN (SELECT slot FROM segment WHERE file='')",
                 (long long)slot);
        rc = db_int(c->db, sql, 0, &slot, e);
        if (rc < 0 || !slot)
            break;
        snprintf(sql, sizeof sql, "SELECT min(id) FROM audit_%06lld", (long long)slot);
        rc = db_int(c->db, sql, INT64_MIN, &id, e);
        if (rc == ST_OK && id != INT64_MIN)
            rc = broken(c, id, id, 0, 0, "a row lies in a table that no segment uses");
    }
    return rc;
}

/* The segments that lie in the open file, its end and its checkpoints. */
static int check_file(struct verify *c, const struct segment *v, size_t n, struct err *e)
{
    int rc = ST_OK;
    int64_t from = 0;
    for (size_t i = 0; rc == ST_OK && i < n; i++) {
        if (v[i].file[0])
            continue;
        rc = check_segment(c, &v[i], e);
        if (!from)
            from = c->next ? v[i].first : 0;
    }
    if (rc == ST_OK && c->next)
        rc = check_end(c, e);
    if (rc == ST_OK)
        rc = check_unused(c, e);
    if (from < c->v->first)
        from = c->v->first;
    return rc == ST_OK && from ? check_checkpoints(c, from, e) : rc;
}

/* A sealed file beside: as it was when it was sealed, and its chain continues ours. */
static int check_sealed(struct verify *c, const char *path, const struct segment *s, struct err *e)
{
    char file[1024];
    uint8_t sha[CHAIN_HASH];
    uint64_t bytes;
    struct segment *v = NULL;
    size_t n = 0;
    if (segment_path(file, path, s->file) < 0)
        return err_set(e, ST_ELIMIT, "%s: the path of its sealed segments is too long", path);
    int rc = file_sha256(file, sha, &bytes, e);
    if (rc < 0)
        return broken(c, s->first, s->last, s->ts_min, s->ts_max, "its sealed file is missing or unreadable");
    c->v->files++;
    rc = open_file(c, file, e);
    if (rc == ST_OK)
        rc = segment_list(c->db, &v, &n, e);
    if (rc == ST_OK &&
        (n != 1 || v[0].n != s->n || v[0].first != s->first || v[0].last != s->last ||
         memcmp(v[0].prev, s->prev, CHAIN_HASH) != 0 || memcmp(v[0].head, s->head, CHAIN_HASH)))
        rc = broken(c, s->first, s->last, s->ts_min, s->ts_max, "its sealed file is another one");
    if (rc == ST_OK)
        rc = check_file(c, v, n, e);
    close_file(c);
    free(v);
    if (rc == ST_OK && memcmp(sha, s->sha256, CHAIN_HASH) != 0)
        rc = broken(c, s->first, s->last, s->ts_min, s->ts_max,
                    "its sealed file was changed beside the rows: an index, a name or a count");
    /* A file that SQLite cannot read any more is a changed file. */
    return rc == ST_ECORRUPT && !c->v->broken
               ? broken(c, s->first, s->last, s->ts_min, s->ts_max, "its sealed file is damaged")
               : rc;
}

static int check_list(struct verify *c, const struct segment *v, size_t n)
{
    bool gone = true; /* only the oldest may be retired */
    for (size_t i = 0; i < n; i++) {
        gone = gone && v[i].retired;
        if (v[i].retired && !gone)
            return broken(c, v[i].first, v[i].last, v[i].ts_min, v[i].ts_max,
                          "a segment is marked as retired");
        if (i && (v[i].n != v[i - 1].n + 1 || v[i].first != v[i - 1].last + 1))
            return broken(c, v[i - 1].last + 1, v[i].first - 1, 0, 0, "a segment is gone from the list");
    }
    return ST_OK;
}

/* --since leaves out those that ended before. */
static bool sealed_wanted(const struct verify *c, const struct segment *s)
{
    return s->n > c->sealed_n && s->file[0] && !s->retired && !c->o->alone &&
           !(c->o->since_us && s->ts_max < c->o->since_us);
}

/* The sealed files that were not looked at yet. The first that is looked at is anchored by the live file's
 * checkpoint, so that one is opened for it. */
static int check_sealed_files(struct verify *c, const char *path, struct err *e)
{
    struct segment *v = NULL;
    size_t n = 0;
    sqlite3 *db = NULL;
    int rc = db_open_ro(&db, path, &audit_db_kind, e);
    if (rc == ST_OK)
        rc = segment_list(db, &v, &n, e);
    db_close(db);
    if (rc == ST_OK)
        rc = check_list(c, v, n);
    for (size_t i = 0; rc == ST_OK && i < n; i++) {
        if (!sealed_wanted(c, &v[i]))
            continue;
        if (!c->next && !c->o->since_us) {
            rc = open_file(c, path, e);
            if (rc == ST_OK)
                rc = begin_chain(c, &v[i], e);
            close_file(c);
        }
        if (rc == ST_OK)
            rc = check_sealed(c, path, &v[i], e);
        c->sealed_n = v[i].n;
    }
    free(v);
    return rc;
}

/* Opens the live file and lists its segments, in one transaction. A segment that was sealed since the files
 * were looked at is looked at first: the store goes on while we read. */
static int settle(struct verify *c, const char *path, struct segment **v, size_t *n, struct err *e)
{
    for (;;) {
        bool more = false;
        int rc = check_sealed_files(c, path, e);
        if (rc == ST_OK)
            rc = open_file(c, path, e);
        if (rc == ST_OK)
            rc = segment_list(c->db, v, n, e);
        for (size_t i = 0; rc == ST_OK && i < *n; i++)
            more = more || sealed_wanted(c, &(*v)[i]);
        if (!more)
            return rc;
        close_file(c);
        free(*v);
        *v = NULL;
    }
}

static int check_everything(struct verify *c, const char *path, struct err *e)
{
    struct segment *v = NULL;
    size_t n = 0;
    int rc = settle(c, path, &v, &n, e);
    if (rc == ST_OK)
        rc = check_file(c, v, n, e);
    close_file(c);
    free(v);
    if (rc == ST_OK && c->witness < c->o->n_witnessed)
        rc = broken(c, c->next, c->o->witnessed[c->witness].size, 0, 0,
                    "a witness saw rows beyond the end: it was cut off");
    return rc;
}

int audit_verify(const char *path, const struct audit_verify_opts *opts, struct audit_verdict *v,
                 struct err *e)
{
    static const struct audit_verify_opts none;
    struct verify c = {.o = opts ? opts : &none, .v = v};
    memset(v, 0, sizeof *v);
    int rc = chain_init(&c.chain) < 0 ? err_set(e, ST_ENOMEM, "audit verify: out of memory")
                                      : check_everything(&c, path, e);
    if (v->broken)
        rc = err_reason(
            e, ST_ECORRUPT, "CHAIN_BROKEN",
            "%s: the audit chain is broken at rows %lld to %lld: %s; everything before row %lld is as it was "
            "written; keep the file and compare it with a backup or an exported checkpoint",
            path, (long long)v->bad_first, (long long)v->bad_last, v->why, (long long)v->bad_first);
    close_file(&c);
    chain_fini(&c.chain);
    return rc;
}
