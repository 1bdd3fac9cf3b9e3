/* Segments: their list, the tables of rows they take in turn, and the views over those. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/audit/audit_priv.h"

static void take_blob(sqlite3_stmt *st, int col, uint8_t out[CHAIN_HASH])
{
    memset(out, 0, CHAIN_HASH);
    if (sqlite3_column_bytes(st, col) == CHAIN_HASH)
        memcpy(out, sqlite3_column_blob(st, col), CHAIN_HASH);
}

int segment_list(sqlite3 *db, struct segment **out, size_t *n, struct err *e)
{
    struct segment *v = NULL;
    size_t count = 0, cap = 0;
    sqlite3_stmt *st = NULL;
    int64_t version = 0;
    int step = SQLITE_DONE, rc = db_int(db, "PRAGMA user_version", 0, &version, e);
    /* Sealed files stay as they were written: before schema 3 a table had the number of its segment. */
    if (rc == ST_OK)
        rc = db_prepare(db,
                        version < SEGMENT_SLOTS_SINCE
                            ? "SELECT n,first,last,ts_min,ts_max,opened_us,prev,head,file,sha256,retired,n "
                              "FROM segment ORDER BY n"
                            : "SELECT n,first,last,ts_min,ts_max,opened_us,prev,head,file,sha256,retired,"
                              "slot FROM segment ORDER BY n",
                        &st, e);
    while (rc == ST_OK && (step = sqlite3_step(st)) == SQLITE_ROW) {
        if (count == cap) {
            cap = cap ? cap * 2 : 16;
            struct segment *w = realloc(v, cap * sizeof *v);
            if (!w) {
                rc = err_set(e, ST_ENOMEM, "audit.db: no memory for its list of segments");
                break;
            }
            v = w;
        }
        struct segment *s = &v[count++];
        *s = (struct segment){.n = sqlite3_column_int64(st, 0),
                              .first = sqlite3_column_int64(st, 1),
                              .last = sqlite3_column_int64(st, 2),
                              .ts_min = sqlite3_column_int64(st, 3),
                              .ts_max = sqlite3_column_int64(st, 4),
                              .opened_us = sqlite3_column_int64(st, 5),
                              .slot = sqlite3_column_int64(st, 11),
                              .retired = sqlite3_column_int(st, 10) != 0};
        take_blob(st, 6, s->prev);
        take_blob(st, 7, s->head);
        take_blob(st, 9, s->sha256);
        str_copy(s->file, sizeof s->file, db_text(st, 8));
        if (s->n < 1 || s->n > 999999999 || s->slot < 1 || s->slot > 999999999 || strchr(s->file, '/'))
            rc = err_reason(e, ST_ECORRUPT, "DAMAGED", "audit.db: its list of segments is malformed at %lld",
                            (long long)s->n);
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(db, step, "reading the segments", e);
    sqlite3_finalize(st);
    if (rc < 0) {
        free(v);
        return rc;
    }
    *out = v;
    *n = count;
    return ST_OK;
}

int segment_path(char out[1024], const char *path, const char *file)
{
    const char *slash = strrchr(path, '/');
    int dir = slash ? (int)(slash - path) + 1 : 0;
    int n = snprintf(out, 1024, "%.*ssegments/%s", dir, path, file);
    return n > 0 && n < 1024 ? ST_OK : ST_ELIMIT;
}

int segment_table(sqlite3 *db, const char *schema, int64_t slot, struct err *e)
{
    char sql[1400];
    long long n = slot;
    snprintf(sql, sizeof sql,
             "CREATE TABLE %s.audit_%06lld(id INTEGER PRIMARY KEY, ts_us INTEGER NOT NULL, event INTEGER NOT "
             "NULL, severity INTEGER NOT NULL, result INTEGER NOT NULL, principal INTEGER NOT NULL, device "
             "INTEGER NOT NULL, node INTEGER NOT NULL, session INTEGER NOT NULL, job INTEGER NOT NULL, "
             "operation INTEGER NOT NULL, error TEXT, meta TEXT) STRICT;"
             "CREATE INDEX %s.audit_%06lld_time ON audit_%06lld(ts_us);"
             "CREATE INDEX %s.audit_%06lld_principal ON audit_%06lld(principal);"
             "CREATE INDEX %s.audit_%06lld_critical ON audit_%06lld(ts_us) WHERE severity>=3;"
             "CREATE INDEX %s.audit_%06lld_denied ON audit_%06lld(ts_us) WHERE result=2;"
             "CREATE INDEX %s.audit_%06lld_job ON audit_%06lld(job) WHERE job<>0;",
             schema, n, schema, n, n, schema, n, n, schema, n, n, schema, n, n, schema, n, n);
    return db_exec(db, sql, e);
}

