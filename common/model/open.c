/* Opening a model: telling the format, walking the files of a set, and putting the pieces together. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/model/gguf.h"
#include "common/model/layers.h"
#include "common/model/model.h"
#include "common/model/safetensors.h"

#define PATH_CAP 4096

/* A set of files being read. */
struct set {
    struct model_options opt;
    struct err *e;
    struct tensor_table t;
    struct hparams h;
    struct model_file *files;
    size_t nfiles;
    EVP_MD_CTX *md; /* over header digests and sizes */
};

static int fd_pread(void *arg, void *p, size_t n, uint64_t off)
{
    return fs_pread_full(*(const int *)arg, p, n, off);
}

static int open_regular(const char *path, int *fd, uint64_t *size, struct err *e)
{
    struct stat st;
    int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us up */
    if (f < 0)
        return err_errno(e, errno, "cannot open model file %.300s", path);
    if (fstat(f, &st)) {
        int rc = err_errno(e, errno, "cannot stat model file %.300s", path);
        close(f);
        return rc;
    }
    if (!S_ISREG(st.st_mode)) {
        close(f);
        return err_set(e, ST_EINVAL, "%.300s is not a regular file", path);
    }
    *fd = f;
    *size = (uint64_t)st.st_size;
    return ST_OK;
}

static int set_add_file(struct set *s, const char *path, uint64_t size)
{
    if (s->nfiles >= MODEL_MAX_FILES)
        return err_set(s->e, ST_ELIMIT, "%.300s: more than %u files in one model", path, MODEL_MAX_FILES);
    struct model_file *v = realloc(s->files, (s->nfiles + 1) * sizeof *v);
    if (!v)
        return err_set(s->e, ST_ENOMEM, "%.300s: not enough memory to read it", path);
    s->files = v;
    v[s->nfiles].size = size;
    if (!(v[s->nfiles].path = strdup(path)))
        return err_set(s->e, ST_ENOMEM, "%.300s: not enough memory to read it", path);
    s->nfiles++;
    return ST_OK;
}

static int set_digest(struct set *s, const uint8_t digest[32], uint64_t size)
{
    uint8_t le[8];
    for (int i = 0; i < 8; i++)
        le[i] = (uint8_t)(size >> (8 * i));
    if (EVP_DigestUpdate(s->md, digest, 32) != 1 || EVP_DigestUpdate(s->md, le, sizeof le) != 1)
        return err_set(s->e, ST_ENOMEM, "SHA-256 failed");
    return ST_OK;
}

static void set_fini(struct set *s)
{
    for (size_t i = 0; i < s->nfiles; i++)
        free(s->files[i].path);
    free(s->files);
    tensor_table_fini(&s->t);
    hparams_fini(&s->h);
    EVP_MD_CTX_free(s->md);
}

/* One GGUF file into the set; *g is the caller's to fini. */
static int add_gguf(struct set *s, const char *path, struct gguf *g)
{
    struct model_src src = {.pread = fd_pread};
    int fd = -1, rc = open_regular(path, &fd, &src.size, s->e);
    if (rc < 0)
        return rc;
    src.arg = &fd;
    if ((rc = gguf_read(&src, path, (uint32_t)s->nfiles, g, &s->t, s->e)) == ST_OK &&
        ((rc = set_add_file(s, path, src.size)) < 0 || (rc = set_digest(s, g->digest, src.size)) < 0))
        gguf_fini(g);
    close(fd);
    return rc;
}

/* "<stem>-00001-of-00003.gguf" → length of the stem; 0 if the name is not of that form. */
static size_t split_stem(const char *path, uint64_t count)
{
    char tail[64];
    int n = snprintf(tail, sizeof tail, "-00001-of-%05" PRIu64 ".gguf", count);
    size_t len = strlen(path);
    return len > (size_t)n && !strcmp(path + len - (size_t)n, tail) ? len - (size_t)n : 0;
}

