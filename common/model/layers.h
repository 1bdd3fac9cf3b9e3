/* Tensors → layers with their costs. Private to this room. */
#ifndef STRATA_MODEL_LAYERS_H
#define STRATA_MODEL_LAYERS_H

#include "common/model/model.h"
#include "common/model/tensor.h"

/*
 * Builds the layers of a model from a checked tensor table: embedding, blocks in order (auxiliary towers such
 * as an encoder before the decoder), final norm, output. *opt has no zero left. files, name, digest stay
 * empty.
 */
int layers_build(const struct tensor_table *t, const struct hparams *h, const struct model_options *opt,
                 const char *what, struct model **out, struct err *e) ST_CHECK;

#endif
