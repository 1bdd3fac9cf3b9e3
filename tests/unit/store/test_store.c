/* state.db in use: durability, atomicity, group commit, and the transactions it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "coordinator/store/db.h"
#include "coordinator/store/store_priv.h"
#include "tests/unit/store/store_rig.h"

static struct store_job job(const char *id)
{
    return (struct store_job){.id = id,
                              .principal = "user/alice",
                              .name = "llama",
                              .state = 1,
                              .bytes = 1ull << 40,
                              .spec = "\0spec",
                              .spec_len = 5,
                              .created_us = 10,
                              .updated_us = 11};
}

static struct audit_event event(const char *job_id)
{
    struct audit_event e = event_make(EV_JOB_SUBMITTED, EVENT_SUCCESS, 1000);
    e.principal = "user/alice";
    e.job = job_id;
    return e;
}

static int count_row(void *arg, const struct store_job *j)
{
    (void)j;
    ++*(unsigned *)arg;
    return 0;
}

static unsigned count_jobs(struct rig *r)
{
    unsigned n = 0;
    struct err e;
    assert_int_equal(store_load_jobs(r->s, count_row, &n, &e), ST_OK);
    return n;
}

static int count_event(void *arg, uint64_t seq, const uint8_t *p, size_t len)
{
    struct audit_event e;
    assert_true(seq > 0);
    assert_int_equal(event_decode(p, len, &e), ST_OK);
    ++*(unsigned *)arg;
    return 0;
}

static unsigned count_outbox(struct rig *r, uint64_t after)
{
    struct store_outbox *o;
    struct err e;
    unsigned n = 0, seen = 0;
    assert_int_equal(store_outbox_open(&o, r->s, &e), ST_OK);
    assert_int_equal(store_outbox_read(o, after, 1000000, count_event, &seen, &n, &e), ST_OK);
    assert_int_equal(n, seen);
    store_outbox_close(o);
    return n;
}

/* ---- everything comes back ---- */

static int see_policy(void *arg, const struct policy *p)
{
    assert_string_equal(p->principal, "user/alice");
    assert_int_equal(p->roles, ROLE_BIT(ROLE_USER));
    assert_int_equal(p->denied, PERM_BIT(PERM_MONITOR_MEMORY));
    assert_int_equal(p->n_devices, 2);
    assert_string_equal(p->devices[1], "rhea/*");
    assert_true(p->has_quota);
    assert_int_equal(p->quota_bytes, 1ull << 41);
    assert_false(p->has_node_quota);
    assert_true(p->has_device_quota);
    assert_int_equal(p->device_quota_bytes, 1ull << 40);
    assert_int_equal(p->expires_us, 900);
    assert_int_equal(p->generation, 3);
    ++*(unsigned *)arg;
    return 0;
}

static int see_session(void *arg, const struct store_session *r)
{
    assert_string_equal(r->id, "s-1");
    assert_string_equal(r->principal, "user/alice");
    assert_string_equal(r->node, "dione");
    assert_string_equal(r->devices, "cuda:0\ncuda:1");
    assert_string_equal(r->reason, "KILLED");
    assert_int_equal(r->permissions, PERM_ALL14);
    assert_int_equal(r->limit_bytes, 1ull << 33);
    assert_int_equal(r->state, 1);
    assert_int_equal(r->opened_us, 5);
    assert_int_equal(r->expires_us, 6);
    assert_int_equal(r->generation, 3);
    ++*(unsigned *)arg;
    return 0;
}

static int see_node(void *arg, const struct store_node *n)
{
    assert_string_equal(n->id, "dione");
    assert_string_equal(n->address, "10.0.0.2:7000");
    assert_true(n->incarnation == UINT64_MAX);
    assert_int_equal(n->spool_seq, 17);
    assert_int_equal(n->info_len, 3);
    assert_memory_equal(n->info, "abc", 3);
    ++*(unsigned *)arg;
    return 0;
}

static int see_device(void *arg, const struct store_device *d)
{
    assert_string_equal(d->id, "dione/cuda:0");
    assert_int_equal(d->total_bytes, 80ull << 30);
    assert_int_equal(d->info_len, 0);
    ++*(unsigned *)arg;
    return 0;
}

