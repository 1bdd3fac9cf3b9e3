/*
 * Kernels of users' own on a Vulkan device of a running agent: one that works, and those that never end, read
 * beyond their buffer or write beyond their group's memory, while another tenant works on the same device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/session/session_priv.h"
#include "tests/unit/session/client.h"

#define MIB (1u << 20)
#define DEVICE "vulkan:0"

#ifdef TEST_KERNELS
static const uint32_t scale[] = {
#include "kernels/scale.spv.inc"
};
static const uint32_t forever[] = {
#include "kernels/forever.spv.inc"
};
static const uint32_t beyond[] = {
#include "kernels/beyond.spv.inc"
};
static const uint32_t wild[] = {
#include "kernels/wild.spv.inc"
};
#else
static const uint32_t scale[1], forever[1], beyond[1], wild[1];
#endif

static struct fix {
    struct world w;
    struct user alice, bob;
    struct link *a, *b;
    bool there; /* a Vulkan device */
    unsigned died, failed, done, closed;
    char why[200], digest[65];
} fix;

static void on_event(const struct audit_event *e, void *arg)
{
    struct fix *f = arg;
    bool hers = !strcmp(e->principal, "user/alice");
    f->died += e->type == EV_SYSTEM_WORKER_DIED && hers;
    f->closed += e->type == EV_SECURITY_SESSION_CLOSED && hers;
    if (e->type == EV_SYSTEM_WORKER_DIED)
        assert_true(hers); /* nobody else's ever does */
    if (e->type == EV_COMPUTE_EXECUTE && hers) {
        f->failed += e->result == EVENT_FAILURE;
        f->done += e->result == EVENT_SUCCESS;
        snprintf(f->why, sizeof f->why, "%s", e->error);
        const char *d = strstr(e->meta, "\"digest\":\"");
        assert_non_null(d); /* which code it was */
        snprintf(f->digest, sizeof f->digest, "%.64s", d + 10);
    }
}

static int setup_as(const char *devices)
{
    fix = (struct fix){0};
    world_open_as(&fix.w, devices);
    user_open(&fix.alice, &fix.w, "alice");
    user_open(&fix.bob, &fix.w, "bob");
    fix.w.on_event = on_event;
    fix.w.event_arg = &fix;
    WAIT(&fix.w, fix.w.node[0].reports && fix.w.node[1].reports);
    return 0;
}

/* One world for all tests with the switch on; what they count begins anew with each. */
static int setup(void **st)
{
    *st = &fix;
    return setup_as(
        "backends: {cpu: on, vulkan: auto}\nuser_kernels: {allow: on, max_bytes: 64KiB, time: 1500ms}");
}

