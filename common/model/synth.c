/*
 * Synthetic llama models. Weights come from splitmix64 seeded with the tensor's number and the block's, so
 * any part of the file can be made without what lies before it, and the same seed always gives the same file.
 */
#include "common/model/synth.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/model/gguf.h"

#define CHUNK (4u << 20)
#define ALIGNMENT 32u

static const struct {
    const char *name;
    uint32_t ggml, block, bytes;
    uint32_t file_type; /* general.file_type */
} types[] = {
    [SYNTH_F32] = {"F32", 0, 1, 4, 0},
    [SYNTH_F16] = {"F16", 1, 1, 2, 1},
    [SYNTH_Q8_0] = {"Q8_0", 8, 32, 34, 7},
    [SYNTH_Q4_0] = {"Q4_0", 2, 32, 18, 2},
};

int synth_type_parse(const char *word, enum synth_type *out)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcasecmp(word, types[i].name)) {
            *out = (enum synth_type)i;
            return ST_OK;
        }
    return ST_EINVAL;
}

/* One tensor of the file to come. rows = 0 means a vector. */
struct want {
    char name[48];
    uint64_t cols, rows, offset, bytes;
    enum synth_type type;
};

struct plan {
    const struct synth_options *o;
    struct want *v;
    size_t n, cap;
    uint64_t data; /* bytes of the data section */
    struct buf head;
};

