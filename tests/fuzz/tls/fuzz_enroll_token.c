/* What people paste: a token is taken whole or not at all, and what was taken encodes to the same text. Also
 * the other words of this kind: pins and revocations. */
#include <stdlib.h>
#include <string.h>

#include "common/enroll/enroll.h"
#include "common/tls/rules.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct enroll_token t;
    struct err e;
    char again[ENROLL_TOKEN_TEXT], value[80];
    uint8_t pin[32];
    char *text = malloc(n + 1);
    if (!text)
        return 0;
    memcpy(text, data, n);
    text[n] = 0;
    if (enroll_token_decode(text, &t, &e) == ST_OK) {
        enroll_token_encode(&t, again);
        if (!strstr(text, again))
            abort();
    }
    (void)!tls_pin_parse(text, pin, &e);
    for (int k = TLS_REVOKED_SERIAL; k <= TLS_REVOKED_KEY; k++)
        if (tls_revoked_parse((enum tls_revoked)k, text, value, &e) == ST_OK && strlen(value) >= sizeof value)
            abort();
    free(text);
    return 0;
}
