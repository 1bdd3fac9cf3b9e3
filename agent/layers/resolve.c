#include "agent/layers/resolve.h"

#include <stdlib.h>

#include "common/base/str.h"

struct resolve {
    struct files_job job; /* first: the job is the resolve */
    char address[300];
    struct quic_addr addr;
    int rc;
    struct err e;
    resolve_fn fn; /* NULL = cancelled */
    void *arg;
};

static void work(struct files_job *j)
{
    struct resolve *r = (struct resolve *)j;
    r->rc = quic_addr_parse(r->address, &r->addr, &r->e);
}

static void done(struct files_job *j)
{
    struct resolve *r = (struct resolve *)j;
    if (r->fn)
        r->fn(r->arg, r->rc, &r->addr, &r->e);
    free(r);
}

int resolve_start(struct resolve **out, struct files *f, const char *address, resolve_fn fn, void *arg,
                  struct err *e)
{
    struct resolve *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, ST_ENOMEM, "no memory to look up %.200s", address);
    if (!str_copy(r->address, sizeof r->address, address)) {
        free(r);
        return err_set(e, ST_ELIMIT, "the address '%.100s…' is too long", address);
    }
    r->fn = fn;
    r->arg = arg;
    r->job.work = work;
    r->job.done = done;
    *out = r;
    files_submit(f, &r->job);
    return ST_OK;
}

void resolve_cancel(struct resolve *r)
{
    if (r)
        r->fn = NULL; /* the file thread does not look at it */
}
