/* Ring and outbox into audit.db, classes under pressure, queries against an oracle, readers beside the
 * writer. */
#include "tests/unit/audit/audit_help.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

static struct audit_event keep(const char *who, int64_t t)
{
    struct audit_event e = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, t);
    e.principal = who;
    e.operation = "Devices.List";
    e.meta = "{\"count\":3}";
    return e;
}

static int must(struct rig *r, const char *job, struct err *e)
{
    struct audit_event ev = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, 1700000000000000);
    ev.job = job;
    ev.principal = "user/alice";
    struct store_txn *t = store_txn_new();
    struct store_job j = {.id = job};
    store_txn_job_insert(t, &j);
    store_txn_event(t, &ev);
    return submit_wait(r->s, r->port, t, e);
}

static int count_fn(void *arg, const struct audit_event *e)
{
    (void)e;
    ++*(unsigned *)arg;
    return 0;
}

static unsigned count(struct rig *r, const struct audit_filter *f)
{
    struct err e;
    unsigned n = 0;
    if (audit_query(r->dir.audit, f, count_fn, &n, &e) != ST_OK)
        fail_msg("%s", e.text);
    return n;
}

static void ring_and_outbox_arrive(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_open(r);
    for (int i = 0; i < 50; i++) {
        struct audit_event k = keep("user/bob", 1700000000000000 + i);
        assert_int_equal(audit_emit(r->a, &k), ST_OK);
        char id[16];
        snprintf(id, sizeof id, "j%d", i);
        assert_int_equal(must(r, id, &e), ST_OK);
    }
    struct answer done = {0};
    assert_int_equal(audit_flush(r->a, r->port, answer_cb, &done), ST_OK);
    answer_wait(r->port, &done, 1);
    assert_int_equal(done.rc, ST_OK);
    /* While it is open, through the views, as another program would. */
    const char *p = r->dir.audit;
    assert_int_equal(sql_int(p, "SELECT count(*) FROM v_audit"), 100);
    assert_int_equal(
        sql_int(p, "SELECT count(*) FROM v_job WHERE type='job.submitted' AND principal='user/alice'"), 50);
    assert_int_equal(sql_int(p, "SELECT time_us FROM v_audit WHERE type='device.list' ORDER BY id LIMIT 1"),
                     1700000000000000);
    assert_int_equal(
        sql_int(p, "SELECT time=1700000000.0 FROM v_audit WHERE type='device.list' ORDER BY id LIMIT 1"), 1);
    assert_int_equal(sql_int(p, "SELECT sum(n) FROM v_rate_1m WHERE time_us%60000000=0"), 100);
    assert_int_equal(
        sql_int(p, "SELECT json_extract(meta,'$.count') FROM v_audit WHERE meta IS NOT NULL LIMIT 1"), 3);
    assert_int_equal(
        sql_int(p, "SELECT count(*) FROM v_audit WHERE device IS NULL AND session IS NULL AND error IS NULL"),
        100);
    assert_int_equal(
        sql_int(p, "SELECT count(*) FROM v_denied") + sql_int(p, "SELECT count(*) FROM v_critical"), 0);
    struct stat st;
    assert_int_equal(stat(p, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    struct store_stats ss;
    store_stats(r->s, &ss);
    assert_int_equal(ss.outbox_rows, 0); /* drained */
    struct audit_stats as;
    audit_stats(r->a, &as);
    assert_int_equal(as.rows, 100);
    assert_int_equal(as.outbox_seq, 50);
    rig_close(r);
    char wal[128];
    snprintf(wal, sizeof wal, "%s-wal", p);
    assert_int_equal(access(wal, F_OK), 0); /* or a reader without write permission could not open it */
    assert_int_equal(sql_int(r->dir.state, "SELECT count(*) FROM outbox"), 0);
    rig_open(r); /* and nothing comes twice */
    assert_int_equal(must(r, "again", &e), ST_OK);
    flush_ok(r);
    verify_ok(p, 101);
    assert_int_equal(sql_int(p, "SELECT count(*) FROM v_job WHERE job='again'"), 1);
}

static void flushed_by_itself(void **state)
{
    struct rig *r = *state;
    rig_open(r);
    struct audit_event k = keep("user/bob", 1);
    assert_int_equal(audit_emit(r->a, &k), ST_OK);
    struct audit_stats st = {0};
    for (int i = 0; i < 2000 && st.rows == 0;
         i++) { /* the interval is 50 ms; the bound is only for a hung thread */
        struct pollfd none = {.fd = -1};
        poll(&none, 1, 5);
        audit_stats(r->a, &st);
    }
    assert_int_equal(st.rows, 1);
}

static void pressure(void **state)
{
    struct rig *r = *state;
    r->acfg.ring_rows = 64;
    r->acfg.flush_ns = 3600 * NS_PER_S; /* nothing is written until it is asked for */
    r->acfg.flush_rows = 1000;
    rig_open(r);
    struct audit_event m = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, 1), k = keep("user/bob", 1),
                       d = event_make(EV_MONITOR_POWER, EVENT_SUCCESS, 1);
    assert_int_equal(audit_emit(r->a, &m), ST_EINVAL);
    d.result = EVENT_DENIED;
    assert_int_equal(audit_emit(r->a, &d), ST_EINVAL); /* a denial is must, whatever its type */
    d.result = EVENT_SUCCESS;
    k.meta = "{";
    assert_int_equal(audit_emit(r->a, &k), ST_EINVAL);
    k.meta = NULL;
    for (int i = 0; i < 64; i++)
        assert_int_equal(audit_emit(r->a, &k), ST_OK);
    assert_true(audit_pressure(r->a) > 0.99);
    assert_int_equal(audit_emit(r->a, &k), ST_EAGAIN); /* never dropped */
    for (int i = 0; i < 5; i++)
        assert_int_equal(audit_emit(r->a, &d), ST_OK); /* dropped and counted */
    flush_ok(r);
    assert_true(audit_pressure(r->a) < 0.01);
    struct audit_stats st;
    audit_stats(r->a, &st);
    assert_int_equal(st.dropped, 5);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_audit WHERE type='device.list'"), 64);
    assert_int_equal(
        sql_int(r->dir.audit, "SELECT json_extract(meta,'$.dropped') FROM v_audit WHERE type='audit.loss'"),
        5);
    assert_int_equal(audit_emit(r->a, &k), ST_OK);
    flush_ok(r); /* told once, not again */
    verify_ok(r->dir.audit, 66);
}

static void a_full_audit_disk_stops_mutations(void **state)
{
    struct rig *r = *state;
    struct err e;
    r->acfg.max_pages = 60;
    rig_open(r);
    int rc = ST_OK;
    unsigned ok = 0;
    for (; ok < 5000 && rc == ST_OK; ok += rc == ST_OK) {
        char id[16];
        snprintf(id, sizeof id, "j%u", ok);
        rc = must(r, id, &e);
        if (rc == ST_OK && ok % 50 == 49)
            (void)!audit_flush_wait(r->a, NULL);
    }
    assert_int_equal(rc, ST_ERESOURCE);
    assert_string_equal(e.reason, "AUDIT_UNAVAILABLE");
    assert_non_null(strstr(e.text, "audit.db"));
    assert_non_null(strstr(e.text, "full"));
    assert_int_equal(audit_flush_wait(r->a, &e), ST_ERESOURCE);
    assert_string_equal(e.reason, "DISK_FULL");
    struct audit_stats st;
    audit_stats(r->a, &st);
    assert_true(st.failing);
    rig_close(r);
    r->acfg.max_pages = 0; /* the disk has room again */
    rig_open(r);
    flush_ok(r);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(DISTINCT job) FROM v_job"), ok);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_job"), ok);
    assert_int_equal(sql_int(r->dir.state, "SELECT count(*) FROM job"),
                     ok); /* what was refused is not there */
    assert_int_equal(must(r, "after", &e), ST_OK);
    flush_ok(r);
    verify_ok(r->dir.audit, ok + 1);
}

