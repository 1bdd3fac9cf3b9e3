/* Layer bytes from local files; see source.h. */
#include "agent/layers/source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fs.h"
#include "common/base/str.h"

#define MAX_FILES 4096u
#define MAX_PIECES (1u << 20)

struct file {
    int fd; /* -1 = not used */
    bool used;
    char *path; /* real */
    struct stat st;
};

struct part {
    uint64_t start; /* in the concatenation */
    uint64_t offset, length;
    uint32_t file;
};

struct source {
    struct file *files;
    size_t nfiles;
    struct part *parts; /* none empty */
    size_t nparts;
    uint64_t bytes;
};

static bool below(const char *root, const char *path)
{
    size_t n = strlen(root);
    while (n && root[n - 1] == '/')
        n--;
    return !strncmp(root, path, n) && path[n] == '/';
}

/* Real paths on both sides: links in the roots themselves are fine. */
static bool contained(const char *const *roots, size_t nroots, const char *real)
{
    char root[PATH_MAX];
    for (size_t i = 0; i < nroots; i++)
        if (realpath(roots[i], root) && below(root, real))
            return true;
    return false;
}

static int denied(const char *path, size_t nroots, struct err *e)
{
    return err_reason(e, ST_EDENIED, "OUTSIDE_MODEL_DIRS", "%.300s does not lie below %s of this agent; %s",
                      path, nroots ? "a model directory" : "any model directory",
                      nroots ? "move the model there or add its directory to the agent's configuration"
                             : "name one in the agent's configuration");
}

int source_resolve(const char *const *roots, size_t nroots, const char *path, char *out, size_t cap,
                   struct err *e)
{
    char real[PATH_MAX], joined[PATH_MAX];
    int errnum = 0;
    bool inside =
        false; /* by its spelling: then saying that it does not exist tells nothing about other places */
    if (!*path || strlen(path) >= PATH_MAX)
        return err_set(e, ST_EINVAL, "the path of the model file is empty or too long");
    for (size_t i = 0; i < nroots; i++) {
        const char *p = path;
        if (*path != '/') {
            if (fs_join(joined, sizeof joined, roots[i], path) < 0)
                continue;
            p = joined;
        }
        inside |= below(roots[i], p) && !strstr(p, "/../");
        if (!realpath(p, real)) {
            errnum = errno;
            continue;
        }
        if (contained(roots, nroots, real))
            return str_copy(out, cap, real) ? ST_OK
                                            : err_set(e, ST_ELIMIT, "%.300s: the path is too long", path);
        inside = false;
        break;
    }
    return inside && errnum ? err_errno(e, errnum, "cannot open model file %.300s", path)
                            : denied(path, nroots, e);
}

/* Opening and checking are two steps, so the check is made on what was opened, not on the name. */
static int open_file(struct file *f, const char *const *roots, size_t nroots, const char *path, struct err *e)
{
    char real[PATH_MAX], proc[40];
    int rc = source_resolve(roots, nroots, path, real, sizeof real, e);
    if (rc < 0)
        return rc;
    int fd = open(real, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return err_errno(e, errno, "cannot open model file %.300s", path);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(proc, real, sizeof real - 1);
    real[n < 0 ? 0 : n] = 0;
    if (n < 0)
        rc = err_errno(e, errno, "cannot tell where %.300s lies", path);
    else if (!contained(roots, nroots, real))
        rc = denied(path, nroots, e);
    else if (fstat(fd, &f->st))
        rc = err_errno(e, errno, "cannot stat model file %.300s", path);
    else if (!S_ISREG(f->st.st_mode))
        rc = err_set(e, ST_EINVAL, "%.300s is not a regular file", path);
    else if (!(f->path = strdup(real)))
        rc = err_set(e, ST_ENOMEM, "not enough memory to open %.300s", path);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    f->fd = fd;
    return ST_OK;
}

static int add_parts(struct source *s, const struct source_piece *p, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t end;
        if (p[i].file >= s->nfiles)
            return err_set(e, ST_EINVAL, "piece %zu names file %" PRIu32 " but the model has %zu", i,
                           p[i].file, s->nfiles);
        const struct file *f = &s->files[p[i].file];
        if (__builtin_add_overflow(p[i].offset, p[i].length, &end) || end > (uint64_t)f->st.st_size)
            return err_set(e, ST_ECORRUPT,
                           "%.300s ends before byte %" PRIu64 " + %" PRIu64
                           " of piece %zu; the file is cut short",
                           f->path, p[i].offset, p[i].length, i);
        if (!p[i].length)
            continue;
        s->parts[s->nparts++] =
            (struct part){.start = s->bytes, .offset = p[i].offset, .length = p[i].length, .file = p[i].file};
        if (__builtin_add_overflow(s->bytes, p[i].length, &s->bytes))
            return err_set(e, ST_EINVAL, "the pieces are larger than any file");
    }
    return ST_OK;
}

