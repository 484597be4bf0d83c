/* tls.h - the certificate and key that a server shows, read and tried before it opens its door. */
#ifndef HTTP_TLS_H
#define HTTP_TLS_H

#include "base/err.h"

/* What libmicrohttpd is given: PEM texts, NUL at the end.  NULL: plain HTTP. */
struct tls {
    char *certificate, *key;
};

/* TLS 1.2 and later. */
#define TLS_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

/* Paths may both be NULL or "": then nothing is read.  ERR_USER names the file and what is wrong.
 */
int tls_read(struct tls *t, const char *certificate, const char *key, struct err *e) WARN_UNUSED;
void tls_clear(struct tls *t);

#endif
