/* test_wire_tensor.c - targets and weights of shape [N, K], dense and sparse, in both encodings;
 * and results of that shape. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include "wire/payload.h"
#include "pb_write.h"

enum { FLOAT32 = 1, INT64 = 2, INT32 = 3 };

/* A tensor as both encodings can say it.  cols NULL: dense. */
struct tensor {
    const char *name;
    const double *data;
    int values;
    int shape[3], dims;
    const int64_t *rows, *cols;
    int row_ends, col_count;
};

#define DENSE NULL, NULL, 0, 0

/* The datum has three positions. */
static const double targets_2d[] = {5, 6, 0, 7, 8, 9}, weights_2d[] = {0.5, 0, -1, 0.25, 0, 2};
static const struct tensor dense_targets = {"target_tokens", targets_2d, 6, {3, 2}, 2, DENSE};
static const struct tensor dense_weights = {"weights", weights_2d, 6, {3, 2}, 2, DENSE};
static const double listed[] = {0.5, -1, 0.25, 2};
static const int64_t rows[] = {0, 1, 3, 4}, cols[] = {0, 0, 1, 1};
static const struct tensor sparse_weights = {"weights", listed, 4, {3, 2}, 2, rows, cols, 4, 4};

static bool is_targets(const struct tensor *t)
{
    return !strcmp(t->name, "target_tokens");
}

/* ---------------------------------------------------------------- protobuf */

static void add_values(struct pb *to, const struct tensor *t)
{
    static struct pb data;
    data.size = 0;
    for (int i = 0; i < t->values; i++) {
        float real = (float)t->data[i];
        int64_t whole = (int64_t)t->data[i];
        if (is_targets(t))
            pb_raw(&data, &whole, sizeof whole);
        else
            pb_raw(&data, &real, sizeof real);
    }
    pb_bytes(to, 1, data.bytes, data.size);
}

static void add_pb(struct pb *datum, const struct tensor *t)
{
    static struct pb csr, shape, tensor, entry;
    csr.size = shape.size = tensor.size = entry.size = 0;
    if (t->rows) {
        add_values(&csr, t);
        pb_bytes(&csr, 2, t->rows, (size_t)t->row_ends * sizeof *t->rows);
        pb_bytes(&csr, 3, t->cols, (size_t)t->col_count * sizeof *t->cols);
        pb_message(&tensor, 2, &csr);
    } else {
        add_values(&tensor, t);
    }
    pb_varint(&tensor, 3, is_targets(t) ? INT64 : FLOAT32);
    for (int i = 0; i < t->dims; i++)
        pb_number(&shape, (uint64_t)(int64_t)t->shape[i]);
    if (t->dims) pb_message(&tensor, 4, &shape);
    pb_text(&entry, 1, t->name);
    pb_message(&entry, 2, &tensor);
    pb_message(datum, 2, &entry);
}

static void make_pb(struct pb *p, const struct tensor *const *tensors, int count)
{
    static const int32_t tokens[] = {11, 12, 13};
    static struct pb text, chunk, datum;
    text.size = chunk.size = datum.size = p->size = 0;
    pb_bytes(&text, 1, tokens, sizeof tokens);
    pb_message(&chunk, 1, &text);
    pb_message(&datum, 1, &chunk);
    for (int i = 0; i < count; i++)
        add_pb(&datum, tensors[i]);
    pb_text(p, 1, "r");
    pb_text(p, 4, "cross_entropy");
    pb_message(p, 3, &datum);
}

static struct train_request *read_pb(const struct pb *p, struct err *e)
{
    bool malformed = true;
    char *copy = malloc(p->size + 1); /* at an odd address, ending where the message does */
    memcpy(copy + 1, p->bytes, p->size);
    struct train_request *r =
        train_request_decode(CONTENT_PROTOBUF, copy + 1, p->size, &malformed, e);
    assert_false(malformed);
    free(copy);
    return r;
}

/* ---------------------------------------------------------------- JSON */

static json_t *list_of(const int64_t *values, int count)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(list, json_integer(values[i]));
    return list;
}

