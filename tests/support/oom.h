/*
 * Lets each allocation of an act fail in turn. The test is linked with malloc and its kin wrapped, so
 * third-party code in the same program is met too. One thread at a time.
 */
#ifndef STRATA_TESTS_OOM_H
#define STRATA_TESTS_OOM_H

#include "common/base/err.h"

/*
 * Runs act until a run needs no failing allocation: the n-th run has its n-th allocation refused, and only
 * that. A run that met the refusal must come back with ST_ENOMEM, or with ST_OK when it could do without;
 * anything else but `also` fails the test with the run's number, and so does a leak when the leak checker is
 * on. Returns how many allocations the act makes. act frees what it got. `also` is for libraries that report
 * a refusal as something else: jansson says syntax error when it was in the middle of a word. ST_OK for none.
 */
unsigned oom_each(const char *what, int (*act)(void *arg, struct err *e), void *arg, int also);

#endif
