/* text.h - small checks that the codecs of this room share; nobody outside includes it. */
#ifndef WIRE_TEXT_H
#define WIRE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/header.h"

/* A whole number from 0 up, digits only, no sign, no leading zeros: one text a number. */
bool text_to_count(const char *s, int64_t *out);

/* Visible ASCII without '|', '/', '"' and '\\', 1 to size - 1 characters: what ids and names of
 * ours are made of. */
bool text_is_id(const char *s, size_t size);

/* Header values by name.  NULL with ERR_USER when there is none or more than one. */
const char *header_find(const struct header *headers, int count, const char *name, struct err *e);

/* The same, checked and copied into out, which has size bytes. */
int header_id(const struct header *headers, int count, const char *name, char *out, size_t size,
              struct err *e) WARN_UNUSED;
int header_text(const struct header *headers, int count, const char *name, char *out, size_t size,
                struct err *e) WARN_UNUSED;
int header_count_of(const struct header *headers, int count, const char *name, int64_t *out,
                    struct err *e) WARN_UNUSED;

/* A copy of size bytes with a NUL after them. */
char *bytes_copy(const void *bytes, size_t size, struct err *e);

#endif
