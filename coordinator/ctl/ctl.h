/*
 * The strata command line: one function a command, data on stdout, everything else on stderr, `--json`
 * everywhere. A command returns an exit code. One thread.
 */
#ifndef STRATA_CTL_CTL_H
#define STRATA_CTL_CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/base/err.h"
#include "strata/client.h"

struct ctl_command;

struct ctl {
    const struct ctl_command *command; /* the one that runs; its row of commands.c */
    const char *dir;                   /* identity: --dir, STRATA_DIR, or ~/.config/strata */
    char dir_buf[1024];
    bool json, tty, color, quiet;
    uint64_t timeout_ns;
    struct strata_client *client; /* opened by ctl_connect, closed by main */
};

/* ---- out.c ---- */

struct table;
struct table *table_new(const char *const *columns, size_t n); /* NULL: no memory */
/* One cell after the other, row by row; numbers are right-aligned where the column's name ends in '>'. */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_print(const struct table *t, FILE *out);
void table_free(struct table *t);

/* Prints {"schema": SCHEMA, …object} on one line and frees it. Returns 0, or 1 when stdout cannot be written.
 */
int ctl_print_json(const char *schema, json_t *object);
/* "strata: sentence" on stderr, or the same as JSON on stdout with --json. Returns the exit code. */
int ctl_fail(const struct ctl *c, const struct err *e);
int ctl_client_fail(const struct ctl *c, const struct strata_error *e);
/* What is wrong with a word; returns 2. */
int ctl_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* What the command wants instead of what was given, then its usage line; returns 2. */
int ctl_misuse(const struct ctl *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ctl_bar(const struct ctl *c, const char *what, uint64_t done, uint64_t total, const char *note);
void ctl_bar_end(const struct ctl *c);

/* Connects once; returns 0 or an exit code after saying why. */
int ctl_connect(struct ctl *c);

/* ---- options: "--name VALUE", "--name=VALUE", "--flag" ---- */

struct ctl_opt {
    const char *name;
    const char **value; /* takes a value */
    bool *flag;
    const char **list; /* repeated: up to list_max values */
    size_t *n;
    size_t list_max;
};
/* Moves operands to argv[0…] and returns how many, or -1 after saying what is wrong. */
int ctl_parse(int argc, char **argv, const struct ctl_opt *opts, size_t nopts);
int ctl_number(const char *word, const char *name, uint64_t max, uint64_t *out); /* 0, or 2 after saying so */

/* ---- commands: argv starts after the command's words ---- */

int ctl_init(struct ctl *c, int argc, char **argv);
int ctl_node_token(struct ctl *c, int argc, char **argv);
int ctl_user_token(struct ctl *c, int argc, char **argv);
int ctl_login(struct ctl *c, int argc, char **argv);
int ctl_cert_status(struct ctl *c, int argc, char **argv);
int ctl_cert_renew(struct ctl *c, int argc, char **argv);
int ctl_cert_rotate(struct ctl *c, int argc, char **argv);
int ctl_cert_rotate_ca(struct ctl *c, int argc, char **argv);
int ctl_cert_revoke(struct ctl *c, int argc, char **argv);
int ctl_cert_pin(struct ctl *c, int argc, char **argv);
int ctl_status(struct ctl *c, int argc, char **argv);
int ctl_node_list(struct ctl *c, int argc, char **argv);
int ctl_node_drain(struct ctl *c, int argc, char **argv);
int ctl_node_resume(struct ctl *c, int argc, char **argv);
int ctl_node_forget(struct ctl *c, int argc, char **argv);
int ctl_layer_where(struct ctl *c, int argc, char **argv);
int ctl_layer_move(struct ctl *c, int argc, char **argv);
int ctl_gpu_list(struct ctl *c, int argc, char **argv);
int ctl_gpu_alloc(struct ctl *c, int argc, char **argv);
int ctl_gpu_put(struct ctl *c, int argc, char **argv);
int ctl_gpu_get(struct ctl *c, int argc, char **argv);
int ctl_gpu_copy(struct ctl *c, int argc, char **argv);
int ctl_gpu_free(struct ctl *c, int argc, char **argv);
int ctl_gpu_doctor(struct ctl *c, int argc, char **argv);
int ctl_gpu_exec(struct ctl *c, int argc, char **argv);
int ctl_gpu_stat(struct ctl *c, int argc, char **argv);
int ctl_gpu_show(struct ctl *c, int argc, char **argv);
int ctl_model_inspect(struct ctl *c, int argc, char **argv);
int ctl_model_synth(struct ctl *c, int argc, char **argv);
int ctl_plan_calibrate(struct ctl *c, int argc, char **argv);
int ctl_plan_job_show(struct ctl *c, int argc, char **argv); /* of a job, from the coordinator */
int ctl_job_submit(struct ctl *c, int argc, char **argv);
int ctl_job_list(struct ctl *c, int argc, char **argv);
int ctl_job_show(struct ctl *c, int argc, char **argv);
int ctl_job_watch(struct ctl *c, int argc, char **argv);
int ctl_job_cancel(struct ctl *c, int argc, char **argv);
int ctl_policy_apply(struct ctl *c, int argc, char **argv);
int ctl_policy_diff(struct ctl *c, int argc, char **argv);
int ctl_policy_get(struct ctl *c, int argc, char **argv);
int ctl_policy_list(struct ctl *c, int argc, char **argv);
int ctl_policy_remove(struct ctl *c, int argc, char **argv);
int ctl_policy_test(struct ctl *c, int argc, char **argv);
int ctl_quota_show(struct ctl *c, int argc, char **argv);
int ctl_session_list(struct ctl *c, int argc, char **argv);
int ctl_session_kill(struct ctl *c, int argc, char **argv);
int ctl_user_create(struct ctl *c, int argc, char **argv);
int ctl_user_list(struct ctl *c, int argc, char **argv);
int ctl_user_revoke(struct ctl *c, int argc, char **argv);
int ctl_audit_tail(struct ctl *c, int argc, char **argv);
int ctl_audit_query(struct ctl *c, int argc, char **argv);
int ctl_audit_verify(struct ctl *c, int argc, char **argv);
int ctl_audit_export(struct ctl *c, int argc, char **argv);

#endif
