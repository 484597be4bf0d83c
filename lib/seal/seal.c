/* seal.c - see seal.h. */
#include "seal/seal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

struct seal_hash {
    EVP_MD_CTX *ctx;
};

struct seal_hash *seal_hash_begin(struct err *e)
{
    struct seal_hash *h = calloc(1, sizeof *h);
    if (h) h->ctx = EVP_MD_CTX_new();
    if (!h || !h->ctx || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1) {
        if (h) EVP_MD_CTX_free(h->ctx);
        free(h);
        err_set(e, ERR_RETRY, "could not start a SHA-256");
        return NULL;
    }
    return h;
}

void seal_hash_add(struct seal_hash *h, const void *bytes, size_t size)
{
    if (EVP_DigestUpdate(h->ctx, bytes, size) != 1) abort(); /* cannot fail for a live context */
}

void seal_hash_end(struct seal_hash *h, uint8_t out[SEAL_SHA256_SIZE])
{
    if (EVP_DigestFinal_ex(h->ctx, out, NULL) != 1) abort();
    EVP_MD_CTX_free(h->ctx);
    free(h);
}

void seal_sha256(const void *bytes, size_t size, uint8_t out[SEAL_SHA256_SIZE])
{
    if (EVP_Digest(bytes, size, out, NULL, EVP_sha256(), NULL) != 1) abort();
}

void seal_sha256_hex(const void *bytes, size_t size, char out[SEAL_SHA256_HEX_SIZE])
{
    uint8_t hash[SEAL_SHA256_SIZE];
    seal_sha256(bytes, size, hash);
    seal_hex(hash, sizeof hash, out);
}

int seal_sha256_file(const char *path, char out[SEAL_SHA256_HEX_SIZE], struct err *e)
{
    FILE *f = fopen(path, "rb");
    if (!f) return err_set(e, ERR_RETRY, "could not open \"%s\": %s", path, strerror(errno));
    struct seal_hash *h = seal_hash_begin(e);
    char *piece = malloc(1 << 16);
    if (!h || !piece) {
        if (h) seal_hash_end(h, (uint8_t[SEAL_SHA256_SIZE]){0});
        free(piece);
        fclose(f);
        return err_set(e, ERR_RETRY, "out of memory");
    }
    for (size_t n; (n = fread(piece, 1, 1 << 16, f)) > 0;)
        seal_hash_add(h, piece, n);
    int bad = ferror(f);
    uint8_t hash[SEAL_SHA256_SIZE];
    seal_hash_end(h, hash);
    free(piece);
    fclose(f);
    if (bad) return err_set(e, ERR_RETRY, "could not read \"%s\"", path);
    seal_hex(hash, sizeof hash, out);
    return 0;
}

void seal_hmac_sha256(const void *key, size_t key_size, const void *bytes, size_t size,
                      uint8_t out[SEAL_SHA256_SIZE])
{
    if (!HMAC(EVP_sha256(), key, (int)key_size, bytes, size, out, NULL)) abort();
}

void seal_random(void *bytes, size_t size)
{
    if (RAND_bytes(bytes, (int)size) != 1) abort();
}

void seal_hex(const void *bytes, size_t size, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *b = bytes;
    for (size_t i = 0; i < size; i++) {
        *out++ = digits[b[i] >> 4];
        *out++ = digits[b[i] & 15];
    }
    *out = '\0';
}

void seal_base32(const void *bytes, size_t size, char *out)
{
    static const char digits[] = "abcdefghijklmnopqrstuvwxyz234567";
    const uint8_t *b = bytes;
    uint32_t held = 0;
    int bits = 0;
    for (size_t i = 0; i < size; i++) {
        held = held << 8 | b[i];
        for (bits += 8; bits >= 5; bits -= 5)
            *out++ = digits[held >> (bits - 5) & 31];
    }
    if (bits) *out++ = digits[held << (5 - bits) & 31];
    *out = '\0';
}

bool seal_equal(const void *a, const void *b, size_t size)
{
    return CRYPTO_memcmp(a, b, size) == 0;
}
