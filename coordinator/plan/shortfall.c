/*
 * Why no plan exists. Memory: the fewest bytes that, added anywhere, would make one exist (the same exact
 * search with excess bytes as its cost). A rule of the request: the first one without which a plan exists.
 * Else links.
 */
#include <stdlib.h>

#include "common/base/str.h"
#include "coordinator/plan/inst.h"

#define SHORTFALL_WORK 1000000u

struct answer {
    double excess; /* INFINITY = none */
    bool proven;
    uint32_t *on;
    struct inst *in;
};

static void answer_fini(struct answer *a)
{
    inst_free(a->in);
    free(a->on);
    *a = (struct answer){0};
}

static int ask(const struct inst *of, struct budget *b, unsigned rules, struct answer *a)
{
    *a = (struct answer){.excess = INFINITY};
    int rc = inst_new(&a->in, of->c, of->m, of->r, rules, NULL, 0, b->memory_limit);
    if (rc < 0)
        return rc;
    struct prob p = {.in = a->in, .kind = PROB_EXCESS, .cap_bottleneck = INFINITY, .cap_ratio = INFINITY};
    struct solution s = {.limit = INFINITY, .on = a->on = calloc(of->L, sizeof *a->on)};
    b->stop = ST_OK; /* a limit that was met before must not silence the reason */
    b->deadline_ns = 0;
    b->work_left = SHORTFALL_WORK;
    rc = a->on ? prob_solve(&p, b, &s) : ST_ENOMEM;
    if (rc == ST_OK) {
        a->excess = s.value;
        a->proven = s.proven;
    }
    return rc;
}

static double need_of(const struct model_layer *l)
{
    return l->weight_bytes + l->kv_bytes + l->activation_bytes;
}

static int memory_answer(const struct inst *in, const struct answer *a, struct plan_shortfall *out)
{
    double biggest = 0, room = 0, need = 0, worst = 0;
    const char *layer = "", *where = "";
    for (size_t i = 0; i < in->L; i++) {
        const struct model_layer *l = &in->m->layers[in->layer[i]];
        double least = INFINITY;
        for (size_t d = 0; d < a->in->D; d++)
            least = fmin(least, need_of(l) - a->in->cap[d]);
        need += l->weight_bytes + l->kv_bytes;
        if (least > biggest) {
            biggest = least;
            layer = l->id;
        }
    }
    for (size_t d = 0; d < a->in->D; d++) {
        double bytes = 0, act = 0;
        room += fmax(a->in->cap[d], 0);
        for (size_t i = 0; i < in->L; i++)
            if (a->on[i] == d) {
                const struct model_layer *l = &in->m->layers[in->layer[i]];
                bytes += l->weight_bytes + l->kv_bytes;
                act = fmax(act, l->activation_bytes);
            }
        if (bytes + act - a->in->cap[d] > worst && bytes + act > 0) {
            worst = bytes + act - a->in->cap[d];
            where = in->c->devices[a->in->dev[d]].id;
        }
    }
    out->kind = biggest > 0   ? PLAN_SHORT_LARGEST_LAYER
                : need > room ? PLAN_SHORT_TOTAL_MEMORY
                              : PLAN_SHORT_PACKING;
    out->bytes = ceil(fmax(a->excess, 1)); /* memory comes in whole bytes */
    out->proven_minimum = a->proven;
    char text[16];
    fmt_bytes(text, (uint64_t)fmin(out->bytes, 9e18));
    out->where = plan_text("%s", biggest > 0 ? layer : where);
    out->hint =
        biggest > 0
            ? plan_text("%s more on %s would hold layer %s; or use a smaller quantisation or context", text,
                        where, layer)
            : plan_text("free %s on %s, add a device, or use a smaller context or quantisation", text, where);
    return out->where && out->hint ? ST_OK : ST_ENOMEM;
}

