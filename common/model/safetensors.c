/* safetensors headers, index and config; see safetensors.h. */
#include "common/model/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/map.h"
#include "common/base/str.h"
#include "common/model/jread.h"
#include "common/model/model.h"

static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};

static int corrupt(const char *what, const char *tensor, const char *why, struct err *e)
{
    return err_set(e, ST_ECORRUPT, "%.200s: %s%.100s%s%s; get the file again", what, *tensor ? "tensor " : "",
                   tensor, *tensor ? ": " : "", why);
}

static bool whole(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static int read_shape(const json_t *shape, const char *what, struct tensor *t, struct err *e)
{
    size_t n = json_array_size(shape);
    if (!json_is_array(shape) || n > TENSOR_MAX_DIMS)
        return corrupt(what, t->name, "its shape is not a list of at most 8 sizes", e);
    t->ndims = (uint32_t)n;
    t->elements = t->rows = 1;
    for (size_t i = 0; i < n; i++) {
        uint64_t d;
        if (!whole(json_array_get(shape, i), &d))
            return corrupt(what, t->name, "a size is not a whole number", e);
        if (__builtin_mul_overflow(t->elements, d, &t->elements) || t->elements > INT64_MAX / 64 ||
            (i + 1 < n && __builtin_mul_overflow(t->rows, d, &t->rows)))
            return corrupt(what, t->name, "its size overflows", e);
    }
    return ST_OK;
}

static int read_entry(const json_t *x, const char *what, uint64_t data, uint64_t size, struct tensor *t,
                      struct err *e)
{
    const char *dtype = json_string_value(json_object_get(x, "dtype"));
    const json_t *off = json_object_get(x, "data_offsets");
    uint64_t begin, end, bits;
    unsigned per = 0;
    int rc = read_shape(json_object_get(x, "shape"), what, t, e);
    if (rc < 0)
        return rc;
    for (size_t i = 0; dtype && i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(dtype, dtypes[i].name)) {
            t->dtype = dtypes[i].name;
            per = dtypes[i].bits;
        }
    if (!per)
        return err_set(e, ST_ENOTSUP, "%.200s: tensor %.100s has unknown dtype \"%.40s\"", what, t->name,
                       dtype ? dtype : "");
    if (!json_is_array(off) || json_array_size(off) != 2 || !whole(json_array_get(off, 0), &begin) ||
        !whole(json_array_get(off, 1), &end) || begin > end)
        return corrupt(what, t->name, "data_offsets are not [begin, end]", e);
    bits = t->elements * per; /* ≤ INT64_MAX by read_shape */
    if (bits % 8 || end - begin != bits / 8)
        return corrupt(what, t->name, "its bytes do not fit its shape and dtype", e);
    if (end > size - data)
        return corrupt(what, t->name, "it lies beyond the end of the file, which is cut short", e);
    t->offset = data + begin;
    t->length = end - begin;
    return ST_OK;
}

static int read_header(const char *text, size_t n, const char *what, uint32_t file, uint64_t size,
                       struct tensor_table *t, struct err *e)
{
    json_error_t je;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je), *x;
    const char *key;
    int rc = ST_OK;
    if (!root && jread_out_of_memory(&je))
        return err_set(e, ST_ENOMEM, "%.200s: not enough memory to read it", what);
    if (!root)
        return err_set(e, ST_ECORRUPT, "%.200s: the safetensors header is not JSON: %s (byte %d)", what,
                       je.text, je.position);
    if (!json_is_object(root))
        rc = corrupt(what, "", "the safetensors header is not an object", e);
    if (rc == ST_OK)
        json_object_foreach(root, key, x)
        {
            struct tensor *v;
            if (!strcmp(key, "__metadata__"))
                continue;
            if (!*key || strlen(key) > TENSOR_MAX_NAME) {
                rc = corrupt(what, key, "its name is empty or too long", e);
                break;
            }
            if ((rc = tensor_table_add(t, &v)) < 0 || !(v->name = strdup(key))) {
                rc = err_set(e, rc < 0 ? rc : ST_ENOMEM, "%.200s: too many tensors to read", what);
                break;
            }
            v->file = file;
            if ((rc = read_entry(x, what, 8 + (uint64_t)n, size, v, e)) < 0)
                break;
        }
    json_decref(root);
    return rc;
}

