/* strata.cluster.v1: strict reader and writer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fs.h"
#include "common/model/cluster.h"
#include "common/model/jread.h"
#include "common/model/model.h"

static const char *const top_keys[] = {"schema",         "devices",     "links", "default_link",
                                       "same_node_link", "client_node", NULL};
static const char *const device_keys[] = {"id",
                                          "node",
                                          "memory_bytes",
                                          "headroom_bytes",
                                          "compute_flops_per_s",
                                          "memory_bytes_per_s",
                                          "layer_overhead_s",
                                          "stage_overhead_s",
                                          "speed_factor",
                                          "segment_s",
                                          "resident_layers",
                                          NULL};
static const char *const link_keys[] = {"from", "to", "bytes_per_s", "rtt_s", NULL};
static const char *const rate_keys[] = {"bytes_per_s", "rtt_s", NULL};

static int read_segments(const struct jread *j, const json_t *x, const char *path, struct cluster_device *d)
{
    const json_t *list;
    int rc = jread_list(j, x, path, "segment_s", false, &list);
    if (rc < 0 || !list)
        return rc;
    d->has_segment = true;
    size_t n = json_array_size(list);
    if (n && !(d->segment_s = calloc(n, sizeof *d->segment_s)))
        return jread_nomem(j);
    for (; d->nsegment < n; d->nsegment++) {
        char at[80];
        snprintf(at, sizeof at, "%s.segment_s[%zu]", path, d->nsegment);
        rc = jread_number_value(j, json_array_get(list, d->nsegment), at, JREAD_NONNEG,
                                &d->segment_s[d->nsegment]);
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

static int read_device_fields(const struct jread *j, const json_t *x, const char *path,
                              struct cluster_device *d)
{
    const double zero = 0, one = 1;
    int rc;
    if ((rc = jread_number(j, x, path, "memory_bytes", JREAD_NONNEG, NULL, &d->memory_bytes)) < 0 ||
        (rc = jread_number(j, x, path, "headroom_bytes", JREAD_NONNEG, &zero, &d->headroom_bytes)) < 0 ||
        (rc = jread_number(j, x, path, "compute_flops_per_s", JREAD_POSITIVE, NULL,
                           &d->compute_flops_per_s)) < 0 ||
        (rc = jread_number(j, x, path, "memory_bytes_per_s", JREAD_POSITIVE, NULL, &d->memory_bytes_per_s)) <
            0 ||
        (rc = jread_number(j, x, path, "layer_overhead_s", JREAD_NONNEG, &zero, &d->layer_overhead_s)) < 0 ||
        (rc = jread_number(j, x, path, "stage_overhead_s", JREAD_NONNEG, &zero, &d->stage_overhead_s)) < 0 ||
        (rc = jread_number(j, x, path, "speed_factor", JREAD_POSITIVE, &one, &d->speed_factor)) < 0 ||
        (rc = read_segments(j, x, path, d)) < 0)
        return rc;
    return jread_strings(j, x, path, "resident_layers", &d->resident_layers, &d->nresident);
}

static int read_device(const struct jread *j, const json_t *x, size_t i, struct cluster *c)
{
    struct cluster_device d = {0};
    const char *id, *node;
    char path[40];
    int rc;
    snprintf(path, sizeof path, "devices[%zu]", i);
    if ((rc = jread_object(j, x, path, device_keys)) < 0 ||
        (rc = jread_string(j, x, path, "id", true, &id)) < 0 ||
        (rc = jread_string(j, x, path, "node", true, &node)) < 0 ||
        (rc = read_device_fields(j, x, path, &d)) < 0)
        goto out;
    rc = cluster_add_device(c, id, node, &d);
    if (rc == ST_EEXIST)
        rc = jread_fail(j, path, "id", "duplicate device id \"%.100s\"", id);
    else if (rc == ST_ELIMIT)
        rc = jread_fail(j, path, NULL, "there are more than %u devices", CLUSTER_MAX_DEVICES);
    else if (rc == ST_ENOMEM)
        rc = jread_nomem(j);
    else if (rc < 0)
        rc = jread_fail(j, path, NULL, "a figure of this device is out of range");
out:
    free(d.segment_s);
    jread_free_strings(d.resident_layers, d.nresident);
    return rc;
}

static int read_rate(const struct jread *j, const json_t *x, const char *path, struct cluster_rate *r)
{
    int rc = jread_number(j, x, path, "bytes_per_s", JREAD_POSITIVE, NULL, &r->bytes_per_s);
    return rc < 0 ? rc : jread_number(j, x, path, "rtt_s", JREAD_NONNEG, NULL, &r->rtt_s);
}

static int read_link(const struct jread *j, const json_t *x, size_t i, struct cluster *c)
{
    struct cluster_rate r;
    const char *from, *to;
    char path[40];
    int rc;
    snprintf(path, sizeof path, "links[%zu]", i);
    if ((rc = jread_object(j, x, path, link_keys)) < 0 ||
        (rc = jread_string(j, x, path, "from", true, &from)) < 0 ||
        (rc = jread_string(j, x, path, "to", true, &to)) < 0 || (rc = read_rate(j, x, path, &r)) < 0)
        return rc;
    rc = cluster_add_link(c, from, to, &r);
    if (rc == ST_ELIMIT)
        return jread_fail(j, path, NULL, "there are too many links");
    return rc < 0 ? jread_nomem(j) : ST_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct cluster_link *const *x = a, *const *y = b;
    if ((*x)->from != (*y)->from)
        return (*x)->from < (*y)->from ? -1 : 1;
    if ((*x)->to != (*y)->to)
        return (*x)->to < (*y)->to ? -1 : 1;
    return *x == *y ? 0 : *x < *y ? -1 : 1;
}

/* Before sealing, while links[i] is still entry i of the file. */
static int check_duplicates(const struct jread *j, const struct cluster *c)
{
    if (c->nlinks < 2)
        return ST_OK;
    const struct cluster_link **v = calloc(c->nlinks, sizeof *v);
    int rc = ST_OK;
    if (!v)
        return jread_nomem(j);
    for (size_t i = 0; i < c->nlinks; i++)
        v[i] = &c->links[i];
    qsort(v, c->nlinks, sizeof *v, by_place);
    for (size_t i = 1; i < c->nlinks && rc == ST_OK; i++)
        if (v[i - 1]->from == v[i]->from && v[i - 1]->to == v[i]->to) {
            char path[40];
            snprintf(path, sizeof path, "links[%zu]", (size_t)(v[i] - c->links));
            rc = jread_fail(j, path, NULL, "duplicate link from \"%.80s\" to \"%.80s\"", c->nodes[v[i]->from],
                            c->nodes[v[i]->to]);
        }
    free(v);
    return rc;
}