static int see_job(void *arg, const struct store_job *j)
{
    assert_string_equal(j->id, "j1");
    assert_int_equal(j->state, 2);
    assert_string_equal(j->reason, "PLANNED");
    assert_string_equal(j->plan_id, "p1");
    assert_int_equal(j->spec_len, 5);
    assert_memory_equal(j->spec, "\0spec", 5);
    assert_int_equal(j->updated_us, 99);
    ++*(unsigned *)arg;
    return 0;
}

static int see_layer(void *arg, const struct store_layer *l)
{
    assert_string_equal(l->layer, "blk.0");
    assert_int_equal(l->state, 5);
    assert_string_equal(l->checksum, "cafe");
    ++*(unsigned *)arg;
    return 0;
}

static int see_plan(void *arg, const struct store_plan *p)
{
    assert_string_equal(p->id, "p1");
    assert_int_equal(p->doc_len, 2);
    ++*(unsigned *)arg;
    return 0;
}

static int see_request(void *arg, const struct store_request *q)
{
    assert_string_equal(q->request_id, "r1");
    assert_int_equal(q->response_len, 4);
    ++*(unsigned *)arg;
    return 0;
}

static int see_calibration(void *arg, const struct store_calibration *r)
{
    assert_string_equal(r->device, "dione/cuda:0");
    assert_true(r->memory == 0.5 && r->compute == 1.25 && r->updated_us == 3);
    ++*(unsigned *)arg;
    return 0;
}

