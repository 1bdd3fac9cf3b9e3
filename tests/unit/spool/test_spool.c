/* The spool: order, durability over crashes, repair, bounds, and delivery exactly once by sequence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/spool/deliver.h"
#include "agent/spool/spool.h"
#include "common/base/fs.h"
#include "common/base/str.h"

struct rig {
    char dir[64], path[96], aside[110];
    struct port *port;
    struct spool *s;
    struct spool_cfg cfg;
    unsigned done, failed, ready;
    struct err last;
};

static void reopen(struct rig *r)
{
    struct err e;
    spool_close(r->s);
    r->s = NULL;
    port_drain(r->port);
    if (spool_open(&r->s, &r->cfg, &e) < 0)
        fail_msg("%s", e.text);
}

static int setup(void **state)
{
    struct rig *r = calloc(1, sizeof *r);
    strcpy(r->dir, "/tmp/strata-spool-XXXXXX");
    if (!mkdtemp(r->dir) || port_new(&r->port) < 0)
        return -1;
    snprintf(r->path, sizeof r->path, "%s/audit.spool", r->dir);
    snprintf(r->aside, sizeof r->aside, "%s.damaged", r->path);
    r->cfg = (struct spool_cfg){.path = r->path, .port = r->port};
    *state = r;
    return 0;
}

static int teardown(void **state)
{
    struct rig *r = *state;
    spool_close(r->s);
    port_drain(r->port);
    port_free(r->port);
    unlink(r->path);
    unlink(r->aside);
    rmdir(r->dir);
    free(r);
    return 0;
}

static void done(void *arg, int rc, const struct err *e)
{
    struct rig *r = arg;
    r->done += rc == ST_OK;
    r->failed += rc != ST_OK;
    r->last = *e;
}

static int emit(struct rig *r, int i, bool wait, struct err *e)
{
    char meta[64];
    struct audit_event ev = event_make(EV_MEMORY_ALLOCATE, EVENT_SUCCESS, 1000 + i);
    snprintf(meta, sizeof meta, "{\"bytes\":%d}", 100000 + i);
    ev.principal = "user/alice";
    ev.device = "dione/cuda:0";
    ev.meta = meta;
    return spool_emit(r->s, &ev, wait ? done : NULL, r, e);
}

static void wait_done(struct rig *r, unsigned want)
{
    while (r->done + r->failed < want) {
        struct pollfd p = {.fd = port_fd(r->port), .events = POLLIN};
        if (poll(&p, 1, 20000) <= 0)
            fail_msg("the spool does not answer");
        port_drain(r->port);
    }
}

static void emit_n(struct rig *r, int from, int n)
{
    struct err e;
    unsigned want = r->done + (unsigned)n;
    for (int i = from; i < from + n; i++)
        if (emit(r, i, true, &e) < 0)
            fail_msg("%s", e.text);
    wait_done(r, want);
}

struct seen {
    int n, from;
    uint64_t last;
};

static int see(void *arg, const struct record *rec)
{
    struct seen *s = arg;
    struct audit_event ev;
    assert_int_equal(event_decode(rec->event, rec->len, &ev), ST_OK);
    assert_int_equal(ev.time_us, 1000 + s->from + s->n);
    assert_true(!s->last || rec->seq == s->last + 1);
    s->last = rec->seq;
    s->n++;
    return 0;
}

/* Takes everything in batches; returns how many there were, the first being number `from`. */
static int take_all(struct rig *r, int from, size_t batch, bool deliver)
{
    struct seen s = {.from = from};
    struct buf b = {0};
    struct err e;
    uint64_t first, last;
    uint8_t hash[SPOOL_HASH];
    for (;;) {
        b.len = 0;
        if (spool_peek(r->s, batch, &b, &first, &last, hash, &e) < 0)
            fail_msg("%s", e.text);
        if (!first)
            break;
        assert_int_equal(records_each(b.data, b.len, hash, see, &s), ST_OK);
        assert_int_equal(s.last, last);
        if (!deliver)
            break;
        spool_delivered(r->s, last);
    }
    buf_fini(&b);
    return s.n;
}

