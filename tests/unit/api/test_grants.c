/* Policies, quotas and device sessions as the running coordinator grants them, watched from both ends. */
#include "tests/unit/api/grants.h"

/* ---- tests ---- */

static void a_grant_is_a_ticket_and_its_escrow(void **st)
{
    (void)st;
    char id[40], none[40];
    struct ticket t;
    struct err e;
    expect(open_session(ALICE, 0, 0, none), "NO_POLICY");
    given("user/alice", "user", "n1/cpu:0", 100 * MB);
    struct answer a = open_session(ALICE, 60 * MB, 0, id);
    assert_int_equal(a.st.code, 0);
    const Strata__V1__SessionGrant *g = (Strata__V1__SessionGrant *)a.m;
    assert_int_equal(g->n_devices, 1);
    assert_string_equal(g->devices[0], "cpu:0");
    assert_string_equal(g->peer_address, "127.0.0.1:9");
    OK(ticket_verify(w.ticket_key, g->ticket.data, g->ticket.len, clock_wall_us(clock_system()), "n1",
                     tls_ctx_self(w.p[ALICE].tls)->spki_sha256, &t, &e));
    assert_string_equal(t.grant.principal, "user/alice");
    assert_int_equal(t.limit_bytes, 60 * MB);
    assert_true(ticket_grants(&t, PERM_MEMORY_ALLOCATE) && !ticket_grants(&t, PERM_MONITOR_POWER));
    assert_true(ticket_device_ok(&t, "cpu:0") && !ticket_device_ok(&t, "cpu:1"));
    assert_int_equal(ticket_verify(w.ticket_key, g->ticket.data, g->ticket.len, clock_wall_us(clock_system()),
                                   "n1", tls_ctx_self(w.p[BOB].tls)->spki_sha256, &t, &e),
                     ST_ETRUST);
    drop(&a);
    assert_int_equal(held(NULL), 60 * MB);
    expect(open_session(ALICE, 41 * MB, 0, none), "QUOTA_EXCEEDED");
    Strata__V1__AuditQuery q = STRATA__V1__AUDIT_QUERY__INIT;
    q.type = (char *)"security.quota_exceeded";
    do {
        drop(&a);
        a = ask(ADMIN, &strata__v1__audit__descriptor, "Query", &q.base);
    } while (((Strata__V1__AuditPage *)a.m)->n_rows == 0);
    assert_int_equal(((Strata__V1__AuditPage *)a.m)->n_rows, 1);
    assert_non_null(strstr(((Strata__V1__AuditPage *)a.m)->rows[0]->meta, "\"quota\":104857600"));
    drop(&a);
    uint64_t used;
    agent_says(false, id, 5 * MB, NULL);
    assert_int_equal(held(&used), 60 * MB);
    assert_int_equal(used, 5 * MB);
    agent_says(false, NULL, 0, id); /* it ended, all of it is free */
    WAIT(held(&used) == 0);
    assert_int_equal(used, 0);
}

static void many_at_once_never_overshoot(void **st)
{
    (void)st;
    Strata__V1__OpenSessionRequest q;
    struct answer a[40];
    unsigned granted = 0, refused = 0;
    given("user/alice", "user", NULL, 100 * MB);
    open_request(&q, 10 * MB, 0);
    for (unsigned i = 0; i < 40; i++)
        begin(ALICE, &strata__v1__sessions__descriptor, "Open", &q.base, &a[i]);
    for (unsigned i = 0; i < 40; i++) {
        WAIT(a[i].done);
        granted += a[i].st.code == 0;
        refused += !strcmp(a[i].st.reason, "QUOTA_EXCEEDED");
        if (a[i].m)
            agent_says(false, NULL, 0, ((Strata__V1__SessionGrant *)a[i].m)->session);
        drop(&a[i]);
    }
    assert_int_equal(granted, 10);
    assert_int_equal(refused, 30);
    WAIT(held(NULL) == 0);
}

