/*
 * Agents against a coordinator's end of the wire and real worker processes: what a load brings into device
 * memory and what keeps wrong bytes, wrong files and wrong callers out.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>

#include "agent/control.h"
#include "agent/layers/layers_priv.h"
#include "tests/unit/agent/world.h"

static void expect(const struct result *r, unsigned code, const char *reason)
{
    if (r->code != code || (reason && strcmp(r->reason, reason) != 0))
        fail_msg("code %u %s (%s), not %u %s", r->code, r->reason, r->text, code, reason ? reason : "");
}

static int worker_pid_of(struct world *w, unsigned node)
{
    struct layer *l = agent_layers(w->node[node].agent)->head;
    assert_non_null(l);
    int pid = tenant_pid(l->tenant);
    assert_true(pid > 0);
    return pid;
}

static void test_load_verify_release(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    uint8_t sha[32];
    for (unsigned i = 0; i < w->model_info->n_layers; i++) {
        world_load_request(w, "j1", i, &rq);
        if (!rq.bytes)
            continue;
        struct result r = world_load(w, 0, &rq);
        expect(&r, 0, NULL);
        assert_true(r.has && r.progress >= 1);
        world_layer_sha(w, i, sha);
        assert_memory_equal(r.sha, sha, 32);
        assert_memory_equal(r.dev, sha, 32);
        r = world_verify(w, 0, "j1", rq.layer);
        expect(&r, 0, NULL);
        assert_memory_equal(r.dev, sha, 32);
    }
    int pid = worker_pid_of(w, 0);
    world_load_request(w, "j1", world_small(w), &rq);
    assert_true(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0") > rq.bytes);
    struct result r = world_release(w, 0, "j1", rq.layer);
    expect(&r, 0, NULL);
    assert_true(r.layers == 1 && r.bytes == rq.bytes);
    r = world_verify(w, 0, "j1", rq.layer);
    expect(&r, 5, "NOT_RESIDENT");
    r = world_release(w, 0, "j1", "");
    expect(&r, 0, NULL);
    assert_true(r.layers >= 1);
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"), 0);
    /* Nothing held, no worker. */
    WAIT(w, kill(pid, 0) != 0);
    r = world_release(w, 0, "j1", "");
    expect(&r, 5, "NOT_RESIDENT");
}

static void nothing(void *arg, int rc, const struct err *e)
{
    (void)e;
    assert_int_equal(rc, ST_OK);
    *(bool *)arg = true;
}

/* What was begun after a hello is not undone by that hello's answer; nor is what is on another device. */
static void test_release_bounds(void **st)
{
    struct world *w = *st;
    struct layers *ls = agent_layers(w->node[0].agent);
    Strata__V1__LoadRequest rq;
    struct err e;
    uint64_t before = layers_serial(ls);
    world_load_request(w, "j9", world_small(w), &rq);
    struct result r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    assert_int_equal(layers_serial(ls), before + 1);
    assert_int_equal(layers_release(ls, "j9", rq.layer, "", before, NULL, NULL, &e), ST_ENOENT);
    assert_int_equal(layers_release(ls, "j9", rq.layer, "cpu:1", UINT64_MAX, NULL, NULL, &e), ST_ENOENT);
    r = world_verify(w, 0, "j9", rq.layer);
    expect(&r, 0, NULL);
    assert_int_equal(layers_release(ls, "j9", rq.layer, "cpu:0", before + 1, NULL, NULL, &e), ST_OK);
    WAIT(w, layers_device_bytes(ls, "cpu:0") == 0);
}

/* One byte of device memory changes behind the agent's back. */
/* Each layer's bytes run through the device: as much is read and computed as was asked for, and what was
 * asked to be released meanwhile is released. */