static uint64_t align_up(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int add(struct plan *p, enum synth_type type, uint64_t cols, uint64_t rows, const char *fmt,
               unsigned block)
{
    struct want *w = &p->v[p->n++];
    *w = (struct want){.cols = cols, .rows = rows, .type = type, .offset = p->data};
    if (strchr(fmt, '%'))
        snprintf(w->name, sizeof w->name, "blk.%u.%s", block, fmt + 1);
    else
        snprintf(w->name, sizeof w->name, "%s", fmt);
    w->bytes = cols / types[type].block * types[type].bytes * (rows ? rows : 1);
    p->data = align_up(p->data + w->bytes);
    return ST_OK;
}

static int list_tensors(struct plan *p)
{
    const struct synth_options *o = p->o;
    uint64_t d = o->embedding, kv = d / o->heads * o->heads_kv;
    p->n = 0;
    p->data = 0;
    p->cap = 3 + 9 * (size_t)o->layers;
    free(p->v);
    if (!(p->v = calloc(p->cap, sizeof *p->v)))
        return ST_ENOMEM;
    add(p, o->type, d, o->vocab, "token_embd.weight", 0);
    for (unsigned b = 0; b < o->layers; b++) {
        add(p, SYNTH_F32, d, 0, "%attn_norm.weight", b);
        add(p, o->type, d, d, "%attn_q.weight", b);
        add(p, o->type, d, kv, "%attn_k.weight", b);
        add(p, o->type, d, kv, "%attn_v.weight", b);
        add(p, o->type, d, d, "%attn_output.weight", b);
        add(p, SYNTH_F32, d, 0, "%ffn_norm.weight", b);
        add(p, o->type, d, o->ff, "%ffn_gate.weight", b);
        add(p, o->type, d, o->ff, "%ffn_up.weight", b);
        add(p, o->type, o->ff, d, "%ffn_down.weight", b);
    }
    add(p, SYNTH_F32, d, 0, "output_norm.weight", 0);
    return add(p, o->type, d, o->vocab, "output.weight", 0);
}

static int put_uint(struct buf *b, unsigned bytes, uint64_t v)
{
    uint8_t le[8];
    for (unsigned i = 0; i < bytes; i++)
        le[i] = (uint8_t)(v >> (8 * i));
    return buf_append(b, le, bytes);
}

static int put_string(struct buf *b, const char *s)
{
    int rc = put_uint(b, 8, strlen(s));
    return rc < 0 ? rc : buf_append(b, s, strlen(s));
}

static int put_key(struct buf *b, const char *key, enum gguf_type t)
{
    int rc = put_string(b, key);
    return rc < 0 ? rc : put_uint(b, 4, t);
}

static int put_u32(struct buf *b, const char *key, uint32_t v)
{
    int rc = put_key(b, key, GGUF_U32);
    return rc < 0 ? rc : put_uint(b, 4, v);
}

static int put_f32(struct buf *b, const char *key, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    int rc = put_key(b, key, GGUF_F32);
    return rc < 0 ? rc : put_uint(b, 4, bits);
}

static int put_text(struct buf *b, const char *key, const char *v)
{
    int rc = put_key(b, key, GGUF_STRING);
    return rc < 0 ? rc : put_string(b, v);
}

static int put_array(struct buf *b, const char *key, enum gguf_type elem, uint64_t n)
{
    int rc = put_key(b, key, GGUF_ARRAY);
    if (rc < 0 || (rc = put_uint(b, 4, elem)) < 0)
        return rc;
    return put_uint(b, 8, n);
}

/* The least a llama tokenizer needs: special tokens, the 256 bytes, and made-up words. */
static int put_tokens(struct buf *b, uint32_t vocab)
{
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    int rc = put_array(b, "tokenizer.ggml.tokens", GGUF_STRING, vocab);
    for (uint32_t i = 0; i < vocab && rc == ST_OK; i++) {
        char t[24];
        if (i < 3)
            snprintf(t, sizeof t, "%s", special[i]);
        else if (i < 259)
            snprintf(t, sizeof t, "<0x%02X>", i - 3);
        else
            snprintf(t, sizeof t, "w%u", i);
        rc = put_string(b, t);
    }
    if (rc == ST_OK)
        rc = put_array(b, "tokenizer.ggml.scores", GGUF_F32, vocab);
    for (uint32_t i = 0; i < vocab && rc == ST_OK; i++) {
        float score = i < 259 ? 0.0f : -(float)i;
        uint32_t bits;
        memcpy(&bits, &score, sizeof bits);
        rc = put_uint(b, 4, bits);
    }
    if (rc == ST_OK)
        rc = put_array(b, "tokenizer.ggml.token_type", GGUF_I32, vocab);
    for (uint32_t i = 0; i < vocab && rc == ST_OK; i++)
        rc = put_uint(b, 4, i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1);
    return rc;
}

#define NUM_KV 18u

static int put_metadata(struct buf *b, const struct synth_options *o)
{
    int rc;
    if ((rc = put_text(b, "general.architecture", "llama")) < 0 ||
        (rc = put_text(b, "general.name", o->name ? o->name : "synthetic")) < 0 ||
        (rc = put_u32(b, "general.alignment", ALIGNMENT)) < 0 ||
        (rc = put_u32(b, "general.file_type", types[o->type].file_type)) < 0 ||
        (rc = put_u32(b, "llama.block_count", o->layers)) < 0 ||
        (rc = put_u32(b, "llama.context_length", o->context)) < 0 ||
        (rc = put_u32(b, "llama.embedding_length", o->embedding)) < 0 ||
        (rc = put_u32(b, "llama.feed_forward_length", o->ff)) < 0 ||
        (rc = put_u32(b, "llama.attention.head_count", o->heads)) < 0 ||
        (rc = put_u32(b, "llama.attention.head_count_kv", o->heads_kv)) < 0 ||
        (rc = put_u32(b, "llama.rope.dimension_count", o->embedding / o->heads)) < 0 ||
        (rc = put_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f)) < 0 ||
        (rc = put_text(b, "tokenizer.ggml.model", "llama")) < 0 || (rc = put_tokens(b, o->vocab)) < 0 ||
        (rc = put_u32(b, "tokenizer.ggml.bos_token_id", 1)) < 0)
        return rc;
    return put_u32(b, "tokenizer.ggml.eos_token_id", 2);
}

