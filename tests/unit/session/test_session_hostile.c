/* Clients that want what is not theirs, or too much of it. Every refusal is that of the running agent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/session/session_priv.h"
#include "tests/unit/session/client.h"

#define MIB (1u << 20)

static struct fix {
    struct world w;
    struct user alice, bob;
    unsigned foreign, quota, tickets, missing;
    char quota_meta[200];
} fix;

static void on_event(const struct audit_event *e, void *arg)
{
    struct fix *f = arg;
    f->foreign += e->type == EV_SECURITY_ACCESS_DENIED && strstr(e->meta, "FOREIGN_HANDLE") &&
                  !strcmp(e->principal, "user/bob");
    f->missing += e->type == EV_SECURITY_ACCESS_DENIED && strstr(e->meta, "MISSING_PERMISSION");
    f->tickets += e->type == EV_SECURITY_TICKET_REFUSED && e->result == EVENT_DENIED;
    if (e->type == EV_SECURITY_QUOTA_EXCEEDED) {
        f->quota++;
        snprintf(f->quota_meta, sizeof f->quota_meta, "%s", e->meta);
    }
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

static void nobody(void)
{
    WAIT(&fix.w, sessions_count(room(0)) == 0);
    assert_true(sessions_device_bytes(room(0), "cpu:0") == 0);
}

static void open_refused(struct user *u, const uint8_t *p, size_t n, unsigned code, const char *reason)
{
    Strata__V1__OpenDevicesRequest q = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    Strata__V1__AllocateRequest aq = STRATA__V1__ALLOCATE_REQUEST__INIT;
    struct link *l = link_open(u, 0);
    q.ticket = (ProtobufCBinaryData){n, (uint8_t *)p};
    expect_ask(l, "Devices.Open", &q.base, code, reason, NULL);
    aq.device = (char *)"cpu:0";
    aq.bytes = 1;
    expect_ask(l, "Memory.Allocate", &aq.base, 7, "NO_SESSION", NULL);
    link_close(l);
    assert_int_equal(sessions_count(room(0)), 0);
}

static void test_tickets(void **st)
{
    struct fix *f = *st;
    uint8_t b[TICKET_MAX];
    const struct ticket good = user_ticket(&f->alice, 0, MIB);
    unsigned before = f->tickets;
    size_t n = ticket_bytes(&f->w, &good, b);
    /* Somebody else's, stolen from the wire. */
    open_refused(&f->bob, b, n, 16, "TICKET_WRONG_HOLDER");
    /* Forged: any one bit of what it grants, or of its signature. */
    const size_t at[] = {0, 4, 5, 40, 60, n - 80, n - 64, n - 1};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        b[at[i]] ^= 1;
        open_refused(&f->alice, b, n, 16, "TICKET_FORGED");
        b[at[i]] ^= 1;
    }
    open_refused(&f->alice, b, n - 1, 16, "TICKET_FORGED");
    open_refused(&f->alice, b, 0, 16, "TICKET_FORGED");
    struct ticket t = good;
    t.issued_us -= 120000000;
    t.expires_us = t.issued_us + 60000000;
    open_refused(&f->alice, b, ticket_bytes(&f->w, &t, b), 16, "TICKET_EXPIRED");
    t = good;
    t.issued_us += 60000000;
    t.expires_us += 60000000;
    open_refused(&f->alice, b, ticket_bytes(&f->w, &t, b), 16, "TICKET_NOT_YET_VALID");
    t = good;
    strcpy(t.node, "n1");
    open_refused(&f->alice, b, ticket_bytes(&f->w, &t, b), 16, "TICKET_WRONG_NODE");
    t = good;
    t.purpose = TICKET_FETCH;
    open_refused(&f->alice, b, ticket_bytes(&f->w, &t, b), 7, "TICKET_WRONG_PURPOSE");
    WAIT(&f->w, f->tickets > before + 5); /* all refusals go to the trail, a flood of them in counts */
    /* The good one works, twice on one connection it does not. */
    struct link *l = link_session(&f->alice, 0, &good);
    Strata__V1__OpenDevicesRequest q = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    q.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &good, b), b};
    expect_ask(l, "Devices.Open", &q.base, 10, "ALREADY_OPEN", NULL);
    /* Another certificate with a ticket for the same session begins no part of it. */
    t = good;
    memcpy(t.holder, tls_ctx_self(f->bob.tls)->spki_sha256, 32);
    struct link *lb = link_open(&f->bob, 0);
    q.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, b), b};
    expect_ask(lb, "Devices.Open", &q.base, 7, "TICKET_WRONG_HOLDER", NULL);
    link_close(lb);
    link_close(l);
    nobody();
}