static json_t *tensor_json(const struct tensor *t)
{
    json_t *data = json_array(), *shape = json_array();
    for (int i = 0; i < t->values; i++)
        json_array_append_new(data, is_targets(t) ? json_integer((json_int_t)t->data[i])
                                                  : json_real(t->data[i]));
    for (int i = 0; i < t->dims; i++)
        json_array_append_new(shape, json_integer(t->shape[i]));
    json_t *j = json_pack("{s:o, s:s}", "data", data, "dtype", is_targets(t) ? "int64" : "float32");
    json_object_set_new(j, "shape", t->dims ? shape : json_null());
    if (!t->dims) json_decref(shape);
    if (t->rows) {
        json_object_set_new(j, "sparse_crow_indices", list_of(t->rows, t->row_ends));
        json_object_set_new(j, "sparse_col_indices", list_of(t->cols, t->col_count));
    }
    return j;
}

static char *make_json(const struct tensor *const *tensors, int count)
{
    json_t *inputs = json_object();
    for (int i = 0; i < count; i++)
        json_object_set_new(inputs, tensors[i]->name, tensor_json(tensors[i]));
    json_t *root = json_pack("{s:s, s:{s:s, s:[{s:{s:[{s:[iii]}]}, s:o}]}}", "model_id", "r",
                             "forward_backward_input", "loss_fn", "cross_entropy", "data",
                             "model_input", "chunks", "tokens", 11, 12, 13, "loss_fn_inputs",
                             inputs);
    assert_non_null(root);
    char *text = json_dumps(root, 0);
    json_decref(root);
    return text;
}

static struct train_request *read_json(const char *text, struct err *e)
{
    bool malformed = true;
    struct train_request *r =
        train_request_decode(CONTENT_JSON, text, strlen(text), &malformed, e);
    assert_false(malformed);
    return r;
}

/* ---------------------------------------------------------------- what arrives */

#define EACH_ENCODING() for (int encoding = 0; encoding < 2; encoding++)

static struct train_request *read_as(int encoding, const struct tensor *a, const struct tensor *b,
                                     struct err *e)
{
    static struct pb p;
    const struct tensor *tensors[] = {a, b};
    if (encoding == 0) {
        make_pb(&p, tensors, b ? 2 : 1);
        return read_pb(&p, e);
    }
    char *text = make_json(tensors, b ? 2 : 1);
    struct train_request *r = read_json(text, e);
    free(text);
    return r;
}

static void assert_arrived(struct train_request *r, const struct err *e)
{
    if (!r) fail_msg("%s", e->text);
    const struct train_datum *d = &r->datums[0];
    assert_int_equal(d->n, 3);
    assert_int_equal(d->columns, 2);
    assert_int_equal(d->weight_columns, 2);
    for (int i = 0; i < 6; i++) {
        assert_true(d->targets[i] == (int64_t)targets_2d[i]);
        assert_true(d->weights[i] == (float)weights_2d[i]);
    }
    assert_int_equal(r->target_cells, 6);
    assert_int_equal(r->weight_cells, 6);
    train_request_free(r);
}

static void two_dimensions_arrive_dense_and_sparse_alike(void **state)
{
    static const double target_list[] = {5, 6, 7, 8, 9};
    static const int64_t target_rows[] = {0, 2, 3, 5}, target_cols[] = {0, 1, 1, 0, 1};
    /* Id 0 is what a cell that is not listed has. */
    static const struct tensor sparse_targets = {"target_tokens", target_list, 5, {3, 2}, 2,
                                                 target_rows, target_cols, 4, 5};
    const struct tensor *targets[] = {&dense_targets, &sparse_targets};
    const struct tensor *weights[] = {&dense_weights, &sparse_weights};
    EACH_ENCODING()
    for (int k = 0; k < 4; k++) {
        struct err e = {0};
        assert_arrived(read_as(encoding, targets[k / 2], weights[k % 2], &e), &e);
    }
}

