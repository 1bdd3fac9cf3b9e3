/*
 * strata-worker: the only program that loads GPU drivers. Started by the agent with a control socket and a
 * shared staging ring, it serves one principal and ends with the agent: when the socket closes, or by the
 * kernel's signal when the agent's thread dies. It frees nothing on its way out; the kernel does that faster
 * and surely.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/gpu/doctor.h"
#include "agent/gpu/gpu.h"
#include "agent/gpu/monitor.h"
#include "agent/worker/executor.h"
#include "agent/worker/wire.h"
#include "common/base/clock.h"
#include "common/base/str.h"

#define FIRST_SAMPLE_NS (50 * NS_PER_MS)

enum { EXIT_START = 1, EXIT_USAGE = 2, EXIT_PROTOCOL = 3 };

struct main {
    uint64_t control, ring_fd, slots, slot_bytes, cpu_memory;
    const char *backends;
    uint8_t *ring;
    struct gpu_set *set;
    struct executor *x[WORKER_MAX_DEVICES];
    uint32_t devices;
    struct monitor *monitor; /* from the first question on */
};

static int fail(int code, const char *text)
{
    fprintf(stderr, "strata-worker: %s\n", text);
    return code;
}

static int number(const char *s, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (*s < '0' || *s > '9' || *end || errno || v > max)
        return ST_EINVAL;
    *out = v;
    return ST_OK;
}

static int arguments(struct main *m, int argc, char **argv)
{
    *m = (struct main){.control = UINT64_MAX, .ring_fd = UINT64_MAX, .backends = ""};
    for (int i = 1; i < argc; i += 2) {
        const char *k = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
        int rc = v ? ST_OK : ST_EINVAL;
        if (rc < 0)
            return rc;
        if (strcmp(k, "--control") == 0)
            rc = number(v, 1 << 20, &m->control);
        else if (strcmp(k, "--ring") == 0)
            rc = number(v, 1 << 20, &m->ring_fd);
        else if (strcmp(k, "--slots") == 0)
            rc = number(v, WORKER_MAX_SLOTS, &m->slots);
        else if (strcmp(k, "--slot-bytes") == 0)
            rc = number(v, WORKER_MAX_SLOT_BYTES, &m->slot_bytes);
        else if (strcmp(k, "--cpu-memory") == 0)
            rc = number(v, UINT64_MAX, &m->cpu_memory);
        else if (strcmp(k, "--backends") == 0)
            m->backends = v;
        else
            rc = ST_EINVAL;
        if (rc < 0)
            return rc;
    }
    return m->control == UINT64_MAX || m->ring_fd == UINT64_MAX || m->slots == 0 || m->slot_bytes == 0
               ? ST_EINVAL
               : ST_OK;
}

/* The ring must be as large as we were told, or a copy would end in SIGBUS. */
static int map_ring(struct main *m)
{
    struct stat st;
    size_t n = (size_t)(m->slots * m->slot_bytes);
    if (fstat((int)m->ring_fd, &st) < 0 || (uint64_t)st.st_size < n)
        return ST_EINVAL;
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, (int)m->ring_fd, 0);
    if (p == MAP_FAILED)
        return status_from_errno(errno);
    m->ring = p;
    return ST_OK;
}

static void describe(const struct gpu_info *g, struct worker_device *d)
{
    str_copy(d->id, sizeof d->id, g->id);
    str_copy(d->backend, sizeof d->backend, g->backend);
    str_copy(d->name, sizeof d->name, g->name);
    str_copy(d->vendor, sizeof d->vendor, g->vendor);
    str_copy(d->driver, sizeof d->driver, g->driver);
    str_copy(d->support, sizeof d->support, gpu_support_name(g->support));
    d->total_bytes = g->total_bytes;
    d->available_bytes = g->available_bytes;
    d->max_buffer_bytes = g->max_buffer_bytes;
    d->compute_units = g->compute_units;
    d->software = g->software;
    memcpy(d->uuid, g->uuid, sizeof d->uuid);
}

static int start(struct main *m, struct err *e)
{
    struct gpu_cfg cfg = {.backends = m->backends, .cpu_memory_bytes = m->cpu_memory};
    int rc = gpu_set_new(&m->set, &cfg, e);
    if (rc < 0)
        return rc;
    size_t n = gpu_set_count(m->set);
    for (uint32_t i = 0; i < n && i < WORKER_MAX_DEVICES; i++, m->devices++) {
        struct executor_cfg xc = {.set = m->set,
                                  .device = i,
                                  .control = (int)m->control,
                                  .ring = m->ring,
                                  .slots = (uint32_t)m->slots,
                                  .slot_bytes = (uint32_t)m->slot_bytes,
                                  .peers = m->x};
        struct wire_rep rep = {.kind = WIRE_DEVICE, .count = i};
        if ((rc = executor_new(&m->x[i], &xc, e)) < 0)
            return rc;
        describe(gpu_set_info(m->set, i), &rep.u.device);
        executor_reply((int)m->control, &rep);
    }
    struct wire_rep ready = {.kind = WIRE_READY, .count = m->devices};
    executor_reply((int)m->control, &ready);
    return ST_OK;
}

