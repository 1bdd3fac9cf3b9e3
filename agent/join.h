/* strata-agent join: from a token to a node that can be started. */
#ifndef STRATA_AGENT_JOIN_H
#define STRATA_AGENT_JOIN_H

#include "common/base/err.h"

/* argv starts after "join". Returns an exit code, having said on stderr why. */
int agent_join(int argc, char **argv);

#endif
