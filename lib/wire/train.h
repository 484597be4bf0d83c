/* train.h - what the two decoders of a train request share.  Inside this room only. */
#ifndef WIRE_TRAIN_H
#define WIRE_TRAIN_H

#include "wire/payload.h"

enum input {
    INPUT_TARGETS,
    INPUT_WEIGHTS,
    INPUT_LOGPROBS,
    INPUT_ADVANTAGES,
    INPUT_CLIP_LOW,
    INPUT_CLIP_HIGH,
    INPUT_SEQUENCE_RATIO_MASK,
    INPUT_IGNORED
};

/* Which array of a datum the name stands for; names that we do not know are ignored. */
enum input train_input_of(const char *name);

/* Makes room for count datums; an empty list or too many is an error. */
int train_set_count(struct train_request *r, size_t count, struct err *e) WARN_UNUSED;

/* Room for n tokens of the next datum, inside the bounds of a datum and of the request. */
int train_set_length(struct train_request *r, struct train_datum *d, size_t n,
                     struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- tensors (train_tensor.c) */

/* A tensor's form as it was sent, before any of its values is read. */
struct tensor_form {
    const char *name;
    enum input which;
    const int64_t *shape;
    size_t dims;           /* 0: no shape was sent, which means one dimension */
    size_t values;
    bool sparse;           /* CSR: values of the listed cells only */
    size_t row_ends, cols; /* how many row pointers and column indices */
};

/* Checks the form against the datum and the bounds of the request, and puts a new array in the
 * datum: zeroed, *count values, int64_t for targets and float for all else.  NULL on failure. */
void *train_tensor_make(struct train_request *r, struct train_datum *d, const struct tensor_form *f,
                        size_t *count, struct err *e);

/* Where the values of a sparse tensor go: checks row_ends [rows + 1] and cols [nnz] of a form that
 * was accepted, and turns each column index into the index of its cell in the dense array.  Row
 * pointers rise from 0 to nnz; columns are in range and rise within a row. */
int train_csr_cells(const struct tensor_form *f, const int64_t *row_ends, int64_t *cols,
                    struct err *e) WARN_UNUSED;

/* What can only be said of all tensors of a datum together. */
int train_check_datum(const struct train_datum *d, struct err *e) WARN_UNUSED;
int train_check_finite(const char *name, const float *values, size_t n, struct err *e) WARN_UNUSED;

/* ---------------------------------------------------------------- the request */

/* One entry of loss_fn_config; text true: the value is a text. */
int train_add_setting(struct train_request *r, const char *key, bool text, double number,
                      struct err *e) WARN_UNUSED;
int train_set_loss(struct train_request *r, const char *loss, struct err *e) WARN_UNUSED;
int train_set_run(struct train_request *r, const char *run, int64_t seq, struct err *e) WARN_UNUSED;

/* Fill r; *malformed as in payload.h. */
int train_decode_pb(struct train_request *r, const void *bytes, size_t size, bool *malformed,
                    struct err *e) WARN_UNUSED;
int train_peek_pb(struct train_request *r, const void *bytes, size_t size,
                  struct err *e) WARN_UNUSED;
int train_decode_json(struct train_request *r, const void *bytes, size_t size, bool *malformed,
                      struct err *e) WARN_UNUSED;
int train_peek_json(struct train_request *r, const void *bytes, size_t size,
                    struct err *e) WARN_UNUSED;

#endif
