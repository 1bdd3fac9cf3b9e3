/*
 * The audit trail of sessions: a row is in the spool's file before its operation is answered, arrives once
 * whatever is lost on the way, and what could not be recorded is refused.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/session/session_priv.h"
#include "agent/spool/spool_priv.h"
#include "common/base/fs.h"
#include "tests/unit/session/client.h"

#define MIB (1u << 20)

static struct fix {
    struct world w;
    struct user alice, bob;
    unsigned arrived[256];
} fix;

static void on_event(const struct audit_event *e, void *arg)
{
    struct fix *f = arg;
    f->arrived[e->type & 255]++;
}

static int setup(void **st)
{
    fix = (struct fix){0};
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

static struct sessions *room(void)
{
    return agent_sessions(fix.w.node[0].agent);
}

static void spool_path(char out[160])
{
    snprintf(out, 160, "%s/state/audit.spool", fix.w.node[0].dir);
}

/* Rows of a type in the file as it is now. The loop does not turn: what is not there was not there before the
 * answer. */
static unsigned on_disk(int type)
{
    char path[160];
    struct buf b = {0};
    struct err e;
    unsigned n = 0;
    struct record r;
    spool_path(path);
    assert_int_equal(fs_read(path, 1u << 30, &b, &e), ST_OK);
    for (size_t at = SPOOL_FILE_HEAD, used; (used = record_read(b.data + at, b.len - at, NULL, &r));
         at += used) {
        struct audit_event ev;
        assert_int_equal(event_decode(r.event, r.len, &ev), ST_OK);
        n += ev.type == type;
    }
    buf_fini(&b);
    return n;
}

static void free_handle(struct link *l, ProtobufCBinaryData h, unsigned code, const char *reason)
{
    Strata__V1__DeallocateRequest q = STRATA__V1__DEALLOCATE_REQUEST__INIT;
    q.handle = h;
    expect_ask(l, "Memory.Deallocate", &q.base, code, reason, NULL);
}

static void test_before_the_answer(void **st)
{
    struct fix *f = *st;
    uint8_t h[16], bytes[TICKET_MAX];
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    f->w.spool_full = true; /* nothing leaves the file */
    struct link *l = link_session(&f->alice, 0, &t);
    assert_int_equal(on_disk(EV_SECURITY_SESSION_OPENED), 1);
    ProtobufCBinaryData m = mem_alloc(l, 4096, h);
    assert_int_equal(on_disk(EV_MEMORY_ALLOCATE), 1);
    Strata__V1__AllocateRequest aq = STRATA__V1__ALLOCATE_REQUEST__INIT;
    aq.device = (char *)"cpu:0";
    aq.bytes = 2 * MIB;
    expect_ask(l, "Memory.Allocate", &aq.base, 8, "QUOTA_EXCEEDED", NULL);
    assert_int_equal(on_disk(EV_SECURITY_QUOTA_EXCEEDED), 1);
    Strata__V1__LeaseRequest lq = STRATA__V1__LEASE_REQUEST__INIT;
    lq.device = (char *)"cpu:0";
    lq.exclusive = true;
    expect_ask(l, "Devices.Allocate", &lq.base, 0, "", NULL);
    assert_int_equal(on_disk(EV_DEVICE_ALLOCATE), 1);
    /* Refusals: a handle of somebody else's, a missing permission, a ticket that is none. */
    struct ticket tb = user_ticket(&f->bob, 0, MIB);
    tb.grant.permissions &= ~PERM_BIT(PERM_DEVICE_INFO);
    struct link *b = link_session(&f->bob, 0, &tb);
    free_handle(b, m, 5, "NO_HANDLE");
    assert_int_equal(on_disk(EV_SECURITY_ACCESS_DENIED), 1);
    Strata__V1__DeviceInfoRequest iq = STRATA__V1__DEVICE_INFO_REQUEST__INIT;
    iq.device = (char *)"cpu:0";
    expect_ask(b, "Devices.Info", &iq.base, 7, "MISSING_PERMISSION", NULL);
    assert_int_equal(on_disk(EV_SECURITY_ACCESS_DENIED), 2);
    Strata__V1__OpenDevicesRequest oq = STRATA__V1__OPEN_DEVICES_REQUEST__INIT;
    struct link *x = link_open(&f->bob, 0);
    oq.ticket = (ProtobufCBinaryData){ticket_bytes(&f->w, &t, bytes), bytes}; /* alice's */
    expect_ask(x, "Devices.Open", &oq.base, 16, "TICKET_WRONG_HOLDER", NULL);
    assert_int_equal(on_disk(EV_SECURITY_TICKET_REFUSED), 1);
    link_close(x);
    free_handle(l, m, 0, "");
    assert_int_equal(on_disk(EV_MEMORY_DEALLOCATE), 1);
    Strata__V1__CloseDevicesRequest cq = STRATA__V1__CLOSE_DEVICES_REQUEST__INIT;
    expect_ask(l, "Devices.Close", &cq.base, 0, "", NULL);
    assert_int_equal(on_disk(EV_SECURITY_SESSION_CLOSED), 1);
    link_close(l);
    link_close(b);
}

