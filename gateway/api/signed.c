/* signed.c - see signed.h. */
#include "api/signed.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "seal/seal.h"

void signed_make(const struct secret *s, const struct signed_file *f, char out[SIGNED_HEX_SIZE])
{
    static const char purpose[] = "tinworks download";
    char text[TENANT_SIZE + ID_SIZE + 512];
    uint8_t key[SEAL_SHA256_SIZE], mac[SEAL_SHA256_SIZE];
    int n = snprintf(text, sizeof text, "GET|%s|%s|%" PRId64 "|%" PRId64 "|%s|%" PRId64, f->account,
                     f->run, f->seq, f->epoch, f->file, f->expires_s);
    if (n < 0 || (size_t)n >= sizeof text) n = 0; /* signs nothing that anybody asks for */
    seal_hmac_sha256(s->key, sizeof s->key, purpose, sizeof purpose - 1, key);
    seal_hmac_sha256(key, sizeof key, text, (size_t)n, mac);
    seal_hex(mac, sizeof mac, out);
}

/* Ids and file names hold no character that would need an escape in an address. */
int signed_url(struct call *c, const struct signed_file *f, char out[SIGNED_URL_SIZE],
               struct err *e)
{
    char signature[SIGNED_HEX_SIZE], begin[512];
    const char *host = http_header(c->r, "Host"), *given = c->g->conf.public_url;
    const char *scheme = *c->g->conf.tls_certificate ? "https" : "http";
    int n = *given ? snprintf(begin, sizeof begin, "%s", given)
                   : snprintf(begin, sizeof begin, "%s://%s", scheme, host ? host : "");
    if (n < 0 || (size_t)n >= sizeof begin || (!*given && !host))
        return err_set(e, ERR_USER, "the Host header is missing or longer than %zu bytes",
                       sizeof begin - 9);
    signed_make(&c->g->secret, f, signature);
    n = snprintf(out, SIGNED_URL_SIZE,
                 "%s/api/v1/files/%s/%" PRId64 "/%" PRId64 "/%s?account=%s&expires=%" PRId64
                 "&signature=%s",
                 begin, f->run, f->seq, f->epoch, f->file, f->account, f->expires_s, signature);
    if (n < 0 || n >= SIGNED_URL_SIZE) return err_set(e, ERR_BUG, "an address has %d bytes", n);
    return 0;
}
