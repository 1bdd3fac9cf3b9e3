/* What the files of this room share: building a struct model step by step. */
#ifndef STRATA_MODEL_MODEL_PRIV_H
#define STRATA_MODEL_MODEL_PRIV_H

#include "common/model/model.h"

int model_alloc(struct model **out, size_t nlayers) ST_CHECK; /* layers zeroed, index empty */
/* ST_EEXIST when the id is taken. */
int model_index_add(struct model *m, const char *id, uint32_t layer) ST_CHECK;
/* Layers depend each on the one before. */
int model_set_chain(struct model *m) ST_CHECK;
/* Fills order and chain from deps. ST_ECONFLICT with *on a layer of the cycle. */
int model_sort(struct model *m, uint32_t *on) ST_CHECK;

#endif