static int rule_answer(const struct inst *in, unsigned rule, struct plan_shortfall *out)
{
    static const struct {
        unsigned rule;
        const char *key;
    } keys[] = {{RULE_DEVICES, "allow/deny"},         {RULE_PIN, "pin"},
                {RULE_TOGETHER, "together"},          {RULE_MAX_STAGES, "max_stages"},
                {RULE_MIN_NODES, "min_nodes"},        {RULE_NODE_BYTES, "max_bytes_per_node"},
                {RULE_TOTAL_BYTES, "max_total_bytes"}};
    const char *key = "the request";
    out->kind = PLAN_SHORT_CONSTRAINT;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (keys[i].rule == rule)
            key = keys[i].key;
    if (rule == RULE_TOTAL_BYTES) { /* least: all activations shared by one stage */
        double sum = 0, act = 0;
        for (size_t i = 0; i < in->L; i++) {
            const struct model_layer *l = &in->m->layers[in->layer[i]];
            sum += l->weight_bytes + l->kv_bytes;
            act = fmax(act, l->activation_bytes);
        }
        out->bytes = ceil(fmax(sum + act - in->max_total, 0));
    }
    out->where = plan_text("%s", key);
    out->hint = plan_text(rule ? "a plan exists without the request's %s"
                               : "a plan exists without %s's rules; no single one of them is to blame",
                          key);
    return out->where && out->hint ? ST_OK : ST_ENOMEM;
}

static int links_answer(const struct inst *in, const struct answer *free_links, struct plan_shortfall *out)
{
    out->kind = PLAN_SHORT_CONNECTIVITY;
    if (free_links->excess < INFINITY) {
        const char *from = NULL, *to = NULL;
        for (size_t i = 0; i <= in->D && !from; i++) /* the first pair that is missing */
            for (size_t j = 0; j <= in->D && !from; j++)
                if (i != j && !inst_hop(in, i, j).ok) {
                    from = i < in->D ? in->c->nodes[in->node[i]] : "client";
                    to = j < in->D ? in->c->nodes[in->node[j]] : "client";
                }
        out->where = plan_text("%s to %s", from ? from : "client", to ? to : "client");
        out->hint =
            plan_text("devices that together have room are not joined; add the links or a default_link");
    } else { /* tables of measured segments end too early for any split */
        out->kind = PLAN_SHORT_PACKING;
        out->where = plan_text("segment_s");
        out->hint = plan_text(
            "the devices' segment_s tables together do not reach all layers; measure longer segments");
    }
    return out->where && out->hint ? ST_OK : ST_ENOMEM;
}

int shortfall_find(const struct inst *in, struct budget *b, struct plan_shortfall *out)
{
    struct answer a;
    *out = (struct plan_shortfall){0};
    int rc = ask(in, b, RULE_ALL & ~RULE_MEMORY, &a);
    if (rc == ST_OK && a.excess < INFINITY) {
        rc = memory_answer(in, &a, out);
        answer_fini(&a);
        return rc;
    }
    answer_fini(&a);
    for (unsigned rule = 1; rc == ST_OK && in->r && rule <= RULE_TOTAL_BYTES; rule <<= 1) {
        rc = ask(in, b, RULE_ALL & ~rule, &a);
        bool fits = rc == ST_OK && a.excess < INFINITY;
        answer_fini(&a);
        if (fits)
            return rule_answer(in, rule, out);
    }
    if (rc == ST_OK && in->r) {
        rc = ask(in, b, RULE_LINKS | RULE_MEMORY, &a);
        bool fits = rc == ST_OK && a.excess < INFINITY;
        answer_fini(&a);
        if (fits)
            return rule_answer(in, 0, out);
    }
    if (rc == ST_OK && in->r) { /* short of memory even without the rules: at least this much is missing */
        rc = ask(in, b, RULE_LINKS, &a);
        bool fits = rc == ST_OK && a.excess < INFINITY;
        if (fits)
            rc = memory_answer(in, &a, out);
        out->proven_minimum = false;
        answer_fini(&a);
        if (fits)
            return rc;
    }
    if (rc == ST_OK) {
        rc = ask(in, b, RULE_ALL & ~(RULE_LINKS | RULE_MEMORY), &a);
        if (rc == ST_OK)
            rc = links_answer(in, &a, out);
        answer_fini(&a);
    }
    return rc;
}