static void it_recovers_by_itself(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_open(r);
    sqlite3 *other; /* holds the lock until the writer gives up */
    assert_int_equal(sqlite3_open(r->dir.audit, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(must(r, "j1", &e), ST_OK); /* on disk, in the outbox */
    assert_int_equal(audit_flush_wait(r->a, &e), ST_ECONFLICT);
    assert_int_equal(must(r, "j2", &e), ST_ERESOURCE);
    sqlite3_close(other);
    flush_ok(r);
    assert_int_equal(must(r, "j2", &e), ST_OK);
    flush_ok(r);
    verify_ok(r->dir.audit, 2);
}

static void an_older_state_db_fits_again(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_open(r);
    for (int i = 0; i < 5; i++) {
        char id[8];
        snprintf(id, sizeof id, "j%d", i);
        assert_int_equal(must(r, id, &e), ST_OK);
    }
    rig_close(r);
    char side[128];
    assert_int_equal(unlink(r->dir.state), 0); /* lost, and begun anew: its sequence starts at 1 */
    snprintf(side, sizeof side, "%s-wal", r->dir.state);
    unlink(side);
    snprintf(side, sizeof side, "%s-shm", r->dir.state);
    unlink(side);
    rig_open(r);
    assert_int_equal(must(r, "new", &e), ST_OK);
    flush_ok(r);
    verify_ok(r->dir.audit, 6);
}

static void a_bad_outbox_row_does_not_stop_the_rest(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_open(r);
    rig_close(r);
    sql_run(r->dir.state, "INSERT INTO outbox(event) VALUES(x'0102'),(x'')");
    rig_open(r);
    assert_int_equal(must(r, "j", &e), ST_OK);
    flush_ok(r);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_audit WHERE type='audit.loss'"), 2);
    verify_ok(r->dir.audit, 3);
}

/* ---- queries against a plain loop over the same events ---- */

enum { ROWS = 1500 };
struct want {
    struct audit_event e;
    char who[24], dev[24], job[24];
};

static bool matches(const struct audit_filter *f, const struct want *w, int64_t id)
{
    const struct audit_event *e = &w->e;
    const char *type = event_info(e->type)->name;
    if ((f->since_us && e->time_us < f->since_us) || (f->until_us && e->time_us >= f->until_us))
        return false;
    if ((f->principal && strcmp(f->principal, w->who)) || (f->device && strcmp(f->device, w->dev)) ||
        (f->node && strcmp(f->node, e->node)) || (f->job && strcmp(f->job, w->job)) ||
        (f->session && strcmp(f->session, e->session)))
        return false;
    if (f->type && strcmp(f->type, type) &&
        !(strcmp(f->type, "job.*") == 0 && strncmp(type, "job.", 4) == 0) &&
        !(strcmp(f->type, "device.") == 0 && strncmp(type, "device.", 7) == 0))
        return false;
    if (e->severity < f->severity_min || (f->result >= 0 && e->result != f->result))
        return false;
    return !f->after_id || (f->descending ? id < f->after_id : id > f->after_id);
}

struct seen {
    const struct want *all;
    int64_t ids[ROWS];
    unsigned n;
};

static int see(void *arg, const struct audit_event *e)
{
    struct seen *s = arg;
    const struct want *w = &s->all[e->id - 1];
    assert_int_equal(e->time_us, w->e.time_us);
    assert_int_equal(e->type, w->e.type);
    assert_int_equal(e->severity, w->e.severity);
    assert_int_equal(e->result, w->e.result);
    assert_string_equal(e->principal, w->who);
    assert_string_equal(e->device, w->dev);
    assert_string_equal(e->job, w->job);
    assert_string_equal(e->error, w->e.error ? w->e.error : "");
    assert_string_equal(e->meta, w->e.meta ? w->e.meta : "");
    s->ids[s->n++] = e->id;
    return 0;
}

static void make_rows(struct rig *r, struct want *all)
{
    static const int types[] = {EV_JOB_SUBMITTED, EV_JOB_FAILED, EV_DEVICE_LIST, EV_DEVICE_INFO,
                                EV_NODE_DEAD};
    struct err e;
    unsigned seed = 7;
    for (int i = 0; i < ROWS; i++) {
        struct want *w = &all[i];
        int result = rand_r(&seed) % 3;
        w->e = event_make(types[rand_r(&seed) % 5], result, 1000000 + i * 10 + rand_r(&seed) % 200);
        snprintf(w->who, sizeof w->who, "user/u%d", rand_r(&seed) % 4);
        snprintf(w->dev, sizeof w->dev, "n%d/cuda:%d", rand_r(&seed) % 2, rand_r(&seed) % 2);
        if (rand_r(&seed) % 2)
            snprintf(w->job, sizeof w->job, "job-%d", rand_r(&seed) % 3);
        w->e.principal = w->who;
        w->e.device = w->dev;
        w->e.job = w->job;
        w->e.node = rand_r(&seed) % 2 ? "n0" : "n1";
        w->e.session = rand_r(&seed) % 2 ? "s0" : "s1";
        w->e.error = result ? "went wrong" : NULL;
        w->e.meta = rand_r(&seed) % 2 ? "{\"bytes\":1}" : NULL;
        struct store_txn *t = store_txn_new();
        store_txn_event(t, &w->e);
        if (i % 100 == 99) { /* about fifteen batches */
            assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
            flush_ok(r);
        } else {
            assert_int_equal(store_submit(r->s, t, NULL, NULL), ST_OK);
        }
    }
}

static void queries_agree_with_a_plain_loop(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct want *all = calloc(ROWS, sizeof *all);
    struct seen *s = calloc(1, sizeof *s);
    r->acfg.flush_ns = 3600 * NS_PER_S;
    rig_open(r);
    make_rows(r, all);
    unsigned seed = 1, nonempty = 0;
    for (int round = 0; round < 400; round++) {
        static const char *const who[] = {"user/u0", "user/u1", "user/nobody"}, *const types[] = {
                                                                                    "job.*", "device.",
                                                                                    "node.dead"};
        struct audit_filter f = AUDIT_FILTER_ALL;
#define MAYBE (rand_r(&seed) % 4 == 0)
        f.principal = MAYBE ? who[rand_r(&seed) % 3] : NULL;
        f.device = MAYBE ? "n1/cuda:0" : NULL;
        f.node = MAYBE ? "n0" : NULL;
        f.session = MAYBE ? "s1" : NULL;
        f.job = MAYBE ? "job-1" : NULL;
        f.type = MAYBE ? types[rand_r(&seed) % 3] : NULL;
        f.since_us = MAYBE ? 1000000 + rand_r(&seed) % 15000 : 0;
        f.until_us = MAYBE ? 1007000 + rand_r(&seed) % 9000 + (f.since_us ? 9000 : 0) : 0;
        f.severity_min = MAYBE ? rand_r(&seed) % 5 : 0;
        f.result = MAYBE ? rand_r(&seed) % 3 : -1;
        f.after_id = MAYBE ? rand_r(&seed) % ROWS : 0;
        f.descending = rand_r(&seed) % 2;
        f.limit = MAYBE ? 1 + rand_r(&seed) % 20 : 0;
        s->all = all;
        s->n = 0;
        if (audit_query(r->dir.audit, &f, see, s, &e) != ST_OK)
            fail_msg("%s", e.text);
        unsigned n = 0, limit = f.limit ? f.limit : 1000;
        for (int i = 0; i < ROWS && n < limit; i++) {
            int64_t id = f.descending ? ROWS - i : i + 1;
            if (!matches(&f, &all[id - 1], id))
                continue;
            assert_true(n < s->n);
            assert_int_equal(s->ids[n], id);
            n++;
        }
        assert_int_equal(s->n, n);
        nonempty += n > 0;
    }
    assert_true(nonempty > 200);
    verify_ok(r->dir.audit, ROWS);
    int64_t denied = 0, critical = 0, jobs = 0;
    for (int i = 0; i < ROWS; i++) {
        denied += all[i].e.result == EVENT_DENIED;
        critical += all[i].e.severity >= EVENT_ERROR;
        jobs += all[i].job[0] != 0;
    }
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_denied WHERE result='denied'"), denied);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_critical WHERE severity='error'"),
                     critical);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_job WHERE job LIKE 'job-%'"), jobs);
    assert_int_equal(sql_int(r->dir.audit, "SELECT sum(n) FROM v_rate_1m WHERE result='denied'"), denied);
    free(all);
    free(s);
}

