/* safetensors.c - see safetensors.h. */
#include "engine/safetensors.h"

#include <endian.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "engine/files.h"
#include "engine/mapping.h"

#define HEADER_DEPTH_MAX 4 /* object, tensor, list; one to spare */
#define HEADER_ALIGN     64
#define PATH_SIZE        4096

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [DTYPE_F32] = {"F32", 4},   [DTYPE_BF16] = {"BF16", 2}, [DTYPE_F16] = {"F16", 2},
    [DTYPE_F64] = {"F64", 8},   [DTYPE_I64] = {"I64", 8},   [DTYPE_I32] = {"I32", 4},
    [DTYPE_I16] = {"I16", 2},   [DTYPE_I8] = {"I8", 1},     [DTYPE_U64] = {"U64", 8},
    [DTYPE_U32] = {"U32", 4},   [DTYPE_U16] = {"U16", 2},   [DTYPE_U8] = {"U8", 1},
    [DTYPE_BOOL] = {"BOOL", 1},
};

struct safetensors {
    const uint8_t *bytes; /* the whole file */
    size_t size, header;  /* of the file; of its header, with the eight bytes before it */
    struct mapping *map;  /* NULL: the bytes are borrowed */
    struct safetensors_tensor *tensors;
    int count;
};

const char *safetensors_dtype_name(enum safetensors_dtype t)
{
    return t < DTYPE_UNKNOWN ? dtypes[t].name : "unknown";
}

size_t safetensors_dtype_size(enum safetensors_dtype t)
{
    return t < DTYPE_UNKNOWN ? dtypes[t].size : 0;
}

static enum safetensors_dtype dtype_of(const char *name)
{
    for (int t = 0; t < DTYPE_UNKNOWN; t++)
        if (!strcmp(name, dtypes[t].name)) return (enum safetensors_dtype)t;
    return DTYPE_UNKNOWN;
}

/* ------------------------------------------------------------------ reading */

static int read_shape(struct safetensors_tensor *t, const json_t *shape, struct err *e)
{
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_RANK_MAX)
        return err_set(e, ERR_USER, "tensor \"%s\" has no shape of at most %d numbers", t->name,
                       SAFETENSORS_RANK_MAX);
    t->rank = (int)json_array_size(shape);
    t->count = 1;
    for (int i = 0; i < t->rank; i++) {
        const json_t *n = json_array_get(shape, (size_t)i);
        if (!json_is_integer(n) || json_integer_value(n) < 0)
            return err_set(e, ERR_USER, "tensor \"%s\" has a shape that is not of whole numbers",
                           t->name);
        t->shape[i] = json_integer_value(n);
        if (__builtin_mul_overflow(t->count, (size_t)t->shape[i], &t->count))
            return err_set(e, ERR_USER, "tensor \"%s\" has a shape whose product overflows",
                           t->name);
    }
    return 0;
}

/* Reads one entry; *next is where its bytes must begin, and is moved past them. */
static int read_entry(struct safetensors_tensor *t, const char *name, const json_t *entry,
                      size_t data_size, size_t *next, struct err *e)
{
    if (!*name || strlen(name) >= sizeof t->name)
        return err_set(e, ERR_USER, "a tensor name has %zu bytes, expected 1 to %zu", strlen(name),
                       sizeof t->name - 1);
    memcpy(t->name, name, strlen(name) + 1);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype) return err_set(e, ERR_USER, "tensor \"%s\" has no dtype", name);
    t->dtype = dtype_of(dtype);
    if (t->dtype == DTYPE_UNKNOWN)
        return err_set(e, ERR_USER, "tensor \"%s\" has unrecognized dtype \"%.32s\"", name, dtype);
    if (read_shape(t, json_object_get(entry, "shape"), e) < 0) return -1;
    if (__builtin_mul_overflow(t->count, dtypes[t->dtype].size, &t->size))
        return err_set(e, ERR_USER, "tensor \"%s\" has a size that overflows", name);

    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to))
        return err_set(e, ERR_USER, "tensor \"%s\" has no data_offsets of two whole numbers", name);
    json_int_t begin = json_integer_value(from), end = json_integer_value(to);
    if (begin < 0 || end < begin || (uint64_t)end > data_size)
        return err_set(e, ERR_USER, "tensor \"%s\" has offsets %lld to %lld, expected 0 to %zu",
                       name, (long long)begin, (long long)end, data_size);
    if ((uint64_t)begin != *next)
        return err_set(e, ERR_USER,
                       "tensor \"%s\" begins at %lld, expected %zu (no hole, no overlap)", name,
                       (long long)begin, *next);
    if ((uint64_t)(end - begin) != t->size)
        return err_set(e, ERR_USER,
                       "tensor \"%s\" has %lld bytes, expected %zu for its shape and %s", name,
                       (long long)(end - begin), t->size, dtypes[t->dtype].name);
    *next = (size_t)end;
    return 0;
}

