/* Log lines: one write(2) each, so that lines of several threads never mix. */
#include "common/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/status.h"

static const char *const level_name[] = {"error", "warn", "info", "debug"};
static const int journal_prio[] = {3, 4, 6, 7};

void log_line(const struct log *l, enum log_level lv, const char *room, const char *fmt, ...)
{
    if (!l || l->fd < 0 || lv > l->level)
        return;
    char line[2048], when[28];
    size_t cap = sizeof line - 2, n = 0;
    clock_rfc3339(clock_wall_us(l->clock), when);
    int k = l->journal ? snprintf(line, cap, "<%d>level=%s room=%s ", journal_prio[lv], level_name[lv], room)
                       : snprintf(line, cap, "%s %s %s %s: ", when, level_name[lv], l->program, room);
    if (k > 0)
        n = (size_t)k < cap ? (size_t)k : cap - 1;
    va_list ap;
    va_start(ap, fmt);
    k = vsnprintf(line + n, cap - n, fmt, ap);
    va_end(ap);
    if (k > 0)
        n += (size_t)k < cap - n ? (size_t)k : cap - n - 1;
    /* A peer's text must not forge lines or drive a terminal. */
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = ' ';
    line[n++] = '\n';
    ssize_t w = write(l->fd, line, n);
    (void)w; /* a log that cannot be written has nowhere to say so */
}

bool log_limited(struct log_limit *lim, uint64_t now_ns, unsigned per_second, unsigned *suppressed)
{
    *suppressed = 0;
    if (now_ns - lim->window_start_ns >= NS_PER_S) {
        *suppressed = lim->suppressed;
        lim->window_start_ns = now_ns;
        lim->in_window = lim->suppressed = 0;
    }
    if (lim->in_window < per_second) {
        lim->in_window++;
        return true;
    }
    lim->suppressed++;
    return false;
}

int log_level_parse(const char *word, enum log_level *out)
{
    for (unsigned i = 0; i < 4; i++)
        if (!strcmp(word, level_name[i])) {
            *out = (enum log_level)i;
            return ST_OK;
        }
    return ST_EINVAL;
}