static int anew(void **st)
{
    *st = &fix;
    fix.died = fix.failed = fix.done = fix.closed = 0;
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

/* Sessions of both, or a skip where there is no such device. */
static void begin(struct fix *f)
{
    struct ticket ta = user_ticket(&f->alice, 0, 64 * MIB), tb = user_ticket(&f->bob, 0, 64 * MIB);
    if (sizeof scale < 100 || !session_device(room(), DEVICE))
        skip();
    f->a = link_session(&f->alice, 0, &ta);
    f->b = link_session(&f->bob, 0, &tb);
}

static void end(struct fix *f)
{
    link_close(f->a);
    link_close(f->b);
    WAIT(&f->w, sessions_count(room()) == 0);
    assert_true(sessions_device_bytes(room(), DEVICE) == 0);
}

struct exec {
    Strata__V1__ExecuteRequest q;
    Strata__V1__Span span[3], *sp[3];
    uint64_t scalar[3];
    uint32_t groups[3];
};

static void exec_of(struct exec *x, const uint32_t *code, size_t n, unsigned spans, unsigned scalars)
{
    *x = (struct exec){.q = STRATA__V1__EXECUTE_REQUEST__INIT, .groups = {1, 1, 1}};
    for (unsigned i = 0; i < 3; i++) {
        strata__v1__span__init(&x->span[i]);
        x->sp[i] = &x->span[i];
    }
    x->q.device = (char *)DEVICE;
    x->q.kernel = (char *)"main";
    x->q.code = (ProtobufCBinaryData){n, (uint8_t *)code};
    x->q.spans = x->sp;
    x->q.n_spans = spans;
    x->q.scalars = x->scalar;
    x->q.n_scalars = scalars;
    x->q.groups = x->groups;
    x->q.n_groups = 3;
}

static void span(struct exec *x, unsigned i, ProtobufCBinaryData h, uint64_t off, uint64_t bytes)
{
    x->span[i].handle = h;
    x->span[i].offset = off;
    x->span[i].bytes = bytes;
}

static uint64_t bits(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}

static void test_works(void **st)
{
    struct fix *f = *st;
    enum { N = 5000 };
    uint8_t hx[16], hy[16];
    static float x[N], y[N];
    struct exec q;
    begin(f);
    ProtobufCBinaryData in = mem_alloc_on(f->a, DEVICE, sizeof x, hx),
                        out = mem_alloc_on(f->a, DEVICE, sizeof y, hy);
    for (unsigned i = 0; i < N; i++) {
        x[i] = (float)i;
        y[i] = 2 * x[i] + 1;
    }
    mem_put(f->a, in, 0, (uint8_t *)x, sizeof x);
    exec_of(&q, scale, sizeof scale, 2, 3);
    span(&q, 0, out, 0, sizeof y);
    span(&q, 1, in, 0, sizeof x);
    q.scalar[0] = N, q.scalar[1] = bits(2), q.scalar[2] = bits(1);
    q.groups[0] = (N + 63) / 64;
    for (int round = 0; round < 3; round++)
        expect_ask(f->a, "Compute.Execute", &q.q.base, 0, "", NULL);
    mem_check(f->a, out, 0, (uint8_t *)y, sizeof y);
    WAIT(&f->w, f->done >= 3);
    assert_int_equal(strlen(f->digest), 64);
    end(f);
}

/* Each of these is refused before a driver sees it, and the session goes on. */
static void test_refused(void **st)
{
    struct fix *f = *st;
    static uint8_t large[65 * 1024];
    uint8_t h[16], foreign[16];
    struct exec good, q;
    begin(f);
    ProtobufCBinaryData m = mem_alloc_on(f->a, DEVICE, 4096, h),
                        his = mem_alloc_on(f->b, DEVICE, 4096, foreign);
    exec_of(&good, scale, sizeof scale, 2, 3);
    span(&good, 0, m, 0, 1024);
    span(&good, 1, m, 2048, 1024);
    good.scalar[0] = 256;
#define REFUSED(code, reason, change)                                                                        \
    do {                                                                                                     \
        q = good;                                                                                            \
        for (unsigned i_ = 0; i_ < 3; i_++)                                                                  \
            q.sp[i_] = &q.span[i_];                                                                          \
        q.q.spans = q.sp, q.q.scalars = q.scalar, q.q.groups = q.groups;                                     \
        change;                                                                                              \
        expect_ask(f->a, "Compute.Execute", &q.q.base, code, reason, NULL);                                  \
    } while (0)
    REFUSED(0, "", (void)0);
    REFUSED(11, "KERNEL_TOO_LARGE", (q.q.code = (ProtobufCBinaryData){sizeof large, large}));
    REFUSED(3, "BAD_KERNEL", (q.q.code = (ProtobufCBinaryData){sizeof large / 2, large}));
    REFUSED(3, "BAD_KERNEL", (q.q.code.len -= 4));
    REFUSED(3, "BAD_KERNEL", (q.q.code.len -= 1));
    REFUSED(3, "NO_ENTRY", (q.q.kernel = (char *)"elsewhere"));
    REFUSED(3, "NO_ENTRY", (q.q.kernel = (char *)""));
    REFUSED(3, "BAD_ARGUMENTS", (q.q.n_spans = 1));
    REFUSED(3, "BAD_ARGUMENTS", (q.groups[1] = 0));
    REFUSED(3, "BAD_ARGUMENTS", (q.groups[2] = 65536));
    REFUSED(3, "NO_SPANS", (q.q.n_spans = 0));
    REFUSED(3, "OUT_OF_BOUNDS", (q.span[1].bytes = 2049));
    REFUSED(3, "OUT_OF_BOUNDS", (q.span[0].offset = UINT64_MAX));
    REFUSED(3, "BAD_KERNEL", (q.span[0].offset = 2));
    REFUSED(3, "BAD_KERNEL", (q.scalar[0] = 1ull << 32));
    REFUSED(5, "NO_HANDLE", (q.span[0].handle = his)); /* another's memory */
    REFUSED(3, "OTHER_DEVICE", (q.q.device = (char *)"cpu:0"));
    REFUSED(0, "", (void)0);
    assert_int_equal(f->died, 0);
    end(f);
}

/* Alice runs `code`; while it runs wild, bob's memory and his work stay as they are. */
static void wild_beside_bob(struct fix *f, struct exec *q, unsigned code, const char *reason)
{
    uint8_t h[16], *p = pattern(4 * MIB, 3);
    struct reply r = {0};
    ProtobufCBinaryData m = mem_alloc_on(f->b, DEVICE, 4 * MIB, h);
    mem_put(f->b, m, 0, p, 4 * MIB);
    ask(f->a, "Compute.Execute", 0, &q->q.base, &r);
    for (int i = 0; i < 3; i++) { /* both ways, while hers is under way */
        mem_put(f->b, m, 0, p, 4 * MIB);
        mem_check(f->b, m, 0, p, 4 * MIB);
    }
    wait_reply(&r);
    expect(&r, code, reason);
    reply_free(&r);
    mem_check(f->b, m, 0, p, 4 * MIB);
    free(p);
}

/* What a fault or a hang leaves: a row that says so, nothing held, and another session is as good as the
 * first. */
static void alice_again(struct fix *f)
{
    WAIT(&f->w, f->died >= 1 && f->failed >= 1 && f->closed >= 1);
    uint8_t h[16];
    struct ticket t = user_ticket(&f->alice, 0, MIB);
    link_close(f->a);
    f->a = link_session(&f->alice, 0, &t);
    mem_alloc_on(f->a, DEVICE, 4096, h);
}

static void test_forever(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    struct exec q;
    begin(f);
    exec_of(&q, forever, sizeof forever, 1, 0);
    span(&q, 0, mem_alloc_on(f->a, DEVICE, 4096, h), 0, 4096);
    q.groups[0] = q.groups[1] = q.groups[2] =
        65535; /* a software device ends a loop some time; not this many */
    uint64_t began = clock_ns(clock_system());
    wild_beside_bob(f, &q, 4, "KERNEL_TIMEOUT");
    assert_true(clock_ns(clock_system()) - began > 1400 * NS_PER_MS);
    assert_non_null(strstr(f->why, "did not end"));
    alice_again(f);
    end(f);
}

/* Reads at every distance up to 16 GiB: nothing of bob's is among what it finds. */
static void test_beyond(void **st)
{
    struct fix *f = *st;
    enum { N = 1024 };
    uint8_t h[16], *theirs = pattern(4 * MIB, 3);
    static uint32_t seen[N];
    struct exec q;
    struct reply r = {0};
    begin(f);
    exec_of(&q, beyond, sizeof beyond, 1, 2);
    ProtobufCBinaryData m = mem_alloc_on(f->a, DEVICE, sizeof seen, h);
    span(&q, 0, m, 0, sizeof seen);
    q.scalar[0] = N, q.scalar[1] = 1u << 20;
    q.groups[0] = N / 64;
    wild_beside_bob(f, &q, 0, "");
    mem_get_start(f->a, m, 0, sizeof seen, &r);
    wait_reply(&r);
    expect(&r, 0, "");
    assert_int_equal(r.got, sizeof seen);
    for (unsigned i = 0; i < N; i++)
        assert_memory_not_equal(r.data + 4 * i, theirs + 4 * i, 4);
    reply_free(&r);
    free(theirs);
    WAIT(&f->w, f->done >= 1);
    end(f);
}

static void test_faults(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    struct exec q;
    begin(f);
    exec_of(&q, wild, sizeof wild, 1, 1);
    span(&q, 0, mem_alloc_on(f->a, DEVICE, 4096, h), 0, 4096);
    q.scalar[0] = 1u << 24;
    wild_beside_bob(f, &q, 13, "KERNEL_FAULT");
    alice_again(f);
    end(f);
}

static bool running(void)
{
    for (const struct session *s = room()->head; s; s = s->next)
        if (s->nworks)
            return true;
    return false;
}

/* The session is revoked while the kernel runs: it is over well within a second, with its worker. */
static void test_revoked_while_running(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    char name[SESSION_NAME_MAX + 1];
    struct exec q;
    struct reply r = {0};
    struct ticket t = user_ticket(&f->alice, 0, 64 * MIB), other = user_ticket(&f->alice, 0, MIB);
    begin(f);
    link_close(f->a);
    f->a = link_session(&f->alice, 0, &t);
    struct link *second = link_session(&f->alice, 0, &other); /* in the same worker */
    uint8_t h2[16];
    mem_alloc_on(second, DEVICE, 4096, h2);
    ticket_session(&t, name);
    exec_of(&q, forever, sizeof forever, 1, 0);
    span(&q, 0, mem_alloc_on(f->a, DEVICE, 4096, h), 0, 4096);
    q.groups[0] = q.groups[1] = q.groups[2] = 65535;
    ask(f->a, "Compute.Execute", 0, &q.q.base, &r);
    WAIT(&f->w, running());
    uint64_t began = clock_ns(clock_system());
    sessions_revoke(room(), name, "KILLED", clock_wall_us(clock_system()) + 60000000, NULL, NULL);
    wait_reply(&r);
    expect(&r, 7, "KILLED");
    assert_true(clock_ns(clock_system()) - began < 200 * NS_PER_MS);
    WAIT(&f->w, sessions_count(room()) == 1); /* bob's */
    assert_true(clock_ns(clock_system()) - began < NS_PER_S);
    reply_free(&r);
    link_close(second);
    end(f);
}

static int setup_off(void **st)
{
    *st = &fix;
    return setup_as("backends: {cpu: on, vulkan: auto}");
}

static void test_off(void **st)
{
    struct fix *f = *st;
    uint8_t h[16];
    struct exec q;
    begin(f);
    exec_of(&q, scale, sizeof scale, 1, 0);
    span(&q, 0, mem_alloc_on(f->a, DEVICE, 4096, h), 0, 4096);
    expect_ask(f->a, "Compute.Execute", &q.q.base, 7, "USER_KERNELS_OFF", NULL);
    end(f);
}

#define ON(t) cmocka_unit_test_setup(t, anew)

int main(void)
{
    /* A worker that faults is to end at once, not to write a report first. */
    setenv("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0", 1);
    setenv("TSAN_OPTIONS", "handle_segv=0:handle_sigbus=0", 1);
    const struct CMUnitTest on[] = {ON(test_works),  ON(test_refused), ON(test_forever),
                                    ON(test_beyond), ON(test_faults),  ON(test_revoked_while_running)};
    const struct CMUnitTest off[] = {cmocka_unit_test(test_off)};
    return cmocka_run_group_tests(on, setup, teardown) + cmocka_run_group_tests(off, setup_off, teardown);
}
