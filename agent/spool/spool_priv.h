/* Shared by the files of this room. */
#ifndef STRATA_AGENT_SPOOL_PRIV_H
#define STRATA_AGENT_SPOOL_PRIV_H

#include <stdbool.h>

#include "agent/spool/spool.h"
#include "common/spool/record.h"

/* ---- file.c: the file, on whichever thread holds it ---- */

struct spool_file {
    char path[1024];
    int fd;
    uint8_t id[8];
    uint64_t base; /* sequence before the first record of the file */
    uint64_t last; /* of the last record; base when there is none */
    uint8_t base_hash[SPOOL_HASH], hash[SPOOL_HASH];
    uint64_t size; /* bytes, head included */
};
#define SPOOL_FILE_HEAD 88u /* "STRSPOOL" | id | u64 base | base hash | SHA-256 of these */

int file_open(struct spool_file *f, const char *path, uint64_t first_base, const struct log *log,
              struct err *e) ST_CHECK;
void file_close(struct spool_file *f);
/* Appends bytes at the end and syncs. On failure the file is cut back to what it was. */
int file_append(struct spool_file *f, const uint8_t *p, size_t n, struct err *e) ST_CHECK;
/* Makes the file anew with the records from offset `from` on, which follow sequence `base`. */
int file_compact(struct spool_file *f, uint64_t from, uint64_t base, const uint8_t base_hash[SPOOL_HASH],
                 struct err *e) ST_CHECK;

#endif
