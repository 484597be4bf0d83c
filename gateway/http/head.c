/* head.c - see head.h.
 *
 * libmicrohttpd 0.9.75 takes a bare LF for CRLF, joins folded lines and keeps a space in front of a
 * colon, and does not tell.  But it parses in place: name and value of a header lie in its buffer
 * where they came in, each with a NUL over what followed it.  So the next name begins exactly two
 * bytes behind the value's end if CRLF was there, one if it was a bare LF, and somewhere else if
 * lines were joined (it moves those).  The head as a whole ends four bytes behind the last value.
 * Only the places are compared; nothing is read beyond the strings. */
#include "http/head.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "http/server.h"

#define LENGTH_DIGITS_MAX 15 /* no product of it overflows; far above any limit */

#define LINES "a line of the head does not end in CRLF, is folded, has no name or holds a NUL"

struct reading {
    struct head *head;
    int count, lengths, encodings;
    size_t bytes;
    const char *next; /* where the next name has to begin */
};

static void fault(struct head *h, int status, const char *why)
{
    if (h->status) return;
    h->status = status;
    h->why = why;
}

/* RFC 9110's token. */
static bool is_token(const char *s)
{
    static const char allowed[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    return *s && strspn(s, allowed) == strlen(s);
}

static bool has_control(const char *s)
{
    for (; *s; s++)
        if (((unsigned char)*s < ' ' && *s != '\t') || *s == 0x7f) return true;
    return false;
}

static void look_at_length(struct reading *r, const char *value)
{
    size_t digits = strspn(value, "0123456789");
    if (r->lengths++ || !digits || digits != strlen(value))
        fault(r->head, 400, "the length of the body is not clear: one Content-Length, in digits");
    else if (digits > LENGTH_DIGITS_MAX)
        fault(r->head, 413, "the body is larger than anything that is taken here");
    else
        r->head->length = atoll(value);
}

static enum MHD_Result look_at(void *cls, enum MHD_ValueKind kind, const char *name,
                               const char *value)
{
    struct reading *r = cls;
    (void)kind;
    r->count++;
    r->bytes += strlen(name) + strlen(value) + 4;
    if (name != r->next) fault(r->head, 400, LINES);
    if (!is_token(name) || has_control(value))
        fault(r->head, 400, "a header has a name or a value with a character that is not allowed");
    r->next = value + strlen(value) + 2;
    if (!strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING)) r->encodings++;
    if (!strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH)) look_at_length(r, value);
    return MHD_YES;
}

/* Whether the empty line is there, and nothing in front of it that we were not shown. */
static bool ends_where_it_should(struct MHD_Connection *connection, const char *method,
                                 const char *next)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    return info && method + info->header_size == next + 2;
}

static bool wants_body(const char *method)
{
    return !strcmp(method, "POST") || !strcmp(method, "PUT");
}

void head_read(struct head *h, struct MHD_Connection *connection, const char *method,
               const char *version)
{
    *h = (struct head){.length = HEAD_LENGTH_NONE};
    struct reading r = {.head = h, .next = version + strlen(version) + 2};
    MHD_get_connection_values(connection, MHD_HEADER_KIND, look_at, &r);
    if (!ends_where_it_should(connection, method, r.next)) fault(h, 400, LINES);
    if (r.lengths && r.encodings)
        fault(h, 400, "both Content-Length and Transfer-Encoding, expected Content-Length");
    if (r.encodings)
        fault(h, 411, "the body comes with Transfer-Encoding, expected Content-Length");
    if (r.count > HTTP_HEADERS_MAX || r.bytes > HTTP_HEADER_BYTES_MAX)
        fault(h, 431, "too many headers");
    if (!r.lengths && wants_body(method))
        fault(h, 411, "Content-Length is missing; 0 when there is no body");
}
