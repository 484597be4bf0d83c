/* train_tensor.c - the tensors of a datum: form, bounds, and sparse ones made dense.
 *
 * targets and weights are [n] or [n, K], all others [n].  Sparse CSR is for [n, K] only: a client
 * picks it where it is the smaller form of the same numbers, so what is not listed is 0. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "train.h"

static bool may_have_columns(enum input which)
{
    return which == INPUT_TARGETS || which == INPUT_WEIGHTS;
}

/* ---------------------------------------------------------------- form */

static int check_1d(const struct tensor_form *f, int n, struct err *e)
{
    if (f->sparse)
        return err_set(e, ERR_USER, "%s is sparse with %zu dimensions, expected %s", f->name,
                       f->dims, may_have_columns(f->which) ? "2" : "a dense tensor");
    if ((f->dims == 1 && f->shape[0] != n) || f->values != (size_t)n)
        return err_set(e, ERR_USER, "%s has %zu values of shape [%" PRId64 "], expected [%d]",
                       f->name, f->values, f->dims ? f->shape[0] : (int64_t)f->values, n);
    return 0;
}

static int check_2d(const struct tensor_form *f, int n, struct err *e)
{
    if (!may_have_columns(f->which))
        return err_set(e, ERR_USER, "%s has shape [%" PRId64 ", %" PRId64 "], expected [%d]",
                       f->name, f->shape[0], f->shape[1], n);
    if (f->shape[0] != n || f->shape[1] < 1 || f->shape[1] > TARGETS_MAX)
        return err_set(e, ERR_USER,
                       "%s has shape [%" PRId64 ", %" PRId64 "], expected [%d] or [%d, 1 to %d]",
                       f->name, f->shape[0], f->shape[1], n, n, TARGETS_MAX);
    size_t cells = (size_t)n * (size_t)f->shape[1];
    if (!f->sparse && f->values != cells)
        return err_set(e, ERR_USER,
                       "%s has %zu values of shape [%" PRId64 ", %" PRId64 "], expected %zu",
                       f->name, f->values, f->shape[0], f->shape[1], cells);
    return 0;
}

static int check_csr(const struct tensor_form *f, int n, struct err *e)
{
    size_t cells = (size_t)n * (size_t)f->shape[1];
    if (f->row_ends != (size_t)n + 1)
        return err_set(e, ERR_USER, "%s has %zu crow_indices, expected %d for %d rows", f->name,
                       f->row_ends, n + 1, n);
    if (f->cols != f->values)
        return err_set(e, ERR_USER, "%s has %zu col_indices, expected %zu: one for each value",
                       f->name, f->cols, f->values);
    if (f->values > cells)
        return err_set(e, ERR_USER, "%s has %zu values, expected at most %zu", f->name, f->values,
                       cells);
    return 0;
}

static int check_form(const struct tensor_form *f, int n, struct err *e)
{
    if (f->dims > 2)
        return err_set(e, ERR_USER, "%s has %zu dimensions, expected shape [%d]%s", f->name,
                       f->dims, n, may_have_columns(f->which) ? " or [n, K]" : "");
    if (f->dims < 2) return check_1d(f, n, e);
    if (check_2d(f, n, e) < 0) return -1;
    return f->sparse ? check_csr(f, n, e) : 0;
}

/* ---------------------------------------------------------------- arrays */

static float **float_place(struct train_datum *d, enum input which)
{
    switch (which) {
    case INPUT_WEIGHTS:
        return &d->weights;
    case INPUT_LOGPROBS:
        return &d->logprobs;
    case INPUT_ADVANTAGES:
        return &d->advantages;
    case INPUT_CLIP_LOW:
        return &d->clip_low;
    case INPUT_CLIP_HIGH:
        return &d->clip_high;
    default:
        return &d->sequence_ratio_mask;
    }
}

/* Adds to what the request's targets, or weights, have in all; a tensor that was sent twice counts
 * once. */