static int read_plain_link(const struct jread *j, const json_t *root, const char *key, bool *has,
                           struct cluster_rate *r)
{
    const json_t *x = json_object_get(root, key);
    if (!x)
        return ST_OK;
    *has = true;
    int rc = jread_object(j, x, key, rate_keys);
    return rc < 0 ? rc : read_rate(j, x, key, r);
}

static int read_root(const struct jread *j, const json_t *root, struct cluster *c)
{
    const json_t *devices, *links;
    const char *client;
    int rc;
    if ((rc = jread_schema(j, root, "strata.cluster.v1", false)) < 0 ||
        (rc = jread_object(j, root, "", top_keys)) < 0 ||
        (rc = jread_list(j, root, "", "devices", true, &devices)) < 0 ||
        (rc = jread_list(j, root, "", "links", false, &links)) < 0 ||
        (rc = jread_string(j, root, "", "client_node", false, &client)) < 0 ||
        (rc = read_plain_link(j, root, "default_link", &c->has_default_link, &c->default_link)) < 0 ||
        (rc = read_plain_link(j, root, "same_node_link", &c->has_same_node_link, &c->same_node_link)) < 0)
        return rc;
    if (!json_array_size(devices))
        return jread_fail(j, "", "devices", "must name at least one device");
    for (size_t i = 0; i < json_array_size(devices); i++)
        if ((rc = read_device(j, json_array_get(devices, i), i, c)) < 0)
            return rc;
    for (size_t i = 0; links && i < json_array_size(links); i++)
        if ((rc = read_link(j, json_array_get(links, i), i, c)) < 0)
            return rc;
    if ((rc = check_duplicates(j, c)) < 0)
        return rc;
    if ((client && cluster_set_client(c, client) < 0) || cluster_seal(c) < 0)
        return jread_nomem(j);
    return ST_OK;
}

int cluster_read_json(const char *text, size_t n, const char *name, struct cluster **out, struct err *e)
{
    struct jread j = {name, e};
    struct cluster *c = NULL;
    json_t *root;
    int rc = jread_parse(&j, text, n, &root);
    if (rc < 0)
        return rc;
    rc = cluster_new(&c) < 0 ? jread_nomem(&j) : read_root(&j, root, c);
    json_decref(root);
    if (rc < 0)
        cluster_free(c);
    else
        *out = c;
    return rc;
}