static void test_time(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    struct result r;
    double big_s = 0, small_s = 0;
    for (unsigned i = 0; i < w->model_info->n_layers; i++) {
        world_load_request(w, "j10", i, &rq);
        if (rq.bytes < 64)
            continue;
        r = world_load(w, 0, &rq);
        expect(&r, 0, NULL);
        r = world_time(w, 0, "j10", rq.layer, 1.9 * (double)rq.bytes, (double)rq.bytes);
        expect(&r, 0, NULL);
        assert_true(r.has && r.best_s > 0 && r.rounds == 3);
        assert_true(r.bytes <= rq.bytes && (double)r.bytes > 0.9 * (double)rq.bytes - 4400);
        assert_true(r.flops > (double)r.bytes && r.flops < 4 * (double)r.bytes);
        if (i == world_big(w))
            big_s = r.best_s;
        if (i == world_small(w))
            small_s = r.best_s;
    }
    assert_true(small_s == 0 || big_s > small_s);
    world_load_request(w, "j10", world_big(w), &rq);
    r = world_time(w, 0, "j10", rq.layer, 100.0 * (double)rq.bytes / 16, (double)rq.bytes / 16);
    expect(&r, 0, NULL); /* a prefill over part of it: many operations for a byte */
    assert_true(r.flops > 50 * (double)r.bytes && r.bytes <= rq.bytes / 16);
    r = world_time(w, 0, "j10", rq.layer, 0, (double)rq.bytes);
    expect(&r, 3, NULL);
    r = world_time(w, 0, "j10", rq.layer, 1, NAN);
    expect(&r, 3, NULL);
    r = world_time(w, 0, "j11", rq.layer, 1, 1);
    expect(&r, 5, "NOT_RESIDENT");
    Strata__V1__TimeRequest tq = STRATA__V1__TIME_REQUEST__INIT;
    struct result slow;
    tq.job = (char *)"j10";
    tq.layer = rq.layer;
    tq.flops = tq.read_bytes = (double)rq.bytes;
    tq.rounds = 100;
    world_call(w, 0, "Time", RPC_UNARY, &tq.base, &slow);
    r = world_release(w, 0, "j10", "");
    expect(&r, 0, NULL);
    WAIT(w, slow.done);
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"), 0);
}

static void test_verify_finds_flip(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    struct worker_slot s;
    struct err e;
    bool done = false;
    world_load_request(w, "j2", world_small(w), &rq);
    struct result r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    struct layer *l = agent_layers(w->node[0].agent)->head;
    uint8_t sha[32];
    memcpy(sha, l->sha256, 32);
    WAIT(w, tenant_slot(l->tenant, &s));
    int fd = open(w->model, O_RDONLY | O_CLOEXEC);
    uint64_t at = rq.pieces[0]->length / 2;
    assert_int_equal(pread(fd, s.data, 1, (off_t)(rq.pieces[0]->offset + at)), 1);
    close(fd);
    s.data[0] ^= 1;
    assert_int_equal(tenant_write(l->tenant, l->buffer, at, &s, 1, nothing, &done, &e), ST_OK);
    WAIT(w, done);
    r = world_verify(w, 0, "j2", rq.layer);
    expect(&r, 0, NULL);
    assert_memory_equal(r.sha, sha, 32);
    assert_memory_not_equal(r.dev, sha, 32);
    /* Loading it again puts it right. */
    r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    r = world_verify(w, 0, "j2", rq.layer);
    assert_memory_equal(r.dev, sha, 32);
    r = world_release(w, 0, "j2", "");
    expect(&r, 0, NULL);
}

/* The worker stands still with the staging ring full; meanwhile the file's end changes. */
static void test_file_changes_meanwhile(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    struct result held, r;
    world_load_request(w, "keep", world_small(w), &rq);
    held = world_load(w, 0, &rq);
    expect(&held, 0, NULL);
    int pid = worker_pid_of(w, 0);
    world_load_request(w, "j3", world_big(w), &rq);
    assert_true(rq.bytes > 33u << 20);
    world_call(w, 0, "Load", RPC_SERVER_STREAM, &rq.base, &r);
    WAIT(w, r.progress || r.done);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    bool early = r.done;
    uint8_t byte;
    const Strata__V1__Piece *last = rq.pieces[rq.n_pieces - 1];
    int fd = open(w->model, O_RDWR | O_CLOEXEC);
    off_t at = (off_t)(last->offset + last->length - 1);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    assert_int_equal(kill(pid, SIGCONT), 0);
    WAIT(w, r.done);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
    assert_false(early);
    expect(&r, 10, "MODEL_CHANGED");
    /* What it had on the device is free again; the other layer stays. */
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"),
                     w->model_info->layers[world_small(w)]->bytes);
    r = world_release(w, 0, "keep", "");
    expect(&r, 0, NULL);
}

