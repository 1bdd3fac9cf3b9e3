/*
 * See spawn.h. The ring is sealed against resizing: a worker that shrank it would kill the agent with SIGBUS
 * at the next touch of a slot.
 */
#include "agent/worker/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_CONTROL 3
#define CHILD_RING 4
#define FD_FLOOR                                                                                             \
    10 /* ours stay clear of the child's numbers, so that one dup2 cannot overwrite the other's source */

extern char **environ;

static int raise_fd(int fd)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, FD_FLOOR);
    int err = errno;
    close(fd);
    errno = err;
    return high;
}

static int ring_make(size_t bytes, uint8_t **map)
{
    int fd = memfd_create("strata-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || (fd = raise_fd(fd)) < 0)
        return -1;
    if (ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        close(fd);
        return -1;
    }
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        close(fd);
        return -1;
    }
    *map = p;
    return fd;
}

/* The program with a clean signal state; only stderr, the socket and the ring pass. errno value or 0. */
static int start(pid_t *pid, const struct worker_cfg *cfg, int control, int ring)
{
    char slots[16], bytes[16], memory[24];
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    sigset_t none, all;
    int rc;
    snprintf(slots, sizeof slots, "%u", cfg->slots);
    snprintf(bytes, sizeof bytes, "%u", cfg->slot_bytes);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)cfg->cpu_memory_bytes);
    const char *argv[] = {"strata-worker",
                          "--control",
                          "3",
                          "--ring",
                          "4",
                          "--slots",
                          slots,
                          "--slot-bytes",
                          bytes,
                          "--cpu-memory",
                          memory,
                          "--backends",
                          cfg->backends ? cfg->backends : "",
                          NULL};
    if ((rc = posix_spawn_file_actions_init(&fa)) != 0)
        return rc;
    if ((rc = posix_spawnattr_init(&at)) != 0) {
        posix_spawn_file_actions_destroy(&fa);
        return rc;
    }
    sigemptyset(&none);
    sigfillset(&all);
    rc = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    rc = rc ? rc : posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(&fa, control, CHILD_CONTROL);
    rc = rc ? rc : posix_spawn_file_actions_adddup2(&fa, ring, CHILD_RING);
    rc = rc ? rc : posix_spawnattr_setsigmask(&at, &none);
    rc = rc ? rc : posix_spawnattr_setsigdefault(&at, &all);
    rc = rc ? rc : posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    rc = rc ? rc : posix_spawn(pid, cfg->program, &fa, &at, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&at);
    return rc;
}

int spawn_worker(struct spawned *out, const struct worker_cfg *cfg, struct err *e)
{
    struct spawned s = {.pidfd = -1, .control = -1, .ring_bytes = (size_t)cfg->slots * cfg->slot_bytes};
    int pair[2], ring, rc;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_errno(e, errno, "cannot make the control socket of a worker");
    s.control = raise_fd(pair[0]);
    pair[1] = raise_fd(pair[1]);
    ring = ring_make(s.ring_bytes, &s.ring);
    if (s.control < 0 || pair[1] < 0 || ring < 0 || fcntl(s.control, F_SETFL, O_NONBLOCK) < 0)
        rc = err_errno(e, errno, "cannot make the socket and the staging ring of a worker (%zu bytes)",
                       s.ring_bytes);
    else if ((rc = start(&s.pid, cfg, pair[1], ring)) != 0)
        rc = err_errno(e, rc, "cannot start the worker program %s", cfg->program);
    if (pair[1] >= 0)
        close(pair[1]);
    if (ring >= 0)
        close(ring);
    if (rc == ST_OK && (s.pidfd = pidfd_open(s.pid, 0)) < 0) {
        rc = err_errno(e, errno, "cannot watch the worker process %d", (int)s.pid);
        kill(s.pid, SIGKILL);
        waitpid(s.pid, NULL, 0);
    }
    if (rc < 0) {
        spawn_fini(&s);
        return rc;
    }
    fcntl(s.pidfd, F_SETFD, FD_CLOEXEC);
    *out = s;
    return ST_OK;
}

void spawn_fini(struct spawned *s)
{
    if (s->control >= 0)
        close(s->control);
    if (s->pidfd >= 0)
        close(s->pidfd);
    if (s->ring)
        munmap(s->ring, s->ring_bytes);
    *s = (struct spawned){.pidfd = -1, .control = -1};
}
