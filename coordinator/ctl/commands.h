/*
 * The table of the command line: what `strata help` and `--help` print, and what is run. A command's words,
 * its operands and its options are spelled here and nowhere else: a command that is used wrongly prints its
 * row.
 */
#ifndef STRATA_CTL_COMMANDS_H
#define STRATA_CTL_COMMANDS_H

#include <stdio.h>

#include "coordinator/ctl/ctl.h"

struct ctl_command {
    const char *room, *verb; /* verb NULL: the command is one word */
    int (*run)(struct ctl *c, int argc, char **argv);
    const char *args;    /* operands and options on one line, "" when there are none */
    const char *help;    /* one line */
    const char *options; /* a line for each option and each operand that needs one; NULL: none */
    bool own_help;       /* the command has a --help of its own */
};

/* The command of these words (verb may be NULL), or NULL. */
const struct ctl_command *ctl_command_find(const char *room, const char *verb);
/* The nearest by spelling, or NULL when none is near. */
const struct ctl_command *ctl_command_near(const char *room, const char *verb);
/* How many commands the room has; 0: there is no such room. */
size_t ctl_room_commands(const char *room);

void ctl_command_usage(const struct ctl_command *k, FILE *f);  /* "usage: strata …" */
void ctl_command_manual(const struct ctl_command *k, FILE *f); /* what --help prints */
void ctl_manual(const char *room, FILE *f);                    /* every command, or the room's */

#endif
