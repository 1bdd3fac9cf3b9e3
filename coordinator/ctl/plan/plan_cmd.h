/*
 * `strata plan …`: the offline commands, on the coordinator's own planner. Each takes its own
 * argv (argv[0] is the command's name for messages), writes data to out and everything else to err, and
 * returns the exit code of the manual. getopt_long is used: one thread at a time.
 */
#ifndef STRATA_CTL_PLAN_CMD_H
#define STRATA_CTL_PLAN_CMD_H

#include <stdio.h>

struct plan;

int ctl_plan_solve(int argc, char **argv, FILE *out, FILE *err);
int ctl_plan_check(int argc, char **argv, FILE *out, FILE *err);
int ctl_plan_show(int argc, char **argv, FILE *out, FILE *err);
int ctl_plan_replan(int argc, char **argv, FILE *out, FILE *err);
int ctl_plan_explain(int argc, char **argv, FILE *out, FILE *err);
int ctl_plan_diff(int argc, char **argv, FILE *out, FILE *err);
int ctl_plan_export(int argc, char **argv, FILE *out, FILE *err);

/* The table that solve and show print. Control characters of file-given names are shown as `?`. */
void ctl_plan_print(const struct plan *p, FILE *out);

#endif
