/*
 * One planning problem, compiled for the solvers: usable devices and layers as dense arrays, links as a
 * matrix, and, for chains, the time of every run of layers on every device. Private to the room's solvers;
 * check.c must not include it.
 */
#ifndef STRATA_PLAN_INST_H
#define STRATA_PLAN_INST_H

#include <math.h>

#include "common/model/cluster.h"
#include "common/model/model.h"
#include "common/model/request.h"
#include "coordinator/plan/plan.h"

#define INST_EXACT_DEVICES 16u
#define INST_NOBODY UINT32_MAX
#define INST_DENSE_NODES 384u

/* Rules of the request that the shortfall analysis can switch off one at a time. */
enum inst_rule {
    RULE_DEVICES = 1,
    RULE_PIN = 2,
    RULE_TOGETHER = 4,
    RULE_MAX_STAGES = 8,
    RULE_MIN_NODES = 16,
    RULE_NODE_BYTES = 32,
    RULE_TOTAL_BYTES = 64,
    RULE_LINKS = 128,  /* off = every pair is joined for free */
    RULE_MEMORY = 256, /* off = stages are only limited by the other rules */
    RULE_ALL = 511
};

struct inst_hop {
    double half_rtt, rate; /* rate INFINITY = free */
    bool ok;
};

struct inst {
    const struct cluster *c;
    const struct model *m;
    const struct request *r;
    unsigned rules;
    size_t D, L, N;  /* usable devices, layers, nodes of the cluster */
    uint32_t *dev;   /* D: index into c->devices */
    uint32_t *layer; /* L: index into m->layers, topological */
    uint32_t *pos;   /* inverse of layer */
    uint32_t *node;  /* D */
    double *cap;     /* D: memory − headroom */
    double *t;       /* D × L: own time of a layer */
    double *open;    /* D: once per stage */
    struct inst_hop
        *hop; /* (N+1)² by node, index N is the client; NULL with more than INST_DENSE_NODES nodes */
    bool chain;
    uint32_t *pin; /* L: device, or INST_NOBODY; D = a device that is not usable */
    bool *glued;   /* L: layer i must share a device with layer i−1 (chain) */
    size_t max_stages, min_nodes;
    double max_node, max_total;
    /* chain tables; run [a, b) at a·(L+1)+b */
    double *bytes;    /* weights + cache + largest activation */
    double *run;      /* per device: D × L × (L+1); INFINITY = cannot be a stage; NULL when lean */
    bool lean;        /* more than INST_EXACT_DEVICES devices: runs are worked out from sums */
    bool table;       /* runs are what the table says and no sums of times */
    double *own;      /* lean: D × (L+1), seconds of [0, l) outside segment tables */
    uint32_t *blocks; /* lean: L+1, block layers in [0, l) */
    uint32_t *last;   /* D × L: longest run from there ends at it; 0 = none */
    bool coupled;     /* node or total bytes depend on more than one stage */
};

/* rules: which of enum inst_rule hold. ST_ENOMEM, ST_ELIMIT (tables above memory_limit). */
int inst_new(struct inst **out, const struct cluster *c, const struct model *m, const struct request *r,
             unsigned rules, const uint32_t *only, size_t n_only, size_t memory_limit) ST_CHECK;
void inst_free(struct inst *in);

static inline double inst_bytes(const struct inst *in, size_t a, size_t b)
{
    return in->bytes[a * (in->L + 1) + b];
}
static inline size_t inst_last(const struct inst *in, size_t d, size_t a)
{
    return in->last[d * in->L + a];
}
/* Hops between devices, index D is the client. */
struct inst_hop inst_path(const struct inst *in, uint32_t from, uint32_t to); /* by node, N is the client */
static inline struct inst_hop inst_hop(const struct inst *in, size_t from, size_t to)
{
    uint32_t i = from < in->D ? in->node[from] : (uint32_t)in->N,
             j = to < in->D ? in->node[to] : (uint32_t)in->N;
    return in->hop ? in->hop[i * (in->N + 1) + j] : inst_path(in, i, j);
}
/* Time of `k` block layers and `own` seconds of others on device d, or INFINITY when its table ends before k.
 */
double inst_stage_s(const struct inst *in, size_t d, size_t k, double own);
static inline double inst_run(const struct inst *in, size_t d, size_t a, size_t b)
{
    if (in->run)
        return in->run[(d * in->L + a) * (in->L + 1) + b];
    if (b > in->last[d * in->L + a] || (b < in->L && in->glued[b]))
        return INFINITY;
    const double *own = &in->own[d * (in->L + 1)];
    return inst_stage_s(in, d, in->c->devices[in->dev[d]].has_segment ? in->blocks[b] - in->blocks[a] : 0,
                        own[b] - own[a]);
}

/* What an assignment (a device for every topological position) costs. Arrays hold n entries, in stage order.
 */
struct eval {
    size_t n;
    uint32_t *dev, *stage_of; /* stage_of: L entries */
    double *compute, *in, *bytes;
    double latency, bottleneck, ratio;
    bool link;       /* the bottleneck is a hop */
    size_t from, to; /* its devices, D = the client; from = the device otherwise */
};
/* ST_EINFEASIBLE: a hop has no link, memory or a rule is exceeded, or the stages depend on each other in a
 * circle. On ST_OK the caller ends it with eval_fini. */
int eval_run(const struct inst *in, const uint32_t *on, struct eval *out) ST_CHECK;
void eval_fini(struct eval *ev);

#define BUDGET_CHUNK ((size_t)2 << 20)

