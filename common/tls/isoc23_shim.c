/*
 * The static libcrypto of Debian 13 was compiled against glibc 2.38, whose headers rename strtol; an older
 * glibc lacks that one name. Only base 0 with a "0b" prefix differs between the two, which libcrypto does not
 * use.
 */
#include <features.h>
#include <stdlib.h>

#if defined(__GLIBC__) && !__GLIBC_PREREQ(2, 38)
long __isoc23_strtol(const char *s, char **end, int base);
long __isoc23_strtol(const char *s, char **end, int base)
{
    return strtol(s, end, base);
}
#else
typedef int strata_isoc23_not_needed;
#endif
