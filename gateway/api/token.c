/* token.c - see token.h. */
#include "api/token.h"

#include <jansson.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "seal/seal.h"
#include "wire/json.h"

#define SIGNATURE_SIZE 44 /* 32 bytes as base64url, with the NUL */

/* {"alg":"HS256","typ":"JWT"} */
static const char head[] = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.";

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* RFC 4648 5, without padding; out has (size * 8 + 5) / 6 + 1 bytes. */
static void base64url(const void *bytes, size_t size, char *out)
{
    const uint8_t *b = bytes;
    uint32_t held = 0;
    int bits = 0;
    for (size_t i = 0; i < size; i++) {
        held = held << 8 | b[i];
        for (bits += 8; bits >= 6; bits -= 6)
            *out++ = digits[held >> (bits - 6) & 63];
    }
    if (bits) *out++ = digits[held << (6 - bits) & 63];
    *out = '\0';
}

/* -1 when there is another character; else the number of bytes, which out must have room for. */
static int from_base64url(const char *text, size_t length, uint8_t *out)
{
    uint32_t held = 0;
    int bits = 0, n = 0;
    for (size_t i = 0; i < length; i++) {
        const char *at = text[i] ? strchr(digits, text[i]) : NULL;
        if (!at) return -1;
        held = held << 6 | (uint32_t)(at - digits);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        out[n++] = (uint8_t)(held >> bits);
    }
    return n;
}

/* Tokens have a key of their own, so that nothing else we sign can be taken for one. */
static void sign(const struct secret *s, const char *text, size_t size, char out[SIGNATURE_SIZE])
{
    static const char purpose[] = "tinworks token";
    uint8_t key[SEAL_SHA256_SIZE], mac[SEAL_SHA256_SIZE];
    seal_hmac_sha256(s->key, sizeof s->key, purpose, sizeof purpose - 1, key);
    seal_hmac_sha256(key, sizeof key, text, size, mac);
    base64url(mac, sizeof mac, out);
}

int token_make(char out[TOKEN_SIZE], const struct secret *s, const struct claims *claims,
               struct err *e)
{
    size_t size = 0;
    char signature[SIGNATURE_SIZE];
    char *text = wire_json_write(
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "sub", claims->account, "org_id",
                  claims->account, "email", claims->email, "kid", claims->key, "iat",
                  (json_int_t)claims->issued_s, "exp", (json_int_t)claims->expires_s),
        &size, e);
    if (!text) return -1;
    int rc = 0;
    if (sizeof head + (size * 8 + 5) / 6 + 1 + SIGNATURE_SIZE > TOKEN_SIZE)
        rc = err_set(e, ERR_BUG, "the claims of a token have %zu bytes", size);
    if (rc == 0) {
        memcpy(out, head, sizeof head - 1);
        base64url(text, size, out + sizeof head - 1);
        size_t signed_size = strlen(out);
        sign(s, out, signed_size, signature);
        snprintf(out + signed_size, TOKEN_SIZE - signed_size, ".%s", signature);
    }
    free(text);
    return rc;
}

static int read_claims(const char *text, size_t length, struct claims *out)
{
    uint8_t bytes[TOKEN_SIZE];
    json_int_t issued = 0, expires = 0;
    int n = from_base64url(text, length, bytes);
    json_t *j = n < 0 ? NULL : wire_json_read(bytes, (size_t)n, NULL);
    if (!j) return -1;
    memset(out, 0, sizeof *out);
    int rc = 0;
    if (wire_json_text(j, "", "sub", true, out->account, sizeof out->account, NULL) < 0 ||
        wire_json_text(j, "", "kid", true, out->key, sizeof out->key, NULL) < 0 ||
        wire_json_text(j, "", "email", true, out->email, sizeof out->email, NULL) < 0 ||
        wire_json_int(j, "", "iat", true, 0, INT64_MAX, &issued, NULL) < 0 ||
        wire_json_int(j, "", "exp", true, 0, INT64_MAX, &expires, NULL) < 0)
        rc = -1;
    json_decref(j);
    out->issued_s = issued;
    out->expires_s = expires;
    return rc;
}

enum token_verdict token_read(const char *token, const struct secret *s, int64_t now_s,
                              struct claims *out)
{
    char expected[SIGNATURE_SIZE];
    struct claims read;
    size_t length = strlen(token);
    const char *dot = strrchr(token, '.');
    if (length >= TOKEN_SIZE || strncmp(token, head, sizeof head - 1) != 0) return TOKEN_BAD;
    if (dot < token + sizeof head || strlen(dot + 1) != SIGNATURE_SIZE - 1) return TOKEN_BAD;
    sign(s, token, (size_t)(dot - token), expected);
    if (!seal_equal(dot + 1, expected, SIGNATURE_SIZE - 1)) return TOKEN_BAD;
    const char *claims = token + sizeof head - 1;
    if (read_claims(claims, (size_t)(dot - claims), &read) < 0) return TOKEN_BAD;
    if (now_s >= read.expires_s) return TOKEN_EXPIRED;
    *out = read;
    return TOKEN_GOOD;
}
