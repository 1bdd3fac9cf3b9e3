/*
 * Chains beyond the bitmask: more devices than it takes, or rules that tie stages together (bytes a node,
 * bytes in all). First a beam guided by the relaxed cost to go, then the bitmask on the devices that the
 * relaxation likes best, then branch and bound, which proves the optimum when it finishes within the work
 * limit. Otherwise the relaxation is the lower bound.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/plan/inst.h"

#define BEAM_WIDTH 48u
#define SQUEEZE_WIDTH 24u
#define SQUEEZES 12
#define BEAM_CHILDREN 96u /* of one state */
#define SUBSET_DEVICES 11u
#define ALL_CHILDREN_UP_TO 64u /* devices; beyond it branch and bound could not finish anyway */

struct state {
    size_t l, last; /* last = D: nothing placed yet */
    double cost, bound, total;
    uint64_t *used;  /* devices */
    double *on_node; /* NULL unless rules count bytes a node */
    uint32_t *on;    /* L */
    size_t stages, nodes;
};
struct child {
    double bound, cost;
    uint32_t e, m;
    size_t from; /* beam: index of the parent */
};
struct search {
    const struct prob *p;
    struct budget *b;
    size_t D, L, W, words;
    double *before, *after, *lean; /* lean[m]: least bytes the layers from m on need */
    struct child **level;          /* branch and bound: children per depth */
    size_t *level_cap;
    double best;
    uint32_t *best_on;
    size_t width;
    bool proof; /* nothing was cut off */
    uint64_t work_left;
    struct state at;
};

static bool has(const struct state *s, size_t e)
{
    return s->used[e / 64] >> (e % 64) & 1u;
}

static bool node_used(const struct search *q, const struct state *s, size_t e)
{
    for (size_t d = 0; d < q->D; d++)
        if (q->p->in->node[d] == q->p->in->node[e] && has(s, d))
            return true;
    return false;
}

/* Do the rules of the request let stage [s->l, m) on e follow s, and can they still hold at the end? */
static bool allowed(const struct search *q, const struct state *s, size_t e, size_t m, bool new_node)
{
    const struct inst *in = q->p->in;
    double bytes = inst_bytes(in, s->l, m);
    size_t stages = s->stages + 1, room = q->L - m;
    if (stages > in->max_stages || (stages == in->max_stages && m < q->L))
        return false;
    if (in->max_stages != SIZE_MAX && room > in->max_stages - stages)
        room = in->max_stages - stages;
    if (s->nodes + new_node + room < in->min_nodes)
        return false;
    if (s->on_node && s->on_node[in->node[e]] + bytes > in->max_node)
        return false;
    return s->total + bytes + q->lean[m] <= in->max_total;
}

/* All stages that may follow s and might still beat the best; returns how many, sorted best first. */
static int by_bound(const void *x, const void *y)
{
    const struct child *a = x, *b = y;
    if (a->bound != b->bound)
        return a->bound < b->bound ? -1 : 1;
    if (a->m != b->m)
        return a->m > b->m ? -1 : 1;
    if (a->from != b->from)
        return a->from < b->from ? -1 : 1;
    return a->e < b->e ? -1 : a->e > b->e;
}

static int push(struct child **v, size_t *n, size_t *cap, struct child c)
{
    if (*n == *cap) {
        size_t want = *cap ? *cap * 2 : 64;
        struct child *g = realloc(*v, want * sizeof *g);
        if (!g)
            return ST_ENOMEM;
        *v = g;
        *cap = want;
    }
    (*v)[(*n)++] = c;
    return ST_OK;
}

static int children(const struct search *q, const struct state *s, size_t from, struct child **v, size_t *n,
                    size_t *cap)
{
    double bytes = inst_cut_bytes(q->p->in, s->l);
    for (size_t e = 0; e < q->D; e++) {
        if (has(s, e))
            continue;
        double at = prob_join(q->p->kind, s->cost, prob_hop(q->p, s->last, e, bytes));
        if (at == INFINITY || at >= q->best)
            continue;
        bool new_node = q->p->in->min_nodes && !node_used(q, s, e);
        for (size_t m = s->l + 1, last = inst_last(q->p->in, e, s->l); m <= last; m++) {
            double cost = prob_join(q->p->kind, at, prob_stage(q->p, e, s->l, m));
            double bound = prob_join(q->p->kind, cost, q->after[e * q->W + m]);
            if (bound == INFINITY || bound >= q->best || !allowed(q, s, e, m, new_node))
                continue;
            struct child c = {bound, cost, (uint32_t)e, (uint32_t)m, from};
            if (push(v, n, cap, c) < 0)
                return ST_ENOMEM;
        }
    }
    return ST_OK;
}

