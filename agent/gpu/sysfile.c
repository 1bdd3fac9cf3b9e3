#include "agent/gpu/sysfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int sysfile_open(struct sysfile *f, const char *root, const char *path, ...)
{
    char full[PATH_MAX];
    va_list ap;
    *f = SYSFILE_NONE;
    size_t n = strlen(root);
    if (n >= sizeof full)
        return ST_EINVAL;
    memcpy(full, root, n);
    va_start(ap, path);
    int k = vsnprintf(full + n, sizeof full - n, path, ap);
    va_end(ap);
    if (k < 0 || (size_t)k >= sizeof full - n)
        return ST_EINVAL;
    f->fd = open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return f->fd < 0 ? ST_ENOENT : ST_OK;
}

int sysfile_text(const struct sysfile *f, char *out, size_t cap)
{
    ssize_t n;
    if (f->fd < 0)
        return ST_ENOENT;
    do
        n = pread(f->fd, out, cap - 1, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return ST_EIO;
    out[n] = 0;
    return ST_OK;
}

int sysfile_word(const struct sysfile *f, char *out, size_t cap)
{
    int rc = sysfile_text(f, out, cap);
    if (rc == ST_OK)
        out[strcspn(out, "\n")] = 0;
    return rc;
}

int sysfile_u64(const struct sysfile *f, uint64_t *v)
{
    char text[64], *end;
    int rc = sysfile_text(f, text, sizeof text);
    if (rc < 0)
        return rc;
    errno = 0;
    unsigned long long x = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno || (*end && *end != '\n'))
        return ST_EPROTO;
    *v = x;
    return ST_OK;
}

void sysfile_close(struct sysfile *f)
{
    if (f->fd >= 0)
        close(f->fd);
    *f = SYSFILE_NONE;
}
