/* strata.plan.v1, read. Sizes are bounded by the text's, which is bounded before it is parsed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/jread.h"
#include "coordinator/plan/plan.h"

#define PLAN_MAX_JSON_BYTES ((size_t)64 << 20)

static int copy(const struct jread *j, const json_t *o, const char *path, const char *key, char **out)
{
    const char *s = NULL;
    int rc = jread_string(j, o, path, key, true, &s);
    if (rc < 0)
        return rc;
    *out = strdup(s);
    return *out ? ST_OK : jread_nomem(j);
}

static int number(const struct jread *j, const json_t *o, const char *path, const char *key, double *out)
{
    return jread_number(j, o, path, key, JREAD_NONNEG, NULL, out);
}

static int boolean(const struct jread *j, const json_t *o, const char *path, const char *key, bool *out)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_boolean(v))
        return jread_fail(j, path, key, "must be true or false");
    *out = json_is_true(v);
    return ST_OK;
}

/* Keeps the first failure. */
#define TRY(call)                                                                                            \
    do {                                                                                                     \
        if (rc == ST_OK)                                                                                     \
            rc = (call);                                                                                     \
    } while (0)

static int read_replicas(const struct jread *j, const json_t *o, const char *path, struct plan_stage *s)
{
    static const char *const keys[] = {"device", "share", "compute_s", NULL};
    const json_t *v = json_object_get(o, "replicas");
    int rc = ST_OK;
    if (json_object_get(o, "device"))
        return jread_fail(j, path, "replicas", "a stage has either \"device\" or \"replicas\"");
    if (!json_is_array(v) || json_array_size(v) < 2)
        return jread_fail(j, path, "replicas", "must be a list of at least two");
    size_t n = json_array_size(v);
    if (!(s->replicas = calloc(n, sizeof *s->replicas)))
        return jread_nomem(j);
    for (size_t i = 0; i < n && rc == ST_OK; i++) {
        char at[96];
        snprintf(at, sizeof at, "%s.replicas[%zu]", path, i);
        struct plan_replica *r = &s->replicas[s->n_replicas++];
        rc = jread_object(j, json_array_get(v, i), at, keys);
        TRY(copy(j, json_array_get(v, i), at, "device", &r->device));
        TRY(number(j, json_array_get(v, i), at, "share", &r->share));
        TRY(number(j, json_array_get(v, i), at, "compute_s", &r->compute_s));
    }
    if (rc == ST_OK && !(s->device = strdup(s->replicas[0].device)))
        rc = jread_nomem(j);
    return rc;
}

static int read_stage(const struct jread *j, const json_t *o, const char *path, struct plan_stage *s)
{
    static const char *const keys[] = {"device",        "replicas",     "layers", "compute_s",
                                       "transfer_in_s", "memory_bytes", NULL};
    int rc = jread_object(j, o, path, keys);
    if (rc == ST_OK && json_object_get(o, "replicas"))
        rc = read_replicas(j, o, path, s);
    else
        TRY(copy(j, o, path, "device", &s->device));
    TRY(jread_strings(j, o, path, "layers", &s->layers, &s->n_layers));
    if (rc == ST_OK && s->n_layers == 0)
        return jread_fail(j, path, "layers", "must name at least one layer");
    TRY(number(j, o, path, "compute_s", &s->compute_s));
    TRY(number(j, o, path, "transfer_in_s", &s->transfer_in_s));
    TRY(number(j, o, path, "memory_bytes", &s->memory_bytes));
    return rc;
}

static int read_placement(const struct jread *j, const json_t *o, const char *path, struct plan_placement *s)
{
    static const char *const keys[] = {"layer", "device", "latency_s", "memory_bytes", "transfer_s", NULL};
    int rc = jread_object(j, o, path, keys);
    TRY(copy(j, o, path, "layer", &s->layer));
    TRY(copy(j, o, path, "device", &s->device));
    TRY(number(j, o, path, "latency_s", &s->latency_s));
    TRY(number(j, o, path, "memory_bytes", &s->memory_bytes));
    TRY(number(j, o, path, "transfer_s", &s->transfer_s));
    return rc;
}

static int read_device(const struct jread *j, const json_t *o, const char *path, struct plan_device *s)
{
    static const char *const keys[] = {"id", "memory_ratio", "busy_ratio", "code", "reason", NULL};
    const char *code = NULL;
    int rc = jread_object(j, o, path, keys);
    TRY(copy(j, o, path, "id", &s->id));
    TRY(copy(j, o, path, "reason", &s->reason));
    TRY(number(j, o, path, "memory_ratio", &s->memory_ratio));
    TRY(number(j, o, path, "busy_ratio", &s->busy_ratio));
    TRY(jread_string(j, o, path, "code", true, &code));
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < PLAN_CODE_COUNT; i++)
        if (!strcmp(code, plan_code_name((enum plan_code)i))) {
            s->code = (enum plan_code)i;
            return ST_OK;
        }
    return jread_fail(j, path, "code", "\"%s\" is not a code of plans", code);
}