static int add_splits(struct set *s, const char *path, const struct gguf *first, uint64_t count)
{
    uint64_t no = 0, tensors;
    if (gguf_get_uint(first, "split.no", &no) && no)
        return err_set(s->e, ST_EINVAL,
                       "%.300s is part %" PRIu64
                       " of a split model; name the first part, ...-00001-of-%05" PRIu64 ".gguf",
                       path, no + 1, count);
    if (count > MODEL_MAX_FILES)
        return err_set(s->e, ST_ELIMIT, "%.300s: split in %" PRIu64 " files, more than %u", path, count,
                       MODEL_MAX_FILES);
    size_t stem = split_stem(path, count);
    if (!stem)
        return err_set(s->e, ST_EINVAL,
                       "%.300s is the first of %" PRIu64 " parts but is not named ...-00001-of-%05" PRIu64
                       ".gguf; give the parts their names back",
                       path, count, count);
    for (uint64_t i = 1; i < count; i++) {
        char part[PATH_CAP];
        struct gguf g;
        uint64_t no_here = 0, count_here = 0;
        if ((size_t)snprintf(part, sizeof part, "%.*s-%05" PRIu64 "-of-%05" PRIu64 ".gguf", (int)stem, path,
                             i + 1, count) >= sizeof part)
            return err_set(s->e, ST_ELIMIT, "%.300s: the path is too long", path);
        int rc = add_gguf(s, part, &g);
        if (rc < 0)
            return rc;
        bool ok = gguf_get_uint(&g, "split.no", &no_here) && gguf_get_uint(&g, "split.count", &count_here) &&
                  no_here == i && count_here == count;
        gguf_fini(&g);
        if (!ok)
            return err_set(s->e, ST_ECORRUPT,
                           "%.300s does not say it is part %" PRIu64 " of %" PRIu64 "; get it again", part,
                           i + 1, count);
    }
    if (gguf_get_uint(first, "split.tensors.count", &tensors) && tensors != s->t.n)
        return err_set(s->e, ST_ECORRUPT, "%.300s: the parts hold %zu tensors but should hold %" PRIu64, path,
                       s->t.n, tensors);
    return ST_OK;
}

static int add_all_gguf(struct set *s, const char *path)
{
    struct gguf g;
    uint64_t count = 1;
    int rc = add_gguf(s, path, &g);
    if (rc < 0)
        return rc;
    gguf_get_uint(&g, "split.count", &count);
    if ((rc = gguf_hparams(&g, &s->h)) < 0)
        err_set(s->e, rc, "%.300s: not enough memory to read it", path);
    else if (count > 1)
        rc = add_splits(s, path, &g, count);
    gguf_fini(&g);
    return rc;
}

static int add_safetensors(struct set *s, const char *path)
{
    struct model_src src = {.pread = fd_pread};
    uint8_t digest[32];
    int fd = -1, rc = open_regular(path, &fd, &src.size, s->e);
    if (rc < 0)
        return rc;
    src.arg = &fd;
    if ((rc = safetensors_read(&src, path, (uint32_t)s->nfiles, digest, &s->t, s->e)) == ST_OK &&
        (rc = set_add_file(s, path, src.size)) == ST_OK)
        rc = set_digest(s, digest, src.size);
    close(fd);
    return rc;
}

/* The file `name` in the directory of `path`. */
static int beside(const struct set *s, const char *path, const char *name, char out[PATH_CAP])
{
    const char *slash = strrchr(path, '/');
    size_t dir = slash ? (size_t)(slash - path) + 1 : 0;
    if (dir + strlen(name) >= PATH_CAP)
        return err_set(s->e, ST_ELIMIT, "%.300s: the path is too long", path);
    memcpy(out, path, dir);
    memcpy(out + dir, name, strlen(name) + 1);
    return ST_OK;
}

static int add_config(struct set *s, const char *path)
{
    char config[PATH_CAP];
    struct buf b = {0};
    int rc = beside(s, path, "config.json", config);
    if (rc < 0 || !fs_exists(config))
        return rc;
    if ((rc = fs_read(config, 4u << 20, &b, s->e)) == ST_OK)
        rc = safetensors_config(buf_cstr(&b), b.len, config, &s->h, s->e);
    buf_fini(&b);
    return rc;
}

