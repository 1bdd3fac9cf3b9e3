/*
 * What a plan is asked to respect (strata.request.v1), resolved against one model and one cluster. Every key
 * is optional; struct request from request_init() constrains nothing.
 */
#ifndef STRATA_MODEL_REQUEST_H
#define STRATA_MODEL_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/cluster.h"
#include "common/model/model.h"

struct request_pin {
    uint32_t layer, device;
};

struct request_group {
    uint32_t *layers; /* each once */
    size_t n;
};

struct request {
    char **allow; /* device id patterns, `*` matches any run; none = all devices */
    size_t nallow;
    char **deny;
    size_t ndeny;
    struct request_pin *pins; /* a layer at most once */
    size_t npins;
    struct request_group *together; /* the layers of each on one device */
    size_t ntogether;
    uint32_t max_stages;       /* UINT32_MAX = no limit */
    uint32_t min_nodes;        /* 0 = none asked */
    double max_bytes_per_node; /* INFINITY = no limit */
    double max_total_bytes;    /* INFINITY = no limit */
};

void request_init(struct request *r);
void request_fini(struct request *r);

/*
 * Fills *r (initialised by it) from JSON. A pinned or grouped layer or a device that does not exist is an
 * error, as is a layer pinned twice; an allow or deny pattern that matches no device is not. ST_EINVAL with
 * key and path. On failure *r is empty and needs no fini.
 */
int request_read_json(const char *text, size_t n, const char *name, const struct model *m,
                      const struct cluster *c, struct request *r, struct err *e) ST_CHECK;
int request_open(const char *path, const struct model *m, const struct cluster *c, struct request *r,
                 struct err *e) ST_CHECK;

/* Appends strata.request.v1; r was resolved against m and c. */
int request_write_json(const struct request *r, const struct model *m, const struct cluster *c,
                       struct buf *out) ST_CHECK;

/* May this device be used at all: it matches an allow pattern (or there is none) and no deny pattern. */
bool request_allows(const struct request *r, const char *device_id);

#endif