static int make_header(struct plan *p)
{
    struct buf *b = &p->head;
    int rc;
    b->len = 0;
    if ((rc = buf_append(b, "GGUF", 4)) < 0 || (rc = put_uint(b, 4, 3)) < 0 ||
        (rc = put_uint(b, 8, p->n)) < 0 || (rc = put_uint(b, 8, NUM_KV)) < 0 ||
        (rc = put_metadata(b, p->o)) < 0)
        return rc;
    for (size_t i = 0; i < p->n; i++) {
        const struct want *w = &p->v[i];
        if ((rc = put_string(b, w->name)) < 0 || (rc = put_uint(b, 4, w->rows ? 2 : 1)) < 0 ||
            (rc = put_uint(b, 8, w->cols)) < 0 || (w->rows && (rc = put_uint(b, 8, w->rows)) < 0) ||
            (rc = put_uint(b, 4, types[w->type].ggml)) < 0 || (rc = put_uint(b, 8, w->offset)) < 0)
            return rc;
    }
    while (b->len % ALIGNMENT)
        if ((rc = put_uint(b, 1, 0)) < 0)
            return rc;
    return ST_OK;
}

static double matrix_bytes(const struct synth_options *o, double elements)
{
    return elements * types[o->type].bytes / types[o->type].block;
}

/* Shapes for a byte size: the width grows with the cube root, the number of blocks takes what is left. */
static void choose_shapes(struct synth_options *o)
{
    double target = (double)o->target_bytes;
    bool fixed = o->embedding != 0;
    if (!fixed) {
        o->embedding = 64;
        while (o->embedding < 16384) {
            double d = o->embedding * 2.0;
            if (matrix_bytes(o, 12 * d * d) * (d / 64) > target) /* about d/64 blocks of 12 d² weights */
                break;
            o->embedding *= 2;
        }
    }
    double d = o->embedding;
    if (!o->vocab) {
        double v =
            target / 10 / (2 * matrix_bytes(o, d) + 25); /* a tenth for both ends and the tokens' names */
        o->vocab = v < 320 ? 320 : v > 128256 ? 128256 : (uint32_t)v / 32 * 32;
    }
    double rest = target - 2 * matrix_bytes(o, d * o->vocab) - 25.0 * o->vocab;
    double kv = d / o->heads * o->heads_kv;
    if (!o->layers) {
        double ff = o->ff ? o->ff : d * 8 / 3;
        double n = rest / (matrix_bytes(o, 2 * d * d + 2 * d * kv + 3 * d * ff) + 8 * d);
        o->layers = n < 1 ? 1 : n > 1000 ? 1000 : (uint32_t)(n + 0.5);
    }
    if (!o->ff) { /* what the other shapes left over is made up here */
        double per = rest / o->layers - matrix_bytes(o, 2 * d * d + 2 * d * kv) - 8 * d;
        double ff = per / matrix_bytes(o, 3 * d);
        o->ff = ff < 32 ? 32 : ff > 1e6 ? 1000000 : (uint32_t)(ff + 16) / 32 * 32;
    }
}

static void default_heads(struct synth_options *o)
{
    if (!o->heads)
        o->heads = o->embedding >= 128 && o->embedding % 64 == 0 ? o->embedding / 64 : 1;
    if (!o->heads_kv)
        o->heads_kv = o->heads;
}

