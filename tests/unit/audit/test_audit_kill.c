/*
 * kill -9 at any moment: each acknowledged mutation is in state.db and its event exactly once in audit.db.
 * The witness is the parent, which reads acknowledgements from a pipe. STRATA_SOAK in the environment: a
 * thousand times.
 */
#include "tests/unit/audit/audit_help.h"

#include <signal.h>
#include <sys/wait.h>

enum { MAX = 4000000 };

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

static void count_all(struct rig *r, const uint8_t *acks, const char *path, const char *sql)
{
    uint8_t *seen = calloc(1, MAX);
    sqlite3 *db;
    sqlite3_stmt *st;
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &st, NULL), SQLITE_OK);
    while (sqlite3_step(st) == SQLITE_ROW) {
        uint32_t i = (uint32_t)atoi((const char *)sqlite3_column_text(st, 0) + 1);
        assert_true(i < MAX);
        assert_int_equal(seen[i]++, 0); /* never twice */
    }
    sqlite3_finalize(st);
    sqlite3_close(db);
    unsigned lost = 0;
    for (uint32_t i = 0; i < MAX; i++)
        lost += acks[i] && !seen[i];
    assert_int_equal(lost, 0);
    free(seen);
    (void)r;
}

static void lives(struct rig *r, int rounds, uint64_t flush_ns)
{
    uint8_t *acks = calloc(1, MAX);
    uint32_t from = 0;
    struct err e;
    r->scfg = (struct store_config){.path = r->dir.state, .queue_max = 256};
    r->acfg = (struct audit_config){.path = r->dir.audit, .flush_ns = flush_ns};
    for (int i = 0; i < rounds; i++)
        from = one_life(r, acks, from, 20u + (unsigned)(i * 97) % 400u);
    rig_open(r);
    flush_ok(r);
    count_all(r, acks, r->dir.state, "SELECT id FROM job");
    count_all(r, acks, r->dir.audit, "SELECT job FROM v_job");
    int64_t jobs = sql_int(r->dir.state, "SELECT count(*) FROM job");
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_job"), jobs);
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
    lives(*state, getenv("STRATA_SOAK") ? 1000 : 100, NS_PER_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_before_anything_is_drained, setup, teardown),
        cmocka_unit_test_setup_teardown(killed_while_draining, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
