#include "tests/support/oom.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/err.h"

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t max);

/* What the wrapped functions must know and nobody can hand them. */
static struct {
    bool armed, refused;
    unsigned left;
} fault;

static bool refuse(void)
{
    if (!fault.armed || fault.left-- != 0)
        return false;
    fault.armed = false;
    fault.refused = true;
    return true;
}

void *__wrap_malloc(size_t n)
{
    return refuse() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return refuse() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return refuse() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = __wrap_malloc(n);
    return p ? memcpy(p, s, n) : NULL;
}

char *__wrap_strndup(const char *s, size_t max)
{
    size_t n = strnlen(s, max);
    char *p = __wrap_malloc(n + 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

unsigned oom_each(const char *what, int (*act)(void *arg, struct err *e), void *arg, int also)
{
    struct err e = {0};
    (void)act(arg, &e); /* what libraries set up once and keep: refused then, it would be missing for good */
    for (unsigned n = 0;; n++) {
        fault.left = n;
        fault.refused = false;
        fault.armed = true;
        e = (struct err){0};
        int rc = act(arg, &e);
        fault.armed = false;
        if (!fault.refused) {
            if (rc != ST_OK)
                fail_msg("%s without a refusal: %s %s", what, status_name(rc), e.text);
            return n;
        }
        if (rc != ST_OK && rc != ST_ENOMEM && rc != also)
            fail_msg("%s with allocation %u refused: %s %s", what, n + 1, status_name(rc), e.text);
    }
}