/* A byte that was already on the device changes before the layer is complete: the load itself finds it. */
static void test_device_corrupts_load(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    struct worker_slot s;
    struct result r;
    struct err e;
    bool done = false;
    uint8_t byte;
    world_load_request(w, "keep", world_small(w), &rq);
    r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    struct tenant *t = agent_layers(w->node[0].agent)->head->tenant;
    WAIT(w, tenant_slot(t, &s));
    world_load_request(w, "j9", world_big(w), &rq);
    int fd = open(w->model, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, &byte, 1, (off_t)rq.pieces[0]->offset), 1);
    close(fd);
    s.data[0] = byte ^ 0x80;
    world_call(w, 0, "Load", RPC_SERVER_STREAM, &rq.base, &r);
    WAIT(w, r.progress || r.done);
    assert_false(r.done);
    struct layer *l = agent_layers(w->node[0].agent)->head;
    assert_string_equal(l->job, "j9");
    assert_int_equal(tenant_write(l->tenant, l->buffer, 0, &s, 1, nothing, &done, &e), ST_OK);
    WAIT(w, r.done && done);
    expect(&r, 15, "CHECKSUM_MISMATCH");
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"),
                     w->model_info->layers[world_small(w)]->bytes);
    r = world_release(w, 0, "keep", "");
    expect(&r, 0, NULL);
}

static void test_release_cancels_load(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    Strata__V1__ReleaseRequest rel = STRATA__V1__RELEASE_REQUEST__INIT;
    struct result load, r;
    world_load_request(w, "j4", world_big(w), &rq);
    world_call(w, 0, "Load", RPC_SERVER_STREAM, &rq.base, &load);
    WAIT(w, load.progress || load.done);
    int pid = worker_pid_of(w, 0);
    assert_int_equal(kill(pid, SIGSTOP), 0);
    rel.job = (char *)"j4";
    world_call(w, 0, "Release", RPC_UNARY, &rel.base, &r);
    struct result again;
    world_call(w, 0, "Release", RPC_UNARY, &rel.base, &again);
    assert_int_equal(kill(pid, SIGCONT), 0);
    WAIT(w, load.done && r.done && again.done);
    expect(&r, 0, NULL);
    assert_int_equal(r.layers, 1);
    if (load.code != 0)
        expect(&load, 1, NULL);
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"), 0);
}

static void test_refused_requests(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    uint8_t other[32] = {1};
    world_load_request(w, "j5", world_small(w), &rq);
    rq.device = (char *)"cuda:9";
    struct result r = world_load(w, 0, &rq);
    expect(&r, 5, "NO_DEVICE");
    world_load_request(w, "j5", world_small(w), &rq);
    rq.path = (char *)"/etc/passwd";
    r = world_load(w, 0, &rq);
    expect(&r, 7, "OUTSIDE_MODEL_DIRS");
    world_load_request(w, "j5", world_small(w), &rq);
    rq.header_sha256 = (ProtobufCBinaryData){32, other};
    r = world_load(w, 0, &rq);
    expect(&r, 10, "OTHER_MODEL");
    world_load_request(w, "j5", world_small(w), &rq);
    rq.bytes++;
    r = world_load(w, 0, &rq);
    expect(&r, 3, NULL);
    world_load_request(w, "j5", world_small(w), &rq);
    Strata__V1__Piece huge = STRATA__V1__PIECE__INIT, *ph = &huge;
    huge.length = rq.bytes = 1ull << 40;
    rq.pieces = &ph;
    rq.n_pieces = 1;
    r = world_load(w, 0, &rq);
    expect(&r, 8, "DEVICE_FULL");
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"), 0);
}

