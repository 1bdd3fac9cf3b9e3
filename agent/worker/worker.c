/*
 * The agent's side of a worker. States: STARTING → READY → DYING → GONE; any may go to DYING, which means
 * SIGKILL was sent and only the process's end is awaited. All endings come together in finish(): it alone
 * completes what is pending and calls on_exit. Callbacks run under a guard (enter/leave), which frees a
 * closed worker last.
 */
#include "agent/worker/worker.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "agent/worker/spawn.h"
#include "agent/worker/wire.h"
#include "common/base/heap.h"
#include "common/base/str.h"

#define DEFAULT_NS (30 * NS_PER_S)
#define REAP_NS                                                                                              \
    (5 * NS_PER_S)  /* a killed process that a driver holds in the kernel is given up after this             \
                     */
#define RX_BATCH 64 /* answers taken in one turn */
#define RUN_MAX_NS (60 * NS_PER_S)
#define NO_SLOT UINT32_MAX

enum state { STARTING, READY, DYING, GONE };

struct op {
    struct heap_node due; /* first: a node is its op */
    struct wire_req req;
    worker_done_fn done; /* NULL = free place */
    void *arg;
    uint32_t slot; /* returns to the ring after done; NO_SLOT = none */
    int status;    /* what it completes with when the worker ends */
};

struct worker {
    struct worker_cfg cfg;
    char label[64];
    enum state state;
    struct spawned proc;
    struct event *rx, *tx, *exited, *timer, *kick;
    struct worker_device devices[WORKER_MAX_DEVICES];
    uint32_t announced, ndevices;
    struct op ops[WORKER_MAX_PENDING];
    uint16_t txq[WORKER_MAX_PENDING]; /* places in ops that are not sent yet */
    size_t tx_head, tx_count, pending;
    uint64_t seq;
    struct heap due;
    uint64_t life_due_ns; /* of the start, later of the reaping; 0 = none */
    uint64_t free_slots;  /* a bit each */
    bool slot_wanted, closed;
    unsigned upcalls;
    char why[300];
};

static uint64_t now_ns(const struct worker *w)
{
    return clock_ns(w->cfg.clock);
}

static void destroy(struct worker *w)
{
    struct event *ev[] = {w->rx, w->tx, w->exited, w->timer, w->kick};
    for (size_t i = 0; i < sizeof ev / sizeof ev[0]; i++)
        if (ev[i])
            event_free(ev[i]);
    spawn_fini(&w->proc);
    heap_fini(&w->due);
    free(w);
}

static void enter(struct worker *w)
{
    w->upcalls++;
}

/* After it `w` may be gone. */
static void leave(struct worker *w)
{
    if (--w->upcalls == 0 && w->closed && w->state == GONE)
        destroy(w);
}

/* ---- time ---- */

static void arm(struct worker *w)
{
    struct heap_node *top = heap_top(&w->due);
    uint64_t due = w->life_due_ns, now = now_ns(w);
    if (w->state != DYING && top && (!due || top->key < due))
        due = top->key;
    if (!due || w->state == GONE) {
        event_del(w->timer);
        return;
    }
    uint64_t us = due > now ? (due - now + 999) / 1000 : 0;
    struct timeval tv = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)};
    event_add(w->timer, &tv);
}

/* ---- endings ---- */

static void slot_release(struct worker *w, uint32_t slot)
{
    if (slot == NO_SLOT)
        return;
    w->free_slots |= 1ull << slot;
    if (w->slot_wanted && w->state <= READY)
        event_active(w->kick, EV_TIMEOUT, 0);
}

/* Takes the op out before its callback runs, so that the callback may submit again. */
static void complete(struct worker *w, struct op *op, struct worker_result *r)
{
    worker_done_fn done = op->done;
    void *arg = op->arg;
    uint32_t slot = op->slot;
    heap_del(&w->due, &op->due);
    op->done = NULL;
    w->pending--;
    if (!r->why)
        r->why = "";
    done(arg, r);
    slot_release(w, slot);
}

