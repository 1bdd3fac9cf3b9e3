/* Queries on read-only connections of their own, segment by segment: in the live file, then in the sealed
 * ones. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

#define LIMIT_DEFAULT 1000u
#define LIMIT_MAX 100000u
#define NAMES 5u

#define CACHED 64u
struct cache { /* prepared statements of one connection, by their text */
    struct {
        char *sql;
        sqlite3_stmt *st;
    } v[CACHED];
    unsigned next;
};

struct query {
    const struct audit_filter *f;
    struct cache *cache; /* NULL: nothing is kept */
    int (*fn)(void *arg, const struct audit_event *e);
    void *arg;
    unsigned *left;
    /* the file that is being read */
    sqlite3 *db;
    int64_t name[NAMES]; /* numbers of principal, node, device, job, session; 0 = not asked for */
    int64_t low, high;   /* ids that can match the times */
    bool none;           /* a name that is not in this file: nothing can match */
};

static int check_filter(const struct audit_filter *f, struct err *e)
{
    if (f->severity_min < 0 || f->severity_min > EVENT_CRITICAL || f->result > EVENT_DENIED)
        return err_set(e, ST_EINVAL, "audit query: severity or result is out of range");
    if (f->since_us && f->until_us && f->until_us <= f->since_us)
        return err_set(e, ST_EINVAL, "audit query: `until` is not after `since`, so no row could match");
    if (f->type) {
        size_t n = strlen(f->type);
        if (n && f->type[n - 1] != '*' && f->type[n - 1] != '.' && !event_by_name(f->type))
            return err_set(e, ST_EINVAL,
                           "audit query: there is no event type \"%.60s\"; a group is written \"job.*\"",
                           f->type);
    }
    return ST_OK;
}