int cluster_open(const char *path, struct cluster **out, struct err *e)
{
    struct buf b = {0};
    int rc = fs_read(path, MODEL_MAX_JSON_BYTES, &b, e);
    if (rc == ST_OK)
        rc = cluster_read_json(buf_cstr(&b), b.len, path, out, e);
    buf_fini(&b);
    return rc;
}

static int field(struct buf *out, const char *key, double v)
{
    int rc = buf_printf(out, ",\"%s\":", key);
    return rc < 0 ? rc : jwrite_number(out, v);
}

static int write_device(const struct cluster *c, const struct cluster_device *d, struct buf *out)
{
    int rc;
    if ((rc = buf_printf(out, "{\"id\":")) < 0 || (rc = jwrite_string(out, d->id)) < 0 ||
        (rc = buf_printf(out, ",\"node\":")) < 0 || (rc = jwrite_string(out, c->nodes[d->node])) < 0 ||
        (rc = field(out, "memory_bytes", d->memory_bytes)) < 0 ||
        (rc = field(out, "headroom_bytes", d->headroom_bytes)) < 0 ||
        (rc = field(out, "compute_flops_per_s", d->compute_flops_per_s)) < 0 ||
        (rc = field(out, "memory_bytes_per_s", d->memory_bytes_per_s)) < 0 ||
        (rc = field(out, "layer_overhead_s", d->layer_overhead_s)) < 0 ||
        (rc = field(out, "stage_overhead_s", d->stage_overhead_s)) < 0 ||
        (rc = field(out, "speed_factor", d->speed_factor)) < 0)
        return rc;
    if (d->has_segment) {
        if ((rc = buf_printf(out, ",\"segment_s\":[")) < 0)
            return rc;
        for (size_t i = 0; i < d->nsegment; i++)
            if ((i && (rc = buf_append(out, ",", 1)) < 0) || (rc = jwrite_number(out, d->segment_s[i])) < 0)
                return rc;
        if ((rc = buf_append(out, "]", 1)) < 0)
            return rc;
    }
    if ((rc = buf_printf(out, ",\"resident_layers\":[")) < 0)
        return rc;
    for (size_t i = 0; i < d->nresident; i++)
        if ((i && (rc = buf_append(out, ",", 1)) < 0) || (rc = jwrite_string(out, d->resident_layers[i])) < 0)
            return rc;
    return buf_append(out, "]}", 2);
}

static int write_rate(struct buf *out, const char *before, const struct cluster_rate *r)
{
    int rc;
    if ((rc = buf_printf(out, "%s\"bytes_per_s\":", before)) < 0 ||
        (rc = jwrite_number(out, r->bytes_per_s)) < 0 || (rc = field(out, "rtt_s", r->rtt_s)) < 0)
        return rc;
    return buf_append(out, "}", 1);
}

static int write_link(const struct cluster *c, const struct cluster_link *l, struct buf *out)
{
    int rc;
    if ((rc = buf_printf(out, "{\"from\":")) < 0 || (rc = jwrite_string(out, c->nodes[l->from])) < 0 ||
        (rc = buf_printf(out, ",\"to\":")) < 0 || (rc = jwrite_string(out, c->nodes[l->to])) < 0)
        return rc;
    return write_rate(out, ",", &l->rate);
}

int cluster_write_json(const struct cluster *c, struct buf *out)
{
    int rc = buf_printf(out, "{\"schema\":\"strata.cluster.v1\",\n\"devices\":[");
    for (size_t i = 0; rc == ST_OK && i < c->ndevices; i++)
        if ((rc = buf_printf(out, "%s\n ", i ? "," : "")) == ST_OK)
            rc = write_device(c, &c->devices[i], out);
    if (rc == ST_OK)
        rc = buf_printf(out, "],\n\"links\":[");
    for (size_t i = 0; rc == ST_OK && i < c->nlinks; i++)
        if ((rc = buf_printf(out, "%s\n ", i ? "," : "")) == ST_OK)
            rc = write_link(c, &c->links[i], out);
    if (rc == ST_OK)
        rc = buf_append(out, "]", 1);
    if (rc == ST_OK && c->has_default_link)
        rc = write_rate(out, ",\n\"default_link\":{", &c->default_link);
    if (rc == ST_OK && c->has_same_node_link)
        rc = write_rate(out, ",\n\"same_node_link\":{", &c->same_node_link);
    if (rc == ST_OK && c->client_node != CLUSTER_NO_NODE &&
        (rc = buf_printf(out, ",\n\"client_node\":")) == ST_OK)
        rc = jwrite_string(out, c->nodes[c->client_node]);
    return rc < 0 ? rc : buf_append(out, "}\n", 2);
}
