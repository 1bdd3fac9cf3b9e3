/* Files. */
#include "common/base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int fs_pread_full(int fd, void *p, size_t n, uint64_t off)
{
    uint8_t *d = p;
    while (n) {
        ssize_t k = pread(fd, d, n, (off_t)off);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return status_from_errno(errno);
        if (k == 0)
            return ST_ECORRUPT;
        d += k;
        n -= (size_t)k;
        off += (uint64_t)k;
    }
    return ST_OK;
}

int fs_read(const char *path, size_t max, struct buf *out, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(e, errno, "cannot open %s", path);
    struct stat st;
    int rc = ST_OK;
    if (fstat(fd, &st))
        rc = err_errno(e, errno, "cannot stat %s", path);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(e, ST_EINVAL, "%s is not a regular file", path);
    else if ((uint64_t)st.st_size > max)
        rc = err_set(e, ST_ELIMIT, "%s has %lld bytes, more than the %zu allowed", path,
                     (long long)st.st_size, max);
    else if ((rc = buf_reserve(out, (size_t)st.st_size)) < 0)
        err_set(e, rc, "no memory for %s", path);
    else if ((rc = fs_pread_full(fd, out->data + out->len, (size_t)st.st_size, 0)) < 0)
        err_set(e, rc, "cannot read %s: it changed or the disk failed", path);
    else
        out->len += (size_t)st.st_size;
    close(fd);
    return rc;
}

static int sync_dir_of(const char *path)
{
    char dir[PATH_MAX];
    if (!memccpy(dir, path, 0, sizeof dir))
        return ST_ELIMIT;
    char *slash = strrchr(dir, '/');
    if (!slash)
        memcpy(dir, ".", 2);
    else if (slash == dir)
        slash[1] = 0;
    else
        *slash = 0;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return status_from_errno(errno);
    int rc = fsync(fd) ? status_from_errno(errno) : ST_OK;
    close(fd);
    return rc;
}

static int write_all(int fd, const uint8_t *p, size_t n)
{
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return errno;
        p += k;
        n -= (size_t)k;
    }
    return fsync(fd) ? errno : 0;
}

int fs_write_atomic(const char *path, const void *data, size_t n, mode_t mode, struct err *e)
{
    char tmp[PATH_MAX];
    int k = snprintf(tmp, sizeof tmp, "%s.tmp.%ld", path, (long)getpid());
    if (k < 0 || (size_t)k >= sizeof tmp)
        return err_set(e, ST_ELIMIT, "path too long: %s", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return err_errno(e, errno, "cannot create %s", tmp);
    int bad = fchmod(fd, mode) ? errno : write_all(fd, data, n);
    if (close(fd) && !bad)
        bad = errno;
    if (!bad && rename(tmp, path))
        bad = errno;
    if (bad) {
        unlink(tmp);
        return err_errno(e, bad, "cannot write %s", path);
    }
    int rc = sync_dir_of(path);
    return rc < 0 ? err_set(e, rc, "cannot sync the directory of %s", path) : ST_OK;
}

int fs_mkdirs(const char *path, mode_t mode, struct err *e)
{
    char p[PATH_MAX];
    if (!*path || !memccpy(p, path, 0, sizeof p))
        return err_set(e, ST_ELIMIT, "path empty or too long: %s", path);
    for (char *s = p + 1;; s++) {
        if (*s != '/' && *s)
            continue;
        char was = *s;
        *s = 0;
        struct stat st;
        if (mkdir(p, mode) && !(errno == EEXIST && !stat(p, &st) && S_ISDIR(st.st_mode)))
            return err_errno(e, errno, "cannot make the directory %s", p);
        *s = was;
        if (!was)
            return ST_OK;
    }
}

bool fs_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

int fs_join(char *out, size_t cap, const char *dir, const char *name)
{
    size_t d = strlen(dir);
    int k = snprintf(out, cap, "%s%s%s", dir, d && dir[d - 1] == '/' ? "" : "/", name);
    return k < 0 || (size_t)k >= cap ? ST_ELIMIT : ST_OK;
}

int fs_lock(const char *path, mode_t mode, int *fd, struct err *e)
{
    char pid[24] = "";
    *fd = -1;
    int f = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, mode);
    if (f < 0)
        return err_errno(e, errno, "cannot open the lock %s", path);
    if (flock(f, LOCK_EX | LOCK_NB) < 0) {
        int why = errno;
        ssize_t n = pread(f, pid, sizeof pid - 1, 0);
        close(f);
        if (why != EWOULDBLOCK)
            return err_errno(e, why, "cannot lock %s", path);
        pid[n > 0 ? strspn(pid, "0123456789") : 0] = 0;
        return err_set(e, ST_ECONFLICT, "%s is held by another process%s%s", path, *pid ? ", pid " : "", pid);
    }
    int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(f, 0) < 0 || pwrite(f, pid, (size_t)n, 0) != n) {
        int why = errno;
        close(f);
        return err_errno(e, why, "cannot write to the lock %s", path);
    }
    *fd = f;
    return ST_OK;
}
