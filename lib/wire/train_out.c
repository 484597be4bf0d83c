/* train_out.c - a train result: ForwardBackwardOutput as protobuf, and the same as JSON. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "numbers.h"
#include "pb.h"
#include "tinker.pb-c.h"
#include "wire/payload.h"

#define METRICS_MAX 64

typedef TinkerPublic__ForwardBackwardOutput output_pb;
typedef TinkerPublic__ForwardBackwardOutput__MetricsEntry metric_pb;
typedef TinkerPublic__BatchedTensor batched_pb;
typedef TinkerPublic__ArrayRecord record_pb;
typedef TinkerPublic__ArrayRecord__FieldsEntry field_pb;

/* ---------------------------------------------------------------- protobuf */

/* Client libraries merge by "name:reduction" and raise on any other key. */
static int check_metrics(const struct metric *metrics, int count, struct err *e)
{
    bool loss = false;
    if (count < 0 || count > METRICS_MAX)
        return err_set(e, ERR_BUG, "%d metrics, expected at most %d", count, METRICS_MAX);
    for (int i = 0; i < count; i++) {
        const char *colon = strchr(metrics[i].name, ':');
        if (!colon || strchr(colon + 1, ':'))
            return err_set(e, ERR_BUG, "metric \"%s\", expected name:reduction", metrics[i].name);
        if (!strcmp(metrics[i].name, "loss:sum")) loss = true;
    }
    return loss ? 0 : err_set(e, ERR_BUG, "a train result without the metric loss:sum");
}

/* One ArrayRecord with all that it points to. */
struct part {
    record_pb record;
    field_pb field, *fields[1];
    batched_pb tensor;
    int64_t columns;
};

static size_t bytes_of(const struct train_output *o)
{
    return (size_t)o->n * (size_t)(o->columns ? o->columns : 1) * sizeof(float);
}

static int check_outputs(int count, const struct train_output *outputs, struct err *e)
{
    size_t total = 0;
    if (count < 1 || count > DATUMS_MAX)
        return err_set(e, ERR_BUG, "a train result of %d datums", count);
    for (int i = 0; i < count; i++) {
        const struct train_output *o = &outputs[i];
        if (o->n < 0 || o->n > DATUM_TOKENS_MAX || o->columns < 0 || o->columns > TARGETS_MAX)
            return err_set(e, ERR_BUG, "an array of shape [%d, %d]", o->n, o->columns);
        total += bytes_of(o);
    }
    if (total > RESULT_CELLS_MAX * sizeof(float))
        return err_set(e, ERR_USER, "a result of %zu bytes, expected at most %zu", total,
                       RESULT_CELLS_MAX * sizeof(float));
    return 0;
}

/* All arrays one after the other, and where each begins, in bytes (count + 1 offsets). */
static int concatenate(batched_pb *out, int count, const struct train_output *outputs,
                       struct err *e)
{
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += bytes_of(&outputs[i]);
    out->data.len = total;
    out->data.data = malloc(total + 1);
    out->offsets.len = ((size_t)count + 1) * sizeof(int64_t);
    out->offsets.data = malloc(out->offsets.len);
    if (!out->data.data || !out->offsets.data)
        return err_set(e, ERR_RETRY, "out of memory for a result of %zu bytes", total);
    int64_t at = 0;
    for (int i = 0; i <= count; i++) {
        memcpy(out->offsets.data + (size_t)i * sizeof at, &at, sizeof at);
        if (i == count) break;
        size_t size = bytes_of(&outputs[i]);
        if (size) memcpy(out->data.data + at, outputs[i].logprobs, size);
        at += (int64_t)size;
    }
    return 0;
}

static int part_make(struct part *p, int count, const struct train_output *outputs, struct err *e)
{
    tinker_public__array_record__init(&p->record);
    tinker_public__batched_tensor__init(&p->tensor);
    p->field = (field_pb)TINKER_PUBLIC__ARRAY_RECORD__FIELDS_ENTRY__INIT;
    p->field.key = (char *)"logprobs";
    p->field.value = &p->tensor;
    p->fields[0] = &p->field;
    p->record.n_fields = 1;
    p->record.fields = p->fields;
    p->record.num_datums = count;
    p->tensor.dtype = TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32;
    p->columns = outputs->columns;
    p->tensor.n_trailing_shape = p->columns ? 1 : 0;
    p->tensor.trailing_shape = &p->columns;
    return concatenate(&p->tensor, count, outputs, e);
}