/* Before the coordinator has said what is revoked, no ticket is good. */
static void test_not_before_the_report(void **st)
{
    struct fix *f = *st;
    uint8_t b[TICKET_MAX];
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    size_t n = ticket_bytes(&f->w, &t, b);
    room(0)->trusted = false;
    open_refused(&f->alice, b, n, 14, "NOT_REPORTED");
    rpc_session_close(f->w.node[0].session, 0, "restart");
    WAIT(&f->w, room(0)->trusted);
    link_close(link_session(&f->alice, 0, &t));
    nobody();
}

/* ---- permissions ---- */

struct act {
    const char *name;
    unsigned flags;
    const ProtobufCMessage *rq;
    enum permission needs;
};

static void try_acts(struct fix *f, const struct act *v, size_t n, uint32_t granted)
{
    struct ticket t = user_ticket(&f->alice, 0, 8 * MIB);
    t.grant.permissions = granted;
    struct link *l = link_session(&f->alice, 0, &t);
    for (size_t i = 0; i < n; i++) {
        struct reply r = {0};
        ask(l, v[i].name, v[i].flags, v[i].rq, &r);
        wait_reply(&r);
        bool may = granted & PERM_BIT(v[i].needs);
        if (may == (strcmp(r.reason, "MISSING_PERMISSION") == 0) || (!may && r.code != 7))
            fail_msg("%s with %s: code %u %s", v[i].name, may ? "its permission" : "others", r.code,
                     r.reason);
        reply_free(&r);
    }
    link_close(l);
    nobody();
}

