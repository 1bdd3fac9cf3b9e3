/*
 * An SQLite VFS over the system's own that fails the n-th write, sync or truncation, and an allocator that
 * fails the n-th allocation: for tests that every such failure leaves the files whole. Installed once in a
 * process, before SQLite is used; the counters may be set from any thread.
 */
#ifndef STRATA_TESTS_FAULTVFS_H
#define STRATA_TESTS_FAULTVFS_H

#include <stdbool.h>

enum fault_kind { FAULT_NONE, FAULT_WRITE, FAULT_SYNC, FAULT_ALLOC, FAULT_FULL };

/* Becomes the default VFS and allocator. False: SQLite refused. */
bool faultvfs_install(void);
/* From now on the n-th operation of this kind fails (n from 1), and `run` - 1 more after it. FAULT_FULL fails
 * writes with SQLITE_FULL. Only files whose path holds `file` count (NULL: all; allocations always count). */
void faultvfs_arm(enum fault_kind kind, unsigned n, unsigned run, const char *file);
/* How many operations of the armed kind there were, and whether one failed. */
unsigned faultvfs_seen(bool *hit);
void faultvfs_disarm(void);

#endif
