/* Strings, sizes, durations. */
#include "common/base/str.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

bool str_copy(char *dst, size_t cap, const char *src)
{
    size_t n = strlen(src), k = n < cap ? n : cap - 1;
    memcpy(dst, src, k);
    dst[k] = 0;
    return n < cap;
}

bool str_starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_glob(const char *pattern, const char *s)
{
    const char *star = NULL, *back = NULL;
    while (*s) {
        if (*pattern == '*') {
            star = pattern++;
            back = s;
        } else if (*pattern == *s) {
            pattern++;
            s++;
        } else if (star) {
            pattern = star + 1;
            s = ++back;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return !*pattern;
}

void hex_encode(char *out, const uint8_t *p, size_t n)
{
    static const char d[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = d[p[i] >> 4];
        out[2 * i + 1] = d[p[i] & 15];
    }
    out[2 * n] = 0;
}

static int nibble(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

int hex_decode(uint8_t *out, size_t cap, const char *hex, size_t *n)
{
    size_t len = strlen(hex);
    if (len % 2 || len / 2 > cap)
        return ST_EINVAL;
    for (size_t i = 0; i < len / 2; i++) {
        int a = nibble(hex[2 * i]), b = nibble(hex[2 * i + 1]);
        if (a < 0 || b < 0)
            return ST_EINVAL;
        out[i] = (uint8_t)(a << 4 | b);
    }
    *n = len / 2;
    return ST_OK;
}

void fmt_bytes(char out[16], uint64_t n)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)n;
    unsigned u = 0;
    for (; v >= 1023.95 && u < 6; u++)
        v /= 1024;
    if (u == 0)
        snprintf(out, 16, "%" PRIu64 " B", n);
    else
        snprintf(out, 16, "%.1f %s", v, unit[u]);
}

void fmt_seconds(char out[16], double s)
{
    double a = fabs(s);
    if (!isfinite(s))
        snprintf(out, 16, "-");
    else if (a < 1e-6)
        snprintf(out, 16, "%.0f ns", s * 1e9);
    else if (a < 1e-3)
        snprintf(out, 16, "%.1f us", s * 1e6);
    else if (a < 1)
        snprintf(out, 16, "%.1f ms", s * 1e3);
    else if (a < 1e6)
        snprintf(out, 16, "%.1f s", s);
    else if (a < 1e11)
        snprintf(out, 16, "%.0f d", s / 86400);
    else
        snprintf(out, 16, "%.3g s", s);
}

struct unit {
    const char *word;
    uint64_t mul;
};

static int parse_unit(const char *s, const struct unit *u, size_t n, uint64_t *out)
{
    if (!isdigit((unsigned char)*s))
        return ST_EINVAL;
    char *end;
    errno = 0;
    double v = strtod(s, &end);
    if (errno || !isfinite(v) || v < 0 || end == s)
        return ST_EINVAL;
    for (const char *p = s; p < end; p++)
        if (!isdigit((unsigned char)*p) && *p != '.')
            return ST_EINVAL; /* no exponents, no hexadecimal */
    for (size_t i = 0; i < n; i++)
        if (!strcmp(end, u[i].word)) {
            double r = v * (double)u[i].mul;
            if (r >= 18446744073709549568.0)
                return ST_ELIMIT;
            *out = (uint64_t)(r + 0.5);
            return ST_OK;
        }
    return ST_EINVAL;
}

int parse_bytes(const char *s, uint64_t *out)
{
    static const struct unit u[] = {
        {"", 1},
        {"B", 1},
        {"K", 1ull << 10},
        {"KiB", 1ull << 10},
        {"KB", 1000},
        {"M", 1ull << 20},
        {"MiB", 1ull << 20},
        {"MB", 1000000},
        {"G", 1ull << 30},
        {"GiB", 1ull << 30},
        {"GB", 1000000000},
        {"T", 1ull << 40},
        {"TiB", 1ull << 40},
        {"TB", 1000000000000},
    };
    return parse_unit(s, u, sizeof u / sizeof *u, out);
}

int parse_duration_ns(const char *s, uint64_t *out)
{
    static const struct unit u[] = {
        {"ns", 1},          {"us", 1000},         {"ms", 1000000},       {"s", 1000000000},
        {"m", 60000000000}, {"h", 3600000000000}, {"d", 86400000000000},
    };
    return parse_unit(s, u, sizeof u / sizeof *u, out);
}

bool str_ident_ok(const char *s, size_t max)
{
    size_t n = strlen(s);
    if (!n || n > max || !isalnum((unsigned char)s[0]))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i]))
            return false;
    return true;
}
