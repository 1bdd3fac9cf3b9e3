/* layer where, layer move: where layers lie, and moving them while they serve. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "strata/v1/jobs.pb-c.h"

static int call(struct ctl *c, const char *method, const ProtobufCMessage *req, ProtobufCMessage **resp)
{
    struct strata_error e;
    int x = ctl_connect(c);
    if (x)
        return x;
    if (strata_client_call(c->client, &strata__v1__jobs__descriptor, method, req, c->timeout_ns, NULL, resp,
                           &e) < 0)
        return ctl_client_fail(c, &e);
    return 0;
}

static json_t *layer_json(const Strata__V1__JobLayer *l)
{
    char node[80] = "";
    size_t n = strcspn(l->device, "/");
    if (l->device[n])
        str_copy(node, sizeof node, l->device);
    node[n < sizeof node ? n : sizeof node - 1] = 0;
    return json_pack("{s:s,s:s?,s:s?,s:s,s:I,s:s?,s:I}", "id", l->id, "device", *l->device ? l->device : NULL,
                     "node", *node ? node : NULL, "state", l->state, "bytes", (json_int_t)l->bytes,
                     "moving_to", *l->moving_to ? l->moving_to : NULL, "moved_bytes",
                     (json_int_t)l->moved_bytes);
}

static int show(const struct ctl *c, const Strata__V1__Job *j, const char *only)
{
    static const char *const col[] = {"LAYER", "DEVICE", "STATE", "BYTES>", "MOVING TO"};
    json_t *a = json_array();
    struct table *t = table_new(col, 5);
    size_t n = 0;
    for (size_t i = 0; i < j->n_layers; i++) {
        const Strata__V1__JobLayer *l = j->layers[i];
        char bytes[16];
        if (only && strcmp(only, l->id))
            continue;
        n++;
        fmt_bytes(bytes, l->bytes);
        json_array_append_new(a, layer_json(l));
        table_cell(t, "%s", l->id);
        table_cell(t, "%s", *l->device ? l->device : "-");
        table_cell(t, "%s", l->state);
        table_cell(t, "%s", bytes);
        table_cell(t, "%s", *l->moving_to ? l->moving_to : "-");
    }
    int x = 0;
    if (!n) {
        struct err e;
        err_reason(&e, ST_ENOENT, "NO_LAYER", "job %s has no layer '%.80s'", j->id, only);
        x = ctl_fail(c, &e);
    } else if (c->json) {
        x = ctl_print_json("strata.layer.v1", json_pack("{s:s,s:s,s:s,s:O}", "job", j->id, "state", j->state,
                                                        "reason", j->reason, "layers", a));
    } else {
        table_print(t, stdout);
    }
    json_decref(a);
    table_free(t);
    return x;
}

int ctl_layer_where(struct ctl *c, int argc, char **argv)
{
    int n = ctl_parse(argc, argv, NULL, 0);
    if (n < 0)
        return 2;
    if (n < 1 || n > 2)
        return ctl_misuse(c, "layer where needs a job");
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    q.id = argv[0];
    ProtobufCMessage *m;
    int x = call(c, "Get", &q.base, &m);
    if (x)
        return x;
    x = show(c, (const Strata__V1__Job *)m, n == 2 ? argv[1] : NULL);
    protobuf_c_message_free_unpacked(m, NULL);
    return x;
}

struct waiting {
    struct ctl *c;
    int exit;
    char code[40], reason[400];
};

static int on_job(const ProtobufCMessage *msg, void *arg)
{
    struct waiting *w = arg;
    const Strata__V1__Job *j = (const Strata__V1__Job *)msg;
    uint64_t done = 0, total = 0;
    for (size_t i = 0; i < j->n_layers; i++)
        if (*j->layers[i]->moving_to) {
            done += j->layers[i]->moved_bytes;
            total += j->layers[i]->bytes;
        }
    if (total)
        ctl_bar(w->c, j->id, done, total, j->state);
    str_copy(w->code, sizeof w->code, j->reason_code);
    str_copy(w->reason, sizeof w->reason, j->reason);
    if (!strcmp(j->state, "migrating"))
        return 0;
    w->exit = strcmp(j->state, "ready") || *j->reason_code ? 11 : 0;
    return 1;
}

/* Follows the job until nothing of it moves; 11 when some layers stayed where they were. */
static int wait_moved(struct ctl *c, const char *job)
{
    struct waiting w = {.c = c};
    struct strata_error e;
    Strata__V1__GetJobRequest q = STRATA__V1__GET_JOB_REQUEST__INIT;
    q.id = (char *)job;
    int rc = strata_client_stream(c->client, &strata__v1__jobs__descriptor, "Watch", &q.base, UINT64_MAX,
                                  on_job, &w, &e);
    ctl_bar_end(c);
    if (rc < 0)
        return ctl_client_fail(c, &e);
    if (w.exit)
        fprintf(stderr, "strata: not all was moved: %s %s\n", w.code, w.reason);
    return w.exit;
}

int ctl_layer_move(struct ctl *c, int argc, char **argv)
{
    const char *to = NULL;
    bool follow = false;
    const struct ctl_opt opts[] = {{.name = "to", .value = &to}, {.name = "watch", .flag = &follow}};
    int n = ctl_parse(argc, argv, opts, 2);
    if (n < 0)
        return 2;
    if (n != 2 || !to)
        return ctl_misuse(c, "layer move needs a job, layers and a device");
    Strata__V1__MoveRequest q = STRATA__V1__MOVE_REQUEST__INIT;
    char *dots = strstr(argv[1], "..");
    if (dots) {
        *dots = 0;
        q.last = dots + 2;
    }
    q.job = argv[0];
    q.first = argv[1];
    q.device = (char *)to;
    ProtobufCMessage *m;
    int x = call(c, "Move", &q.base, &m);
    if (x)
        return x;
    protobuf_c_message_free_unpacked(m, NULL);
    int moved = follow ? wait_moved(c, argv[0]) : 0;
    Strata__V1__GetJobRequest g = STRATA__V1__GET_JOB_REQUEST__INIT;
    g.id = argv[0];
    if ((x = call(c, "Get", &g.base, &m)))
        return x;
    x = show(c, (const Strata__V1__Job *)m, NULL);
    protobuf_c_message_free_unpacked(m, NULL);
    return moved ? moved : x;
}
