/* JSON: a validator for metadata that came from elsewhere, the builder for our own, and events as JSON lines.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/event/event.h"
#include "common/event/event_priv.h"

#define DEPTH_MAX 16

struct scan {
    const uint8_t *p, *end;
};

static void skip_space(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
        s->p++;
}

static bool take(struct scan *s, uint8_t c)
{
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

static bool is_hex(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool scan_string(struct scan *s)
{
    if (!take(s, '"'))
        return false;
    while (s->p < s->end && *s->p != '"') {
        if (*s->p == '\\') {
            s->p++;
            if (s->p == s->end)
                return false;
            uint8_t c = *s->p++;
            if (c == 'u') {
                for (int i = 0; i < 4; i++)
                    if (s->p == s->end || !is_hex(*s->p++))
                        return false;
            } else if (!c || !strchr("\"\\/bfnrt", c)) {
                return false;
            }
            continue;
        }
        if (*s->p >= 0x20 && *s->p < 0x80) {
            s->p++;
            continue;
        }
        size_t len = *s->p < 0x20 ? 0 : event_utf8_len(s->p, (size_t)(s->end - s->p));
        if (len == 0)
            return false;
        s->p += len;
    }
    return take(s, '"');
}

static bool scan_digits(struct scan *s)
{
    const uint8_t *start = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return s->p > start;
}

static bool scan_number(struct scan *s)
{
    take(s, '-');
    if (!take(s, '0') && !scan_digits(s))
        return false;
    if (take(s, '.') && !scan_digits(s))
        return false;
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '+'))
            take(s, '-');
        return scan_digits(s);
    }
    return true;
}

static bool scan_word(struct scan *s, const char *w)
{
    size_t n = strlen(w);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, w, n) != 0)
        return false;
    s->p += n;
    return true;
}

static bool scan_value(struct scan *s, int depth);

/* The members between the brackets that `open` and `close` are. */
static bool scan_members(struct scan *s, uint8_t open, uint8_t close, int depth)
{
    if (!take(s, open) || depth > DEPTH_MAX)
        return false;
    skip_space(s);
    if (take(s, close))
        return true;
    for (;;) {
        skip_space(s);
        if (open == '{') {
            if (!scan_string(s))
                return false;
            skip_space(s);
            if (!take(s, ':'))
                return false;
            skip_space(s);
        }
        if (!scan_value(s, depth))
            return false;
        skip_space(s);
        if (take(s, close))
            return true;
        if (!take(s, ','))
            return false;
    }
}

static bool scan_value(struct scan *s, int depth)
{
    if (s->p == s->end)
        return false;
    switch (*s->p) {
    case '{':
        return scan_members(s, '{', '}', depth + 1);
    case '[':
        return scan_members(s, '[', ']', depth + 1);
    case '"':
        return scan_string(s);
    case 't':
        return scan_word(s, "true");
    case 'f':
        return scan_word(s, "false");
    case 'n':
        return scan_word(s, "null");
    default:
        return scan_number(s);
    }
}

bool event_json_object_ok(const char *text, size_t n)
{
    struct scan s = {(const uint8_t *)text, (const uint8_t *)text + n};
    skip_space(&s);
    if (!scan_members(&s, '{', '}', 1))
        return false;
    skip_space(&s);
    return s.p == s.end;
}

int event_json_string(struct buf *out, const char *text)
{
    size_t n = strlen(text), from = 0;
    const uint8_t *p = (const uint8_t *)text;
    int rc = buf_append(out, "\"", 1);
    for (size_t i = 0; rc == ST_OK && i < n;) {
        size_t len = event_utf8_len(p + i, n - i);
        if (len && p[i] >= 0x20 && p[i] != '"' && p[i] != '\\') {
            i += len;
            continue;
        }
        char esc[8];
        int k = len == 0       ? snprintf(esc, sizeof esc, "\\ufffd")
                : p[i] >= 0x20 ? snprintf(esc, sizeof esc, "\\%c", p[i])
                               : snprintf(esc, sizeof esc, "\\u%04x", p[i]);
        rc = buf_append(out, text + from, i - from);
        if (rc == ST_OK)
            rc = buf_append(out, esc, (size_t)k);
        from = ++i;
    }
    if (rc == ST_OK)
        rc = buf_append(out, text + from, n - from);
    return rc == ST_OK ? buf_append(out, "\"", 1) : rc;
}

