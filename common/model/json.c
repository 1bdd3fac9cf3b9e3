/* strata.model.v1: strict reader and writer. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/jread.h"
#include "common/model/model.h"
#include "common/model/model_priv.h"

static const char *const top_keys[] = {"schema", "name", "layers", "metadata", NULL};
static const char *const layer_keys[] = {
    "id",       "type",        "weight_bytes", "flops", "read_bytes",   "activation_bytes",
    "kv_bytes", "input_bytes", "output_bytes", "count", "dependencies", NULL};

/* How many layers the file stands for, before anything of that size is allocated. */
static int count_layers(const struct jread *j, const json_t *list, size_t *total, bool *explicit_deps)
{
    *total = 0;
    *explicit_deps = false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *x = json_array_get(list, i);
        char path[40];
        snprintf(path, sizeof path, "layers[%zu]", i);
        int rc = jread_object(j, x, path, layer_keys);
        double n, one = 1;
        if (rc < 0 || (rc = jread_whole(j, x, path, "count", 1, MODEL_MAX_LAYERS, &one, &n)) < 0)
            return rc;
        *total += (size_t)n;
        if (*total > MODEL_MAX_LAYERS)
            return jread_fail(j, path, n > 1 ? "count" : NULL, "makes more than %u layers", MODEL_MAX_LAYERS);
        *explicit_deps |= json_object_get(x, "dependencies") != NULL;
    }
    return *total ? ST_OK : jread_fail(j, "", "layers", "must name at least one layer");
}

static int read_figures(const struct jread *j, const json_t *x, const char *path, struct model_layer *l)
{
    const double zero = 0;
    int rc;
    if ((rc = jread_number(j, x, path, "weight_bytes", JREAD_NONNEG, NULL, &l->weight_bytes)) < 0 ||
        (rc = jread_number(j, x, path, "flops", JREAD_NONNEG, NULL, &l->flops)) < 0 ||
        (rc = jread_number(j, x, path, "read_bytes", JREAD_NONNEG, &l->weight_bytes, &l->read_bytes)) < 0 ||
        (rc = jread_number(j, x, path, "activation_bytes", JREAD_NONNEG, &zero, &l->activation_bytes)) < 0 ||
        (rc = jread_number(j, x, path, "kv_bytes", JREAD_NONNEG, &zero, &l->kv_bytes)) < 0 ||
        (rc = jread_number(j, x, path, "input_bytes", JREAD_NONNEG, NULL, &l->input_bytes)) < 0)
        return rc;
    return jread_number(j, x, path, "output_bytes", JREAD_NONNEG, NULL, &l->output_bytes);
}

static int add_name(const struct jread *j, struct model *m, const char *path, const char *id, uint32_t layer)
{
    int rc = model_index_add(m, id, layer);
    if (rc == ST_EEXIST)
        return jread_fail(j, path, "id", "duplicate layer id \"%.100s\"", id);
    return rc < 0 ? jread_nomem(j) : ST_OK;
}

/* One entry of the file → n layers from *at on. */
static int read_entry(const struct jread *j, const json_t *x, const char *path, struct model *m, uint32_t *at)
{
    const char *id, *type;
    double n;
    const double one = 1;
    struct model_layer l = {0};
    int rc;
    if ((rc = jread_string(j, x, path, "id", true, &id)) < 0 ||
        (rc = jread_string(j, x, path, "type", true, &type)) < 0 || (rc = read_figures(j, x, path, &l)) < 0 ||
        (rc = jread_whole(j, x, path, "count", 1, MODEL_MAX_LAYERS, &one, &n)) < 0)
        return rc;
    if (strlen(id) > 1024) /* ids are repeated for every layer of a counted group */
        return jread_fail(j, path, "id", "is longer than 1024 bytes");
    if (layer_type_parse(type, &l.type) < 0)
        return jread_fail(j, path, "type",
                          "\"%.40s\" is none of: embedding attention mlp normalization output block", type);
    for (uint32_t k = 0; k < (uint32_t)n; k++, ++*at) {
        char suffix[16] = "";
        if (n > 1)
            snprintf(suffix, sizeof suffix, ".%" PRIu32, k);
        m->layers[*at] = l;
        if (asprintf(&m->layers[*at].id, "%s%s", id, suffix) < 0) {
            m->layers[*at].id = NULL;
            return jread_nomem(j);
        }
        if ((rc = add_name(j, m, path, m->layers[*at].id, *at)) < 0)
            return rc;
    }
    return n > 1 ? add_name(j, m, path, id, *at - 1) : ST_OK;
}

