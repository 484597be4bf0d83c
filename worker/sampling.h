/* sampling.h - sampling jobs: admitted as memory allows, moved on a token a step, all weights side by side.
 *
 * A job that a worker may have died of is counted before it begins, and after two deaths runs alone (suspect.h).
 *
 * Jobs wait in order of arrival and join the engine's running requests at any time between two steps; a job's tokens do
 * not depend on its company.  Adapters of sampler checkpoints are read-only, kept by version, the longest unused leave
 * first. */
#ifndef WORKER_SAMPLING_H
#define WORKER_SAMPLING_H

#include <stdbool.h>
#include "base/err.h"
#include "task.h"

struct worker;
struct shard;
struct sampling;

struct sampling *sampling_create(struct err *e);
/* We leave by ourselves, so no job in hand is to blame: takes their counts back.  Before the shards are given up. */
void sampling_forgive(struct worker *w);
void sampling_free(struct worker *w); /* what runs is abandoned: it stays in the log */

/* Takes the task. */
void sampling_add(struct worker *w, struct task *take_task);

/* A wish of the client: a job that still waits is answered as cancelled, another one goes on. */
int sampling_cancel(struct worker *w, const char *job_id, struct err *e) WARN_UNUSED;

/* Anything waiting or running?  And of that shard? */
bool sampling_active(const struct worker *w);
bool sampling_active_of(const struct worker *w, const struct shard *s);

/* Does a job run that must have no company, training included? */
bool sampling_alone(const struct worker *w);

/* Admits what fits, moves every running request one step, answers those that are done. */
int sampling_step(struct worker *w, struct err *e) WARN_UNUSED;

#endif
