/*
 * The planner: which device runs which layers. Pure: no I/O, no clock but the one in the options, no globals,
 * so any thread may call anything here on structs it owns. The figures of a plan mean what the planner file
 * format says; plan_check (check.c) recomputes them without sharing code with the solvers.
 */
#ifndef STRATA_PLAN_H
#define STRATA_PLAN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/err.h"

struct cluster;
struct model;
struct request;

enum plan_goal { PLAN_LATENCY, PLAN_THROUGHPUT, PLAN_MEMORY, PLAN_BALANCED };
enum plan_feasible { PLAN_NO, PLAN_YES, PLAN_UNKNOWN };

/* Why a device is or is not in the plan. The names are API: they stand in the plan file. */
enum plan_code {
    PLAN_CODE_CHOSEN,      /* holds layers */
    PLAN_CODE_NOT_ALLOWED, /* the request's allow or deny keeps it out */
    PLAN_CODE_NO_MEMORY,   /* not one layer fits */
    PLAN_CODE_UNREACHABLE, /* no link to any other usable device or to the client */
    PLAN_CODE_CONSTRAINT,  /* another constraint of the request rules it out */
    PLAN_CODE_NOT_BETTER,  /* usable; a proven optimum does without it */
    PLAN_CODE_NOT_FOUND,   /* usable; the search, unproven, found nothing better with it */
    PLAN_CODE_COUNT
};
enum plan_shortfall_kind {
    PLAN_SHORT_TOTAL_MEMORY,
    PLAN_SHORT_LARGEST_LAYER,
    PLAN_SHORT_PACKING,
    PLAN_SHORT_CONNECTIVITY,
    PLAN_SHORT_CONSTRAINT,
    PLAN_SHORT_COUNT
};

struct plan_opts {
    enum plan_goal goal;
    bool replicas;             /* several devices may share a stage: chains, goal throughput */
    bool stats;                /* plan_to_json writes "stats" */
    double time_limit_s;       /* 0 = none; needs clock */
    const struct clock *clock; /* borrowed; NULL = no time limit and no seconds in the statistics */
    uint64_t work_limit;       /* states a search beyond the exact size may visit; 0 = the default */
    size_t memory_limit;       /* bytes of solver tables; 0 = 1 GiB */
    unsigned threads;          /* accepted; the solvers use one, so results never depend on it */
    const atomic_bool *cancel; /* borrowed; set from any thread: plan_solve returns ST_ECANCELED soon */
};

struct plan_replica {
    char *device;
    double share, compute_s;
};
struct plan_stage {
    char *device;                  /* the first of them when there are replicas */
    struct plan_replica *replicas; /* NULL, or at least two that share the stage */
    size_t n_replicas;
    char **layers; /* in order */
    size_t n_layers;
    double compute_s, transfer_in_s;
    double memory_bytes;
};
struct plan_placement {
    char *layer, *device;
    double latency_s, transfer_s;
    double memory_bytes;
};
struct plan_device {
    char *id, *reason;
    double memory_ratio, busy_ratio;
    enum plan_code code;
};
struct plan_move {
    char *layer, *from, *to; /* from NULL = origin */
    double bytes;
};
struct plan_bottleneck {
    bool link;
    char *device;    /* of a device bottleneck */
    char *from, *to; /* of a link bottleneck: devices, or "client" */
};
struct plan_shortfall {
    enum plan_shortfall_kind kind;
    double bytes; /* missing; 0 where bytes are not what is missing */
    char *where, *hint;
    bool proven_minimum; /* no smaller addition of bytes at that place would do */
};
struct plan_stats {
    double seconds; /* 0 without a clock */
    uint64_t states, table_bytes;
};
struct plan {
    enum plan_goal goal;
    enum plan_feasible feasible;
    bool optimal;
    char *solver; /* "bitmask", "search" or "none" */
    double objective, lower_bound, gap;
    double latency_s, bottleneck_s, max_memory_ratio;
    bool has_optima; /* balanced only */
    struct {
        double latency_s, bottleneck_s, max_memory_ratio;
    } optima;
    struct plan_stage *stages;
    size_t n_stages;
    struct plan_placement *placements;
    size_t n_placements;
    struct plan_device *devices;
    size_t n_devices;
    struct plan_bottleneck bottleneck;
    struct plan_move *moves;
    size_t n_moves;
    double moved_bytes;
    char **warnings;
    size_t n_warnings;
    char *stopped; /* NULL, "time" or "work" */
    bool has_shortfall;
    struct plan_shortfall shortfall;
    bool has_stats;
    struct plan_stats stats;
    char *inputs; /* NULL, or what it was made from (inputs.h); no part of the plan file */
};