static void bad_sessions_are_refused(void **st)
{
    (void)st;
    char id[40];
    Strata__V1__OpenSessionRequest q;
    char *list[] = {NULL};
    given("user/alice", "user", "n1/cpu:0", 100 * MB);
    given("user/bob", "monitor", NULL, 0);
    opened(ALICE, 10 * MB, 0, id);
    struct {
        enum who who;
        const char *node, *device, *permission;
        uint64_t limit, ttl;
        const char *reason;
    } bad[] = {
        {ALICE, "nowhere", NULL, NULL, 0, 0, "UNKNOWN_NODE"},
        {ALICE, "n1", "cuda:7", NULL, 0, 0, "UNKNOWN_DEVICE"},
        {ALICE, "n1", "cpu:1", NULL, 0, 0, "DEVICE_NOT_ALLOWED"},
        {ALICE, "n1", NULL, "memory:steal", 0, 0, "UNKNOWN_PERMISSION"},
        {ALICE, "n1", NULL, "admin:full_access", 0, 0, "UNKNOWN_PERMISSION"},
        {ALICE, "n1", NULL, "monitor:power", 0, 0, "MISSING_PERMISSION"},
        {ALICE, "n1", NULL, NULL, UINT64_MAX, 0, "SIZE"},
        {ALICE, "n1", NULL, NULL, INT64_MAX, 0, "QUOTA_EXCEEDED"},
        {ALICE, "n1", NULL, NULL, 0, 1, "TTL"},
        {ALICE, "n1", NULL, NULL, 0, UINT64_MAX, "TTL"},
        {BOB, "n1", NULL, NULL, 1, 0, "MISSING_PERMISSION"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        open_request(&q, bad[i].limit, bad[i].ttl);
        q.node = (char *)bad[i].node;
        list[0] = (char *)(bad[i].device ? bad[i].device : bad[i].permission);
        if (bad[i].device) {
            q.devices = list;
            q.n_devices = 1;
        } else if (bad[i].permission) {
            q.permissions = list;
            q.n_permissions = 1;
        }
        expect(ask(bad[i].who, &strata__v1__sessions__descriptor, "Open", &q.base), bad[i].reason);
    }
    WAIT(audited("security.session_opened", "user/alice", "UNKNOWN_NODE") >= 1);
    WAIT(audited("security.access_denied", "user/alice", "DEVICE_NOT_ALLOWED") >= 1);
    /* Somebody else's session is none. */
    Strata__V1__RenewSessionRequest rn = STRATA__V1__RENEW_SESSION_REQUEST__INIT;
    rn.session = id;
    expect(ask(BOB, &strata__v1__sessions__descriptor, "Renew", &rn.base), "NO_SESSION");
    expect(end_session(BOB, "Close", id), "NO_SESSION");
    expect(end_session(BOB, "Kill", id), "MISSING_PERMISSION");
    expect(end_session(ALICE, "Close", "s-none"), "NO_SESSION");
    WAIT(audited("security.ticket_refused", "user/bob", "NO_SESSION") >= 2);
    Strata__V1__ListSessionsRequest ls = STRATA__V1__LIST_SESSIONS_REQUEST__INIT;
    ls.all = true;
    expect(ask(BOB, &strata__v1__sessions__descriptor, "List", &ls.base), "MISSING_PERMISSION");
    /* A user is no node, and an old registration is void. */
    Strata__V1__SessionReport rp = STRATA__V1__SESSION_REPORT__INIT;
    expect(ask(BOB, &strata__v1__sessions__descriptor, "Report", &rp.base), "NOT_A_NODE");
    rp.epoch = w.epoch + 1;
    expect(ask(AGENT, &strata__v1__sessions__descriptor, "Report", &rp.base), "STALE_EPOCH");
    assert_int_equal(held(NULL), 10 * MB); /* nothing has changed */
    struct answer a = ask(ALICE, &strata__v1__sessions__descriptor, "Renew", &rn.base);
    assert_int_equal(a.st.code, 0);
    drop(&a);
    expect(end_session(ALICE, "Close", id), "");
    WAIT(held(NULL) == 0);
    assert_true(was_revoked(id, NULL));
    expect(ask(ALICE, &strata__v1__sessions__descriptor, "Renew", &rn.base), "TICKET_REVOKED");
}

static size_t policies_now(uint64_t *generations)
{
    Strata__V1__ListPoliciesRequest q = STRATA__V1__LIST_POLICIES_REQUEST__INIT;
    struct answer a = ask(ADMIN, &strata__v1__policies__descriptor, "List", &q.base);
    const Strata__V1__ListPoliciesReply *r = (Strata__V1__ListPoliciesReply *)a.m;
    size_t n = r->n_policies;
    *generations = 0;
    for (size_t i = 0; i < n; i++)
        *generations += r->policies[i]->generation;
    drop(&a);
    return n;
}

static void bad_policies_change_nothing(void **st)
{
    (void)st;
    static const struct {
        const char *principal, *role, *extra, *denied, *device, *reason;
        uint64_t quota;
        int64_t expires;
    } bad[] = {
        {"user/eve", "root", NULL, NULL, NULL, "UNKNOWN_ROLE", 0, 0},
        {"user/eve", NULL, "memory:steal", NULL, NULL, "UNKNOWN_PERMISSION", 0, 0},
        {"user/eve", NULL, NULL, "mem", NULL, "UNKNOWN_PERMISSION", 0, 0},
        {"user/eve", "user", "monitor:clock", "monitor:clock", NULL, "CONTRADICTORY_POLICY", 0, 0},
        {"user/eve", "admin", NULL, "monitor:clock", NULL, "CONTRADICTORY_POLICY", 0, 0},
        {"user/eve", "user", NULL, NULL, "n9/cpu:0", "UNKNOWN_DEVICE", 0, 0},
        {"user/eve", "user", NULL, NULL, "n1/cuda:3", "UNKNOWN_DEVICE", 0, 0},
        {"user/eve", "user", NULL, NULL, "n1 cpu", "BAD_POLICY", 0, 0},
        {"user/eve", "user", NULL, NULL, NULL, "BAD_POLICY", UINT64_MAX, 0},
        {"user/eve", "user", NULL, NULL, NULL, "EXPIRY_IN_PAST", 0, 1000},
        {"user/eve", "user", NULL, NULL, NULL, "BAD_POLICY", 0, -5},
        {"eve", "user", NULL, NULL, NULL, "UNKNOWN_PRINCIPAL", 0, 0},
        {"", "user", NULL, NULL, NULL, "BAD_POLICY", 0, 0},
        {"spiffe://elsewhere/user/eve", "user", NULL, NULL, NULL, "UNKNOWN_PRINCIPAL", 0, 0},
        {"user/admin", "user", NULL, NULL, NULL, "LAST_ADMIN", 0, 0},
        {"user/alice", "user", NULL, NULL, NULL, "DUPLICATE_PRINCIPAL", 0, 0},
    };
    given("user/alice", "user", NULL, 100 * MB);
    uint64_t before, after;
    size_t n = policies_now(&before);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        /* A good one beside it: all or none. */
        Strata__V1__Policy p = STRATA__V1__POLICY__INIT, good = STRATA__V1__POLICY__INIT, *v[] = {&good, &p};
        char *role[] = {(char *)bad[i].role}, *extra[] = {(char *)bad[i].extra},
             *denied[] = {(char *)bad[i].denied}, *device[] = {(char *)bad[i].device},
             *monitor[] = {(char *)"monitor"};
        good.principal = (char *)"user/alice";
        good.roles = monitor;
        good.n_roles = 1;
        p.principal = (char *)bad[i].principal;
        p.roles = role;
        p.n_roles = bad[i].role != NULL;
        p.extra = extra;
        p.n_extra = bad[i].extra != NULL;
        p.denied = denied;
        p.n_denied = bad[i].denied != NULL;
        p.devices = device;
        p.n_devices = bad[i].device != NULL;
        p.has_quota = bad[i].quota != 0;
        p.quota_bytes = bad[i].quota;
        p.expires_us = bad[i].expires;
        expect(apply(ADMIN, v, 2, false), bad[i].reason);
        if (policies_now(&after) != n || after != before)
            fail_msg("%s changed something", bad[i].reason);
        WAIT(audited("security.policy_updated", "user/admin", bad[i].reason) >= 1);
    }
    Strata__V1__Policy p = STRATA__V1__POLICY__INIT, *v[] = {&p};
    p.principal = (char *)"user/bob";
    expect(apply(ALICE, v, 1, false), "MISSING_PERMISSION");
    expect(apply(ADMIN, v, 0, false), "COUNT");
    Strata__V1__RemovePoliciesRequest rm = STRATA__V1__REMOVE_POLICIES_REQUEST__INIT;
    char *who[] = {(char *)"user/alice", (char *)"user/nobody"};
    rm.principals = who;
    rm.n_principals = 2;
    expect(ask(ADMIN, &strata__v1__policies__descriptor, "Remove", &rm.base), "NO_POLICY");
    assert_int_equal(policies_now(&after), n);
    assert_true(after == before);
}