int source_open(struct source **out, const char *const *roots, size_t nroots, const char *const *files,
                size_t nfiles, const struct source_piece *pieces, size_t npieces, struct err *e)
{
    int rc = ST_OK;
    if (!nfiles || nfiles > MAX_FILES || npieces > MAX_PIECES)
        return err_set(e, ST_EINVAL, "a layer of %zu pieces in %zu files is not read", npieces, nfiles);
    struct source *s = calloc(1, sizeof *s);
    if (s) {
        s->files = calloc(nfiles, sizeof *s->files);
        s->parts = calloc(npieces + 1, sizeof *s->parts);
    }
    if (!s || !s->files || !s->parts)
        rc = err_set(e, ST_ENOMEM, "not enough memory to open %.300s", files[0]);
    for (size_t k = 0; k < npieces && rc == ST_OK; k++) /* files of other layers need not even be there */
        if (pieces[k].file < nfiles)
            s->files[pieces[k].file].used = true;
    for (size_t i = 0; i < nfiles && rc == ST_OK; i++) {
        s->files[s->nfiles].fd = -1;
        if (s->files[i].used)
            rc = open_file(&s->files[i], roots, nroots, files[i], e);
        if (rc == ST_OK)
            s->nfiles++;
    }
    if (rc == ST_OK)
        rc = add_parts(s, pieces, npieces, e);
    if (rc < 0)
        source_close(s);
    else
        *out = s;
    return rc;
}

void source_close(struct source *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->nfiles; i++) {
        if (s->files[i].fd >= 0)
            close(s->files[i].fd);
        free(s->files[i].path);
    }
    free(s->files);
    free(s->parts);
    free(s);
}

uint64_t source_bytes(const struct source *s)
{
    return s->bytes;
}

/* The part that holds byte off < bytes. */
static size_t part_of(const struct source *s, uint64_t off)
{
    size_t lo = 0, hi = s->nparts;
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (s->parts[mid].start <= off)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

int source_read(const struct source *s, uint64_t off, void *p, size_t n, struct err *e)
{
    uint8_t *to = p;
    if (off > s->bytes || n > s->bytes - off)
        return err_set(e, ST_EINVAL, "bytes %" PRIu64 " + %zu lie beyond the layer's %" PRIu64, off, n,
                       s->bytes);
    for (size_t i = n ? part_of(s, off) : 0; n; i++) {
        const struct part *x = &s->parts[i];
        uint64_t in = off - x->start;
        size_t k = n;
        if (k > x->length - in)
            k = (size_t)(x->length - in);
        const struct file *f = &s->files[x->file];
        int rc = fs_pread_full(f->fd, to, k, x->offset + in);
        if (rc < 0)
            return err_set(e, rc, "cannot read %zu bytes at %" PRIu64 " of %.300s: %s", k, x->offset + in,
                           f->path,
                           rc == ST_ECORRUPT ? "the file got shorter while it was read" : "the disk failed");
        to += k;
        off += k;
        n -= k;
    }
    return ST_OK;
}

static bool same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

int source_unchanged(const struct source *s, struct err *e)
{
    for (size_t i = 0; i < s->nfiles; i++) {
        const struct file *f = &s->files[i];
        struct stat now, named;
        if (f->fd < 0)
            continue;
        if (fstat(f->fd, &now))
            return err_errno(e, errno, "cannot stat model file %.300s", f->path);
        if (!same(&f->st, &now) || stat(f->path, &named) || !same(&f->st, &named))
            return err_reason(e, ST_ECONFLICT, "MODEL_CHANGED",
                              "model file %.300s was changed while it was read; load it again", f->path);
    }
    return ST_OK;
}

struct layer_reader {
    const struct source *s;
    EVP_MD_CTX *md;
    uint64_t off;
    bool done;
    uint8_t digest[32];
};

int layer_reader_new(struct layer_reader **out, const struct source *s)
{
    struct layer_reader *r = calloc(1, sizeof *r);
    if (!r || !(r->md = EVP_MD_CTX_new()) || EVP_DigestInit_ex(r->md, EVP_sha256(), NULL) != 1) {
        layer_reader_free(r);
        return ST_ENOMEM;
    }
    r->s = s;
    *out = r;
    return ST_OK;
}

void layer_reader_free(struct layer_reader *r)
{
    if (r)
        EVP_MD_CTX_free(r->md);
    free(r);
}

int layer_reader_next(struct layer_reader *r, void *p, size_t cap, size_t *n, struct err *e)
{
    uint64_t left = r->s->bytes - r->off;
    size_t k = left < cap ? (size_t)left : cap;
    int rc;
    *n = 0;
    if (!left && r->done)
        return ST_OK;
    if (left && !cap)
        return err_set(e, ST_EINVAL, "there is no room to read into");
    if ((rc = source_read(r->s, r->off, p, k, e)) < 0)
        return rc;
    if (k && EVP_DigestUpdate(r->md, p, k) != 1)
        return err_set(e, ST_EINTERNAL, "SHA-256 failed");
    if (k == left) { /* the last bytes are handed out only if all of them belong together */
        if ((rc = source_unchanged(r->s, e)) < 0)
            return rc;
        if (EVP_DigestFinal_ex(r->md, r->digest, NULL) != 1)
            return err_set(e, ST_EINTERNAL, "SHA-256 failed");
        r->done = true;
    }
    r->off += k;
    *n = k;
    return ST_OK;
}

int layer_reader_digest(const struct layer_reader *r, uint8_t sha256[32])
{
    if (!r->done)
        return ST_EAGAIN;
    memcpy(sha256, r->digest, 32);
    return ST_OK;
}
