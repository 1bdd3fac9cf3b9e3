/* Segments: rotation, sealing, retention, queries and verification across files, signed heads and witnesses.
 */
#include "tests/unit/audit/audit_help.h"

#include <dirent.h>
#include <sys/stat.h>

#include "common/base/fs.h"
#include "coordinator/audit/audit_priv.h"

enum { BATCHES = 24, PER = 20 };

static void emit_n(struct rig *r, int from, int n)
{
    for (int i = from; i < from + n; i++) {
        char who[24], meta[64];
        snprintf(who, sizeof who, "user/u%d", i % 7);
        snprintf(meta, sizeof meta, "{\"count\":%d}", i);
        struct audit_event ev = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1000000ll * (i + 1));
        ev.principal = who;
        ev.device = i % 2 ? "dione/cuda:0" : "rhea/cuda:1";
        ev.node = i % 2 ? "dione" : "rhea";
        ev.job = i % 5 ? "" : "job-5";
        ev.meta = meta;
        assert_int_equal(audit_emit(r->a, &ev), ST_OK);
    }
}

static void config(struct rig *r)
{
    r->acfg.flush_ns = 10 * NS_PER_MS;
    r->acfg.segment_rows = 100;
    r->acfg.hot_segments = 1;
    r->acfg.checkpoint_rows = 50;
}

static void wait_for(struct rig *r, const char *sql, int64_t want)
{
    for (int i = 0; i < 2000; i++) { /* the bound is only for a hung thread */
        if (sql_int(r->dir.audit, sql) == want)
            return;
        struct pollfd none = {.fd = -1};
        poll(&none, 1, 5);
    }
    fail_msg("%s did not become %lld", sql, (long long)want);
}

static void fill(struct rig *r)
{
    rig_open(r);
    for (int b = 0; b < BATCHES; b++) {
        emit_n(r, b * PER, PER);
        flush_ok(r);
    }
    wait_for(r, "SELECT count(*) FROM segment WHERE last<>0 AND file=''", 1);
}

static int take(void *arg, const struct audit_event *e)
{
    struct audit_event *last = arg;
    if (last->id)
        assert_true(last->severity ? e->id < last->id : e->id == last->id + 1);
    last->id = e->id;
    last->time_us++; /* rows seen */
    return 0;
}

