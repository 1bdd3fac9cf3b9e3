/* The chain: every way of changing the file after the fact is found, and the first bad batch is named. */
#include "tests/unit/audit/audit_help.h"

#include <fcntl.h>

#define BATCHES 6
#define PER 10

static int sign(void *arg, const uint8_t *msg, size_t n, uint8_t sig[256], size_t *len)
{
    memset(sig, 0, 16);
    for (size_t i = 0; i < n; i++)
        sig[i % 16] = (uint8_t)(sig[i % 16] * 31 + msg[i] + *(uint8_t *)arg);
    *len = 16;
    return ST_OK;
}

static bool check(void *arg, const char *key_id, const uint8_t *msg, size_t n, const uint8_t *sig, size_t len)
{
    uint8_t want[256];
    size_t want_len;
    return sign(arg, msg, n, want, &want_len) == ST_OK && len == want_len && memcmp(sig, want, len) == 0 &&
           strcmp(key_id, "k1") == 0;
}

/* BATCHES batches of PER rows, ids 1 to 60, a signed checkpoint at each; everything in the main file. */
static void make_file(struct rig *r)
{
    struct err e;
    static uint8_t key = 9;
    r->acfg = (struct audit_config){.path = r->dir.audit,
                                    .flush_ns = 3600 * NS_PER_S,
                                    .checkpoint_rows = 1,
                                    .checkpoint_ns = 3600 * NS_PER_S,
                                    .signer = {sign, &key, "k1"}};
    if (audit_open(&r->a, &r->acfg, NULL, &e) < 0)
        fail_msg("%s", e.text);
    for (int b = 0; b < BATCHES; b++) {
        for (int i = 0; i < (b ? PER - 1 : PER);
             i++) { /* after the first, the checkpoint's own row makes ten */
            char who[24];
            snprintf(who, sizeof who, "user/u%d", i % 3);
            struct audit_event ev = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1000 * b + i + 1);
            ev.principal = who;
            ev.device = "dione/cuda:0";
            ev.node = "dione";
            ev.session = "s1";
            ev.job = "job-1";
            ev.operation = "List";
            ev.error = "none really";
            ev.meta = "{\"count\":1}";
            assert_int_equal(audit_emit(r->a, &ev), ST_OK);
        }
        assert_int_equal(audit_flush_wait(r->a, &e), ST_OK);
    }
    audit_close(r->a);
    r->a = NULL;
    sql_run(r->dir.audit, "PRAGMA wal_checkpoint(TRUNCATE)");
}