static void test_permissions(void **st)
{
    struct fix *f = *st;
    unsigned before = f->missing;
    uint8_t h[16] = {0};
    Strata__V1__ListDevicesRequest list = STRATA__V1__LIST_DEVICES_REQUEST__INIT;
    Strata__V1__DeviceInfoRequest info = STRATA__V1__DEVICE_INFO_REQUEST__INIT;
    Strata__V1__LeaseRequest lease = STRATA__V1__LEASE_REQUEST__INIT;
    Strata__V1__ReleaseLeaseRequest release = STRATA__V1__RELEASE_LEASE_REQUEST__INIT;
    Strata__V1__AllocateRequest alloc = STRATA__V1__ALLOCATE_REQUEST__INIT;
    Strata__V1__DeallocateRequest dealloc = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    Strata__V1__CopyToRequest to = STRATA__V1__COPY_TO_REQUEST__INIT;
    Strata__V1__CopyFromRequest from = STRATA__V1__COPY_FROM_REQUEST__INIT;
    Strata__V1__CopyBetweenRequest between = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
    Strata__V1__OfferRequest offer = STRATA__V1__OFFER_REQUEST__INIT;
    Strata__V1__ExecuteRequest exec = STRATA__V1__EXECUTE_REQUEST__INIT;
    Strata__V1__SynchronizeRequest sync = STRATA__V1__SYNCHRONIZE_REQUEST__INIT;
    Strata__V1__MonitorRequest mon = STRATA__V1__MONITOR_REQUEST__INIT;
    exec.device = sync.device = mon.device = (char *)"cpu:0";
    exec.kernel = (char *)"fill";
    info.device = lease.device = release.device = alloc.device = (char *)"cpu:0";
    alloc.bytes = 1;
    dealloc.handle = to.handle = from.handle = between.to = between.from = offer.handle =
        (ProtobufCBinaryData){16, h};
    const struct act acts[] = {
        {"Devices.List", 0, &list.base, PERM_DEVICE_LIST},
        {"Devices.Info", 0, &info.base, PERM_DEVICE_INFO},
        {"Devices.Allocate", 0, &lease.base, PERM_DEVICE_ALLOCATE},
        {"Devices.Release", 0, &release.base, PERM_DEVICE_ALLOCATE},
        {"Memory.Allocate", 0, &alloc.base, PERM_MEMORY_ALLOCATE},
        {"Memory.Deallocate", 0, &dealloc.base, PERM_MEMORY_DEALLOCATE},
        {"Memory.CopyToDevice", RPC_UPLOAD, &to.base, PERM_MEMORY_COPY_TO_DEVICE},
        {"Memory.CopyFromDevice", RPC_BULK, &from.base, PERM_MEMORY_COPY_FROM_DEVICE},
        {"Memory.CopyDeviceToDevice", 0, &between.base, PERM_MEMORY_COPY_DEVICE_TO_DEVICE},
        {"Memory.Offer", 0, &offer.base, PERM_MEMORY_COPY_DEVICE_TO_DEVICE},
        {"Compute.Execute", 0, &exec.base, PERM_COMPUTE_EXECUTE},
        {"Compute.Synchronize", 0, &sync.base, PERM_COMPUTE_SYNCHRONIZE},
        {"Monitor.Memory", 0, &mon.base, PERM_MONITOR_MEMORY},
        {"Monitor.Temperature", 0, &mon.base, PERM_MONITOR_TEMPERATURE},
        {"Monitor.Power", 0, &mon.base, PERM_MONITOR_POWER},
        {"Monitor.Clock", 0, &mon.base, PERM_MONITOR_CLOCK},
    };
    size_t n = sizeof acts / sizeof *acts;
    for (unsigned p = 0; p < PERM_ADMIN; p++) {
        try_acts(f, acts, n, PERM_BIT(p));
        try_acts(f, acts, n, PERM_ALL14 & ~PERM_BIT(p));
    }
    WAIT(&f->w, f->missing > before);
    /* A ticket for other devices. */
    struct ticket t = user_ticket(&f->alice, 0, 8 * MIB);
    strcpy(t.grant.devices[0], "cuda:*");
    struct link *l = link_session(&f->alice, 0, &t);
    struct reply r;
    expect_ask(l, "Devices.List", &list.base, 0, "", &r);
    assert_int_equal(((Strata__V1__ListDevicesReply *)r.msg)->n_devices, 0);
    reply_free(&r);
    expect_ask(l, "Devices.Info", &info.base, 7, "DEVICE_NOT_ALLOWED", NULL);
    expect_ask(l, "Memory.Allocate", &alloc.base, 7, "DEVICE_NOT_ALLOWED", NULL);
    alloc.device = (char *)"cuda:3";
    expect_ask(l, "Memory.Allocate", &alloc.base, 5, "NO_DEVICE", NULL);
    link_close(l);
    nobody();
}

/* ---- handles ---- */