static int stop_at_two(void *arg, const struct audit_event *e)
{
    (void)e;
    return ++*(int *)arg == 2 ? 77 : 0;
}

static void queries_refuse_nonsense(void **state)
{
    struct rig *r = *state;
    struct err e;
    int n = 0;
    struct audit_filter f = AUDIT_FILTER_ALL;
    assert_int_equal(audit_query(r->dir.audit, &f, stop_at_two, &n, &e), ST_ENOENT); /* no file yet */
    rig_open(r);
    struct audit_event k = keep("u", 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(audit_emit(r->a, &k), ST_OK);
    flush_ok(r);
    assert_int_equal(audit_query(r->dir.audit, &f, stop_at_two, &n, &e), 77);
    assert_int_equal(n, 2);
    f.type = "job.submited";
    assert_int_equal(audit_query(r->dir.audit, &f, stop_at_two, &n, &e), ST_EINVAL);
    f.type = NULL;
    f.since_us = 5;
    f.until_us = 5;
    assert_int_equal(audit_query(r->dir.audit, &f, stop_at_two, &n, &e), ST_EINVAL);
    f = AUDIT_FILTER_ALL;
    f.severity_min = 5;
    assert_int_equal(audit_query(r->dir.audit, &f, stop_at_two, &n, &e), ST_EINVAL);
    f = AUDIT_FILTER_ALL;
    assert_int_equal(audit_query(r->dir.state, &f, stop_at_two, &n, &e), ST_ECORRUPT); /* not audit.db */
    rig_close(r);
    sql_run(r->dir.audit, "PRAGMA user_version=9");
    assert_int_equal(audit_query(r->dir.audit, &f, stop_at_two, &n, &e), ST_ENOTSUP);
    struct audit *a;
    assert_int_equal(audit_open(&a, &r->acfg, NULL, &e), ST_ENOTSUP);
    assert_string_equal(e.reason, "NEWER_SCHEMA");
}

/* ---- many threads ---- */

struct producer {
    struct rig *r;
    atomic_bool *stop;
    unsigned sent;
};

static void *produce(void *arg)
{
    struct producer *p = arg;
    while (p->sent < 5000) {
        struct audit_event k = keep("user/bob", p->sent);
        int rc = audit_emit(p->r->a, &k);
        if (rc == ST_EAGAIN)
            (void)!audit_flush_wait(p->r->a, NULL);
        p->sent += rc == ST_OK;
    }
    return NULL;
}

static void *read_along(void *arg)
{
    struct producer *p = arg;
    struct audit_filter f = AUDIT_FILTER_ALL;
    f.descending = true;
    struct err e;
    while (!atomic_load(p->stop)) {
        struct audit_verdict v;
        unsigned n = 0;
        if (audit_query(p->r->dir.audit, &f, count_fn, &n, &e) != ST_OK ||
            audit_verify(p->r->dir.audit, NULL, &v, &e) != ST_OK)
            break;
        p->sent++;
    }
    return NULL;
}

static void many_threads(void **state)
{
    struct rig *r = *state;
    struct err e;
    r->acfg.ring_rows = 256;
    rig_open(r);
    atomic_bool stop = false;
    struct producer p[4];
    pthread_t th[4];
    for (int i = 0; i < 4; i++) {
        p[i] = (struct producer){r, &stop, 0};
        pthread_create(&th[i], NULL, i < 3 ? produce : read_along, &p[i]);
    }
    for (int i = 0; i < 200; i++) {
        char id[16];
        snprintf(id, sizeof id, "j%d", i);
        assert_int_equal(must(r, id, &e), ST_OK);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(th[i], NULL);
    atomic_store(&stop, true);
    pthread_join(th[3], NULL);
    assert_true(p[3].sent > 0);
    flush_ok(r);
    verify_ok(r->dir.audit, 15200);
    struct audit_filter f = AUDIT_FILTER_ALL;
    f.limit = 100000;
    f.type = "job.*";
    assert_int_equal(count(r, &f), 200);
}

static void console_echo(void **state)
{
    struct rig *r = *state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    r->acfg.echo_fd = fds[1];
    rig_open(r);
    struct audit_event k = keep("user/bob", 1700000000000000);
    assert_int_equal(audit_emit(r->a, &k), ST_OK);
    flush_ok(r);
    char line[600];
    ssize_t n = read(fds[0], line, sizeof line);
    assert_true(n > 20 && line[n - 1] == '\n');
    assert_true(event_json_object_ok(line, (size_t)n));
    line[n - 1] = 0;
    assert_non_null(strstr(line, "\"id\":1,\"time\":\"2023-11-14T22:13:20.000000Z\""));
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(ring_and_outbox_arrive),
                                       T(flushed_by_itself),
                                       T(pressure),
                                       T(a_full_audit_disk_stops_mutations),
                                       T(it_recovers_by_itself),
                                       T(an_older_state_db_fits_again),
                                       T(a_bad_outbox_row_does_not_stop_the_rest),
                                       T(queries_agree_with_a_plain_loop),
                                       T(queries_refuse_nonsense),
                                       T(many_threads),
                                       T(console_echo)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