static int count_cells(struct train_request *r, struct train_datum *d, const struct tensor_form *f,
                       size_t cells, struct err *e)
{
    bool targets = f->which == INPUT_TARGETS;
    if (!may_have_columns(f->which)) return 0;
    int64_t *total = targets ? &r->target_cells : &r->weight_cells;
    int *columns = targets ? &d->columns : &d->weight_columns;
    if (targets ? d->targets != NULL : d->weights != NULL)
        *total -= (int64_t)d->n * (*columns ? *columns : 1);
    *total += (int64_t)cells;
    *columns = f->dims == 2 ? (int)f->shape[1] : 0;
    if (*total > RESULT_CELLS_MAX)
        return err_set(e, ERR_USER,
                       "the request's %s have more than %d values, expected at most that many: its "
                       "result would have more than %zu bytes",
                       f->name, RESULT_CELLS_MAX, (size_t)RESULT_CELLS_MAX * sizeof(float));
    return 0;
}

void *train_tensor_make(struct train_request *r, struct train_datum *d, const struct tensor_form *f,
                        size_t *count, struct err *e)
{
    if (check_form(f, d->n, e) < 0) return NULL;
    *count = (size_t)d->n * (f->dims == 2 ? (size_t)f->shape[1] : 1);
    if (count_cells(r, d, f, *count, e) < 0) return NULL;
    void *values = calloc(*count, f->which == INPUT_TARGETS ? sizeof *d->targets : sizeof(float));
    if (!values) {
        err_set(e, ERR_RETRY, "out of memory for %zu values", *count);
        return NULL;
    }
    if (f->which == INPUT_TARGETS) {
        free(d->targets);
        return d->targets = values;
    }
    float **place = float_place(d, f->which);
    free(*place);
    return *place = values;
}

/* ---------------------------------------------------------------- sparse */

static int check_row_ends(const struct tensor_form *f, const int64_t *row_ends, struct err *e)
{
    int64_t rows = f->shape[0], nnz = (int64_t)f->values;
    if (row_ends[0] != 0)
        return err_set(e, ERR_USER, "%s has crow_indices[0] = %" PRId64 ", expected 0", f->name,
                       row_ends[0]);
    for (int64_t row = 1; row <= rows; row++)
        if (row_ends[row] < row_ends[row - 1] || row_ends[row] > nnz)
            return err_set(e, ERR_USER,
                           "%s has crow_indices[%" PRId64 "] = %" PRId64 ", expected %" PRId64
                           " to %" PRId64,
                           f->name, row, row_ends[row], row_ends[row - 1], nnz);
    if (row_ends[rows] != nnz)
        return err_set(e, ERR_USER,
                       "%s has crow_indices[%" PRId64 "] = %" PRId64 ", expected %" PRId64
                       ": the number of values",
                       f->name, rows, row_ends[rows], nnz);
    return 0;
}

int train_csr_cells(const struct tensor_form *f, const int64_t *row_ends, int64_t *cols,
                    struct err *e)
{
    int64_t rows = f->shape[0], columns = f->shape[1];
    if (check_row_ends(f, row_ends, e) < 0) return -1;
    for (int64_t row = 0; row < rows; row++) {
        int64_t least = 0;
        for (int64_t i = row_ends[row]; i < row_ends[row + 1]; i++) {
            int64_t column = cols[i];
            if (column < least || column >= columns)
                return err_set(e, ERR_USER,
                               "%s has col_indices[%" PRId64 "] = %" PRId64 " in row %" PRId64
                               ", expected below %" PRId64 " and rising within the row",
                               f->name, i, column, row, columns);
            least = column + 1;
            cols[i] = row * columns + column;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------- contents */

int train_check_datum(const struct train_datum *d, struct err *e)
{
    if (!d->targets || !d->weights || d->columns == d->weight_columns) return 0;
    char targets[32] = "", weights[32] = "";
    if (d->columns) snprintf(targets, sizeof targets, ", %d", d->columns);
    if (d->weight_columns) snprintf(weights, sizeof weights, ", %d", d->weight_columns);
    return err_set(e, ERR_USER, "weights has shape [%d%s], expected [%d%s], as target_tokens", d->n,
                   weights, d->n, targets);
}

int train_check_finite(const char *name, const float *values, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return err_set(e, ERR_USER, "%s[%zu] is %f, expected a finite number", name, i,
                           (double)values[i]);
    return 0;
}
