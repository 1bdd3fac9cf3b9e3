/* strata.request.v1: strict reader, resolved against a model and a cluster. */
#include "common/model/request.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/model/jread.h"

static const char *const top_keys[] = {"schema",          "allow",      "deny",      "pin",
                                       "together",        "max_stages", "min_nodes", "max_bytes_per_node",
                                       "max_total_bytes", NULL};

void request_init(struct request *r)
{
    *r = (struct request){
        .max_stages = UINT32_MAX, .max_bytes_per_node = INFINITY, .max_total_bytes = INFINITY};
}

void request_fini(struct request *r)
{
    jread_free_strings(r->allow, r->nallow);
    jread_free_strings(r->deny, r->ndeny);
    for (size_t i = 0; i < r->ntogether; i++)
        free(r->together[i].layers);
    free(r->together);
    free(r->pins);
    request_init(r);
}

static bool any_match(char *const *v, size_t n, const char *id)
{
    for (size_t i = 0; i < n; i++)
        if (str_glob(v[i], id))
            return true;
    return false;
}

bool request_allows(const struct request *r, const char *device_id)
{
    return (!r->nallow || any_match(r->allow, r->nallow, device_id)) &&
           !any_match(r->deny, r->ndeny, device_id);
}

static int read_pins(const struct jread *j, const json_t *root, const struct model *m,
                     const struct cluster *c, struct request *r)
{
    const json_t *pin = json_object_get(root, "pin");
    const char *layer;
    json_t *v;
    if (!pin)
        return ST_OK;
    if (!json_is_object(pin))
        return jread_fail(j, "", "pin", "must be an object of layer: device");
    size_t n = json_object_size(pin);
    if (!n)
        return ST_OK;
    bool *seen = calloc(m->nlayers, sizeof *seen);
    int rc = ST_OK;
    if (!seen || !(r->pins = calloc(n, sizeof *r->pins))) {
        free(seen);
        return jread_nomem(j);
    }
    json_object_foreach((json_t *)pin, layer, v)
    {
        uint32_t l = model_find(m, layer), d = UINT32_MAX;
        if (l == MODEL_NONE)
            rc = jread_fail(j, "pin", layer, "the model has no such layer");
        else if (!json_is_string(v))
            rc = jread_fail(j, "pin", layer, "must be the id of a device");
        else if ((d = cluster_find_device(c, json_string_value(v))) == UINT32_MAX)
            rc = jread_fail(j, "pin", layer, "the cluster has no device \"%.100s\"", json_string_value(v));
        else if (seen[l])
            rc = jread_fail(j, "pin", layer, "the layer is pinned twice");
        if (rc < 0)
            break;
        seen[l] = true;
        r->pins[r->npins++] = (struct request_pin){.layer = l, .device = d};
    }
    free(seen);
    return rc;
}

static int read_group(const struct jread *j, const json_t *list, size_t i, const struct model *m,
                      struct request_group *g, size_t *mark)
{
    char path[64];
    snprintf(path, sizeof path, "together[%zu]", i);
    if (!json_is_array(list))
        return jread_fail(j, path, NULL, "must be a list of layers");
    size_t n = json_array_size(list);
    if (n && !(g->layers = calloc(n, sizeof *g->layers)))
        return jread_nomem(j);
    for (size_t k = 0; k < n; k++) {
        const json_t *v = json_array_get(list, k);
        snprintf(path, sizeof path, "together[%zu][%zu]", i, k);
        if (!json_is_string(v))
            return jread_fail(j, path, NULL, "must be the id of a layer");
        uint32_t l = model_find(m, json_string_value(v));
        if (l == MODEL_NONE)
            return jread_fail(j, path, NULL, "the model has no layer \"%.100s\"", json_string_value(v));
        if (mark[l] == i + 1)
            continue; /* naming a layer twice asks for nothing more */
        mark[l] = i + 1;
        g->layers[g->n++] = l;
    }
    return ST_OK;
}

static int read_together(const struct jread *j, const json_t *root, const struct model *m, struct request *r)
{
    const json_t *list;
    int rc = jread_list(j, root, "", "together", false, &list);
    if (rc < 0 || !list || !json_array_size(list))
        return rc;
    size_t n = json_array_size(list), *mark = calloc(m->nlayers, sizeof *mark);
    if (!mark || !(r->together = calloc(n, sizeof *r->together))) {
        free(mark);
        return jread_nomem(j);
    }
    for (; r->ntogether < n && rc == ST_OK; r->ntogether++)
        rc = read_group(j, json_array_get(list, r->ntogether), r->ntogether, m, &r->together[r->ntogether],
                        mark);
    free(mark);
    return rc;
}

