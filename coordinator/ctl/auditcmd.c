/* audit tail and query. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/auditcmd.h"

static json_t *row_json(const Strata__V1__AuditRow *r)
{
    char when[28];
    clock_rfc3339(r->time_us, when);
    json_t *meta = *r->meta ? json_loads(r->meta, 0, NULL) : NULL;
    return json_pack("{s:I,s:s,s:I,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:o}", "id", (json_int_t)r->id,
                     "time", when, "time_us", (json_int_t)r->time_us, "type", r->type, "severity",
                     r->severity, "result", r->result, "principal", r->principal, "device", r->device, "node",
                     r->node, "session", r->session, "job", r->job, "operation", r->operation, "error",
                     r->error, "meta", meta ? meta : json_null());
}

static void print_row(const struct ctl *c, const Strata__V1__AuditRow *r)
{
    char when[28];
    clock_rfc3339(r->time_us, when);
    bool bad = strcmp(r->result, "success") != 0;
    printf("%.23sZ %s%-28s%s %-8s %-16s %s%s%s%s%s\n", when, c->color && bad ? "\033[31m" : "", r->type,
           c->color && bad ? "\033[0m" : "", r->result, *r->principal ? r->principal : "-",
           *r->job ? r->job : "", *r->device ? " " : "", *r->device ? r->device : (*r->node ? r->node : ""),
           *r->meta ? " " : "", r->meta);
}

int ctl_moment(const char *word, const char *name, int64_t *out)
{
    uint64_t ns;
    struct tm tm = {0};
    if (!word)
        return 0;
    const char *end = strptime(word, "%Y-%m-%dT%H:%M:%S", &tm);
    if (!end)
        end = strptime(word, "%Y-%m-%d", &tm);
    if (end && (!*end || !strcmp(end, "Z"))) {
        *out = (int64_t)timegm(&tm) * 1000000;
        return 0;
    }
    if (parse_duration_ns(word, &ns) < 0)
        return ctl_usage(
            "--%s: '%s' is neither a duration back from now, such as 15m, 2h or 7d, nor a time (UTC) such as "
            "2026-11-24T12:00:00Z",
            name, word);
    *out = clock_wall_us(clock_system()) - (int64_t)(ns / 1000);
    return 0;
}

static char *or_empty(const char *s)
{
    return (char *)(uintptr_t)(s ? s : "");
}

int ctl_audit_parse(int argc, char **argv, struct audit_words *w, Strata__V1__AuditQuery *q)
{
    const struct ctl_opt opts[] = {
        {.name = "since", .value = &w->since},
        {.name = "until", .value = &w->until},
        {.name = "principal", .value = &w->principal},
        {.name = "type", .value = &w->type},
        {.name = "node", .value = &w->node},
        {.name = "device", .value = &w->device},
        {.name = "job", .value = &w->job},
        {.name = "session", .value = &w->session},
        {.name = "text", .value = &w->text},
        {.name = "severity", .value = &w->severity},
        {.name = "result", .value = &w->result},
        {.name = "limit", .value = &w->limit},
        {.name = "oldest-first", .flag = &w->oldest},
        {.name = "follow", .flag = &w->follow},
        {.name = "format", .value = &w->format},
        {.name = "out", .value = &w->out},
        {.name = "file", .value = &w->file},
    };
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "-f"))
            argv[i] = (char *)"--follow";
    /* The last three are of export alone. */
    int n = ctl_parse(argc, argv, opts, sizeof opts / sizeof *opts - (w->export ? 0 : 3));
    uint64_t limit = 0;
    if (n < 0)
        return 2;
    if (n > 0)
        return ctl_usage("'%s' is not an option of audit", argv[0]);
    if (ctl_moment(w->since, "since", &q->since_us) || ctl_moment(w->until, "until", &q->until_us) ||
        ctl_number(w->limit, "limit", w->export ? UINT32_MAX : 1000000, &limit))
        return 2;
    q->limit = (uint32_t)limit;
    q->principal = or_empty(w->principal);
    q->type = or_empty(w->type);
    q->node = or_empty(w->node);
    q->device = or_empty(w->device);
    q->job = or_empty(w->job);
    q->session = or_empty(w->session);
    q->text = or_empty(w->text);
    q->severity = or_empty(w->severity);
    q->result = or_empty(w->result);
    q->oldest_first = w->oldest;
    return 0;
}

/* JSON lines: one object a row, so that a million rows need no memory. */
static void emit(const struct ctl *c, const Strata__V1__AuditRow *r)
{
    if (c->json)
        ctl_print_json("strata.audit.v1", row_json(r));
    else
        print_row(c, r);
}

int ctl_audit_query(struct ctl *c, int argc, char **argv)
{
    struct audit_words w = {0};
    Strata__V1__AuditQuery q = STRATA__V1__AUDIT_QUERY__INIT;
    int x = ctl_audit_parse(argc, argv, &w, &q);
    if (x || (x = ctl_connect(c)))
        return x;
    uint64_t left = q.limit ? q.limit : 100;
    while (left) {
        struct strata_error e;
        ProtobufCMessage *m;
        q.limit = (uint32_t)(left < 1000 ? left : 1000);
        if (strata_client_call(c->client, &strata__v1__audit__descriptor, "Query", &q.base, c->timeout_ns,
                               NULL, &m, &e) < 0)
            return ctl_client_fail(c, &e);
        const Strata__V1__AuditPage *p = (const Strata__V1__AuditPage *)m;
        for (size_t i = 0; i < p->n_rows; i++)
            emit(c, p->rows[i]);
        left -= p->n_rows < left ? p->n_rows : left;
        uint64_t next = p->n_rows ? p->next_before_id : 0;
        protobuf_c_message_free_unpacked(m, NULL);
        if (!next)
            break;
        if (q.oldest_first)
            q.after_id = next;
        else
            q.before_id = next;
    }
    return 0;
}

static int on_row(const ProtobufCMessage *m, void *arg)
{
    emit(arg, (const Strata__V1__AuditRow *)m);
    fflush(stdout);
    return 0;
}

static int print_page(struct ctl *c, const Strata__V1__AuditPage *p)
{
    for (size_t i = p->n_rows; i-- > 0;)
        emit(c, p->rows[i]);
    return 0;
}

int ctl_audit_tail(struct ctl *c, int argc, char **argv)
{
    struct audit_words w = {0};
    Strata__V1__AuditQuery q = STRATA__V1__AUDIT_QUERY__INIT;
    struct strata_error e;
    int x = ctl_audit_parse(argc, argv, &w, &q);
    if (x || (x = ctl_connect(c)))
        return x;
    if (!q.limit)
        q.limit = 20;
    if (w.follow)
        return strata_client_stream(c->client, &strata__v1__audit__descriptor, "Tail", &q.base, UINT64_MAX,
                                    on_row, c, &e) < 0
                   ? ctl_client_fail(c, &e)
                   : 0;
    ProtobufCMessage *m;
    q.oldest_first = false;
    if (strata_client_call(c->client, &strata__v1__audit__descriptor, "Query", &q.base, c->timeout_ns, NULL,
                           &m, &e) < 0)
        return ctl_client_fail(c, &e);
    x = print_page(c, (const Strata__V1__AuditPage *)m);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}