/* A record holds arrays of one form only. */
static int parts_make(struct part *parts, record_pb **records, int count,
                      const struct train_output *outputs, size_t *made, struct err *e)
{
    for (int from = 0, to; from < count; from = to) {
        for (to = from + 1; to < count && outputs[to].columns == outputs[from].columns;)
            to++;
        struct part *p = &parts[(*made)++];
        records[p - parts] = &p->record;
        if (part_make(p, to - from, outputs + from, e) < 0) return -1;
    }
    return 0;
}

static char *pack(record_pb **records, size_t record_count, const struct metric *metrics,
                  int metric_count, size_t *size, struct err *e)
{
    output_pb output = TINKER_PUBLIC__FORWARD_BACKWARD_OUTPUT__INIT;
    metric_pb entries[METRICS_MAX], *pointers[METRICS_MAX];
    for (int i = 0; i < metric_count; i++) {
        metric_pb entry = TINKER_PUBLIC__FORWARD_BACKWARD_OUTPUT__METRICS_ENTRY__INIT;
        entry.key = (char *)metrics[i].name;
        entry.value = metrics[i].value;
        entries[i] = entry;
        pointers[i] = &entries[i];
    }
    output.loss_fn_output_type = (char *)"TorchLossReturn";
    output.n_loss_fn_outputs = record_count;
    output.loss_fn_outputs = records;
    output.n_metrics = (size_t)metric_count;
    output.metrics = pointers;
    return pb_pack(&output.base, JOB_PAYLOAD_MAX, size, e);
}

char *train_output_encode(int count, const struct train_output *outputs,
                          const struct metric *metrics, int metric_count, size_t *size,
                          struct err *e)
{
    char *bytes = NULL;
    size_t made = 0;
    if (check_outputs(count, outputs, e) < 0) return NULL;
    if (check_metrics(metrics, metric_count, e) < 0) return NULL;
    struct part *parts = calloc((size_t)count, sizeof *parts);
    record_pb **records = calloc((size_t)count, sizeof *records);
    if (!parts || !records)
        err_set(e, ERR_RETRY, "out of memory for a result of %d datums", count);
    else if (parts_make(parts, records, count, outputs, &made, e) == 0)
        bytes = pack(records, made, metrics, metric_count, size, e);
    for (size_t i = 0; i < made; i++) {
        free(parts[i].tensor.data.data);
        free(parts[i].tensor.offsets.data);
    }
    free(parts);
    free(records);
    return bytes;
}

/* ---------------------------------------------------------------- JSON */

static int64_t offset_at(const batched_pb *t, size_t i)
{
    int64_t at;
    memcpy(&at, t->offsets.data + i * sizeof at, sizeof at);
    return at;
}

static int64_t columns_of(const batched_pb *t)
{
    return t->n_trailing_shape ? t->trailing_shape[0] : 0;
}

/* Our own messages are checked too: a result is read back from a log that others may write. */
static int check_batched(const batched_pb *t, int64_t datums, struct err *e)
{
    static const char text[] = "a train result's arrays do not fit its offsets";
    if (!t || t->dtype != TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32 || t->n_trailing_shape > 1)
        return err_set(e, ERR_USER, "a train result's arrays are not 1-D or 2-D float32");
    if (t->n_trailing_shape && (columns_of(t) < 1 || columns_of(t) > TARGETS_MAX))
        return err_set(e, ERR_USER, "a train result's arrays have %" PRId64 " columns",
                       columns_of(t));
    if (datums < 0 || datums > DATUMS_MAX ||
        t->offsets.len != ((size_t)datums + 1) * sizeof(int64_t))
        return err_set(e, ERR_USER, text);
    int64_t row = (int64_t)sizeof(float) * (t->n_trailing_shape ? columns_of(t) : 1);
    for (size_t i = 0; i <= (size_t)datums; i++) {
        int64_t at = offset_at(t, i), before = i ? offset_at(t, i - 1) : 0;
        if (at < before || at % row || (!i && at) || at > (int64_t)t->data.len)
            return err_set(e, ERR_USER, text);
    }
    return 0;
}

