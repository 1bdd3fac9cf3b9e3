/* Device sessions over real agents and real workers: what they can do, and every way in which they end. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/session/session_priv.h"
#include "strata/v1/agentctl.pb-c.h"
#include "tests/unit/session/client.h"

#define MIB (1u << 20)

static struct fix {
    struct world w;
    struct user alice, bob;
    unsigned opened, closed, allocated, denied;
} fix;

static void on_event(const struct audit_event *e, void *arg)
{
    struct fix *f = arg;
    f->opened += e->type == EV_SECURITY_SESSION_OPENED;
    f->closed += e->type == EV_SECURITY_SESSION_CLOSED;
    f->allocated += e->type == EV_MEMORY_ALLOCATE && e->result == EVENT_SUCCESS;
    f->denied += e->result == EVENT_DENIED;
    assert_true(e->session[0] || e->type == EV_SECURITY_TICKET_REFUSED);
    assert_true(e->principal[0] && e->node[0]);
}

static int setup(void **st)
{
    world_open(&fix.w);
    user_open(&fix.alice, &fix.w, "alice");
    user_open(&fix.bob, &fix.w, "bob");
    fix.w.on_event = on_event;
    fix.w.event_arg = &fix;
    WAIT(&fix.w, fix.w.node[0].reports && fix.w.node[1].reports);
    *st = &fix;
    return 0;
}

static int teardown(void **st)
{
    (void)st;
    user_close(&fix.alice);
    user_close(&fix.bob);
    world_close(&fix.w);
    return 0;
}

static struct sessions *room(unsigned node)
{
    return agent_sessions(fix.w.node[node].agent);
}

/* Nothing is left of any session on the node, and the coordinator was told. */
static void all_over(unsigned node, unsigned ended_before, const char *reason)
{
    struct world_node *n = &fix.w.node[node];
    WAIT(&fix.w, n->ended > ended_before && n->held == 0);
    assert_string_equal(n->ended_reason, reason);
    assert_int_equal(sessions_count(room(node)), 0);
    assert_true(sessions_device_bytes(room(node), "cpu:0") == 0);
}

static int pid_of(unsigned node)
{
    assert_non_null(room(node)->head);
    assert_non_null(room(node)->head->tenant);
    return tenant_pid(room(node)->head->tenant);
}

