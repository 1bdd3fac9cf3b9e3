/* The world of test_grants: the daemon, its users and an agent. */
#include "tests/unit/api/grants.h"

struct grants w;

static void on_time(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
}

/* One turn of the loop, which ends after 20 ms when nothing comes. */
void turn(void)
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

void dial(struct peer *p)
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

void hang_up(struct peer *p)
{
    if (!p->rpc)
        return;
    rpc_session_close(p->rpc, 0, "bye");
    WAIT(p->closed);
}

/* ---- calls ---- */

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

void begin(enum who who, const ProtobufCServiceDescriptor *svc, const char *method, const ProtobufCMessage *q,
           struct answer *a)
{
    struct rpc_call *call;
    struct err e;
    *a = (struct answer){0};
    OK(rpc_call(&call, w.p[who].rpc, svc, method, RPC_UNARY, q,
                &(struct rpc_call_opts){.request_id = w.request_id}, &ops, a, &e));
}

void drop(struct answer *a)
{
    if (a->m)
        protobuf_c_message_free_unpacked(a->m, NULL);
    a->m = NULL;
}

struct answer ask(enum who who, const ProtobufCServiceDescriptor *svc, const char *method,
                  const ProtobufCMessage *q)
{
    struct answer a;
    begin(who, svc, method, q, &a);
    WAIT(a.done);
    return a;
}

void expect(struct answer a, const char *reason)
{
    if (strcmp(a.st.reason, reason))
        fail_msg("wanted %s, got %u %s: %s", reason, a.st.code, a.st.reason, a.st.text);
    drop(&a);
}

/* ---- the daemon ---- */

void daemon_start(void)
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

void daemon_kill(int sig)
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

void hello(void)
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
struct answer report(bool complete, const char *held, uint64_t used, const char *ended)
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

void agent_says(bool complete, const char *held, uint64_t used, const char *ended)
{
    struct answer a = report(complete, held, used, ended);
    drop(&a);
}

bool was_revoked(const char *id, const char **reason)
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

struct answer apply(enum who by, Strata__V1__Policy *const *p, size_t n, bool dry)
{
    Strata__V1__ApplyPoliciesRequest q = STRATA__V1__APPLY_POLICIES_REQUEST__INIT;
    q.policies = (Strata__V1__Policy **)p;
    q.n_policies = n;
    q.dry_run = dry;
    return ask(by, &strata__v1__policies__descriptor, "Apply", &q.base);
}

/* role "" = none; quota 0 = none */
struct answer give(const char *who, const char *role, const char *device, uint64_t quota, int64_t expires,
                   bool dry)
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

void given(const char *who, const char *role, const char *device, uint64_t quota)
{
    struct answer a = give(who, role, device, quota, 0, false);
    if (a.st.code)
        fail_msg("apply: %s %s", a.st.reason, a.st.text);
    drop(&a);
}

void open_request(Strata__V1__OpenSessionRequest *q, uint64_t limit, uint64_t ttl_ns)
{
    strata__v1__open_session_request__init(q);
    q->node = (char *)"n1";
    q->limit_bytes = limit;
    q->ttl_ns = ttl_ns;
}

struct answer open_session(enum who who, uint64_t limit, uint64_t ttl_ns, char id[40])
{
    Strata__V1__OpenSessionRequest q;
    open_request(&q, limit, ttl_ns);
    struct answer a = ask(who, &strata__v1__sessions__descriptor, "Open", &q.base);
    if (a.m)
        str_copy(id, 40, ((Strata__V1__SessionGrant *)a.m)->session);
    return a;
}

void opened(enum who who, uint64_t limit, uint64_t ttl_ns, char id[40])
{
    struct answer a = open_session(who, limit, ttl_ns, id);
    if (a.st.code)
        fail_msg("open: %s %s", a.st.reason, a.st.text);
    drop(&a);
}

struct answer end_session(enum who who, const char *method, const char *id)
{
    Strata__V1__EndSessionRequest q = STRATA__V1__END_SESSION_REQUEST__INIT;
    q.session = (char *)id;
    return ask(who, &strata__v1__sessions__descriptor, method, &q.base);
}

/* What alice holds, over the cluster. */
uint64_t held(uint64_t *allocated)
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

size_t audited(const char *type, const char *principal, const char *reason)
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

int grants_set_up(void **st)
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

int grants_tear_down(void **st)
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
