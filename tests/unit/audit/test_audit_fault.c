/*
 * Each write, sync and allocation below SQLite fails in turn, for once and for a while, under both databases.
 * What was acknowledged is there once, what was refused harmed nothing, and the store goes on by itself.
 * STRATA_SOAK in the environment takes every one; otherwise a sample.
 */
#include "tests/support/faultvfs.h"
#include "tests/unit/audit/audit_help.h"

enum { MUTATIONS = 6, EMITS = 6 };

struct tally {
    unsigned acked, refused, kept;
};

/* Mutations and events, and flushes between them: whatever fails may say so, and nothing else may happen. */
static void work(struct rig *r, struct tally *t, unsigned round)
{
    struct err e = {0};
    for (unsigned i = 0; i < MUTATIONS; i++) {
        char id[32];
        snprintf(id, sizeof id, "j%u-%u", round, i);
        struct audit_event ev = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, 1700000000000000);
        ev.job = id;
        ev.principal = "user/alice";
        struct store_job j = {.id = id};
        struct store_txn *x = store_txn_new();
        store_txn_job_insert(x, &j);
        store_txn_event(x, &ev);
        int rc = submit_wait(r->s, r->port, x, &e);
        if (rc == ST_OK)
            t->acked++;
        else
            t->refused++;
        if (rc < 0 && !e.text[0])
            fail_msg("refused without a word");
        struct audit_event k = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1700000000000000 + i);
        k.principal = id; /* a name of its own, so that names are written too */
        if (audit_emit(r->a, &k) == ST_OK)
            t->kept++;
        if (i % 3 == 2)
            (void)!audit_flush_wait(r->a, NULL);
    }
}

static int count(void *arg, const struct audit_event *ev)
{
    int64_t *c = arg;
    c[0] += ev->type == EV_JOB_SUBMITTED;
    c[1] += ev->type == EV_DEVICE_LIST;
    return 0;
}

/* One failure; true when it happened. */
static bool one(struct rig *r, enum fault_kind kind, unsigned n, unsigned run, const char *file)
{
    struct tally t = {0};
    struct err e = {0};
    struct audit_verdict v;
    bool hit;
    r->acfg = (struct audit_config){.path = r->dir.audit,
                                    .flush_ns = NS_PER_MS,
                                    .checkpoint_ns = 3600 * NS_PER_S,
                                    .segment_rows = 8,
                                    .ring_rows = 256};
    rig_open(r);
    faultvfs_arm(kind, n, run, file);
    work(r, &t, 0);
    faultvfs_seen(&hit);
    faultvfs_disarm();
    for (int i = 0; i < 100 && audit_flush_wait(r->a, &e) != ST_OK; i++) /* it recovers by itself */
        ;
    if (e.code != ST_OK)
        fail_msg("kind %d number %u: does not recover: %s", (int)kind, n, e.text);
    work(r, &t, 1);
    flush_ok(r);
    rig_close(r);
    rig_open(r);
    flush_ok(r);
    if (audit_verify(r->dir.audit, NULL, &v, &e) != ST_OK)
        fail_msg("kind %d number %u: %s", (int)kind, n, e.text);
    int64_t jobs = sql_int(r->dir.state, "SELECT count(*) FROM job");
    struct audit_filter f = AUDIT_FILTER_ALL;
    f.limit = 100000;
    int64_t counts[2] = {0};
    assert_int_equal(audit_query(r->dir.audit, &f, count, counts, &e), ST_OK);
    int64_t told = counts[0], kept = counts[1];
    if (jobs < t.acked || jobs > t.acked + t.refused)
        fail_msg("kind %d number %u: %u acknowledged, %lld there", (int)kind, n, t.acked, (long long)jobs);
    if (told != jobs || kept != t.kept)
        fail_msg("kind %d number %u: jobs %lld told of %lld, kept %u found %lld", (int)kind, n,
                 (long long)jobs, (long long)told, t.kept, (long long)kept);
    rig_close(r);
    scratch_free(&r->dir);
    scratch_new(&r->dir);
    r->scfg.path = r->dir.state;
    return hit;
}

static void all_of(struct rig *r, enum fault_kind kind, const char *file, unsigned step, unsigned run)
{
    unsigned n = 1, hits = 0;
    if (getenv("STRATA_SOAK"))
        step = 1;
    while (one(r, kind, n, run, file)) {
        hits++;
        n += getenv("STRATA_SOAK") ? 1 : step + n / 6; /* a sample: densest where files are made */
    }
    assert_true(hits >= 3);
    print_message("%u failures of kind %d below %s, the last number %u\n", hits, (int)kind,
                  file ? file : "both", n);
}

static void writes(void **state)
{
    all_of(*state, FAULT_WRITE, "audit.db", 23, 1);
    all_of(*state, FAULT_WRITE, "state.db", 11, 1);
}

static void syncs(void **state)
{
    all_of(*state, FAULT_SYNC, "audit.db", 1, 1);
    all_of(*state, FAULT_SYNC, "state.db", 1, 1);
}

static void allocations(void **state)
{
    all_of(*state, FAULT_ALLOC, NULL, 110, 1);
}

static void a_disk_that_stays_full_for_a_while(void **state)
{
    all_of(*state, FAULT_FULL, "audit.db", 40, 30);
}

int main(void)
{
    if (!faultvfs_install())
        return 1;
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(writes), T(syncs), T(allocations),
                                       T(a_disk_that_stays_full_for_a_while)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
