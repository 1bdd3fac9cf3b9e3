/* Small string helpers, all bounded. Any thread. */
#ifndef STRATA_BASE_STR_H
#define STRATA_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* strlcpy semantics: always terminates, returns false when it had to cut. */
bool str_copy(char *dst, size_t cap, const char *src);
bool str_starts(const char *s, const char *prefix);
/* `*` matches any run of characters, nothing else is special. */
bool str_glob(const char *pattern, const char *s);
void hex_encode(char *out, const uint8_t *p, size_t n); /* 2n+1 bytes, lower case */
int hex_decode(uint8_t *out, size_t cap, const char *hex, size_t *n);
/* "1.5 GiB", "812 B"; out ≥ 16 bytes. */
void fmt_bytes(char out[16], uint64_t n);
/* "12.3 ms", "1.2 s", "850 ns"; out ≥ 16 bytes. */
void fmt_seconds(char out[16], double s);
/* "512MiB" "1G" "4096" "7d" … → number (K/M/G/T = 1024-based with or without iB; KB/MB/GB = 1000-based). */
int parse_bytes(const char *s, uint64_t *out);
/* "50ms" "5s" "15m" "24h" "7d" → nanoseconds. */
int parse_duration_ns(const char *s, uint64_t *out);
bool str_ident_ok(const char *s, size_t max); /* [A-Za-z0-9][A-Za-z0-9._-]*, at most max bytes */

#endif
