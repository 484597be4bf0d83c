/* loaded.h - the files that a load read, kept for whoever has to replay it.
 *
 * The owner of a checkpoint may delete it, or save its name anew, as soon as it was loaded.  So a load first links the
 * files (blobs.h) into snapshots/<run>/<seq>-<epoch>-load-<sha256> and reads them there, before its result says ok.  A
 * replay reads the folder of the epoch that decided; which checkpoint a name means by then does not matter.  A folder
 * goes with a snapshot's cleaning (snapshot.c) once every snapshot that is kept covers its load, so that it is there for a
 * replay from the older one, too. */
#ifndef WORKER_LOADED_H
#define WORKER_LOADED_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "task.h"

struct worker;

/* Keeps the files of dir (below the data folder) for the load t, and puts where they are now into path. */
int loaded_keep(struct worker *w, const struct task *t, const char *dir, const char *sha256, char *path, size_t size,
                struct err *e) WARN_UNUSED;

/* Of a load that the log has decided: 1 with path and sha256 of what it read, 0 when that was not kept, -1. */
int loaded_find(struct worker *w, const struct task *t, char *path, size_t size, char sha256[65], struct err *e) WARN_UNUSED;

/* The seq of the load that a folder of this name is kept for; -1: it is another folder. */
int64_t loaded_seq(const char *name);

#endif
