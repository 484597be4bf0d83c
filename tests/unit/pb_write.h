/* pb_write.h - protobuf by hand, for tests: what the decoders read is written here by other means
 * than the decoders'. */
#ifndef TESTS_PB_WRITE_H
#define TESTS_PB_WRITE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct pb {
    char bytes[1 << 16];
    size_t size;
};

static inline void pb_raw(struct pb *p, const void *bytes, size_t size)
{
    if (p->size + size > sizeof p->bytes) abort();
    memcpy(p->bytes + p->size, bytes, size);
    p->size += size;
}

static inline void pb_number(struct pb *p, uint64_t n)
{
    do {
        char byte = (char)((n & 0x7f) | (n > 0x7f ? 0x80 : 0));
        pb_raw(p, &byte, 1);
    } while (n >>= 7);
}

static inline void pb_varint(struct pb *p, unsigned field, uint64_t n)
{
    pb_number(p, (uint64_t)field << 3);
    pb_number(p, n);
}

static inline void pb_bytes(struct pb *p, unsigned field, const void *bytes, size_t size)
{
    pb_number(p, (uint64_t)field << 3 | 2);
    pb_number(p, size);
    pb_raw(p, bytes, size);
}

static inline void pb_text(struct pb *p, unsigned field, const char *text)
{
    pb_bytes(p, field, text, strlen(text));
}

static inline void pb_message(struct pb *p, unsigned field, const struct pb *m)
{
    pb_bytes(p, field, m->bytes, m->size);
}

static inline void pb_double(struct pb *p, unsigned field, double value)
{
    pb_number(p, (uint64_t)field << 3 | 1);
    pb_raw(p, &value, sizeof value);
}

#endif
