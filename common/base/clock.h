/*
 * Time and randomness as inputs. Daemons use clock_system() and rng_system(); simulations and tests give
 * their own. Monotonic time is nanoseconds from an arbitrary origin; wall time is microseconds since the
 * epoch, UTC.
 */
#ifndef STRATA_BASE_CLOCK_H
#define STRATA_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull

struct clock {
    uint64_t (*mono_ns)(void *arg);
    int64_t (*wall_us)(void *arg);
    void *arg;
};

struct rng {
    void (*fill)(void *arg, void *out, size_t n); /* never fails: aborts if the system has no entropy */
    void *arg;
};

const struct clock *clock_system(void);
const struct rng *rng_system(void);

static inline uint64_t clock_ns(const struct clock *c)
{
    return c->mono_ns(c->arg);
}
static inline int64_t clock_wall_us(const struct clock *c)
{
    return c->wall_us(c->arg);
}
uint64_t rng_u64(const struct rng *r);
/* Uniform in [0, bound), bound > 0. */
uint64_t rng_below(const struct rng *r, uint64_t bound);

/* "2026-11-24T10:15:02.123456Z" into out (≥ 28 bytes). */
void clock_rfc3339(int64_t wall_us, char out[28]);

#endif