/* An end is reported to the coordinator only when its row is there. */
static void ended(void *arg, const char *session, const char *reason)
{
    (void)session;
    (void)reason;
    *(unsigned *)arg = on_disk(EV_SECURITY_SESSION_CLOSED);
}

static void test_revoked(void **st)
{
    struct fix *f = *st;
    char name[SESSION_NAME_MAX + 1];
    unsigned rows = 0;
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    f->w.spool_full = true;
    struct link *l = link_session(&f->alice, 0, &t);
    ticket_session(&t, name);
    sessions_revoke(room(), name, "KILLED", clock_wall_us(clock_system()) + 60000000, ended, &rows);
    WAIT(&f->w, rows);
    assert_int_equal(rows, 1);
    link_close(l);
}

static void test_once(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    f->w.lose_replies = 3;
    struct link *l = link_session(&f->alice, 0, &t);
    for (int i = 0; i < 5; i++)
        free_handle(l, mem_alloc(l, 4096, h), 0, "");
    link_close(l);
    WAIT(&f->w, f->arrived[EV_SECURITY_SESSION_CLOSED] && !f->w.lose_replies);
    struct spool_stats s;
    do {
        spool_stats(room()->cfg.spool, &s);
        world_turn(&f->w, clock_ns(clock_system()));
    } while (s.first <= s.last);
    assert_int_equal(f->arrived[EV_SECURITY_SESSION_OPENED], 1);
    assert_int_equal(f->arrived[EV_MEMORY_ALLOCATE], 5);
    assert_int_equal(f->arrived[EV_MEMORY_DEALLOCATE], 5);
    assert_int_equal(f->arrived[EV_SECURITY_SESSION_CLOSED], 1);
}

static void test_full(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    ProtobufCBinaryData m = mem_alloc(l, 4096, h);
    Strata__V1__AllocateRequest aq = STRATA__V1__ALLOCATE_REQUEST__INIT;
    aq.device = (char *)"cpu:0";
    aq.bytes = 4096;
    f->w.spool_full = true;
    unsigned done = 0;
    for (struct reply r; done < 5000; done++, reply_free(&r)) {
        r = (struct reply){0};
        ask(l, "Memory.Allocate", 0, &aq.base, &r);
        wait_reply(&r);
        if (r.code) {
            expect(&r, 8, "SPOOL_FULL");
            break;
        }
        Strata__V1__DeallocateRequest dq = STRATA__V1__DEALLOCATE_REQUEST__INIT;
        dq.handle = ((const Strata__V1__Buffer *)r.msg)->handle;
        struct reply d = {0};
        ask(l, "Memory.Deallocate", 0, &dq.base, &d);
        wait_reply(&d);
        bool full = d.code != 0;
        if (full)
            expect(&d, 8, "SPOOL_FULL");
        reply_free(&d);
        if (full) {
            reply_free(&r);
            break;
        }
    }
    assert_true(done > 50 && done < 5000);
    free_handle(l, m, 8, "SPOOL_FULL");
    assert_int_equal(on_disk(EV_MEMORY_DEALLOCATE), done); /* every one that was answered, and no other */
    /* The coordinator takes it: everything works again. */
    f->w.spool_full = false;
    WAIT(&f->w, spool_room(room()->cfg.spool));
    free_handle(l, m, 0, "");
    f->w.spool_full = true;
    /* An end always goes through. */
    while (spool_room(room()->cfg.spool)) {
        struct audit_event ev = event_make(EV_DEVICE_LIST, EVENT_SUCCESS, 1);
        ev.principal = ev.node = "node/n0";
        assert_int_equal(spool_emit(room()->cfg.spool, &ev, NULL, NULL, NULL), ST_OK);
    }
    Strata__V1__CloseDevicesRequest cq = STRATA__V1__CLOSE_DEVICES_REQUEST__INIT;
    expect_ask(l, "Devices.Close", &cq.base, 0, "", NULL);
    assert_int_equal(on_disk(EV_SECURITY_SESSION_CLOSED), 1);
    link_close(l);
}

/* The disk takes nothing: an allocation that cannot be recorded is none, and its memory is free. */
static void test_disk_fails(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    char path[160];
    struct stat sb;
    struct rlimit was, now;
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    struct link *l = link_session(&f->alice, 0, &t);
    mem_alloc(l, 4096, h);
    f->w.spool_full = true;
    spool_path(path);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(stat(path, &sb), 0);
    now = was;
    now.rlim_cur = (rlim_t)sb.st_size;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
    Strata__V1__AllocateRequest aq = STRATA__V1__ALLOCATE_REQUEST__INIT;
    aq.device = (char *)"cpu:0";
    aq.bytes = 8192;
    expect_ask(l, "Memory.Allocate", &aq.base, 8, "NOT_AUDITED", NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    WAIT(&f->w, sessions_device_bytes(room(), "cpu:0") == 4096);
    f->w.spool_full = false;
    mem_alloc(l, 8192, h);
    WAIT(&f->w, f->arrived[EV_MEMORY_ALLOCATE] >= 2);
    link_close(l);
}

#define ON(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {ON(test_before_the_answer), ON(test_revoked), ON(test_once),
                                       ON(test_full), ON(test_disk_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