/* The file's first eight bytes: how long its header is. */
static int read_header_size(struct safetensors *st, const uint8_t *first, struct err *e)
{
    uint64_t header;
    memcpy(&header, first, sizeof header);
    header = le64toh(header);
    if (header > SAFETENSORS_HEADER_MAX || header > st->size - sizeof header)
        return err_set(e, ERR_USER,
                       "its header claims %llu bytes, expected at most %zu of a file of %zu",
                       (unsigned long long)header, SAFETENSORS_HEADER_MAX, st->size);
    st->header = sizeof header + (size_t)header;
    return 0;
}

static int read_entries(struct safetensors *st, const json_t *root, struct err *e)
{
    size_t data_size = st->size - st->header, next = 0;
    if (json_object_size(root) > SAFETENSORS_COUNT_MAX)
        return err_set(e, ERR_USER, "it has %zu tensors, expected at most %d",
                       json_object_size(root), SAFETENSORS_COUNT_MAX);
    st->tensors = calloc(json_object_size(root) + 1, sizeof *st->tensors);
    if (!st->tensors) return err_set(e, ERR_RETRY, "out of memory");
    const char *name;
    json_t *entry;
    json_object_foreach((json_t *)root, name, entry)
    {
        if (!strcmp(name, "__metadata__")) continue;
        if (read_entry(&st->tensors[st->count], name, entry, data_size, &next, e) < 0) return -1;
        st->count++;
    }
    if (next != data_size)
        return err_set(e, ERR_USER, "its tensors end at byte %zu of %zu", next, data_size);
    return 0;
}

static int read_header(struct safetensors *st, const char *text, struct err *e)
{
    json_t *root =
        file_json(text, st->header - sizeof(uint64_t), HEADER_DEPTH_MAX, "its header", e);
    if (!root) return -1;
    int rc = read_entries(st, root, e);
    json_decref(root);
    return rc;
}

/* Tensors follow each other without a hole, so their sizes say where they are. */
static void place(struct safetensors *st, const uint8_t *bytes)
{
    const uint8_t *at = bytes + st->header;
    st->bytes = bytes;
    for (int i = 0; i < st->count; i++) {
        st->tensors[i].data = at;
        at += st->tensors[i].size;
    }
}

static int parse(struct safetensors *st, const uint8_t *bytes, struct err *e)
{
    if (st->size < sizeof(uint64_t))
        return err_set(e, ERR_USER, "it has %zu bytes, no header", st->size);
    if (read_header_size(st, bytes, e) < 0 ||
        read_header(st, (const char *)bytes + sizeof(uint64_t), e) < 0)
        return -1;
    place(st, bytes);
    return 0;
}

struct safetensors *safetensors_parse(const void *bytes, size_t size, const char *what,
                                      struct err *e)
{
    struct safetensors *st = calloc(1, sizeof *st);
    if (!st) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    st->size = size;
    if (parse(st, bytes, e) == 0) return st;
    err_prefix(e, "\"%s\" is no good safetensors file", what);
    safetensors_close(st);
    return NULL;
}

/* Only when all that the header says is right does the file get mapped. */
static int read_file(struct safetensors *st, struct err *e)
{
    uint8_t first[sizeof(uint64_t)];
    st->size = mapping_size(st->map);
    if (st->size < sizeof first)
        return err_set(e, ERR_USER, "it has %zu bytes, no header", st->size);
    if (mapping_read(st->map, first, 0, sizeof first, e) < 0 || read_header_size(st, first, e) < 0)
        return -1;
    size_t size = st->header - sizeof first;
    char *text = malloc(size + 1);
    if (!text) return err_set(e, ERR_RETRY, "out of memory for a header of %zu bytes", size);
    int rc = mapping_read(st->map, text, sizeof first, size, e) < 0 || read_header(st, text, e) < 0
                 ? -1
                 : 0;
    free(text);
    const uint8_t *bytes = rc == 0 ? mapping_bytes(st->map, e) : NULL;
    if (!bytes) return -1;
    place(st, bytes);
    return 0;
}

