/*
 * Policies, quotas and device sessions as the running coordinator grants them: the daemon is a real process,
 * users and the agent of a node are ends of real connections in this one, on one loop. The agent here does
 * what it is told, or not, so that escrow, revocation and what follows a crash can be watched from both
 * sides.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>
#include <signal.h>
#include <sys/wait.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/rpc/rpc.h"
#include "common/ticket/ticket.h"
#include "strata/v1/agentctl.pb-c.h"
#include "strata/v1/audit.pb-c.h"
#include "strata/v1/nodes.pb-c.h"
#include "strata/v1/policies.pb-c.h"
#include "strata/v1/sessions.pb-c.h"

#define PATIENCE_NS (60 * NS_PER_S)
#define MB (1ull << 20)

enum who { ADMIN, ALICE, BOB, AGENT, PEERS };

struct peer {
    const char *name;
    enum tls_kind kind;
    struct tls_ctx *tls;
    struct quic_udp *udp;
    struct quic_ep *ep;
    struct rpc_session *rpc;
    bool up, closed;
};

static struct {
    char dir[64];
    struct log log;
    struct event_base *base;
    unsigned port;
    pid_t daemon;
    struct peer p[PEERS];
    struct rpc_table *agent_table;
    uint8_t ticket_key[TICKET_PUB_LEN];
    uint64_t epoch;
    /* the agent's side of sessions */
    char revoked[64][40], reasons[64][40];
    unsigned nrevoked;
    uint64_t revoked_ns;
    bool stubborn; /* does not answer Revoke */
} w;

