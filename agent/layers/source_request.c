/* A fetch request → a source, after checking that the model here is the one meant. */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "agent/layers/source.h"
#include "common/base/str.h"
#include "common/model/model.h"
#include "strata/v1/layers.pb-c.h"

static int check_identity(const struct model *m, const Strata__V1__FetchRequest *rq, struct err *e)
{
    uint8_t digest[32];
    size_t n = 0;
    if (hex_decode(digest, sizeof digest, m->digest, &n) < 0 || n != sizeof digest)
        return err_set(e, ST_EINVAL, "%.300s is a description, not a model file", rq->path);
    if (rq->file_count != m->nfiles)
        return err_reason(e, ST_ECONFLICT, "OTHER_MODEL",
                          "%.300s has %zu files here but %" PRIu32 " are asked for", rq->path, m->nfiles,
                          rq->file_count);
    if (rq->header_sha256.len != n || memcmp(rq->header_sha256.data, digest, n))
        return err_reason(e, ST_ECONFLICT, "OTHER_MODEL",
                          "the model at %.300s on this node is not the one asked for; its header differs",
                          rq->path);
    return ST_OK;
}

static int open_pieces(struct source **out, const char *const *roots, size_t nroots, const struct model *m,
                       const Strata__V1__FetchRequest *rq, struct err *e)
{
    const char **files = calloc(m->nfiles, sizeof *files);
    struct source_piece *p = calloc(rq->n_pieces + 1, sizeof *p);
    struct source *s = NULL;
    int rc;
    if (!files || !p) {
        rc = err_set(e, ST_ENOMEM, "not enough memory to open %.300s", rq->path);
        goto out;
    }
    for (size_t i = 0; i < m->nfiles; i++)
        files[i] = m->files[i].path;
    for (size_t i = 0; i < rq->n_pieces; i++)
        p[i] = (struct source_piece){
            .file = rq->pieces[i]->file, .offset = rq->pieces[i]->offset, .length = rq->pieces[i]->length};
    if ((rc = source_open(&s, roots, nroots, files, m->nfiles, p, rq->n_pieces, e)) < 0)
        goto out;
    if (source_bytes(s) != rq->bytes) {
        rc = err_set(e, ST_EINVAL,
                     "the pieces of %.300s add up to %" PRIu64 " bytes but %" PRIu64 " are asked for",
                     rq->path, source_bytes(s), rq->bytes);
        source_close(s);
        goto out;
    }
    *out = s;
out:
    free(files);
    free(p);
    return rc;
}

int source_open_request(struct source **out, const char *const *roots, size_t nroots,
                        const struct Strata__V1__FetchRequest *rq, struct err *e)
{
    char path[PATH_MAX];
    struct model *m;
    int rc;
    if ((rc = source_resolve(roots, nroots, rq->path, path, sizeof path, e)) < 0 ||
        (rc = model_open(path, NULL, &m, e)) < 0)
        return rc;
    if ((rc = check_identity(m, rq, e)) == ST_OK)
        rc = open_pieces(out, roots, nroots, m, rq, e);
    model_free(m);
    return rc;
}
