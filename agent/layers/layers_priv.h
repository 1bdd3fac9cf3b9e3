/* Shared by layers.c (the registry) and load.c (one load on its way) alone. */
#ifndef STRATA_LAYERS_LAYERS_PRIV_H
#define STRATA_LAYERS_LAYERS_PRIV_H

#include "agent/layers/layers.h"
#include "agent/layers/source.h"

enum layer_state {
    LAYER_ALLOCATING, /* a load owns it */
    LAYER_RESIDENT,
    LAYER_RELEASING,
};

struct release_link;

/* One layer that has, or is about to have, device memory. In the registry from the load's begin until the
 * memory is free or its worker gone. */
struct layer {
    struct layers *ls;
    char *key; /* "job\nlayer\ndevice" */
    size_t key_len;
    char *job, *name, *device;
    uint64_t bytes, serial;
    uint8_t sha256[32];
    enum layer_state state;
    struct tenant *tenant;
    uint64_t buffer;
    bool allocated;
    unsigned verifying;            /* digests and timings in flight; freeing waits for them */
    bool free_wanted;              /* when the last digest is back */
    struct load *load;             /* while ALLOCATING */
    struct release_link *releases; /* who waits for the memory to be free */
    struct layer *next, **prev;
};

struct layers {
    struct layers_cfg cfg;
    struct pool_user user;
    struct map *index;
    struct layer *head;
    struct load *loads;
    uint64_t serial;
    struct event *lost; /* tells of lost layers outside the pool's upcall */
    bool closing;
};

/* NULL: it is not here, or on its way. device "" = any that has it. */
struct layer *layer_resident(const struct layers *ls, const char *job, const char *layer, const char *device);
/* Another load of the same layer may begin. */
void layer_unindex(struct layer *l);
/* Takes the layer out of the registry, ends its load, answers every release that waits for it and frees it.
 */
void layer_gone(struct layer *l);
/* Begins to free the device memory; layer_gone() follows, perhaps at once. */
void layer_free_memory(struct layer *l);

int load_start(struct load **out, struct layer *l, const struct layers_load *req,
               const struct layers_load_ops *ops, void *arg, struct err *e) ST_CHECK;
/* layer_gone() and then on_done follow once nothing is in flight and the memory is free. */
void load_abort(struct load *l, int rc, const char *why);
void load_ended(struct load *l);     /* its layer is gone: the last upcall; frees it */
void load_slot_free(struct load *l); /* a staging slot may be had again */
struct layer *load_layer(const struct load *l);
struct load *load_next(const struct load *l);

#endif