static void die(struct worker *w, const char *why)
{
    if (w->state >= DYING)
        return;
    w->state = DYING;
    str_copy(w->why, sizeof w->why, why);
    event_del(w->rx);
    event_del(w->tx);
    kill(w->proc.pid, SIGKILL);
    w->life_due_ns = now_ns(w) + REAP_NS;
    arm(w);
}

static int by_id(const void *a, const void *b)
{
    const struct op *const *x = a, *const *y = b;
    return (*x)->req.id < (*y)->req.id ? -1 : (*x)->req.id > (*y)->req.id;
}

/* Everything that waits completes, oldest first; then on_exit. Under the caller's guard. */
static void finish(struct worker *w, int exit_status, int sig)
{
    struct op *left[WORKER_MAX_PENDING];
    size_t n = 0;
    w->state = GONE;
    w->proc.pid = 0;
    w->life_due_ns = 0;
    event_del(w->rx);
    event_del(w->tx);
    event_del(w->exited);
    event_del(w->timer);
    for (size_t i = 0; i < WORKER_MAX_PENDING; i++)
        if (w->ops[i].done)
            left[n++] = &w->ops[i];
    qsort(left, n, sizeof left[0], by_id);
    for (size_t i = 0; i < n; i++) {
        struct worker_result r = {.status = left[i]->status, .why = w->why};
        complete(w, left[i], &r);
    }
    LOG_I(w->cfg.log, "worker", "worker_exit worker=%s status=%d signal=%d why=\"%s\"", w->label, exit_status,
          sig, w->why);
    w->cfg.ops->on_exit(w, exit_status, sig, w->why, w->cfg.arg);
}

/* ---- answers ---- */

static void terminate(char *s, size_t cap)
{
    s[cap - 1] = 0;
}

static int got_device(struct worker *w, struct wire_rep *rep)
{
    if (w->state != STARTING || rep->count != w->announced || rep->count >= WORKER_MAX_DEVICES)
        return ST_EPROTO;
    struct worker_device *d = &w->devices[w->announced++];
    *d = rep->u.device;
    terminate(d->id, sizeof d->id);
    terminate(d->backend, sizeof d->backend);
    terminate(d->name, sizeof d->name);
    terminate(d->vendor, sizeof d->vendor);
    terminate(d->driver, sizeof d->driver);
    terminate(d->support, sizeof d->support);
    return d->id[0] ? ST_OK : ST_EPROTO;
}

static int got_ready(struct worker *w, const struct wire_rep *rep)
{
    if (w->state != STARTING || rep->count != w->announced)
        return ST_EPROTO;
    w->state = READY;
    w->ndevices = w->announced;
    w->life_due_ns = 0;
    LOG_I(w->cfg.log, "worker", "worker_ready worker=%s pid=%d devices=%u", w->label, (int)w->proc.pid,
          w->ndevices);
    w->cfg.ops->on_ready(w, w->devices, w->ndevices, w->cfg.arg);
    return ST_OK;
}

static int got_done(struct worker *w, struct wire_rep *rep)
{
    struct op *op = &w->ops[rep->id % WORKER_MAX_PENDING];
    struct worker_result r = {.status = rep->status, .handle = rep->handle, .why = rep->why};
    if (w->state != READY || !op->done || op->req.id != rep->id || rep->status > 0 ||
        rep->status < ST_ECONFIG)
        return ST_EPROTO;
    terminate(rep->why, sizeof rep->why);
    if (op->req.op == WIRE_ALLOC && rep->status == ST_OK &&
        (WIRE_DEVICE_OF(rep->handle) != op->req.device || WIRE_LOCAL(rep->handle) == 0))
        return ST_EPROTO;
    if (op->req.op == WIRE_STAT && rep->status == ST_OK) {
        if (rep->count != w->ndevices)
            return ST_EPROTO;
        r.usage = rep->u.usage;
        r.devices = rep->count;
    }
    if (op->req.op == WIRE_MONITOR && rep->status == ST_OK) {
        struct gpu_readings *g = &rep->u.readings;
        terminate(g->source, sizeof g->source);
        for (int i = 0; i < GPU_FIELDS; i++) /* a bool of another process may hold anything */
            g->field[i].valid = *(const unsigned char *)&g->field[i].valid != 0;
        g->asleep = *(const unsigned char *)&g->asleep != 0;
        r.readings = g;
    }
    r.value = rep->value;
    memcpy(r.sha256, rep->sha256, sizeof r.sha256);
    r.memory_bytes_per_s = rep->memory;
    r.compute_flops_per_s = rep->flops;
    complete(w, op, &r);
    return ST_OK;
}

