/*
 * A layer's bytes as they lie on this node's disk: pieces of one or more model files, read as if they were
 * one run of bytes. Only files below the operator's model directories are opened, whatever links lie in
 * between. Everything here blocks on the disk: file threads only. One source or reader belongs to one thread
 * at a time.
 */
#ifndef STRATA_LAYERS_SOURCE_H
#define STRATA_LAYERS_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

struct source;
struct Strata__V1__FetchRequest;

struct source_piece {
    uint32_t file; /* index into the files given */
    uint64_t offset, length;
};

/*
 * The real, absolute path of a file that lies below one of the roots, after all links. A relative path is
 * looked up below each root in turn. ST_EDENIED when it lies elsewhere, whether it exists or not; ST_ENOENT,
 * ST_ELIMIT.
 */
int source_resolve(const char *const *roots, size_t nroots, const char *path, char *out, size_t cap,
                   struct err *e) ST_CHECK;

/* Opens the files and checks every piece against their sizes. Arguments are copied. source_close frees it. */
int source_open(struct source **out, const char *const *roots, size_t nroots, const char *const *files,
                size_t nfiles, const struct source_piece *pieces, size_t npieces, struct err *e) ST_CHECK;

/*
 * The same for what a peer or the coordinator asks for: the model at rq->path must have the header digest and
 * the number of files the request names, and the pieces must add up to rq->bytes. ST_ECONFLICT if the model
 * on this disk is not the one meant.
 */
int source_open_request(struct source **out, const char *const *roots, size_t nroots,
                        const struct Strata__V1__FetchRequest *rq, struct err *e) ST_CHECK;

void source_close(struct source *s); /* NULL is fine */
uint64_t source_bytes(const struct source *s);

/* Exactly n bytes from off on. ST_EINVAL beyond the end, ST_ECORRUPT if a file got shorter, ST_EIO. */
int source_read(const struct source *s, uint64_t off, void *p, size_t n, struct err *e) ST_CHECK;

/* ST_ECONFLICT if a file was written to, replaced or removed since it was opened. */
int source_unchanged(const struct source *s, struct err *e) ST_CHECK;

/* Reads a source once from beginning to end and takes its SHA-256 on the way. The source must outlive it. */
struct layer_reader;
int layer_reader_new(struct layer_reader **out, const struct source *s) ST_CHECK;
void layer_reader_free(struct layer_reader *r); /* NULL is fine */
/* Up to cap bytes; *n = 0 at the end, by which time the files were checked to be unchanged. */
int layer_reader_next(struct layer_reader *r, void *p, size_t cap, size_t *n, struct err *e) ST_CHECK;
/* The digest of all bytes; ST_EAGAIN before the end was reached. */
int layer_reader_digest(const struct layer_reader *r, uint8_t sha256[32]) ST_CHECK;

#endif