static void everything_survives_reopening(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_start(r);
    struct store_txn *t = store_txn_new();
    struct policy p = {.principal = "user/alice",
                       .roles = ROLE_BIT(ROLE_USER),
                       .denied = PERM_BIT(PERM_MONITOR_MEMORY),
                       .n_devices = 2,
                       .devices = {"dione/cuda:*", "rhea/*"},
                       .has_quota = true,
                       .quota_bytes = 1ull << 41,
                       .has_device_quota = true,
                       .device_quota_bytes = 1ull << 40,
                       .created_us = 5,
                       .expires_us = 900,
                       .generation = 3};
    store_txn_policy_put(t, &p);
    struct store_session ss = {.id = "s-1",
                               .principal = "user/alice",
                               .node = "dione",
                               .devices = "cuda:0\ncuda:1",
                               .permissions = PERM_ALL14,
                               .limit_bytes = 1ull << 33,
                               .opened_us = 5,
                               .expires_us = 6,
                               .generation = 3};
    store_txn_session_put(t, &ss);
    ss.state = 1;
    ss.reason = "KILLED";
    store_txn_session_put(t, &ss);
    ss.id = "s-2";
    store_txn_session_put(t, &ss);
    store_txn_session_delete(t, "s-2");
    struct store_node n = {
        .id = "dione", .address = "10.0.0.1:7000", .incarnation = UINT64_MAX, .info = "abc", .info_len = 3};
    store_txn_node_put(t, &n);
    store_txn_spool(t, "dione", 17);
    n.address = "10.0.0.2:7000";
    store_txn_node_put(t, &n); /* keeps spool_seq */
    store_txn_device_put(
        t, &(struct store_device){.id = "dione/cuda:0", .node = "dione", .total_bytes = 80ull << 30});
    struct store_job j = job("j1");
    store_txn_job_insert(t, &j);
    store_txn_job_state(t, "j1", 1, 2, "PLANNED", "p1", 99);
    store_txn_job_state(t, "j1", -1, 2, "PLANNED", NULL, 99);
    struct store_layer l = {
        .job = "j1", .layer = "blk.0", .device = "dione/cuda:0", .state = 4, .checksum = "cafe"};
    store_txn_layer_put(t, &l);
    l.state = 5;
    store_txn_layer_put(t, &l);
    l.layer = "blk.1";
    store_txn_layer_put(t, &l);
    store_txn_layer_delete(t, "j1", "blk.1", "dione/cuda:0");
    store_txn_plan_put(t, &(struct store_plan){.id = "p1",
                                               .job = "j1",
                                               .goal = "latency",
                                               .doc = "{}",
                                               .doc_len = 2,
                                               .inputs = "made of this",
                                               .inputs_len = 12,
                                               .created_us = 7});
    store_txn_request_put(
        t, &(struct store_request){.principal = "user/alice", .request_id = "old", .created_us = 1});
    store_txn_requests_expire(t, 2);
    store_txn_request_put(t, &(struct store_request){.principal = "user/alice",
                                                     .request_id = "r1",
                                                     .method = "Submit",
                                                     .response = "resp",
                                                     .response_len = 4,
                                                     .created_us = 2});
    const char *const calibrated[] = {"dion/cuda:0", "dione/cuda:0", "dione2/cuda:0"};
    for (int i = 0; i < 3; i++)
        store_txn_calibration_put(t, &(struct store_calibration){calibrated[i], 0.5, 1.25, 3});
    store_txn_calibrations_forget(t, "dion");
    store_txn_calibrations_forget(t, "dione2");
    store_txn_meta_put(t, "cluster", "one");
    store_txn_meta_put(t, "cluster", "two");
    struct audit_event ev = event("j1");
    store_txn_event(t, &ev);
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    struct buf piece = {0};
    uint64_t total = 0;
    int64_t made = 0;
    assert_int_equal(store_plan_inputs(r->s, "j1", 5, 2, &piece, &total, &made, &e), ST_OK);
    assert_int_equal(store_plan_inputs(r->s, "j1", 8, 99, &piece, &total, &made, &e), ST_OK);
    assert_string_equal(buf_cstr(&piece), "ofthis");
    assert_int_equal(total, 12);
    assert_int_equal(made, 7);
    assert_int_equal(store_plan_inputs(r->s, "j1", UINT64_MAX / 4, 9, &piece, &total, &made, &e), ST_OK);
    assert_int_equal(piece.len, 6);
    assert_int_equal(store_plan_inputs(r->s, "j2", 0, 9, &piece, &total, &made, &e), ST_ENOENT);
    buf_fini(&piece);
    rig_reopen(r);
    unsigned seen = 0;
    assert_int_equal(store_load_policies(r->s, see_policy, &seen, &e), ST_OK);
    assert_int_equal(store_load_sessions(r->s, see_session, &seen, &e), ST_OK);
    assert_int_equal(store_load_nodes(r->s, see_node, &seen, &e), ST_OK);
    assert_int_equal(store_load_devices(r->s, see_device, &seen, &e), ST_OK);
    assert_int_equal(store_load_jobs(r->s, see_job, &seen, &e), ST_OK);
    assert_int_equal(store_load_layers(r->s, see_layer, &seen, &e), ST_OK);
    assert_int_equal(store_load_plans(r->s, see_plan, &seen, &e), ST_OK);
    assert_int_equal(store_load_requests(r->s, see_request, &seen, &e), ST_OK);
    assert_int_equal(store_load_calibrations(r->s, see_calibration, &seen, &e), ST_OK);
    assert_int_equal(seen, 9);
    char value[16];
    assert_int_equal(store_load_meta(r->s, "cluster", value, sizeof value, &e), ST_OK);
    assert_string_equal(value, "two");
    assert_int_equal(store_load_meta(r->s, "cluster", value, 3, &e), ST_ELIMIT);
    assert_int_equal(store_load_meta(r->s, "absent", value, sizeof value, &e), ST_OK);
    assert_string_equal(value, "");
    assert_int_equal(count_outbox(r, 0), 1);
    struct stat st;
    assert_int_equal(stat(r->dir.state, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);

    rig_start(r); /* and goes away again */
    t = store_txn_new();
    store_txn_job_delete(t, "j1");
    store_txn_node_delete(t, "dione");
    store_txn_policy_delete(t, "user/alice");
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    rig_reopen(r);
    seen = 0;
    assert_int_equal(store_load_policies(r->s, see_policy, &seen, &e), ST_OK);
    assert_int_equal(store_load_nodes(r->s, see_node, &seen, &e), ST_OK);
    assert_int_equal(store_load_devices(r->s, see_device, &seen, &e), ST_OK);
    assert_int_equal(store_load_jobs(r->s, see_job, &seen, &e), ST_OK);
    assert_int_equal(store_load_layers(r->s, see_layer, &seen, &e), ST_OK);
    assert_int_equal(seen, 0);
}

/* ---- all or none, each for itself ---- */

static void a_failing_transaction_leaves_nothing_and_hurts_nobody(void **state)
{
    struct rig *r = *state;
    enum { N = 300 };
    static struct answer a[N];
    memset(a, 0, sizeof a);
    /* Queued before the writer runs, so that they share commits; every third inserts an id that is there. */
    struct store_txn *t = store_txn_new();
    struct store_job dup = job("dup");
    store_txn_job_insert(t, &dup);
    assert_int_equal(store_submit(r->s, t, NULL, NULL), ST_OK);
    for (unsigned i = 0; i < N; i++) {
        char id[16];
        snprintf(id, sizeof id, "j%u", i);
        struct store_job j = job(id);
        struct audit_event ev = event(id);
        t = store_txn_new();
        store_txn_event(t, &ev);
        store_txn_job_insert(t, &j);
        if (i % 3 == 0)
            store_txn_job_insert(t, &dup);
        assert_int_equal(store_submit(r->s, t, answer_cb, &a[i]), ST_OK);
    }
    rig_start(r);
    for (unsigned i = 0; i < N; i++) {
        answer_wait(r->port, &a[i], 1);
        assert_int_equal(a[i].rc, i % 3 == 0 ? ST_EEXIST : ST_OK);
    }
    struct store_stats st;
    store_stats(r->s, &st);
    assert_true(st.groups < 20); /* they did share */
    assert_int_equal(st.committed, 201);
    assert_int_equal(st.refused, 100);
    assert_int_equal(st.outbox_rows, 200);
    rig_reopen(r);
    assert_int_equal(count_jobs(r), 201);
    assert_int_equal(count_outbox(r, 0), 200);
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(a[i].done, 1);
}

static void stale_moves_are_conflicts(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_start(r);
    struct store_txn *t = store_txn_new();
    struct store_job j = job("j1");
    store_txn_job_insert(t, &j);
    store_txn_node_put(t, &(struct store_node){.id = "dione"});
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    struct audit_event ev = event("j1");
    t = store_txn_new();
    store_txn_event(t, &ev);
    store_txn_job_state(t, "j1", 7, 8, "", NULL, 1);
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_ECONFLICT);
    assert_non_null(strstr(e.text, "state has changed"));
    t = store_txn_new();
    store_txn_policy_delete(t, "nobody");
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_ENOENT);
    for (int i = 0; i < 2; i++) { /* a spool batch that arrives twice is written once */
        t = store_txn_new();
        store_txn_spool(t, "dione", 5);
        store_txn_event(t, &ev);
        assert_int_equal(submit_wait(r->s, r->port, t, &e), i ? ST_ECONFLICT : ST_OK);
    }
    t = store_txn_new();
    store_txn_spool(t, "nowhere", 5);
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_ECONFLICT);
    for (int i = 0; i < 2; i++) { /* so is a request */
        t = store_txn_new();
        store_txn_request_put(t, &(struct store_request){.principal = "u", .request_id = "r"});
        store_txn_event(t, &ev);
        assert_int_equal(submit_wait(r->s, r->port, t, &e), i ? ST_EEXIST : ST_OK);
    }
    assert_int_equal(count_outbox(r, 0), 2);
}