static void receive(struct worker *w, int batch)
{
    struct wire_rep rep;
    for (int i = 0; i < batch && w->state <= READY; i++) {
        ssize_t n = recv(w->proc.control, &rep, sizeof rep, MSG_TRUNC | MSG_DONTWAIT);
        int rc = ST_EPROTO;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            event_del(w->rx); /* the process is on its way out: its end says more than this */
            if (!w->life_due_ns) {
                w->life_due_ns = now_ns(w) + REAP_NS;
                arm(w);
            }
            return;
        }
        if (n == (ssize_t)sizeof rep && rep.magic == WIRE_REP_MAGIC) {
            if (rep.kind == WIRE_DEVICE)
                rc = got_device(w, &rep);
            else if (rep.kind == WIRE_READY)
                rc = got_ready(w, &rep);
            else if (rep.kind == WIRE_DONE)
                rc = got_done(w, &rep);
        }
        if (rc < 0)
            die(w, "the worker broke the control protocol and was killed; is it of another version?");
    }
    if (w->state <= READY)
        arm(w);
}

static void on_rx(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    (void)fd, (void)what;
    enter(w);
    receive(w, RX_BATCH);
    leave(w);
}

static void on_exited(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    int st = 0;
    (void)fd, (void)what;
    enter(w);
    receive(w,
            WORKER_MAX_PENDING + WORKER_MAX_DEVICES + 2); /* what it answered before it ended still counts */
    pid_t got = waitpid(w->proc.pid, &st, WNOHANG);
    if (got == w->proc.pid || (got < 0 && errno == ECHILD)) {
        int sig = got > 0 && WIFSIGNALED(st) ? WTERMSIG(st) : 0,
            code = got > 0 && WIFEXITED(st) ? WEXITSTATUS(st) : 0;
        if (w->state != DYING && sig)
            snprintf(w->why, sizeof w->why, "the worker process was killed by signal %d (%s)", sig,
                     strsignal(sig));
        else if (w->state != DYING)
            snprintf(w->why, sizeof w->why, "the worker process ended by itself with status %d", code);
        finish(w, code, sig);
    }
    leave(w);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    uint64_t now = now_ns(w);
    (void)fd, (void)what;
    enter(w);
    struct heap_node *top = heap_top(&w->due);
    if (w->state == DYING && w->life_due_ns <= now) {
        LOG_E(w->cfg.log, "worker", "worker_unkillable worker=%s pid=%d", w->label, (int)w->proc.pid);
        finish(w, 0, SIGKILL);
    } else if (w->state == STARTING && w->life_due_ns && w->life_due_ns <= now) {
        die(w,
            "the worker did not become ready in time and was killed; a GPU driver may hang while it loads");
    } else if (w->state == READY && w->life_due_ns && w->life_due_ns <= now) {
        die(w, "the worker closed its control socket without ending and was killed");
    } else if (w->state == READY && top && top->key <= now) {
        struct op *op = (struct op *)top;
        op->status = ST_EDEADLINE;
        die(w, "an operation did not complete in time: the device hangs, and the worker was killed");
    } else {
        arm(w);
    }
    leave(w);
}

static void on_kick(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    (void)fd, (void)what;
    if (!w->slot_wanted || !w->free_slots || w->state > READY)
        return;
    w->slot_wanted = false;
    enter(w);
    if (w->cfg.ops->on_slot)
        w->cfg.ops->on_slot(w, w->cfg.arg);
    leave(w);
}

/* ---- requests ---- */

/* Sends what the socket takes; the rest goes when it is writable. A dead peer shows on the pidfd. */
static void transmit(struct worker *w)
{
    while (w->tx_count) {
        struct op *op = &w->ops[w->txq[w->tx_head]];
        ssize_t n = send(w->proc.control, &op->req, sizeof op->req, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
            event_add(w->tx, NULL);
            return;
        }
        if (n < 0)
            return;
        w->tx_head = (w->tx_head + 1) % WORKER_MAX_PENDING;
        w->tx_count--;
    }
}