static void place(const struct search *q, struct state *s, const struct child *c)
{
    const struct inst *in = q->p->in;
    double bytes = inst_bytes(in, s->l, c->m);
    s->nodes += !node_used(q, s, c->e);
    s->used[c->e / 64] |= (uint64_t)1 << (c->e % 64);
    if (s->on_node)
        s->on_node[in->node[c->e]] += bytes;
    s->total += bytes;
    for (; s->l < c->m; s->l++)
        s->on[s->l] = c->e;
    s->last = c->e;
    s->cost = c->cost;
    s->bound = c->bound;
    s->stages++;
}

static int state_init(const struct search *q, struct state *s)
{
    memset(s, 0, sizeof *s);
    s->last = q->D;
    s->used = calloc(q->words, sizeof *s->used);
    s->on = calloc(q->L, sizeof *s->on);
    if (q->p->in->max_node < INFINITY)
        s->on_node = calloc(q->p->in->N + 1, sizeof *s->on_node);
    return s->used && s->on && (s->on_node || q->p->in->max_node == INFINITY) ? ST_OK : ST_ENOMEM;
}

static void state_fini(struct state *s)
{
    free(s->used);
    free(s->on);
    free(s->on_node);
}

static int state_copy(const struct search *q, struct state *to, const struct state *s)
{
    int rc = state_init(q, to);
    struct state keep = *to;
    if (rc < 0)
        return rc;
    *to = *s;
    to->used = memcpy(keep.used, s->used, q->words * sizeof *s->used);
    to->on = memcpy(keep.on, s->on, q->L * sizeof *s->on);
    to->on_node = keep.on_node;
    if (s->on_node)
        memcpy(to->on_node, s->on_node, q->p->in->N * sizeof *s->on_node);
    return ST_OK;
}

/* A finished state's bound is its cost with the hop back. */
static void offer(struct search *q, const struct state *s)
{
    if (s->bound < q->best && s->nodes >= q->p->in->min_nodes) {
        q->best = s->bound;
        memcpy(q->best_on, s->on, q->L * sizeof *q->best_on);
    }
}

struct beam {
    struct state *s;
    size_t n;
};

static int beam_add(const struct search *q, struct beam *at, const struct state *s)
{
    if (!at->s && !(at->s = calloc(q->width, sizeof *at->s)))
        return ST_ENOMEM;
    size_t worst = at->n;
    if (at->n == q->width) {
        worst = 0;
        for (size_t i = 1; i < at->n; i++)
            if (at->s[i].bound > at->s[worst].bound)
                worst = i;
        if (at->s[worst].bound <= s->bound)
            return ST_OK;
        state_fini(&at->s[worst]);
    } else {
        at->n++;
    }
    int rc = state_copy(q, &at->s[worst], s);
    if (rc < 0)
        state_fini(&at->s[worst]), at->s[worst] = at->s[--at->n];
    return rc;
}

/* The first `most` of n, in order, to the front; returns how many. */
static size_t pick_first(struct child *v, size_t n, size_t most)
{
    size_t lo = 0, hi = n;
    while (hi - lo > 1 && most < n) { /* what belongs in front of `most` lies in front of it */
        struct child pivot = v[lo + (hi - lo - 1) / 2];
        size_t i = lo, k = hi - 1;
        for (;; i++, k--) {
            while (by_bound(&v[i], &pivot) < 0)
                i++;
            while (by_bound(&pivot, &v[k]) < 0)
                k--;
            if (i >= k)
                break;
            struct child swap = v[i];
            v[i] = v[k];
            v[k] = swap;
        }
        if (most <= k)
            hi = k + 1;
        else
            lo = k + 1;
        if (lo >= most)
            break;
    }
    n = most < n ? most : n;
    qsort(v, n, sizeof *v, by_bound);
    return n;
}

static int beam_expand(struct search *q, struct beam *beams, const struct state *s, struct child **v,
                       size_t *cap)
{
    size_t n = 0;
    int rc = children(q, s, 0, v, &n, cap);
    if (rc < 0 || n == 0)
        return rc;
    size_t most = 8 * q->width < BEAM_CHILDREN ? 8 * q->width : BEAM_CHILDREN;
    n = pick_first(*v, n, most);
    for (size_t i = 0; i < n && rc == ST_OK; i++) {
        const struct child *c = &(*v)[i];
        struct beam *to = &beams[c->m];
        if (to->n == q->width && c->m < q->L) { /* worth a copy only if it would stay */
            double worst = 0;
            for (size_t k = 0; k < to->n; k++)
                worst = to->s[k].bound > worst ? to->s[k].bound : worst;
            if (c->bound >= worst)
                continue;
        }
        struct state next;
        if ((rc = state_copy(q, &next, s)) == ST_OK) {
            place(q, &next, c);
            if (next.l == q->L)
                offer(q, &next);
            else
                rc = beam_add(q, to, &next);
        }
        state_fini(&next);
    }
    return rc;
}

