/* The immutable part of a job as JSON in state.db: what was asked for and where each layer's bytes lie. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "coordinator/jobs/jobs_priv.h"

static json_t *strings(char *const *v, size_t n)
{
    json_t *a = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, json_string(v[i]));
    return a;
}

static json_t *layer_json(const struct job_layer *l)
{
    json_t *p = json_array();
    for (size_t i = 0; i < l->npieces; i++)
        json_array_append_new(p, json_pack("[I,I,I]", (json_int_t)l->pieces[i].file,
                                           (json_int_t)l->pieces[i].offset, (json_int_t)l->pieces[i].length));
    return json_pack("{s:s,s:s,s:I,s:o}", "id", l->id, "device", l->device, "bytes", (json_int_t)l->bytes,
                     "pieces", p);
}

int job_record_write(const struct job *j, struct buf *out)
{
    char hex[65];
    hex_encode(hex, j->header_sha256, 32);
    json_t *layers = json_array();
    for (size_t i = 0; i < j->nlayers; i++)
        json_array_append_new(layers, layer_json(&j->layers[i]));
    json_t *o = json_pack(
        "{s:i,s:s,s:i,s:I,s:I,s:I,s:b,s:I,s:I,s:o,s:o,s:s,s:I,s:o,s:o}", "version", 1, "path", j->spec.path,
        "goal", (int)j->spec.goal, "context", (json_int_t)j->spec.context, "sequences",
        (json_int_t)j->spec.sequences, "tokens", (json_int_t)j->spec.tokens, "split", j->spec.split,
        "min_nodes", (json_int_t)j->spec.min_nodes, "max_stages", (json_int_t)j->spec.max_stages, "allow",
        strings(j->spec.allow, j->spec.nallow), "deny", strings(j->spec.deny, j->spec.ndeny), "header", hex,
        "files", (json_int_t)j->nfiles, "sources", strings(j->sources, j->nsources), "layers", layers);
    char *s = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (!s)
        return ST_ENOMEM;
    int rc = buf_append(out, s, strlen(s));
    free(s);
    return rc;
}

static int take_strings(const json_t *a, char ***v, size_t *n)
{
    size_t count = json_array_size(a);
    *v = calloc(count ? count : 1, sizeof(**v));
    if (!*v)
        return ST_ENOMEM;
    for (*n = 0; *n < count; ++*n) {
        const char *s = json_string_value(json_array_get(a, *n));
        if (!s)
            return ST_ECORRUPT;
        if (!((*v)[*n] = strdup(s)))
            return ST_ENOMEM;
    }
    return ST_OK;
}

static int take_layer(struct job_layer *l, const json_t *o)
{
    const char *id = json_string_value(json_object_get(o, "id"));
    const char *device = json_string_value(json_object_get(o, "device"));
    const json_t *p = json_object_get(o, "pieces");
    if (!id || !device || !json_is_array(p))
        return ST_ECORRUPT;
    l->id = strdup(id);
    l->device = strdup(device);
    l->bytes = (uint64_t)json_integer_value(json_object_get(o, "bytes"));
    l->mem = l->bytes; /* until the plan is read */
    l->pieces = calloc(json_array_size(p) + 1, sizeof *l->pieces);
    if (!l->id || !l->device || !l->pieces)
        return ST_ENOMEM;
    for (size_t i = 0; i < json_array_size(p); i++) {
        const json_t *q = json_array_get(p, i);
        l->pieces[l->npieces++] = (struct job_piece){(uint32_t)json_integer_value(json_array_get(q, 0)),
                                                     (uint64_t)json_integer_value(json_array_get(q, 1)),
                                                     (uint64_t)json_integer_value(json_array_get(q, 2))};
    }
    return ST_OK;
}

static int take_all(struct job *j, const json_t *o)
{
    int rc;
    size_t n;
    const char *path = json_string_value(json_object_get(o, "path"));
    const char *hex = json_string_value(json_object_get(o, "header"));
    const json_t *layers = json_object_get(o, "layers");
    if (json_integer_value(json_object_get(o, "version")) != 1 || !path || !hex || !json_is_array(layers) ||
        hex_decode(j->header_sha256, 32, hex, &n) < 0 || n != 32)
        return ST_ECORRUPT;
    struct job_spec *s = &j->spec;
    if (!(s->path = strdup(path)))
        return ST_ENOMEM;
    s->goal = (enum plan_goal)json_integer_value(json_object_get(o, "goal"));
    s->context = (uint64_t)json_integer_value(json_object_get(o, "context"));
    s->sequences = (uint32_t)json_integer_value(json_object_get(o, "sequences"));
    s->tokens = (uint32_t)json_integer_value(json_object_get(o, "tokens"));
    s->split = json_is_true(json_object_get(o, "split"));
    s->min_nodes = (uint32_t)json_integer_value(json_object_get(o, "min_nodes"));
    s->max_stages = (uint32_t)json_integer_value(json_object_get(o, "max_stages"));
    j->nfiles = (unsigned)json_integer_value(json_object_get(o, "files"));
    if ((rc = take_strings(json_object_get(o, "allow"), &s->allow, &s->nallow)) < 0 ||
        (rc = take_strings(json_object_get(o, "deny"), &s->deny, &s->ndeny)) < 0 ||
        (rc = take_strings(json_object_get(o, "sources"), &j->sources, &j->nsources)) < 0)
        return rc;
    j->layers = calloc(json_array_size(layers) + 1, sizeof *j->layers);
    if (!j->layers)
        return ST_ENOMEM;
    for (size_t i = 0; i < json_array_size(layers); i++) {
        j->nlayers++;
        if ((rc = take_layer(&j->layers[i], json_array_get(layers, i))) < 0)
            return rc;
    }
    return ST_OK;
}

int job_record_read(struct job *j, const char *text, size_t n, struct err *e)
{
    json_error_t je;
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    int rc = o ? take_all(j, o) : ST_ECORRUPT;
    json_decref(o);
    return rc < 0 ? err_set(e, rc,
                            "the record of job %s in state.db cannot be read: restore the file from a backup",
                            j->id)
                  : ST_OK;
}