static void test_whole(void **st)
{
    struct fix *f = *st;
    struct ticket t = user_ticket(&f->alice, 0, 128 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    unsigned ended = f->w.node[0].ended;
    size_t n = 33 * MIB + 12345;
    uint8_t *p = pattern(n, 1), h1[16], h2[16];
    struct reply r;

    Strata__V1__ListDevicesRequest lq = STRATA__V1__LIST_DEVICES_REQUEST__INIT;
    expect_ask(l, "Devices.List", &lq.base, 0, "", &r);
    assert_int_equal(((Strata__V1__ListDevicesReply *)r.msg)->n_devices, 1);
    assert_string_equal(((Strata__V1__ListDevicesReply *)r.msg)->devices[0]->id, "cpu:0");
    reply_free(&r);
    Strata__V1__DeviceInfoRequest iq = STRATA__V1__DEVICE_INFO_REQUEST__INIT;
    iq.device = (char *)"cpu:0";
    expect_ask(l, "Devices.Info", &iq.base, 0, "", &r);
    uint64_t before = ((Strata__V1__Device *)r.msg)->available_bytes;
    assert_true(before == 512ull * MIB);
    reply_free(&r);

    ProtobufCBinaryData a = mem_alloc(l, n, h1), b = mem_alloc(l, n, h2);
    mem_put(l, a, 0, p, n);
    mem_check(l, a, 0, p, n);
    mem_check(l, a, 777, p + 777, 5 * MIB);
    mem_put(l, a, 4321, p, 100);
    mem_check(l, a, 4321, p, 100);
    memcpy(p + 4321, p, 100);

    Strata__V1__CopyBetweenRequest cq = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
    cq.to = b;
    cq.from = a;
    cq.from_offset = 1000;
    cq.to_offset = 5;
    cq.bytes = n - 1000;
    expect_ask(l, "Memory.CopyDeviceToDevice", &cq.base, 0, "", NULL);
    mem_check(l, b, 5, p + 1000, n - 1000);

    expect_ask(l, "Devices.Info", &iq.base, 0, "", &r);
    assert_true(((Strata__V1__Device *)r.msg)->available_bytes == before - 2 * n);
    reply_free(&r);
    Strata__V1__SessionStateRequest sq = STRATA__V1__SESSION_STATE_REQUEST__INIT;
    expect_ask(l, "Devices.Session", &sq.base, 0, "", &r);
    const Strata__V1__DeviceSession *s = (Strata__V1__DeviceSession *)r.msg;
    assert_true(s->used_bytes == 2 * n && s->limit_bytes == 128 * MIB && s->n_buffers == 2);
    assert_string_equal(s->principal, "user/alice");
    reply_free(&r);
    WAIT(&f->w, f->w.node[0].held_bytes == 2 * n); /* the coordinator hears of it by itself */

    Strata__V1__DeallocateRequest dq = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    dq.handle = a;
    expect_ask(l, "Memory.Deallocate", &dq.base, 0, "", NULL);
    expect_ask(l, "Memory.Deallocate", &dq.base, 5, "NO_HANDLE", NULL);
    int pid = pid_of(0);
    Strata__V1__CloseDevicesRequest xq = STRATA__V1__CLOSE_DEVICES_REQUEST__INIT;
    expect_ask(l, "Devices.Close", &xq.base, 0, "", &r);
    assert_true(((Strata__V1__CloseDevicesReply *)r.msg)->freed_bytes == n);
    reply_free(&r);
    expect_ask(l, "Devices.Session", &sq.base, 14, "CLOSED", NULL);
    all_over(0, ended, "CLOSED");
    WAIT(&f->w, kill(pid, 0) != 0); /* nothing held, no worker */
    WAIT(&f->w, f->opened && f->closed && f->allocated == 2);
    /* The ticket is still valid by its own words, and replayed. */
    uint8_t tb[TICKET_MAX];
    struct link *l2 = link_open(&f->alice, 0);
    Strata__V1__OpenDevicesRequest oq = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    oq.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, tb), tb};
    expect_ask(l2, "Devices.Open", &oq.base, 7, "TICKET_REVOKED", NULL);
    link_close(l2);
    link_close(l);
    free(p);
}

/* ---- the ways to end ---- */

static void test_disconnect_and_linger(void **st)
{
    struct fix *f = *st;
    uint8_t h[16], *p = pattern(MIB, 2);
    unsigned ended = f->w.node[0].ended;
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    (void)mem_alloc(l, MIB, h);
    link_close(l);
    all_over(0, ended, "DISCONNECTED");

    /* With time to come back, from another connection and with what was there. */
    t = user_ticket(&f->alice, 0, 64 * MIB);
    l = link_open(&f->alice, 0);
    link_attach(l, &t, 30 * NS_PER_S);
    ProtobufCBinaryData b = mem_alloc(l, MIB, h);
    mem_put(l, b, 0, p, MIB);
    link_close(l);
    WAIT(&f->w, room(0)->head && !room(0)->head->nlinks);
    l = link_open(&f->alice, 0);
    link_attach(l, &t, 300 * NS_PER_MS);
    mem_check(l, b, 0, p, MIB);
    ended = f->w.node[0].ended;
    uint64_t left = clock_ns(clock_system());
    link_close(l);
    all_over(0, ended, "DISCONNECTED");
    assert_true(clock_ns(clock_system()) - left >= 250 * NS_PER_MS);
    free(p);
}