struct safetensors *safetensors_open(const char *path, struct err *e)
{
    struct safetensors *st = calloc(1, sizeof *st);
    if (!st) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    st->map = mapping_open(path, e);
    if (st->map && read_file(st, e) == 0) return st;
    if (st->map && e && e->kind == ERR_USER)
        err_prefix(e, "\"%s\" is no good safetensors file", path);
    safetensors_close(st);
    return NULL;
}

void safetensors_close(struct safetensors *st)
{
    if (!st) return;
    mapping_close(st->map);
    free(st->tensors);
    free(st);
}

void safetensors_done(struct safetensors *st, const void *end)
{
    if (st->map) mapping_done(st->map, (size_t)((const uint8_t *)end - st->bytes));
}

int safetensors_check(const struct safetensors *st, struct err *e)
{
    return st->map ? mapping_check(st->map, e) : 0;
}

int safetensors_count(const struct safetensors *st)
{
    return st->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *st, int index)
{
    return &st->tensors[index];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
    for (int i = 0; i < st->count; i++)
        if (!strcmp(st->tensors[i].name, name)) return &st->tensors[i];
    return NULL;
}

const void *safetensors_bytes(const struct safetensors *st, size_t *size)
{
    *size = st->size;
    return st->bytes;
}

/* ------------------------------------------------------------------ values */

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float float_of_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float f = (float)mantissa * 0x1p-24f; /* subnormal: exact in fp32 */
    return sign ? -f : f;
}

/* Copies by memcpy: data may be unaligned. */
static float value_at(const struct safetensors_tensor *t, size_t i)
{
    const uint8_t *data = t->data;
    uint32_t bits;
    uint16_t half;
    if (t->dtype == DTYPE_F32) {
        memcpy(&bits, data + 4 * i, 4);
        return float_of_bits(le32toh(bits));
    }
    memcpy(&half, data + 2 * i, 2);
    half = le16toh(half);
    return t->dtype == DTYPE_BF16 ? float_of_bits((uint32_t)half << 16) : float_of_half(half);
}

void safetensors_read(const struct safetensors_tensor *t, size_t from, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = value_at(t, from + i);
}

void safetensors_read_bf16(const struct safetensors_tensor *t, size_t from, size_t count,
                           uint16_t *out)
{
    for (size_t i = 0; i < count; i++) {
        float f = value_at(t, from + i);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        out[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
    }
}

/* How many of count values have an absolute value whose bits reach `limit`. */
static size_t beyond32(const uint8_t *data, size_t count, uint32_t limit)
{
    size_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * i, 4);
        bad += (le32toh(bits) & 0x7fffffffu) >= limit;
    }
    return bad;
}

static size_t beyond16(const uint8_t *data, size_t count, uint16_t limit)
{
    size_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * i, 2);
        bad += (le16toh(bits) & 0x7fffu) >= limit;
    }
    return bad;
}

static void shape_text(const struct safetensors_tensor *t, char *out, size_t size)
{
    size_t at = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < t->rank && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, i ? ", %lld" : "%lld", (long long)t->shape[i]);
    if (at < size) snprintf(out + at, size - at, "]");
}

int safetensors_check_shape(const struct safetensors_tensor *t, int64_t rows, int64_t cols,
                            struct err *e)
{
    char shape[192];
    shape_text(t, shape, sizeof shape);
    bool same = t->rank == (cols ? 2 : 1) && t->shape[0] == rows && (!cols || t->shape[1] == cols);
    if (!same && cols)
        return err_set(e, ERR_USER, "tensor \"%s\" has shape %s, expected [%lld, %lld]", t->name,
                       shape, (long long)rows, (long long)cols);
    if (!same)
        return err_set(e, ERR_USER, "tensor \"%s\" has shape %s, expected [%lld]", t->name, shape,
                       (long long)rows);
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F16)
        return err_set(e, ERR_USER, "tensor \"%s\" is %s, expected F32, BF16 or F16", t->name,
                       dtypes[t->dtype].name);
    return 0;
}

int safetensors_check_values(const struct safetensors_tensor *t, bool bf16, struct err *e)
{
    size_t bad = t->dtype == DTYPE_F32    ? beyond32(t->data, t->count, 0x7f800000)
                 : t->dtype == DTYPE_BF16 ? beyond16(t->data, t->count, 0x7f80)
                                          : beyond16(t->data, t->count, 0x7c00);
    if (bad)
        return err_set(e, ERR_USER, "tensor \"%s\" has %zu values that are not finite", t->name,
                       bad);
    /* from the middle between bf16's largest and the next power of two on it goes to infinity */
    if (bf16 && t->dtype == DTYPE_F32) bad = beyond32(t->data, t->count, 0x7f7f8000);
    if (bad)
        return err_set(e, ERR_USER, "tensor \"%s\" has %zu values that bf16 cannot hold", t->name,
                       bad);
    return 0;
}

