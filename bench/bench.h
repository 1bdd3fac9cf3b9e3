/*
 * strata-bench: one table of named cases with their aims (cases.c), areas that fill in the results, one
 * report for people or as JSON. Everything is compared with a peer that does the same work in the same run.
 */
#ifndef STRATA_BENCH_BENCH_H
#define STRATA_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

enum bench_aim {
    AIM_NONE,      /* reported beside its peer, nothing promised */
    AIM_RATIO_MIN, /* ours / peer at least */
    AIM_RATIO_MAX, /* ours / peer at most */
    AIM_OURS_MIN,  /* in the case's unit */
    AIM_OURS_MAX,
};

struct bench_case {
    const char *area, *name, *unit, *peer_name;
    enum bench_aim aim;
    double bound;
};

/* All cases of all areas, in the order in which they are reported. */
extern const struct bench_case bench_cases[];
extern const size_t bench_cases_n;

/* How the samples of ours lay, in the case's unit. */
struct bench_spread {
    size_t n; /* 0 = the case has one figure only */
    double min, p50, mean, p90, p99, max, mad;
};

struct bench_result {
    double ours, peer;
    struct bench_spread spread;
    bool ran;
    char why[200]; /* why it could not run here */
};

struct bench_opts {
    bool quick;       /* shorter, with the same cases */
    const char *only; /* one case, where the area can run it alone; NULL = all */
};

struct bench_run {
    struct bench_opts o;
    struct bench_result *results; /* one for each of bench_cases */
};

/* Writes the result of a case; the name must stand in the table. */
void bench_put(struct bench_run *run, const char *area, const char *name, double ours, double peer);
/* The same for a series: ours is its median. Sorts v. */
void bench_put_series(struct bench_run *run, const char *area, const char *name, double *v, size_t n,
                      double peer);
bool bench_has(const char *area, const char *name);
/* Is any of these cases (NULL ends them) asked for? Others are listed as left out. */
bool bench_wants(struct bench_run *run, const char *area, const char *const names[]);
/* Says why a case could not run. */
void bench_skip(struct bench_run *run, const char *area, const char *name, const char *why);
/* 1 met, 0 missed, -1 nothing to say (no aim, or it did not run). */
int bench_met(const struct bench_case *c, const struct bench_result *r);
/* "ratio <= 1.3", "ours >= 1200"; empty without an aim. */
void bench_aim_text(const struct bench_case *c, char out[48]);
/* Sorts v. */
double bench_median(double *v, size_t n);

int bench_print(const struct bench_run *run, const char *area, bool json);

int bench_gpu(struct bench_run *run, struct err *e) ST_CHECK;
int bench_rpc(struct bench_run *run, struct err *e) ST_CHECK;
int bench_access(struct bench_run *run, struct err *e) ST_CHECK;
int bench_audit(struct bench_run *run, struct err *e) ST_CHECK;
int bench_tls(struct bench_run *run, struct err *e) ST_CHECK;
int bench_plan(struct bench_run *run, struct err *e) ST_CHECK;
int bench_net(struct bench_run *run, struct err *e) ST_CHECK;

#endif