static void test_expiry_and_renewal(void **st)
{
    struct fix *f = *st;
    unsigned ended = f->w.node[0].ended;
    uint8_t h[16], tb[TICKET_MAX];
    struct ticket t = user_ticket(&f->alice, 0, 8 * MIB);
    t.expires_us = t.issued_us + 2500000;
    struct link *l = link_session(&f->alice, 0, &t);
    ProtobufCBinaryData b = mem_alloc(l, MIB, h);

    struct ticket t2 = t;
    Strata__V1__RenewDevicesRequest q = STRATA__V1__RENEW_DEVICES_REQUEST__INIT;
    t2.issued_us = t.issued_us + 10;
    t2.expires_us = t.issued_us + 3300000;
    t2.limit_bytes = MIB; /* below what is held is allowed: nothing more is given */
    t2.grant.permissions = PERM_BIT(PERM_MEMORY_ALLOCATE);
    q.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t2, tb), tb};
    expect_ask(l, "Devices.Renew", &q.base, 0, "", NULL);
    Strata__V1__AllocateRequest aq = STRATA__V1__ALLOCATE_REQUEST__INIT;
    aq.device = (char *)"cpu:0";
    aq.bytes = 1;
    expect_ask(l, "Memory.Allocate", &aq.base, 8, "QUOTA_EXCEEDED", NULL);
    Strata__V1__DeallocateRequest dq = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    dq.handle = b;
    expect_ask(l, "Memory.Deallocate", &dq.base, 7, "MISSING_PERMISSION", NULL);
    /* An older one of the same session changes nothing; one of another session is none of ours. */
    q.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, tb), tb};
    expect_ask(l, "Devices.Renew", &q.base, 10, "TICKET_OLDER", NULL);
    struct ticket t3 = user_ticket(&f->alice, 0, MIB);
    q.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t3, tb), tb};
    expect_ask(l, "Devices.Renew", &q.base, 7, "TICKET_WRONG_SESSION", NULL);
    while (clock_wall_us(clock_system()) < t.expires_us + 100000)
        world_turn(&f->w, clock_ns(clock_system()));
    assert_int_equal(sessions_count(room(0)), 1); /* the first end has passed */
    all_over(0, ended, "TICKET_EXPIRED");
    Strata__V1__SessionStateRequest sq = STRATA__V1__SESSION_STATE_REQUEST__INIT;
    expect_ask(l, "Devices.Session", &sq.base, 7, "TICKET_EXPIRED", NULL);
    link_close(l);
}

static void revoke_session(struct fix *f, const struct ticket *t, struct reply *r)
{
    char name[SESSION_NAME_MAX + 1];
    Strata__V1__RevokeSessionsRequest q = STRATA__V1__REVOKE_SESSIONS_REQUEST__INIT;
    Strata__V1__SessionEnd e = STRATA__V1__SESSION_END__INIT, *ep = &e;
    ticket_session(t, name);
    e.session = name;
    e.reason = (char *)"POLICY_CHANGED";
    e.expires_us = t->expires_us;
    q.end = &ep;
    q.n_end = 1;
    *r = (struct reply){0};
    struct link l = {.w = &f->w, .rpc = f->w.node[0].session};
    ask_service(&l, &strata__v1__session_control__descriptor, "Revoke", RPC_UNARY, &q.base, r);
}

/* In the middle of a copy in and a copy out. */
static void test_revoked_mid_copy(void **st)
{
    struct fix *f = *st;
    unsigned ended = f->w.node[0].ended;
    size_t n = 48 * MIB;
    uint8_t h1[16], h2[16], *p = pattern(n, 3);
    struct ticket t = user_ticket(&f->alice, 0, 128 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    struct reply up = {.hold = 20 * MIB}, down = {.stall = true}, rv;
    ProtobufCBinaryData a = mem_alloc(l, n, h1), b = mem_alloc(l, n, h2);
    mem_put_start(l, a, 0, p, n, &up);
    mem_get_start(l, b, 0, n, &down);
    WAIT(&f->w, up.at == up.hold && down.msg);
    assert_false(up.done || down.done);
    uint64_t t0 = clock_ns(clock_system());
    revoke_session(f, &t, &rv);
    WAIT(&f->w, up.done && down.done);
    assert_true(clock_ns(clock_system()) - t0 < NS_PER_S);
    expect(&up, 7, "POLICY_CHANGED");
    expect(&down, 7, ""); /* bytes had begun: only a reset can tell */
    WAIT(&f->w, rv.done);
    assert_true(clock_ns(clock_system()) - t0 < NS_PER_S);
    expect(&rv, 0, "");
    assert_int_equal(((Strata__V1__RevokeSessionsReply *)rv.msg)->n_ended, 1);
    all_over(0, ended, "POLICY_CHANGED");
    reply_free(&rv);
    reply_free(&up);
    reply_free(&down);
    Strata__V1__SessionStateRequest sq = STRATA__V1__SESSION_STATE_REQUEST__INIT;
    expect_ask(l, "Devices.Session", &sq.base, 7, "POLICY_CHANGED", NULL);
    link_close(l);
    /* Revoked before it began: no beginning. */
    uint8_t tb[TICKET_MAX];
    t = user_ticket(&f->alice, 0, MIB);
    revoke_session(f, &t, &rv);
    wait_reply(&rv);
    expect(&rv, 0, "");
    reply_free(&rv);
    l = link_open(&f->alice, 0);
    Strata__V1__OpenDevicesRequest oq = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    oq.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, tb), tb};
    expect_ask(l, "Devices.Open", &oq.base, 7, "TICKET_REVOKED", NULL);
    link_close(l);
    free(p);
}