static void a_change_reaches_the_agent_within_a_second(void **st)
{
    (void)st;
    char id[40], other[40];
    const char *why = "";
    given("user/alice", "user", NULL, 100 * MB);
    given("user/bob", "monitor", NULL, 0);
    opened(ALICE, 30 * MB, 0, id);
    opened(BOB, 0, 0, other);
    agent_says(false, id, MB, NULL);
    /* A dry run says what it would end and ends nothing. */
    struct answer a = give("user/alice", "monitor", NULL, 0, 0, true);
    const Strata__V1__PolicyChanges *m = (Strata__V1__PolicyChanges *)a.m;
    assert_int_equal(m->n_ended, 1);
    assert_string_equal(m->ended[0]->id, id);
    assert_string_equal(m->ended[0]->reason, "MISSING_PERMISSION");
    drop(&a);
    assert_false(was_revoked(id, NULL));
    /* A quota below what is held: taken, said, and nothing more is granted. */
    a = give("user/alice", "user", NULL, 10 * MB, 0, false);
    assert_int_equal(((Strata__V1__PolicyChanges *)a.m)->n_notes, 1);
    assert_int_equal(((Strata__V1__PolicyChanges *)a.m)->n_ended, 0);
    drop(&a);
    char none[40];
    expect(open_session(ALICE, 1, 0, none), "QUOTA_EXCEEDED");
    assert_int_equal(held(NULL), 30 * MB);
    uint64_t from = clock_ns(clock_system());
    a = give("user/alice", "monitor", NULL, 0, 0, false);
    assert_int_equal(((Strata__V1__PolicyChanges *)a.m)->n_ended, 1);
    drop(&a);
    WAIT(was_revoked(id, &why));
    assert_string_equal(why, "MISSING_PERMISSION");
    uint64_t took = w.revoked_ns - from;
    print_message("policy change to revocation on the agent: %.1f ms\n", (double)took / 1e6);
    assert_true(took < NS_PER_S);
    WAIT(held(NULL) == 0);
    assert_false(was_revoked(other, NULL));
    WAIT(audited("security.ticket_revoked", "user/admin", "MISSING_PERMISSION") >= 1);
    WAIT(audited("security.session_closed", "user/alice", "MISSING_PERMISSION") >= 1);
    expect(end_session(ADMIN, "Kill", other), "");
    WAIT(was_revoked(other, &why));
    assert_string_equal(why, "KILLED");
}

