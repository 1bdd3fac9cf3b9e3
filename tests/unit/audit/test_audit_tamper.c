/*
 * A generated set of tamperings, each found in its batch. The store has sealed segments, segments in the live
 * file, and signed checkpoints; every kind of change is made at random places by a seeded generator.
 */
#include "tests/unit/audit/audit_help.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "coordinator/audit/audit_priv.h"

enum { TAMPERINGS = 500, ROWS = 450 };

struct place {
    int64_t id, first, last; /* a row and its batch */
    char file[1024], table[32];
};

static unsigned seed = 20261124;

static unsigned dice(unsigned n)
{
    return (unsigned)rand_r(&seed) % n;
}

static void build(struct rig *r, struct audit_signer signer)
{
    r->acfg = (struct audit_config){.path = r->dir.audit,
                                    .flush_ns = 3600 * NS_PER_S,
                                    .flush_rows = 100000,
                                    .checkpoint_ns = 3600 * NS_PER_S,
                                    .checkpoint_rows = 40,
                                    .segment_rows = 75,
                                    .hot_segments = 2,
                                    .signer = signer};
    struct err e;
    if (audit_open(&r->a, &r->acfg, NULL, &e) < 0)
        fail_msg("%s", e.text);
    for (int i = 0; i < ROWS; i++) {
        char who[24], meta[48];
        snprintf(who, sizeof who, "user/u%d", i % 5);
        snprintf(meta, sizeof meta, "{\"count\":%d}", i);
        struct audit_event ev =
            event_make(i % 3 ? EV_DEVICE_LIST : EV_NODE_CONNECTED, EVENT_SUCCESS, 1000 + i);
        ev.principal = who;
        ev.device = "dione/cuda:0";
        ev.node = "dione";
        ev.session = "s1";
        ev.job = "job-1";
        ev.operation = "List";
        ev.error = "none really";
        ev.meta = meta;
        assert_int_equal(audit_emit(r->a, &ev), ST_OK);
        if (i % 15 == 14)
            flush_ok(r);
    }
    for (int i = 0; i < 2000; i++) {
        if (sql_int(r->dir.audit, "SELECT count(*) FROM segment WHERE last<>0 AND file=''") == 2)
            break;
        struct pollfd none = {.fd = -1};
        poll(&none, 1, 5);
        flush_ok(r);
    }
    audit_close(r->a);
    r->a = NULL;
    sql_run(r->dir.audit, "PRAGMA wal_checkpoint(TRUNCATE)");
    assert_true(sql_int(r->dir.audit, "SELECT count(*) FROM segment WHERE file<>''") >= 2);
}