static int check_shapes(const struct synth_options *o, struct err *e)
{
    if (o->embedding % 32 || o->ff % 32)
        return err_set(e, ST_EINVAL, "embedding %u and ff %u must be multiples of 32", o->embedding, o->ff);
    if (o->embedding > 65536 || o->layers > 1024 || o->ff > (1u << 20) || o->vocab > (1u << 20))
        return err_set(e, ST_EINVAL,
                       "too large: at most 1024 layers, embedding 65536, ff and vocab 1048576 are made");
    if (o->vocab < 259)
        return err_set(e, ST_EINVAL,
                       "vocab %u is too small; 259 is the least (3 special tokens and 256 bytes)", o->vocab);
    if (o->embedding % o->heads || o->heads % o->heads_kv)
        return err_set(e, ST_EINVAL, "embedding %u must be a multiple of heads %u, and that of heads_kv %u",
                       o->embedding, o->heads, o->heads_kv);
    if (o->target_bytes && o->target_bytes < (256u << 10))
        return err_set(e, ST_EINVAL, "a model of %" PRIu64 " bytes is too small; 256 KiB is the least",
                       o->target_bytes);
    return ST_OK;
}

static int prepare(struct synth_options *o, struct plan *p, struct err *e)
{
    if (!o->context)
        o->context = 4096;
    if ((size_t)o->type >= sizeof types / sizeof *types)
        return err_set(e, ST_EINVAL, "unknown weight type; use F32, F16, Q8_0 or Q4_0");
    if (o->target_bytes) {
        if (!o->embedding) { /* heads follow from the embedding, which is chosen first */
            struct synth_options probe = *o;
            probe.heads = probe.heads_kv = 1;
            choose_shapes(&probe);
            o->embedding = probe.embedding;
        }
        default_heads(o);
        if (o->heads && o->heads_kv)
            choose_shapes(o);
    }
    o->layers = o->layers ? o->layers : 4;
    o->embedding = o->embedding ? o->embedding : 256;
    o->ff = o->ff ? o->ff : (o->embedding * 8 / 3 + 31) / 32 * 32;
    o->vocab = o->vocab ? o->vocab : 1024;
    default_heads(o);
    int rc = check_shapes(o, e);
    if (rc < 0)
        return rc;
    p->o = o;
    if ((rc = list_tensors(p)) < 0 || (rc = make_header(p)) < 0)
        return err_set(e, rc, "not enough memory to lay the model out");
    return ST_OK;
}

static void plan_fini(struct plan *p)
{
    free(p->v);
    buf_fini(&p->head);
}

int synth_plan(struct synth_options *o, uint64_t *file_bytes, struct err *e)
{
    struct plan p = {0};
    int rc = prepare(o, &p, e);
    if (rc == ST_OK)
        *file_bytes = p.head.len + p.data;
    plan_fini(&p);
    return rc;
}

