/*
 * kill -9 at any moment: each acknowledged mutation is in state.db and its event exactly once in audit.db.
 * The witness is the parent, which reads acknowledgements from a pipe. STRATA_SOAK=1 in the environment: a
 * thousand times, another number so many.
 */
#include "tests/unit/audit/audit_help.h"

#include <signal.h>
#include <sys/wait.h>

enum { MAX = 4000000 };
/* Between an acknowledgement and the next checkpoint a hundred times; ThreadSanitizer looks at the threads,
 * for which fewer do. */
#if defined(__SANITIZE_THREAD__)
enum { KILLS = 15 };
#else
enum { KILLS = 100 };
#endif

static void acked(void *arg, int rc, const struct err *e)
{
    (void)e;
    int fd = (int)((intptr_t)arg >> 32);
    uint32_t i = (uint32_t)(intptr_t)arg;
    if (rc != ST_OK || write(fd, &i, sizeof i) != sizeof i)
        _exit(4);
}

static void child(struct rig *r, int fd, uint32_t from)
{
    struct err e;
    if (port_new(&r->port) < 0 || store_open(&r->s, &r->scfg, &e) < 0 ||
        audit_open(&r->a, &r->acfg, r->s, &e) < 0 || store_start(r->s, r->port, &e) < 0)
        _exit(5);
    for (uint32_t i = from;; i++) {
        char id[16];
        snprintf(id, sizeof id, "j%u", i);
        struct audit_event ev = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, i);
        ev.job = id;
        struct store_job j = {.id = id};
        struct store_txn *t = store_txn_new();
        store_txn_job_insert(t, &j);
        store_txn_event(t, &ev);
        if (store_submit(r->s, t, acked, (void *)(((intptr_t)fd << 32) | i)) < 0)
            _exit(6);
        do {
            struct pollfd p = {.fd = port_fd(r->port), .events = POLLIN};
            poll(&p, 1, store_room(r->s) ? 0 : 10);
            port_drain(r->port);
        } while (!store_room(r->s));
    }
}

/* Kills after `want` acknowledgements; returns the first unused number. */
static uint32_t one_life(struct rig *r, uint8_t *acks, uint32_t from, uint32_t want)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(fds[0]);
        child(r, fds[1], from);
    }
    close(fds[1]);
    uint32_t i, n = 0, next = from;
    while (read(fds[0], &i, sizeof i) == sizeof i && i < MAX) {
        acks[i] = 1;
        next = i >= next ? i + 1 : next;
        if (++n == want)
            kill(pid, SIGKILL);
    }
    close(fds[0]);
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(n >= want);
    return next + 5000;
}

/* What is found; every acknowledged one must be, and none twice. */
struct found {
    uint8_t *seen;
    int64_t n, last_id;
};

static void find(struct found *f, const char *job)
{
    uint32_t i = (uint32_t)atoi(job + 1);
    assert_true(i < MAX);
    assert_int_equal(f->seen[i]++, 0);
    f->n++;
}

static int find_row(void *arg, const struct audit_event *ev)
{
    struct found *f = arg;
    f->last_id = ev->id;
    find(f, ev->job);
    return 0;
}

static void none_is_lost(struct found *f, const uint8_t *acks)
{
    unsigned lost = 0;
    for (uint32_t i = 0; i < MAX; i++)
        lost += acks[i] && !f->seen[i];
    assert_int_equal(lost, 0);
    free(f->seen);
}

static int64_t count_state(struct rig *r, const uint8_t *acks)
{
    struct found f = {.seen = calloc(1, MAX)};
    sqlite3 *db;
    sqlite3_stmt *st;
    assert_int_equal(sqlite3_open_v2(r->dir.state, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT id FROM job", -1, &st, NULL), SQLITE_OK);
    while (sqlite3_step(st) == SQLITE_ROW)
        find(&f, (const char *)sqlite3_column_text(st, 0));
    sqlite3_finalize(st);
    sqlite3_close(db);
    none_is_lost(&f, acks);
    return f.n;
}

/* In the live file and in the sealed ones. */
static int64_t count_audit(struct rig *r, const uint8_t *acks)
{
    struct found f = {.seen = calloc(1, MAX)};
    struct err e;
    int64_t before;
    do {
        struct audit_filter q = AUDIT_FILTER_ALL;
        q.type = "job.submitted";
        q.limit = 50000;
        q.after_id = f.last_id;
        before = f.n;
        if (audit_query(r->dir.audit, &q, find_row, &f, &e) != ST_OK)
            fail_msg("%s", e.text);
    } while (f.n > before);
    none_is_lost(&f, acks);
    return f.n;
}

static void lives(struct rig *r, int rounds, uint64_t flush_ns)
{
    uint8_t *acks = calloc(1, MAX);
    uint32_t from = 0;
    struct err e;
    r->scfg = (struct store_config){.path = r->dir.state, .queue_max = 256};
    /* Segments small enough that kills also land while they are closed, sealed and taken out. */
    r->acfg = (struct audit_config){
        .path = r->dir.audit, .flush_ns = flush_ns, .segment_rows = 3000, .hot_segments = 2};
    for (int i = 0; i < rounds; i++)
        from = one_life(r, acks, from, 20u + (unsigned)(i * 97) % 400u);
    rig_open(r);
    flush_ok(r);
    assert_int_equal(count_audit(r, acks), count_state(r, acks));
    struct audit_verdict v;
    if (audit_verify(r->dir.audit, NULL, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    free(acks);
}

static void killed_before_anything_is_drained(void **state)
{
    lives(*state, 5, 3600 * NS_PER_S);
}

static void killed_while_draining(void **state)
{
    const char *soak = getenv("STRATA_SOAK"); /* 1: a thousand; another number: so many */
    int kills = soak ? atoi(soak) : 0;
    lives(*state, kills == 1 ? 1000 : kills > 1 ? kills : KILLS, NS_PER_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_before_anything_is_drained, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_while_draining, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