static void on_tx(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    (void)fd, (void)what;
    transmit(w);
}

static int submit(struct worker *w, const struct wire_req *req, uint32_t slot, uint64_t timeout_ns,
                  worker_done_fn done, void *arg)
{
    size_t place;
    if (w->state >= DYING || w->closed)
        return ST_ECLOSED;
    if (w->state == STARTING)
        return ST_ECONFLICT;
    if (!done)
        return ST_EINVAL;
    if (w->pending == WORKER_MAX_PENDING)
        return ST_EAGAIN;
    do /* ids grow, and the place of an op is its id's remainder */
        place = ++w->seq % WORKER_MAX_PENDING;
    while (w->ops[place].done);
    struct op *op = &w->ops[place];
    *op = (struct op){.req = *req, .arg = arg, .slot = slot, .status = ST_ECLOSED};
    int rc = heap_set(&w->due, &op->due, now_ns(w) + timeout_ns);
    if (rc < 0)
        return rc;
    op->done = done;
    op->req.magic = WIRE_REQ_MAGIC;
    op->req.id = w->seq;
    w->pending++;
    w->txq[(w->tx_head + w->tx_count++) % WORKER_MAX_PENDING] = (uint16_t)place;
    if (w->tx_count == 1)
        transmit(w);
    if (heap_top(&w->due) == &op->due)
        arm(w);
    return ST_OK;
}

int worker_alloc(struct worker *w, uint32_t device, uint64_t bytes, worker_done_fn done, void *arg)
{
    const struct wire_req r = {.op = WIRE_ALLOC, .device = device, .len = bytes};
    if (bytes == 0 || (w->state == READY && device >= w->ndevices))
        return ST_EINVAL;
    return submit(w, &r, NO_SLOT, w->cfg.op_timeout_ns, done, arg);
}

int worker_free(struct worker *w, uint64_t handle, worker_done_fn done, void *arg)
{
    const struct wire_req r = {.op = WIRE_FREE, .handle = handle};
    return submit(w, &r, NO_SLOT, w->cfg.op_timeout_ns, done, arg);
}

static bool slot_valid(const struct worker *w, const struct worker_slot *s, uint32_t len)
{
    return s->index < w->cfg.slots && !(w->free_slots >> s->index & 1) && len <= w->cfg.slot_bytes;
}

int worker_write(struct worker *w, uint64_t handle, uint64_t offset, const struct worker_slot *s,
                 uint32_t len, worker_done_fn done, void *arg)
{
    if (!slot_valid(w, s, len))
        return ST_EINVAL;
    const struct wire_req r = {
        .op = WIRE_WRITE, .handle = handle, .offset = offset, .len = len, .slot = s->index};
    return submit(w, &r, s->index, w->cfg.op_timeout_ns, done, arg);
}

int worker_read(struct worker *w, uint64_t handle, uint64_t offset, uint32_t len, const struct worker_slot *s,
                worker_done_fn done, void *arg)
{
    if (!slot_valid(w, s, len))
        return ST_EINVAL;
    const struct wire_req r = {
        .op = WIRE_READ, .handle = handle, .offset = offset, .len = len, .slot = s->index};
    return submit(w, &r, NO_SLOT, w->cfg.op_timeout_ns, done, arg);
}

static uint64_t long_timeout(const struct worker *w, uint64_t len)
{
    uint64_t gib = (len >> 30) + 1;
    return gib > UINT32_MAX / 4 ? UINT64_MAX / 4 : gib * w->cfg.op_timeout_ns;
}

int worker_digest(struct worker *w, uint64_t handle, uint64_t offset, uint64_t len, worker_done_fn done,
                  void *arg)
{
    const struct wire_req r = {.op = WIRE_DIGEST, .handle = handle, .offset = offset, .len = len};
    return submit(w, &r, NO_SLOT, long_timeout(w, len), done, arg);
}