static int read_deps(const struct jread *j, const json_t *list, const char *path, const struct model *m,
                     struct model_layer *l, uint32_t *mark, uint32_t stamp)
{
    size_t n = json_array_size(list);
    if (!n)
        return ST_OK;
    if (!(l->deps = calloc(n, sizeof *l->deps)))
        return jread_nomem(j);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        char at[40];
        snprintf(at, sizeof at, "dependencies[%zu]", i);
        if (!json_is_string(v))
            return jread_fail(j, path, at, "must be the id of a layer");
        uint32_t d = model_find(m, json_string_value(v));
        if (d == MODEL_NONE)
            return jread_fail(j, path, at, "no layer is called \"%.100s\"", json_string_value(v));
        if (mark[d] == stamp)
            return jread_fail(j, path, at, "names \"%.100s\" a second time", json_string_value(v));
        mark[d] = stamp;
        l->deps[l->ndeps++] = d;
    }
    return ST_OK;
}

static int set_one_dep(const struct jread *j, struct model_layer *l, uint32_t d)
{
    if (!(l->deps = malloc(sizeof *l->deps)))
        return jread_nomem(j);
    l->deps[0] = d;
    l->ndeps = 1;
    return ST_OK;
}

static int read_all_deps(const struct jread *j, const json_t *list, struct model *m)
{
    uint32_t *mark = calloc(m->nlayers, sizeof *mark), at = 0;
    int rc = mark ? ST_OK : jread_nomem(j);
    for (size_t i = 0; rc == ST_OK && i < json_array_size(list); i++) {
        const json_t *x = json_array_get(list, i), *deps;
        const json_t *count = json_object_get(x, "count");
        uint32_t n = count ? (uint32_t)json_number_value(count) : 1;
        char path[40];
        snprintf(path, sizeof path, "layers[%zu]", i);
        if ((rc = jread_list(j, x, path, "dependencies", false, &deps)) == ST_OK && deps)
            rc = read_deps(j, deps, path, m, &m->layers[at], mark, (uint32_t)i + 1);
        for (uint32_t k = 1; rc == ST_OK && k < n; k++)
            rc = set_one_dep(j, &m->layers[at + k], at + k - 1);
        at += n;
    }
    free(mark);
    return rc;
}

static int finish(const struct jread *j, const json_t *list, struct model *m, bool explicit_deps)
{
    int rc = explicit_deps ? read_all_deps(j, list, m) : model_set_chain(m);
    if (rc < 0)
        return rc == ST_ENOMEM ? jread_nomem(j) : rc;
    uint32_t on = 0;
    rc = model_sort(m, &on);
    if (rc != ST_ECONFLICT)
        return rc < 0 ? jread_nomem(j) : ST_OK;
    uint32_t first = 0;
    size_t i = 0;
    for (; i < json_array_size(list); i++) { /* the entry that made layer `on` */
        const json_t *count = json_object_get(json_array_get(list, i), "count");
        first += count ? (uint32_t)json_number_value(count) : 1;
        if (first > on)
            break;
    }
    char path[40];
    snprintf(path, sizeof path, "layers[%zu]", i);
    return jread_fail(j, path, "dependencies", "layer \"%.100s\" depends on itself through a cycle",
                      m->layers[on].id);
}

