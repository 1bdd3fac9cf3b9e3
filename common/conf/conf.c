#include "common/conf/conf.h"

#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "common/base/buf.h"
#include "common/base/fs.h"
#include "common/base/str.h"

/* What libcyaml's log told: it writes what is wrong, then "Backtrace:", then a line for each level, innermost
 * first. */
struct findings {
    char what[300], where[200];
    unsigned line, column; /* from 1; 0 = it did not say */
    unsigned levels;
};

static void note_position(struct findings *f, const char *text)
{
    const char *p = strstr(text, "(line: ");
    if (p)
        (void)sscanf(p, "(line: %u, column: %u", &f->line, &f->column);
}

/* "  in mapping field 'tls' (line: 4, column: 3)": the names of the fields make the path of the key. */
static void note_level(struct findings *f, const char *text)
{
    if (!f->levels++)
        note_position(f, text);
    const char *open = strchr(text, '\'');
    const char *close = open ? strchr(open + 1, '\'') : NULL;
    if (!close)
        return;
    char outer[sizeof f->where];
    int n = snprintf(outer, sizeof outer, "%.*s%s%s", (int)(close - open - 1), open + 1, *f->where ? "." : "",
                     f->where);
    if (n > 0 && (size_t)n < sizeof outer)
        memcpy(f->where, outer, (size_t)n + 1);
}

static void listen(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    (void)level;
    struct findings *f = ctx;
    char line[300];
    vsnprintf(line, sizeof line, fmt, args);
    line[strcspn(line, "\n")] = 0;
    const char *p = str_starts(line, "Load: ") ? line + 6 : line;
    if (str_starts(p, "  in "))
        note_level(f, p);
    else if (!*f->what) {
        snprintf(f->what, sizeof f->what, "%s", p);
        note_position(f, p);
    }
}

static bool after(const yaml_mark_t *m, unsigned line, unsigned column)
{
    return m->line + 1 > line || (m->line + 1 == line && m->column + 1 > column);
}

/* libcyaml gives the position of the last thing it took, which for an unknown key is the value before it:
 * the key itself is the next scalar of that name. */
static void find_key(struct findings *f, const uint8_t *text, size_t n, const char *key)
{
    yaml_parser_t p;
    if (!yaml_parser_initialize(&p))
        return;
    yaml_parser_set_input_string(&p, text, n);
    for (bool more = true; more;) {
        yaml_event_t ev;
        if (!yaml_parser_parse(&p, &ev))
            break;
        if (ev.type == YAML_SCALAR_EVENT && after(&ev.start_mark, f->line, f->column) &&
            strcmp((const char *)ev.data.scalar.value, key) == 0) {
            f->line = (unsigned)ev.start_mark.line + 1;
            f->column = (unsigned)ev.start_mark.column + 1;
            more = false;
        }
        more = more && ev.type != YAML_STREAM_END_EVENT;
        yaml_event_delete(&ev);
    }
    yaml_parser_delete(&p);
}

static int refuse(const char *name, struct findings *f, cyaml_err_t bad, const uint8_t *text, size_t n,
                  struct err *e)
{
    static const char unknown[] = "Unexpected key: ";
    /* libyaml has no words for a lack of memory, and libcyaml prints the ones it does not have. */
    bool wordless = bad == CYAML_ERR_LIBYAML_PARSER && strstr(f->what, "(null)");
    if (bad == CYAML_ERR_OOM || bad == CYAML_ERR_LIBYAML_PARSER_INIT || wordless)
        return err_set(e, ST_ENOMEM, "no memory to read %s", name);
    char at[32] = "", in[220] = "";
    if (str_starts(f->what, unknown)) {
        char key[sizeof f->what];
        snprintf(key, sizeof key, "%s", f->what + sizeof unknown - 1);
        find_key(f, text, n, key);
        snprintf(f->what, sizeof f->what, "unknown key '%.200s'", key);
    }
    if (f->line)
        snprintf(at, sizeof at, ":%u:%u", f->line, f->column);
    if (*f->where)
        snprintf(in, sizeof in, ", in '%s'", f->where);
    return err_set(e, ST_ECONFIG, "%s%s: %s%s", name, at, *f->what ? f->what : cyaml_strerror(bad), in);
}

static cyaml_config_t settings(struct findings *f)
{
    return (cyaml_config_t){
        .log_fn = listen,
        .log_ctx = f,
        .log_level = CYAML_LOG_ERROR,
        .mem_fn = cyaml_mem,
        .flags = CYAML_CFG_NO_ALIAS,
    };
}

int conf_parse(const char *name, const uint8_t *text, size_t n, const cyaml_schema_value_t *schema,
               void **out, struct err *e)
{
    struct findings f = {0};
    const cyaml_config_t cfg = settings(&f);
    cyaml_data_t *data = NULL;
    *out = NULL;
    cyaml_err_t bad = cyaml_load_data(text ? text : (const uint8_t *)"", n, &cfg, schema, &data, NULL);
    if (bad != CYAML_OK)
        return refuse(name, &f, bad, text, n, e);
    if (!data)
        return err_set(e, ST_ECONFIG, "%s: no yaml document in it: the file is empty", name);
    *out = data;
    return ST_OK;
}

int conf_read(const char *path, size_t max, const cyaml_schema_value_t *schema, void **out, struct err *e)
{
    struct buf text = {0};
    *out = NULL;
    int rc = fs_read(path, max, &text, e);
    if (rc == ST_OK)
        rc = conf_parse(path, text.data, text.len, schema, out, e);
    buf_fini(&text);
    return rc;
}

void conf_free(const cyaml_schema_value_t *schema, void *data)
{
    struct findings f = {0};
    const cyaml_config_t cfg = settings(&f);
    cyaml_free(&cfg, schema, data, 0);
}