int worker_copy(struct worker *w, uint64_t dst_handle, uint64_t dst_offset, uint64_t src_handle,
                uint64_t src_offset, uint64_t len, worker_done_fn done, void *arg)
{
    const struct wire_req r = {.op = WIRE_COPY,
                               .handle = dst_handle,
                               .offset = dst_offset,
                               .src_handle = src_handle,
                               .src_offset = src_offset,
                               .len = len};
    return submit(w, &r, NO_SLOT, long_timeout(w, len), done, arg);
}

int worker_exec(struct worker *w, const struct gpu_exec *x, worker_done_fn done, void *arg)
{
    if (x->spans == 0 || x->spans > GPU_MAX_SPANS || x->scalars > GPU_MAX_SCALARS)
        return ST_EINVAL;
    struct wire_req r = {.op = WIRE_EXEC, .device = WIRE_DEVICE_OF(x->span[0].handle), .u.exec = *x};
    for (uint32_t i = 1; i < x->spans; i++)
        if (WIRE_DEVICE_OF(x->span[i].handle) != r.device)
            return ST_EINVAL;
    return submit(w, &r, NO_SLOT, w->cfg.op_timeout_ns, done, arg);
}

int worker_run(struct worker *w, const struct gpu_program *p, const struct worker_slot *s, uint32_t len,
               worker_done_fn done, void *arg)
{
    if (p->spans == 0 || p->spans > GPU_OWN_SPANS || p->scalars > GPU_OWN_SCALARS || !len ||
        p->deadline_ns > RUN_MAX_NS || !slot_valid(w, s, len))
        return ST_EINVAL;
    struct wire_req r = {.op = WIRE_RUN,
                         .device = WIRE_DEVICE_OF(p->span[0].handle),
                         .len = len,
                         .slot = s->index,
                         .u.program = *p};
    for (uint32_t i = 1; i < p->spans; i++)
        if (WIRE_DEVICE_OF(p->span[i].handle) != r.device)
            return ST_EINVAL;
    /* The driver's compiler needs time too, and it may hang as well as the kernel. */
    return submit(w, &r, s->index, w->cfg.op_timeout_ns + p->deadline_ns, done, arg);
}

int worker_stat(struct worker *w, worker_done_fn done, void *arg)
{
    const struct wire_req r = {.op = WIRE_STAT};
    return submit(w, &r, NO_SLOT, w->cfg.op_timeout_ns, done, arg);
}

/* An operation on a device as a whole. */
static int submit_device(struct worker *w, uint32_t op, uint32_t device, worker_done_fn done, void *arg)
{
    const struct wire_req r = {.op = op, .device = device};
    if (w->state == READY && device >= w->ndevices)
        return ST_EINVAL;
    return submit(w, &r, NO_SLOT, w->cfg.op_timeout_ns, done, arg);
}

int worker_measure(struct worker *w, uint32_t device, worker_done_fn done, void *arg)
{
    return submit_device(w, WIRE_MEASURE, device, done, arg);
}

int worker_sync(struct worker *w, uint32_t device, worker_done_fn done, void *arg)
{
    return submit_device(w, WIRE_SYNC, device, done, arg);
}

int worker_monitor(struct worker *w, uint32_t device, worker_done_fn done, void *arg)
{
    return submit_device(w, WIRE_MONITOR, device, done, arg);
}

bool worker_slot_get(struct worker *w, struct worker_slot *out)
{
    if (!w->free_slots) {
        w->slot_wanted = true;
        return false;
    }
    uint32_t i = (uint32_t)__builtin_ctzll(w->free_slots);
    w->free_slots &= ~(1ull << i);
    *out = (struct worker_slot){
        .index = i, .bytes = w->cfg.slot_bytes, .data = w->proc.ring + (size_t)i * w->cfg.slot_bytes};
    return true;
}

void worker_slot_put(struct worker *w, const struct worker_slot *s)
{
    if (s->index < w->cfg.slots)
        slot_release(w, s->index);
}

/* ---- life ---- */

