/* archive.c - see archive.h.
 *
 * Two layers: tar_read() makes the bytes of the tar, archive_read() puts them into stored blocks of
 * gzip, or hands them on. */
#include "api/archive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TAR_BLOCK    512
#define GZIP_HEAD    10
#define GZIP_TAIL    8
#define STORED_HEAD  5
#define STORED_MAX   65535
#define END_BLOCKS   2 /* of zeros */

struct entry {
    int fd;
    uint64_t size;
    char head[TAR_BLOCK];
};

struct archive {
    bool gzip;
    int count;
    struct entry entries[ARCHIVE_FILES_MAX];
    uint64_t tar_size, tar_at;
    uint32_t crc;
    uint64_t out_at, out_size;
    /* gzip: what stands in front of the tar's next bytes, or behind its last */
    char frame[GZIP_HEAD + STORED_HEAD + GZIP_TAIL];
    size_t frame_size, frame_at;
    uint64_t block_left; /* tar bytes in the stored block that is open */
};

/* ---------------------------------------------------------------- tar */

static uint64_t padded(uint64_t size)
{
    return (size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
}

static void fill_head(char head[TAR_BLOCK], const char *name, uint64_t size)
{
    unsigned sum = 0;
    memset(head, 0, TAR_BLOCK);
    snprintf(head, ARCHIVE_NAME_MAX, "%s", name);
    strcpy(head + 100, "0000644"); /* mode, owner, group */
    strcpy(head + 108, "0000000");
    strcpy(head + 116, "0000000");
    snprintf(head + 124, 12, "%011llo", (unsigned long long)size);
    strcpy(head + 136, "00000000000"); /* no time: the same checkpoint is the same archive */
    memset(head + 148, ' ', 8);        /* the sum counts its own field as blanks */
    head[156] = '0';
    memcpy(head + 257, "ustar\00000", 8);
    for (int i = 0; i < TAR_BLOCK; i++)
        sum += (unsigned char)head[i];
    snprintf(head + 148, 8, "%06o", sum & 0777777u);
}

struct archive *archive_create(bool gzip, struct err *e)
{
    struct archive *a = calloc(1, sizeof *a);
    if (a)
        a->gzip = gzip;
    else
        err_set(e, ERR_RETRY, "out of memory");
    return a;
}

void archive_free(struct archive *a)
{
    if (!a) return;
    for (int i = 0; i < a->count; i++)
        if (a->entries[i].fd >= 0) close(a->entries[i].fd);
    free(a);
}

int archive_add(struct archive *a, const char *name, int take_fd, int64_t size, struct err *e)
{
    if (a->count == ARCHIVE_FILES_MAX || strlen(name) >= ARCHIVE_NAME_MAX || size >= 1LL << 33) {
        if (take_fd >= 0) close(take_fd);
        return err_set(e, ERR_BUG, "\"%.80s\" of %lld bytes does not fit the archive", name,
                       (long long)size);
    }
    struct entry *entry = &a->entries[a->count++];
    entry->fd = take_fd;
    entry->size = (uint64_t)size;
    fill_head(entry->head, name, entry->size);
    a->tar_size += TAR_BLOCK + padded(entry->size);
    return 0;
}

/* At most max bytes of one entry from at, which counts from the entry's head. */
static long read_entry(const struct entry *entry, uint64_t at, char *out, size_t max)
{
    uint64_t end = TAR_BLOCK + entry->size, whole = TAR_BLOCK + padded(entry->size);
    uint64_t stop = at < TAR_BLOCK ? TAR_BLOCK : at < end ? end : whole;
    size_t n = stop - at < max ? (size_t)(stop - at) : max;
    if (at < TAR_BLOCK) {
        memcpy(out, entry->head + at, n);
        return (long)n;
    }
    if (at < end) {
        ssize_t got = pread(entry->fd, out, n, (off_t)(at - TAR_BLOCK));
        return got > 0 ? (long)got : -1;
    }
    memset(out, 0, n);
    return (long)n;
}

static long tar_read(struct archive *a, char *out, size_t max)
{
    uint64_t at = a->tar_at;
    long n = -1;
    int i = 0;
    for (; i < a->count; i++) {
        uint64_t whole = TAR_BLOCK + padded(a->entries[i].size);
        if (at < whole) break;
        at -= whole;
    }
    if (i < a->count) {
        n = read_entry(&a->entries[i], at, out, max);
    } else {
        uint64_t left = END_BLOCKS * TAR_BLOCK - at;
        n = (long)(left < max ? left : max);
        memset(out, 0, (size_t)n);
    }
    if (n > 0) a->tar_at += (uint64_t)n;
    return n;
}

/* ---------------------------------------------------------------- gzip */

/* CRC-32 of RFC 1952, a nibble at a time. */
static uint32_t crc_add(uint32_t crc, const char *bytes, size_t size)
{
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac,
                                       0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
                                       0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= (unsigned char)bytes[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static void put_le(char *out, uint32_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        out[i] = (char)(value >> 8 * i);
}

static void frame_add(struct archive *a, const char *bytes, size_t size)
{
    memcpy(a->frame + a->frame_size, bytes, size);
    a->frame_size += size;
}

static void open_block(struct archive *a)
{
    uint64_t left = a->tar_size - a->tar_at;
    char head[STORED_HEAD];
    a->block_left = left < STORED_MAX ? left : STORED_MAX;
    head[0] = a->block_left == left; /* the last block; type 00: stored */
    put_le(head + 1, (uint32_t)a->block_left, 2);
    put_le(head + 3, ~(uint32_t)a->block_left, 2);
    frame_add(a, head, sizeof head);
}

static void begin_gzip(struct archive *a)
{
    static const char head[GZIP_HEAD] = {0x1f, (char)0x8b, 8, 0, 0, 0, 0, 0, 0, (char)0xff};
    a->frame_size = a->frame_at = 0;
    frame_add(a, head, sizeof head);
    open_block(a);
}

static void next_frame(struct archive *a)
{
    char tail[GZIP_TAIL];
    a->frame_size = a->frame_at = 0;
    if (a->tar_at < a->tar_size) {
        open_block(a);
        return;
    }
    put_le(tail, a->crc, 4);
    put_le(tail + 4, (uint32_t)a->tar_size, 4);
    frame_add(a, tail, sizeof tail);
}

uint64_t archive_size(struct archive *a)
{
    if (a->out_size) return a->out_size;
    a->tar_size += END_BLOCKS * TAR_BLOCK;
    a->out_size = a->tar_size;
    if (a->gzip) {
        uint64_t blocks = (a->tar_size + STORED_MAX - 1) / STORED_MAX;
        a->out_size += GZIP_HEAD + blocks * STORED_HEAD + GZIP_TAIL;
        begin_gzip(a);
    }
    return a->out_size;
}

static long gzip_read(struct archive *a, char *out, size_t max)
{
    if (a->frame_at == a->frame_size && !a->block_left) next_frame(a);
    if (a->frame_at < a->frame_size) {
        size_t n = a->frame_size - a->frame_at < max ? a->frame_size - a->frame_at : max;
        memcpy(out, a->frame + a->frame_at, n);
        a->frame_at += n;
        return (long)n;
    }
    long n = tar_read(a, out, a->block_left < max ? (size_t)a->block_left : max);
    if (n <= 0) return -1;
    a->crc = crc_add(a->crc, out, (size_t)n);
    a->block_left -= (uint64_t)n;
    return n;
}

long archive_read(struct archive *a, char *out, size_t max)
{
    size_t done = 0;
    uint64_t size = archive_size(a);
    while (done < max && a->out_at < size) {
        long n = a->gzip ? gzip_read(a, out + done, max - done)
                         : tar_read(a, out + done, max - done);
        if (n <= 0) return -1;
        done += (size_t)n;
        a->out_at += (uint64_t)n;
    }
    return (long)done;
}
