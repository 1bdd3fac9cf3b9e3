/* audit verify and audit export: the audit store as a file, and out of it. */
#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/fs.h"
#include "common/base/str.h"
#include "coordinator/audit/audit.h"
#include "coordinator/ctl/auditcmd.h"

/* ---- verify ---- */

#define WITNESS_MAX (1u << 20)

static int by_size(const void *a, const void *b)
{
    const struct audit_head *x = a, *y = b;
    return (x->size > y->size) - (x->size < y->size);
}

static bool head_line(const char *line, struct audit_head *h)
{
    char hex[65] = "", id[33] = "", sig[129] = "";
    long long size = 0, t = 0;
    size_t n = 0, ns = 0;
    *h = (struct audit_head){0};
    int got = sscanf(line, "%lld%*[ :]%64[0-9a-f] %lld %32s %128[0-9a-f]", &size, hex, &t, id, sig);
    if (got < 2 || size <= 0 || hex_decode(h->head, 32, hex, &n) < 0 || n != 32)
        return false;
    h->size = size;
    h->ts_us = t;
    str_copy(h->key_id, sizeof h->key_id, id);
    if (sig[0] && hex_decode(h->sig, sizeof h->sig, sig, &ns) == ST_OK)
        h->sig_len = ns;
    return true;
}

/* SIZE:HEX, or a witness file with a head a line. Heads that the key did not sign are no witnesses. */
static int read_heads(const char *word, const uint8_t *pub, struct audit_head **out, size_t *n, struct err *e)
{
    struct buf b = {0};
    int rc = strchr(word, ':') && !fs_exists(word) ? buf_append(&b, word, strlen(word))
                                                   : fs_read(word, WITNESS_MAX, &b, e);
    char *text = rc == ST_OK ? strdup(buf_cstr(&b)) : NULL, *rest = text;
    buf_fini(&b);
    if (rc < 0)
        return rc;
    size_t cap = 0;
    for (char *line; text && (line = strsep(&rest, "\n"));) {
        struct audit_head h;
        if (!*line)
            continue;
        if (!head_line(line, &h)) {
            rc = err_set(e, ST_EINVAL, "'%.60s' is no head of an audit chain: SIZE:HEX, or a witness file",
                         line);
            break;
        }
        if (pub && h.sig_len && !audit_head_ok(pub, &h))
            continue;
        if (*n == cap) {
            cap = cap ? cap * 2 : 64;
            struct audit_head *v = realloc(*out, cap * sizeof *v);
            if (!v) {
                rc = err_set(e, ST_ENOMEM, "no memory for the witnessed heads");
                break;
            }
            *out = v;
        }
        (*out)[(*n)++] = h;
    }
    free(text);
    if (rc == ST_OK && *n)
        qsort(*out, *n, sizeof **out, by_size);
    return rc;
}

/* The key named, or the one beside the file. */
static int read_key(const char *named, const char *file, uint8_t pub[AUDIT_PUBLIC], bool *have, struct err *e)
{
    char beside[1100];
    const char *slash = strrchr(file, '/');
    snprintf(beside, sizeof beside, "%.*saudit.pub", slash ? (int)(slash - file) + 1 : 0, file);
    *have = named || fs_exists(beside);
    return *have ? audit_public_read(named ? named : beside, pub, e) : ST_OK;
}

