/* token.h - short-lived JSON Web Tokens (RFC 7519) that stand in for an API key: HS256 under a key
 * derived from the server's secret.
 *
 * Only tokens with exactly our header are read, so "alg" decides nothing.  A token names the API
 * key it was given for; whether that key still counts is the reader's to ask. */
#ifndef API_TOKEN_H
#define API_TOKEN_H

#include "wire/ids.h"

#define TOKEN_SIZE  1024 /* of a whole token, with its NUL */
#define KEY_ID_SIZE 128
#define EMAIL_SIZE  256

struct claims {
    char account[TENANT_SIZE], key[KEY_ID_SIZE], email[EMAIL_SIZE];
    int64_t issued_s, expires_s; /* since 1970 */
};

int token_make(char out[TOKEN_SIZE], const struct secret *s, const struct claims *claims,
               struct err *e) WARN_UNUSED;

enum token_verdict { TOKEN_GOOD, TOKEN_EXPIRED, TOKEN_BAD };
/* Fills *out only when good. */
enum token_verdict token_read(const char *token, const struct secret *s, int64_t now_s,
                              struct claims *out);

#endif
