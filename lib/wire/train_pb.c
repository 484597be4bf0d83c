/* train_pb.c - a train request from protobuf: tinker's ForwardBackwardRequest.
 *
 * Arrays are raw little-endian bytes at any alignment, so they are copied, never cast. */
#include <stdlib.h>
#include <string.h>
#include "pb.h"
#include "tinker.pb-c.h"
#include "train.h"

#define TOKENS_DEPTH 3 /* from a datum: chunk, encoded_text, tokens */

typedef TinkerPublic__ForwardBackwardRequest request_pb;
typedef TinkerPublic__Datum datum_pb;
typedef TinkerPublic__Tensor tensor_pb;
typedef TinkerPublic__Chunk chunk_pb;

/* ---------------------------------------------------------------- tokens */

static const char *chunk_name(const chunk_pb *c)
{
    switch (c->chunk_case) {
    case TINKER_PUBLIC__CHUNK__CHUNK_IMAGE:
        return "an image";
    case TINKER_PUBLIC__CHUNK__CHUNK_DMEL:
        return "audio";
    default:
        return "empty";
    }
}

static int count_tokens(const datum_pb *m, size_t *n, struct err *e)
{
    *n = 0;
    for (size_t i = 0; i < m->n_model_input; i++) {
        const chunk_pb *c = m->model_input[i];
        if (c->chunk_case != TINKER_PUBLIC__CHUNK__CHUNK_ENCODED_TEXT)
            return err_set(e, ERR_USER, "model_input chunk %zu is %s, expected encoded_text", i,
                           chunk_name(c));
        if (c->encoded_text->tokens.len % sizeof(int32_t))
            return err_set(e, ERR_USER,
                           "model_input chunk %zu has %zu bytes, expected int32 tokens", i,
                           c->encoded_text->tokens.len);
        *n += c->encoded_text->tokens.len / sizeof(int32_t);
    }
    return 0;
}

static void copy_tokens(const datum_pb *m, int32_t *out)
{
    for (size_t i = 0; i < m->n_model_input; i++) {
        const ProtobufCBinaryData *b = &m->model_input[i]->encoded_text->tokens;
        if (b->len) memcpy(out, b->data, b->len);
        out += b->len / sizeof *out;
    }
}

/* ---------------------------------------------------------------- tensors */

/* Bytes of one value, 0 for a type that no request has. */
static size_t item_size(TinkerPublic__DType dtype)
{
    switch (dtype) {
    case TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32:
    case TINKER_PUBLIC__DTYPE__DTYPE_INT32:
        return 4;
    case TINKER_PUBLIC__DTYPE__DTYPE_INT64:
        return 8;
    default:
        return 0;
    }
}

/* The values' bytes, of either encoding. */
static ProtobufCBinaryData values_of(const tensor_pb *t)
{
    if (t->encoding_case == TINKER_PUBLIC__TENSOR__ENCODING_SPARSE_CSR)
        return t->sparse_csr->values;
    if (t->encoding_case == TINKER_PUBLIC__TENSOR__ENCODING_DENSE) return t->dense;
    return (ProtobufCBinaryData){0};
}

