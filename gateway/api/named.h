/* named.h - the checkpoint that an address names: .../training_runs/RUN/checkpoints/ID.
 *
 * An id is <segment>/<name>, two segments of the path.  hpcai's plain paths have the name alone,
 * which must then belong to one kind of checkpoint only. */
#ifndef API_NAMED_H
#define API_NAMED_H

#include "api/gateway.h"

struct named {
    const char *run, *name; /* borrowed from the request */
    const char *kind;       /* "training", "sampler", "external" */
};

/* The caller's own, deleted and expired ones included; STEP_ON or answered (404, 400).  Needs
 * c->db. */
enum step named_read(struct call *c, struct named *out);

/* "weights" -> "training" and so on; NULL for another word. */
const char *named_kind_of(const char *segment);

#endif
