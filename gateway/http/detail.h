/* detail.h - the body of an error answer: {"detail": text}, whatever bytes the text holds. */
#ifndef HTTP_DETAIL_H
#define HTTP_DETAIL_H

#include <stddef.h>

/* malloc'ed, or NULL without memory.  Bytes that are not UTF-8 (a text cut in the middle) become
 * "?". */
char *detail_json(const char *text, size_t *size);

#endif
