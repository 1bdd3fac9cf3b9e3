/* Strict JSON reading; see jread.h. */
#include "common/model/jread.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TWO53 9007199254740992.0

int jread_fail(const struct jread *j, const char *path, const char *key, const char *fmt, ...)
{
    char msg[360];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return err_set(j->e, ST_EINVAL, "%.120s: %.96s%s%.60s%s%s", j->name, path, *path && key ? "." : "",
                   key ? key : "", *path || key ? ": " : "", msg);
}

int jread_nomem(const struct jread *j)
{
    return err_set(j->e, ST_ENOMEM, "%.200s: not enough memory to read it", j->name);
}

bool jread_out_of_memory(const json_error_t *je)
{
    return json_error_code(je) == json_error_out_of_memory || !*je->text;
}

int jread_parse(const struct jread *j, const char *text, size_t n, json_t **root)
{
    json_error_t je;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    if (!v)
        return jread_out_of_memory(&je) ? jread_nomem(j)
                                        : err_set(j->e, ST_EINVAL, "%.200s: line %d, column %d: %s", j->name,
                                                  je.line, je.column, je.text);
    if (!json_is_object(v)) {
        json_decref(v);
        return err_set(j->e, ST_EINVAL, "%.200s: the file must hold one JSON object", j->name);
    }
    *root = v;
    return ST_OK;
}

int jread_schema(const struct jread *j, const json_t *root, const char *schema, bool optional)
{
    const char *s;
    int rc = jread_string(j, root, "", "schema", !optional, &s);
    if (rc < 0)
        return rc;
    if (s && strcmp(s, schema))
        return jread_fail(j, "", "schema", "is \"%.60s\" but must be \"%s\"", s, schema);
    return ST_OK;
}

int jread_object(const struct jread *j, const json_t *v, const char *path, const char *const *keys)
{
    if (!json_is_object(v))
        return jread_fail(j, path, NULL, "must be an object");
    const char *k;
    json_t *x;
    json_object_foreach((json_t *)v, k, x)
    {
        size_t i = 0;
        while (keys[i] && strcmp(keys[i], k))
            i++;
        if (keys[i])
            continue;
        char known[300];
        size_t len = 0;
        known[0] = 0;
        for (i = 0; keys[i] && len < sizeof known - 40; i++)
            len += (size_t)snprintf(known + len, sizeof known - len, "%s%s", i ? " " : "", keys[i]);
        return jread_fail(j, path, k, "unknown key; known here are: %s", known);
    }
    return ST_OK;
}

int jread_number_value(const struct jread *j, const json_t *v, const char *path, enum jread_range range,
                       double *out)
{
    if (!json_is_number(v))
        return jread_fail(j, path, NULL, "must be a number");
    double d = json_number_value(v);
    if (!isfinite(d) || fabs(d) > JREAD_MAX_NUMBER)
        return jread_fail(j, path, NULL, "%g is too large; numbers go up to 1e60", d);
    if (range == JREAD_NONNEG && d < 0)
        return jread_fail(j, path, NULL, "%g is negative; it must be zero or more", d);
    if (range == JREAD_POSITIVE && !(d >= 1 / JREAD_MAX_NUMBER))
        return jread_fail(j, path, NULL,
                          d > 0 ? "%g is too small; it must be at least 1e-60" : "%g is not above zero", d);
    *out = d == 0 ? 0 : d; /* no negative zero */
    return ST_OK;
}

static void join(char *out, size_t cap, const char *path, const char *key)
{
    snprintf(out, cap, "%s%s%s", path, *path ? "." : "", key);
}

int jread_number(const struct jread *j, const json_t *obj, const char *path, const char *key,
                 enum jread_range range, const double *def, double *out)
{
    const json_t *v = json_object_get(obj, key);
    if (!v) {
        if (!def)
            return jread_fail(j, path, key, "missing mandatory key");
        *out = *def;
        return ST_OK;
    }
    char full[160];
    join(full, sizeof full, path, key);
    return jread_number_value(j, v, full, range, out);
}

int jread_whole(const struct jread *j, const json_t *obj, const char *path, const char *key, double min,
                double max, const double *def, double *out)
{
    double d = 0;
    int rc = jread_number(j, obj, path, key, JREAD_NONNEG, def, &d);
    if (rc < 0)
        return rc;
    if (json_object_get(obj, key) && (d != floor(d) || d < min || d > max))
        return jread_fail(j, path, key, "%g must be a whole number from %.0f to %.0f", d, min, max);
    *out = d;
    return ST_OK;
}

int jread_string(const struct jread *j, const json_t *obj, const char *path, const char *key, bool mandatory,
                 const char **out)
{
    const json_t *v = json_object_get(obj, key);
    *out = NULL;
    if (!v)
        return mandatory ? jread_fail(j, path, key, "missing mandatory key") : ST_OK;
    if (!json_is_string(v) || json_string_length(v) == 0)
        return jread_fail(j, path, key, "must be a string that is not empty");
    *out = json_string_value(v);
    return ST_OK;
}

int jread_list(const struct jread *j, const json_t *obj, const char *path, const char *key, bool mandatory,
               const json_t **out)
{
    const json_t *v = json_object_get(obj, key);
    *out = NULL;
    if (!v)
        return mandatory ? jread_fail(j, path, key, "missing mandatory key") : ST_OK;
    if (!json_is_array(v))
        return jread_fail(j, path, key, "must be a list");
    *out = v;
    return ST_OK;
}

void jread_free_strings(char **v, size_t n)
{
    for (size_t i = 0; v && i < n; i++)
        free(v[i]);
    free(v);
}

int jread_strings(const struct jread *j, const json_t *obj, const char *path, const char *key, char ***out,
                  size_t *n)
{
    const json_t *v;
    int rc = jread_list(j, obj, path, key, false, &v);
    *out = NULL;
    *n = 0;
    if (rc < 0 || !v || !json_array_size(v))
        return rc;
    size_t count = json_array_size(v);
    char **s = calloc(count, sizeof *s);
    if (!s)
        return jread_nomem(j);
    for (size_t i = 0; i < count; i++) {
        const json_t *x = json_array_get(v, i);
        if (!json_is_string(x) || json_string_length(x) == 0) {
            char at[96];
            snprintf(at, sizeof at, "%.60s[%zu]", key, i);
            rc = jread_fail(j, path, at, "must be a string that is not empty");
            goto fail;
        }
        if (!(s[i] = strdup(json_string_value(x)))) {
            rc = jread_nomem(j);
            goto fail;
        }
    }
    *out = s;
    *n = count;
    return ST_OK;
fail:
    jread_free_strings(s, count);
    return rc;
}

int jwrite_number(struct buf *out, double v)
{
    if (v == floor(v) && fabs(v) < TWO53)
        return buf_printf(out, "%" PRId64, (int64_t)v);
    return buf_printf(out, "%.17g", v);
}

int jwrite_string(struct buf *out, const char *s)
{
    json_t *v = json_string(s);
    if (!v)
        return ST_EINVAL; /* not UTF-8, or no memory */
    char *t = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    json_decref(v);
    if (!t)
        return ST_ENOMEM;
    int rc = buf_append(out, t, strlen(t));
    free(t);
    return rc;
}
