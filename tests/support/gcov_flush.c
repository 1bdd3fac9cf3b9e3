/* Only in coverage builds: writes the counters once a second, because what kill -9 ends, and tests end much
 * that way, never reaches the exit handler that would have written them. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

void __gcov_dump(void);
void __gcov_reset(void);

static void *flush(void *arg)
{
    for (;;) {
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
        __gcov_dump();
        __gcov_reset();
    }
    return arg;
}

__attribute__((constructor)) static void start(void)
{
    pthread_t t;
    /* Only in what is meant to run until it is killed. Tests and the command line end by themselves, and
     * their own dump at exit must not meet this one; some tests count what is allocated, too. */
    const char *me = program_invocation_short_name;
    if (strncmp(me, "test_", 5) == 0 || strcmp(me, "strata") == 0)
        return;
    if (pthread_create(&t, NULL, flush, NULL) == 0)
        pthread_detach(t);
}