static void rows_move_to_files_and_are_found_there(void **state)
{
    struct rig *r = *state;
    struct err e;
    config(r);
    fill(r);
    int64_t sealed = sql_int(r->dir.audit, "SELECT count(*) FROM segment WHERE file<>''");
    assert_true(sealed >= 3);
    int64_t total = sql_int(r->dir.audit, "SELECT size FROM state");
    int64_t here = sql_int(r->dir.audit, "SELECT count(*) FROM v_audit");
    assert_true(here < total && here > 0);
    /* Both directions, whole. */
    for (int down = 0; down < 2; down++) {
        struct audit_event last = {.severity = down};
        struct audit_filter f = AUDIT_FILTER_ALL;
        f.limit = 100000;
        f.descending = down;
        assert_int_equal(audit_query(r->dir.audit, &f, take, &last, &e), ST_OK);
        assert_int_equal(last.time_us, total);
        assert_int_equal(last.id, down ? 1 : total);
    }
    /* A sealed file alone is a database of its own, without side files. */
    char path[1024], side[1100];
    struct stat st;
    assert_int_equal(segment_path(path, r->dir.audit, "000001.db"), ST_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0440);
    snprintf(side, sizeof side, "%s-wal", path);
    assert_int_equal(access(side, F_OK), -1);
    assert_true(sql_int(path, "SELECT count(*) FROM v_audit") >= 100);
    assert_int_equal(sql_int(path, "SELECT count(*) FROM sqlite_schema WHERE type='index' AND name LIKE "
                                   "'audit_000001_%'"),
                     7);
    assert_int_equal(sql_int(path, "SELECT sum(n) FROM v_rate_1m"),
                     sql_int(path, "SELECT count(*) FROM v_audit"));
    struct audit_verdict v;
    if (audit_verify(path, NULL, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    assert_true(v.rows >= 100 && v.first == 1);
    /* And all of it as one chain. */
    verify_ok(r->dir.audit, (uint64_t)total);
    assert_int_equal(audit_verify(r->dir.audit, NULL, &v, &e), ST_OK);
    assert_int_equal(v.files, sealed);
    struct audit_verify_opts o = {.alone = true};
    assert_int_equal(audit_verify(r->dir.audit, &o, &v, &e), ST_OK);
    assert_true(v.first > 300 && v.rows == (uint64_t)here);
    o = (struct audit_verify_opts){.since_us = 1000000ll * 300};
    assert_int_equal(audit_verify(r->dir.audit, &o, &v, &e), ST_OK);
    assert_true(v.first > 1 && v.first < 330); /* our own rows carry the time of today */
    /* Roll-ups count what left as well. */
    assert_int_equal(sql_int(r->dir.audit, "SELECT sum(n) FROM v_rate_1m"), total);
    assert_int_equal(sql_int(r->dir.audit, "SELECT sum(n) FROM v_rate_1h"), total);
    emit_n(r, BATCHES * PER, 1);
    flush_ok(r);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*)>0 FROM v_audit WHERE type='audit.sealed'"), 1);
}

static int take_any(void *arg, const struct audit_event *ev)
{
    struct audit_event *last = arg;
    last->id = ev->id;
    last->time_us++;
    return 0;
}

static void filters_reach_sealed_rows(void **state)
{
    struct rig *r = *state;
    struct err e;
    config(r);
    fill(r);
    const struct {
        struct audit_filter f;
        int want;
    } t[] = {
        {{.result = -1, .principal = "user/u3", .type = "device.list"}, 69},
        {{.result = -1, .job = "job-5"}, 96},
        {{.result = -1, .node = "rhea"}, 240},
        {{.result = -1, .device = "dione/cuda:0"}, 240},
        {{.result = -1, .text = "\"COUNT\":77}"}, 1},
        {{.result = -1, .text = "count\":4_"}, 0},
        {{.result = -1, .since_us = 1000000ll * 11, .until_us = 1000000ll * 21}, 10},
        {{.result = -1, .principal = "user/nobody"}, 0},
        {{.result = -1, .severity_min = EVENT_CRITICAL}, 0},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++)
        for (int down = 0; down < 2; down++) {
            struct audit_filter f = t[i].f;
            int n = 0, page = 0;
            f.descending = down;
            f.limit = 7; /* keyset paging through every file */
            struct audit_event last;
            do {
                page = 0;
                last = (struct audit_event){.severity = 1};
                last.id = 0;
                assert_int_equal(audit_query(r->dir.audit, &f, take_any, &last, &e), ST_OK);
                page = (int)last.time_us;
                n += page;
                f.after_id = last.id;
            } while (page == 7);
            if (n != t[i].want)
                fail_msg("filter %zu direction %d: %d rows", i, down, n);
        }
}

static void old_segments_are_removed_and_told_of(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    config(r);
    fill(r);
    rig_close(r);
    r->acfg.keep_us = 1;
    rig_open(r);
    wait_for(r, "SELECT count(*) FROM segment WHERE file<>'' AND retired=0", 0);
    emit_n(r, 1000, 1);
    flush_ok(r);
    assert_true(sql_int(r->dir.audit, "SELECT count(*) FROM v_audit WHERE type='audit.retired'") >= 3);
    char path[1024];
    assert_int_equal(segment_path(path, r->dir.audit, "000001.db"), ST_OK);
    assert_int_equal(access(path, F_OK), -1);
    if (audit_verify(r->dir.audit, NULL, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    assert_true(v.first > 100);
}

static void damage_to_a_sealed_file_is_found(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    char path[1024], away[1100];
    config(r);
    fill(r);
    rig_close(r);
    assert_int_equal(segment_path(path, r->dir.audit, "000002.db"), ST_OK);
    snprintf(away, sizeof away, "%s.away", path);
    assert_int_equal(rename(path, away), 0);
    assert_int_equal(audit_verify(r->dir.audit, NULL, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "missing"));
    assert_int_equal(v.bad_first, sql_int(r->dir.audit, "SELECT first FROM segment WHERE n=2"));
    assert_int_equal(rename(away, path), 0);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(audit_verify(r->dir.audit, NULL, &v, &e), ST_OK);
    sql_run(path,
            "UPDATE audit_000002 SET meta='{\"count\":-1}' WHERE id=(SELECT min(id)+30 FROM audit_000002)");
    assert_int_equal(audit_verify(r->dir.audit, NULL, &v, &e), ST_ECORRUPT);
    int64_t id = sql_int(path, "SELECT min(id)+30 FROM audit_000002");
    assert_true(v.bad_first <= id && v.bad_last >= id);
    /* What the hash of the rows does not cover, the file's does. */
    sql_run(path,
            "UPDATE audit_000002 SET meta=(SELECT '{\"count\":'||(ts_us/1000000-1)||'}') WHERE id=(SELECT "
            "min(id)+30 FROM audit_000002)");
    sql_run(path, "UPDATE rate_1m SET n=n+1");
    assert_int_equal(audit_verify(r->dir.audit, NULL, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "beside the rows"));
}

/* ---- keys and witnesses ---- */

static void heads_are_signed_and_a_witness_sees_a_rewritten_chain(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    struct audit_key *k, *k2;
    char key[300], pub[300];
    uint8_t p[AUDIT_PUBLIC], p2[AUDIT_PUBLIC];
    snprintf(key, sizeof key, "%s.key", r->dir.audit);
    snprintf(pub, sizeof pub, "%s.pub", r->dir.audit);
    assert_int_equal(audit_key_open(&k, key, &e), ST_OK);
    struct stat st;
    assert_int_equal(stat(key, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(audit_public_read(pub, p, &e), ST_OK);
    audit_key_public(k, p2);
    assert_memory_equal(p, p2, sizeof p);
    config(r);
    r->acfg.signer = audit_key_signer(k);
    fill(r);
    struct audit_stats as;
    audit_stats(r->a, &as);
    assert_true(as.signed_head.size > 400 && as.signed_head.sig_len == 64);
    assert_true(audit_head_ok(p, &as.signed_head));
    struct audit_head bent = as.signed_head;
    bent.size--;
    assert_false(audit_head_ok(p, &bent));
    rig_close(r);
    struct audit_checker c = audit_checker_public(p);
    struct audit_verify_opts o = {.checker = &c, .witnessed = &as.signed_head, .n_witnessed = 1};
    if (audit_verify(r->dir.audit, &o, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    assert_true(v.checkpoints >= 8);
    /* The same rows again, but for one: a whole chain that fits itself, signed with the same stolen key. */
    char other[300];
    struct rig fake = {0};
    scratch_new(&fake.dir);
    assert_int_equal(port_new(&fake.port), ST_OK);
    config(&fake);
    fake.acfg.signer = audit_key_signer(k);
    rig_open(&fake);
    emit_n(&fake, 5000, 1);
    for (int b = 0; b < BATCHES; b++) {
        emit_n(&fake, b * PER, b ? PER : PER - 1);
        flush_ok(&fake);
    }
    rig_close(&fake);
    o.n_witnessed = 0;
    if (audit_verify(fake.dir.audit, &o, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    o.n_witnessed = 1;
    assert_int_equal(audit_verify(fake.dir.audit, &o, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "witness"));
    /* A chain that ends before what was witnessed. */
    bent = as.signed_head;
    bent.size += 100000;
    o.witnessed = &bent;
    assert_int_equal(audit_verify(r->dir.audit, &o, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "cut off"));
    /* Another key signs nothing of this. */
    snprintf(other, sizeof other, "%s.other.key", r->dir.audit);
    assert_int_equal(audit_key_open(&k2, other, &e), ST_OK);
    audit_key_public(k2, p2);
    c = audit_checker_public(p2);
    o = (struct audit_verify_opts){.checker = &c};
    assert_int_equal(audit_verify(r->dir.audit, &o, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "signature"));
    assert_int_equal(chmod(key, 0644), 0);
    struct audit_key *k3;
    assert_int_equal(audit_key_open(&k3, key, &e), ST_EDENIED);
    audit_key_free(k);
    audit_key_free(k2);
    port_free(fake.port);
    scratch_free(&fake.dir);
}

static void idle_rows_are_signed_too(void **state)
{
    struct rig *r = *state;
    r->acfg.flush_ns = 5 * NS_PER_MS;
    r->acfg.checkpoint_ns = 30 * NS_PER_MS;
    rig_open(r);
    emit_n(r, 0, 3);
    flush_ok(r);
    wait_for(r, "SELECT max(size)>=3 FROM checkpoint", 1);
}

static void a_file_of_the_first_schema_is_taken_over(void **state)
{
    struct rig *r = *state;
    struct err e;
    sqlite3 *db;
    struct db_kind first = audit_db_kind;
    first.n_steps = 1;
    assert_int_equal(db_open(&db, r->dir.audit, &first, 0, &e), ST_OK);
    assert_int_equal(db_exec(db, "INSERT INTO rate_1m VALUES(60,1,1,0,2),(61,1,1,0,3)", &e), ST_OK);
    db_close(db);
    rig_open(r);
    emit_n(r, 0, 5);
    flush_ok(r);
    assert_int_equal(sql_int(r->dir.audit, "SELECT n FROM v_rate_1h WHERE time_us=3600000000"), 5);
    verify_ok(r->dir.audit, 5);
}

/* ---- the file is taken away ---- */

static void flush_refused(struct rig *r)
{
    struct err e;
    assert_int_equal(audit_flush_wait(r->a, &e), ST_ECORRUPT);
    assert_string_equal(e.reason, "FILE_REPLACED");
    struct audit_stats as;
    audit_stats(r->a, &as);
    assert_true(as.failing);
}

static void told_of(struct rig *r, int64_t times, uint64_t rows)
{
    flush_ok(r);
    assert_int_equal(
        sql_int(r->dir.audit, "SELECT count(*) FROM v_critical WHERE type='audit.file_replaced'"), times);
    verify_ok(r->dir.audit, rows);
}

static void a_file_that_is_taken_away_is_missed_and_taken_back(void **state)
{
    struct rig *r = *state;
    char away[320], cmd[1400];
    snprintf(away, sizeof away, "%s.away", r->dir.audit);
    r->acfg.flush_ns = 5 * NS_PER_MS;
    rig_open(r);
    emit_n(r, 0, 20);
    flush_ok(r);
    /* Renamed away, then put back. */
    assert_int_equal(rename(r->dir.audit, away), 0);
    emit_n(r, 20, 1);
    flush_refused(r);
    assert_int_equal(access(r->dir.audit, F_OK), -1); /* no new chain was begun */
    assert_int_equal(rename(away, r->dir.audit), 0);
    told_of(r, 1, 22);
    /* Another file in its place, an empty one of ours: its chain does not continue. */
    assert_int_equal(rename(r->dir.audit, away), 0);
    struct err e;
    sqlite3 *db;
    char other[300];
    snprintf(other, sizeof other, "%s.other", r->dir.audit);
    assert_int_equal(db_open(&db, other, &audit_db_kind, 0, &e), ST_OK);
    db_close(db);
    assert_int_equal(rename(other, r->dir.audit), 0);
    emit_n(r, 22, 1);
    flush_refused(r);
    assert_int_equal(rename(away, r->dir.audit), 0);
    told_of(r, 2, 24);
    /* A copy is not the file: what is written goes to the one that is open. */
    snprintf(cmd, sizeof cmd, "mv '%s' '%s' && cp -p '%s' '%s'", r->dir.audit, away, away, r->dir.audit);
    assert_int_equal(system(cmd), 0);
    emit_n(r, 24, 1);
    flush_refused(r);
    assert_int_equal(rename(away, r->dir.audit), 0);
    told_of(r, 3, 26);
    /* The WAL taken away beneath it. */
    snprintf(other, sizeof other, "%s-wal", r->dir.audit);
    assert_int_equal(rename(other, away), 0);
    emit_n(r, 26, 1);
    flush_refused(r);
    assert_int_equal(rename(away, other), 0);
    told_of(r, 4, 28);
}

/* Names leave with the last segment that used them. */
static void names_leave_with_their_rows(void **state)
{
    struct rig *r = *state;
    config(r);
    rig_open(r);
    for (int i = 0; i < 600; i++) {
        char job[24];
        snprintf(job, sizeof job, "job-%d", i);
        struct audit_event ev = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1000000ll * (i + 1));
        ev.principal = "user/alice";
        ev.job = job;
        assert_int_equal(audit_emit(r->a, &ev), ST_OK);
        if (i % 20 == 19)
            flush_ok(r);
    }
    wait_for(r, "SELECT count(*) FROM segment WHERE last<>0 AND file=''", 1);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM name WHERE text LIKE 'job-%'"),
                     sql_int(r->dir.audit, "SELECT count(DISTINCT job) FROM v_job"));
    assert_true(sql_int(r->dir.audit, "SELECT count(*) FROM name WHERE text LIKE 'job-%'") < 400);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM name WHERE text='user/alice'"), 1);
    assert_int_equal(
        sql_int(r->dir.audit,
                "SELECT count(*) FROM v_audit WHERE principal IS NULL AND type NOT LIKE 'audit.%'"),
        0);
    /* Tables are used again. */
    assert_true(sql_int(r->dir.audit, "SELECT (SELECT count(*) FROM slot) < count(*) FROM segment"));
    verify_ok(r->dir.audit, (uint64_t)sql_int(r->dir.audit, "SELECT size FROM state"));
    /* A row in a table that no segment uses is seen by the views, so the verifier looks for it. */
    rig_close(r);
    int64_t slot =
        sql_int(r->dir.audit, "SELECT coalesce(min(n),0) FROM slot WHERE n NOT IN (SELECT slot FROM "
                              "segment WHERE file='')");
    assert_true(slot > 0);
    char sql[200];
    struct err e;
    struct audit_verdict v;
    snprintf(sql, sizeof sql, "INSERT INTO audit_%06lld VALUES(0,1,1,1,1,0,0,0,0,0,0,NULL,NULL)",
             (long long)slot);
    sql_run(r->dir.audit, sql);
    assert_int_equal(audit_verify(r->dir.audit, NULL, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "no segment uses"));
}

/* While segments are sealed beneath the verifier. */
static void verify_beside_a_store_that_seals(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    config(r);
    r->acfg.segment_rows = 20;
    rig_open(r);
    for (int i = 0; i < 60; i++) {
        emit_n(r, i * 20, 20);
        flush_ok(r);
        if (audit_verify(r->dir.audit, NULL, &v, &e) != ST_OK)
            fail_msg("%s", e.text);
        assert_true(v.rows >= (uint64_t)(i + 1) * 20);
    }
}

static void watched(void *arg)
{
    ++*(int *)arg;
}

static void a_watch_is_told_after_the_commit(void **state)
{
    struct rig *r = *state;
    struct audit_watch *w;
    int told = 0;
    r->acfg.flush_ns = 5 * NS_PER_MS;
    rig_open(r);
    assert_int_equal(audit_watch_new(&w, r->a, r->port, watched, &told), ST_OK);
    emit_n(r, 0, 3);
    for (int i = 0; i < 400 && !told; i++) {
        struct pollfd p = {.fd = port_fd(r->port), .events = POLLIN};
        poll(&p, 1, 50);
        port_drain(r->port);
    }
    assert_int_equal(told, 1);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_audit"), 3);
    emit_n(r, 3, 1);
    flush_ok(r);
    audit_watch_free(w); /* with a call still in the port */
    port_drain(r->port);
    assert_int_equal(told, 1);
}

static void sinks_get_copies(void **state)
{
    struct rig *r = *state;
    char lines[300];
    struct err e;
    struct buf b = {0};
    snprintf(lines, sizeof lines, "%s.jsonl", r->dir.audit);
    r->acfg.lines_path = lines;
    rig_open(r);
    emit_n(r, 0, 40);
    flush_ok(r);
    rig_close(r);
    assert_int_equal(fs_read(lines, 1 << 20, &b, &e), ST_OK);
    int n = 0;
    for (char *s = (char *)(uintptr_t)buf_cstr(&b), *end; (end = strchr(s, '\n')); s = end + 1, n++)
        assert_true(event_json_object_ok(s, (size_t)(end - s)));
    assert_int_equal(n, 40);
    buf_fini(&b);
    unlink(lines);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(rows_move_to_files_and_are_found_there),
                                       T(filters_reach_sealed_rows),
                                       T(old_segments_are_removed_and_told_of),
                                       T(damage_to_a_sealed_file_is_found),
                                       T(heads_are_signed_and_a_witness_sees_a_rewritten_chain),
                                       T(idle_rows_are_signed_too),
                                       T(a_file_of_the_first_schema_is_taken_over),
                                       T(a_file_that_is_taken_away_is_missed_and_taken_back),
                                       T(names_leave_with_their_rows),
                                       T(verify_beside_a_store_that_seals),
                                       T(a_watch_is_told_after_the_commit),
                                       T(sinks_get_copies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
