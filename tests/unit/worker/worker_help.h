/* The fixture of the tests of a worker: a loop, a worker process, and what became of operations. */
#ifndef STRATA_TESTS_WORKER_HELP_H
#define STRATA_TESTS_WORKER_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/worker/worker.h"

#ifndef WORKER_PROGRAM
#define WORKER_PROGRAM "strata-worker" /* the build says where it lies */
#endif
#define MIB (1u << 20)

struct seen { /* what one operation came to */
    int calls, status;
    uint64_t handle;
    uint8_t sha[32];
    struct worker_usage usage[WORKER_MAX_DEVICES];
    size_t devices;
    double memory, flops;
    uint64_t value;
    struct gpu_readings readings;
    char why[300];
};

struct fix {
    struct event_base *base;
    struct worker *w;
    int ready, exits, exit_status, exit_signal, slots_told;
    char exit_why[300];
    bool close_on_exit, timed_out;
    struct seen seen[2];
};

static inline void on_ready(struct worker *w, const struct worker_device *d, size_t n, void *arg)
{
    struct fix *f = arg;
    (void)w;
    assert_true(n >= 1);
    assert_string_equal(d[0].id, "cpu:0");
    f->ready++;
}

static inline void on_slot(struct worker *w, void *arg)
{
    (void)w;
    ((struct fix *)arg)->slots_told++;
}

static inline void on_exit_cb(struct worker *w, int st, int sig, const char *why, void *arg)
{
    struct fix *f = arg;
    f->exits++;
    f->exit_status = st;
    f->exit_signal = sig;
    snprintf(f->exit_why, sizeof f->exit_why, "%s", why);
    assert_int_equal(worker_pending(w), 0);
    if (f->close_on_exit) {
        worker_close(w);
        f->w = NULL;
    }
}

static const struct worker_ops ops = {.on_ready = on_ready, .on_slot = on_slot, .on_exit = on_exit_cb};

static inline void done(void *arg, const struct worker_result *r)
{
    struct seen *s = arg;
    s->calls++;
    s->status = r->status;
    s->handle = r->handle;
    memcpy(s->sha, r->sha256, 32);
    s->devices = r->devices;
    if (r->usage)
        memcpy(s->usage, r->usage, r->devices * sizeof *r->usage);
    s->memory = r->memory_bytes_per_s;
    s->value = r->value;
    if (r->readings)
        s->readings = *r->readings;
    s->flops = r->compute_flops_per_s;
    snprintf(s->why, sizeof s->why, "%s", r->why);
}

static inline void late(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    ((struct fix *)arg)->timed_out = true;
}

/* Runs the loop until *counter reaches n; fails after 40 s. */
static inline void until(struct fix *f, const int *counter, int n)
{
    struct event *t = event_new(f->base, -1, 0, late, f);
    struct timeval tv = {.tv_sec = 40};
    f->timed_out = false;
    event_add(t, &tv);
    while (*counter < n && !f->timed_out)
        event_base_loop(f->base, EVLOOP_ONCE);
    event_free(t);
    if (*counter < n)
        fail_msg("waited for %d, got %d; exit: %s", n, *counter, f->exit_why);
}

static inline struct worker_cfg config(struct fix *f)
{
    return (struct worker_cfg){.base = f->base,
                               .clock = clock_system(),
                               .program = WORKER_PROGRAM,
                               .backends = "cpu",
                               .cpu_memory_bytes = 256 * MIB,
                               .slots = 4,
                               .slot_bytes = MIB,
                               .ops = &ops,
                               .arg = f};
}

static inline void spawn(struct fix *f, const struct worker_cfg *cfg)
{
    struct err e = {0};
    f->ready = f->exits = 0;
    if (worker_spawn(&f->w, cfg, &e) < 0)
        fail_msg("%s", e.text);
}

static inline int setup_bare(void **state)
{
    struct fix *f = calloc(1, sizeof *f);
    f->base = event_base_new();
    *state = f;
    return 0;
}

static inline int setup(void **state)
{
    setup_bare(state);
    struct fix *f = *state;
    struct worker_cfg c = config(f);
    spawn(f, &c);
    until(f, &f->ready, 1);
    return 0;
}

static inline int teardown(void **state)
{
    struct fix *f = *state;
    worker_destroy(f->w);
    event_base_free(f->base);
    free(f);
    return 0;
}

static inline uint64_t alloc(struct fix *f, uint64_t bytes)
{
    struct seen s = {0};
    assert_int_equal(worker_alloc(f->w, 0, bytes, done, &s), ST_OK);
    assert_int_equal(s.calls, 0); /* never inline */
    until(f, &s.calls, 1);
    assert_int_equal(s.status, ST_OK);
    return s.handle;
}

/* Pseudo-random, and different at every offset. */
static inline void fill(uint8_t *p, uint64_t at, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t x = (at + i + 1) * 0x9e3779b97f4a7c15ull;
        p[i] = (uint8_t)(x >> 56 ^ x >> 23);
    }
}

#endif