static void test_foreign_handles(void **st)
{
    struct fix *f = *st;
    unsigned before = f->foreign;
    uint8_t h[16], g[16], junk[40] = {7}, *p = pattern(MIB, 9);
    struct ticket ta = user_ticket(&f->alice, 0, 8 * MIB), tb = user_ticket(&f->bob, 0, 8 * MIB);
    struct link *a = link_session(&f->alice, 0, &ta), *b = link_session(&f->bob, 0, &tb);
    ProtobufCBinaryData m = mem_alloc(a, MIB, h), own = mem_alloc(b, MIB, g);
    mem_put(a, m, 0, p, MIB);
    const ProtobufCBinaryData bad[] = {m, {16, junk}, {15, h}, {17, junk}, {0, NULL}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Strata__V1__DeallocateRequest dq = STRATA__V1__DEALLOCATE_REQUEST__INIT;
        Strata__V1__CopyBetweenRequest cq = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
        Strata__V1__OfferRequest oq = STRATA__V1__OFFER_REQUEST__INIT;
        struct reply up = {0}, down = {0};
        dq.handle = cq.from = oq.handle = bad[i];
        cq.to = own;
        cq.bytes = oq.bytes = 1;
        oq.to_node = (char *)"n1";
        expect_ask(b, "Memory.Deallocate", &dq.base, 5, "NO_HANDLE", NULL);
        expect_ask(b, "Memory.Offer", &oq.base, 5, "NO_HANDLE", NULL);
        expect_ask(b, "Memory.CopyDeviceToDevice", &cq.base, 5, "NO_HANDLE", NULL);
        cq.to = bad[i];
        cq.from = own;
        expect_ask(b, "Memory.CopyDeviceToDevice", &cq.base, 5, "NO_HANDLE", NULL);
        mem_put_start(b, bad[i], 0, p, 1000, &up);
        wait_reply(&up);
        expect(&up, 5, "NO_HANDLE");
        mem_get_start(b, bad[i], 0, 1000, &down);
        wait_reply(&down);
        expect(&down, 5, "NO_HANDLE");
        assert_int_equal(down.got, 0);
        reply_free(&down);
    }
    /* As an argument of a kernel; and code of one's own, which this node does not run. */
    Strata__V1__Span s = STRATA__V1__SPAN__INIT, *sp = &s;
    Strata__V1__ExecuteRequest xq = STRATA__V1__EXECUTE_REQUEST__INIT;
    uint64_t word = 0;
    xq.device = (char *)"cpu:0";
    xq.kernel = (char *)"fill";
    xq.spans = &sp;
    xq.scalars = &word;
    xq.n_spans = xq.n_scalars = 1;
    s.bytes = 4096;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        s.handle = bad[i];
        expect_ask(b, "Compute.Execute", &xq.base, 5, "NO_HANDLE", NULL);
    }
    s.handle = own;
    s.offset = UINT64_MAX - 100;
    expect_ask(b, "Compute.Execute", &xq.base, 3, "OUT_OF_BOUNDS", NULL);
    s.offset = 0;
    xq.code = (ProtobufCBinaryData){16, junk};
    expect_ask(b, "Compute.Execute", &xq.base, 7, "USER_KERNELS_OFF", NULL);
    mem_check(a, m, 0, p, MIB);
    WAIT(&f->w, f->foreign >= before + 7);
    link_close(b);
    link_close(a);
    nobody();
    free(p);
}

/* ---- sizes ---- */