static int beam_run(struct search *q)
{
    struct beam *beams = calloc(q->W, sizeof *beams);
    struct child *v = NULL;
    size_t cap = 0;
    int rc = beams ? ST_OK : ST_ENOMEM;
    if (rc == ST_OK)
        rc = beam_expand(q, beams, &q->at, &v, &cap);
    for (size_t l = 1; rc == ST_OK && l < q->L; l++)
        for (size_t i = 0; i < beams[l].n && rc == ST_OK; i++)
            if (budget_spend(q->b, q->D))
                rc = beam_expand(q, beams, &beams[l].s[i], &v, &cap);
    for (size_t l = 0; beams && l < q->W; l++) {
        for (size_t i = 0; i < beams[l].n; i++)
            state_fini(&beams[l].s[i]);
        free(beams[l].s);
    }
    free(beams);
    free(v);
    return rc;
}

/* The bitmask on the devices that lie on the cheapest relaxed plans. */
static int subset_run(struct search *q)
{
    const struct inst *in = q->p->in;
    struct child *rank = calloc(q->D, sizeof *rank);
    uint32_t only[SUBSET_DEVICES], *on = calloc(q->L, sizeof *on);
    size_t n = q->D < SUBSET_DEVICES ? q->D : SUBSET_DEVICES;
    struct inst *sub = NULL;
    int rc = rank && on ? ST_OK : ST_ENOMEM;
    if (rc < 0)
        goto done;
    for (size_t e = 0; e < q->D; e++) {
        rank[e] = (struct child){INFINITY, 0, (uint32_t)e, 0, 0};
        for (size_t m = 1; m <= q->L; m++) {
            double v = prob_join(q->p->kind, q->before[e * q->W + m], q->after[e * q->W + m]);
            rank[e].bound = v < rank[e].bound ? v : rank[e].bound;
        }
    }
    for (size_t i = 0; q->best < INFINITY && i < q->L; i++)
        rank[q->best_on[i]].bound = -1; /* what the beam uses stays in */
    qsort(rank, q->D, sizeof *rank, by_bound);
    for (size_t i = 0; i < n; i++)
        only[i] = in->dev[rank[i].e];
    rc = inst_new(&sub, in->c, in->m, in->r, in->rules, only, n, q->b->memory_limit);
    if (rc < 0)
        goto done;
    struct prob p = *q->p;
    struct solution s = {.limit = q->best, .on = on};
    p.in = sub;
    rc = sub->D ? exact_solve(&p, q->b, &s) : ST_ELIMIT;
    if (rc == ST_OK && s.value < q->best) {
        q->best = s.value;
        for (size_t i = 0; i < q->L; i++)
            q->best_on[i] = rank[on[i]].e;
    }
    if (rc == ST_ELIMIT || rc == ST_EDEADLINE)
        rc = ST_OK;
done:
    inst_free(sub);
    free(rank);
    free(on);
    return rc;
}

static int branch(struct search *q, struct state *s)
{
    size_t n = 0, n_cost, depth = s->stages;
    if (q->work_left == 0 || !budget_spend(q->b, 1)) {
        q->proof = false;
        return ST_OK;
    }
    int rc = children(q, s, 0, &q->level[depth], &n, &q->level_cap[depth]);
    n_cost = q->D + n; /* a state costs what it looked at and what it branches into */
    q->work_left -= n_cost < q->work_left ? n_cost : q->work_left;
    if (n)
        qsort(q->level[depth], n, sizeof **q->level, by_bound);
    for (size_t i = 0; rc == ST_OK && i < n; i++) {
        struct child c = q->level[depth][i];
        if (c.bound >= q->best)
            break;
        struct state keep = *s;
        size_t node = q->p->in->node[c.e];
        double was = s->on_node ? s->on_node[node] : 0;
        place(q, s, &c);
        if (s->l == q->L)
            offer(q, s);
        else
            rc = branch(q, s);
        s->used[c.e / 64] &= ~((uint64_t)1 << (c.e % 64));
        if (s->on_node)
            s->on_node[node] = was;
        *s = keep;
    }
    return rc;
}