static void print_verdict(const struct ctl *c, const struct audit_verdict *v, bool signatures, size_t heads)
{
    char hex[65];
    hex_encode(hex, v->head, 32);
    if (c->json)
        ctl_print_json("strata.audit.verify.v1",
                       json_pack("{s:b,s:I,s:I,s:I,s:I,s:I,s:b,s:I,s:s,s:s,s:I,s:I,s:I,s:I}", "whole",
                                 !v->broken, "batches", (json_int_t)v->batches, "rows", (json_int_t)v->rows,
                                 "first", (json_int_t)v->first, "checkpoints", (json_int_t)v->checkpoints,
                                 "sealed_files", (json_int_t)v->files, "signatures_checked", (int)signatures,
                                 "witnessed_heads", (json_int_t)heads, "head", hex, "why", v->why,
                                 "bad_first", (json_int_t)v->bad_first, "bad_last", (json_int_t)v->bad_last,
                                 "bad_since_us", (json_int_t)v->bad_since_us, "bad_until_us",
                                 (json_int_t)v->bad_until_us));
    else if (v->broken)
        printf("chain BROKEN at rows %lld-%lld: %s\n", (long long)v->bad_first, (long long)v->bad_last,
               v->why);
    else
        printf(
            "chain ok: %llu rows from %lld on in %llu batches, %llu checkpoints (%s), %llu sealed files, %zu "
            "witnessed heads, head %.12s…\n",
            (unsigned long long)v->rows, (long long)v->first, (unsigned long long)v->batches,
            (unsigned long long)v->checkpoints,
            signatures ? "signatures checked" : "signatures not checked: no key",
            (unsigned long long)v->files, heads, hex);
}

int ctl_audit_verify(struct ctl *c, int argc, char **argv)
{
    const char *file = NULL, *since = NULL, *head = NULL, *key = NULL;
    bool alone = false;
    const struct ctl_opt opts[] = {{.name = "file", .value = &file},
                                   {.name = "since", .value = &since},
                                   {.name = "head", .value = &head},
                                   {.name = "key", .value = &key},
                                   {.name = "alone", .flag = &alone}};
    if (ctl_parse(argc, argv, opts, sizeof opts / sizeof *opts) != 0 || !file)
        return ctl_misuse(c, "audit verify needs the file");
    struct audit_verify_opts o = {.alone = alone};
    struct audit_head *heads = NULL;
    struct audit_checker checker;
    struct audit_verdict v = {0};
    struct err e = {0};
    uint8_t pub[AUDIT_PUBLIC];
    bool have = false;
    if (ctl_moment(since, "since", &o.since_us))
        return 2;
    int rc = read_key(key, file, pub, &have, &e);
    if (rc == ST_OK && have) {
        checker = audit_checker_public(pub);
        o.checker = &checker;
    }
    if (rc == ST_OK && head)
        rc = read_heads(head, have ? pub : NULL, &heads, &o.n_witnessed, &e);
    o.witnessed = heads;
    if (rc == ST_OK)
        rc = audit_verify(file, &o, &v, &e);
    free(heads);
    if (rc < 0 && !v.broken)
        return ctl_fail(c, &e);
    print_verdict(c, &v, have, o.n_witnessed);
    return v.broken ? 13 : 0;
}

/* ---- export ---- */

enum format { JSON_LINES, CSV, SQLITE };

struct export
{
    const struct ctl *c;
    enum format format;
    FILE *out;
    sqlite3 *db;
    sqlite3_stmt *insert;
    uint64_t rows;
    struct buf line;
};

static const char *const columns[] = {"id",     "time", "time_us", "type", "severity",  "result", "principal",
                                      "device", "node", "session", "job",  "operation", "error",  "meta"};
#define COLUMNS (sizeof columns / sizeof *columns)

static int csv_cell(struct buf *b, const char *s)
{
    if (!strpbrk(s, ",\"\r\n"))
        return buf_append(b, s, strlen(s));
    int rc = buf_append(b, "\"", 1);
    for (; *s && rc == ST_OK; s++)
        rc = *s == '"' ? buf_append(b, "\"\"", 2) : buf_append(b, s, 1);
    return rc == ST_OK ? buf_append(b, "\"", 1) : rc;
}

static int sqlite_failed(struct export *x, struct err *e)
{
    return err_set(e, ST_EIO, "the exported file cannot be written: %s", sqlite3_errmsg(x->db));
}

