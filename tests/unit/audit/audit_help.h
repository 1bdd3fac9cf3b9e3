/* Store and audit together in a scratch directory. */
#ifndef STRATA_TESTS_AUDIT_HELP_H
#define STRATA_TESTS_AUDIT_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "coordinator/audit/audit.h"
#include "tests/unit/store/store_help.h"

struct rig {
    struct scratch dir;
    struct store_config scfg;
    struct audit_config acfg;
    struct store *s;
    struct audit *a;
    struct port *port;
};

static inline void rig_open(struct rig *r)
{
    struct err e;
    r->scfg.path = r->dir.state;
    r->acfg.path = r->dir.audit;
    if (!r->acfg.checkpoint_ns)
        r->acfg.checkpoint_ns =
            3600 * NS_PER_S; /* rows are counted: none may depend on how long a test takes */
    if (store_open(&r->s, &r->scfg, &e) || audit_open(&r->a, &r->acfg, r->s, &e) ||
        store_start(r->s, r->port, &e))
        fail_msg("%s", e.text);
}

static inline void rig_close(struct rig *r)
{
    audit_close(r->a);
    store_close(r->s);
    port_drain(r->port);
    r->a = NULL;
    r->s = NULL;
}

static inline int setup(void **state)
{
    struct rig *r = calloc(1, sizeof *r);
    scratch_new(&r->dir);
    if (port_new(&r->port) < 0)
        return -1;
    *state = r;
    return 0;
}

static inline int teardown(void **state)
{
    struct rig *r = *state;
    rig_close(r);
    port_free(r->port);
    scratch_free(&r->dir);
    free(r);
    return 0;
}

static inline void flush_ok(struct rig *r)
{
    struct err e;
    if (audit_flush_wait(r->a, &e) != ST_OK)
        fail_msg("%s", e.text);
}

static inline int64_t sql_int(const char *path, const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *st;
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    int64_t v = sqlite3_column_int64(st, 0);
    sqlite3_finalize(st);
    sqlite3_close(db);
    return v;
}

static inline void sql_run(const char *path, const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

static inline void verify_ok(const char *path, uint64_t rows)
{
    struct audit_verdict v;
    struct err e;
    if (audit_verify(path, NULL, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    assert_int_equal(v.rows, rows);
}

#endif