static void copy(const char *from, const char *to)
{
    char buf[65536];
    int in = open(from, O_RDONLY), out = open(to, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(in >= 0 && out >= 0);
    for (ssize_t n; (n = read(in, buf, sizeof buf)) > 0;)
        assert_int_equal(write(out, buf, (size_t)n), n);
    close(in);
    close(out);
}

/* A fresh copy of the whole store in the other directory. */
static void copy_all(struct rig *r, const char *to)
{
    char side[320];
    struct err e;
    struct segment *v;
    size_t n;
    sqlite3 *db;
    copy(r->dir.audit, to);
    snprintf(side, sizeof side, "%s-wal", to);
    unlink(side);
    snprintf(side, sizeof side, "%s-shm", to);
    unlink(side);
    assert_int_equal(db_open_ro(&db, r->dir.audit, &audit_db_kind, &e), ST_OK);
    assert_int_equal(segment_list(db, &v, &n, &e), ST_OK);
    db_close(db);
    for (size_t i = 0; i < n; i++)
        if (v[i].file[0]) {
            char p[1024], q[1024];
            assert_int_equal(segment_path(p, r->dir.audit, v[i].file), ST_OK);
            assert_int_equal(segment_path(q, to, v[i].file), ST_OK);
            copy(p, q);
        }
    free(v);
}

/* A random row, where it lies and which batch it is in. */
static void choose(const char *path, struct place *p)
{
    char sql[200];
    int64_t size = sql_int(path, "SELECT size FROM state");
    p->id = 1 + dice((unsigned)size);
    snprintf(sql, sizeof sql, "SELECT n FROM segment WHERE first<=%lld ORDER BY n DESC LIMIT 1",
             (long long)p->id);
    int64_t n = sql_int(path, sql);
    snprintf(sql, sizeof sql, "SELECT file<>'' FROM segment WHERE n=%lld", (long long)n);
    bool sealed = sql_int(path, sql);
    snprintf(sql, sizeof sql, "SELECT slot FROM segment WHERE n=%lld", (long long)n);
    snprintf(p->table, sizeof p->table, "audit_%06lld", (long long)(sealed ? n : sql_int(path, sql)));
    if (sealed) {
        char file[32];
        snprintf(file, sizeof file, "%06lld.db", (long long)n);
        assert_int_equal(segment_path(p->file, path, file), ST_OK);
    } else {
        snprintf(p->file, sizeof p->file, "%s", path);
    }
    snprintf(sql, sizeof sql, "SELECT max(first) FROM seal WHERE first<=%lld", (long long)p->id);
    p->first = sql_int(p->file, sql);
    snprintf(sql, sizeof sql, "SELECT last FROM seal WHERE first=%lld", (long long)p->first);
    p->last = sql_int(p->file, sql);
}

static void alter(const char *path, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void alter(const char *path, const char *fmt, ...)
{
    char sql[1200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(sql, sizeof sql, fmt, ap);
    va_end(ap);
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_exec(db, "PRAGMA synchronous=OFF", NULL, NULL, NULL);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

/* One tampering; `at` becomes the row that the first bad batch must hold, 0 when any finding is right. */
static const char *tamper(const char *path, int64_t witnessed, int64_t *at)
{
    static const char *const columns[] = {"ts_us",  "event",   "severity", "result",    "principal",
                                          "device", "session", "job",      "operation", "node"};
    struct place p, q;
    long long id;
    choose(path, &p);
    id = p.id;
    *at = p.id;
    switch (dice(12)) {
    case 0: {
        const char *c = columns[dice(sizeof columns / sizeof *columns)];
        bool small = !strcmp(c, "severity") || !strcmp(c, "result");
        if (small)
            alter(p.file, "UPDATE %s SET %s=(%s+1)%%3 WHERE id=%lld", p.table, c, c, id);
        else if (!strcmp(c, "ts_us") || !strcmp(c, "event"))
            alter(p.file, "UPDATE %s SET %s=%s+%u WHERE id=%lld", p.table, c, c, 1 + dice(50), id);
        else
            alter(p.file,
                  "UPDATE %s SET %s=CASE %s WHEN 0 THEN (SELECT min(id) FROM name) ELSE 0 END WHERE id=%lld",
                  p.table, c, c, id);
        return "a column of a row";
    }
    case 1:
        alter(p.file, "UPDATE %s SET meta=coalesce(meta,'')||' ' WHERE id=%lld", p.table, id);
        return "metadata";
    case 2:
        alter(p.file, "UPDATE %s SET error=CASE WHEN error IS NULL THEN 'x' ELSE NULL END WHERE id=%lld",
              p.table, id);
        return "an error sentence";
    case 3:
        alter(p.file, "DELETE FROM %s WHERE id=%lld", p.table, id);
        return "a deleted row";
    case 4: {
        long long to = id + dice(5);
        alter(p.file, "DELETE FROM %s WHERE id BETWEEN %lld AND %lld", p.table, id, to);
        return "deleted rows";
    }
    case 5: /* closing up after a deletion */
        alter(p.file, "DELETE FROM %s WHERE id=%lld; UPDATE %s SET id=id-1 WHERE id>%lld", p.table, id,
              p.table, id);
        return "a deletion that closes up";
    case 6: { /* making room and inserting */
        alter(p.file,
              "UPDATE %s SET id=-id-1 WHERE id>=%lld; UPDATE %s SET id=-id WHERE id<0; INSERT INTO %s SELECT "
              "%lld,ts_us,event,severity,result,principal,device,node,session,job,operation,error,'{}' FROM "
              "%s WHERE "
              "id=%lld",
              p.table, id, p.table, p.table, id, p.table, id + 1);
        return "an inserted row";
    }
    case 7: { /* two rows of the same table change places; tables of two files may have one name */
        do
            choose(path, &q);
        while (strcmp(q.table, p.table) != 0 || strcmp(q.file, p.file) != 0);
        if (q.id == p.id)
            return NULL;
        *at = q.id < p.id ? q.id : p.id;
        alter(p.file,
              "UPDATE %s SET id=-1 WHERE id=%lld; UPDATE %s SET id=%lld WHERE id=%lld; UPDATE %s SET id=%lld "
              "WHERE "
              "id=-1",
              p.table, id, p.table, id, (long long)q.id, p.table, (long long)q.id);
        return "two rows in each other's place";
    }
    case 8:
        alter(p.file, "DELETE FROM seal WHERE first=%lld", (long long)p.first);
        *at = p.first;
        return "a seal";
    case 9:
        alter(p.file, "UPDATE seal SET %s WHERE first=%lld",
              dice(2) ? "hash=randomblob(32)" : "prev=randomblob(32)", (long long)p.first);
        *at = p.first;
        return "a hash";
    case 10: /* the end is cut off, and everything in the file made to fit */
        if (strcmp(p.file, path) != 0 || p.last >= witnessed) /* nobody knows of what came after */
            return NULL;
        alter(path,
              "DELETE FROM %s WHERE id>%lld; DELETE FROM seal WHERE last>%lld; DELETE FROM segment WHERE "
              "first>%lld; "
              "UPDATE segment SET last=0 WHERE n=(SELECT max(n) FROM segment); UPDATE state SET size=(SELECT "
              "max(last) "
              "FROM seal),head=(SELECT hash FROM seal ORDER BY first DESC LIMIT 1)",
              p.table, (long long)p.last, (long long)p.last, (long long)p.last);
        *at = 0;
        return "a truncation";
    default:
        alter(
            path,
            "UPDATE checkpoint SET %s WHERE size=(SELECT size FROM checkpoint WHERE size>=(SELECT min(first) "
            "FROM segment WHERE file='') ORDER BY random() LIMIT 1)",
            dice(2) ? "sig=randomblob(64)" : "head=randomblob(32)");
        *at = 0;
        return "a checkpoint";
    }
}

static void every_tampering_is_found(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_key *k;
    struct audit_verdict v;
    char key[300], other[300], dir[320];
    uint8_t pub[AUDIT_PUBLIC];
    snprintf(key, sizeof key, "%s.key", r->dir.audit);
    assert_int_equal(audit_key_open(&k, key, &e), ST_OK);
    audit_key_public(k, pub);
    build(r, audit_key_signer(k));
    /* The head that a witness saw last: it shows what was made to fit. */
    int64_t size = sql_int(r->dir.audit, "SELECT max(size) FROM checkpoint");
    struct audit_head head = {.size = size};
    sqlite3 *db;
    sqlite3_stmt *st;
    assert_int_equal(sqlite3_open(r->dir.audit, &db), SQLITE_OK);
    assert_int_equal(
        sqlite3_prepare_v2(db, "SELECT head FROM checkpoint ORDER BY size DESC LIMIT 1", -1, &st, NULL),
        SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    memcpy(head.head, sqlite3_column_blob(st, 0), 32);
    sqlite3_finalize(st);
    sqlite3_close(db);
    struct audit_checker c = audit_checker_public(pub);
    struct audit_verify_opts o = {.checker = &c, .witnessed = &head, .n_witnessed = 1};
    if (audit_verify(r->dir.audit, &o, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    snprintf(dir, sizeof dir, "%s/copy", r->dir.dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    snprintf(dir, sizeof dir, "%s/copy/segments", r->dir.dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    snprintf(other, sizeof other, "%s/copy/audit.db", r->dir.dir);
    int made = 0, named = 0;
    while (made < TAMPERINGS) {
        int64_t at;
        copy_all(r, other);
        const char *what = tamper(other, size, &at);
        if (!what)
            continue;
        made++;
        int rc = audit_verify(other, &o, &v, &e);
        if (rc != ST_ECORRUPT || !v.broken)
            fail_msg("tampering %d, %s at row %lld: not found (status %d)", made, what, (long long)at, rc);
        if (!at)
            continue;
        named++;
        if (at < v.bad_first || at > v.bad_last)
            fail_msg("tampering %d, %s at row %lld: named rows %lld to %lld, %s", made, what, (long long)at,
                     (long long)v.bad_first, (long long)v.bad_last, v.why);
    }
    assert_true(named > TAMPERINGS / 2);
    audit_key_free(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_tampering_is_found, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
