/* corpus.h - sequences to train on, from a file of JSON lines.
 *
 *   {"tokens": [1, 2, 3]}                            every token after the first counts
 *   {"tokens": [1, 2, 3], "weights": [0, 0, 1]}      a token's weight in the loss; the first one's
 * is never used
 *
 * Each line becomes a datum: its tokens but the last, the tokens shifted by one as targets. */
#ifndef CLI_CORPUS_H
#define CLI_CORPUS_H

#include <stdint.h>
#include "engine/engine.h"

struct corpus {
    struct datum *datums;
    int count;
};

/* ERR_USER names the line.  Cleared by the caller, also on failure. */
int corpus_read(struct corpus *c, const char *path, struct err *e) WARN_UNUSED;
void corpus_clear(struct corpus *c);

#endif
