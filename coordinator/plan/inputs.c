#include "coordinator/plan/inputs.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/jread.h"

static const char *const keys[] = {"schema", "goal", "cluster", "model", "request", NULL};

int plan_inputs_to_json(const struct cluster *c, const struct model *m, const struct request *r,
                        enum plan_goal goal, struct buf *out)
{
    struct request none;
    int rc;
    request_init(&none);
    if ((rc = buf_printf(out, "{\"schema\":\"strata.plan-inputs.v1\",\n\"goal\":\"%s\",\n\"cluster\":",
                         plan_goal_name(goal))) < 0 ||
        (rc = cluster_write_json(c, out)) < 0 || (rc = buf_printf(out, ",\"model\":")) < 0 ||
        (rc = model_write_json(m, out)) < 0 || (rc = buf_printf(out, ",\"request\":")) < 0 ||
        (rc = request_write_json(r ? r : &none, m, c, out)) < 0)
        return rc;
    return buf_append(out, "}\n", 2);
}

/* A part as text of its own, for the reader of such files. */
static int part(const struct jread *j, const json_t *root, const char *key, char **out)
{
    const json_t *v = json_object_get(root, key);
    if (!json_is_object(v))
        return jread_fail(j, "", key, "must be an object");
    *out = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(17));
    return *out ? ST_OK : jread_nomem(j);
}

static int read_root(const struct jread *j, const json_t *root, struct plan_inputs *out)
{
    const char *goal = NULL;
    char *text = NULL;
    int rc;
    if ((rc = jread_schema(j, root, "strata.plan-inputs.v1", false)) < 0 ||
        (rc = jread_object(j, root, "", keys)) < 0 ||
        (rc = jread_string(j, root, "", "goal", true, &goal)) < 0)
        return rc;
    if (plan_goal_parse(goal, &out->goal) < 0)
        return jread_fail(j, "", "goal", "must be latency, throughput, memory or balanced");
    if ((rc = part(j, root, "cluster", &text)) == ST_OK)
        rc = cluster_read_json(text, strlen(text), "cluster", &out->c, j->e);
    free(text);
    text = NULL;
    if (rc == ST_OK && (rc = part(j, root, "model", &text)) == ST_OK)
        rc = model_read_json(text, strlen(text), "model", &out->m, j->e);
    free(text);
    text = NULL;
    if (rc == ST_OK && (rc = part(j, root, "request", &text)) == ST_OK)
        rc = request_read_json(text, strlen(text), "request", out->m, out->c, &out->r, j->e);
    free(text);
    return rc;
}

int plan_inputs_from_json(const char *text, size_t n, struct plan_inputs *out, struct err *e)
{
    struct jread j = {"inputs", e};
    json_t *root;
    *out = (struct plan_inputs){0};
    request_init(&out->r);
    if (n > MODEL_MAX_JSON_BYTES)
        return err_set(e, ST_ELIMIT, "inputs: more than %u bytes", MODEL_MAX_JSON_BYTES);
    int rc = jread_parse(&j, text, n, &root);
    if (rc < 0)
        return rc;
    rc = read_root(&j, root, out);
    json_decref(root);
    if (rc < 0)
        plan_inputs_fini(out);
    return rc;
}

void plan_inputs_fini(struct plan_inputs *in)
{
    request_fini(&in->r);
    cluster_free(in->c);
    model_free(in->m);
    in->c = NULL;
    in->m = NULL;
}

static int checked(const struct plan_inputs *in, struct plan **p, struct err *e)
{
    struct plan_check_report rep = {0};
    struct err why = {0};
    int rc = plan_check(in->c, in->m, &in->r, *p, &rep, &why);
    plan_check_fini(&rep);
    if (rc == ST_OK)
        return rc;
    plan_free(*p);
    *p = NULL;
    return rc == ST_ECONFLICT ? err_set(e, ST_EINTERNAL,
                                        "the plan that was found does not stand the check and is not used: "
                                        "%s; please report it",
                                        why.text)
                              : err_set(e, rc, "%s", why.text);
}

int plan_solve_kept(const struct cluster *c, const struct model *m, const struct request *r,
                    const struct plan_opts *o, struct plan **out, struct err *e)
{
    struct plan_inputs in = {0};
    struct buf text = {0};
    *out = NULL;
    int rc = plan_inputs_to_json(c, m, r, o->goal, &text);
    if (rc < 0)
        err_set(e, rc, "no memory to write the inputs of the plan down");
    else if ((rc = plan_inputs_from_json(buf_cstr(&text), text.len, &in, e)) == ST_OK)
        rc = plan_solve(in.c, in.m, &in.r, o, out, e);
    if (rc == ST_OK)
        rc = checked(&in, out, e);
    if (rc == ST_OK && text.len <= PLAN_INPUTS_MAX && !((*out)->inputs = strdup(buf_cstr(&text)))) {
        plan_free(*out);
        *out = NULL;
        rc = err_set(e, ST_ENOMEM, "no memory to keep the inputs of the plan");
    }
    plan_inputs_fini(&in);
    buf_fini(&text);
    return rc;
}

int plan_inputs_again(const struct plan_inputs *in, const char *plan, size_t n, size_t *line, struct err *e)
{
    const struct plan_opts o = {.goal = in->goal};
    struct plan *p = NULL;
    struct buf now = {0};
    *line = 1;
    int rc = plan_solve(in->c, in->m, &in->r, &o, &p, e);
    if (p)
        rc = plan_to_json(p, &now);
    if (rc == ST_OK && (n != now.len || memcmp(plan, now.data, n))) {
        for (size_t i = 0; i < n && i < now.len && plan[i] == now.data[i]; i++)
            *line += plan[i] == '\n';
        rc = err_set(e, ST_ECONFLICT, "line %zu is not what these inputs give", *line);
    }
    plan_free(p);
    buf_fini(&now);
    return rc;
}
