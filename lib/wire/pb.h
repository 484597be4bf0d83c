/* pb.h - protobuf-c with bounds.  Inside this room only.
 *
 * Our schema has no message inside itself, so nesting is bounded by it.  What is not bounded is the
 * number of parts: two bytes on the wire can become a hundred in memory.  Everything unpacked lives
 * in a heap with a maximum. */
#ifndef WIRE_PB_H
#define WIRE_PB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <protobuf-c/protobuf-c.h>
#include "base/err.h"

#define PB_HEAP_MAX ((size_t)256 << 20)

struct pb_heap {
    ProtobufCAllocator allocator; /* .allocator_data points to this struct */
    struct pb_block *blocks;
    size_t held;
    bool full;
};

void pb_heap_init(struct pb_heap *h);
void pb_heap_clear(struct pb_heap *h); /* frees every message in it */

/* The message, alive until the heap is cleared; NULL with ERR_USER when bytes are none. */
void *pb_unpack(struct pb_heap *h, const ProtobufCMessageDescriptor *type, const void *bytes,
                size_t size, struct err *e);
/* malloc'ed, with a NUL after *size bytes. */
char *pb_pack(const ProtobufCMessage *m, size_t size_max, size_t *size, struct err *e);

/* Walking the bytes themselves: field by field, copying nothing. */
struct pb_field {
    uint32_t number;
    int type;            /* 0 varint, 1 64 bits, 2 bytes, 5 32 bits */
    uint64_t value;      /* type 0 */
    const uint8_t *data; /* type 2 */
    size_t size;
};
/* 1 and *out, with *at moved; 0 at the end; -1 when the bytes are no message. */
int pb_next(const uint8_t **at, const uint8_t *end, struct pb_field *out);

#endif
