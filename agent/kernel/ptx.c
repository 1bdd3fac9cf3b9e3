/* PTX: found in the text are its first directives and the parameters of the entry that is called. */
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "agent/gpu/exec.h"
#include "agent/kernel/kernel.h"

struct text {
    const uint8_t *p, *end;
};
struct token { /* a word, or one other character; n 0: the end */
    const uint8_t *p;
    size_t n;
};

static bool wordly(uint8_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '$' || c == '.' || c == '%';
}

static bool starts(const struct text *t, const char *what)
{
    size_t n = strlen(what);
    return (size_t)(t->end - t->p) >= n && memcmp(t->p, what, n) == 0;
}

/* Past blanks and comments. One that does not end takes the rest. */
static void skip_blank(struct text *t)
{
    while (t->p < t->end) {
        if (*t->p == ' ' || (*t->p >= '\t' && *t->p <= '\r')) {
            t->p++;
        } else if (starts(t, "//")) {
            const uint8_t *nl = memchr(t->p, '\n', (size_t)(t->end - t->p));
            t->p = nl ? nl : t->end;
        } else if (starts(t, "/*")) {
            for (t->p += 2; t->p < t->end && !starts(t, "*/"); t->p++)
                ;
            t->p += t->p < t->end ? 2 : 0;
        } else {
            return;
        }
    }
}

static struct token next(struct text *t)
{
    skip_blank(t);
    struct token k = {t->p, 0};
    while (t->p < t->end && wordly(*t->p))
        t->p++;
    if (t->p == k.p && t->p < t->end)
        t->p++;
    k.n = (size_t)(t->p - k.p);
    return k;
}

static bool is(struct token k, const char *word)
{
    return k.n == strlen(word) && memcmp(k.p, word, k.n) == 0;
}

static bool any(struct token k, const char *const *words)
{
    for (; *words; words++)
        if (is(k, *words))
            return true;
    return false;
}

static int bad(struct err *e, const char *what)
{
    return err_reason(e, ST_EINVAL, "BAD_KERNEL", "the PTX module %s", what);
}

/* ".param .u64 [.ptr …] name" up to the comma or parenthesis; *wide: it has 64 bits. */
static int parameter(struct text *t, struct token *last, bool *wide, struct err *e)
{
    static const char *const w64[] = {".u64", ".s64", ".b64", ".f64", NULL};
    static const char *const w32[] = {".u32", ".s32", ".b32", ".f32", NULL};
    bool typed = false;
    struct token k;
    while ((k = next(t)).n && !is(k, ",") && !is(k, ")")) {
        bool a = any(k, w64), b = any(k, w32);
        if (is(k, "["))
            return err_reason(
                e, ST_EINVAL, "BAD_ARGUMENTS",
                "a parameter of the kernel is an array; it may take numbers and addresses only");
        if ((a || b) && !typed) {
            typed = true;
            *wide = a;
        }
    }
    *last = k;
    return typed && k.n ? ST_OK : bad(e, "has a parameter that is no 32-bit or 64-bit number");
}

/* Behind the entry's name. */
static int parameters(struct text *t, const struct kernel_call *c, struct err *e)
{
    uint32_t n = 0;
    struct token k = next(t);
    if (is(k, "(")) {
        k = next(t);
        while (is(k, ".param")) {
            bool wide = false;
            int rc = parameter(t, &k, &wide, e);
            if (rc < 0)
                return rc;
            if (n++ < c->spans && !wide)
                return err_reason(e, ST_EINVAL, "BAD_ARGUMENTS",
                                  "parameter %" PRIu32
                                  " of the kernel takes a buffer's address and has not 64 bits",
                                  n - 1);
            if (is(k, ","))
                k = next(t);
            else
                break;
        }
        if (!is(k, ")"))
            return bad(e, "has an entry whose parameters do not end");
    }
    if (n != c->spans + c->scalars)
        return err_reason(e, ST_EINVAL, "BAD_ARGUMENTS",
                          "the kernel takes %" PRIu32 " parameters; the call has %" PRIu32
                          " spans and %" PRIu32 " scalars",
                          n, c->spans, c->scalars);
    return ST_OK;
}

int kernel_ptx(const uint8_t *code, size_t n, const struct kernel_call *c, struct err *e)
{
    struct text t = {code, code + n};
    bool seen = false;
    if (!n || n > KERNEL_MAX_BYTES)
        return bad(e, "is empty, or larger than any node takes");
    for (size_t i = 0; i < n; i++)
        if ((code[i] < ' ' && (code[i] < '\t' || code[i] > '\r')) || code[i] > '~')
            return bad(e, "is no ASCII text");
    if (!is(next(&t), ".version"))
        return bad(e, "does not begin with .version");
    for (struct token k; (k = next(&t)).n;) {
        if (!is(k, ".entry") || !is(next(&t), c->entry))
            continue;
        if (seen)
            return bad(e, "has two entries of one name");
        seen = true;
        int rc = parameters(&t, c, e);
        if (rc < 0)
            return rc;
    }
    return seen ? ST_OK : err_reason(e, ST_EINVAL, "NO_ENTRY", "the module has no entry '%s'", c->entry);
}
