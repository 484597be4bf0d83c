/* sample.h - what the files of the sample request share.  Inside this room only. */
#ifndef WIRE_SAMPLE_H
#define WIRE_SAMPLE_H

#include "wire/json.h"
#include "wire/payload.h"

/* The scores that are wanted beside the sampled tokens; after prompt and prompt_logprobs. */
int sample_scores_decode(struct sample_request *r, const json_t *root, struct err *e) WARN_UNUSED;

#endif
