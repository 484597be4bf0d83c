/* chunks.h - the tokens of a ModelInput in JSON: {"chunks": [{"type": "encoded_text", "tokens":
 * [..]}, ..]}. Inside this room only. */
#ifndef WIRE_CHUNKS_H
#define WIRE_CHUNKS_H

#include <stdint.h>
#include "wire/json.h"

/* The number of tokens of all chunks, or -1 when the input is of another form. */
int64_t chunks_count(const json_t *input, const char *where, struct err *e);
/* Copies them, after chunks_count() has said how many. */
int chunks_copy(const json_t *input, const char *where, int32_t *out, struct err *e) WARN_UNUSED;

#endif
