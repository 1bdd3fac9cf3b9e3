/* Queries on a read-only connection of their own. */
#include <stdio.h>
#include <string.h>

#include "coordinator/audit/audit_priv.h"

#define LIMIT_DEFAULT 1000u
#define LIMIT_MAX 100000u

/* The WHERE clause; parameter numbers are fixed, so binding does not depend on what is there. */
static int build_sql(const struct audit_filter *f, struct buf *sql)
{
    static const char *const head =
        "SELECT a.id,a.ts_us,a.event,a.severity,a.result,"
        "(SELECT text FROM name WHERE id=a.principal),(SELECT text FROM name WHERE id=a.device),"
        "(SELECT text FROM name WHERE id=a.node),(SELECT text FROM name WHERE id=a.session),"
        "(SELECT text FROM name WHERE id=a.job),(SELECT text FROM name WHERE id=a.operation),a.error,a.meta "
        "FROM audit a WHERE 1";
    const struct {
        const char *value, *sql;
    } names[] = {{f->principal, " AND a.principal=(SELECT id FROM name WHERE text=?1)"},
                 {f->node, " AND a.node=(SELECT id FROM name WHERE text=?2)"},
                 {f->device, " AND a.device=(SELECT id FROM name WHERE text=?3)"},
                 {f->job, " AND a.job<>0 AND a.job=(SELECT id FROM name WHERE text=?4)"},
                 {f->session, " AND a.session=(SELECT id FROM name WHERE text=?5)"}};
    int rc = buf_printf(sql, "%s", head);
    for (size_t i = 0; rc >= 0 && i < sizeof names / sizeof names[0]; i++)
        if (names[i].value)
            rc = buf_printf(sql, "%s", names[i].sql);
    if (rc >= 0 && f->type) {
        size_t n = strlen(f->type);
        bool prefix = n && (f->type[n - 1] == '*' || f->type[n - 1] == '.');
        rc = buf_printf(sql, " AND a.event IN (SELECT id FROM event_type WHERE %s)",
                        prefix ? "substr(name,1,length(?6))=?6" : "name=?6");
    }
    /* The seals turn a time bound into an id bound, which every index carries. */
    if (rc >= 0 && f->since_us)
        rc = buf_printf(
            sql, " AND a.ts_us>=?7 AND a.id>=(SELECT coalesce(min(first),1) FROM seal WHERE ts_max>=?7)");
    if (rc >= 0 && f->until_us)
        rc = buf_printf(sql, " AND a.ts_us<?8");
    if (rc >= 0 && f->after_id)
        rc = buf_printf(sql, " AND a.id%s?9", f->descending ? "<" : ">");
    if (rc >= 0 && f->severity_min > 0)
        rc = buf_printf(sql, " AND a.severity>=%d", f->severity_min);
    if (rc >= 0 && f->result >= 0)
        rc = buf_printf(sql, " AND a.result=%d", f->result);
    return rc >= 0 ? buf_printf(sql, " ORDER BY a.id%s LIMIT ?10", f->descending ? " DESC" : "") : rc;
}

static void bind_filter(sqlite3_stmt *st, const struct audit_filter *f)
{
    const char *text[] = {f->principal, f->node, f->device, f->job, f->session, f->type};
    int params = sqlite3_bind_parameter_count(st);
    for (int i = 0; i < 6; i++) {
        if (!text[i] || i + 1 > params)
            continue;
        size_t n = strlen(text[i]);
        if (i == 5 && n && text[i][n - 1] == '*')
            n--;
        sqlite3_bind_text(st, i + 1, text[i], (int)n, SQLITE_STATIC);
    }
    sqlite3_bind_int64(st, 7, f->since_us);
    sqlite3_bind_int64(st, 8, f->until_us);
    sqlite3_bind_int64(st, 9, f->after_id);
    unsigned limit = f->limit ? f->limit : LIMIT_DEFAULT;
    sqlite3_bind_int64(st, 10, limit < LIMIT_MAX ? limit : LIMIT_MAX);
}

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

int audit_query(const char *path, const struct audit_filter *f,
                int (*fn)(void *arg, const struct audit_event *e), void *arg, struct err *e)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;
    struct buf sql = {0};
    int rc = check_filter(f, e), step = SQLITE_DONE;
    if (rc == ST_OK)
        rc = db_open_ro(&db, path, &audit_db_kind, e);
    if (rc == ST_OK && build_sql(f, &sql) < 0)
        rc = err_set(e, ST_ENOMEM, "audit query: out of memory");
    if (rc == ST_OK)
        rc = db_prepare(db, buf_cstr(&sql), &st, e);
    if (rc == ST_OK)
        bind_filter(st, f);
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
        rc = fn(arg, &ev);
    }
    if (rc == ST_OK && step != SQLITE_DONE)
        rc = db_fail(db, step, "querying the audit rows", e);
    sqlite3_finalize(st);
    buf_fini(&sql);
    db_close(db);
    return rc;
}