static void one_column_is_not_the_same_as_none(void **state)
{
    static const double three[] = {1, 2, 3};
    static const struct tensor flat = {"target_tokens", three, 3, {3}, 1, DENSE};
    static const struct tensor unsaid = {"target_tokens", three, 3, {0}, 0, DENSE};
    static const struct tensor column = {"target_tokens", three, 3, {3, 1}, 2, DENSE};
    EACH_ENCODING()
    {
        struct err e = {0};
        struct train_request *r = read_as(encoding, &flat, NULL, &e);
        assert_int_equal(r->datums[0].columns, 0);
        train_request_free(r);
        r = read_as(encoding, &unsaid, NULL, &e);
        assert_int_equal(r->datums[0].columns, 0);
        train_request_free(r);
        r = read_as(encoding, &column, NULL, &e);
        assert_int_equal(r->datums[0].columns, 1);
        assert_true(r->datums[0].targets[2] == 3);
        train_request_free(r);
    }
}

static void a_sparse_tensor_may_list_nothing_and_everything(void **state)
{
    static const int64_t none[] = {0, 0, 0, 0}, all[] = {0, 2, 4, 6}, both[] = {0, 1, 0, 1, 0, 1};
    static const struct tensor empty = {"weights", NULL, 0, {3, 2}, 2, none, none, 4, 0};
    static const struct tensor full = {"weights", weights_2d, 6, {3, 2}, 2, all, both, 4, 6};
    EACH_ENCODING()
    {
        struct err e = {0};
        struct train_request *r = read_as(encoding, &dense_targets, &empty, &e);
        if (!r) fail_msg("%s", e.text);
        for (int i = 0; i < 6; i++)
            assert_true(r->datums[0].weights[i] == 0);
        train_request_free(r);
        assert_arrived(read_as(encoding, &dense_targets, &full, &e), &e);
    }
}

/* ---------------------------------------------------------------- what is refused */

static void a_malformed_tensor_is_refused_by_name_in_both_encodings(void **state)
{
    static const int64_t from_one[] = {1, 1, 3, 4}, falls[] = {0, 3, 1, 4}, beyond[] = {0, 9, 9, 4};
    static const int64_t negative[] = {0, -1, 3, 4}, ends_early[] = {0, 1, 3, 3};
    static const int64_t huge[] = {0, 1, INT64_MAX, 4}, late[] = {0, 1, 3, 5};
    static const int64_t too_far[] = {0, 0, 2, 1}, below[] = {0, -1, 1, 1}, twice[] = {0, 1, 1, 1};
    static const int64_t backwards[] = {0, 1, 0, 1}, far_away[] = {0, 0, INT64_MIN, 1};
    static const int64_t seven[7] = {0};
    static const double big[1024] = {0};
#define SPARSE(r, c) {"weights", listed, 4, {3, 2}, 2, r, c, 4, 4}
    const struct {
        struct tensor t;
        const char *text;
    } cases[] = {
        {SPARSE(from_one, cols), "weights has crow_indices[0] = 1, expected 0"},
        {SPARSE(falls, cols), "crow_indices[2] = 1, expected 3 to 4"},
        {SPARSE(beyond, cols), "crow_indices[1] = 9, expected 0 to 4"},
        {SPARSE(negative, cols), "crow_indices[1] = -1, expected 0 to 4"},
        {SPARSE(huge, cols), "crow_indices[2] = 9223372036854775807"},
        {SPARSE(ends_early, cols), "crow_indices[3] = 3, expected 4: the number of values"},
        {SPARSE(late, cols), "crow_indices[3] = 5, expected 3 to 4"},
        {SPARSE(rows, too_far), "col_indices[2] = 2 in row 1, expected below 2 and rising"},
        {SPARSE(rows, below), "col_indices[1] = -1 in row 1, expected below 2"},
        {SPARSE(rows, far_away), "col_indices[2] = -9223372036854775808"},
        {SPARSE(rows, twice), "col_indices[2] = 1 in row 1, expected"},
        {SPARSE(rows, backwards), "col_indices[2] = 0 in row 1, expected below 2"},
        {{"weights", listed, 4, {3, 2}, 2, rows, cols, 3, 4}, "has 3 crow_indices, expected 4"},
        {{"weights", listed, 4, {3, 2}, 2, rows, cols, 4, 3}, "has 3 col_indices, expected 4"},
        {{"weights", listed, 3, {3, 2}, 2, rows, cols, 4, 4}, "has 4 col_indices, expected 3"},
        {{"weights", big, 7, {3, 2}, 2, rows, seven, 4, 7}, "7 values, expected at most 6"},
        {{"weights", listed, 4, {4, 2}, 2, rows, cols, 4, 4}, "shape [4, 2], expected [3] or [3,"},
        {{"weights", listed, 4, {3, 0}, 2, rows, cols, 4, 4}, "shape [3, 0]"},
        {{"weights", listed, 4, {3, -2}, 2, rows, cols, 4, 4}, "shape [3, -2]"},
        {{"weights", listed, 4, {3, 257}, 2, rows, cols, 4, 4}, "[3, 257], expected"},
        {{"weights", listed, 4, {3}, 1, rows, cols, 4, 4}, "sparse with 1 dimensions, expected 2"},
        {{"weights", listed, 4, {0}, 0, rows, cols, 4, 4}, "sparse with 0 dimensions"},
        {{"advantages", listed, 4, {3}, 1, rows, cols, 4, 4}, "expected a dense tensor"},
        {{"advantages", listed, 4, {3, 2}, 2, rows, cols, 4, 4}, "[3, 2], expected [3]"},
        {{"weights", listed, 4, {3, 2, 1}, 3, rows, cols, 4, 4}, "3 dimensions"},
        {{"weights", weights_2d, 6, {6}, 1, DENSE}, "6 values of shape [6], expected [3]"},
        {{"weights", weights_2d, 5, {3, 2}, 2, DENSE}, "5 values of shape [3, 2], expected 6"},
        {{"weights", weights_2d, 6, {2, 3}, 2, DENSE}, "shape [2, 3], expected [3]"},
        {{"weights", weights_2d, 3, {3}, 1, DENSE}, "weights has shape [3], expected [3, 2]"},
        {{"weights", weights_2d, 3, {3, 1}, 2, DENSE}, "weights has shape [3, 1], expected [3, 2]"},
        {{"weights", big, 771, {3, 257}, 2, DENSE}, "[3, 257], expected [3] or [3, 1 to 256]"},
    };
    EACH_ENCODING()
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        assert_null(read_as(encoding, &dense_targets, &cases[i].t, &e));
        assert_int_equal(e.kind, ERR_USER);
        if (!strstr(e.text, cases[i].text) || strncmp(e.text, "datum 0: ", 9))
            fail_msg("case %zu: \"%s\" says nothing of \"%s\"", i, e.text, cases[i].text);
    }
}

