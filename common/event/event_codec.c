/*
 * Encoding, version 1, all integers little-endian:
 *   u8 version | u16 type | u8 severity | u8 result | i64 time_us | 8 × (u16 length | bytes | NUL)
 * with the strings in the order principal, device, node, session, job, operation, error, meta. The NULs let a
 * decoded event be read in place.
 */
#include <string.h>

#include "common/event/event.h"
#include "common/event/event_priv.h"

#define VERSION 1u
#define HEAD 13u
#define NSTR 8u
#define META 7u

static const size_t str_max[NSTR] = {EVENT_NAME_MAX, EVENT_NAME_MAX, EVENT_NAME_MAX,  EVENT_NAME_MAX,
                                     EVENT_NAME_MAX, EVENT_NAME_MAX, EVENT_ERROR_MAX, EVENT_META_MAX};

_Static_assert(HEAD + NSTR * 3 + 6 * EVENT_NAME_MAX + EVENT_ERROR_MAX + EVENT_META_MAX <= EVENT_ENCODED_MAX,
               "an encoded event fits its bound");

size_t event_utf8_len(const uint8_t *p, size_t n)
{
    if (n == 0)
        return 0;
    uint8_t c = p[0];
    if (c < 0x80)
        return 1;
    size_t len = c >= 0xC2 && c <= 0xDF ? 2 : (c & 0xF0) == 0xE0 ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 0;
    if (len == 0 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    if ((c == 0xE0 && p[1] < 0xA0) || (c == 0xED && p[1] > 0x9F) || (c == 0xF0 && p[1] < 0x90) ||
        (c == 0xF4 && p[1] > 0x8F))
        return 0;
    return len;
}

/* How many bytes at p are printable ASCII, at most n: nearly all of what is written, eight at a time. */
static size_t ascii_run(const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (uint64_t v; i + 8 <= n; i += 8) {
        memcpy(&v, p + i, 8);
        uint64_t low =
            (v - 0x2020202020202020u) & 0x8080808080808080u; /* a byte below 0x20, or 0xA0 and up */
        uint64_t del = v ^ 0x7F7F7F7F7F7F7F7Fu;
        del = (del - 0x0101010101010101u) & ~del & 0x8080808080808080u;
        if (low | del | (v & 0x8080808080808080u))
            break;
    }
    while (i < n && p[i] >= 0x20 && p[i] < 0x7F)
        i++;
    return i;
}

/* Length of the clean, cut copy of s in out (cap bytes, without NUL). */
static size_t clean_copy(uint8_t *out, size_t cap, const char *s)
{
    size_t n = strnlen(s, cap + 4), o = ascii_run((const uint8_t *)s, n < cap ? n : cap);
    const uint8_t *p = (const uint8_t *)s;
    memcpy(out, p, o);
    for (size_t i = o; i < n && o < cap;) {
        size_t len = event_utf8_len(p + i, n - i);
        if (len == 0 || p[i] < 0x20 || p[i] == 0x7F) {
            out[o++] = '?';
            i++;
            continue;
        }
        if (o + len > cap)
            break;
        memcpy(out + o, p + i, len);
        o += len;
        i += len;
    }
    return o;
}

static bool clean(const uint8_t *p, size_t n)
{
    for (size_t i = ascii_run(p, n); i < n;) {
        size_t len = event_utf8_len(p + i, n - i);
        if (len == 0 || p[i] < 0x20 || p[i] == 0x7F)
            return false;
        i += len;
    }
    return true;
}

static void put_le(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static bool fields_ok(int type, int severity, int result)
{
    return event_info(type) && severity >= EVENT_DEBUG && severity <= EVENT_CRITICAL &&
           result >= EVENT_SUCCESS && result <= EVENT_DENIED;
}

int event_encode_into(const struct audit_event *e, uint8_t out[EVENT_ENCODED_MAX], size_t *n_out)
{
    if (!fields_ok(e->type, e->severity, e->result))
        return ST_EINVAL;
    size_t meta_len = e->meta ? strnlen(e->meta, EVENT_META_MAX + 1) : 0;
    if (meta_len > EVENT_META_MAX)
        return ST_ELIMIT;
    if (meta_len && !event_json_object_ok(e->meta, meta_len))
        return ST_EINVAL;
    out[0] = VERSION;
    put_le(out + 1, (uint64_t)e->type, 2);
    out[3] = (uint8_t)e->severity;
    out[4] = (uint8_t)e->result;
    put_le(out + 5, (uint64_t)e->time_us, 8);
    size_t at = HEAD;
    const char *s[NSTR] = {e->principal, e->device,    e->node,  e->session,
                           e->job,       e->operation, e->error, e->meta};
    for (unsigned i = 0; i < NSTR; i++) {
        size_t n = 0;
        if (i == META && meta_len)
            memcpy(out + at + 2, e->meta, n = meta_len);
        else if (i != META && s[i])
            n = clean_copy(out + at + 2, str_max[i], s[i]);
        put_le(out + at, n, 2);
        out[at + 2 + n] = 0;
        at += n + 3;
    }
    *n_out = at;
    return ST_OK;
}

int event_encode(const struct audit_event *e, struct buf *out)
{
    uint8_t tmp[EVENT_ENCODED_MAX];
    size_t n;
    int rc = event_encode_into(e, tmp, &n);
    return rc == ST_OK ? buf_append(out, tmp, n) : rc;
}

/* `ours`: encoded by this very process, so only the lengths are looked at. */
static int decode(const uint8_t *p, size_t n, bool ours, struct audit_event *e)
{
    if (n < HEAD || n > EVENT_ENCODED_MAX || p[0] != VERSION)
        return ST_ECORRUPT;
    *e = (struct audit_event){.type = (int)get_le(p + 1, 2),
                              .severity = p[3],
                              .result = p[4],
                              .time_us = (int64_t)get_le(p + 5, 8)};
    if (!fields_ok(e->type, e->severity, e->result))
        return ST_ECORRUPT;
    const char **s[NSTR] = {&e->principal, &e->device,    &e->node,  &e->session,
                            &e->job,       &e->operation, &e->error, &e->meta};
    size_t at = HEAD;
    for (unsigned i = 0; i < NSTR; i++) {
        if (n - at < 3)
            return ST_ECORRUPT;
        size_t len = (size_t)get_le(p + at, 2);
        if (len > str_max[i] || n - at - 3 < len || p[at + 2 + len] != 0)
            return ST_ECORRUPT;
        const uint8_t *text = p + at + 2;
        if (!ours && (i == META ? len && !event_json_object_ok((const char *)text, len) : !clean(text, len)))
            return ST_ECORRUPT;
        *s[i] = (const char *)text;
        at += len + 3;
    }
    return at == n ? ST_OK : ST_ECORRUPT;
}

int event_decode(const uint8_t *p, size_t n, struct audit_event *e)
{
    return decode(p, n, false, e);
}

int event_decode_ours(const uint8_t *p, size_t n, struct audit_event *e)
{
    return decode(p, n, true, e);
}