#define OK(x)                                                                                                \
    do {                                                                                                     \
        if ((x) != ST_OK)                                                                                    \
            fail_msg("%s: %s", #x, e.text);                                                                  \
    } while (0)
#define WAIT(cond)                                                                                           \
    do {                                                                                                     \
        uint64_t since_ = clock_ns(clock_system());                                                          \
        while (!(cond)) {                                                                                    \
            if (clock_ns(clock_system()) - since_ > PATIENCE_NS)                                             \
                fail_msg("never: %s", #cond);                                                                \
            turn();                                                                                          \
        }                                                                                                    \
    } while (0)

static void on_time(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
}

/* One turn of the loop, which ends after 20 ms when nothing comes. */
static void turn(void)
{
    struct event *t = evtimer_new(w.base, on_time, NULL);
    const struct timeval soon = {0, 20000};
    evtimer_add(t, &soon);
    event_base_loop(w.base, EVLOOP_ONCE);
    event_free(t);
}

/* ---- connections ---- */

static void on_up(struct rpc_session *s, void *arg)
{
    (void)s;
    ((struct peer *)arg)->up = true;
}

static void on_closed(struct rpc_session *s, const struct quic_close *why, void *arg)
{
    struct peer *p = arg;
    (void)s;
    (void)why;
    p->closed = true;
    p->up = false;
    p->rpc = NULL;
}

static const struct rpc_session_ops session_ops = {.on_up = on_up, .on_closed = on_closed};

static void dial(struct peer *p)
{
    struct err e;
    struct quic_addr to;
    char addr[32];
    snprintf(addr, sizeof addr, "127.0.0.1:%u", w.port);
    OK(quic_addr_parse(addr, &to, &e));
    const struct rpc_cfg cfg = {.base = w.base,
                                .clock = clock_system(),
                                .log = &w.log,
                                .table = p->kind == TLS_NODE ? w.agent_table : NULL,
                                .max_inbound_calls = 16};
    uint64_t since = clock_ns(clock_system());
    do { /* the daemon may not listen yet */
        if (clock_ns(clock_system()) - since > PATIENCE_NS)
            fail_msg("%s cannot connect", p->name);
        p->closed = p->up = false;
        OK(rpc_dial(&p->rpc, &cfg, p->ep, &to, TLS_COORDINATOR, "", &session_ops, p, &e));
        WAIT(p->up || p->closed);
    } while (!p->up);
}

static void hang_up(struct peer *p)
{
    if (!p->rpc)
        return;
    rpc_session_close(p->rpc, 0, "bye");
    WAIT(p->closed);
}

/* ---- calls ---- */

struct answer {
    bool done;
    struct rpc_status st;
    ProtobufCMessage *m;
};

static void on_message(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    struct answer *a = arg;
    (void)call;
    size_t n = protobuf_c_message_get_packed_size(msg);
    uint8_t *b = malloc(n + 1);
    protobuf_c_message_pack(msg, b);
    a->m = protobuf_c_message_unpack(msg->descriptor, NULL, n, b);
    free(b);
}

static void on_done(struct rpc_call *call, const struct rpc_status *st, const uint8_t *digest, void *arg)
{
    struct answer *a = arg;
    (void)call;
    (void)digest;
    a->st = *st;
    a->done = true;
}

static const struct rpc_call_ops ops = {.on_message = on_message, .on_done = on_done};

static void begin(enum who who, const ProtobufCServiceDescriptor *svc, const char *method,
                  const ProtobufCMessage *q, struct answer *a)
{
    struct rpc_call *call;
    struct err e;
    *a = (struct answer){0};
    OK(rpc_call(&call, w.p[who].rpc, svc, method, RPC_UNARY, q, &(struct rpc_call_opts){0}, &ops, a, &e));
}

static void drop(struct answer *a)
{
    if (a->m)
        protobuf_c_message_free_unpacked(a->m, NULL);
    a->m = NULL;
}

static struct answer ask(enum who who, const ProtobufCServiceDescriptor *svc, const char *method,
                         const ProtobufCMessage *q)
{
    struct answer a;
    begin(who, svc, method, q, &a);
    WAIT(a.done);
    return a;
}

static void expect(struct answer a, const char *reason)
{
    if (strcmp(a.st.reason, reason))
        fail_msg("wanted %s, got %u %s: %s", reason, a.st.code, a.st.reason, a.st.text);
    drop(&a);
}

/* ---- the daemon ---- */

static void daemon_start(void)
{
    char conf[128], out[128];
    snprintf(conf, sizeof conf, "%s/coordinator.yaml", w.dir);
    snprintf(out, sizeof out, "%s/log", w.dir);
    w.daemon = fork();
    assert_true(w.daemon >= 0);
    if (w.daemon == 0) {
        if (!freopen(out, "a", stderr))
            _exit(98);
        execl(STRATA_COORDINATOR, "strata-coordinator", "run", "--config", conf, (char *)NULL);
        _exit(99);
    }
}

static void daemon_kill(int sig)
{
    int status;
    kill(w.daemon, sig);
    assert_int_equal(waitpid(w.daemon, &status, 0), w.daemon);
    if (sig == SIGTERM)
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- the agent ---- */

static void on_revoke(struct rpc_call *call, const ProtobufCMessage *msg, void *arg)
{
    const Strata__V1__RevokeSessionsRequest *q = (const Strata__V1__RevokeSessionsRequest *)msg;
    Strata__V1__RevokeSessionsReply r = STRATA__V1__REVOKE_SESSIONS_REPLY__INIT;
    Strata__V1__SessionEnded v[64], *pv[64];
    (void)arg;
    assert_true(q->n_end <= 64);
    w.revoked_ns = clock_ns(clock_system());
    for (size_t i = 0; i < q->n_end; i++) {
        if (w.nrevoked < 64) {
            str_copy(w.reasons[w.nrevoked], 40, q->end[i]->reason);
            str_copy(w.revoked[w.nrevoked++], 40, q->end[i]->session);
        }
        strata__v1__session_ended__init(&v[i]);
        v[i].session = q->end[i]->session;
        v[i].reason = (char *)"REVOKED";
        pv[i] = &v[i];
    }
    r.ended = pv;
    r.n_ended = w.stubborn ? 0 : q->n_end;
    rpc_reply(call, &r.base);
}

static void hello(void)
{
    Strata__V1__HelloRequest q = STRATA__V1__HELLO_REQUEST__INIT;
    Strata__V1__Device d[2] = {STRATA__V1__DEVICE__INIT, STRATA__V1__DEVICE__INIT}, *pd[2] = {&d[0], &d[1]};
    d[0].id = (char *)"cpu:0";
    d[1].id = (char *)"cpu:1";
    for (unsigned i = 0; i < 2; i++) {
        d[i].backend = (char *)"cpu";
        d[i].memory_bytes = d[i].available_bytes = 1 << 30;
    }
    q.peer_address = (char *)"127.0.0.1:9";
    q.devices = pd;
    q.n_devices = 2;
    struct answer a = ask(AGENT, &strata__v1__nodes__descriptor, "Hello", &q.base);
    assert_int_equal(a.st.code, 0);
    const Strata__V1__HelloReply *r = (Strata__V1__HelloReply *)a.m;
    assert_int_equal(r->ticket_public_key.len, TICKET_PUB_LEN);
    memcpy(w.ticket_key, r->ticket_public_key.data, TICKET_PUB_LEN);
    w.epoch = r->epoch;
    drop(&a);
}

/* held NULL: nothing. The reply is the caller's. */
static struct answer report(bool complete, const char *held, uint64_t used, const char *ended)
{
    Strata__V1__SessionReport q = STRATA__V1__SESSION_REPORT__INIT;
    Strata__V1__SessionHeld h = STRATA__V1__SESSION_HELD__INIT, *ph = &h;
    Strata__V1__SessionEnded x = STRATA__V1__SESSION_ENDED__INIT, *px = &x;
    q.epoch = w.epoch;
    q.complete = complete;
    if (held) {
        h.session = (char *)held;
        h.principal = (char *)"user/alice";
        h.limit_bytes = 10 * MB;
        h.used_bytes = used;
        h.expires_us = clock_wall_us(clock_system()) + 60000000;
        q.held = &ph;
        q.n_held = 1;
    }
    if (ended) {
        x.session = (char *)ended;
        x.reason = (char *)"CLOSED";
        q.ended = &px;
        q.n_ended = 1;
    }
    struct answer a = ask(AGENT, &strata__v1__sessions__descriptor, "Report", &q.base);
    if (a.st.code)
        fail_msg("report: %s %s", a.st.reason, a.st.text);
    return a;
}

static void agent_says(bool complete, const char *held, uint64_t used, const char *ended)
{
    struct answer a = report(complete, held, used, ended);
    drop(&a);
}

static bool was_revoked(const char *id, const char **reason)
{
    for (unsigned i = 0; i < w.nrevoked; i++)
        if (!strcmp(w.revoked[i], id)) {
            if (reason)
                *reason = w.reasons[i];
            return true;
        }
    return false;
}

/* ---- what users ask ---- */

static struct answer apply(enum who by, Strata__V1__Policy *const *p, size_t n, bool dry)
{
    Strata__V1__ApplyPoliciesRequest q = STRATA__V1__APPLY_POLICIES_REQUEST__INIT;
    q.policies = (Strata__V1__Policy **)p;
    q.n_policies = n;
    q.dry_run = dry;
    return ask(by, &strata__v1__policies__descriptor, "Apply", &q.base);
}

/* role "" = none; quota 0 = none */
static struct answer give(const char *who, const char *role, const char *device, uint64_t quota,
                          int64_t expires, bool dry)
{
    Strata__V1__Policy p = STRATA__V1__POLICY__INIT, *pp = &p;
    char *roles[] = {(char *)role}, *devices[] = {(char *)device};
    p.principal = (char *)who;
    p.roles = roles;
    p.n_roles = *role != 0;
    p.devices = devices;
    p.n_devices = device != NULL;
    p.has_quota = quota != 0;
    p.quota_bytes = quota;
    p.expires_us = expires;
    return apply(ADMIN, &pp, 1, dry);
}

static void given(const char *who, const char *role, const char *device, uint64_t quota)
{
    struct answer a = give(who, role, device, quota, 0, false);
    if (a.st.code)
        fail_msg("apply: %s %s", a.st.reason, a.st.text);
    drop(&a);
}

static void open_request(Strata__V1__OpenSessionRequest *q, uint64_t limit, uint64_t ttl_ns)
{
    strata__v1__open_session_request__init(q);
    q->node = (char *)"n1";
    q->limit_bytes = limit;
    q->ttl_ns = ttl_ns;
}

static struct answer open_session(enum who who, uint64_t limit, uint64_t ttl_ns, char id[40])
{
    Strata__V1__OpenSessionRequest q;
    open_request(&q, limit, ttl_ns);
    struct answer a = ask(who, &strata__v1__sessions__descriptor, "Open", &q.base);
    if (a.m)
        str_copy(id, 40, ((Strata__V1__SessionGrant *)a.m)->session);
    return a;
}

static void opened(enum who who, uint64_t limit, uint64_t ttl_ns, char id[40])
{
    struct answer a = open_session(who, limit, ttl_ns, id);
    if (a.st.code)
        fail_msg("open: %s %s", a.st.reason, a.st.text);
    drop(&a);
}

static struct answer end_session(enum who who, const char *method, const char *id)
{
    Strata__V1__EndSessionRequest q = STRATA__V1__END_SESSION_REQUEST__INIT;
    q.session = (char *)id;
    return ask(who, &strata__v1__sessions__descriptor, method, &q.base);
}

/* What alice holds, over the cluster. */
static uint64_t held(uint64_t *allocated)
{
    Strata__V1__QuotaRequest q = STRATA__V1__QUOTA_REQUEST__INIT;
    q.principal = (char *)"user/alice";
    struct answer a = ask(ADMIN, &strata__v1__policies__descriptor, "Quota", &q.base);
    const Strata__V1__QuotaReply *r = (Strata__V1__QuotaReply *)a.m;
    uint64_t n = 0;
    assert_non_null(r);
    for (size_t i = 0; i < r->n_uses; i++)
        if (!strcmp(r->uses[i]->scope, "cluster")) {
            n = r->uses[i]->reserved_bytes;
            if (allocated)
                *allocated = r->uses[i]->allocated_bytes;
        }
    drop(&a);
    return n;
}

static size_t audited(const char *type, const char *principal, const char *reason)
{
    Strata__V1__AuditQuery q = STRATA__V1__AUDIT_QUERY__INIT;
    char want[80];
    size_t n = 0;
    q.type = (char *)type;
    q.principal = (char *)principal;
    q.limit = 1000;
    snprintf(want, sizeof want, "\"reason\":\"%s\"", reason);
    struct answer a = ask(ADMIN, &strata__v1__audit__descriptor, "Query", &q.base);
    const Strata__V1__AuditPage *r = (Strata__V1__AuditPage *)a.m;
    for (size_t i = 0; r && i < r->n_rows; i++)
        n += strstr(r->rows[i]->meta, want) != NULL;
    drop(&a);
    return n;
}

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
    ProtobufCBinaryData junk = {4, (uint8_t *)"junk"};
    rp.epoch = w.epoch;
    rp.events = &junk;
    rp.n_events = 1;
    expect(ask(AGENT, &strata__v1__sessions__descriptor, "Report", &rp.base), "BAD_EVENT");
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

/* ---- set-up ---- */

static void peer_open(struct peer *p, struct tls_ca *ca)
{
    struct err e;
    char crt[128], key[128], root[128];
    int64_t now = clock_wall_us(clock_system());
    snprintf(root, sizeof root, "%s/ca.crt", w.dir);
    snprintf(crt, sizeof crt, "%s/%s.crt", w.dir, p->name);
    snprintf(key, sizeof key, "%s/%s.key", w.dir, p->name);
    OK(tls_ca_issue(ca,
                    &(struct tls_issue){.kind = p->kind,
                                        .name = p->name,
                                        .not_before_us = now - 60000000,
                                        .not_after_us = now + 3600ll * 1000000},
                    crt, key, &e));
    OK(tls_ctx_new(
        &p->tls, &(struct tls_cfg){.ca_file = root, .cert_file = crt, .key_file = key, .trust_domain = "lab"},
        clock_system(), &e));
    struct quic_ep_cfg cfg = {.clock = clock_system(), .rng = rng_system(), .log = &w.log, .tls = p->tls};
    quic_limits_control(&cfg.limits);
    OK(quic_udp_new(&p->udp, &p->ep, w.base, 0, "127.0.0.1:0", &cfg, &e));
}

static int set_up(void **st)
{
    static const struct rpc_method methods[] = {{"strata.v1.SessionControl", "Revoke", RPC_UNARY, on_revoke}};
    const ProtobufCServiceDescriptor *const services[] = {&strata__v1__session_control__descriptor};
    struct tls_ca *ca;
    struct err e;
    char path[160], crt[128], key[128], text[512];
    (void)st;
    strcpy(w.dir, "/tmp/strata-grants-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    w.log = (struct log){
        .fd = getenv("TEST_LOG") ? 2 : -1, .level = LOG_LV_DEBUG, .program = "test", .clock = clock_system()};
    w.base = event_base_new();
    event_base_priority_init(w.base, 2);
    OK(tls_ca_create(w.dir, "lab", 2, clock_system(), &e));
    OK(tls_ca_load(&ca, w.dir, &e));
    int64_t now = clock_wall_us(clock_system());
    snprintf(crt, sizeof crt, "%s/coordinator.crt", w.dir);
    snprintf(key, sizeof key, "%s/coordinator.key", w.dir);
    OK(tls_ca_issue(ca,
                    &(struct tls_issue){.kind = TLS_COORDINATOR,
                                        .not_before_us = now - 60000000,
                                        .not_after_us = now + 3600ll * 1000000},
                    crt, key, &e));
    OK(rpc_table_new(&w.agent_table, services, 1, methods, 1, NULL, &e));
    static const struct {
        const char *name;
        enum tls_kind kind;
    } who[PEERS] = {{"admin", TLS_USER}, {"alice", TLS_USER}, {"bob", TLS_USER}, {"n1", TLS_NODE}};
    for (unsigned i = 0; i < PEERS; i++) {
        w.p[i].name = who[i].name;
        w.p[i].kind = who[i].kind;
        peer_open(&w.p[i], ca);
    }
    tls_ca_free(ca);
    /* A port that was free a moment ago. */
    w.port = quic_udp_port(w.p[0].udp) + 1u;
    int n = snprintf(
        text, sizeof text,
        "version: 1\nlisten: \"127.0.0.1:%u\"\nadmin: user/admin\ntls: {dir: %s, trust_domain: lab}\n"
        "state: {dir: %s/state}\nlease: {suspect: 30s, dead: 60s}\n",
        w.port, w.dir, w.dir);
    snprintf(path, sizeof path, "%s/coordinator.yaml", w.dir);
    OK(fs_write_atomic(path, text, (size_t)n, 0600, &e));
    daemon_start();
    for (unsigned i = 0; i < PEERS; i++)
        dial(&w.p[i]);
    hello();
    agent_says(true, NULL, 0, NULL);
    return 0;
}

static int tear_down(void **st)
{
    char cmd[120];
    (void)st;
    for (unsigned i = 0; i < PEERS; i++) {
        quic_udp_free(w.p[i].udp, 0, "end");
        tls_ctx_unref(w.p[i].tls);
    }
    daemon_kill(SIGTERM);
    rpc_table_free(w.agent_table);
    event_base_free(w.base);
    if (getenv("TEST_LOG")) {
        snprintf(cmd, sizeof cmd, "cat '%s/log'", w.dir);
        if (system(cmd))
            return 1;
    }
    snprintf(cmd, sizeof cmd, "rm -rf -- '%s'", w.dir);
    return system(cmd);
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
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