static void test_sizes(void **st)
{
    struct fix *f = *st;
    unsigned before = f->quota;
    uint8_t h[16], *p = pattern(4 * MIB, 10);
    struct ticket t = user_ticket(&f->alice, 0, UINT64_MAX);
    struct link *l = link_session(&f->alice, 0, &t);
    Strata__V1__AllocateRequest q = STRATA__V1__ALLOCATE_REQUEST__INIT;
    q.device = (char *)"cpu:0";
    expect_ask(l, "Memory.Allocate", &q.base, 3, "NO_BYTES", NULL);
    const uint64_t huge[] = {513ull * MIB, 1ull << 40, INT64_MAX, (uint64_t)-1, (uint64_t)-4096};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        q.bytes = huge[i];
        expect_ask(l, "Memory.Allocate", &q.base, 8, "DEVICE_FULL", NULL);
    }
    ProtobufCBinaryData m = mem_alloc(l, 2 * MIB, h);
    const struct {
        uint64_t off, n;
    } out[] = {{0, 2 * MIB + 1}, {1, 2 * MIB},    {2 * MIB, 1},
               {UINT64_MAX, 1},  {1, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++) {
        Strata__V1__CopyToRequest cq = STRATA__V1__COPY_TO_REQUEST__INIT;
        Strata__V1__CopyFromRequest gq = STRATA__V1__COPY_FROM_REQUEST__INIT;
        Strata__V1__CopyBetweenRequest bq = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
        struct reply r = {0};
        cq.handle = gq.handle = bq.to = bq.from = m;
        cq.offset = gq.offset = bq.from_offset = out[i].off;
        cq.bytes = gq.bytes = bq.bytes = out[i].n;
        ask(l, "Memory.CopyToDevice", RPC_UPLOAD, &cq.base, &r);
        wait_reply(&r);
        expect(&r, 3, "OUT_OF_BOUNDS");
        r = (struct reply){0};
        ask(l, "Memory.CopyFromDevice", RPC_BULK, &gq.base, &r);
        wait_reply(&r);
        expect(&r, 3, "OUT_OF_BOUNDS");
        expect_ask(l, "Memory.CopyDeviceToDevice", &bq.base, 3, "OUT_OF_BOUNDS", NULL);
    }
    Strata__V1__CopyBetweenRequest bq = STRATA__V1__COPY_BETWEEN_REQUEST__INIT;
    bq.to = bq.from = m;
    bq.to_offset = 10;
    bq.bytes = 100;
    expect_ask(l, "Memory.CopyDeviceToDevice", &bq.base, 3, "OVERLAP", NULL);
    bq.from_node = (char *)"n1";
    expect_ask(l, "Memory.CopyDeviceToDevice", &bq.base, 3, "TWO_SOURCES", NULL);
    /* More, or fewer, bytes than were announced. */
    for (unsigned more = 0; more < 2; more++) {
        Strata__V1__CopyToRequest cq = STRATA__V1__COPY_TO_REQUEST__INIT;
        struct reply r = {.src = p, .n = more ? 3 * MIB / 2 : MIB / 2};
        cq.handle = m;
        cq.bytes = MIB;
        ask(l, "Memory.CopyToDevice", RPC_UPLOAD, &cq.base, &r);
        upload_more(&r);
        wait_reply(&r);
        expect(&r, 3, more ? "TOO_MANY_BYTES" : "TOO_FEW_BYTES");
    }
    mem_put(l, m, 0, p, 2 * MIB);
    mem_check(l, m, 0, p, 2 * MIB);
    link_close(l);
    nobody();
    /* The limit is the ticket's, to the byte, and the refusal says the numbers. */
    t = user_ticket(&f->alice, 0, 1000);
    l = link_session(&f->alice, 0, &t);
    (void)mem_alloc(l, 990, h);
    q.bytes = 11;
    expect_ask(l, "Memory.Allocate", &q.base, 8, "QUOTA_EXCEEDED", NULL);
    q.bytes = UINT64_MAX;
    expect_ask(l, "Memory.Allocate", &q.base, 8, "QUOTA_EXCEEDED", NULL);
    WAIT(&f->w, f->quota == before + 2);
    assert_string_equal(f->quota_meta, "{\"bytes\":18446744073709551615,\"used\":990,\"quota\":1000}");
    (void)mem_alloc(l, 10, h);
    link_close(l);
    nobody();
    free(p);
}

/* ---- floods ---- */

static unsigned refused(const struct reply *r, unsigned n, const char *reason)
{
    unsigned k = 0;
    for (unsigned i = 0; i < n; i++)
        k += r[i].done && r[i].code == 8 && !strcmp(r[i].reason, reason);
    return k;
}