static int sqlite_open(struct export *x, const char *path, struct err *e)
{
    if (fs_exists(path))
        return err_set(e, ST_EEXIST, "%s is there already: name another file", path);
    if (sqlite3_open(path, &x->db) != SQLITE_OK ||
        sqlite3_exec(
            x->db,
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE audit(id INTEGER PRIMARY KEY, time TEXT NOT NULL, time_us INTEGER NOT NULL, type "
            "TEXT "
            "NOT NULL, severity TEXT NOT NULL, result TEXT NOT NULL, principal TEXT, device TEXT, node TEXT, "
            "session TEXT, job TEXT, operation TEXT, error TEXT, meta TEXT) STRICT; BEGIN",
            NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(x->db, "INSERT INTO audit VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)",
                           -1, &x->insert, NULL) != SQLITE_OK)
        return sqlite_failed(x, e);
    return ST_OK;
}

static int sqlite_close(struct export *x, struct err *e)
{
    int rc = ST_OK;
    sqlite3_finalize(x->insert);
    if (sqlite3_exec(x->db,
                     "COMMIT; CREATE INDEX audit_time ON audit(time_us); CREATE INDEX audit_principal ON "
                     "audit(principal); CREATE INDEX audit_type ON audit(type)",
                     NULL, NULL, NULL) != SQLITE_OK)
        rc = sqlite_failed(x, e);
    sqlite3_close(x->db);
    x->db = NULL;
    return rc;
}

static int export_row(struct export *x, const struct audit_event *ev)
{
    char when[28], id[24], us[24];
    clock_rfc3339(ev->time_us, when);
    snprintf(id, sizeof id, "%lld", (long long)ev->id);
    snprintf(us, sizeof us, "%lld", (long long)ev->time_us);
    const struct event_info *info = event_info(ev->type);
    const char *cell[COLUMNS] = {id,
                                 when,
                                 us,
                                 info ? info->name : "?",
                                 event_severity_name(ev->severity),
                                 event_result_name(ev->result),
                                 ev->principal,
                                 ev->device,
                                 ev->node,
                                 ev->session,
                                 ev->job,
                                 ev->operation,
                                 ev->error,
                                 ev->meta};
    int rc = ST_OK;
    x->rows++;
    x->line.len = 0;
    if (x->format == SQLITE) {
        for (int i = 0; i < (int)COLUMNS; i++)
            if (cell[i] && cell[i][0])
                sqlite3_bind_text(x->insert, i + 1, cell[i], -1, SQLITE_TRANSIENT);
            else
                sqlite3_bind_null(x->insert, i + 1);
        sqlite3_bind_int64(x->insert, 1, ev->id);
        sqlite3_bind_int64(x->insert, 3, ev->time_us);
        rc = sqlite3_step(x->insert) == SQLITE_DONE ? ST_OK : ST_EIO;
        sqlite3_reset(x->insert);
        return rc;
    }
    if (x->format == JSON_LINES)
        rc = event_json(ev, &x->line);
    for (size_t i = 0; x->format == CSV && i < COLUMNS && rc == ST_OK; i++) {
        if (i)
            rc = buf_append(&x->line, ",", 1);
        if (rc == ST_OK)
            rc = csv_cell(&x->line, cell[i] ? cell[i] : "");
    }
    if (rc == ST_OK)
        rc = buf_append(&x->line, "\n", 1);
    return rc == ST_OK && fwrite(x->line.data, 1, x->line.len, x->out) != x->line.len ? ST_EIO : rc;
}

static int from_row(struct export *x, const Strata__V1__AuditRow *r)
{
    const struct event_info *info = event_by_name(r->type);
    struct audit_event ev = {.id = (int64_t)r->id,
                             .time_us = r->time_us,
                             .type = info ? info->type : 0,
                             .principal = r->principal,
                             .device = r->device,
                             .node = r->node,
                             .session = r->session,
                             .job = r->job,
                             .operation = r->operation,
                             .error = r->error,
                             .meta = r->meta};
    (void)event_severity_parse(r->severity, &ev.severity);
    (void)event_result_parse(r->result, &ev.result);
    return export_row(x, &ev);
}

static int from_file(void *arg, const struct audit_event *ev)
{
    return export_row(arg, ev);
}

/* Page by page from a file, offline. */
static int export_file(struct export *x, const char *path, const Strata__V1__AuditQuery *q, uint64_t left,
                       struct err *e)
{
    struct audit_filter f = AUDIT_FILTER_ALL;
    f.since_us = q->since_us;
    f.until_us = q->until_us;
    f.principal = *q->principal ? q->principal : NULL;
    f.type = *q->type ? q->type : NULL;
    f.node = *q->node ? q->node : NULL;
    f.device = *q->device ? q->device : NULL;
    f.job = *q->job ? q->job : NULL;
    f.session = *q->session ? q->session : NULL;
    f.text = *q->text ? q->text : NULL;
    if ((*q->severity && event_severity_parse(q->severity, &f.severity_min) < 0) ||
        (*q->result && event_result_parse(q->result, &f.result) < 0))
        return err_set(e, ST_EINVAL,
                       "severity is debug, info, warning, error or critical; result is success, "
                       "failure or denied");
    f.limit = (unsigned)(left < 100000 ? left : 100000);
    return audit_query(path, &f, from_file, x, e);
}

static int export_served(struct export *x, struct ctl *c, Strata__V1__AuditQuery *q, uint64_t left)
{
    q->oldest_first = true;
    while (left) {
        struct strata_error e;
        ProtobufCMessage *m;
        q->limit = (uint32_t)(left < 1000 ? left : 1000);
        if (strata_client_call(c->client, &strata__v1__audit__descriptor, "Query", &q->base, c->timeout_ns,
                               NULL, &m, &e) < 0)
            return ctl_client_fail(c, &e);
        const Strata__V1__AuditPage *p = (const Strata__V1__AuditPage *)m;
        int rc = ST_OK;
        for (size_t i = 0; i < p->n_rows && rc == ST_OK; i++)
            rc = from_row(x, p->rows[i]);
        left -= p->n_rows < left ? p->n_rows : left;
        q->after_id = p->n_rows ? p->next_before_id : 0;
        protobuf_c_message_free_unpacked(m, NULL);
        if (rc < 0) {
            struct err we = {0};
            err_set(&we, rc, "the export cannot be written: %s", strerror(errno));
            return ctl_fail(c, &we);
        }
        if (!q->after_id)
            break;
    }
    return 0;
}

int ctl_audit_export(struct ctl *c, int argc, char **argv)
{
    struct audit_words w = {.export = true};
    Strata__V1__AuditQuery q = STRATA__V1__AUDIT_QUERY__INIT;
    struct export x = {.c = c, .out = stdout};
    struct err e = {0};
    int code = ctl_audit_parse(argc, argv, &w, &q);
    if (code)
        return code;
    const char *f = w.format ? w.format : "json";
    if (strcmp(f, "json") && strcmp(f, "csv") && strcmp(f, "sqlite"))
        return ctl_usage("--format is json (a line each), csv or sqlite");
    x.format = *f == 'j' ? JSON_LINES : *f == 'c' ? CSV : SQLITE;
    if (x.format == SQLITE && !w.out)
        return ctl_usage("--format sqlite needs --out FILE");
    if (!w.file && (code = ctl_connect(c)))
        return code;
    uint64_t left = q.limit ? q.limit : UINT64_MAX;
    int rc = x.format == SQLITE ? sqlite_open(&x, w.out, &e) : ST_OK;
    if (rc == ST_OK && x.format != SQLITE && w.out && !(x.out = fopen(w.out, "we")))
        rc = err_errno(&e, errno, "%s cannot be written", w.out);
    for (size_t i = 0; rc == ST_OK && x.format == CSV && i < COLUMNS; i++)
        if (fprintf(x.out, "%s%s", columns[i], i + 1 < COLUMNS ? "," : "\n") < 0)
            rc = err_errno(&e, errno, "the export cannot be written");
    if (rc == ST_OK && w.file)
        rc = export_file(&x, w.file, &q, left, &e);
    else if (rc == ST_OK)
        code = export_served(&x, c, &q, left);
    if (x.db && sqlite_close(&x, &e) < 0 && rc == ST_OK)
        rc = e.code;
    if (x.out && x.out != stdout && fclose(x.out) != 0 && rc == ST_OK)
        rc = err_errno(&e, errno, "%s cannot be written", w.out);
    buf_fini(&x.line);
    if (rc < 0)
        return ctl_fail(c, &e);
    if (!code && !c->quiet)
        fprintf(stderr, "%llu rows\n", (unsigned long long)x.rows);
    return code;
}
