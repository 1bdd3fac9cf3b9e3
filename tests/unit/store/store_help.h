/* A scratch directory, and waiting for the store's answers, for the tests of store and audit. */
#ifndef STRATA_TESTS_STORE_HELP_H
#define STRATA_TESTS_STORE_HELP_H

#include <ftw.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/store/store.h"

struct scratch {
    char dir[64], state[96], audit[96];
};

static inline void scratch_new(struct scratch *s)
{
    strcpy(s->dir, "/tmp/strata-test-XXXXXX");
    if (!mkdtemp(s->dir))
        abort();
    snprintf(s->state, sizeof s->state, "%s/state.db", s->dir);
    snprintf(s->audit, sizeof s->audit, "%s/audit.db", s->dir);
}

static inline int scratch_rm(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static inline void scratch_free(struct scratch *s)
{
    nftw(s->dir, scratch_rm, 8, FTW_DEPTH | FTW_PHYS);
}

struct answer {
    unsigned done;
    int rc;
    struct err err;
};

static inline void answer_cb(void *arg, int rc, const struct err *e)
{
    struct answer *a = arg;
    a->done++;
    a->rc = rc;
    a->err = *e;
}

/* Drains the port until a->done reaches want. */
static inline void answer_wait(struct port *p, const struct answer *a, unsigned want)
{
    while (a->done < want) {
        struct pollfd fd = {.fd = port_fd(p), .events = POLLIN};
        if (poll(&fd, 1, 20000) <= 0)
            abort();
        port_drain(p);
    }
}

/* Submits and waits; the answer's status, or why it was not taken. */
static inline int submit_wait(struct store *s, struct port *p, struct store_txn *t, struct err *e)
{
    struct answer a = {0};
    int rc = store_submit(s, t, answer_cb, &a);
    if (rc < 0)
        return rc;
    answer_wait(p, &a, 1);
    if (e)
        *e = a.err;
    return a.rc;
}

#endif
