/* GGUF reader; see gguf.h. Numbers are little-endian whatever the host is. */
#include "common/model/gguf.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/model.h"

#define WINDOW (1u << 16)
#define MAX_KEY 65535u
#define MAX_KEPT_STRING 65536u
#define MAX_KV 65536u
#define MAX_NESTING 8

static const struct {
    const char *name;
    uint16_t block, bytes;
} ggml_types[] = {
    [0] = {"F32", 1, 4},           [1] = {"F16", 1, 2},           [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},        [6] = {"Q5_0", 32, 22},        [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},        [9] = {"Q8_1", 32, 36},        [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},     [12] = {"Q4_K", 256, 144},     [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},     [15] = {"Q8_K", 256, 292},     [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},    [18] = {"IQ3_XXS", 256, 98},   [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},     [21] = {"IQ3_S", 256, 110},    [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136},   [24] = {"I8", 1, 1},           [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},          [27] = {"I64", 1, 8},          [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},     [30] = {"BF16", 1, 2},         [31] = {"Q4_0_4_4", 32, 18},
    [32] = {"Q4_0_4_8", 32, 18},   [33] = {"Q4_0_8_8", 32, 18},   [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},     [36] = {"IQ4_NL_4_4", 32, 18}, [37] = {"IQ4_NL_4_8", 32, 18},
    [38] = {"IQ4_NL_8_8", 32, 18}, [39] = {"MXFP4", 32, 17},      [40] = {"NVFP4", 64, 36},
    [41] = {"Q1_0", 128, 18},      [42] = {"Q2_0", 64, 18},
};

bool ggml_type_info(uint32_t type, const char **name, uint32_t *block, uint32_t *bytes)
{
    if (type >= sizeof ggml_types / sizeof *ggml_types || !ggml_types[type].name)
        return false;
    *name = ggml_types[type].name;
    *block = ggml_types[type].block;
    *bytes = ggml_types[type].bytes;
    return true;
}

/* A forward cursor over the file through a window, hashing what it passes. */
struct cursor {
    const struct model_src *src;
    const char *what;
    struct err *e;
    EVP_MD_CTX *md;
    uint64_t start; /* file offset of the window */
    size_t len, at; /* bytes in the window, and how many are consumed */
    uint8_t win[WINDOW];
};

static uint64_t pos(const struct cursor *c)
{
    return c->start + c->at;
}

static uint64_t left(const struct cursor *c)
{
    return c->src->size - pos(c);
}

static int corrupt(struct cursor *c, const char *why)
{
    return err_set(c->e, ST_ECORRUPT,
                   "%.200s: not a whole GGUF file: %s at byte %" PRIu64 "; get the file again", c->what, why,
                   pos(c));
}

static int refill(struct cursor *c)
{
    if (EVP_DigestUpdate(c->md, c->win, c->len) != 1)
        return err_set(c->e, ST_ENOMEM, "SHA-256 failed");
    c->start += c->len;
    c->len = c->at = 0;
    uint64_t n = c->src->size - c->start;
    if (!n)
        return corrupt(c, "it ends");
    if (c->start >= MODEL_MAX_HEADER_BYTES)
        return err_set(c->e, ST_ELIMIT, "%.200s: its header is larger than %u MiB", c->what,
                       MODEL_MAX_HEADER_BYTES >> 20);
    if (n > sizeof c->win)
        n = sizeof c->win;
    int rc = c->src->pread(c->src->arg, c->win, (size_t)n, c->start);
    if (rc < 0)
        return err_set(c->e, rc, "%.200s: cannot read %" PRIu64 " bytes at %" PRIu64, c->what, n, c->start);
    c->len = (size_t)n;
    return ST_OK;
}

