/* A plan in the words of other programs; what they cannot say is refused with the reason. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/model/jread.h"
#include "coordinator/ctl/plan/plan_priv.h"

#define RPC_PORT 50052u
#define RPC_ENDPOINTS 16u

static const char usage[] =
    "usage: strata plan export --to llama.cpp|vllm|accelerate --model M PLAN.json\n"
    "Writes the plan as a llama-server command line, as VLLM_PP_LAYER_PARTITION, or as an accelerate\n"
    "device_map. For llama.cpp the node of the last stage is the one that runs llama-server; on the others "
    "an\n"
    "rpc-server listens for each device, from port 50052 on.\n";

struct part {
    const struct plan_stage *s;
    size_t blocks;
    bool embedding, output;
};
struct parts {
    struct part *v;
    size_t n;
};

static int refuse(struct err *e, const char *what, const char *why)
{
    return err_set(e, ST_EINFEASIBLE, "%s cannot say this plan: %s", what, why);
}

static int split(const struct plan *p, const struct model *m, struct parts *out, struct err *e)
{
    out->v = calloc(p->n_stages, sizeof *out->v);
    if (!out->v)
        return err_set(e, ST_ENOMEM, "out of memory");
    out->n = p->n_stages;
    if (!m->chain)
        return refuse(e, "this format", "the model is a graph, not a row of blocks");
    for (size_t i = 0; i < out->n; i++) {
        out->v[i].s = &p->stages[i];
        if (p->stages[i].n_replicas)
            return refuse(e, "this format", "a stage is shared by several devices");
        for (size_t k = 0; k < p->stages[i].n_layers; k++) {
            uint32_t l = model_find(m, p->stages[i].layers[k]);
            if (l == MODEL_NONE)
                return err_set(e, ST_EINVAL, "the plan's layer %s is not in the model",
                               p->stages[i].layers[k]);
            enum layer_type t = m->layers[l].type;
            if (t == LAYER_ATTENTION || t == LAYER_MLP)
                return refuse(e, "this format", "it places halves of blocks");
            out->v[i].blocks += t == LAYER_BLOCK;
            out->v[i].embedding |= t == LAYER_EMBEDDING;
            out->v[i].output |= t == LAYER_OUTPUT || l == m->order[m->nlayers - 1];
        }
    }
    return ST_OK;
}

static size_t node_length(const char *device)
{
    const char *slash = strchr(device, '/');
    return slash ? (size_t)(slash - device) : strlen(device);
}
static bool same_node(const char *a, const char *b)
{
    return node_length(a) == node_length(b) && !strncmp(a, b, node_length(a));
}
/* "cuda:1" of "dione/cuda:1" → its name and number. */
static bool device_kind(const char *device, char kind[16], unsigned *index)
{
    const char *s = device + node_length(device);
    return sscanf(s, "/%15[a-z]:%u", kind, index) == 2;
}
/* Names go into a command line that people paste. */
static bool plain(const char *s)
{
    for (; *s; s++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:/", *s))
            return false;
    return true;
}

static int llama(const struct parts *q, const char *model, struct buf *out, struct err *e)
{
    static const char *const name = "llama.cpp";
    struct buf dev = {0}, rpc = {0}, share = {0};
    const char *home = q->v[q->n - 1].s->device;
    unsigned endpoints = 0, index;
    char kind[16];
    int rc = ST_OK;
    for (size_t i = 0; i < q->n && rc == ST_OK; i++) {
        const struct part *t = &q->v[i];
        size_t slots = t->blocks + t->output; /* the output is a slot of its own */
        unsigned port = RPC_PORT;
        if (!slots)
            continue; /* the embedding stays with the host there */
        if (!plain(t->s->device) || !device_kind(t->s->device, kind, &index)) {
            rc = refuse(e, name, "a device's name is not NODE/KIND:NUMBER");
            break;
        }
        const char *sep = dev.len ? "," : "";
        if (same_node(t->s->device, home)) {
            if (!strcmp(kind, "cpu"))
                rc = refuse(e, name, "-dev takes no CPU of the node that runs it");
            else
                rc = buf_printf(&dev, "%s%s%u", sep,
                                !strcmp(kind, "cuda")     ? "CUDA"
                                : !strcmp(kind, "vulkan") ? "Vulkan"
                                                          : kind,
                                index);
        } else {
            for (size_t k = 0; k < i; k++)
                port += same_node(q->v[k].s->device, t->s->device) && q->v[k].blocks + q->v[k].output;
            rc = buf_printf(&rpc, "%s%.*s:%u", rpc.len ? "," : "", (int)node_length(t->s->device),
                            t->s->device, port);
            if (rc == ST_OK)
                rc = buf_printf(&dev, "%sRPC%u", sep, endpoints);
            if (++endpoints > RPC_ENDPOINTS)
                rc = refuse(e, name, "it takes at most 16 rpc endpoints");
        }
        if (rc == ST_OK)
            rc = buf_printf(&share, "%s%zu", share.len ? "," : "", slots);
    }
    if (rc == ST_OK)
        rc = buf_printf(out, "llama-server -m %s%s%s -dev %s -sm layer -ngl all -ts %s -fit off\n", model,
                        rpc.len ? " --rpc " : "", rpc.len ? buf_cstr(&rpc) : "", buf_cstr(&dev),
                        buf_cstr(&share));
    buf_fini(&dev);
    buf_fini(&rpc);
    buf_fini(&share);
    return rc;
}

static int vllm(const struct parts *q, const char *model, struct buf *out, struct err *e)
{
    int rc = buf_printf(out, "VLLM_PP_LAYER_PARTITION=\"");
    for (size_t i = 0; i < q->n && rc == ST_OK; i++) {
        if (!q->v[i].blocks)
            return refuse(e, "vLLM", "a stage holds no block");
        if ((q->v[i].embedding && i) || (q->v[i].output && i + 1 < q->n))
            return refuse(e, "vLLM", "the embedding must be on the first stage and the output on the last");
        rc = buf_printf(out, "%s%zu", i ? "," : "", q->v[i].blocks);
    }
    return rc == ST_OK ? buf_printf(out, "\" vllm serve %s --pipeline-parallel-size %zu\n", model, q->n) : rc;
}

static int accelerate(const struct plan *p, const struct model *m, struct buf *out, struct err *e)
{
    size_t block = 0, n = 0;
    char kind[16], key[64];
    unsigned index;
    int rc = buf_printf(out, "{");
    for (size_t i = 0; i < p->n_stages; i++) {
        const char *d = p->stages[i].device;
        if (!same_node(d, p->stages[0].device))
            return refuse(e, "accelerate", "it runs in one process, and the plan spans nodes");
        if (!device_kind(d, kind, &index) || (strcmp(kind, "cuda") && strcmp(kind, "cpu")))
            return refuse(e, "accelerate", "a device is neither cuda:N nor cpu:N");
        for (size_t k = 0; k < p->stages[i].n_layers && rc == ST_OK; k++) {
            const struct model_layer *l = &m->layers[model_find(m, p->stages[i].layers[k])];
            switch (l->type) {
            case LAYER_BLOCK:
                snprintf(key, sizeof key, "model.layers.%zu", block++);
                break;
            case LAYER_EMBEDDING:
                snprintf(key, sizeof key, "model.embed_tokens");
                break;
            case LAYER_NORMALIZATION:
                snprintf(key, sizeof key, "model.norm");
                break;
            default:
                snprintf(key, sizeof key, "lm_head");
            }
            rc = buf_printf(out, "%s\n  \"%s\": ", n++ ? "," : "", key);
            if (rc == ST_OK)
                rc = strcmp(kind, "cpu") ? buf_printf(out, "%u", index) : buf_printf(out, "\"cpu\"");
        }
    }
    return rc == ST_OK ? buf_printf(out, "\n}\n") : rc;
}

int ctl_plan_export(int argc, char **argv, FILE *out, FILE *err)
{
    struct args a;
    struct plan *p = NULL;
    struct model *m = NULL;
    struct parts parts = {0};
    struct buf b = {0};
    struct err e = {0};
    int rc = plan_args(argc, argv,
                       BIT(OPT_MODEL) | BIT(OPT_TO) | BIT(OPT_CONTEXT) | BIT(OPT_SEQUENCES) | BIT(OPT_TOKENS),
                       1, usage, &a, out, err);
    if (rc)
        return rc < 0 ? 0 : rc;
    if (!a.to || (strcmp(a.to, "llama.cpp") && strcmp(a.to, "vllm") && strcmp(a.to, "accelerate"))) {
        fprintf(err, "strata plan: --to must be llama.cpp, vllm or accelerate\n%s", usage);
        return 2;
    }
    rc = model_open(a.model, &a.mo, &m, &e);
    if (rc == ST_OK)
        rc = plan_open(a.file, &p, &e);
    if (rc == ST_OK && p->feasible != PLAN_YES)
        rc = err_set(&e, ST_EINVAL, "%s: there is no feasible plan in it", a.file);
    if (rc == ST_OK && !plain(a.model))
        rc = err_set(&e, ST_EINVAL, "the model's path has characters that need quoting; rename the file");
    if (rc == ST_OK)
        rc = split(p, m, &parts, &e);
    if (rc == ST_OK)
        rc = !strcmp(a.to, "vllm")        ? vllm(&parts, a.model, &b, &e)
             : !strcmp(a.to, "llama.cpp") ? llama(&parts, a.model, &b, &e)
                                          : accelerate(p, m, &b, &e);
    int code = rc < 0 ? plan_complain(err, rc, &e) : 0;
    if (rc == ST_OK)
        fputs(buf_cstr(&b), out);
    buf_fini(&b);
    free(parts.v);
    plan_free(p);
    model_free(m);
    return code;
}
