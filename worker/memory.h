/* memory.h - does what the settings promise fit into this machine, and into its GPUs?
 *
 * A worker that starts and is killed for memory at hour nine takes its runs' time with it; one that
 * cannot fit says so before it reads a weight. */
#ifndef WORKER_MEMORY_H
#define WORKER_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

/* A share of the worker's memory, at its largest. */
struct memory_part {
    const char *name; /* the setting's, or what it is */
    int64_t bytes;
    bool setting; /* somebody can lower it */
};

/* Bytes that this process may use: the machine's memory, or what its control groups (v1 or v2) and
 * those above them leave of it.  0: the system does not say.  root: "" or, in tests, a folder with
 * proc/ and sys/ in it. */
int64_t memory_limit(const char *root);

/* What a worker holds at most, in bytes. */
struct memory_bounds {
    int64_t weights, scratch, kv;          /* of each rank */
    int64_t adapters, sampler_cache, held; /* of all devices together */
    int devices; /* ranks times replicas */
    bool gpu;    /* devices have memory of their own; what is held is the host's anyway */
    bool paged;  /* of a GPU's adapters the moments, which are half, are with the host */
};

#define MEMORY_PARTS_MAX 6

/* What of it is the host's.  Returns how many parts. */
int memory_of_host(const struct memory_bounds *b, struct memory_part parts[MEMORY_PARTS_MAX]);

/* What of it is one GPU's, weights included, which are there already: `used` is what the GPU says
 * is in use, by anybody.  `reserved` is for libraries and what kernels need beside. */
int memory_of_gpu(const struct memory_bounds *b, int64_t used, int64_t reserved,
                  struct memory_part parts[MEMORY_PARTS_MAX]);

int64_t memory_sum(const struct memory_part *parts, int count);

/* ERR_USER when the parts are more than limit (0: no limit is known): names them all, and the
 * setting to lower. */
int memory_check(const struct memory_part *parts, int count, int64_t limit,
                 struct err *e) WARN_UNUSED;

#endif
