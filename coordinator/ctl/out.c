/* What commands print: tables for people, JSON for programs, errors for both. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/str.h"
#include "coordinator/ctl/commands.h"

struct table {
    const char *const *columns;
    size_t ncol, ncell, cap;
    char **cell;
    bool failed;
};

struct table *table_new(const char *const *columns, size_t n)
{
    struct table *t = calloc(1, sizeof *t);
    if (t) {
        t->columns = columns;
        t->ncol = n;
    }
    return t;
}

void table_cell(struct table *t, const char *fmt, ...)
{
    if (!t || t->failed)
        return;
    if (t->ncell == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        char **v = realloc(t->cell, cap * sizeof(*v));
        if (!v) {
            t->failed = true;
            return;
        }
        t->cell = v;
        t->cap = cap;
    }
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&t->cell[t->ncell], fmt, ap) < 0)
        t->failed = true;
    else
        t->ncell++;
    va_end(ap);
}

/* Columns of a UTF-8 string on a terminal, good enough for what we print: one for each code point. */
static size_t width(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += (*s & 0xc0) != 0x80;
    return n;
}

static bool is_number_column(const char *name)
{
    size_t n = strlen(name);
    return n && name[n - 1] == '>';
}

static void pad(FILE *out, size_t n)
{
    while (n--)
        fputc(' ', out);
}

static void print_row(const struct table *t, char *const *row, const size_t *w, FILE *out)
{
    for (size_t c = 0; c < t->ncol; c++) {
        size_t fill = w[c] - width(row[c]);
        bool right = is_number_column(t->columns[c]);
        if (right)
            pad(out, fill);
        fputs(row[c], out);
        if (c + 1 == t->ncol)
            break;
        if (!right)
            pad(out, fill);
        fputs("  ", out);
    }
    fputc('\n', out);
}

void table_print(const struct table *t, FILE *out)
{
    if (!t || t->failed) {
        fputs("strata: out of memory\n", stderr);
        return;
    }
    size_t *w = calloc(t->ncol, sizeof *w);
    char **head = calloc(t->ncol, sizeof(*head));
    for (size_t c = 0; w && head && c < t->ncol; c++) {
        head[c] = strdup(t->columns[c]);
        if (!head[c])
            continue;
        if (is_number_column(head[c]))
            head[c][strlen(head[c]) - 1] = 0;
        w[c] = width(head[c]);
        for (size_t i = c; i < t->ncell; i += t->ncol)
            if (width(t->cell[i]) > w[c])
                w[c] = width(t->cell[i]);
    }
    if (w && head) {
        print_row(t, head, w, out);
        for (size_t i = 0; i + t->ncol <= t->ncell; i += t->ncol)
            print_row(t, &t->cell[i], w, out);
    }
    for (size_t c = 0; head && c < t->ncol; c++)
        free(head[c]);
    free(head);
    free(w);
}

void table_free(struct table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->ncell; i++)
        free(t->cell[i]);
    free(t->cell);
    free(t);
}

int ctl_print_json(const char *schema, json_t *object)
{
    json_t *o = json_object();
    json_object_set_new(o, "schema", json_string(schema));
    if (object)
        json_object_update(o, object);
    int bad =
        json_dumpf(o, stdout, JSON_COMPACT | JSON_ENSURE_ASCII) || putchar('\n') == EOF || fflush(stdout);
    json_decref(o);
    json_decref(object);
    return bad ? 1 : 0;
}

int ctl_fail(const struct ctl *c, const struct err *e)
{
    if (c->json)
        ctl_print_json("strata.error.v1",
                       json_pack("{s:s,s:s,s:s,s:i}", "code", status_name(e->code), "reason", e->reason,
                                 "message", e->text, "exit", status_exit_code(e->code)));
    fprintf(stderr, "strata: %s%s%s%s\n", e->text[0] ? e->text : status_name(e->code),
            e->reason[0] ? " [" : "", e->reason, e->reason[0] ? "]" : "");
    return status_exit_code(e->code);
}

