/*
 * Errors for people: a status, a stable reason in capitals for programs, and a sentence that names the thing,
 * why it failed and what to do next. Used on set-up, configuration and request paths; hot paths return codes.
 */
#ifndef STRATA_BASE_ERR_H
#define STRATA_BASE_ERR_H

#include "common/base/status.h"

struct err {
    int code;        /* enum status */
    char reason[40]; /* such as "NO_POLICY"; empty when the code says it all */
    char text[600];  /* one sentence, no newline */
};

/* Fills *e (may be NULL) and returns code, so that `return err_set(e, ST_EIO, …)` reads well. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same with a stable reason. */
int err_reason(struct err *e, int code, const char *reason, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* As err_set with ": <strerror(errnum)>" appended and the code taken from errnum. */
int err_errno(struct err *e, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "<prefix>: " before the text that is there. Returns e->code. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
