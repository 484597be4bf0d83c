/* batch.h - one record of <model>.batches: what the dispatcher suggests that a slot runs together.
 *
 * JSON: {"plan": n, "jobs": [{"stream": "train", "partition": 0, "offset": 17, "job_id": "...", "run": "...", "tokens": 96}]}.
 * A plan is a hint.  The worker alone orders; a wrong, late or repeated plan costs time, never bits. */
#ifndef WIRE_BATCH_H
#define WIRE_BATCH_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/ids.h"

#define BATCH_JOBS_MAX 1024

struct batch_entry {
    enum stream stream;
    int partition;
    int64_t offset, tokens;
    char job_id[ID_SIZE];
    char run[ID_SIZE];
};

struct batch {
    int64_t plan;
    int count;
    struct batch_entry *entries; /* owned */
};

struct batch *batch_create(int64_t plan, int count, struct err *e); /* entries zeroed */
void batch_free(struct batch *b);
char *batch_encode(const struct batch *b, size_t *size, struct err *e); /* malloc'ed JSON */
struct batch *batch_decode(const char *bytes, size_t size, struct err *e);

#endif