static int cfg_check(struct worker_cfg *c, struct err *e)
{
    c->slots = c->slots ? c->slots : 8;
    c->slot_bytes = c->slot_bytes ? c->slot_bytes : 4u << 20;
    c->op_timeout_ns = c->op_timeout_ns ? c->op_timeout_ns : DEFAULT_NS;
    c->start_timeout_ns = c->start_timeout_ns ? c->start_timeout_ns : DEFAULT_NS;
    if (!c->base || !c->clock || !c->program || !c->ops || !c->ops->on_ready || !c->ops->on_exit)
        return err_set(e, ST_EINVAL, "a worker needs a loop, a clock, a program, on_ready and on_exit");
    if (c->slots > WORKER_MAX_SLOTS || c->slot_bytes > WORKER_MAX_SLOT_BYTES || c->slot_bytes % 4096)
        return err_set(e, ST_EINVAL,
                       "a worker's ring has 1 to %d slots of a multiple of 4096 bytes, at most %u",
                       WORKER_MAX_SLOTS, WORKER_MAX_SLOT_BYTES);
    return ST_OK;
}

/* For a log that is not there: log_line needs one, and this one is silent. */
static const struct log silent = {.fd = -1};

int worker_spawn(struct worker **out, const struct worker_cfg *cfg, struct err *e)
{
    struct worker_cfg c = *cfg;
    int rc = cfg_check(&c, e);
    if (rc < 0)
        return rc;
    struct worker *w = calloc(1, sizeof *w);
    if (!w)
        return err_set(e, ST_ENOMEM, "no memory for a worker");
    w->cfg = c;
    w->cfg.log = c.log ? c.log : &silent;
    str_copy(w->label, sizeof w->label, c.label ? c.label : "-");
    w->free_slots = c.slots == 64 ? UINT64_MAX : (1ull << c.slots) - 1;
    w->proc = (struct spawned){.pidfd = -1, .control = -1};
    if ((rc = spawn_worker(&w->proc, &w->cfg, e)) < 0) {
        destroy(w);
        return rc;
    }
    w->cfg.program = w->cfg.backends = w->cfg.label = NULL; /* borrowed for the call only */
    w->rx = event_new(c.base, w->proc.control, EV_READ | EV_PERSIST, on_rx, w);
    w->tx = event_new(c.base, w->proc.control, EV_WRITE, on_tx, w);
    w->exited = event_new(c.base, w->proc.pidfd, EV_READ | EV_PERSIST, on_exited, w);
    w->timer = event_new(c.base, -1, 0, on_timer, w);
    w->kick = event_new(c.base, -1, 0, on_kick, w);
    if (!w->rx || !w->tx || !w->exited || !w->timer || !w->kick || event_add(w->rx, NULL) < 0 ||
        event_add(w->exited, NULL) < 0) {
        worker_destroy(w);
        return err_set(e, ST_ENOMEM, "no memory for the events of a worker");
    }
    w->life_due_ns = now_ns(w) + c.start_timeout_ns;
    arm(w);
    LOG_I(w->cfg.log, "worker", "worker_start worker=%s pid=%d slots=%u slot_bytes=%u", w->label,
          (int)w->proc.pid, c.slots, c.slot_bytes);
    *out = w;
    return ST_OK;
}

void worker_kill(struct worker *w)
{
    die(w, "the worker was killed by the agent");
}

void worker_close(struct worker *w)
{
    if (!w)
        return;
    enter(w);
    w->closed = true;
    die(w, "the worker was closed by the agent");
    leave(w);
}

void worker_destroy(struct worker *w)
{
    if (!w)
        return;
    if (w->state != GONE) {
        kill(w->proc.pid, SIGKILL);
        while (waitpid(w->proc.pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    destroy(w);
}

bool worker_ready(const struct worker *w)
{
    return w->state == READY;
}

int worker_pid(const struct worker *w)
{
    return (int)w->proc.pid;
}

size_t worker_pending(const struct worker *w)
{
    return w->pending;
}

uint32_t worker_slot_bytes(const struct worker *w)
{
    return w->cfg.slot_bytes;
}

const struct worker_device *worker_devices(const struct worker *w, size_t *n)
{
    *n = w->ndevices;
    return w->devices;
}

int worker_device_find(const struct worker *w, const char *id, uint32_t *device)
{
    for (uint32_t i = 0; i < w->ndevices; i++)
        if (strcmp(w->devices[i].id, id) == 0) {
            *device = i;
            return ST_OK;
        }
    return ST_ENOENT;
}