static void copy_file(const char *from, const char *to, long flip)
{
    char buf[4096];
    long at = 0;
    int in = open(from, O_RDONLY), out = open(to, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(in >= 0 && out >= 0);
    for (ssize_t n; (n = read(in, buf, sizeof buf)) > 0; at += n) {
        if (flip >= at && flip < at + n)
            buf[flip - at] = (char)(buf[flip - at] ^ (1 << (flip % 8)));
        assert_int_equal(write(out, buf, (size_t)n), n);
    }
    close(in);
    close(out);
}

static void side_files_rm(const char *path)
{
    char side[128];
    snprintf(side, sizeof side, "%s-wal", path);
    unlink(side);
    snprintf(side, sizeof side, "%s-shm", path);
    unlink(side);
}

static void an_untouched_file_is_whole(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    uint8_t key = 9;
    struct audit_checker c = {check, &key};
    struct audit_verify_opts o = {.checker = &c};
    make_file(r);
    if (audit_verify(r->dir.audit, &o, &v, &e) != ST_OK)
        fail_msg("%s", e.text);
    assert_int_equal(v.rows, BATCHES * PER);
    assert_int_equal(v.batches, BATCHES);
    assert_int_equal(v.checkpoints, BATCHES);
    assert_int_equal(sql_int(r->dir.audit, "SELECT count(*) FROM v_audit WHERE type='audit.checkpoint'"),
                     BATCHES - 1);
    key = 8;
    assert_int_equal(audit_verify(r->dir.audit, &o, &v, &e), ST_ECORRUPT);
    assert_non_null(strstr(v.why, "signature"));
    /* An empty store is whole as well. */
    struct audit_config cfg = {.path = r->dir.state};
    assert_int_equal(audit_open(&r->a, &cfg, NULL, &e), ST_OK);
    verify_ok(r->dir.state, 0);
}

/* Statements that change history, and the batch that each must be caught in: 3 is rows 21 to 30. */
static const struct {
    const char *sql;
    int batch;
} tampers[] = {
    {"UPDATE audit_000001 SET ts_us=ts_us+1 WHERE id=25", 3},
    {"UPDATE audit_000001 SET event=2 WHERE id=25", 3},
    {"UPDATE audit_000001 SET severity=0 WHERE id=25", 3},
    {"UPDATE audit_000001 SET result=2 WHERE id=25", 3},
    {"UPDATE audit_000001 SET principal=(SELECT id FROM name WHERE text='dione') WHERE id=25", 3},
    {"UPDATE audit_000001 SET principal=0 WHERE id=25", 3},
    {"UPDATE audit_000001 SET principal=999 WHERE id=25", 3},
    {"UPDATE audit_000001 SET device=node WHERE id=25", 3},
    {"UPDATE audit_000001 SET node=device WHERE id=25", 3},
    {"UPDATE audit_000001 SET session=node WHERE id=25", 3},
    {"UPDATE audit_000001 SET job=node WHERE id=25", 3},
    {"UPDATE audit_000001 SET operation=node WHERE id=25", 3},
    {"UPDATE audit_000001 SET error='none reallY' WHERE id=25", 3},
    {"UPDATE audit_000001 SET error=NULL WHERE id=25", 3},
    {"UPDATE audit_000001 SET meta='{\"count\":2}' WHERE id=25", 3},
    {"UPDATE audit_000001 SET meta='{\"count\": 1}' WHERE id=25", 3},
    {"DELETE FROM audit_000001 WHERE id=21", 3},
    {"DELETE FROM audit_000001 WHERE id=25", 3},
    {"DELETE FROM audit_000001 WHERE id=30", 3},
    {"DELETE FROM audit_000001 WHERE id BETWEEN 21 AND 30", 3},
    {"DELETE FROM audit_000001 WHERE id=60", 6},
    {"INSERT INTO audit_000001 SELECT "
     "61,ts_us,event,severity,result,principal,device,node,session,job,operation,error,meta "
     "FROM audit_000001 WHERE id=60",
     7},
    {"INSERT INTO audit_000001 SELECT "
     "0,ts_us,event,severity,result,principal,device,node,session,job,operation,error,meta "
     "FROM audit_000001 WHERE id=60",
     1},
    {"INSERT INTO audit_000001 SELECT "
     "-5,ts_us,event,severity,result,principal,device,node,session,job,operation,error,meta "
     "FROM audit_000001 WHERE id=60",
     1},
    /* two rows change places */
    {"UPDATE audit_000001 SET id=-1 WHERE id=25; UPDATE audit_000001 SET id=25 WHERE id=26; UPDATE "
     "audit_000001 SET id=26 WHERE "
     "id=-1",
     3},
    {"UPDATE audit_000001 SET id=-1 WHERE id=25; UPDATE audit_000001 SET id=25 WHERE id=45; UPDATE "
     "audit_000001 SET id=45 WHERE "
     "id=-1",
     3},
    /* one is taken out and the later ones close up */
    {"DELETE FROM audit_000001 WHERE id=25; UPDATE audit_000001 SET id=id-1 WHERE id>25", 3},
    {"UPDATE name SET text='user/eve' WHERE text='user/u1'", 1},
    {"DELETE FROM name WHERE text='user/u1'", 1},
    {"UPDATE event_type SET name='job.submitted2' WHERE name='device.list'", 1},
    {"DELETE FROM seal WHERE first=21", 3},
    {"DELETE FROM seal WHERE first=21; DELETE FROM audit_000001 WHERE id BETWEEN 21 AND 30", 3},
    {"UPDATE seal SET ts_min=ts_min-1 WHERE first=21", 3},
    {"UPDATE seal SET ts_max=ts_max+1 WHERE first=21", 3},
    {"UPDATE seal SET last=31 WHERE first=21", 3},
    {"UPDATE seal SET last=1 WHERE first=21", 3},
    {"UPDATE seal SET prev=zeroblob(32) WHERE first=21", 3},
    {"UPDATE seal SET hash=zeroblob(32) WHERE first=21", 3},
    {"UPDATE seal SET hash=x'00' WHERE first=21", 3},
    /* the end is cut off, with and without its seal, and with the state row made to fit */
    {"DELETE FROM audit_000001 WHERE id>50", 6},
    {"DELETE FROM audit_000001 WHERE id>50; DELETE FROM seal WHERE first>50", 6},
    {"DELETE FROM audit_000001 WHERE id>50; DELETE FROM seal WHERE first>50; "
     "UPDATE state SET size=50,head=(SELECT hash FROM seal WHERE last=50)",
     0},
    {"DELETE FROM state", 7},
    {"UPDATE state SET size=59", 7},
    {"UPDATE checkpoint SET head=zeroblob(32) WHERE size=30", 3},
    {"UPDATE checkpoint SET size=29 WHERE size=30", 3},
    {"UPDATE checkpoint SET sig=x'00' WHERE size=30", 3},
    {"UPDATE checkpoint SET ts_us=ts_us+1 WHERE size=30", 3},
    {"UPDATE checkpoint SET key_id='k2' WHERE size=30", 3},
};

static void every_tampering_is_caught_in_its_batch(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    uint8_t key = 9;
    struct audit_checker c = {check, &key};
    struct audit_verify_opts o = {.checker = &c};
    make_file(r);
    for (size_t i = 0; i < sizeof tampers / sizeof tampers[0]; i++) {
        copy_file(r->dir.audit, r->dir.state, -1);
        side_files_rm(r->dir.state);
        sql_run(r->dir.state, tampers[i].sql);
        int rc = audit_verify(r->dir.state, &o, &v, &e);
        if (rc != ST_ECORRUPT || !v.broken)
            fail_msg("not caught: %s", tampers[i].sql);
        if (tampers[i].batch && v.bad_first != (tampers[i].batch - 1) * PER + 1)
            fail_msg("%s: named row %lld, %s", tampers[i].sql, (long long)v.bad_first, v.why);
        assert_string_equal(e.reason, "CHAIN_BROKEN");
    }
}

struct dump {
    uint64_t sum;
    unsigned rows;
};

static int dump_row(void *arg, const struct audit_event *e)
{
    struct dump *d = arg;
    struct buf b = {0};
    if (event_json(e, &b) < 0)
        return -1;
    for (size_t i = 0; i < b.len; i++)
        d->sum = (d->sum ^ b.data[i]) * 1099511628211u;
    d->rows++;
    buf_fini(&b);
    return 0;
}

/* Any bit of the file: either the check fails, or what a reader gets is what was written. */
static void no_flipped_bit_changes_history_unseen(void **state)
{
    struct rig *r = *state;
    struct err e;
    struct audit_verdict v;
    struct audit_filter f = AUDIT_FILTER_ALL;
    struct dump want = {0};
    make_file(r);
    assert_int_equal(audit_query(r->dir.audit, &f, dump_row, &want, &e), ST_OK);
    assert_int_equal(want.rows, BATCHES * PER);
    int fd = open(r->dir.audit, O_RDONLY);
    long size = lseek(fd, 0, SEEK_END);
    close(fd);
    unsigned caught = 0, tried = 0;
    for (long at = 0; at < size; at += 151) {
        struct dump got = {0};
        copy_file(r->dir.audit, r->dir.state, at);
        side_files_rm(r->dir.state);
        tried++;
        if (audit_verify(r->dir.state, NULL, &v, &e) != ST_OK) {
            caught++;
            continue;
        }
        if (audit_query(r->dir.state, &f, dump_row, &got, &e) != ST_OK)
            continue; /* unreadable is not unseen */
        if (got.sum != want.sum || got.rows != want.rows)
            fail_msg("byte %ld changed what is read, and the chain did not notice", at);
    }
    assert_true(caught > 50 && caught < tried);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(an_untouched_file_is_whole),
                                       T(every_tampering_is_caught_in_its_batch),
                                       T(no_flipped_bit_changes_history_unseen)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
