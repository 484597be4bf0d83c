/* train_json.c - a train request from JSON, as hpcai and older clients send it. */
#include <stdlib.h>
#include <string.h>
#include "chunks.h"
#include "train.h"
#include "wire/json.h"

#define SHAPE_MAX 8
#define ROWS      "sparse_crow_indices"
#define COLS      "sparse_col_indices"

static int read_shape(const char *name, const json_t *tensor, int64_t *shape, size_t *dims,
                      struct err *e)
{
    const json_t *list = json_object_get(tensor, "shape");
    *dims = 0;
    if (!list || json_is_null(list)) return 0;
    if (!json_is_array(list) || json_array_size(list) > SHAPE_MAX)
        return err_set(e, ERR_USER, "%s: shape is %s, expected a short list", name,
                       wire_json_type(list));
    for (; *dims < json_array_size(list); (*dims)++) {
        const json_t *item = json_array_get(list, *dims);
        if (!json_is_integer(item))
            return err_set(e, ERR_USER, "%s: shape holds %s, expected whole numbers", name,
                           wire_json_type(item));
        shape[*dims] = json_integer_value(item);
    }
    return 0;
}

/* The length of a list that may be absent; -1 for anything else. */
static int list_size(const char *name, const json_t *tensor, const char *key, bool *there,
                     size_t *size, struct err *e)
{
    const json_t *list = json_object_get(tensor, key);
    *there = list && !json_is_null(list);
    *size = json_array_size(list);
    if (*there && !json_is_array(list))
        return err_set(e, ERR_USER, "%s: %s is %s, expected a list", name, key,
                       wire_json_type(list));
    return 0;
}

static int form_of(const json_t *tensor, int64_t *shape, struct tensor_form *f, struct err *e)
{
    const json_t *data = json_object_get(tensor, "data");
    const char *dtype = json_string_value(json_object_get(tensor, "dtype"));
    bool rows, cols;
    if (!json_is_array(data))
        return err_set(e, ERR_USER, "%s: data is %s, expected a list", f->name,
                       wire_json_type(data));
    if (dtype && strcmp(dtype, "int64") && (strcmp(dtype, "float32") || f->which == INPUT_TARGETS))
        return err_set(e, ERR_USER, "%s: dtype is \"%.40s\", expected %s", f->name, dtype,
                       f->which == INPUT_TARGETS ? "int64" : "int64 or float32");
    if (read_shape(f->name, tensor, shape, &f->dims, e) < 0) return -1;
    if (list_size(f->name, tensor, ROWS, &rows, &f->row_ends, e) < 0) return -1;
    if (list_size(f->name, tensor, COLS, &cols, &f->cols, e) < 0) return -1;
    if (rows != cols)
        return err_set(e, ERR_USER, "%s has only one of " ROWS " and " COLS ", expected both",
                       f->name);
    f->shape = shape;
    f->values = json_array_size(data);
    f->sparse = rows;
    return 0;
}

/* A list of whole numbers; the caller frees it. */
static int64_t *read_indices(const char *name, const json_t *tensor, const char *key, struct err *e)
{
    const json_t *list = json_object_get(tensor, key), *item;
    int64_t *out = malloc((json_array_size(list) + 1) * sizeof *out);
    size_t i;
    if (!out) {
        err_set(e, ERR_RETRY, "out of memory for %zu indices", json_array_size(list));
        return NULL;
    }
    json_array_foreach(list, i, item)
    {
        out[i] = json_integer_value(item);
        if (json_is_integer(item)) continue;
        err_set(e, ERR_USER, "%s: %s[%zu] is %s, expected a whole number", name, key, i,
                wire_json_type(item));
        free(out);
        return NULL;
    }
    return out;
}

/* The cell of each value of a sparse tensor whose form was accepted; the caller frees it. */
static int64_t *cells_of(const json_t *tensor, const struct tensor_form *f, struct err *e)
{
    int64_t *rows = read_indices(f->name, tensor, ROWS, e);
    int64_t *cols = rows ? read_indices(f->name, tensor, COLS, e) : NULL;
    bool good = cols && train_csr_cells(f, rows, cols, e) == 0;
    free(rows);
    if (good) return cols;
    free(cols);
    return NULL;
}

static int copy_values(const json_t *tensor, const struct tensor_form *f, const int64_t *cells,
                       void *out, struct err *e)
{
    const json_t *item;
    bool whole = f->which == INPUT_TARGETS;
    size_t i;
    json_array_foreach(json_object_get(tensor, "data"), i, item)
    {
        size_t at = cells ? (size_t)cells[i] : i;
        if (whole ? !json_is_integer(item) : !json_is_number(item))
            return err_set(e, ERR_USER, "%s[%zu] is %s, expected %s", f->name, i,
                           wire_json_type(item), whole ? "a whole number" : "a number");
        if (whole)
            ((int64_t *)out)[at] = json_integer_value(item);
        else
            ((float *)out)[at] = (float)json_number_value(item);
    }
    return 0;
}

