/*
 * For memory that is reused without free(): under AddressSanitizer what was given back is poisoned, and who
 * still uses it is caught as if it were freed. Elsewhere nothing.
 */
#ifndef STRATA_BASE_ASAN_H
#define STRATA_BASE_ASAN_H

#ifdef __SANITIZE_ADDRESS__
#define ASAN_ON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN_ON 1
#endif
#endif

#ifdef ASAN_ON
#include <sanitizer/asan_interface.h>
#define ASAN_POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define ASAN_UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define ASAN_ON 0
#define ASAN_POISON(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#endif
