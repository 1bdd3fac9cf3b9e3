/* Files: bounded reads, durable atomic writes, directories. Errors name the path. Any thread. */
#ifndef STRATA_BASE_FS_H
#define STRATA_BASE_FS_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/base/buf.h"
#include "common/base/err.h"

/* The whole file into *out (appended), refusing one larger than max bytes (ST_ELIMIT) before reading it. */
int fs_read(const char *path, size_t max, struct buf *out, struct err *e) ST_CHECK;
/* Writes to "<path>.tmp.<pid>", fsyncs, renames, fsyncs the directory. Nothing is left behind on failure. */
int fs_write_atomic(const char *path, const void *data, size_t n, mode_t mode, struct err *e) ST_CHECK;
int fs_mkdirs(const char *path, mode_t mode, struct err *e) ST_CHECK; /* like mkdir -p */
bool fs_exists(const char *path);
/* "dir/name" into out; ST_ELIMIT if it does not fit. */
int fs_join(char *out, size_t cap, const char *dir, const char *name) ST_CHECK;
/* pread/pwrite until done; ST_EIO, or ST_ECORRUPT on a file shorter than asked. */
int fs_pread_full(int fd, void *p, size_t n, uint64_t off) ST_CHECK;

/* Takes the file as a lock of this process, made if absent, and writes the pid into it; *fd holds it until it
 * is closed or the process ends, however it ends. ST_ECONFLICT names the holder. */
int fs_lock(const char *path, mode_t mode, int *fd, struct err *e) ST_CHECK;

#endif