static int copy_tensor(struct train_request *r, struct train_datum *d, const char *name,
                       const json_t *tensor, struct err *e)
{
    struct tensor_form f = {.name = name, .which = train_input_of(name)};
    int64_t shape[SHAPE_MAX], *cells = NULL;
    size_t count;
    if (f.which == INPUT_IGNORED) return 0;
    if (form_of(tensor, shape, &f, e) < 0) return -1;
    void *values = train_tensor_make(r, d, &f, &count, e);
    if (!values) return -1;
    if (f.sparse) {
        cells = cells_of(tensor, &f, e);
        if (!cells) return -1;
    }
    int bad = copy_values(tensor, &f, cells, values, e);
    free(cells);
    if (bad < 0) return -1;
    return f.which == INPUT_TARGETS ? 0 : train_check_finite(name, values, count, e);
}

static int decode_datum(struct train_request *r, struct train_datum *d, const json_t *j,
                        struct err *e)
{
    const json_t *input = json_object_get(j, "model_input");
    json_t *inputs = json_object_get(j, "loss_fn_inputs"), *tensor;
    const char *name;
    int64_t n = chunks_count(input, "model_input", e);
    if (n < 0 || train_set_length(r, d, (size_t)n, e) < 0) return -1;
    if (chunks_copy(input, "model_input", d->tokens, e) < 0) return -1;
    if (!json_is_object(inputs))
        return err_set(e, ERR_USER, "loss_fn_inputs is %s, expected an object",
                       wire_json_type(inputs));
    json_object_foreach(inputs, name, tensor) if (copy_tensor(r, d, name, tensor, e) < 0) return -1;
    return train_check_datum(d, e);
}

static int decode_config(struct train_request *r, json_t *config, struct err *e)
{
    const char *key;
    json_t *value;
    if (!config || json_is_null(config)) return 0;
    if (!json_is_object(config))
        return err_set(e, ERR_USER, "loss_fn_config is %s, expected an object",
                       wire_json_type(config));
    json_object_foreach(config, key, value)
    {
        if (!json_is_number(value) && !json_is_string(value))
            return err_set(e, ERR_USER, "loss_fn_config %.60s is %s, expected a number", key,
                           wire_json_type(value));
        if (train_add_setting(r, key, json_is_string(value), json_number_value(value), e) < 0)
            return -1;
    }
    return 0;
}

static int decode_content(struct train_request *r, const json_t *input, struct err *e)
{
    const json_t *data = json_object_get(input, "data");
    char loss[sizeof r->loss] = "";
    if (wire_json_text(input, "", "loss_fn", true, loss, sizeof loss, e) < 0) return -1;
    if (train_set_loss(r, loss, e) < 0) return -1;
    if (decode_config(r, json_object_get(input, "loss_fn_config"), e) < 0) return -1;
    if (train_set_count(r, json_array_size(data), e) < 0) return -1;
    for (int i = 0; i < r->count; i++)
        if (decode_datum(r, &r->datums[i], json_array_get(data, (size_t)i), e) < 0)
            return err_prefix(e, "datum %d", i);
    return 0;
}

/* What makes it a train request at all: its run, and one input with a list of data. */
static const json_t *read_envelope(struct train_request *r, const json_t *root, struct err *e)
{
    const json_t *both = json_object_get(root, "forward_backward_input");
    const json_t *forward = json_object_get(root, "forward_input");
    const json_t *input = both ? both : forward;
    char run[ID_SIZE] = "";
    json_int_t seq = 0;
    if (!both == !forward || !json_is_object(input) ||
        !json_is_array(json_object_get(input, "data"))) {
        err_set(e, ERR_USER,
                "expected forward_backward_input or forward_input with a list \"data\"");
        return NULL;
    }
    if (wire_json_text(root, "", "model_id", true, run, sizeof run, e) < 0 ||
        wire_json_int(root, "", "seq_id", false, 0, INT32_MAX, &seq, e) < 0 ||
        train_set_run(r, run, seq, e) < 0)
        return NULL;
    r->forward_only = forward != NULL;
    return input;
}

int train_decode_json(struct train_request *r, const void *bytes, size_t size, bool *malformed,
                      struct err *e)
{
    int result = -1;
    json_t *root = wire_json_read(bytes, size, e);
    const json_t *input = root ? read_envelope(r, root, e) : NULL;
    *malformed = !input;
    if (input) result = decode_content(r, input, e);
    json_decref(root);
    return result;
}

int train_peek_json(struct train_request *r, const void *bytes, size_t size, struct err *e)
{
    json_t *root = wire_json_read(bytes, size, e);
    const json_t *input = root ? read_envelope(r, root, e) : NULL, *datum;
    size_t i;
    json_array_foreach(json_object_get(input, "data"), i, datum)
    {
        /* A datum of another form counts nothing here; decoding it will say what is wrong. */
        int64_t n = chunks_count(json_object_get(datum, "model_input"), "", NULL);
        if (n > 0) r->tokens += n;
    }
    json_decref(root);
    return input ? 0 : -1;
}
