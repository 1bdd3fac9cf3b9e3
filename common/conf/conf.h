/*
 * YAML files for people: a libcyaml schema on one side, a sentence with file, line and column on the other.
 * Unknown keys are errors; aliases are refused, so a small file stays small. Any thread; no state.
 */
#ifndef STRATA_CONF_H
#define STRATA_CONF_H

#include <cyaml/cyaml.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

/*
 * Reads n bytes of YAML into *out, which the caller frees with conf_free(). `name` stands for the source in
 * messages: "NAME:LINE:COLUMN: what is wrong (in its mapping)". ST_ECONFIG for anything the schema refuses
 * and for an empty document; ST_ENOMEM. On failure *out is NULL.
 */
int conf_parse(const char *name, const uint8_t *text, size_t n, const cyaml_schema_value_t *schema,
               void **out, struct err *e) ST_CHECK;

/* The same for a file of at most `max` bytes. A missing file is ST_ENOENT, an unreadable one ST_EDENIED or
 * ST_EIO, a larger one ST_ELIMIT. */
int conf_read(const char *path, size_t max, const cyaml_schema_value_t *schema, void **out,
              struct err *e) ST_CHECK;

void conf_free(const cyaml_schema_value_t *schema, void *data); /* NULL is fine */

#endif