static int bound_int(sqlite3 *db, const char *sql, int64_t arg, int64_t fallback, int64_t *out, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(db, sql, &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_int64(st, 1, arg);
    int step = sqlite3_step(st);
    *out = step == SQLITE_ROW && sqlite3_column_type(st, 0) != SQLITE_NULL ? sqlite3_column_int64(st, 0)
                                                                           : fallback;
    rc = step == SQLITE_ROW || step == SQLITE_DONE ? ST_OK : db_fail(db, step, "reading", e);
    sqlite3_finalize(st);
    return rc;
}

/* Names become numbers, and times ids, which every index carries. */
static int resolve(struct query *q, struct err *e)
{
    const struct audit_filter *f = q->f;
    const char *text[NAMES] = {f->principal, f->node, f->device, f->job, f->session};
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(q->db, "SELECT id FROM name WHERE text=?1", &st, e);
    q->none = false;
    for (unsigned i = 0; rc == ST_OK && i < NAMES; i++) {
        q->name[i] = 0;
        if (!text[i])
            continue;
        sqlite3_bind_text(st, 1, text[i], -1, SQLITE_STATIC);
        int step = sqlite3_step(st);
        if (step == SQLITE_ROW)
            q->name[i] = sqlite3_column_int64(st, 0);
        else if (step == SQLITE_DONE)
            q->none = true;
        else
            rc = db_fail(q->db, step, "looking a name up", e);
        sqlite3_reset(st);
    }
    sqlite3_finalize(st);
    q->low = 1;
    q->high = INT64_MAX;
    if (rc == ST_OK && f->since_us)
        rc = bound_int(q->db, "SELECT min(first) FROM seal WHERE ts_max>=?1", f->since_us, INT64_MAX, &q->low,
                       e);
    if (rc == ST_OK && f->until_us)
        rc = bound_int(q->db, "SELECT max(last) FROM seal WHERE ts_min<?1", f->until_us, 0, &q->high, e);
    if (f->after_id && f->descending && f->after_id - 1 < q->high)
        q->high = f->after_id - 1;
    if (f->after_id && !f->descending && f->after_id + 1 > q->low)
        q->low = f->after_id + 1;
    return rc;
}

/* Left to itself SQLite prefers the range of ids to the index, and reads every row of it. */
static const char *index_hint(const struct audit_filter *f)
{
    return f->principal                     ? "principal"
           : f->job                         ? "job"
           : f->severity_min >= EVENT_ERROR ? "critical"
           : f->result == EVENT_DENIED      ? "denied"
                                            : "";
}

/* Parameter numbers are fixed, so binding does not depend on what is there. */
static int build_sql(const struct query *q, const struct segment *s, struct buf *sql)
{
    static const char *const columns[NAMES] = {"principal", "node", "device", "job", "session"};
    const struct audit_filter *f = q->f;
    const char *hint = index_hint(f);
    long long n = s->slot;
    int rc =
        buf_printf(sql,
                   "SELECT a.id,a.ts_us,a.event,a.severity,a.result,"
                   "(SELECT text FROM name WHERE id=a.principal),(SELECT text FROM name WHERE id=a.device),"
                   "(SELECT text FROM name WHERE id=a.node),(SELECT text FROM name WHERE id=a.session),"
                   "(SELECT text FROM name WHERE id=a.job),(SELECT text FROM name WHERE id=a.operation),"
                   "a.error,a.meta FROM audit_%06lld a",
                   n);
    if (rc >= 0 && *hint)
        rc = buf_printf(sql, " INDEXED BY audit_%06lld_%s", n, hint);
    if (rc >= 0)
        rc = buf_printf(sql, " WHERE a.id BETWEEN ?1 AND ?2");
    for (unsigned i = 0; rc >= 0 && i < NAMES; i++)
        if (q->name[i])
            rc = buf_printf(sql, " AND %sa.%s=?%u%s", strcmp(columns[i], hint) == 0 ? "" : "+", columns[i],
                            3 + i, i == 3 ? " AND a.job<>0" : "");
    if (rc >= 0 && f->type) {
        size_t len = strlen(f->type);
        bool prefix = len && (f->type[len - 1] == '*' || f->type[len - 1] == '.');
        rc = buf_printf(sql, " AND +a.event IN (SELECT id FROM event_type WHERE %s)",
                        prefix ? "substr(name,1,length(?8))=?8" : "name=?8");
    }
    /* Without an index of its own the time is a filter: the ids do the narrowing. */
    const char *no_index = *hint == 'c' || *hint == 'd' ? "" : "+";
    if (rc >= 0 && f->since_us)
        rc = buf_printf(sql, " AND %sa.ts_us>=?9", no_index);
    if (rc >= 0 && f->until_us)
        rc = buf_printf(sql, " AND %sa.ts_us<?10", no_index);
    if (rc >= 0 && f->severity_min > 0) /* SQLite takes the partial index only for its very condition */
        rc = buf_printf(sql, " AND a.severity>=%d%s", f->severity_min,
                        f->severity_min > EVENT_ERROR ? " AND a.severity>=3" : "");
    if (rc >= 0 && f->result >= 0)
        rc = buf_printf(sql, " AND a.result=%d", f->result);
    if (rc >= 0 && f->text)
        rc = buf_printf(sql, " AND (a.meta LIKE ?11 ESCAPE '\\' OR a.error LIKE ?11 ESCAPE '\\')");
    return rc >= 0 ? buf_printf(sql, " ORDER BY a.id%s LIMIT ?12", f->descending ? " DESC" : "") : rc;
}

/* The words as a LIKE pattern in which only our own percent signs are special. */
static int like_pattern(const char *text, struct buf *out)
{
    int rc = buf_append(out, "%", 1);
    for (const char *p = text; *p && rc == ST_OK; p++) {
        if (*p == '%' || *p == '_' || *p == '\\')
            rc = buf_append(out, "\\", 1);
        if (rc == ST_OK)
            rc = buf_append(out, p, 1);
    }
    return rc == ST_OK ? buf_append(out, "%", 1) : rc;
}

static int bind_filter(const struct query *q, sqlite3_stmt *st)
{
    const struct audit_filter *f = q->f;
    struct buf like = {0};
    int params = sqlite3_bind_parameter_count(st), rc = ST_OK;
    sqlite3_bind_int64(st, 1, q->low);
    sqlite3_bind_int64(st, 2, q->high);
    for (int i = 0; i < (int)NAMES; i++)
        if (q->name[i] && 3 + i <= params)
            sqlite3_bind_int64(st, 3 + i, q->name[i]);
    if (f->type) {
        size_t n = strlen(f->type);
        sqlite3_bind_text(st, 8, f->type, (int)(n && f->type[n - 1] == '*' ? n - 1 : n), SQLITE_STATIC);
    }
    sqlite3_bind_int64(st, 9, f->since_us);
    sqlite3_bind_int64(st, 10, f->until_us);
    if (f->text) {
        rc = like_pattern(f->text, &like);
        if (rc == ST_OK)
            sqlite3_bind_text(st, 11, buf_cstr(&like), -1, SQLITE_TRANSIENT);
        buf_fini(&like);
    }
    sqlite3_bind_int64(st, 12, *q->left);
    return rc;
}

/* A statement of this text, from the cache if it is there; `done` gives it back. */
static int statement(struct query *q, const char *sql, sqlite3_stmt **st, struct err *e)
{
    struct cache *c = q->cache;
    for (unsigned i = 0; c && i < CACHED && c->v[i].sql; i++)
        if (strcmp(c->v[i].sql, sql) == 0) {
            *st = c->v[i].st;
            return ST_OK;
        }
    int rc = db_prepare(q->db, sql, st, e);
    char *text = rc == ST_OK && c ? strdup(sql) : NULL;
    if (text) {
        unsigned i = c->next++ % CACHED;
        free(c->v[i].sql);
        sqlite3_finalize(c->v[i].st);
        c->v[i].sql = text;
        c->v[i].st = *st;
    }
    return rc;
}

static void done(struct query *q, sqlite3_stmt *st)
{
    for (unsigned i = 0; st && q->cache && i < CACHED; i++)
        if (q->cache->v[i].st == st) {
            sqlite3_reset(st);
            sqlite3_clear_bindings(st);
            return;
        }
    sqlite3_finalize(st);
}

static int query_segment(struct query *q, const struct segment *s, struct err *e)
{
    sqlite3_stmt *st = NULL;
    struct buf sql = {0};
    int step = SQLITE_DONE;
    if (q->low > (s->last ? s->last : INT64_MAX) || q->high < s->first || q->low > q->high)
        return ST_OK;
    int rc = build_sql(q, s, &sql) < 0 ? err_set(e, ST_ENOMEM, "audit query: out of memory")
                                       : statement(q, buf_cstr(&sql), &st, e);
    if (rc == ST_OK && bind_filter(q, st) < 0)
        rc = err_set(e, ST_ENOMEM, "audit query: out of memory");
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        struct audit_event ev = {.id = sqlite3_column_int64(st, 0),
                                 .time_us = sqlite3_column_int64(st, 1),
                                 .type = sqlite3_column_int(st, 2),
                                 .severity = sqlite3_column_int(st, 3),
                                 .result = sqlite3_column_int(st, 4),
                                 .principal = db_text(st, 5),
                                 .device = db_text(st, 6),
                                 .node = db_text(st, 7),
                                 .session = db_text(st, 8),
                                 .job = db_text(st, 9),
                                 .operation = db_text(st, 10),
                                 .error = db_text(st, 11),
                                 .meta = db_text(st, 12)};
        --*q->left;
        rc = q->fn(q->arg, &ev);
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(q->db, step, "querying the audit rows", e);
    done(q, st);
    buf_fini(&sql);
    return rc;
}

/* Begins one consistent look at the open file. */
static int look_at(struct query *q, struct segment **v, size_t *n, struct err *e)
{
    int rc = db_exec(q->db, "BEGIN", e);
    if (rc == ST_OK)
        rc = segment_list(q->db, v, n, e);
    return rc == ST_OK ? resolve(q, e) : rc;
}

/* The segments that lie in the open file, in the direction asked for. */
static int query_here(struct query *q, const struct segment *v, size_t n, struct err *e)
{
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i < n && *q->left && !q->none; i++) {
        const struct segment *s = &v[q->f->descending ? n - 1 - i : i];
        if (!s->file[0])
            rc = query_segment(q, s, e);
    }
    return rc;
}