static int read_root(const struct jread *j, const json_t *root, struct model **out)
{
    const json_t *list, *meta = json_object_get(root, "metadata");
    const char *name;
    size_t total;
    bool explicit_deps;
    struct model *m = NULL;
    uint32_t at = 0;
    int rc;
    if ((rc = jread_schema(j, root, "strata.model.v1", false)) < 0 ||
        (rc = jread_object(j, root, "", top_keys)) < 0 ||
        (rc = jread_string(j, root, "", "name", true, &name)) < 0 ||
        (rc = jread_list(j, root, "", "layers", true, &list)) < 0 ||
        (rc = count_layers(j, list, &total, &explicit_deps)) < 0)
        return rc;
    if (meta && !json_is_object(meta))
        return jread_fail(j, "", "metadata", "must be an object");
    if (model_alloc(&m, total) < 0)
        return jread_nomem(j);
    for (size_t i = 0; i < json_array_size(list); i++) {
        char path[40];
        snprintf(path, sizeof path, "layers[%zu]", i);
        if ((rc = read_entry(j, json_array_get(list, i), path, m, &at)) < 0)
            goto fail;
    }
    if (meta) {
        free(m->metadata);
        m->metadata = json_dumps(meta, JSON_COMPACT);
    }
    m->name = strdup(name);
    rc = m->name && m->metadata ? finish(j, list, m, explicit_deps) : jread_nomem(j);
    if (rc < 0)
        goto fail;
    *out = m;
    return ST_OK;
fail:
    model_free(m);
    return rc;
}

int model_read_json(const char *text, size_t n, const char *name, struct model **out, struct err *e)
{
    struct jread j = {name, e};
    json_t *root;
    int rc = jread_parse(&j, text, n, &root);
    if (rc < 0)
        return rc;
    rc = read_root(&j, root, out);
    json_decref(root);
    return rc;
}

static int write_figure(struct buf *out, const char *key, double v)
{
    int rc = buf_printf(out, ",\"%s\":", key);
    return rc < 0 ? rc : jwrite_number(out, v);
}

static int write_layer(const struct model *m, const struct model_layer *l, struct buf *out)
{
    int rc;
    if ((rc = buf_printf(out, "{\"id\":")) < 0 || (rc = jwrite_string(out, l->id)) < 0 ||
        (rc = buf_printf(out, ",\"type\":\"%s\"", layer_type_name(l->type))) < 0 ||
        (rc = write_figure(out, "weight_bytes", l->weight_bytes)) < 0 ||
        (rc = write_figure(out, "flops", l->flops)) < 0 ||
        (rc = write_figure(out, "read_bytes", l->read_bytes)) < 0 ||
        (rc = write_figure(out, "activation_bytes", l->activation_bytes)) < 0 ||
        (rc = write_figure(out, "kv_bytes", l->kv_bytes)) < 0 ||
        (rc = write_figure(out, "input_bytes", l->input_bytes)) < 0 ||
        (rc = write_figure(out, "output_bytes", l->output_bytes)) < 0)
        return rc;
    if (!m->chain) {
        if ((rc = buf_printf(out, ",\"dependencies\":[")) < 0)
            return rc;
        for (size_t i = 0; i < l->ndeps; i++)
            if ((i && (rc = buf_append(out, ",", 1)) < 0) ||
                (rc = jwrite_string(out, m->layers[l->deps[i]].id)) < 0)
                return rc;
        if ((rc = buf_append(out, "]", 1)) < 0)
            return rc;
    }
    return buf_append(out, "}", 1);
}

int model_write_json(const struct model *m, struct buf *out)
{
    int rc;
    if ((rc = buf_printf(out, "{\"schema\":\"strata.model.v1\",\"name\":")) < 0 ||
        (rc = jwrite_string(out, m->name)) < 0 || (rc = buf_printf(out, ",\"layers\":[")) < 0)
        return rc;
    for (size_t i = 0; i < m->nlayers; i++)
        if ((rc = buf_printf(out, "%s\n ", i ? "," : "")) < 0 ||
            (rc = write_layer(m, &m->layers[i], out)) < 0)
            return rc;
    if ((rc = buf_printf(out, "],\n\"metadata\":")) < 0 ||
        (rc = buf_append(out, m->metadata, strlen(m->metadata))) < 0)
        return rc;
    return buf_printf(out, "}\n") < 0 ? ST_ENOMEM : ST_OK;
}
