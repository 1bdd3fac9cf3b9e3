/*
 * Agents in a process of their own, with all of an agent that has to do with certificates (agent/identity,
 * agent/control) and nothing else: each has its key, socket, address and connection, renews and moves as the
 * agent does, and calls the coordinator once a second. The first two of a fleet may have a transfer between
 * them, one answer that goes on from 'b' to 'e'.
 */
#ifndef STRATA_BENCH_FLEET_H
#define STRATA_BENCH_FLEET_H

#include "bench/tls/tls.h"

struct fleet_tally { /* over a pipe, twice: when all are registered, and at the end */
    uint64_t calls, failed, lost, moves, bytes;
    double calm_ms, slowest_ms; /* slowest call before 'r', and after it */
    bool whole;                 /* the transfer ended with the right digest, or there was none */
    char why[160];              /* what went wrong first; "" = nothing */
};

struct fleet {
    pid_t pid;
    int in, out; /* commands to it: 'b' begin to call, 'r' the rotation begins, 'e' end; tallies from it */
};

/* Forks. The agents' names are n<first> …, their files lie in dir. */
int fleet_start(struct fleet *f, const struct bench_cluster *c, const char *dir, const struct enroll_token *t,
                unsigned first, unsigned n, bool transfer, struct err *e) ST_CHECK;
int fleet_tell(struct fleet *f, char what, struct err *e) ST_CHECK;
/* Blocks. */
int fleet_tally(struct fleet *f, struct fleet_tally *t, struct err *e) ST_CHECK;
/* Kills what is left of it. */
void fleet_end(struct fleet *f);

#endif
