/* Policies as messages and as words: for the wire, for audit rows, for differences. Pure. */
#ifndef STRATA_API_POLICYTEXT_H
#define STRATA_API_POLICYTEXT_H

#include "common/base/buf.h"
#include "coordinator/access/access.h"
#include "strata/v1/policies.pb-c.h"

/* Words into a policy; principal in its short form. ST_EINVAL with UNKNOWN_ROLE, UNKNOWN_PERMISSION, … */
int policy_from_message(struct policy *out, const Strata__V1__Policy *m, const char *trust_domain,
                        struct err *e) ST_CHECK;

/* A message over a policy that outlives it. */
struct policy_message {
    Strata__V1__Policy m;
    char *roles[ROLE_COUNT], *extra[PERM_COUNT], *denied[PERM_COUNT], *devices[POLICY_DEVICES_MAX];
};
void policy_message_fill(struct policy_message *o, const struct policy *p);

/* "roles=user devices=dione/cuda:0 quota=4096": what a person compares; long device lists are cut with their
 * count. Never fails: cut at cap. */
void policy_words(const struct policy *p, char *out, size_t cap);

enum { POLICY_FIELDS = 8 };
/* The i-th field's name, and its value as words. */
const char *policy_field_name(unsigned i);
void policy_field_words(const struct policy *p, unsigned i, char *out, size_t cap);
/* Do two policies grant the same? Times of creation and generations are not looked at. */
bool policy_same(const struct policy *a, const struct policy *b);

#endif