/* What the coordinator answers to a report ends sessions as well. */
static void test_ended_by_report(void **st)
{
    struct fix *f = *st;
    unsigned ended = f->w.node[0].ended;
    char name[SESSION_NAME_MAX + 1];
    uint8_t h[16];
    struct ticket t = user_ticket(&f->alice, 0, 8 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    (void)mem_alloc(l, MIB, h);
    ticket_session(&t, name);
    f->w.end_session = name;
    all_over(0, ended, "KILLED");
    link_close(l);
}

static void test_worker_dies_mid_copy(void **st)
{
    struct fix *f = *st;
    unsigned ended = f->w.node[0].ended;
    size_t n = 32 * MIB;
    uint8_t h[16], *p = pattern(n, 4);
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    struct reply up = {.hold = 16 * MIB};
    ProtobufCBinaryData b = mem_alloc(l, n, h);
    mem_put_start(l, b, 0, p, n, &up);
    WAIT(&f->w, up.at == up.hold);
    assert_int_equal(kill(pid_of(0), SIGKILL), 0);
    WAIT(&f->w, up.done);
    assert_int_not_equal(up.code, 0);
    all_over(0, ended, "WORKER_DIED");
    link_close(l);
    free(p);
}

/* A worker that does not answer is killed for a revocation, and only then. */
static void test_worker_hangs(void **st)
{
    struct fix *f = *st;
    unsigned ended = f->w.node[0].ended;
    uint8_t h[16];
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    struct reply rv;
    (void)mem_alloc(l, MIB, h);
    int pid = pid_of(0);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    uint64_t t0 = clock_ns(clock_system());
    revoke_session(f, &t, &rv);
    WAIT(&f->w, rv.done);
    uint64_t took = clock_ns(clock_system()) - t0;
    expect(&rv, 0, "");
    assert_true(took > 500 * NS_PER_MS && took < 2 * NS_PER_S);
    assert_int_not_equal(kill(pid, 0), 0);
    all_over(0, ended, "POLICY_CHANGED");
    reply_free(&rv);
    link_close(l);
}

/* The report of an end is repeated until it was taken. */
static void test_report_repeated(void **st)
{
    struct fix *f = *st;
    unsigned ended = f->w.node[0].ended;
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    f->w.mute = true;
    struct link *l = link_session(&f->alice, 0, &t);
    link_close(l);
    WAIT(&f->w, sessions_count(room(0)) == 0);
    assert_int_equal(f->w.node[0].ended, ended);
    f->w.mute = false;
    all_over(0, ended, "DISCONNECTED");
}

/* ---- several at once ---- */

static void test_leases(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    struct ticket ta = user_ticket(&f->alice, 0, 8 * MIB), tb = user_ticket(&f->bob, 0, 8 * MIB);
    struct link *a = link_session(&f->alice, 0, &ta), *b = link_session(&f->bob, 0, &tb);
    Strata__V1__LeaseRequest q = STRATA__V1__LEASE_REQUEST__INIT;
    Strata__V1__ReleaseLeaseRequest rq = STRATA__V1__RELEASE_LEASE_REQUEST__INIT;
    Strata__V1__AllocateRequest aq = STRATA__V1__ALLOCATE_REQUEST__INIT;
    q.device = rq.device = aq.device = (char *)"cpu:0";
    aq.bytes = MIB;
    expect_ask(b, "Devices.Release", &rq.base, 5, "NO_LEASE", NULL);
    expect_ask(b, "Devices.Allocate", &q.base, 0, "", NULL); /* shared */
    q.exclusive = true;
    expect_ask(a, "Devices.Allocate", &q.base, 10, "DEVICE_IN_USE", NULL);
    expect_ask(b, "Devices.Release", &rq.base, 0, "", NULL);
    ProtobufCBinaryData m = mem_alloc(b, MIB, h);
    expect_ask(a, "Devices.Allocate", &q.base, 10, "DEVICE_IN_USE", NULL);
    Strata__V1__DeallocateRequest dq = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    dq.handle = m;
    expect_ask(b, "Memory.Deallocate", &dq.base, 0, "", NULL);
    expect_ask(a, "Devices.Allocate", &q.base, 0, "", NULL);
    expect_ask(b, "Memory.Allocate", &aq.base, 10, "DEVICE_LEASED", NULL);
    expect_ask(b, "Devices.Allocate", &q.base, 10, "DEVICE_LEASED", NULL);
    /* Nor do layers of a job get anything. */
    Strata__V1__LoadRequest lq;
    world_load_request(&f->w, "jl", world_small(&f->w), &lq);
    struct result r = world_load(&f->w, 0, &lq);
    assert_int_equal(r.code, 8);
    link_close(a); /* the lease ends with its session */
    WAIT(&f->w, sessions_count(room(0)) == 1);
    expect_ask(b, "Memory.Allocate", &aq.base, 0, "", NULL);
    link_close(b);
    WAIT(&f->w, sessions_count(room(0)) == 0);
}

/* Twelve at once, each a quarter of the limit: four get it. */
static void test_quota_holds_at_once(void **st)
{
    struct fix *f = *st;
    struct ticket t = user_ticket(&f->alice, 0, 4 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    struct reply r[12] = {0};
    unsigned ok = 0, refused = 0;
    Strata__V1__AllocateRequest q = STRATA__V1__ALLOCATE_REQUEST__INIT;
    q.device = (char *)"cpu:0";
    q.bytes = MIB;
    for (unsigned i = 0; i < 12; i++)
        ask(l, "Memory.Allocate", RPC_UNARY, &q.base, &r[i]);
    for (unsigned i = 0; i < 12; i++) {
        wait_reply(&r[i]);
        ok += r[i].code == 0;
        refused += r[i].code == 8 && !strcmp(r[i].reason, "QUOTA_EXCEEDED");
        reply_free(&r[i]);
    }
    assert_true(ok == 4 && refused == 8);
    assert_true(sessions_device_bytes(room(0), "cpu:0") == 4 * MIB);
    link_close(l);
    WAIT(&f->w, sessions_count(room(0)) == 0);
}

/* A principal's layers and sessions live in one worker; the sessions' end leaves the layers alone. */
static void test_shares_worker_with_layers(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    Strata__V1__LoadRequest lq;
    world_load_request(&f->w, "js", world_small(&f->w), &lq);
    struct result r = world_load(&f->w, 0, &lq);
    assert_int_equal(r.code, 0);
    struct ticket t = user_ticket(&f->alice, 0, 4 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    (void)mem_alloc(l, MIB, h);
    int pid = pid_of(0);
    link_close(l);
    WAIT(&f->w, sessions_count(room(0)) == 0);
    assert_int_equal(kill(pid, 0), 0);
    r = world_verify(&f->w, 0, "js", lq.layer);
    assert_int_equal(r.code, 0);
    r = world_release(&f->w, 0, "js", "");
    assert_int_equal(r.code, 0);
    WAIT(&f->w, kill(pid, 0) != 0);
}

static void test_between_nodes(void **st)
{
    struct fix *f = *st;
    size_t n = 20 * MIB + 7;
    uint8_t h0[16], h1[16], offer[16], *p = pattern(n, 5);
    struct ticket t0 = user_ticket(&f->alice, 0, 64 * MIB), t1 = user_ticket(&f->alice, 1, 64 * MIB);
    struct link *l0 = link_session(&f->alice, 0, &t0), *l1 = link_session(&f->alice, 1, &t1);
    ProtobufCBinaryData from = mem_alloc(l0, n, h0), to = mem_alloc(l1, n, h1);
    struct reply r;
    mem_put(l0, from, 0, p, n);
    Strata__V1__OfferRequest oq = STRATA__V1__OFFER_REQUEST__INIT;
    oq.handle = from;
    oq.offset = 3;
    oq.bytes = n - 3;
    oq.to_node = (char *)"n1";
    expect_ask(l0, "Memory.Offer", &oq.base, 0, "", &r);
    assert_int_equal(((Strata__V1__OfferReply *)r.msg)->offer.len, 16);
    memcpy(offer, ((Strata__V1__OfferReply *)r.msg)->offer.data, 16);
    reply_free(&r);
    Strata__V1__CopyBetweenRequest q = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
    q.to = to;
    q.bytes = n - 3;
    q.from_node = (char *)"n0";
    q.from_address = f->w.node[0].peer_address;
    q.offer = (ProtobufCBinaryData){16, offer};
    expect_ask(l1, "Memory.CopyDeviceToDevice", &q.base, 0, "", &r);
    assert_int_equal(((Strata__V1__Copied *)r.msg)->sha256.len, 32);
    reply_free(&r);
    mem_check(l1, to, 0, p + 3, n - 3);
    /* Once means once. */
    expect_ask(l1, "Memory.CopyDeviceToDevice", &q.base, 7, "NO_OFFER", NULL);
    /* Offered to another node. */
    oq.to_node = (char *)"n7";
    expect_ask(l0, "Memory.Offer", &oq.base, 0, "", &r);
    memcpy(offer, ((Strata__V1__OfferReply *)r.msg)->offer.data, 16);
    reply_free(&r);
    expect_ask(l1, "Memory.CopyDeviceToDevice", &q.base, 7, "NO_OFFER", NULL);
    /* A user is no node. */
    Strata__V1__PullRequest pq = STRATA__V1__PULL_REQUEST__INIT;
    pq.offer = q.offer;
    pq.bytes = n - 3;
    r = (struct reply){0};
    ask(l0, "MemorySource.Pull", RPC_BULK, &pq.base, &r);
    wait_reply(&r);
    expect(&r, 7, "NO_OFFER");
    link_close(l0);
    link_close(l1);
    WAIT(&f->w, sessions_count(room(0)) + sessions_count(room(1)) == 0);
    free(p);
}

static void test_kernels_and_sensors(void **st)
{
    struct fix *f = *st;
    uint8_t h[16], *p = malloc(MIB);
    struct ticket t = user_ticket(&f->alice, 0, 8 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    ProtobufCBinaryData b = mem_alloc(l, MIB, h);
    Strata__V1__Span s = STRATA__V1__SPAN__INIT, *sp = &s;
    Strata__V1__ExecuteRequest q = STRATA__V1__EXECUTE_REQUEST__INIT;
    uint64_t word = 0xa1b2c3d4u;
    struct reply r;
    s.handle = b;
    s.offset = 4096;
    s.bytes = 8192;
    q.device = (char *)"cpu:0";
    q.kernel = (char *)"fill";
    q.spans = &sp;
    q.n_spans = 1;
    q.scalars = &word;
    q.n_scalars = 1;
    expect_ask(l, "Compute.Execute", &q.base, 0, "", NULL);
    Strata__V1__SynchronizeRequest yq = STRATA__V1__SYNCHRONIZE_REQUEST__INIT;
    yq.device = (char *)"cpu:0";
    expect_ask(l, "Compute.Synchronize", &yq.base, 0, "", NULL);
    memset(p, 0, MIB);
    for (unsigned i = 0; i < 2048; i++)
        memcpy(p + 4096 + 4 * i, &(uint32_t){0xa1b2c3d4u}, 4);
    mem_check(l, b, 0, p, MIB);
    q.kernel = (char *)"checksum";
    q.n_scalars = 0;
    uint64_t sum[2];
    for (unsigned i = 0; i < 2; i++) {
        expect_ask(l, "Compute.Execute", &q.base, 0, "", &r);
        sum[i] = ((Strata__V1__ExecuteReply *)r.msg)->value;
        reply_free(&r);
        s.offset = 0;
    }
    assert_true(sum[0] != 0 && sum[0] != sum[1]);
    q.kernel = (char *)"nonsense";
    expect_ask(l, "Compute.Execute", &q.base, 5, "", NULL);
    Strata__V1__MonitorRequest mq = STRATA__V1__MONITOR_REQUEST__INIT;
    mq.device = (char *)"cpu:0";
    expect_ask(l, "Monitor.Memory", &mq.base, 0, "", &r);
    const Strata__V1__MemoryReading *m = (Strata__V1__MemoryReading *)r.msg;
    assert_true(m->session_bytes == MIB && m->total_bytes == 512ull * MIB &&
                m->available_bytes < m->total_bytes);
    reply_free(&r);
    static const char *const sensors[] = {"Monitor.Temperature", "Monitor.Power", "Monitor.Clock"};
    for (unsigned i = 0; i < 3; i++) {
        expect_ask(l, sensors[i], &mq.base, 0, "", &r);
        const Strata__V1__SensorReading *v = (Strata__V1__SensorReading *)r.msg;
        assert_true(v->valid || (v->value == 0 && v->age_ns == 0)); /* absent is absent */
        reply_free(&r);
    }
    link_close(l);
    WAIT(&f->w, sessions_count(room(0)) == 0);
    free(p);
}

static void nothing(void *arg, int rc, const struct err *e)
{
    (void)e;
    assert_int_equal(rc, ST_OK);
    *(bool *)arg = true;
}

/* A byte that was already on the device changes before the copy is complete: the copy itself finds it. */
static void test_device_corrupts_copy(void **st)
{
    struct fix *f = *st;
    size_t n = 16 * MIB;
    uint8_t h[16], *p = pattern(n, 6);
    bool done = false;
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    struct reply up = {.hold = 8 * MIB};
    ProtobufCBinaryData b = mem_alloc(l, n, h);
    struct worker_slot slot;
    struct err e;
    mem_put_start(l, b, 0, p, n, &up);
    WAIT(&f->w, up.at == up.hold);
    struct tenant *tn = room(0)->head->tenant;
    /* Everything sent so far is on the device when this much of it was acknowledged and nothing is in flight.
     */
    for (unsigned i = 0; i < 50; i++)
        world_turn(&f->w, clock_ns(clock_system()));
    WAIT(&f->w, tenant_slot(tn, &slot));
    slot.data[0] = p[0] ^ 1;
    assert_int_equal(tenant_write(tn, room(0)->head->buffers->memory, 0, &slot, 1, nothing, &done, &e),
                     ST_OK);
    WAIT(&f->w, done);
    up.hold = 0;
    upload_more(&up);
    wait_reply(&up);
    expect(&up, 15, "CHECKSUM_MISMATCH");
    reply_free(&up);
    link_close(l);
    WAIT(&f->w, sessions_count(room(0)) == 0);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_disconnect_and_linger),
        cmocka_unit_test(test_expiry_and_renewal),
        cmocka_unit_test(test_revoked_mid_copy),
        cmocka_unit_test(test_ended_by_report),
        cmocka_unit_test(test_worker_dies_mid_copy),
        cmocka_unit_test(test_worker_hangs),
        cmocka_unit_test(test_report_repeated),
        cmocka_unit_test(test_leases),
        cmocka_unit_test(test_quota_holds_at_once),
        cmocka_unit_test(test_shares_worker_with_layers),
        cmocka_unit_test(test_between_nodes),
        cmocka_unit_test(test_kernels_and_sensors),
        cmocka_unit_test(test_device_corrupts_copy),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