static void stat_reply(struct main *m, uint64_t id)
{
    struct wire_rep rep = {.kind = WIRE_DONE, .id = id, .count = m->devices};
    for (uint32_t i = 0; i < m->devices; i++)
        executor_usage(m->x[i], &rep.u.usage[i]);
    executor_reply((int)m->control, &rep);
}

/* The only wait of this thread, and once: for the sensors' first round. */
static void monitor_reply(struct main *m, const struct wire_req *r)
{
    struct wire_rep rep = {.kind = WIRE_DONE, .id = r->id};
    struct err e = {0};
    if (!m->monitor && (rep.status = monitor_new(&m->monitor, m->set, &(struct monitor_cfg){0}, &e)) == ST_OK)
        monitor_wait(m->monitor, FIRST_SAMPLE_NS);
    if (rep.status == ST_OK)
        monitor_read(m->monitor, r->device, &rep.u.readings);
    else
        str_copy(rep.why, sizeof rep.why, e.text);
    executor_reply((int)m->control, &rep);
}

static bool names_device(uint32_t op)
{
    return op == WIRE_ALLOC || op == WIRE_MEASURE || op == WIRE_EXEC || op == WIRE_SYNC ||
           op == WIRE_MONITOR || op == WIRE_RUN;
}

/* ST_EPROTO for what no agent sends; a request that is merely wrong is answered. */
static int dispatch(struct main *m, const struct wire_req *r)
{
    struct wire_rep rep = {.kind = WIRE_DONE, .id = r->id};
    uint32_t device = names_device(r->op)  ? r->device
                      : r->op == WIRE_COPY ? WIRE_DEVICE_OF(r->src_handle)
                                           : WIRE_DEVICE_OF(r->handle);
    uint32_t other = r->op == WIRE_COPY ? WIRE_DEVICE_OF(r->handle) : device;
    if (r->magic != WIRE_REQ_MAGIC || r->op < WIRE_ALLOC || r->op > WIRE_RUN)
        return ST_EPROTO;
    if (r->op == WIRE_STAT) {
        stat_reply(m, r->id);
        return ST_OK;
    }
    if (device < m->devices && other < m->devices) {
        if (r->op == WIRE_MONITOR) {
            monitor_reply(m, r);
            return ST_OK;
        }
        rep.status = executor_post(m->x[device], r);
        if (rep.status == ST_OK)
            return ST_OK;
        str_copy(rep.why, sizeof rep.why,
                 "too many operations wait for the device; wait for one to complete");
    } else {
        rep.status = names_device(r->op) && r->op != WIRE_EXEC && r->op != WIRE_RUN ? ST_EINVAL : ST_ENOENT;
        snprintf(rep.why, sizeof rep.why, "there is no device %u here, only %u devices",
                 device < m->devices ? other : device, m->devices);
    }
    executor_reply((int)m->control, &rep);
    return ST_OK;
}

static int serve(struct main *m)
{
    for (;;) {
        struct wire_req r;
        ssize_t n = recv((int)m->control, &r, sizeof r, MSG_TRUNC); /* the true length, however long */
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return 0;
        if (n < 0)
            return fail(EXIT_PROTOCOL, "the control socket failed");
        if (n != (ssize_t)sizeof r || dispatch(m, &r) < 0)
            return fail(EXIT_PROTOCOL,
                        "the other side of the control socket is no strata-agent of this version");
    }
}

static void doctor_line(void *arg, enum doctor_level l, const char *subject, const char *finding,
                        const char *advice)
{
    (void)arg;
    printf("%s\t%s\t%s\t%s\n", doctor_level_name(l), subject, finding, advice);
}

/* For `strata gpu doctor`: findings, a line each, tabs between. */
static int doctor(void)
{
    struct gpu_set *set = NULL;
    struct err e = {0};
    if (gpu_set_new(&set, &(struct gpu_cfg){0}, &e) < 0)
        return fail(EXIT_START, e.text);
    doctor_run(&(struct doctor_cfg){.set = set}, doctor_line, NULL);
    return fflush(stdout) ? EXIT_START : 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--doctor") == 0)
        _exit(doctor());
    struct main *m = calloc(1, sizeof *m);
    struct err e = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    if (!m)
        return fail(EXIT_START, "no memory");
    if (arguments(m, argc, argv) < 0)
        _exit(fail(EXIT_USAGE, "this program is started by strata-agent, not by hand"));
    if (map_ring(m) < 0)
        _exit(fail(EXIT_START, "the staging ring cannot be mapped or is smaller than announced"));
    fcntl((int)m->control, F_SETFD, FD_CLOEXEC); /* a driver may start helpers of its own */
    fcntl((int)m->ring_fd, F_SETFD, FD_CLOEXEC);
    if (start(m, &e) < 0)
        _exit(fail(EXIT_START, e.text)); /* threads may run: nothing is torn down under them */
    _exit(serve(m));
}
