/*
 * Others read the live file while it is written: the sqlite3 shell, Python, and a WAL reader, all under
 * another uid that has read permission alone. And what a slow one of them does to the writer: nothing.
 */
#include "tests/unit/audit/audit_help.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { OTHER = 65534 };

static void emit_n(struct rig *r, int n)
{
    for (int i = 0; i < n; i++) {
        struct audit_event ev = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1700000000000000 + i);
        ev.principal = "user/alice";
        ev.meta = "{\"count\":1}";
        int rc;
        while ((rc = audit_emit(r->a, &ev)) == ST_EAGAIN)
            flush_ok(r);
        assert_int_equal(rc, ST_OK);
    }
}

/* As the packages set it up: the group may read, and files made later belong to it as well. */
static bool share(struct rig *r)
{
    if (geteuid() != 0) {
        print_message("SKIPPED: reading under another uid needs root\n");
        return false;
    }
    assert_int_equal(chown(r->dir.dir, 0, OTHER), 0);
    assert_int_equal(chmod(r->dir.dir, 02750), 0);
    return true;
}

static void become_other(void)
{
    gid_t g = OTHER;
    if (setgroups(1, &g) || setgid(OTHER) || setuid(OTHER))
        _exit(90);
}

/* The number a program prints when it reads the file as the other user; -1 when it fails. */
static long ask(const char *const *argv)
{
    int fds[2];
    char text[64] = "";
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        become_other();
        dup2(fds[1], 1);
        close(fds[0]);
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(fds[1]);
    size_t at = 0;
    for (ssize_t n; at < sizeof text - 1 && (n = read(fds[0], text + at, sizeof text - 1 - at)) > 0;)
        at += (size_t)n;
    close(fds[0]);
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 && at ? atol(text) : -1;
}

static bool there(const char *program)
{
    char cmd[80];
    snprintf(cmd, sizeof cmd, "command -v %s >/dev/null 2>&1", program);
    return system(cmd) == 0;
}

static void programs_read_the_live_file(void **state)
{
    struct rig *r = *state;
    char uri[140], code[400];
    if (!share(r))
        skip();
    r->acfg.flush_ns = 5 * NS_PER_MS;
    r->acfg.segment_rows = 400;
    r->acfg.hot_segments = 2;
    rig_open(r);
    snprintf(uri, sizeof uri, "file:%s?mode=ro", r->dir.audit);
    snprintf(code, sizeof code,
             "import sqlite3; db=sqlite3.connect('%s', uri=True); print(db.execute('select max(id) from "
             "v_audit').fetchone()[0])",
             uri);
    const char *const shell[] = {"sqlite3", uri, "select max(id) from v_audit", NULL}, *const python[] = {
                                                                                           "python3", "-c",
                                                                                           code, NULL};
    const char *const *const programs[] = {shell, python};
    for (int p = 0; p < 2; p++) {
        if (!there(programs[p][0])) {
            print_message("SKIPPED: there is no %s here\n", programs[p][0]);
            continue;
        }
        long last = 0;
        for (int i = 0; i < 6; i++) {
            emit_n(r, 250);
            flush_ok(r);
            struct audit_stats st;
            audit_stats(r->a, &st);
            emit_n(r, 250); /* on its way while it reads */
            long n = ask(programs[p]);
            if (n < (long)st.rows || n < last)
                fail_msg("%s sees %ld of %lld rows", programs[p][0], n, (long long)st.rows);
            last = n;
        }
    }
    rig_close(r); /* a clean end keeps the side files, so it goes on working */
    if (there("sqlite3"))
        assert_true(ask(shell) > 0);
    verify_ok(r->dir.audit, (uint64_t)sql_int(r->dir.audit, "SELECT size FROM state"));
}