static int search_init(struct search *q, const struct prob *p, struct budget *b, struct solution *s)
{
    *q = (struct search){.p = p, .b = b, .D = p->in->D, .L = p->in->L, .W = p->in->L + 1, .best = INFINITY};
    q->words = (q->D + 63) / 64;
    q->best_on = s->on;
    q->proof = true;
    q->width = BEAM_WIDTH;
    q->before = malloc(q->D * q->W * sizeof *q->before);
    q->after = malloc(q->D * q->W * sizeof *q->after);
    q->lean = calloc(q->W, sizeof *q->lean);
    q->level = calloc(q->W, sizeof *q->level);
    q->level_cap = calloc(q->W, sizeof *q->level_cap);
    if (!q->before || !q->after || !q->lean || !q->level || !q->level_cap)
        return ST_ENOMEM;
    for (size_t m = 0; m < q->L; m++)
        q->lean[m] = inst_bytes(p->in, m, q->L);
    return state_init(q, &q->at);
}

static void search_fini(struct search *q)
{
    for (size_t i = 0; q->level && i < q->W; i++)
        free(q->level[i]);
    free(q->level);
    free(q->level_cap);
    free(q->before);
    free(q->after);
    free(q->lean);
    state_fini(&q->at);
}

int search_quick(const struct prob *p, struct budget *b, unsigned width, uint32_t *on, double *value)
{
    struct search q;
    struct solution s = {.on = on};
    int rc = search_init(&q, p, b, &s);
    q.width = width;
    if (rc == ST_OK && relax_run(p, q.before, q.after) < INFINITY)
        rc = beam_run(&q);
    *value = q.best;
    search_fini(&q);
    return rc;
}

/*
 * A beam is blind among plans of one largest value. So for such an objective: halve the way to the bound
 * again and again, asking for the fastest plan that stays below.
 */
static int squeeze(struct search *q, double lo)
{
    const struct prob *p = q->p;
    uint32_t *on = calloc(q->L, sizeof *on);
    int rc = on ? ST_OK : ST_ENOMEM;
    for (int i = 0; i < SQUEEZES && rc == ST_OK && q->b->stop == ST_OK && q->best > lo * 1.0005; i++) {
        double at = q->best == INFINITY ? INFINITY : lo + (q->best - lo) / 2, v;
        struct prob by_time = *p;
        by_time.kind = PROB_LATENCY;
        by_time.cap_bottleneck = fmin(p->cap_bottleneck, p->kind == PROB_BOTTLENECK ? at : INFINITY);
        by_time.cap_ratio = fmin(p->cap_ratio, p->kind == PROB_RATIO ? at : INFINITY);
        struct eval ev;
        rc = search_quick(&by_time, q->b, SQUEEZE_WIDTH, on, &v);
        if (rc == ST_OK && v == INFINITY) {
            if (at == INFINITY)
                break;
            lo = at; /* as far as the beam can see */
            continue;
        }
        if (rc < 0 || (rc = eval_run(p->in, on, &ev)) < 0)
            break;
        v = p->kind == PROB_BOTTLENECK ? ev.bottleneck : ev.ratio;
        eval_fini(&ev);
        if (v >= q->best)
            break;
        q->best = v;
        memcpy(q->best_on, on, q->L * sizeof *on);
    }
    free(on);
    return rc;
}

int search_solve(const struct prob *p, struct budget *b, struct solution *s)
{
    struct search q;
    int rc = search_init(&q, p, b, s);
    double least = INFINITY;
    if (rc == ST_OK)
        least = fmax(relax_run(p, q.before, q.after), cover_bound(p));
    if (rc == ST_OK && least < INFINITY) {
        rc = beam_run(&q);
        if (rc == ST_OK && (p->kind == PROB_BOTTLENECK || p->kind == PROB_RATIO))
            rc = squeeze(&q, least);
        if (rc == ST_OK && !p->in->coupled && q.best > least && b->stop == ST_OK)
            rc = subset_run(&q);
        q.work_left = b->work_left / 2;
        b->work_left -= q.work_left;
        if (rc == ST_OK && q.best > least && q.D <= ALL_CHILDREN_UP_TO)
            rc = branch(&q, &q.at);
        else if (q.best > least)
            q.proof = false;
        b->work_left += q.work_left;
    }
    if (rc == ST_OK && b->stop == ST_ECANCELED)
        rc = ST_ECANCELED;
    if (q.best <= least * (1 + 1e-13)) /* at the bound, up to the order of additions */
        q.proof = true;
    s->value = q.best;
    s->proven = q.proof;
    s->bound = q.proof ? q.best : least < q.best ? least : q.best;
    s->solver = "search";
    search_fini(&q);
    return rc;
}