int safetensors_read(const struct model_src *src, const char *what, uint32_t file, uint8_t digest[32],
                     struct tensor_table *t, struct err *e)
{
    uint8_t b[8];
    uint64_t n = 0;
    int rc;
    if (src->size < 8)
        return corrupt(what, "", "too short for a safetensors file", e);
    if ((rc = src->pread(src->arg, b, 8, 0)) < 0)
        return err_set(e, rc, "%.200s: cannot read its header", what);
    for (int i = 8; i-- > 0;)
        n = n << 8 | b[i];
    if (n < 2 || n > src->size - 8)
        return corrupt(what, "", "the safetensors header is longer than the file", e);
    if (n > SAFETENSORS_MAX_HEADER_BYTES)
        return err_set(e, ST_ELIMIT, "%.200s: its header has %" PRIu64 " bytes, more than the %u MiB allowed",
                       what, n, SAFETENSORS_MAX_HEADER_BYTES >> 20);
    char *text = malloc(8 + (size_t)n);
    if (!text)
        return err_set(e, ST_ENOMEM, "%.200s: not enough memory for its header", what);
    memcpy(text, b, 8);
    if ((rc = src->pread(src->arg, text + 8, (size_t)n, 8)) < 0)
        err_set(e, rc, "%.200s: cannot read its header", what);
    else if (EVP_Digest(text, 8 + (size_t)n, digest, NULL, EVP_sha256(), NULL) != 1)
        rc = err_set(e, ST_ENOMEM, "SHA-256 failed");
    else
        rc = read_header(text + 8, (size_t)n, what, file, src->size, t, e);
    free(text);
    return rc;
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A plain name in the same directory; an index must not lead anywhere else. */
static bool plain_name(const char *s)
{
    return *s && strlen(s) < 256 && !strchr(s, '/') && strcmp(s, ".") && strcmp(s, "..");
}

static int collect_files(const json_t *wmap, const char *what, struct safetensors_index *ix, struct err *e)
{
    size_t n = json_object_size(wmap), kept = 0;
    const char *key;
    json_t *v;
    if (!n)
        return corrupt(what, "", "the index names no tensor in \"weight_map\"", e);
    if (!(ix->files = calloc(n, sizeof *ix->files)))
        return err_set(e, ST_ENOMEM, "%.200s: not enough memory to read it", what);
    json_object_foreach((json_t *)wmap, key, v)
    {
        if (!json_is_string(v) || !plain_name(json_string_value(v)))
            return corrupt(what, key, "its shard is not a plain file name", e);
        if (!(ix->files[ix->nfiles] = strdup(json_string_value(v))))
            return err_set(e, ST_ENOMEM, "%.200s: not enough memory to read it", what);
        ix->nfiles++;
    }
    qsort(ix->files, n, sizeof *ix->files, by_string);
    for (size_t i = 0; i < n; i++) {
        if (kept && !strcmp(ix->files[kept - 1], ix->files[i]))
            free(ix->files[i]);
        else
            ix->files[kept++] = ix->files[i];
    }
    ix->nfiles = kept;
    if (kept > MODEL_MAX_FILES)
        return err_set(e, ST_ELIMIT, "%.200s: names %zu shards, more than %u", what, kept, MODEL_MAX_FILES);
    return ST_OK;
}

int safetensors_index_read(const char *text, size_t n, const char *what, struct safetensors_index *ix,
                           struct err *e)
{
    json_error_t je;
    *ix = (struct safetensors_index){0};
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    if (!root && jread_out_of_memory(&je))
        return err_set(e, ST_ENOMEM, "%.200s: not enough memory to read it", what);
    if (!root)
        return err_set(e, ST_ECORRUPT, "%.200s: line %d, column %d: %s", what, je.line, je.column, je.text);
    ix->root = root;
    const json_t *wmap = json_object_get(root, "weight_map");
    int rc = json_is_object(wmap) ? collect_files(wmap, what, ix, e)
                                  : corrupt(what, "", "the index has no \"weight_map\" object", e);
    if (rc < 0)
        safetensors_index_fini(ix);
    return rc;
}

int safetensors_index_check(const struct safetensors_index *ix, const char *what,
                            const struct tensor_table *t, struct err *e)
{
    struct map *m;
    const char *key;
    json_t *v;
    int rc = map_new(&m, rng_system());
    if (rc < 0)
        return err_set(e, rc, "%.200s: not enough memory to check it", what);
    for (size_t i = 0; i < t->n && rc == ST_OK; i++)
        rc = map_put(m, t->v[i].name, strlen(t->v[i].name), &t->v[i], NULL);
    if (rc < 0)
        err_set(e, rc, "%.200s: not enough memory to check it", what);
    else
        json_object_foreach(json_object_get(ix->root, "weight_map"), key, v)
        {
            const struct tensor *x = map_get(m, key, strlen(key));
            if (x && !strcmp(ix->files[x->file], json_string_value(v)))
                continue;
            rc = err_set(e, ST_ECORRUPT, "%.200s: tensor %.100s is not in %.100s, where the index says it is",
                         what, key, json_string_value(v));
            break;
        }
    map_free(m);
    return rc;
}

void safetensors_index_fini(struct safetensors_index *ix)
{
    jread_free_strings(ix->files, ix->nfiles);
    json_decref(ix->root);
    *ix = (struct safetensors_index){0};
}

static void figure(const json_t *o, const char *const *names, uint64_t *out)
{
    for (; *names; names++) {
        uint64_t v;
        if (whole(json_object_get(o, *names), &v) && v <= (1ull << 40)) {
            *out = v;
            return;
        }
    }
}
#define FIGURE(o, field, ...) figure((o), (const char *const[]){__VA_ARGS__, NULL}, &h->field)

int safetensors_config(const char *text, size_t n, const char *what, struct hparams *h, struct err *e)
{
    json_error_t je;
    json_t *root = json_loadb(text, n, 0, &je);
    if (!root && jread_out_of_memory(&je))
        return err_set(e, ST_ENOMEM, "%.200s: not enough memory to read it", what);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(e, ST_ECORRUPT, "%.200s: not a JSON object", what);
    }
    const json_t *o = json_object_get(root, "text_config"); /* multimodal models nest the decoder's figures */
    if (!json_is_object(o))
        o = root;
    const char *type = json_string_value(json_object_get(o, "model_type"));
    const char *name = json_string_value(json_object_get(root, "_name_or_path"));
    str_copy(h->arch, sizeof h->arch, type ? type : "");
    str_copy(h->name, sizeof h->name, name ? name : "");
    FIGURE(o, blocks, "num_hidden_layers", "n_layer", "num_layers", "n_layers");
    FIGURE(o, embedding, "hidden_size", "n_embd", "d_model");
    FIGURE(o, heads, "num_attention_heads", "n_head", "n_heads", "num_heads");
    FIGURE(o, heads_kv, "num_key_value_heads", "num_kv_heads", "multi_query_group_num");
    FIGURE(o, key_length, "head_dim");
    FIGURE(o, value_length, "v_head_dim", "head_dim");
    FIGURE(o, ff, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size");
    FIGURE(o, experts, "num_local_experts", "n_routed_experts", "num_experts");
    FIGURE(o, experts_used, "num_experts_per_tok", "num_experts_per_token", "top_k_experts");
    FIGURE(o, vocab, "vocab_size");
    FIGURE(o, context, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length");
    FIGURE(o, kv_lora_rank, "kv_lora_rank");
    FIGURE(o, rope_dims, "qk_rope_head_dim");
    json_decref(root);
    return ST_OK;
}
