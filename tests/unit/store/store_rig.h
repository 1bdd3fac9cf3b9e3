/* A store on a file of its own in a scratch directory, for the tests of this room: cmocka's set-up and
 * tear-down. */
#ifndef STRATA_TESTS_STORE_RIG_H
#define STRATA_TESTS_STORE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "coordinator/store/store.h"
#include "tests/unit/store/store_help.h"

struct rig {
    struct scratch dir;
    struct store_config cfg;
    struct store *s;
    struct port *port;
};

static inline void rig_open(struct rig *r)
{
    struct err e;
    r->cfg.path = r->dir.state;
    if (store_open(&r->s, &r->cfg, &e) != ST_OK)
        fail_msg("%s", e.text);
}

static inline void rig_start(struct rig *r)
{
    struct err e;
    assert_int_equal(store_start(r->s, r->port, &e), ST_OK);
}

static inline void rig_reopen(struct rig *r)
{
    store_close(r->s);
    port_drain(r->port);
    rig_open(r);
}

static inline int setup(void **state)
{
    struct rig *r = calloc(1, sizeof *r);
    scratch_new(&r->dir);
    if (port_new(&r->port) < 0)
        return -1;
    rig_open(r);
    *state = r;
    return 0;
}

static inline int teardown(void **state)
{
    struct rig *r = *state;
    store_close(r->s);
    port_drain(r->port);
    port_free(r->port);
    scratch_free(&r->dir);
    free(r);
    return 0;
}

#endif
