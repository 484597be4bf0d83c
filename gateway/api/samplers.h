/* samplers.h - samplers for clients that name weights with every sample. */
#ifndef API_SAMPLERS_H
#define API_SAMPLERS_H

#include "api/owner.h"

/* The sampler of the caller's account for a base model, or (path not "") for the newest version of
 * a checkpoint; made when there is none.  Answers 400, 404, 503 itself. */
enum step samplers_stand_in(struct call *c, const char *base, const char *path, char id[ID_SIZE],
                            struct sampler_facts *facts);

#endif
