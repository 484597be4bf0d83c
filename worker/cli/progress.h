/* progress.h - how far training is, on stderr: one line that changes on a terminal, otherwise a
 * line every few seconds and at the end. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool terminal;
    int64_t steps, began_us, told_us; /* monotonic */
    int64_t tokens;                   /* so far */
};

void progress_begin(struct progress *p, int64_t steps);

/* Step `step` (from 1) is done, with so many tokens. */
void progress_step(struct progress *p, int64_t step, int64_t tokens, double loss, double norm);

#endif