static int query_sealed(struct query q, const char *path, const struct segment *v, size_t n, struct err *e)
{
    const struct audit_filter *f = q.f;
    char file[1024];
    int rc = ST_OK;
    for (size_t i = 0; rc == ST_OK && i < n && *q.left; i++) {
        const struct segment *s = &v[f->descending ? n - 1 - i : i];
        struct segment *in = NULL;
        size_t n_in = 0;
        if (!s->file[0] || s->retired || (f->since_us && s->ts_max < f->since_us) ||
            (f->until_us && s->ts_min >= f->until_us) ||
            (f->after_id && (f->descending ? s->first >= f->after_id : s->last <= f->after_id)))
            continue;
        q.db = NULL;
        q.cache = NULL;
        rc = segment_path(file, path, s->file) < 0
                 ? err_set(e, ST_ELIMIT, "%s: the path of its sealed segments is too long", path)
                 : db_open_ro(&q.db, file, &audit_db_kind, e);
        if (rc == ST_OK)
            rc = look_at(&q, &in, &n_in, e);
        if (rc == ST_OK)
            rc = query_here(&q, in, n_in, e);
        free(in);
        db_close(q.db);
    }
    return rc;
}

struct audit_reader {
    sqlite3 *db;
    struct cache cache;
    char path[1024];
};

