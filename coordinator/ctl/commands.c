#include "coordinator/ctl/commands.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/str.h"
#include "coordinator/ctl/netcmd.h"
#include "coordinator/ctl/plan/plan_cmd.h"

static int version(struct ctl *c, int argc, char **argv)
{
    (void)argv;
    if (argc)
        return ctl_misuse(c, "version takes nothing");
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

#define AUDIT_FILTERS                                                                                        \
    "--since T, --until T     a duration back from now (15m, 7d) or a time (2026-11-24T12:00:00Z)\n"         \
    "--principal NAME         who: user/NAME, node/NAME\n"                                                   \
    "--type TYPE              an event's name, or a prefix such as 'security.*'\n"                           \
    "--node N, --device D, --job J, --session S\n"                                                           \
    "--severity LEVEL         at least: debug, info, warning, error, critical\n"                             \
    "--result R               success, failure, denied\n"                                                    \
    "--text WORDS             anywhere in a row's metadata\n"                                                \
    "--limit N                so many rows\n"                                                                \
    "--oldest-first           the oldest rows first\n"
#define MODEL_COUNTS                                                                                         \
    "--context N              tokens of context to keep room for\n"                                          \
    "--sequences N            sequences at once\n"                                                           \
    "--tokens N               tokens per step: 1 = decode, more = prefill\n"                                 \
    "--split                  attention and mlp as layers of their own\n"

static const struct ctl_command commands[] = {
    {"init", NULL, ctl_init,
     "DIR [--trust-domain D] [--listen HOST:PORT] [--enroll HOST:PORT] [--admin NAME] [--leaf-ttl 7d] "
     "[--ed25519] [--encrypt-ca] [--node NAME]… [--user NAME]…",
     "make a CA, a coordinator's configuration, the admin's and nodes' identities",
     "--trust-domain D         the domain of every identity (strata.local)\n"
     "--listen HOST:PORT       where the coordinator listens (127.0.0.1:7443)\n"
     "--enroll HOST:PORT       where new nodes and users join; without it none can\n"
     "--admin NAME             the first administrator (admin)\n"
     "--leaf-ttl 7d            life of the certificates\n"
     "--ed25519                keys of Ed25519 instead of ECDSA P-256\n"
     "--encrypt-ca             encrypt the CA's key; STRATA_CA_PASSPHRASE_FILE names the passphrase's file\n"
     "--node NAME, --user NAME an identity made at once; may be given again\n",
     false},
    {"status", NULL, ctl_status, "", "the cluster at a glance", NULL, false},
    {"version", NULL, version, "", "the version of this program", NULL, false},
    {"node", "list", ctl_node_list, "", "nodes, their state and distance", NULL, false},
    {"node", "drain", ctl_node_drain, "NODE", "move everything off a node and place nothing new on it", NULL,
     false},
    {"node", "resume", ctl_node_resume, "NODE", "let a node take layers again", NULL, false},
    {"node", "forget", ctl_node_forget, "NODE",
     "a node that is gone for good: its layers are placed elsewhere", NULL, false},
    {"node", "token", ctl_node_token,
     "create [--ttl 24h] [--uses N] [--name NAME] [--pool POOL] | list | revoke ID",
     "create, list or revoke the tokens that let nodes join",
     "--ttl 24h                how long the token can be used\n"
     "--uses N                 by how many nodes (1)\n"
     "--name NAME              the one name it is good for\n"
     "--pool POOL              the pool that the node joins\n",
     false},
    {"user", "token", ctl_user_token, "NAME [--ttl 24h]", "a token with which a user logs in",
     "--ttl 24h                how long the token can be used\n", false},
    {"login", NULL, ctl_login, "HOST:PORT TOKEN|--token-file FILE [--force]",
     "turn a token into this user's identity",
     "--token-file FILE        read the token there: it is in no process list\n"
     "--force                  replace the identity that is there\n",
     false},
    {"cert", "status", ctl_cert_status, "", "certificates, their ends, revocations and pins", NULL, false},
    {"cert", "renew", ctl_cert_renew, "", "renew this user's certificate", NULL, false},
    {"cert", "rotate", ctl_cert_rotate, "--node NAME|--all [--new-key] | --coordinator | --ticket-key",
     "new certificates or keys for nodes, coordinator, tickets",
     "--node NAME, --all       the certificate of a node, of every node\n"
     "--new-key                with a new key as well\n"
     "--coordinator            the coordinator's own certificate\n"
     "--ticket-key             the key that signs tickets\n",
     false},
    {"cert", "rotate-ca", ctl_cert_rotate_ca, "[--dry-run] | --end [--dry-run|--force]",
     "a new CA, with overlap",
     "--dry-run                change nothing; say who would be cut off\n"
     "--end                    end the overlap: the old CA is believed no more\n"
     "--force                  although somebody would be cut off\n",
     false},
    {"cert", "revoke", ctl_cert_revoke,
     "--serial HEX | --identity node/NAME | --key sha256:HEX [--reason TEXT] [--restore]",
     "revoke by serial, identity or key, at once",
     "--reason TEXT            kept with the revocation and in the audit row\n"
     "--restore                take a revocation back\n",
     false},
    {"cert", "pin", ctl_cert_pin, "SUBJECT SHA256 [--remove]", "pin a peer's or a pool's key",
     "SUBJECT                  coordinator, node/NAME, user/NAME or pool/NAME\n"
     "--remove                 take the pin away\n",
     false},
    {"gpu", "list", ctl_gpu_list, "", "devices of all nodes", NULL, false},
    {"gpu", "alloc", ctl_gpu_alloc, "NODE/DEVICE BYTES [--limit BYTES] [--ttl 5m] [--linger 5m]",
     "device memory of one's own; begins a session with the node if there is none",
     "--limit BYTES            what the session may hold at most\n"
     "--ttl 5m                 life of the session's ticket; it is renewed by use\n"
     "--linger 5m              how long the session outlives its last connection\n",
     false},
    {"gpu", "put", ctl_gpu_put, "HANDLE FILE [--offset BYTES]", "a file into device memory, verified there",
     "--offset BYTES           where in the device memory\n", false},
    {"gpu", "get", ctl_gpu_get, "HANDLE FILE [--offset BYTES] [--bytes BYTES]", "device memory into a file",
     "--offset BYTES           from where in the device memory\n"
     "--bytes BYTES            how much; all of it unless given\n",
     false},
    {"gpu", "copy", ctl_gpu_copy, "FROM TO [--bytes BYTES] [--from-offset BYTES] [--to-offset BYTES]",
     "from one handle to another, between nodes as well", NULL, false},
    {"gpu", "exec", ctl_gpu_exec,
     "NODE/DEVICE KERNEL --span HANDLE[:OFFSET:BYTES]… [--scalar N|N.Nf]… [--code FILE --groups X[,Y[,Z]] "
     "[--threads X[,Y[,Z]]]]",
     "a kernel, built in or one's own, over one's own device memory",
     "KERNEL                   fill, copy, checksum, fma, matvec, matmul, or the entry of one's own code\n"
     "--span HANDLE[:OFF:LEN]  memory the kernel takes, in its order\n"
     "--scalar N|N.Nf          numbers it takes, in its order: integer, or float with an f\n"
     "--code FILE              SPIR-V or PTX, where the node's operator allows it\n"
     "--groups, --threads      the grid of one's own kernel; threads for PTX only\n",
     false},
    {"gpu", "show", ctl_gpu_show, "NODE/DEVICE", "one device and what its sensors say", NULL, false},
    {"gpu", "free", ctl_gpu_free, "HANDLE|NODE", "give a handle back, or end the whole session with a node",
     NULL, false},
    {"gpu", "stat", ctl_gpu_stat, "NODE", "what one's session with a node holds", NULL, false},
    {"gpu", "doctor", ctl_gpu_doctor, "", "what keeps this machine's GPUs from being used, and what to do",
     NULL, false},
    {"net", "matrix", ctl_net_matrix, "[--metric latency|bandwidth|loss|jitter|age]",
     "a figure of every link", NULL, false},
    {"net", "probe", ctl_net_probe,
     "[NODE NODE…] [--count N] [--size BYTES] [--interval 10ms] [--stream 2s] [--bytes 100MB] "
     "[--latency-only]",
     "measure links now: all pairs, or those of the nodes named",
     "--count N, --size BYTES  datagrams of a link and their size\n"
     "--interval 10ms          between two datagrams\n"
     "--stream 2s              how long a rate is measured\n"
     "--bytes 100MB            or over how many bytes\n"
     "--latency-only           no rate\n",
     false},
    {"net", "topo", ctl_net_topo, "", "sites, averages, diameter, asymmetry, bottleneck", NULL, false},
    {"net", "bottleneck", ctl_net_bottleneck, "", "the slowest link, and the node that slows all of its own",
     NULL, false},
    {"net", "estimate", ctl_net_estimate, "FROM TO BYTES",
     "how long so many bytes take from one node to another", NULL, false},
    {"net", "history", ctl_net_history, "[FROM [TO]] [--since 24h] [--limit N]",
     "what was measured when; older rows are hours, then days", NULL, false},
    {"net", "doctor", ctl_net_doctor, "",
     "what nodes' networks look like from within and without, and what to change", NULL, false},
    {"model", "inspect", ctl_model_inspect, "FILE [--context N] [--sequences N] [--tokens N] [--split]",
     "the layers of a model file and what each costs", MODEL_COUNTS, false},
    {"model", "synth", ctl_model_synth,
     "FILE [--size 256MiB] [--layers N] [--type F32|F16|Q8_0|Q4_0] [--embedding N] [--ff N] [--vocab N] "
     "[--seed N] [--name NAME]",
     "write a model file with seeded weights", NULL, false},
    {"plan", "solve", plan_solve_cmd, "", "plan a model on a described cluster", NULL, true},
    {"plan", "replan", plan_replan_cmd, "", "change a plan with the fewest bytes moved", NULL, true},
    {"plan", "check", plan_check_cmd, "", "recompute every figure of a plan", NULL, true},
    {"plan", "show", plan_show_any, "", "a job's plan or that of a file as a table", NULL, true},
    {"plan", "explain", plan_explain_cmd, "",
     "why each device is or is not in a plan, and what would change it", NULL, true},
    {"plan", "calibrate", ctl_plan_calibrate, "JOB [--rounds N] [--links] [--correct]",
     "run a job's layers on their devices beside what its plan predicted",
     "--rounds N               how often each layer runs\n"
     "--links                  the hops between devices too\n"
     "--correct                take the measured rates over, within bounds\n",
     false},
    {"plan", "diff", plan_diff_cmd, "", "what differs between two plans", NULL, true},
    {"plan", "export", plan_export_cmd, "", "a plan for llama.cpp, vLLM or accelerate", NULL, true},
    {"job", "submit", ctl_job_submit,
     "--model FILE [--goal latency|throughput|memory|balanced] [--context N] [--sequences N] [--tokens N] "
     "[--split] [--min-nodes N] [--max-stages N] [--allow PATTERN]… [--deny PATTERN]… [--priority N] "
     "[--preemptible] [--request-id ID] [--dry-run] [--watch]",
     "plan, place and load a model",
     "--model FILE             a .gguf or .safetensors file, as the coordinator's machine names it\n"
     "--goal G                 what the plan is best at (latency)\n" MODEL_COUNTS
     "--min-nodes N            spread over so many nodes at least\n"
     "--max-stages N           at most so many devices\n"
     "--allow, --deny PATTERN  devices that may, may not be used: atlas/*, */vulkan:*\n"
     "--priority N             -1000 to 1000; a job of more may take a preemptible one's place\n"
     "--preemptible            this job may be made to wait by one of more priority\n"
     "--request-id ID          the same again is the same job, not a second one\n"
     "--dry-run                the plan and the decision, nothing placed\n"
     "--watch                  follow it until it is ready\n",
     false},
    {"job", "list", ctl_job_list, "[--all]", "jobs", "--all                    those that ended too\n",
     false},
    {"job", "show", ctl_job_show, "JOB [--verify]", "one job",
     "--verify                 read its layers back from the devices and compare\n", false},
    {"job", "watch", ctl_job_watch, "JOB [--until-ready]", "follow a job", NULL, false},
    {"job", "cancel", ctl_job_cancel, "JOB", "release a job's layers", NULL, false},
    {"layer", "where", ctl_layer_where, "JOB [LAYER]", "which devices hold a job's layers now", NULL, false},
    {"layer", "move", ctl_layer_move, "JOB LAYER[..LAYER] --to NODE/DEVICE [--watch]",
     "move layers to another device while they serve", "--watch                  until they have moved\n",
     false},
    {"policy", "apply", ctl_policy_apply, "-f FILE [--dry-run] [--allow-unknown-devices]",
     "make the policies of a YAML file so, all or none",
     "--dry-run                print the difference, and the sessions and jobs it would end\n"
     "--allow-unknown-devices  patterns that match no device are not an error\n",
     false},
    {"policy", "diff", ctl_policy_diff, "-f FILE [--allow-unknown-devices]",
     "what applying a file would change and end", NULL, false},
    {"policy", "get", ctl_policy_get, "[user/NAME]", "one policy or all, as a file that apply takes", NULL,
     false},
    {"policy", "list", ctl_policy_list, "", "all policies", NULL, false},
    {"policy", "remove", ctl_policy_remove, "user/NAME… [--dry-run]",
     "take all rights away; ends the sessions and jobs that stood on them", NULL, false},
    {"policy", "test", ctl_policy_test, "user/NAME PERMISSION [--device NODE/DEVICE] [--bytes N]",
     "may this principal do that? the decision and the rule behind it", NULL, false},
    {"quota", "show", ctl_quota_show, "[user/NAME] [--all]", "device memory held against its limits", NULL,
     false},
    {"session", "list", ctl_session_list, "[--all] [--principal user/NAME] [--node NAME]",
     "device sessions; --all shows everybody's", NULL, false},
    {"session", "kill", ctl_session_kill, "SESSION", "end a device session and free its memory", NULL, false},
    {"user", "create", ctl_user_create,
     "NAME --role ROLE… [--device PATTERN]… [--quota 40GiB] [--expires 30d]",
     "make a user's policy from a role",
     "--role ROLE              monitor, user, power_user or admin; may be given again\n"
     "--device PATTERN         only these devices: atlas/*, */cuda:0\n"
     "--quota 40GiB            device memory over the whole cluster\n"
     "--expires 30d            when the policy ends by itself\n",
     false},
    {"user", "list", ctl_user_list, "", "users and what they may do", NULL, false},
    {"user", "revoke", ctl_user_revoke, "NAME", "take a user's rights away", NULL, false},
    {"audit", "tail", ctl_audit_tail, "[-f] [--since T] [--type TYPE] …", "the latest audit rows",
     "-f, --follow             and those to come\n" AUDIT_FILTERS, false},
    {"audit", "query", ctl_audit_query,
     "[--since T] [--until T] [--principal NAME] [--type TYPE] [--node N] [--device D] [--job J] "
     "[--session S] [--severity LEVEL] [--result R] [--text WORDS] [--limit N] [--oldest-first]",
     "audit rows by time, principal, type, place, severity, result, text", AUDIT_FILTERS, false},
    {"audit", "export", ctl_audit_export, "--format json|csv|sqlite [--out FILE] [--file AUDIT.DB] [filters]",
     "audit rows as JSON lines, CSV or an SQLite file",
     "--out FILE               there instead of stdout; an SQLite file needs it\n"
     "--file AUDIT.DB          read the file itself instead of asking the coordinator\n" AUDIT_FILTERS,
     false},
    {"audit", "verify", ctl_audit_verify,
     "--file AUDIT.DB [--since 2h] [--key AUDIT.PUB] [--head WITNESS|SIZE:HEX]… [--alone]",
     "check the hash chain of an audit file, offline",
     "--key AUDIT.PUB          check the checkpoints' signatures as well\n"
     "--head WITNESS|SIZE:HEX  a head an agent keeps: finds a chain that was written anew\n"
     "--alone                  this file only, without the sealed segments beside it\n",
     false},
};
#define NCOMMANDS (sizeof commands / sizeof *commands)

const struct ctl_command *ctl_command_find(const char *room, const char *verb)
{
    for (size_t i = 0; i < NCOMMANDS; i++)
        if (!strcmp(commands[i].room, room) &&
            (!commands[i].verb || (verb && !strcmp(commands[i].verb, verb))))
            return &commands[i];
    return NULL;
}

size_t ctl_room_commands(const char *room)
{
    size_t n = 0;
    for (size_t i = 0; i < NCOMMANDS; i++)
        n += !strcmp(commands[i].room, room);
    return n;
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

const struct ctl_command *ctl_command_near(const char *room, const char *verb)
{
    const struct ctl_command *near = NULL;
    unsigned best = 4;
    for (size_t i = 0; i < NCOMMANDS; i++) {
        unsigned d = distance(room, commands[i].room) +
                     (commands[i].verb ? verb ? distance(verb, commands[i].verb) : 1 : 0);
        if (d < best) {
            best = d;
            near = &commands[i];
        }
    }
    return near;
}

void ctl_command_usage(const struct ctl_command *k, FILE *f)
{
    fprintf(f, "usage: strata %s%s%s%s%s\n", k->room, k->verb ? " " : "", k->verb ? k->verb : "",
            *k->args ? " " : "", k->args);
}

static void line(const struct ctl_command *k, FILE *f)
{
    fprintf(f, "  strata %-7s %-10s %s\n", k->room, k->verb ? k->verb : "", k->help);
}

static void everywhere(FILE *f)
{
    fputs("\nEverywhere: --dir D (or STRATA_DIR), --json, --timeout 30s, --quiet, --color never, --help\n",
          f);
}

void ctl_command_manual(const struct ctl_command *k, FILE *f)
{
    ctl_command_usage(k, f);
    fprintf(f, "\n%s\n", k->help);
    if (k->options) {
        fputc('\n', f);
        for (const char *p = k->options, *end; *p; p = end + 1) {
            end = strchr(p, '\n');
            fprintf(f, "  %.*s\n", (int)(end - p), p);
        }
    }
    everywhere(f);
}

void ctl_manual(const char *room, FILE *f)
{
    if (!room)
        fputs("Examples:\n"
              "  strata --dir .strata/admin status\n"
              "  strata job submit --model llama.gguf --watch\n"
              "  strata audit query --type 'job.*' --since 1h\n\n",
              f);
    fputs("Commands:\n", f);
    for (size_t i = 0; i < NCOMMANDS; i++)
        if (!room || !strcmp(commands[i].room, room))
            line(&commands[i], f);
    everywhere(f);
    if (!room)
        fputs("Exit codes: 0 ok, 1 internal, 2 usage, 3 not found, 4 denied, 5 trust, 6 unreachable, "
              "7 deadline,\n8 infeasible or quota, 9 conflict, 10 job failed, 11 partial, 13 audit chain "
              "broken, 78 bad config\n",
              f);
}
