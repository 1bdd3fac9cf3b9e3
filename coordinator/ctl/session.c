/* session list|kill. */
#include <string.h>

#include "common/base/clock.h"
#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/sessions.pb-c.h"

static json_t *strings(char *const *v, size_t n)
{
    json_t *a = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, json_string(v[i]));
    return a;
}

static json_t *info_json(const Strata__V1__SessionInfo *s)
{
    return json_pack(
        "{s:s,s:s,s:s,s:s,s:o,s:o,s:I,s:I,s:I,s:I,s:I,s:s}", "session", s->session, "principal", s->principal,
        "node", s->node, "state", s->state, "devices", strings(s->devices, s->n_devices), "permissions",
        strings(s->permissions, s->n_permissions), "limit_bytes", (json_int_t)s->limit_bytes, "used_bytes",
        (json_int_t)s->used_bytes, "opened_us", (json_int_t)s->opened_us, "expires_us",
        (json_int_t)s->expires_us, "generation", (json_int_t)s->generation, "reason", s->reason);
}

static int call(struct ctl *c, const char *method, const ProtobufCMessage *q, ProtobufCMessage **out)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    return strata_client_call(c->client, &strata__v1__sessions__descriptor, method, q, c->timeout_ns, NULL,
                              out, &e) < 0
               ? ctl_client_fail(c, &e)
               : 0;
}

int ctl_session_list(struct ctl *c, int argc, char **argv)
{
    static const char *const col[] = {"SESSION", "PRINCIPAL", "NODE",  "DEVICES",
                                      "STATE",   "LIMIT>",    "USED>", "EXPIRES"};
    const char *node = NULL, *principal = NULL;
    bool all = false;
    const struct ctl_opt opts[] = {{.name = "all", .flag = &all},
                                   {.name = "node", .value = &node},
                                   {.name = "principal", .value = &principal}};
    if (ctl_parse(argc, argv, opts, 3) != 0)
        return ctl_misuse(c, "session list takes no operand");
    Strata__V1__ListSessionsRequest q = STRATA__V1__LIST_SESSIONS_REQUEST__INIT;
    q.all = all;
    if (node)
        q.node = (char *)node;
    if (principal)
        q.principal = (char *)principal;
    json_t *a = json_array();
    struct table *t = table_new(col, 8);
    char token[64] = "";
    int x;
    do {
        ProtobufCMessage *m;
        q.page_token = token;
        if ((x = call(c, "List", &q.base, &m)))
            break;
        const Strata__V1__ListSessionsReply *r = (const Strata__V1__ListSessionsReply *)m;
        for (size_t i = 0; i < r->n_sessions; i++) {
            const Strata__V1__SessionInfo *s = r->sessions[i];
            char limit[16], used[16], when[28], devices[200] = "";
            fmt_bytes(limit, s->limit_bytes);
            fmt_bytes(used, s->used_bytes);
            clock_rfc3339(s->expires_us, when);
            for (size_t k = 0, at = 0; k < s->n_devices && at < sizeof devices; k++)
                at +=
                    (size_t)snprintf(devices + at, sizeof devices - at, "%s%s", k ? "," : "", s->devices[k]);
            json_array_append_new(a, info_json(s));
            table_cell(t, "%s", s->session);
            table_cell(t, "%s", s->principal);
            table_cell(t, "%s", s->node);
            table_cell(t, "%s", devices);
            table_cell(t, "%s%s%s", s->state, *s->reason ? " " : "", s->reason);
            table_cell(t, "%s", limit);
            table_cell(t, "%s", used);
            table_cell(t, "%.19sZ", when);
        }
        str_copy(token, sizeof token, r->next_page_token);
        protobuf_c_message_free_unpacked(m, NULL);
    } while (*token);
    if (!x && c->json)
        x = ctl_print_json("strata.sessions.v1", json_pack("{s:O}", "sessions", a));
    else if (!x)
        table_print(t, stdout);
    json_decref(a);
    table_free(t);
    return x;
}

int ctl_session_kill(struct ctl *c, int argc, char **argv)
{
    if (ctl_parse(argc, argv, NULL, 0) != 1)
        return ctl_misuse(c, "session kill needs one session");
    Strata__V1__EndSessionRequest q = STRATA__V1__END_SESSION_REQUEST__INIT;
    ProtobufCMessage *m;
    q.session = argv[0];
    int x = call(c, "Kill", &q.base, &m);
    if (x)
        return x;
    const Strata__V1__SessionInfo *s = (const Strata__V1__SessionInfo *)m;
    if (c->json)
        x = ctl_print_json("strata.session.v1", info_json(s));
    else
        printf("%s of %s on %s is %s\n", s->session, s->principal, s->node, s->state);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}