/*
 * Solves. request may be NULL. ST_OK: *out is a feasible plan. ST_EINFEASIBLE: *out says what is short.
 * ST_EDEADLINE: a limit was reached before anything was found (*out has feasible unknown). In these three
 * cases *out must be freed. Otherwise *out is NULL: ST_EINVAL (pin or together names an unknown layer or
 * device; replicas for another goal), ST_ENOTSUP (replicas of a DAG, or under a rule that counts stages,
 * nodes or bytes), ST_ECANCELED, ST_ENOMEM. *e is filled whenever the result is not ST_OK.
 */
int plan_solve(const struct cluster *c, const struct model *m, const struct request *r,
               const struct plan_opts *o, struct plan **out, struct err *e) ST_CHECK;
void plan_free(struct plan *p); /* NULL is fine */

struct plan_replan_opts {
    struct plan_opts o;         /* the goal, and limits; replicas are not taken */
    double slack;               /* ≥ 0: a plan this much (relative) above the best will do */
    double expected_steps;      /* 0 = not weighed; else moving must pay within so many steps */
    double cooldown_s, since_s; /* a plan that still works is kept while since_s < cooldown_s */
};
/* The case for moving or not moving. */
struct plan_case {
    bool works;                 /* the old plan is still possible */
    bool kept;                  /* it stays */
    bool fewest;                /* no plan within the slack moves fewer bytes: proven */
    double before, best, after; /* the goal's value: of the old plan (INFINITY when it does not work), of the
                                   best plan there is, of the plan returned */
    double lost_bytes;          /* of layers that no device holds */
    double fresh_bytes;         /* what the best plan, found anew, would have to move */
    double move_s;              /* the longest any node receives, as far as sources are devices */
    char text[400];
};
/*
 * Among the plans within the slack of the best, one that moves the fewest bytes away from where layers are:
 * in `from` (names that no longer exist are ignored, with a warning) and in the cluster's resident_layers.
 * moves are in an order that never fills a device beyond what it has, where copies that nobody reads any more
 * are dropped first. Results as plan_solve.
 */
int plan_replan(const struct cluster *c, const struct model *m, const struct request *r,
                const struct plan *from, const struct plan_replan_opts *o, struct plan **out,
                struct plan_case *why, struct err *e) ST_CHECK;

/* Appends the plan as JSON, two spaces of indentation, keys in a fixed order, shortest round-trip numbers. */
int plan_to_json(const struct plan *p, struct buf *out) ST_CHECK;
/* Reads a plan. Bounded; unknown keys are an error that names the key and its path. */
int plan_from_json(const char *text, size_t n, struct plan **out, struct err *e) ST_CHECK;

/* What plan_check found wrong: one entry a figure or rule. */
struct plan_check_report {
    char **problems;
    size_t n;
    double latency_s, bottleneck_s, max_memory_ratio; /* recomputed; valid when the stages made sense */
};
/*
 * Recomputes every figure of a plan and every rule of the request (may be NULL). ST_OK: nothing wrong.
 * ST_ECONFLICT: report->problems says what, and *e holds the first. Optimality itself is not re-proved; a
 * lower bound above the objective, or a gap that does not follow from them, is caught.
 */
int plan_check(const struct cluster *c, const struct model *m, const struct request *r, const struct plan *p,
               struct plan_check_report *report, struct err *e) ST_CHECK;
void plan_check_fini(struct plan_check_report *report);

const char *plan_goal_name(enum plan_goal g);
int plan_goal_parse(const char *word, enum plan_goal *out) ST_CHECK;
const char *plan_code_name(enum plan_code c);
const char *plan_shortfall_name(enum plan_shortfall_kind k);

#endif
