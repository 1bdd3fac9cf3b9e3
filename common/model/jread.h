/*
 * Strict reading of our JSON files: every defect is reported as "<file>: <path>.<key>: what is wrong".
 * Private to this room. All functions return 0 or the code they put into the error.
 */
#ifndef STRATA_MODEL_JREAD_H
#define STRATA_MODEL_JREAD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/err.h"

#define JREAD_MAX_NUMBER 1e60 /* sums and quotients of such numbers stay finite */

struct jread {
    const char *name; /* the file, for errors */
    struct err *e;    /* may be NULL */
};

enum jread_range { JREAD_NONNEG, JREAD_POSITIVE };

/* Did jansson fail for want of memory? It then often gives no code and no text. */
bool jread_out_of_memory(const json_error_t *je);

/* An object from text; duplicate keys and trailing text are errors. The caller decrefs *root. */
int jread_parse(const struct jread *j, const char *text, size_t n, json_t **root) ST_CHECK;

/* Checks "schema"; absent is an error unless optional. */
int jread_schema(const struct jread *j, const json_t *root, const char *schema, bool optional) ST_CHECK;

/* v is an object (path names it) and has no key outside the NULL-terminated list. */
int jread_object(const struct jread *j, const json_t *v, const char *path, const char *const *keys) ST_CHECK;

/* obj[key] into *out; when the key is absent, *out = *def, or an error if def is NULL. */
int jread_number(const struct jread *j, const json_t *obj, const char *path, const char *key,
                 enum jread_range range, const double *def, double *out) ST_CHECK;
/* The same for a whole number in [min, max]. */
int jread_whole(const struct jread *j, const json_t *obj, const char *path, const char *key, double min,
                double max, const double *def, double *out) ST_CHECK;
/* A number that stands by itself, such as an element of a list. */
int jread_number_value(const struct jread *j, const json_t *v, const char *path, enum jread_range range,
                       double *out) ST_CHECK;

/* A non-empty string, borrowed from obj; NULL in *out when absent and not mandatory. */
int jread_string(const struct jread *j, const json_t *obj, const char *path, const char *key, bool mandatory,
                 const char **out) ST_CHECK;
/* A list; NULL in *out when absent and not mandatory. */
int jread_list(const struct jread *j, const json_t *obj, const char *path, const char *key, bool mandatory,
               const json_t **out) ST_CHECK;
/* A list of non-empty strings, copied. Absent = none. *out is freed with jread_free_strings. */
int jread_strings(const struct jread *j, const json_t *obj, const char *path, const char *key, char ***out,
                  size_t *n) ST_CHECK;
void jread_free_strings(char **v, size_t n);

/* "<file>: <path><.key>: <message>" with ST_EINVAL. key may be NULL. */
int jread_fail(const struct jread *j, const char *path, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
int jread_nomem(const struct jread *j);

/* A number as JSON: whole numbers below 2^53 without a fraction, others with 17 digits. */
int jwrite_number(struct buf *out, double v) ST_CHECK;
/* A string as JSON with quotes. */
int jwrite_string(struct buf *out, const char *s) ST_CHECK;

#endif