int audit_reader_open(struct audit_reader **out, const char *path, struct err *e)
{
    struct audit_reader *r = calloc(1, sizeof *r);
    if (!r || !str_copy(r->path, sizeof r->path, path)) {
        free(r);
        return err_set(e, ST_ENOMEM, "%s: no memory to read it, or the path is too long", path);
    }
    int rc = db_open_ro(&r->db, path, &audit_db_kind, e);
    if (rc < 0) {
        free(r);
        return rc;
    }
    *out = r;
    return ST_OK;
}

void audit_reader_close(struct audit_reader *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < CACHED; i++) {
        free(r->cache.v[i].sql);
        sqlite3_finalize(r->cache.v[i].st);
    }
    db_close(r->db);
    free(r);
}

int audit_reader_query(struct audit_reader *r, const struct audit_filter *f,
                       int (*fn)(void *arg, const struct audit_event *e), void *arg, struct err *e)
{
    unsigned left = f->limit ? f->limit : LIMIT_DEFAULT;
    struct query q = {.f = f, .fn = fn, .arg = arg, .left = &left, .cache = &r->cache, .db = r->db};
    struct segment *v = NULL;
    size_t n = 0;
    if (left > LIMIT_MAX)
        left = LIMIT_MAX;
    int rc = check_filter(f, e);
    if (rc == ST_OK)
        rc = look_at(&q, &v, &n, e);
    /* One look at the live file throughout, so a segment that is sealed meanwhile is read exactly once. */
    if (rc == ST_OK && !f->descending)
        rc = query_sealed(q, r->path, v, n, e);
    if (rc == ST_OK)
        rc = query_here(&q, v, n, e);
    if (rc == ST_OK && f->descending)
        rc = query_sealed(q, r->path, v, n, e);
    free(v);
    if (!sqlite3_get_autocommit(r->db))
        sqlite3_exec(r->db, "COMMIT", NULL, NULL, NULL); /* a reader that stays must not hold the WAL */
    return rc;
}

int audit_query(const char *path, const struct audit_filter *f,
                int (*fn)(void *arg, const struct audit_event *e), void *arg, struct err *e)
{
    struct audit_reader *r = NULL;
    int rc = check_filter(f, e);
    if (rc == ST_OK)
        rc = audit_reader_open(&r, path, e);
    if (rc < 0)
        return rc;
    rc = audit_reader_query(r, f, fn, arg, e);
    audit_reader_close(r);
    return rc;
}
