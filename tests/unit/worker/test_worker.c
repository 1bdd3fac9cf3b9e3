/*
 * The client against real worker processes. The program itself is also started as a worker (see fake_worker),
 * one that breaks the protocol in the way the environment names, to see that the agent's side survives it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <event2/event.h>
#include <openssl/evp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/worker/wire.h"
#include "tests/unit/worker/worker_help.h"

#define FAKE_ENV "STRATA_TEST_FAKE_WORKER"

/* Loads `bytes` through the slots, as many in flight as there are, waiting for on_slot in between. */
static void load(struct fix *f, uint64_t handle, uint64_t bytes, uint8_t sha[32])
{
    struct seen *s = calloc(bytes / MIB + 1, sizeof *s);
    EVP_MD_CTX *m = EVP_MD_CTX_new();
    size_t n = 0;
    EVP_DigestInit_ex(m, EVP_sha256(), NULL);
    for (uint64_t at = 0; at < bytes; at += MIB, n++) {
        uint32_t len = bytes - at < MIB ? (uint32_t)(bytes - at) : MIB;
        struct worker_slot slot;
        while (!worker_slot_get(f->w, &slot))
            until(f, &f->slots_told, f->slots_told + 1);
        fill(slot.data, at, len);
        EVP_DigestUpdate(m, slot.data, len);
        assert_int_equal(worker_write(f->w, handle, at, &slot, len, done, &s[n]), ST_OK);
    }
    for (size_t i = 0; i < n; i++) {
        until(f, &s[i].calls, 1);
        assert_int_equal(s[i].status, ST_OK);
    }
    EVP_DigestFinal_ex(m, sha, NULL);
    EVP_MD_CTX_free(m);
    free(s);
}

static void digest(struct fix *f, uint64_t handle, uint64_t len, struct seen *s)
{
    *s = (struct seen){0};
    assert_int_equal(worker_digest(f->w, handle, 0, len, done, s), ST_OK);
    until(f, &s->calls, 1);
}

static bool maps_line(const char *line, uint64_t *lo, uint64_t *hi)
{
    unsigned long a, b;
    if (sscanf(line, "%lx-%lx rw-p", &a, &b) != 2)
        return false;
    *lo = a;
    *hi = b;
    return true;
}

/* Finds where the worker keeps the bytes `mark` and flips one bit right there, behind everybody's back. */
static bool flip_in_worker(int pid, const uint8_t *mark, size_t n)
{
    char path[64], line[512];
    uint64_t lo, hi;
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    bool flipped = false;
    uint8_t *page = malloc(MIB + 4096);
    while (!flipped && fgets(line, sizeof line, f)) {
        if (!maps_line(line, &lo, &hi) || hi - lo < 60ull * MIB || hi - lo > 80ull * MIB)
            continue;
        for (uint64_t at = lo; at < hi && !flipped; at += MIB) {
            size_t want = hi - at < MIB + 4096 ? (size_t)(hi - at) : MIB + 4096;
            struct iovec mine = {page, want}, theirs = {(void *)(uintptr_t)at, want};
            ssize_t got = process_vm_readv(pid, &mine, 1, &theirs, 1, 0);
            uint8_t *hit = got > 0 ? memmem(page, (size_t)got, mark, n) : NULL;
            if (!hit)
                continue;
            uint8_t x = *hit ^ 0x10;
            struct iovec one = {&x, 1}, there = {(void *)(uintptr_t)(at + (uint64_t)(hit - page)), 1};
            flipped = process_vm_writev(pid, &one, 1, &there, 1, 0) == 1;
        }
    }
    free(page);
    fclose(f);
    return flipped;
}

