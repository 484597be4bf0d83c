/* header.h - a named text beside a record's payload (a Kafka record header). */
#ifndef BASE_HEADER_H
#define BASE_HEADER_H

struct header {
    const char *name;
    const char *value; /* UTF-8 text; NUL-terminated */
};

#endif