/* A reader of the WAL in another process and under another uid, flat out, while the writer is. */
static void a_wal_reader_sees_only_whole_batches(void **state)
{
    struct rig *r = *state;
    int there_is[2];
    if (!share(r))
        skip();
    r->acfg.flush_ns = NS_PER_MS;
    assert_int_equal(pipe(there_is), 0);
    /* Before there is a thread: a child of several would inherit their locks, and wait for them for ever. */
    pid_t pid = fork();
    if (pid == 0) {
        char go;
        become_other();
        close(there_is[1]);
        if (read(there_is[0], &go, 1) != 1)
            _exit(4);
        sqlite3 *db;
        sqlite3_stmt *st;
        if (sqlite3_open_v2(r->dir.audit, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK ||
            sqlite3_prepare_v2(
                db,
                "SELECT (SELECT size FROM state),(SELECT max(id) FROM audit_000001),(SELECT max(last) "
                "FROM seal)",
                -1, &st, NULL) != SQLITE_OK)
            _exit(1);
        for (int64_t last = 0, i = 0; i < 2000; i++) {
            if (sqlite3_step(st) != SQLITE_ROW)
                _exit(2);
            int64_t a = sqlite3_column_int64(st, 0), b = sqlite3_column_int64(st, 1),
                    c = sqlite3_column_int64(st, 2);
            if (a != b || b != c || a < last)
                _exit(3);
            last = a;
            sqlite3_reset(st);
        }
        _exit(0);
    }
    close(there_is[0]);
    rig_open(r);
    emit_n(r, 10);
    flush_ok(r);
    assert_int_equal(write(there_is[1], "", 1), 1);
    close(there_is[1]);
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) == 0)
        emit_n(r, 200);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_slow_reader_delays_no_commit(void **state)
{
    struct rig *r = *state;
    sqlite3 *db;
    sqlite3_stmt *st;
    rig_open(r);
    emit_n(r, 100);
    flush_ok(r);
    assert_int_equal(sqlite3_open_v2(r->dir.audit, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT * FROM v_audit", -1, &st, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW); /* and there it stays */
    for (int i = 0; i < 40; i++) {
        emit_n(r, 1500);
        flush_ok(r); /* a writer that waited for the reader would fail here: its lock times out */
    }
    struct audit_stats s;
    audit_stats(r->a, &s);
    assert_true(s.wal_pages > 2000 && !s.failing); /* the price: the WAL cannot begin anew */
    sqlite3_finalize(st);
    sqlite3_close(db);
    /* Gone, it shrinks by itself: the keeper copies, the writer begins anew. */
    uint64_t pages = s.wal_pages;
    for (int i = 0; i < 400 && pages > 2000; i++) {
        emit_n(r, 200);
        flush_ok(r);
        audit_stats(r->a, &s);
        pages = s.wal_pages;
        struct pollfd none = {.fd = -1};
        poll(&none, 1, 5);
    }
    assert_true(pages <= 2000);
}

/* Any system call but read, write and exit kills a thread in this mode. */
static void *strict(void *arg)
{
    struct rig *r = arg;
    struct audit_event ev = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1700000000000000);
    ev.principal = "user/alice";
    ev.meta = "{\"count\":1}";
    bool ok = prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0;
    for (int i = 0; i < 20000 && ok; i++) {
        int rc = audit_emit(r->a, &ev);
        ok = rc == ST_OK || rc == ST_EAGAIN;
    }
    static const char yes = 'y', no = 'n';
    syscall(SYS_write, (int)r->acfg.max_pages, ok ? &yes : &no, 1);
    syscall(SYS_exit, 0);
    return NULL;
}

static void emitting_makes_no_system_call(void **state)
{
    struct rig *r = *state;
    int fds[2];
    char said = 0;
#if defined(__SANITIZE_THREAD__)
    print_message("SKIPPED: ThreadSanitizer makes system calls of its own\n");
    skip();
#endif
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t th;
        struct err e;
        r->acfg.path = r->dir.audit;
        if (audit_open(&r->a, &r->acfg, NULL, &e) < 0)
            _exit(2);
        r->acfg.max_pages = (unsigned)fds[1]; /* where the thread writes its verdict */
        if (pthread_create(&th, NULL, strict, r))
            _exit(3);
        struct pollfd none = {.fd = -1};
        poll(&none, 1, 1500);
        _exit(0);
    }
    close(fds[1]);
    assert_int_equal(read(fds[0], &said, 1), 1);
    close(fds[0]);
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(said, 'y');
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(programs_read_the_live_file),
                                       T(a_wal_reader_sees_only_whole_batches),
                                       T(a_slow_reader_delays_no_commit), T(emitting_makes_no_system_call)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
