/* The system's clocks and entropy. */
#include "common/base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

static uint64_t sys_mono(void *arg)
{
    (void)arg;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static int64_t sys_wall(void *arg)
{
    (void)arg;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void sys_fill(void *arg, void *out, size_t n)
{
    (void)arg;
    for (uint8_t *p = out; n;) {
        ssize_t k = getrandom(p, n, 0);
        if (k < 0) {
            if (errno == EINTR)
                continue;
            abort();
        }
        p += k;
        n -= (size_t)k;
    }
}

const struct clock *clock_system(void)
{
    static const struct clock c = {sys_mono, sys_wall, NULL};
    return &c;
}

const struct rng *rng_system(void)
{
    static const struct rng r = {sys_fill, NULL};
    return &r;
}

uint64_t rng_u64(const struct rng *r)
{
    uint64_t v;
    r->fill(r->arg, &v, sizeof v);
    return v;
}

uint64_t rng_below(const struct rng *r, uint64_t bound)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % bound, v;
    do
        v = rng_u64(r);
    while (v >= limit);
    return v % bound;
}

void clock_rfc3339(int64_t wall_us, char out[28])
{
    int64_t s = wall_us / 1000000, us = wall_us % 1000000;
    if (us < 0) {
        us += 1000000;
        s--;
    }
    time_t t = (time_t)s;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || tm.tm_year < -1900 || tm.tm_year > 8099) {
        snprintf(out, 28, "1970-01-01T00:00:00.000000Z");
        return;
    }
    size_t n = strftime(out, 28, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, 28 - n, ".%06uZ", (unsigned)us);
}
