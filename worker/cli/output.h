/* output.h - tokens from the command line, and numbers and text as JSON lines. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include "engine/engine.h"

#define TOKENS_MAX (1 << 20)

/* "1,2,3"; the caller frees *tokens, also on failure. */
int tokens_read(const char *text, int32_t **tokens, int *count, struct err *e) WARN_UNUSED;

json_t *tokens_json(const int32_t *tokens, int n);
json_t *floats_json(const float *x, int n); /* null for a NaN */

/* What the tokens say, with U+FFFD for bytes that are no UTF-8; null without a tokenizer. */
json_t *text_json(const struct engine *en, const int32_t *tokens, int n);

/* One line on stdout. */
int print_json(json_t *take, struct err *e) WARN_UNUSED;

#endif
