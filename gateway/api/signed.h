/* signed.h - addresses of files that work without a key, for a short while.
 *
 * The signature covers the method, the account that asked, the one immutable version of a
 * checkpoint (run, seq and the epoch that wrote it), the file, and when it ends. */
#ifndef API_SIGNED_H
#define API_SIGNED_H

#include "api/gateway.h"

#define SIGNED_URL_SIZE 1536
#define SIGNED_HEX_SIZE 65

struct signed_file {
    const char *account, *run;
    int64_t seq, epoch;
    const char *file;
    int64_t expires_s; /* since 1970 */
};

void signed_make(const struct secret *s, const struct signed_file *f, char out[SIGNED_HEX_SIZE]);

/* The whole address, as this request's client reaches us. */
int signed_url(struct call *c, const struct signed_file *f, char out[SIGNED_URL_SIZE],
               struct err *e) WARN_UNUSED;

#endif