static int read_move(const struct jread *j, const json_t *o, const char *path, struct plan_move *s)
{
    static const char *const keys[] = {"layer", "from", "to", "bytes", NULL};
    int rc = jread_object(j, o, path, keys);
    TRY(copy(j, o, path, "layer", &s->layer));
    if (rc == ST_OK && !json_is_null(json_object_get(o, "from")))
        rc = copy(j, o, path, "from", &s->from);
    TRY(copy(j, o, path, "to", &s->to));
    TRY(number(j, o, path, "bytes", &s->bytes));
    return rc;
}

/* One list of objects into a fresh array. */
#define READ_LIST(key, field, count, read)                                                                   \
    do {                                                                                                     \
        const json_t *list = NULL;                                                                           \
        TRY(jread_list(j, root, "", key, true, &list));                                                      \
        if (rc == ST_OK && json_array_size(list)) {                                                          \
            p->field = calloc(json_array_size(list), sizeof *p->field);                                      \
            if (!p->field)                                                                                   \
                return jread_nomem(j);                                                                       \
        }                                                                                                    \
        for (size_t i = 0; rc == ST_OK && i < json_array_size(list); i++) {                                  \
            char path[64];                                                                                   \
            snprintf(path, sizeof path, "%s[%zu]", key, i);                                                  \
            p->count = i + 1;                                                                                \
            rc = read(j, json_array_get(list, i), path, &p->field[i]);                                       \
        }                                                                                                    \
    } while (0)

static int read_bottleneck(const struct jread *j, const json_t *root, struct plan *p)
{
    static const char *const keys[] = {"kind", "device", "from", "to", NULL};
    const json_t *o = json_object_get(root, "bottleneck");
    const char *kind = NULL, *device = NULL;
    int rc = jread_object(j, o, "bottleneck", keys);
    TRY(jread_string(j, o, "bottleneck", "kind", true, &kind));
    TRY(copy(j, root, "", "bottleneck_device", &p->bottleneck.device));
    if (rc < 0)
        return rc;
    p->bottleneck.link = !strcmp(kind, "link");
    if (!p->bottleneck.link && strcmp(kind, "device"))
        return jread_fail(j, "bottleneck", "kind", "must be \"device\" or \"link\"");
    if (p->bottleneck.link) {
        TRY(copy(j, o, "bottleneck", "from", &p->bottleneck.from));
        TRY(copy(j, o, "bottleneck", "to", &p->bottleneck.to));
        return rc;
    }
    TRY(jread_string(j, o, "bottleneck", "device", true, &device));
    if (rc == ST_OK && strcmp(device, p->bottleneck.device))
        return jread_fail(j, "bottleneck", "device", "differs from bottleneck_device");
    return rc;
}

static int read_feasible(const struct jread *j, const json_t *root, struct plan *p)
{
    static const char *const optima_keys[] = {"latency_s", "bottleneck_s", "max_memory_ratio", NULL};
    int rc = number(j, root, "", "objective", &p->objective);
    TRY(number(j, root, "", "lower_bound", &p->lower_bound));
    TRY(number(j, root, "", "gap", &p->gap));
    TRY(number(j, root, "", "latency_s", &p->latency_s));
    TRY(number(j, root, "", "bottleneck_s", &p->bottleneck_s));
    TRY(number(j, root, "", "max_memory_ratio", &p->max_memory_ratio));
    const json_t *o = json_object_get(root, "optima");
    if (o && rc == ST_OK) {
        p->has_optima = true;
        TRY(jread_object(j, o, "optima", optima_keys));
        TRY(number(j, o, "optima", "latency_s", &p->optima.latency_s));
        TRY(number(j, o, "optima", "bottleneck_s", &p->optima.bottleneck_s));
        TRY(number(j, o, "optima", "max_memory_ratio", &p->optima.max_memory_ratio));
    }
    READ_LIST("stages", stages, n_stages, read_stage);
    READ_LIST("placements", placements, n_placements, read_placement);
    READ_LIST("devices", devices, n_devices, read_device);
    READ_LIST("moves", moves, n_moves, read_move);
    TRY(read_bottleneck(j, root, p));
    TRY(number(j, root, "", "moved_bytes", &p->moved_bytes));
    return rc;
}