/* n bytes to p, or past them when p is NULL. */
static int take(struct cursor *c, void *p, uint64_t n)
{
    if (n > left(c))
        return corrupt(c, "it ends too early");
    uint8_t *to = p;
    while (n) {
        if (c->at == c->len) {
            int rc = refill(c);
            if (rc < 0)
                return rc;
        }
        size_t k = c->len - c->at;
        if (k > n)
            k = (size_t)n;
        if (to) {
            memcpy(to, c->win + c->at, k);
            to += k;
        }
        c->at += k;
        n -= k;
    }
    return ST_OK;
}

static int take_uint(struct cursor *c, unsigned bytes, uint64_t *out)
{
    uint8_t b[8];
    int rc = take(c, b, bytes);
    if (rc < 0)
        return rc;
    uint64_t v = 0;
    for (unsigned i = bytes; i-- > 0;)
        v = v << 8 | b[i];
    *out = v;
    return ST_OK;
}

static int take_u32(struct cursor *c, uint32_t *out)
{
    uint64_t v;
    int rc = take_uint(c, 4, &v);
    if (rc == ST_OK)
        *out = (uint32_t)v;
    return rc;
}

/* A string of at most max bytes; longer is an error, or, with cut, shortened. No NUL inside unless cut. */
static int take_string(struct cursor *c, uint64_t max, bool cut, char **out)
{
    uint64_t n;
    int rc = take_uint(c, 8, &n);
    if (rc < 0)
        return rc;
    if (n > left(c))
        return corrupt(c, "a string is longer than the file");
    if (n > max && !cut)
        return corrupt(c, "a name is too long");
    uint64_t keep = n < max ? n : max;
    char *s = malloc((size_t)keep + 1);
    if (!s)
        return err_set(c->e, ST_ENOMEM, "%.200s: not enough memory to read it", c->what);
    s[keep] = 0;
    if ((rc = take(c, s, keep)) < 0 || (rc = take(c, NULL, n - keep)) < 0)
        goto fail;
    if (!cut && (!n || strlen(s) != n)) {
        rc = corrupt(c, "a name is empty or holds a zero byte");
        goto fail;
    }
    *out = s;
    return ST_OK;
fail:
    free(s);
    return rc;
}

/* Bytes of a fixed-size value; 0 for strings and arrays. */
static unsigned type_size(uint32_t t)
{
    static const uint8_t size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return t < sizeof size ? size[t] : 0;
}

static int check_type(struct cursor *c, uint32_t t)
{
    return t <= GGUF_F64 ? ST_OK : corrupt(c, "unknown type of metadata");
}

static int take_scalar(struct cursor *c, uint32_t t, uint64_t *u, double *f)
{
    unsigned n = type_size(t);
    int rc = take_uint(c, n, u);
    if (rc < 0)
        return rc;
    if (t == GGUF_F32) {
        uint32_t bits = (uint32_t)*u;
        float v;
        memcpy(&v, &bits, sizeof v);
        *f = (double)v;
    } else if (t == GGUF_F64) {
        memcpy(f, u, sizeof *f);
    } else if (t == GGUF_BOOL) {
        if (*u > 1)
            return corrupt(c, "a boolean is neither 0 nor 1");
    } else if ((t == GGUF_I8 || t == GGUF_I16 || t == GGUF_I32) && *u >> (8 * n - 1)) {
        *u |= UINT64_MAX << (8 * n - 1);
    }
    return ST_OK;
}

static bool is_integer(uint32_t t)
{
    return t != GGUF_F32 && t != GGUF_F64 && t != GGUF_STRING && t != GGUF_ARRAY;
}

static int skip_array(struct cursor *c, uint32_t elem, uint64_t count, int depth);

static int skip_element(struct cursor *c, uint32_t elem, int depth)
{
    int rc;
    if (elem == GGUF_STRING) {
        uint64_t n;
        if ((rc = take_uint(c, 8, &n)) < 0)
            return rc;
        return n > left(c) ? corrupt(c, "a string is longer than the file") : take(c, NULL, n);
    }
    uint32_t sub = 0;
    uint64_t n = 0;
    if ((rc = take_u32(c, &sub)) < 0 || (rc = check_type(c, sub)) < 0 || (rc = take_uint(c, 8, &n)) < 0)
        return rc;
    return skip_array(c, sub, n, depth + 1);
}