static void test_load_and_flip(void **state)
{
    struct fix *f = *state;
    const uint64_t bytes = 64ull * MIB;
    uint8_t sha[32], mark[64];
    struct seen s;
    uint64_t h = alloc(f, bytes);
    load(f, h, bytes, sha);
    digest(f, h, bytes, &s);
    assert_int_equal(s.status, ST_OK);
    assert_memory_equal(s.sha, sha, 32);
    fill(mark, 37ull * MIB + 4321, sizeof mark);
    assert_true(flip_in_worker(worker_pid(f->w), mark, sizeof mark));
    digest(f, h, bytes, &s);
    assert_int_equal(s.status, ST_OK);
    assert_memory_not_equal(s.sha, sha, 32);
    digest(f, h, 37ull * MIB, &s); /* the part before it still hashes */
    assert_int_equal(s.status, ST_OK);
    uint8_t *part = malloc(MIB);
    assert_non_null(part);
    fill(part, 38ull * MIB + 5, MIB);
    assert_int_equal(EVP_Digest(part, MIB, sha, NULL, EVP_sha256(), NULL), 1);
    free(part);
    s = (struct seen){0};
    assert_int_equal(worker_digest(f->w, h, 38ull * MIB + 5, MIB, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
    assert_memory_equal(s.sha, sha, 32);
    struct worker_slot slot;
    struct seen r = {0};
    assert_true(worker_slot_get(f->w, &slot));
    assert_int_equal(worker_read(f->w, h, 37ull * MIB + 4321, 64, &slot, done, &r), ST_OK);
    until(f, &r.calls, 1);
    assert_int_equal(slot.data[0], mark[0] ^ 0x10);
    assert_memory_equal(slot.data + 1, mark + 1, 63);
    worker_slot_put(f->w, &slot);
}

static void test_refusals(void **state)
{
    struct fix *f = *state;
    struct seen s = {0};
    struct worker_slot slot, other = {.index = 3};
    uint64_t h = alloc(f, 1000);
    assert_true(worker_slot_get(f->w, &slot));
    assert_int_equal(worker_write(f->w, h, 0, &slot, MIB + 1, done, &s), ST_EINVAL);
    assert_int_equal(worker_write(f->w, h, 0, &other, 1, done, &s), ST_EINVAL); /* not taken */
    assert_int_equal(worker_alloc(f->w, 1, 1, done, &s), ST_EINVAL);
    assert_int_equal(worker_alloc(f->w, 0, 0, done, &s), ST_EINVAL);
    assert_int_equal(worker_measure(f->w, 7, done, &s), ST_EINVAL);
    assert_int_equal(worker_free(f->w, h, NULL, &s), ST_EINVAL);
    assert_int_equal(worker_write(f->w, h, 999, &slot, 2, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_EINVAL);
    assert_non_null(strstr(s.why, "reach past"));
    digest(f, h, 1001, &s);
    assert_int_equal(s.status, ST_EINVAL);
    const uint64_t off[] = {999, 1001, UINT64_MAX};
    for (size_t i = 0; i < 3; i++) {
        s = (struct seen){0};
        assert_int_equal(worker_digest(f->w, h, off[i], 2, done, &s), ST_OK);
        until(f, &s.calls, 1);
        assert_int_equal(s.status, ST_EINVAL);
    }
    const uint64_t bad[] = {0, h ^ 1, h | 1ull << 60, h ^ 1ull << 40, UINT64_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        s = (struct seen){0};
        assert_int_equal(worker_free(f->w, bad[i], done, &s), ST_OK);
        until(f, &s.calls, 1);
        assert_int_equal(s.status, ST_ENOENT);
        assert_true(s.why[0]);
    }
    s = (struct seen){0};
    assert_int_equal(worker_alloc(f->w, 0, 257ull * MIB, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_ERESOURCE);
    s = (struct seen){0};
    assert_int_equal(worker_stat(f->w, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.devices, 1);
    assert_int_equal(s.usage[0].allocated_bytes, 1000);
    assert_int_equal(s.usage[0].buffers, 1);
    assert_int_equal(s.usage[0].available_bytes, 256ull * MIB - 1000);
    s = (struct seen){0};
    assert_int_equal(worker_free(f->w, h, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
    assert_int_equal(f->exits, 0);
}

/* More than the limit in flight is refused, and all that was taken completes, in order. */
static void test_backlog(void **state)
{
    struct fix *f = *state;
    static struct seen s[WORKER_MAX_PENDING + 1];
    memset(s, 0, sizeof s);
    for (int i = 0; i < WORKER_MAX_PENDING; i++)
        assert_int_equal(worker_alloc(f->w, 0, 4096, done, &s[i]), ST_OK);
    assert_int_equal(worker_alloc(f->w, 0, 4096, done, &s[WORKER_MAX_PENDING]), ST_EAGAIN);
    until(f, &s[WORKER_MAX_PENDING - 1].calls, 1);
    for (int i = 0; i < WORKER_MAX_PENDING; i++) {
        assert_int_equal(s[i].calls, 1);
        assert_int_equal(s[i].status, ST_OK);
        for (int k = 0; k < i; k++)
            assert_true(s[k].handle != s[i].handle);
    }
    assert_int_equal(worker_pending(f->w), 0);
}

static void test_kill_in_flight(void **state)
{
    struct fix *f = *state;
    struct seen s[20];
    for (int round = 0; round < 3; round++) {
        uint8_t sha[32];
        memset(s, 0, sizeof s);
        uint64_t h = alloc(f, 64ull * MIB);
        if (round == 0)
            load(f, h, 64ull * MIB, sha);
        for (int i = 0; i < 20; i++)
            assert_int_equal(worker_digest(f->w, h, 0, 64ull * MIB, done, &s[i]), ST_OK);
        until(f, &s[0].calls, 1); /* the others are under way or queued */
        assert_int_equal(kill(worker_pid(f->w), SIGKILL), 0);
        until(f, &f->exits, 1);
        int failed = 0;
        for (int i = 0; i < 20; i++) {
            assert_int_equal(s[i].calls, 1);
            assert_true(s[i].status == ST_OK || s[i].status == ST_ECLOSED);
            failed += s[i].status == ST_ECLOSED;
            assert_true(s[i].status == ST_OK || strstr(s[i].why, "signal 9"));
        }
        assert_true(failed > 0);
        assert_int_equal(f->exit_signal, SIGKILL);
        assert_int_equal(worker_pid(f->w), 0);
        assert_int_equal(worker_stat(f->w, done, &s[0]), ST_ECLOSED);
        event_base_loop(f->base, EVLOOP_NONBLOCK);
        assert_int_equal(f->exits, 1);
        worker_close(f->w);
        f->w = NULL;
        struct worker_cfg c = config(f);
        spawn(f, &c); /* and a new one works */
        until(f, &f->ready, 1);
    }
}

static void test_close(void **state)
{
    struct fix *f = *state;
    struct seen s[2] = {0};
    f->close_on_exit = true;
    assert_int_equal(worker_stat(f->w, done, &s[0]), ST_OK);
    assert_int_equal(worker_measure(f->w, 0, done, &s[1]), ST_OK);
    worker_kill(f->w);
    assert_int_equal(worker_stat(f->w, done, &s[0]), ST_ECLOSED);
    assert_int_equal(s[0].calls + s[1].calls, 0);
    until(f, &f->exits, 1);
    assert_int_equal(s[0].calls, 1);
    assert_int_equal(s[1].calls, 1);
    assert_int_equal(s[1].status, ST_ECLOSED);
    assert_null(f->w);
    struct worker_cfg c = config(f); /* closed before it was ready */
    f->close_on_exit = false;
    spawn(f, &c);
    struct worker *w = f->w;
    assert_int_equal(worker_stat(w, done, &s[0]), ST_ECONFLICT);
    worker_close(w);
    f->w = NULL;
    until(f, &f->exits, 1);
    assert_int_equal(f->ready, 0);
}

/* A stopped process is what a hung driver looks like from here. */
static void test_deadline(void **state)
{
    struct fix *f = *state;
    struct worker_cfg c = config(f);
    struct seen s[2] = {0};
    c.op_timeout_ns = 300 * NS_PER_MS;
    spawn(f, &c);
    until(f, &f->ready, 1);
    uint64_t h = alloc(f, 4096);
    assert_int_equal(kill(worker_pid(f->w), SIGSTOP), 0);
    assert_int_equal(worker_free(f->w, h, done, &s[0]), ST_OK);
    assert_int_equal(worker_digest(f->w, h, 0, 8ull << 30, done, &s[1]), ST_OK); /* allowed longer */
    until(f, &f->exits, 1);
    assert_int_equal(s[0].status, ST_EDEADLINE);
    assert_int_equal(s[1].status, ST_ECLOSED);
    assert_int_equal(s[0].calls + s[1].calls, 2);
    assert_int_equal(f->exit_signal, SIGKILL);
    assert_non_null(strstr(f->exit_why, "in time"));
}

static void test_measure(void **state)
{
    struct fix *f = *state;
    struct seen s = {0};
    assert_int_equal(worker_measure(f->w, 0, done, &s), ST_OK);
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
    assert_true(s.memory > 1e7 && s.memory < 1e14);
    assert_true(s.flops > 1e7 && s.flops < 1e16);
}

/* On every device there is: with a Vulkan driver here, through it. */
static void test_all_devices(void **state)
{
    struct fix *f = *state;
    struct worker_cfg c = config(f);
    size_t n;
    c.backends = NULL;
    spawn(f, &c);
    until(f, &f->ready, 1);
    const struct worker_device *d = worker_devices(f->w, &n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t found = 99;
        struct seen s = {0};
        uint8_t sha[32];
        assert_int_equal(worker_device_find(f->w, d[i].id, &found), ST_OK);
        assert_int_equal(found, i);
        print_message("%s: %s, %s, %s\n", d[i].id, d[i].name, d[i].driver, d[i].support);
        assert_int_equal(worker_alloc(f->w, i, 5 * MIB + 17, done, &s), ST_OK);
        until(f, &s.calls, 1);
        assert_int_equal(s.status, ST_OK);
        uint64_t h = s.handle;
        load(f, h, 5 * MIB + 17, sha);
        digest(f, h, 5 * MIB + 17, &s);
        assert_int_equal(s.status, ST_OK);
        assert_memory_equal(s.sha, sha, 32);
    }
    uint32_t none;
    assert_int_equal(worker_device_find(f->w, "cuda:9", &none), ST_ENOENT);
}

static void test_spawn_refused(void **state)
{
    struct fix *f = *state;
    struct err e = {0};
    struct worker_cfg c = config(f);
    c.program = "/nonexistent/strata-worker";
    assert_int_equal(worker_spawn(&f->w, &c, &e), ST_ENOENT);
    assert_non_null(strstr(e.text, "/nonexistent/strata-worker"));
    c = config(f);
    c.slots = WORKER_MAX_SLOTS + 1;
    assert_int_equal(worker_spawn(&f->w, &c, &e), ST_EINVAL);
    c = config(f);
    c.slot_bytes = 1000;
    assert_int_equal(worker_spawn(&f->w, &c, &e), ST_EINVAL);
    c = config(f);
    c.backends = "nosuch"; /* the worker says so on stderr and ends */
    spawn(f, &c);
    until(f, &f->exits, 1);
    assert_int_equal(f->exit_status, 1);
    assert_int_equal(f->ready, 0);
}

/* ---- the worker against a hostile peer ---- */

struct raw {
    int fd, pid;
};

static struct raw raw_start(size_t ring_bytes)
{
    struct raw r;
    int pair[2], ring = memfd_create("ring", 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    assert_int_equal(ftruncate(ring, (off_t)ring_bytes), 0);
    if ((r.pid = fork()) == 0) {
        char ctl[16], rng[16];
        close(pair[0]);
        snprintf(ctl, sizeof ctl, "%d", pair[1]);
        snprintf(rng, sizeof rng, "%d", ring);
        execl(WORKER_PROGRAM, "strata-worker", "--control", ctl, "--ring", rng, "--slots", "2",
              "--slot-bytes", "4096", "--cpu-memory", "1048576", "--backends", "cpu", (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    close(ring);
    r.fd = pair[0];
    return r;
}

static bool raw_recv(struct raw *r, struct wire_rep *rep)
{
    struct pollfd p = {.fd = r->fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 40000), 1);
    return recv(r->fd, rep, sizeof *rep, 0) == (ssize_t)sizeof *rep;
}

static int raw_end(struct raw *r)
{
    int st = -1;
    waitpid(r->pid, &st, 0);
    close(r->fd);
    return WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

static void raw_ready(struct raw *r)
{
    struct wire_rep rep;
    do
        assert_true(raw_recv(r, &rep));
    while (rep.kind != WIRE_READY);
}

static void test_hostile_packets(void **state)
{
    uint8_t big[4096] = {0};
    struct wire_req good = {.magic = WIRE_REQ_MAGIC, .op = WIRE_STAT, .id = 1}, bad[3] = {good, good, good};
    (void)state;
    bad[0].magic ^= 1;
    bad[1].op = 0;
    bad[2].op = WIRE_RUN + 1;
    memcpy(big, &good, sizeof good);
    const struct {
        const void *p;
        size_t n;
    } c[] = {{&bad[0], sizeof good}, {&bad[1], sizeof good}, {&bad[2], sizeof good},
             {big, sizeof good + 1}, {big, sizeof big},      {big, 1},
             {big, sizeof good - 1}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct raw r = raw_start(8192);
        struct wire_rep rep;
        raw_ready(&r);
        assert_int_equal(send(r.fd, &good, sizeof good, 0), sizeof good);
        assert_true(raw_recv(&r, &rep)); /* it did serve before */
        assert_int_equal(send(r.fd, c[i].p, c[i].n, 0), c[i].n);
        assert_int_equal(raw_end(&r), 3);
    }
    struct raw r = raw_start(4096); /* a ring smaller than announced */
    assert_int_equal(raw_end(&r), 1);
    r = raw_start(8192); /* the agent goes away */
    raw_ready(&r);
    shutdown(r.fd, SHUT_RDWR);
    assert_int_equal(raw_end(&r), 0);
}

/* Well-formed packets with hostile values are answered with an error, and the worker goes on. */
static void test_hostile_values(void **state)
{
    struct raw r = raw_start(8192);
    struct wire_rep rep;
    (void)state;
    raw_ready(&r);
    struct wire_req a = {.magic = WIRE_REQ_MAGIC, .op = WIRE_ALLOC, .id = 5, .len = 8192};
    assert_int_equal(send(r.fd, &a, sizeof a, 0), sizeof a);
    assert_true(raw_recv(&r, &rep));
    assert_int_equal(rep.status, ST_OK);
    assert_int_equal(rep.id, 5);
    const struct wire_req bad[] = {
        {.op = WIRE_WRITE, .handle = rep.handle, .len = 1, .slot = 2},
        {.op = WIRE_WRITE, .handle = rep.handle, .len = 1, .slot = UINT32_MAX},
        {.op = WIRE_WRITE, .handle = rep.handle, .len = 4097},
        {.op = WIRE_READ, .handle = rep.handle, .len = UINT64_MAX},
        {.op = WIRE_READ, .handle = rep.handle, .len = 10, .offset = UINT64_MAX - 5},
        {.op = WIRE_DIGEST, .handle = rep.handle, .len = UINT64_MAX},
        {.op = WIRE_DIGEST, .handle = UINT64_MAX, .len = 1},
        {.op = WIRE_FREE, .handle = WIRE_HANDLE(200, 1)},
        {.op = WIRE_ALLOC, .len = 1, .device = UINT32_MAX},
        {.op = WIRE_ALLOC, .len = UINT64_MAX},
        {.op = WIRE_ALLOC, .len = 0},
        {.op = WIRE_MEASURE, .device = 1},
        {.op = WIRE_SYNC, .device = 1},
        {.op = WIRE_MONITOR, .device = UINT32_MAX},
        {.op = WIRE_COPY, .handle = WIRE_HANDLE(9, 1), .src_handle = rep.handle, .len = 1},
        {.op = WIRE_COPY, .handle = rep.handle, .src_handle = WIRE_HANDLE(9, 1), .len = 1},
        {.op = WIRE_COPY, .handle = rep.handle, .src_handle = rep.handle, .src_offset = 8000, .len = 200},
        {.op = WIRE_COPY, .handle = rep.handle, .src_handle = rep.handle, .src_offset = 5, .len = 10},
        {.op = WIRE_EXEC, .device = 44},
        {.op = WIRE_EXEC, .u.exec = {.kernel = "checksum", .spans = UINT32_MAX}},
        {.op = WIRE_EXEC, .u.exec = {.kernel = "checksum", .spans = 1, .span = {{WIRE_HANDLE(3, 1), 0, 4}}}},
        {.op = WIRE_EXEC, .u.exec = {.kernel = "checksum", .spans = 1, .span = {{rep.handle, 0, 8193}}}},
        {.op = WIRE_EXEC, .u.exec = {.kernel = "fill", .spans = 1, .scalars = UINT32_MAX}},
        {.op = WIRE_MEASURE}, /* does not fit in 1 MiB */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct wire_req q = bad[i];
        q.magic = WIRE_REQ_MAGIC;
        q.id = 100 + i;
        assert_int_equal(send(r.fd, &q, sizeof q, 0), sizeof q);
        assert_true(raw_recv(&r, &rep));
        assert_int_equal(rep.id, q.id);
        assert_true(rep.status < 0);
        assert_true(rep.why[0]);
    }
    close(r.fd);
    r.fd = -1;
    assert_int_equal(raw_end(&r), 0);
}

/* ---- the client against a hostile worker ---- */

static const char *const fakes[] = {"silent-exit", "short",      "oversize",        "magic",      "kind",
                                    "gap",         "many",       "twice",           "early",      "unasked",
                                    "no-text",     "count",      "status-positive", "status-low", "foreign",
                                    "null-handle", "stat-count", "repeat"};

static void fake_send(const struct wire_rep *r, size_t n)
{
    if (send(3, r, n, MSG_NOSIGNAL) < 0)
        _exit(9);
}

#define MODE(x) (strcmp(mode, x) == 0)

/* The test submits an allocation and a stat as soon as it is told of the devices. */
static void fake_answers(const char *mode)
{
    struct wire_req q;
    while (recv(3, &q, sizeof q, 0) == (ssize_t)sizeof q) {
        struct wire_rep r = {.magic = WIRE_REP_MAGIC, .kind = WIRE_DONE, .id = q.id, .handle = 1, .count = 1};
        if (q.op == WIRE_ALLOC && MODE("status-positive"))
            r.status = 1;
        if (q.op == WIRE_ALLOC && MODE("status-low"))
            r.status = -1000;
        if (q.op == WIRE_ALLOC && MODE("foreign"))
            r.handle = WIRE_HANDLE(1, 1);
        if (q.op == WIRE_ALLOC && MODE("null-handle"))
            r.handle = 0;
        if (q.op == WIRE_STAT && MODE("stat-count"))
            r.count = 1000;
        fake_send(&r, sizeof r);
        if (MODE("repeat"))
            fake_send(&r, sizeof r);
    }
}

/* Runs as the worker: fd 3 is the control socket. Waits to be killed after having misbehaved. */
static int fake_worker(const char *mode)
{
    uint8_t big[sizeof(struct wire_rep) + 1] = {0};
    struct wire_rep d = {.magic = WIRE_REP_MAGIC, .kind = WIRE_DEVICE}, r = d;
    strcpy(d.u.device.id, "cpu:0");
    r.kind = WIRE_READY;
    r.count = 1;
    bool bad_start = false;
    if (MODE("silent-exit"))
        return 7;
    if (MODE("magic"))
        d.magic ^= 4, bad_start = true;
    if (MODE("kind"))
        d.kind = 77, bad_start = true;
    if (MODE("gap"))
        d.count = 3, bad_start = true;
    if (MODE("early"))
        d.kind = WIRE_DONE, bad_start = true;
    if (MODE("no-text"))
        d.u.device.id[0] = 0;
    else if (MODE("count"))
        memset(&d.u.device, 'x', sizeof d.u.device);
    if (MODE("short"))
        fake_send(&d, sizeof d - 1);
    if (MODE("oversize"))
        memcpy(big, &d, sizeof d), fake_send((struct wire_rep *)(void *)big, sizeof big);
    fake_send(&d, sizeof d);
    for (uint32_t i = 1; MODE("many") && i < WORKER_MAX_DEVICES + 3; i++) {
        d.count = i;
        fake_send(&d, sizeof d);
    }
    if (bad_start)
        pause();
    if (MODE("count"))
        r.count = 2;
    fake_send(&r, sizeof r);
    if (MODE("twice"))
        fake_send(&r, sizeof r);
    r.kind = WIRE_DONE;
    r.id = 424242;
    if (MODE("unasked"))
        fake_send(&r, sizeof r);
    fake_answers(mode);
    pause();
    return 0;
}

static void on_ready_any(struct worker *w, const struct worker_device *d, size_t n, void *arg)
{
    struct fix *f = arg;
    (void)d, (void)n;
    f->ready++;
    if (f->ready == 1) {
        assert_int_equal(worker_alloc(w, 0, 1, done, &f->seen[0]), ST_OK);
        assert_int_equal(worker_stat(w, done, &f->seen[1]), ST_OK);
    }
}

static void test_hostile_worker(void **state)
{
    static const struct worker_ops any = {.on_ready = on_ready_any, .on_exit = on_exit_cb};
    struct fix *f = *state;
    for (size_t i = 0; i < sizeof fakes / sizeof fakes[0]; i++) {
        struct worker_cfg c = config(f);
        c.program = "/proc/self/exe";
        c.ops = &any;
        setenv(FAKE_ENV, fakes[i], 1);
        memset(f->seen, 0, sizeof f->seen);
        spawn(f, &c);
        until(f, &f->exits, 1);
        assert_int_equal(f->seen[0].calls, f->ready); /* what was submitted has completed once */
        assert_int_equal(f->seen[1].calls, f->ready);
        assert_true(f->ready <= 1);
        if (i == 0) {
            assert_int_equal(f->exit_status, 7);
        } else {
            assert_int_equal(f->exit_signal, SIGKILL);
            assert_non_null(strstr(f->exit_why, "broke the control protocol"));
        }
        worker_close(f->w);
        f->w = NULL;
    }
    unsetenv(FAKE_ENV);
}

#define LIVE(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
#define BARE(t) cmocka_unit_test_setup_teardown(t, setup_bare, teardown)

int main(void)
{
    const char *fake = getenv(FAKE_ENV);
    if (fake)
        return fake_worker(fake);
    const struct CMUnitTest tests[] = {
        LIVE(test_load_and_flip),
        LIVE(test_refusals),
        LIVE(test_backlog),
        LIVE(test_kill_in_flight),
        LIVE(test_close),
        BARE(test_deadline),
        LIVE(test_measure),
        BARE(test_all_devices),
        BARE(test_spawn_refused),
        cmocka_unit_test(test_hostile_packets),
        cmocka_unit_test(test_hostile_values),
        BARE(test_hostile_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