/* ---- from a peer ---- */

static void make_ticket(struct world *w, struct ticket *t, unsigned layer)
{
    const Strata__V1__Layer *l = w->model_info->layers[layer];
    uint64_t bytes = l->bytes;
    *t = (struct ticket){.purpose = TICKET_FETCH, .limit_bytes = bytes};
    memcpy(t->holder, w->node[1].spki, 32);
    strcpy(t->node, "n0");
    snprintf(t->resource, sizeof t->resource, "job/j6/layer/%s", l->id);
    t->issued_us = clock_wall_us(clock_system());
    t->expires_us = t->issued_us + 60000000;
    ticket_serial(rng_system(), t->serial);
}

static struct result fetch(struct world *w, unsigned layer, const struct ticket *t, bool tamper)
{
    Strata__V1__LoadRequest rq;
    uint8_t bytes[TICKET_MAX];
    size_t n = 0;
    struct err e;
    world_load_request(w, "j6", layer, &rq);
    rq.peer_node = (char *)"n0";
    rq.peer_address = w->node[0].peer_address;
    if (t)
        assert_int_equal(ticket_sign(w->key, t, bytes, &n, &e), ST_OK);
    if (tamper)
        bytes[n - 1] ^= 1;
    rq.ticket = (ProtobufCBinaryData){n, bytes};
    return world_load(w, 1, &rq);
}

static void test_fetch(void **st)
{
    struct world *w = *st;
    uint8_t sha[32];
    struct ticket t;
    unsigned which[] = {world_small(w), world_big(w)};
    for (unsigned i = 0; i < 2; i++) {
        make_ticket(w, &t, which[i]);
        struct result r = fetch(w, which[i], &t, false);
        expect(&r, 0, NULL);
        world_layer_sha(w, which[i], sha);
        assert_memory_equal(r.sha, sha, 32);
        assert_memory_equal(r.dev, sha, 32);
        r = world_verify(w, 1, "j6", w->model_info->layers[which[i]]->id);
        expect(&r, 0, NULL);
        assert_memory_equal(r.dev, sha, 32);
    }
    struct result r = world_release(w, 1, "j6", "");
    expect(&r, 0, NULL);
    assert_int_equal(r.layers, 2);
}

static void test_fetch_refused(void **st)
{
    struct world *w = *st;
    unsigned i = world_small(w);
    struct ticket t;
    struct result r = fetch(w, i, NULL, false);
    expect(&r, 7, "NO_TICKET");
    make_ticket(w, &t, i);
    r = fetch(w, i, &t, true);
    expect(&r, 16, "TICKET_FORGED");
    make_ticket(w, &t, i);
    t.issued_us -= 120000000;
    t.expires_us = t.issued_us + 60000000;
    r = fetch(w, i, &t, false);
    expect(&r, 16, "TICKET_EXPIRED");
    make_ticket(w, &t, i);
    t.holder[0] ^= 1;
    r = fetch(w, i, &t, false);
    expect(&r, 16, "TICKET_WRONG_HOLDER");
    make_ticket(w, &t, i);
    strcpy(t.node, "n1");
    r = fetch(w, i, &t, false);
    expect(&r, 16, "TICKET_WRONG_NODE");
    make_ticket(w, &t, i);
    t.purpose = TICKET_BENCH;
    r = fetch(w, i, &t, false);
    expect(&r, 7, "TICKET_WRONG_PURPOSE");
    make_ticket(w, &t, i);
    strcpy(t.resource, "gpu/n0/0");
    r = fetch(w, i, &t, false);
    expect(&r, 7, "TICKET_WRONG_RESOURCE");
    /* A ticket for another layer of the job, for the same layer of another job, and for a longer name. */
    make_ticket(w, &t, i == world_big(w) ? world_small(w) : world_big(w));
    t.limit_bytes = UINT32_MAX;
    r = fetch(w, i, &t, false);
    expect(&r, 7, "TICKET_WRONG_RESOURCE");
    make_ticket(w, &t, i);
    t.resource[5] = '7'; /* job/j7/… */
    r = fetch(w, i, &t, false);
    expect(&r, 7, "TICKET_WRONG_RESOURCE");
    make_ticket(w, &t, i);
    strcat(t.resource, "x");
    r = fetch(w, i, &t, false);
    expect(&r, 7, "TICKET_WRONG_RESOURCE");
    make_ticket(w, &t, i);
    t.limit_bytes--;
    r = fetch(w, i, &t, false);
    expect(&r, 7, "TICKET_LIMIT");
    assert_int_equal(layers_device_bytes(agent_layers(w->node[1].agent), "cpu:0"), 0);
    r = world_release(w, 1, "j6", "");
    expect(&r, 5, "NOT_RESIDENT");
}

