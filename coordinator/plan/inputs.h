/*
 * What a plan was made from, as one document (strata.plan-inputs.v1): goal, cluster, model and request. A
 * plan that is kept is solved from that document, so the document gives the same bytes again.
 */
#ifndef STRATA_PLAN_INPUTS_H
#define STRATA_PLAN_INPUTS_H

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/plan.h"

#define PLAN_INPUTS_MAX ((size_t)8 << 20) /* bytes of a document that is kept with its plan */

struct plan_inputs {
    struct cluster *c;
    struct model *m;
    struct request r; /* constrains nothing when none was given */
    enum plan_goal goal;
};

/* r may be NULL. */
int plan_inputs_to_json(const struct cluster *c, const struct model *m, const struct request *r,
                        enum plan_goal goal, struct buf *out) ST_CHECK;
/* Bounded; *out is empty on failure. */
int plan_inputs_from_json(const char *text, size_t n, struct plan_inputs *out, struct err *e) ST_CHECK;
void plan_inputs_fini(struct plan_inputs *in);

/*
 * plan_solve on the inputs as they are written down, which are then in (*out)->inputs (NULL when they are
 * more than PLAN_INPUTS_MAX). A plan that plan_check finds fault with is not returned: ST_EINTERNAL. replicas
 * are not taken.
 */
int plan_solve_kept(const struct cluster *c, const struct model *m, const struct request *r,
                    const struct plan_opts *o, struct plan **out, struct err *e) ST_CHECK;
/* Solves the document again. ST_ECONFLICT unless it gives `plan`, byte for byte; *line is the first line that
 * differs. */
int plan_inputs_again(const struct plan_inputs *in, const char *plan, size_t n, size_t *line,
                      struct err *e) ST_CHECK;

#endif
