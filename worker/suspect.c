/* suspect.c - which jobs are suspects: a function of what the log and the take-over say. */
#include "suspect.h"

bool suspect_is(const struct run *run, const struct task *t)
{
    if (t->known || t->job->offset >= run->suspect_below) return false;
    return !run->suspect_passes || t->cls == CLASS_PASS;
}

void suspect_done(struct run *run, const struct task *t)
{
    if (t->known) return;
    if (t->cls == CLASS_PASS && t->job->offset < run->suspect_below)
        run->suspect_passes = true; /* what follows shared its batch only if it is a pass too */
    else
        run->suspect_below = 0;
}