static void records_keep_their_order_over_restarts(void **state)
{
    struct rig *r = *state;
    struct spool_stats a, b;
    struct stat st;
    reopen(r);
    emit_n(r, 0, 300);
    assert_int_equal(stat(r->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    spool_stats(r->s, &a);
    reopen(r);
    emit_n(r, 300, 200);
    spool_stats(r->s, &b);
    assert_memory_equal(a.id, b.id, sizeof a.id);
    assert_int_equal(b.first, a.first);
    assert_int_equal(b.last, a.last + 200);
    assert_int_equal(take_all(r, 0, 5000, false) > 0, 1);
    assert_int_equal(take_all(r, 0, 1 << 20, true), 500);
    assert_int_equal(take_all(r, 500, 1 << 20, true), 0);
    emit_n(r, 500, 3);
    assert_int_equal(take_all(r, 500, 1, true), 3); /* one record always fits */
    /* What was delivered, but not yet cut off, comes again after a restart; the other side says what it has.
     */
    reopen(r);
    uint64_t last = b.last + 3;
    spool_delivered(r->s, last);
    assert_int_equal(take_all(r, 503, 1 << 20, true), 0);
}

static void the_file_is_shortened(void **state)
{
    struct rig *r = *state;
    struct stat st;
    reopen(r);
    for (int i = 0; i < 12; i++) {
        emit_n(r, i * 1000, 1000);
        assert_int_equal(take_all(r, i * 1000, 1 << 18, true), 1000);
    }
    reopen(r); /* the thread has ended what it was at */
    assert_int_equal(stat(r->path, &st), 0);
    assert_true(st.st_size < 2 << 20);
    emit_n(r, 12000, 5);
    spool_delivered(r->s, 0);
}

static void full_means_refused(void **state)
{
    struct rig *r = *state;
    struct err e;
    int n = 0, rc;
    r->cfg.max_bytes = 20000;
    reopen(r);
    assert_true(spool_room(r->s));
    while ((rc = emit(r, n, true, &e)) == ST_OK)
        n++;
    assert_int_equal(rc, ST_ERESOURCE);
    assert_string_equal(e.reason, "SPOOL_FULL");
    assert_false(spool_room(r->s));
    wait_done(r, (unsigned)n);
    assert_int_equal(take_all(r, 0, 1 << 18, true), n);
    assert_true(spool_room(r->s));
    emit_n(r, n, 10);
    assert_int_equal(take_all(r, n, 1 << 18, true), 10);
}

static void a_torn_end_is_cut_off_and_damage_is_kept_aside(void **state)
{
    struct rig *r = *state;
    struct buf whole = {0};
    struct err e;
    reopen(r);
    emit_n(r, 0, 20);
    spool_close(r->s);
    r->s = NULL;
    assert_int_equal(fs_read(r->path, 1 << 20, &whole, &e), ST_OK);
    size_t record = (whole.len - 88) / 20;
    for (size_t cut = 1; cut < record + 30; cut += 7) { /* every kind of torn last write */
        assert_int_equal(fs_write_atomic(r->path, whole.data, whole.len - cut, 0600, &e), ST_OK);
        reopen(r);
        int n = take_all(r, 0, 1 << 20, false);
        assert_true(n == 19 || n == 18);
        emit_n(r, n, 1);
        spool_close(r->s);
        r->s = NULL;
    }
    /* One bit anywhere: the records before it are as they were. */
    for (size_t at = 88; at < whole.len; at += 41) {
        whole.data[at] ^= 4;
        assert_int_equal(fs_write_atomic(r->path, whole.data, whole.len, 0600, &e), ST_OK);
        whole.data[at] ^= 4;
        unlink(r->aside);
        reopen(r);
        int n = take_all(r, 0, 1 << 20, false);
        assert_int_equal(n, (int)((at - 88) / record));
        assert_true(fs_exists(r->aside));
    }
    whole.data[20] ^= 1; /* the head */
    spool_close(r->s);
    r->s = NULL;
    assert_int_equal(fs_write_atomic(r->path, whole.data, whole.len, 0600, &e), ST_OK);
    assert_int_equal(spool_open(&r->s, &r->cfg, &e), ST_ECORRUPT);
    buf_fini(&whole);
}

/* kill -9 at any moment: whatever was acknowledged to the parent is in the file afterwards, in order. */
static void a_killed_agent_loses_nothing_acknowledged(void **state)
{
    struct rig *r = *state;
    int next = 0;
    for (int round = 0; round < 25; round++) {
        int fds[2], acked = next, i;
        assert_int_equal(pipe(fds), 0);
        pid_t pid = fork();
        if (pid == 0) {
            struct err e;
            close(fds[0]);
            if (port_new(&r->port) < 0)
                _exit(2);
            r->cfg.port = r->port;
            if (spool_open(&r->s, &r->cfg, &e) < 0)
                _exit(3);
            for (i = next;; i++) {
                r->done = r->failed = 0;
                if (emit(r, i, true, &e) < 0)
                    _exit(4);
                wait_done(r, 1);
                if (r->failed || write(fds[1], &i, sizeof i) != sizeof i)
                    _exit(5);
            }
        }
        close(fds[1]);
        int want = next + 1 + round * 3;
        while (acked < want && read(fds[0], &i, sizeof i) == sizeof i)
            acked = i + 1;
        kill(pid, SIGKILL);
        while (read(fds[0], &i, sizeof i) == sizeof i)
            acked = i + 1;
        close(fds[0]);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        reopen(r);
        int n = take_all(r, 0, 1 << 20, false);
        assert_true(n >= acked && n <= acked + 1);
        next = n;
        spool_close(r->s);
        r->s = NULL;
    }
}

static void a_witness_keeps_heads_and_sees_a_shorter_chain(void **state)
{
    struct rig *r = *state;
    struct witness w;
    struct err e;
    struct buf b = {0};
    struct witness_head h = {.size = 10, .time_us = 5, .sig_len = 64, .key_id = "00ff"};
    h.head[0] = 7;
    assert_int_equal(witness_open(&w, r->aside, NULL, &e), ST_OK);
    witness_take(&w, &h);
    witness_take(&w, &h); /* the same again is not written again */
    h.size = 20;
    witness_take(&w, &h);
    assert_int_equal(witness_open(&w, r->aside, NULL, &e), ST_OK);
    assert_int_equal(w.last.size, 20);
    assert_int_equal(w.last.head[0], 7);
    h.size = 15;
    witness_take(&w, &h);
    assert_int_equal(fs_read(r->aside, 1 << 20, &b, &e), ST_OK);
    int lines = 0;
    for (size_t i = 0; i < b.len; i++)
        lines += b.data[i] == '\n';
    assert_int_equal(lines, 3);
    buf_fini(&b);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(records_keep_their_order_over_restarts),
                                       T(the_file_is_shortened),
                                       T(full_means_refused),
                                       T(a_torn_end_is_cut_off_and_damage_is_kept_aside),
                                       T(a_killed_agent_loses_nothing_acknowledged),
                                       T(a_witness_keeps_heads_and_sees_a_shorter_chain)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