static void indices_that_are_no_indices_are_refused(void **state)
{
    static struct pb p, csr, shape, tensor, entry, datum, text, chunk;
    struct err e = {0};
    pb_bytes(&csr, 1, listed, 16);
    pb_bytes(&csr, 2, rows, 31);
    pb_bytes(&csr, 3, cols, 32);
    pb_message(&tensor, 2, &csr);
    pb_varint(&tensor, 3, FLOAT32);
    pb_number(&shape, 3), pb_number(&shape, 2);
    pb_message(&tensor, 4, &shape);
    pb_text(&entry, 1, "weights");
    pb_message(&entry, 2, &tensor);
    pb_bytes(&text, 1, rows, 12);
    pb_message(&chunk, 1, &text);
    pb_message(&datum, 1, &chunk);
    pb_message(&datum, 2, &entry);
    pb_text(&p, 1, "r");
    pb_text(&p, 4, "cross_entropy");
    pb_message(&p, 3, &datum);
    assert_null(read_pb(&p, &e));
    assert_non_null(strstr(e.text, "31 and 32 bytes of indices, expected int64"));

    static const char *const bad[][2] = {
        {"\"sparse_crow_indices\":[0,1]", "only one of"},
        {"\"sparse_crow_indices\":7,\"sparse_col_indices\":[0]", "sparse_crow_indices is a whole"},
        {"\"sparse_crow_indices\":[0,1.5],\"sparse_col_indices\":[0]", "sparse_crow_indices[1]"},
        {"\"sparse_crow_indices\":[0,1],\"sparse_col_indices\":[\"a\"]", "sparse_col_indices[0]"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char json[512];
        snprintf(json, sizeof json,
                 "{\"model_id\":\"r\",\"forward_input\":{\"loss_fn\":\"cross_entropy\",\"data\":[{"
                 "\"model_input\":{\"chunks\":[{\"tokens\":[1]}]},\"loss_fn_inputs\":{\"weights\":{"
                 "\"data\":[1],\"shape\":[1,2],%s}}}]}}",
                 bad[i][0]);
        e = (struct err){0};
        assert_null(read_json(json, &e));
        if (!strstr(e.text, bad[i][1])) fail_msg("\"%s\" says nothing of %s", e.text, bad[i][1]);
    }
}

/* Some bytes on the wire could ask for gigabytes: sparse tensors that list nothing.  A datum of 128
 * tokens has 32,768 cells; 96 of them are what a result can hold, the 97th is refused. */
static void the_cells_of_a_request_are_bounded_before_there_is_memory_for_them(void **state)
{
    static struct pb datum, text, chunk, tensor, csr, shape, entry;
    static const int64_t none[129];
    static const char *const names[] = {"target_tokens", "weights"};
    for (int which = 0; which < 2; which++) {
        datum.size = text.size = chunk.size = tensor.size = csr.size = shape.size = entry.size = 0;
        pb_bytes(&text, 1, none, 128 * 4);
        pb_message(&chunk, 1, &text);
        pb_message(&datum, 1, &chunk);
        pb_bytes(&csr, 2, none, sizeof none);
        pb_message(&tensor, 2, &csr);
        pb_varint(&tensor, 3, which == 0 ? INT64 : FLOAT32);
        pb_number(&shape, 128), pb_number(&shape, 256);
        pb_message(&tensor, 4, &shape);
        pb_text(&entry, 1, names[which]);
        pb_message(&entry, 2, &tensor);
        pb_message(&datum, 2, &entry);
        for (int count = 96; count <= 97; count++) {
            size_t size = 0;
            char *bytes = malloc(20 + 97 * (datum.size + 4));
            size += (size_t)sprintf(bytes, "\x0a\x01r\x22\x0d%s", "cross_entropy");
            for (int i = 0; i < count; i++) {
                assert_in_range(datum.size, 128, 16383);
                bytes[size++] = 0x1a;
                bytes[size++] = (char)((datum.size & 0x7f) | 0x80);
                bytes[size++] = (char)(datum.size >> 7);
                memcpy(bytes + size, datum.bytes, datum.size);
                size += datum.size;
            }
            struct err e = {0};
            bool malformed = true;
            struct train_request *r =
                train_request_decode(CONTENT_PROTOBUF, bytes, size, &malformed, &e);
            assert_false(malformed);
            if (count == 96) {
                if (!r) fail_msg("%s", e.text);
                assert_int_equal(which ? r->weight_cells : r->target_cells, RESULT_CELLS_MAX);
            } else {
                assert_null(r);
                assert_int_equal(e.kind, ERR_USER);
                assert_non_null(strstr(e.text, "more than 3145728 values"));
                assert_non_null(strstr(e.text, names[which]));
            }
            train_request_free(r);
            free(bytes);
        }
    }
}

/* Whatever one flips in a sparse request, the decoder answers with a request or a reason. */
static void damaged_sparse_requests_are_answered(void **state)
{
    static struct pb p, q;
    const struct tensor *tensors[] = {&dense_targets, &sparse_weights};
    uint32_t random = 4321;
    int good = 0, bad = 0;
    make_pb(&p, tensors, 2);
    for (int round = 0; round < 20000; round++) {
        q = p;
        for (int k = 0; k < 1 + round % 3; k++) {
            random = random * 1664525u + 1013904223u;
            q.bytes[(random >> 8) % q.size] = (char)(random >> 24);
        }
        struct err e = {0};
        bool malformed;
        char *copy = malloc(q.size);
        memcpy(copy, q.bytes, q.size);
        struct train_request *r =
            train_request_decode(CONTENT_PROTOBUF, copy, q.size, &malformed, &e);
        if (!r && !e.text[0]) fail_msg("no reason in round %d", round);
        *(r ? &good : &bad) += 1;
        train_request_free(r);
        free(copy);
    }
    assert_true(good > 1000 && bad > 1000);
}

/* ---------------------------------------------------------------- results */

static const json_t *output_of(const json_t *root, size_t i)
{
    const json_t *list = json_object_get(root, "loss_fn_outputs");
    return json_object_get(json_array_get(list, i), "logprobs");
}

static void a_result_has_the_shapes_of_the_targets_in_the_datums_order(void **state)
{
    static const float values[] = {-1, -2, -3, -4, -5, -6, -7, -8, -9, -10};
    const struct train_output outputs[] = {
        {2, 2, values}, {1, 2, values + 4}, {2, 0, values + 6}, {2, 1, values + 8}, {1, 2, values}};
    static const int shapes[][2] = {{2, 2}, {1, 2}, {2, 0}, {2, 1}, {1, 2}};
    const struct metric metrics[] = {{"loss:sum", 2}};
    struct err e = {0};
    size_t size, json_size;
    char *bytes = train_output_encode(5, outputs, metrics, 1, &size, &e);
    if (!bytes) fail_msg("%s", e.text);
    char *text = train_output_to_json(bytes, size, &json_size, &e);
    if (!text) fail_msg("%s", e.text);
    json_t *root = json_loadb(text, json_size, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(root, "loss_fn_outputs")), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *t = output_of(root, i), *shape = json_object_get(t, "shape");
        assert_int_equal(json_array_size(shape), shapes[i][1] ? 2 : 1);
        assert_int_equal(json_integer_value(json_array_get(shape, 0)), shapes[i][0]);
        if (shapes[i][1])
            assert_int_equal(json_integer_value(json_array_get(shape, 1)), shapes[i][1]);
        const json_t *data = json_object_get(t, "data");
        size_t n = (size_t)(shapes[i][0] * (shapes[i][1] ? shapes[i][1] : 1));
        assert_int_equal(json_array_size(data), n);
        for (size_t k = 0; k < n; k++)
            assert_true((float)json_number_value(json_array_get(data, k)) ==
                        outputs[i].logprobs[k]);
    }
    json_decref(root);
    free(text);
    free(bytes);
}

