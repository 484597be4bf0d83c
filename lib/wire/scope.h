/* scope.h - what an API key may be used for.
 *
 * A key holds some of these; `admin` stands for all of them.  The gateway's table of routes says
 * which ones each call asks for (gateway/api/routes.c). */
#ifndef WIRE_SCOPE_H
#define WIRE_SCOPE_H

#include <stdbool.h>
#include "base/err.h"

enum {
    SCOPE_TRAIN = 1,   /* make runs, train, save, load, change checkpoints */
    SCOPE_SAMPLE = 2,  /* make samplers, sample */
    SCOPE_READ = 4,    /* look at and download what the account has */
    SCOPE_FINANCE = 8, /* the books: usage and what is stored */
    SCOPE_ADMIN = 16,
};
#define SCOPES_TEXT_SIZE 64

/* "train,read", in any order, any of them twice; ERR_USER names what is none of ours. */
int scopes_parse(const char *text, unsigned *out, struct err *e) WARN_UNUSED;
/* In our order, with `between` (at most 6 bytes) between; "" for none. */
void scopes_text(unsigned scopes, const char *between, char out[SCOPES_TEXT_SIZE]);
/* Does a key that holds `held` suffice where one of `any_of` is asked for?  any_of 0: every key
 * does. */
bool scopes_suffice(unsigned held, unsigned any_of);

#endif
