/* The token's text: "strata-" and base64url of version, kind, id, secret, CA hash and a checksum. */
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/fs.h"
#include "common/base/str.h"
#include "common/enroll/enroll.h"

#define PREFIX "strata-"
#define RAW (2 + ENROLL_ID_LEN + ENROLL_SECRET_LEN + 32 + 4)
#define VERSION 1

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
_Static_assert(RAW % 3 == 0 && sizeof PREFIX - 1 + RAW / 3 * 4 < ENROLL_TOKEN_TEXT,
               "no padding, and it fits");

static void checksum(const uint8_t *p, uint8_t out[4])
{
    uint8_t sha[32];
    SHA256(p, RAW - 4, sha);
    memcpy(out, sha, 4);
}

void enroll_token_encode(const struct enroll_token *t, char out[ENROLL_TOKEN_TEXT])
{
    uint8_t raw[RAW] = {VERSION, (uint8_t)t->kind};
    memcpy(raw + 2, t->id, ENROLL_ID_LEN);
    memcpy(raw + 2 + ENROLL_ID_LEN, t->secret, ENROLL_SECRET_LEN);
    memcpy(raw + 2 + ENROLL_ID_LEN + ENROLL_SECRET_LEN, t->ca_spki, 32);
    checksum(raw, raw + RAW - 4);
    char *o = out + snprintf(out, ENROLL_TOKEN_TEXT, PREFIX);
    for (size_t i = 0; i < RAW; i += 3) {
        unsigned v = (unsigned)raw[i] << 16 | (unsigned)raw[i + 1] << 8 | raw[i + 2];
        for (int k = 18; k >= 0; k -= 6)
            *o++ = alphabet[v >> k & 63];
    }
    *o = 0;
    OPENSSL_cleanse(raw, sizeof raw);
}

static int bad(struct err *e, const char *why)
{
    return err_reason(e, ST_EINVAL, "BAD_TOKEN", "this is no whole token (%s): copy it again, all of it",
                      why);
}

int enroll_token_decode(const char *text, struct enroll_token *out, struct err *e)
{
    uint8_t raw[RAW], sum[4];
    text += strspn(text, " \t\r\n");
    size_t n = strcspn(text, " \t\r\n");
    if (!str_starts(text, PREFIX))
        return bad(e, "it does not begin with " PREFIX);
    if (n != sizeof PREFIX - 1 + RAW / 3 * 4 || text[n + strspn(text + n, " \t\r\n")])
        return bad(e, "its length is wrong");
    const char *p = text + sizeof PREFIX - 1;
    for (size_t i = 0; i < RAW; i += 3) {
        unsigned v = 0;
        for (int k = 0; k < 4; k++) {
            const char *at = memchr(alphabet, *p++, 64);
            if (!at)
                return bad(e, "it holds a character that no token has");
            v = v << 6 | (unsigned)(at - alphabet);
        }
        raw[i] = (uint8_t)(v >> 16);
        raw[i + 1] = (uint8_t)(v >> 8);
        raw[i + 2] = (uint8_t)v;
    }
    checksum(raw, sum);
    if (memcmp(sum, raw + RAW - 4, 4))
        return bad(e, "a character is wrong");
    if (raw[0] != VERSION || (raw[1] != ENROLL_NODE && raw[1] != ENROLL_USER))
        return bad(e, "it is of a newer version of strata");
    out->kind = raw[1];
    memcpy(out->id, raw + 2, ENROLL_ID_LEN);
    memcpy(out->secret, raw + 2 + ENROLL_ID_LEN, ENROLL_SECRET_LEN);
    memcpy(out->ca_spki, raw + 2 + ENROLL_ID_LEN + ENROLL_SECRET_LEN, 32);
    OPENSSL_cleanse(raw, sizeof raw);
    return ST_OK;
}

int enroll_token_file(const char *path, struct enroll_token *out, struct err *e)
{
    struct stat st;
    struct buf b = {0};
    if (stat(path, &st) == 0 && (st.st_mode & (S_IRWXG | S_IRWXO)))
        return err_set(e, ST_EDENIED, "the token file %s can be read by others (mode %03o): chmod 600 it",
                       path, (unsigned)st.st_mode & 0777);
    int rc = fs_read(path, 4096, &b, e);
    if (rc == ST_OK)
        rc = enroll_token_decode(buf_cstr(&b), out, e);
    if (b.data)
        OPENSSL_cleanse(b.data, b.len);
    buf_fini(&b);
    return rc;
}