/* ---- what ends without being asked ---- */

static void test_worker_dies(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    world_load_request(w, "j7", world_small(w), &rq);
    struct result r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    unsigned hellos = w->node[0].hellos;
    assert_int_equal(kill(worker_pid_of(w, 0), SIGKILL), 0);
    WAIT(w, w->node[0].hellos > hellos);
    assert_int_equal(w->node[0].residents, 0);
    r = world_verify(w, 0, "j7", rq.layer);
    expect(&r, 5, "NOT_RESIDENT");
    r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    /* Killed in the middle of a load: the load says so. */
    world_load_request(w, "j7", world_big(w), &rq);
    world_call(w, 0, "Load", RPC_SERVER_STREAM, &rq.base, &r);
    WAIT(w, r.progress || r.done);
    hellos = w->node[0].hellos;
    assert_int_equal(kill(worker_pid_of(w, 0), SIGKILL), 0);
    WAIT(w, r.done && w->node[0].hellos > hellos);
    assert_int_not_equal(r.code, 0);
    assert_int_equal(layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0"), 0);
}

static void test_reconnects_and_drops(void **st)
{
    struct world *w = *st;
    Strata__V1__LoadRequest rq;
    world_load_request(w, "j8", world_small(w), &rq);
    struct result r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    world_load_request(w, "ghost", world_small(w), &rq);
    r = world_load(w, 0, &rq);
    expect(&r, 0, NULL);
    unsigned hellos = w->node[0].hellos, beats = w->node[0].heartbeats;
    WAIT(w, w->node[0].heartbeats > beats);
    w->drop_job = "ghost";
    rpc_session_close(w->node[0].session, 0, "the coordinator restarts");
    WAIT(w, w->node[0].hellos > hellos && w->node[0].session);
    assert_int_equal(w->node[0].residents, 2);
    w->drop_job = NULL;
    WAIT(w, layers_device_bytes(agent_layers(w->node[0].agent), "cpu:0") == rq.bytes);
    r = world_verify(w, 0, "ghost", rq.layer);
    expect(&r, 5, "NOT_RESIDENT");
    r = world_verify(w, 0, "j8", rq.layer);
    expect(&r, 0, NULL);
    r = world_release(w, 0, "j8", "");
    expect(&r, 0, NULL);
}

static void test_backoff(void **st)
{
    (void)st;
    for (unsigned n = 0; n < 40; n++)
        for (unsigned k = 0; k < 50; k++) {
            double top = n > 7 ? 15e9 : 0.1e9 * (double)(1u << n);
            assert_true((double)control_backoff_ns(rng_system(), n) <= (top > 15e9 ? 15e9 : top));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_verify_release),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_verify_finds_flip),
        cmocka_unit_test(test_file_changes_meanwhile),
        cmocka_unit_test(test_release_cancels_load),
        cmocka_unit_test(test_device_corrupts_load),
        cmocka_unit_test(test_refused_requests),
        cmocka_unit_test(test_release_bounds),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_fetch_refused),
        cmocka_unit_test(test_worker_dies),
        cmocka_unit_test(test_reconnects_and_drops),
        cmocka_unit_test(test_backoff),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
