/* seal.h - SHA-256, HMAC-SHA-256, random bytes, and their texts.  The one door to libcrypto. */
#ifndef SEAL_SEAL_H
#define SEAL_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define SEAL_SHA256_SIZE     32
#define SEAL_SHA256_HEX_SIZE 65 /* 64 digits and the NUL */

void seal_sha256(const void *bytes, size_t size, uint8_t out[SEAL_SHA256_SIZE]);
void seal_sha256_hex(const void *bytes, size_t size, char out[SEAL_SHA256_HEX_SIZE]);

/* A hash over pieces.  NULL on failure; end() frees h and fills out. */
struct seal_hash;
struct seal_hash *seal_hash_begin(struct err *e);
void seal_hash_add(struct seal_hash *h, const void *bytes, size_t size);
void seal_hash_end(struct seal_hash *h, uint8_t out[SEAL_SHA256_SIZE]);

/* SHA-256 of a whole file. */
int seal_sha256_file(const char *path, char out[SEAL_SHA256_HEX_SIZE], struct err *e) WARN_UNUSED;

void seal_hmac_sha256(const void *key, size_t key_size, const void *bytes, size_t size,
                      uint8_t out[SEAL_SHA256_SIZE]);

/* Never fails: without a source of randomness the process must not go on, so it aborts. */
void seal_random(void *bytes, size_t size);

/* lower-case hex of size bytes into out (2 * size + 1 bytes) */
void seal_hex(const void *bytes, size_t size, char *out);
/* RFC 4648 base32, lower case, no padding, into out ((size * 8 + 4) / 5 + 1 bytes) */
void seal_base32(const void *bytes, size_t size, char *out);

/* Constant time in size. */
bool seal_equal(const void *a, const void *b, size_t size);

#endif
