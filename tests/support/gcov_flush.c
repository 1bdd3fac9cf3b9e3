/* Only in coverage builds: writes the counters once a second, because what kill -9 ends, and tests end much
 * that way, never reaches the exit handler that would have written them. */
#include <pthread.h>
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
    if (pthread_create(&t, NULL, flush, NULL) == 0)
        pthread_detach(t);
}