int ctl_client_fail(const struct ctl *c, const struct strata_error *e)
{
    struct err x = {.code = e->code};
    if (!strcmp(e->reason, "INTERRUPTED"))
        return 130;
    str_copy(x.reason, sizeof x.reason, e->reason);
    str_copy(x.text, sizeof x.text, e->text);
    return ctl_fail(c, &x);
}

int ctl_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("strata: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputs("\nTry 'strata help', or the command with --help.\n", stderr);
    va_end(ap);
    return 2;
}

int ctl_misuse(const struct ctl *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("strata: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    ctl_command_usage(c->command, stderr);
    return 2;
}

void ctl_bar(const struct ctl *c, const char *what, uint64_t done, uint64_t total, const char *note)
{
    if (c->quiet || !c->tty)
        return;
    enum { WIDTH = 30 };
    unsigned full = total ? (unsigned)((double)done / (double)total * WIDTH) : WIDTH;
    char a[16], b[16];
    fmt_bytes(a, done);
    fmt_bytes(b, total);
    fprintf(stderr, "\r\033[K%s ", what);
    for (unsigned i = 0; i < WIDTH; i++)
        fputs(i < full ? "█" : "░", stderr);
    fprintf(stderr, " %s/%s %s", a, b, note);
    fflush(stderr);
}

void ctl_bar_end(const struct ctl *c)
{
    if (!c->quiet && c->tty)
        fputc('\n', stderr);
}

int ctl_connect(struct ctl *c)
{
    struct strata_error e;
    if (c->client)
        return 0;
    if (strata_client_open(&c->client, c->dir, c->timeout_ns, &e) < 0)
        return ctl_client_fail(c, &e);
    if (strata_client_notice(c->client)[0] && !c->quiet)
        fprintf(stderr, "strata: %s\n", strata_client_notice(c->client));
    return 0;
}

/* ---- options ---- */

static int take(const struct ctl_opt *o, const char *value)
{
    if (o->value) {
        *o->value = value;
        return 0;
    }
    if (*o->n == o->list_max) {
        ctl_usage("--%s is given more than %zu times", o->name, o->list_max);
        return -1;
    }
    o->list[(*o->n)++] = value;
    return 0;
}

int ctl_parse(int argc, char **argv, const struct ctl_opt *opts, size_t nopts)
{
    int n = 0;
    bool only_operands = false;
    for (int i = 0; i < argc; i++) {
        char *a = argv[i];
        if (only_operands || strncmp(a, "--", 2)) {
            argv[n++] = a;
            continue;
        }
        if (!a[2]) {
            only_operands = true;
            continue;
        }
        char *eq = strchr(a, '=');
        size_t len = eq ? (size_t)(eq - a - 2) : strlen(a + 2);
        const struct ctl_opt *o = NULL;
        for (size_t k = 0; k < nopts; k++)
            if (strlen(opts[k].name) == len && !strncmp(opts[k].name, a + 2, len))
                o = &opts[k];
        if (!o || (o->flag && eq)) {
            ctl_usage(o ? "--%.*s takes no value" : "there is no option --%.*s here", (int)len, a + 2);
            return -1;
        }
        if (o->flag) {
            *o->flag = true;
            continue;
        }
        if (!eq && i + 1 == argc) {
            ctl_usage("--%s needs a value", o->name);
            return -1;
        }
        if (take(o, eq ? eq + 1 : argv[++i]) < 0)
            return -1;
    }
    return n;
}

int ctl_number(const char *word, const char *name, uint64_t max, uint64_t *out)
{
    char *end;
    if (!word)
        return 0;
    unsigned long long v = strtoull(word, &end, 10);
    if (*word < '0' || *word > '9' || *end || v > max)
        return ctl_usage("--%s: '%s' is no number from 0 to %" PRIu64, name, word, max);
    *out = v;
    return 0;
}