static void an_expired_policy_goes_by_itself(void **st)
{
    (void)st;
    char id[40];
    struct answer a = give("user/bob", "monitor", NULL, 0, clock_wall_us(clock_system()) + 2000000, false);
    assert_int_equal(a.st.code, 0);
    drop(&a);
    opened(BOB, 0, 0, id);
    agent_says(false, id, 0, NULL);
    WAIT(was_revoked(id, NULL)); /* it was made to end no later than its policy */
    Strata__V1__GetPolicyRequest q = STRATA__V1__GET_POLICY_REQUEST__INIT;
    q.principal = (char *)"user/bob";
    expect(ask(ADMIN, &strata__v1__policies__descriptor, "Get", &q.base), "NO_POLICY");
    WAIT(audited("security.policy_removed", "coordinator", "EXPIRED") == 1);
    char none[40];
    expect(open_session(BOB, 0, 0, none), "NO_POLICY");
}

static void escrow_outlives_a_partition(void **st)
{
    (void)st;
    char id[40];
    given("user/alice", "user", NULL, 100 * MB);
    opened(ALICE, 50 * MB, 2 * NS_PER_S, id);
    agent_says(false, id, MB, NULL);
    hang_up(&w.p[AGENT]);
    expect(end_session(ADMIN, "Kill", id), "");
    uint64_t killed = clock_ns(clock_system());
    assert_int_equal(held(NULL), 50 * MB); /* nobody has said that it is free */
    char none[40];
    expect(open_session(ALICE, 0, 0, none), "NODE_NOT_CONNECTED");
    WAIT(held(NULL) == 0);
    uint64_t took = clock_ns(clock_system()) - killed;
    print_message("escrow of a cut off node came back after %.1f s\n", (double)took / 1e9);
    assert_true(took > 6 * NS_PER_S); /* the ticket's life and what clocks may differ */
    dial(&w.p[AGENT]);
    hello();
    agent_says(true, NULL, 0, NULL);
}

