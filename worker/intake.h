/* intake.h - records in: jobs of our shards to their runs, sampling jobs to the sampler, plans to the schedule. */
#ifndef WORKER_INTAKE_H
#define WORKER_INTAKE_H

#include "base/err.h"

#define INTAKE_MAX 512 /* records of one read */

struct worker;

/* Reads what is there, waiting up to wait_ms for the first record. */
int intake(struct worker *w, int wait_ms, struct err *e) WARN_UNUSED;

#endif
