/* pb.c - see pb.h. */
#include "pb.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_SIZE ((size_t)64 << 10)

struct pb_block {
    struct pb_block *next;
    size_t size, used;
    _Alignas(16) char bytes[];
};

static void *heap_alloc(void *data, size_t size)
{
    struct pb_heap *h = data;
    if (size > PB_HEAP_MAX) {
        h->full = true;
        return NULL;
    }
    size = (size + 15) / 16 * 16;
    struct pb_block *b = h->blocks;
    if (!b || b->size - b->used < size) {
        size_t room = size > BLOCK_SIZE ? size : BLOCK_SIZE;
        b = h->held + room > PB_HEAP_MAX ? NULL : malloc(sizeof *b + room);
        if (!b) {
            h->full = true;
            return NULL;
        }
        *b = (struct pb_block){.next = h->blocks, .size = room};
        h->blocks = b;
        h->held += room;
    }
    void *p = b->bytes + b->used;
    b->used += size;
    return p;
}

static void heap_free(void *data, void *p)
{
    (void)data; /* all at once, in pb_heap_clear */
    (void)p;
}

void pb_heap_init(struct pb_heap *h)
{
    *h = (struct pb_heap){.allocator = {heap_alloc, heap_free, h}};
}

void pb_heap_clear(struct pb_heap *h)
{
    for (struct pb_block *b = h->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    pb_heap_init(h);
}

void *pb_unpack(struct pb_heap *h, const ProtobufCMessageDescriptor *type, const void *bytes,
                size_t size, struct err *e)
{
    void *m = protobuf_c_message_unpack(type, &h->allocator, size, bytes);
    if (m) return m;
    if (h->full)
        err_set(e, ERR_USER, "the %s message has too many parts", type->short_name);
    else
        err_set(e, ERR_USER, "not a %s message (%zu bytes)", type->short_name, size);
    return NULL;
}

char *pb_pack(const ProtobufCMessage *m, size_t size_max, size_t *size, struct err *e)
{
    size_t need = protobuf_c_message_get_packed_size(m);
    if (need > size_max) {
        err_set(e, ERR_USER, "a result of %zu bytes, expected at most %zu", need, size_max);
        return NULL;
    }
    char *bytes = malloc(need + 1);
    if (!bytes) {
        err_set(e, ERR_RETRY, "out of memory for a result of %zu bytes", need);
        return NULL;
    }
    *size = protobuf_c_message_pack(m, (uint8_t *)bytes);
    bytes[*size] = '\0';
    return bytes;
}

static int read_varint(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 70 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;
        if (shift == 63 && byte > 1) return -1;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte & 0x80) continue;
        *out = value;
        return 0;
    }
    return -1;
}

int pb_next(const uint8_t **at, const uint8_t *end, struct pb_field *out)
{
    uint64_t tag, size;
    if (*at >= end) return 0;
    if (read_varint(at, end, &tag) < 0 || !(tag >> 3) || tag >> 32) return -1;
    *out = (struct pb_field){.number = (uint32_t)(tag >> 3), .type = (int)(tag & 7)};
    switch (out->type) {
    case 0:
        return read_varint(at, end, &out->value) < 0 ? -1 : 1;
    case 1:
    case 5:
        size = out->type == 1 ? 8 : 4;
        break;
    case 2:
        if (read_varint(at, end, &size) < 0) return -1;
        break;
    default:
        return -1;
    }
    if (size > (uint64_t)(end - *at)) return -1;
    out->data = *at;
    out->size = (size_t)size;
    *at += size;
    return 1;
}
