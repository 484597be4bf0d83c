/* checkpoint.h - what a user keeps: saved weights, and weights loaded again.
 *
 * A checkpoint is one immutable version, named by (run, seq of the save).  Order of writes: files, then the row (guarded
 * by our epoch), then the job's result.  Every attempt of an epoch has a folder of its own, so that two workers never
 * write to the same files. */
#ifndef WORKER_CHECKPOINT_H
#define WORKER_CHECKPOINT_H

#include "base/err.h"
#include "task.h"
#include "wire/payload.h"

struct worker;

/* Saves the task's run as rq asks.  ERR_USER: the name is taken, the sampler cannot be made. */
int checkpoint_save(struct worker *w, struct task *t, const struct save_request *rq, struct err *e) WARN_UNUSED;

/* A trainable adapter from the checkpoint that ref names; seq -1: the latest save of that name in the task's own run
 * before the task.  Its files are kept for a replay (loaded.h), which gets the same ones whatever became of the
 * checkpoint.  ERR_USER: there is none, or it has no optimizer state. */
struct adapter *checkpoint_load(struct worker *w, const struct task *t, const struct checkpoint_ref *ref,
                                bool with_optimizer, struct err *e);

/* A read-only adapter for sampling; what is deleted or expired is ERR_USER. */
struct adapter *checkpoint_load_sampler(struct worker *w, const char *run, int64_t seq, struct err *e);
/* Is that version still there?  ERR_USER when not. */
int checkpoint_check(struct worker *w, const char *run, int64_t seq, struct err *e) WARN_UNUSED;

#endif
