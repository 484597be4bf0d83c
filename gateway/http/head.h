/* head.h - is this a request at all?  What the library lets pass and we do not.
 *
 * Two parsers that read the same bytes differently are how one request becomes two (smuggling), so
 * whatever a proxy in front of us could read in another way is refused: lines that do not end in
 * CRLF, folded headers, names with a space, control characters, two lengths, a length beside
 * Transfer-Encoding.  Bodies come with Content-Length; no client that we serve sends chunks. */
#ifndef HTTP_HEAD_H
#define HTTP_HEAD_H

#include <microhttpd.h>

#define HEAD_LENGTH_NONE (-1)

struct head {
    long long length; /* HEAD_LENGTH_NONE: the request has no body */
    int status;       /* 0: fine, else how to refuse it */
    const char *why;
};

/* method and version are the library's own strings, where it read them. */
void head_read(struct head *h, struct MHD_Connection *connection, const char *method,
               const char *version);

#endif