/* The protobuf itself: records change where the number of columns does. */
static void a_record_holds_arrays_of_one_form(void **state)
{
    static const float values[] = {-1, -2, -3, -4};
    const struct train_output outputs[] = {{1, 2, values}, {1, 2, values + 2}, {1, 0, values}};
    const struct metric metrics[] = {{"loss:sum", 2}};
    static struct pb tensor, trailing, entry, record, want;
    static const int64_t offsets[] = {0, 8, 16}, short_offsets[] = {0, 4};
    struct err e = {0};
    size_t size;
    char *bytes = train_output_encode(3, outputs, metrics, 1, &size, &e);
    pb_text(&want, 1, "TorchLossReturn");
    pb_bytes(&tensor, 1, values, 16);
    pb_bytes(&tensor, 2, offsets, sizeof offsets);
    pb_varint(&tensor, 3, FLOAT32);
    pb_number(&trailing, 2);
    pb_message(&tensor, 4, &trailing);
    pb_text(&entry, 1, "logprobs");
    pb_message(&entry, 2, &tensor);
    pb_message(&record, 2, &entry);
    pb_varint(&record, 3, 2);
    pb_message(&want, 2, &record);
    tensor.size = entry.size = record.size = 0;
    pb_bytes(&tensor, 1, values, 4);
    pb_bytes(&tensor, 2, short_offsets, sizeof short_offsets);
    pb_varint(&tensor, 3, FLOAT32);
    pb_text(&entry, 1, "logprobs");
    pb_message(&entry, 2, &tensor);
    pb_message(&record, 2, &entry);
    pb_varint(&record, 3, 1);
    pb_message(&want, 2, &record);
    assert_true(size > want.size);
    assert_memory_equal(bytes, want.bytes, want.size);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_dimensions_arrive_dense_and_sparse_alike),
        cmocka_unit_test(one_column_is_not_the_same_as_none),
        cmocka_unit_test(a_sparse_tensor_may_list_nothing_and_everything),
        cmocka_unit_test(a_malformed_tensor_is_refused_by_name_in_both_encodings),
        cmocka_unit_test(indices_that_are_no_indices_are_refused),
        cmocka_unit_test(the_cells_of_a_request_are_bounded_before_there_is_memory_for_them),
        cmocka_unit_test(damaged_sparse_requests_are_answered),
        cmocka_unit_test(a_result_has_the_shapes_of_the_targets_in_the_datums_order),
        cmocka_unit_test(a_record_holds_arrays_of_one_form),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
