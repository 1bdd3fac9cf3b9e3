/*
 * Log lines for operators: logfmt on a file descriptor, one write(2) a line, `<N>` priority prefix when it is
 * a journal. Never keys, tokens or secrets. A struct log is shared by pointer; log_line may be called from
 * any thread. Lines that a peer can trigger pass a rate limiter first (log_limited).
 */
#ifndef STRATA_BASE_LOG_H
#define STRATA_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/clock.h"

enum log_level { LOG_LV_ERROR, LOG_LV_WARN, LOG_LV_INFO, LOG_LV_DEBUG };

struct log {
    int fd;                    /* borrowed; -1 = silent */
    enum log_level level;      /* lines above it are dropped */
    bool journal;              /* prefix "<N>" for systemd */
    const char *program;       /* borrowed */
    const struct clock *clock; /* for the time= field */
};

/* `room` is a short word such as "quic"; fmt is "event key=value …" with values quoted by the caller if
 * needed. */
void log_line(const struct log *l, enum log_level lv, const char *room, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define LOG_E(l, room, ...) log_line((l), LOG_LV_ERROR, (room), __VA_ARGS__)
#define LOG_W(l, room, ...) log_line((l), LOG_LV_WARN, (room), __VA_ARGS__)
#define LOG_I(l, room, ...) log_line((l), LOG_LV_INFO, (room), __VA_ARGS__)
#define LOG_D(l, room, ...) log_line((l), LOG_LV_DEBUG, (room), __VA_ARGS__)

/* Token bucket for peer-triggered lines: true = write it; *suppressed counts what was held back since. */
struct log_limit {
    uint64_t window_start_ns;
    unsigned in_window, suppressed;
};
bool log_limited(struct log_limit *lim, uint64_t now_ns, unsigned per_second, unsigned *suppressed);

/* "error" "warn" "info" "debug" → level, or ST_EINVAL. */
int log_level_parse(const char *word, enum log_level *out);

#endif
