/* strata: finds the command, sets up what all share, runs it. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/str.h"
#include "coordinator/ctl/ctl.h"
#include "coordinator/ctl/netcmd.h"
#include "coordinator/ctl/plan/plan_cmd.h"

static int version(struct ctl *c, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    if (c->json)
        return ctl_print_json("strata.version.v1", json_pack("{s:s}", "version", STRATA_VERSION));
    puts("strata " STRATA_VERSION);
    return 0;
}

/* The planner's commands parse their own options: --json, taken off by main, is given back to them. */
static int plan_command(const struct ctl *c, int argc, char **argv, const char *verb,
                        int (*fn)(int, char **, FILE *, FILE *))
{
    char **v = calloc((size_t)argc + 3, sizeof(*v));
    if (!v)
        return 1;
    int n = 0;
    v[n++] = (char *)verb;
    for (int i = 0; i < argc; i++)
        v[n++] = argv[i];
    if (c->json)
        v[n++] = (char *)"--json";
    int x = fn(n, v, stdout, stderr);
    free(v);
    return x;
}

#define PLAN(verb)                                                                                           \
    static int plan_##verb##_cmd(struct ctl *c, int argc, char **argv)                                       \
    {                                                                                                        \
        return plan_command(c, argc, argv, "strata plan " #verb, ctl_plan_##verb);                           \
    }
PLAN(solve)
PLAN(replan)
PLAN(check)
PLAN(show)
PLAN(explain)
PLAN(diff)
PLAN(export)
#undef PLAN

/* A word that is no file and looks like a job is one. */
static int plan_show_any(struct ctl *c, int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (str_starts(argv[i], "job-") && access(argv[i], F_OK))
            return ctl_plan_job_show(c, argc, argv);
    return plan_show_cmd(c, argc, argv);
}

static const struct command {
    const char *room, *verb; /* verb NULL: the command is one word */
    int (*run)(struct ctl *c, int argc, char **argv);
    const char *help;
} commands[] = {
    {"init", NULL, ctl_init, "make a CA, a coordinator's configuration, the admin's and nodes' identities"},
    {"status", NULL, ctl_status, "the cluster at a glance"},
    {"version", NULL, version, "the version of this program"},
    {"node", "list", ctl_node_list, "nodes, their state and distance"},
    {"node", "drain", ctl_node_drain, "move everything off a node and place nothing new on it"},
    {"node", "resume", ctl_node_resume, "let a node take layers again"},
    {"node", "forget", ctl_node_forget, "a node that is gone for good: its layers are placed elsewhere"},
    {"node", "token", ctl_node_token, "create, list or revoke the tokens that let nodes join"},
    {"user", "token", ctl_user_token, "a token with which a user logs in"},
    {"login", NULL, ctl_login, "turn a token into this user's identity"},
    {"cert", "status", ctl_cert_status, "certificates, their ends, revocations and pins"},
    {"cert", "renew", ctl_cert_renew, "renew this user's certificate"},
    {"cert", "rotate", ctl_cert_rotate, "new certificates or keys for nodes, coordinator, tickets"},
    {"cert", "rotate-ca", ctl_cert_rotate_ca, "a new CA, with overlap; --dry-run says who would be cut off"},
    {"cert", "revoke", ctl_cert_revoke, "revoke by serial, identity or key, at once"},
    {"cert", "pin", ctl_cert_pin, "pin a peer's or a pool's key"},
    {"gpu", "list", ctl_gpu_list, "devices of all nodes"},
    {"gpu", "alloc", ctl_gpu_alloc,
     "device memory of one's own; begins a session with the node if there is none"},
    {"gpu", "put", ctl_gpu_put, "a file into device memory, verified there"},
    {"gpu", "get", ctl_gpu_get, "device memory into a file"},
    {"gpu", "copy", ctl_gpu_copy, "from one handle to another, between nodes as well"},
    {"gpu", "exec", ctl_gpu_exec, "a kernel, built in or one's own, over one's own device memory"},
    {"gpu", "show", ctl_gpu_show, "one device and what its sensors say"},
    {"gpu", "free", ctl_gpu_free, "give a handle back, or end the whole session with a node"},
    {"gpu", "stat", ctl_gpu_stat, "what one's session with a node holds"},
    {"gpu", "doctor", ctl_gpu_doctor, "what keeps this machine's GPUs from being used, and what to do"},
    {"net", "matrix", ctl_net_matrix,
     "a figure of every link: --metric latency, bandwidth, loss, jitter or age"},
    {"net", "probe", ctl_net_probe, "measure links now: all pairs, or those of the nodes named"},
    {"net", "topo", ctl_net_topo, "sites, averages, diameter, asymmetry, bottleneck"},
    {"net", "bottleneck", ctl_net_bottleneck, "the slowest link, and the node that slows all of its own"},
    {"net", "estimate", ctl_net_estimate, "how long so many bytes take from one node to another"},
    {"net", "history", ctl_net_history, "what was measured when; older rows are hours, then days"},
    {"net", "doctor", ctl_net_doctor,
     "what nodes' networks look like from within and without, and what to change"},
    {"model", "inspect", ctl_model_inspect, "the layers of a model file and what each costs"},
    {"model", "synth", ctl_model_synth, "write a model file with seeded weights"},
    {"plan", "solve", plan_solve_cmd, "plan a model on a described cluster"},
    {"plan", "replan", plan_replan_cmd, "change a plan with the fewest bytes moved"},
    {"plan", "check", plan_check_cmd, "recompute every figure of a plan"},
    {"plan", "show", plan_show_any,
     "a job's plan or that of a file as a table; --recompute makes it anew, --save keeps its inputs"},
    {"plan", "explain", plan_explain_cmd, "why each device is or is not in a plan, and what would change it"},
    {"plan", "calibrate", ctl_plan_calibrate,
     "run a job's layers on their devices beside what its plan predicted; --correct takes it over"},
    {"plan", "diff", plan_diff_cmd, "what differs between two plans"},
    {"plan", "export", plan_export_cmd, "a plan for llama.cpp, vLLM or accelerate"},
    {"job", "submit", ctl_job_submit, "plan, place and load a model"},
    {"job", "list", ctl_job_list, "jobs"},
    {"job", "show", ctl_job_show, "one job; --verify reads its layers back from the devices"},
    {"job", "watch", ctl_job_watch, "follow a job"},
    {"job", "cancel", ctl_job_cancel, "release a job's layers"},
    {"layer", "where", ctl_layer_where, "which devices hold a job's layers now"},
    {"layer", "move", ctl_layer_move, "move layers to another device while they serve"},
    {"policy", "apply", ctl_policy_apply,
     "make the policies of a YAML file so, all or none; --dry-run shows the difference"},
    {"policy", "diff", ctl_policy_diff, "what applying a file would change and end"},
    {"policy", "get", ctl_policy_get, "one policy, as a file that apply takes"},
    {"policy", "list", ctl_policy_list, "all policies"},
    {"policy", "remove", ctl_policy_remove,
     "take all rights away; ends the sessions and jobs that stood on them"},
    {"policy", "test", ctl_policy_test, "may SUBJECT do PERMISSION? the decision and the rule behind it"},
    {"quota", "show", ctl_quota_show, "device memory held against its limits"},
    {"session", "list", ctl_session_list, "device sessions; --all shows everybody's"},
    {"session", "kill", ctl_session_kill, "end a device session and free its memory"},
    {"user", "create", ctl_user_create, "make a user's policy from a role"},
    {"user", "list", ctl_user_list, "users and what they may do"},
    {"user", "revoke", ctl_user_revoke, "take a user's rights away"},
    {"audit", "tail", ctl_audit_tail, "the latest audit rows; -f follows"},
    {"audit", "query", ctl_audit_query,
     "audit rows by time, principal, type, node, device, job, session, severity, result, text"},
    {"audit", "export", ctl_audit_export, "audit rows as JSON lines, CSV or an SQLite file"},
    {"audit", "verify", ctl_audit_verify, "check the hash chain of an audit file, offline"},
};
#define NCOMMANDS (sizeof commands / sizeof *commands)

static void help(FILE *f)
{
    fputs("Examples:\n"
          "  strata --dir .strata/admin status\n"
          "  strata job submit --model llama.gguf --watch\n"
          "  strata audit query --type 'job.*' --since 1h\n\nCommands:\n",
          f);
    for (size_t i = 0; i < NCOMMANDS; i++)
        fprintf(f, "  strata %-6s %-8s %s\n", commands[i].room, commands[i].verb ? commands[i].verb : "",
                commands[i].help);
    fputs(
        "\nEverywhere: --dir D (or STRATA_DIR), --json, --timeout 30s, --quiet, --color never\n"
        "Exit codes: 0 ok, 1 internal, 2 usage, 3 not found, 4 denied, 5 trust, 6 unreachable, 7 deadline,\n"
        "8 infeasible or quota, 9 conflict, 10 job failed, 11 partial, 13 audit chain broken, 78 bad "
        "config\n",
        f);
}

/* Edit distance, for "did you mean": a word of a command is short. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[32];
    size_t n = strlen(b);
    if (n > 31 || strlen(a) > 31)
        return 99;
    for (unsigned j = 0; j <= n; j++)
        row[j] = j;
    for (; *a; a++) {
        unsigned diag = row[0]++;
        for (size_t j = 1; j <= n; j++) {
            unsigned best = diag + (*a != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diag = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

static int unknown(const char *room, const char *verb)
{
    const struct command *near = NULL;
    unsigned best = 4;
    for (size_t i = 0; i < NCOMMANDS; i++) {
        unsigned d = distance(room, commands[i].room) +
                     (commands[i].verb ? verb ? distance(verb, commands[i].verb) : 1 : 0);
        if (d < best) {
            best = d;
            near = &commands[i];
        }
    }
    if (near)
        return ctl_usage("there is no command '%s%s%s'; did you mean 'strata %s%s%s'?", room, verb ? " " : "",
                         verb ? verb : "", near->room, near->verb ? " " : "", near->verb ? near->verb : "");
    return ctl_usage("there is no command '%s%s%s'", room, verb ? " " : "", verb ? verb : "");
}

/* Takes the options that every command has out of argv, wherever they stand. Returns the new argc, -1 =
 * wrong. */
static int take_globals(struct ctl *c, int argc, char **argv)
{
    int n = 0;
    for (int i = 0; i < argc; i++) {
        char *a = argv[i], *v = NULL;
        bool dir = str_starts(a, "--dir"), tmo = str_starts(a, "--timeout"), col = str_starts(a, "--color");
        size_t len = dir ? 5 : tmo ? 9 : 7;
        if (!strcmp(a, "--json")) {
            c->json = true;
        } else if (!strcmp(a, "--quiet")) {
            c->quiet = true;
        } else if ((dir || tmo || col) && (a[len] == 0 || a[len] == '=')) {
            v = a[len] ? a + len + 1 : i + 1 < argc ? argv[++i] : NULL;
            if (!v)
                return ctl_usage("%s needs a value", a), -1;
            if (dir)
                c->dir = v;
            else if (col)
                c->color = c->color && strcmp(v, "never");
            else if (parse_duration_ns(v, &c->timeout_ns) < 0 || !c->timeout_ns)
                return ctl_usage("--timeout: '%s' is no duration such as 30s", v), -1;
        } else {
            argv[n++] = a;
        }
    }
    return n;
}

static void set_defaults(struct ctl *c)
{
    const char *term = getenv("TERM"), *home = getenv("HOME");
    c->dir = getenv("STRATA_DIR");
    if (!c->dir || !*c->dir) {
        snprintf(c->dir_buf, sizeof c->dir_buf, "%s/.config/strata", home ? home : "");
        c->dir = c->dir_buf;
    }
    c->tty = isatty(STDERR_FILENO) && term && strcmp(term, "dumb");
    c->color = isatty(STDOUT_FILENO) && !getenv("NO_COLOR") && term && strcmp(term, "dumb");
}

int main(int argc, char **argv)
{
    struct ctl c = {0};
    set_defaults(&c);
    signal(SIGPIPE, SIG_IGN);
    int n = take_globals(&c, argc - 1, argv + 1);
    char **v = argv + 1;
    if (n < 0)
        return 2;
    if (n == 0 || !strcmp(v[0], "help") || !strcmp(v[0], "--help") || !strcmp(v[0], "-h")) {
        help(n ? stdout : stderr);
        return n ? 0 : 2;
    }
    if (!strcmp(v[0], "--version"))
        return version(&c, 0, NULL);
    for (size_t i = 0; i < NCOMMANDS; i++) {
        const struct command *k = &commands[i];
        int words = k->verb ? 2 : 1;
        if (strcmp(k->room, v[0]) || (k->verb && (n < 2 || strcmp(k->verb, v[1]))))
            continue;
        int x = k->run(&c, n - words, v + words);
        strata_client_close(c.client);
        return x;
    }
    return unknown(v[0], n > 1 ? v[1] : NULL);
}
