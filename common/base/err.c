/* Errors for people. */
#include "common/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/str.h"

static void fill(struct err *e, int code, const char *reason, const char *fmt, va_list ap)
{
    e->code = code;
    str_copy(e->reason, sizeof e->reason, reason);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        fill(e, code, "", fmt, ap);
        va_end(ap);
    }
    return code;
}

int err_reason(struct err *e, int code, const char *reason, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        fill(e, code, reason, fmt, ap);
        va_end(ap);
    }
    return code;
}

int err_errno(struct err *e, int errnum, const char *fmt, ...)
{
    int code = status_from_errno(errnum);
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        fill(e, code, "", fmt, ap);
        va_end(ap);
        char why[128];
        size_t n = strlen(e->text);
        snprintf(e->text + n, sizeof e->text - n, ": %s", strerror_r(errnum, why, sizeof why));
    }
    return code;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
    if (!e)
        return ST_EINTERNAL;
    char was[sizeof e->text];
    memcpy(was, e->text, sizeof was);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, ": %.*s", (int)(sizeof was - 1), was);
    return e->code;
}