static int add_index(struct set *s, const char *path, const char *text, size_t n)
{
    struct safetensors_index ix;
    int rc = safetensors_index_read(text, n, path, &ix, s->e);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < ix.nfiles && rc == ST_OK; i++) {
        char shard[PATH_CAP];
        if ((rc = beside(s, path, ix.files[i], shard)) == ST_OK)
            rc = add_safetensors(s, shard);
    }
    if (rc == ST_OK)
        rc = safetensors_index_check(&ix, path, &s->t, s->e);
    safetensors_index_fini(&ix);
    return rc;
}

static void fill_defaults(const struct model_options *opt, struct set *s)
{
    s->opt = opt ? *opt : (struct model_options){0};
    if (!s->opt.sequences)
        s->opt.sequences = 1;
    if (!s->opt.tokens)
        s->opt.tokens = 1;
    if (!(s->opt.kv_element_bytes > 0))
        s->opt.kv_element_bytes = 2;
    if (!(s->opt.act_element_bytes > 0))
        s->opt.act_element_bytes = 2;
}

static int check_options(struct set *s, const char *path)
{
    struct model_options *o = &s->opt;
    if (!o->context)
        o->context = s->h.context && s->h.context < 4096 ? s->h.context : 4096;
    if (o->context > (1ull << 32) || o->sequences > (1ull << 32))
        return err_set(s->e, ST_EINVAL,
                       "context %" PRIu64 " with %" PRIu64 " sequences is more than any device holds",
                       o->context, o->sequences);
    if (o->tokens > o->context)
        return err_set(s->e, ST_EINVAL,
                       "%.200s: %" PRIu64 " tokens a step do not fit a context of %" PRIu64
                       "; raise the context",
                       path, o->tokens, o->context);
    return ST_OK;
}

static int base_name(const char *path, char **out)
{
    const char *slash = strrchr(path, '/');
    return (*out = strdup(slash ? slash + 1 : path)) ? ST_OK : ST_ENOMEM;
}

static int set_names(struct set *s, const char *path, const char *format, struct model *m)
{
    json_t *meta = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "format", format, "context",
                             (json_int_t)s->opt.context, "sequences", (json_int_t)s->opt.sequences, "tokens",
                             (json_int_t)s->opt.tokens, "blocks", (json_int_t)s->h.blocks, "embedding_length",
                             (json_int_t)s->h.embedding, "context_limit", (json_int_t)s->h.context);
    json_t *arch = json_string(s->h.arch), *name = json_string(s->h.name); /* NULL when it is not UTF-8 */
    int rc = ST_ENOMEM;
    if (arch && meta)
        json_object_set(meta, "architecture", arch);
    free(m->metadata);
    free(m->arch);
    m->metadata = meta ? json_dumps(meta, JSON_COMPACT) : NULL;
    m->arch = strdup(arch ? s->h.arch : "");
    if (m->metadata && m->arch) {
        if (name && s->h.name[0])
            rc = (m->name = strdup(s->h.name)) ? ST_OK : ST_ENOMEM;
        else
            rc = base_name(path, &m->name);
    }
    json_decref(meta);
    json_decref(arch);
    json_decref(name);
    return rc < 0 ? err_set(s->e, rc, "%.300s: not enough memory to read it", path) : ST_OK;
}

static int finish(struct set *s, const char *path, const char *format, struct model **out)
{
    uint8_t digest[32];
    struct model *m;
    int rc;
    if ((rc = check_options(s, path)) < 0 || (rc = tensor_table_check(&s->t, path, s->e)) < 0 ||
        (rc = layers_build(&s->t, &s->h, &s->opt, path, &m, s->e)) < 0)
        return rc;
    m->files = s->files;
    m->nfiles = s->nfiles;
    s->files = NULL;
    s->nfiles = 0;
    if ((rc = set_names(s, path, format, m)) == ST_OK && EVP_DigestFinal_ex(s->md, digest, NULL) != 1)
        rc = err_set(s->e, ST_ENOMEM, "SHA-256 failed");
    if (rc < 0) {
        model_free(m);
        return rc;
    }
    hex_encode(m->digest, digest, sizeof digest);
    *out = m;
    return ST_OK;
}

