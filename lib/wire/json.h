/* json.h - JSON with bounds, over jansson.
 *
 * A parse costs 20 to 25 times the text in memory, so callers bound the text first.  Duplicate
 * keys, NaN, infinite numbers and nesting deeper than JSON_DEPTH_MAX (payload.h) are refused. */
#ifndef WIRE_JSON_H
#define WIRE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

/* An object (json_decref it), or NULL with ERR_USER that says where the text is wrong. */
json_t *wire_json_read(const void *bytes, size_t size, struct err *e);

/* Compact text of j, malloc'ed, with a NUL after its *size bytes; takes the reference, NULL
 * included (out of memory while it was built). */
char *wire_json_write(json_t *j, size_t *size, struct err *e);

/* Members of an object.  Each leaves *out as it is when the member is absent or null and `must` is
 * false; what is there has to be of the type.  where is put before the member's name in texts ("",
 * "checkpoint."). */
int wire_json_text(const json_t *o, const char *where, const char *name, bool must, char *out,
                   size_t size, struct err *e) WARN_UNUSED;
int wire_json_int(const json_t *o, const char *where, const char *name, bool must, json_int_t low,
                  json_int_t high, json_int_t *out, struct err *e) WARN_UNUSED;
int wire_json_number(const json_t *o, const char *where, const char *name, bool must, double *out,
                     struct err *e) WARN_UNUSED;
int wire_json_bool(const json_t *o, const char *where, const char *name, bool must, bool *out,
                   struct err *e) WARN_UNUSED;

/* "a string", "null", "a whole number" ...: for texts that say what was found. */
const char *wire_json_type(const json_t *j);

#endif
