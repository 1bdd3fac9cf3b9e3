/* Small files of /proc and /sys that are read again and again: opened once, each read from the start. */
#ifndef STRATA_GPU_SYSFILE_H
#define STRATA_GPU_SYSFILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct sysfile {
    int fd;
};
#define SYSFILE_NONE                                                                                         \
    (struct sysfile)                                                                                         \
    {                                                                                                        \
        -1                                                                                                   \
    }

/* Opens <root><path>, path printf-style. On failure the file stays closed, and reading it is ST_ENOENT. */
int sysfile_open(struct sysfile *f, const char *root, const char *path, ...) ST_CHECK
    __attribute__((format(printf, 3, 4)));
/* What stands in it, 0-terminated, cut at cap - 1. ST_ENOENT, ST_EIO. */
int sysfile_text(const struct sysfile *f, char *out, size_t cap) ST_CHECK;
int sysfile_word(const struct sysfile *f, char *out, size_t cap) ST_CHECK; /* without the newline */
/* ST_EPROTO when it is no number. A negative number is one too: (u64)−1 is no reading, so ST_EPROTO. */
int sysfile_u64(const struct sysfile *f, uint64_t *v) ST_CHECK;
void sysfile_close(struct sysfile *f);

#endif