static int read_root(const struct jread *j, const json_t *root, const struct model *m,
                     const struct cluster *c, struct request *r)
{
    const double inf = INFINITY, all = UINT32_MAX, none = 0;
    double stages, nodes;
    int rc;
    if ((rc = jread_schema(j, root, "strata.request.v1", true)) < 0 ||
        (rc = jread_object(j, root, "", top_keys)) < 0 ||
        (rc = jread_strings(j, root, "", "allow", &r->allow, &r->nallow)) < 0 ||
        (rc = jread_strings(j, root, "", "deny", &r->deny, &r->ndeny)) < 0 ||
        (rc = read_pins(j, root, m, c, r)) < 0 || (rc = read_together(j, root, m, r)) < 0 ||
        (rc = jread_whole(j, root, "", "max_stages", 1, all, &all, &stages)) < 0 ||
        (rc = jread_whole(j, root, "", "min_nodes", 0, all, &none, &nodes)) < 0 ||
        (rc = jread_number(j, root, "", "max_bytes_per_node", JREAD_NONNEG, &inf, &r->max_bytes_per_node)) <
            0)
        return rc;
    r->max_stages = (uint32_t)stages;
    r->min_nodes = (uint32_t)nodes;
    return jread_number(j, root, "", "max_total_bytes", JREAD_NONNEG, &inf, &r->max_total_bytes);
}

int request_read_json(const char *text, size_t n, const char *name, const struct model *m,
                      const struct cluster *c, struct request *r, struct err *e)
{
    struct jread j = {name, e};
    json_t *root;
    request_init(r);
    int rc = jread_parse(&j, text, n, &root);
    if (rc < 0)
        return rc;
    rc = read_root(&j, root, m, c, r);
    json_decref(root);
    if (rc < 0)
        request_fini(r);
    return rc;
}

int request_open(const char *path, const struct model *m, const struct cluster *c, struct request *r,
                 struct err *e)
{
    struct buf b = {0};
    request_init(r);
    int rc = fs_read(path, MODEL_MAX_JSON_BYTES, &b, e);
    if (rc == ST_OK)
        rc = request_read_json(buf_cstr(&b), b.len, path, m, c, r, e);
    buf_fini(&b);
    return rc;
}

/* ---- writing ---- */

static int write_strings(const char *key, char *const *v, size_t n, struct buf *out)
{
    int rc = buf_printf(out, ",\n\"%s\":[", key);
    for (size_t i = 0; i < n && rc == ST_OK; i++)
        if (!i || (rc = buf_append(out, ",", 1)) == ST_OK)
            rc = jwrite_string(out, v[i]);
    return rc < 0 ? rc : buf_append(out, "]", 1);
}

static int write_pins(const struct request *r, const struct model *m, const struct cluster *c,
                      struct buf *out)
{
    int rc = buf_printf(out, ",\n\"pin\":{");
    for (size_t i = 0; i < r->npins && rc == ST_OK; i++)
        if ((!i || (rc = buf_append(out, ",", 1)) == ST_OK) &&
            (rc = jwrite_string(out, m->layers[r->pins[i].layer].id)) == ST_OK &&
            (rc = buf_append(out, ":", 1)) == ST_OK)
            rc = jwrite_string(out, c->devices[r->pins[i].device].id);
    return rc < 0 ? rc : buf_append(out, "}", 1);
}

static int write_together(const struct request *r, const struct model *m, struct buf *out)
{
    int rc = buf_printf(out, ",\n\"together\":[");
    for (size_t i = 0; i < r->ntogether && rc == ST_OK; i++) {
        rc = buf_printf(out, i ? ",[" : "[");
        for (size_t k = 0; k < r->together[i].n && rc == ST_OK; k++)
            if (!k || (rc = buf_append(out, ",", 1)) == ST_OK)
                rc = jwrite_string(out, m->layers[r->together[i].layers[k]].id);
        if (rc == ST_OK)
            rc = buf_append(out, "]", 1);
    }
    return rc < 0 ? rc : buf_append(out, "]", 1);
}

static int write_number(const char *key, double v, struct buf *out)
{
    int rc = buf_printf(out, ",\n\"%s\":", key);
    return rc < 0 ? rc : jwrite_number(out, v);
}

int request_write_json(const struct request *r, const struct model *m, const struct cluster *c,
                       struct buf *out)
{
    int rc = buf_printf(out, "{\"schema\":\"strata.request.v1\"");
    if (rc == ST_OK && r->nallow)
        rc = write_strings("allow", r->allow, r->nallow, out);
    if (rc == ST_OK && r->ndeny)
        rc = write_strings("deny", r->deny, r->ndeny, out);
    if (rc == ST_OK && r->npins)
        rc = write_pins(r, m, c, out);
    if (rc == ST_OK && r->ntogether)
        rc = write_together(r, m, out);
    if (rc == ST_OK && r->max_stages != UINT32_MAX)
        rc = write_number("max_stages", r->max_stages, out);
    if (rc == ST_OK && r->min_nodes)
        rc = write_number("min_nodes", r->min_nodes, out);
    if (rc == ST_OK && r->max_bytes_per_node < INFINITY)
        rc = write_number("max_bytes_per_node", r->max_bytes_per_node, out);
    if (rc == ST_OK && r->max_total_bytes < INFINITY)
        rc = write_number("max_total_bytes", r->max_total_bytes, out);
    return rc < 0 ? rc : buf_append(out, "}\n", 2);
}