static void bad_transactions_are_not_taken(void **state)
{
    struct rig *r = *state;
    struct store_txn *t = store_txn_new();
    struct audit_event ev = event("j");
    ev.meta = "no json";
    store_txn_event(t, &ev);
    assert_int_equal(store_submit(r->s, t, NULL, NULL), ST_EINVAL);
    t = store_txn_new();
    store_txn_policy_put(t, &(struct policy){.principal = "a b"});
    assert_int_equal(store_submit(r->s, t, NULL, NULL), ST_EINVAL);
    t = store_txn_new();
    char *big = calloc(1, 17u << 20);
    store_txn_plan_put(t, &(struct store_plan){.id = "p", .doc = big, .doc_len = 17u << 20});
    free(big);
    assert_int_equal(store_submit(r->s, t, NULL, NULL), ST_ELIMIT);
    store_txn_free(store_txn_new());
    store_txn_free(NULL);
    store_close(NULL);
}

static void the_queue_is_bounded(void **state)
{
    struct rig *r = *state;
    store_close(r->s);
    r->cfg.queue_max = 2;
    r->cfg.group_max = 1;
    rig_open(r);
    struct answer a = {0};
    for (int i = 0; i < 3; i++) {
        struct store_txn *t = store_txn_new();
        store_txn_meta_put(t, "k", "v");
        assert_int_equal(store_room(r->s), i < 2 ? 2 - i : 0);
        assert_int_equal(store_submit(r->s, t, answer_cb, &a), i < 2 ? ST_OK : ST_EAGAIN);
    }
    rig_start(r);
    answer_wait(r->port, &a, 2);
    assert_int_equal(store_room(r->s), 2);
}

/* ---- outbox ---- */

