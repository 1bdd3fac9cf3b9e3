/* Shared by the audit commands. */
#ifndef STRATA_CTL_AUDITCMD_H
#define STRATA_CTL_AUDITCMD_H

#include "coordinator/ctl/ctl.h"
#include "strata/v1/audit.pb-c.h"

struct audit_words {
    const char *since, *until, *principal, *type, *node, *device, *job, *session, *text, *severity, *result,
        *limit;
    const char *format, *out, *file; /* of export alone */
    bool oldest, follow, export;
};
/* Fills q, whose strings point into argv. 0, or 2 after saying what is wrong. */
int ctl_audit_parse(int argc, char **argv, struct audit_words *w, Strata__V1__AuditQuery *q);
/* "2h" back from now, or a time such as 2026-11-24T12:00:00Z, into epoch microseconds; NULL leaves *out
 * alone. 0, or 2 after saying so. */
int ctl_moment(const char *word, const char *name, int64_t *out);

#endif