static int add_tensor(struct buf *b, const batched_pb *t, size_t i, struct err *e)
{
    int64_t from = offset_at(t, i), to = offset_at(t, i + 1), columns = columns_of(t);
    size_t n = (size_t)(to - from) / sizeof(float);
    if (buf_printf(b, e, "{\"data\":") < 0 ||
        numbers_add_floats(b, t->data.data + from, n, e) < 0)
        return -1;
    if (columns)
        return buf_printf(b, e, ",\"dtype\":\"float32\",\"shape\":[%zu,%" PRId64 "]}",
                          n / (size_t)columns, columns);
    return buf_printf(b, e, ",\"dtype\":\"float32\",\"shape\":[%zu]}", n);
}

static int add_datum(struct buf *b, const record_pb *rec, size_t i, struct err *e)
{
    if (buf_printf(b, e, "{") < 0) return -1;
    for (size_t k = 0; k < rec->n_fields; k++)
        if (buf_printf(b, e, "%s", k ? "," : "") < 0 ||
            numbers_add_text(b, rec->fields[k]->key, e) < 0 || buf_printf(b, e, ":") < 0 ||
            add_tensor(b, rec->fields[k]->value, i, e) < 0)
            return -1;
    return buf_printf(b, e, "}");
}

static int add_outputs(struct buf *b, const output_pb *m, struct err *e)
{
    const char *comma = "";
    for (size_t k = 0; k < m->n_loss_fn_outputs; k++) {
        const record_pb *rec = m->loss_fn_outputs[k];
        for (size_t f = 0; f < rec->n_fields; f++)
            if (check_batched(rec->fields[f]->value, rec->num_datums, e) < 0) return -1;
        if (rec->num_datums < 0 || rec->num_datums > DATUMS_MAX)
            return err_set(e, ERR_USER, "a train result of %" PRId64 " datums", rec->num_datums);
        for (size_t i = 0; i < (size_t)rec->num_datums; i++, comma = ",")
            if (buf_printf(b, e, "%s", comma) < 0 || add_datum(b, rec, i, e) < 0) return -1;
    }
    return 0;
}

static int add_metrics(struct buf *b, const output_pb *m, struct err *e)
{
    for (size_t i = 0; i < m->n_metrics; i++)
        if (buf_printf(b, e, "%s", i ? "," : "") < 0 ||
            numbers_add_text(b, m->metrics[i]->key, e) < 0 || buf_printf(b, e, ":") < 0 ||
            numbers_add_double(b, m->metrics[i]->value, e) < 0)
            return -1;
    return 0;
}

char *train_output_to_json(const void *bytes, size_t size, size_t *json_size, struct err *e)
{
    struct pb_heap heap;
    struct buf b;
    char *json = NULL;
    pb_heap_init(&heap);
    buf_init(&b, NUMBERS_JSON_MAX);
    const output_pb *m =
        pb_unpack(&heap, &tinker_public__forward_backward_output__descriptor, bytes, size, e);
    if (!m) goto out;
    if (buf_printf(&b, e, "{\"loss_fn_output_type\":") < 0 ||
        numbers_add_text(&b, m->loss_fn_output_type, e) < 0 ||
        buf_printf(&b, e, ",\"loss_fn_outputs\":[") < 0 || add_outputs(&b, m, e) < 0 ||
        buf_printf(&b, e, "],\"metrics\":{") < 0 || add_metrics(&b, m, e) < 0 ||
        buf_printf(&b, e, "}}") < 0)
        goto out;
    json = buf_take(&b, json_size);
out:
    buf_clear(&b);
    pb_heap_clear(&heap);
    return json;
}