static int skip_array(struct cursor *c, uint32_t elem, uint64_t count, int depth)
{
    if (depth > MAX_NESTING)
        return corrupt(c, "arrays are nested too deeply");
    unsigned size = type_size(elem);
    uint64_t least = size ? size : elem == GGUF_STRING ? 8 : 12;
    if (count > left(c) / least)
        return corrupt(c, "an array is longer than the file");
    if (size)
        return take(c, NULL, count * size);
    for (uint64_t i = 0; i < count; i++) {
        int rc = skip_element(c, elem, depth);
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

static int take_array(struct cursor *c, struct gguf_kv *kv)
{
    uint32_t elem = 0;
    int rc;
    if ((rc = take_u32(c, &elem)) < 0 || (rc = check_type(c, elem)) < 0 ||
        (rc = take_uint(c, 8, &kv->count)) < 0)
        return rc;
    kv->elem = (enum gguf_type)elem;
    if (!is_integer(elem) || !kv->count || kv->count > GGUF_MAX_KEPT_ARRAY)
        return skip_array(c, elem, kv->count, 1);
    if (kv->count > left(c) / type_size(elem))
        return corrupt(c, "an array is longer than the file");
    if (!(kv->each = calloc((size_t)kv->count, sizeof *kv->each)))
        return err_set(c->e, ST_ENOMEM, "%.200s: not enough memory to read it", c->what);
    for (uint64_t i = 0; i < kv->count; i++) {
        double f;
        if ((rc = take_scalar(c, elem, &kv->each[i], &f)) < 0)
            return rc;
    }
    return ST_OK;
}

static int take_kv(struct cursor *c, struct gguf_kv *kv)
{
    uint32_t type = 0;
    int rc;
    if ((rc = take_string(c, MAX_KEY, false, &kv->key)) < 0 || (rc = take_u32(c, &type)) < 0 ||
        (rc = check_type(c, type)) < 0)
        return rc;
    kv->type = (enum gguf_type)type;
    if (type == GGUF_STRING)
        return take_string(c, MAX_KEPT_STRING, true, &kv->s);
    return type == GGUF_ARRAY ? take_array(c, kv) : take_scalar(c, type, &kv->u, &kv->f);
}

static int kv_by_key(const void *a, const void *b)
{
    return strcmp(((const struct gguf_kv *)a)->key, ((const struct gguf_kv *)b)->key);
}

static int read_metadata(struct cursor *c, struct gguf *g, uint64_t count)
{
    size_t cap = 0;
    if (count > left(c) / 13) /* length, type and a byte: the least an entry takes */
        return corrupt(c, "the metadata count is larger than the file");
    if (count > MAX_KV)
        return err_set(c->e, ST_ELIMIT, "%.200s: %" PRIu64 " metadata entries, more than %u", c->what, count,
                       MAX_KV);
    while (g->nkv < count) {
        if (g->nkv == cap) {
            cap = cap ? cap * 2 : 32;
            struct gguf_kv *v = realloc(g->kv, cap * sizeof *v);
            if (!v)
                return err_set(c->e, ST_ENOMEM, "%.200s: not enough memory to read it", c->what);
            g->kv = v;
        }
        g->kv[g->nkv] = (struct gguf_kv){0};
        int rc = take_kv(c, &g->kv[g->nkv++]);
        if (rc < 0)
            return rc;
    }
    if (g->nkv)
        qsort(g->kv, g->nkv, sizeof *g->kv, kv_by_key);
    for (size_t i = 1; i < g->nkv; i++)
        if (!kv_by_key(&g->kv[i - 1], &g->kv[i]))
            return err_set(c->e, ST_ECORRUPT, "%.200s: metadata key %.100s is listed twice", c->what,
                           g->kv[i].key);
    return ST_OK;
}

static int take_dims(struct cursor *c, struct tensor *t, uint64_t *first)
{
    uint32_t n = 0;
    int rc = take_u32(c, &n);
    if (rc < 0)
        return rc;
    if (n > 4)
        return corrupt(c, "a tensor has more than four dimensions");
    t->ndims = n;
    t->elements = t->rows = 1;
    *first = 1;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t d;
        if ((rc = take_uint(c, 8, &d)) < 0)
            return rc;
        if (d > INT64_MAX || __builtin_mul_overflow(t->elements, d, &t->elements) || t->elements > INT64_MAX)
            return corrupt(c, "a tensor's size overflows");
        if (!i)
            *first = d;
        else if (__builtin_mul_overflow(t->rows, d, &t->rows) || t->rows > INT64_MAX)
            return corrupt(c, "a tensor's size overflows");
    }
    return ST_OK;
}

/* The offset is still relative to the data section, whose place is known only after the table. */
static int take_tensor(struct cursor *c, struct tensor *t)
{
    uint64_t first = 1;
    uint32_t type = 0, block, bytes;
    int rc;
    if ((rc = take_string(c, TENSOR_MAX_NAME, false, &t->name)) < 0 || (rc = take_dims(c, t, &first)) < 0 ||
        (rc = take_u32(c, &type)) < 0)
        return rc;
    if (!ggml_type_info(type, &t->dtype, &block, &bytes))
        return err_set(c->e, ST_ENOTSUP,
                       "%.200s: tensor %.100s has unknown type %u; a newer strata may know it", c->what,
                       t->name, type);
    if (first % block)
        return corrupt(c, "a tensor's rows are not whole blocks");
    if (__builtin_mul_overflow(t->elements / block, (uint64_t)bytes, &t->length))
        return corrupt(c, "a tensor's size overflows");
    return take_uint(c, 8, &t->offset);
}

static int read_tensors(struct cursor *c, struct tensor_table *t, uint64_t count, uint32_t file)
{
    if (count > left(c) / 25)
        return corrupt(c, "the tensor count is larger than the file");
    for (uint64_t i = 0; i < count; i++) {
        struct tensor *x;
        int rc = tensor_table_add(t, &x);
        if (rc < 0)
            return err_set(c->e, rc, "%.200s: too many tensors", c->what);
        x->file = file;
        if ((rc = take_tensor(c, x)) < 0)
            return rc;
    }
    return ST_OK;
}

static int place_tensors(struct cursor *c, const struct gguf *g, struct tensor_table *t, size_t first)
{
    for (size_t i = first; i < t->n; i++) {
        struct tensor *x = &t->v[i];
        uint64_t end;
        if (x->offset % g->alignment)
            return err_set(c->e, ST_ECORRUPT,
                           "%.200s: tensor %.100s does not start on a multiple of %" PRIu64, c->what, x->name,
                           g->alignment);
        if (__builtin_add_overflow(x->offset, g->data_offset, &x->offset) ||
            __builtin_add_overflow(x->offset, x->length, &end) || end > c->src->size)
            return err_set(c->e, ST_ECORRUPT,
                           "%.200s: tensor %.100s lies beyond the end of the file (%" PRIu64
                           " bytes); the file is cut short, get it again",
                           c->what, x->name, c->src->size);
    }
    return ST_OK;
}

static int read_counts(struct cursor *c, struct gguf *g, uint64_t *tensors, uint64_t *kvs)
{
    uint8_t magic[4];
    int rc;
    if ((rc = take(c, magic, 4)) < 0)
        return rc;
    if (memcmp(magic, "GGUF", 4))
        return err_set(c->e, ST_ECORRUPT, "%.200s: not a GGUF file: it does not start with \"GGUF\"",
                       c->what);
    if ((rc = take_u32(c, &g->version)) < 0)
        return rc;
    if (g->version == 0x02000000u || g->version == 0x03000000u)
        return err_set(c->e, ST_ENOTSUP, "%.200s: a big-endian GGUF file; convert it to little-endian",
                       c->what);
    if (g->version != 2 && g->version != 3)
        return err_set(c->e, ST_ENOTSUP, "%.200s: GGUF version %u; versions 2 and 3 are read", c->what,
                       g->version);
    if ((rc = take_uint(c, 8, tensors)) < 0)
        return rc;
    return take_uint(c, 8, kvs);
}

static int finish_digest(struct cursor *c, struct gguf *g)
{
    if (EVP_DigestUpdate(c->md, c->win, c->at) != 1 || EVP_DigestFinal_ex(c->md, g->digest, NULL) != 1)
        return err_set(c->e, ST_ENOMEM, "SHA-256 failed");
    return ST_OK;
}

static int read_all(struct cursor *c, struct gguf *g, struct tensor_table *t, uint32_t file)
{
    uint64_t tensors = 0, kvs = 0;
    size_t first = t->n;
    int rc;
    if ((rc = read_counts(c, g, &tensors, &kvs)) < 0 || (rc = read_metadata(c, g, kvs)) < 0)
        return rc;
    g->alignment = 32;
    if (gguf_get(g, "general.alignment") && !gguf_get_uint(g, "general.alignment", &g->alignment))
        return err_set(c->e, ST_ECORRUPT, "%.200s: general.alignment is not an integer", c->what);
    if (!g->alignment || (g->alignment & (g->alignment - 1)) || g->alignment > (1u << 30))
        return err_set(c->e, ST_ECORRUPT, "%.200s: general.alignment %" PRIu64 " is not a power of two",
                       c->what, g->alignment);
    if ((rc = read_tensors(c, t, tensors, file)) < 0 || (rc = finish_digest(c, g)) < 0)
        return rc;
    g->data_offset = (pos(c) + g->alignment - 1) & ~(g->alignment - 1);
    return place_tensors(c, g, t, first);
}

int gguf_read(const struct model_src *src, const char *what, uint32_t file, struct gguf *g,
              struct tensor_table *t, struct err *e)
{
    struct cursor *c = malloc(sizeof *c);
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int rc;
    *g = (struct gguf){0};
    if (!c || !md || EVP_DigestInit_ex(md, EVP_sha256(), NULL) != 1) {
        rc = err_set(e, ST_ENOMEM, "%.200s: not enough memory to read it", what);
    } else {
        c->src = src;
        c->what = what;
        c->e = e;
        c->md = md;
        c->start = 0;
        c->len = c->at = 0;
        rc = read_all(c, g, t, file);
    }
    EVP_MD_CTX_free(md);
    free(c);
    if (rc < 0)
        gguf_fini(g);
    return rc;
}

void gguf_fini(struct gguf *g)
{
    for (size_t i = 0; i < g->nkv; i++) {
        free(g->kv[i].key);
        free(g->kv[i].s);
        free(g->kv[i].each);
    }
    free(g->kv);
    *g = (struct gguf){0};
}

const struct gguf_kv *gguf_get(const struct gguf *g, const char *key)
{
    struct gguf_kv k = {.key = (char *)key};
    return g->nkv ? bsearch(&k, g->kv, g->nkv, sizeof *g->kv, kv_by_key) : NULL;
}

bool gguf_get_uint(const struct gguf *g, const char *key, uint64_t *out)
{
    const struct gguf_kv *kv = gguf_get(g, key);
    if (!kv || !is_integer(kv->type) || kv->type == GGUF_BOOL || kv->u > INT64_MAX)
        return false;
    *out = kv->u;
    return true;
}

const char *gguf_get_string(const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = gguf_get(g, key);
    return kv && kv->type == GGUF_STRING ? kv->s : NULL;
}