static uint64_t mix(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* Bits of a small positive F16, 2^-7 · [1, 2): block scales that keep weights of the usual size. */
static uint16_t small_f16(uint64_t r)
{
    return (uint16_t)(0x2000u | (r & 0x3FF));
}

/* `units` consecutive blocks (elements for F32 and F16) of a matrix from `first` on; little-endian. */
static void fill_units(enum synth_type type, uint64_t seed, uint64_t first, uint8_t *to, size_t units)
{
    unsigned bytes = types[type].bytes;
    for (size_t i = 0; i < units; i++, to += bytes) {
        uint64_t st = seed + (first + i) * 0xD1342543DE82EF95ull, r = mix(&st);
        if (type == SYNTH_F32) { /* ± 2^-6 · [1, 2) */
            uint32_t v = (uint32_t)(0x3C800000u | (r & 0x807FFFFFu));
            memcpy(to, (uint8_t[]){(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)}, 4);
            continue;
        }
        uint16_t h = small_f16(r);
        if (type == SYNTH_F16)
            h = (uint16_t)(h | ((r >> 16) & 0x8000u));
        to[0] = (uint8_t)h;
        to[1] = (uint8_t)(h >> 8);
        for (unsigned k = 2; k + 8 <= bytes; k += 8) {
            r = mix(&st);
            memcpy(to + k, &r, 8);
        }
    }
}

static void fill_ones(uint8_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy(to + 4 * i, (const uint8_t[]){0, 0, 0x80, 0x3F}, 4);
}

struct out {
    int fd;
    const char *path;
    uint64_t done, total;
    synth_progress_fn progress;
    void *arg;
    struct err *e;
};

static int write_all(struct out *f, const uint8_t *p, size_t n)
{
    while (n) {
        ssize_t k = write(f->fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return err_errno(f->e, errno, "cannot write %.300s; free some space or choose another place",
                             f->path);
        p += k;
        n -= (size_t)k;
        f->done += (uint64_t)k;
    }
    int rc = f->progress ? f->progress(f->arg, f->done, f->total) : ST_OK;
    return rc < 0 ? err_set(f->e, rc, "stopped before %.300s was complete", f->path) : ST_OK;
}

static int write_tensor(struct out *f, const struct want *w, uint64_t seed, uint8_t *chunk)
{
    unsigned bytes = types[w->type].bytes;
    uint64_t units = w->bytes / bytes;
    for (uint64_t at = 0; at < units;) {
        size_t n = CHUNK / bytes;
        if (n > units - at)
            n = (size_t)(units - at);
        if (w->rows)
            fill_units(w->type, seed, at, chunk, n);
        else
            fill_ones(chunk, n); /* norms scale by one */
        at += n;
        size_t len = n * bytes;
        if (at == units) { /* padding to the next tensor */
            size_t pad = (size_t)(align_up(w->bytes) - w->bytes);
            memset(chunk + len, 0, pad);
            len += pad;
        }
        int rc = write_all(f, chunk, len);
        if (rc < 0)
            return rc;
    }
    return ST_OK;
}

static int write_file(struct out *f, const struct plan *p)
{
    uint8_t *chunk = malloc(CHUNK + ALIGNMENT);
    if (!chunk)
        return err_set(f->e, ST_ENOMEM, "not enough memory to write %.300s", f->path);
    int rc = write_all(f, p->head.data, p->head.len);
    for (size_t i = 0; i < p->n && rc == ST_OK; i++) {
        uint64_t st = p->o->seed ^ (i * 0xA0761D6478BD642Full);
        rc = write_tensor(f, &p->v[i], mix(&st), chunk);
    }
    if (rc == ST_OK && fsync(f->fd))
        rc = err_errno(f->e, errno, "cannot make %.300s durable", f->path);
    free(chunk);
    return rc;
}

static int sync_directory(const char *path, struct err *e)
{
    char *dir = strdup(path);
    if (!dir)
        return err_set(e, ST_ENOMEM, "not enough memory to write %.300s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = ST_OK;
    if (fd < 0 || fsync(fd))
        rc = err_errno(e, errno, "cannot make %.300s durable", path);
    if (fd >= 0)
        close(fd);
    free(dir);
    return rc;
}

int synth_write(const char *path, const struct synth_options *options, synth_progress_fn progress, void *arg,
                struct err *e)
{
    struct synth_options o = *options;
    struct plan p = {0};
    char *tmp = NULL;
    int rc = prepare(&o, &p, e);
    if (rc < 0)
        goto out;
    if (asprintf(&tmp, "%s.tmp.%ld", path, (long)getpid()) < 0) {
        tmp = NULL;
        rc = err_set(e, ST_ENOMEM, "not enough memory to write %.300s", path);
        goto out;
    }
    struct out f = {.path = path, .total = p.head.len + p.data, .progress = progress, .arg = arg, .e = e};
    if ((f.fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) < 0) {
        rc = err_errno(e, errno, "cannot create %.300s", tmp);
        goto out;
    }
    rc = write_file(&f, &p);
    if (close(f.fd) && rc == ST_OK)
        rc = err_errno(e, errno, "cannot write %.300s", path);
    if (rc == ST_OK && rename(tmp, path))
        rc = err_errno(e, errno, "cannot rename %.300s to its place", tmp);
    if (rc < 0)
        unlink(tmp);
    else
        rc = sync_directory(path, e);
out:
    free(tmp);
    plan_fini(&p);
    return rc;
}
