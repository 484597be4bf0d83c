/* tls.c - see tls.h. */
#include "http/tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

#define FILE_MAX (256u << 10) /* a chain of certificates has some kilobytes */

static char *read_file(const char *what, const char *path, struct err *e)
{
    char block[4096];
    struct buf b;
    size_t n, size;
    char *text = NULL;
    FILE *f = fopen(path, "re");
    if (!f) {
        err_set(e, ERR_USER, "could not read the %s \"%s\": %s", what, path, strerror(errno));
        return NULL;
    }
    buf_init(&b, FILE_MAX);
    while ((n = fread(block, 1, sizeof block, f)) > 0)
        if (buf_append(&b, block, n, e) < 0) break;
    if (n)
        err_set(e, ERR_USER, "the %s \"%s\" has more than %u bytes", what, path, FILE_MAX);
    else if (ferror(f))
        err_set(e, ERR_USER, "could not read the %s \"%s\": %s", what, path, strerror(errno));
    else if (!b.size)
        err_set(e, ERR_USER, "the %s \"%s\" is empty, expected PEM", what, path);
    else
        text = buf_take(&b, &size);
    buf_clear(&b);
    fclose(f);
    return text;
}

/* Whether the library can use them, and they belong together. */
static int try_them(const struct tls *t, const char *certificate, const char *key, struct err *e)
{
    gnutls_certificate_credentials_t tried;
    gnutls_datum_t texts[] = {{(unsigned char *)t->certificate, (unsigned)strlen(t->certificate)},
                              {(unsigned char *)t->key, (unsigned)strlen(t->key)}};
    int rc = gnutls_certificate_allocate_credentials(&tried);
    if (rc < 0) return err_set(e, ERR_RETRY, "no TLS: %s", gnutls_strerror(rc));
    rc = gnutls_certificate_set_x509_key_mem(tried, &texts[0], &texts[1], GNUTLS_X509_FMT_PEM);
    gnutls_certificate_free_credentials(tried);
    if (rc >= 0) return 0;
    return err_set(
        e, ERR_USER,
        "certificate \"%s\" and key \"%s\" cannot be used: %s (expected PEM that belongs "
        "together)",
        certificate, key, gnutls_strerror(rc));
}

int tls_read(struct tls *t, const char *certificate, const char *key, struct err *e)
{
    bool has_certificate = certificate && *certificate, has_key = key && *key;
    *t = (struct tls){0};
    if (!has_certificate && !has_key) return 0;
    if (has_certificate != has_key)
        return err_set(e, ERR_USER, "TLS has a %s and no %s, expected both or neither",
                       has_key ? "key" : "certificate", has_key ? "certificate" : "key");
    if ((t->certificate = read_file("certificate", certificate, e)) &&
        (t->key = read_file("key", key, e)) && try_them(t, certificate, key, e) == 0)
        return 0;
    tls_clear(t);
    return -1;
}

void tls_clear(struct tls *t)
{
    free(t->certificate);
    if (t->key) explicit_bzero(t->key, strlen(t->key));
    free(t->key);
    *t = (struct tls){0};
}