/* ------------------------------------------------------------------ writing */

struct safetensors_writer {
    FILE *file;
    char path[PATH_SIZE], tmp[PATH_SIZE];
    size_t left; /* bytes of tensors still to come */
};

/* {"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},...} padded with blanks so that the
 * tensors begin at a multiple of HEADER_ALIGN.  *data_size: of all tensors. */
static int write_header(struct buf *b, const struct safetensors_tensor *tensors, int count,
                        size_t *data_size, struct err *e)
{
    size_t at = 0;
    if (buf_append(b, "\0\0\0\0\0\0\0\0{", 9, e) < 0) return -1;
    for (int i = 0; i < count; i++) {
        const struct safetensors_tensor *t = &tensors[i];
        size_t size = dtypes[t->dtype].size;
        if (buf_printf(b, e, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t->name,
                       dtypes[t->dtype].name) < 0)
            return -1;
        for (int d = 0; d < t->rank; d++) {
            size *= (size_t)t->shape[d];
            if (buf_printf(b, e, d ? ",%lld" : "%lld", (long long)t->shape[d]) < 0) return -1;
        }
        if (buf_printf(b, e, "],\"data_offsets\":[%zu,%zu]}", at, at + size) < 0) return -1;
        at += size;
    }
    if (buf_append(b, "}", 1, e) < 0) return -1;
    while (b->size % HEADER_ALIGN)
        if (buf_append(b, " ", 1, e) < 0) return -1;
    uint64_t header = htole64(b->size - 8);
    memcpy(b->data, &header, sizeof header);
    *data_size = at;
    return 0;
}

struct safetensors_writer *safetensors_writer_begin(const char *path,
                                                    const struct safetensors_tensor *tensors,
                                                    int count, struct err *e)
{
    struct buf header;
    buf_init(&header, SAFETENSORS_HEADER_MAX);
    struct safetensors_writer *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(e, ERR_RETRY, "out of memory");
        goto fail;
    }
    if (snprintf(w->path, sizeof w->path, "%s", path) >= (int)sizeof w->path ||
        snprintf(w->tmp, sizeof w->tmp, "%s.tmp", path) >= (int)sizeof w->tmp) {
        err_set(e, ERR_USER, "path \"%.80s...\" is too long", path);
        goto fail;
    }
    if (write_header(&header, tensors, count, &w->left, e) < 0) goto fail;
    w->file = fopen(w->tmp, "wbe");
    if (!w->file || fwrite(header.data, 1, header.size, w->file) != header.size) {
        err_set(e, ERR_RETRY, "could not write \"%s\": %s", w->tmp, strerror(errno));
        goto fail;
    }
    buf_clear(&header);
    return w;
fail:
    buf_clear(&header);
    safetensors_writer_abort(w);
    return NULL;
}

int safetensors_writer_put(struct safetensors_writer *w, const void *bytes, size_t size,
                           struct err *e)
{
    if (size > w->left)
        return err_set(e, ERR_BUG, "%zu bytes for \"%s\", expected at most %zu", size, w->path,
                       w->left);
    if (size && fwrite(bytes, 1, size, w->file) != size)
        return err_set(e, ERR_RETRY, "could not write \"%s\": %s", w->tmp, strerror(errno));
    w->left -= size;
    return 0;
}

int safetensors_writer_finish(struct safetensors_writer *w, struct err *e)
{
    int rc = 0;
    if (w->left) {
        rc = err_set(e, ERR_BUG, "%zu bytes of \"%s\" were not given", w->left, w->path);
    } else if (fflush(w->file) != 0 || fsync(fileno(w->file)) < 0) {
        rc = err_set(e, ERR_RETRY, "could not write \"%s\": %s", w->tmp, strerror(errno));
    } else if (rename(w->tmp, w->path) < 0) {
        rc = err_set(e, ERR_RETRY, "could not rename \"%s\": %s", w->tmp, strerror(errno));
    } else {
        fclose(w->file);
        free(w);
        return 0;
    }
    safetensors_writer_abort(w);
    return rc;
}

void safetensors_writer_abort(struct safetensors_writer *w)
{
    if (!w) return;
    if (w->file) {
        fclose(w->file);
        unlink(w->tmp);
    }
    free(w);
}
