/* The type table and what is read off it. */
#include "common/event/event.h"

#include <string.h>

#include "common/base/str.h"

static const struct event_info table[] = {
#define X(num, name, text, severity, cls, keys) {num, text, EVENT_##severity, EVENT_##cls, keys},
    EVENT_TABLE(X)
#undef X
};
#define TABLE_N (sizeof table / sizeof table[0])

static const char *const severities[] = {"debug", "info", "warning", "error", "critical"};
static const char *const results[] = {"success", "failure", "denied"};

const struct event_info *event_at(size_t i)
{
    return i < TABLE_N ? &table[i] : NULL;
}

/* Where a number stands in the table, plus one; 0 for an unknown number. */
enum {
#define X(num, name, text, severity, cls, keys) ROW_##name,
    EVENT_TABLE(X)
#undef X
};
static const uint16_t row_of[EVENT_TYPE_MAX + 1] = {
#define X(num, name, text, severity, cls, keys) [num] = ROW_##name + 1,
    EVENT_TABLE(X)
#undef X
};

const struct event_info *event_info(int type)
{
    unsigned row = type > 0 && type <= EVENT_TYPE_MAX ? row_of[type] : 0;
    return row ? &table[row - 1] : NULL;
}

const struct event_info *event_by_name(const char *name)
{
    for (size_t i = 0; name && i < TABLE_N; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

const char *event_severity_name(int severity)
{
    return severity >= EVENT_DEBUG && severity <= EVENT_CRITICAL ? severities[severity] : "?";
}

const char *event_result_name(int result)
{
    return result >= EVENT_SUCCESS && result <= EVENT_DENIED ? results[result] : "?";
}

static int word_index(const char *word, const char *const *words, int n, int *out)
{
    for (int i = 0; word && i < n; i++)
        if (strcmp(word, words[i]) == 0) {
            *out = i;
            return ST_OK;
        }
    return ST_EINVAL;
}

int event_severity_parse(const char *word, int *out)
{
    return word_index(word, severities, EVENT_CRITICAL + 1, out);
}

int event_result_parse(const char *word, int *out)
{
    return word_index(word, results, EVENT_DENIED + 1, out);
}

struct audit_event event_make(int type, int result, int64_t time_us)
{
    const struct event_info *info = event_info(type);
    int severity = info ? (int)info->severity : EVENT_INFO;
    if (result != EVENT_SUCCESS && severity < EVENT_WARNING)
        severity = EVENT_WARNING;
    return (struct audit_event){.time_us = time_us, .type = type, .severity = severity, .result = result};
}

enum event_class event_class(const struct audit_event *e)
{
    const struct event_info *info = event_info(e->type);
    if (!info || info->cls == EVENT_MUST || e->result == EVENT_DENIED)
        return EVENT_MUST;
    return e->severity == EVENT_DEBUG ? EVENT_SHED : EVENT_KEEP;
}
