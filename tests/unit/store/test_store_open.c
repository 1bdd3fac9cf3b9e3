/* Opening a database: what is not ours, newer, in use or not writable is refused; migrations are whole or not
 * there. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coordinator/store/db.h"
#include "tests/unit/store/store_rig.h"

static void raw_exec(const char *path, const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void strange_files_are_refused(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct store *s = NULL;
    store_close(r->s);
    r->s = NULL;
    raw_exec(r->dir.state, "PRAGMA user_version=99");
    assert_int_equal(store_open(&s, &r->cfg, &e), ST_ENOTSUP);
    assert_string_equal(e.reason, "NEWER_SCHEMA");
    assert_non_null(strstr(e.text, "schema 99"));
    raw_exec(r->dir.state, "PRAGMA user_version=1; PRAGMA application_id=7");
    assert_int_equal(store_open(&s, &r->cfg, &e), ST_ECORRUPT);
    assert_string_equal(e.reason, "NOT_OURS");
    struct store_config cfg = {.path = r->dir.audit};
    raw_exec(r->dir.audit, "CREATE TABLE theirs(x)");
    assert_int_equal(store_open(&s, &cfg, &e), ST_ECORRUPT);
    unlink(r->dir.audit);
    int fd = open(r->dir.audit, O_CREAT | O_WRONLY, 0600);
    for (int i = 0; i < 500; i++)
        assert_int_equal(write(fd, "this is no database, only text. ", 32), 32);
    close(fd);
    assert_int_equal(store_open(&s, &cfg, &e), ST_ECORRUPT);
    assert_non_null(strstr(e.text, "backup"));
    cfg.path = "/nonexistent/dir/state.db";
    assert_int_equal(store_open(&s, &cfg, &e), ST_ENOENT);
    assert_non_null(strstr(e.text, "/nonexistent/dir/state.db"));
    assert_null(s);
}

static void a_second_owner_is_refused(void **state)
{
    struct rig *r = *state;
    struct err e = {0};
    struct store *s = NULL;
    char pid[24];
    assert_int_equal(store_open(&s, &r->cfg, &e), ST_ECONFLICT);
    assert_null(s);
    snprintf(pid, sizeof pid, "pid %ld", (long)getpid());
    assert_non_null(strstr(e.text, pid));
    assert_non_null(strstr(e.text, "another coordinator"));
    store_close(r->s);
    r->s = NULL;
    assert_int_equal(store_open(&r->s, &r->cfg, &e), ST_OK);
}

/* In a child without root's rights: 0 = refused as it should be. */
static int open_as_nobody(const char *path)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct err e;
        struct store *s;
        struct store_config cfg = {.path = path};
        if (geteuid() == 0 && (setgid(65534) || setuid(65534)))
            _exit(3);
        int rc = store_open(&s, &cfg, &e);
        _exit(rc == ST_EDENIED && strstr(e.text, path) ? 0 : 1);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_read_only_directory_is_refused(void **state)
{
    struct rig *r = *state;
    assert_int_equal(chmod(r->dir.dir, 0555), 0);
    assert_int_equal(open_as_nobody(r->dir.audit), 0); /* cannot be created */
    store_close(r->s);
    r->s = NULL;
    assert_int_equal(chmod(r->dir.state, 0444), 0);
    assert_int_equal(open_as_nobody(r->dir.state), 0); /* is there, cannot be written */
    assert_int_equal(chmod(r->dir.dir, 0755), 0);
}

static void migrations_go_step_by_step_or_not_at_all(void **state)
{
    struct rig *r = *state;
    struct err e;
    sqlite3 *db;
    int64_t v;
    const char *steps[] = {"CREATE TABLE a(x); INSERT INTO a VALUES(1)",
                           "ALTER TABLE a ADD COLUMN y; UPDATE a SET y=x+1",
                           "CREATE TABLE b(x); INSERT INTO nonsense VALUES(1)"};
    struct db_kind kind = {
        .app_id = 42, .what = "test.db", .steps = steps, .n_steps = 1, .checkpoint_pages = 1000};
    assert_int_equal(db_open(&db, r->dir.audit, &kind, 0, &e), ST_OK);
    assert_int_equal(db_exec(db, "INSERT INTO a VALUES(5)", &e), ST_OK);
    db_close(db);
    kind.n_steps = 3; /* the third fails: the second stays, the third leaves nothing */
    assert_int_equal(db_open(&db, r->dir.audit, &kind, 0, &e), ST_EINTERNAL);
    assert_non_null(strstr(e.text, "from schema 2"));
    kind.n_steps = 2;
    assert_int_equal(db_open(&db, r->dir.audit, &kind, 0, &e), ST_OK);
    assert_int_equal(db_int(db, "PRAGMA user_version", 0, &v, &e), ST_OK);
    assert_int_equal(v, 2);
    assert_int_equal(db_int(db, "SELECT sum(y) FROM a", 0, &v, &e), ST_OK);
    assert_int_equal(v, 8);
    assert_int_equal(db_int(db, "SELECT count(*) FROM sqlite_schema WHERE name='b'", 9, &v, &e), ST_OK);
    assert_int_equal(v, 0);
    db_close(db);
    kind.n_steps = 1;
    assert_int_equal(db_open(&db, r->dir.audit, &kind, 0, &e), ST_ENOTSUP);
    kind.app_id = 43;
    assert_int_equal(db_open(&db, r->dir.audit, &kind, 0, &e), ST_ECORRUPT);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_read_only_directory_is_refused), /* first: it forks, and no thread is running yet */
        T(strange_files_are_refused),
        T(a_second_owner_is_refused),
        T(migrations_go_step_by_step_or_not_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
