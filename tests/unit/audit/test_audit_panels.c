/* What deploy/grafana and deploy/datasette ask is answered by the real schema. */
#include "tests/unit/audit/audit_help.h"

#include <jansson.h>

static void fill(struct rig *r)
{
    static const struct {
        int type, result;
    } kinds[] = {{EV_DEVICE_LIST, EVENT_SUCCESS},
                 {EV_COMPUTE_EXECUTE, EVENT_FAILURE},
                 {EV_LAYER_VERIFIED, EVENT_SUCCESS}};
    rig_open(r);
    for (int i = 0; i < 300; i++) {
        struct audit_event ev =
            event_make(kinds[i % 3].type, kinds[i % 3].result, clock_wall_us(clock_system()) - 1000000ll * i);
        ev.principal = i % 2 ? "user/alice" : "user/bob";
        ev.device = "dione/cuda:0";
        ev.job = i % 5 ? "" : "job-1";
        ev.severity = i % 10 ? ev.severity : EVENT_CRITICAL;
        assert_int_equal(audit_emit(r->a, &ev), ST_OK);
    }
    flush_ok(r);
}

static void replace(struct buf *out, const char *sql)
{
    static const struct {
        const char *from, *to;
    } words[] = {{"$__from", "0"}, {"$__to", "99999999999999"}};
    for (const char *p = sql; *p;) {
        const char *to = NULL;
        for (size_t i = 0; i < sizeof words / sizeof *words && !to; i++)
            if (!strncmp(p, words[i].from, strlen(words[i].from))) {
                to = words[i].to;
                p += strlen(words[i].from);
            }
        assert_int_equal(to ? buf_append(out, to, strlen(to)) : buf_append(out, p++, 1), ST_OK);
    }
}

/* Rows of the answer; a statement that the schema does not bear fails the test. */
static int ask(const char *path, const char *title, const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *st;
    struct buf b = {0};
    int rows = 0, step;
    replace(&b, sql);
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    if (sqlite3_prepare_v2(db, buf_cstr(&b), -1, &st, NULL) != SQLITE_OK)
        fail_msg("%s: %s", title, sqlite3_errmsg(db));
    if (sqlite3_bind_parameter_index(st, ":principal"))
        sqlite3_bind_text(st, sqlite3_bind_parameter_index(st, ":principal"), "user/alice", -1,
                          SQLITE_STATIC);
    while ((step = sqlite3_step(st)) == SQLITE_ROW)
        rows++;
    if (step != SQLITE_DONE)
        fail_msg("%s: %s", title, sqlite3_errmsg(db));
    sqlite3_finalize(st);
    sqlite3_close(db);
    buf_fini(&b);
    return rows;
}

static void panels_are_answered(void **state)
{
    struct rig *r = *state;
    json_error_t je;
    int n = 0;
    fill(r);
    json_t *j = json_load_file(STRATA_SOURCE_DIR "/deploy/grafana/dashboards/strata-audit.json", 0, &je),
           *panel, *target;
    assert_non_null(j);
    size_t i, k;
    json_array_foreach(json_object_get(j, "panels"), i, panel)
    {
        const char *title = json_string_value(json_object_get(panel, "title"));
        json_array_foreach(json_object_get(panel, "targets"), k, target)
        {
            const char *sql = json_string_value(json_object_get(target, "rawQueryText"));
            if (!sql)
                sql = json_string_value(json_object_get(target, "queryText"));
            assert_non_null(sql);
            n++;
            bool may_be_empty = strstr(sql, "v_denied") != NULL; /* a denial is no ring event */
            if (ask(r->dir.audit, title, sql) == 0 && !may_be_empty)
                fail_msg("%s: no rows", title);
        }
    }
    assert_true(n >= 8);
    json_decref(j);
}

static void datasette_knows_its_tables_and_queries(void **state)
{
    struct rig *r = *state;
    json_error_t je;
    const char *name;
    json_t *v;
    fill(r);
    json_t *j = json_load_file(STRATA_SOURCE_DIR "/deploy/datasette/metadata.json", 0, &je);
    assert_non_null(j);
    json_t *db = json_object_get(json_object_get(j, "databases"), "audit");
    json_object_foreach(json_object_get(db, "tables"), name, v)
    {
        char sql[400];
        size_t i;
        json_t *facet;
        const char *sort = json_string_value(json_object_get(v, "sort_desc"));
        snprintf(sql, sizeof sql, "SELECT %s FROM %s LIMIT 1", sort ? sort : "*", name);
        (void)ask(r->dir.audit, name, sql);
        json_array_foreach(json_object_get(v, "facets"), i, facet)
        {
            snprintf(sql, sizeof sql, "SELECT %s FROM %s LIMIT 1", json_string_value(facet), name);
            (void)ask(r->dir.audit, name, sql);
        }
    }
    json_object_foreach(json_object_get(db, "queries"), name, v)
    {
        int rows = ask(r->dir.audit, name, json_string_value(json_object_get(v, "sql")));
        if (!rows && strcmp(name, "denials_today"))
            fail_msg("%s: no rows", name);
    }
    json_decref(j);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(panels_are_answered), T(datasette_knows_its_tables_and_queries)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