static void test_flood(void **st)
{
    struct fix *f = *st;
    uint8_t h[16], tb[TICKET_MAX];
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB);
    struct link *l = link_session(&f->alice, 0, &t), *more[MAX_LINKS];
    ProtobufCBinaryData m = mem_alloc(l, 16 * MIB, h);
    struct reply r[24] = {0};
    /* More copies at once than one session may have, over two connections, taken by nobody. */
    struct link *second = link_session(&f->alice, 0, &t);
    for (unsigned i = 0; i < 24; i++) {
        r[i].stall = true;
        mem_get_start(i < 12 ? l : second, m, 0, 16 * MIB, &r[i]);
    }
    WAIT(&f->w, refused(r, 24, "BUSY") == 24 - MAX_COPIES);
    assert_int_equal(room(0)->head->ncopies, MAX_COPIES);
    /* A handle in use is not freed; the session answers other calls meanwhile. */
    Strata__V1__DeallocateRequest dq = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    Strata__V1__SessionStateRequest sq = STRATA__V1__SESSION_STATE_REQUEST__INIT;
    dq.handle = m;
    expect_ask(l, "Memory.Deallocate", &dq.base, 10, "HANDLE_BUSY", NULL);
    expect_ask(l, "Devices.Session", &sq.base, 0, "", NULL);
    for (unsigned i = 0; i < 24; i++)
        if (r[i].call)
            rpc_cancel(r[i].call);
    WAIT(&f->w, room(0)->head->nworks == 0);
    for (unsigned i = 0; i < 24; i++) {
        wait_reply(&r[i]);
        reply_free(&r[i]);
    }
    expect_ask(l, "Memory.Deallocate", &dq.base, 0, "", NULL);
    link_close(second);
    WAIT(&f->w, room(0)->head->nlinks == 1);
    /* Connections of one session, and sessions of one principal. */
    for (unsigned i = 0; i + 1 < MAX_LINKS; i++)
        more[i] = link_session(&f->alice, 0, &t);
    more[MAX_LINKS - 1] = link_open(&f->alice, 0);
    Strata__V1__OpenDevicesRequest oq = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    oq.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, tb), tb};
    expect_ask(more[MAX_LINKS - 1], "Devices.Open", &oq.base, 8, "BUSY", NULL);
    for (unsigned i = 0; i < MAX_LINKS; i++)
        link_close(more[i]);
    assert_int_equal(sessions_count(room(0)), 1);
    link_close(l);
    nobody();
    struct link *many[MAX_PER_PRINCIPAL];
    for (unsigned i = 0; i < MAX_PER_PRINCIPAL; i++) {
        t = user_ticket(&f->alice, 0, MIB);
        many[i] = link_session(&f->alice, 0, &t);
    }
    t = user_ticket(&f->alice, 0, MIB);
    l = link_open(&f->alice, 0);
    oq.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, tb), tb};
    expect_ask(l, "Devices.Open", &oq.base, 8, "BUSY", NULL);
    link_close(l);
    t = user_ticket(&f->bob, 0, MIB); /* which is nothing to others */
    link_close(link_session(&f->bob, 0, &t));
    for (unsigned i = 0; i < MAX_PER_PRINCIPAL; i++)
        link_close(many[i]);
    nobody();
}

/* A session may have so many handles, whatever its bytes. */
static void test_many_handles(void **st)
{
    struct fix *f = *st;
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    uint8_t h[16];
    for (unsigned i = 0; i < MAX_BUFFERS; i++)
        (void)mem_alloc(l, 1, h);
    Strata__V1__AllocateRequest q = STRATA__V1__ALLOCATE_REQUEST__INIT;
    q.device = (char *)"cpu:0";
    q.bytes = 1;
    expect_ask(l, "Memory.Allocate", &q.base, 8, "TOO_MANY_HANDLES", NULL);
    link_close(l);
    nobody();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tickets),      cmocka_unit_test(test_not_before_the_report),
        cmocka_unit_test(test_permissions),  cmocka_unit_test(test_foreign_handles),
        cmocka_unit_test(test_sizes),        cmocka_unit_test(test_flood),
        cmocka_unit_test(test_many_handles),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