/* A table that no segment of this file uses, made if there is none: then the views are made anew. */
static int take_slot(sqlite3 *db, int64_t *slot, struct err *e)
{
    char sql[60];
    int rc = db_int(db, "SELECT min(n) FROM slot WHERE n NOT IN (SELECT slot FROM segment WHERE file='')", 0,
                    slot, e);
    if (rc < 0 || *slot)
        return rc;
    rc = db_int(db, "SELECT max(n)+1 FROM slot", 1, slot, e);
    if (rc == ST_OK)
        rc = segment_table(db, "main", *slot, e);
    snprintf(sql, sizeof sql, "INSERT INTO slot VALUES(%lld)", (long long)*slot);
    if (rc == ST_OK)
        rc = db_exec(db, sql, e);
    return rc == ST_OK ? segment_views(db, e) : rc;
}

int segment_create(sqlite3 *db, struct segment *s, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = take_slot(db, &s->slot, e);
    if (rc == ST_OK)
        rc = db_prepare(
            db,
            "INSERT INTO segment(n,first,last,ts_min,ts_max,opened_us,prev,head,file,sha256,retired,slot) "
            "VALUES(?1,?2,0,0,0,?3,?4,zeroblob(32),'',zeroblob(32),0,?5)",
            &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_int64(st, 1, s->n);
    sqlite3_bind_int64(st, 2, s->first);
    sqlite3_bind_int64(st, 3, s->opened_us);
    sqlite3_bind_blob(st, 4, s->prev, CHAIN_HASH, SQLITE_STATIC);
    sqlite3_bind_int64(st, 5, s->slot);
    int step = sqlite3_step(st);
    rc = step == SQLITE_DONE ? ST_OK : db_fail(db, step, "opening a segment", e);
    sqlite3_finalize(st);
    return rc;
}

/* The conditions of the views stand on the table's own columns, so that its partial indexes serve them. */
#define SEVERITY(c)                                                                                          \
    " CASE " c ".severity WHEN 0 THEN 'debug' WHEN 1 THEN 'info' WHEN 2 THEN 'warning' WHEN 3 THEN 'error'"  \
    " ELSE 'critical' END AS severity,"
#define RESULT(c)                                                                                            \
    " CASE " c ".result WHEN 0 THEN 'success' WHEN 1 THEN 'failure' ELSE 'denied' END AS result,"

/* Does the view `name` stand in the file word for word? */
static int view_same(sqlite3 *db, const char *name, const char *sql, bool *same, struct err *e)
{
    sqlite3_stmt *st = NULL;
    int rc = db_prepare(db, "SELECT sql FROM sqlite_schema WHERE type='view' AND name=?1", &st, e);
    if (rc < 0)
        return rc;
    sqlite3_bind_text(st, 1, name, -1, SQLITE_STATIC);
    int step = sqlite3_step(st);
    *same = step == SQLITE_ROW && strcmp(db_text(st, 0), sql) == 0;
    rc = step == SQLITE_ROW || step == SQLITE_DONE ? ST_OK : db_fail(db, step, "reading the views", e);
    sqlite3_finalize(st);
    return rc;
}

/* Writes only what changed: opening a full disk's file must not fail for a view that is right already. */
static int put_view(sqlite3 *db, const char *name, const char *sql, struct err *e)
{
    bool same = false;
    char drop[64];
    int rc = view_same(db, name, sql, &same, e);
    if (rc < 0 || same)
        return rc;
    snprintf(drop, sizeof drop, "DROP VIEW IF EXISTS %s", name);
    rc = db_exec(db, drop, e);
    return rc < 0 ? rc : db_exec(db, sql, e);
}

static int row_view(sqlite3 *db, const int64_t *slots, size_t n, const char *name, const char *where,
                    struct err *e)
{
    struct buf sql = {0};
    int rc = buf_printf(&sql, "CREATE VIEW %s AS ", name);
    const char *join = "";
    for (size_t i = 0; rc >= 0 && i < n; i++) {
        rc = buf_printf(&sql,
                        "%sSELECT a.id AS id, a.ts_us AS time_us, a.ts_us/1000000.0 AS time, t.name AS "
                        "type," SEVERITY("a") " a.severity AS severity_level," RESULT(
                            "a") " p.text AS principal, d.text AS device, "
                                 "n.text AS node, s.text AS session, j.text AS job, o.text AS operation, "
                                 "a.error AS error, "
                                 "a.meta AS meta FROM audit_%06lld a LEFT JOIN event_type t ON t.id=a.event "
                                 "LEFT JOIN name "
                                 "p ON p.id=a.principal LEFT JOIN name d ON d.id=a.device LEFT JOIN name n "
                                 "ON n.id=a.node "
                                 "LEFT JOIN name s ON s.id=a.session LEFT JOIN name j ON j.id=a.job LEFT "
                                 "JOIN name o ON "
                                 "o.id=a.operation%s",
                        join, (long long)slots[i], where);
        join = " UNION ALL ";
    }
    rc = rc < 0  ? err_set(e, ST_ENOMEM, "audit.db: no memory for its views")
         : *join ? put_view(db, name, buf_cstr(&sql), e)
                 : ST_OK;
    buf_fini(&sql);
    return rc;
}

/* One row: how the store itself is. */
#define HEALTH_VIEW                                                                                          \
    "CREATE VIEW v_health AS SELECT s.size AS rows, lower(hex(s.head)) AS head,"                             \
    " (SELECT max(size) FROM checkpoint) AS signed_rows,"                                                    \
    " (SELECT max(ts_us) FROM checkpoint) AS signed_time_us,"                                                \
    " (SELECT count(*) FROM segment WHERE file='') AS segments,"                                             \
    " (SELECT count(*) FROM segment WHERE file<>'' AND retired=0) AS sealed,"                                \
    " (SELECT min(first) FROM segment WHERE file='') AS first_row FROM state s"
#define RATE_VIEW(name, table, slot, us, s)                                                                  \
    "CREATE VIEW " name " AS SELECT r." slot "*" us " AS time_us, r." slot "*" s                             \
    " AS time, t.name AS type," SEVERITY("r") RESULT("r") " r.n AS n FROM " table                            \
                                                          " r LEFT JOIN event_type t ON t.id=r.event"

static int slot_list(sqlite3 *db, int64_t **out, size_t *n, struct err *e)
{
    int64_t count = 0;
    sqlite3_stmt *st = NULL;
    int rc = db_int(db, "SELECT count(*) FROM slot", 0, &count, e), step = SQLITE_DONE;
    *out = rc == ST_OK ? calloc((size_t)count + 1, sizeof **out) : NULL;
    *n = 0;
    if (rc == ST_OK && !*out)
        rc = err_set(e, ST_ENOMEM, "audit.db: no memory for its list of tables");
    if (rc == ST_OK)
        rc = db_prepare(db, "SELECT n FROM slot ORDER BY n", &st, e);
    while (rc == ST_OK && *n < (size_t)count && (step = sqlite3_step(st)) == SQLITE_ROW)
        (*out)[(*n)++] = sqlite3_column_int64(st, 0);
    if (rc == ST_OK && step != SQLITE_ROW && step != SQLITE_DONE)
        rc = db_fail(db, step, "reading the list of tables", e);
    sqlite3_finalize(st);
    return rc;
}

int segment_views(sqlite3 *db, struct err *e)
{
    static const char *const row_views[][2] = {{"v_audit", ""},
                                               {"v_denied", " WHERE a.result=2"},
                                               {"v_critical", " WHERE a.severity>=3"},
                                               {"v_job", " WHERE a.job<>0"}};
    int64_t *slots = NULL;
    size_t n = 0;
    int rc = slot_list(db, &slots, &n, e);
    for (size_t i = 0; rc == ST_OK && i < sizeof row_views / sizeof *row_views; i++)
        rc = row_view(db, slots, n, row_views[i][0], row_views[i][1], e);
    if (rc == ST_OK)
        rc = put_view(db, "v_rate_1m", RATE_VIEW("v_rate_1m", "rate_1m", "minute", "60000000", "60.0"), e);
    if (rc == ST_OK)
        rc = put_view(db, "v_rate_1h", RATE_VIEW("v_rate_1h", "rate_1h", "hour", "3600000000", "3600.0"), e);
    if (rc == ST_OK)
        rc = put_view(db, "v_health", HEALTH_VIEW, e);
    free(slots);
    return rc;
}
