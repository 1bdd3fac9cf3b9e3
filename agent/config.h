/*
 * The agent's configuration file: YAML, read once, checked whole, then immutable. An unknown key, a wrong
 * type or a value out of range is an error with the file, line and column; nothing is guessed.
 */
#ifndef STRATA_AGENT_CONFIG_H
#define STRATA_AGENT_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/log.h"

enum agent_backend_use { AGENT_BACKEND_AUTO, AGENT_BACKEND_ON, AGENT_BACKEND_OFF };

struct agent_pin {
    char *peer, *sha256; /* principal or pattern */
};

struct agent_config {
    char *node;        /* this node's name; the certificate must carry the same */
    char *coordinator; /* host:port */
    char *ca_file, *cert_file, *key_file;
    char *trust_domain;
    char *ciphers, *groups, *crl_file; /* NULL: the defaults, none */
    struct agent_pin *pins;
    unsigned npins;
    char *listen;         /* host:port where other agents fetch layers; port 0 = any */
    char *advertise;      /* host that other agents reach it by; NULL = listen's */
    char *state_dir;      /* reset.key, audit.spool */
    uint64_t spool_bytes; /* of audit rows that the coordinator has not taken; 0 = the spool's own choice */
    char **model_dirs;
    unsigned nmodel_dirs; /* the only places models are read from */
    char *worker;         /* path of strata-worker; NULL = next to this program */
    enum agent_backend_use cpu, vulkan, cuda;
    uint64_t cpu_memory_bytes; /* of the cpu device; 0 = the worker's own choice */
    enum log_level log_level;
    struct {
        bool allow;           /* kernels that users bring; off unless the file says otherwise */
        uint32_t max_bytes;   /* of one */
        uint64_t deadline_ns; /* of one call */
    } user_kernels;
};

/* ST_ECONFIG with a sentence, or what reading the file gave. On failure *out needs no fini. */
int agent_config_read(struct agent_config *out, const char *path, struct err *e) ST_CHECK;
void agent_config_fini(struct agent_config *c);

#endif