static void the_outbox_is_trimmed_and_never_reuses_a_sequence(void **state)
{
    struct rig *r = *state;
    struct err e;
    rig_start(r);
    for (int i = 0; i < 10; i++) {
        struct store_txn *t = store_txn_new();
        struct audit_event ev = event("j");
        store_txn_event(t, &ev);
        assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    }
    assert_int_equal(count_outbox(r, 4), 6);
    store_outbox_trim(r->s, 10);
    rig_reopen(r); /* at close at the latest */
    assert_int_equal(count_outbox(r, 0), 0);
    assert_int_equal(store_outbox_advance(r->s, 5, &e), ST_OK); /* behind: nothing to do */
    rig_start(r);
    struct store_txn *t = store_txn_new();
    struct audit_event ev = event("j");
    store_txn_event(t, &ev);
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    assert_int_equal(count_outbox(r, 10), 1);
    rig_reopen(r);
    assert_int_equal(store_outbox_advance(r->s, 500, &e), ST_OK);
    rig_start(r);
    t = store_txn_new();
    store_txn_event(t, &ev);
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    assert_int_equal(count_outbox(r, 500), 1);
    assert_int_equal(count_outbox(r, 0), 2);
}

static void what_cannot_be_audited_is_refused(void **state)
{
    struct rig *r = *state;
    struct err e;
    store_close(r->s);
    r->cfg.outbox_max = 3;
    rig_open(r);
    rig_start(r);
    struct audit_event ev = event("j1");
    for (int i = 0; i < 2; i++) {
        store_audit_health(r->s, i ? ST_OK : ST_ERESOURCE, "audit.db is full");
        struct store_txn *t = store_txn_new();
        struct store_job j = job("j1");
        store_txn_job_insert(t, &j);
        store_txn_event(t, &ev);
        assert_int_equal(submit_wait(r->s, r->port, t, &e), i ? ST_OK : ST_ERESOURCE);
        if (i == 0) {
            assert_string_equal(e.reason, "AUDIT_UNAVAILABLE");
            assert_non_null(strstr(e.text, "audit.db is full"));
            t = store_txn_new(); /* what needs no audit goes on */
            store_txn_meta_put(t, "k", "v");
            assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
        }
    }
    for (int i = 0; i < 3; i++) {
        struct store_txn *t = store_txn_new();
        store_txn_event(t, &ev);
        assert_int_equal(submit_wait(r->s, r->port, t, &e), i < 2 ? ST_OK : ST_ERESOURCE);
    }
    store_outbox_trim(r->s, 3);
    struct store_txn *t = store_txn_new();
    store_txn_event(t, &ev);
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
}

static void a_full_disk_refuses_and_recovers(void **state)
{
    struct rig *r = *state;
    struct err e;
    store_close(r->s);
    r->cfg.max_pages = 60;
    rig_open(r);
    rig_start(r);
    unsigned ok = 0;
    int rc = ST_OK;
    static char doc[20000];
    for (; rc == ST_OK && ok < 100; ok++) {
        char id[16];
        snprintf(id, sizeof id, "p%u", ok);
        struct store_txn *t = store_txn_new();
        store_txn_plan_put(t, &(struct store_plan){.id = id, .doc = doc, .doc_len = sizeof doc});
        rc = submit_wait(r->s, r->port, t, &e);
    }
    assert_int_equal(rc, ST_ERESOURCE);
    assert_string_equal(e.reason, "DISK_FULL");
    assert_non_null(strstr(e.text, "state.db"));
    ok--;
    assert_true(ok > 2 && ok < 60);
    /* In one group with it, what fits is written and what does not is refused. */
    struct answer a[2] = {{0}};
    struct store_txn *t = store_txn_new();
    store_txn_plan_put(t, &(struct store_plan){.id = "big", .doc = doc, .doc_len = sizeof doc});
    assert_int_equal(store_submit(r->s, t, answer_cb, &a[0]), ST_OK);
    t = store_txn_new();
    store_txn_meta_put(t, "k", "v");
    assert_int_equal(store_submit(r->s, t, answer_cb, &a[1]), ST_OK);
    answer_wait(r->port, &a[0], 1);
    answer_wait(r->port, &a[1], 1);
    assert_int_equal(a[0].rc, ST_ERESOURCE);
    assert_int_equal(a[1].rc, ST_OK);
    r->cfg.max_pages = 0;
    rig_reopen(r);
    unsigned n = 0;
    char value[8];
    assert_int_equal(store_load_meta(r->s, "k", value, sizeof value, &e), ST_OK);
    assert_string_equal(value, "v");
    rig_start(r);
    t = store_txn_new();
    store_txn_plan_put(t, &(struct store_plan){.id = "big", .doc = doc, .doc_len = sizeof doc});
    assert_int_equal(submit_wait(r->s, r->port, t, &e), ST_OK);
    (void)n;
}

