/* The spool's file: opening with repair, appending, compacting. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/spool/spool_priv.h"
#include "common/base/fs.h"
#include "common/base/log.h"
#include "common/base/str.h"

#define MAGIC "STRSPOOL"

static void put_u64(uint8_t *p, uint64_t v)
{
    for (unsigned i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_u64(const uint8_t *p)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < 8; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static int head_make(const struct spool_file *f, uint64_t base, const uint8_t base_hash[SPOOL_HASH],
                     uint8_t head[SPOOL_FILE_HEAD])
{
    unsigned n = 0;
    memcpy(head, MAGIC, 8);
    memcpy(head + 8, f->id, 8);
    put_u64(head + 16, base);
    memcpy(head + 24, base_hash, SPOOL_HASH);
    return EVP_Digest(head, 56, head + 56, &n, EVP_sha256(), NULL) == 1 ? ST_OK : ST_ENOMEM;
}

static bool head_take(struct spool_file *f, const uint8_t *p)
{
    uint8_t sum[SPOOL_HASH];
    unsigned n = 0;
    if (memcmp(p, MAGIC, 8) != 0 || EVP_Digest(p, 56, sum, &n, EVP_sha256(), NULL) != 1 ||
        memcmp(sum, p + 56, SPOOL_HASH) != 0)
        return false;
    memcpy(f->id, p + 8, 8);
    f->base = f->last = get_u64(p + 16);
    memcpy(f->base_hash, p + 24, SPOOL_HASH);
    memcpy(f->hash, p + 24, SPOOL_HASH);
    return true;
}

/* Whatever follows the last whole record: a torn write, or damage. Damage is kept for whoever looks into it.
 */
static int cut_end(struct spool_file *f, const struct buf *all, const struct log *log, struct err *e)
{
    size_t rest = all->len - f->size;
    if (!rest)
        return ST_OK;
    char aside[1100];
    snprintf(aside, sizeof aside, "%s.damaged", f->path);
    int rc = fs_write_atomic(aside, all->data + f->size, rest, 0600, e);
    if (rc < 0)
        return rc;
    LOG_W(log, "spool", "cut off bytes=%zu after seq=%llu kept=%s", rest, (unsigned long long)f->last, aside);
    if (ftruncate(f->fd, (off_t)f->size) < 0 || fsync(f->fd) < 0)
        return err_errno(e, errno, "%s: cannot be cut to its last whole record", f->path);
    return ST_OK;
}

static int scan(struct spool_file *f, const struct log *log, struct err *e)
{
    struct buf all = {0};
    int rc = fs_read(f->path, 1u << 30, &all, e);
    if (rc == ST_OK && (all.len < SPOOL_FILE_HEAD || !head_take(f, all.data)))
        rc = err_reason(e, ST_ECORRUPT, "DAMAGED",
                        "%s: is no audit spool, or its head is damaged; move it aside to begin a new one",
                        f->path);
    f->size = SPOOL_FILE_HEAD;
    while (rc == ST_OK && f->size < all.len) {
        struct record r;
        size_t used = record_read(all.data + f->size, all.len - f->size, f->hash, &r);
        if (!used || r.seq != f->last + 1)
            break;
        memcpy(f->hash, r.hash, SPOOL_HASH);
        f->last = r.seq;
        f->size += used;
    }
    if (rc == ST_OK)
        rc = cut_end(f, &all, log, e);
    buf_fini(&all);
    return rc;
}

int file_open(struct spool_file *f, const char *path, uint64_t first_base, const struct log *log,
              struct err *e)
{
    *f = (struct spool_file){.fd = -1};
    if (!str_copy(f->path, sizeof f->path, path))
        return err_set(e, ST_ELIMIT, "the path of the audit spool is too long");
    if (!fs_exists(path)) {
        uint8_t head[SPOOL_FILE_HEAD];
        const struct rng *rng = rng_system();
        rng->fill(rng->arg, f->id, sizeof f->id);
        rng->fill(rng->arg, f->base_hash, sizeof f->base_hash);
        int rc = head_make(f, first_base, f->base_hash, head) < 0
                     ? err_set(e, ST_ENOMEM, "no memory for the audit spool")
                     : fs_write_atomic(path, head, sizeof head, 0600, e);
        if (rc < 0)
            return rc;
    }
    f->fd = open(path, O_RDWR | O_CLOEXEC);
    if (f->fd < 0)
        return err_errno(e, errno, "%s: cannot be opened", path);
    int rc = scan(f, log, e);
    if (rc < 0)
        file_close(f);
    return rc;
}

void file_close(struct spool_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

int file_append(struct spool_file *f, const uint8_t *p, size_t n, struct err *e)
{
    for (size_t at = 0; at < n;) {
        ssize_t w = pwrite(f->fd, p + at, n - at, (off_t)(f->size + at));
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            int rc =
                errno == ENOSPC || errno == EDQUOT
                    ? err_reason(e, ST_ERESOURCE, "DISK_FULL",
                                 "%s: the disk is full; free space there, nothing that was answered is lost",
                                 f->path)
                    : err_errno(e, w ? errno : EIO, "%s: cannot be written", f->path);
            (void)!ftruncate(f->fd, (off_t)f->size);
            return rc;
        }
        at += (size_t)w;
    }
    if (fdatasync(f->fd) < 0) {
        int rc = err_errno(e, errno, "%s: cannot be synced", f->path);
        (void)!ftruncate(f->fd, (off_t)f->size);
        return rc;
    }
    f->size += n;
    return ST_OK;
}

int file_compact(struct spool_file *f, uint64_t from, uint64_t base, const uint8_t base_hash[SPOOL_HASH],
                 struct err *e)
{
    struct buf all = {0};
    uint8_t head[SPOOL_FILE_HEAD];
    size_t rest = (size_t)(f->size - from);
    int rc = head_make(f, base, base_hash, head);
    if (rc == ST_OK)
        rc = buf_append(&all, head, sizeof head);
    if (rc == ST_OK)
        rc = buf_reserve(&all, rest);
    if (rc < 0) {
        rc = err_set(e, rc, "no memory to shorten the audit spool");
    } else {
        rc = fs_pread_full(f->fd, all.data + all.len, rest, from);
        if (rc < 0)
            rc = err_set(e, rc, "%s: cannot be read back", f->path);
        all.len += rest;
    }
    if (rc == ST_OK)
        rc = fs_write_atomic(f->path, all.data, all.len, 0600, e);
    int fd = rc == ST_OK ? open(f->path, O_RDWR | O_CLOEXEC) : -1;
    if (rc == ST_OK && fd < 0) { /* the open file has no name any more: nothing may be promised on it */
        rc = err_errno(e, errno, "%s: cannot be opened again", f->path);
        file_close(f);
    }
    if (rc == ST_OK) {
        close(f->fd);
        f->fd = fd;
        f->base = base;
        memcpy(f->base_hash, base_hash, SPOOL_HASH);
        f->size = all.len;
    }
    buf_fini(&all);
    return rc;
}
