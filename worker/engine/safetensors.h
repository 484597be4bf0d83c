/* safetensors.h - inside the engine: reads and writes the safetensors file format.
 *
 * A file is: 8 bytes little-endian header length, the header (a JSON object: tensor name to dtype,
 * shape and data_offsets; an optional "__metadata__" of strings), then the tensors' bytes.  (Format
 * description: huggingface/safetensors, README, "Format".)
 *
 * The reader believes nothing: header at most SAFETENSORS_HEADER_MAX bytes, at most
 * SAFETENSORS_COUNT_MAX tensors, names unique, and offsets that begin at 0, follow each other in
 * the order of the header without hole or overlap and end at the file's last byte, each extent
 * equal to the product of its shape times the size of its dtype.  What is refused is ERR_USER, and
 * is refused before the file is mapped or anything larger than its header is allocated. */
#ifndef ENGINE_SAFETENSORS_H
#define ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define SAFETENSORS_HEADER_MAX ((size_t)8 << 20)
#define SAFETENSORS_COUNT_MAX  16384
#define SAFETENSORS_RANK_MAX   8
#define SAFETENSORS_NAME_MAX   256 /* with its NUL */

enum safetensors_dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F64,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U64,
    DTYPE_U32,
    DTYPE_U16,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPE_UNKNOWN,
};

const char *safetensors_dtype_name(enum safetensors_dtype t);
size_t safetensors_dtype_size(enum safetensors_dtype t);

struct safetensors_tensor {
    char name[SAFETENSORS_NAME_MAX];
    enum safetensors_dtype dtype;
    int rank;
    int64_t shape[SAFETENSORS_RANK_MAX];
    const void *data; /* size bytes, perhaps unaligned; lives as long as the file is open */
    size_t size, count;
};

/* ------------------------------------------------------------------ reading */

struct safetensors;

/* Reads the header, then maps the file (mapping.h says what happens when it shrinks).  NULL on
 * failure. */
struct safetensors *safetensors_open(const char *path, struct err *e);
/* The same over bytes in memory, which are borrowed; what names them in errors. */
struct safetensors *safetensors_parse(const void *bytes, size_t size, const char *what,
                                      struct err *e);
void safetensors_close(struct safetensors *st); /* NULL is fine */

int safetensors_count(const struct safetensors *st);
const struct safetensors_tensor *safetensors_at(const struct safetensors *st, int index);
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);

/* All bytes of the file, header included, for hashing. */
const void *safetensors_bytes(const struct safetensors *st, size_t *size);

/* The bytes before end, as a pointer into a tensor's data, will not be read again. */
void safetensors_done(struct safetensors *st, const void *end);
/* After the last read: -1 with ERR_RETRY when the file changed under us. */
int safetensors_check(const struct safetensors *st, struct err *e) WARN_UNUSED;

/* The next two name the tensor, what it is and what was expected (ERR_USER). */

/* Is t [rows, cols] (cols 0: [rows]) of F32, BF16 or F16? */
int safetensors_check_shape(const struct safetensors_tensor *t, int64_t rows, int64_t cols,
                            struct err *e) WARN_UNUSED;
/* Are all its values finite, also once they are rounded to bf16 (where bf16)? */
int safetensors_check_values(const struct safetensors_tensor *t, bool bf16,
                             struct err *e) WARN_UNUSED;
/* Values from .. from + count of a tensor that passed both: widened, or rounded to the nearest bf16
 * (ties to even). */
void safetensors_read(const struct safetensors_tensor *t, size_t from, size_t count, float *out);
void safetensors_read_bf16(const struct safetensors_tensor *t, size_t from, size_t count,
                           uint16_t *out);

/* ------------------------------------------------------------------ writing */

/* path.tmp is written, synced and renamed to path by finish().  begin() fixes names, dtypes and
 * shapes (data and size are not looked at); put() then takes the bytes in that order, in pieces of
 * any size. */
struct safetensors_writer;
struct safetensors_writer *safetensors_writer_begin(const char *path,
                                                    const struct safetensors_tensor *tensors,
                                                    int count, struct err *e);
int safetensors_writer_put(struct safetensors_writer *w, const void *bytes, size_t size,
                           struct err *e) WARN_UNUSED;
/* -1 when bytes are missing or the disk refused; frees w in any case, and the file unless it is
 * whole. */
int safetensors_writer_finish(struct safetensors_writer *w, struct err *e) WARN_UNUSED;
void safetensors_writer_abort(struct safetensors_writer *w); /* NULL is fine */

#endif