enum format { FORMAT_GGUF, FORMAT_SAFETENSORS, FORMAT_JSON };

static int detect(const char *path, enum format *out, struct err *e)
{
    uint8_t b[16] = {0};
    uint64_t size = 0, head = 0;
    int fd = -1, rc = open_regular(path, &fd, &size, e);
    if (rc < 0)
        return rc;
    size_t n = size < sizeof b ? (size_t)size : sizeof b, i = 0;
    rc = fs_pread_full(fd, b, n, 0);
    close(fd);
    if (rc < 0)
        return err_set(e, rc, "cannot read model file %.300s", path);
    for (i = 8; i-- > 0;)
        head = head << 8 | b[i];
    for (i = 0; i < n && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t');)
        i++;
    if (n >= 4 && !memcmp(b, "GGUF", 4))
        *out = FORMAT_GGUF;
    else if (n > 8 && b[8] == '{' && head <= size - 8)
        *out = FORMAT_SAFETENSORS;
    else if (i == n ? n && n == sizeof b : b[i] == '{')
        *out = FORMAT_JSON;
    else
        return err_set(
            e, ST_ECORRUPT,
            "%.300s is neither GGUF, safetensors nor model JSON; name a .gguf, .safetensors or .json file",
            path);
    return ST_OK;
}

/* A JSON file is the index of a safetensors set, or our own model description. */
static int open_json(struct set *s, const char *path, const char **format, struct model **out)
{
    struct buf b = {0};
    int rc = fs_read(path, MODEL_MAX_JSON_BYTES, &b, s->e);
    if (rc == ST_OK) {
        const char *text = buf_cstr(&b);
        size_t len = strlen(path);
        const char tail[] = ".safetensors.index.json";
        if (len >= sizeof tail - 1 && !strcmp(path + len - (sizeof tail - 1), tail)) {
            *format = "safetensors";
            rc = add_index(s, path, text, b.len);
        } else {
            rc = model_read_json(text, b.len, path, out, s->e);
        }
    }
    buf_fini(&b);
    return rc;
}

/* A directory stands for the model in it. */
static int resolve(const char *path, char out[PATH_CAP], struct err *e)
{
    static const char *const names[] = {"model.safetensors.index.json", "model.safetensors", NULL};
    struct stat st;
    if (stat(path, &st))
        return err_errno(e, errno, "cannot open model %.300s", path);
    if (!S_ISDIR(st.st_mode)) {
        if (!str_copy(out, PATH_CAP, path))
            return err_set(e, ST_ELIMIT, "%.300s: the path is too long", path);
        return ST_OK;
    }
    for (const char *const *n = names; *n; n++)
        if (fs_join(out, PATH_CAP, path, *n) == ST_OK && fs_exists(out))
            return ST_OK;
    return err_set(e, ST_ENOENT,
                   "%.300s is a directory without model.safetensors or its index; name a model file in it",
                   path);
}

int model_open(const char *path, const struct model_options *opt, struct model **out, struct err *e)
{
    struct set s = {.e = e};
    char file[PATH_CAP];
    enum format f = FORMAT_JSON;
    const char *format = NULL;
    int rc;
    if ((rc = resolve(path, file, e)) < 0 || (rc = detect(file, &f, e)) < 0)
        return rc;
    fill_defaults(opt, &s);
    if (!(s.md = EVP_MD_CTX_new()) || EVP_DigestInit_ex(s.md, EVP_sha256(), NULL) != 1) {
        rc = err_set(e, ST_ENOMEM, "%.300s: not enough memory to read it", path);
    } else if (f == FORMAT_GGUF) {
        format = "gguf";
        rc = add_all_gguf(&s, file);
    } else if (f == FORMAT_SAFETENSORS) {
        format = "safetensors";
        rc = add_safetensors(&s, file);
    } else {
        rc = open_json(&s, file, &format, out);
    }
    if (rc == ST_OK && format && !strcmp(format, "safetensors"))
        rc = add_config(&s, file);
    if (rc == ST_OK && format)
        rc = finish(&s, file, format, out);
    set_fini(&s);
    return rc;
}