static int64_t int_at(const uint8_t *data, bool is_wide, size_t i)
{
    int64_t wide;
    int32_t narrow;
    if (is_wide) {
        memcpy(&wide, data + i * sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, data + i * sizeof narrow, sizeof narrow);
    return narrow;
}

static int form_of(const tensor_pb *t, struct tensor_form *f, struct err *e)
{
    bool real = t->dtype == TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32;
    size_t item = item_size(t->dtype), bytes = values_of(t).len;
    if (!item || (f->which == INPUT_TARGETS && real))
        return err_set(e, ERR_USER, "%s has dtype %d, expected %s", f->name, (int)t->dtype,
                       f->which == INPUT_TARGETS ? "int64" : "float32");
    if (bytes % item)
        return err_set(e, ERR_USER, "%s has %zu bytes, expected a multiple of %zu", f->name, bytes,
                       item);
    f->shape = t->shape;
    f->dims = t->n_shape;
    f->values = bytes / item;
    f->sparse = t->encoding_case == TINKER_PUBLIC__TENSOR__ENCODING_SPARSE_CSR;
    if (!f->sparse) return 0;
    size_t rows = t->sparse_csr->crow_indices.len, cols = t->sparse_csr->col_indices.len;
    if (rows % sizeof(int64_t) || cols % sizeof(int64_t))
        return err_set(e, ERR_USER, "%s has %zu and %zu bytes of indices, expected int64", f->name,
                       rows, cols);
    f->row_ends = rows / sizeof(int64_t);
    f->cols = cols / sizeof(int64_t);
    return 0;
}

/* The cell of each value of a sparse tensor whose form was accepted; the caller frees it. */
static int64_t *cells_of(const tensor_pb *t, const struct tensor_form *f, struct err *e)
{
    const TinkerPublic__SparseCsr *csr = t->sparse_csr;
    int64_t *rows = malloc(csr->crow_indices.len), *cols = malloc(csr->col_indices.len + 1);
    bool good = false;
    if (!rows || !cols) {
        err_set(e, ERR_RETRY, "out of memory for %zu indices", f->cols);
        goto out;
    }
    memcpy(rows, csr->crow_indices.data, csr->crow_indices.len);
    if (f->cols) memcpy(cols, csr->col_indices.data, csr->col_indices.len);
    good = train_csr_cells(f, rows, cols, e) == 0;
out:
    free(rows);
    if (good) return cols;
    free(cols);
    return NULL;
}

static void copy_values(const tensor_pb *t, const struct tensor_form *f, const int64_t *cells,
                        void *out)
{
    const uint8_t *data = values_of(t).data;
    bool real = t->dtype == TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32;
    bool wide = t->dtype == TINKER_PUBLIC__DTYPE__DTYPE_INT64;
    for (size_t i = 0; i < f->values; i++) {
        size_t at = cells ? (size_t)cells[i] : i;
        if (real)
            memcpy((float *)out + at, data + i * sizeof(float), sizeof(float));
        else if (f->which == INPUT_TARGETS)
            ((int64_t *)out)[at] = int_at(data, wide, i);
        else
            ((float *)out)[at] = (float)int_at(data, wide, i);
    }
}

static int copy_tensor(struct train_request *r, struct train_datum *d, const char *name,
                       const tensor_pb *t, struct err *e)
{
    struct tensor_form f = {.name = name, .which = train_input_of(name)};
    int64_t *cells = NULL;
    size_t count;
    if (f.which == INPUT_IGNORED) return 0;
    if (!t) return err_set(e, ERR_USER, "%s is empty, expected shape [%d]", name, d->n);
    if (form_of(t, &f, e) < 0) return -1;
    void *values = train_tensor_make(r, d, &f, &count, e);
    if (!values) return -1;
    if (f.sparse) {
        cells = cells_of(t, &f, e);
        if (!cells) return -1;
    }
    copy_values(t, &f, cells, values);
    free(cells);
    return f.which == INPUT_TARGETS ? 0 : train_check_finite(name, values, count, e);
}

/* ---------------------------------------------------------------- request */

static int decode_datum(struct train_request *r, struct train_datum *d, const datum_pb *m,
                        struct err *e)
{
    size_t n;
    if (count_tokens(m, &n, e) < 0 || train_set_length(r, d, n, e) < 0) return -1;
    copy_tokens(m, d->tokens);
    for (size_t i = 0; i < m->n_loss_fn_inputs; i++)
        if (copy_tensor(r, d, m->loss_fn_inputs[i]->key, m->loss_fn_inputs[i]->value, e) < 0)
            return -1;
    return train_check_datum(d, e);
}

/* v2 holds every entry; the older map only the numeric ones. */
static int decode_config(struct train_request *r, const request_pb *m, struct err *e)
{
    for (size_t i = 0; i < m->n_loss_fn_config_v2; i++) {
        const TinkerPublic__LossConfigValue *v = m->loss_fn_config_v2[i]->value;
        bool text = v && v->value_case == TINKER_PUBLIC__LOSS_CONFIG_VALUE__VALUE_TEXT;
        bool number = v && v->value_case == TINKER_PUBLIC__LOSS_CONFIG_VALUE__VALUE_NUMBER;
        if (train_add_setting(r, m->loss_fn_config_v2[i]->key, text, number ? v->number : 0, e) < 0)
            return -1;
    }
    for (size_t i = 0; !m->n_loss_fn_config_v2 && i < m->n_loss_fn_config; i++)
        if (train_add_setting(r, m->loss_fn_config[i]->key, false, m->loss_fn_config[i]->value,
                              e) < 0)
            return -1;
    return 0;
}

static int decode_content(struct train_request *r, const request_pb *m, struct err *e)
{
    if (train_set_loss(r, m->loss_fn, e) < 0 || decode_config(r, m, e) < 0 ||
        train_set_count(r, m->n_data, e) < 0)
        return -1;
    for (int i = 0; i < r->count; i++)
        if (decode_datum(r, &r->datums[i], m->data[i], e) < 0) return err_prefix(e, "datum %d", i);
    return 0;
}

int train_decode_pb(struct train_request *r, const void *bytes, size_t size, bool *malformed,
                    struct err *e)
{
    struct pb_heap heap;
    int result = -1;
    pb_heap_init(&heap);
    const request_pb *m = NULL;
    if (train_peek_pb(r, bytes, size, e) == 0)
        m = pb_unpack(&heap, &tinker_public__forward_backward_request__descriptor, bytes, size, e);
    *malformed = !m;
    r->tokens = 0; /* counted anew, datum by datum */
    if (m) result = decode_content(r, m, e);
    pb_heap_clear(&heap);
    return result;
}

/* ---------------------------------------------------------------- peek */

/* Of wrong types, or a part that can only be there once and is there twice: protobuf-c would take a
 * scalar of any type and the last part, and admission and worker must read the same request. */
static int add_sizes(const uint8_t *at, const uint8_t *end, const uint32_t *path, int depth,
                     int64_t *total)
{
    struct pb_field f;
    int more, seen = 0;
    while ((more = pb_next(&at, end, &f)) > 0) {
        if (f.number != path[0]) continue;
        if (f.type != 2 || (seen++ && depth < TOKENS_DEPTH)) return -1;
        if (depth == 1)
            *total += (int64_t)f.size;
        else if (add_sizes(f.data, f.data + f.size, path + 1, depth - 1, total) < 0)
            return -1;
    }
    return more;
}

int train_peek_pb(struct train_request *r, const void *bytes, size_t size, struct err *e)
{
    static const uint32_t tokens_in_datum[TOKENS_DEPTH] = {1, 1, 1};
    static const int types[] = {-1, 2, 0, 2, 2, 2, 0, 2}; /* of the fields of the request */
    const uint8_t *at = bytes, *end = at + size;
    char run[ID_SIZE] = "";
    int64_t token_bytes = 0, seq = 0;
    struct pb_field f;
    int more;
    while ((more = pb_next(&at, end, &f)) > 0) {
        if (f.number < sizeof types / sizeof *types && f.type != types[f.number]) {
            more = -1;
            break;
        }
        if (f.number == 1) {
            if (f.size >= sizeof run)
                return err_set(e, ERR_USER, "model_id has %zu bytes, expected the id of a run",
                               f.size);
            memcpy(run, f.data, f.size);
            run[f.size] = '\0';
        } else if (f.number == 2) {
            seq = (int32_t)(uint32_t)f.value;
        } else if (f.number == 6) {
            r->forward_only = f.value != 0;
        } else if (f.number == 3) {
            more = add_sizes(f.data, f.data + f.size, tokens_in_datum, TOKENS_DEPTH, &token_bytes);
            if (more < 0) break;
        }
    }
    if (more < 0)
        return err_set(e, ERR_USER, "not a ForwardBackwardRequest message (%zu bytes)", size);
    r->tokens = token_bytes / (int64_t)sizeof(int32_t);
    return train_set_run(r, run, seq, e);
}