static void a_crash_loses_no_escrow(void **st)
{
    (void)st;
    char id[40], quiet[40];
    const char *why;
    given("user/alice", "user", NULL, 100 * MB);
    opened(ALICE, 40 * MB, 0, id);
    opened(ALICE, 20 * MB, 0, quiet);
    agent_says(false, id, MB, NULL);
    daemon_kill(SIGKILL);
    for (unsigned i = 0; i < PEERS; i++)
        WAIT(w.p[i].closed);
    daemon_start();
    for (unsigned i = 0; i < PEERS; i++)
        dial(&w.p[i]);
    assert_int_equal(held(NULL), 60 * MB);
    expect(open_session(ALICE, 41 * MB, 0, id), "NODE_NOT_CONNECTED");
    hello();
    /* The agent holds the first, and one that nobody granted: charged, and ended. */
    agent_says(true, id, MB, NULL);
    agent_says(false, "s-00000000000000000000000000000001", 5 * MB, NULL);
    WAIT(was_revoked("s-00000000000000000000000000000001", &why));
    assert_string_equal(why, "UNKNOWN_SESSION");
    WAIT(held(NULL) == 60 * MB);
    char none[40];
    expect(open_session(ALICE, 41 * MB, 0, none), "QUOTA_EXCEEDED");
    /* The agent itself starts anew and holds nothing: what was active is gone, what was never used stays. */
    agent_says(true, NULL, 0, NULL);
    WAIT(was_revoked(id, &why));
    assert_string_equal(why, "AGENT_RESTARTED");
    WAIT(held(NULL) == 20 * MB);
    /* Once more: it is told again to refuse the ticket that it may have forgotten. */
    struct answer a = report(true, NULL, 0, NULL);
    const Strata__V1__SessionReportReply *r = (Strata__V1__SessionReportReply *)a.m;
    bool told = false;
    for (size_t i = 0; i < r->n_end; i++)
        told = told || !strcmp(r->end[i]->session, id);
    assert_true(told);
    drop(&a);
    expect(end_session(ADMIN, "Kill", quiet), "");
    WAIT(held(NULL) == 0);
}

static void an_agent_that_does_not_answer_is_asked_again(void **st)
{
    (void)st;
    char id[40];
    given("user/alice", "user", NULL, 200 * MB);
    opened(ALICE, 7 * MB, 0, id);
    uint64_t before = held(NULL);
    w.stubborn = true;
    w.nrevoked = 0;
    expect(end_session(ALICE, "Close", id), "");
    WAIT(w.nrevoked >= 3);
    assert_true(held(NULL) == before);
    w.stubborn = false;
    WAIT(held(NULL) == before - 7 * MB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_grant_is_a_ticket_and_its_escrow),
        cmocka_unit_test(many_at_once_never_overshoot),
        cmocka_unit_test(bad_sessions_are_refused),
        cmocka_unit_test(bad_policies_change_nothing),
        cmocka_unit_test(a_change_reaches_the_agent_within_a_second),
        cmocka_unit_test(an_expired_policy_goes_by_itself),
        cmocka_unit_test(a_crash_loses_no_escrow),
        cmocka_unit_test(an_agent_that_does_not_answer_is_asked_again),
        cmocka_unit_test(escrow_outlives_a_partition),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, grants_set_up, grants_tear_down);
}
