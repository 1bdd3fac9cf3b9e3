/*
 * A laboratory of real daemons in network namespaces with known truth between them: either a simulated
 * network (tests/support/netsim.c) or one pair of veth devices paced by tc tbf. Needs root. Everything is
 * taken down by lab_close.
 */
#ifndef STRATA_BENCH_LAB_H
#define STRATA_BENCH_LAB_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/base/err.h"

#define LAB_MAX 16u

struct lab {
    char dir[64], bin[1024];
    unsigned nodes;  /* agents n1 … nN */
    unsigned spaces; /* namespaces made */
    bool veth;       /* two namespaces and the coordinator in the first */
    pid_t pid[LAB_MAX + 1], sim;
    FILE *to_sim, *from_sim;
};

/* Why there can be no laboratory here; NULL when there can. */
const char *lab_cannot(void);
/* nodes agents and the coordinator on the simulated network; the coordinator is host nodes + 1. */
int lab_open_sim(struct lab *l, unsigned nodes, struct err *e) ST_CHECK;
/* Two agents over a veth pair. */
int lab_open_veth(struct lab *l, struct err *e) ST_CHECK;
void lab_close(struct lab *l);

/* A command of netsim; its answer after "ok" into out (may be NULL). */
int lab_sim(struct lab *l, char out[128], const char *fmt, ...)
    __attribute__((format(printf, 3, 4))) ST_CHECK;
/* Both directions of the veth pair; 0 = not paced. */
int lab_pace(struct lab *l, double bits_per_s) ST_CHECK;
/* strata with --json, in the coordinator's namespace: its object (the caller's), or NULL. */
json_t *lab_strata(struct lab *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