int event_json(const struct audit_event *e, struct buf *out)
{
    const struct event_info *info = event_info(e->type);
    char when[28];
    clock_rfc3339(e->time_us, when);
    int rc = buf_printf(out,
                        "{\"id\":%lld,\"time\":\"%s\",\"time_us\":%lld,\"type\":\"%s\",\"severity\":\"%s\","
                        "\"result\":\"%s\"",
                        (long long)e->id, when, (long long)e->time_us, info ? info->name : "?",
                        event_severity_name(e->severity), event_result_name(e->result));
    const struct {
        const char *key, *value;
    } s[] = {{"principal", e->principal}, {"device", e->device}, {"node", e->node},
             {"session", e->session},     {"job", e->job},       {"operation", e->operation},
             {"error", e->error}};
    for (size_t i = 0; rc >= 0 && i < sizeof s / sizeof s[0]; i++) {
        if (!s[i].value || !s[i].value[0])
            continue;
        rc = buf_printf(out, ",\"%s\":", s[i].key);
        if (rc >= 0)
            rc = event_json_string(out, s[i].value);
    }
    if (rc >= 0 && e->meta && e->meta[0]) {
        rc = buf_append(out, ",\"meta\":", 8);
        if (rc >= 0)
            rc = buf_append(out, e->meta, strlen(e->meta));
    }
    return rc >= 0 ? buf_append(out, "}", 1) : rc;
}

/* ---- the builder ---- */

static bool meta_key(struct event_meta *m, const char *key)
{
    if (m->rc < 0)
        return false;
    m->b.limit = EVENT_META_MAX - 1; /* leaves room for the brace that event_meta_text() adds */
    m->rc = buf_append(&m->b, m->b.len ? "," : "{", 1);
    if (m->rc >= 0)
        m->rc = event_json_string(&m->b, key);
    if (m->rc >= 0)
        m->rc = buf_append(&m->b, ":", 1);
    return m->rc >= 0;
}

void event_meta_str(struct event_meta *m, const char *key, const char *value)
{
    if (meta_key(m, key))
        m->rc = value ? event_json_string(&m->b, value) : buf_append(&m->b, "null", 4);
}

void event_meta_u64(struct event_meta *m, const char *key, uint64_t value)
{
    if (meta_key(m, key))
        m->rc = buf_printf(&m->b, "%llu", (unsigned long long)value);
}

void event_meta_i64(struct event_meta *m, const char *key, int64_t value)
{
    if (meta_key(m, key))
        m->rc = buf_printf(&m->b, "%lld", (long long)value);
}

void event_meta_f64(struct event_meta *m, const char *key, double value)
{
    if (meta_key(m, key))
        m->rc = isfinite(value) ? buf_printf(&m->b, "%.9g", value) : buf_append(&m->b, "null", 4);
}

void event_meta_bool(struct event_meta *m, const char *key, bool value)
{
    if (meta_key(m, key))
        m->rc = buf_append(&m->b, value ? "true" : "false", value ? 4 : 5);
}

const char *event_meta_text(struct event_meta *m)
{
    if (m->rc < 0 || m->b.len == 0)
        return NULL;
    m->b.limit = EVENT_META_MAX;
    if (buf_append(&m->b, "}", 1) < 0)
        return NULL;
    const char *text = buf_cstr(&m->b);
    m->b.len--; /* the object stays open: more may be added and the text taken again */
    return text;
}

void event_meta_fini(struct event_meta *m)
{
    buf_fini(&m->b);
    m->rc = 0;
}