/* Limits of one plan_solve, shared by its solver runs. */
struct budget {
    const struct clock *clock;
    uint64_t deadline_ns; /* 0 = none */
    const atomic_bool *cancel;
    uint64_t states, work_left; /* work: a pool of the searches, each may take half of what is left */
    size_t memory_limit, table_bytes;
    double **chunk;               /* kept from one solver run to the next */
    size_t n_chunks, chunk_bytes; /* of each, at most BUDGET_CHUNK; set by the first user */
    int stop;                     /* ST_OK, ST_ECANCELED, ST_EDEADLINE, ST_ELIMIT (work) */
};
/* Counts n states; true = go on. Work is only limited where the caller says so. */
bool budget_spend(struct budget *b, uint64_t n);
/* One chunk more. ST_ELIMIT (memory limit), ST_ENOMEM. */
int budget_chunk(struct budget *b) ST_CHECK;
void budget_fini(struct budget *b);

/* One objective over one instance. */
enum prob_kind { PROB_LATENCY, PROB_BOTTLENECK, PROB_RATIO, PROB_EXCESS, PROB_MOVE };
struct prob {
    const struct inst *in;
    enum prob_kind kind;
    double cap_bottleneck, cap_ratio; /* stages and hops above them are out; INFINITY = none */
    const double *moved;              /* PROB_MOVE: d, l: weight bytes of [0, l) that d does not hold */
    double per_second;                /* PROB_MOVE: bytes that a second of latency is worth */
};
static inline bool prob_is_sum(enum prob_kind k)
{
    return k != PROB_BOTTLENECK && k != PROB_RATIO;
}
static inline double prob_join(enum prob_kind k, double a, double b)
{
    if (prob_is_sum(k))
        return a + b;
    return a > b ? a : b;
}
static inline double prob_stage(const struct prob *p, size_t d, size_t a, size_t b)
{
    double run = inst_run(p->in, d, a, b), bytes = inst_bytes(p->in, a, b), cap = p->in->cap[d];
    if (run == INFINITY || run > p->cap_bottleneck)
        return INFINITY;
    if (p->kind == PROB_EXCESS)
        return bytes > cap ? bytes - cap : 0;
    if (bytes / cap > p->cap_ratio)
        return INFINITY;
    if (p->kind == PROB_MOVE)
        return p->moved[d * (p->in->L + 1) + b] - p->moved[d * (p->in->L + 1) + a] + p->per_second * run;
    return p->kind == PROB_RATIO ? bytes / cap : run;
}
static inline double prob_hop(const struct prob *p, size_t i, size_t j, double bytes)
{
    const struct inst_hop h = inst_hop(p->in, i, j);
    double s = bytes / h.rate;
    if (!h.ok || s > p->cap_bottleneck)
        return INFINITY;
    if (p->kind == PROB_MOVE)
        return p->per_second * (h.half_rtt + s);
    return p->kind == PROB_LATENCY ? h.half_rtt + s : p->kind == PROB_BOTTLENECK ? s : 0;
}
/* Bytes that cross a cut before position l of a chain: 0 = from the client, L = back to it. */
double inst_cut_bytes(const struct inst *in, size_t l);

struct solution {
    double limit;        /* in: only solutions up to it are wanted, others may be missed; INFINITY = all */
    double value, bound; /* bound ≤ the optimum; value INFINITY = nothing found */
    bool proven;         /* value is the optimum, or there is none */
    uint32_t *on;        /* L entries, the caller's */
    const char *solver;
};
/* Exact for chains that are not coupled, up to INST_EXACT_DEVICES devices: sums (latency, excess) and largest
 * values (bottleneck, ratio). ST_ELIMIT = too large for it. exact_solve picks the one for the objective. */
int bitmask_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
int reach_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
int exact_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
/* Exact for latency when all layers are alike, nodes are few and visiting one twice never pays; ST_ELIMIT
 * else. */
int site_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
bool inst_alike(const struct inst *in); /* all layers, with no rule that tells them apart */
/* Chains on many devices: a plan and a bound. ST_ELIMIT when a rule of the request is in the way. */
int large_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
/* Its part for sums. */
int lagrange_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
/* A quick beam for a first upper bound; on = L entries. INFINITY = found nothing, which proves nothing. */
int search_quick(const struct prob *p, struct budget *b, unsigned width, uint32_t *on,
                 double *value) ST_CHECK;
/* Any chain: beam search, exact subsets, branch and bound. */
int search_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
/* Any DAG: branch and bound over assignments. */
int dag_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;
/* Picks among the three. ST_OK also when nothing was found; ST_ECANCELED, ST_ENOMEM. */
int prob_solve(const struct prob *p, struct budget *b, struct solution *s) ST_CHECK;

/*
 * The chain relaxed so that a device may be visited again, which only lowers costs. before[e·(L+1)+m]: least
 * cost of layers [0, m) whose last stage is on e and ends at m. after[…]: least cost of all that follows a
 * stage on e ending at m. Both D·(L+1) entries. Returns the least total.
 */
double relax_run(const struct prob *p, double *before, double *after);
double relax_before(const struct prob *p, double *before); /* the first table alone */
/* Another bound, for PROB_BOTTLENECK and PROB_RATIO: the least value at which the longest runs of all devices
 * together are as long as the chain. 0 for other objectives. */
double cover_bound(const struct prob *p);

/* plan.c and shortfall.c */
char *plan_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int shortfall_find(const struct inst *in, struct budget *b, struct plan_shortfall *out) ST_CHECK;

#endif