static int read_shortfall(const struct jread *j, const json_t *o, struct plan *p)
{
    static const char *const keys[] = {"kind", "bytes", "where", "proven_minimum", "hint", NULL};
    const char *kind = NULL;
    int rc = jread_object(j, o, "shortfall", keys);
    TRY(jread_string(j, o, "shortfall", "kind", true, &kind));
    TRY(number(j, o, "shortfall", "bytes", &p->shortfall.bytes));
    TRY(copy(j, o, "shortfall", "where", &p->shortfall.where));
    TRY(copy(j, o, "shortfall", "hint", &p->shortfall.hint));
    TRY(boolean(j, o, "shortfall", "proven_minimum", &p->shortfall.proven_minimum));
    if (rc < 0)
        return rc;
    p->has_shortfall = true;
    for (unsigned i = 0; i < PLAN_SHORT_COUNT; i++)
        if (!strcmp(kind, plan_shortfall_name((enum plan_shortfall_kind)i))) {
            p->shortfall.kind = (enum plan_shortfall_kind)i;
            return ST_OK;
        }
    return jread_fail(j, "shortfall", "kind", "\"%s\" is not a kind of shortfall", kind);
}

static int read_stats(const struct jread *j, const json_t *o, struct plan *p)
{
    static const char *const keys[] = {"seconds", "states", "memory_bytes", NULL};
    double states = 0, bytes = 0;
    int rc = jread_object(j, o, "stats", keys);
    TRY(number(j, o, "stats", "seconds", &p->stats.seconds));
    TRY(jread_whole(j, o, "stats", "states", 0, 9e15, NULL, &states));
    TRY(jread_whole(j, o, "stats", "memory_bytes", 0, 9e15, NULL, &bytes));
    p->has_stats = true;
    p->stats.states = (uint64_t)states;
    p->stats.table_bytes = (uint64_t)bytes;
    return rc;
}

static int read_root(const struct jread *j, const json_t *root, struct plan *p)
{
    static const char *const keys[] = {"schema",
                                       "goal",
                                       "feasible",
                                       "optimal",
                                       "solver",
                                       "objective",
                                       "lower_bound",
                                       "gap",
                                       "latency_s",
                                       "bottleneck_s",
                                       "max_memory_ratio",
                                       "optima",
                                       "stages",
                                       "placements",
                                       "devices",
                                       "bottleneck",
                                       "bottleneck_device",
                                       "moves",
                                       "moved_bytes",
                                       "warnings",
                                       "stopped",
                                       "stats",
                                       "shortfall",
                                       NULL};
    const char *goal = NULL;
    int rc = jread_object(j, root, "", keys);
    TRY(jread_schema(j, root, "strata.plan.v1", false));
    TRY(jread_string(j, root, "", "goal", true, &goal));
    if (rc == ST_OK && plan_goal_parse(goal, &p->goal) < 0)
        return jread_fail(j, "", "goal", "\"%s\" is not latency, throughput, memory or balanced", goal);
    TRY(boolean(j, root, "", "optimal", &p->optimal));
    TRY(copy(j, root, "", "solver", &p->solver));
    TRY(jread_strings(j, root, "", "warnings", &p->warnings, &p->n_warnings));
    if (rc == ST_OK && json_object_get(root, "stopped"))
        rc = copy(j, root, "", "stopped", &p->stopped);
    if (rc == ST_OK && json_object_get(root, "stats"))
        rc = read_stats(j, json_object_get(root, "stats"), p);
    const json_t *f = json_object_get(root, "feasible");
    if (rc == ST_OK && !json_is_boolean(f) && !json_is_null(f))
        return jread_fail(j, "", "feasible", "must be true, false or null");
    p->feasible = json_is_true(f) ? PLAN_YES : json_is_false(f) ? PLAN_NO : PLAN_UNKNOWN;
    if (p->feasible == PLAN_YES)
        TRY(read_feasible(j, root, p));
    else if (p->feasible == PLAN_NO)
        TRY(read_shortfall(j, json_object_get(root, "shortfall"), p));
    return rc;
}

int plan_from_json(const char *text, size_t n, struct plan **out, struct err *e)
{
    struct jread j = {"plan", e};
    json_t *root = NULL;
    *out = NULL;
    if (n > PLAN_MAX_JSON_BYTES)
        return err_set(e, ST_ELIMIT, "the plan is larger than %zu bytes", PLAN_MAX_JSON_BYTES);
    int rc = jread_parse(&j, text, n, &root);
    if (rc < 0)
        return rc;
    struct plan *p = calloc(1, sizeof *p);
    rc = p ? read_root(&j, root, p) : jread_nomem(&j);
    json_decref(root);
    if (rc < 0)
        plan_free(p);
    else
        *out = p;
    return rc;
}
