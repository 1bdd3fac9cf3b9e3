/* strata: finds the command, sets up what all share, runs it. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/str.h"
#include "coordinator/ctl/commands.h"

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

static bool is_help(const char *word)
{
    return !strcmp(word, "--help") || !strcmp(word, "-h");
}

/* --help before a lone "--" asks for the command's manual, wherever it stands. */
static bool asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--"); i++)
        if (is_help(argv[i]))
            return true;
    return false;
}

static int unknown(const char *room, const char *verb)
{
    const struct ctl_command *near = ctl_command_near(room, verb);
    if (near)
        return ctl_usage("there is no command '%s%s%s'; did you mean 'strata %s%s%s'?", room, verb ? " " : "",
                         verb ? verb : "", near->room, near->verb ? " " : "", near->verb ? near->verb : "");
    return ctl_usage("there is no command '%s%s%s'", room, verb ? " " : "", verb ? verb : "");
}

/* `strata help [ROOM [VERB]]`, `strata ROOM --help` */
static int help(const char *room, const char *verb)
{
    const struct ctl_command *k = room ? ctl_command_find(room, verb) : NULL;
    if (room && !k && (verb || !ctl_room_commands(room)))
        return unknown(room, verb);
    if (k && k->own_help) {
        char *ask[] = {(char *)"--help"};
        return k->run(&(struct ctl){0}, 1, ask);
    }
    if (k)
        ctl_command_manual(k, stdout);
    else
        ctl_manual(room, stdout);
    return 0;
}

static int run(struct ctl *c, const struct ctl_command *k, int argc, char **argv)
{
    c->command = k;
    if (!k->own_help && asks_help(argc, argv))
        return help(k->room, k->verb);
    int x = k->run(c, argc, argv);
    strata_client_close(c->client);
    return x;
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
    if (n == 0)
        return ctl_manual(NULL, stderr), 2;
    if (!strcmp(v[0], "help") || is_help(v[0]))
        return help(n > 1 ? v[1] : NULL, n > 2 ? v[2] : NULL);
    if (!strcmp(v[0], "--version"))
        v[0] = (char *)"version";
    const char *verb = n > 1 ? v[1] : NULL;
    const struct ctl_command *k = ctl_command_find(v[0], verb);
    if (k)
        return run(&c, k, n - (k->verb ? 2 : 1), v + (k->verb ? 2 : 1));
    if (ctl_room_commands(v[0]) && (!verb || is_help(verb)))
        return ctl_manual(v[0], verb ? stdout : stderr), verb ? 0 : 2;
    return unknown(v[0], verb);
}
