/* execute.h - runs a batch of training jobs and decides each of them.
 *
 * All forward and forward_backward jobs of a batch go through the engine in one pass; the others run one by one.  What a
 * caller can get wrong is found before anything changes, so a failed job leaves no trace.  A job that the log has
 * decided already has its effect redone, or nothing at all when it failed or only read. */
#ifndef WORKER_EXECUTE_H
#define WORKER_EXECUTE_H

#include "base/err.h"
#include "task.h"

struct worker;

/* Tasks of one class, each next in its run (or following another of the batch).  Afterwards they are gone.
 * -1: infrastructure; nothing was said about the jobs that are left. */
int execute_batch(struct worker *w, struct task **tasks, int count, struct err *e) WARN_UNUSED;

/* What job kind belongs to which class of batch. */
enum batch_class execute_class(enum job_kind kind);

#endif
