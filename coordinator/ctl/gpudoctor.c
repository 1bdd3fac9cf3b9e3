/*
 * strata gpu doctor: asks strata-worker, which alone loads drivers, and shows what it finds on this machine.
 * A driver that crashes or hangs takes only that process with it.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/ctl/ctl.h"

extern char **environ;

#define ANSWER_BYTES (256u << 10)
#define PATIENCE_S 60

/* Beside this program, else where PATH says. */
static int start(pid_t *pid, int *from)
{
    char program[4096];
    char *argv[] = {(char *)"strata-worker", (char *)"--doctor", NULL};
    posix_spawn_file_actions_t fa;
    int p[2];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 32);
    char *slash = n > 0 ? memrchr(program, '/', (size_t)n) : NULL;
    if (pipe(p) < 0 || posix_spawn_file_actions_init(&fa) != 0)
        return errno;
    posix_spawn_file_actions_adddup2(&fa, p[1], 1);
    posix_spawn_file_actions_addclose(&fa, p[0]);
    posix_spawn_file_actions_addclose(&fa, p[1]);
    if (slash)
        strcpy(slash + 1, "strata-worker");
    int rc = slash && access(program, X_OK) == 0 ? posix_spawn(pid, program, &fa, NULL, argv, environ)
                                                 : posix_spawnp(pid, argv[0], &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    close(p[1]);
    if (rc)
        close(p[0]);
    *from = p[0];
    return rc;
}

/* All it says until it ends; a driver that hangs is killed with it. False: it had to be. */
static bool listen_to(pid_t pid, int from, char *text, size_t cap, int *status)
{
    struct timespec t;
    size_t n = 0;
    bool ended = false;
    clock_gettime(CLOCK_MONOTONIC, &t);
    for (time_t end = t.tv_sec + PATIENCE_S; !ended && t.tv_sec < end; clock_gettime(CLOCK_MONOTONIC, &t)) {
        struct pollfd p = {.fd = from, .events = POLLIN};
        if (poll(&p, 1, (int)(end - t.tv_sec) * 1000) <= 0)
            continue;
        ssize_t k = n + 1 < cap ? read(from, text + n, cap - 1 - n) : 0;
        if (k > 0)
            n += (size_t)k;
        ended = k <= 0;
    }
    text[n] = 0;
    close(from);
    if (!ended)
        kill(pid, SIGKILL);
    while (waitpid(pid, status, 0) < 0 && errno == EINTR)
        ;
    return ended;
}

int ctl_gpu_doctor(struct ctl *c, int argc, char **argv)
{
    static const char *const columns[] = {"", "SUBJECT", "FINDING", "WHAT TO DO"};
    struct err e = {0};
    pid_t pid;
    int from = -1, status = 0, problems = 0;
    if ((argc = ctl_parse(argc, argv, NULL, 0)) != 0)
        return argc < 0 ? 2 : ctl_misuse(c, "gpu doctor takes nothing");
    char *text = malloc(ANSWER_BYTES), *save = NULL;
    struct table *t = table_new(columns, 4);
    json_t *list = json_array();
    int rc = text && t && list ? start(&pid, &from) : ENOMEM;
    if (rc)
        err_errno(&e, rc, "cannot run strata-worker, which looks at the drivers; install it beside strata");
    else if (!listen_to(pid, from, text, ANSWER_BYTES, &status))
        err_set(&e, ST_EDEADLINE, "a GPU driver did not answer within %d s; see dmesg", PATIENCE_S);
    else if (WIFSIGNALED(status))
        err_set(&e, ST_EIO, "a GPU driver crashed with signal %d; see dmesg", WTERMSIG(status));
    for (char *line = e.code ? NULL : strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *f[4] = {line, NULL, NULL, NULL};
        for (int i = 1; i < 4; i++)
            if (f[i - 1] && (f[i] = strchr(f[i - 1], '\t')))
                *f[i]++ = 0;
        if (!f[3])
            continue;
        problems += strcmp(f[0], "problem") == 0;
        for (int i = 0; i < 4; i++)
            table_cell(t, "%s", f[i]);
        json_array_append_new(list, json_pack("{s:s,s:s,s:s,s:s}", "level", f[0], "subject", f[1], "finding",
                                              f[2], "advice", f[3]));
    }
    int x = 0;
    if (e.code)
        x = ctl_fail(c, &e);
    else if (c->json)
        x = ctl_print_json("strata.gpu_doctor.v1",
                           json_pack("{s:i,s:O}", "problems", problems, "findings", list));
    else
        table_print(t, stdout);
    json_decref(list);
    table_free(t);
    free(text);
    return x ? x : problems ? 11 : 0;
}