/* ---- kill -9 ---- */

static void acked(void *arg, int rc, const struct err *e)
{
    (void)e;
    int fd = (int)((intptr_t)arg >> 32);
    uint32_t i = (uint32_t)(intptr_t)arg;
    if (rc != ST_OK || write(fd, &i, sizeof i) != sizeof i)
        _exit(4);
}

static void write_until_killed(const char *path, int fd, uint32_t from)
{
    struct store *s;
    struct port *port;
    struct err e;
    struct store_config cfg = {.path = path};
    if (port_new(&port) < 0 || store_open(&s, &cfg, &e) < 0 || store_start(s, port, &e) < 0)
        _exit(5);
    for (uint32_t i = from;; i++) {
        char id[16];
        snprintf(id, sizeof id, "j%u", i);
        struct store_job j = job(id);
        struct audit_event ev = event(id);
        struct store_txn *t = store_txn_new();
        store_txn_job_insert(t, &j);
        store_txn_event(t, &ev);
        while (store_room(s) == 0 || i % 16 == 0) {
            struct pollfd p = {.fd = port_fd(port), .events = POLLIN};
            poll(&p, 1, 1);
            port_drain(port);
            if (store_room(s))
                break;
        }
        if (store_submit(s, t, acked, (void *)(((intptr_t)fd << 32) | i)) < 0)
            _exit(6);
    }
}

struct found {
    uint8_t *seen;
    uint32_t max;
};

static int mark(void *arg, const struct store_job *j)
{
    struct found *f = arg;
    uint32_t i = (uint32_t)atoi(j->id + 1);
    if (i < f->max)
        f->seen[i]++;
    return 0;
}

static void acknowledged_is_durable_through_kill_9(void **state)
{
    struct rig *r = *state;
    enum { ROUNDS = 12, MAX = 2000000 };
    uint8_t *acks = calloc(1, MAX);
    struct found f = {calloc(1, MAX), MAX};
    uint32_t from = 0;
    store_close(r->s);
    for (int round = 0; round < ROUNDS; round++) {
        int fds[2];
        assert_int_equal(pipe(fds), 0);
        pid_t pid = fork();
        if (pid == 0) {
            close(fds[0]);
            write_until_killed(r->dir.state, fds[1], from);
        }
        close(fds[1]);
        uint32_t i, n = 0, want = 200u + (unsigned)round * 37u;
        while (n < want && read(fds[0], &i, sizeof i) == sizeof i && i < MAX) {
            acks[i] = 1;
            n++;
            from = i >= from ? i + 1 : from;
        }
        assert_int_equal(n, want);
        kill(pid, SIGKILL);
        while (read(fds[0], &i, sizeof i) == sizeof i &&
               i < MAX) { /* what it still acknowledged before it died */
            acks[i] = 1;
            from = i >= from ? i + 1 : from;
        }
        close(fds[0]);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        from += 5000; /* beyond what it had in flight */
    }
    rig_open(r);
    struct err e;
    assert_int_equal(store_load_jobs(r->s, mark, &f, &e), ST_OK);
    unsigned lost = 0, jobs = count_jobs(r);
    for (uint32_t i = 0; i < MAX; i++)
        lost += acks[i] && !f.seen[i];
    assert_int_equal(lost, 0);
    assert_int_equal(count_outbox(r, 0), jobs); /* never one without the other */
    free(acks);
    free(f.seen);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(acknowledged_is_durable_through_kill_9), /* first: it forks, and no thread is running yet */
        T(everything_survives_reopening),
        T(a_failing_transaction_leaves_nothing_and_hurts_nobody),
        T(stale_moves_are_conflicts),
        T(bad_transactions_are_not_taken),
        T(the_queue_is_bounded),
        T(the_outbox_is_trimmed_and_never_reuses_a_sequence),
        T(what_cannot_be_audited_is_refused),
        T(a_full_disk_refuses_and_recovers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
